//! One operation at a time: each is completed, then everything observable is compared with the model.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use lanecast::room::memory::{Behavior, OpenBehavior};
use lanecast::{Losses, Subscribed};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::Seed;
use crate::hold;
use crate::model::Model;
use crate::ops::{Draw, Op, Outcome, WRITE_TIMEOUT, draw_plan, is_failing, is_timeless};
use crate::plan::{Class, Plan};
use crate::state::{Joining, Stage, initial_of};
use crate::subject::{Conn, Event, Gate, Inst, Lane, Msg, Published, Refusal, Setup, Stream, Subject, View};

/// Longer than any operation takes, on the paused clock, too.
const NEVER: Duration = WRITE_TIMEOUT.saturating_mul(2);

/// The deadline of a close.
const DEADLINE: Duration = Duration::from_secs(1);

/// How many of the latest operations a report lists.
const TOLD: usize = 20;

/// How many of a viewer's latest instances and connections every comparison includes.
const RECENT: usize = 4;

/// Operations between two comparisons of everything, not only of what is recent.
const FULL_LOOK: usize = 250;

/// How many publishers may be held at once.
const MOST_WAITING: usize = 3;

/// In so many turns of all tasks, the longest burst is handed on.
const MOST_TURNS: usize = 1000;

/// In so many milliseconds, everything has been delivered to streams that flow, whatever their rates.
const LONGEST_REST: u64 = 1_000_000;

/// The number of delivery classes.
const CLASSES: usize = 3;

/// The setting that is special about a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    /// Broadcasts gather.
    Linger,
    /// Publishers are held while most participants are behind.
    Hold,
}

/// How long broadcasts gather in the runs with a linger.
const LINGER: Duration = Duration::from_millis(20);

/// Drives a runtime and the model side by side.
struct Drive<S: Subject> {
    seed: Seed,
    subject: S,
    model: Model,
    /// The state that the initial messages report.
    state: Arc<AtomicU64>,
    done: usize,
    told: VecDeque<String>,
    reached: Reached,
    begun: Instant,
    /// Publishers that are held.
    waiting: VecDeque<JoinHandle<Went>>,
}

/// How a publisher that was held has gone on, and when.
type Went = (Outcome, Duration);

/// Counts what a run came across, so that a test whose random draw no longer reaches the interesting states fails.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reached {
    ops: usize,
    delivered: u64,
    /// Overflow, write failed, panicked, timed out.
    resets: [u64; 4],
    replaced: usize,
    stale: usize,
    join_failed: usize,
    ended_while_joining: usize,
    /// Messages that had gathered for a newcomer that was then refused.
    refused_while_joining: u64,
    tight_bursts: usize,
    long_bursts: usize,
    /// Messages handed on of topics that aren't reliable.
    handed_on: u64,
    lost: Losses,
    unsubscribed: u64,
    /// Changes of a topic's profile while messages of the topic waited: from which class to which.
    changes: BTreeSet<(&'static str, &'static str)>,
    /// Ends of topics while messages waited.
    ends: usize,
    snapshots: usize,
    without_retained: usize,
    holds: Holds,
}

/// The holds that a run came across.
#[derive(Clone, Copy, Debug, Default)]
struct Holds {
    times: u64,
    given_up: usize,
    /// Operations in which the order of what happened mattered and wasn't known.
    unsure: usize,
    /// Publishers that waited and went on, and those to which the close gave their messages back.
    waited: usize,
    closed: usize,
    /// Messages given back at once.
    full: usize,
}

impl std::fmt::Display for Reached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ops, delivered, resets: [overflow, failed, panicked, timed_out], .. } = self;
        write!(f, "{ops} operations, {delivered} delivered; resets: {overflow} overflow, {failed} failed, ")?;
        write!(
            f,
            "{panicked} panicked, {timed_out} timed out; joins: {} replaced, {} stale, ",
            self.replaced, self.stale
        )?;
        write!(f, "{} failed, {} ended; ", self.join_failed, self.ended_while_joining)?;
        write!(f, "{} refused messages; ", self.refused_while_joining)?;
        write!(f, "bursts: {} tight, {} of them long; ", self.tight_bursts, self.long_bursts)?;
        write!(f, "lossy: {} handed on, {:?}, {} unsubscribed; ", self.handed_on, self.lost, self.unsubscribed)?;
        write!(f, "topics: {} changes, {} ends, ", self.changes.len(), self.ends)?;
        write!(f, "{} snapshots and {} without; {:?}", self.snapshots, self.without_retained, self.holds)
    }
}

impl Reached {
    /// Adds what another run came across.
    pub(crate) fn add(&mut self, more: &Self) {
        self.ops += more.ops;
        self.delivered += more.delivered;
        self.resets.iter_mut().zip(more.resets).for_each(|(count, more)| *count += more);
        self.replaced += more.replaced;
        self.stale += more.stale;
        self.join_failed += more.join_failed;
        self.ended_while_joining += more.ended_while_joining;
        self.refused_while_joining += more.refused_while_joining;
        self.tight_bursts += more.tight_bursts;
        self.long_bursts += more.long_bursts;
        self.handed_on += more.handed_on;
        self.lost.overflowed += more.lost.overflowed;
        self.lost.expired += more.lost.expired;
        self.lost.conflated += more.lost.conflated;
        self.lost.rate_limited += more.lost.rate_limited;
        self.unsubscribed += more.unsubscribed;
        self.changes.extend(&more.changes);
        self.ends += more.ends;
        self.snapshots += more.snapshots;
        self.without_retained += more.without_retained;
        self.holds.times += more.holds.times;
        self.holds.given_up += more.holds.given_up;
        self.holds.unsure += more.holds.unsure;
        self.holds.waited += more.holds.waited;
        self.holds.closed += more.holds.closed;
        self.holds.full += more.holds.full;
    }

    /// Whether the run reached everything that ten thousand operations always come across, and the model was mostly
    /// sure.
    pub(crate) fn is_everything<S: Subject>(&self, kind: Kind) -> bool {
        let Holds { times, given_up, unsure, waited, full, .. } = self.holds;
        // Where the model takes over from the runtime whether publishers are held, that isn't compared. In each of forty
        // runs those were less than a quarter.
        let is_mostly_sure = unsure as u64 * 2 < times + waited as u64;
        if kind == Kind::Hold && (times == 0 || given_up == 0 || waited == 0 || full == 0 || !is_mostly_sure) {
            return false;
        }
        let joins = [self.replaced, self.stale, self.join_failed];
        let resets = if S::ACCOUNTS { &self.resets[..] } else { &self.resets[..3] };
        let Losses { overflowed, expired, conflated, rate_limited, .. } = self.lost;
        let lossy = [self.handed_on, overflowed, expired, conflated, rate_limited, self.unsubscribed];
        let topics = [self.ends, self.snapshots, self.without_retained];
        let is_lossy = lossy.into_iter().all(|count| count > 0) && topics.into_iter().all(|count| count > 0);
        if S::ACCOUNTS && !(is_lossy && self.changes.len() == CLASSES * (CLASSES - 1)) {
            return false;
        }
        resets.iter().all(|count| *count > 0) && joins.into_iter().chain([self.tight_bursts]).all(|count| count > 0)
    }
}

/// Runs at least `ops` operations in a session drawn from `seed`, closes it, and returns what it came across.
pub(crate) async fn run<S: Subject>(seed: Seed, ops: usize, shards: RangeInclusive<usize>, kind: Kind) -> Reached {
    let mut rng = Rng::with_seed(seed.number);
    let state = Arc::new(AtomicU64::new(0));
    let setup = draw_setup::<S>(&mut rng, &state, shards, kind);
    let begun = Instant::now();
    let (subject, model) = (S::start(&setup), Model::new(&setup));
    let (told, reached) = (VecDeque::new(), Reached::default());
    let mut drive = Drive { seed, subject, model, state, done: 0, told, reached, begun, waiting: VecDeque::new() };
    let mut draw = Draw::new(rng);
    while drive.done < ops {
        let op = draw.next(&drive.model);
        drive.step(op).await;
    }
    drive.close(&mut draw).await;
    let totals = drive.model.totals();
    Reached {
        ops: drive.done,
        resets: totals.resets,
        refused_while_joining: totals.account.abandoned.refused + totals.account.abandoned.join_failed,
        delivered: totals.account.delivered,
        handed_on: totals.topic_stats.iter().map(|stats| stats.handed_on).sum(),
        lost: totals.account.dropped.lossy,
        unsubscribed: totals.account.abandoned.unsubscribed,
        holds: Holds {
            times: totals.hold.holds,
            given_up: drive.model.hold.times_given_up,
            unsure: drive.model.hold.times_unsure,
            ..drive.reached.holds
        },
        ..drive.reached
    }
}

/// Broadcasts more in one go than may wait for a viewer, while all viewers keep up. The two runtimes differ in this.
pub(crate) async fn burst_above_the_queue<S: Subject>(seed: Seed) {
    let setup = draw_setup::<S>(&mut Rng::with_seed(seed.number), &Arc::default(), 1..=3, Kind::Plain);
    let subject = S::start(&setup);
    for who in 0..setup.identities {
        let sid = u32::try_from(who).expect("few");
        subject.viewers().join(who, Conn { sid, joined_at: 1 }).await;
    }
    subject.settle().await;
    for seq in 0..=u64::from(setup.queue_capacity) {
        subject.broadcast(Msg { lane: Lane::All, from: 0, seq, size: 1, tag: None }).await;
    }
    subject.settle().await;
    for who in 0..setup.identities {
        let View { registered, streams, .. } = subject.view(who, &[], 0);
        let broadcasts = |stream: &Stream| stream.messages.iter().filter(|msg| msg.lane == Lane::All).count();
        let (nth, received) = if S::LONG_BURSTS { (0, setup.queue_capacity as usize + 1) } else { (1, 0) };
        assert_eq!(registered, Some(nth), "{seed}: viewer {who}");
        assert_eq!(streams.len(), nth + 1, "{seed}: viewer {who}");
        assert_eq!(streams.iter().map(broadcasts).sum::<usize>(), received, "{seed}: viewer {who}");
    }
}

/// A few participants are enough, and the patience is soon over.
fn draw_hold(rng: &mut Rng) -> hold::Policy {
    let share_percent = rng.choice([30, 50, 50, 70]).expect("there are some");
    hold::Policy { at_least: rng.u32(1..=3), share_percent, patience: 4 * rng.u64(100..=400) }
}

fn draw_setup<S: Subject>(rng: &mut Rng, state: &Arc<AtomicU64>, shards: RangeInclusive<usize>, kind: Kind) -> Setup {
    let linger = if kind == Kind::Linger { LINGER } else { Duration::ZERO };
    let queue_capacity = rng.u32(8..=64);
    let shards = rng.usize(shards);
    let topics = rng.usize(4..=10);
    // The first topic is a plain one, to begin with, and long bursts go there.
    let plan = |topic: usize| match topic {
        0 => Plan::RELIABLE,
        _ => draw_plan(rng, topic.is_multiple_of(2) || topic.is_multiple_of(3), shards == 1, topic as u64),
    };
    let topics = (0..topics).map(plan).collect();
    let state = Arc::clone(state);
    let (identities, log_capacity, hold) = match kind {
        Kind::Hold => (3..=16, 1..=hold::Policy::most_slots(queue_capacity), Some(draw_hold(rng))),
        Kind::Plain | Kind::Linger => (8..=40, 4..=64, None),
    };
    Setup {
        identities: rng.usize(identities),
        topics,
        queue_capacity,
        queue_bytes: u64::from(queue_capacity) * 40,
        lossy_bytes: rng.u64(200..600),
        log_capacity: rng.usize(log_capacity),
        shards,
        linger,
        hold,
        write_timeout: if hold.is_some() { WRITE_TIMEOUT / 20 } else { WRITE_TIMEOUT },
        accounts: S::ACCOUNTS,
        initial: Arc::new(move |inst| initial_of(inst.who, state.load(Ordering::Acquire))),
    }
}

impl<S: Subject> Drive<S> {
    async fn step(&mut self, op: Op) {
        match op {
            Op::Burst(items) if !is_timeless(&self.model, &items, S::LONG_BURSTS) => {
                for item in items {
                    self.settle_or_wait(item).await;
                }
            }
            op @ Op::TimePasses { .. } => {
                self.let_newcomers_in().await;
                self.settle(op).await;
            }
            op => self.settle_or_wait(op).await,
        }
    }

    /// The operation, or another one in its place where the model couldn't say what becomes of publishers that wait, or
    /// none.
    ///
    /// A viewer that is let go empties its queue in several visits, and what a publisher has waited with comes in
    /// between. Then order and losses of droppable messages aren't determined, nor what the end of a topic still finds
    /// waiting. So none of that waits on either side.
    fn fit(&self, op: Op) -> Option<Op> {
        let (model, hold) = (&self.model, &self.model.hold);
        let is_lossy = |topic: usize| {
            let mut all = model.there().into_iter();
            !model.topics[topic].plan.is_reliable() || all.any(|inst| model.is_lossy_for(inst, topic))
        };
        let waits = |who: usize| {
            let mut all = model.viewers[who].there().map(|nth| &model.viewers[who].instances[nth]);
            all.any(|instance| instance.lossy.len() > 0 || instance.has_snapshot())
        };
        Some(match op {
            Op::Broadcast(msg) if hold.is_held() => match msg.lane {
                Lane::Topic(topic) if is_lossy(topic) => Op::TryBroadcast(msg),
                _ if self.waiting.len() >= MOST_WAITING => Op::TryBroadcast(msg),
                _ => Op::Broadcast(msg),
            },
            Op::EndTopic { .. } if self.waiting.len() >= MOST_WAITING => return None,
            Op::SetProfile { topic, .. } if hold.waits_for(topic) => return None,
            Op::Subscribe { to, topic, tag, .. } if hold.waits_for(topic) => {
                Op::Subscribe { to, topic, tag, wish: None }
            }
            Op::SetBehavior { who, .. } | Op::Recover { who, .. } | Op::Gate { who, .. }
                if !hold.waiting.is_empty() && waits(who) =>
            {
                return None;
            }
            op => op,
        })
    }

    /// Carries out `op`, or lets a moment pass if the operation doesn't [fit](Self::fit).
    async fn settle_or_wait(&mut self, op: Op) {
        self.settle(self.fit(op).unwrap_or(Op::Wait { ms: 1 })).await;
    }

    /// Carries out one operation, in the model and in the runtime, and compares them.
    async fn settle(&mut self, op: Op) {
        let items = if let Op::Burst(items) = &op { items.len() } else { 1 };
        self.reached.tight_bursts += usize::from(items > 1);
        self.reached.long_bursts += usize::from(items > self.model.setup.queue_capacity as usize);
        self.tell(&op);
        self.done += items;
        let stalled = self.stalled();
        self.catch_up();
        while self.model.may_coincide(&op) {
            sleep(Duration::from_millis(1)).await;
            self.subject.settle().await;
            self.catch_up();
        }
        self.note(&op);
        self.model.announce(&op);
        self.state.store(self.model.state, Ordering::Release);
        // The paused clock reaches this time-out only if everything is at rest.
        let Ok(answered) = timeout(NEVER, self.perform(&op, &stalled)).await else {
            return self.fail_if(&["the operation doesn't come to an end".to_owned()]);
        };
        let expected = if self.model.setup.linger.is_zero() {
            self.subject.settle().await;
            self.note_gone().await;
            self.model.apply(&op)
        } else {
            let expected = self.model.apply(&op);
            self.watch_gathering().await;
            self.subject.settle().await;
            expected
        };
        self.catch_up();
        if matches!(op, Op::TimePasses { .. }) {
            self.let_ticks_end().await;
        }
        while self.model.hold.is_in_doubt(self.model.now) {
            self.wait(self.model.setup.tick()).await;
        }
        self.reached.holds.full += usize::from(answered == Outcome::Published(Published::Full));
        self.reached.without_retained += usize::from(answered == Outcome::Subscribed(Subscribed::WithoutRetained));
        self.check(&expected, &answered).await;
    }

    /// Lets time pass, without an operation.
    async fn wait(&mut self, ms: u64) {
        sleep(Duration::from_millis(ms)).await;
        self.subject.settle().await;
        self.note_gone().await;
        self.catch_up();
    }

    /// Lets newcomers in for whom droppable messages wait: the shard ticks for as long as they do.
    async fn let_newcomers_in(&mut self) {
        for who in 0..self.model.viewers.len() {
            let viewer = &self.model.viewers[who];
            let is_waited_for = viewer.newcomer().is_some_and(|nth| viewer.instances[nth].lossy.has_ready());
            if let Some(Joining { conn, .. }) = viewer.joining.filter(|_| is_waited_for) {
                self.settle_or_leave(Op::Gate { who, gate: Gate::Ready }, who, conn).await;
            }
        }
    }

    /// Waits until nothing ticks.
    ///
    /// A viewer whose write has timed out comes back at a time that the model doesn't know, and may be the one for
    /// which the shard ticks again. Its ticks are then at other times than the model's. All streams flow by now, so
    /// both come to an end, the shard's at most one period after the model's; the next ones begin together.
    async fn let_ticks_end(&mut self) {
        // A new series of ticks lasts for a period at least, so a look every half period finds it.
        let half = self.model.setup.tick() / 2;
        let mut seen_at_rest = 0;
        let begun = self.model.now;
        while seen_at_rest < 3 {
            self.wait(half).await;
            if self.model.now - begun > LONGEST_REST {
                self.fail_if(&["there is no end of ticks".to_owned()]);
            }
            seen_at_rest = if self.model.ticks() { 0 } else { seen_at_rest + 1 };
        }
    }

    /// Tells the model what the time is.
    fn catch_up(&mut self) {
        let now = self.begun.elapsed();
        assert_eq!(now.subsec_nanos() % 1_000_000, 0, "the paused clock is between two ticks");
        self.model.advance_to(u64::try_from(now.as_millis()).expect("not that long"));
    }

    /// Looks whether broadcasts gather, and for how long.
    async fn watch_gathering(&mut self) {
        let gathering = &self.model.gathering;
        let (gathers, until) = (gathering.entries.len() as u64, gathering.until());
        if !gathering.is_split(&self.model.setup) {
            self.expect_lag("what gathers at once", gathers).await;
        }
        let Some(until) = until else {
            // The other shards, if there are any, hand it on in time.
            return sleep(self.model.setup.linger).await;
        };
        let before = self.begun + Duration::from_millis(until) - Duration::from_millis(1);
        tokio::time::sleep_until(before).await;
        self.expect_lag("what gathers before the time is over", gathers).await;
        sleep(Duration::from_millis(1)).await;
        self.expect_lag("what gathers when the time is over", 0).await;
    }

    /// Asserts that so much has yet to be read, while the clock stands still.
    async fn expect_lag(&self, what: &str, expected: u64) {
        crate::take_turns().await;
        // Handing messages on takes a number of turns that isn't known.
        for _ in 0..MOST_TURNS {
            if expected > 0 || self.subject.totals().lag == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut wrong = Vec::new();
        differ(&mut wrong, what, &expected, &self.subject.totals().lag);
        self.fail_if(&wrong);
    }

    /// Tells the model which of the waiting publishers the runtime has let go.
    async fn note_gone(&mut self) {
        let now = self.model.now;
        while let Some(task) = self.waiting.pop_front_if(|task| task.is_finished()) {
            let (outcome, at) = task.await.expect("a publisher doesn't panic");
            let mut wrong = Vec::new();
            differ_for_held(&mut wrong, "the answer to a publisher that was held", Published::Taken, &outcome);
            self.fail_if(&wrong);
            let at = u64::try_from(at.as_millis()).expect("not that long");
            assert!(at >= now, "it was noted before");
            self.model.hold.gone.push_back(at);
            self.reached.holds.waited += 1;
        }
    }

    fn note(&mut self, op: &Op) {
        let name = |plan: &Plan| match plan.class {
            Class::Reliable => "reliable",
            Class::Lossy { .. } => "lossy",
            Class::Latest => "latest",
        };
        let (model, reached) = (&self.model, &mut self.reached);
        match op {
            Op::SetProfile { topic, plan } if model.waits_of(*topic) > 0 => {
                let (from, to) = (name(&model.topics[*topic].plan), name(plan));
                reached.changes.extend((from != to).then_some((from, to)));
            }
            Op::EndTopic { topic } => reached.ends += usize::from(model.waits_of(*topic) > 0),
            Op::Subscribe { to, topic, .. } => reached.snapshots += usize::from(model.has_snapshot_for(*to, *topic)),
            _ => {}
        }
    }

    fn tell(&mut self, what: &dyn std::fmt::Debug) {
        if self.told.len() == TOLD {
            self.told.pop_front();
        }
        self.told.push_back(format!("{:>7}  {what:?}", self.done));
    }

    fn stalled(&self) -> Vec<usize> {
        let viewers = self.model.viewers.iter().enumerate();
        let stalled = viewers.filter(|(_, viewer)| matches!(viewer.behavior, Behavior::Stall { .. }));
        stalled.map(|(who, _)| who).collect()
    }

    async fn perform(&mut self, op: &Op, stalled: &[usize]) -> Outcome {
        if self.model.setup.hold.is_some() && matches!(op, Op::Broadcast(_) | Op::EndTopic { .. }) {
            return self.publish(op.clone()).await;
        }
        let (subject, viewers) = (&self.subject, self.subject.viewers());
        match *op {
            Op::Join { who, conn } => viewers.join(who, conn).await,
            Op::Announce { who, conn } => viewers.announce(who, conn).await,
            Op::Leave { who, sid } => viewers.leave(who, sid).await,
            Op::SetBehavior { who, behavior } => viewers.set_behavior(who, behavior),
            Op::Fail { who, panic } => {
                viewers.set_open_behavior(who, OpenBehavior::Held);
                viewers.set_behavior(who, if panic { Behavior::Panic } else { Behavior::Fail });
            }
            Op::Recover { who, behavior } => {
                viewers.set_behavior(who, behavior);
                viewers.set_open_behavior(who, OpenBehavior::Ready);
            }
            Op::HoldOpening { who } => viewers.set_open_behavior(who, OpenBehavior::Held),
            Op::ReleaseOpening { who } => viewers.set_open_behavior(who, OpenBehavior::Ready),
            Op::LetOneOpen { who } => viewers.let_one_open(who).await,
            Op::FailOneOpening { who, held } => {
                subject.fail_one_opening(who, if held { OpenBehavior::Held } else { OpenBehavior::Ready }).await;
            }
            Op::Gate { who, gate } => subject.gate(who, gate),
            Op::SetRate { to, rate } => subject.set_rate(to, rate),
            Op::SetProfile { topic, ref plan } => subject.set_profile(topic, plan),
            Op::EndTopic { .. } => return message(subject, op).await,
            Op::Wait { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
            Op::TimePasses { ms } => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                stalled.iter().for_each(|who| viewers.set_behavior(*who, Behavior::Flow));
            }
            Op::Forget { who } => viewers.forget(who),
            Op::Burst(ref items) => {
                let mut each = Vec::new();
                for item in items {
                    each.push(message(subject, item).await);
                }
                return Outcome::Each(each);
            }
            ref op => return message(subject, op).await,
        }
        Outcome::Done
    }

    /// Has a task of its own publish, and leaves it if it has to wait.
    async fn publish(&mut self, op: Op) -> Outcome {
        let (subject, begun) = (self.subject.clone(), self.begun);
        let task = tokio::spawn(async move { (message(&subject, &op).await, begun.elapsed()) });
        crate::take_turns().await;
        if task.is_finished() {
            return task.await.expect("a publisher doesn't panic").0;
        }
        self.waiting.push_back(task);
        Outcome::Waits
    }

    /// Carries out `op`, or has the connection leave if the operation doesn't [fit](Self::fit).
    async fn settle_or_leave(&mut self, op: Op, who: usize, conn: Conn) {
        self.settle(self.fit(op).unwrap_or(Op::Leave { who, sid: conn.sid })).await;
    }

    /// Closes with messages under way and some viewers stalled, some of them until the end. Messages sent after that
    /// are refused and counted.
    async fn close(&mut self, draw: &mut Draw) {
        // A newcomer would be refused or ended, whichever comes first: so there must be none.
        for who in 0..self.model.viewers.len() {
            while let Some(Joining { conn, stage: Stage::Initial(_) }) = self.model.viewers[who].joining {
                self.settle_or_leave(Op::Gate { who, gate: Gate::Ready }, who, conn).await;
            }
        }
        // The same holds for a viewer whose stream fails as the session closes.
        for who in 0..self.model.viewers.len() {
            let viewer = &self.model.viewers[who];
            if let Some(conn) = viewer.registered_conn().filter(|_| is_failing(viewer)) {
                self.settle_or_leave(Op::Recover { who, behavior: Behavior::Flow }, who, conn).await;
            }
        }
        if let Some(burst) = draw.last_burst::<S>(&self.model) {
            self.tell(&burst);
            self.model.announce(&burst);
            self.state.store(self.model.state, Ordering::Release);
            let expected = self.model.apply(&burst);
            let answered = self.perform(&burst, &[]).await;
            let mut wrong = Vec::new();
            differ(&mut wrong, "the answer", &expected, &answered);
            self.fail_if(&wrong);
        }
        let rng = &mut draw.rng;
        let late: Vec<usize> = self.stalled().into_iter().filter(|_| rng.bool()).collect();
        self.tell(&format_args!("close, with {late:?} flowing shortly before the deadline"));
        let expected = self.model.close(&late, DEADLINE);
        let closed_at = self.begun.elapsed();
        let resume = async {
            tokio::time::sleep(DEADLINE / 2).await;
            late.iter().for_each(|who| self.subject.viewers().set_behavior(*who, Behavior::Flow));
        };
        let (report, ()) = tokio::join!(self.subject.close(DEADLINE), resume);
        let mut wrong = Vec::new();
        for task in self.waiting.drain(..) {
            let (outcome, at) = task.await.expect("a publisher doesn't panic");
            differ_for_held(&mut wrong, "the answer to a publisher at the close", Published::Closed, &outcome);
            differ(&mut wrong, "the time of the answer", &closed_at, &at);
            self.reached.holds.closed += 1;
        }
        if S::ACCOUNTS {
            differ(&mut wrong, "the report", &Some(expected), &report);
        }
        self.fail_if(&wrong);
        self.check(&Outcome::Done, &Outcome::Done).await;
        for seq in 0..8 {
            let lanes = [Lane::Direct, Lane::All, Lane::Topic(0)];
            let lane = lanes[rng.usize(..if S::ACCOUNTS { lanes.len() } else { 1 })];
            let msg = Msg { lane, from: 0, seq, size: 1, tag: None };
            let there = |who: &usize| !self.model.viewers[*who].instances.is_empty();
            let Some(who) = rng.choice((0..self.model.viewers.len()).filter(there).collect::<Vec<_>>()) else { break };
            let to = Inst { who, nth: self.model.viewers[who].instances.len() - 1 };
            self.settle(match (lane, rng.bool()) {
                (Lane::Direct, true) => Op::Send { to, msg },
                (Lane::Direct, false) => Op::TrySend { to, msg },
                (_, true) => Op::Broadcast(msg),
                (_, false) => Op::TryBroadcast(msg),
            })
            .await;
        }
        self.look(true).await;
    }

    async fn check(&mut self, expected: &Outcome, answered: &Outcome) {
        let mut wrong = Vec::new();
        differ(&mut wrong, "the answer", expected, answered);
        self.fail_if(&wrong);
        self.look(self.done.is_multiple_of(FULL_LOOK)).await;
    }

    /// Compares everything observable; older instances and connections only if `fully`.
    async fn look(&mut self, fully: bool) {
        let (mut wrong, mut is_unsure, now) = (Vec::new(), false, self.model.now);
        if S::ACCOUNTS {
            let seen = self.subject.totals();
            is_unsure = self.model.hold.is_unsure();
            self.model.hold.adopt(seen.hold, now);
            differ(&mut wrong, "the holds", &self.model.hold.stats(), &seen.hold);
            differ(&mut wrong, "the totals", &self.model.totals(), &seen);
            let expected = (self.model.hold.waiting.len(), 0);
            differ(
                &mut wrong,
                "the publishers that wait",
                &expected,
                &(self.waiting.len(), self.model.hold.gone.len()),
            );
        }
        for who in 0..self.model.viewers.len() {
            let viewer = &self.model.viewers[who];
            let back = |count: usize| if fully { 0 } else { count.saturating_sub(RECENT) };
            let sids: Vec<u32> = viewer.conns[back(viewer.conns.len())..].iter().map(|conn| conn.sid).collect();
            let first = back(viewer.instances.len());
            let (mut expected, seen) = (self.model.view(who, &sids, first), self.subject.view(who, &sids, first));
            if !S::ACCOUNTS {
                expected.instances.clear();
            }
            if expected != seen {
                tell_views_apart(&mut wrong, who, first, &expected, &seen);
            }
        }
        let mut expected = self.model.take_events();
        self.count(&expected);
        if S::ACCOUNTS {
            let mut seen = self.subject.events().await;
            if is_unsure {
                self.model.hold.adopt_told(&seen);
                expected.retain(|event| !event.is_of_hold());
                seen.retain(|event| !event.is_of_hold());
            }
            // The order of events about different viewers is not defined.
            let (expected, seen) = (by_viewer(expected), by_viewer(seen));
            differ(&mut wrong, "the events by viewer", &expected, &seen);
        }
        self.fail_if(&wrong);
    }

    fn count(&mut self, events: &[Event]) {
        for event in events {
            let reached = &mut self.reached;
            match event {
                Event::Replaced { .. } => reached.replaced += 1,
                Event::Refused { why: Refusal::Stale, .. } => reached.stale += 1,
                Event::JoinFailed { why: Refusal::Ended(_), .. } => reached.ended_while_joining += 1,
                Event::JoinFailed { .. } => reached.join_failed += 1,
                _ => {}
            }
        }
    }

    /// Panics with what is wrong, and how to repeat the run.
    fn fail_if(&self, wrong: &[String]) {
        if wrong.is_empty() {
            return;
        }
        let mut report = format!("{} after operation {}:\n", self.seed, self.done);
        for line in wrong {
            let _ = writeln!(report, "{line}");
        }
        let _ = writeln!(report, "{:?}", self.model.hold);
        let _ = writeln!(report, "with {:?}\nafter these operations, the last of which it was:", self.model.setup);
        for line in &self.told {
            let _ = writeln!(report, "{line}");
        }
        panic!("{report}");
    }
}

async fn message<S: Subject>(subject: &S, op: &Op) -> Outcome {
    match *op {
        Op::Subscribe { to, topic, tag, wish } => Outcome::Subscribed(subject.subscribe(to, topic, tag, wish).await),
        Op::Unsubscribe { to, topic } => Outcome::Unsubscribed(subject.unsubscribe(to, topic).await),
        Op::Send { to, msg } => Outcome::Sent(subject.send(to, msg).await),
        Op::TrySend { to, msg } => Outcome::Sent(subject.try_send(to, msg).await),
        Op::Broadcast(msg) => Outcome::Published(subject.broadcast(msg).await),
        Op::TryBroadcast(msg) => Outcome::Published(subject.try_broadcast(msg).await),
        Op::EndTopic { topic } => {
            subject.end_topic(topic).await;
            Outcome::Done
        }
        ref op => panic!("{op:?} is no message"),
    }
}

fn by_viewer(events: Vec<Event>) -> BTreeMap<Option<usize>, Vec<Event>> {
    let mut by_viewer: BTreeMap<Option<usize>, Vec<Event>> = BTreeMap::new();
    for event in events {
        by_viewer.entry(event.who()).or_default().push(event);
    }
    by_viewer
}

fn differ<T: PartialEq + std::fmt::Debug>(wrong: &mut Vec<String>, what: &str, expected: &T, seen: &T) {
    if expected != seen {
        wrong.push(format!("{what}:\n  - {expected:?}\n  + {seen:?}"));
    }
}

/// Compares the answer to a publisher that was held. The end of a topic waits as a broadcast does, but is always
/// answered with [`Outcome::Done`].
fn differ_for_held(wrong: &mut Vec<String>, what: &str, expected: Published, seen: &Outcome) {
    if *seen != Outcome::Done {
        differ(wrong, what, &Outcome::Published(expected), seen);
    }
}

/// Reports the differences: `-` is what the model says, `+` what the runtime shows.
fn tell_views_apart(wrong: &mut Vec<String>, who: usize, first: usize, expected: &View, seen: &View) {
    differ(wrong, &format!("viewer {who}, registered"), &expected.registered, &seen.registered);
    differ(wrong, &format!("viewer {who}, by sid"), &expected.by_sid, &seen.by_sid);
    differ(wrong, &format!("viewer {who}, instances"), &expected.instances.len(), &seen.instances.len());
    for (at, (expected, seen)) in expected.instances.iter().zip(&seen.instances).enumerate() {
        differ(wrong, &format!("viewer {who}.{}", first + at), expected, seen);
    }
    differ(wrong, &format!("viewer {who}, streams"), &expected.streams.len(), &seen.streams.len());
    for (at, (expected, seen)) in expected.streams.iter().zip(&seen.streams).enumerate() {
        let same = expected.messages.iter().zip(&seen.messages).take_while(|(a, b)| a == b).count();
        let tail = |stream: &Stream| (stream.sid, stream.closed, stream.messages[same.saturating_sub(2)..].to_vec());
        differ(wrong, &format!("viewer {who}, stream {at} from message {same}"), &tail(expected), &tail(seen));
    }
}
