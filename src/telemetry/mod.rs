//! Telemetry for viewers: channels, subscriptions, statuses and assets.
//!
//! [`Telemetry`] is a [session](SessionHandle) whose messages are frames of the wire formats that viewers speak. The room
//! is named only when telemetry is [built](Telemetry::builder): neither `Telemetry` nor its channels are generic over it.
//!
//! A viewer that joins is told the server's name and capabilities, the channels and the current statuses. It then
//! subscribes to channels, and gets their messages. A message is encoded once, whatever formats its viewers speak. Only
//! the head, which has 13 bytes in v1 and 17 bytes in v2, differs from viewer to viewer; the payload is shared.
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
//! // The channel has no subscribers yet: this publish cost two loads.
//! assert_eq!(speed.publish(r#"{"kmh":42}"#).await?, Published::ToNobody);
//!
//! speed.unadvertise().await?;
//! telemetry.close(Duration::from_secs(1)).await?;
//! # Ok(()) }
//! ```
//!
//! # Guarantees
//! - The embedder advertises channels, publishes messages and sets statuses. One task, the announcer, makes every
//!   change of the tables of channels and statuses, so that tables and announcements keep one order. Publishing doesn't
//!   pass through it.
//! - The requests of each viewer are handled in order: each has taken effect before the next is handled. Only asset
//!   fetches run beside other requests.
//! - What a viewer has asked for belongs to its instance (its [`ClientId`]). After a reset, a fresh `serverInfo` tells
//!   the viewer that it has to subscribe again.
//! - A participant whose transport negotiated a [dialect](crate::room::Presence::dialect) speaks v1 of the format,
//!   every other participant v2: see [`WireFormat`](crate::protocol::WireFormat) and [`Viewer::protocol`]. A
//!   participant of v2 whose attribute `protocolVersion` names an [incompatible version](IncompatibleVersion) is told
//!   so and isn't registered.
//! - Answers to a viewer wait while its queue is at least half full, and the viewer's later requests wait behind them.
//! - A viewer is told of each channel once, whenever it joins, and of the end of a channel only if it was told of the
//!   channel. Channels are announced in messages of at most 100 channels and 256 KiB; a larger channel has a message of
//!   its own.
//! - A request that crosses the end of its channel on the network causes no warning.
//! - If [`time`](TelemetryBuilder::time) is on, v1 viewers are told the time of the server with their messages.
//! - A v2 viewer may ping, and is answered. From then on its [round trip](ViewerStats::round_trip) is measured, and it
//!   is reported when it is [silent](TelemetryBuilder::silence_timeout) for too long.
//!
//! # Limits
//! Every channel is reliable: a viewer that can't keep up is reset. Services, parameters, the connection graph and
//! publishing by clients are not offered yet; a viewer that asks for one of them is told so. A viewer that asks for a
//! video track gets messages.

mod announcer;
mod answer;
mod assets;
mod builder;
mod channel;
mod error;
mod frame;
mod in_flight;
mod pings;
mod pulse;
mod requests;
mod silence;
mod state;
mod stream;
mod subscriptions;
mod tables;
#[cfg(test)]
mod tests;
mod version;
mod viewer;
mod warnings;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;

pub use self::assets::AssetRequest;
pub use self::builder::TelemetryBuilder;
pub use self::channel::{AdvertisedChannel, Channel, Published, Sample};
pub use self::error::{AnnounceError, PublishError, TryPublishError};
pub use self::in_flight::{Permit, TooManyInFlight};
pub use self::version::{IncompatibleVersion, Protocol};
pub use self::viewer::{Viewer, ViewerStats};
pub use crate::protocol::Schema;
pub use crate::protocol::server::{Status, StatusLevel};
pub use crate::room::Inbound;

use self::announcer::Op;
use self::state::State;
use crate::ids::ClientId;
use crate::protocol::Frame;
use crate::room::Room;
use crate::session::{CloseError, CloseReport, SessionHandle};

/// A session that speaks the wire formats of telemetry viewers. Clones are handles to the same session.
///
/// Dropping the last clone and the last channel drops the session, which cancels it unless the embedder holds the
/// session too.
pub struct Telemetry(Arc<Handle>);

/// State that [`Telemetry`] and its channels share. The closures inside the session hold only the [`State`], so there
/// is no reference cycle.
struct Handle {
    session: SessionHandle<Frame>,
    state: Arc<State>,
    /// Operations for the announcer. Unbounded: every caller awaits its operation, except the drop of a channel, which
    /// can't wait.
    ops: mpsc::UnboundedSender<Op>,
    /// Dropped with the last handle. The announcer then stops waiting for capacity in the log.
    _released: DropGuard,
}

impl Telemetry {
    /// Creates a builder of telemetry for `room`'s participants.
    pub fn builder<R: Room<Message = Frame>>(room: R) -> TelemetryBuilder<R> {
        TelemetryBuilder::new(room)
    }

    /// Announces `channel` to all viewers, and to every viewer that joins from now on.
    ///
    /// Returns once the announcement has its position in the log: messages that are published from then on come behind
    /// it.
    ///
    /// # Errors
    /// [`AnnounceError`] if the session is closed, the announcement exceeds the session's byte limit, the topic is
    /// advertised already, or topic or encoding is empty. The channel then doesn't exist, and no viewer was told of it,
    /// unless the session closed meanwhile.
    ///
    /// # Cancel safety
    /// If this future is dropped before it is done, the channel may be announced for a moment and is then unadvertised.
    pub async fn advertise(&self, channel: Channel) -> Result<AdvertisedChannel, AnnounceError> {
        channel.check()?;
        let advertised = AdvertisedChannel::new(Arc::clone(&self.0), self.0.state.number(channel));
        let channel = Arc::clone(advertised.inner());
        self.0.announce(|done| Op::Advertise { channel, done }).await?;
        Ok(advertised)
    }

    /// Shows a status to all viewers. A status with an id holds until it is replaced by one with the same id or
    /// [removed](Self::remove_status), and viewers that join meanwhile are shown it too. A status without an id is
    /// shown once.
    ///
    /// # Errors
    /// [`AnnounceError`] if the session is closed or the status exceeds its byte limit.
    ///
    /// # Cancel safety
    /// If this future is dropped after its first poll, the status is sent all the same.
    pub async fn status(
        &self,
        level: StatusLevel,
        message: impl Into<String>,
        id: Option<&str>,
    ) -> Result<(), AnnounceError> {
        let status = Status { level, message: message.into(), id: id.map(str::to_owned) };
        self.0.announce(|done| Op::Status { status, done }).await
    }

    /// Tells all viewers that statuses no longer hold. Ids without a current status are passed on all the same.
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

    /// Returns the viewer's instance with this [`client_id`](crate::Participant::client_id). `None` if no such instance
    /// is registered or joining. An instance that has ended is found until its sink is back with the room.
    #[must_use]
    pub fn viewer(&self, client_id: ClientId) -> Option<Viewer> {
        self.0.state.viewers.get(client_id)
    }

    /// The underlying session: its participants, statistics and events.
    #[must_use]
    pub fn session(&self) -> &SessionHandle<Frame> {
        &self.0.session
    }

    /// Closes the session as [`Session::close`](crate::Session::close) does, and waits until the announcer accepts no more operations.
    ///
    /// # Errors
    /// As [`Session::close`](crate::Session::close).
    pub async fn close(&self, deadline: Duration) -> Result<CloseReport, CloseError> {
        let report = self.0.session.close(deadline).await;
        if !matches!(report, Err(CloseError::FromCallback)) {
            self.0.ops.closed().await;
        }
        report
    }
}

impl Handle {
    /// Sends an operation to the announcer, and waits for the outcome.
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

impl Clone for Telemetry {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("session", &self.0.session).finish_non_exhaustive()
    }
}
