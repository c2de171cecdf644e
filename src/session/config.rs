//! The builder of a session, and its settings.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::accept::{Accept, Refusal};
use super::backoff::Backoff;
use super::error::BuildError;
use super::events::{Events, Listener};
use super::stream::ControlStream;
use super::{Session, start};
use crate::fanout::Limits;
#[cfg(feature = "telemetry")]
use crate::ids::ClientId;
use crate::participant::Participant;
use crate::room::{Presence, Room};
use crate::runtime;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(crate) type Initial<M> = Arc<dyn Fn(Participant<M>) -> BoxFuture<Vec<M>> + Send + Sync>;
pub(crate) type OnStream<R> = Arc<dyn Fn(ControlStream<R>) -> BoxFuture<()> + Send + Sync>;
#[cfg(feature = "telemetry")]
pub(crate) type OnRetired = Arc<dyn Fn(ClientId) + Send + Sync>;

/// The settings of a session, which [`SessionBuilder::build`] has checked.
pub(crate) struct Config<R: Room> {
    pub(crate) limits: Limits,
    /// How many bytes of broadcasts may gather for a participant that joins.
    pub(crate) joining_bytes: u64,
    /// The longest message the room can carry, in bytes.
    pub(crate) largest_carried: usize,
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
    pub(crate) accept: Accept<R::Message>,
    pub(crate) on_stream: OnStream<R>,
    /// Called once for each instance, after its sink is back with the room.
    #[cfg(feature = "telemetry")]
    pub(crate) on_retired: OnRetired,
}

impl<R: Room> Config<R> {
    /// How long the first broadcast that gathers for a joining participant may wait: longer than computing its initial
    /// messages may take.
    pub(crate) fn joining_age(&self) -> Duration {
        self.open_timeout.saturating_mul(2)
    }
}

/// Builds a [`Session`]. Every setting has a default that suits thousands of viewers.
#[must_use = "a builder does nothing until it builds"]
pub struct SessionBuilder<R: Room> {
    room: R,
    config: Config<R>,
    shards: Option<usize>,
    listeners: Vec<Listener>,
}

/// Longer times are cut to this: added to a clock, they could overflow it.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The maximum of log capacity times shards, as each shard has its own copy of the log. Some 2 GB, allocated at once.
const MOST_PLACES: usize = 1 << 22;

const MOST_SHARDS: usize = 1024;

/// The maximum event capacity: some 250 bytes per event, allocated at once.
const MOST_EVENTS: usize = 1 << 20;

impl<R: Room> SessionBuilder<R> {
    pub(crate) fn new(room: R) -> Self {
        let config = Config {
            limits: Limits { messages: 16_384, bytes: 64 << 20, largest: 0 },
            joining_bytes: 256 << 20,
            largest_carried: room.largest_message(),
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
            accept: Arc::new(|_| Ok(())),
            on_stream: Arc::new(|stream| {
                drop(stream);
                Box::pin(std::future::ready(()))
            }),
            #[cfg(feature = "telemetry")]
            on_retired: Arc::new(|_| {}),
        };
        Self { room, config, shards: None, listeners: Vec::new() }
    }

    /// Sets how many messages may wait for one participant, over both lanes, before it is reset. Default 16,384: nine
    /// seconds of an ordinary robot's 1,820 messages a second, three seconds of 5,000 a second.
    /// [`queue_bytes`](Self::queue_bytes) bounds larger messages. At most 8,388,607.
    ///
    /// A full backlog of messages to everybody costs each participant a few hundred bytes. A full backlog of messages
    /// to topics costs eight bytes per message (131 kB). The messages themselves are kept once for all participants.
    /// Direct messages belong to one participant, whose queue grows with the most that has waited at once.
    pub fn queue_capacity(mut self, messages: u32) -> Self {
        self.config.limits.messages = messages;
        self
    }

    /// Sets how many bytes may wait for one participant, over both lanes, before it is reset. A message larger than
    /// this is refused. Default 64 MiB: four of the largest frames of the wire formats. Less than 512 GiB.
    pub fn queue_bytes(mut self, bytes: u64) -> Self {
        self.config.limits.bytes = bytes;
        self
    }

    /// Sets how many bytes of broadcasts may gather for a participant while its [initial messages](Self::initial) are
    /// computed. Default 256 MiB, where each message counts 64 bytes more than its length. That is enough for 5,000
    /// messages of 10 kB a second during the 5 s that the closure has by default. At least 1.
    ///
    /// This bound applies to newcomers only: what has gathered doesn't count against
    /// [`queue_capacity`](Self::queue_capacity) and [`queue_bytes`](Self::queue_bytes), neither during the join nor
    /// when it is delivered after the initial messages. The attempt fails with
    /// [`JoinError::Outpaced`](crate::JoinError::Outpaced) if more is broadcast, or if the first gathered broadcast has
    /// waited for twice the [open time-out](Self::open_timeout). (The time-out doesn't end a closure that blocks its
    /// thread.) The closure's future is then dropped, and the next attempt waits for its
    /// [back-off](Self::reset_backoff). What gathers is kept once for all newcomers of a shard. It costs each of them
    /// eight bytes per message to a topic, and next to nothing for messages to everybody.
    pub fn joining_bytes(mut self, bytes: u64) -> Self {
        self.config.joining_bytes = bytes;
        self
    }

    /// Sets the capacity of the broadcast log, in broadcasts that some shard has yet to read. Default 1,024: a burst of
    /// that length doesn't wait. Each place costs some 600 bytes, and the memory of its message. At most 4,194,304
    /// divided by the number of [shards](Self::shards), each of which has a copy.
    pub fn log_capacity(mut self, broadcasts: usize) -> Self {
        self.config.log_capacity = broadcasts;
        self
    }

    /// Sets how many flush shards carry messages to the participants. Default: one less than the runtime has workers,
    /// but at least one. This leaves a worker for everything else. At most 1,024.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// Sets how long a write may make no progress before the participant is reset. Default 5 s: longer than a network
    /// takes to retransmit, shorter than a viewer's patience.
    ///
    /// A room may set [a write time-out of its own](crate::Progress::set_write_timeout) for its participants, which
    /// replaces this one. The WebSocket room does: the bytes that a kernel accepts are no measure of a slow link.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.config.write_timeout = timeout;
        self
    }

    /// Sets for how long participants are spared while the uplink is [stalled](crate::SessionEvent::UplinkStalled).
    /// During this time publishers are held back and no write times out. If the room's sinks [share](Room::uplink) the
    /// uplink, no participant overflows either. After that, the write time-out applies again. Default 30 s: longer than
    /// a mobile network takes to change its cell or a server takes to restart, and short enough that a frozen view
    /// doesn't go unnoticed.
    pub fn uplink_patience(mut self, patience: Duration) -> Self {
        self.config.uplink_patience = patience;
        self
    }

    /// Sets how long opening a stream may take, and how long computing the initial messages may take. Default 5 s each.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.config.open_timeout = timeout;
        self
    }

    /// Sets how long a room may take to say goodbye to a participant that has ended. Default 6 s: a second more than
    /// the close handshake of a WebSocket that keeps up may take. The session then drops the room's
    /// [goodbye](Room::retire) and doesn't wait for it any longer. The WebSocket room still completes a close handshake
    /// that takes longer.
    pub fn retire_timeout(mut self, timeout: Duration) -> Self {
        self.config.retire_timeout = timeout;
        self
    }

    /// Sets how many participants may be joining at once, for the first time or after a reset. Default 64: a join
    /// spends most of its time waiting for its stream to open.
    pub fn concurrent_joins(mut self, joins: usize) -> Self {
        self.config.concurrent_joins = joins;
        self
    }

    /// Sets the back-off of a participant that was reset repeatedly or could not be joined: `first`, doubled each time
    /// up to `longest`, less up to half of it at random. Default 100 ms to 30 s. The first reset doesn't wait. The
    /// back-off belongs to the identity and runs from its last reset: reconnecting doesn't change it. It starts anew
    /// after an instance that lasted longer than `longest`, or once the last reset is older than that.
    pub fn reset_backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.config.backoff = Backoff { first, longest };
        self
    }

    /// Sets how many events wait for a slow listener, at least, before it misses the oldest. Default 1,024. At most
    /// 1,048,576.
    pub fn event_capacity(mut self, events: usize) -> Self {
        self.config.event_capacity = events;
        self
    }

    /// Creates a listener that gets every event from the start, including the joins of all participants that are
    /// present when the session is built. If the session isn't built, the listener ends at once.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use lanecast::room::{Presence, memory::MemoryRoom};
    /// use lanecast::{Session, SessionEvent};
    ///
    /// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let room: MemoryRoom<Bytes> = MemoryRoom::new();
    /// room.join(Presence::new("ada".parse()?, "PA_1".parse()?, 1)).await?;
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

    /// Sets the closure that computes the initial messages: what a participant gets first, when it joins and after
    /// every reset.
    ///
    /// The closure runs after the participant's position in the log is fixed, and every broadcast from that position on
    /// follows the initial messages. So change your state first and broadcast the change second. A change that races
    /// with a join may then arrive twice, in the initial messages and as the broadcast, but is never missing. The
    /// closure may send and broadcast; let it hold a [`WeakSession`](super::WeakSession), because a closure that owned
    /// its session would keep it open forever. Its future has the session's [open time-out](Self::open_timeout); if it
    /// panics or takes longer, the join is tried again. If its participant ends meanwhile, the future is dropped. By
    /// default there are no initial messages.
    pub fn initial<F, Fut>(mut self, initial: F) -> Self
    where
        F: Fn(Participant<R::Message>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<R::Message>> + Send + 'static,
    {
        self.config.initial = Arc::new(move |participant| Box::pin(initial(participant)));
        self
    }

    /// Sets the hook that accepts a connection or refuses it, before a stream is opened for it. By default every
    /// connection is accepted.
    ///
    /// The hook runs in each attempt to join a connection, also after a reset, with what the room reports at that time.
    /// A refused connection is never registered, and is refused once: as long as the room has it, the session neither
    /// asks the hook about it again nor repeats the [message](Refusal::with_message). If the hook panics, the join is
    /// tried again. The hook must be quick and must not block.
    pub fn accept<F>(mut self, accept: F) -> Self
    where
        F: Fn(&Presence) -> Result<(), Refusal<R::Message>> + Send + Sync + 'static,
    {
        self.config.accept = Arc::new(accept);
        self
    }

    /// Adds a hook that is asked before the one that [`accept`](Self::accept) has set.
    #[cfg(feature = "telemetry")]
    pub(crate) fn accept_first<F>(mut self, first: F) -> Self
    where
        F: Fn(&Presence) -> Result<(), Refusal<R::Message>> + Send + Sync + 'static,
    {
        let then = self.config.accept;
        self.config.accept = Arc::new(move |presence| first(presence).and_then(|()| then(presence)));
        self
    }

    /// Sets the hook that learns of each instance that is retired: once, on a flush shard, after
    /// [`Participant::is_retired`] has become true. Not called if the session is gone by then.
    #[cfg(feature = "telemetry")]
    pub(crate) fn on_retired(mut self, retired: impl Fn(ClientId) + Send + Sync + 'static) -> Self {
        self.config.on_retired = Arc::new(retired);
        self
    }

    /// Sets the handler of the streams that participants open to this host. The handler's future is dropped when the
    /// connection is gone or the session closes. By default the stream is dropped.
    pub fn on_stream<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(ControlStream<R>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.config.on_stream = Arc::new(move |stream| Box::pin(handler(stream)));
        self
    }

    /// Starts the session: its shards, its event loop, and the joins of all participants that are present.
    ///
    /// # Errors
    /// [`BuildError`] outside a tokio runtime or in one without timers, if a setting is out of range, or if the room
    /// has a session already. Nothing has been started then.
    pub fn build(mut self) -> Result<Session<R>, BuildError> {
        let runtime = runtime::current()?;
        // One less than the number of workers, within the allowed range.
        let spare = runtime.metrics().num_workers().saturating_sub(1).clamp(1, MOST_SHARDS);
        self.config.shards = self.shards.unwrap_or(spare);
        self.check()?;
        let config = &mut self.config;
        config.limits.largest = config.limits.bytes.min(config.largest_carried as u64);
        let Backoff { first, longest } = config.backoff;
        config.backoff = Backoff { first: first.min(LONGEST), longest: longest.min(LONGEST) };
        // Last, because a room takes the session for ended when its events are dropped.
        let events = Box::pin(self.room.events().ok_or(BuildError::RoomTaken)?);
        Ok(start(self.room, self.config, &runtime, events, self.listeners))
    }

    fn check(&self) -> Result<(), BuildError> {
        let config = &self.config;
        // What is allocated at once, or counted by a semaphore, has to stay within what those support.
        let (sane, within) = (1..=1 << 24, "from 1 to 16,777,216");
        let longer = "longer than zero";
        let places = config.log_capacity.saturating_mul(config.shards);
        let checks: [(&'static str, String, bool, &'static str); 11] = [
            (
                "queue_capacity",
                config.limits.messages.to_string(),
                (1..=Limits::LARGEST.messages).contains(&config.limits.messages),
                "from 1 to 8,388,607",
            ),
            (
                "queue_bytes",
                config.limits.bytes.to_string(),
                (1..=Limits::LARGEST.bytes).contains(&config.limits.bytes),
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
                "at most 4,194,304, as each shard has its own copy of the log",
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
