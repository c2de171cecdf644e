//! The builder of a session.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::BoxStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tracing::Span;

use super::accept::Refusal;
use super::backoff::Streaks;
use super::closing::Closing;
use super::core::Core;
use super::error::BuildError;
use super::event_loop::EventLoop;
use super::events::{EventQueue, Events, Listener};
use super::handle::Session;
use super::overload::OverloadPolicy;
use super::settings::{Config, Hooks, Options};
use super::stats::Counters;
use super::stream::ControlStream;
#[cfg(any(feature = "telemetry", feature = "test-util"))]
use crate::contract::EndReason;
use crate::fanout::{Fanout, Settings};
use crate::participant::Participant;
use crate::participant::pending::PendingResets;
use crate::participant::registry::Registry;
use crate::room::{Presence, Room, RoomEvent};
use crate::runtime;
use crate::sync::Ordering;
use crate::time::Backoff;

/// Builds a [`Session`]. Every setting has a default that suits thousands of viewers.
#[must_use = "a builder does nothing until it builds"]
pub struct SessionBuilder<R: Room> {
    room: R,
    name: Option<String>,
    options: Options,
    hooks: Hooks<R>,
    listeners: Vec<Listener>,
}

impl<R: Room> Session<R> {
    /// Creates the builder of a session in `room`.
    pub fn builder(room: R) -> SessionBuilder<R> {
        SessionBuilder::new(room)
    }
}

impl<R: Room> SessionBuilder<R> {
    fn new(room: R) -> Self {
        Self { room, name: None, options: Options::default(), hooks: Hooks::default(), listeners: Vec::new() }
    }

    /// Names the session in its logs: the span `session`, with the field `name`, is around what its tasks log, and is
    /// the parent of each participant's span. What a [stream handler](Self::on_stream) logs is outside, unless it is in
    /// a participant's span, and so is what the room's own tasks log, such as those that accept and read WebSockets.
    /// For processes with many sessions. By default there is no such span.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets how many messages may wait for one participant, over both lanes, before it is reset. Default 16,384: nine
    /// seconds of an ordinary robot's 1,820 messages a second, three seconds of 5,000 a second.
    /// [`queue_bytes`](Self::queue_bytes) bounds larger messages. At most 8,388,607.
    ///
    /// A full backlog of messages to everybody costs each participant a few hundred bytes. A full backlog of messages
    /// to topics costs eight bytes per message (131 kB). The messages themselves are kept once for all participants.
    /// Direct messages belong to one participant, whose queue grows with the most that has waited at once.
    pub fn queue_capacity(mut self, messages: u32) -> Self {
        self.options.queue_capacity = messages;
        self
    }

    /// Sets how many bytes may wait for one participant, over both lanes, before it is reset. A message larger than
    /// this is refused. Default 64 MiB: four of the largest frames of the wire formats. Less than 512 GiB.
    pub fn queue_bytes(mut self, bytes: u64) -> Self {
        self.options.queue_bytes = bytes;
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
        self.options.joining_bytes = bytes;
        self
    }

    /// Sets how many bytes of droppable messages (those of [lossy and latest](crate::Class) topics, and of
    /// subscriptions with a [rate of their own](crate::Participant::subscribe_at)) may wait for one participant, over
    /// all topics. Default 16 MiB. At least 1. Beyond that, the oldest message of the topic with the most waiting bytes
    /// is dropped; one message may always wait.
    ///
    /// A second limit of the same size applies to [retained](crate::Profile::retain) messages. A subscription that
    /// would exceed it starts [without them](crate::Subscribed::WithoutRetained), unless no others wait.
    ///
    /// The messages themselves are kept once for all participants of a shard, and each costs a participant sixteen
    /// bytes. They don't count against [`queue_bytes`](Self::queue_bytes).
    pub fn lossy_bytes(mut self, bytes: u64) -> Self {
        self.options.lossy_bytes = bytes;
        self
    }

    /// Sets the capacity of the broadcast log, in broadcasts that some shard has yet to read. Default 1,024: a burst of
    /// that length doesn't wait. Its places are made as they are needed: each costs some 600 bytes, and the memory of
    /// its message. At most 4,194,304 divided by the largest number of [shards](Self::shards), each of which has a
    /// copy.
    pub fn log_capacity(mut self, broadcasts: usize) -> Self {
        self.options.log_capacity = broadcasts;
        self
    }

    /// Sets the number of flush shards, which carry messages to the participants. At most 1,024. All are created at
    /// once.
    ///
    /// By default a session starts with one shard. When a participant joins, the number of shards doubles if there are
    /// 256 participants per shard, or 16 if every shard has been busy for 100 ms. The maximum is the runtime's number
    /// of workers minus one, at least 1: this leaves a worker for everything else. Participants never change their
    /// shard; newcomers go to the shard with the fewest. [`SessionStats::shards`](crate::SessionStats::shards) has
    /// their number.
    pub fn shards(mut self, shards: usize) -> Self {
        self.options.shards = Some(shards);
        self
    }

    /// Sets for how long broadcasts may gather before they are handed on. Default zero: each is handed on at once. At
    /// most 1 s.
    ///
    /// Each participant then gets one write for all broadcasts that have gathered, instead of one for each. Every
    /// broadcast is delayed by up to `time`, counted from the first one that waits. What it takes to hand on to all
    /// participants, and the timer's granularity of 1 ms, are a part of the time, up to half of it: so the last
    /// participant gets a broadcast about `time` later than without a linger. The delay ends early
    /// - when as many broadcasts wait as a shard hands on together (512, or a quarter of a `queue_capacity` of less
    ///   than 1,024),
    /// - when half of the [log](Self::log_capacity) is taken, or a publisher waits for it,
    /// - on a join, a change of subscriptions, a direct message, a message of an [urgent](crate::Profile::urgent)
    ///   topic, or the close.
    ///
    /// The delay never exceeds a quarter of the shortest [`max_age`](crate::Lossy::max_age) of the topics in use. A
    /// [changed](crate::Topic::set_profile) age takes effect with the next message of the topic that is handed on, or
    /// its next subscription.
    ///
    /// What gathers is delivered in the same order as without a linger. A direct message goes on at once, behind the
    /// broadcasts before it. With some hundred direct messages a second, to whichever participants, the gathering ends
    /// so often that a linger gains little. What gathers stands in the log: see
    /// [`SessionStats::shard_lag`](crate::SessionStats::shard_lag).
    pub fn linger(mut self, time: Duration) -> Self {
        self.options.linger = time;
        self
    }

    /// Sets how long a write may make no progress before the participant is reset. Default 5 s: longer than a network
    /// takes to retransmit, shorter than a viewer's patience.
    ///
    /// A room may set [a write time-out of its own](crate::Progress::set_write_timeout) for its participants, which
    /// replaces this one. The WebSocket room does: the bytes that a kernel accepts are no measure of a slow link.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.options.write_timeout = timeout;
        self
    }

    /// Sets for how long participants are spared while the uplink is [stalled](crate::SessionEvent::UplinkStalled).
    /// During this time publishers are held back and no write times out. If the room's sinks [share](Room::uplink) the
    /// uplink, no participant overflows either. After that, the write time-out applies again. Default 30 s: longer than
    /// a mobile network takes to change its cell or a server takes to restart, and short enough that a frozen view
    /// doesn't go unnoticed.
    pub fn uplink_patience(mut self, patience: Duration) -> Self {
        self.options.uplink_patience = patience;
        self
    }

    /// Sets how long opening a stream may take, and how long computing the initial messages may take. Default 5 s each.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.options.open_timeout = timeout;
        self
    }

    /// Sets how long a room may take to say goodbye to a participant that has ended. Default 6 s: a second more than
    /// the close handshake of a WebSocket that keeps up may take. The session then drops the room's
    /// [goodbye](Room::retire) and doesn't wait for it any longer. The WebSocket room still completes a close handshake
    /// that takes longer.
    pub fn retire_timeout(mut self, timeout: Duration) -> Self {
        self.options.retire_timeout = timeout;
        self
    }

    /// Sets how many participants may be joining at once, for the first time or after a reset. Default 64: a join
    /// spends most of its time waiting for its stream to open.
    pub fn concurrent_joins(mut self, joins: usize) -> Self {
        self.options.concurrent_joins = joins;
        self
    }

    /// Sets the back-off of a participant that was reset repeatedly or could not be joined: `first`, doubled each time
    /// up to `longest`, less up to half of it at random. Default 100 ms to 30 s. The first reset doesn't wait. The
    /// back-off belongs to the identity and runs from its last reset: reconnecting doesn't change it. It starts anew
    /// after an instance that lasted longer than `longest`, or once the last reset is older than that.
    pub fn reset_backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.options.reset_backoff = Backoff { first, longest };
        self
    }

    /// Sets what happens while most participants are behind. Default: [`OverloadPolicy::Reset`], so that a publisher
    /// never waits for a participant.
    ///
    /// With a [`Hold`](crate::Hold) the [log](Self::log_capacity) may have at most a quarter of the
    /// [queue capacity](Self::queue_capacity), and holds at most an eighth of the [queue bytes](Self::queue_bytes), or
    /// one message that is longer than that.
    pub fn overload(mut self, policy: impl Into<OverloadPolicy>) -> Self {
        self.options.overload = policy.into();
        self
    }

    /// Sets how many events may wait for a slow listener. Beyond that, the listener misses the oldest events, and can
    /// read how many. Default 1,024. At most 1,048,576.
    pub fn event_capacity(mut self, events: usize) -> Self {
        self.options.event_capacity = events;
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
        self.hooks.initial = Arc::new(move |participant| Box::pin(initial(participant)));
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
        self.hooks.accept = Arc::new(accept);
        self
    }

    /// Adds a hook that is asked before the one that [`accept`](Self::accept) has set.
    #[cfg(feature = "telemetry")]
    pub(crate) fn accept_first<F>(mut self, first: F) -> Self
    where
        F: Fn(&Presence) -> Result<(), Refusal<R::Message>> + Send + Sync + 'static,
    {
        let then = self.hooks.accept;
        self.hooks.accept = Arc::new(move |presence| first(presence).and_then(|()| then(presence)));
        self
    }

    /// Adds a hook, for tests, that is called once for every instance whose sink has been handed back to the room, with
    /// the reason of the instance's end. That includes the instances whose join failed or was cancelled, so the
    /// accounts of all of them add up to the account of the session.
    ///
    /// All messages of the instance are counted by then, except one that is being sent to it at that very moment. The
    /// hook runs on a flush shard: it must be quick, and must neither block nor panic. It isn't called for an instance
    /// whose session is gone by then.
    #[cfg(feature = "test-util")]
    pub fn on_retired(self, hook: impl Fn(&Participant<R::Message>, EndReason) + Send + Sync + 'static) -> Self {
        self.add_retired_hook(hook)
    }

    /// Adds a hook that learns of each instance that is retired: once, on a flush shard, after
    /// [`Participant::is_retired`] has become true. Not called if the session is gone by then.
    #[cfg(any(feature = "telemetry", feature = "test-util"))]
    pub(crate) fn add_retired_hook(
        mut self,
        hook: impl Fn(&Participant<R::Message>, EndReason) + Send + Sync + 'static,
    ) -> Self {
        self.hooks.on_retired.push(Box::new(hook));
        self
    }

    /// Sets the handler of the streams that participants open to this host. The handler's future is dropped when the
    /// connection is gone or the session closes. By default the stream is dropped.
    pub fn on_stream<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(ControlStream<R>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.hooks.on_stream = Arc::new(move |stream| Box::pin(handler(stream)));
        self
    }

    /// Starts the session: its shards, its event loop, and the joins of all participants that are present.
    ///
    /// # Errors
    /// [`BuildError`] outside a tokio runtime or in one without timers, if a setting is out of range, or if the room
    /// has a session already. Nothing has been started then.
    pub fn build(self) -> Result<Session<R>, BuildError> {
        let runtime = runtime::current()?;
        let config = self.options.check(runtime.metrics().num_workers(), self.room.largest_message())?;
        // Last, because a room takes the session for ended when its events are dropped.
        let room_events = Box::pin(self.room.events().ok_or(BuildError::RoomTaken)?);
        let Self { room, name, hooks, listeners, .. } = self;
        Ok(Parts { room, name, config, hooks, runtime, room_events, listeners }.start())
    }
}

impl<R: Room> fmt::Debug for SessionBuilder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionBuilder")
            .field("name", &self.name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What a session is started with.
struct Parts<R: Room> {
    room: R,
    name: Option<String>,
    config: Config,
    hooks: Hooks<R>,
    runtime: Handle,
    room_events: BoxStream<'static, RoomEvent<R::Incoming>>,
    listeners: Vec<Listener>,
}

impl<R: Room> Parts<R> {
    fn start(self) -> Session<R> {
        let Self { room, name, config, hooks, runtime, room_events, listeners } = self;
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let (fanout, shards) = Fanout::new(Settings {
            shards: config.shards.clone(),
            log_capacity: config.log_capacity,
            limits: config.limits,
            joining_bytes: config.joining_bytes,
            joining_age: config.joining_age(),
            lossy_bytes: config.lossy_bytes,
            batch_bytes: room.batch_bytes(),
            write_timeout: config.write_timeout,
            linger: config.linger,
            uplink: room.uplink(),
            hold: config.hold,
        });
        let events = EventQueue::new(config.event_capacity);
        for listener in listeners {
            events.connect(listener);
        }
        let core = Arc::new(Core {
            // Relaxed: only the value has to be unique.
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            // The highest level, so that every log line of the session names it.
            span: name.map_or_else(Span::none, |name| tracing::error_span!("session", name)),
            fanout,
            registry: Registry::new(),
            pending_resets: Arc::new(PendingResets::new()),
            counters: Counters::default(),
            streaks: Mutex::new(Streaks::new(config.backoff)),
            permits: Semaphore::new(config.concurrent_joins),
            events,
            closing: Closing::new(),
            room,
            config,
            hooks,
            runtime,
        });
        core.closing.start(|| {
            let mut tasks = core.spawn_shards(shards);
            tasks.push(core.spawn_watched(EventLoop::new(Arc::clone(&core), room_events).run()));
            tasks
        });
        Session::new(core)
    }
}
