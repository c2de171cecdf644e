//! Participants that fail, leave, come back, and arrive in the wrong order.

use std::time::Duration;

use lanecast::room::livekit::LiveKitRoom;
use lanecast::room::{Presence, RoomEvent};
use lanecast::{EndReason, JoinError, Session, SessionEvent};

use crate::kit::{Incoming, Process, Server, joined, reset_of, text, texts, within};
use crate::rigged::{Behavior, Event, Rigged};

fn session(room: &Rigged) -> Session<Rigged> {
    let initial = |_| async { vec![text("state")] };
    Session::builder(room.clone()).queue_capacity(64).initial(initial).build().expect("the settings make sense")
}

// 1. Ada's stream takes nothing while messages go on: she overflows. 2. She alone is reset, and comes back under the
// same sid with her initial state. 3. Bob isn't affected.
#[tokio::test(flavor = "multi_thread")]
async fn an_overflow_resets_only_the_slow_participant() {
    let Some(server) = Server::of_environment() else { return };
    let room = Rigged::new(server.device().await);
    let session = session(&room);
    let (ada, bob) = (server.viewer("ada").await, server.viewer("bob").await);
    joined(&session.handle(), 2).await;
    let (ada_id, bob_id) = ("ada".parse().expect("well-formed"), "bob".parse().expect("well-formed"));
    let (before, bob_before) =
        (session.participant(&ada_id).expect("here"), session.participant(&bob_id).expect("here"));
    let mut events = session.events();
    room.set_behavior("ada", Behavior::Stall);
    let mut published = 0;
    let (who, reason) = loop {
        within(session.broadcast(text(format!("m{published}")))).await.expect("the session is open");
        published += 1;
        if let Ok(reset) = tokio::time::timeout(Duration::from_millis(5), reset_of(&mut events)).await {
            break reset;
        }
    };
    assert_eq!((who.identity, who.client_id, reason), (ada_id.clone(), before.client_id(), EndReason::Overflow));
    room.set_behavior("ada", Behavior::Flow);
    // The end of one stream and the beginning of the next have no order.
    let followed = |s: &[Incoming]| s.len() == 2 && s[0].ended.is_some() && !s[1].frames.is_empty();
    let seen = ada.wait_for("the end of the stream, and a fresh one", followed).await;
    assert_eq!(texts(&seen[1].frames)[0], "state");
    assert!(matches!(&seen[0].ended, Some(Err(_))), "an abandoned stream shows: {:?}", seen[0].ended);
    joined(&session.handle(), 2).await;
    let after = session.participant(&ada_id).expect("she is back");
    assert_eq!(after.sid(), before.sid());
    assert_ne!(after.client_id(), before.client_id());
    within(session.broadcast(text("last"))).await.expect("the session is open");
    let expected: Vec<_> =
        [vec!["state".to_owned()], (0..published).map(|n| format!("m{n}")).collect(), vec!["last".to_owned()]].concat();
    assert_eq!(texts(&bob.frames(expected.len()).await), expected);
    assert_eq!(session.participant(&bob_id).expect("here").client_id(), bob_before.client_id());
    assert_eq!(session.stats().resets.total(), 1);
    within(room.inner.close()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_resets_only_its_participant() {
    let Some(server) = Server::of_environment() else { return };
    let room = Rigged::new(server.device().await);
    let session = session(&room);
    let (ada, bob) = (server.viewer("ada").await, server.viewer("bob").await);
    joined(&session.handle(), 2).await;
    let sid = session.participant(&"ada".parse().expect("well-formed")).expect("here").sid().clone();
    let mut events = session.events();
    room.set_behavior("ada", Behavior::Fail);
    within(session.broadcast(text("m"))).await.expect("the session is open");
    let (who, reason) = within(reset_of(&mut events)).await;
    assert_eq!((who.sid, reason), (sid.clone(), EndReason::WriteFailed));
    let seen = ada.wait_for("a fresh stream", |streams| streams.len() == 2 && !streams[1].frames.is_empty()).await;
    assert_eq!(texts(&seen[1].frames)[0], "state");
    joined(&session.handle(), 2).await;
    assert_eq!(*session.participant(&"ada".parse().expect("well-formed")).expect("here").sid(), sid);
    assert_eq!(texts(&bob.frames(2).await), ["state", "m"]);
    assert_eq!(session.stats().resets.total(), 1);
    within(room.inner.close()).await;
}

fn is_disconnect(event: &Event) -> bool {
    matches!(event, RoomEvent::Disconnected { .. })
}

// 1. Ada connects again; the disconnect of her old connection is late. 2. The new connection replaces the old one. 3.
// The late disconnect removes nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_disconnect_does_not_end_the_new_connection() {
    let Some(server) = Server::of_environment() else { return };
    let room = Rigged::new(server.device().await);
    let session = session(&room);
    let old = server.viewer("ada").await;
    joined(&session.handle(), 1).await;
    let mut events = session.events();
    room.hold(is_disconnect);
    let new = server.viewer("ada").await;
    let (who, prior) = loop {
        if let Some(SessionEvent::Replaced { who, prior, .. }) = within(events.next()).await {
            break (who, prior);
        }
    };
    assert_eq!(prior.sid.as_str(), old.room.local_participant().sid().as_str());
    assert_eq!(who.sid.as_str(), new.room.local_participant().sid().as_str());
    assert_eq!(texts(&new.frames(1).await), ["state"]);
    within(async {
        while room.held() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    room.release();
    // The session has processed the disconnect once it has refused the event behind it.
    let ada = who.identity.clone();
    room.emit(RoomEvent::Active(Presence::new(ada, "PA_stale".parse().expect("well-formed"), 0)));
    while !matches!(within(events.next()).await, Some(SessionEvent::Refused { .. })) {}
    within(session.broadcast(text("m"))).await.expect("the session is open");
    assert_eq!(texts(&new.frames(2).await), ["state", "m"]);
    assert_eq!(session.participants().len(), 1);
    assert_eq!(session.stats().replacements, 1);
    within(room.inner.close()).await;
}

// 1. Ada's old connection is reported after her new one. 2. It is refused as stale, and the new one stays.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_connection_reported_late_is_refused() {
    let Some(server) = Server::of_environment() else { return };
    let room = Rigged::new(server.device().await);
    let session = session(&room);
    let _old = server.viewer("ada").await;
    joined(&session.handle(), 1).await;
    let older = session.room().inner.clone();
    let older = lanecast::room::Room::present(&older, &"ada".parse().expect("well-formed")).expect("she is here");
    let mut events = session.events();
    let new = server.viewer("ada").await;
    new.frames(1).await;
    joined(&session.handle(), 1).await;
    room.emit(RoomEvent::Active(older.clone()));
    loop {
        if let Some(SessionEvent::Refused { sid, error, .. }) = within(events.next()).await {
            assert!(sid == older.sid && matches!(error, JoinError::Stale), "{error}");
            break;
        }
    }
    within(session.broadcast(text("m"))).await.expect("the session is open");
    assert_eq!(texts(&new.frames(2).await), ["state", "m"]);
    within(room.inner.close()).await;
}

// 1. A viewer's process is killed. 2. The others get everything meanwhile. 3. The server notices and reports it: the
// viewer leaves, and nobody is reset.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_viewer_leaves() {
    let Some(server) = Server::of_environment() else { return };
    let room: LiveKitRoom = server.device().await;
    let session = Session::builder(room.clone()).build().expect("the settings make sense");
    let bob = server.viewer("bob").await;
    let process = Process::start(&server, "ada").await;
    joined(&session.handle(), 2).await;
    process.signal("KILL");
    let mut published = 0;
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    while session.participants().len() == 2 {
        ticks.tick().await;
        within(session.broadcast(text(format!("m{published}")))).await.expect("the session is open");
        published += 1;
        assert!(published < 50 * 60, "the server hasn't noticed within a minute");
    }
    let expected: Vec<_> = (0..published).map(|n| format!("m{n}")).collect();
    assert_eq!(texts(&bob.frames(expected.len()).await), expected);
    assert_eq!(session.stats().resets.total(), 0);
    within(room.close()).await;
}
