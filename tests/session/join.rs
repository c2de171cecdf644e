//! Joining: initial messages first, then everything from the join's position on, without a gap and without a duplicate.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use lanecast::room::memory::MemoryRoom;
use lanecast::room::{OpenError, Presence, Room, RoomEvent};
use lanecast::{
    EndReason, JoinError, Participant, ParticipantIdentity, Progress, SendError, Session, SessionEvent,
    SubscriptionTag, Topic,
};
use tokio::sync::{Semaphore, mpsc};

use crate::common::{
    Gate, Stage, StageSink, Streams, Valve, as_text, assert_settled, close_settled, event, id, joined, live, memory,
    msg, presence, receives, settle, sid, size, texts, until, within,
};

// 1. The newcomer is admitted; the closure for its initial messages runs and doesn't end. 2. Thousands of messages are
// broadcast, and some are sent to it directly. 3. The closure ends. 4. The initial messages come first, then all the
// others, in order.
#[tokio::test]
async fn initial_messages_come_before_concurrent_broadcasts() {
    let count = size(3_000, 100_000);
    let gate = Arc::new(Semaphore::new(0));
    let (started, mut starting) = mpsc::unbounded_channel();
    let opened = Arc::clone(&gate);
    let (room, session) = memory(|builder| {
        builder.queue_capacity(1 << 20).initial(move |participant: Participant<Bytes>| {
            started.send(participant).expect("the test listens");
            let opened = Arc::clone(&opened);
            async move {
                opened.acquire().await.expect("it is never closed").forget();
                vec![msg("first"), msg("second")]
            }
        })
    });
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    let ada = within(starting.recv()).await.expect("the closure is running");
    assert!(session.participant(&id("ada")).is_none(), "it isn't registered before its initial messages are there");
    let mut expected = vec!["first".to_owned(), "second".to_owned()];
    for text in texts("m", count) {
        if text.ends_with("00") {
            ada.send(msg(text.clone())).expect("there is capacity");
        } else {
            session.broadcast(msg(text.clone())).await.expect("the session is open");
        }
        expected.push(text);
    }
    settle().await;
    assert!(room.recorder(&id("ada")).received()[0].messages.is_empty(), "nothing goes before the initial messages");
    gate.add_permits(1);
    let recorder = room.recorder(&id("ada"));
    let all = within(recorder.wait_for(|all| all[0].messages.len() == expected.len())).await;
    assert!(as_text(&all[0]) == expected);
    assert_eq!(close_settled(&session).await.delivered, expected.len() as u64);
}

/// One task publishes numbers without pause and keeps the last one as its state (state first, broadcast second). Others
/// join all the while, and get the state. Each then sees a sequence without a gap from its state on.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn joins_under_load_have_no_gap_and_no_duplicate() {
    let joins = size(100, 3_000);
    let state = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&state);
    let (room, session) = memory(|builder| {
        builder.shards(2).queue_capacity(1 << 20).initial(move |_| {
            let told = Arc::clone(&told);
            async move { vec![msg(format!("state {}", told.load(Ordering::SeqCst)))] }
        })
    });
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = tokio::spawn({
        let (session, state, stop) = (session.clone(), Arc::clone(&state), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::SeqCst) {
                let next = state.fetch_add(1, Ordering::SeqCst) + 1;
                session.broadcast(msg(next.to_string())).await.expect("the session is open");
                tokio::task::yield_now().await;
            }
        }
    });
    for n in 0..joins {
        let name = format!("p{n}");
        joined(&room, &session, &name).await;
        let recorder = room.recorder(&id(&name));
        within(recorder.wait_for(|all| all[0].messages.len() >= 20)).await;
        room.leave(&id(&name), &sid(&format!("PA_{name}"))).await.expect("the session listens");
        let received = as_text(&within(recorder.wait_for(|all| all[0].closed)).await[0]);
        room.forget_recorder(&id(&name));
        let initial: usize = received[0].strip_prefix("state ").expect("the state first").parse().expect("a number");
        let numbers: Vec<usize> = received[1..].iter().map(|text| text.parse().expect("a number")).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap or a duplicate: {numbers:?}");
        // A change that races with the join may be reported twice, but never omitted.
        assert!(numbers[0] <= initial + 1, "{initial} and then {}: something between is missing", numbers[0]);
    }
    stop.store(true, Ordering::SeqCst);
    within(publisher).await.expect("it doesn't panic");
}

/// The closure broadcasts more than the log holds, sends to its own participant and subscribes it. There is no
/// deadlock, and the initial messages still come first.
#[tokio::test]
async fn the_closure_may_broadcast_send_and_subscribe() {
    let handle: Arc<OnceLock<Session<MemoryRoom<Bytes>>>> = Arc::default();
    let within_closure = Arc::clone(&handle);
    let topic = Topic::new();
    let subscribed = topic.clone();
    let (room, session) = memory(|builder| {
        builder.log_capacity(2).initial(move |ada: Participant<Bytes>| {
            let session = within_closure.get().expect("set before anybody joins").clone();
            let topic = subscribed.clone();
            async move {
                ada.send(msg("direct")).expect("there is capacity");
                for text in texts("b", 10) {
                    session.broadcast(msg(text)).await.expect("the session is open");
                }
                ada.subscribe(&topic, SubscriptionTag(0)).await;
                session.broadcast_to(&topic, msg("topic")).await.expect("the session is open");
                vec![msg("initial")]
            }
        })
    });
    handle.set(session.clone()).expect("set once");
    joined(&room, &session, "ada").await;
    let mut expected = vec!["initial", "direct"];
    let broadcasts = texts("b", 10);
    expected.extend(broadcasts.iter().map(String::as_str));
    expected.push("topic");
    receives(&room, "ada", &expected).await;
    close_settled(&session).await;
}

/// The closure panics, at once or later, or doesn't end: the join fails, is reported, and is tried again after a
/// back-off, on a fresh stream. The messages that had gathered meanwhile are counted.
#[tokio::test(start_paused = true)]
async fn a_closure_that_panics_or_hangs_is_retried() {
    for how in 0..3 {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let (room, session) = memory(|builder| {
            builder.open_timeout(Duration::from_secs(3)).initial(move |_| {
                let run = counted.fetch_add(1, Ordering::SeqCst);
                assert!(how != 0 || run != 0, "told to panic at once");
                async move {
                    match (how, run) {
                        (1, 0) => panic!("told to panic later"),
                        (2, 0) => std::future::pending().await,
                        _ => vec![msg("state")],
                    }
                }
            })
        });
        let mut events = session.events();
        let begun = tokio::time::Instant::now();
        room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
        until(|| runs.load(Ordering::SeqCst) == 1).await;
        session.broadcast(msg("meanwhile")).await.expect("the session is open");
        let failed = event(&mut events, |event| match event {
            SessionEvent::JoinFailed { sid, error, .. } => Some((sid.clone(), error.clone())),
            _ => None,
        });
        let (whose, error) = failed.await;
        assert_eq!(whose, sid("PA_1"));
        assert!(
            matches!((how, &error), (0 | 1, JoinError::Panicked) | (2, JoinError::InitialTimedOut(_))),
            "{error:?}"
        );
        if how == 2 {
            assert_eq!(begun.elapsed().as_secs(), 3);
        }
        within(room.recorder(&id("ada")).wait_for(|all| all.last().is_some_and(|last| last.messages == ["state"])))
            .await;
        let all = room.recorder(&id("ada")).received();
        assert_eq!(all.len(), 2);
        assert!(all[0].closed && all[0].messages.is_empty(), "nothing was sent on the stream that was given up");
        assert_eq!((session.stats().failed_joins, session.stats().joins), (1, 1));
        close_settled(&session).await;
    }
}

// 1. PA_1 is registered and keeps up. 2. Ada reconnects as PA_2, whose closure doesn't end. 3. PA_2 overflows while it
// joins: its attempt has failed. 4. PA_1 stays registered. 5. PA_2 is tried again, and then takes the place.
#[tokio::test(start_paused = true)]
async fn a_newcomer_that_fails_evicts_nobody() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let (room, session) = memory(|builder| {
        builder.joining_bytes(4 * 66).initial(move |ada: Participant<Bytes>| {
            let held = Arc::clone(&held);
            async move {
                if *ada.sid() == sid("PA_2") {
                    held.acquire().await.expect("it isn't closed").forget();
                }
                Vec::new()
            }
        })
    });
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    let old = live(&session, "ada").await;
    room.join(presence("ada", "PA_2", 2)).await.expect("the session listens");
    settle().await;
    for text in texts("m", 10) {
        session.broadcast(msg(text)).await.expect("the session is open");
    }
    until(|| old.stats().account.delivered == 10).await;
    until(|| session.stats().failed_joins == 1).await;
    assert_eq!((old.end_reason(), session.stats().replacements), (None, 0));
    assert_eq!(live(&session, "ada").await, old);
    gate.add_permits(1);
    assert_eq!(within(old.closed()).await, EndReason::Replaced);
    assert_eq!(live(&session, "ada").await.sid(), &sid("PA_2"));
}

/// Initial messages don't count against the bound. One that the room can't carry at all fails the join; the failure is
/// reported, and the join is tried again.
#[tokio::test(start_paused = true)]
async fn an_initial_message_too_large_for_the_room_fails_the_join() {
    let long = Arc::new(AtomicBool::new(true));
    let is_long = Arc::clone(&long);
    let (stage, streams) = Streams::<Bytes>::stage(|_| Valve::open());
    let session = Session::builder(Narrow(stage.clone()))
        .queue_bytes(4)
        .initial(move |_| {
            let text = if is_long.load(Ordering::SeqCst) { "much too long" } else { "fits in" };
            async move { vec![msg(text)] }
        })
        .build()
        .expect("a test's settings make sense");
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    let failed = event(&mut events, |event| match event {
        SessionEvent::JoinFailed { error, .. } => Some(error.clone()),
        _ => None,
    });
    let error = failed.await;
    assert!(matches!(error, JoinError::InitialTooLarge { bytes: 13, largest: 8 }), "{error:?}");
    long.store(false, Ordering::SeqCst);
    within(streams.nth("ada", 1).await.wait_for(|seen| seen.flushed == ["fits in"])).await;
    assert!(streams.nth("ada", 0).await.lock().flushed.is_empty());
    close_settled(&session).await;
}

/// A room that carries messages of at most eight bytes.
struct Narrow(Stage<Bytes>);

impl Room for Narrow {
    type Message = Bytes;
    type Sink = StageSink<Bytes>;
    type Incoming = ();

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<()>> + Send + 'static> {
        self.0.events()
    }

    fn participants(&self) -> Vec<Presence> {
        self.0.participants()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        self.0.present(identity)
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<StageSink<Bytes>, OpenError> {
        self.0.open(to, progress).await
    }

    fn largest_message(&self) -> usize {
        8
    }
}

// 1. The closure sends its own participant more than may wait, and goes on. 2. The attempt has failed, though nobody
// was registered; it is tried again, and no reset is reported.
#[tokio::test(start_paused = true)]
async fn an_overflow_during_the_join_fails_the_attempt() {
    let runs = AtomicUsize::new(0);
    let (room, session) = memory(|builder| {
        builder.queue_capacity(4).initial(move |ada: Participant<Bytes>| {
            let is_first = runs.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                if is_first {
                    for text in texts("m", 4) {
                        ada.send(msg(text)).expect("four may wait");
                    }
                    assert!(matches!(ada.send(msg("m4")), Err(SendError::Overflow)));
                    std::future::pending::<()>().await;
                }
                vec![msg("state")]
            }
        })
    });
    let mut events = session.events();
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    let error = match within(events.next()).await {
        Some(SessionEvent::JoinFailed { error, .. }) => error,
        other => panic!("not expected: {other:?}"),
    };
    assert!(matches!(error, JoinError::Ended(EndReason::Overflow)), "{error:?}");
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Joined(_))));
    receives(&room, "ada", &["state"]).await;
    let account = close_settled(&session).await;
    assert_eq!((account.dropped.overflow, account.delivered), (5, 1));
}

// 1. Ada's stream is being opened. 2. She disconnects. 3. The stream would open now: nobody is registered, and no ghost
// stays.
#[tokio::test]
async fn a_disconnect_while_the_stream_opens_leaves_no_ghost() {
    for late in [false, true] {
        let gate = Gate::new();
        let opens = gate.clone();
        let stage = Stage::<Bytes>::new(move |_, _| {
            let gate = opens.clone();
            async move {
                gate.pass().await;
                Ok(Valve::open().sink())
            }
        });
        let session = stage.session(|builder| builder.open_timeout(Duration::from_secs(3_600)));
        stage.join(presence("ada", "PA_1", 1));
        until(|| gate.opening() == 1).await;
        if late {
            // The stream opens at the very moment at which the disconnect is reported.
            gate.let_open(1);
        }
        stage.leave("ada", "PA_1");
        // Otherwise its opening is dropped, long before the time-out.
        until(|| gate.opening() == 0).await;
        settle().await;
        assert_eq!(session.stats().participants, 0, "a ghost, late: {late}");
        // The identity isn't locked out.
        gate.let_open(1);
        stage.join(presence("ada", "PA_2", 2));
        assert_eq!(live(&session, "ada").await.sid(), &sid("PA_2"));
        close_settled(&session).await;
    }
}

// 1. PA_1 is reported, but the room has PA_2 by then, whose report is still on its way. 2. The join opens PA_2, once.
// 3. The report comes, and changes nothing: PA_2 isn't lost, even in a room whose streams can be opened only once.
#[tokio::test]
async fn a_connection_reported_late_is_opened_once() {
    let gate = Gate::new();
    let opened = Arc::new(AtomicUsize::new(0));
    let stage = Stage::<Bytes>::new({
        let (gate, opened) = (gate.clone(), Arc::clone(&opened));
        move |_, _| {
            let (gate, opened) = (gate.clone(), Arc::clone(&opened));
            async move {
                opened.fetch_add(1, Ordering::SeqCst);
                gate.pass().await;
                Ok(Valve::open().sink())
            }
        }
    });
    let session = stage.session(|builder| builder);
    stage.insert_silently(presence("ada", "PA_2", 2));
    stage.emit(lanecast::room::RoomEvent::Active(presence("ada", "PA_1", 1)));
    until(|| gate.opening() == 1).await;
    stage.join(presence("ada", "PA_2", 2));
    settle().await;
    gate.let_open(1);
    assert_eq!(live(&session, "ada").await.sid(), &sid("PA_2"));
    assert_eq!(opened.load(Ordering::SeqCst), 1);
    close_settled(&session).await;
}

// The same while the closure computes the initial messages. The room no longer lists the connection before its event
// arrives, a step earlier or later each time.
#[tokio::test]
async fn a_disconnect_at_any_step_of_a_join_leaves_no_ghost() {
    for steps in 0..40 {
        let (room, session) = memory(|builder| {
            builder.initial(|_| async {
                settle().await;
                vec![msg("state")]
            })
        });
        room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
        for _ in 0..steps * 3 {
            tokio::task::yield_now().await;
        }
        room.remove_silently(&id("ada"), &sid("PA_1"));
        for _ in 0..steps % 7 {
            tokio::task::yield_now().await;
        }
        room.leave(&id("ada"), &sid("PA_1")).await.expect("the session listens");
        settle().await;
        until(|| session.stats().participants == 0).await;
        settle().await;
        settle().await;
        assert_eq!(session.stats().participants, 0, "a ghost after {steps} steps");
        let stats = session.stats();
        assert_settled(&stats.account);
        assert!(room.recorder(&id("ada")).received().iter().all(|stream| stream.closed));
    }
}

// 1. PA_1's stream is being opened and hangs. 2. PA_2 of the same identity comes: it supersedes PA_1 at once, and only
// PA_2 is registered. 3. PA_1's disconnect comes late.
#[tokio::test]
async fn a_newer_connection_supersedes_a_join_under_way() {
    let gate = Gate::new();
    let opens = gate.clone();
    let stage = Stage::<Bytes>::new(move |to, _| {
        let gate = opens.clone();
        async move {
            if to.sid == sid("PA_1") {
                gate.pass().await;
            }
            Ok(Valve::open().sink())
        }
    });
    let session = stage.session(|builder| builder.open_timeout(Duration::from_secs(3_600)));
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    until(|| gate.opening() == 1).await;
    stage.join(presence("ada", "PA_2", 2));
    let ada = live(&session, "ada").await;
    assert_eq!(gate.opening(), 0, "PA_1's opening was dropped");
    stage.leave("ada", "PA_1");
    settle().await;
    assert_eq!(session.participant(&id("ada")), Some(ada.clone()));
    assert_eq!((ada.sid(), session.stats().joins), (&sid("PA_2"), 1));
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Joined(who)) if who.sid == sid("PA_2")));
}

/// A participant that was present before the session was built joins without an event, and only once if it is announced
/// as well.
#[tokio::test]
async fn participants_present_at_the_build_join() {
    let room = MemoryRoom::new();
    for n in 0..10 {
        room.insert_silently(presence(&format!("p{n}"), &format!("PA_{n}"), 1));
    }
    room.join(presence("p0", "PA_0", 1)).await.expect("the room keeps the event");
    let session = Session::builder(room.clone()).build().expect("the defaults make sense");
    until(|| session.stats().participants == 10).await;
    settle().await;
    assert_eq!(session.stats().joins, 10);
    session.broadcast(msg("x")).await.expect("the session is open");
    for n in 0..10 {
        receives(&room, &format!("p{n}"), &["x"]).await;
    }
}

// 1. Ten streams hang while they are opened, with a cap of two. 2. Two are being opened, and the loop still serves
// others: a disconnect, a reset, a broadcast. 3. Each stream that opens makes way for the next.
#[tokio::test]
async fn opening_streams_never_blocks_the_loop_and_is_capped() {
    let gate = Gate::new();
    let opens = gate.clone();
    let stage = Stage::<Bytes>::new(move |to, _| {
        let gate = opens.clone();
        async move {
            if to.identity.as_str().starts_with("slow") {
                gate.pass().await;
            }
            Ok(Valve::open().sink())
        }
    });
    let session = stage.session(|builder| builder.concurrent_joins(2).open_timeout(Duration::from_secs(3_600)));
    stage.join(presence("quick", "PA_q", 1));
    live(&session, "quick").await;
    for n in 0..10 {
        stage.join(presence(&format!("slow{n}"), &format!("PA_{n}"), 1));
    }
    until(|| gate.opening() == 2).await;
    settle().await;
    assert_eq!(gate.opening(), 2);
    stage.leave("quick", "PA_q");
    until(|| session.participant(&id("quick")).is_none()).await;
    for n in 1..=10 {
        gate.let_open(1);
        until(|| session.stats().participants == n).await;
        assert!(gate.opening() <= 2);
    }
}

/// A listener resets every instance the moment it learns of it, before the loop itself has taken note of the join: the
/// waits grow all the same.
#[tokio::test(start_paused = true)]
async fn an_instance_that_fails_at_once_is_joined_with_back_off() {
    let (stage, _streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.queue_capacity(1));
    let mut events = session.events();
    stage.join(presence("ada", "PA_1", 1));
    let begun = tokio::time::Instant::now();
    let mut joins = 0;
    while begun.elapsed() < Duration::from_secs(600) {
        let joined = event(&mut events, |event| matches!(event, SessionEvent::Joined(_)).then_some(()));
        if tokio::time::timeout(Duration::from_secs(40), joined).await.is_err() {
            break;
        }
        joins += 1;
        assert!(joins < 100, "{joins} instances in {:?}: it spins", begun.elapsed());
        let ada = session.participant(&id("ada")).expect("it has just joined");
        while ada.send(msg("x")).is_ok() {}
    }
    assert!(joins >= 20, "only {joins} instances in ten minutes");
}
