//! A participant's own stream to the session: which instance it belongs to, what it outlives, and when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use lanecast::room::RoomEvent;
use lanecast::room::memory::{Behavior, MemoryRoom, OpenBehavior};
use lanecast::{ClientId, ControlStream, SessionEvent};
use tokio::sync::mpsc;

use crate::common::{
    UNWELCOME, close_settled, id, joined, live, memory, msg, presence, refuses_unwelcome, reset, settle, sid, until,
    within,
};

type Seen = (String, Bytes, Option<ClientId>);

/// Reports each message with the instance that is registered when it comes; `alive` counts the running handlers.
async fn report(mut control: ControlStream<MemoryRoom<Bytes>>, seen: mpsc::UnboundedSender<Seen>, alive: Alive) {
    let _alive = alive;
    while let Some(message) = control.stream.recv().await {
        let instance = control.participant().map(|participant| participant.client_id());
        let _ = seen.send((control.identity.to_string(), message, instance));
    }
}

struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

type Started =
    (MemoryRoom<Bytes>, lanecast::Session<MemoryRoom<Bytes>>, mpsc::UnboundedReceiver<Seen>, Arc<AtomicUsize>);

fn start() -> Started {
    let (sender, seen) = mpsc::unbounded_channel();
    let alive = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&alive);
    let (room, session) = memory(|builder| {
        let builder = builder.accept(refuses_unwelcome(|_| None));
        builder.on_stream(move |control| report(control, sender.clone(), Alive::new(&count)))
    });
    (room, session, seen, alive)
}

// 1. Ada's handler is running. 2. She is reset under the same sid. 3. The handler is still the same, and finds the new
// instance; between the two it finds none. 4. She disconnects: the handler is dropped.
#[tokio::test]
async fn a_handler_survives_a_reset_and_ends_with_its_connection() {
    let (room, session, mut seen, alive) = start();
    let mut events = session.events();
    let old = joined(&room, &session, "ada").await;
    let stream = room.open_incoming(&id("ada"), &sid("PA_ada")).await.expect("the session listens");
    stream.send(msg("one")).await.expect("the handler runs");
    assert_eq!(within(seen.recv()).await, Some(("ada".to_owned(), msg("one"), Some(old.client_id()))));
    let recorder = room.recorder(&id("ada"));
    recorder.set_open_behavior(OpenBehavior::Held);
    recorder.set_behavior(Behavior::Fail);
    old.send(msg("x")).expect("there is capacity");
    reset(&mut events).await;
    stream.send(msg("two")).await.expect("the handler runs");
    assert_eq!(within(seen.recv()).await, Some(("ada".to_owned(), msg("two"), None)));
    recorder.set_behavior(Behavior::Flow);
    recorder.set_open_behavior(OpenBehavior::Ready);
    let new = live(&session, "ada").await;
    stream.send(msg("three")).await.expect("the handler runs");
    assert_eq!(within(seen.recv()).await, Some(("ada".to_owned(), msg("three"), Some(new.client_id()))));
    assert_eq!(alive.load(Ordering::SeqCst), 1, "one handler all along");
    room.leave(&id("ada"), &sid("PA_ada")).await.expect("the session listens");
    until(|| alive.load(Ordering::SeqCst) == 0).await;
    assert!(stream.send(msg("four")).await.is_err());
}

/// A stream that comes while its connection is still being joined, or reset, is kept until there is an instance.
#[tokio::test]
async fn a_stream_that_arrives_before_its_instance_is_kept() {
    let (room, session, mut seen, _alive) = start();
    let recorder = room.recorder(&id("ada"));
    recorder.set_open_behavior(OpenBehavior::Held);
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    let stream = room.open_incoming(&id("ada"), &sid("PA_1")).await.expect("the session listens");
    stream.send(msg("early")).await.expect("it is kept");
    settle().await;
    assert!(seen.try_recv().is_err());
    recorder.set_open_behavior(OpenBehavior::Ready);
    let ada = live(&session, "ada").await;
    assert_eq!(within(seen.recv()).await, Some(("ada".to_owned(), msg("early"), Some(ada.client_id()))));
}

/// Streams of unknown connections are dropped and counted. The stream of a connection that leaves before it is joined
/// is dropped with it.
#[tokio::test]
async fn stray_streams_are_dropped() {
    let (room, session, _seen, alive) = start();
    let stray = room.open_incoming(&id("nobody"), &sid("PA_0")).await.expect("the session listens");
    until(|| session.stats().stray_streams == 1).await;
    within(stray.closed()).await;
    room.recorder(&id("ada")).set_open_behavior(OpenBehavior::Held);
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    let kept = room.open_incoming(&id("ada"), &sid("PA_1")).await.expect("the session listens");
    settle().await;
    assert!(!kept.is_closed());
    room.leave(&id("ada"), &sid("PA_1")).await.expect("the session listens");
    within(kept.closed()).await;
    assert_eq!((session.stats().stray_streams, alive.load(Ordering::SeqCst)), (1, 0));
}

// 1. The hook refuses Ada. 2. Her stream is dropped. 3. She is announced again: the session still
// knows that she was told, and doesn't tell her twice.
#[tokio::test]
async fn the_stream_of_a_refused_connection_is_dropped() {
    let (room, session, _seen, alive) = start();
    let unwelcome = presence("ada", "PA_1", 1).with_attribute(UNWELCOME, "no reason");
    room.join(unwelcome.clone()).await.expect("the session listens");
    until(|| session.stats().refused == 1).await;
    settle().await;
    let stray = room.open_incoming(&id("ada"), &sid("PA_1")).await.expect("the session listens");
    within(stray.closed()).await;
    room.emit(RoomEvent::Active(unwelcome)).await.expect("the session listens");
    settle().await;
    assert_eq!(session.stats().refused, 1);
    assert_eq!((session.stats().stray_streams, alive.load(Ordering::SeqCst)), (1, 0));
}

/// A handler lasts as long as its connection: the successor has another handler, and the late disconnect of the
/// predecessor ends only the predecessor's. `close` ends the rest.
#[tokio::test]
async fn each_connection_has_a_handler_of_its_own() {
    let (room, session, mut seen, alive) = start();
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    live(&session, "ada").await;
    let first = room.open_incoming(&id("ada"), &sid("PA_1")).await.expect("the session listens");
    until(|| alive.load(Ordering::SeqCst) == 1).await;
    room.join(presence("ada", "PA_2", 2)).await.expect("the session listens");
    let second = room.open_incoming(&id("ada"), &sid("PA_2")).await.expect("the session listens");
    until(|| alive.load(Ordering::SeqCst) == 2).await;
    first.send(msg("from the past")).await.expect("its connection isn't reported gone yet");
    assert_eq!(within(seen.recv()).await, Some(("ada".to_owned(), msg("from the past"), None)));
    room.leave(&id("ada"), &sid("PA_1")).await.expect("the session listens");
    within(first.closed()).await;
    let ada = live(&session, "ada").await;
    second.send(msg("hello")).await.expect("its connection stands");
    assert_eq!(within(seen.recv()).await, Some(("ada".to_owned(), msg("hello"), Some(ada.client_id()))));
    close_settled(&session).await;
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    assert!(second.is_closed());
}

/// A handler that panics, at once or later, harms nobody: the session goes on.
#[tokio::test]
async fn a_handler_that_panics_harms_nobody() {
    for at_once in [true, false] {
        let (room, session) = memory(|builder| {
            builder.on_stream(move |_| {
                assert!(!at_once, "the handler was told to panic");
                async { panic!("the handler was told to panic") }
            })
        });
        let mut events = session.events();
        joined(&room, &session, "ada").await;
        let stream = room.open_incoming(&id("ada"), &sid("PA_ada")).await.expect("the session listens");
        within(stream.closed()).await;
        joined(&room, &session, "bob").await;
        assert!(matches!(within(events.next()).await, Some(SessionEvent::Joined(_))));
        assert!(matches!(within(events.next()).await, Some(SessionEvent::Joined(_))));
        close_settled(&session).await;
    }
}

/// A disconnect of Ada's sid under another identity isn't hers: she stays, and so does her handler.
#[tokio::test]
async fn a_disconnect_under_another_identity_ends_no_handler() {
    let (room, session, mut seen, alive) = start();
    let ada = joined(&room, &session, "ada").await;
    let stream = room.open_incoming(&id("ada"), &sid("PA_ada")).await.expect("the session listens");
    until(|| alive.load(Ordering::SeqCst) == 1).await;
    room.emit(RoomEvent::Disconnected { identity: id("eve"), sid: sid("PA_ada") }).await.expect("the session listens");
    let stray = room.open_incoming(&id("eve"), &sid("PA_ada")).await.expect("the session listens");
    within(stray.closed()).await;
    stream.send(msg("still here")).await.expect("the handler runs");
    let heard = within(seen.recv()).await;
    assert_eq!(heard, Some(("ada".to_owned(), msg("still here"), Some(ada.client_id()))));
    assert_eq!(alive.load(Ordering::SeqCst), 1);
}

// 1. Ada's stream comes while she is being joined, and is kept. 2. Her connection is reported gone under another
// identity. 3. She is registered: her stream is handled.
#[tokio::test]
async fn a_disconnect_under_another_identity_drops_no_kept_stream() {
    let (room, session, mut seen, _alive) = start();
    room.recorder(&id("ada")).set_open_behavior(OpenBehavior::Held);
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    let stream = room.open_incoming(&id("ada"), &sid("PA_1")).await.expect("the session listens");
    room.emit(RoomEvent::Disconnected { identity: id("eve"), sid: sid("PA_1") }).await.expect("the session listens");
    settle().await;
    room.recorder(&id("ada")).set_open_behavior(OpenBehavior::Ready);
    let ada = live(&session, "ada").await;
    stream.send(msg("kept")).await.expect("the handler runs");
    assert_eq!(within(seen.recv()).await, Some(("ada".to_owned(), msg("kept"), Some(ada.client_id()))));
}
