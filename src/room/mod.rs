//! Transports: what a session needs of the thing that connects it to its viewers.
//!
//! A [`Room`] opens a stream to a participant, knows who is present, and reports who comes and goes. This crate has
//! [`MemoryRoom`](memory::MemoryRoom), in process, with the feature `websocket` a real server, and with the feature
//! `livekit` a room of LiveKit participants.
//!
//! | | WebSocket | LiveKit |
//! |---|---|---|
//! | viewers reach this host | directly: it has to be reachable | through a server; host and viewers connect outwards |
//! | this host's uplink | carries each viewer's copy | carries each viewer's copy too, as each has a stream of its own; the server spares it the connections |
//! | a slow viewer | is reset here, when its queue is full | waits in the server's memory; here only the uplink can be slow |
//! | authentication | the embedder's hook, by the request | the server's tokens |
//! | take it for | a local network, a gateway with bandwidth to spare, the least delay | viewers and hosts behind firewalls, on mobile networks, beside audio and video of the same room |

#[cfg(feature = "byte-stream")]
pub mod byte_stream;
#[cfg(feature = "telemetry")]
#[cfg_attr(not(feature = "websocket"), allow(dead_code, reason = "only a room that reads by itself needs all of it"))]
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

use crate::ids::{ParticipantIdentity, ParticipantSid};
use crate::lane::run::start_send_copy;
use crate::lane::{BroadcastRun, EndReason, Message, Progress, Uplink};
use crate::participant::{Attributes, Participant, no_attributes};

#[cfg(feature = "telemetry")]
pub use self::limits::PeerLimits;

/// What a transport implements.
///
/// # A room in thirty lines
/// ```
/// use bytes::Bytes;
/// use futures_util::{Sink, SinkExt, Stream, StreamExt, sink, stream};
/// use lanecast::room::{OpenError, Presence, Room, RoomEvent};
/// use lanecast::{ParticipantIdentity, Progress, Session};
/// use std::{convert::Infallible, pin::Pin, time::Duration};
///
/// /// One viewer, always there, that prints what it gets.
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
    /// What goes to its participants.
    type Message: Message;
    /// The reliable, ordered stream to one participant. Wrap it in `Pin<Box<_>>` if its type can't be named or moved.
    ///
    /// It is polled by a flush shard. It must not block; what it calls there may publish with
    /// [`try_broadcast`](crate::Session::try_broadcast) only.
    type Sink: Sink<Self::Message, Error: fmt::Debug> + Unpin + Send + 'static;
    /// What a participant's own stream to us is; given to the embedder's handler as it is.
    type Incoming: Send + 'static;

    /// What happens in the room. A session asks for it once, when it is built, before
    /// [`participants`](Self::participants). The room updates its list before it emits an event, and reports each
    /// connection that is gone once, also one that another has replaced: what is kept of it goes with that. A stream
    /// that ends means that the room is closed.
    ///
    /// `None` if another session has them, and the room can't serve two: then no session is
    /// [built](crate::BuildError::RoomTaken). A room that can gives each a stream of its own, and is asked by each to
    /// open streams of its own to the participants.
    fn events(&self) -> Option<impl Stream<Item = RoomEvent<Self::Incoming>> + Send + 'static>;

    /// Who is here already when the session starts: those for whom no event will come.
    fn participants(&self) -> Vec<Presence>;

    /// Who is here now under `identity`. Called from the event loop: short, and without blocking.
    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence>;

    /// Opens a stream to the participant. The session drops the future if it takes too long, if the participant leaves,
    /// or if a newer instance comes. A sink with long writes reports them to `progress`.
    fn open(&self, to: &Presence, progress: Progress) -> impl Future<Output = Result<Self::Sink, OpenError>> + Send;

    /// The uplink that all its sinks share, if their writes go through one pipe. Then a participant whose queue fills
    /// because of the pipe isn't reset; publishers are held back instead. Asked for once. By default each sink has a
    /// way of its own.
    fn uplink(&self) -> Option<Uplink> {
        None
    }

    /// The longest message it can carry, in bytes, as [`Message::byte_len`] counts them; a longer one is refused as too
    /// large, and fails the join if it is an initial one. Asked for once. By default there is no limit.
    fn largest_message(&self) -> usize {
        usize::MAX
    }

    /// How many bytes of messages one flush of its sinks carries best, if they come that fast. A shard ends a turn with
    /// the message that makes them full, unless what it may still read would fill them again. Asked for once; a room
    /// that wraps another one passes it on. By default a turn ends with what the bound allows of it.
    fn batch_bytes(&self) -> usize {
        usize::MAX
    }

    /// Hands broadcasts over to a sink that is ready for a message: to one of many, each of whom gets the same ones but
    /// for the tag of its subscription.
    ///
    /// The sink takes as many of the first as it likes, one at least, and says how many; for the rest it is asked again
    /// whether it is ready. By default it gets a clone of the first, [addressed](Message::address) by the tag. A room
    /// whose sinks copy a message's bytes anyway does that here, for all there is room for: it spares every participant
    /// a clone and its drop, which for a reference-counted message are most of the cost of a delivery, and with the
    /// run's [ids] it knows what it has encoded already. A room that wraps another one passes the call on. What doesn't
    /// go to many, or had to wait for the last of them, comes by [`Sink::start_send`]; the order is that of the calls
    /// of both.
    ///
    /// # Errors
    /// As those of [`Sink::start_send`]: the participant is reset, and all that it was shown counts as dropped. So it
    /// is, as by a panic, if the sink says that it has taken none, or more than there are.
    ///
    /// [ids]: BroadcastRun::first_id
    fn start_send_run(
        sink: Pin<&mut Self::Sink>,
        run: &BroadcastRun<'_, Self::Message>,
    ) -> Result<usize, SinkError<Self>> {
        start_send_copy(sink, run)
    }

    /// Whether a sink's error says that the participant's connection is gone (reset, closed, given up), rather than that
    /// something went wrong.
    ///
    /// A participant that vanishes isn't counted as reset but as [vanished](EndReason::Vanished), with what waited for
    /// it as abandoned, and listeners are told that it [left](crate::SessionEvent::Left): so a reset remains worth an
    /// alarm. Everything else is as after a reset; if the room still has the connection, the participant starts afresh,
    /// after the same back-off. By default every error is a failure. For errors of a socket, see
    /// [`is_disconnect`]. Called on a flush shard. A room that wraps another one passes the call on.
    fn has_vanished(error: &SinkError<Self>) -> bool {
        let _ = error;
        false
    }

    /// Takes the sink of a participant that has ended, with the reason, to say goodbye and let go of it.
    ///
    /// Called on a flush shard: what takes time goes into the future, which the session runs (at most
    /// [`retire_timeout`](crate::SessionBuilder::retire_timeout)) and then drops. By default the sink is dropped.
    fn retire(&self, sink: Self::Sink, participant: &Participant<Self::Message>, reason: EndReason) -> Option<Goodbye> {
        let _ = (participant, reason);
        drop(sink);
        None
    }
}

/// Whether an error of a socket says that the peer, or the way to it, is gone: what [`Room::has_vanished`] asks of a
/// room whose sinks write to sockets.
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

/// What the sinks of a room say when they fail.
pub type SinkError<R> = <<R as Room>::Sink as Sink<<R as Room>::Message>>::Error;

/// What a room still has to do for a participant that has ended.
pub type Goodbye = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A participant as its room sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Presence {
    /// Who it is.
    pub identity: ParticipantIdentity,
    /// Its connection.
    pub sid: ParticipantSid,
    /// When the connection joined, by the server's clock: milliseconds since the epoch. Of two connections of one
    /// identity the later one wins.
    pub joined_at: u64,
    /// What the room tells of it; `protocolVersion` is looked at unless a protocol was negotiated.
    pub attributes: Attributes,
    /// What its transport negotiated with it; then no version is checked.
    pub negotiated: Option<Arc<str>>,
}

impl Presence {
    /// A participant without attributes.
    #[must_use]
    pub fn new(identity: ParticipantIdentity, sid: ParticipantSid, joined_at: u64) -> Self {
        Self { identity, sid, joined_at, attributes: no_attributes(), negotiated: None }
    }

    /// The same with an attribute more.
    #[must_use]
    pub fn with_attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.attributes).insert(key.into(), value.into());
        self
    }

    /// The same, speaking what its transport has negotiated.
    #[must_use]
    pub fn with_negotiated(mut self, protocol: impl Into<Arc<str>>) -> Self {
        self.negotiated = Some(protocol.into());
        self
    }
}

/// What happens in a room.
#[derive(Debug)]
#[non_exhaustive]
pub enum RoomEvent<I> {
    /// A participant can be written to from now on.
    Active(Presence),
    /// A connection is gone.
    Disconnected {
        /// Whose it was.
        identity: ParticipantIdentity,
        /// Which one.
        sid: ParticipantSid,
    },
    /// A participant has opened its own stream to us.
    StreamOpened {
        /// Whose it is.
        identity: ParticipantIdentity,
        /// On which connection.
        sid: ParticipantSid,
        /// The stream.
        stream: I,
    },
    /// The uplink takes nothing: publishers are held back, and nobody is reset for a while (see
    /// [`uplink_patience`](crate::SessionBuilder::uplink_patience)).
    UplinkStalled,
    /// The uplink takes bytes again.
    UplinkFlowing,
    /// The room is closed: the session ends, with this as its reason.
    Closed(RoomClosed),
}

/// Why a room closed: an error of the room's own, or words. Clones are the same error.
#[derive(Clone, Debug)]
pub struct RoomClosed(Arc<dyn Error + Send + Sync>);

impl RoomClosed {
    /// Wraps what the room says.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }

    /// The room's own error, if it is an `E`.
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

/// The same words.
impl PartialEq for RoomClosed {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for RoomClosed {}

/// Why a stream to a participant could not be opened; the session tries again with back-off while it is present.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The participant isn't there any more.
    #[error("the participant is not present")]
    NotPresent,
    /// The transport failed.
    #[error("the transport failed: {0}")]
    Transport(#[source] Box<dyn Error + Send + Sync>),
}

impl OpenError {
    /// Wraps what the transport says.
    pub fn transport(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Transport(error.into())
    }
}
