//! Faults of a sink or a room: an error, a panic, a write without progress. Each harms only its participant, and is
//! counted.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use lanecast::{EndReason, Progress, SubscriptionTag, Topic};
use tokio::time::{Instant, advance};

use crate::common::{
    Call, Stage, StageSink, State, Streams, Trap, Valve, assert_settled, close_settled, id, live, msg, presence, reset,
    settle, until, within,
};

/// The call at which a sink goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Ready,
    Send,
    Flush,
    Drop,
}

/// A room whose first stream to "bad" fails or panics at the second message.
fn goes_wrong(at: At, panics: bool) -> Stage<Bytes> {
    let first = AtomicBool::new(true);
    Stage::new(move |to, _| {
        let bad = to.identity == id("bad") && first.swap(false, Ordering::SeqCst);
        let mut taken = 0;
        let sink = StageSink::new(move |call, _| {
            let here = match call {
                Call::Ready => At::Ready,
                Call::Send(_) => At::Send,
                Call::Flush | Call::Close => At::Flush,
                Call::Drop => At::Drop,
            };
            let due = if here == At::Flush { taken >= 2 } else { taken >= 1 };
            taken += usize::from(here == At::Send);
            if bad && at == here && due {
                assert!(!panics, "the sink was told to panic");
                return Poll::Ready(Err("the sink was told to fail".to_owned()));
            }
            Poll::Ready(Ok(()))
        });
        async move { Ok(sink) }
    })
}

// 1. The first message is delivered. 2. At the second the sink fails or panics, at each call in turn. 3. The
// participant is reset with that reason, which also counts the message; the next instance and the other participants
// get what follows.
#[tokio::test]
async fn a_sink_that_fails_or_panics_harms_its_participant_alone() {
    let cases = [
        (At::Ready, false),
        (At::Send, false),
        (At::Flush, false),
        (At::Ready, true),
        (At::Send, true),
        (At::Flush, true),
    ];
    for (at, panics) in cases {
        let stage = goes_wrong(at, panics);
        let session = stage.session(|builder| builder);
        let mut events = session.events();
        stage.join(presence("bad", "PA_1", 1));
        stage.join(presence("good", "PA_2", 1));
        let bad = live(&session, "bad").await;
        let good = live(&session, "good").await;
        session.broadcast(msg("first")).await.expect("the session is open");
        until(|| bad.stats().account.delivered == 1).await;
        session.broadcast(msg("second")).await.expect("the session is open");
        let reason = if panics { EndReason::WritePanicked } else { EndReason::WriteFailed };
        assert_eq!(reset(&mut events).await, reason, "{at:?}");
        assert_eq!(within(bad.closed()).await, reason);
        let account = bad.stats().account;
        assert_settled(&account);
        let lost = if panics { account.dropped.write_panicked } else { account.dropped.write_failed };
        assert_eq!((account.delivered, lost), (1, 1), "{at:?}, panics: {panics}");
        let again = live(&session, "bad").await;
        assert_ne!(again, bad);
        session.broadcast(msg("third")).await.expect("the session is open");
        until(|| again.stats().account.delivered == 1 && good.stats().account.delivered == 3).await;
        assert_eq!(good.end_reason(), None);
        assert_eq!(session.stats().resets.total(), 1);
        close_settled(&session).await;
    }
}

/// The sink's `Drop` panics, after a disconnect. Its participant still ends as disconnected, and the others go on.
#[tokio::test]
async fn a_panic_in_a_sinks_drop_harms_nobody() {
    let stage = goes_wrong(At::Drop, true);
    let session = stage.session(|builder| builder);
    stage.join(presence("bad", "PA_1", 1));
    stage.join(presence("good", "PA_2", 1));
    let bad = live(&session, "bad").await;
    let good = live(&session, "good").await;
    session.broadcast(msg("first")).await.expect("the session is open");
    until(|| session.stats().account.delivered == 2).await;
    stage.leave("bad", "PA_1");
    assert_eq!(within(bad.closed()).await, EndReason::Disconnected);
    session.broadcast(msg("second")).await.expect("the session is open");
    until(|| good.stats().account.delivered == 2).await;
    close_settled(&session).await;
}

/// A room that panics while it takes a sink back, and a room whose goodbye panics: `closed` resolves all the same.
#[tokio::test]
async fn a_panic_in_a_goodbye_leaves_nobody_waiting() {
    for at_once in [true, false] {
        let stage = Stage::<Bytes>::with_retire(
            |_, _| async { Ok(StageSink::new(|_, _| Poll::Ready(Ok(())))) },
            move |sink, _| {
                let bad = *sink.identity() == id("bad");
                assert!(!(bad && at_once), "the room was told to panic");
                Some(Box::pin(async move {
                    assert!(!bad, "the goodbye was told to panic");
                    drop(sink);
                }))
            },
        );
        let session = stage.session(|builder| builder);
        stage.join(presence("bad", "PA_1", 1));
        stage.join(presence("good", "PA_2", 1));
        let bad = live(&session, "bad").await;
        let good = live(&session, "good").await;
        stage.leave("bad", "PA_1");
        assert_eq!(within(bad.closed()).await, EndReason::Disconnected, "at once: {at_once}");
        stage.leave("good", "PA_2");
        assert_eq!(within(good.closed()).await, EndReason::Disconnected);
        close_settled(&session).await;
    }
}

// 1. A topic's message waits in the backlog of a participant whose sink is busy. 2. The message's code panics when it
// is handed on. 3. The participant is reset, and the message is counted like all others.
#[tokio::test]
async fn a_panic_in_a_message_that_waited_is_counted() {
    let alive = Arc::new(AtomicUsize::new(0));
    let (stage, streams) = Streams::<Trap>::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder);
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let topic = Topic::new();
    ada.subscribe(&topic, SubscriptionTag(1)).await;
    session.broadcast(Trap::new(0, &alive)).await.expect("the session is open");
    let valve = streams.nth("ada", 0).await;
    valve.wait_for(|seen| seen.taken.len() == 1).await;
    for number in 1..4 {
        let mut trap = Trap::new(number, &alive);
        trap.explosive = number == 2;
        session.broadcast_to(&topic, trap).await.expect("the session is open");
    }
    until(|| ada.stats().account.waiting() == 4).await;
    valve.release();
    assert_eq!(reset(&mut events).await, EndReason::WritePanicked);
    assert_eq!(within(ada.closed()).await, EndReason::WritePanicked);
    assert_settled(&ada.stats().account);
    assert_eq!(ada.stats().account.offered, 4);
    close_settled(&session).await;
}

// 1. A write begins and doesn't end. 2. Just before the time-out nothing has happened. 3. After the time-out, plus the
// sixteenth of it by which the check may be late, the participant is reset.
#[tokio::test(start_paused = true)]
async fn a_write_without_progress_times_out() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.write_timeout(Duration::from_secs(16)));
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    // An idle sink isn't stuck, however long it is idle.
    advance(Duration::from_secs(100)).await;
    settle().await;
    session.broadcast(msg("x")).await.expect("the session is open");
    streams.nth("ada", 0).await.wait_for(|seen| seen.taken.len() == 1).await;
    let begun = Instant::now();
    for _ in 0..31 {
        advance(Duration::from_millis(500)).await;
        settle().await;
    }
    assert_eq!(ada.end_reason(), None, "15.5 s of 16");
    assert_eq!(reset(&mut events).await, EndReason::WriteTimedOut);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(16) && took <= Duration::from_millis(17_100), "after {took:?}");
    assert_eq!(ada.stats().account.dropped.write_timed_out, 1);
    assert_settled(&ada.stats().account);
}

/// Every completed flush is progress: a participant that is slow but moves doesn't time out.
#[tokio::test(start_paused = true)]
async fn a_slow_write_with_progress_does_not_time_out() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.write_timeout(Duration::from_secs(4)));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let valve = streams.nth("ada", 0).await;
    for n in 0..10 {
        session.broadcast(msg(format!("m{n}"))).await.expect("the session is open");
        valve.wait_for(State::is_stuck).await;
        advance(Duration::from_secs(3)).await;
        settle().await;
        session.broadcast(msg(format!("n{n}"))).await.expect("the session is open");
        settle().await;
        valve.let_through(1);
        valve.wait_for(State::is_stuck).await;
        advance(Duration::from_secs(3)).await;
        settle().await;
        assert_eq!(ada.end_reason(), None);
        valve.let_through(1);
        until(|| ada.stats().account.waiting() == 0).await;
    }
    assert_eq!(ada.stats().account.delivered, 20);
}

// 1. A write takes many times the time-out and reports bytes all the while: nothing happens. 2. It stops reporting, and
// times out.
#[tokio::test(start_paused = true)]
async fn bytes_reported_through_the_handle_are_progress() {
    let handle = Arc::new(Mutex::new(Progress::default()));
    let given = Arc::clone(&handle);
    let stage = Stage::<Bytes>::new(move |_, progress| {
        *given.lock().expect("the lock isn't poisoned") = progress;
        async {
            Ok(StageSink::new(|call, _| if matches!(call, Call::Flush) { Poll::Pending } else { Poll::Ready(Ok(())) }))
        }
    });
    let session = stage.session(|builder| builder.write_timeout(Duration::from_secs(4)));
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let progress = handle.lock().expect("the lock isn't poisoned").clone();
    session.broadcast(msg("a long one")).await.expect("the session is open");
    settle().await;
    for _ in 0..20 {
        advance(Duration::from_secs(3)).await;
        progress.report(1);
        settle().await;
        assert_eq!(ada.end_reason(), None);
    }
    let last = Instant::now();
    assert_eq!(reset(&mut events).await, EndReason::WriteTimedOut);
    assert!(last.elapsed() >= Duration::from_millis(3_700), "too early: {:?}", last.elapsed());
    assert!(last.elapsed() <= Duration::from_millis(4_600), "too late: {:?}", last.elapsed());
}

// 1. A transport sets a time-out for its participant, which replaces the session's. 2. A transport that has its own way
// to detect stuck writes disables the time-out: a write may take any time, until the sink fails.
#[tokio::test(start_paused = true)]
async fn a_transport_overrides_the_write_time_out() {
    let fails = Arc::new(Mutex::new(None::<Waker>));
    let failed = Arc::new(AtomicUsize::new(0));
    let (waker, has_failed) = (Arc::clone(&fails), Arc::clone(&failed));
    let stage = Stage::<Bytes>::new(move |presence, progress| {
        let longer = presence.identity.as_str() == "ada";
        progress.set_write_timeout(if longer { Duration::from_secs(16) } else { Duration::MAX });
        let (waker, has_failed) = (Arc::clone(&waker), Arc::clone(&has_failed));
        let sink = StageSink::new(move |call, cx| match call {
            Call::Flush if !longer && has_failed.load(Ordering::SeqCst) > 0 => Poll::Ready(Err("timed out".into())),
            Call::Flush => {
                if !longer {
                    *waker.lock().expect("the lock isn't poisoned") = cx.map(|cx| cx.waker().clone());
                }
                Poll::Pending
            }
            _ => Poll::Ready(Ok(())),
        });
        async move { Ok(sink) }
    });
    let session = stage.session(|builder| builder.write_timeout(Duration::from_secs(4)));
    let mut events = session.events();
    for (identity, sid) in [("ada", "PA_1"), ("bob", "PA_2")] {
        stage.join(presence(identity, sid, 1));
        live(&session, identity).await;
    }
    let begun = Instant::now();
    session.broadcast(msg("a long one")).await.expect("the session is open");
    assert_eq!(reset(&mut events).await, EndReason::WriteTimedOut);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(16) && took <= Duration::from_secs(17), "after {took:?}");
    let bob = live(&session, "bob").await;
    advance(Duration::from_secs(100_000)).await;
    settle().await;
    assert_eq!(bob.end_reason(), None);
    failed.store(1, Ordering::SeqCst);
    let waker = fails.lock().expect("the lock isn't poisoned").take();
    waker.expect("its flush was asked for").wake();
    assert_eq!(within(bob.closed()).await, EndReason::WriteFailed);
}

/// A sink may be polled twice in one visit, and have become writable in between. The second poll completes without a
/// wake-up, and the sink drops the waker it kept. Nothing of the write is pending any more, so no wake-up will come,
/// and no time-out may fire.
#[tokio::test(start_paused = true)]
async fn a_flush_that_completes_at_the_second_poll_needs_no_wake_up() {
    let alive = Arc::new(AtomicUsize::new(0));
    let writable = Arc::new(AtomicUsize::new(0));
    let waker: Arc<Mutex<Option<Waker>>> = Arc::default();
    let (gate, slot) = (Arc::clone(&writable), Arc::clone(&waker));
    let stage = Stage::<Trap>::new(move |_, _| {
        let (gate, slot) = (Arc::clone(&gate), Arc::clone(&slot));
        let sink = StageSink::new(move |call, cx| {
            let mut slot = slot.lock().expect("the lock isn't poisoned");
            if matches!(call, Call::Flush) {
                if gate.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |times| times.checked_sub(1)).is_err() {
                    *slot = cx.map(|cx| cx.waker().clone());
                    return Poll::Pending;
                }
                *slot = None;
            }
            Poll::Ready(Ok(()))
        });
        async move { Ok(sink) }
    });
    let session = stage.session(|builder| builder.write_timeout(Duration::from_secs(4)));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let reactor = || {
        let woken = waker.lock().expect("the lock isn't poisoned").take();
        woken.map(Waker::wake)
    };
    // 1. One message is in the sink, which isn't writable; a second one waits behind it.
    session.broadcast(Trap::new(0, &alive)).await.expect("the session is open");
    until(|| waker.lock().expect("the lock isn't poisoned").is_some()).await;
    session.broadcast(Trap::new(1, &alive)).await.expect("the session is open");
    until(|| ada.stats().account.waiting() == 2).await;
    // 2. The sink is writable for the first and not for the second. In the same visit a third message goes into the
    // backlog, and while it is cloned the sink becomes writable again: the visit's last poll flushes the second.
    let mut third = Trap::new(2, &alive);
    third.on_clone = Some(Arc::clone(&writable));
    session.try_broadcast(third).expect("the log has capacity");
    writable.store(1, Ordering::SeqCst);
    reactor();
    until(|| ada.stats().account.delivered >= 2).await;
    settle().await;
    // 3. From here on the sink is always writable, and the reactor wakes any task that waits for that.
    writable.store(100, Ordering::SeqCst);
    reactor();
    settle().await;
    assert_eq!(ada.stats().account.waiting(), 0, "the third message is stuck although the sink would take it");
    advance(Duration::from_secs(5)).await;
    settle().await;
    assert_eq!(ada.end_reason(), None, "a sink that takes everything isn't stuck");
}

/// A viewer that has kept up for long gets more than one visit hands on, takes that, and is busy then. Its time-out
/// runs from that flush, not from when the viewer was last busy.
#[tokio::test(start_paused = true)]
async fn a_write_time_out_runs_from_the_last_flush_after_a_long_quiet_time() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let timeout = Duration::from_secs(16);
    let session = stage.session(|builder| builder.queue_capacity(8).shards(1).write_timeout(timeout));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let valve = streams.nth("ada", 0).await;
    for _ in 0..100 {
        valve.let_through(1);
        session.broadcast(msg("steady")).await.expect("the session is open");
        settle().await;
        advance(Duration::from_secs(1)).await;
        settle().await;
    }
    assert_eq!(valve.lock().flushed.len(), 100);

    // A visit hands on a quarter of the queue, which goes through; the messages behind it don't.
    valve.let_through(1);
    session.try_broadcast(msg("a")).expect("there is capacity");
    session.try_broadcast(msg("b")).expect("there is capacity");
    ada.send(msg("c")).expect("there is capacity");
    settle().await;
    let busy = Instant::now();
    while ada.end_reason().is_none() {
        advance(Duration::from_millis(250)).await;
        settle().await;
    }
    assert_eq!(ada.end_reason(), Some(EndReason::WriteTimedOut));
    assert!(busy.elapsed() >= timeout - Duration::from_secs(1), "after {:?}", busy.elapsed());
}

/// A stuck sink that wakes itself at every poll, like a sink that finds a lock taken, still counts as stuck.
#[tokio::test(start_paused = true)]
async fn a_stuck_write_that_wakes_itself_times_out() {
    let stage = Stage::<Bytes>::new(|_, _| {
        let sink = StageSink::new(|call, cx| {
            if matches!(call, Call::Flush) {
                cx.expect("a flush has a context").waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        });
        async { Ok(sink) }
    });
    let session = stage.session(|builder| builder.write_timeout(Duration::from_secs(4)));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    session.broadcast(msg("x")).await.expect("the session is open");
    settle().await;
    let begun = Instant::now();
    while ada.end_reason().is_none() && begun.elapsed() < Duration::from_secs(60) {
        advance(Duration::from_millis(250)).await;
        settle().await;
    }
    assert_eq!(ada.end_reason(), Some(EndReason::WriteTimedOut));
    assert!((4.0..=4.5).contains(&begun.elapsed().as_secs_f64()), "after {:?}", begun.elapsed());
}

/// The payload of a sink's panic may itself panic when it is dropped. That harms nobody else either.
#[tokio::test]
async fn a_panic_payload_that_panics_harms_its_participant_alone() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "told to panic once more");
        }
    }
    let first = AtomicBool::new(true);
    let stage = Stage::<Bytes>::new(move |to, _| {
        let is_bad = to.identity == id("bad") && first.swap(false, Ordering::SeqCst);
        let sink = StageSink::new(move |call, _| {
            if is_bad && matches!(call, Call::Flush) {
                std::panic::panic_any(Bomb);
            }
            Poll::Ready(Ok(()))
        });
        async { Ok(sink) }
    });
    let session = stage.session(|builder| builder.shards(1));
    stage.join(presence("bad", "PA_1", 1));
    stage.join(presence("good", "PA_2", 1));
    let (bad, good) = (live(&session, "bad").await, live(&session, "good").await);
    session.broadcast(msg("one")).await.expect("the session is open");
    assert_eq!(within(bad.closed()).await, EndReason::WritePanicked);
    until(|| good.stats().account.delivered == 1).await;
    close_settled(&session).await;
}
