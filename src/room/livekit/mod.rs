//! A room of LiveKit participants: each has a byte stream of its own, through a server (an SFU).
//!
//! We are one participant of a LiveKit room. Whoever else is in it, and could speak the format, is a viewer: we open a
//! byte stream on the topic `control` to it alone, and it opens one to us. A stream carries frames of the
//! [v2](crate::protocol::WireFormat::V2) format. A viewer counts from when it can receive; it advertises its version in
//! the attribute `protocolVersion`.
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
//! # Whose fault is it when a write doesn't end?
//! All streams leave through one reliable data channel, which the SDK stops filling while 2 MiB wait in it. So it is an
//! [uplink](crate::Uplink) that all participants share: while it is congested publishers are held back and nobody is
//! reset. If nothing moves for [`stall_after`](LiveKitOptions::stall_after) the session says so
//! ([`UplinkStalled`](crate::SessionEvent::UplinkStalled)); it does as well while the SDK reconnects. A stream that
//! doesn't move while others do is stuck by itself, and its participant is reset. So that this shows when nobody else
//! is being written to, the room keeps a stream to itself, which the server passes on to nobody, and writes a byte
//! there when all others are quiet.
//!
//! # What a slow viewer gets
//! The server takes what we send whether or not a viewer keeps up, so a slow viewer is never slow here: its messages
//! wait in the server's buffer for its connection, and its frames come late. As it comes, livekit-server 1.13 drops
//! nothing of a reliable stream while that connection stands, and lets the buffer grow; what a viewer that reads slower
//! than we publish sees is the past, ever longer ago. It can tell by the log time of the messages, and by the round
//! trip of its pings. What ends this is the server giving up the viewer's connection, some 20 s after it has gone dead;
//! then the viewer rejoins, and starts afresh. A viewer that has pinged and falls silent is
//! [reported](crate::SessionEvent::Unresponsive).
//!
//! A server whose `rtc.datachannel_slow_threshold` or `rtc.data_channel_max_buffered_amount` is set drops chunks for a
//! viewer that reads slower than that. The viewer's SDK notices that a chunk is missing, and ends the stream with an
//! error; we learn nothing of it. It has to rejoin, which starts it afresh.
//!
//! # When it ends
//! | what happens | so |
//! |---|---|
//! | the SDK reconnects and resumes | the uplink is stalled until then; the streams go on |
//! | it reconnects afresh | every participant leaves and comes back, and has to open a fresh stream to us as well: what it writes to the old one comes nowhere |
//! | the connection is lost for good, or takes nothing for [too long](LiveKitOptions::lost_after) | [connected](LiveKitRoom::connect) once, the session ends with [`LiveKitError::Disconnected`]; [supervised](LiveKitRoom::supervised), every participant leaves and the room connects again |
//! | somebody else uses our identity, the server removes us | the session ends in either case |
//!
//! # Limits
//! This host's uplink carries each viewer's copy of a message, as each viewer has a stream of its own. A frame has at
//! most 16 MiB, and a stream carries [4 GB](LiveKitOptions::stream_bytes), after which its participant is reset:
//! readers of the official SDK give up a stream above 5 GB. What a participant sends us waits without bound in the SDK
//! until it is taken.

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
use crate::ids::ParticipantIdentity;
use crate::lane::{BroadcastRun, EndReason, Progress, Uplink};
use crate::participant::Participant;
use crate::protocol::Frame;
use crate::protocol::stream::MAX_STREAM_FRAME;

pub use self::error::LiveKitError;
pub use self::ids::NotLiveKitSid;
pub use self::options::LiveKitOptions;
#[cfg(feature = "livekit-token")]
pub use self::token::{TokenError, mint_token};

/// The topic of the streams in either direction.
const CONTROL: &str = "control";

/// Events that wait for the session before the SDK's wait.
const EVENTS: usize = 256;

/// See the [module](self). Clones are the same room.
///
/// It is left when the last clone is dropped, or by [`close`](Self::close).
#[derive(Clone)]
pub struct LiveKitRoom(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// Whether there is a connection to the server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Connection {
    /// There is.
    Up,
    /// The SDK has lost it and tries to resume it.
    Resuming,
    /// It is lost; the next attempt to connect follows after a back-off.
    Down {
        /// Attempts that have failed since.
        attempts: u32,
        /// Why the last of them failed, or why it was lost.
        error: Arc<LiveKitError>,
    },
    /// The room is closed.
    Closed,
}

/// What the room and its driver share.
struct Shared {
    options: LiveKitOptions,
    uplink: Uplink,
    /// Who can receive. Locked for short look-ups only.
    present: Mutex<HashMap<ParticipantIdentity, Presence>>,
    link: ArcSwapOption<livekit::Room>,
    listener: Mutex<Option<mpsc::Receiver<RoomEvent<ByteStreamInbox>>>>,
    connection: state::Sender<Connection>,
    /// What the session was told of the uplink.
    stalled: state::Sender<bool>,
    stop: CancellationToken,
    stopped: CancellationToken,
}

impl LiveKitRoom {
    /// Joins the room that `token` is for, on the server at `url`. If the connection is lost for good, the session ends
    /// with [`LiveKitError::Disconnected`].
    ///
    /// # Errors
    /// [`LiveKitError`]: the token was refused, or there was no connection.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the room is left again.
    pub async fn connect(url: &str, token: &str, options: LiveKitOptions) -> Result<Self, LiveKitError> {
        let link = Link::connect(url, token, &options).await?;
        Ok(Self::start(link, options, None))
    }

    /// The same, and when the connection is lost for good connects again, with a fresh token from `tokens`, until it
    /// succeeds: after half a second, doubled up to 30 s, less up to half at random. The session with all its channels
    /// and handlers stays; participants leave and come back.
    ///
    /// # Errors
    /// [`LiveKitError`] if the first attempt fails, so that a wrong address or key shows at once. Call it again to wait
    /// for a server.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the room is left again.
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
        // Before anybody asks who is here.
        driver.take_over(&link);
        tokio::spawn(supervise::run(driver, link, tokens));
        Self(Arc::new(Handle { shared, _stop: stop.drop_guard() }))
    }

    /// The official SDK's room, for what this crate doesn't do; `None` while there is no connection. It changes when a
    /// [supervised](Self::supervised) room connects again.
    #[must_use]
    pub fn sdk(&self) -> Option<Arc<livekit::Room>> {
        self.0.shared.link.load_full()
    }

    /// How the connection stands, and how that changes.
    #[must_use]
    pub fn connection(&self) -> state::Receiver<Connection> {
        self.0.shared.connection.subscribe()
    }

    /// Leaves the room. The stream of events ends, and with it the session. Returns when it is left, or after the
    /// [close time-out](LiveKitOptions::close_timeout) even if the SDK hangs.
    ///
    /// # Cancel safety
    /// The room is left once this has been polled, whether it is waited for or not. Further calls wait for the same.
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
        // What asks for a stream waits in the SDK without bound.
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
        // A stream goes to an identity, not to a connection: it may have reached a newer one.
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

    fn retire(
        &self,
        mut sink: ByteStreamSink,
        _participant: &Participant<Frame>,
        reason: EndReason,
    ) -> Option<Goodbye> {
        Some(Box::pin(async move {
            if reason == EndReason::SessionClosed && sink.is_idle() {
                if let Err(error) = futures_util::SinkExt::close(&mut sink).await {
                    tracing::debug!(%error, "the end of a stream could not be told");
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
