//! What the room, its listeners and its connections share: the settings, the directory of connections, and the channel
//! of events to the session.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::directory::Directory;
use super::inbox::WebSocketInbox;
use super::names::Names;
use super::origin::Policy;
use super::places::Places;
use super::rejection::Rejection;
use super::upgrade::{Admission, UpgradeRequest};
use crate::caught::lock;
use crate::ids::ParticipantIdentity;
use crate::room::{PeerLimits, RoomEvent};

pub(super) type Event = RoomEvent<WebSocketInbox>;

type Hook = Arc<dyn Fn(&UpgradeRequest) -> Result<Admission, Rejection> + Send + Sync>;

/// Capacity of the channel of events to the session; further connections that cause events wait.
const EVENT_CAPACITY: usize = 1024;

/// The most connections over the cap that get an answer at the same time; further ones are closed without an answer.
const MAX_REFUSALS: usize = 64;

/// The settings of a room.
pub(super) struct Config {
    pub(super) max_message_bytes: usize,
    pub(super) max_connections: usize,
    pub(super) handshake_timeout: Duration,
    pub(super) ping_interval: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) close_timeout: Duration,
    pub(super) send_buffer_bytes: Option<usize>,
    pub(super) unsent_bytes: u32,
    pub(super) stall_timeout: Duration,
    pub(super) limits: PeerLimits,
    pub(super) trusted_proxies: Vec<IpAddr>,
    pub(super) policy: Policy,
    pub(super) hook: Option<Hook>,
}

impl Config {
    /// The hook's answer to `request`. Without a hook, an admission with an identity made from `name`.
    pub(super) fn admit(&self, request: &UpgradeRequest, name: &str) -> Result<Admission, Rejection> {
        match &self.hook {
            Some(hook) => hook(request),
            None => {
                let identity = ParticipantIdentity::new(format!("viewer_{name}")).expect("it is short and not empty");
                Ok(Admission::new(identity))
            }
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("max_message_bytes", &self.max_message_bytes)
            .field("max_connections", &self.max_connections)
            .field("handshake_timeout", &self.handshake_timeout)
            .field("ping_interval", &self.ping_interval)
            .field("idle_timeout", &self.idle_timeout)
            .field("close_timeout", &self.close_timeout)
            .field("send_buffer_bytes", &self.send_buffer_bytes)
            .field("unsent_bytes", &self.unsent_bytes)
            .field("stall_timeout", &self.stall_timeout)
            .field("limits", &self.limits)
            .field("trusted_proxies", &self.trusted_proxies)
            .field("policy", &self.policy)
            .field("hook", &self.hook.is_some())
            .finish()
    }
}

/// The state that the room, its listener tasks and its connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) directory: Directory,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) listener: Mutex<Option<mpsc::Receiver<Event>>>,
    /// Cancelled to close the room.
    pub(super) stop: CancellationToken,
    /// Cancelled when no more viewers are admitted; with `stop` at the latest.
    pub(super) stop_admitting: CancellationToken,
    /// Cancelled when every connection has ended.
    pub(super) stopped: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) places: Arc<Places>,
    pub(super) refusals: Arc<Semaphore>,
    pub(super) names: Names,
}

impl Shared {
    pub(super) fn new(config: Config) -> Self {
        let (events, listener) = mpsc::channel(EVENT_CAPACITY);
        let stop = CancellationToken::new();
        Self {
            directory: Directory::default(),
            events,
            listener: Mutex::new(Some(listener)),
            stop_admitting: stop.child_token(),
            stop,
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
            places: Places::new(config.max_connections, config.trusted_proxies.iter().copied()),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            names: Names::new(),
            config,
        }
    }

    /// The receiver of events, for the first caller only.
    pub(super) fn take_listener(&self) -> Option<mpsc::Receiver<Event>> {
        lock(&self.listener).take()
    }
}
