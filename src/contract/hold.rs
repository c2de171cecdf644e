//! When publishers are held because most participants are behind.

use std::time::Duration;

/// When publishers are held because most participants are behind: see
/// [`OverloadPolicy::Hold`](crate::OverloadPolicy::Hold).
///
/// A participant is *heavy* from the moment its backlog reaches half of its bound
/// ([`queue_capacity`](crate::SessionBuilder::queue_capacity) or [`queue_bytes`](crate::SessionBuilder::queue_bytes))
/// until it is down to less than three eighths. While more than the share of the session's participants are heavy, the
/// log takes no broadcast: [`broadcast`](crate::Session::broadcast) waits, and
/// [`try_broadcast`](crate::Session::try_broadcast) returns the message as [`Full`](crate::TryBroadcastError::Full).
/// Everything else goes on: delivery, direct messages, joins, subscriptions, and the close. A participant that joins
/// counts once it has its initial messages.
///
/// A minority that is behind is reset as under [`OverloadPolicy::Reset`](crate::OverloadPolicy::Reset). So is a
/// majority that has stalled: after the [patience](Self::patience) publishers continue.
///
/// ```
/// use bytes::Bytes;
/// use lanecast::room::memory::MemoryRoom;
/// use lanecast::{Hold, Session};
/// use std::time::Duration;
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let room: MemoryRoom<Bytes> = MemoryRoom::new();
/// let session = Session::builder(room).overload(Hold::default().patience(Duration::from_secs(1))).build()?;
/// assert!(!session.stats().publishers_held);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a policy does nothing until a builder is given it"]
pub struct Hold {
    pub(crate) share_percent: u8,
    pub(crate) at_least: u32,
    pub(crate) patience: Duration,
}

impl Hold {
    /// Sets the percentage of the participants above which publishers are held: they are held while more than this
    /// share is heavy. Default 50. From 1 to 99.
    pub fn share_percent(mut self, percent: u8) -> Self {
        self.share_percent = percent;
        self
    }

    /// Sets how many participants a session must have for its publishers to be held. Default 8: of fewer, half may be
    /// slow by chance. At least 1.
    pub fn at_least(mut self, participants: u32) -> Self {
        self.at_least = participants;
        self
    }

    /// Sets for how long publishers are held while no heavy participant makes progress. Default 2 s: longer than a
    /// network takes to retransmit, shorter than the default write time-out. Longer than zero.
    ///
    /// A participant makes progress when a flush of its sink completes, or when its transport says
    /// [so](crate::Progress). After the patience, noticed at most a quarter of it late, publishers continue, and
    /// participants overflow as under [`OverloadPolicy::Reset`](crate::OverloadPolicy::Reset). Once a heavy participant
    /// makes progress, publishers are held again.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

impl Default for Hold {
    fn default() -> Self {
        Self { share_percent: 50, at_least: 8, patience: Duration::from_secs(2) }
    }
}
