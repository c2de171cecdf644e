//! The uplink: while it is stalled publishers wait, in their order, and no write times out.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use lanecast::room::RoomEvent;
use lanecast::{BroadcastError, EndReason, SessionEvent, TryBroadcastError};
use tokio::time::{Instant, advance};

use crate::common::{
    Streams, Valve, close_settled, joined, live, memory, msg, presence, receives, reset, settle, until, within,
};

// 1. The uplink stalls. 2. Three publishers begin to wait, one after the other; `try_broadcast` finds the log full. 3.
// The uplink flows. 4. The publishers are served in the order in which they came, and `try_broadcast` in between
// doesn't overtake them.
#[tokio::test]
async fn waiting_publishers_are_served_in_order() {
    let (room, session) = memory(|builder| builder);
    joined(&room, &session, "ada").await;
    let mut events = session.events();
    room.emit(RoomEvent::UplinkStalled).await.expect("the session listens");
    assert!(matches!(within(events.next()).await, Some(SessionEvent::UplinkStalled)));
    assert!(session.stats().uplink_stalled);
    let mut cx = Context::from_waker(Waker::noop());
    let mut waiting: Vec<_> = ["a", "b", "c"].map(|text| Box::pin(session.broadcast(msg(text)))).into();
    for publisher in &mut waiting {
        assert!(publisher.as_mut().poll(&mut cx).is_pending());
    }
    assert!(matches!(session.try_broadcast(msg("x")), Err(TryBroadcastError::Full(back)) if back == "x"));
    room.emit(RoomEvent::UplinkFlowing).await.expect("the session listens");
    assert!(matches!(within(events.next()).await, Some(SessionEvent::UplinkFlowing)));
    // The log has capacity, and the waiting publishers still come first.
    assert!(matches!(session.try_broadcast(msg("x")), Err(TryBroadcastError::Full(_))), "it overtook a publisher");
    let mut newcomer = Box::pin(session.broadcast(msg("d")));
    assert!(newcomer.as_mut().poll(&mut cx).is_pending(), "it overtook a publisher");
    // The first publisher is served; those behind it still come first, even before they have been polled again.
    let (mut a, b, c) = {
        let mut waiting = waiting.into_iter();
        (waiting.next().expect("three"), waiting.next().expect("three"), waiting.next().expect("three"))
    };
    assert!(matches!(a.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
    assert!(matches!(session.try_broadcast(msg("x")), Err(TryBroadcastError::Full(_))), "it overtook a publisher");
    // Polled in the wrong order, they are served in the right one.
    let (d, c, b) = within(async { tokio::join!(newcomer, c, b) }).await;
    assert!([b, c, d].iter().all(Result::is_ok));
    session.try_broadcast(msg("e")).expect("nobody waits any more");
    receives(&room, "ada", &["a", "b", "c", "d", "e"]).await;
}

// 1. The first waiting publisher gives up. 2. The others aren't held up by it, and its message isn't sent.
#[tokio::test]
async fn a_publisher_that_gives_up_holds_nobody_up() {
    let (room, session) = memory(|builder| builder);
    joined(&room, &session, "ada").await;
    room.emit(RoomEvent::UplinkStalled).await.expect("the session listens");
    until(|| session.stats().uplink_stalled).await;
    let mut cx = Context::from_waker(Waker::noop());
    let mut first = Box::pin(session.broadcast(msg("given up")));
    assert!(first.as_mut().poll(&mut cx).is_pending());
    let second = tokio::spawn({
        let session = session.clone();
        async move { session.broadcast(msg("b")).await }
    });
    settle().await;
    drop(first);
    settle().await;
    room.emit(RoomEvent::UplinkFlowing).await.expect("the session listens");
    within(second).await.expect("it doesn't panic").expect("the session is open");
    receives(&room, "ada", &["b"]).await;
}

/// A publisher that waits while the session closes gets its message back.
#[tokio::test]
async fn closing_returns_the_messages_of_waiting_publishers() {
    let (room, session) = memory(|builder| builder);
    joined(&room, &session, "ada").await;
    room.emit(RoomEvent::UplinkStalled).await.expect("the session listens");
    until(|| session.stats().uplink_stalled).await;
    let publishers: Vec<_> = (0..5)
        .map(|n| {
            let session = session.clone();
            tokio::spawn(async move { session.broadcast(msg(format!("m{n}"))).await })
        })
        .collect();
    settle().await;
    close_settled(&session).await;
    for (n, publisher) in publishers.into_iter().enumerate() {
        match within(publisher).await.expect("it doesn't panic") {
            Err(BroadcastError::Closed(back)) => assert_eq!(back, format!("m{n}")),
            other => panic!("not expected: {other:?}"),
        }
    }
}

// 1. A write is under way. 2. The uplink stalls for many times the write time-out: nobody is reset. 3. It flows again:
// the whole time-out runs from then on.
#[tokio::test(start_paused = true)]
async fn write_time_outs_pause_while_the_uplink_is_stalled() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let long = Duration::from_secs(1000);
    let session = stage.session(|builder| builder.write_timeout(Duration::from_secs(16)).uplink_patience(long));
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    session.broadcast(msg("x")).await.expect("the session is open");
    streams.nth("ada", 0).await.wait_for(|seen| seen.taken.len() == 1).await;
    stage.emit(RoomEvent::UplinkStalled);
    until(|| session.stats().uplink_stalled).await;
    for _ in 0..100 {
        advance(Duration::from_secs(2)).await;
        settle().await;
        assert_eq!(ada.end_reason(), None);
    }
    stage.emit(RoomEvent::UplinkFlowing);
    until(|| !session.stats().uplink_stalled).await;
    let flowing = Instant::now();
    for _ in 0..14 {
        advance(Duration::from_secs(1)).await;
        settle().await;
    }
    assert_eq!(ada.end_reason(), None, "14 s of 16");
    assert_eq!(reset(&mut events).await, EndReason::WriteTimedOut);
    let took = flowing.elapsed();
    assert!(took >= Duration::from_secs(15) && took <= Duration::from_secs(18), "after {took:?}");
}

/// A state reported twice is one stall.
#[tokio::test]
async fn an_uplink_state_reported_twice_is_one_event() {
    let (room, session) = memory(|builder| builder);
    let mut events = session.events();
    for event in
        [RoomEvent::UplinkFlowing, RoomEvent::UplinkStalled, RoomEvent::UplinkStalled, RoomEvent::UplinkFlowing]
    {
        room.emit(event).await.expect("the session listens");
    }
    until(|| session.stats().uplink_stalls == 1 && !session.stats().uplink_stalled).await;
    close_settled(&session).await;
    assert!(matches!(within(events.next()).await, Some(SessionEvent::UplinkStalled)));
    assert!(matches!(within(events.next()).await, Some(SessionEvent::UplinkFlowing)));
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Closed)));
    // No publisher is left that could be held up.
    let mut cx = Context::from_waker(Waker::noop());
    let mut late = Box::pin(session.broadcast(msg("late")));
    assert!(matches!(late.as_mut().poll(&mut cx), Poll::Ready(Err(BroadcastError::Closed(_)))));
}
