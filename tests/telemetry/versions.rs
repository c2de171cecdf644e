//! Protocol versions and dialects: which viewers are registered, and what the others are told.

use lanecast::telemetry::{IncompatibleVersion, Protocol};
use lanecast::{JoinError, Refusal};

use super::*;

const ATTRIBUTE: &str = "protocolVersion";

fn advertises(name: &str, version: &str) -> Presence {
    Presence::new(common::id(name), common::sid(&format!("PA_{name}")), 1).with_attribute(ATTRIBUTE, version)
}

/// The texts of the statuses on each stream of the viewer, and whether the stream is closed. Nothing else may be there.
fn told(line: &Recorder<Frame>) -> Vec<(Vec<String>, bool)> {
    let texts = |stream: &Received<Frame>| {
        let messages: Vec<_> = stream.messages.iter().map(|frame| decode(WireFormat::V2, frame)).collect();
        let texts: Vec<_> = statuses(&messages)
            .into_iter()
            .map(|(level, text)| {
                assert_eq!(level, StatusLevel::Error);
                text
            })
            .collect();
        assert_eq!(texts.len(), messages.len(), "{messages:?}");
        texts
    };
    line.received().iter().map(|stream| (texts(stream), stream.closed)).collect()
}

fn protocol(telemetry: &Telemetry, name: &str) -> Protocol {
    let participant = telemetry.session().participant(&common::id(name)).expect("it is registered");
    telemetry.viewer(participant.client_id()).expect("it is registered").protocol().clone()
}

#[tokio::test]
async fn the_major_version_and_the_lowest_supported_version_decide() {
    let (room, telemetry) = telemetry();
    let session = telemetry.session();
    let accepted = ["2.2.0", "2.2.1", "2.3.0", "2.10.0", "2.99.99", "2.3.0-rc.1", "2.3.0+build.5"];
    let refused = ["2.1.9", "1.9.9", "3.0.0", "0.0.0", "2.2.0-rc.1", "2", "2.2", "v2.2.0", "", "two", " 2.2.0"];
    for (n, version) in accepted.iter().chain(&refused).enumerate() {
        room.join(advertises(&format!("p{n}"), version)).await.expect("the session listens");
    }
    room.join(Presence::new(common::id("silent"), common::sid("PA_silent"), 1)).await.expect("the session listens");
    let all = (accepted.len() + refused.len() + 1) as u64;
    common::until(|| session.stats().joins + session.stats().refused == all).await;
    for (n, version) in accepted.iter().enumerate() {
        live(session, &format!("p{n}")).await;
        assert_eq!(protocol(&telemetry, &format!("p{n}")).to_string(), *version);
    }
    live(session, "silent").await;
    assert_eq!(protocol(&telemetry, "silent").to_string(), "2.2.0", "the default");
    for (n, version) in (accepted.len()..).zip(refused) {
        let name = format!("p{n}");
        assert!(session.participant(&common::id(&name)).is_none(), "{version:?} was registered");
        assert!(session.participant_by_sid(&common::sid(&format!("PA_{name}"))).is_none());
        let line = room.recorder(&common::id(&name));
        within(line.wait_for(|all| all.len() == 1 && all[0].closed)).await;
        let told = told(&line);
        let [(texts, true)] = &told[..] else { panic!("{told:?}") };
        let [text] = &texts[..] else { panic!("{texts:?}") };
        assert!(text.contains(&format!("{version:?}")) && text.contains("2.2.0") && text.contains("2.3.0"), "{text}");
    }
}

/// The viewer is told once, on a stream opened for that alone, and gets nothing else, whatever is published and
/// announced.
#[tokio::test]
async fn an_incompatible_viewer_gets_one_status_and_nothing_else() {
    let (room, telemetry) = telemetry();
    let mut events = telemetry.session().events();
    let old = advertises("ada", "1.0.0");
    room.join(old.clone()).await.expect("the session listens");
    let (sid, error) = common::event(&mut events, |event| match event {
        SessionEvent::Refused { sid, error, .. } => Some((sid.clone(), error.clone())),
        _ => None,
    })
    .await;
    assert_eq!(sid, old.sid);
    let text = error.to_string();
    let JoinError::NotAccepted { reason } = error else { panic!("not expected: {error:?}") };
    assert_eq!(reason.downcast_ref::<IncompatibleVersion>().expect("telemetry refused it").advertised, "1.0.0");
    assert!(text.contains("1.0.0") && text.contains("2.2.0") && text.contains("2.3.0"), "{text}");
    telemetry.status(StatusLevel::Info, "to all", None).await.expect("the session is open");
    // Announced again, the viewer isn't told again.
    room.emit(RoomEvent::Active(old)).await.expect("the session listens");
    common::settle().await;
    assert_eq!(told(&room.recorder(&common::id("ada"))), [(vec![text], true)]);
    let stats = telemetry.session().stats();
    assert_eq!((stats.participants, stats.refused, stats.joins), (0, 1, 0));
    // The viewer comes back as another connection, still incompatible, and then with a supported version.
    let again = |connection: &str, joined_at, version: &str| {
        Presence::new(common::id("ada"), common::sid(connection), joined_at).with_attribute(ATTRIBUTE, version)
    };
    room.join(again("PA_2", 2, "1.1.0")).await.expect("the session listens");
    common::until(|| telemetry.session().stats().refused == 2).await;
    room.join(again("PA_3", 3, "2.3.0")).await.expect("the session listens");
    live(telemetry.session(), "ada").await;
    let decoded = |received: &[Received<Frame>]| decoded(WireFormat::V2, received);
    let is_greeted = |received: &[Received<Frame>]| {
        received.len() == 3 && matches!(decoded(received).first(), Some(ServerMessage::ServerInfo(_)))
    };
    within(room.recorder(&common::id("ada")).wait_for(is_greeted)).await;
}

/// The version is checked again, on the attributes that the room has at the reset.
#[tokio::test]
async fn fresh_attributes_are_checked_at_a_reset() {
    let room = Room::new();
    let telemetry = Telemetry::builder(room.clone()).configure(|session| session.queue_capacity(64)).build().unwrap();
    let mut events = telemetry.session().events();
    room.join(advertises("ada", "2.3.0")).await.expect("the session listens");
    let ada = live(telemetry.session(), "ada").await;
    room.insert_silently(advertises("ada", "3.0.0"));
    let line = room.recorder(&common::id("ada"));
    while let Ok(()) = ada.send(Frame::text("x")) {}
    assert_eq!(common::reset(&mut events).await, EndReason::Overflow);
    let error = common::event(&mut events, |event| match event {
        SessionEvent::Refused { error, .. } => Some(error.clone()),
        _ => None,
    })
    .await;
    let JoinError::NotAccepted { reason } = &error else { panic!("not expected: {error:?}") };
    assert!(reason.is::<IncompatibleVersion>());
    let all = within(line.wait_for(|all| all.len() == 2 && all[1].closed)).await;
    assert_eq!(statuses(&decoded(WireFormat::V2, &all)), [(StatusLevel::Error, error.to_string())]);
    common::settle().await;
    assert_eq!((telemetry.session().stats().participants, line.received().len()), (0, 2));
}

/// A dialect that a transport has negotiated is accepted as it is: no version is checked.
#[tokio::test]
async fn a_dialect_is_not_checked() {
    let (room, telemetry) = telemetry();
    for (n, name) in ["foxglove.websocket.v1", SDK_V1, SDK_V1_1].into_iter().enumerate() {
        let ada = advertises(&format!("p{n}"), "1.0.0").with_dialect(dialect(name));
        room.join(ada).await.expect("the session listens");
        live(telemetry.session(), &format!("p{n}")).await;
        let protocol = protocol(&telemetry, &format!("p{n}"));
        assert!(matches!(protocol, Protocol::Dialect(spoken) if spoken == dialect(name)));
        assert_eq!(protocol.to_string(), name);
    }
}

/// A hook of the embedder's decides about those whose version is supported, and about no other.
#[tokio::test]
async fn a_hook_is_asked_after_the_version_is_checked() {
    let room = Room::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let telemetry = Telemetry::builder(room.clone())
        .configure(|session| {
            session.accept(move |presence| {
                count.fetch_add(1, Ordering::SeqCst);
                if presence.identity.as_str() == "eve" { Err(Refusal::new("not Eve")) } else { Ok(()) }
            })
        })
        .build()
        .unwrap();
    let mut events = telemetry.session().events();
    let mut refused = async || {
        common::event(&mut events, |event| match event {
            SessionEvent::Refused { identity, error, .. } => Some(format!("{identity}: {error}")),
            _ => None,
        })
        .await
    };
    room.join(advertises("old", "1.0.0")).await.expect("the session listens");
    assert!(refused().await.contains("old: protocol version"));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    room.join(advertises("eve", "2.3.0")).await.expect("the session listens");
    assert_eq!(refused().await, "eve: not Eve");
    room.join(advertises("ada", "2.3.0")).await.expect("the session listens");
    live(telemetry.session(), "ada").await;
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}
