//! What the room and its driver share: the settings, the participants, the connection and its state, and the channel of
//! events to the session.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::error::LiveKitError;
use crate::caught::lock;
use crate::contract::Uplink;
use crate::ids::ParticipantIdentity;
use crate::room::byte_stream::{ByteStreamInbox, StreamLimits};
use crate::room::{PeerLimits, Presence, RoomEvent};

pub(super) type Event = RoomEvent<ByteStreamInbox>;

type Configure = Arc<dyn Fn(&mut livekit::RoomOptions) + Send + Sync>;

/// Capacity of the channel of events to the session; while it is full, the SDK's events wait.
const EVENTS: usize = 256;

/// The settings of a room.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) connect_timeout: Duration,
    pub(super) close_timeout: Duration,
    pub(super) stall_after: Duration,
    pub(super) lost_after: Duration,
    pub(super) stream_bytes: u64,
    pub(super) limits: PeerLimits,
    pub(super) configure: Option<Configure>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            close_timeout: Duration::from_secs(5),
            stall_after: Duration::from_secs(1),
            lost_after: Duration::from_secs(30),
            stream_bytes: StreamLimits::default().bytes,
            limits: PeerLimits::default(),
            configure: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("connect_timeout", &self.connect_timeout)
            .field("close_timeout", &self.close_timeout)
            .field("stall_after", &self.stall_after)
            .field("lost_after", &self.lost_after)
            .field("stream_bytes", &self.stream_bytes)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
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
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) uplink: Uplink,
    /// The participants that can receive. Locked for short look-ups only.
    present: Mutex<HashMap<ParticipantIdentity, Presence>>,
    pub(super) link: ArcSwapOption<livekit::Room>,
    listener: Mutex<Option<mpsc::Receiver<Event>>>,
    pub(super) connection: watch::Sender<Connection>,
    /// Whether the session was told that the uplink is stalled.
    pub(super) stalled: watch::Sender<bool>,
    pub(super) stop: CancellationToken,
    pub(super) stopped: CancellationToken,
}

impl Shared {
    /// The state of a room that has just connected, and the sender of its events.
    pub(super) fn new(config: Config) -> (Self, mpsc::Sender<Event>) {
        let (events, listener) = mpsc::channel(EVENTS);
        let this = Self {
            config,
            uplink: Uplink::new(),
            present: Mutex::default(),
            link: ArcSwapOption::empty(),
            listener: Mutex::new(Some(listener)),
            connection: watch::Sender::new(Connection::Up),
            stalled: watch::Sender::new(false),
            stop: CancellationToken::new(),
            stopped: CancellationToken::new(),
        };
        (this, events)
    }

    /// The receiver of events, for the first caller only.
    pub(super) fn take_listener(&self) -> Option<mpsc::Receiver<Event>> {
        lock(&self.listener).take()
    }

    pub(super) fn present(&self) -> MutexGuard<'_, HashMap<ParticipantIdentity, Presence>> {
        // Nothing panics under the lock.
        lock(&self.present)
    }

    /// Whether this very connection of the participant can receive.
    pub(super) fn is_present(&self, presence: &Presence) -> bool {
        self.present().get(&presence.identity).is_some_and(|now| now.sid == presence.sid)
    }
}
