//! Transports: the connection between a session and its viewers.
//!
//! A [`Room`] opens a stream to a participant, knows which participants are present, and reports arrivals and
//! departures. This crate has [`MemoryRoom`](memory::MemoryRoom), which works in process; with the feature `websocket`,
//! a WebSocket server; and with the feature `livekit`, a room of LiveKit participants.
//!
//! | | WebSocket | LiveKit |
//! |---|---|---|
//! | viewers reach this host | directly: the host has to be reachable | through a server; host and viewers connect outwards |
//! | this host's uplink | carries a copy for each viewer | carries a copy for each viewer, too, as each has its own stream; the server holds the viewers' connections |
//! | a slow viewer | is reset by this host when its queue is full | waits in the server's memory; only the uplink can slow this host down |
//! | authentication | a hook of the embedder, which sees the request | the server's tokens |
//! | use it for | a local network, a gateway with bandwidth to spare, the least delay | viewers and hosts behind firewalls, on mobile networks, beside audio and video of the same room |

#[cfg(feature = "byte-stream")]
pub mod byte_stream;
#[cfg(feature = "telemetry")]
mod inbound;
#[cfg(feature = "telemetry")]
#[cfg_attr(not(feature = "websocket"), allow(dead_code, reason = "only a room that reads sockets needs all of it"))]
pub(crate) mod limits;
#[cfg(feature = "livekit")]
pub mod livekit;
pub mod memory;
#[cfg(feature = "websocket")]
pub mod websocket;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use futures_sink::Sink;

use crate::contract::{EndReason, Message, Progress, RunSink, Uplink};
use crate::ids::{ParticipantIdentity, ParticipantSid};

pub use crate::contract::{Attributes, Presence};

#[cfg(feature = "telemetry")]
pub use self::inbound::Inbound;
#[cfg(feature = "telemetry")]
pub use self::limits::PeerLimits;

/// The transport of a session, implemented for each kind of connection.
///
/// # A room in thirty lines
/// ```
/// use bytes::Bytes;
/// use futures_util::{Sink, SinkExt, Stream, StreamExt, sink, stream};
/// use lanecast::room::{OpenError, Presence, Room, RoomEvent};
/// use lanecast::{ParticipantIdentity, Progress, Session};
/// use std::{convert::Infallible, pin::Pin, time::Duration};
///
/// /// A room with one viewer, which is always present and prints what it gets.
/// struct Console(Presence);
///
/// impl Room for Console {
///     type Message = Bytes;
///     type Sink = Pin<Box<dyn Sink<Bytes, Error = Infallible> + Send>>;
///     type Incoming = ();
///
///     fn events(&self) -> Option<impl Stream<Item = RoomEvent<()>> + Send + 'static> {
///         Some(stream::pending())
///     }
///     fn participants(&self) -> Vec<Presence> {
///         vec![self.0.clone()]
///     }
///     fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
///         (self.0.identity == *identity).then(|| self.0.clone())
///     }
///     async fn open(&self, _to: &Presence, _progress: Progress) -> Result<Self::Sink, OpenError> {
///         Ok(Box::pin(sink::drain().with(async |bytes: Bytes| Ok(println!("{bytes:?}")))))
///     }
/// }
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let room = Console(Presence::new("viewer".parse()?, "PA_1".parse()?, 1));
/// let session = Session::builder(room).build()?;
/// session.broadcast(Bytes::from_static(b"hello")).await?;
/// session.close(Duration::from_secs(1)).await?;
/// # Ok(()) }
/// ```
pub trait Room: Send + Sync + 'static {
    /// The type of the messages that the room carries to its participants.
    type Message: Message;
    /// The reliable, ordered stream to one participant. Wrap it in `Pin<Box<_>>` if its type can't be named or moved,
    /// or isn't yours: see [`RunSink`].
    ///
    /// A flush shard polls the sink, so the sink must not block. Code that runs in the sink may publish only with
    /// [`try_broadcast`](crate::Session::try_broadcast).
    type Sink: RunSink<Self::Message, Error: fmt::Debug> + Unpin + Send + 'static;
    /// The stream that a participant opens to this host. The session passes it to the embedder's handler unchanged.
    type Incoming: Send + 'static;

    /// Returns the events of the room. A session calls this once, when it is built, and before
    /// [`participants`](Self::participants). The room updates its list of participants before it emits an event. It
    /// emits exactly one [`Disconnected`](RoomEvent::Disconnected) per connection, replaced connections included; the
    /// session then drops its state for that connection. The end of the stream means that the room is closed.
    ///
    /// Returns `None` if another session has the events and the room can't serve two; the session is then not
    /// [built](crate::BuildError::RoomTaken). A room that can serve several sessions returns a separate stream to each,
    /// and each session opens its own streams to the participants.
    fn events(&self) -> Option<impl Stream<Item = RoomEvent<Self::Incoming>> + Send + 'static>;

    /// Returns the participants that are present when the session starts, including those that no event reports.
    fn participants(&self) -> Vec<Presence>;

    /// Returns the connection that is present under `identity` now. The event loop calls this, so it must be quick and
    /// must not block.
    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence>;

    /// Opens a stream to the participant. The session drops the future if it takes too long, if the participant leaves,
    /// or if a newer connection of the same identity arrives. A sink whose writes may take long reports to `progress`.
    fn open(&self, to: &Presence, progress: Progress) -> impl Future<Output = Result<Self::Sink, OpenError>> + Send;

    /// Returns the uplink that all sinks of the room share, if their writes go through one pipe. A participant whose
    /// queue fills because of the pipe isn't reset; publishers are held back instead. Called once. By default the sinks
    /// share no uplink.
    fn uplink(&self) -> Option<Uplink> {
        None
    }

    /// Returns the length of the longest message that the room can carry, in bytes as [`Message::byte_len`] counts
    /// them. A longer message is refused as too large; a longer initial message fails the join. Called once. By default
    /// there is no limit.
    fn largest_message(&self) -> usize {
        usize::MAX
    }

    /// Returns how many bytes of messages one flush of a sink carries most efficiently, if messages arrive that fast. A
    /// shard ends a turn with the message that fills this many bytes, unless the messages that it may still read would
    /// fill as many again. Called once. A room that wraps another one returns the inner room's value. By default only
    /// the participants' bound limits a turn.
    fn batch_bytes(&self) -> usize {
        usize::MAX
    }

    /// Returns whether a sink's error says that the participant's connection is gone (reset, closed, given up), rather
    /// than that something went wrong.
    ///
    /// A participant that vanishes doesn't count as reset but as [vanished](EndReason::Vanished). Its backlog counts as
    /// abandoned, and listeners get [`Left`](crate::SessionEvent::Left). So a reset remains worth an alarm.
    /// In all other respects it is treated as after a reset: if the room still has the connection, the participant
    /// starts afresh, after the same back-off. By default every error is a failure. For errors of a socket, see
    /// [`is_disconnect`]. Called on a flush shard. A room that wraps another one forwards the call.
    fn has_vanished(error: &SinkError<Self>) -> bool {
        let _ = error;
        false
    }

    /// Takes the sink of a participant that has ended, with the reason, to say goodbye and release it. A room that has
    /// to know whose sink it is notes that in the sink when it [opens](Self::open) it.
    ///
    /// Called on a flush shard: work that takes time belongs in the returned future. The session runs the future for at
    /// most [`retire_timeout`](crate::SessionBuilder::retire_timeout) and then drops it. By default the sink is
    /// dropped.
    fn retire(&self, sink: Self::Sink, reason: EndReason) -> Option<Goodbye> {
        let _ = reason;
        drop(sink);
        None
    }
}

/// Returns whether an error of a socket says that the peer, or the route to it, is gone. A room whose sinks write to
/// sockets can answer [`Room::has_vanished`] with it.
#[must_use]
pub fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown, NetworkUnreachable, NotConnected,
        TimedOut, UnexpectedEof,
    };
    matches!(
        error.kind(),
        BrokenPipe
            | ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | NotConnected
            | TimedOut
            | UnexpectedEof
    )
}

/// The error type of a room's sinks.
pub type SinkError<R> = <<R as Room>::Sink as Sink<<R as Room>::Message>>::Error;

/// A future that does what a room still has to do for a participant that has ended.
pub type Goodbye = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An event that a room reports to its session.
#[derive(Debug)]
#[non_exhaustive]
pub enum RoomEvent<I> {
    /// A participant can be written to from now on.
    Active(Presence),
    /// A connection is gone.
    Disconnected {
        /// The identity that the connection belonged to.
        identity: ParticipantIdentity,
        /// The id of the connection that is gone.
        sid: ParticipantSid,
    },
    /// A participant has opened a stream to this host.
    StreamOpened {
        /// The identity of the participant.
        identity: ParticipantIdentity,
        /// The id of the connection that the stream belongs to.
        sid: ParticipantSid,
        /// The stream, as the room delivers it.
        stream: I,
    },
    /// The uplink takes no bytes: publishers are held back, and no participant is reset for a while (see
    /// [`uplink_patience`](crate::SessionBuilder::uplink_patience)).
    UplinkStalled,
    /// The uplink takes bytes again.
    UplinkFlowing,
    /// The room is closed. The session ends with this reason.
    Closed(RoomClosed),
}

/// Why a room closed: an error of the room, or a text. Clones share one error.
#[derive(Clone, Debug)]
pub struct RoomClosed(Arc<dyn Error + Send + Sync>);

impl RoomClosed {
    /// Wraps the room's error or text.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }

    /// Returns the room's error, if it is an `E`.
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }
}

impl fmt::Display for RoomClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<&str> for RoomClosed {
    fn from(reason: &str) -> Self {
        Self::new(reason)
    }
}

/// Two reasons are equal if their texts are equal.
impl PartialEq for RoomClosed {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for RoomClosed {}

/// Why a stream to a participant could not be opened. The session tries again with back-off while the participant is
/// present.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The participant is no longer present.
    #[error("the participant is not present")]
    NotPresent,
    /// The transport failed.
    #[error("the transport failed: {0}")]
    Transport(#[source] Box<dyn Error + Send + Sync>),
}

impl OpenError {
    /// Wraps an error of the transport.
    pub fn transport(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Transport(error.into())
    }
}
