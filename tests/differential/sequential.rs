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
use tokio::time::{Instant, timeout};

use crate::Seed;
use crate::model::Model;
use crate::ops::{Draw, Op, Outcome, WRITE_TIMEOUT, draw_plan, is_failing, is_timeless};
use crate::plan::{Class, Plan};
use crate::state::initial_of;
use crate::subject::{Conn, Event, Gate, Inst, Lane, Msg, Refusal, Setup, Stream, Subject, View};

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

/// The number of delivery classes.
const CLASSES: usize = 3;

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
}

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
        write!(f, "{} snapshots and {} without", self.snapshots, self.without_retained)
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
    }

    /// Whether the run reached everything that ten thousand operations always come across.
    pub(crate) fn is_everything<S: Subject>(&self, has_classes: bool) -> bool {
        let joins = [self.replaced, self.stale, self.join_failed];
        let resets = if S::ACCOUNTS { &self.resets[..] } else { &self.resets[..3] };
        let Losses { overflowed, expired, conflated, rate_limited, .. } = self.lost;
        let lossy = [self.handed_on, overflowed, expired, conflated, rate_limited, self.unsubscribed];
        let topics = [self.ends, self.snapshots, self.without_retained];
        let is_lossy = lossy.into_iter().all(|count| count > 0) && topics.into_iter().all(|count| count > 0);
        if S::ACCOUNTS && has_classes && !(is_lossy && self.changes.len() == CLASSES * (CLASSES - 1)) {
            return false;
        }
        resets.iter().all(|count| *count > 0) && joins.into_iter().chain([self.tight_bursts]).all(|count| count > 0)
    }
}

/// Runs at least `ops` operations in a session drawn from `seed`, whose broadcasts gather for `linger`, closes it, and
/// returns what it came across. With a linger all topics are reliable: the model doesn't know when a shard reads.
pub(crate) async fn run<S: Subject>(
    seed: Seed,
    ops: usize,
    shards: RangeInclusive<usize>,
    linger: Duration,
) -> Reached {
    let mut rng = Rng::with_seed(seed.number);
    let state = Arc::new(AtomicU64::new(0));
    let setup = draw_setup::<S>(&mut rng, &state, shards, linger);
    let begun = Instant::now();
    let (subject, model) = (S::start(&setup), Model::new(&setup));
    let (told, reached) = (VecDeque::new(), Reached::default());
    let mut drive = Drive { seed, subject, model, state, done: 0, told, reached, begun };
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
        ..drive.reached
    }
}

/// Broadcasts more in one go than may wait for a viewer, while all viewers keep up. The two runtimes differ in this.
pub(crate) async fn burst_above_the_queue<S: Subject>(seed: Seed) {
    let setup = draw_setup::<S>(&mut Rng::with_seed(seed.number), &Arc::default(), 1..=3, Duration::ZERO);
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

fn draw_setup<S: Subject>(
    rng: &mut Rng,
    state: &Arc<AtomicU64>,
    shards: RangeInclusive<usize>,
    linger: Duration,
) -> Setup {
    let queue_capacity = rng.u32(8..=64);
    let shards = rng.usize(shards);
    let topics = rng.usize(4..=10);
    // The first topic is a plain one, to begin with, and long bursts go there.
    let plan = |topic: usize| match topic {
        0 => Plan::RELIABLE,
        _ if !linger.is_zero() => Plan::RELIABLE,
        _ => draw_plan(rng, topic.is_multiple_of(2) || topic.is_multiple_of(3), shards == 1, topic as u64),
    };
    let topics = (0..topics).map(plan).collect();
    let state = Arc::clone(state);
    Setup {
        identities: rng.usize(8..=40),
        topics,
        queue_capacity,
        queue_bytes: u64::from(queue_capacity) * 40,
        lossy_bytes: rng.u64(200..600),
        log_capacity: rng.usize(4..=64),
        shards,
        linger,
        write_timeout: WRITE_TIMEOUT,
        accounts: S::ACCOUNTS,
        initial: Arc::new(move |inst| initial_of(inst.who, state.load(Ordering::Acquire))),
    }
}

impl<S: Subject> Drive<S> {
    async fn step(&mut self, op: Op) {
        match op {
            Op::Burst(items) if !is_timeless(&self.model, &items, S::LONG_BURSTS) => {
                for item in items {
                    self.settle(item).await;
                }
            }
            op => self.settle(op).await,
        }
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
        self.note(&op);
        let expected = self.model.apply(&op);
        // The embedder changes its state first and broadcasts the change second.
        self.state.store(self.model.state, Ordering::Release);
        // The paused clock reaches this time-out only if everything is at rest.
        let Ok(answered) = timeout(NEVER, self.perform(&op, &stalled)).await else {
            return self.fail_if(&["the operation doesn't come to an end".to_owned()]);
        };
        if !self.model.setup.linger.is_zero() {
            // What gathers is handed on first, and may then lead to resets. The timer is late by up to a millisecond.
            tokio::time::sleep(self.model.setup.linger + Duration::from_millis(1)).await;
        }
        self.subject.settle().await;
        self.catch_up();
        self.reached.without_retained += usize::from(answered == Outcome::Subscribed(Subscribed::WithoutRetained));
        self.check(&expected, &answered).await;
    }

    /// Tells the model what the time is.
    fn catch_up(&mut self) {
        let now = self.begun.elapsed();
        assert_eq!(now.subsec_nanos() % 1_000_000, 0, "the paused clock is between two ticks");
        self.model.advance_to(u64::try_from(now.as_millis()).expect("not that long"));
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

    async fn perform(&self, op: &Op, stalled: &[usize]) -> Outcome {
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
            Op::EndTopic { topic } => subject.end_topic(topic).await,
            Op::Wait { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
            Op::TimePasses { ms } => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                stalled.iter().for_each(|who| viewers.set_behavior(*who, Behavior::Flow));
            }
            Op::Forget { who } => viewers.forget(who),
            Op::Burst(ref items) => {
                let mut each = Vec::new();
                for item in items {
                    each.push(self.message(item).await);
                }
                return Outcome::Each(each);
            }
            ref op => return self.message(op).await,
        }
        Outcome::Done
    }

    async fn message(&self, op: &Op) -> Outcome {
        let subject = &self.subject;
        match *op {
            Op::Subscribe { to, topic, tag, wish } => {
                Outcome::Subscribed(subject.subscribe(to, topic, tag, wish).await)
            }
            Op::Unsubscribe { to, topic } => Outcome::Unsubscribed(subject.unsubscribe(to, topic).await),
            Op::Send { to, msg } => Outcome::Sent(subject.send(to, msg).await),
            Op::TrySend { to, msg } => Outcome::Sent(subject.try_send(to, msg).await),
            Op::Broadcast(msg) => Outcome::Published(subject.broadcast(msg).await),
            Op::TryBroadcast(msg) => Outcome::Published(subject.try_broadcast(msg).await),
            ref op => panic!("{op:?} is no message"),
        }
    }

    /// Closes with messages under way and some viewers stalled, some of them until the end. Messages sent after that
    /// are refused and counted.
    async fn close(&mut self, draw: &mut Draw) {
        // A newcomer would be refused or ended, whichever comes first: so there must be none.
        for who in 0..self.model.viewers.len() {
            if self.model.viewers[who].newcomer().is_some() {
                self.settle(Op::Gate { who, gate: Gate::Ready }).await;
            }
        }
        // The same holds for a viewer whose stream fails as the session closes.
        for who in 0..self.model.viewers.len() {
            if is_failing(&self.model.viewers[who]) && self.model.viewers[who].registered.is_some() {
                self.settle(Op::Recover { who, behavior: Behavior::Flow }).await;
            }
        }
        if let Some(burst) = draw.last_burst::<S>(&self.model) {
            self.tell(&burst);
            let expected = self.model.apply(&burst);
            self.state.store(self.model.state, Ordering::Release);
            let answered = self.perform(&burst, &[]).await;
            let mut wrong = Vec::new();
            differ(&mut wrong, "the answer", &expected, &answered);
            self.fail_if(&wrong);
        }
        let rng = &mut draw.rng;
        let late: Vec<usize> = self.stalled().into_iter().filter(|_| rng.bool()).collect();
        self.tell(&format_args!("close, with {late:?} flowing shortly before the deadline"));
        let expected = self.model.close(&late, DEADLINE);
        let resume = async {
            tokio::time::sleep(DEADLINE / 2).await;
            late.iter().for_each(|who| self.subject.viewers().set_behavior(*who, Behavior::Flow));
        };
        let (report, ()) = tokio::join!(self.subject.close(DEADLINE), resume);
        let mut wrong = Vec::new();
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
        let mut wrong = Vec::new();
        if S::ACCOUNTS {
            differ(&mut wrong, "the totals", &self.model.totals(), &self.subject.totals());
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
        let expected = self.model.take_events();
        self.count(&expected);
        if S::ACCOUNTS {
            // The order of events about different viewers is not defined.
            let (expected, seen) = (by_viewer(expected), by_viewer(self.subject.events().await));
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
        let _ = writeln!(report, "with {:?}\nafter these operations, the last of which it was:", self.model.setup);
        for line in &self.told {
            let _ = writeln!(report, "{line}");
        }
        panic!("{report}");
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
