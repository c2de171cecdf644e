//! Figures and events: the account balances at rest and never has an excess under load, and slow listeners learn what
//! they missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lanecast::room::RoomEvent;
use lanecast::room::memory::{Behavior, OpenBehavior};
use lanecast::{JoinError, SessionEvent, SubscriptionTag, Topic};
use tokio::time::advance;

use crate::common::{
    Streams, UNWELCOME, Valve, assert_settled, assert_waiting, close_settled, id, joined, live, memory, msg, outcomes,
    presence, refuses_unwelcome, settle, sid, size, until, within,
};

/// One participant of each kind; at rest the account of each, and of the session, is exact.
#[tokio::test]
async fn at_rest_every_offered_message_has_one_outcome_or_waits() {
    let (room, session) =
        memory(|builder| builder.queue_capacity(16).initial(|_| async { vec![msg("in"), msg("it")] }));
    let topic = Topic::new();
    let mut all = Vec::new();
    for name in ["well", "stuck", "leaves", "fails", "slow", "back"] {
        let participant = joined(&room, &session, name).await;
        participant.subscribe(&topic, SubscriptionTag(0)).await;
        all.push(participant);
    }
    until(|| session.stats().account.delivered == 12).await;
    for name in ["stuck", "leaves", "slow", "back"] {
        room.recorder(&id(name)).set_behavior(Behavior::Stall { capacity: 2 });
    }
    for participant in &all[..5] {
        session.broadcast(msg("four")).await.expect("the session is open");
        session.broadcast_to(&topic, msg("topic")).await.expect("the session is open");
        participant.send(msg("direct")).expect("there is capacity");
    }
    until(|| session.stats().account.waiting() == 43).await;
    // Its next stream opens only once writes succeed again.
    room.recorder(&id("fails")).set_open_behavior(OpenBehavior::Held);
    room.recorder(&id("fails")).set_behavior(Behavior::Fail);
    room.leave(&id("leaves"), &sid("PA_leaves")).await.expect("the session listens");
    room.join(presence("back", "PA_again", 2)).await.expect("the session listens");
    within(all[2].closed()).await;
    within(all[5].closed()).await;
    while all[4].send(msg("direct")).is_ok() {}
    session.broadcast(msg("last")).await.expect("the session is open");
    until(|| session.stats().joins == 8 && session.stats().resets.total() == 2).await;
    room.recorder(&id("fails")).set_behavior(Behavior::Flow);
    room.recorder(&id("fails")).set_open_behavior(OpenBehavior::Ready);
    until(|| session.stats().participants == 5 && session.stats().resets.total() == 2).await;
    settle().await;

    let [well, stuck, leaves, fails, slow, back] = &all[..] else { unreachable!("there are six") };
    let account = |participant: &lanecast::Participant<Bytes>| participant.stats().account;
    assert_eq!((account(well).delivered, account(well).delivered_bytes), (14, 2 + 2 + 5 * 9 + 6 + 4));
    assert_waiting(&account(stuck), 12);
    assert_eq!(stuck.stats().account.waiting(), 12);
    assert_eq!((account(leaves).abandoned.disconnected, account(leaves).abandoned.total()), (11, 11));
    assert_eq!((account(fails).delivered, account(fails).dropped.write_failed), (13, 1));
    assert_eq!(account(slow).dropped.overflow, account(slow).dropped.total());
    assert_eq!(account(back).abandoned.replaced, 10);
    for ended in [leaves, fails, slow, back] {
        assert_settled(&account(ended));
    }
    let now: u64 = session.participants().iter().map(|participant| participant.stats().account.waiting()).sum();
    assert_waiting(&session.stats().account, now);
    assert_eq!(session.stats().account.waiting(), now);
    let offered: u64 = all.iter().map(|participant| account(participant).offered).sum();
    let fresh = session
        .participants()
        .iter()
        .filter(|one| !all.contains(one))
        .map(|one| one.stats().account.offered)
        .sum::<u64>();
    assert_eq!(session.stats().account.offered, offered + fresh, "the session's account is the sum of theirs");
    session.cancel();
    assert_eq!(close_settled(&session).await.abandoned.session_closed, now);
}

// 1. Senders, broadcasters, joins, resets and ends go on without pause. 2. At every look the outcomes number at most
// the messages offered, for the session and for each participant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_never_exceed_the_messages_offered() {
    let (room, session) = memory(|builder| {
        builder.queue_capacity(8).shards(2).reset_backoff(Duration::from_millis(1), Duration::from_millis(2))
    });
    let stop = Arc::new(AtomicBool::new(false));
    let names = ["a", "b", "c", "d"];
    for name in names {
        joined(&room, &session, name).await;
    }
    let senders: Vec<_> = (0..2)
        .map(|thread| {
            let (session, stop) = (session.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut n = thread;
                while !stop.load(Ordering::Acquire) {
                    n += 1;
                    let _ = session.try_broadcast(msg("to all"));
                    for participant in session.participants() {
                        let _ = if n % 7 == 0 {
                            participant.send(msg("x")).is_ok()
                        } else {
                            participant.try_send(msg("y")).is_ok()
                        };
                    }
                }
            })
        })
        .collect();
    let troubles = tokio::spawn({
        let (room, stop) = (room.clone(), Arc::clone(&stop));
        async move {
            let mut time = 1;
            while !stop.load(Ordering::Acquire) {
                time += 1;
                let recorder = room.recorder(&id(names[time as usize % 4]));
                recorder
                    .set_behavior([Behavior::Fail, Behavior::Stall { capacity: 1 }, Behavior::Flow][time as usize % 3]);
                let name = names[time as usize % 3];
                room.join(presence(name, &format!("PA_{time}"), time)).await.expect("the session listens");
                tokio::task::yield_now().await;
                recorder.set_behavior(Behavior::Flow);
            }
        }
    });
    let mut known = Vec::new();
    for _ in 0..size(2_000, 50_000) {
        let account = session.stats().account;
        assert!(account.offered >= outcomes(&account), "more has an outcome than was offered: {account:?}");
        known.extend(session.participants());
        for participant in &known {
            let account = participant.stats().account;
            assert!(account.offered >= outcomes(&account), "{participant}: {account:?}");
        }
        known.truncate(16);
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Release);
    senders.into_iter().for_each(|sender| sender.join().expect("no sender panics"));
    within(troubles).await.expect("it doesn't panic");
    close_settled(&session).await;
    known.iter().for_each(|participant| assert_settled(&participant.stats().account));
}

/// Initial messages count as offered whenever their participant ends, also between its registration and their delivery.
/// The end comes a step later each time, until it comes after everything.
#[tokio::test]
async fn initial_messages_are_counted_whenever_the_end_comes() {
    for cancel in [false, true] {
        for steps in 0..40 {
            let (room, session) =
                memory(|builder| builder.queue_capacity(1).initial(|_| async { vec![msg("a"), msg("b")] }));
            room.recorder(&id("ada")).set_behavior(Behavior::Stall { capacity: 0 });
            room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
            while session.participant(&id("ada")).is_none() {
                tokio::task::yield_now().await;
            }
            let ada = session.participant(&id("ada")).expect("it was registered a moment ago");
            for _ in 0..steps {
                tokio::task::yield_now().await;
            }
            if cancel {
                session.cancel();
            } else {
                while ada.send(msg("c")).is_ok() {}
            }
            within(ada.closed()).await;
            let account = ada.stats().account;
            assert_eq!(account.offered, outcomes(&account), "after {steps} steps, cancel: {cancel}: {account:?}");
            // The next instance is stalled as well, so the close has no delivery to wait for.
            let report = within(session.close(Duration::ZERO)).await.expect("it closes without an error");
            assert_eq!(report.account.offered, outcomes(&report.account), "after {steps} steps: {:?}", report.account);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_backlogs_depth_and_age_are_reported() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.write_timeout(Duration::from_secs(1_000)));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    settle().await;
    assert_eq!(
        (ada.stats().account.waiting(), ada.stats().oldest_waiting, session.stats().oldest_waiting),
        (0, None, None)
    );
    // A single message is stuck in the sink.
    session.broadcast(msg("a")).await.expect("the session is open");
    let valve = streams.nth("ada", 0).await;
    valve.wait_for(|seen| seen.taken.len() == 1).await;
    settle().await;
    advance(Duration::from_secs(3)).await;
    let close_to = |age: Option<Duration>, seconds: u64| {
        age.is_some_and(|age| age.abs_diff(Duration::from_secs(seconds)) <= Duration::from_millis(2))
    };
    assert!(close_to(ada.stats().oldest_waiting, 3), "{:?}", ada.stats());
    // A second message waits behind it.
    session.broadcast(msg("b")).await.expect("the session is open");
    settle().await;
    advance(Duration::from_secs(2)).await;
    assert_eq!(ada.stats().account.waiting(), 2);
    assert!(close_to(ada.stats().oldest_waiting, 5), "{:?}", ada.stats());
    assert!(close_to(session.stats().oldest_waiting, 5), "{:?}", session.stats());
    // The first message goes: the second is now the oldest.
    valve.let_through(1);
    valve.wait_for(|seen| seen.flushed.len() == 1).await;
    settle().await;
    assert!(close_to(ada.stats().oldest_waiting, 2), "{:?}", ada.stats());
    valve.release();
    until(|| ada.stats().account.waiting() == 0).await;
    assert_eq!((ada.stats().oldest_waiting, session.stats().oldest_waiting), (None, None));
}

#[tokio::test]
async fn joins_and_departures_are_counted_and_reported() {
    let (room, session) = memory(|builder| builder.accept(refuses_unwelcome(|_| None)));
    let mut events = session.events();
    joined(&room, &session, "ada").await;
    room.join(presence("ada", "PA_2", 2)).await.expect("the session listens");
    until(|| session.participant_by_sid(&sid("PA_2")).is_some()).await;
    room.emit(RoomEvent::Active(presence("ada", "PA_0", 0))).await.expect("the session listens");
    until(|| session.stats().stale_joins == 1).await;
    let bad = presence("bob", "PA_3", 1).with_attribute(UNWELCOME, "no reason");
    room.join(bad).await.expect("the session listens");
    until(|| session.stats().refused == 1).await;
    room.leave(&id("ada"), &sid("PA_2")).await.expect("the session listens");
    room.emit(RoomEvent::UplinkStalled).await.expect("the session listens");
    room.emit(RoomEvent::UplinkFlowing).await.expect("the session listens");
    until(|| session.stats().uplink_stalls == 1 && !session.stats().uplink_stalled).await;
    let stats = session.stats();
    assert_eq!((stats.participants, stats.joins, stats.replacements), (0, 2, 1));
    close_settled(&session).await;
    let mut told = Vec::new();
    loop {
        let event = within(events.next()).await.expect("the event Closed comes last");
        told.push(match &event {
            SessionEvent::Joined(who) => format!("joined {}", who.sid),
            SessionEvent::Replaced { who, prior, .. } => format!("{} replaced {}", who.sid, prior.sid),
            SessionEvent::Refused { sid, error: JoinError::Stale, .. } => format!("stale {sid}"),
            SessionEvent::Refused { sid, error: JoinError::NotAccepted { .. }, .. } => format!("not accepted {sid}"),
            SessionEvent::Left { who, .. } => format!("left {}", who.sid),
            other => format!("{other:?}"),
        });
        if matches!(event, SessionEvent::Closed) {
            break;
        }
    }
    let expected = [
        "joined PA_ada",
        "PA_2 replaced PA_ada",
        "stale PA_0",
        "not accepted PA_3",
        "left PA_2",
        "UplinkStalled",
        "UplinkFlowing",
        "Closed",
    ];
    assert_eq!(told, expected);
    assert_eq!(events.missed(), 0);
    drop(session);
    assert!(within(events.next()).await.is_none(), "nothing follows");
}

// 1. More happens than fits while a listener doesn't read. 2. It gets the latest events, and the number of those it
// missed.
#[tokio::test]
async fn a_slow_listener_learns_how_many_events_it_missed() {
    let (room, session) = memory(|builder| builder.event_capacity(4));
    let mut slow = session.events();
    for n in 0..10 {
        joined(&room, &session, &format!("p{n}")).await;
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        match within(slow.next()).await {
            Some(SessionEvent::Joined(who)) => seen.push(who.identity.to_string()),
            other => panic!("not expected: {other:?}"),
        }
    }
    assert_eq!(seen, ["p6", "p7", "p8", "p9"]);
    assert_eq!(slow.missed(), 6);
}

/// An instance that fails before it is registered isn't reset: its join has failed.
#[tokio::test(start_paused = true)]
async fn a_failed_join_is_not_counted_as_a_reset() {
    let (room, session) = memory(|builder| {
        builder.queue_capacity(2).initial(|participant| async move {
            while participant.send(msg("x")).is_ok() {}
            Vec::new()
        })
    });
    let mut events = session.events();
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    until(|| session.stats().failed_joins == 1).await;
    session.cancel();
    within(session.ended()).await.expect("it ends without an error");
    assert_eq!((session.stats().joins, session.stats().resets.total()), (0, 0));
    while let Some(event) = within(events.next()).await {
        assert!(!matches!(event, SessionEvent::Reset { .. }), "{event:?}");
    }
}

// 1. A participant's sink is shut, so that messages wait. 2. The statistics are serialized with the names of their
// fields, and times as numbers of seconds.
// The feature `telemetry` brings `serde_json`.
#[cfg(all(feature = "serde", feature = "telemetry"))]
#[tokio::test(start_paused = true)]
async fn statistics_can_be_serialized() {
    let (room, session) = memory(|builder| builder.queue_capacity(16));
    room.recorder(&id("ada")).set_behavior(Behavior::Stall { capacity: 0 });
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    live(&session, "ada").await;
    session.broadcast(msg("waits")).await.expect("the session is open");
    settle().await;
    advance(Duration::from_millis(1500)).await;
    let of_session = serde_json::to_value(session.stats()).expect("it can be serialized");
    assert_eq!(of_session["participants"], 1);
    assert_eq!(of_session["account"]["offered"], 1);
    assert_eq!(of_session["account"]["dropped"]["lossy"]["expired"], 0);
    assert_eq!(of_session["oldest_waiting"], 1.5);
    assert_eq!(of_session["publishers_held_for"], 0.0);
    let participant = session.participants().pop().expect("it is there");
    let of_participant = serde_json::to_value(participant.stats()).expect("it can be serialized");
    assert_eq!(of_participant["oldest_waiting"], 1.5);
    assert_eq!(of_participant["link_rate"], serde_json::Value::Null);
    session.cancel();
}
