//! Ids: which texts are accepted, that they are distinct and never reused, and that no payload is printed with them.

use std::collections::HashSet;

use lanecast::room::memory::Behavior;
use lanecast::{IdError, ParticipantIdentity, ParticipantSid, TrySendError};

use crate::common::{id, joined, memory, msg, reset, sid, until};

#[test]
fn ids_have_one_to_128_bytes() {
    assert!(matches!(ParticipantIdentity::new(""), Err(IdError::Empty { .. })));
    assert!(matches!("".parse::<ParticipantSid>(), Err(IdError::Empty { .. })));
    let longest = "x".repeat(128);
    assert_eq!(ParticipantIdentity::new(&longest).expect("128 bytes are allowed").as_str(), longest);
    assert_eq!(sid(&longest).to_string(), longest);
    let long = "x".repeat(129);
    assert!(matches!(ParticipantSid::try_from(long), Err(IdError::TooLong { bytes: 129, .. })));
    // The limit is in bytes, not in characters.
    assert!(matches!(ParticipantIdentity::try_from("ß".repeat(65)), Err(IdError::TooLong { bytes: 130, .. })));
    assert!(ParticipantIdentity::try_from("ß".repeat(64).as_str()).is_ok());
}

#[test]
fn ids_compare_by_text_and_clones_share_it() {
    assert_eq!(id("ada"), id("ada"));
    assert_ne!(id("ada"), id("Ada"));
    let set: HashSet<_> = [id("ada"), id("bob"), id("ada")].into();
    assert_eq!(set.len(), 2);
    let ada = id("ada");
    assert!(std::ptr::eq(ada.as_str(), ada.clone().as_str()), "a clone is an increment, not a copy");
}

#[tokio::test]
async fn client_ids_are_never_reused() {
    // 1. Forty participants join two sessions of one process.
    let (first_room, first) = memory(|builder| builder);
    let (second_room, second) = memory(|builder| builder);
    let mut seen = HashSet::new();
    for n in 0..20 {
        let name = format!("p{n}");
        assert!(seen.insert(joined(&first_room, &first, &name).await.client_id()));
        assert!(seen.insert(joined(&second_room, &second, &name).await.client_id()));
    }
    // 2. One is reset: the same sid, another client id.
    let before = first.participant(&id("p0")).expect("it has joined");
    let mut events = first.events();
    first_room.recorder(&id("p0")).set_behavior(Behavior::Fail);
    before.send(msg("x")).expect("there is capacity");
    reset(&mut events).await;
    first_room.recorder(&id("p0")).set_behavior(Behavior::Flow);
    until(|| first.participant(&id("p0")).is_some()).await;
    let after = first.participant(&id("p0")).expect("it was there a moment ago");
    assert_eq!(before.sid(), after.sid());
    assert!(seen.insert(after.client_id()), "a reset makes a new instance");
    assert_ne!(before, after);
    // 3. One leaves and comes back.
    first_room.leave(&id("p1"), &sid("PA_p1")).await.expect("the session listens");
    until(|| first.participant(&id("p1")).is_none()).await;
    assert!(seen.insert(joined(&first_room, &first, "p1").await.client_id()));
}

#[tokio::test]
async fn printed_values_name_the_participant_and_never_a_payload() {
    let (room, session) = memory(|builder| builder.queue_capacity(1).initial(|_| async { vec![msg("secret one")] }));
    let ada = joined(&room, &session, "ada").await;
    until(|| ada.stats().account.delivered == 1).await;
    room.recorder(&id("ada")).set_behavior(Behavior::Stall { capacity: 0 });
    while ada.try_send(msg("secret two")).is_ok() {}
    let refused = ada.try_send(msg("secret three")).expect_err("the queue holds one");
    let client = ada.client_id().to_string();
    for printed in [format!("{ada}"), format!("{ada:?}")] {
        for part in ["ada", "PA_ada", &client] {
            assert!(printed.contains(part), "{printed} doesn't contain {part}");
        }
        assert!(!printed.contains("secret"), "{printed}");
    }
    for printed in [format!("{refused:?}"), format!("{refused}"), format!("{session:?}")] {
        assert!(!printed.contains("secret"), "{printed}");
    }
    assert!(matches!(refused, TrySendError::Full(message) if message == "secret three"));
}
