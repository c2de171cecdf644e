//! Protocol versions: which participants are registered, and what the others are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use lanecast::participant::Protocol;
use lanecast::room::RoomEvent;
use lanecast::room::memory::OpenBehavior;
use lanecast::{EndReason, JoinError, SessionEvent};

use crate::common::{
    Call, Stage, StageSink, Streams, Valve, event, id, live, memory, msg, presence, receives, reset, settle, sid,
    until, within,
};

const ATTRIBUTE: &str = "protocolVersion";

#[tokio::test]
async fn the_major_version_and_the_lowest_supported_version_decide() {
    let (room, session) = memory(|builder| builder.refusal(|_, why| Some(msg(format!("not {}", why.advertised)))));
    let accepted = ["2.2.0", "2.2.1", "2.3.0", "2.10.0", "2.99.99", "2.3.0-rc.1", "2.3.0+build.5"];
    let refused = ["2.1.9", "1.9.9", "3.0.0", "0.0.0", "2.2.0-rc.1", "2", "2.2", "v2.2.0", "", "two", " 2.2.0"];
    for (n, version) in accepted.iter().chain(&refused).enumerate() {
        let name = format!("p{n}");
        room.join(presence(&name, &format!("PA_{n}"), 1).with_attribute(ATTRIBUTE, *version))
            .await
            .expect("the session listens");
    }
    room.join(presence("silent", "PA_silent", 1)).await.expect("the session listens");
    until(|| session.stats().joins + session.stats().refused == (accepted.len() + refused.len() + 1) as u64).await;
    for (n, version) in accepted.iter().enumerate() {
        let participant = live(&session, &format!("p{n}")).await;
        assert_eq!(participant.protocol().to_string(), *version);
    }
    assert_eq!(live(&session, "silent").await.protocol().to_string(), "2.2.0", "the default");
    for (n, version) in refused.iter().enumerate() {
        let name = format!("p{}", n + accepted.len());
        assert!(session.participant(&id(&name)).is_none(), "{version:?} was registered");
        assert!(session.participant_by_sid(&sid(&format!("PA_{}", n + accepted.len()))).is_none());
        let told = format!("not {version}");
        let streams = within(room.recorder(&id(&name)).wait_for(|all| all.len() == 1 && all[0].closed)).await;
        assert_eq!(streams[0].messages, [told]);
    }
}

/// The participant is told once, on a stream opened for that alone, and gets nothing else, whatever is broadcast and
/// announced.
#[tokio::test]
async fn an_incompatible_participant_gets_one_message_and_nothing_else() {
    let (room, session) = memory(|builder| {
        builder.refusal(|_, _| Some(msg("update yourself"))).initial(|_| async { vec![msg("state")] })
    });
    let mut events = session.events();
    let old = presence("ada", "PA_1", 1).with_attribute(ATTRIBUTE, "1.0.0");
    room.join(old.clone()).await.expect("the session listens");
    let (who, error) = event(&mut events, |event| match event {
        SessionEvent::Refused { sid, error, .. } => Some((sid.clone(), error.clone())),
        _ => None,
    })
    .await;
    assert_eq!(who, sid("PA_1"));
    let JoinError::Incompatible(why) = error else { panic!("not expected: {error:?}") };
    assert_eq!(why.advertised, "1.0.0");
    let text = why.to_string();
    assert!(text.contains("1.0.0") && text.contains("2.2.0") && text.contains("2.3.0"), "{text}");
    session.broadcast(msg("to all")).await.expect("the session is open");
    // Announced again, the participant isn't told again.
    room.emit(RoomEvent::Active(old)).await.expect("the session listens");
    settle().await;
    let all = room.recorder(&id("ada")).received();
    assert_eq!((all.len(), all[0].closed), (1, true));
    assert_eq!(all[0].messages, ["update yourself"]);
    assert_eq!((session.stats().participants, session.stats().refused, session.stats().joins), (0, 1, 0));
    // The participant comes back as another connection, still incompatible, and then with a supported version.
    room.join(presence("ada", "PA_2", 2).with_attribute(ATTRIBUTE, "1.1.0")).await.expect("the session listens");
    until(|| session.stats().refused == 2).await;
    room.join(presence("ada", "PA_3", 3).with_attribute(ATTRIBUTE, "2.3.0")).await.expect("the session listens");
    live(&session, "ada").await;
    receives(&room, "ada", &["state"]).await;
}

// 1. PA_1 is registered. 2. The same identity reconnects as PA_2 with an incompatible version, and is told so. 3. The
// disconnect of PA_1 comes late, and the loop asks the room what it has now: PA_2. 4. PA_2 isn't told a second time.
#[tokio::test]
async fn a_late_disconnect_of_the_predecessor_repeats_no_refusal() {
    let (room, session) = memory(|builder| builder.refusal(|_, _| Some(msg("update yourself"))));
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    live(&session, "ada").await;
    room.join(presence("ada", "PA_2", 2).with_attribute(ATTRIBUTE, "1.0.0")).await.expect("the session listens");
    until(|| session.stats().refused == 1).await;
    room.leave(&id("ada"), &sid("PA_1")).await.expect("the session listens");
    until(|| session.stats().participants == 0).await;
    settle().await;
    let told: Vec<_> = room.recorder(&id("ada")).received().into_iter().filter(|one| one.sid == sid("PA_2")).collect();
    assert_eq!(told.len(), 1, "told {} times", told.len());
    assert_eq!((session.stats().refused, session.stats().joins), (1, 1));
    // What was remembered of PA_2 goes with it: the same sid could come again.
    room.leave(&id("ada"), &sid("PA_2")).await.expect("the session listens");
    room.join(presence("ada", "PA_2", 3)).await.expect("the session listens");
    live(&session, "ada").await;
}

/// Without a message for the refusal, no stream is opened. A stream for the message that can't be opened changes
/// nothing.
#[tokio::test(start_paused = true)]
async fn a_refusal_without_a_message_or_a_stream_still_refuses() {
    let (room, session) = memory(|builder| builder);
    room.join(presence("ada", "PA_1", 1).with_attribute(ATTRIBUTE, "9.0.0")).await.expect("the session listens");
    until(|| session.stats().refused == 1).await;
    assert!(room.recorder(&id("ada")).received().is_empty());
    for opening in [OpenBehavior::Fails, OpenBehavior::Held] {
        let (room, session) = memory(|builder| builder.refusal(|_, _| Some(msg("no"))).concurrent_joins(1));
        room.recorder(&id("ada")).set_open_behavior(opening);
        room.join(presence("ada", "PA_1", 1).with_attribute(ATTRIBUTE, "9.0.0")).await.expect("the session listens");
        let mut events = session.events();
        let error = event(&mut events, |event| match event {
            SessionEvent::Refused { error, .. } => Some(error.clone()),
            _ => None,
        });
        assert!(matches!(error.await, JoinError::Incompatible(_)));
        room.join(presence("bob", "PA_2", 1)).await.expect("the session listens");
        live(&session, "bob").await;
        assert_eq!(session.stats().participants, 1);
    }
}

/// A protocol that a transport has negotiated is accepted as it is: no version is checked.
#[tokio::test]
async fn a_negotiated_protocol_is_not_checked() {
    let (room, session) = memory(|builder| builder);
    let ada = presence("ada", "PA_1", 1).with_attribute(ATTRIBUTE, "1.0.0").with_negotiated("foxglove.sdk.v1");
    room.join(ada).await.expect("the session listens");
    let ada = live(&session, "ada").await;
    assert!(matches!(ada.protocol(), Protocol::Negotiated(name) if &**name == "foxglove.sdk.v1"));
    assert_eq!(ada.protocol().to_string(), "foxglove.sdk.v1");
}

// 1. PA_1 is registered. 2. Ada reconnects as PA_2 with an incompatible version, and is told so. 3. PA_1 overflows
// before its disconnect comes. 4. PA_2 isn't told a second time.
#[tokio::test]
async fn a_reset_of_the_predecessor_repeats_no_refusal() {
    let (stage, streams) = Streams::<Bytes>::stage(|_| Valve::open());
    let session = stage.session(|builder| builder.queue_capacity(1).refusal(|_, _| Some(msg("update yourself"))));
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    let old = live(&session, "ada").await;
    stage.join(presence("ada", "PA_2", 2).with_attribute(ATTRIBUTE, "1.0.0"));
    until(|| session.stats().refused == 1).await;
    while old.send(msg("x")).is_ok() {}
    assert_eq!(reset(&mut events).await, EndReason::Overflow);
    settle().await;
    stage.leave("ada", "PA_1");
    settle().await;
    assert_eq!((session.stats().refused, streams.count("ada")), (1, 2), "refused, and streams opened");
}

/// The stream takes the one message and panics when it is closed: Ada has been told, and isn't told again.
#[tokio::test(start_paused = true)]
async fn a_refusal_whose_stream_panics_is_not_repeated() {
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let stage = Stage::<Bytes>::new(move |_, _| {
        let told = Arc::clone(&count);
        let sink = StageSink::new(move |call, _| {
            // A close counts a hundred, a message one.
            match call {
                Call::Send(_) => told.fetch_add(1, Ordering::SeqCst),
                Call::Close => told.fetch_add(100, Ordering::SeqCst),
                Call::Ready | Call::Flush | Call::Drop => 0,
            };
            assert!(!matches!(call, Call::Close), "the stream was told to panic");
            Poll::Ready(Ok(()))
        });
        async { Ok(sink) }
    });
    let session = stage.session(|builder| builder.refusal(|_, _| Some(msg("update yourself"))));
    stage.join(presence("ada", "PA_1", 1).with_attribute(ATTRIBUTE, "1.0.0"));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((told.load(Ordering::SeqCst), session.stats().refused, session.stats().failed_joins), (101, 1, 0));
}
