//! Everything at once: producers send and broadcast while viewers come, go, stall and fail, on several threads.
//!
//! Here the model knows only what happens before what. Each producer numbers its operations, and publishes the number
//! before it carries out the operation. So each message of a producer has to arrive, may arrive or must not arrive at a
//! given instance. Those that arrive come in the producer's order, without a gap up to the stream's end. What may be
//! lost comes in the producer's order within its topic, and what didn't come is counted. Between two windows of
//! concurrency everything comes to rest, and every account has to balance exactly.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use lanecast::room::memory::{Behavior, OpenBehavior};
use lanecast::{Account, Subscribed};
use tokio::time::timeout;

use crate::Seed;
use crate::evidence::{self, Entry, Evidence, Subscription};
use crate::plan::{Class, Pace, Plan};
use crate::subject::{Conn, Event, Gate, Inst, Lane, Msg, Published, Sent, Setup, Subject};

const PRODUCERS: usize = 4;
/// The first topics are reliable, and the others aren't.
const TOPICS: [Plan; 6] = [
    Plan::RELIABLE,
    Plan::RELIABLE,
    Plan { retain: 2, ..Plan::RELIABLE },
    Plan { class: Class::Lossy { messages: 8, bytes: 200, age: 20 }, ..Plan::RELIABLE },
    Plan { class: Class::Latest, weight: 3, ..Plan::RELIABLE },
    Plan { class: Class::Latest, pace: Some(Pace::Every(1_500)), ..Plan::RELIABLE },
];
/// Viewers whose streams flow and whose connections stay: they must miss nothing.
const STEADY: usize = 8;
/// Viewers that come and go.
const GUESTS: usize = 12;
/// Tasks that make the guests join, leave, stall and fail.
const HOSTS: usize = 3;
const MESSAGES: usize = 150;
const WINDOWS: usize = 3;
const QUEUE: u32 = 64;
/// Direct messages of each producer to each steady viewer in a window. With what a shard hands on in one go, what all
/// producers send fits the queue, however late the shard is.
const TO_STEADY: usize = QUEUE as usize / 4 / PRODUCERS;
/// How long coming to rest may take; far longer than it needs.
const REST: Duration = Duration::from_secs(30);
/// Broadcasts that wait for stalled viewers at the close.
const LEFT: u64 = 5;

struct Scene<S> {
    seed: Seed,
    subject: S,
    /// The number of the operation that each producer is about to do or has just done.
    state: Arc<[AtomicU64]>,
    producing: AtomicUsize,
    next_sid: AtomicU32,
    subscriptions: Mutex<Vec<Subscription>>,
    over: AtomicBool,
}

/// A viewer that comes and goes.
struct Guest {
    who: usize,
    present: Option<Conn>,
    clock: u64,
    /// Connections whose end hasn't been reported yet.
    late: Vec<u32>,
    told: Vec<String>,
}

/// Runs sessions until `ops` operations are done; returns how many were done and how many instances were reset.
pub(crate) async fn run<S: Subject>(seed: Seed, ops: usize) -> (usize, u64) {
    let mut rng = Rng::with_seed(seed.number);
    let (mut done, mut resets) = (0, 0);
    while done < ops {
        let (more, reset) = session::<S>(seed, &mut rng).await;
        done += more;
        resets += reset;
    }
    (done, resets)
}

async fn session<S: Subject>(seed: Seed, rng: &mut Rng) -> (usize, u64) {
    let state: Arc<[AtomicU64]> = (0..=PRODUCERS).map(|_| AtomicU64::new(0)).collect();
    let told = Arc::clone(&state);
    let setup = Setup {
        identities: STEADY + GUESTS,
        topics: TOPICS.to_vec(),
        queue_capacity: QUEUE,
        queue_bytes: u64::from(QUEUE) * 64,
        lossy_bytes: 250,
        log_capacity: rng.usize(4..=64),
        shards: rng.usize(1..=3),
        linger: Duration::from_millis(rng.choice([0, 0, 1, 5]).expect("there are some")),
        hold: None,
        write_timeout: Duration::from_secs(3600),
        accounts: S::ACCOUNTS,
        initial: Arc::new(move |inst| evidence::initial(inst, &told)),
    };
    let scene = Arc::new(Scene {
        seed,
        subject: S::start(&setup),
        state,
        producing: AtomicUsize::new(0),
        next_sid: AtomicU32::new(1),
        subscriptions: Mutex::default(),
        over: AtomicBool::new(false),
    });
    let guest = |who| Guest { who, present: None, clock: 1, late: Vec::new(), told: Vec::new() };
    let mut guests: Vec<Guest> = (0..STEADY + GUESTS).map(guest).collect();
    let mut logs: Vec<Vec<Entry>> = vec![Vec::new(); PRODUCERS + 1];
    for steady in &mut guests[..STEADY] {
        scene.come(steady, 0).await;
    }
    at_rest(&scene, &guests).await;
    for who in 0..STEADY {
        let topic = who % TOPICS.len();
        scene.subscribe(Inst { who, nth: 0 }, topic, rng.u32(..1000)).await;
    }
    let mut done = 0;
    for _ in 0..WINDOWS {
        done += window(&scene, &mut guests, &mut logs, rng).await;
        at_rest(&scene, &guests).await;
        look(&scene, &guests, &logs, Vec::new());
    }
    let resets = scene.subject.totals().resets.iter().sum();
    close(&scene, &mut guests, &mut logs).await;
    (done, resets)
}

/// One window of concurrency: all tasks act at random; at its end all streams flow.
async fn window<S: Subject>(
    scene: &Arc<Scene<S>>,
    guests: &mut Vec<Guest>,
    logs: &mut [Vec<Entry>],
    rng: &mut Rng,
) -> usize {
    scene.producing.store(PRODUCERS, Ordering::SeqCst);
    scene.over.store(false, Ordering::SeqCst);
    let producers: Vec<_> =
        (1..=PRODUCERS).map(|from| tokio::spawn(Arc::clone(scene).produce(from, rng.fork()))).collect();
    let mut shares: Vec<Vec<Guest>> = (0..HOSTS).map(|_| Vec::new()).collect();
    for (n, guest) in guests.drain(STEADY..).enumerate() {
        shares[n % HOSTS].push(guest);
    }
    let hosts = shares.into_iter().map(|share| tokio::spawn(Arc::clone(scene).host(share, rng.fork())));
    let hosts: Vec<_> = hosts.collect();
    let watch = tokio::spawn(Arc::clone(scene).watch(rng.fork()));
    let mut done = 0;
    for (from, producer) in producers.into_iter().enumerate() {
        let Ok(entries) = timeout(REST, producer).await else {
            panic!("{}: a producer makes no progress: {:?}", scene.seed, scene.subject.totals());
        };
        let entries = entries.expect("a producer doesn't panic");
        done += entries.len();
        logs[from + 1].extend(entries);
    }
    for host in hosts {
        let Ok(share) = timeout(REST, host).await else {
            panic!("{}: a host makes no progress: {:?}", scene.seed, scene.subject.totals());
        };
        let (share, ops) = share.expect("a host doesn't panic");
        guests.extend(share);
        done += ops;
    }
    guests.sort_by_key(|guest| guest.who);
    scene.over.store(true, Ordering::SeqCst);
    watch.await.expect("no account is out of balance, not even for a moment");
    for guest in &mut guests[STEADY..] {
        scene.subject.viewers().set_behavior(guest.who, Behavior::Flow);
        scene.subject.viewers().set_open_behavior(guest.who, OpenBehavior::Ready);
        scene.subject.gate(guest.who, Gate::Ready);
        for sid in guest.late.drain(..) {
            scene.subject.viewers().leave(guest.who, sid).await;
        }
    }
    done
}

impl<S: Subject> Scene<S> {
    async fn produce(self: Arc<Self>, from: usize, mut rng: Rng) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut budget = [TO_STEADY; STEADY];
        while entries.len() < MESSAGES {
            for _ in 0..rng.usize(..4) {
                tokio::task::yield_now().await;
            }
            let seq = self.state[from].load(Ordering::SeqCst) + 1;
            self.state[from].store(seq, Ordering::SeqCst);
            let topic = Lane::Topic(rng.usize(..TOPICS.len()));
            let lane = rng.choice([Lane::All, topic, topic, Lane::Direct]).unwrap_or(Lane::All);
            let msg = Msg { lane, from, seq, size: rng.usize(..32), tag: None };
            let entry = if msg.lane == Lane::Direct {
                self.send_somewhere(msg, &mut budget, &mut rng).await
            } else if rng.u8(..4) == 0 {
                Entry::broadcast(msg, self.subject.try_broadcast(msg).await == Published::Taken)
            } else {
                Entry::broadcast(msg, self.subject.broadcast(msg).await == Published::Taken)
            };
            entries.push(entry);
        }
        self.producing.fetch_sub(1, Ordering::SeqCst);
        entries
    }

    async fn send_somewhere(&self, msg: Msg, budget: &mut [usize; STEADY], rng: &mut Rng) -> Entry {
        let mut who = rng.usize(..STEADY + GUESTS);
        if budget.get(who) == Some(&0) {
            who = rng.usize(STEADY..STEADY + GUESTS);
        }
        let Some(to) = self.subject.registered(who) else { return Entry::broadcast(msg, false) };
        let reset_if_full = rng.bool();
        let sent = match budget.get_mut(who) {
            Some(left) => {
                *left -= 1;
                self.subject.send(to, msg).await
            }
            None if reset_if_full => self.subject.send(to, msg).await,
            None => self.subject.try_send(to, msg).await,
        };
        Entry { msg, to: Some(to), taken: sent == Sent::Queued, closed: sent == Sent::Closed }
    }

    async fn come(&self, guest: &mut Guest, later: u64) {
        guest.clock += later;
        let sid = self.next_sid.fetch_add(1, Ordering::Relaxed);
        let conn = Conn { sid, joined_at: guest.clock };
        guest.late.extend(guest.present.replace(conn).map(|old| old.sid));
        self.subject.viewers().join(guest.who, conn).await;
    }

    async fn subscribe(&self, to: Inst, topic: usize, tag: u32) {
        // Once for each instance and topic, so that the messages due form one stretch.
        if self.subscriptions().iter().any(|known| known.to == to && known.topic == topic) {
            return;
        }
        let before = self.states();
        if self.subject.subscribe(to, topic, tag, None).await == Subscribed::New {
            let begun = self.states();
            self.subscriptions().push(Subscription { to, topic, tag, before, begun, ending: None, ended: None });
        }
    }

    async fn unsubscribe(&self, to: Inst) {
        let open = |known: &Subscription| known.to == to && known.ending.is_none();
        let Some(at) = self.subscriptions().iter().position(open) else { return };
        let topic = self.subscriptions()[at].topic;
        let ending = self.states();
        self.subject.unsubscribe(to, topic).await;
        let ended = self.states();
        let known = &mut self.subscriptions()[at];
        (known.ending, known.ended) = (Some(ending), Some(ended));
    }

    fn subscriptions(&self) -> MutexGuard<'_, Vec<Subscription>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn states(&self) -> Vec<u64> {
        self.state.iter().map(|state| state.load(Ordering::SeqCst)).collect()
    }

    /// Drives some guests for as long as any producer runs.
    async fn host(self: Arc<Self>, mut guests: Vec<Guest>, mut rng: Rng) -> (Vec<Guest>, usize) {
        let mut done = 0;
        while self.producing.load(Ordering::SeqCst) > 0 {
            let at = rng.usize(..guests.len());
            self.trouble(&mut guests[at], &mut rng).await;
            done += 1;
            for _ in 0..rng.usize(..4) {
                tokio::task::yield_now().await;
            }
        }
        (guests, done)
    }

    async fn trouble(&self, guest: &mut Guest, rng: &mut Rng) {
        let (who, subject) = (guest.who, &self.subject);
        let registered = subject.registered(who);
        let roll = rng.u32(..100);
        guest.told.push(format!("{roll:>2}, while {registered:?} is registered, {:?} present", guest.present));
        match (roll, guest.present, registered) {
            (0..40, None, _) | (0..12, Some(_), _) => self.come(guest, rng.u64(..3)).await,
            (12..18, Some(conn), _) => {
                guest.present = None;
                subject.viewers().leave(who, conn.sid).await;
            }
            (18..26, ..) if !guest.late.is_empty() => {
                let sid = guest.late.swap_remove(rng.usize(..guest.late.len()));
                subject.viewers().leave(who, sid).await;
            }
            (26..30, Some(conn), _) => subject.viewers().announce(who, conn).await,
            (30..45, ..) => subject.viewers().set_behavior(who, Behavior::Stall { capacity: rng.usize(..3) }),
            (45..62, ..) => subject.viewers().set_behavior(who, Behavior::Flow),
            (62..66, ..) => subject.viewers().set_behavior(who, Behavior::Fail),
            (66..70, ..) => subject.viewers().set_behavior(who, Behavior::Panic),
            (70..73, ..) => subject.viewers().set_open_behavior(who, OpenBehavior::Held),
            (73..75, ..) => subject.viewers().set_open_behavior(who, OpenBehavior::Fails),
            (75..82, ..) => subject.viewers().set_open_behavior(who, OpenBehavior::Ready),
            (82..85, ..) => subject.gate(who, Gate::Held),
            (85..86, ..) => subject.gate(who, Gate::PanicsOnce),
            (86..91, ..) => subject.gate(who, Gate::Ready),
            (91..97, _, Some(to)) => self.subscribe(to, rng.usize(..TOPICS.len()), rng.u32(..1000)).await,
            (97.., _, Some(to)) => self.unsubscribe(to).await,
            _ => {}
        }
    }

    /// Checks the accounts while messages move: no account may have more outcomes than messages offered.
    async fn watch(self: Arc<Self>, mut rng: Rng) {
        while !self.over.load(Ordering::SeqCst) {
            let balanced = |account: &Account| {
                account.delivered + account.dropped.total() + account.abandoned.total() <= account.offered
            };
            let totals = self.subject.totals();
            assert!(balanced(&totals.account), "{}: the session's account: {totals:?}", self.seed);
            if let Some(inst) = self.subject.registered(rng.usize(..STEADY + GUESTS)) {
                let view = self.subject.view(inst.who, &[], inst.nth);
                let unbalanced = view.instances.iter().find(|figures| !balanced(&figures.account));
                assert!(unbalanced.is_none(), "{}: the account of {inst:?}: {unbalanced:?}", self.seed);
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Waits until every present viewer is registered, nobody else is, and no message waits.
async fn at_rest<S: Subject>(scene: &Scene<S>, guests: &[Guest]) {
    let since = Instant::now();
    loop {
        let totals = scene.subject.totals();
        let (mut missing, mut offered) = (Vec::new(), 0);
        for guest in guests {
            let view = scene.subject.view(guest.who, &[], 0);
            let sid = view.registered.map(|nth| view.instances[nth].sid);
            if sid != guest.present.map(|conn| conn.sid) {
                missing.push(format!("viewer {}: {:?} is present, sid {sid:?} registered", guest.who, guest.present));
            }
            // A newcomer is registered shortly before it gets its initial messages.
            let open = view.streams.iter().filter(|stream| !stream.closed);
            let received: Vec<usize> = open.map(|stream| stream.messages.len()).collect();
            let begun = |received: &usize| *received > PRODUCERS;
            if received.len() != usize::from(sid.is_some()) || !received.iter().all(begun) {
                missing.push(format!("viewer {}: open streams have received {received:?}", guest.who));
            }
            let waiting = view.instances.iter().enumerate().filter(|(_, figures)| figures.account.waiting() > 0);
            missing.extend(waiting.map(|(nth, figures)| format!("viewer {}.{nth}: {figures:?}", guest.who)));
            offered += view.instances.iter().map(|figures| figures.account.offered).sum::<u64>();
        }
        // An instance that never joined is known shortly after its messages are counted.
        if S::ACCOUNTS && offered != totals.account.offered {
            missing.push(format!("the known instances were offered {offered} messages"));
        }
        let present = guests.iter().filter(|guest| guest.present.is_some()).count();
        if missing.is_empty() && totals.lag == 0 && totals.account.waiting() == 0 && totals.participants == present {
            return;
        }
        if since.elapsed() > REST {
            let seed = scene.seed;
            panic!("{seed}: not at rest after {REST:?}; {present} are present, {totals:?}\n{}", missing.join("\n"));
        }
        tokio::task::yield_now().await;
    }
}

/// Compares all messages that arrived, and every account, with what was done.
fn look<S: Subject>(scene: &Scene<S>, guests: &[Guest], logs: &[Vec<Entry>], events: Vec<Event>) {
    let views = (0..STEADY + GUESTS).map(|who| (who, scene.subject.view(who, &[], 0)));
    let evidence = Evidence {
        views: views.collect::<BTreeMap<_, _>>(),
        totals: scene.subject.totals(),
        logs,
        subscriptions: scene.subscriptions().clone(),
        topics: &TOPICS,
        steady: STEADY,
        events,
    };
    let wrong = evidence.examine();
    if wrong.is_empty() {
        return;
    }
    let mut report = format!("{} (the interleaving is the scheduler's):\n", scene.seed);
    for (who, what) in wrong.iter().take(12) {
        report += &format!("{what}\n");
        if let Some(who) = who {
            let told = &guests[*who].told;
            report += &format!("  its last troubles: {:#?}\n", &told[told.len().saturating_sub(8)..]);
        }
    }
    panic!("{report}");
}

/// Closes with every other guest stalled; a known number of messages waits for each stalled guest.
async fn close<S: Subject>(scene: &Scene<S>, guests: &mut [Guest], logs: &mut [Vec<Entry>]) {
    let stalled = guests[STEADY..].iter().step_by(2).filter(|guest| guest.present.is_some());
    let stalled: Vec<usize> = stalled.map(|guest| guest.who).collect();
    for who in &stalled {
        scene.subject.viewers().set_behavior(*who, Behavior::Stall { capacity: 1 });
    }
    for _ in 0..LEFT {
        let seq = scene.state[1].fetch_add(1, Ordering::SeqCst) + 1;
        let msg = Msg { lane: Lane::All, from: 1, seq, size: 1, tag: None };
        assert_eq!(scene.subject.broadcast(msg).await, Published::Taken);
        logs[1].push(Entry::broadcast(msg, true));
    }
    // Every message that isn't left has its outcome before the deadline of the close starts.
    let (since, left) = (Instant::now(), LEFT * stalled.len() as u64);
    while scene.subject.totals().lag > 0 || scene.subject.totals().account.waiting() != left {
        assert!(since.elapsed() < REST, "{}: {left} are to be left: {:?}", scene.seed, scene.subject.totals());
        tokio::task::yield_now().await;
    }
    let (report, seed) = (scene.subject.close(Duration::from_millis(100)).await, scene.seed);
    let report = report.expect("it keeps accounts");
    assert_eq!(report.abandoned.session_closed, left, "{seed}: left by the close: {report:?}");
    assert_eq!(scene.subject.totals().account, report, "{seed}: the report of the close");
    for guest in guests.iter_mut() {
        guest.present = None;
    }
    at_rest(scene, guests).await;
    let events = scene.subject.events().await;
    look(scene, guests, logs, events);
}
