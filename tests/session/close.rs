//! The end of a session: what `close` delivers, what it reports, and that it leaves nothing running.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use lanecast::room::memory::{Behavior, MemoryRoom, OpenBehavior};
use lanecast::room::{OpenError, Presence, Room, RoomEvent};
use lanecast::{
    BroadcastError, BuildError, CloseError, EndReason, ParticipantIdentity, Progress, SendError, Session,
    SessionBuilder, SessionEvent, TryBroadcastError,
};
use tokio::time::Instant;

use crate::common::{
    self, Call, Stage, StageSink, State, Streams, Valve, assert_settled, close_settled, id, joined, live, memory, msg,
    presence, receives, settle, sid, size, texts, until, within,
};

// 1. Messages wait, in the log and directly; one participant is stuck. 2. The session closes, with a deadline. 3. What
// can be delivered is delivered, the rest is abandoned at the deadline, and the report counts both exactly.
#[tokio::test(start_paused = true)]
async fn close_delivers_what_it_can_and_reports_the_rest() {
    let (room, session) = memory(|builder| builder);
    let ada = joined(&room, &session, "ada").await;
    let stuck = joined(&room, &session, "stuck").await;
    settle().await;
    room.recorder(&id("stuck")).set_behavior(Behavior::Stall { capacity: 1 });
    for text in texts("m", 10) {
        session.try_broadcast(msg(text)).expect("the log has capacity");
    }
    ada.send(msg("direct")).expect("there is capacity");
    let begun = Instant::now();
    let report = within(session.close(Duration::from_secs(3))).await.expect("it closes without an error");
    assert_eq!(begun.elapsed().as_secs(), 3, "close waits for the stuck participant until the deadline and no longer");
    assert_eq!(report.account.offered, 21);
    assert_eq!((report.account.delivered, report.account.abandoned.session_closed), (11, 10));
    assert_eq!(report.account.delivered_bytes, 26);
    assert_settled(&report.account);
    assert!(report.took >= Duration::from_secs(3) && report.room_closed.is_none());
    for (participant, delivered) in [(&ada, 11), (&stuck, 0)] {
        assert_eq!(within(participant.closed()).await, EndReason::SessionClosed);
        assert_eq!(participant.stats().account.delivered, delivered);
        assert!(room.recorder(participant.identity()).received()[0].closed);
    }
    assert!(session.participants().is_empty() && session.participant(&id("ada")).is_none());
    assert_eq!(session.stats().participants, 0);
    assert!(room.emit(RoomEvent::UplinkStalled).await.is_err(), "the event loop has dropped the room's events");
}

/// A session with no message under way closes at once, whatever the deadline, zero included.
#[tokio::test(start_paused = true)]
async fn close_waits_for_nothing_but_messages() {
    for deadline in [Duration::ZERO, Duration::from_secs(3_600), Duration::MAX] {
        let (room, session) = memory(|builder| builder);
        joined(&room, &session, "ada").await;
        settle().await;
        let begun = Instant::now();
        within(session.close(deadline)).await.expect("it closes without an error");
        assert!(begun.elapsed() < Duration::from_secs(1), "{deadline:?} took {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn after_close_every_message_is_returned() {
    let (room, session) = memory(|builder| builder);
    let ada = joined(&room, &session, "ada").await;
    close_settled(&session).await;
    assert!(matches!(session.broadcast(msg("a")).await, Err(BroadcastError::Closed(back)) if back == "a"));
    assert!(matches!(session.try_broadcast(msg("b")), Err(TryBroadcastError::Closed(back)) if back == "b"));
    let topic = lanecast::Topic::new();
    assert!(matches!(session.broadcast_to(&topic, msg("c")).await, Err(BroadcastError::Closed(_))));
    assert!(matches!(ada.send(msg("d")), Err(SendError::Closed)));
    assert_eq!(ada.subscribe(&topic, lanecast::SubscriptionTag(0)).await, lanecast::Subscribed::Closed);
    assert_eq!(ada.unsubscribe(&topic).await, lanecast::Unsubscribed::NotSubscribed);
}

// 1. `close` is called and its future dropped. 2. The session closes all the same. 3. Every further call gets the same
// report, concurrent calls included, whatever their deadline.
#[tokio::test]
async fn dropping_close_changes_nothing_and_all_callers_get_the_same_report() {
    let (room, session) = memory(|builder| builder);
    let mut events = session.events();
    joined(&room, &session, "ada").await;
    session.broadcast(msg("x")).await.expect("the session is open");
    let mut closing = Box::pin(session.close(Duration::from_secs(5)));
    assert!(closing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(closing);
    let (a, b, c) =
        within(async { tokio::join!(session.close(Duration::ZERO), session.close(Duration::MAX), session.ended()) })
            .await;
    let report = a.expect("it closes without an error");
    assert_eq!((report.account.delivered, &report), (1, &b.expect("the same")));
    assert_eq!(report, c.expect("the same"));
    assert_eq!(session.close(Duration::ZERO).await.expect("the same"), report);
    common::event(&mut events, |event| matches!(event, SessionEvent::Closed).then_some(())).await;
    receives(&room, "ada", &["x"]).await;
}

/// `cancel` ends the session at once, also while `close` is still waiting for its deadline.
#[tokio::test(start_paused = true)]
async fn cancel_ends_a_waiting_close() {
    for closing_first in [false, true] {
        let (stage, streams) = Streams::<Bytes>::stage(|_| Valve::shut());
        let session = stage.session(|builder| builder.write_timeout(Duration::from_secs(10_000)));
        stage.join(presence("ada", "PA_1", 1));
        let ada = live(&session, "ada").await;
        session.broadcast(msg("x")).await.expect("the session is open");
        let valve = streams.nth("ada", 0).await;
        valve.wait_for(State::is_stuck).await;
        let tried = valve.lock().flushes_tried;
        let begun = Instant::now();
        if closing_first {
            let mut closing = Box::pin(session.close(Duration::from_secs(50)));
            assert!(closing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            settle().await;
            assert_eq!(ada.end_reason(), None, "the deadline isn't over");
        }
        session.cancel();
        let report = within(session.ended()).await.expect("it ends without an error");
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "it took {:?}, close first: {closing_first}",
            begun.elapsed()
        );
        assert_eq!(report.account.abandoned.session_closed, 1);
        assert_eq!(ada.end_reason(), Some(EndReason::SessionClosed));
        assert!(valve.lock().dropped);
        assert_eq!(valve.lock().flushes_tried, tried, "its write was stopped, not tried again");
    }
}

/// Calls that would wait for themselves return an error, and the session goes on.
#[tokio::test]
async fn close_from_a_callback_is_an_error() {
    let handle: Arc<OnceLock<Session<MemoryRoom<Bytes>>>> = Arc::default();
    let (in_initial, in_handler) = (Arc::clone(&handle), Arc::clone(&handle));
    let answers = Arc::new(AtomicUsize::new(0));
    let (from_initial, from_handler) = (Arc::clone(&answers), Arc::clone(&answers));
    let (room, session) = memory(|builder| {
        builder
            .initial(move |_| {
                let session = in_initial.get().expect("set before anybody joins").clone();
                let answers = Arc::clone(&from_initial);
                async move {
                    if matches!(session.close(Duration::ZERO).await, Err(CloseError::FromCallback)) {
                        answers.fetch_add(1, Ordering::SeqCst);
                    }
                    vec![msg("state")]
                }
            })
            .on_stream(move |_| {
                let session = in_handler.get().expect("set before anybody joins").clone();
                let answers = Arc::clone(&from_handler);
                async move {
                    if matches!(session.close(Duration::ZERO).await, Err(CloseError::FromCallback)) {
                        answers.fetch_add(10, Ordering::SeqCst);
                    }
                }
            })
    });
    handle.set(session.clone()).expect("set once");
    joined(&room, &session, "ada").await;
    let _stream = room.open_incoming(&id("ada"), &sid("PA_ada")).await.expect("the session listens");
    until(|| answers.load(Ordering::SeqCst) == 11).await;
    receives(&room, "ada", &["state"]).await;
    // Another session may be closed from there: only closing the session itself would wait for itself.
    close_settled(&session).await;
}

/// A join that hangs, in opening or in the closure, and a join that backs off don't delay the end.
#[tokio::test(start_paused = true)]
async fn joins_under_way_are_cancelled() {
    let (room, session) = memory(|builder| {
        builder.initial(|ada: lanecast::Participant<Bytes>| async move {
            if *ada.identity() == id("computing") {
                std::future::pending::<()>().await;
            }
            Vec::new()
        })
    });
    room.recorder(&id("opening")).set_open_behavior(OpenBehavior::Held);
    room.recorder(&id("failing")).set_open_behavior(OpenBehavior::Fails);
    for name in ["opening", "failing", "computing", "fine"] {
        room.join(presence(name, &format!("PA_{name}"), 1)).await.expect("the session listens");
    }
    live(&session, "fine").await;
    until(|| session.stats().failed_joins > 0).await;
    let begun = Instant::now();
    within(session.close(Duration::from_secs(50))).await.expect("it closes without an error");
    assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
    assert!(room.recorder(&id("computing")).received().iter().all(|stream| stream.closed));
    assert_eq!(session.stats().joins, 1);
}

/// Senders, publishers, joins and resets go on while the session closes: every message that was accepted has an
/// outcome, every other message was returned, and nobody hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn close_under_load() {
    for round in 0..size(20, 500) {
        let (room, session) = memory(|builder| builder.shards(2).queue_capacity(64).log_capacity(16));
        for n in 0..8 {
            joined(&room, &session, &format!("p{n}")).await;
        }
        room.recorder(&id("p7")).set_behavior(Behavior::Stall { capacity: 1 });
        let known = session.participants();
        let publisher = tokio::spawn({
            let session = session.clone();
            async move {
                let mut sent = 0_u64;
                loop {
                    match session.broadcast(msg("to all")).await {
                        Ok(()) => sent += 1,
                        Err(BroadcastError::Closed(back)) => {
                            assert_eq!(back, "to all");
                            return sent;
                        }
                        Err(other) => panic!("not expected: {other:?}"),
                    }
                    if sent.is_multiple_of(8) {
                        tokio::task::yield_now().await;
                    }
                }
            }
        });
        let sender = std::thread::spawn({
            let known = known.clone();
            move || while known.iter().any(|one| !matches!(one.send(msg("direct")), Err(SendError::Closed))) {}
        });
        let joiner = tokio::spawn({
            let room = room.clone();
            async move {
                let mut n = 0;
                while room.join(presence(&format!("late{n}"), &format!("PA_l{n}"), 1)).await.is_ok() {
                    n += 1;
                    tokio::task::yield_now().await;
                }
            }
        });
        let first = room.recorder(&id("p0"));
        until(|| first.received().iter().any(|stream| stream.messages.iter().any(|message| message == "to all"))).await;
        until(|| session.stats().account.delivered > 50).await;
        let deadline = [Duration::ZERO, Duration::from_millis(5)][round % 2];
        let report = within(session.close(deadline)).await.expect("it closes without an error");
        let sent = within(publisher).await.expect("it doesn't panic");
        sender.join().expect("no sender panics");
        within(joiner).await.expect("it doesn't panic");
        assert!(sent > 0);
        assert_settled(&report.account);
        for participant in &known {
            within(participant.closed()).await;
            assert_settled(&participant.stats().account);
        }
        assert_eq!(session.stats().participants, 0);
        assert_settled(&session.stats().account);
    }
}

// 1. The last handle of a session is dropped, without `close`. 2. Every sink is dropped, every task has ended, and the
// session holds the room no longer.
#[tokio::test]
async fn a_dropped_session_leaks_nothing() {
    let alive = Arc::new(());
    let (initial, handler) = (Arc::clone(&alive), Arc::clone(&alive));
    let (stage, streams) =
        Streams::<Bytes>::stage(|to| if to.identity == id("stuck") { Valve::shut() } else { Valve::open() });
    let session = stage.session(|builder| {
        builder
            .initial(move |_| {
                let kept = Arc::clone(&initial);
                async move {
                    let _kept = kept;
                    vec![msg("state")]
                }
            })
            .on_stream(move |_| {
                let kept = Arc::clone(&handler);
                async move {
                    let _kept = kept;
                    std::future::pending::<()>().await;
                }
            })
    });
    for name in ["ada", "stuck"] {
        stage.join(presence(name, &format!("PA_{name}"), 1));
    }
    let ada = live(&session, "ada").await;
    live(&session, "stuck").await;
    stage.emit(RoomEvent::StreamOpened { identity: id("ada"), sid: sid("PA_ada"), stream: () });
    session.broadcast(msg("x")).await.expect("the session is open");
    until(|| Arc::strong_count(&alive) == 4).await;
    let mut events = session.events();
    let second = session.clone();
    drop(session);
    settle().await;
    second.broadcast(msg("y")).await.expect("a clone keeps it open");
    drop(second);
    assert_eq!(within(ada.closed()).await, EndReason::SessionClosed);
    while within(events.next()).await.is_some() {}
    for name in ["ada", "stuck"] {
        streams.nth(name, 0).await.wait_for(|seen| seen.dropped).await;
    }
    until(|| stage.is_deserted()).await;
    until(|| Arc::strong_count(&alive) == 1).await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0, "a task still runs");
}

/// A room that closes ends the session; the report has the room's reason.
#[tokio::test]
async fn a_room_that_closes_ends_the_session() {
    let (room, session) = memory(|builder| builder);
    joined(&room, &session, "ada").await;
    room.emit(RoomEvent::Closed("the server went away".into())).await.expect("the session listens");
    let report = within(session.ended()).await.expect("it ends without an error");
    assert_eq!(report.room_closed, Some("the server went away".into()));
    assert!(matches!(session.try_broadcast(msg("x")), Err(TryBroadcastError::Closed(_))));
}

/// The end of a room's event stream ends the session, too, without a reason.
#[tokio::test]
async fn a_room_whose_events_end_ends_the_session() {
    struct Ending;
    impl Room for Ending {
        type Message = Bytes;
        type Sink = StageSink<Bytes>;
        type Incoming = ();
        fn events(&self) -> Option<impl Stream<Item = RoomEvent<()>> + Send + 'static> {
            Some(stream::empty())
        }
        fn participants(&self) -> Vec<Presence> {
            Vec::new()
        }
        fn present(&self, _: &ParticipantIdentity) -> Option<Presence> {
            None
        }
        async fn open(&self, _: &Presence, _: Progress) -> Result<StageSink<Bytes>, OpenError> {
            Err(OpenError::NotPresent)
        }
    }
    let session = Session::builder(Ending).build().expect("a test's settings make sense");
    let report = within(session.ended()).await.expect("it ends without an error");
    assert!(report.room_closed.is_some());
    assert_settled(&report.account);
}

/// A room gives its events to one session: building a second session fails, and the first goes on.
#[tokio::test]
async fn a_room_serves_one_session() {
    let (room, first) = memory(|builder| builder);
    assert_eq!(Session::builder(room.clone()).build().err(), Some(BuildError::RoomTaken));
    joined(&room, &first, "ada").await;
    first.broadcast(msg("x")).await.expect("the session is open");
    receives(&room, "ada", &["x"]).await;
    close_settled(&first).await;
    assert_eq!(Session::builder(room).build().err(), Some(BuildError::RoomTaken), "its session has ended");
}

/// A failed build doesn't take the room's events: another session can be built on it.
#[tokio::test]
async fn a_failed_build_does_not_take_the_rooms_events() {
    let room = MemoryRoom::<Bytes>::new();
    let refused = Session::builder(room.clone()).shards(0).build();
    assert!(matches!(refused, Err(BuildError::InvalidSetting { setting: "shards", .. })));
    let session = Session::builder(room.clone()).build().expect("these settings make sense");
    joined(&room, &session, "ada").await;
    close_settled(&session).await;
}

/// `closed` resolves once the goodbye has dropped the sink, and not before.
#[tokio::test]
async fn closed_waits_for_the_goodbye() {
    let (gate, opened) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    let goodbye = Arc::clone(&gate);
    let dropped = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dropped);
    let stage = Stage::<Bytes>::with_retire(
        move |_, _| {
            let counted = Arc::clone(&counted);
            let sink = StageSink::new(move |call, _| {
                counted.fetch_add(usize::from(matches!(call, Call::Drop)), Ordering::SeqCst);
                Poll::Ready(Ok(()))
            });
            async move { Ok(sink) }
        },
        move |sink, _| {
            let goodbye = Arc::clone(&goodbye);
            Some(Box::pin(async move {
                goodbye.acquire().await.expect("it is never closed").forget();
                drop(sink);
            }))
        },
    );
    drop(opened);
    let session = stage.session(|builder| builder);
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    stage.leave("ada", "PA_1");
    let mut closed = Box::pin(ada.closed());
    settle().await;
    assert!(poll_fn(|cx| Poll::Ready(closed.as_mut().poll(cx).is_pending())).await);
    assert_eq!((ada.end_reason(), dropped.load(Ordering::SeqCst)), (Some(EndReason::Disconnected), 0));
    gate.add_permits(1);
    assert_eq!(within(closed).await, EndReason::Disconnected);
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
}

// 1. The runtime is shut down under a session. 2. Its sinks are dropped, and every caller that waits for the session's
// end gets an answer, on whatever runtime.
#[test]
fn shutting_down_the_runtime_leaves_nobody_waiting() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let first = runtime();
    let (room, session, ada) = first.block_on(async {
        let (room, session) = memory(|builder| builder);
        let ada = joined(&room, &session, "ada").await;
        (room, session, ada)
    });
    drop(first);
    assert!(room.recorder(&id("ada")).received()[0].closed);
    runtime().block_on(async {
        within(ada.closed()).await;
        assert!(matches!(within(session.broadcast(msg("x"))).await, Err(BroadcastError::Closed(_))));
        assert!(within(session.close(Duration::ZERO)).await.is_err(), "the close has to fail");
        assert!(within(session.ended()).await.is_err());
    });
}

#[test]
fn build_fails_outside_a_runtime() {
    let built = Session::builder(MemoryRoom::<Bytes>::new()).build();
    assert_eq!(built.err(), Some(BuildError::NoRuntime));
}

/// A runtime without timers is refused, too, and the room can still have a session on another runtime.
#[test]
fn build_fails_in_a_runtime_without_timers() {
    let room = MemoryRoom::<Bytes>::new();
    let without = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let built = without.block_on(async { Session::builder(room.clone()).build() });
    assert_eq!(built.err(), Some(BuildError::NoTimers));
    let with = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    with.block_on(async {
        let session = Session::builder(room).build().expect("this runtime has timers");
        close_settled(&session).await;
    });
}

/// The error shows the value that the caller gave, also where the session would use a smaller one.
#[tokio::test]
async fn an_invalid_setting_is_shown_as_it_was_given() {
    let years = |years: u64| Duration::from_secs(years * 365 * 24 * 3600);
    let build = |set: &dyn Fn(SessionBuilder<MemoryRoom<Bytes>>) -> SessionBuilder<MemoryRoom<Bytes>>| match set(
        Session::builder(MemoryRoom::new()),
    )
    .build()
    {
        Err(BuildError::InvalidSetting { setting, value, .. }) => Some((setting, value)),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    };
    let given = format!("{:?} to {:?}", years(3), years(2));
    assert_eq!(build(&|builder| builder.reset_backoff(years(3), years(2))), Some(("reset_backoff", given)));
    assert_eq!(build(&|builder| builder.reset_backoff(years(2), Duration::MAX)), None);
    // Each value is within its own bounds; their product isn't.
    let product = Some(("log_capacity × shards", "4194304 × 2".to_owned()));
    assert_eq!(build(&|builder| builder.log_capacity(4_194_304).shards(2)), product);
    let product = Some(("log_capacity × shards", "4097 × 1024".to_owned()));
    assert_eq!(build(&|builder| builder.log_capacity(4_097).shards(1_024)), product);
}

#[tokio::test]
async fn invalid_settings_are_named() {
    type Builder = SessionBuilder<MemoryRoom<Bytes>>;
    type Case = (&'static str, Box<dyn Fn(Builder) -> Builder>);
    let zero = Duration::ZERO;
    let cases: [Case; 21] = [
        ("queue_capacity", Box::new(|builder| builder.queue_capacity(0))),
        ("queue_capacity", Box::new(|builder| builder.queue_capacity(u32::MAX))),
        ("queue_bytes", Box::new(|builder| builder.queue_bytes(0))),
        ("queue_bytes", Box::new(|builder| builder.queue_bytes(u64::MAX))),
        ("log_capacity", Box::new(|builder| builder.log_capacity(0))),
        ("log_capacity", Box::new(|builder| builder.log_capacity(usize::MAX))),
        ("shards", Box::new(|builder| builder.shards(0))),
        ("shards", Box::new(|builder| builder.shards(usize::MAX))),
        ("linger", Box::new(|builder| builder.linger(Duration::from_secs(1) + Duration::from_nanos(1)))),
        ("concurrent_joins", Box::new(|builder| builder.concurrent_joins(0))),
        ("concurrent_joins", Box::new(|builder| builder.concurrent_joins(usize::MAX))),
        ("event_capacity", Box::new(|builder| builder.event_capacity(0))),
        ("event_capacity", Box::new(|builder| builder.event_capacity(usize::MAX))),
        ("write_timeout", Box::new(move |builder| builder.write_timeout(zero))),
        ("open_timeout", Box::new(move |builder| builder.open_timeout(zero))),
        ("reset_backoff", Box::new(move |builder| builder.reset_backoff(zero, zero))),
        (
            "reset_backoff",
            Box::new(move |builder| builder.reset_backoff(Duration::from_secs(2), Duration::from_secs(1))),
        ),
        ("", Box::new(|builder| builder.queue_capacity(1).queue_bytes(1).log_capacity(1).shards(1).event_capacity(1))),
        ("", Box::new(|builder| builder.write_timeout(Duration::MAX).open_timeout(Duration::MAX))),
        ("", Box::new(move |builder| builder.retire_timeout(zero))),
        ("", Box::new(|builder| builder.linger(Duration::from_secs(1)))),
    ];
    for (n, (expected, set)) in cases.iter().enumerate() {
        let room = MemoryRoom::new();
        match set(Session::builder(room.clone())).build() {
            Err(BuildError::InvalidSetting { setting, .. }) => assert_eq!(setting, *expected, "case {n}"),
            Err(other) => panic!("case {n}: {other}"),
            Ok(session) => {
                assert_eq!(*expected, "", "case {n} was accepted");
                // Accepted settings also work.
                joined(&room, &session, "ada").await;
                session.broadcast(msg("x")).await.expect("the session is open");
                receives(&room, "ada", &["x"]).await;
                close_settled(&session).await;
            }
        }
    }
}
