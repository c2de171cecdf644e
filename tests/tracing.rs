//! What is logged: every change of state with identity, sid and reason, and nothing per message above trace level.
//!
//! One test sets the default subscriber of the whole process, so these tests have a binary of their own.

mod common;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{
    Capture, UNWELCOME, id, joined, live, memory, msg, presence, refuses_unwelcome, reset, settle, sid, until, within,
};
use futures_util::{Sink, Stream, stream};
use lanecast::room::memory::{Behavior, OpenBehavior};
use lanecast::room::{Goodbye, OpenError, Presence, Room, RoomEvent};
use lanecast::{EndReason, Message, ParticipantIdentity, Progress, RunSink, Session, SessionEvent};
use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;

/// Runs `test` on this thread alone; `capture` has what was logged.
fn captured(capture: &Capture, test: impl Future<Output = ()>) {
    let subscriber = tracing_subscriber::registry().with(capture.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    tracing::subscriber::with_default(subscriber, || runtime.block_on(test));
}

#[test]
fn a_named_session_is_named_in_all_that_is_logged() {
    let capture = Capture::new();
    captured(&capture, async {
        let accept = refuses_unwelcome(|_| None);
        let (room, session) = memory(|builder| builder.name("robot-7").queue_capacity(2).accept(accept));
        let mut events = session.events();
        let ada = joined(&room, &session, "ada").await;
        room.recorder(&id("ada")).set_behavior(Behavior::Stall { capacity: 0 });
        while ada.send(msg("secret")).is_ok() {}
        reset(&mut events).await;
        room.join(presence("bob", "PA_1", 1).with_attribute(UNWELCOME, "1.0.0")).await.expect("it listens");
        until(|| session.stats().refused == 1).await;
        within(session.close(Duration::from_secs(1))).await.expect("it ends without an error");
    });
    for wanted in ["joined", "reset", "join refused", "session closing", "session closed"] {
        assert!(capture.find(&[wanted]).is_some(), "{wanted}: {:?}", capture.seen());
    }
    let nameless: Vec<_> = capture.seen().into_iter().filter(|event| !event.text.contains("name=robot-7")).collect();
    assert!(nameless.is_empty(), "{nameless:?}");
}

#[test]
fn every_change_of_state_is_logged_with_participant_and_reason() {
    let capture = Capture::new();
    captured(&capture, async {
        let (room, session) = memory(|builder| builder.queue_capacity(2).accept(refuses_unwelcome(|_| None)));
        let mut events = session.events();
        let ada = joined(&room, &session, "ada").await;
        // A reset by overflow.
        room.recorder(&id("ada")).set_behavior(Behavior::Stall { capacity: 0 });
        while ada.send(msg("secret")).is_ok() {}
        reset(&mut events).await;
        room.recorder(&id("ada")).set_behavior(Behavior::Flow);
        live(&session, "ada").await;
        // A replacement, a refusal as stale, a departure, and a send to the departed participant.
        room.join(presence("ada", "PA_2", 20)).await.expect("the session listens");
        until(|| session.participant_by_sid(&sid("PA_2")).is_some()).await;
        room.emit(RoomEvent::Active(presence("ada", "PA_0", 0))).await.expect("the session listens");
        let ada = live(&session, "ada").await;
        room.leave(&id("ada"), &sid("PA_2")).await.expect("the session listens");
        within(ada.closed()).await;
        let _ = ada.send(msg("secret"));
        // A write that fails, and a stream that can't be opened.
        let bob = joined(&room, &session, "bob").await;
        room.recorder(&id("bob")).set_open_behavior(OpenBehavior::Fails);
        room.recorder(&id("bob")).set_behavior(Behavior::Fail);
        bob.send(msg("secret")).expect("there is capacity");
        until(|| session.stats().failed_joins > 0).await;
        // A connection that the hook refuses.
        room.join(presence("cyd", "PA_9", 1).with_attribute(UNWELCOME, "1.0.0")).await.expect("it listens");
        until(|| session.stats().refused == 1).await;
        // The uplink.
        room.emit(RoomEvent::UplinkStalled).await.expect("the session listens");
        room.emit(RoomEvent::UplinkFlowing).await.expect("the session listens");
        until(|| session.stats().uplink_stalls == 1 && !session.stats().uplink_stalled).await;
        within(session.close(Duration::ZERO)).await.expect("it closes without an error");
    });
    let find = |parts: &[&str]| {
        let found = capture.find(parts);
        found.unwrap_or_else(|| panic!("nothing logged with {parts:?} among {:#?}", capture.seen()))
    };
    for (level, parts) in [
        (Level::INFO, &["joined", "ada", "PA_ada"][..]),
        (Level::INFO, &["failed, reset pending", "ada", "PA_ada", "too slow"]),
        (Level::INFO, &["reset", "ada", "PA_ada", "too slow"]),
        (Level::INFO, &["replaced", "ada", "PA_ada", "newer connection"]),
        (Level::INFO, &["joined in place", "ada", "PA_2"]),
        (Level::INFO, &["refused", "ada", "PA_0", "later connection"]),
        (Level::INFO, &["left", "ada", "PA_2", "disconnected"]),
        (Level::DEBUG, &["send to a closed participant", "ada", "PA_2"]),
        (
            Level::INFO,
            &["failed, reset pending", "bob", "PA_bob", "write to the participant failed", "ScriptedFailure"],
        ),
        (Level::INFO, &["join failed", "bob", "PA_bob", "could not be opened"]),
        (Level::INFO, &["refused", "cyd", "PA_9", "1.0.0"]),
        (Level::DEBUG, &["stream ended", "bob", "PA_bob", "write to the participant failed"]),
        (Level::WARN, &["uplink stalled"]),
        (Level::INFO, &["uplink flowing"]),
        (Level::INFO, &["session closing"]),
        (Level::INFO, &["session closed"]),
    ] {
        assert_eq!(find(parts).level, level, "{parts:?}");
    }
    for line in capture.seen() {
        assert!(!line.text.contains("secret"), "a payload is logged: {}", line.text);
    }
}

/// Thousands of messages by every way, to participants that keep up, that are stalled and that subscribe: no line above
/// trace level.
#[test]
fn nothing_is_logged_per_message() {
    let capture = Capture::new();
    captured(&capture, async {
        let (room, session) = memory(|builder| builder.queue_capacity(10_000));
        let ada = joined(&room, &session, "ada").await;
        let stalled = joined(&room, &session, "stalled").await;
        let topic = lanecast::Topic::new();
        ada.subscribe(&topic, lanecast::SubscriptionTag(0)).await;
        settle().await;
        room.recorder(&id("stalled")).set_behavior(Behavior::Stall { capacity: 3 });
        let before = capture.seen().len();
        for n in 0..1_000 {
            session.broadcast(msg("a")).await.expect("the session is open");
            session.broadcast_to(&topic, msg("b")).await.expect("the session is open");
            ada.send(msg("c")).expect("there is capacity");
            stalled.try_send(msg("d")).expect("there is capacity");
            if n == 500 {
                room.recorder(&id("stalled")).set_behavior(Behavior::Flow);
            }
        }
        until(|| session.stats().account.delivered == 5_000).await;
        let logged: Vec<_> =
            capture.seen()[before..].iter().filter(|line| line.level < Level::TRACE).cloned().collect();
        assert!(logged.is_empty(), "{logged:?}");
    });
}

/// A message whose `Debug` panics. Without logging nothing is formatted, and with logging no message is.
#[derive(Clone)]
struct Unprintable;

impl std::fmt::Debug for Unprintable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("a message was formatted");
    }
}

impl Message for Unprintable {
    fn byte_len(&self) -> usize {
        1
    }
}

#[test]
fn no_message_is_ever_formatted() {
    captured(&Capture::new(), async {
        let (stage, streams) = common::Streams::<Unprintable>::stage(|_| common::Valve::open());
        let session = stage.session(|builder| builder.queue_capacity(2));
        stage.join(presence("ada", "PA_1", 1));
        let ada = live(&session, "ada").await;
        session.broadcast(Unprintable).await.expect("the session is open");
        ada.send(Unprintable).expect("there is capacity");
        streams.nth("ada", 0).await.wait_for(|seen| seen.flushed.len() == 2).await;
        stage.leave("ada", "PA_1");
        within(ada.closed()).await;
        // The errors name only their variant, whatever they carry.
        let refused = ada.try_send(Unprintable).expect_err("it has left");
        assert_eq!(format!("{refused:?}"), "Closed(..)");
        session.cancel();
        within(session.ended()).await.expect("it ends without an error");
        let closed = session.broadcast(Unprintable).await.expect_err("it is closed");
        assert_eq!(format!("{closed:?}"), "Closed(..)");
    });
}

// 1. Ada is registered and about to be reported: the thread that reports her is held at the line it logs. 2. Her
// disconnect is served meanwhile, if the held thread isn't the loop's. 3. The thread goes on. A listener gets her join
// before her departure: in the other order it would consider her present forever.
#[test]
fn a_join_is_reported_before_the_departure() {
    let (reached, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (here, there) = (Arc::clone(&reached), Arc::clone(&served));
    let capture = Capture::with(move |line| {
        if line.text.contains("message=joined") {
            here.store(true, Ordering::SeqCst);
            // If the held thread is the loop's own, nothing can be served: the hold then ends after 300 ms.
            let begun = Instant::now();
            while !there.load(Ordering::SeqCst) && begun.elapsed() < Duration::from_millis(300) {
                std::thread::yield_now();
            }
        }
    });
    let subscriber = tracing_subscriber::registry().with(capture);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_time().build().expect("a runtime");
    // Only this test needs the subscriber on other threads: the others set a default of their own.
    tracing::subscriber::set_global_default(subscriber).expect("set once");
    runtime.block_on(async {
        let (room, session) = memory(|builder| builder);
        let mut events = session.events();
        room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
        until(|| reached.load(Ordering::SeqCst)).await;
        room.leave(&id("ada"), &sid("PA_1")).await.expect("the session listens");
        // Events are served in order: when this stray stream is counted, the disconnect in front of it has been served.
        let _stray = room.open_incoming(&id("nobody"), &sid("PA_0")).await.expect("the session listens");
        until(|| session.stats().stray_streams == 1).await;
        served.store(true, Ordering::SeqCst);
        let mut told = Vec::new();
        while told.len() < 2 {
            told.push(match within(events.next()).await {
                Some(SessionEvent::Joined(_)) => "joined",
                Some(SessionEvent::Left { .. }) => "left",
                other => panic!("not expected: {other:?}"),
            });
        }
        assert_eq!(told, ["joined", "left"]);
        until(|| session.stats().participants == 0).await;
    });
}

/// A connection that is superseded before it is registered is logged, with the connection that supersedes it.
#[test]
fn a_superseded_join_is_logged_with_both_connections() {
    let capture = Capture::new();
    captured(&capture, async {
        let (room, session) = memory(|builder| builder);
        let recorder = room.recorder(&id("ada"));
        recorder.set_open_behavior(OpenBehavior::Held);
        room.join(presence("ada", "PA_old", 1)).await.expect("the session listens");
        settle().await;
        room.join(presence("ada", "PA_new", 2)).await.expect("the session listens");
        recorder.set_open_behavior(OpenBehavior::Ready);
        live(&session, "ada").await;
        room.recorder(&id("bob")).set_open_behavior(OpenBehavior::Held);
        room.join(presence("bob", "PA_bob", 1)).await.expect("the session listens");
        settle().await;
        room.leave(&id("bob"), &sid("PA_bob")).await.expect("the session listens");
        settle().await;
        within(session.close(Duration::ZERO)).await.expect("it closes without an error");
    });
    assert!(capture.find(&["join superseded", "ada", "PA_old", "PA_new"]).is_some());
    assert!(capture.find(&["left before it was registered", "bob", "PA_bob"]).is_some());
}

/// Whatever the level, a line names its participant; an event that no subscriber takes isn't formatted.
#[test]
fn a_warning_names_its_participant_and_disabled_events_are_not_formatted() {
    struct Formatted(Arc<AtomicBool>);
    impl std::fmt::Debug for Formatted {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.store(true, Ordering::SeqCst);
            f.write_str("told to fail")
        }
    }
    struct Failing(Arc<AtomicBool>);
    impl Sink<Bytes> for Failing {
        type Error = Formatted;
        fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Formatted>> {
            Poll::Ready(Err(Formatted(Arc::clone(&self.0))))
        }
        fn start_send(self: Pin<&mut Self>, _: Bytes) -> Result<(), Formatted> {
            Ok(())
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Formatted>> {
            Poll::Ready(Ok(()))
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Formatted>> {
            Poll::Ready(Ok(()))
        }
    }
    impl RunSink<Bytes> for Failing {}
    struct Broken(Arc<AtomicBool>);
    impl Room for Broken {
        type Message = Bytes;
        type Sink = Failing;
        type Incoming = ();
        fn events(&self) -> Option<impl Stream<Item = RoomEvent<()>> + Send + 'static> {
            Some(stream::pending())
        }
        fn participants(&self) -> Vec<Presence> {
            vec![presence("ada", "PA_1", 1)]
        }
        fn present(&self, _: &ParticipantIdentity) -> Option<Presence> {
            Some(presence("ada", "PA_1", 1))
        }
        async fn open(&self, _: &Presence, _: Progress) -> Result<Failing, OpenError> {
            Ok(Failing(Arc::clone(&self.0)))
        }
        fn retire(&self, _: Failing, _: EndReason) -> Option<Goodbye> {
            panic!("told to panic")
        }
    }
    let capture = Capture::new();
    let formatted = Arc::new(AtomicBool::new(false));
    let subscriber = tracing_subscriber::registry().with(LevelFilter::WARN).with(capture.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let session = async {
        let session = Session::builder(Broken(Arc::clone(&formatted))).build().expect("a test's settings make sense");
        let ada = live(&session, "ada").await;
        ada.send(msg("x")).expect("there is capacity");
        assert_eq!(within(ada.closed()).await, EndReason::WriteFailed);
        within(session.close(Duration::ZERO)).await.expect("it closes without an error");
    };
    tracing::subscriber::with_default(subscriber, || runtime.block_on(session));
    assert!(capture.find(&["the room panicked", "ada", "PA_1"]).is_some(), "{:?}", capture.seen());
    assert!(!formatted.load(Ordering::SeqCst));
}
