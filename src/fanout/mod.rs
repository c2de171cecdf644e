//! The path of a message: control queue, broadcast log, flush shard.
//!
//! Two lanes lead to a participant. A broadcast is written once to the [log](log::BroadcastLog), whatever the number of
//! participants. A direct message goes to the participant's own control queue in its [outbox](outbox::Outbox). A [flush
//! shard](shard::FlushShard) takes messages from both lanes, in one order, and hands them to the sinks of its share of
//! the participants. There is one shard until more pay. This module knows bytes and positions, and nothing of rooms,
//! formats or telemetry.
//!
//! [`Fanout`] is the face of the module: it has the log, the shards and their counters, and hands out [`Seat`]s. The
//! tables of where bytes wait, and of who wakes whom, are in ARCHITECTURE.md.

mod clock;
mod command;
mod counters;
mod log;
mod member_handle;
#[cfg(all(test, lanecast_loom))]
mod models;
mod outbox;
mod port;
mod shard;
mod slot;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use self::clock::Clock;
use self::command::{AddedShards, COMMAND_CAPACITY, Command};
use self::counters::SessionCounters;
use self::log::gate::HoldStats;
use self::log::{BroadcastLog, Dimensions, FEW};
use self::port::{Mail, Port};
use self::shard::FlushShard;
use self::shard::budget::Gathering;
use self::shard::delivery::{SHARD_CAPACITY, ShardSettings};
use self::shard::newcomer::Newcomer;
use self::shard::shared::{OnTheWay, ShardControl, ShardStats};
use crate::contract::{Account, Hold, Losses, Progress, Uplink, UplinkState};
use crate::ids::ClientId;
use crate::sync::bits::Bits;
use crate::sync::signal::Signal;
use crate::sync::{AtomicBool, OnceBox, Ordering};
use crate::time::millis;

#[cfg(test)]
pub(crate) use self::command::Command as ShardCommand;
pub(crate) use self::log::publisher::Publisher;
pub(crate) use self::log::{Position, Refused};
pub(crate) use self::member_handle::MemberHandle;
pub(crate) use self::outbox::Outbox;
pub(crate) use self::outbox::bound::Limits;

/// The settings of a fan-out. The session's builder has checked them.
pub(crate) struct Settings {
    /// How many shards there are at first, at least 1, and how many there may be.
    pub(crate) shards: RangeInclusive<usize>,
    /// How many broadcasts the log holds.
    pub(crate) log_capacity: usize,
    pub(crate) limits: Limits,
    /// How many bytes of broadcasts may gather for a member that joins, and how long the first of them may wait.
    pub(crate) joining_bytes: u64,
    pub(crate) joining_age: Duration,
    /// How many bytes of droppable messages may wait for one member.
    pub(crate) lossy_bytes: u64,
    /// How many bytes of messages one flush of a sink carries best.
    pub(crate) batch_bytes: usize,
    pub(crate) write_timeout: Duration,
    /// How long broadcasts may gather before a shard reads them.
    pub(crate) linger: Duration,
    /// The uplink that all sinks share, if they do.
    pub(crate) uplink: Option<Uplink>,
    /// When publishers are held because most members are behind; `None` if they never are.
    pub(crate) hold: Option<Hold>,
}

/// How many members per shard make more shards pay. A further shard costs each publish a wake-up and a copy of the
/// message, 2 to 6 % of a broadcast with many members: see `perf/README.md`.
const MEMBERS_THAT_PAY: usize = 256;

/// How many members per shard make more shards pay if all shards are overloaded.
const BUSY_MEMBERS_THAT_PAY: usize = 16;

/// A shard is overloaded if it has had work for so many milliseconds without a pause.
const OVERLOADED: u64 = 100;

/// The log, the shards that read it, and what they count.
pub(crate) struct Fanout<O: MemberHandle> {
    log: Arc<BroadcastLog<O::Message>>,
    publisher: Arc<Publisher<O::Message>>,
    /// As many as there may be; those that are there come first.
    shards: Box<[OnceBox<ShardHandle<O>>]>,
    /// Claimed by the caller that makes shards.
    is_growing: AtomicBool,
    counters: Arc<SessionCounters>,
    control: Arc<ShardControl>,
    settings: Settings,
    clock: Clock,
}

/// The fan-out's end of a shard: the state that both share, and the channel to the task that runs the shard.
struct ShardHandle<O: MemberHandle> {
    port: Arc<Port<O::Message>>,
    stats: Arc<ShardStats>,
    newcomers: mpsc::Sender<Newcomer<O>>,
}

impl<O: MemberHandle> Fanout<O> {
    /// A fan-out, and its first shards, each of which runs until the log is sealed and its last member is gone.
    pub(crate) fn new(settings: Settings) -> (Self, Vec<impl Future<Output = ()> + Send + use<O>>) {
        let (first, most) = settings.shards.clone().into_inner();
        let signals: Vec<_> = (0..first).map(|_| Arc::new(Signal::new())).collect();
        let dimensions = Dimensions {
            first_slots: FEW.min(settings.log_capacity),
            capacity: settings.log_capacity,
            first_readers: first,
            most_readers: most,
        };
        let clock = Clock::new();
        let log = BroadcastLog::new(dimensions, signals.iter().cloned());
        let log = Arc::new(match settings.hold {
            // Half of a bound is free when a hold begins. Shards have in hand a quarter and a message more.
            Some(hold) => log.with_hold(hold, settings.limits.bytes / 8, clock),
            None => log,
        });
        let fanout = Self {
            publisher: Arc::new(Publisher::new(Arc::clone(&log), settings.limits.largest)),
            log,
            shards: (0..most).map(|_| OnceBox::new()).collect(),
            is_growing: AtomicBool::new(false),
            counters: Arc::new(SessionCounters::new()),
            control: Arc::new(ShardControl::new()),
            settings,
            clock,
        };
        let made = signals.into_iter().enumerate();
        let tasks = made.map(|(index, signal)| FlushShard::new(fanout.make_shard(index, signal)).run()).collect();
        (fanout, tasks)
    }

    /// Makes the shard's two ends: puts the fan-out's into its place, and returns the parts of the other.
    fn make_shard(&self, index: usize, signal: Arc<Signal>) -> ShardSettings<O> {
        let Settings { limits, batch_bytes, write_timeout, .. } = self.settings;
        let (newcomers, newcomers_taken) = mpsc::channel(COMMAND_CAPACITY);
        let (commands, commands_taken) = mpsc::channel(COMMAND_CAPACITY);
        let (begins, begins_taken) = mpsc::channel(COMMAND_CAPACITY);
        let port = Arc::new(Port {
            log: Arc::clone(&self.log),
            signal,
            mail: Mail::new(SHARD_CAPACITY),
            ready: Bits::new(SHARD_CAPACITY),
            behind: AtomicBool::new(false),
            counters: Arc::clone(&self.counters),
            clock: self.clock,
            commands,
            begins,
        });
        let stats = Arc::new(ShardStats::new());
        let handle = ShardHandle { port: Arc::clone(&port), stats: Arc::clone(&stats), newcomers };
        self.shards[index].get_or_init(|| Box::new(handle));
        ShardSettings {
            index,
            port,
            stats,
            control: Arc::clone(&self.control),
            newcomers: newcomers_taken,
            commands: commands_taken,
            begins: begins_taken,
            limits,
            gathering: Gathering { bytes: self.settings.joining_bytes, age: millis(self.settings.joining_age) },
            lossy_bytes: self.settings.lossy_bytes,
            batch_bytes,
            write_timeout,
            linger: self.settings.linger,
            uplink: self.settings.uplink.clone(),
        }
    }

    /// The shards that there are.
    fn shards(&self) -> impl Iterator<Item = &ShardHandle<O>> {
        self.shards.iter().map_while(OnceBox::get)
    }

    /// How many shards there are.
    pub(crate) fn shard_count(&self) -> usize {
        self.shards().count()
    }

    /// The members of each shard, and the newcomers on their way there.
    #[cfg(test)]
    pub(crate) fn populations(&self) -> Vec<usize> {
        self.shards().map(|shard| shard.stats.population()).collect()
    }

    /// Makes more shards if they pay now: as many as there are, or as there may be. Returns their tasks, which the
    /// caller starts; a task that is dropped turns away whoever was sent to its shard.
    ///
    /// Members never change their shard. New shards get all newcomers until they have as many members as the others;
    /// then the next shards are made. So shards differ by at most [`MEMBERS_THAT_PAY`] members, plus the joins that
    /// choose a shard at the same moment.
    pub(crate) fn grow(&self) -> Option<Vec<impl Future<Output = ()> + Send + use<O>>> {
        // Acquire and Release: the next caller finds the shards that this one has made.
        if !self.more_shards_pay() || self.is_growing.swap(true, Ordering::Acquire) {
            return None;
        }
        // Another caller may have made shards since the first look.
        let tasks = if self.more_shards_pay() { self.make_more_shards() } else { None };
        self.is_growing.store(false, Ordering::Release);
        tasks
    }

    fn more_shards_pay(&self) -> bool {
        let count = self.shard_count();
        if count == self.shards.len() {
            return false;
        }
        let members: usize = self.shards().map(|shard| shard.stats.population()).sum();
        let now = self.clock.now();
        members >= count * MEMBERS_THAT_PAY
            || (members >= count * BUSY_MEMBERS_THAT_PAY
                && self.shards().all(|shard| shard.stats.awake_for(now) >= OVERLOADED))
    }

    /// `None` if too many commands wait for the first shard.
    fn make_more_shards(&self) -> Option<Vec<impl Future<Output = ()> + Send + use<O>>> {
        let first = self.shards().next().expect(FIRST_SHARD);
        // Reserved before anything is made: a shard that isn't added to the log's readers never begins.
        let place = first.port.commands.try_reserve().ok()?;
        let count = self.shard_count();
        let (mut starts, mut tasks) = (Vec::new(), Vec::new());
        for index in count..self.log.next_count(count) {
            let signal = Arc::new(Signal::new());
            self.log.prepare_reader(index, Arc::clone(&signal));
            let (start, position) = oneshot::channel();
            tasks.push(FlushShard::added(self.make_shard(index, signal)).run_added(position));
            starts.push(start);
        }
        place.send(Command::AddShards(AddedShards { from: None, starts }));
        Some(tasks)
    }

    /// The way into the log.
    pub(crate) fn publisher(&self) -> &Arc<Publisher<O::Message>> {
        &self.publisher
    }

    /// A seat for a newcomer, in the shard that has the fewest members and newcomers on their way. Joins that choose at
    /// the same moment, on several threads, may choose the same shard.
    pub(crate) fn seat(&self) -> Seat<'_, O> {
        let emptiest = self.shards().min_by_key(|shard| shard.stats.population());
        let shard = emptiest.expect(FIRST_SHARD);
        Seat { fanout: self, shard, on_the_way: OnTheWay::to(&shard.stats) }
    }

    /// Holds publishers back while the uplink is stalled, and spares the members for `patience`. Returns the state
    /// before.
    pub(crate) fn set_uplink(&self, state: UplinkState, patience: Duration) -> UplinkState {
        // The event loop alone calls this: nothing changes between the look and the log's `set_uplink`.
        let before = if self.is_uplink_stalled() { UplinkState::Stalled } else { UplinkState::Flowing };
        if before != state {
            let until = (state == UplinkState::Stalled).then(|| self.clock.now().after(patience));
            self.control.set_stalled_until(until);
            self.log.set_uplink(state);
        }
        before
    }

    /// Whether publishers are held back because the uplink is stalled.
    pub(crate) fn is_uplink_stalled(&self) -> bool {
        self.log.is_uplink_stalled()
    }

    /// How often and how long publishers were held because most members were behind.
    pub(crate) fn hold_stats(&self) -> HoldStats {
        self.log.hold_stats()
    }

    /// Waits until there have been more than `seen` holds because of members, and returns how many. For one task.
    pub(crate) fn poll_holds(&self, seen: u64, cx: &mut Context<'_>) -> Poll<u64> {
        self.log.poll_holds(seen, cx)
    }

    /// For how long no publisher was held because of members; `None` while publishers are held.
    pub(crate) fn open_for(&self) -> Option<Duration> {
        self.log.open_for()
    }

    /// Closes the log to publishers: the shards deliver what there is, and end with their last member.
    pub(crate) fn seal(&self) {
        self.log.seal();
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.log.tail().is_sealed()
    }

    /// Makes every shard tear down all its members.
    pub(crate) fn abort(&self) {
        self.control.abort();
        // A shard that isn't there yet won't sleep before it has looked at the switch.
        self.shards().for_each(|shard| shard.port.signal.wake());
    }

    /// Sums up what became of the messages of all participants. Outcomes are read before offers: see
    /// [`counters`].
    pub(crate) fn account(&self) -> Account {
        let mut account = Account::default();
        self.counters.outcomes(&mut account);
        for shard in self.shards() {
            account.delivered += shard.stats.delivered.get();
            account.delivered_bytes += shard.stats.delivered_bytes.get();
        }
        account.offered = self.counters.direct_offered.get();
        account.offered += self.shards().map(|shard| shard.stats.offered.get()).sum::<u64>();
        account
    }

    /// Waits until messages of lossy topics were lost that the last call hasn't reported, and returns the sum of all.
    /// For one task. If the future is dropped, no loss goes unreported.
    pub(crate) async fn until_lost(&self) -> Losses {
        self.counters.until_lost().await;
        self.counters.losses()
    }

    /// How many broadcasts the slowest shard has yet to read.
    pub(crate) fn lag(&self) -> u64 {
        self.log.lag()
    }
}

const FIRST_SHARD: &str = "a fan-out has a shard from the beginning";

/// A place in a shard, chosen for a newcomer. Until the shard has admitted the newcomer, others see it as on its way.
pub(crate) struct Seat<'a, O: MemberHandle> {
    fanout: &'a Fanout<O>,
    shard: &'a ShardHandle<O>,
    on_the_way: OnTheWay,
}

/// Why a newcomer wasn't admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// The fan-out ends.
    Closed,
    /// The shard turned the newcomer away, or it had ended: its outbox says why.
    Ended,
}

impl<O: MemberHandle> Seat<'_, O> {
    /// The sending side of the newcomer, whose writes report to `progress`, and its line to the shard.
    pub(crate) fn outbox(&self, client_id: ClientId, progress: &Progress) -> Outbox<O::Message> {
        let Settings { limits, uplink, .. } = &self.fanout.settings;
        Outbox::new(Arc::clone(&self.shard.port), client_id, *limits, uplink.clone(), progress.clone())
    }

    /// Has the shard take the newcomer in. Returns the newcomer's position in the log: what is published from there on
    /// gathers for it until it [begins](Outbox::ready_to_begin).
    pub(crate) async fn admit(self, handle: O, sink: O::Sink, progress: Progress) -> Result<Position, NotAdmitted> {
        let Self { shard, on_the_way, .. } = self;
        let (reply, answer) = oneshot::channel();
        if shard.newcomers.send(Newcomer { handle, sink, progress, reply, on_the_way }).await.is_err() {
            return Err(NotAdmitted::Closed);
        }
        // If the shard admits no more members, the answer may never arrive: the session aborts all joins then.
        answer.await.map_err(|_| NotAdmitted::Ended)
    }
}
