//! How a session is set up.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::backoff::Backoff;
use super::error::BuildError;
use super::events::{Events, Listener};
use super::stream::ControlStream;
use super::{Session, start};
use crate::lane::Message;
use crate::lane::outbox::{LARGEST_LIMITS, Limits};
use crate::participant::{InFlight, IncompatibleVersion, Participant};
use crate::room::{Presence, Room};
use crate::runtime;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(crate) type Initial<M> = Arc<dyn Fn(Participant<M>) -> BoxFuture<Vec<M>> + Send + Sync>;
pub(crate) type Refusal<M> = Arc<dyn Fn(&Presence, &IncompatibleVersion) -> Option<M> + Send + Sync>;
pub(crate) type OnStream<R> = Arc<dyn Fn(ControlStream<R>) -> BoxFuture<()> + Send + Sync>;

/// The settings, checked.
pub(crate) struct Config<R: Room> {
    pub(crate) limits: Limits,
    /// How many bytes may gather for a participant that joins.
    pub(crate) joining_bytes: u64,
    /// The longest message the room can carry, in bytes.
    pub(crate) largest_carried: usize,
    pub(crate) in_flight: InFlight,
    pub(crate) log_capacity: usize,
    pub(crate) shards: usize,
    pub(crate) write_timeout: Duration,
    pub(crate) uplink_patience: Duration,
    pub(crate) open_timeout: Duration,
    pub(crate) retire_timeout: Duration,
    pub(crate) concurrent_joins: usize,
    pub(crate) backoff: Backoff,
    pub(crate) event_capacity: usize,
    pub(crate) initial: Initial<R::Message>,
    pub(crate) refusal: Refusal<R::Message>,
    pub(crate) on_stream: OnStream<R>,
}

impl<R: Room> Config<R> {
    /// How long the first broadcast may wait that gathers for a participant that joins: longer than its initial messages
    /// may take.
    pub(crate) fn joining_age(&self) -> Duration {
        self.open_timeout.saturating_mul(2)
    }
}

/// Sets up a [`Session`]. Every setting has a default that suits thousands of viewers.
#[must_use = "a builder does nothing until it builds"]
pub struct SessionBuilder<R: Room> {
    room: R,
    config: Config<R>,
    shards: Option<usize>,
    listeners: Vec<Listener>,
}

/// As good as for ever: times are added to a clock, which overflows otherwise.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Each shard has a copy of what stands in the log: places, over all shards. Some 2 GB, allocated at once.
const MOST_PLACES: usize = 1 << 22;

const MOST_SHARDS: usize = 1024;

/// Some 250 bytes each, allocated at once.
const MOST_EVENTS: usize = 1 << 20;

impl<R: Room> SessionBuilder<R> {
    pub(crate) fn new(room: R) -> Self {
        let config = Config {
            limits: Limits { messages: 16_384, bytes: 64 << 20, largest: 0 },
            joining_bytes: 256 << 20,
            largest_carried: room.largest_message(),
            in_flight: InFlight { calls: 32, assets: 32 },
            log_capacity: 1024,
            shards: 1,
            write_timeout: Duration::from_secs(5),
            uplink_patience: Duration::from_secs(30),
            open_timeout: Duration::from_secs(5),
            retire_timeout: Duration::from_secs(6),
            concurrent_joins: 64,
            backoff: Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(30) },
            event_capacity: 1024,
            initial: Arc::new(|_| Box::pin(std::future::ready(Vec::new()))),
            refusal: Arc::new(|_, _| None),
            on_stream: Arc::new(|stream| {
                drop(stream);
                Box::pin(std::future::ready(()))
            }),
        };
        Self { room, config, shards: None, listeners: Vec::new() }
    }

    /// How many messages may wait for one participant over both lanes before it is reset. Default 16,384: nine seconds of
    /// an ordinary robot's 1,820 messages a second, three seconds of 5,000. [`queue_bytes`](Self::queue_bytes) bounds
    /// larger messages. At most 8,388,607.
    ///
    /// A full backlog of messages to everybody costs each participant a few hundred bytes, of messages to topics eight
    /// bytes each (131 kB), as the messages themselves are kept once for all. Direct messages are the participant's own:
    /// their queue grows with what has waited at once.
    pub fn queue_capacity(mut self, messages: u32) -> Self {
        self.config.limits.messages = messages;
        self
    }

    /// How many bytes may wait for one participant over both lanes before it is reset; a larger message is refused.
    /// Default 64 MiB: four of the largest frames of the wire formats. At most 512 GiB.
    pub fn queue_bytes(mut self, bytes: u64) -> Self {
        self.config.limits.bytes = bytes;
        self
    }

    /// How many bytes of broadcasts may gather for a participant while its [initial messages](Self::initial) are computed.
    /// Default 256 MiB, where each message counts 64 bytes more than its length: in the 5 s that the closure has by
    /// default, that is 5,000 messages a second of 10 kB.
    ///
    /// This bound is the newcomer's own: what has gathered doesn't count against [`queue_capacity`](Self::queue_capacity)
    /// and [`queue_bytes`](Self::queue_bytes), neither while it joins nor when it is delivered behind the initial messages.
    /// If more is broadcast, or the first of it has waited for twice the [open time-out](Self::open_timeout) (a closure
    /// that blocks its thread isn't ended by the time-out), the attempt has failed:
    /// [`JoinError::Outpaced`](crate::JoinError::Outpaced) is told, the closure's future is dropped, and the next attempt
    /// waits for its [back-off](Self::reset_backoff). What gathers is kept once for all newcomers of a shard, and costs
    /// each of them eight bytes per message to a topic, next to nothing for messages to everybody. At least 1.
    pub fn joining_bytes(mut self, bytes: u64) -> Self {
        self.config.joining_bytes = bytes;
        self
    }

    /// How many broadcasts the log holds that some shard has yet to read. Default 1,024: a burst of that length
    /// doesn't wait. More costs some 600 bytes a place, and what the messages hold. At most 4,194,304, divided by the
    /// number of [shards](Self::shards), each of which has a copy.
    pub fn log_capacity(mut self, broadcasts: usize) -> Self {
        self.config.log_capacity = broadcasts;
        self
    }

    /// How many flush shards carry messages to the participants. Default: one less than the runtime has workers, at
    /// least one, which leaves a worker for everything else. At most 1,024.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// How long a write may go without progress before the participant is reset. Default 5 s: longer than a network
    /// takes to retransmit, shorter than a viewer's patience.
    ///
    /// A room may have [a time of its own](crate::Progress::set_write_timeout) for its participants, which replaces this
    /// one. The WebSocket room has: bytes that a kernel takes are no measure of a slow link.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.config.write_timeout = timeout;
        self
    }

    /// How long nobody is reset while the uplink is [stalled](crate::SessionEvent::UplinkStalled): publishers are held
    /// back, no write times out, and where the room's sinks [share](Room::uplink) the uplink nobody overflows. After
    /// that who makes no progress for the write time-out is reset, as ever. Default 30 s: longer than a mobile network
    /// takes to change its cell or a server to restart, shorter than anybody wants to look at a picture that stands
    /// still.
    pub fn uplink_patience(mut self, patience: Duration) -> Self {
        self.config.uplink_patience = patience;
        self
    }

    /// How long opening a stream may take, and how long computing the initial messages. Default 5 s each.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.config.open_timeout = timeout;
        self
    }

    /// How long a room may take to say goodbye to a participant that has ended. Default 6 s: a second more than the
    /// closing handshake of a WebSocket that keeps up may. What takes longer goes on in the room and isn't waited for.
    pub fn retire_timeout(mut self, timeout: Duration) -> Self {
        self.config.retire_timeout = timeout;
        self
    }

    /// How many participants may be joining or being reset at once. Default 64: opening streams is mostly waiting.
    pub fn concurrent_joins(mut self, joins: usize) -> Self {
        self.config.concurrent_joins = joins;
        self
    }

    /// How long a participant waits that was reset again, or could not be joined: `first`, doubled each time up to
    /// `longest`, less up to half at random. Default 100 ms to 30 s. It is the identity that waits, from its last reset
    /// on: to reconnect changes nothing. An instance that lasted longer than `longest`, or comes that long after the
    /// last reset, starts anew; the first reset doesn't wait.
    pub fn reset_backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.config.backoff = Backoff { first, longest };
        self
    }

    /// How many service calls of one participant may be in flight. Default 32.
    pub fn service_calls_in_flight(mut self, calls: u32) -> Self {
        self.config.in_flight.calls = calls;
        self
    }

    /// How many asset fetches of one participant may be in flight. Default 32.
    pub fn asset_fetches_in_flight(mut self, fetches: u32) -> Self {
        self.config.in_flight.assets = fetches;
        self
    }

    /// How many events wait for a slow listener before it misses the oldest, at least. Default 1,024. At most
    /// 1,048,576.
    pub fn event_capacity(mut self, events: usize) -> Self {
        self.config.event_capacity = events;
        self
    }

    /// A listener that is told of everything from the start, the joins of all who are present at the build included. It
    /// ends at once if nothing is built.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use lanecast::room::{Presence, memory::MemoryRoom};
    /// use lanecast::{Session, SessionEvent};
    ///
    /// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let room: MemoryRoom<Bytes> = MemoryRoom::new();
    /// room.place(Presence::new("ada".parse()?, "PA_1".parse()?, 1));
    /// let mut builder = Session::builder(room);
    /// let mut events = builder.events();
    /// let session = builder.build()?;
    /// assert!(matches!(events.next().await, Some(SessionEvent::Joined(_))));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn events(&mut self) -> Events {
        let (listener, events) = Events::before_build();
        self.listeners.push(listener);
        events
    }

    /// What a participant gets first of all, at its join and after every reset.
    ///
    /// The closure runs after the participant's place in the log is fixed: every broadcast from there on follows the
    /// initial messages. So change your state first and broadcast the change second; a change that races with a join
    /// may be told twice, by the initial messages and by the broadcast, never not at all. The closure may send and
    /// broadcast (with a [`WeakSession`](super::WeakSession): one that owned its session would keep it for ever). It is
    /// given the session's open time-out; if it panics or takes longer, the join is tried again. If its participant ends
    /// meanwhile, its future is dropped.
    pub fn initial<F, Fut>(mut self, initial: F) -> Self
    where
        F: Fn(Participant<R::Message>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<R::Message>> + Send + 'static,
    {
        self.config.initial = Arc::new(move |participant| Box::pin(initial(participant)));
        self
    }

    /// What a participant with an incompatible protocol version is told, on a stream opened for that alone.
    pub fn refusal<F>(mut self, refusal: F) -> Self
    where
        F: Fn(&Presence, &IncompatibleVersion) -> Option<R::Message> + Send + Sync + 'static,
    {
        self.config.refusal = Arc::new(refusal);
        self
    }

    /// What is done with a participant's own stream to us. The future is dropped when its connection is gone or the
    /// session closes. By default the stream is dropped.
    pub fn on_stream<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(ControlStream<R>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.config.on_stream = Arc::new(move |stream| Box::pin(handler(stream)));
        self
    }

    /// Starts the session: its shards, its event loop, and the joins of all who are present.
    ///
    /// # Errors
    /// [`BuildError`]: outside a tokio runtime or in one without timers, if a setting makes no sense, or if the room has
    /// a session already. Nothing has been started then.
    pub fn build(mut self) -> Result<Session<R>, BuildError> {
        let runtime = runtime::current()?;
        // One less than the runtime has workers, within what is allowed.
        let spare = runtime.metrics().num_workers().saturating_sub(1).clamp(1, MOST_SHARDS);
        self.config.shards = self.shards.unwrap_or(spare);
        self.check()?;
        let config = &mut self.config;
        config.limits.largest = config.limits.bytes.min(config.largest_carried as u64);
        let Backoff { first, longest } = config.backoff;
        config.backoff = Backoff { first: first.min(LONGEST), longest: longest.min(LONGEST) };
        // Last: a room that gives its events away and sees them dropped takes its session for ended.
        let events = Box::pin(self.room.events().ok_or(BuildError::RoomTaken)?);
        Ok(start(self.room, self.config, &runtime, events, self.listeners))
    }

    fn check(&self) -> Result<(), BuildError> {
        let config = &self.config;
        // What is allocated at once, or counted by a semaphore, has to stay within what those can do.
        let (sane, within) = (1..=1 << 24, "from 1 to 16,777,216");
        let longer = "longer than zero";
        let places = config.log_capacity.saturating_mul(config.shards);
        let checks: [(&'static str, String, bool, &'static str); 11] = [
            (
                "queue_capacity",
                config.limits.messages.to_string(),
                (1..=LARGEST_LIMITS.messages).contains(&config.limits.messages),
                "from 1 to 8,388,607",
            ),
            (
                "queue_bytes",
                config.limits.bytes.to_string(),
                (1..=LARGEST_LIMITS.bytes).contains(&config.limits.bytes),
                "from 1 to 512 GiB less 1",
            ),
            ("joining_bytes", config.joining_bytes.to_string(), config.joining_bytes > 0, "at least 1"),
            (
                "log_capacity",
                config.log_capacity.to_string(),
                (1..=MOST_PLACES).contains(&config.log_capacity),
                "from 1 to 4,194,304",
            ),
            ("shards", config.shards.to_string(), (1..=MOST_SHARDS).contains(&config.shards), "from 1 to 1,024"),
            (
                "log_capacity × shards",
                format!("{} × {}", config.log_capacity, config.shards),
                (1..=MOST_PLACES).contains(&places),
                "at most 4,194,304, as each shard has a copy of what stands in the log",
            ),
            ("concurrent_joins", config.concurrent_joins.to_string(), sane.contains(&config.concurrent_joins), within),
            (
                "event_capacity",
                config.event_capacity.to_string(),
                (1..=MOST_EVENTS).contains(&config.event_capacity),
                "from 1 to 1,048,576",
            ),
            ("write_timeout", format!("{:?}", config.write_timeout), !config.write_timeout.is_zero(), longer),
            ("open_timeout", format!("{:?}", config.open_timeout), !config.open_timeout.is_zero(), longer),
            (
                "reset_backoff",
                format!("{:?} to {:?}", config.backoff.first, config.backoff.longest),
                !config.backoff.first.is_zero() && config.backoff.first <= config.backoff.longest,
                "longer than zero, and the longest at least the first",
            ),
        ];
        match checks.into_iter().find(|(_, _, fine, _)| !fine) {
            Some((setting, value, _, must)) => Err(BuildError::InvalidSetting { setting, value, must }),
            None => Ok(()),
        }
    }
}

impl<R: Room> std::fmt::Debug for SessionBuilder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionBuilder").field("limits", &self.config.limits).finish_non_exhaustive()
    }
}

/// The most a message may hold.
pub(crate) fn fits<M: Message>(message: &M, limits: Limits) -> bool {
    message.byte_len() as u64 <= limits.largest
}
