//! Holding publishers while most participants are behind.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use lanecast::room::memory::MemoryRoom;
use lanecast::{
    BroadcastError, BuildError, EndReason, Events, Hold, OverloadPolicy, ParticipantIdentity, Session, SessionBuilder,
    SessionEvent, SessionStats, Subscribed, SubscriptionTag, Topic, TryBroadcastError, Unsubscribed,
};
use tokio::time::{Instant, MissedTickBehavior, Sleep, advance, interval, sleep};

use crate::common::{
    Call, Stage, StageSink, Streams, Valve, close_settled, event, live, msg, presence, reset, settle, size, texts,
    until, within,
};

/// What each sink takes per second.
const PACE: u32 = 5000;

/// How far a sink's writes may lie ahead of the clock before the sink isn't ready.
const AHEAD: Duration = Duration::from_millis(10);

/// A sink that takes [`PACE`] messages a second and counts them.
fn paced(taken: Arc<AtomicU64>) -> StageSink<Bytes> {
    let mut timer: Pin<Box<Sleep>> = Box::pin(sleep(Duration::ZERO));
    // When everything that the sink has taken is written.
    let mut written = Instant::now();
    let mut wait_until = move |at: Instant, cx: &mut Context<'_>| {
        if at <= Instant::now() {
            return Poll::Ready(Ok(()));
        }
        timer.as_mut().reset(at);
        timer.as_mut().poll(cx).map(Ok)
    };
    StageSink::new(move |call, cx| match (call, cx) {
        (Call::Ready, Some(cx)) => wait_until(written - AHEAD, cx),
        (Call::Flush, Some(cx)) => wait_until(written, cx),
        (Call::Send(_), _) => {
            // A timer fires up to a millisecond late; a sink that was idle for longer saves nothing up.
            written = written.max(Instant::now() - Duration::from_millis(2)) + Duration::from_secs(1) / PACE;
            taken.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Ok(()))
        }
        _ => Poll::Ready(Ok(())),
    })
}

/// A sink that never takes anything.
fn stalled() -> StageSink<Bytes> {
    StageSink::new(|call, _| match call {
        Call::Ready | Call::Flush => Poll::Pending,
        _ => Poll::Ready(Ok(())),
    })
}

/// Paced sinks, and sinks that are stalled from the start, also after a reset.
#[derive(Clone, Copy)]
struct Scene {
    policy: OverloadPolicy,
    viewers: usize,
    stalled: usize,
    /// Messages per second; `None`: as many as the session takes.
    offered: Option<u32>,
    seconds: usize,
}

/// What became of a scene.
struct Outcome {
    /// For each second, what each of the paced sinks took, over all instances of its identity.
    taken: Vec<Vec<u64>>,
    /// For each second, how many participants were present, a few times.
    present: Vec<f64>,
    stats: SessionStats,
    /// The identities that were reset, and how often.
    resets: BTreeMap<ParticipantIdentity, usize>,
}

impl Outcome {
    /// What the slowest of the paced sinks took per second, from second `from` on.
    fn slowest(&self, from: usize) -> u64 {
        let seconds = &self.taken[from..];
        let viewers = 0..seconds[0].len();
        let per_second = |viewer: usize| seconds.iter().map(|taken| taken[viewer]).sum::<u64>() / seconds.len() as u64;
        viewers.map(per_second).min().expect("there are viewers")
    }
}

fn name(viewer: usize) -> String {
    format!("v{viewer}")
}

impl Scene {
    fn hold(viewers: usize, offered: Option<u32>, seconds: usize) -> Self {
        Self { policy: Hold::default().into(), viewers, stalled: 0, offered, seconds }
    }

    async fn run(self, set: impl FnOnce(SessionBuilder<Stage<Bytes>>) -> SessionBuilder<Stage<Bytes>>) -> Outcome {
        let counters: Arc<Vec<_>> = Arc::new((0..self.viewers).map(|_| Arc::new(AtomicU64::new(0))).collect());
        let stage = Stage::new({
            let counters = Arc::clone(&counters);
            move |presence, _| {
                let viewer: usize = presence.identity.as_str()[1..].parse().expect("it is a number");
                let sink = if viewer < self.stalled { stalled() } else { paced(Arc::clone(&counters[viewer])) };
                async move { Ok(sink) }
            }
        });
        let session = stage.session(|builder| set(builder.overload(self.policy)));
        let mut events = session.events();
        let resets: Arc<Mutex<BTreeMap<ParticipantIdentity, usize>>> = Arc::default();
        let counted = tokio::spawn({
            let resets = Arc::clone(&resets);
            async move {
                while let Some(event) = events.next().await {
                    if let SessionEvent::Reset { who, .. } = event {
                        *resets.lock().expect("nothing panics").entry(who.identity).or_default() += 1;
                    }
                }
            }
        });
        for viewer in 0..self.viewers {
            stage.join(presence(&name(viewer), &format!("PA_{viewer}"), 1));
        }
        until(|| session.stats().participants == self.viewers).await;
        settle().await;
        let publisher = tokio::spawn(publish(session.clone(), self.offered));
        let mut outcome =
            Outcome { taken: Vec::new(), present: Vec::new(), stats: session.stats(), resets: BTreeMap::new() };
        let mut before = vec![0; self.viewers - self.stalled];
        for _ in 0..self.seconds {
            let mut present = 0;
            for _ in 0..20 {
                sleep(Duration::from_millis(50)).await;
                present += session.stats().participants;
            }
            let now: Vec<u64> = counters[self.stalled..].iter().map(|taken| taken.load(Ordering::Relaxed)).collect();
            outcome.taken.push(now.iter().zip(&before).map(|(now, before)| now - before).collect());
            outcome.present.push(present as f64 / 20.0);
            before = now;
        }
        outcome.stats = session.stats();
        publisher.abort();
        session.cancel();
        counted.await.expect("it doesn't panic");
        outcome.resets = resets.lock().expect("nothing panics").clone();
        outcome
    }
}

async fn publish(session: Session<Stage<Bytes>>, offered: Option<u32>) {
    let mut clock = interval(Duration::from_millis(1));
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        match offered {
            Some(per_second) => {
                clock.tick().await;
                for _ in 0..per_second / 1000 {
                    session.broadcast(msg("reading")).await.expect("the session is open");
                }
            }
            None => session.broadcast(msg("reading")).await.expect("the session is open"),
        }
    }
}

/// A queue that a publisher at 6,000 a second half fills in one second.
fn small(builder: SessionBuilder<Stage<Bytes>>) -> SessionBuilder<Stage<Bytes>> {
    builder.queue_capacity(2048).log_capacity(512).shards(2)
}

// The clock is paused: it moves when nothing can run, so the sinks take exactly their pace, however slow the machine.
#[tokio::test(start_paused = true)]
async fn a_publisher_that_is_too_fast_is_slowed_to_the_pace_of_the_participants() {
    let (viewers, seconds) = (size(20, 100), size(4, 20));
    for offered in [Some(6000), Some(10_000), None] {
        let outcome = Scene::hold(viewers, offered, seconds).run(small).await;
        assert!(outcome.resets.is_empty(), "nobody is reset at {offered:?}: {:?}", outcome.resets);
        assert!(outcome.slowest(0) >= 4500, "each gets its pace at {offered:?}: {}", outcome.slowest(0));
        assert!(outcome.stats.publisher_holds > 0, "at {offered:?}");
        assert!(outcome.stats.publishers_held_for > Duration::ZERO, "at {offered:?}");
    }
}

// A minority that has stalled is reset, again and again, and the others keep their pace: also if the minority is as
// large as can be, so that two of the others make it a majority.
#[tokio::test(start_paused = true)]
async fn a_minority_that_has_stalled_is_reset_and_costs_the_others_nothing() {
    let (viewers, seconds) = (size(20, 100), size(4, 20));
    let none = Scene::hold(viewers, Some(6000), seconds).run(small).await.slowest(1);
    for stalled in [1, viewers / 10, viewers / 2 - 1] {
        let scene = Scene { stalled, ..Scene::hold(viewers, Some(6000), seconds) };
        let outcome = scene.run(small).await;
        assert!(outcome.resets.keys().all(|who| who.as_str()[1..].parse::<usize>().is_ok_and(|who| who < stalled)));
        assert_eq!(outcome.resets.len(), stalled, "each that has stalled is reset");
        assert!(outcome.slowest(1) * 10 >= none * 9, "{stalled} stalled: {} of {none}", outcome.slowest(1));
    }
}

/// Three participants whose flushes don't complete, and one that keeps up. Publishers are held while three of four, or
/// three of five, have eight messages waiting.
struct Held {
    session: Session<Stage<Bytes>>,
    stage: Stage<Bytes>,
    streams: Streams<Bytes>,
    events: Events,
}

/// The participants whose streams are shut, at first.
const SHUT: [&str; 3] = ["shut0", "shut1", "shut2"];

impl Held {
    async fn new(hold: Hold) -> Self {
        let (stage, streams) =
            Streams::stage(|to| if to.identity.as_str().starts_with("shut") { Valve::shut() } else { Valve::open() });
        let session = stage.session(|builder| {
            let builder = builder.queue_capacity(16).log_capacity(4).overload(hold);
            builder.initial(|_| async { vec![msg("state")] })
        });
        let events = session.events();
        for who in SHUT.into_iter().chain(["quick"]) {
            stage.join(presence(who, &format!("PA_{who}"), 1));
            live(&session, who).await;
        }
        for who in SHUT {
            streams.nth(who, 0).await.wait_for(|seen| seen.taken.len() == 1).await;
        }
        Self { session, stage, streams, events }
    }

    /// Publishes until publishers are held.
    async fn hold(&mut self) {
        for text in texts("m", 8) {
            assert!(!self.session.stats().publishers_held);
            within(self.session.broadcast(msg(text))).await.expect("the session is open");
            settle().await;
        }
        assert!(self.session.stats().publishers_held);
        event(&mut self.events, |event| matches!(event, SessionEvent::PublishersHeld).then_some(())).await;
    }

    fn is_full(&self) -> bool {
        matches!(self.session.try_broadcast(msg("late")), Err(TryBroadcastError::Full(back)) if back == "late")
    }
}

fn of_four() -> Hold {
    Hold::default().at_least(4).patience(Duration::from_secs(3600))
}

// 1. Three of four are behind, and publishers are held. 2. A direct message arrives, a newcomer gets its initial
// messages, and subscriptions begin and end. 3. One of the three catches up: the publisher that has waited goes on, and
// the newcomer has it behind its initial messages. 4. The release is reported once no publisher has been held for a
// second, and the hold counts.
#[tokio::test(start_paused = true)]
async fn direct_messages_joins_and_subscriptions_go_on_while_publishers_are_held() {
    let mut held = Held::new(of_four()).await;
    held.hold().await;
    assert!(held.is_full());
    let waiting = tokio::spawn({
        let session = held.session.clone();
        async move { session.broadcast(msg("late")).await }
    });
    settle().await;
    let quick = live(&held.session, "quick").await;
    quick.send(msg("direct")).expect("its queue is empty");
    held.streams.nth("quick", 0).await.wait_for(|seen| seen.flushed.last().is_some_and(|m| m == "direct")).await;
    held.stage.join(presence("newcomer", "PA_newcomer", 1));
    let newcomer = live(&held.session, "newcomer").await;
    let stream = held.streams.nth("newcomer", 0).await;
    stream.wait_for(|seen| seen.flushed == ["state"]).await;
    let topic = Topic::new();
    assert_eq!(within(newcomer.subscribe(&topic, SubscriptionTag(1))).await, Subscribed::New);
    assert_eq!(within(newcomer.unsubscribe(&topic)).await, Unsubscribed::Removed);
    advance(Duration::from_millis(1500)).await;
    assert!(held.is_full() && !waiting.is_finished());

    held.streams.nth(SHUT[0], 0).await.release();
    within(waiting).await.expect("it doesn't panic").expect("the session is open");
    stream.wait_for(|seen| seen.flushed == ["state", "late"]).await;
    let begun = Instant::now();
    let released = |event: &SessionEvent| match event {
        SessionEvent::PublishersHeld => panic!("it is reported once"),
        SessionEvent::PublishersReleased => Some(()),
        _ => None,
    };
    event(&mut held.events, released).await;
    assert!(begun.elapsed() >= Duration::from_millis(990), "{:?}", begun.elapsed());
    let stats = held.session.stats();
    assert_eq!((stats.publishers_held, stats.publisher_holds, stats.resets.total()), (false, 1, 0));
    assert!(stats.publishers_held_for >= Duration::from_millis(1500), "{:?}", stats.publishers_held_for);
    held.session.cancel();
}

// 1. Publishers are held, and one waits. 2. The session closes: the publisher gets its message back. 3. The streams
// complete their flushes, and everything that was accepted is delivered.
#[tokio::test]
async fn the_close_goes_on_while_publishers_are_held() {
    let mut held = Held::new(of_four()).await;
    held.hold().await;
    let waiting = tokio::spawn({
        let session = held.session.clone();
        async move { session.broadcast(msg("late")).await }
    });
    settle().await;
    let closing = tokio::spawn({
        let session = held.session.clone();
        async move { session.close(Duration::from_secs(30)).await }
    });
    let refused = within(waiting).await.expect("it doesn't panic");
    assert!(matches!(refused, Err(BroadcastError::Closed(back)) if back == "late"));
    for who in SHUT {
        held.streams.nth(who, 0).await.release();
    }
    let report = within(closing).await.expect("it doesn't panic").expect("it closes without an error");
    assert_eq!((report.account.delivered, report.account.offered), (36, 36), "eight to each, and a state");
}

// 1. Publishers are held by three that make no progress. 2. After the patience, and before any write has timed out,
// publishers go on, and the three overflow and are reset. 3. The fourth has had everything.
#[tokio::test(start_paused = true)]
async fn a_majority_that_makes_no_progress_is_reset_after_the_patience() {
    let mut held = Held::new(Hold::default().at_least(4)).await;
    held.hold().await;
    let begun = Instant::now();
    let expected = texts("n", 9);
    for text in &expected {
        within(held.session.broadcast(msg(text.clone()))).await.expect("the session is open");
        let waited = begun.elapsed();
        assert!((Duration::from_secs(2)..Duration::from_millis(2600)).contains(&waited), "{waited:?}");
        settle().await;
    }
    for _ in SHUT {
        assert_eq!(reset(&mut held.events).await, EndReason::Overflow);
    }
    let quick = held.streams.nth("quick", 0).await;
    quick.wait_for(|seen| seen.flushed.len() == 18).await;
    assert!(quick.lock().flushed[9..] == expected);
    assert_eq!(held.session.stats().resets.total(), 3);
    held.session.cancel();
}

// 1. The patience has passed. 2. One of the three completes a flush of its initial message: publishers are held again.
// 3. The patience passes again.
#[tokio::test(start_paused = true)]
async fn progress_after_the_patience_holds_publishers_again() {
    let mut held = Held::new(Hold::default().at_least(4)).await;
    held.hold().await;
    within(held.session.broadcast(msg("n"))).await.expect("the session is open");
    settle().await;
    assert_eq!((held.session.stats().publishers_held, held.session.stats().publisher_holds), (false, 1));
    let begun = Instant::now();
    held.streams.nth(SHUT[0], 0).await.let_through(1);
    until(|| held.session.stats().publishers_held).await;
    assert!(held.is_full());
    within(held.session.broadcast(msg("n"))).await.expect("the session is open");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(held.session.stats().publisher_holds, 2);
    held.session.cancel();
}

// A limit that three eighths don't divide: of thirteen, five are more than three eighths, and four are less.
#[tokio::test(start_paused = true)]
async fn a_participant_is_heavy_until_less_than_three_eighths_of_its_bound_are_taken() {
    let (stage, streams) = Streams::stage(|_| Valve::shut().with_room(1));
    let hold = Hold::default().at_least(1).patience(Duration::from_secs(3600));
    let session = stage.session(|builder| builder.queue_capacity(13).log_capacity(3).overload(hold));
    stage.join(presence("shut", "PA_shut", 1));
    live(&session, "shut").await;
    for text in texts("m", 7) {
        assert!(!session.stats().publishers_held);
        within(session.broadcast(msg(text))).await.expect("the session is open");
        settle().await;
    }
    let stream = streams.nth("shut", 0).await;
    for waiting in [6, 5] {
        stream.let_through(1);
        settle().await;
        assert!(session.stats().publishers_held, "with {waiting} of 13 messages waiting");
    }
    stream.let_through(1);
    settle().await;
    assert!(!session.stats().publishers_held, "with 4 of 13 messages waiting");
    session.cancel();
}

// 1. Seven of seven are behind. 2. No publisher is held: they overflow.
#[tokio::test]
async fn a_session_with_few_participants_holds_nobody() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.queue_capacity(16).log_capacity(4).overload(Hold::default()));
    let mut events = session.events();
    for viewer in 0..7 {
        stage.join(presence(&name(viewer), &format!("PA_{viewer}"), 1));
        live(&session, &name(viewer)).await;
    }
    for text in texts("m", 17) {
        session.broadcast(msg(text)).await.expect("the session is open");
        settle().await;
    }
    for _ in 0..7 {
        assert_eq!(reset(&mut events).await, EndReason::Overflow);
    }
    assert_eq!(session.stats().publisher_holds, 0);
    drop(streams);
    session.cancel();
}

// While no shard runs, an eighth of the bytes that may wait for a participant stands in the log, or one longer message.
#[tokio::test]
async fn the_log_is_bounded_in_bytes_if_publishers_may_be_held() {
    let (stage, streams) = Streams::stage(|_| Valve::open());
    let session = stage.session(|builder| builder.queue_bytes(800).overload(Hold::default()));
    stage.join(presence("ada", "PA_1", 1));
    live(&session, "ada").await;
    let sized = |bytes: usize| msg("x".repeat(bytes));
    let full = |bytes: usize| matches!(session.try_broadcast(sized(bytes)), Err(TryBroadcastError::Full(_)));
    for bytes in [60, 30] {
        session.try_broadcast(sized(bytes)).expect("the log has capacity");
    }
    assert!(full(11));
    session.try_broadcast(sized(10)).expect("a hundred bytes fit");
    assert!(full(1));
    // A longer one waits until it is alone, and the one behind it until it has gone.
    let (long, behind) =
        within(async { tokio::join!(session.broadcast(sized(700)), session.broadcast(sized(1))) }).await;
    assert!(long.is_ok() && behind.is_ok());
    let lengths = |seen: &crate::common::State<Bytes>| seen.flushed.iter().map(Bytes::len).collect::<Vec<_>>();
    streams.nth("ada", 0).await.wait_for(|seen| lengths(seen) == [60, 30, 10, 700, 1]).await;
    close_settled(&session).await;
}

#[tokio::test]
async fn settings_that_do_not_fit_a_hold_are_refused() {
    let refused = |set: fn(SessionBuilder<MemoryRoom<Bytes>>) -> SessionBuilder<MemoryRoom<Bytes>>| match set(
        Session::builder(MemoryRoom::new()),
    )
    .build()
    {
        Err(BuildError::InvalidSetting { setting, .. }) => setting,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(|builder| builder.overload(Hold::default().share_percent(0))), "hold.share_percent");
    assert_eq!(refused(|builder| builder.overload(Hold::default().share_percent(100))), "hold.share_percent");
    assert_eq!(refused(|builder| builder.overload(Hold::default().at_least(0))), "hold.at_least");
    assert_eq!(refused(|builder| builder.overload(Hold::default().patience(Duration::ZERO))), "hold.patience");
    assert_eq!(refused(|builder| builder.log_capacity(4097).overload(Hold::default())), "log_capacity");
    let session = Session::builder(MemoryRoom::<Bytes>::new()).log_capacity(4096).overload(Hold::default()).build();
    session.expect("a quarter of the queue capacity fits").cancel();
    let session = Session::builder(MemoryRoom::<Bytes>::new()).log_capacity(4097).overload(OverloadPolicy::Reset);
    session.build().expect("nobody is held").cancel();
}

/// Prints what becomes of 100 sinks of 5,000 messages a second each, in real time: the table in perf/README.md.
#[test]
fn figures_of_an_overload() {
    if size(0, 1) == 0 {
        return eprintln!("left out: it needs LANECAST_TEST_SIZE=full");
    }
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    println!("policy | offered | stalled | per sink in the first second; later, slowest to fastest | present | resets");
    let hold = OverloadPolicy::Hold(Hold::default());
    for (policy, stalled) in [(OverloadPolicy::Reset, 0), (hold, 0), (hold, 1), (hold, 10), (hold, 49)] {
        for offered in [Some(6000), Some(10_000), None] {
            let scene = Scene { policy, viewers: 100, stalled, offered, seconds: 10 };
            let set = |builder: SessionBuilder<_>| builder.queue_capacity(4096);
            let outcome = runtime().expect("a runtime").block_on(scene.run(set));
            let mean = |taken: &[u64]| taken.iter().sum::<u64>() / taken.len() as u64;
            let later: Vec<_> = outcome.taken[1..].iter().map(|taken| mean(taken)).collect();
            let present = outcome.present[1..].iter().sum::<f64>() / (outcome.present.len() - 1) as f64;
            let offered = offered.map_or("no limit".into(), |offered| offered.to_string());
            println!(
                "{} | {offered} | {stalled} | {}; {} to {}, slowest sink {} | {present:.0} | {} of {}",
                if policy == OverloadPolicy::Reset { "Reset" } else { "Hold" },
                mean(&outcome.taken[0]),
                later.iter().min().expect("ten seconds"),
                later.iter().max().expect("ten seconds"),
                outcome.slowest(1),
                outcome.resets.values().sum::<usize>(),
                outcome.resets.len(),
            );
        }
    }
}
