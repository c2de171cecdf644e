//! A room of LiveKit participants: each has a byte stream of its own, through a server (an SFU).
//!
//! This process is one participant of a LiveKit room. Every other participant that could speak the format is a viewer:
//! the room opens a byte stream on the topic `control` to it alone, and it opens one in return. A stream carries frames
//! of the [v2](crate::protocol::WireFormat::V2) format. A viewer counts as present from when it can receive. It
//! advertises its version in the attribute `protocolVersion`.
//!
//! ```no_run
//! use lanecast::room::livekit::{LiveKitOptions, LiveKitRoom};
//! use lanecast::telemetry::{Channel, Telemetry};
//!
//! # async fn run(url: &str, token: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let room = LiveKitRoom::connect(url, token, LiveKitOptions::default()).await?;
//! let telemetry = Telemetry::builder(room).name("rig-7").build()?;
//! let speed = telemetry.advertise(Channel::new("/speed", "json")).await?;
//! speed.publish(r#"{"kmh":42}"#).await?;
//! # Ok(()) }
//! ```
//!
//! # A stalled uplink and a stuck stream
//! All streams leave through one reliable data channel, which the SDK stops filling while 2 MiB wait in it. The data
//! channel is therefore an [uplink](crate::Uplink) that all participants share: while it is congested, publishers are
//! held back and no participant is reset. If nothing moves for [`stall_after`](LiveKitOptions::stall_after), the
//! session reports [`UplinkStalled`](crate::SessionEvent::UplinkStalled); it does so too while the SDK reconnects. A
//! stream that doesn't move while others do is stuck on its own, and its participant is reset. To detect that while no
//! other participant is being written to, the room keeps a stream to itself, which the server passes on to nobody, and
//! writes a byte to it when all other streams are quiet.
//!
//! # Slow viewers
//! The server takes what this host sends whether or not a viewer keeps up, so no viewer is slow here: a slow viewer's
//! messages wait in the server's buffer for its connection, and its frames arrive late. By default, livekit-server 1.13
//! drops nothing of a reliable stream while that connection stands, and lets the buffer grow: a viewer that reads more
//! slowly than this host publishes falls further and further behind. The viewer can tell by the log times of the
//! messages, and by the round trips of its pings. This ends when the server gives up the viewer's connection, some 20 s
//! after the connection has gone dead; the viewer then rejoins and starts afresh. A viewer that has pinged and falls
//! silent is [reported](crate::SessionEvent::Unresponsive).
//!
//! A server whose `rtc.datachannel_slow_threshold` or `rtc.data_channel_max_buffered_amount` is set drops chunks for a
//! viewer that reads more slowly than that. The viewer's SDK notices that a chunk is missing, and ends the stream with
//! an error, of which this host is not told. The viewer has to rejoin, and then starts afresh.
//!
//! # Lost connections
//! | event | consequence |
//! |---|---|
//! | the SDK reconnects and resumes | the uplink is stalled until then; the streams go on |
//! | the SDK reconnects with a fresh connection | every participant leaves and comes back, and has to open a fresh stream to this host as well: whatever it writes to the old one is lost |
//! | the connection is lost permanently, or takes nothing for [too long](LiveKitOptions::lost_after) | a room that was [connected](LiveKitRoom::connect) once ends the session with [`LiveKitError::Disconnected`] or [`LiveKitError::Stalled`]; in a [supervised](LiveKitRoom::supervised) room every participant leaves, and the room connects again |
//! | another participant uses our identity, or the server removes us | the session ends, whether or not the room is supervised |
//!
//! # Limits
//! This host's uplink carries each viewer's copy of a message, as each viewer has a stream of its own. A frame has at
//! most 16 MiB, and a stream carries at most [4 GB](LiveKitOptions::stream_bytes), after which its participant is
//! reset: readers of the official SDK give up a stream above 5 GB. Data that a participant sends waits without bound in
//! the SDK until this room reads it.

mod driver;
mod error;
mod ids;
mod link;
mod options;
mod supervise;
#[cfg(feature = "livekit-token")]
mod token;
mod watch;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use futures_core::Stream;
use tokio::sync::{mpsc, watch as state};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::driver::Driver;
use self::link::Link;
use self::supervise::Tokens;
use super::byte_stream::{ByteStreamInbox, ByteStreamSink, ByteStreamSinkError, StreamLimits};
use super::{Goodbye, OpenError, Presence, Room, RoomEvent};
use crate::contract::{BroadcastRun, EndReason, Progress, Uplink};
use crate::ids::ParticipantIdentity;
use crate::protocol::Frame;
use crate::protocol::stream::MAX_STREAM_FRAME;

pub use self::error::LiveKitError;
pub use self::ids::NotLiveKitSid;
pub use self::options::LiveKitOptions;
#[cfg(feature = "livekit-token")]
pub use self::token::{TokenError, mint_token};

/// The topic of the streams in both directions.
const CONTROL: &str = "control";

/// Capacity of the channel of events to the session; while it is full, the SDK's events wait.
const EVENTS: usize = 256;

/// A LiveKit room; the [module](self) describes its behaviour. Clones are handles to the same room.
///
/// The room is left when the last handle is dropped, or by [`close`](Self::close).
#[derive(Clone)]
pub struct LiveKitRoom(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// The state of the connection to the server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Connection {
    /// The room is connected.
    Up,
    /// The SDK has lost the connection and tries to resume it.
    Resuming,
    /// The connection is lost; the next attempt to connect follows after a back-off.
    Down {
        /// Attempts to connect since the last connection that lasted more than 30 s, or since the first one.
        attempts: u32,
        /// Why the last attempt failed, or why the connection was lost.
        error: Arc<LiveKitError>,
    },
    /// The room is closed.
    Closed,
}

/// State that the room and its driver share.
struct Shared {
    options: LiveKitOptions,
    uplink: Uplink,
    /// The participants that can receive. Locked for short look-ups only.
    present: Mutex<HashMap<ParticipantIdentity, Presence>>,
    link: ArcSwapOption<livekit::Room>,
    listener: Mutex<Option<mpsc::Receiver<RoomEvent<ByteStreamInbox>>>>,
    connection: state::Sender<Connection>,
    /// Whether the session was told that the uplink is stalled.
    stalled: state::Sender<bool>,
    stop: CancellationToken,
    stopped: CancellationToken,
}

impl LiveKitRoom {
    /// Joins the room that `token` is for, on the server at `url`. If the connection is lost permanently, the session
    /// ends with [`LiveKitError::Disconnected`]; after a stall that lasts [too long](LiveKitOptions::lost_after), with
    /// [`LiveKitError::Stalled`].
    ///
    /// # Errors
    /// [`LiveKitError`] if the token was refused, or no connection was established.
    ///
    /// # Cancel safety
    /// If this future is dropped before it is done, the room is left again.
    pub async fn connect(url: &str, token: &str, options: LiveKitOptions) -> Result<Self, LiveKitError> {
        let link = Link::connect(url, token, &options).await?;
        Ok(Self::start(link, options, None))
    }

    /// Joins a room as [`connect`](Self::connect) does, and connects again when the connection is lost permanently,
    /// each time with a fresh token from `tokens`, until it succeeds. It waits half a second before the first attempt,
    /// doubled up to 30 s, less up to half at random. The session stays with all its channels and handlers;
    /// participants leave and come back.
    ///
    /// # Errors
    /// [`LiveKitError`] if the first attempt fails, so that a wrong address or key shows at once. To wait for a server,
    /// call this again.
    ///
    /// # Cancel safety
    /// If this future is dropped before it is done, the room is left again.
    pub async fn supervised<F, Fut, E>(url: &str, tokens: F, options: LiveKitOptions) -> Result<Self, LiveKitError>
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let tokens = Tokens::new(url, tokens);
        let link = tokens.connect(&options).await?;
        Ok(Self::start(link, options, Some(tokens)))
    }

    fn start(link: Link, options: LiveKitOptions, tokens: Option<Tokens>) -> Self {
        let (events, listener) = mpsc::channel(EVENTS);
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            options,
            uplink: Uplink::new(),
            present: Mutex::default(),
            link: ArcSwapOption::empty(),
            listener: Mutex::new(Some(listener)),
            connection: state::Sender::new(Connection::Up),
            stalled: state::Sender::new(false),
            stop: stop.clone(),
            stopped: CancellationToken::new(),
        });
        let mut driver = Driver::new(Arc::clone(&shared), events);
        // Before anything can ask for the participants.
        driver.take_over(&link);
        tokio::spawn(supervise::run(driver, link, tokens));
        Self(Arc::new(Handle { shared, _stop: stop.drop_guard() }))
    }

    /// The official SDK's room, for functions that this crate doesn't offer; `None` while there is no connection. The
    /// value changes when a [supervised](Self::supervised) room connects again.
    #[must_use]
    pub fn sdk(&self) -> Option<Arc<livekit::Room>> {
        self.0.shared.link.load_full()
    }

    /// The state of the connection, and its changes.
    #[must_use]
    pub fn connection(&self) -> state::Receiver<Connection> {
        self.0.shared.connection.subscribe()
    }

    /// Leaves the room. The stream of events ends, and the session with it. Returns once the room is left, or after the
    /// [close time-out](LiveKitOptions::close_timeout) even if the SDK hangs.
    ///
    /// # Cancel safety
    /// The room is left once this future has been polled, even if it is dropped then. Further calls wait for the same
    /// end.
    pub async fn close(&self) {
        self.0.shared.stop.cancel();
        self.0.shared.stopped.cancelled().await;
    }
}

impl Shared {
    fn present(&self) -> MutexGuard<'_, HashMap<ParticipantIdentity, Presence>> {
        // Nothing panics under the lock.
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_present(&self, presence: &Presence) -> bool {
        self.present().get(&presence.identity).is_some_and(|now| now.sid == presence.sid)
    }
}

impl Room for LiveKitRoom {
    type Message = Frame;
    type Sink = ByteStreamSink;
    type Incoming = ByteStreamInbox;

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<ByteStreamInbox>> + Send + 'static> {
        let listener = self.0.shared.listener.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(futures_util::stream::unfold(listener, |mut listener| async {
            let event = listener.recv().await?;
            Some((event, listener))
        }))
    }

    fn participants(&self) -> Vec<Presence> {
        self.0.shared.present().values().cloned().collect()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        self.0.shared.present().get(identity).cloned()
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<ByteStreamSink, OpenError> {
        let shared = &self.0.shared;
        // A request to open a stream waits in the SDK without bound: none is made while the uplink is stalled.
        let flowing = shared.stalled.subscribe().wait_for(|stalled| !stalled).await.is_ok();
        let link = shared.link.load_full().filter(|_| flowing).ok_or(OpenError::NotPresent)?;
        if !shared.is_present(to) {
            return Err(OpenError::NotPresent);
        }
        let limits = StreamLimits { bytes: shared.options.stream_bytes };
        let uplink = shared.uplink.clone();
        let sink = move |writer| ByteStreamSink::new(writer, uplink, progress, limits);
        let opening = link::open_control(link, &to.identity, sink, shared.uplink.clone());
        let sink = opening.await.map_err(OpenError::transport)?;
        // A stream goes to an identity, not to a connection: it may have reached a newer connection.
        if !shared.is_present(to) {
            sink.abandon("superseded").await;
            return Err(OpenError::NotPresent);
        }
        Ok(sink)
    }

    fn uplink(&self) -> Option<Uplink> {
        Some(self.0.shared.uplink.clone())
    }

    fn largest_message(&self) -> usize {
        MAX_STREAM_FRAME
    }

    fn start_send_run(
        sink: Pin<&mut ByteStreamSink>,
        run: &BroadcastRun<'_, Frame>,
    ) -> Result<usize, ByteStreamSinkError> {
        sink.get_mut().start_send_frames(run.messages())
    }

    fn retire(&self, mut sink: ByteStreamSink, reason: EndReason) -> Option<Goodbye> {
        Some(Box::pin(async move {
            if reason == EndReason::SessionClosed && sink.is_idle() {
                if let Err(error) = futures_util::SinkExt::close(&mut sink).await {
                    tracing::debug!(%error, "the end of a stream could not be sent");
                }
            } else {
                sink.abandon(&reason.to_string()).await;
            }
        }))
    }
}

impl std::fmt::Debug for LiveKitRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shared = &self.0.shared;
        f.debug_struct("LiveKitRoom")
            .field("connection", &*shared.connection.borrow())
            .field("present", &shared.present().len())
            .finish_non_exhaustive()
    }
}
