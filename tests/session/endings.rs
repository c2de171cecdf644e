//! Ends at a bad moment: in the last step of a join or a subscription, through a shard's death, after the runtime has
//! ended, and from a callback. Nobody waits forever, nothing leaks, and the account is exact.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use lanecast::room::memory::MemoryRoom;
use lanecast::{
    CloseError, EndReason, Message, SendError, Session, SessionEvent, Subscribed, SubscriptionTag, Topic, TrySendError,
    WeakSession,
};

use crate::common::{
    Call, Stage, StageSink, State, Streams, Valve, assert_settled, close_settled, id, joined, live, memory, msg,
    presence, settle, size, until, within,
};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// Messages accepted for a participant and not handed on are in the report, also those that no shard had read yet.
#[tokio::test]
async fn a_session_that_ends_at_once_accounts_for_the_whole_log() {
    for shards in 1..3 {
        let (room, session) = memory(|builder| builder.shards(shards));
        for name in ["ada", "bob"] {
            joined(&room, &session, name).await;
        }
        let topic = Topic::new();
        live(&session, "bob").await.subscribe(&topic, SubscriptionTag(1)).await;
        for _ in 0..300 {
            session.try_broadcast(msg("to both")).expect("the log has capacity");
            session.try_broadcast_to(&topic, msg("to one")).expect("the log has capacity");
        }
        let account = within(session.close(Duration::ZERO)).await.expect("it closes without an error").account;
        assert_eq!((account.offered, account.delivered + account.abandoned.session_closed), (900, 900));
        assert_eq!(session.stats().shard_lag, 0);
    }
}

// 1. Joins are in any of their steps. 2. The session closes. 3. The session and everything it owned are gone.
#[test]
fn joins_in_their_last_step_leak_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(8).enable_time().build().expect("one");
    for _ in 0..size(200, 20_000) {
        let alive = Arc::new(());
        runtime.block_on(async {
            let (stage, _) = Streams::<Bytes>::stage(|_| Valve::open());
            let held = Arc::clone(&alive);
            let session = stage.session(|builder| {
                builder.shards(1).concurrent_joins(1000).initial(move |_| {
                    let held = Arc::clone(&held);
                    async move {
                        drop(held);
                        Vec::new()
                    }
                })
            });
            for n in 0..100 {
                stage.join(presence(&format!("p{n}"), &format!("PA_{n}"), 1));
            }
            for _ in 0..fastrand::u32(..20) {
                tokio::task::yield_now().await;
            }
            within(session.close(Duration::from_secs(5))).await.expect("it closes without an error");
            drop(session);
            until(|| Arc::strong_count(&alive) == 1).await;
        });
    }
}

// 1. Threads subscribe without pause. 2. The session closes. 3. Every subscriber gets an answer.
#[test]
fn subscriptions_in_their_last_step_are_answered() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("one");
    for _ in 0..size(30, 3000) {
        runtime.block_on(async {
            let (room, session) = memory(|builder| builder.shards(1));
            let ada = joined(&room, &session, "ada").await;
            let subscribers: Vec<_> = (0..16)
                .map(|_| {
                    let ada = ada.clone();
                    tokio::spawn(async move {
                        let topic = Topic::new();
                        while ada.subscribe(&topic, SubscriptionTag(0)).await != Subscribed::Closed {}
                        ada.unsubscribe(&topic).await;
                    })
                })
                .collect();
            for _ in 0..fastrand::u32(..200) {
                tokio::task::yield_now().await;
            }
            close_settled(&session).await;
            for subscriber in subscribers {
                within(subscriber).await.expect("no subscriber panics");
            }
        });
    }
}

/// A message whose drop panics once, on a task, when the test arms it.
struct Bomb(Arc<AtomicBool>);

impl Clone for Bomb {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl Message for Bomb {
    fn byte_len(&self) -> usize {
        1
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if tokio::task::try_id().is_some() && self.0.swap(false, Ordering::SeqCst) {
            panic!("told to panic");
        }
    }
}

// 1. Broadcasts and direct messages wait for a stuck participant. 2. One of them panics when it is dropped: as the
// participant leaves, as it overflows, or in the teardown. 3. Whatever becomes of the session, all waiting callers
// learn of the end and each account is exact.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_panics_in_the_teardown_leaves_nobody_waiting() {
    for how in 0..3 {
        let armed = Arc::new(AtomicBool::new(false));
        let bomb = Bomb(Arc::clone(&armed));
        let (stage, streams) =
            Streams::<Bomb>::stage(|to| if to.identity == id("stuck") { Valve::shut() } else { Valve::open() });
        let session = stage.session(|builder| builder.shards(2).queue_capacity(64));
        let mut events = session.events();
        for name in ["ada", "stuck", "bob"] {
            stage.join(presence(name, &format!("PA_{name}"), 1));
            live(&session, name).await;
        }
        let (all, stuck) = (session.participants(), live(&session, "stuck").await);
        session.broadcast(bomb.clone()).await.expect("the session is open");
        streams.nth("stuck", 0).await.wait_for(State::is_stuck).await;
        for _ in 0..4 {
            stuck.send(bomb.clone()).expect("there is capacity");
            session.broadcast(bomb.clone()).await.expect("the session is open");
        }
        until(|| stuck.stats().account.waiting() == 9).await;
        armed.store(true, Ordering::SeqCst);
        match how {
            0 => stage.leave("stuck", "PA_stuck"),
            1 => while stuck.send(bomb.clone()).is_ok() {},
            _ => session.cancel(),
        }
        within(stuck.closed()).await;
        session.cancel();
        let _ = within(session.ended()).await;
        for participant in &all {
            within(participant.closed()).await;
            assert_settled(&participant.stats().account);
        }
        within(async { while events.next().await.is_some() {} }).await;
        assert_settled(&session.stats().account);
    }
}

/// A shard that dies ends the session, with an error that carries the report, and all waiting callers learn of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_shard_ends_the_session() {
    let armed = Arc::new(AtomicBool::new(false));
    let (stage, _) = Streams::<Bomb>::stage(|_| Valve::open());
    let session = stage.session(|builder| builder.shards(1));
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    armed.store(true, Ordering::SeqCst);
    // The shard drops its own copy at the end of the turn.
    session.broadcast(Bomb(Arc::clone(&armed))).await.expect("the session is open");
    let Err(CloseError::Panicked(report)) = within(session.ended()).await else { panic!("no panic is reported") };
    assert_eq!(within(ada.closed()).await, EndReason::SessionClosed);
    assert_settled(&report.account);
    within(async { while events.next().await.is_some() {} }).await;
    assert!(session.broadcast(Bomb(armed)).await.is_err());
}

/// A listener made after the end gets no event and doesn't wait.
#[tokio::test]
async fn a_listener_made_after_the_end_ends_at_once() {
    let (_room, session) = memory(|builder| builder);
    close_settled(&session).await;
    assert!(within(session.events().next()).await.is_none());
}

/// A listener doesn't wait for a session whose runtime has ended, and no participant is registered there any more.
#[test]
fn a_listener_ends_when_the_runtime_shuts_down() {
    let first = runtime();
    let (session, mut events) = first.block_on(async {
        let (room, session) = memory(|builder| builder);
        joined(&room, &session, "ada").await;
        let events = session.events();
        (session, events)
    });
    drop(first);
    runtime().block_on(async {
        assert!(matches!(within(session.ended()).await, Err(CloseError::RuntimeEnded)));
        assert!(matches!(within(events.next()).await, Some(SessionEvent::Closed)));
        assert!(within(events.next()).await.is_none());
    });
    assert_eq!(session.stats().participants, 0);
}

/// A goodbye that closes the session would wait for itself: the call returns an error.
#[tokio::test(start_paused = true)]
async fn close_from_a_goodbye_is_an_error() {
    let handle: Arc<OnceLock<Session<Stage<Bytes>>>> = Arc::default();
    let answer = Arc::new(Mutex::new(None));
    let (session, told) = (Arc::clone(&handle), Arc::clone(&answer));
    let stage = Stage::<Bytes>::with_retire(
        |_, _| async { Ok(StageSink::new(|_, _| Poll::Ready(Ok(())))) },
        move |sink, _| {
            let (session, told) = (Arc::clone(&session), Arc::clone(&told));
            Some(Box::pin(async move {
                let session = session.get().expect("it is set before anybody joins").clone();
                *told.lock().expect("the lock isn't poisoned") = Some(session.close(Duration::from_secs(3600)).await);
                drop(sink);
            }))
        },
    );
    let session = stage.session(|builder| builder);
    assert!(handle.set(session.clone()).is_ok());
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    stage.leave("ada", "PA_1");
    within(ada.closed()).await;
    assert!(matches!(answer.lock().expect("the lock isn't poisoned").take(), Some(Err(CloseError::FromCallback))));
    session.broadcast(msg("still open")).await.expect("the session is open");
}

/// Once `close` has been called no further message is accepted, direct messages included, even while its deadline runs.
#[tokio::test(start_paused = true)]
async fn a_closing_session_accepts_no_direct_messages() {
    let (stage, streams) = Streams::<Bytes>::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.write_timeout(Duration::from_secs(10_000)));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    session.broadcast(msg("x")).await.expect("the session is open");
    streams.nth("ada", 0).await.wait_for(State::is_stuck).await;
    let mut closing = Box::pin(session.close(Duration::from_secs(50)));
    assert!(closing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    settle().await;
    assert_eq!(ada.end_reason(), None);
    assert!(matches!(ada.try_send(msg("late")), Err(TrySendError::Closed(back)) if back == "late"));
    assert!(matches!(ada.send(msg("late")), Err(SendError::Closed)));
}

/// A goodbye that takes a moment is completed, even if the session closes with a deadline of zero.
#[tokio::test(start_paused = true)]
async fn a_goodbye_may_outlast_the_deadline() {
    let said = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&said);
    let stage = Stage::<Bytes>::with_retire(
        |_, _| async { Ok(StageSink::new(|_, _| Poll::Ready(Ok(())))) },
        move |sink, _| {
            let count = Arc::clone(&count);
            Some(Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                count.fetch_add(1, Ordering::SeqCst);
                drop(sink);
            }))
        },
    );
    let session = stage.session(|builder| builder);
    stage.join(presence("ada", "PA_1", 1));
    live(&session, "ada").await;
    within(session.close(Duration::ZERO)).await.expect("it closes without an error");
    assert_eq!(said.load(Ordering::SeqCst), 1);
}

/// A closure that the session keeps may hold the session by a handle that doesn't keep it open.
#[tokio::test]
async fn a_weak_handle_in_a_closure_does_not_keep_the_session() {
    let handle: Arc<OnceLock<WeakSession<MemoryRoom<Bytes>>>> = Arc::default();
    let own = Arc::clone(&handle);
    let (room, session) = memory(|builder| {
        builder.initial(move |ada| {
            let session = own.get().and_then(WeakSession::upgrade).expect("the session is open");
            async move {
                session.broadcast(msg(format!("{} comes", ada.identity()))).await.expect("it is open");
                Vec::new()
            }
        })
    });
    handle.set(session.downgrade()).expect("set once");
    let ada = joined(&room, &session, "ada").await;
    until(|| ada.stats().account.delivered == 1).await;
    drop(session);
    assert_eq!(within(ada.closed()).await, EndReason::SessionClosed);
    assert!(handle.get().is_some_and(|session| session.upgrade().is_none()));
    until(|| Arc::strong_count(&handle) == 1).await;
}

/// A message whose every drop on a task panics, like the drop of a message that finds a lock poisoned.
struct Mine;

impl Clone for Mine {
    fn clone(&self) -> Self {
        Self
    }
}

impl Message for Mine {
    fn byte_len(&self) -> usize {
        1
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        assert!(tokio::task::try_id().is_none(), "told to panic");
    }
}

/// However many of them the log holds, the session ends with an error. (Two of them in one list would abort the
/// process, by Rust's rule for a panic within a panic; with a capacity of four a turn reads one.)
#[tokio::test]
async fn messages_that_panic_on_every_drop_end_only_the_session() {
    let stage = Stage::<Mine>::new(|_, _| async {
        // The sink keeps what it takes.
        Ok(StageSink::new(|call, _| {
            if let Call::Send(message) = call {
                std::mem::forget(message);
            }
            Poll::Ready(Ok(()))
        }))
    });
    let session = stage.session(|builder| builder.shards(1).queue_capacity(4));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    // This thread is the shard's as well, so the shard finds all messages at once.
    for _ in 0..20 {
        assert!(session.try_broadcast(Mine).is_ok());
    }
    within(ada.closed()).await;
    let Err(CloseError::Panicked(report)) = within(session.ended()).await else { panic!("no panic is reported") };
    assert_settled(&report.account);
    assert_eq!(report.account.offered, 20);
}

// 1. Two shards have a member each. One of the two has subscribed to the topic.
// 2. The other shard takes its copy of a message to the topic, and drops it, since it is for none of its members.
// 3. The drop panics. The shard reads on at its end, and must not take the same position again: its copy is gone, and
//    the next copy is the first shard's.
#[tokio::test]
async fn a_message_for_nobody_that_panics_on_its_drop_ends_only_the_session() {
    let stage = Stage::<Mine>::new(|_, _| async {
        Ok(StageSink::new(|call, _| {
            if let Call::Send(message) = call {
                std::mem::forget(message);
            }
            Poll::Ready(Ok(()))
        }))
    });
    let session = stage.session(|builder| builder.shards(2));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    stage.join(presence("bob", "PA_2", 1));
    let bob = live(&session, "bob").await;
    let topic = Topic::new();
    ada.subscribe(&topic, SubscriptionTag(1)).await;
    assert!(session.try_broadcast_to(&topic, Mine).is_ok());
    within(ada.closed()).await;
    within(bob.closed()).await;
    let Err(CloseError::Panicked(report)) = within(session.ended()).await else { panic!("no panic is reported") };
    assert_settled(&report.account);
}
