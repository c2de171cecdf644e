//! The hook that accepts or refuses a connection before anything is opened for it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::room::Presence;

/// The hook of [`SessionBuilder::accept`](super::SessionBuilder::accept).
pub(crate) type Accept<M> = Arc<dyn Fn(&Presence) -> Result<(), Refusal<M>> + Send + Sync>;

/// Why a connection is not accepted, and what the participant is told.
///
/// ```
/// use bytes::Bytes;
/// use lanecast::room::memory::MemoryRoom;
/// use lanecast::{Refusal, Session};
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let room: MemoryRoom<Bytes> = MemoryRoom::new();
/// let session = Session::builder(room)
///     .accept(|presence| match presence.attributes.get("seat") {
///         Some(_) => Ok(()),
///         None => Err(Refusal::new("it has no seat").with_message(Bytes::from_static(b"take a seat first"))),
///     })
///     .build()?;
/// # Ok(()) }
/// ```
pub struct Refusal<M> {
    pub(crate) reason: Arc<dyn Error + Send + Sync>,
    pub(crate) message: Option<M>,
}

impl<M> Refusal<M> {
    /// Refuses for `reason`, an error or a text. [`JoinError::NotAccepted`](super::JoinError::NotAccepted) carries the
    /// reason to the session's listeners. The participant is told nothing.
    pub fn new(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { reason: Arc::from(reason.into()), message: None }
    }

    /// Sets the message that the participant gets: on a stream that is opened for this message alone, and closed after
    /// it.
    #[must_use]
    pub fn with_message(mut self, message: M) -> Self {
        self.message = Some(message);
        self
    }
}

/// Shows the reason, never the payload.
impl<M> fmt::Debug for Refusal<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal").field("reason", &self.reason).finish_non_exhaustive()
    }
}
