//! At full load: newcomers while the log is full, bursts, many concurrent joins, and the time after a peak.

mod common;

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{
    Call, Stage, StageSink, Streams, Valve, as_text, close_settled, event, id, joined, live, memory, msg, presence,
    receives, settle, size, texts, until, within,
};
use lanecast::room::memory::MemoryRoom;
use lanecast::{
    EndReason, JoinError, Participant, Session, SessionEvent, SubscriptionTag, Topic, TrySendError, WeakSession,
};
use tokio::sync::Semaphore;

/// How many bytes a message of two bytes counts as while it gathers for a newcomer.
const GATHERS_AS: u64 = 64 + 2;

// 1. A newcomer's initial messages are being computed; one broadcast has gathered for it. 2. Just before they are
// ready, as much is broadcast as the log holds, and its shard gets as many commands as its channel holds. 3. The
// newcomer begins before its shard has read any of that: only what gathered before counts against a joiner's bound.
#[tokio::test]
async fn a_newcomer_begins_before_a_full_log_is_read() {
    for commands in [0, 1_024] {
        let weak: Arc<OnceLock<WeakSession<Stage<Bytes>>>> = Arc::default();
        let inside = Arc::clone(&weak);
        let (stage, streams) = Streams::stage(|_| Valve::open());
        let session = stage.session(|builder| {
            let builder = builder.shards(1).log_capacity(8).joining_bytes(2 * GATHERS_AS);
            builder.initial(move |ada: Participant<Bytes>| {
                let session = inside.get().and_then(WeakSession::upgrade).expect("it is there before anybody joins");
                async move {
                    session.broadcast(msg("e0")).await.expect("the session is open");
                    until(|| session.stats().shard_lag == 0).await;
                    for text in texts("m", 8) {
                        session.try_broadcast(msg(text)).expect("the log has capacity");
                    }
                    for _ in 0..commands {
                        ask_to_subscribe(&ada).await;
                    }
                    vec![msg("state")]
                }
            })
        });
        assert!(weak.set(session.downgrade()).is_ok());
        stage.join(presence("ada", "PA_1", 1));
        let ada = live(&session, "ada").await;
        let valve = streams.nth("ada", 0).await;
        until(|| ada.end_reason().is_some() || valve.lock().flushed.len() == 10).await;
        assert_eq!(ada.end_reason(), None, "it keeps up, with {commands} commands before it");
        assert_eq!(session.stats().failed_joins, 0);
        let expected: Vec<_> = ["state", "e0"].into_iter().map(String::from).chain(texts("m", 8)).collect();
        assert!(valve.lock().flushed == expected);
        close_settled(&session).await;
    }
}

/// Gives its shard a command that waits for a position of the log, and doesn't wait for the answer.
async fn ask_to_subscribe(participant: &Participant<Bytes>) {
    let topic = Topic::new();
    // Tokio's budget would make the channel look full after a hundred or so.
    let mut asked = pin!(tokio::task::unconstrained(participant.subscribe(&topic, SubscriptionTag(0))));
    poll_fn(|cx| {
        assert!(asked.as_mut().poll(cx).is_pending(), "the shard hasn't run meanwhile");
        Poll::Ready(())
    })
    .await;
}

// 1. The closure for a newcomer's initial messages takes nearly all of its time-out. 2. Meanwhile 5,000 messages a
// second are broadcast. 3. The first attempt succeeds, with everything from its position on.
#[tokio::test(start_paused = true)]
async fn initial_messages_may_take_the_whole_time_out_at_5000_messages_a_second() {
    let (started, mut starting) = tokio::sync::mpsc::unbounded_channel();
    let (room, session) = memory(|builder| {
        builder.initial(move |_| {
            started.send(()).expect("the test listens");
            async {
                tokio::time::sleep(Duration::from_millis(4_900)).await;
                vec![msg("state")]
            }
        })
    });
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    within(starting.recv()).await.expect("the closure is running");
    let messages = texts("m", 24_500);
    for ten_milliseconds in messages.chunks(50) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        for text in ten_milliseconds {
            session.broadcast(msg(text.clone())).await.expect("the session is open");
        }
    }
    let recorder = room.recorder(&id("ada"));
    let all = within(recorder.wait_for(|all| all[0].closed || all[0].messages.len() > messages.len())).await;
    assert_eq!(session.stats().failed_joins, 0);
    let received = as_text(&all[0]);
    assert_eq!(received[0], "state");
    assert!(received[1..] == messages);
    assert_eq!(close_settled(&session).await.delivered, 24_501);
}

// 1. Ten broadcasts gather for a newcomer; four messages may wait for a participant. 2. The newcomer begins, with a
// sink that takes nothing yet: four more broadcasts may wait, and direct messages count with them. 3. After delivery
// the whole bound is available again.
#[tokio::test]
async fn gathered_messages_do_not_count_against_the_queue_bound() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| {
        builder.queue_capacity(4).queue_bytes(8).initial(move |_| {
            let held = Arc::clone(&held);
            async move {
                held.acquire().await.expect("it is never closed").forget();
                vec![msg("state")]
            }
        })
    });
    stage.join(presence("ada", "PA_1", 1));
    let valve = streams.nth("ada", 0).await;
    settle().await;
    let mut expected = vec!["state".to_owned()];
    for text in texts("g", 10) {
        session.broadcast(msg(text.clone())).await.expect("the session is open");
        expected.push(text);
    }
    until(|| session.stats().shard_lag == 0).await;
    gate.add_permits(1);
    let ada = live(&session, "ada").await;
    for text in texts("m", 3) {
        session.broadcast(msg(text.clone())).await.expect("the session is open");
        expected.push(text);
    }
    until(|| ada.stats().account.waiting() == 14).await;
    assert_eq!(session.stats().half_full, 1);
    ada.try_send(msg("d0")).expect("a fourth may wait");
    expected.push("d0".to_owned());
    assert!(matches!(ada.try_send(msg("d1")), Err(TrySendError::Full(_))));
    while valve.lock().flushed.len() < expected.len() {
        valve.let_through(1);
        settle().await;
        assert_eq!(ada.end_reason(), None);
    }
    assert!(valve.lock().flushed == expected);
    until(|| ada.stats().account.waiting() == 0).await;
    for text in texts("d", 4) {
        ada.try_send(msg(text)).expect("nothing waits, so four may");
    }
    assert!(matches!(ada.try_send(msg("d5")), Err(TrySendError::Full(_))));
}

// 1. A closure never ends, and more is broadcast than may gather meanwhile. 2. The attempt fails and is reported with
// its reason, the closure's future is dropped, and nobody is reset. 3. The next attempt waits for its back-off, and
// succeeds.
#[tokio::test(start_paused = true)]
async fn an_outpaced_join_is_reported_and_retried() {
    struct Dropped(Arc<AtomicBool>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (attempts, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, noted) = (Arc::clone(&attempts), Arc::clone(&dropped));
    let (room, session) = memory(|builder| {
        let builder = builder.joining_bytes(4 * GATHERS_AS).open_timeout(Duration::from_secs(3_600));
        builder.reset_backoff(Duration::from_secs(8), Duration::from_secs(60)).initial(move |_| {
            let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            let dropped = Dropped(Arc::clone(&noted));
            async move {
                if is_first {
                    std::future::pending::<()>().await;
                }
                drop(dropped);
                vec![msg("state")]
            }
        })
    });
    let mut events = session.events();
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    until(|| attempts.load(Ordering::SeqCst) == 1).await;
    for text in texts("m", 4) {
        session.broadcast(msg(text)).await.expect("the session is open");
    }
    settle().await;
    assert!(!dropped.load(Ordering::SeqCst), "four may gather");
    session.broadcast(msg("m4")).await.expect("the session is open");
    let (error, at) = match within(events.next()).await {
        Some(SessionEvent::JoinFailed { error, .. }) => (error, tokio::time::Instant::now()),
        other => panic!("not expected: {other:?}"),
    };
    let age = Duration::from_secs(7_200);
    assert!(
        matches!(error, JoinError::Outpaced { bytes, age: limit } if bytes == 4 * GATHERS_AS && limit == age),
        "{error:?}"
    );
    assert!(dropped.load(Ordering::SeqCst));
    let next = event(&mut events, |event| match event {
        SessionEvent::Joined(_) => Some("joined"),
        SessionEvent::Reset { .. } => Some("reset"),
        _ => None,
    });
    assert_eq!(next.await, "joined");
    assert!(at.elapsed() >= Duration::from_secs(4), "less up to half at random");
    receives(&room, "ada", &["state"]).await;
    let account = close_settled(&session).await;
    assert_eq!((account.dropped.overflow, account.delivered), (5, 1));
}

// 1. A closure blocks its thread, so no time-out ends it. 2. The messages gathered for its newcomer are dropped once
// the first of them has waited for twice the time-out, though they are few.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn messages_gathered_for_a_blocked_closure_are_dropped() {
    let (unblock, blocked) = mpsc::channel();
    let blocked = Mutex::new(Some(blocked));
    let (started, mut starting) = tokio::sync::mpsc::unbounded_channel();
    let (room, session) = memory(|builder| {
        builder.open_timeout(Duration::from_millis(20)).initial(move |participant| {
            let blocked = blocked.lock().expect("the lock isn't poisoned").take();
            started.send(participant).expect("the test listens");
            async move {
                if let Some(blocked) = blocked {
                    // The thread's other tasks go on elsewhere.
                    tokio::task::block_in_place(|| blocked.recv()).expect("the test unblocks it");
                }
                vec![msg("state")]
            }
        })
    });
    let mut events = session.events();
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    let first = within(starting.recv()).await.expect("the closure is running");
    within(async {
        while first.end_reason().is_none() {
            session.broadcast(msg("m")).await.expect("the session is open");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    unblock.send(()).expect("the closure waits for it");
    let error = event(&mut events, |event| match event {
        SessionEvent::JoinFailed { error, .. } => Some(error.clone()),
        _ => None,
    });
    let error = error.await;
    assert!(matches!(error, JoinError::Outpaced { age, .. } if age == Duration::from_millis(40)), "{error:?}");
    live(&session, "ada").await;
    close_settled(&session).await;
}

// 1. A publisher of 4,000 messages a second pauses for 300 ms, and sends what it has missed in one burst, while a
// viewer's sink is busy. 2. The viewer isn't reset, and not for another eight seconds at an ordinary robot's 1,820
// messages a second. 3. With half of its bound taken it is counted in `half_full`, until its sink goes on.
#[tokio::test]
async fn a_busy_viewer_survives_bursts_and_steady_load() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder);
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let valve = streams.nth("ada", 0).await;
    let messages = texts("m", 8 * 1_820);
    let (burst, seconds) = messages.split_at(1_200);
    for text in burst {
        session.broadcast(msg(text.clone())).await.expect("the session is open");
    }
    until(|| ada.stats().account.waiting() == 1_200).await;
    assert_eq!((ada.end_reason(), session.stats().half_full), (None, 0));
    for text in seconds {
        session.broadcast(msg(text.clone())).await.expect("the session is open");
    }
    until(|| ada.stats().account.waiting() == messages.len() as u64).await;
    assert_eq!((ada.end_reason(), session.stats().half_full), (None, 1));
    valve.release();
    until(|| ada.stats().account.waiting() == 0).await;
    assert_eq!(session.stats().half_full, 0);
    assert!(valve.lock().flushed == messages);
    close_settled(&session).await;
}

// 1. Many join at once, in a session of four shards: each shard gets a quarter. 2. All leave, and as many join again:
// each shard still gets a quarter.
#[tokio::test]
async fn concurrent_joins_are_spread_over_the_shards() {
    type Carriers = Arc<Mutex<HashMap<tokio::task::Id, usize>>>;
    let carriers: Carriers = Arc::default();
    let seen = Arc::clone(&carriers);
    let stage = Stage::<Bytes>::new(move |_, _| {
        let seen = Arc::clone(&seen);
        let sink = StageSink::new(move |call, _| {
            if matches!(call, Call::Send(_)) {
                // A sink is polled by its shard's task, which this id names.
                *seen.lock().expect("the lock isn't poisoned").entry(tokio::task::id()).or_default() += 1;
            }
            Poll::Ready(Ok(()))
        });
        async { Ok(sink) }
    });
    let session = stage.session(|builder| builder.shards(4).initial(|_| async { vec![msg("state")] }));
    for round in 0..2 {
        carriers.lock().expect("the lock isn't poisoned").clear();
        for n in 0..64 {
            stage.join(presence(&format!("p{n}"), &format!("PA_{round}_{n}"), 1));
        }
        until(|| session.stats().account.delivered == 64 * (round + 1)).await;
        let mut shares: Vec<_> = carriers.lock().expect("the lock isn't poisoned").values().copied().collect();
        shares.sort_unstable();
        assert_eq!(shares, [16; 4], "in round {round}");
        for participant in session.participants() {
            stage.leave(participant.identity().as_str(), participant.sid().as_str());
            within(participant.closed()).await;
        }
    }
    close_settled(&session).await;
}

/// One of two sessions has had a peak of participants, of which the last one stays. A broadcast to it costs the same as
/// one to the only participant of the other session. Measured in turns, the best of many, so that a busy machine slows
/// both.
#[tokio::test]
async fn after_a_peak_a_broadcast_costs_no_more_than_without_one() {
    let peak = size(4_000, 40_000);
    let calm = alone_after(0).await;
    let after = alone_after(peak).await;
    let mut best = [Duration::MAX; 2];
    for _ in 0..500 {
        for (best, (session, stays)) in best.iter_mut().zip([&calm, &after]) {
            let delivered = stays.stats().account.delivered;
            let begun = Instant::now();
            session.try_broadcast(msg("x")).expect("the log has capacity");
            until(|| stays.stats().account.delivered > delivered).await;
            *best = (*best).min(begun.elapsed());
        }
    }
    let [calm_takes, after_takes] = best;
    println!("a broadcast to one takes {calm_takes:?}, after a peak of {peak} participants {after_takes:?}");
    assert!(after_takes < 2 * calm_takes, "{after_takes:?} after a peak of {peak}, {calm_takes:?} without");
}

/// A session with one participant, the last to join at a peak of `peak` others, all of which have left.
async fn alone_after(peak: usize) -> (Session<MemoryRoom<Bytes>>, Participant<Bytes>) {
    let (room, session) = memory(|builder| builder.shards(1));
    for n in 0..peak {
        room.join(presence(&format!("v{n}"), &format!("PA_{n}"), 1)).await.expect("the session listens");
    }
    let mut leaving = Vec::new();
    for n in 0..peak {
        leaving.push(live(&session, &format!("v{n}")).await);
    }
    let stays = joined(&room, &session, "stays").await;
    for participant in &leaving {
        room.leave(participant.identity(), participant.sid()).await.expect("the session listens");
    }
    for participant in leaving {
        assert_eq!(within(participant.closed()).await, EndReason::Disconnected);
    }
    (session, stays)
}
