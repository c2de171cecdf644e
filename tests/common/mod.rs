//! What the integration tests share: sizes, names, room set-up, and ways to wait without sleeping.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part of this")]

mod message;
mod stage;
mod trace;
mod valve;

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lanecast::room::memory::{MemoryRoom, Received};
use lanecast::room::{Presence, Room};
use lanecast::{
    Account, EndReason, Events, Message, Participant, ParticipantIdentity, ParticipantSid, Refusal, Session,
    SessionBuilder, SessionEvent,
};

pub(crate) use message::{Note, Trap};
pub(crate) use stage::{Call, GONE, Gate, Stage, StageSink};
pub(crate) use trace::{Capture, Captured};
pub(crate) use valve::{State, Streams, Valve};

/// A test that waits longer than this fails instead of hanging.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The one place where test sizes are chosen: `LANECAST_TEST_SIZE=full` for the large ones, `small` (the default) for a
/// quick run.
pub(crate) fn size(small: usize, full: usize) -> usize {
    match std::env::var("LANECAST_TEST_SIZE").as_deref() {
        Err(_) | Ok("" | "small") => small,
        Ok("full") => full,
        Ok(other) => panic!("LANECAST_TEST_SIZE is {other:?}: say small or full"),
    }
}

pub(crate) fn id(text: &str) -> ParticipantIdentity {
    text.parse().expect("a test's identity is well-formed")
}

pub(crate) fn sid(text: &str) -> ParticipantSid {
    text.parse().expect("a test's sid is well-formed")
}

/// A connection of `identity` that joined at `joined_at`.
pub(crate) fn presence(identity: &str, connection: &str, joined_at: u64) -> Presence {
    Presence::new(id(identity), sid(connection), joined_at)
}

/// A message with this text.
pub(crate) fn msg(text: impl Into<String>) -> Bytes {
    Bytes::from(text.into())
}

/// `prefix0`, `prefix1`, … `count` of them.
pub(crate) fn texts(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

/// A session on a fresh [`MemoryRoom`].
pub(crate) fn memory(
    set: impl FnOnce(SessionBuilder<MemoryRoom<Bytes>>) -> SessionBuilder<MemoryRoom<Bytes>>,
) -> (MemoryRoom<Bytes>, Session<MemoryRoom<Bytes>>) {
    let room = MemoryRoom::new();
    let session = set(Session::builder(room.clone())).build().expect("a test's settings make sense");
    (room, session)
}

/// The attribute of a connection that [`refuses_unwelcome`] refuses.
pub(crate) const UNWELCOME: &str = "unwelcome";

/// Why [`refuses_unwelcome`] refuses a connection: the value of its attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unwelcome(pub(crate) String);

impl std::fmt::Display for Unwelcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unwelcome for {:?}", self.0)
    }
}

impl std::error::Error for Unwelcome {}

/// A hook that refuses the connections with the attribute [`UNWELCOME`]. They are sent what `message` makes of its
/// value.
pub(crate) fn refuses_unwelcome<M>(
    message: impl Fn(&str) -> Option<M> + Send + Sync + 'static,
) -> impl Fn(&Presence) -> Result<(), Refusal<M>> + Send + Sync + 'static {
    move |presence| {
        let Some(value) = presence.attributes.get(UNWELCOME) else { return Ok(()) };
        let refusal = Refusal::new(Unwelcome(value.clone()));
        Err(match message(value) {
            Some(message) => refusal.with_message(message),
            None => refusal,
        })
    }
}

/// Waits for `future`; panics after [`PATIENCE`] instead of hanging.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("timed out")
}

/// Lets other tasks run until `condition` holds. For conditions that nothing announces.
#[track_caller]
pub(crate) fn until(condition: impl FnMut() -> bool + Send) -> impl Future<Output = ()> + Send {
    let place = std::panic::Location::caller();
    let mut condition = condition;
    let begun = Instant::now();
    async move {
        while !condition() {
            assert!(begun.elapsed() < PATIENCE, "the condition at {place} never held");
            tokio::task::yield_now().await;
        }
    }
}

/// Yields 64 times, so that every task that can run runs for a while; on a current-thread runtime this brings them to
/// rest.
pub(crate) async fn settle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

/// Waits until the participant is registered and live.
pub(crate) async fn live<R: Room>(session: &Session<R>, identity: &str) -> Participant<R::Message> {
    let identity = id(identity);
    until(|| session.participant(&identity).is_some()).await;
    session.participant(&identity).expect("it was registered a moment ago")
}

/// Joins `identity` with sid `PA_<identity>` at time 1 and waits until it is registered.
pub(crate) async fn joined(
    room: &MemoryRoom<Bytes>,
    session: &Session<MemoryRoom<Bytes>>,
    identity: &str,
) -> Participant<Bytes> {
    room.join(presence(identity, &format!("PA_{identity}"), 1)).await.expect("the session listens");
    live(session, identity).await
}

/// Waits for the next event that `pick` accepts.
pub(crate) async fn event<T>(events: &mut Events, mut pick: impl FnMut(&SessionEvent) -> Option<T>) -> T {
    within(async {
        loop {
            let event = events.next().await.expect("the session is still there");
            if let Some(picked) = pick(&event) {
                return picked;
            }
        }
    })
    .await
}

/// Waits for the next reset and returns its reason.
pub(crate) async fn reset(events: &mut Events) -> EndReason {
    event(events, |event| match event {
        SessionEvent::Reset { reason, .. } => Some(*reason),
        _ => None,
    })
    .await
}

/// The messages that a stream received, as text.
pub(crate) fn as_text(received: &Received<Bytes>) -> Vec<String> {
    received.messages.iter().map(|m| String::from_utf8_lossy(m).into_owned()).collect()
}

/// Waits until the latest stream to `identity` has received as many messages as `expected`, and asserts that they are
/// equal.
pub(crate) async fn receives(room: &MemoryRoom<Bytes>, identity: &str, expected: &[&str]) {
    let recorder = room.recorder(&id(identity));
    let all = within(recorder.wait_for(|all| all.last().is_some_and(|r| r.messages.len() >= expected.len()))).await;
    assert_eq!(as_text(all.last().expect("a stream was opened")), expected, "what {identity} received");
}

/// Number of messages that have an outcome, summed up here: `Account::waiting` saturates, and would hide an excess.
pub(crate) fn outcomes(account: &Account) -> u64 {
    account.delivered + account.dropped.total() + account.abandoned.total()
}

/// Asserts that nothing waits and every message offered has exactly one outcome.
#[track_caller]
pub(crate) fn assert_settled(account: &Account) {
    assert_eq!(account.offered, outcomes(account), "offered = delivered + dropped + abandoned: {account:?}");
}

/// Asserts the same with `waiting` messages still under way.
#[track_caller]
pub(crate) fn assert_waiting(account: &Account, waiting: u64) {
    assert_eq!(account.offered, outcomes(account) + waiting, "offered = outcomes + {waiting}: {account:?}");
}

/// Closes the session and checks its account.
pub(crate) async fn close_settled<R: Room>(session: &Session<R>) -> Account {
    let report = within(session.close(Duration::from_secs(5))).await.expect("it closes without an error");
    assert_settled(&report.account);
    assert_eq!(session.stats().participants, 0, "the registry is empty after close");
    report.account
}
