//! The hook that accepts connections: which are registered, and what the participants of the others are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use lanecast::room::memory::OpenBehavior;
use lanecast::room::{Room, RoomEvent};
use lanecast::{EndReason, JoinError, Refusal, SessionEvent};

use crate::common::{
    Call, Stage, StageSink, Streams, UNWELCOME, Unwelcome, Valve, event, id, live, memory, msg, presence, receives,
    refuses_unwelcome, reset, settle, sid, until, within,
};

#[tokio::test]
async fn the_hook_decides_who_is_registered() {
    let (room, session) = memory(|builder| builder.accept(refuses_unwelcome(|why| Some(msg(format!("not {why}"))))));
    let accepted = [None, Some("seat"), Some("")];
    let refused = ["2.1.9", "", "two", " "];
    for (n, attribute) in accepted.iter().enumerate() {
        let present = presence(&format!("p{n}"), &format!("PA_{n}"), 1);
        let present = match attribute {
            Some(value) => present.with_attribute("other", *value),
            None => present,
        };
        room.join(present).await.expect("the session listens");
    }
    for (n, value) in (accepted.len()..).zip(refused) {
        let present = presence(&format!("p{n}"), &format!("PA_{n}"), 1).with_attribute(UNWELCOME, value);
        room.join(present).await.expect("the session listens");
    }
    until(|| session.stats().joins + session.stats().refused == (accepted.len() + refused.len()) as u64).await;
    for (n, attribute) in accepted.iter().enumerate() {
        let participant = live(&session, &format!("p{n}")).await;
        assert_eq!(participant.attributes().get("other").map(String::as_str), *attribute);
        assert_eq!(Some(participant.presence()), room.present(participant.identity()).as_ref());
    }
    for (n, value) in (accepted.len()..).zip(refused) {
        let name = format!("p{n}");
        assert!(session.participant(&id(&name)).is_none(), "{value:?} was registered");
        assert!(session.participant_by_sid(&sid(&format!("PA_{n}"))).is_none());
        let streams = within(room.recorder(&id(&name)).wait_for(|all| all.len() == 1 && all[0].closed)).await;
        assert_eq!(streams[0].messages, [format!("not {value}")]);
    }
}

/// The participant is told once, on a stream opened for that alone, and gets nothing else, whatever is broadcast and
/// announced.
#[tokio::test]
async fn a_refused_participant_gets_one_message_and_nothing_else() {
    let (room, session) = memory(|builder| {
        let builder = builder.accept(refuses_unwelcome(|_| Some(msg("update yourself"))));
        builder.initial(|_| async { vec![msg("state")] })
    });
    let mut events = session.events();
    let old = presence("ada", "PA_1", 1).with_attribute(UNWELCOME, "1.0.0");
    room.join(old.clone()).await.expect("the session listens");
    let (who, error) = event(&mut events, |event| match event {
        SessionEvent::Refused { sid, error, .. } => Some((sid.clone(), error.clone())),
        _ => None,
    })
    .await;
    assert_eq!(who, sid("PA_1"));
    assert_eq!(error.to_string(), Unwelcome("1.0.0".to_owned()).to_string());
    let JoinError::NotAccepted { reason } = error else { panic!("not expected: {error:?}") };
    assert_eq!(reason.downcast_ref(), Some(&Unwelcome("1.0.0".to_owned())));
    session.broadcast(msg("to all")).await.expect("the session is open");
    // Announced again, the participant isn't told again.
    room.emit(RoomEvent::Active(old)).await.expect("the session listens");
    settle().await;
    let all = room.recorder(&id("ada")).received();
    assert_eq!((all.len(), all[0].closed), (1, true));
    assert_eq!(all[0].messages, ["update yourself"]);
    assert_eq!((session.stats().participants, session.stats().refused, session.stats().joins), (0, 1, 0));
    // The participant comes back as another connection, still unwelcome, and then as a welcome one.
    room.join(presence("ada", "PA_2", 2).with_attribute(UNWELCOME, "1.1.0")).await.expect("the session listens");
    until(|| session.stats().refused == 2).await;
    room.join(presence("ada", "PA_3", 3)).await.expect("the session listens");
    live(&session, "ada").await;
    receives(&room, "ada", &["state"]).await;
}

// 1. PA_1 is registered. 2. The same identity reconnects as PA_2, is refused, and is told so. 3. The
// disconnect of PA_1 comes late, and the loop asks the room what it has now: PA_2. 4. PA_2 isn't told a second time.
#[tokio::test]
async fn a_late_disconnect_of_the_predecessor_repeats_no_refusal() {
    let (room, session) = memory(|builder| builder.accept(refuses_unwelcome(|_| Some(msg("update yourself")))));
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    live(&session, "ada").await;
    room.join(presence("ada", "PA_2", 2).with_attribute(UNWELCOME, "1.0.0")).await.expect("the session listens");
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
    let (room, session) = memory(|builder| builder.accept(refuses_unwelcome(|_| None)));
    room.join(presence("ada", "PA_1", 1).with_attribute(UNWELCOME, "9.0.0")).await.expect("the session listens");
    until(|| session.stats().refused == 1).await;
    assert!(room.recorder(&id("ada")).received().is_empty());
    for opening in [OpenBehavior::Fails, OpenBehavior::Held] {
        let (room, session) =
            memory(|builder| builder.accept(refuses_unwelcome(|_| Some(msg("no")))).concurrent_joins(1));
        room.recorder(&id("ada")).set_open_behavior(opening);
        room.join(presence("ada", "PA_1", 1).with_attribute(UNWELCOME, "9.0.0")).await.expect("the session listens");
        let mut events = session.events();
        let error = event(&mut events, |event| match event {
            SessionEvent::Refused { error, .. } => Some(error.clone()),
            _ => None,
        });
        assert!(matches!(error.await, JoinError::NotAccepted { .. }));
        room.join(presence("bob", "PA_2", 1)).await.expect("the session listens");
        live(&session, "bob").await;
        assert_eq!(session.stats().participants, 1);
    }
}

// 1. PA_1 is registered. 2. Ada reconnects as PA_2, is refused, and is told so. 3. PA_1 overflows
// before its disconnect comes. 4. PA_2 isn't told a second time.
#[tokio::test]
async fn a_reset_of_the_predecessor_repeats_no_refusal() {
    let (stage, streams) = Streams::<Bytes>::stage(|_| Valve::open());
    let session =
        stage.session(|builder| builder.queue_capacity(1).accept(refuses_unwelcome(|_| Some(msg("update yourself")))));
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    let old = live(&session, "ada").await;
    stage.join(presence("ada", "PA_2", 2).with_attribute(UNWELCOME, "1.0.0"));
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
    let session = stage.session(|builder| builder.accept(refuses_unwelcome(|_| Some(msg("update yourself")))));
    stage.join(presence("ada", "PA_1", 1).with_attribute(UNWELCOME, "1.0.0"));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((told.load(Ordering::SeqCst), session.stats().refused, session.stats().failed_joins), (101, 1, 0));
}

/// Nothing is refused unless a hook refuses it, whatever the connection's attributes say.
#[tokio::test]
async fn without_a_hook_everybody_is_accepted() {
    let (room, session) = memory(|builder| builder);
    let ada = presence("ada", "PA_1", 1).with_attribute(UNWELCOME, "1.0.0").with_attribute("protocolVersion", "1.0.0");
    room.join(ada).await.expect("the session listens");
    live(&session, "ada").await;
    assert_eq!(session.stats().refused, 0);
}

/// The hook panics once: the attempt fails, and the next one asks again.
#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_is_asked_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let (room, session) = memory(|builder| {
        builder.accept(move |_| {
            assert!(count.fetch_add(1, Ordering::SeqCst) > 0, "the hook was told to panic");
            Ok(())
        })
    });
    let mut events = session.events();
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    let error = event(&mut events, |event| match event {
        SessionEvent::JoinFailed { error, .. } => Some(error.clone()),
        _ => None,
    });
    assert!(matches!(error.await, JoinError::Panicked));
    event(&mut events, |event| matches!(event, SessionEvent::Joined(_)).then_some(())).await;
    assert_eq!((asked.load(Ordering::SeqCst), session.stats().refused), (2, 0));
}

/// The payload of a message doesn't appear in the debug output of its refusal.
#[test]
fn a_refusal_shows_its_reason_and_no_payload() {
    let refusal = Refusal::new("no seat").with_message(msg("secret"));
    let text = format!("{refusal:?}");
    assert!(text.contains("no seat") && !text.contains("secret"), "{text}");
}
