//! The registry as seen from outside: which instance replaces which, and what a look-up finds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lanecast::room::RoomEvent;
use lanecast::room::memory::{Behavior, MemoryRoom, OpenBehavior};
use lanecast::{EndReason, JoinError, SessionEvent};

use crate::common::{
    Streams, Valve, assert_settled, close_settled, event, id, joined, live, memory, msg, presence, receives, settle,
    sid, size, until, within,
};

fn gone(identity: &str, connection: &str) -> RoomEvent<tokio::sync::mpsc::Receiver<bytes::Bytes>> {
    RoomEvent::Disconnected { identity: id(identity), sid: sid(connection) }
}

// 1. Ada joins as PA_1. 2. She reconnects as PA_2, which replaces PA_1. 3. The disconnect of PA_1 arrives, late. 4.
// PA_2 is untouched.
#[tokio::test]
async fn a_late_disconnect_does_not_end_the_new_connection() {
    let (room, session) = memory(|builder| builder);
    let mut events = session.events();
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    let first = live(&session, "ada").await;
    room.join(presence("ada", "PA_2", 2)).await.expect("the session listens");
    assert_eq!(within(first.closed()).await, EndReason::Replaced);
    until(|| session.participant_by_sid(&sid("PA_2")).is_some()).await;
    room.emit(gone("ada", "PA_1")).await.expect("the session listens");
    settle().await;
    let second = session.participant(&id("ada")).expect("she is there");
    assert_eq!((second.sid(), second.end_reason()), (&sid("PA_2"), None));
    assert!(session.participant_by_sid(&sid("PA_1")).is_none());
    session.broadcast(msg("still here")).await.expect("the session is open");
    receives(&room, "ada", &["still here"]).await;
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Joined(who)) if who.sid == sid("PA_1")));
    let replaced = within(events.next()).await;
    assert!(matches!(replaced, Some(SessionEvent::Replaced { who, prior, .. })
        if who.client_id == second.client_id() && prior.client_id == first.client_id()));
    assert_eq!((session.stats().joins, session.stats().replacements, session.stats().participants), (2, 1, 1));
    close_settled(&session).await;
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Closed)), "nobody left");
}

// 1. PA_2 (joined at 20) is announced and registered. 2. The announcement of PA_1 (joined at 10) arrives. 3. PA_1 is
// refused as stale, no stream is opened for it, and PA_2 goes on.
#[tokio::test]
async fn a_stale_join_is_refused() {
    let (room, session) = memory(|builder| builder);
    let mut events = session.events();
    room.join(presence("ada", "PA_2", 20)).await.expect("the session listens");
    let ada = live(&session, "ada").await;
    room.emit(RoomEvent::Active(presence("ada", "PA_1", 10))).await.expect("the session listens");
    let refused = event(&mut events, |event| match event {
        SessionEvent::Refused { sid, error, .. } => Some((sid.clone(), error.clone())),
        _ => None,
    });
    let (refused, error) = refused.await;
    assert_eq!(refused, sid("PA_1"));
    assert!(matches!(error, JoinError::Stale), "{error}");
    assert_eq!(session.participant(&id("ada")), Some(ada));
    assert_eq!(session.stats().stale_joins, 1);
    assert_eq!(room.recorder(&id("ada")).received().len(), 1, "decided before a stream is opened");
}

/// The same, while the newer connection's stream is still being opened.
#[tokio::test]
async fn a_stale_join_is_refused_while_the_newer_one_is_under_way() {
    let (room, session) = memory(|builder| builder);
    let recorder = room.recorder(&id("ada"));
    recorder.set_open_behavior(OpenBehavior::Held);
    room.join(presence("ada", "PA_2", 20)).await.expect("the session listens");
    settle().await;
    room.emit(RoomEvent::Active(presence("ada", "PA_1", 10))).await.expect("the session listens");
    until(|| session.stats().stale_joins == 1).await;
    recorder.set_open_behavior(OpenBehavior::Ready);
    assert_eq!(live(&session, "ada").await.sid(), &sid("PA_2"));
    assert_eq!(session.stats().joins, 1);
}

// 1. PA_1's sink is in the middle of a write. 2. PA_2 replaces it. 3. PA_1's flush is cancelled, the messages it held
// are counted as abandoned, and its sink is dropped.
#[tokio::test]
async fn replacing_an_instance_cancels_its_flush() {
    let (stage, streams) = Streams::stage(|to| if to.sid == sid("PA_1") { Valve::shut() } else { Valve::open() });
    let session = stage.session(|builder| builder);
    stage.join(presence("ada", "PA_1", 1));
    let prior = live(&session, "ada").await;
    session.broadcast(msg("a")).await.expect("the session is open");
    let valve = streams.nth("ada", 0).await;
    valve.wait_for(|seen| seen.taken.len() == 1).await;
    session.broadcast(msg("b")).await.expect("the session is open");
    until(|| prior.stats().account.waiting() == 2).await;
    stage.join(presence("ada", "PA_2", 2));
    assert_eq!(within(prior.closed()).await, EndReason::Replaced);
    assert!(valve.lock().dropped);
    assert_eq!(prior.stats().account.abandoned.replaced, 2);
    assert_settled(&prior.stats().account);
    session.broadcast(msg("c")).await.expect("the session is open");
    streams.nth("ada", 1).await.wait_for(|seen| seen.flushed == ["c"]).await;
}

#[tokio::test]
async fn an_equal_join_time_with_another_sid_replaces() {
    let (room, session) = memory(|builder| builder);
    room.join(presence("ada", "PA_1", 7)).await.expect("the session listens");
    let first = live(&session, "ada").await;
    room.join(presence("ada", "PA_2", 7)).await.expect("the session listens");
    assert_eq!(within(first.closed()).await, EndReason::Replaced);
    assert_eq!(live(&session, "ada").await.sid(), &sid("PA_2"));
    assert_eq!(session.stats().replacements, 1);
}

/// A connection announced twice is one instance. A sid under a second identity is a duplicate: the registered instance
/// stays.
#[tokio::test]
async fn a_duplicate_sid_changes_nothing() {
    let (room, session) = memory(|builder| builder);
    let mut events = session.events();
    let ada = joined(&room, &session, "ada").await;
    for _ in 0..3 {
        room.join(presence("ada", "PA_ada", 1)).await.expect("the session listens");
    }
    room.join(presence("eve", "PA_ada", 99)).await.expect("the session listens");
    let by = event(&mut events, |event| match event {
        SessionEvent::Refused { error: JoinError::Duplicate { by }, identity, .. } if *identity == id("eve") => {
            Some(*by)
        }
        _ => None,
    });
    assert_eq!(by.await, ada.client_id());
    assert!(room.recorder(&id("eve")).received().is_empty(), "decided before a stream is opened");
    assert_eq!(session.participant_by_sid(&sid("PA_ada")), Some(ada.clone()));
    assert!(session.participant(&id("eve")).is_none());
    assert_eq!((ada.end_reason(), session.stats().joins, session.stats().refused), (None, 1, 1));
    assert_eq!(room.recorder(&id("ada")).received().len(), 1);
    // A disconnect of that sid under the foreign identity doesn't remove it either.
    room.emit(gone("eve", "PA_ada")).await.expect("the session listens");
    settle().await;
    assert_eq!(session.participant_by_sid(&sid("PA_ada")), Some(ada));
}

// 1. PA_1 is registered, joined at 100. 2. The clock is set back: PA_2 joins at 50, and is refused. 3. PA_1
// disconnects: the loop asks the room what it has, and joins PA_2. 4. PA_1's join time isn't remembered.
#[tokio::test]
async fn a_clock_set_back_locks_nobody_out() {
    let (room, session) = memory(|builder| builder);
    room.join(presence("ada", "PA_1", 100)).await.expect("the session listens");
    live(&session, "ada").await;
    room.join(presence("ada", "PA_2", 50)).await.expect("the session listens");
    until(|| session.stats().stale_joins == 1).await;
    room.emit(gone("ada", "PA_1")).await.expect("the session listens");
    until(|| session.participant(&id("ada")).is_some_and(|now| *now.sid() == sid("PA_2"))).await;
    room.leave(&id("ada"), &sid("PA_2")).await.expect("the session listens");
    until(|| session.participant(&id("ada")).is_none()).await;
    room.join(presence("ada", "PA_3", 10)).await.expect("the session listens");
    assert_eq!(live(&session, "ada").await.sid(), &sid("PA_3"));
}

// 1. PA_1 (joined at 100) is being opened. 2. It disconnects, and PA_2 comes with a clock set back (joined at 50),
// before the loop has run again. 3. A departed connection refuses nobody: PA_2 joins.
#[tokio::test]
async fn a_cancelled_join_refuses_nobody() {
    let (room, session) = memory(|builder| builder);
    let recorder = room.recorder(&id("ada"));
    recorder.set_open_behavior(OpenBehavior::Held);
    room.join(presence("ada", "PA_1", 100)).await.expect("the session listens");
    settle().await;
    room.leave(&id("ada"), &sid("PA_1")).await.expect("the session listens");
    room.join(presence("ada", "PA_2", 50)).await.expect("the session listens");
    recorder.set_open_behavior(OpenBehavior::Ready);
    assert_eq!(live(&session, "ada").await.sid(), &sid("PA_2"));
    assert_eq!((session.stats().stale_joins, session.stats().joins), (0, 1));
}

#[tokio::test]
async fn look_ups_find_only_live_instances() {
    let (room, session) = memory(|builder| builder);
    let ada = joined(&room, &session, "ada").await;
    let bob = joined(&room, &session, "bob").await;
    assert_eq!(session.participant(&id("ada")), Some(ada.clone()));
    assert_eq!(session.participant_by_sid(&sid("PA_bob")), Some(bob.clone()));
    assert!(session.participant(&id("PA_ada")).is_none() && session.participant_by_sid(&sid("ada")).is_none());
    let mut all: Vec<_> = session.participants().iter().map(|one| one.identity().to_string()).collect();
    all.sort();
    assert_eq!(all, ["ada", "bob"]);
    // No look-up finds an instance that has just ended, though the loop hasn't removed it yet.
    room.recorder(&id("ada")).set_behavior(Behavior::Stall { capacity: 0 });
    while ada.send(msg("x")).is_ok() {}
    assert!(session.participant(&id("ada")).is_none());
    assert!(session.participant_by_sid(&sid("PA_ada")).is_none());
    assert_eq!(session.participants(), [bob]);
}

/// Reconnects under load: whatever a look-up finds while instances replace each other has the identity that was asked
/// for, and was live during the look-up. In the end only the newest instance is registered, and each of the others
/// ended once.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn look_ups_under_load_never_find_a_foreign_instance() {
    let rounds = size(300, 5_000);
    let (room, session) = memory(|builder| builder.shards(2));
    let stop = Arc::new(AtomicBool::new(false));
    let names = ["ada", "bob"];
    let lookers: Vec<_> = (0..2)
        .map(|_| {
            let (session, stop) = (session.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut round = 0_u64;
                while !stop.load(Ordering::Acquire) {
                    round += 1;
                    for name in names {
                        let connection = sid(&format!("PA_{name}_{}", round % 64));
                        if let Some(found) = session.participant_by_sid(&connection) {
                            assert_eq!((found.identity(), found.sid()), (&id(name), &connection));
                        }
                        if let Some(found) = session.participant(&id(name)) {
                            assert_eq!(found.identity(), &id(name));
                            assert!(found.sid().as_str().starts_with(&format!("PA_{name}_")));
                        }
                    }
                }
            })
        })
        .collect();
    for round in 1..=rounds {
        for name in names {
            room.join(presence(name, &format!("PA_{name}_{round}"), round as u64)).await.expect("the session listens");
            if round % 3 == 0 {
                let late = sid(&format!("PA_{name}_{}", round - 1));
                room.leave(&id(name), &late).await.expect("the session listens");
            }
        }
    }
    for name in names {
        let last = sid(&format!("PA_{name}_{rounds}"));
        until(|| session.participant(&id(name)).is_some_and(|now| *now.sid() == last)).await;
    }
    stop.store(true, Ordering::Release);
    lookers.into_iter().for_each(|looker| looker.join().expect("no look-up found a foreign instance"));
    until(|| session.stats().participants == 2 && session.participants().len() == 2).await;
    let account = close_settled(&session).await;
    assert_eq!(account.delivered, 0);
    for name in names {
        let streams = room.recorder(&id(name)).received();
        assert!(streams.iter().all(|stream| stream.closed), "a sink was kept");
    }
}

/// Many identities that come once and never again leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_off_identities_leave_the_registry_empty() {
    let count = size(10_000, 1_000_000);
    let (room, session): (MemoryRoom<_>, _) = memory(|builder| builder);
    let visits = (0..8).map(|part| {
        let (room, session) = (room.clone(), session.clone());
        tokio::spawn(async move {
            for n in (part..count).step_by(8) {
                let (name, connection) = (format!("p{n}"), format!("PA_{n}"));
                room.join(presence(&name, &connection, n as u64)).await.expect("the session listens");
                // Some join completely, the others leave while they join.
                if n % 3 == 0 {
                    let ada = live(&session, &name).await;
                    let _ = ada.try_send(msg("welcome"));
                }
                room.leave(&id(&name), &sid(&connection)).await.expect("the session listens");
                room.forget_recorder(&id(&name));
            }
        })
    });
    for visit in visits.collect::<Vec<_>>() {
        visit.await.expect("no visit panics");
    }
    // The session may still have joins and disconnects to process: both look-ups find nobody in the end.
    until(|| session.stats().participants == 0 && session.participants().is_empty()).await;
    let seen = session.stats();
    assert!(seen.joins >= count as u64 / 3 && seen.joins <= count as u64, "{seen:?}");
    close_settled(&session).await;
}
