//! The control queue: what `try_send` and `send` return, and the state they leave behind.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use lanecast::room::memory::Behavior;
use lanecast::{EndReason, SendError, SessionEvent, TrySendError};

use crate::common::{
    self, Streams, Valve, as_text, assert_settled, assert_waiting, close_settled, id, joined, live, memory, msg,
    presence, reset, settle, sid, size, texts, until, within,
};

#[tokio::test]
async fn a_full_queue_returns_the_message_and_changes_nothing() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.queue_capacity(4));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    // 1. Four messages wait.
    for text in ["a", "b", "c", "d"] {
        ada.try_send(msg(text)).expect("four fit");
    }
    settle().await;
    // 2. The fifth is returned, however often it is tried.
    for _ in 0..3 {
        assert!(matches!(ada.try_send(msg("e")), Err(TrySendError::Full(back)) if back == "e"));
    }
    assert_eq!(ada.end_reason(), None);
    assert_eq!(session.stats().resets.total(), 0);
    assert_eq!(ada.stats().account.offered, 4, "a returned message was never offered");
    assert_waiting(&ada.stats().account, 4);
    // 3. One flush frees the capacity.
    let valve = streams.nth("ada", 0).await;
    valve.release();
    valve.wait_for(|seen| seen.flushed.len() == 4).await;
    until(|| ada.stats().account.waiting() == 0).await;
    ada.try_send(msg("e")).expect("the queue has capacity again");
    valve.wait_for(|seen| seen.flushed == ["a", "b", "c", "d", "e"]).await;
}

#[tokio::test]
async fn messages_in_the_sink_count_until_they_are_flushed() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.queue_capacity(2));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let valve = streams.nth("ada", 0).await;
    ada.try_send(msg("a")).expect("two fit");
    valve.wait_for(|seen| seen.taken.len() == 1).await;
    ada.try_send(msg("b")).expect("two fit");
    settle().await;
    assert!(matches!(ada.try_send(msg("c")), Err(TrySendError::Full(_))), "one is in the sink, one behind it");
    valve.let_through(1);
    valve.wait_for(|seen| seen.flushed.len() == 1).await;
    settle().await;
    ada.try_send(msg("c")).expect("the flush freed a place");
}

#[tokio::test]
async fn a_send_to_a_closed_participant_is_counted_and_resets_nobody() {
    let (room, session) = memory(|builder| builder);
    let ada = joined(&room, &session, "ada").await;
    let mut events = session.events();
    room.leave(&id("ada"), &sid("PA_ada")).await.expect("the session listens");
    assert_eq!(within(ada.closed()).await, EndReason::Disconnected);
    assert!(matches!(ada.try_send(msg("a")), Err(TrySendError::Closed(back)) if back == "a"));
    assert!(matches!(ada.send(msg("b")), Err(SendError::Closed)));
    assert_eq!(ada.stats().account.dropped.closed, 2);
    assert_settled(&ada.stats().account);
    settle().await;
    assert_eq!(session.stats().resets.total(), 0);
    // Only its departure is reported, no reset.
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Left { .. })));
    let account = close_settled(&session).await;
    assert_eq!(account.dropped.closed, 2);
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Closed)));
}

// 1. The queue is full and its sink stuck. 2. Eight threads send at the same time. 3. Each learns of the overflow or of
// the end; the participant is reset once, and every message is counted once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overflow_by_many_senders_resets_once() {
    for _ in 0..size(20, 500) {
        let (room, session) = memory(|builder| builder.queue_capacity(2));
        let recorder = room.recorder(&id("ada"));
        recorder.set_behavior(Behavior::Stall { capacity: 0 });
        let ada = joined(&room, &session, "ada").await;
        let mut events = session.events();
        let start = Arc::new(Barrier::new(8));
        let senders: Vec<_> = (0..8)
            .map(|_| {
                let (ada, start) = (ada.clone(), Arc::clone(&start));
                std::thread::spawn(move || {
                    start.wait();
                    let answers = [ada.send(msg("x")), ada.send(msg("y"))];
                    answers.iter().filter(|answer| answer.is_ok()).count()
                })
            })
            .collect();
        let queued: usize = senders.into_iter().map(|sender| sender.join().expect("no sender panics")).sum();
        assert_eq!(queued, 2, "two fit, and nothing was flushed");
        assert_eq!(reset(&mut events).await, EndReason::Overflow);
        assert_eq!(within(ada.closed()).await, EndReason::Overflow);
        until(|| session.participant(&id("ada")).is_some()).await;
        assert_eq!(session.stats().resets.overflow, 1);
        assert_eq!(ada.stats().account.offered, 16);
        assert_settled(&ada.stats().account);
        let account = close_settled(&session).await;
        assert_eq!(account.dropped.total(), 16);
        while let Ok(Some(event)) = within(async { Ok::<_, ()>(events.next().await) }).await {
            match event {
                SessionEvent::Reset { .. } => panic!("a second reset"),
                SessionEvent::Closed => break,
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes_too() {
    let (stage, _streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.queue_bytes(10));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    assert!(matches!(ada.try_send(msg("elevenbytes")), Err(TrySendError::TooLarge(back)) if back == "elevenbytes"));
    assert!(matches!(ada.send(msg("elevenbytes")), Err(SendError::TooLarge(_))));
    assert_eq!(ada.end_reason(), None, "a message no queue could hold resets nobody");
    assert_eq!(ada.stats().account.offered, 0);
    ada.try_send(msg("sixsix")).expect("six of ten");
    assert!(matches!(ada.try_send(msg("five5")), Err(TrySendError::Full(_))));
    ada.try_send(msg("four")).expect("ten of ten");
    assert!(matches!(ada.try_send(msg("1")), Err(TrySendError::Full(_))));
    ada.try_send(msg("")).expect("an empty message takes no bytes");
}

/// Four threads send as fast as the queue takes it, to one participant that keeps up: all messages of each thread
/// arrive in order, none of them twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_senders_lose_nothing() {
    let each = size(2_000, 50_000);
    let (room, session) = memory(|builder| builder.queue_capacity(64));
    let ada = joined(&room, &session, "ada").await;
    let senders: Vec<_> = (0..4)
        .map(|thread| {
            let ada = ada.clone();
            std::thread::spawn(move || {
                let patience = Instant::now() + common::PATIENCE;
                for text in texts(&format!("{thread}:"), each) {
                    let mut message = msg(text);
                    while let Err(error) = ada.try_send(message) {
                        assert!(matches!(error, TrySendError::Full(_)), "it keeps up: {error:?}");
                        assert!(Instant::now() < patience, "the queue never emptied: a lost wake-up");
                        message = error.into_message();
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let recorder = room.recorder(&id("ada"));
    let all = within(recorder.wait_for(|all| all[0].messages.len() == 4 * each)).await;
    senders.into_iter().for_each(|sender| sender.join().expect("no sender panics"));
    let received = as_text(&all[0]);
    for thread in 0..4 {
        let prefix = format!("{thread}:");
        let own: Vec<_> = received.iter().filter(|text| text.starts_with(&prefix)).cloned().collect();
        assert_eq!(own, texts(&prefix, each));
    }
    let account = close_settled(&session).await;
    assert_eq!(account.delivered, 4 * each as u64);
}
