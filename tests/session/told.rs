//! Events: each instance is reported once when it joins and once when it ends, with the messages that were lost with
//! it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use lanecast::room::memory::MemoryRoom;
use lanecast::room::{OpenError, Presence, Room, RoomEvent};
use lanecast::{Account, EndReason, Events, ParticipantIdentity, Progress, Session, SessionEvent};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::common::{
    Call, GONE, Gate, PATIENCE, Stage, StageSink, Streams, Valve, assert_settled, close_settled, event, id, live, msg,
    presence, settle, sid, until, within,
};

/// A room in which the test can hold the session's event loop.
struct Holding {
    stage: Stage<Bytes>,
    hold: Arc<Hold>,
}

struct Hold {
    is_held: Semaphore,
    /// The loop waits here for the test's signal.
    go_on: Mutex<mpsc::Receiver<()>>,
    release: mpsc::Sender<()>,
}

impl Holding {
    fn new(stage: &Stage<Bytes>) -> (Self, Arc<Hold>) {
        let (release, go_on) = mpsc::channel();
        let hold = Arc::new(Hold { is_held: Semaphore::new(0), go_on: Mutex::new(go_on), release });
        (Self { stage: stage.clone(), hold: Arc::clone(&hold) }, hold)
    }
}

impl Hold {
    /// Returns when the loop is held. The loop asks the room about this identity for no other reason.
    async fn hold(&self, stage: &Stage<Bytes>) {
        stage.emit(RoomEvent::Disconnected { identity: id("hold"), sid: sid("PA_hold") });
        within(self.is_held.acquire()).await.expect("it is never closed").forget();
    }

    fn let_go(&self) {
        self.release.send(()).expect("the loop waits for it");
    }

    /// Returns when the loop has finished what it had begun.
    async fn pass(&self, stage: &Stage<Bytes>) {
        self.hold(stage).await;
        self.let_go();
    }
}

impl Room for Holding {
    type Message = Bytes;
    type Sink = StageSink<Bytes>;
    type Incoming = ();

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<()>> + Send + 'static> {
        self.stage.events()
    }

    fn participants(&self) -> Vec<Presence> {
        self.stage.participants()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        if *identity == id("hold") {
            self.hold.is_held.add_permits(1);
            self.hold.go_on.lock().expect("the lock isn't poisoned").recv_timeout(PATIENCE).expect("the test goes on");
        }
        self.stage.present(identity)
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<StageSink<Bytes>, OpenError> {
        self.stage.open(to, progress).await
    }
}

/// A room whose streams take nothing, and open when the gate says so.
fn gated(gate: &Gate) -> Stage<Bytes> {
    let gate = gate.clone();
    Stage::new(move |_, _| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Ok(Valve::shut().sink())
        }
    })
}

// 1. A second connection of Ada's is being joined. 2. The loop is held, and her first instance overflows. 3. The second
// takes its place. 4. The loop goes on: the fault is still reported and counted, with what was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_instance_replaced_right_after_its_fault_counts_as_reset() {
    let gate = Gate::new();
    let stage = gated(&gate);
    let (room, hold) = Holding::new(&stage);
    let mut builder = Session::builder(room).queue_capacity(4).open_timeout(Duration::from_secs(3_600));
    let mut events = builder.events();
    let session = builder.build().expect("a test's settings make sense");
    gate.let_open(1);
    stage.join(presence("ada", "PA_1", 1));
    let first = live(&session, "ada").await;
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Joined(who)) if who.sid == sid("PA_1")));
    // A join is reported before the loop asks the room for the last time: the room must not list the newer connection
    // then.
    hold.pass(&stage).await;
    stage.join(presence("ada", "PA_2", 2));
    until(|| gate.opening() == 1).await;
    hold.hold(&stage).await;
    let mut sent = 1;
    while first.send(msg("x")).is_ok() {
        sent += 1;
    }
    gate.let_open(1);
    until(|| session.participant_by_sid(&sid("PA_2")).is_some()).await;
    hold.let_go();
    match within(events.next()).await {
        Some(SessionEvent::Reset { who, reason: EndReason::Overflow, account }) => {
            assert_eq!(who.sid, sid("PA_1"));
            assert_eq!((account.offered, account.dropped.overflow), (sent, sent));
        }
        other => panic!("not expected: {other:?}"),
    }
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Joined(who)) if who.sid == sid("PA_2")));
    let stats = session.stats();
    assert_eq!((stats.joins, stats.replacements, stats.resets.overflow), (2, 0, 1));
    close_settled(&session).await;
}

// The same twice in a row: the third connection of an identity that fails each time waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn being_replaced_in_time_does_not_evade_the_back_off() {
    let gate = Gate::new();
    let stage = gated(&gate);
    let (room, hold) = Holding::new(&stage);
    let first = Duration::from_millis(500);
    let session = Session::builder(room)
        .queue_capacity(1)
        .open_timeout(Duration::from_secs(3_600))
        .reset_backoff(first, Duration::from_secs(3_600))
        .build()
        .expect("a test's settings make sense");
    gate.let_open(1);
    stage.join(presence("ada", "PA_1", 1));
    let mut failing = live(&session, "ada").await;
    let mut begun = Instant::now();
    for n in 2..=3 {
        let connection = format!("PA_{n}");
        // As above, the loop has asked the room for the last time.
        until(|| session.stats().joins == n - 1).await;
        hold.pass(&stage).await;
        stage.join(presence("ada", &connection, n));
        until(|| gate.opening() == 1).await;
        hold.hold(&stage).await;
        while failing.send(msg("x")).is_ok() {}
        gate.let_open(1);
        until(|| session.participant_by_sid(&sid(&connection)).is_some()).await;
        failing = session.participant_by_sid(&sid(&connection)).expect("it was registered a moment ago");
        begun = Instant::now();
        hold.let_go();
        until(|| session.stats().resets.overflow == n - 1).await;
    }
    stage.join(presence("ada", "PA_4", 4));
    until(|| gate.opening() == 1).await;
    assert!(begun.elapsed() >= first / 2, "it waited {:?}", begun.elapsed());
    session.cancel();
    within(session.ended()).await.expect("it ends without an error");
}

/// A sink that takes everything and flushes nothing, until the test makes it answer.
#[derive(Clone, Default)]
struct Stuck {
    answer: Arc<Mutex<Option<Result<(), String>>>>,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl Stuck {
    fn sink(&self) -> StageSink<Bytes> {
        let Self { answer, waker } = self.clone();
        StageSink::new(move |call, cx| match (call, &*answer.lock().expect("the lock isn't poisoned")) {
            (Call::Flush, Some(answer)) => Poll::Ready(answer.clone()),
            (Call::Flush, None) => {
                *waker.lock().expect("the lock isn't poisoned") = cx.map(|cx| cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(Ok(())),
        })
    }

    /// Waits until a task waits for the answer.
    async fn waits(&self) {
        until(|| self.waker.lock().expect("the lock isn't poisoned").is_some()).await;
    }

    fn answers(&self, result: Result<(), &str>) {
        *self.answer.lock().expect("the lock isn't poisoned") = Some(result.map_err(str::to_owned));
        let waker = self.waker.lock().expect("the lock isn't poisoned").take();
        waker.expect("somebody waits").wake();
    }
}

/// A room whose first stream is `stuck`'s; all others take everything.
fn stuck_at_first(stuck: &Stuck) -> Stage<Bytes> {
    let (stuck, first) = (stuck.clone(), AtomicBool::new(true));
    Stage::new(move |_, _| {
        let sink = if first.swap(false, Ordering::SeqCst) { stuck.sink() } else { Valve::open().sink() };
        async move { Ok(sink) }
    })
}

/// The next end that is reported: the identity, the kind of event, the reason, and the account.
async fn end(events: &mut Events) -> (ParticipantIdentity, &'static str, EndReason, Account) {
    event(events, |event| match event {
        SessionEvent::Left { who, reason, account } => Some((who.identity.clone(), "left", *reason, *account)),
        SessionEvent::Reset { who, reason, account } => Some((who.identity.clone(), "reset", *reason, *account)),
        SessionEvent::Replaced { prior, account, .. } => {
            Some((prior.identity.clone(), "replaced", EndReason::Replaced, *account))
        }
        _ => None,
    })
    .await
}

// 1. Three messages wait for Ada, one of them in her sink. 2. She fails, vanishes, leaves or is replaced. 3. The event
// counts all three, with that reason.
#[tokio::test]
async fn an_end_event_counts_the_lost_messages() {
    let cases = [
        ("reset", EndReason::WriteFailed),
        ("left", EndReason::Vanished),
        ("left", EndReason::Disconnected),
        ("replaced", EndReason::Replaced),
    ];
    for (how, reason) in cases {
        let stuck = Stuck::default();
        let stage = stuck_at_first(&stuck);
        let session = stage.session(|builder| builder);
        let mut events = session.events();
        stage.join(presence("ada", "PA_1", 1));
        let ada = live(&session, "ada").await;
        session.broadcast(msg("one")).await.expect("the session is open");
        stuck.waits().await;
        session.broadcast(msg("two")).await.expect("the session is open");
        ada.send(msg("three")).expect("there is capacity");
        until(|| ada.stats().account.waiting() == 3).await;
        match reason {
            EndReason::WriteFailed => stuck.answers(Err("no")),
            EndReason::Vanished => stuck.answers(Err(GONE)),
            EndReason::Disconnected => stage.leave("ada", "PA_1"),
            _ => stage.join(presence("ada", "PA_2", 2)),
        }
        let (identity, told, why, account) = end(&mut events).await;
        assert_eq!((identity, told, why), (id("ada"), how, reason));
        assert_settled(&account);
        assert_eq!((account.offered, account), (3, ada.stats().account));
        let lost = match reason {
            EndReason::WriteFailed => account.dropped.write_failed,
            EndReason::Vanished => account.abandoned.vanished,
            EndReason::Disconnected => account.abandoned.disconnected,
            _ => account.abandoned.replaced,
        };
        assert_eq!(lost, 3, "{reason}");
        close_settled(&session).await;
    }
}

// 1. Ada's sink says that she is gone, while the room still lists her. 2. That isn't a reset, but she starts afresh all
// the same.
#[tokio::test]
async fn a_vanished_participant_is_not_reset_and_rejoins_if_present() {
    let stuck = Stuck::default();
    let stage = stuck_at_first(&stuck);
    let session = stage.session(|builder| builder.initial(|_| async { vec![msg("state")] }));
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    let old = live(&session, "ada").await;
    stuck.waits().await;
    stuck.answers(Err(GONE));
    let (_, told, reason, account) = end(&mut events).await;
    assert_eq!((told, reason, account.abandoned.vanished), ("left", EndReason::Vanished, 1));
    assert_eq!(within(old.closed()).await, EndReason::Vanished);
    let new = live(&session, "ada").await;
    assert_eq!((new.sid(), new == old), (old.sid(), false));
    until(|| new.stats().account.delivered == 1).await;
    until(|| session.stats().joins == 2).await;
    let stats = session.stats();
    assert_eq!((stats.resets.total(), stats.vanished, stats.failed_joins), (0, 1, 0));
    close_settled(&session).await;
}

// 1. Ada vanishes, and her room no longer lists her; its event comes late. 2. No connection is joined in her place, and
// the event finds no instance. 3. She comes back again and again, and never waits: vanishing is no fault.
#[tokio::test(start_paused = true)]
async fn a_vanished_participant_that_reconnects_does_not_wait() {
    let fails = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fails);
    let stage = Stage::<Bytes>::new(move |_, _| {
        let fails = Arc::clone(&failing);
        async move {
            Ok(StageSink::new(move |call, _| {
                let gone = matches!(call, Call::Flush) && fails.load(Ordering::SeqCst);
                Poll::Ready(if gone { Err(GONE.to_owned()) } else { Ok(()) })
            }))
        }
    });
    let session = stage.session(|builder| builder);
    let begun = Instant::now();
    for n in 1..=10 {
        let connection = format!("PA_{n}");
        stage.join(presence("ada", &connection, n));
        live(&session, "ada").await;
        stage.remove_silently("ada");
        fails.store(true, Ordering::SeqCst);
        session.broadcast(msg("x")).await.expect("the session is open");
        until(|| session.stats().vanished == n).await;
        fails.store(false, Ordering::SeqCst);
        stage.leave("ada", &connection);
        settle().await;
        assert_eq!((session.stats().participants, session.stats().joins), (0, n));
    }
    assert_eq!((begun.elapsed(), session.stats().resets.total()), (Duration::ZERO, 0));
    close_settled(&session).await;
}

/// A participant whose sink says again and again that she is gone, while the room lists her all the time, waits as
/// after resets.
#[tokio::test(start_paused = true)]
async fn a_participant_that_vanishes_while_present_waits_longer_each_time() {
    let opened = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&opened);
    let stage = Stage::<Bytes>::new(move |_, _| {
        // The clock stands still as long as any task can run: without a wait the test would never end.
        let too_often = count.fetch_add(1, Ordering::SeqCst) > 1000;
        async move {
            if too_often {
                std::future::pending::<()>().await;
            }
            Ok(StageSink::new(|call, _| {
                Poll::Ready(if matches!(call, Call::Flush) { Err(GONE.to_owned()) } else { Ok(()) })
            }))
        }
    });
    let session = stage.session(|builder| builder.initial(|_| async { vec![msg("state")] }));
    stage.join(presence("ada", "PA_1", 1));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let opened = opened.load(Ordering::SeqCst);
    assert!((25..=60).contains(&opened), "{opened} attempts in ten minutes");
    assert_eq!(session.stats().vanished, opened as u64);
    session.cancel();
    within(session.ended()).await.expect("it ends without an error");
}

// 1. The session closes, and waits for Ada. 2. She fails. 3. The fault is counted and reported, and she isn't joined
// again.
#[tokio::test]
async fn a_fault_while_the_session_closes_is_reported() {
    let stuck = Stuck::default();
    let stage = stuck_at_first(&stuck);
    let session = stage.session(|builder| builder);
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    live(&session, "ada").await;
    session.broadcast(msg("x")).await.expect("the session is open");
    stuck.waits().await;
    let closing = session.clone();
    let closing = tokio::spawn(async move { closing.close(Duration::from_secs(3_600)).await });
    settle().await;
    stuck.answers(Err("no"));
    let report = within(closing).await.expect("it doesn't panic").expect("it closes without an error");
    assert_eq!(report.account.dropped.write_failed, 1);
    let (_, told, reason, account) = end(&mut events).await;
    assert_eq!((told, reason, account.dropped.write_failed), ("reset", EndReason::WriteFailed, 1));
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Closed)));
    assert_eq!((session.stats().resets.write_failed, session.stats().joins), (1, 1));
}

/// Sixty participants are present before the session is built. A listener made on its builder gets an event for each of
/// them, on any kind of runtime.
#[test]
fn a_listener_made_on_the_builder_misses_nobody() {
    let single = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let multi = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    for runtime in [single, multi] {
        runtime.expect("a runtime").block_on(async {
            let room = MemoryRoom::<Bytes>::new();
            for n in 0..60 {
                room.insert_silently(presence(&format!("p{n}"), &format!("PA_{n}"), 1));
            }
            let mut builder = Session::builder(room);
            let mut events = builder.events();
            let session = builder.build().expect("a test's settings make sense");
            until(|| session.stats().joins == 60).await;
            let mut told = std::collections::HashSet::new();
            while told.len() < 60 {
                match within(events.next()).await {
                    Some(SessionEvent::Joined(who)) => assert!(told.insert(who.sid), "told twice"),
                    other => panic!("not expected: {other:?}"),
                }
            }
            assert_eq!(events.missed(), 0);
            close_settled(&session).await;
            assert!(matches!(within(events.next()).await, Some(SessionEvent::Closed)));
            assert!(within(events.next()).await.is_none());
        });
    }
}

/// A listener whose session is never built doesn't wait.
#[tokio::test]
async fn a_listener_of_a_session_that_is_never_built_ends() {
    let mut builder = Session::builder(MemoryRoom::<Bytes>::new());
    let mut events = builder.events();
    assert!(builder.shards(0).build().is_err());
    assert!(within(events.next()).await.is_none());
    assert!(within(events.next()).await.is_none(), "an event follows the end");
}

/// A listener that is too slow for the events at the build learns how many it missed.
#[tokio::test]
async fn a_slow_listener_made_on_the_builder_counts_what_it_missed() {
    let (stage, _streams) = Streams::<Bytes>::stage(|_| Valve::open());
    for n in 0..10 {
        stage.insert_silently(presence(&format!("p{n}"), &format!("PA_{n}"), 1));
    }
    let mut builder = Session::builder(stage).event_capacity(4);
    let mut events = builder.events();
    let session = builder.build().expect("a test's settings make sense");
    until(|| session.stats().joins == 10).await;
    for _ in 0..4 {
        assert!(matches!(within(events.next()).await, Some(SessionEvent::Joined(_))));
    }
    assert_eq!(events.missed(), 6);
    close_settled(&session).await;
}
