//! The handle to a session whose room isn't named.

use std::time::Duration;

use bytes::Bytes;
use lanecast::{BroadcastError, EndReason, SessionEvent, SessionHandle, Topic, TryBroadcastError};

use crate::common::{assert_settled, joined, memory, msg, until, within};

// 1. The session's own handle goes: the other one keeps the session open.
// 2. A clone of that one goes, and then the last handle of all, which cancels the session.
#[tokio::test]
async fn the_last_handle_cancels_the_session() {
    let (room, session) = memory(|builder| builder);
    let ada = joined(&room, &session, "ada").await;
    let handle: SessionHandle<Bytes> = session.handle();
    drop(session);
    handle.broadcast(msg("to all")).await.expect("the session is open");
    until(|| ada.stats().account.delivered == 1).await;
    drop(handle.clone());
    handle.try_broadcast(msg("to all")).expect("the session is open");
    until(|| ada.stats().account.delivered == 2).await;
    drop(handle);
    assert_eq!(within(ada.closed()).await, EndReason::SessionClosed);
}

// A weak handle is a handle for as long as there is another one, and doesn't keep the session open.
#[tokio::test]
async fn a_weak_handle_does_not_keep_the_session_open() {
    let (room, session) = memory(|builder| builder);
    let ada = joined(&room, &session, "ada").await;
    let handle = session.handle();
    let weak = handle.downgrade();
    drop(handle);
    let again = weak.upgrade().expect("the session's own handle is there");
    again.broadcast(msg("to all")).await.expect("the session is open");
    drop((session, again));
    assert_eq!(within(ada.closed()).await, EndReason::SessionClosed);
    assert!(weak.clone().upgrade().is_none());
}

#[tokio::test]
async fn a_handle_shows_what_the_session_shows() {
    let (room, session) = memory(|builder| builder);
    let handle = session.handle();
    let mut events = handle.events();
    let ada = joined(&room, &session, "ada").await;
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Joined(who)) if who.identity == *ada.identity()));
    assert_eq!(handle.participant(ada.identity()), Some(ada.clone()));
    assert_eq!(handle.participant_by_sid(ada.sid()), Some(ada.clone()));
    assert_eq!(handle.participants(), [ada]);
    assert_eq!(handle.stats().participants, 1);
    // A topic without subscribers costs no place in the log, as long as the session is open.
    let topic = Topic::new();
    handle.broadcast_to(&topic, msg("to nobody")).await.expect("the session is open");
    handle.try_broadcast_to(&topic, msg("to nobody")).expect("the session is open");
    let report = within(handle.close(Duration::from_secs(5))).await.expect("it closes without an error");
    assert_settled(&report.account);
    assert_eq!(report.account.offered, 0);
    assert_eq!(within(session.ended()).await, Ok(report.clone()));
    assert_eq!(within(handle.ended()).await, Ok(report));
    assert!(matches!(handle.broadcast_to(&topic, msg("late")).await, Err(BroadcastError::Closed(_))));
    assert!(matches!(handle.try_broadcast_to(&topic, msg("late")), Err(TryBroadcastError::Closed(_))));
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Closed)));
}
