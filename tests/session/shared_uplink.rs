//! An uplink that all participants share: a participant held up by the uplink isn't reset, a stuck one is.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use lanecast::room::{OpenError, Presence, Room, RoomEvent};
use lanecast::{
    EndReason, ParticipantIdentity, Progress, SendError, Session, SessionBuilder, SessionEvent, TryBroadcastError,
    Uplink, UplinkWrite,
};
use tokio::time::advance;

use crate::common::{Call, Stage, StageSink, close_settled, live, msg, presence, reset, settle, texts, until, within};

/// One pipe for all sinks: takes one write of each sink at a time, and lets the writes through in the order in which
/// they came.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// How many more writes may pass; `None` for any number.
    credit: Option<usize>,
    queue: VecDeque<Write>,
    /// The identities whose writes stay in the queue whatever happens.
    stuck: Vec<String>,
    received: Vec<(String, Bytes)>,
}

struct Write {
    of: String,
    batch: Vec<Bytes>,
    under_way: UplinkWrite,
    outcome: Arc<Mutex<Outcome>>,
}

#[derive(Default)]
struct Outcome {
    done: bool,
    waker: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pipe {
    /// Lets this many writes through, or any number; `Some(0)` holds everything back.
    fn credit(&self, credit: Option<usize>) {
        lock(&self.0).credit = credit;
        self.flow();
    }

    /// The writes of `of` stay in the pipe from now on, and others pass them.
    fn stick(&self, of: &str) {
        lock(&self.0).stuck.push(of.to_owned());
    }

    fn unstick(&self) {
        lock(&self.0).stuck.clear();
        self.flow();
    }

    fn received(&self, by: &str) -> Vec<String> {
        let of = |(to, bytes): &(String, Bytes)| (to == by).then(|| String::from_utf8_lossy(bytes).into_owned());
        lock(&self.0).received.iter().filter_map(of).collect()
    }

    fn queued(&self) -> usize {
        lock(&self.0).queue.len()
    }

    fn flow(&self) {
        let mut state = lock(&self.0);
        while state.credit != Some(0) {
            let State { queue, stuck, .. } = &mut *state;
            let Some(at) = queue.iter().position(|write| !stuck.contains(&write.of)) else { return };
            let write = queue.remove(at).expect("it is there");
            state.credit = state.credit.map(|credit| credit - 1);
            state.received.extend(write.batch.into_iter().map(|message| (write.of.clone(), message)));
            write.under_way.done();
            let mut outcome = lock(&write.outcome);
            outcome.done = true;
            if let Some(waker) = outcome.waker.take() {
                waker.wake();
            }
        }
    }

    fn sink(&self, of: String, uplink: Uplink, progress: Progress) -> StageSink<Bytes> {
        let pipe = self.clone();
        let mut batch = Vec::new();
        let mut writing: Option<Arc<Mutex<Outcome>>> = None;
        let mut poll = move |call: Call<Bytes>, cx: Option<&mut Context<'_>>| {
            if let (Some(outcome), Some(cx)) = (&writing, cx) {
                let mut outcome = lock(outcome);
                if !outcome.done {
                    outcome.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
            match call {
                Call::Ready | Call::Close => writing = None,
                Call::Send(message) => batch.push(message),
                Call::Flush if batch.is_empty() => writing = None,
                Call::Flush => {
                    let outcome = Arc::new(Mutex::new(Outcome::default()));
                    let under_way = uplink.begin(&progress);
                    let batch = std::mem::take(&mut batch);
                    let write = Write { of: of.clone(), batch, under_way, outcome: Arc::clone(&outcome) };
                    lock(&pipe.0).queue.push_back(write);
                    writing = Some(outcome);
                    pipe.flow();
                    return Poll::Ready(Err(()));
                }
                Call::Drop => lock(&pipe.0).queue.retain(|write| write.of != of),
            }
            Poll::Ready(Ok(()))
        };
        StageSink::new(move |call, mut cx| match (poll(call, cx.as_deref_mut()), cx) {
            // A write has begun; it may be done already.
            (Poll::Ready(Err(())), Some(cx)) => poll(Call::Flush, Some(cx)).map(|_| Ok(())),
            (polled, _) => polled.map(|_| Ok(())),
        })
    }
}

/// A stage whose sinks share an uplink.
#[derive(Clone)]
struct Shared {
    stage: Stage<Bytes>,
    uplink: Uplink,
    pipe: Pipe,
}

impl Shared {
    fn new() -> Self {
        let (uplink, pipe) = (Uplink::new(), Pipe::default());
        let (to, through) = (uplink.clone(), pipe.clone());
        let open = move |presence: Presence, progress| {
            let sink = through.sink(presence.identity.to_string(), to.clone(), progress);
            async move { Ok(sink) }
        };
        Self { stage: Stage::new(open), uplink, pipe }
    }

    fn session(&self, set: impl FnOnce(SessionBuilder<Self>) -> SessionBuilder<Self>) -> Session<Self> {
        set(Session::builder(self.clone()).shards(1)).build().expect("a test's settings make sense")
    }
}

impl Room for Shared {
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
        self.stage.present(identity)
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<StageSink<Bytes>, OpenError> {
        self.stage.open(to, progress).await
    }

    fn uplink(&self) -> Option<Uplink> {
        Some(self.uplink.clone())
    }

    fn largest_message(&self) -> usize {
        1000
    }
}

async fn with_viewers(room: &Shared, session: &Session<Shared>, names: &[&str]) {
    for name in names {
        room.stage.join(presence(name, &format!("PA_{name}"), 1));
        live(session, name).await;
    }
}

/// Publishes until the log is full; returns the number of messages.
fn fill(session: &Session<Shared>, from: usize) -> usize {
    let mut published = 0;
    while session.try_broadcast(msg(format!("m{}", from + published))).is_ok() {
        published += 1;
    }
    published
}

// 1. The pipe takes nothing. 2. Messages are published until the log is full: far more than any queue holds, and nobody
// is reset, however long it lasts. 3. The pipe flows: every participant gets everything, in order.
#[tokio::test(start_paused = true)]
async fn congestion_holds_publishers_back_and_resets_nobody() {
    let room = Shared::new();
    let session = room.session(|builder| builder.queue_capacity(16).log_capacity(64));
    with_viewers(&room, &session, &["ada", "bob"]).await;
    room.pipe.credit(Some(0));
    let mut published = 0;
    for _ in 0..20 {
        published += fill(&session, published);
        settle().await;
        advance(Duration::from_secs(1)).await;
    }
    assert!(matches!(session.try_broadcast(msg("one more")), Err(TryBroadcastError::Full(_))));
    assert!((64..=64 + 32).contains(&published), "{published}");
    assert_eq!((session.stats().resets.total(), session.stats().participants), (0, 2));
    room.pipe.credit(None);
    for name in ["ada", "bob"] {
        until(|| room.pipe.received(name).len() == published).await;
        assert_eq!(room.pipe.received(name), texts("m", published));
    }
    assert_eq!(close_settled(&session).await.dropped.total(), 0);
}

// 1. Ada's write stays in the pipe; others pass it. 2. While messages are published she overflows: she alone is reset.
// 3. Bob misses nothing and waits for nobody.
#[tokio::test(start_paused = true)]
async fn a_stuck_stream_overflows_alone() {
    let room = Shared::new();
    let session = room.session(|builder| builder.queue_capacity(16).log_capacity(64));
    with_viewers(&room, &session, &["ada", "bob"]).await;
    let mut events = session.events();
    room.pipe.stick("ada");
    let mut published = 0;
    while session.stats().resets.overflow == 0 {
        assert!(published < 64, "she is never reset");
        session.broadcast(msg(format!("m{published}"))).await.expect("the session is open");
        published += 1;
        settle().await;
        advance(Duration::from_millis(30)).await;
    }
    assert_eq!(reset(&mut events).await, EndReason::Overflow);
    until(|| room.pipe.received("bob").len() == published).await;
    room.pipe.unstick();
    live(&session, "ada").await;
    session.broadcast(msg("again")).await.expect("the session is open");
    until(|| room.pipe.received("ada").ends_with(&["again".to_owned()])).await;
    assert_eq!(session.stats().resets.total(), 1);
}

// 1. Ada's write stays in the pipe. 2. Messages to others keep passing it: after the write time-out she is reset.
#[tokio::test(start_paused = true)]
async fn a_stuck_stream_times_out() {
    let room = Shared::new();
    let session = room.session(|builder| builder.write_timeout(Duration::from_secs(4)));
    with_viewers(&room, &session, &["ada", "bob"]).await;
    let mut events = session.events();
    room.pipe.stick("ada");
    for second in 0..8 {
        session.broadcast(msg(format!("m{second}"))).await.expect("the session is open");
        settle().await;
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(reset(&mut events).await, EndReason::WriteTimedOut);
    assert_eq!(session.stats().resets.total(), 1);
    assert_eq!(room.pipe.received("bob"), texts("m", 8));
}

/// With one participant nothing passes its writes, so a stall counts as the uplink's.
#[tokio::test(start_paused = true)]
async fn a_stall_of_the_only_participant_counts_as_the_uplinks() {
    let room = Shared::new();
    let session = room.session(|builder| builder.queue_capacity(8).log_capacity(8));
    with_viewers(&room, &session, &["ada"]).await;
    room.pipe.stick("ada");
    let mut published = 0;
    for _ in 0..60 {
        published += fill(&session, published);
        settle().await;
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(session.stats().resets.total(), 0);
    room.pipe.unstick();
    until(|| room.pipe.received("ada").len() == published).await;
    assert_eq!(room.pipe.received("ada"), texts("m", published));
}

/// A probe of the room's own that arrives shows that the stream is stuck and not the uplink, with nothing else moving.
#[tokio::test(start_paused = true)]
async fn a_probe_that_arrives_exposes_a_stuck_stream() {
    let room = Shared::new();
    let session = room.session(|builder| builder.write_timeout(Duration::from_secs(2)));
    with_viewers(&room, &session, &["ada"]).await;
    let mut events = session.events();
    room.pipe.stick("ada");
    session.broadcast(msg("stuck")).await.expect("the session is open");
    room.uplink.quiet(Duration::from_secs(1)).await;
    assert_eq!((room.uplink.under_way(), room.pipe.queued()), (1, 1));
    room.uplink.probe().done();
    for _ in 0..4 {
        settle().await;
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(reset(&mut events).await, EndReason::WriteTimedOut);
}

// 1. The pipe takes nothing, and Ada's queue fills. 2. A send returns the message and resets nobody; a waiting send
// goes on waiting. 3. The pipe flows: the waiting message is sent, behind all earlier ones.
#[tokio::test(start_paused = true)]
async fn a_direct_send_waits_or_returns_the_message() {
    let room = Shared::new();
    let session = room.session(|builder| builder.queue_capacity(8));
    with_viewers(&room, &session, &["ada"]).await;
    let ada = live(&session, "ada").await;
    room.pipe.credit(Some(0));
    let mut sent = 0;
    let refused = loop {
        match ada.send(msg(format!("d{sent}"))) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        settle().await;
    };
    assert!(matches!(refused, SendError::UplinkFull(back) if back == format!("d{sent}")));
    assert_eq!((sent, ada.end_reason()), (8, None));
    let mut waiting = Box::pin(ada.send_waiting(msg("d8")));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    advance(Duration::from_secs(60)).await;
    settle().await;
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    room.pipe.credit(None);
    within(waiting).await.expect("the queue has capacity again");
    until(|| room.pipe.received("ada").len() == 9).await;
    assert_eq!(room.pipe.received("ada"), texts("d", 9));
}

/// A waiting send returns an error when the participant ends.
#[tokio::test(start_paused = true)]
async fn a_waiting_direct_send_ends_with_its_participant() {
    let room = Shared::new();
    let session = room.session(|builder| builder.queue_capacity(1));
    with_viewers(&room, &session, &["ada"]).await;
    let ada = live(&session, "ada").await;
    room.pipe.credit(Some(0));
    ada.send(msg("a")).expect("there is capacity");
    settle().await;
    let waiting = tokio::spawn({
        let ada = ada.clone();
        async move { ada.send_waiting(msg("b")).await }
    });
    settle().await;
    room.stage.leave("ada", "PA_ada");
    assert_eq!(within(waiting).await.expect("it doesn't panic"), Err(SendError::Closed));
}

// 1. The room says that the uplink is stalled. 2. Nobody is reset while the session's patience lasts. 3. After that the
// write time-out runs again: every participant without progress is reset.
#[tokio::test(start_paused = true)]
async fn patience_with_a_stalled_uplink_runs_out() {
    let room = Shared::new();
    let (patience, timeout) = (Duration::from_secs(20), Duration::from_secs(4));
    let session = room.session(|builder| builder.uplink_patience(patience).write_timeout(timeout));
    with_viewers(&room, &session, &["ada", "bob"]).await;
    let mut events = session.events();
    room.pipe.credit(Some(0));
    session.broadcast(msg("x")).await.expect("the session is open");
    settle().await;
    room.stage.emit(RoomEvent::UplinkStalled);
    assert!(matches!(within(events.next()).await, Some(SessionEvent::UplinkStalled)));
    for _ in 0..19 {
        advance(Duration::from_secs(1)).await;
        settle().await;
    }
    assert_eq!(session.stats().resets.total(), 0);
    for _ in 0..8 {
        advance(Duration::from_secs(1)).await;
        settle().await;
    }
    assert_eq!(session.stats().resets.write_timed_out, 2);
}

/// A message larger than the room carries is refused and returned.
#[tokio::test]
async fn a_message_too_large_for_the_room_is_refused() {
    let room = Shared::new();
    let session = room.session(|builder| builder);
    with_viewers(&room, &session, &["ada"]).await;
    let ada = live(&session, "ada").await;
    assert!(matches!(session.try_broadcast(vec![0; 1001].into()), Err(TryBroadcastError::TooLarge(_))));
    assert!(matches!(ada.send(vec![0; 1001].into()), Err(SendError::TooLarge(_))));
    session.try_broadcast(vec![b'x'; 1000].into()).expect("the room carries 1,000 bytes");
    until(|| room.pipe.received("ada").len() == 1).await;
}

// 1. Half of Ada's bound is taken by broadcasts: her shard reads no further. 2. Direct messages are sent to her: their
// place is behind what isn't read. 3. The pipe flows, and what was read is delivered: nobody is blocked, and half of
// the bound is still taken, by messages that wait for the log. 4. The shard reads on.
#[tokio::test(start_paused = true)]
async fn a_shard_reads_on_once_nobody_is_blocked() {
    let room = Shared::new();
    let timeout = Duration::from_secs(1);
    let session = room.session(|builder| builder.queue_capacity(16).log_capacity(64).write_timeout(timeout));
    with_viewers(&room, &session, &["ada"]).await;
    let ada = live(&session, "ada").await;
    room.pipe.credit(Some(0));
    let mut published = 0;
    for _ in 0..20 {
        published += fill(&session, published);
        settle().await;
    }
    let mut direct = 0;
    while ada.send(msg(format!("d{direct}"))).is_ok() {
        direct += 1;
        settle().await;
    }
    advance(Duration::from_secs(2)).await;
    settle().await;
    room.pipe.credit(None);
    for _ in 0..10 {
        settle().await;
        advance(Duration::from_secs(1)).await;
    }
    settle().await;
    assert_eq!(room.pipe.received("ada").len(), published + direct);
    assert_eq!(session.stats().resets.total(), 0);
}

// 1. Ada has subscribed to a busy topic, Bob hasn't. 2. The uplink takes nothing: their shard reads no further. 3.
// Direct messages to Bob, who has nothing under way, wait for their place: he isn't reset for it. 4. The pipe flows: he
// gets them.
#[tokio::test(start_paused = true)]
async fn a_participant_held_up_by_another_is_not_reset() {
    let room = Shared::new();
    let session = room.session(|builder| builder.queue_capacity(16).log_capacity(64));
    with_viewers(&room, &session, &["ada", "bob"]).await;
    let (ada, bob) = (live(&session, "ada").await, live(&session, "bob").await);
    let topic = lanecast::Topic::new();
    ada.subscribe(&topic, lanecast::SubscriptionTag(1)).await;
    room.pipe.credit(Some(0));
    for _ in 0..200 {
        let _ = session.try_broadcast_to(&topic, msg("t"));
        settle().await;
    }
    let mut sent = 0;
    let refused = loop {
        match bob.send(msg(format!("d{sent}"))) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SendError::UplinkFull(_)), "{refused:?}");
    let waiting = tokio::spawn({
        let bob = bob.clone();
        async move { bob.send_waiting(msg("last")).await }
    });
    settle().await;
    assert_eq!((session.stats().resets.total(), bob.end_reason()), (0, None));
    room.pipe.credit(None);
    for _ in 0..3 {
        settle().await;
        advance(Duration::from_secs(1)).await;
    }
    within(waiting).await.expect("it doesn't panic").expect("the queue has capacity again");
    until(|| room.pipe.received("bob").len() == sent + 1).await;
    assert_eq!(room.pipe.received("bob")[..sent], texts("d", sent));
}
