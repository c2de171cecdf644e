//! Broadcasts: they wait for the machine and never for a participant, and reach every participant once and in order.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use lanecast::{BroadcastError, Session, SessionBuilder, TryBroadcastError};

use crate::common::{
    self, Stage, State, Streams, Trap, Valve, close_settled, id, joined, live, memory, msg, presence, receives, settle,
    size, texts, until, within,
};

// 1. One participant's sink is stuck in a write. 2. Many times the log's capacity is broadcast. 3. The other
// participant receives everything while the first is still stuck. 4. Once released, the first receives the same
// messages in the same order.
#[tokio::test]
async fn a_stalled_participant_delays_nobody_else() {
    let count = 500;
    let (stage, streams) = Streams::stage(|to| if to.identity == id("stuck") { Valve::shut() } else { Valve::open() });
    let session = stage.session(|builder| builder.log_capacity(8));
    stage.join(presence("stuck", "PA_1", 1));
    stage.join(presence("quick", "PA_2", 1));
    let stuck = live(&session, "stuck").await;
    live(&session, "quick").await;
    let expected = texts("m", count);
    for text in &expected {
        within(session.broadcast(msg(text.clone()))).await.expect("the session is open");
    }
    let quick = streams.nth("quick", 0).await;
    quick.wait_for(|seen| seen.flushed.len() == count).await;
    assert!(quick.lock().flushed == expected);
    let valve = streams.nth("stuck", 0).await;
    assert_eq!(valve.lock().flushed.len(), 0);
    assert_eq!(stuck.stats().account.waiting(), count as u64);
    valve.release();
    valve.wait_for(|seen| seen.flushed.len() == count).await;
    assert!(valve.lock().flushed == expected);
    assert_eq!(close_settled(&session).await.delivered, 2 * count as u64);
}

/// The sink behaves like a socket whose peer reads in another task of the same thread: it takes what it is given, and
/// becomes writable again only after the shard has let the reactor run.
#[tokio::test]
async fn a_burst_longer_than_the_queue_resets_nobody_who_keeps_up() {
    burst(|builder| builder.queue_capacity(16).log_capacity(16)).await;
}

/// The same with the byte limit: the log holds four times as many bytes as may wait for a participant.
#[tokio::test]
async fn a_burst_heavier_than_the_queue_resets_nobody_who_keeps_up() {
    burst(|builder| builder.queue_bytes(16 * "m0000".len() as u64).log_capacity(64)).await;
}

async fn burst(setup: impl FnOnce(SessionBuilder<Stage<Bytes>>) -> SessionBuilder<Stage<Bytes>>) {
    let count = 16 * 64;
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(setup);
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let valve = streams.nth("ada", 0).await;
    let peer = tokio::spawn({
        let valve = valve.clone();
        async move {
            loop {
                valve.wait_for(State::is_stuck).await;
                valve.let_through(1);
            }
        }
    });
    let expected: Vec<_> = (0..count).map(|n| msg(format!("m{n:04}"))).collect();
    for message in &expected {
        within(session.broadcast(message.clone())).await.expect("the session is open");
    }
    valve.wait_for(|seen| seen.flushed.len() == count || seen.dropped).await;
    peer.abort();
    assert_eq!(session.stats().resets.total(), 0, "it kept up");
    assert_eq!(ada.end_reason(), None);
    assert!(valve.lock().flushed == expected);
}

/// The same with a publisher and shards on threads of their own, and sinks that are always writable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_from_another_thread_resets_nobody_who_keeps_up() {
    let count = size(5_000, 200_000);
    let (room, session) = memory(|builder| builder.queue_capacity(32).log_capacity(16));
    for name in ["ada", "bob", "cyd"] {
        joined(&room, &session, name).await;
    }
    let expected = texts("m", count);
    for text in &expected {
        within(session.broadcast(msg(text.clone()))).await.expect("the session is open");
    }
    for name in ["ada", "bob", "cyd"] {
        let recorder = room.recorder(&id(name));
        let all = within(recorder.wait_for(|all| all[0].messages.len() == count)).await;
        assert!(all[0].messages == expected);
    }
    assert_eq!(session.stats().resets.total(), 0);
}

/// On one thread no shard runs between two calls, so the log fills up at its capacity.
#[tokio::test]
async fn try_broadcast_returns_the_message_when_the_log_is_full() {
    let (room, session) = memory(|builder| builder.log_capacity(4));
    joined(&room, &session, "ada").await;
    for text in ["a", "b", "c", "d"] {
        session.try_broadcast(msg(text)).expect("four fit");
    }
    assert!(matches!(session.try_broadcast(msg("e")), Err(TryBroadcastError::Full(back)) if back == "e"));
    assert_eq!(session.stats().shard_lag, 4);
    receives(&room, "ada", &["a", "b", "c", "d"]).await;
    session.try_broadcast(msg("e")).expect("the shard has read them");
    receives(&room, "ada", &["a", "b", "c", "d", "e"]).await;
    assert_eq!(session.stats().shard_lag, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn try_broadcast_works_from_a_thread_outside_the_runtime() {
    let (room, session) = memory(|builder| builder);
    joined(&room, &session, "ada").await;
    let outside = std::thread::spawn({
        let session = session.clone();
        move || session.try_broadcast(msg("from outside"))
    });
    outside.join().expect("it doesn't panic").expect("the log is empty");
    receives(&room, "ada", &["from outside"]).await;
}

// 1. The log is full. 2. A broadcast begins to wait. 3. Its future is dropped. 4. Nothing of it arrives, and the next
// publisher isn't held up by it.
#[tokio::test]
async fn a_dropped_broadcast_sends_nothing() {
    let (room, session) = memory(|builder| builder.log_capacity(2));
    joined(&room, &session, "ada").await;
    session.try_broadcast(msg("a")).expect("two fit");
    session.try_broadcast(msg("b")).expect("two fit");
    let mut waiting = Box::pin(session.broadcast(msg("never sent")));
    let mut behind = Box::pin(session.broadcast(msg("c")));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(waiting.as_mut().poll(&mut cx).is_pending());
    assert!(behind.as_mut().poll(&mut cx).is_pending());
    drop(waiting);
    within(behind).await.expect("the session is open");
    within(session.broadcast(msg("d"))).await.expect("the session is open");
    receives(&room, "ada", &["a", "b", "c", "d"]).await;
    assert_eq!(close_settled(&session).await.offered, 4);
}

#[tokio::test]
async fn a_batch_is_several_messages_and_one_flush() {
    let (stage, streams) = Streams::stage(|_| Valve::open());
    let session = stage.session(|builder| builder.queue_capacity(32));
    stage.join(presence("ada", "PA_1", 1));
    live(&session, "ada").await;
    settle().await;
    for text in texts("m", 20) {
        session.try_broadcast(msg(text)).expect("the log has capacity");
    }
    let valve = streams.nth("ada", 0).await;
    valve.wait_for(|seen| seen.flushed.len() == 20).await;
    // The shard hands on a quarter of the capacity at a time.
    assert_eq!(valve.lock().batches, [8, 8, 4]);
}

/// The bursts are small and the shard sleeps in between: what it has read before must not split a burst into two
/// flushes.
#[tokio::test]
async fn a_burst_after_a_sleep_is_flushed_at_once() {
    let (stage, streams) = Streams::stage(|_| Valve::open());
    let session = stage.session(|builder| builder.queue_capacity(32).shards(1));
    stage.join(presence("ada", "PA_1", 1));
    live(&session, "ada").await;
    let valve = streams.nth("ada", 0).await;
    for _ in 0..10 {
        settle().await;
        for text in texts("m", 5) {
            session.try_broadcast(msg(text)).expect("the log has capacity");
        }
    }
    valve.wait_for(|seen| seen.flushed.len() == 50).await;
    assert_eq!(valve.lock().batches, [5; 10]);
}

#[tokio::test]
async fn the_payload_is_shared_by_all() {
    let (room, session) = memory(|builder| builder.shards(2));
    for name in ["ada", "bob"] {
        joined(&room, &session, name).await;
    }
    let payload = msg("one allocation");
    session.broadcast(payload.clone()).await.expect("the session is open");
    for name in ["ada", "bob"] {
        receives(&room, name, &["one allocation"]).await;
        assert_eq!(room.recorder(&id(name)).received()[0].messages[0].as_ptr(), payload.as_ptr());
    }
}

/// The publisher's call makes one copy per further shard, whatever the number of participants.
#[tokio::test]
async fn publishing_costs_the_same_for_one_participant_and_for_a_hundred() {
    let alive = Arc::new(AtomicUsize::new(0));
    let (stage, streams) = Streams::<Trap>::stage(|_| Valve::open());
    let session = stage.session(|builder| builder.shards(2));
    for count in [1, 100] {
        for n in session.stats().participants..count {
            stage.join(presence(&format!("p{n}"), &format!("PA_{n}"), 1));
        }
        until(|| session.stats().participants == count).await;
        let before = alive.load(Ordering::SeqCst);
        session.try_broadcast(Trap::new(0, &alive)).expect("the log has capacity");
        assert_eq!(alive.load(Ordering::SeqCst) - before, 2, "the copies the log holds, with {count} participants");
        until(|| session.stats().account.waiting() == 0 && session.stats().shard_lag == 0).await;
    }
    until(|| session.stats().account.delivered == 101).await;
    // A message lives until the last shard has handed it on, not until its slot in the log is reused.
    for n in 0..100 {
        streams.nth(&format!("p{n}"), 0).await.lock().flushed.clear();
    }
    assert_eq!(alive.load(Ordering::SeqCst), 0, "a copy is kept somewhere");
}

#[tokio::test]
async fn a_message_larger_than_any_queue_is_refused() {
    let (_room, session) = memory(|builder| builder.queue_bytes(4));
    let too_large = session.broadcast(msg("fives")).await;
    assert!(matches!(too_large, Err(BroadcastError::TooLarge(back)) if back == "fives"));
    assert!(matches!(session.try_broadcast(msg("fives")), Err(TryBroadcastError::TooLarge(_))));
    session.try_broadcast(msg("four")).expect("it fits");
}

/// Every round sends one message and waits until it has arrived, so the shard goes to sleep each time while the next
/// message is on its way. A lost wake-up makes the test hang.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost() {
    let rounds = size(3_000, 200_000);
    let arrived = Arc::new(AtomicUsize::new(0));
    let (stage, _streams) = counting_stage(&arrived);
    let session = stage.session(|builder| builder);
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let (answer, asked) = mpsc::channel();
    let publisher = std::thread::spawn({
        let (session, arrived) = (session.clone(), Arc::clone(&arrived));
        move || {
            for round in 0..rounds {
                if round % 2 == 0 {
                    session.try_broadcast(msg("x")).expect("the log is empty");
                } else {
                    ada.try_send(msg("y")).expect("the queue is empty");
                }
                let begun = std::time::Instant::now();
                while arrived.load(Ordering::Acquire) <= round {
                    if begun.elapsed() > common::PATIENCE / 2 {
                        return Err(round);
                    }
                    std::hint::spin_loop();
                }
            }
            answer.send(()).map_err(|_| rounds)
        }
    });
    within(async { until(|| publisher.is_finished()).await }).await;
    publisher.join().expect("it doesn't panic").expect("a wake-up was lost in this round");
    asked.recv().expect("it went to its end");
}

fn counting_stage(arrived: &Arc<AtomicUsize>) -> (common::Stage<bytes::Bytes>, Arc<AtomicBool>) {
    let arrived = Arc::clone(arrived);
    let dropped = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&dropped);
    let stage = common::Stage::new(move |_, _| {
        let (arrived, noted) = (Arc::clone(&arrived), Arc::clone(&noted));
        let sink = common::StageSink::new(move |call, _| {
            match call {
                common::Call::Send(_) => drop(arrived.fetch_add(1, Ordering::AcqRel)),
                common::Call::Drop => noted.store(true, Ordering::Release),
                _ => {}
            }
            Poll::Ready(Ok(()))
        });
        async move { Ok(sink) }
    });
    (stage, dropped)
}

/// Publishers on several tasks, shards on several threads, a tiny log: every message reaches every participant, each
/// publisher's messages in their order, and all participants see the same order, the log's.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn all_participants_see_the_same_order() {
    let each = size(500, 20_000);
    let (room, session) = memory(|builder| builder.shards(3).log_capacity(4));
    let names: Vec<_> = (0..6).map(|n| format!("p{n}")).collect();
    for name in &names {
        joined(&room, &session, name).await;
    }
    let publishers: Vec<_> = (0..4)
        .map(|publisher| {
            let session: Session<_> = session.clone();
            tokio::spawn(async move {
                for text in texts(&format!("{publisher}:"), each) {
                    session.broadcast(msg(text)).await.expect("the session is open");
                }
            })
        })
        .collect();
    for publisher in publishers {
        within(publisher).await.expect("no publisher panics");
    }
    let mut received = Vec::new();
    for name in &names {
        let all = within(room.recorder(&id(name)).wait_for(|all| all[0].messages.len() == 4 * each)).await;
        received.push(all[0].messages.clone());
    }
    assert!(received.iter().all(|one| *one == received[0]), "two participants saw different orders");
    for publisher in 0..4 {
        let prefix = format!("{publisher}:");
        let own: Vec<_> = received[0].iter().filter(|text| text.starts_with(prefix.as_bytes())).cloned().collect();
        assert!(own == texts(&prefix, each), "publisher {publisher}'s order");
    }
}

/// A backlog is handed on by a quarter of the capacity at a time, like new messages. The reactor runs in between.
#[tokio::test]
async fn a_backlog_is_handed_on_by_quarters_of_the_capacity() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.queue_capacity(32).shards(1));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let valve = streams.nth("ada", 0).await;
    for (n, text) in texts("m", 24).into_iter().enumerate() {
        session.broadcast(msg(text)).await.expect("the session is open");
        until(|| ada.stats().account.waiting() == n as u64 + 1).await;
    }
    valve.release();
    valve.wait_for(|seen| seen.flushed.len() == 24).await;
    let batches = valve.lock().batches.clone();
    assert!(batches.iter().all(|batch| *batch <= 8), "{batches:?}");
}
