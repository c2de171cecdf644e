//! What viewers ask for: channels, subscriptions, statuses, assets.
//!
//! [`Telemetry`] is a [`Session`] whose messages are frames of the wire formats viewers speak. A viewer that joins is
//! told who the server is, which channels there are and which statuses hold; it subscribes to channels, and gets their
//! messages. A message is encoded once, whatever its viewers speak: what differs from viewer to viewer is a head of
//! thirteen bytes or seventeen, the payload is shared.
//!
//! ```
//! use lanecast::protocol::Frame;
//! use lanecast::room::memory::MemoryRoom;
//! use lanecast::telemetry::{Channel, Published, Schema, Telemetry};
//! use std::time::Duration;
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let room: MemoryRoom<Frame> = MemoryRoom::new();
//! let telemetry = Telemetry::builder(room).name("rig-7").build()?;
//!
//! let schema = Schema::new("Speed", "jsonschema", r#"{"type":"object","properties":{"kmh":{"type":"number"}}}"#);
//! let speed = telemetry.advertise(Channel::new("/speed", "json").schema(schema)).await?;
//! // Nobody has subscribed yet: this cost two loads.
//! assert_eq!(speed.publish(r#"{"kmh":42}"#).await?, Published::ToNobody);
//!
//! speed.unadvertise().await?;
//! telemetry.close(Duration::from_secs(1)).await?;
//! # Ok(()) }
//! ```
//!
//! # Who does what
//! - The embedder advertises, publishes and sets statuses. What changes the tables goes through one task, the
//!   announcer, which keeps tables and announcements in one order; publishing does not.
//! - Each viewer's requests are handled in order: one has taken effect before the next is looked at.
//! - What a viewer asked for belongs to its instance (its [`ClientId`](crate::ClientId)): after a reset it learns by
//!   the fresh `serverInfo` that it has to subscribe again.
//!
//! - A participant whose transport negotiated a protocol speaks v1 of the format, every other v2: see
//!   [`WireFormat`](crate::protocol::WireFormat) and [`Participant::protocol`](crate::Participant::protocol).
//! - A viewer's answers wait while half of what may wait for it does, and what it asks for behind them.
//! - A viewer is told of each channel once, in messages of at most 100 channels and 256 KiB, and of the end of a channel
//!   only if it was told of the channel, whenever it joins.
//! - A request that crosses the end of its channel on the way isn't warned of.
//! - On request viewers are told the [time of the server](TelemetryBuilder::time) with their messages.
//! - A viewer of v2 pings and is answered; its [round trip](crate::ParticipantStats::round_trip) and
//!   whether it is still [heard of](TelemetryBuilder::silence_timeout) are known from then on.
//!
//! # Limits
//! Every channel is reliable: who can't keep up is reset. Services, parameters, the connection graph and publishing by
//! clients are not offered yet; who asks for them is told so. Who asks for a video track gets messages.

mod announcer;
mod answer;
mod assets;
mod builder;
mod channel;
mod error;
mod frame;
mod inbox;
mod pings;
mod silence;
mod state;
mod subscriptions;
mod tables;
#[cfg(test)]
mod tests;
mod viewer;
mod warnings;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;

pub use self::assets::AssetRequest;
pub use self::builder::TelemetryBuilder;
pub use self::channel::{AdvertisedChannel, Channel, Published};
pub use self::error::{AnnounceError, PublishError, TryPublishError};
pub use self::inbox::Inbox;
pub use crate::protocol::Schema;
pub use crate::protocol::server::{Status, StatusLevel};

use self::announcer::Op;
use self::state::State;
use crate::protocol::Frame;
use crate::room::Room;
use crate::session::{CloseError, CloseReport, Session};

/// A session that speaks the wire formats of telemetry viewers. Clones are the same one.
///
/// Dropping the last clone, and the last channel, drops its session, which cancels it unless the embedder holds the
/// session too.
pub struct Telemetry<R: Room>(Arc<Handle<R>>);

/// What [`Telemetry`] and its channels share. The closures inside the session hold only the [`State`], so that nothing
/// goes round in a circle.
struct Handle<R: Room> {
    session: Session<R>,
    state: Arc<State>,
    /// To the announcer. Unbounded: each operation is awaited by who asks for it, but a channel's drop can't wait.
    ops: mpsc::UnboundedSender<Op>,
    /// Lets the announcer stop waiting for room once nobody is left who could wait for it.
    _released: DropGuard,
}

impl<R: Room<Message = Frame>> Telemetry<R> {
    /// Sets up telemetry for `room`'s participants.
    pub fn builder(room: R) -> TelemetryBuilder<R> {
        TelemetryBuilder::new(room)
    }

    /// Tells everybody, and everybody who joins from now on, that `channel` exists.
    ///
    /// Returns when its announcement has its place in the log: what is published from then on comes behind it.
    ///
    /// # Errors
    /// [`AnnounceError`]: the session is closed, the announcement is larger than its byte limit, the topic is advertised
    /// already, or topic or encoding is empty. The channel then doesn't exist, and no viewer has heard of it.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the channel may be announced for a moment and is then unadvertised.
    pub async fn advertise(&self, channel: Channel) -> Result<AdvertisedChannel<R>, AnnounceError> {
        channel.check()?;
        let advertised = AdvertisedChannel::new(Arc::clone(&self.0), self.0.state.number(channel));
        let channel = Arc::clone(advertised.inner());
        self.0.announce(|done| Op::Advertise { channel, done }).await?;
        Ok(advertised)
    }

    /// Shows everybody a status. With an id it holds, and is told to who joins, until it is replaced by one of the same
    /// id or [removed](Self::remove_status); without one it is shown once.
    ///
    /// # Errors
    /// [`AnnounceError`]: the session is closed, or the message larger than its byte limit.
    ///
    /// # Cancel safety
    /// Dropped after its first poll, it is sent all the same.
    pub async fn status(
        &self,
        level: StatusLevel,
        message: impl Into<String>,
        id: Option<&str>,
    ) -> Result<(), AnnounceError> {
        let status = Status { level, message: message.into(), id: id.map(str::to_owned) };
        self.0.announce(|done| Op::Status { status, done }).await
    }

    /// Says that statuses no longer hold. Ids that hold none are passed on all the same.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    ///
    /// # Cancel safety
    /// As [`status`](Self::status).
    pub async fn remove_status<I>(&self, ids: I) -> Result<(), AnnounceError>
    where
        I: IntoIterator<Item: Into<String>>,
    {
        let ids: Vec<String> = ids.into_iter().map(Into::into).collect();
        self.0.announce(|done| Op::RemoveStatus { ids, done }).await
    }

    /// The session: who is here, statistics, events.
    #[must_use]
    pub fn session(&self) -> &Session<R> {
        &self.0.session
    }

    /// Closes the session, as [`Session::close`], and waits until nothing is announced any more.
    ///
    /// # Errors
    /// As [`Session::close`].
    pub async fn close(&self, deadline: Duration) -> Result<CloseReport, CloseError> {
        let report = self.0.session.close(deadline).await;
        if !matches!(report, Err(CloseError::FromCallback)) {
            self.0.ops.closed().await;
        }
        report
    }
}

impl<R: Room> Handle<R> {
    /// Has the announcer carry out an operation, and waits for the outcome.
    async fn announce(
        &self,
        op: impl FnOnce(oneshot::Sender<Result<(), AnnounceError>>) -> Op,
    ) -> Result<(), AnnounceError> {
        let (done, outcome) = oneshot::channel();
        if self.ops.send(op(done)).is_err() {
            return Err(AnnounceError::Closed);
        }
        outcome.await.unwrap_or(Err(AnnounceError::Closed))
    }
}

impl<R: Room> Clone for Telemetry<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Room> fmt::Debug for Telemetry<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("session", &self.0.session).finish_non_exhaustive()
    }
}
