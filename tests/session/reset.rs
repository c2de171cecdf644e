//! Resets: the old instance ends, the room's current connection is joined, and repeated faults wait longer each time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use lanecast::room::memory::{Behavior, OpenBehavior};
use lanecast::room::{OpenError, Presence, Room, RoomEvent};
use lanecast::{
    EndReason, JoinError, ParticipantIdentity, Progress, Session, SessionEvent, Subscribed, SubscriptionTag, Topic,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::common::{
    Call, Gate, Stage, StageSink, Streams, UNWELCOME, Valve, assert_settled, close_settled, event, id, joined, live,
    memory, msg, presence, receives, refuses_unwelcome, reset, settle, sid, size, until, within,
};

// 1. Ada has subscribed and fails. 2. Her connection still stands: she comes back under the same sid and join time as
// another instance, with her initial messages first. 3. Her subscription ended with the old instance.
#[tokio::test]
async fn a_reset_keeps_the_sid_and_starts_afresh() {
    let (room, session) = memory(|builder| builder.initial(|_| async { vec![msg("state")] }));
    let mut events = session.events();
    let old = joined(&room, &session, "ada").await;
    let topic = Topic::new();
    assert_eq!(old.subscribe(&topic, SubscriptionTag(1)).await, Subscribed::New);
    session.broadcast_to(&topic, msg("one")).await.expect("the session is open");
    receives(&room, "ada", &["state", "one"]).await;
    let recorder = room.recorder(&id("ada"));
    // Her next stream opens only once writes succeed again.
    recorder.set_open_behavior(OpenBehavior::Held);
    recorder.set_behavior(Behavior::Fail);
    session.broadcast(msg("fails")).await.expect("the session is open");
    let who = event(&mut events, |event| match event {
        SessionEvent::Reset { who, reason: EndReason::WriteFailed, .. } => Some(who.clone()),
        _ => None,
    });
    assert_eq!(who.await.client_id, old.client_id());
    recorder.set_behavior(Behavior::Flow);
    recorder.set_open_behavior(OpenBehavior::Ready);
    let new = live(&session, "ada").await;
    assert_eq!((new.sid(), new.joined_at()), (old.sid(), old.joined_at()));
    assert_ne!(new.client_id(), old.client_id());
    assert_eq!(topic.subscribers(), 0);
    assert_eq!(old.subscribe(&topic, SubscriptionTag(1)).await, Subscribed::Closed, "the old handle stays closed");
    session.broadcast_to(&topic, msg("two")).await.expect("the session is open");
    session.broadcast(msg("three")).await.expect("the session is open");
    receives(&room, "ada", &["state", "three"]).await;
    assert_eq!((session.stats().joins, session.stats().replacements, session.stats().resets.write_failed), (2, 0, 1));
}

// 1. Ada's stream is busy; she overflows and is reset under the same sid. 2. Her new instance is registered. 3. The old
// stream's wakers fire and its handle is used: all of this is late, and none of it touches the new instance.
#[tokio::test]
async fn a_late_failure_of_the_old_stream_does_not_touch_the_new_instance() {
    let old_waker: Arc<Mutex<Option<Waker>>> = Arc::default();
    let failing = Arc::new(AtomicBool::new(false));
    let opened = Arc::new(AtomicUsize::new(0));
    let (slot, fails, count) = (Arc::clone(&old_waker), Arc::clone(&failing), Arc::clone(&opened));
    let stage = Stage::<Bytes>::new(move |_, _| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        let (slot, fails) = (Arc::clone(&slot), Arc::clone(&fails));
        let sink = StageSink::new(move |call, cx| match (first, call) {
            (true, Call::Flush) if fails.load(Ordering::SeqCst) => Poll::Ready(Err("late".to_owned())),
            (true, Call::Flush) => {
                *slot.lock().expect("the lock isn't poisoned") = cx.map(|cx| cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(Ok(())),
        });
        async move { Ok(sink) }
    });
    let session = stage.session(|builder| builder.queue_capacity(2));
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    let old = live(&session, "ada").await;
    session.broadcast(msg("a")).await.expect("the session is open");
    until(|| old_waker.lock().expect("the lock isn't poisoned").is_some()).await;
    while old.send(msg("b")).is_ok() {}
    assert_eq!(reset(&mut events).await, EndReason::Overflow);
    let new = live(&session, "ada").await;
    assert_eq!(new.sid(), old.sid());
    // The old stream fails now, and wakes the task whose waker it holds.
    failing.store(true, Ordering::SeqCst);
    let waker = old_waker.lock().expect("the lock isn't poisoned").take().expect("it was stored above");
    waker.wake();
    assert!(old.send(msg("late")).is_err());
    settle().await;
    session.broadcast(msg("c")).await.expect("the session is open");
    until(|| new.stats().account.delivered == 1).await;
    assert_eq!((new.end_reason(), session.stats().resets.total()), (None, 1));
    assert_eq!(session.participant_by_sid(&sid("PA_1")), Some(new));
    assert_eq!(opened.load(Ordering::SeqCst), 2);
}

/// The reset and the disconnect of one instance race, with the disconnect a step later each time. Whichever comes
/// first, no ghost stays, and the listener gets exactly one end for each instance that joined.
#[tokio::test]
async fn a_reset_racing_with_a_disconnect_leaves_no_ghost() {
    for steps in 0..24 {
        let (room, session) = memory(|builder| builder.queue_capacity(1));
        let mut events = session.events();
        room.recorder(&id("ada")).set_behavior(Behavior::Stall { capacity: 0 });
        let ada = joined(&room, &session, "ada").await;
        // 1. The instance overflows: its reset is pending.
        while ada.send(msg("x")).is_ok() {}
        // 2. This many steps later its connection is gone.
        for _ in 0..steps {
            tokio::task::yield_now().await;
        }
        room.leave(&id("ada"), &sid("PA_ada")).await.expect("the session listens");
        until(|| session.stats().participants == 0).await;
        settle().await;
        assert_eq!(session.stats().participants, 0, "a ghost after {steps} steps");
        close_settled(&session).await;
        let (mut joins, mut ends) = (0, 0);
        loop {
            match within(events.next()).await {
                Some(SessionEvent::Joined(_)) => joins += 1,
                Some(SessionEvent::Left { .. } | SessionEvent::Reset { .. }) => ends += 1,
                Some(SessionEvent::Closed) => break,
                other => panic!("not expected: {other:?}"),
            }
        }
        assert_eq!(joins, ends, "after {steps} steps: every instance that joined ended, and somebody was told");
        assert!((1..=2).contains(&joins));
    }
}

// 1. Ada is reset, and her stream is being opened again. 2. Her connection goes: the join is cancelled. 3. She isn't
// registered, and the opening is dropped.
#[tokio::test]
async fn a_disconnect_cancels_a_reset_that_is_under_way() {
    let gate = Gate::new();
    let opens = gate.clone();
    let stage = Stage::<Bytes>::new(move |_, _| {
        let gate = opens.clone();
        async move {
            gate.pass().await;
            Ok(Valve::shut().sink())
        }
    });
    let session = stage.session(|builder| builder.queue_capacity(1).open_timeout(Duration::from_secs(3_600)));
    let mut events = session.events();
    gate.let_open(1);
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    while ada.send(msg("x")).is_ok() {}
    reset(&mut events).await;
    until(|| gate.opening() == 1).await;
    stage.leave("ada", "PA_1");
    until(|| gate.opening() == 0).await;
    gate.let_open(1);
    settle().await;
    assert_eq!((session.stats().participants, session.stats().joins, gate.opening()), (0, 1, 0));
}

// 1. Ada's connection is gone from the room, and its event is still under way. 2. She fails: the reset finds no
// connection to join, and the disconnect that follows finds no instance to remove.
#[tokio::test]
async fn a_reset_of_a_departed_participant_joins_nobody() {
    let (room, session) = memory(|builder| builder);
    let mut events = session.events();
    let ada = joined(&room, &session, "ada").await;
    room.remove_silently(&id("ada"), &sid("PA_ada"));
    room.recorder(&id("ada")).set_behavior(Behavior::Fail);
    ada.send(msg("x")).expect("there is capacity");
    assert_eq!(reset(&mut events).await, EndReason::WriteFailed);
    room.leave(&id("ada"), &sid("PA_ada")).await.expect("the session listens");
    settle().await;
    assert_eq!((session.stats().participants, session.stats().joins), (0, 1));
    assert_eq!(room.recorder(&id("ada")).received().len(), 1);
}

/// By the time of the reset the room may have another connection for the identity: the reset joins that one, under its
/// own sid and attributes.
#[tokio::test]
async fn a_reset_joins_the_rooms_current_connection() {
    let (room, session) = memory(|builder| builder);
    let mut events = session.events();
    let old = joined(&room, &session, "ada").await;
    room.insert_silently(presence("ada", "PA_2", 2).with_attribute("colour", "red"));
    // Her next stream opens only once writes succeed again.
    room.recorder(&id("ada")).set_open_behavior(OpenBehavior::Held);
    room.recorder(&id("ada")).set_behavior(Behavior::Fail);
    old.send(msg("x")).expect("there is capacity");
    reset(&mut events).await;
    room.recorder(&id("ada")).set_behavior(Behavior::Flow);
    room.recorder(&id("ada")).set_open_behavior(OpenBehavior::Ready);
    let new = live(&session, "ada").await;
    assert_eq!((new.sid(), new.joined_at()), (&sid("PA_2"), 2));
    assert_eq!(new.attributes().get("colour").map(String::as_str), Some("red"));
    // The events of both connections arrive late.
    room.emit(RoomEvent::Disconnected { identity: id("ada"), sid: sid("PA_ada") }).await.expect("the session listens");
    room.emit(RoomEvent::Active(presence("ada", "PA_2", 2))).await.expect("the session listens");
    settle().await;
    assert_eq!(session.participant(&id("ada")), Some(new));
    assert_eq!(session.stats().joins, 2);
}

/// The hook is asked again, about the attributes that the room has at the reset.
#[tokio::test]
async fn fresh_attributes_are_checked_at_a_reset() {
    let (room, session) = memory(|builder| builder.accept(refuses_unwelcome(|why| Some(msg(format!("no {why}"))))));
    let mut events = session.events();
    let ada = joined(&room, &session, "ada").await;
    room.insert_silently(presence("ada", "PA_ada", 1).with_attribute(UNWELCOME, "3.0.0"));
    let recorder = room.recorder(&id("ada"));
    while let Ok(()) = ada.send(msg("x")) {}
    assert_eq!(reset(&mut events).await, EndReason::Overflow);
    let error = event(&mut events, |event| match event {
        SessionEvent::Refused { error, .. } => Some(error.clone()),
        _ => None,
    });
    assert!(matches!(error.await, JoinError::NotAccepted { .. }));
    let all = within(recorder.wait_for(|all| all.len() == 2 && all[1].closed)).await;
    assert_eq!(all[1].messages, ["no 3.0.0"]);
    settle().await;
    assert_eq!((session.stats().participants, recorder.received().len()), (0, 2));
}

/// Every write to Ada fails, initial messages included. In ten minutes of virtual time she is tried again and again
/// with ever longer waits, from 100 ms (less up to half) to 30 s, and not hundreds of times.
#[tokio::test(start_paused = true)]
async fn a_stream_that_always_fails_is_reset_with_longer_waits_each_time() {
    let opened: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = Arc::clone(&opened);
    let stage = Stage::<Bytes>::new(move |_, _| {
        let mut opened = noted.lock().expect("the lock isn't poisoned");
        opened.push(Instant::now());
        // The clock stands still as long as any task can run: without a wait the test would never end.
        let too_often = opened.len() > 1000;
        async move {
            if too_often {
                std::future::pending::<()>().await;
            }
            Ok(StageSink::new(|call, _| {
                Poll::Ready(if matches!(call, Call::Flush) { Err("no".to_owned()) } else { Ok(()) })
            }))
        }
    });
    let session = stage.session(|builder| builder.initial(|_| async { vec![msg("state")] }));
    stage.join(presence("ada", "PA_1", 1));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let opened = opened.lock().expect("the lock isn't poisoned").clone();
    let waits: Vec<_> = opened.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // 0, .1, .2, .4, .8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, ... less up to half of it.
    assert!((25..=60).contains(&waits.len()), "{} attempts in ten minutes: {waits:?}", waits.len());
    for (n, wait) in waits.iter().enumerate().skip(1) {
        let full = Duration::from_millis(100 << (n - 1).min(20)).min(Duration::from_secs(30));
        let slack = Duration::from_millis(5);
        assert!(*wait >= full / 2 && *wait <= full + slack, "wait {n} is {wait:?} of {full:?}");
    }
    assert_eq!(session.stats().resets.write_failed, opened.len() as u64);
}

/// The same when Ada reconnects after each reset: the wait belongs to her identity, not to a connection. Reconnecting
/// doesn't restart the wait. Thirty seconds after her last reset the next join no longer waits.
#[tokio::test(start_paused = true)]
async fn reconnecting_after_each_reset_does_not_shorten_the_back_off() {
    let fails = Arc::new(AtomicBool::new(true));
    let failing = Arc::clone(&fails);
    let stage = Stage::<Bytes>::new(move |_, _| {
        let fails = Arc::clone(&failing);
        async move {
            Ok(StageSink::new(move |call, _| {
                let fails = matches!(call, Call::Flush) && fails.load(Ordering::SeqCst);
                Poll::Ready(if fails { Err("no".to_owned()) } else { Ok(()) })
            }))
        }
    });
    let session = stage.session(|builder| builder.initial(|_| async { vec![msg("state")] }));
    let mut connections = 0;
    let mut reconnect = || {
        stage.leave("ada", &format!("PA_{connections}"));
        connections += 1;
        stage.join(presence("ada", &format!("PA_{connections}"), connections));
    };
    reconnect();
    let begun = Instant::now();
    // She reconnects every 10 ms, whatever became of the last connection.
    while begun.elapsed() < Duration::from_secs(600) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        reconnect();
    }
    let resets = session.stats().resets.write_failed;
    assert!((20..=60).contains(&resets), "{resets} resets in ten minutes");
    fails.store(false, Ordering::SeqCst);
    within(async {
        while session.participant(&id("ada")).is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(31)).await;
    let joins = session.stats().joins;
    let now = Instant::now();
    reconnect();
    until(|| session.stats().joins == joins + 1).await;
    assert_eq!(now.elapsed(), Duration::ZERO);
}

/// The same when the room itself panics, when it fails, and when it never answers.
#[tokio::test(start_paused = true)]
async fn failed_openings_are_retried_with_longer_waits_each_time() {
    for how in 0..3 {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&opened);
        let stage = Stage::<Bytes>::new(move |_, _| {
            let too_often = count.fetch_add(1, Ordering::SeqCst) > 1000;
            async move {
                match how {
                    _ if too_often => std::future::pending().await,
                    0 => panic!("the room was told to panic"),
                    1 => Err(lanecast::room::OpenError::transport("told to fail")),
                    _ => std::future::pending().await,
                }
            }
        });
        let session = stage.session(|builder| builder);
        let mut events = session.events();
        stage.join(presence("ada", "PA_1", 1));
        tokio::time::sleep(Duration::from_secs(600)).await;
        let tried = opened.load(Ordering::SeqCst);
        assert!((20..=60).contains(&tried), "case {how}: {tried} attempts in ten minutes");
        let failed = event(&mut events, |event| match event {
            SessionEvent::JoinFailed { identity, error, .. } => Some((identity.clone(), error.clone())),
            _ => None,
        });
        let (who, error) = failed.await;
        assert_eq!(who, id("ada"));
        assert!(
            matches!(
                (how, &error),
                (0, JoinError::Panicked) | (1, JoinError::Open(_)) | (2, JoinError::OpenTimedOut(_))
            ),
            "{error:?}"
        );
        assert!(session.stats().failed_joins >= tried as u64 - 1);
    }
}

/// The same when Ada reconnects while her stream can't be opened.
#[tokio::test(start_paused = true)]
async fn reconnecting_while_openings_fail_does_not_shorten_the_back_off() {
    let opened = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&opened);
    let stage = Stage::<Bytes>::new(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        async { Err(OpenError::transport("told to fail")) }
    });
    let session = stage.session(|builder| builder);
    let begun = Instant::now();
    for connection in 0.. {
        stage.leave("ada", &format!("PA_{connection}"));
        stage.join(presence("ada", &format!("PA_{}", connection + 1), connection + 1));
        tokio::time::sleep(Duration::from_millis(10)).await;
        if begun.elapsed() > Duration::from_secs(600) {
            break;
        }
    }
    let opened = opened.load(Ordering::SeqCst);
    assert!((20..=60).contains(&opened), "{opened} attempts in ten minutes");
    close_settled(&session).await;
}

/// A room that gives another answer each time isn't asked without end which connection it has.
#[tokio::test(start_paused = true)]
async fn a_room_that_contradicts_itself_is_asked_with_back_off() {
    let asked = Arc::new(AtomicUsize::new(0));
    let session = Session::builder(Wavering(Arc::clone(&asked))).build().expect("a test's settings make sense");
    tokio::time::sleep(Duration::from_secs(600)).await;
    let asked = asked.load(Ordering::SeqCst);
    assert!((20..=300).contains(&asked), "asked {asked} times in ten minutes");
    close_settled(&session).await;
}

/// A room that lists Ada under either of two sids, in turn.
struct Wavering(Arc<AtomicUsize>);

impl Room for Wavering {
    type Message = Bytes;
    type Sink = StageSink<Bytes>;
    type Incoming = ();

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<()>> + Send + 'static> {
        Some(stream::pending())
    }

    fn participants(&self) -> Vec<Presence> {
        vec![presence("ada", "PA_1", 1)]
    }

    fn present(&self, _: &ParticipantIdentity) -> Option<Presence> {
        let odd = self.0.fetch_add(1, Ordering::SeqCst) % 2 == 1;
        Some(if odd { presence("ada", "PA_1", 1) } else { presence("ada", "PA_2", 2) })
    }

    async fn open(&self, _: &Presence, _: Progress) -> Result<StageSink<Bytes>, OpenError> {
        Ok(Valve::open().sink())
    }
}

// 1. There is one permit, and Bad's stream always fails to open. 2. While Bad backs off, it holds no permit: a hundred
// others join without time passing.
#[tokio::test(start_paused = true)]
async fn backing_off_holds_no_permit() {
    let stage = Stage::<Bytes>::new(|to, _| async move {
        if to.identity == id("bad") {
            return Err(lanecast::room::OpenError::transport("told to fail"));
        }
        Ok(StageSink::new(|_, _| Poll::Ready(Ok(()))))
    });
    let session = stage
        .session(|builder| builder.concurrent_joins(1).reset_backoff(Duration::from_secs(60), Duration::from_secs(60)));
    stage.join(presence("bad", "PA_0", 1));
    until(|| session.stats().failed_joins == 1).await;
    let begun = Instant::now();
    for n in 0..100 {
        stage.join(presence(&format!("p{n}"), &format!("PA_p{n}"), 1));
    }
    until(|| session.stats().participants == 100).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

/// Many participants fail again and again at the same time. No more streams are opened at once than the cap allows, one
/// at a time for each identity, and in the end every participant is registered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_run_concurrently_with_a_cap_one_per_identity() {
    let rounds = size(5, 100);
    let gate = Arc::new(Semaphore::new(0));
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let opening: Arc<Mutex<std::collections::HashSet<String>>> = Arc::default();
    let (g, n, m, o) = (Arc::clone(&gate), Arc::clone(&now), Arc::clone(&most), Arc::clone(&opening));
    let stage = Stage::<Bytes>::new(move |to, _| {
        let (g, n, m, o) = (Arc::clone(&g), Arc::clone(&n), Arc::clone(&m), Arc::clone(&o));
        async move {
            let name = to.identity.to_string();
            assert!(o.lock().expect("checked below").insert(name.clone()), "two streams are being opened to {name}");
            m.fetch_max(n.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            g.acquire().await.expect("it is never closed").forget();
            n.fetch_sub(1, Ordering::SeqCst);
            o.lock().expect("checked below").remove(&name);
            let valve = Valve::shut();
            Ok(valve.sink())
        }
    });
    let session = stage.session(|builder| {
        builder.concurrent_joins(4).queue_capacity(2).reset_backoff(Duration::from_millis(1), Duration::from_millis(2))
    });
    let count = 20;
    for n in 0..count {
        stage.join(presence(&format!("p{n}"), &format!("PA_{n}"), 1));
    }
    until(|| now.load(Ordering::SeqCst) == 4).await;
    gate.add_permits(count);
    for round in 1..=rounds {
        until(|| session.participants().len() == count).await;
        for participant in session.participants() {
            while participant.send(msg("x")).is_ok() {}
        }
        until(|| now.load(Ordering::SeqCst) == 4).await;
        gate.add_permits(count);
        until(|| session.stats().resets.overflow == (round * count) as u64).await;
    }
    // A participant is registered before its join is counted: the event loop counts a join when it learns of it.
    until(|| session.stats().joins == ((rounds + 1) * count) as u64).await;
    assert_eq!(session.participants().len(), count);
    assert_eq!(most.load(Ordering::SeqCst), 4, "the cap");
}

/// Resets are requested from many threads at the same moment, again and again: each is carried out, and none waits for
/// another's wake-up. A lost reset makes the test hang.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reset_is_lost() {
    let (stage, _streams) = Streams::<Bytes>::stage(|_| Valve::shut());
    let session = stage
        .session(|builder| builder.queue_capacity(1).reset_backoff(Duration::from_nanos(1), Duration::from_nanos(1)));
    let names: Vec<_> = (0..4).map(|n| format!("p{n}")).collect();
    for name in &names {
        stage.join(presence(name, &format!("PA_{name}"), 1));
    }
    let mut last: Vec<_> = Vec::new();
    for name in &names {
        last.push(live(&session, name).await);
    }
    for _ in 0..size(200, 10_000) {
        let threads: Vec<_> = last
            .drain(..)
            .map(|participant| {
                std::thread::spawn(move || {
                    while participant.send(msg("x")).is_ok() {}
                    participant
                })
            })
            .collect();
        for thread in threads {
            let old = thread.join().expect("no sender panics");
            until(|| session.participant(old.identity()).is_some_and(|new| new != old)).await;
            assert_settled(&old.stats().account);
            last.push(session.participant(old.identity()).expect("it was there a moment ago"));
        }
    }
    session.cancel();
    within(session.ended()).await.expect("it ends without an error");
}

/// A fresh stream is opened once the old one is back with the room, never beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_fresh_stream_opens_only_after_the_old_one_is_back() {
    let out = Arc::new(AtomicUsize::new(0));
    let (opened, back) = (Arc::clone(&out), Arc::clone(&out));
    let beside = Arc::new(AtomicUsize::new(0));
    let noted = Arc::clone(&beside);
    let stage = Stage::<Bytes>::with_retire(
        move |_, _| {
            noted.fetch_add(opened.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
            async { Ok(Valve::shut().sink()) }
        },
        move |sink, _| {
            back.fetch_sub(1, Ordering::SeqCst);
            drop(sink);
            None
        },
    );
    let tiny = Duration::from_micros(1);
    let session = stage.session(|builder| builder.queue_capacity(1).reset_backoff(tiny, tiny));
    stage.join(presence("ada", "PA_1", 1));
    for round in 1..=size(300, 20_000) as u64 {
        until(|| session.participant(&id("ada")).is_some_and(|ada| ada.end_reason().is_none())).await;
        let ada = live(&session, "ada").await;
        while ada.send(msg("x")).is_ok() {}
        until(|| session.stats().resets.overflow == round).await;
    }
    live(&session, "ada").await;
    close_settled(&session).await;
    assert_eq!((beside.load(Ordering::SeqCst), out.load(Ordering::SeqCst)), (0, 0));
}

// 1. The loop is held while it asks for Cyd. 2. Ada joins and overflows: her join and her reset are both still queued.
// 3. The loop goes on. If it handles her join first, that takes her out and joins her again, under the same sid. The
// loop is held while it asks for Bob, until she is back. 4. The leftover reset finds that its instance is gone, and
// leaves the successor alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leftover_reset_does_not_touch_the_successor() {
    for round in 0..size(20, 300) {
        let holds = Arc::new(HashMap::from(["cyd", "bob"].map(|name| (name, Hold::default()))));
        let ended = Arc::new(AtomicBool::new(false));
        let (asked, over) = (Arc::clone(&holds), Arc::clone(&ended));
        let stage = Stage::<Bytes>::new(move |to, _| {
            let (asked, over) = (Arc::clone(&asked), Arc::clone(&over));
            async move {
                match to.identity.as_str() {
                    "ada" => until(|| asked["cyd"].is_reached.load(Ordering::SeqCst)).await,
                    "bob" => until(|| over.load(Ordering::SeqCst)).await,
                    _ => {}
                }
                Ok(Valve::shut().sink())
            }
        });
        for name in ["cyd", "ada", "bob"] {
            stage.insert_silently(presence(name, &format!("PA_{name}"), 1));
        }
        let room = Holding { stage: stage.clone(), asked: Mutex::default(), holds: Arc::clone(&holds) };
        let session = Session::builder(room).queue_capacity(1).shards(1).build().expect("a test's settings make sense");
        let mut events = session.events();
        let ada = live(&session, "ada").await;
        while ada.send(msg("x")).is_ok() {}
        within(ada.closed()).await;
        ended.store(true, Ordering::SeqCst);
        live(&session, "bob").await;
        settle().await;
        holds["cyd"].is_over.store(true, Ordering::SeqCst);
        live(&session, "ada").await;
        holds["bob"].is_over.store(true, Ordering::SeqCst);
        // The loop is at rest when it has processed all of these.
        for n in 1..=20 {
            stage.emit(RoomEvent::StreamOpened { identity: id("nobody"), sid: sid("PA_0"), stream: () });
            until(|| session.stats().stray_streams == n).await;
        }
        until(|| session.stats().joins == 4).await;
        assert_eq!(session.stats().resets.total(), 1, "round {round}: the successor was reset, too");
        session.cancel();
        within(async { while events.next().await.is_some() {} }).await;
        assert_eq!((session.stats().joins, session.stats().resets.total()), (4, 1), "round {round}");
    }
}

/// A point where the event loop is held.
#[derive(Default)]
struct Hold {
    is_reached: AtomicBool,
    is_over: AtomicBool,
}

/// A room that holds the event loop when it is asked for an identity the second time; the first time it is the join
/// that asks.
struct Holding {
    stage: Stage<Bytes>,
    asked: Mutex<HashMap<ParticipantIdentity, usize>>,
    holds: Arc<HashMap<&'static str, Hold>>,
}

impl Room for Holding {
    type Message = Bytes;
    type Sink = StageSink<Bytes>;
    type Incoming = ();

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<()>> + Send + 'static> {
        self.stage.events()
    }

    fn participants(&self) -> Vec<Presence> {
        self.stage.participants()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        let times = {
            let mut asked = self.asked.lock().expect("the lock isn't poisoned");
            let times = asked.entry(identity.clone()).or_default();
            *times += 1;
            *times
        };
        if let Some(hold) = self.holds.get(identity.as_str()).filter(|_| times == 2) {
            hold.is_reached.store(true, Ordering::SeqCst);
            // If the loop handles the reset first, Ada doesn't come back before the loop goes on: so the hold ends by
            // time.
            let begun = std::time::Instant::now();
            while !hold.is_over.load(Ordering::SeqCst) && begun.elapsed() < Duration::from_millis(50) {
                std::thread::yield_now();
            }
        }
        self.stage.present(identity)
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<StageSink<Bytes>, OpenError> {
        self.stage.open(to, progress).await
    }
}
