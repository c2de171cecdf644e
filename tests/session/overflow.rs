//! Overflow: a participant whose backlog exceeds the bound is torn down at once, only once, and alone.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use bytes::Bytes;
use lanecast::{EndReason, Participant, SendError, SessionEvent, SubscriptionTag, Topic};

use crate::common::{
    Call, Stage, StageSink, State, Streams, Valve, assert_settled, close_settled, event, id, live, msg, presence,
    reset, settle, texts, until, within,
};

fn stuck_once() -> impl Fn(&lanecast::room::Presence) -> Valve<Bytes> + Send + Sync {
    let first = AtomicBool::new(true);
    move |to| {
        let is_first = to.identity == id("slow") && first.swap(false, Ordering::SeqCst);
        if is_first { Valve::shut() } else { Valve::open() }
    }
}

// 1. Slow's sink is in the middle of a write that doesn't end. 2. As much waits as may: nothing happens. 3. With one
// more message the sink is dropped without another poll, everything undelivered is counted, and Slow is reset only
// once. 4. The other participant has everything, once. 5. Slow comes back under the same sid as another instance.
#[tokio::test]
async fn overflow_in_mid_write_resets_only_the_slow_participant() {
    let (stage, streams) = Streams::stage(stuck_once());
    let session = stage.session(|builder| builder.queue_capacity(8).initial(|_| async { vec![msg("state")] }));
    let mut events = session.events();
    stage.join(presence("slow", "PA_1", 1));
    stage.join(presence("quick", "PA_2", 1));
    let slow = live(&session, "slow").await;
    live(&session, "quick").await;
    let valve = streams.nth("slow", 0).await;
    valve.wait_for(|seen| seen.taken.len() == 1 && seen.flushes_tried > 0).await;
    let tried = valve.lock().flushes_tried;

    let expected = texts("m", 9);
    for text in &expected[..8] {
        session.broadcast(msg(text.clone())).await.expect("the session is open");
    }
    settle().await;
    assert_eq!(slow.end_reason(), None, "eight may wait");
    assert_eq!(slow.stats().account.waiting(), 9, "and the initial message doesn't count");

    session.broadcast(msg(expected[8].clone())).await.expect("the session is open");
    assert_eq!(reset(&mut events).await, EndReason::Overflow);
    assert_eq!(within(slow.closed()).await, EndReason::Overflow);
    assert!(valve.lock().dropped);
    assert_eq!(valve.lock().flushes_tried, tried, "a sink that is being torn down isn't polled");
    let account = slow.stats().account;
    assert_eq!((account.delivered, account.dropped.overflow), (0, 10));
    assert_settled(&account);

    let quick = streams.nth("quick", 0).await;
    quick.wait_for(|seen| seen.flushed.len() == 10).await;
    assert_eq!(quick.lock().flushed[0], "state");
    assert!(quick.lock().flushed[1..] == expected);

    let again = live(&session, "slow").await;
    assert_eq!(again.sid(), slow.sid());
    assert_ne!(again.client_id(), slow.client_id());
    streams.nth("slow", 1).await.wait_for(|seen| seen.flushed == ["state"]).await;
    settle().await;
    assert_eq!(session.stats().resets.total(), 1);
    assert_eq!(streams.count("slow"), 2);
    close_settled(&session).await;
}

/// The bound counts both lanes, topics included: with three kinds of messages in turn the fifth is one too many.
#[tokio::test]
async fn the_bound_counts_both_lanes_together() {
    for fatal in 0..3 {
        let (stage, streams) = Streams::stage(stuck_once());
        let session = stage.session(|builder| builder.queue_capacity(4));
        let mut events = session.events();
        stage.join(presence("slow", "PA_1", 1));
        let slow = live(&session, "slow").await;
        let topic = Topic::new();
        slow.subscribe(&topic, SubscriptionTag(0)).await;
        session.broadcast(msg("1")).await.expect("the session is open");
        streams.nth("slow", 0).await.wait_for(|seen| seen.taken.len() == 1).await;
        slow.try_send(msg("2")).expect("there is capacity");
        session.broadcast_to(&topic, msg("3")).await.expect("the session is open");
        session.broadcast(msg("4")).await.expect("the session is open");
        settle().await;
        assert_eq!(slow.end_reason(), None, "four may wait");
        assert!(slow.try_send(msg("no room")).is_err());
        match fatal {
            0 => session.broadcast(msg("5")).await.expect("the session is open"),
            1 => session.broadcast_to(&topic, msg("5")).await.expect("the session is open"),
            _ => assert!(matches!(slow.send(msg("5")), Err(SendError::Overflow))),
        }
        assert_eq!(reset(&mut events).await, EndReason::Overflow);
        assert_eq!(slow.stats().account.dropped.overflow, 5);
        assert_settled(&slow.stats().account);
        assert_eq!(close_settled(&session).await.dropped.overflow, 5);
    }
}

/// Five bytes may wait; the sixth is one too many, by whichever lane.
#[tokio::test]
async fn the_bound_counts_bytes() {
    for direct in [false, true] {
        let (stage, streams) = Streams::stage(stuck_once());
        let session = stage.session(|builder| builder.queue_bytes(5));
        let mut events = session.events();
        stage.join(presence("slow", "PA_1", 1));
        let slow = live(&session, "slow").await;
        session.broadcast(msg("123")).await.expect("the session is open");
        streams.nth("slow", 0).await.wait_for(|seen| seen.taken.len() == 1).await;
        session.broadcast(msg("45")).await.expect("the session is open");
        settle().await;
        assert_eq!(slow.end_reason(), None);
        if direct {
            assert!(matches!(slow.send(msg("6")), Err(SendError::Overflow)));
        } else {
            session.broadcast(msg("6")).await.expect("the session is open");
        }
        assert_eq!(reset(&mut events).await, EndReason::Overflow);
        close_settled(&session).await;
    }
}

/// A completed flush frees its share of the bound, so a participant may take any number of messages, one bound after
/// the other.
#[tokio::test]
async fn delivered_messages_free_capacity() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.queue_capacity(4).queue_bytes(8));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let valve = streams.nth("ada", 0).await;
    for round in 1..=100 {
        for n in 0..4 {
            if (round + n) % 2 == 0 {
                session.broadcast(msg("bb")).await.expect("the session is open");
            } else {
                ada.send(msg("dd")).expect("there is capacity");
            }
        }
        while valve.lock().flushed.len() < 4 * round {
            valve.let_through(1);
            tokio::task::yield_now().await;
            assert_eq!(ada.end_reason(), None, "in round {round}");
        }
    }
    until(|| ada.stats().account.waiting() == 0).await;
    assert_eq!(session.stats().resets.total(), 0);
}

// 1. Slow overflows, and broadcasts go on before the event loop has run. 2. Slow is still reset only once.
#[tokio::test]
async fn an_overflowed_participant_is_reset_once() {
    let (stage, streams) = Streams::stage(stuck_once());
    let session = stage.session(|builder| builder.queue_capacity(2));
    let mut events = session.events();
    stage.join(presence("slow", "PA_1", 1));
    let slow = live(&session, "slow").await;
    for text in texts("m", 30) {
        session.try_broadcast(msg(text)).expect("the log has capacity");
        let _ = slow.send(msg("direct"));
    }
    assert_eq!(reset(&mut events).await, EndReason::Overflow);
    live(&session, "slow").await;
    session.broadcast(msg("after")).await.expect("the session is open");
    streams.nth("slow", 1).await.wait_for(|seen| seen.flushed.last().is_some_and(|m| m == "after")).await;
    assert_eq!(session.stats().resets.overflow, 1);
    assert_settled(&slow.stats().account);
    close_settled(&session).await;
    let end = event(&mut events, |event| match event {
        SessionEvent::Reset { .. } => Some("reset"),
        SessionEvent::Closed => Some("closed"),
        _ => None,
    });
    assert_eq!(end.await, "closed");
}

/// A hundred participants are stuck and overflow by the same broadcast, another hundred aren't: all of the first are
/// reset, each once, and none of the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_overflows_reset_only_the_stuck_participants() {
    let (stage, streams) =
        Streams::stage(|to| if to.identity.as_str().starts_with("slow") { Valve::shut() } else { Valve::open() });
    let session = stage.session(|builder| builder.queue_capacity(8).shards(2).event_capacity(4_096));
    let mut events = session.events();
    for n in 0..100 {
        stage.join(presence(&format!("slow{n}"), &format!("PA_s{n}"), 1));
        stage.join(presence(&format!("quick{n}"), &format!("PA_q{n}"), 1));
    }
    until(|| session.stats().participants == 200).await;
    let before: Vec<_> = session.participants();
    let expected = texts("m", 9);
    for text in &expected {
        session.broadcast(msg(text.clone())).await.expect("the session is open");
    }
    let mut clients = std::collections::HashSet::new();
    while clients.len() < 100 {
        let client = event(&mut events, |event| match event {
            SessionEvent::Reset { who, reason: EndReason::Overflow, .. } => Some(who.client_id),
            SessionEvent::Reset { who, reason, .. } => panic!("{who:?} was reset: {reason}"),
            _ => None,
        });
        assert!(clients.insert(client.await), "reset twice");
    }
    for n in 0..100 {
        let valve = streams.nth(&format!("quick{n}"), 0).await;
        valve.wait_for(|seen| seen.flushed.len() == 9).await;
        assert!(valve.lock().flushed == expected);
        assert_eq!(streams.count(&format!("quick{n}")), 1);
    }
    until(|| session.participants().len() == 200).await;
    for participant in before.iter().filter(|participant| participant.identity().as_str().starts_with("slow")) {
        assert_eq!(within(participant.closed()).await, EndReason::Overflow);
        assert_settled(&participant.stats().account);
    }
    assert_eq!(session.stats().resets.overflow, 100);
}

// 1. Ada's sink is always ready. 2. Direct messages and broadcasts come in one burst: together more than may wait, each
// kind alone no more than that. 3. She keeps up, so nothing waits for her: she gets them all.
#[tokio::test]
async fn a_burst_over_both_lanes_resets_nobody_who_keeps_up() {
    for (directs, broadcasts, capacity) in
        [(600, 600, 1024), (1024, 1, 1024), (3, 2, 4), (5, 5, 8), (1, 1, 1), (1, 1, 2)]
    {
        let (stage, streams) = Streams::stage(|_| Valve::open());
        let session = stage.session(|builder| builder.shards(1).queue_capacity(capacity));
        stage.join(presence("ada", "PA_1", 1));
        let ada = live(&session, "ada").await;
        settle().await;
        for text in texts("direct", directs) {
            ada.try_send(msg(text)).expect("no more than may wait");
        }
        for text in texts("broadcast", broadcasts) {
            session.try_broadcast(msg(text)).expect("the log has capacity");
        }
        let all = directs + broadcasts;
        until(|| ada.end_reason().is_some() || ada.stats().account.delivered == all as u64).await;
        assert_eq!(ada.end_reason(), None, "{directs} and {broadcasts} of {capacity}");
        assert_eq!(streams.nth("ada", 0).await.lock().flushed.len(), all);
    }
}

/// A sink that completes a flush once the reactor has run keeps up with messages of any length up to the bound.
#[tokio::test]
async fn large_messages_wait_until_the_reactor_has_run() {
    for (lengths, bound) in [(&[100, 1][..], 100), (&[1, 100], 100), (&[40, 40, 40, 100, 1, 100], 100)] {
        let stage = after_the_reactor();
        let session = stage.session(|builder| builder.shards(1).queue_bytes(bound));
        stage.join(presence("ada", "PA_1", 1));
        let ada = live(&session, "ada").await;
        settle().await;
        for length in lengths {
            session.try_broadcast(vec![0; *length].into()).expect("the log has capacity");
        }
        until(|| ada.end_reason().is_some() || ada.stats().account.delivered == lengths.len() as u64).await;
        assert_eq!(ada.end_reason(), None, "{lengths:?} of {bound}");
    }
}

/// A room whose sinks complete a flush when the runtime has run another task in between.
fn after_the_reactor() -> Stage<Bytes> {
    Stage::new(|_, _| {
        let written = Arc::new(AtomicBool::new(false));
        let mut holds = false;
        let sink = StageSink::new(move |call, cx| {
            match call {
                Call::Send(_) => holds = true,
                Call::Flush if holds && !written.swap(false, Ordering::SeqCst) => {
                    let (waker, written) = (cx.expect("a flush has one").waker().clone(), Arc::clone(&written));
                    tokio::spawn(async move {
                        written.store(true, Ordering::SeqCst);
                        waker.wake();
                    });
                    return Poll::Pending;
                }
                Call::Flush => holds = false,
                Call::Ready | Call::Close | Call::Drop => {}
            }
            Poll::Ready(Ok(()))
        });
        async { Ok(sink) }
    })
}

// 1. Six broadcasts wait for Ada. 2. Her sink wakes up, and as it takes the first of them she overflows, by direct
// sends. 3. Nothing more goes into her sink, as she has ended.
#[tokio::test]
async fn an_end_in_mid_visit_stops_the_visit() {
    let ada: Arc<Mutex<Option<Participant<Bytes>>>> = Arc::default();
    let waker: Arc<Mutex<Option<Waker>>> = Arc::default();
    let taken = Arc::new(AtomicUsize::new(0));
    let (herself, kept, count) = (Arc::clone(&ada), Arc::clone(&waker), Arc::clone(&taken));
    let stage = Stage::<Bytes>::new(move |_, _| {
        let (herself, kept, count) = (Arc::clone(&herself), Arc::clone(&kept), Arc::clone(&count));
        let sink = StageSink::new(move |call, cx| {
            let now = herself.lock().expect("the lock isn't poisoned").clone();
            match (call, now) {
                (Call::Ready | Call::Flush, None) => {
                    *kept.lock().expect("the lock isn't poisoned") = cx.map(|cx| cx.waker().clone());
                    return Poll::Pending;
                }
                (Call::Send(_), Some(ada)) => {
                    count.fetch_add(1, Ordering::SeqCst);
                    while ada.send(msg("x")).is_ok() {}
                }
                _ => {}
            }
            Poll::Ready(Ok(()))
        });
        async { Ok(sink) }
    });
    let session = stage.session(|builder| builder.queue_capacity(32));
    stage.join(presence("ada", "PA_1", 1));
    let instance = live(&session, "ada").await;
    for text in texts("m", 6) {
        session.broadcast(msg(text)).await.expect("the session is open");
    }
    until(|| instance.stats().account.waiting() == 6).await;
    *ada.lock().expect("the lock isn't poisoned") = Some(instance.clone());
    waker.lock().expect("the lock isn't poisoned").take().expect("it was polled").wake();
    assert_eq!(within(instance.closed()).await, EndReason::Overflow);
    assert_eq!(taken.load(Ordering::SeqCst), 1);
    *ada.lock().expect("the lock isn't poisoned") = None;
}

// 1. Bob is in mid-write. 2. A broadcast comes, and his sink wakes up. 3. In the same walk, before Bob's visit, Ada's
// sink makes him overflow. 4. His sink isn't polled again.
#[tokio::test]
async fn a_participant_that_ends_before_its_visit_is_not_polled() {
    let victim: Arc<Mutex<Option<Participant<Bytes>>>> = Arc::default();
    let valve = Valve::<Bytes>::shut();
    let (bob, his) = (Arc::clone(&victim), valve.clone());
    let stage = Stage::<Bytes>::new(move |to, _| {
        let bob = Arc::clone(&bob);
        let sink = if to.identity == id("bob") {
            his.sink()
        } else {
            StageSink::new(move |call, _| {
                let bob = bob.lock().expect("the lock isn't poisoned").take_if(|_| matches!(call, Call::Send(_)));
                while bob.as_ref().is_some_and(|bob| bob.send(msg("x")).is_ok()) {}
                Poll::Ready(Ok(()))
            })
        };
        async { Ok(sink) }
    });
    let session = stage.session(|builder| builder.queue_capacity(8).shards(1));
    stage.join(presence("ada", "PA_1", 1));
    live(&session, "ada").await;
    stage.join(presence("bob", "PA_2", 1));
    let bob = live(&session, "bob").await;
    session.broadcast(msg("one")).await.expect("the session is open");
    valve.wait_for(State::is_stuck).await;
    let tried = valve.lock().flushes_tried;
    *victim.lock().expect("the lock isn't poisoned") = Some(bob.clone());
    session.try_broadcast(msg("two")).expect("the log has capacity");
    valve.let_through(1);
    assert_eq!(within(bob.closed()).await, EndReason::Overflow);
    assert_eq!(valve.lock().flushes_tried, tried, "polled after its end");
}

/// The same by bytes: a large broadcast behind a queue that is nearly full of small messages.
#[tokio::test]
async fn a_heavy_burst_over_both_lanes_resets_nobody_who_keeps_up() {
    let cases: [(&[usize], &[usize]); 4] =
        [(&[1; 30], &[100]), (&[1; 100], &[50]), (&[20; 5], &[30, 70]), (&[100], &[100, 1, 100])];
    for (directs, broadcasts) in cases {
        let (stage, _) = Streams::<Bytes>::stage(|_| Valve::open());
        let session = stage.session(|builder| builder.shards(1).queue_bytes(100));
        stage.join(presence("ada", "PA_1", 1));
        let ada = live(&session, "ada").await;
        settle().await;
        for length in directs {
            ada.try_send(vec![0; *length].into()).expect("no more than may wait");
        }
        for length in broadcasts {
            session.try_broadcast(vec![0; *length].into()).expect("the log has capacity");
        }
        let all = (directs.len() + broadcasts.len()) as u64;
        until(|| ada.end_reason().is_some() || ada.stats().account.delivered == all).await;
        assert_eq!(ada.end_reason(), None, "{directs:?} and {broadcasts:?}");
        close_settled(&session).await;
    }
}
