//! The life cycle of a session: participants join, fail, are reset and leave, and the session ends.
//!
//! A session owns its flush shards, its event loop and every task they start. The event loop takes room events and
//! pending resets in turn and decides what to do. Everything that waits runs in tasks of its own, at most one per
//! identity.

mod accept;
mod backoff;
mod close;
mod config;
mod error;
mod event_loop;
mod events;
mod erased;
mod join;
mod stats;
mod stream;
mod tenant;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::stream::BoxStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SetOnce};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::accept::Refusal;
pub use self::close::CloseReport;
pub use self::config::SessionBuilder;
pub use self::error::{BroadcastError, BuildError, CloseError, JoinError, TryBroadcastError};
pub use self::events::{Events, SessionEvent, Who};
pub use self::erased::SessionHandle;
pub use self::stats::{Resets, SessionStats};
pub use self::stream::ControlStream;

use self::backoff::Streaks;
use self::config::Config;
use self::event_loop::EventLoop;
use self::events::{Listener, Outgoing};
use self::erased::AnySession;
use self::stats::Counters;
use self::tenant::Tenant;
use crate::contract::Topic;
use crate::fanout::{Fanout, Publisher, Settings, UplinkState};
use crate::ids::{ParticipantIdentity, ParticipantSid};
use crate::participant::Participant;
use crate::participant::pending::PendingResets;
use crate::participant::registry::Registry;
use crate::room::{Room, RoomEvent};
use crate::sync::{AtomicBool, Ordering};

tokio::task_local! {
    /// The id of the session that the current task or callback belongs to.
    static INSIDE: u64;
}

/// A session: the participants of one room, their lanes and the event loop. Clones are handles to the same session.
/// Dropping the last handle without [`close`](Self::close) cancels the session.
///
/// ```
/// use bytes::Bytes;
/// use lanecast::room::{Presence, memory::MemoryRoom};
/// use lanecast::{Session, SessionEvent};
/// use std::time::Duration;
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let room = MemoryRoom::new();
/// let session = Session::builder(room.clone())
///     .initial(|participant| async move { vec![Bytes::from(format!("hello, {}", participant.identity()))] })
///     .build()?;
/// let mut events = session.events();
///
/// room.join(Presence::new("ada".parse()?, "PA_1".parse()?, 1)).await?;
/// assert!(matches!(events.next().await, Some(SessionEvent::Joined(_))));
/// session.broadcast(Bytes::from_static(b"42 km/h")).await?;
///
/// let report = session.close(Duration::from_secs(1)).await?;
/// assert_eq!(report.account.delivered, 2);
/// let received = room.recorder(&"ada".parse()?).received();
/// assert_eq!(received[0].messages, ["hello, ada", "42 km/h"]);
/// # Ok(()) }
/// ```
pub struct Session<R: Room>(Arc<Owned<R>>);

/// A handle that doesn't keep the session open. Use it in the closures that the session itself keeps: a [`Session`] in
/// one of them would keep the session open forever.
pub struct WeakSession<R: Room>(Weak<Owned<R>>);

/// What the handles own. Dropping the last handle cancels the session.
struct Owned<R: Room>(Arc<Shared<R>>);

/// The state that the handles, the event loop, the joins and the shards share.
pub(crate) struct Shared<R: Room> {
    id: u64,
    room: R,
    config: Config<R>,
    runtime: Handle,
    fanout: Fanout<Tenant<R>>,
    registry: Registry<Participant<R::Message>>,
    pending: Arc<PendingResets>,
    counters: Counters,
    /// Locked when a participant joins or fails.
    streaks: Mutex<Streaks>,
    permits: Semaphore,
    events: Outgoing<R::Message>,
    /// Ends the event loop, the joins and the stream handlers.
    stop: CancellationToken,
    /// Cancelled when everything is delivered and every goodbye is said: the room isn't needed any more.
    delivered: CancellationToken,
    /// Ends the goodbyes that are still in progress.
    abandoned: CancellationToken,
    /// Ends the time that closing may still take.
    hurry: CancellationToken,
    /// The tasks of goodbyes and stream handlers.
    tasks: TaskTracker,
    closing: AtomicBool,
    /// The tasks of the event loop and the shards, for the close.
    running: close::Running,
    ended: SetOnce<Result<CloseReport, CloseError>>,
}

/// Starts a session. The caller has checked `config`.
fn start<R: Room>(
    room: R,
    config: Config<R>,
    runtime: &Handle,
    room_events: BoxStream<'static, RoomEvent<R::Incoming>>,
    listeners: Vec<Listener>,
) -> Session<R> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let (fanout, shards) = Fanout::new(Settings {
        shards: config.shards,
        log_capacity: config.log_capacity,
        limits: config.limits,
        joining_bytes: config.joining_bytes,
        joining_age: config.joining_age(),
        batch_bytes: room.batch_bytes(),
        write_timeout: config.write_timeout,
        uplink: room.uplink(),
    });
    let events = Outgoing::new(config.event_capacity);
    for listener in listeners {
        // A listener that was dropped in the meantime doesn't listen any more.
        let _ = listener.send(events.subscribe());
    }
    let shared = Arc::new(Shared {
        // Relaxed: only the value has to be unique.
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        fanout,
        registry: Registry::new(),
        pending: Arc::new(PendingResets::new()),
        counters: Counters::default(),
        streaks: Mutex::new(Streaks::new(config.backoff)),
        permits: Semaphore::new(config.concurrent_joins),
        events,
        stop: CancellationToken::new(),
        delivered: CancellationToken::new(),
        abandoned: CancellationToken::new(),
        hurry: CancellationToken::new(),
        tasks: TaskTracker::new(),
        closing: AtomicBool::new(false),
        running: close::Running::default(),
        ended: SetOnce::new(),
        room,
        config,
        runtime: runtime.clone(),
    });
    shared.running.start(|| {
        let shards = shards.into_iter().map(tokio::task::unconstrained);
        let mut tasks: Vec<_> = shards.map(|shard| spawn_watched(&shared, shard)).collect();
        tasks.push(spawn_watched(&shared, EventLoop::new(Arc::clone(&shared), room_events).run()));
        tasks
    });
    Session(Arc::new(Owned(shared)))
}

/// Spawns a task without which the session can't go on: if the task dies, the session ends.
fn spawn_watched<R: Room>(shared: &Arc<Shared<R>>, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let watch = close::Watch::new(Arc::clone(shared));
    let watched = async move {
        task.await;
        watch.ended_well();
    };
    shared.runtime.spawn(INSIDE.scope(shared.id, watched))
}

impl<R: Room> Session<R> {
    /// Creates the builder of a session in `room`.
    pub fn builder(room: R) -> SessionBuilder<R> {
        SessionBuilder::new(room)
    }

    fn shared(&self) -> &Arc<Shared<R>> {
        &self.0.0
    }

    /// Returns a handle that doesn't keep the session open.
    #[must_use]
    pub fn downgrade(&self) -> WeakSession<R> {
        WeakSession(Arc::downgrade(&self.0))
    }

    /// Returns a handle that keeps the session open, and whose type doesn't name the room.
    #[must_use]
    pub fn handle(&self) -> SessionHandle<R::Message> {
        SessionHandle::new(Arc::clone(self.publisher()), Arc::new(self.clone()))
    }

    /// Returns the room of the session.
    #[must_use]
    pub fn room(&self) -> &R {
        &self.shared().room
    }

    /// Sends `message` to all participants.
    ///
    /// Writes the message to the log once, whatever the number of participants, and returns. Waits only while the
    /// shards are a whole log behind or the uplink is stalled, never for a single participant. Waiting publishers are
    /// served in the order of their calls.
    ///
    /// # Errors
    /// [`BroadcastError`] returns the message: the session is closed, or the message is too large.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, nothing has been sent. A future that waits keeps its place in the
    /// order for as long as it exists: don't keep it without polling it, because the other publishers wait behind it.
    pub async fn broadcast(&self, message: R::Message) -> Result<(), BroadcastError<R::Message>> {
        erased::broadcast(self.publisher(), message).await
    }

    /// Sends `message` to the subscribers of `topic`; otherwise like [`broadcast`](Self::broadcast). If the topic has
    /// no subscribers, nothing is written to the log, and the call costs next to nothing.
    ///
    /// # Errors
    /// The errors of [`broadcast`](Self::broadcast).
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, nothing has been sent.
    pub async fn broadcast_to(&self, topic: &Topic, message: R::Message) -> Result<(), BroadcastError<R::Message>> {
        erased::broadcast_to(self.publisher(), topic, message).await
    }

    /// Sends `message` to all participants at once, or not at all. Works from any thread, and doesn't overtake
    /// publishers that wait.
    ///
    /// # Errors
    /// [`TryBroadcastError`] returns the message.
    pub fn try_broadcast(&self, message: R::Message) -> Result<(), TryBroadcastError<R::Message>> {
        erased::try_broadcast(self.publisher(), message)
    }

    /// Sends `message` to the subscribers of `topic` at once, or not at all; otherwise like
    /// [`try_broadcast`](Self::try_broadcast).
    ///
    /// # Errors
    /// [`TryBroadcastError`] returns the message.
    pub fn try_broadcast_to(&self, topic: &Topic, message: R::Message) -> Result<(), TryBroadcastError<R::Message>> {
        erased::try_broadcast_to(self.publisher(), topic, message)
    }

    fn publisher(&self) -> &Arc<Publisher<R::Message>> {
        self.shared().fanout.publisher()
    }

    /// Returns the registered instance of `identity`.
    #[must_use]
    pub fn participant(&self, identity: &ParticipantIdentity) -> Option<Participant<R::Message>> {
        self.shared().registry.by_identity(identity)
    }

    /// Returns the instance registered under `sid`; never one that has ended.
    #[must_use]
    pub fn participant_by_sid(&self, sid: &ParticipantSid) -> Option<Participant<R::Message>> {
        self.shared().registry.by_sid(sid)
    }

    /// Returns all registered instances, in no particular order.
    #[must_use]
    pub fn participants(&self) -> Vec<Participant<R::Message>> {
        let mut live = Vec::new();
        self.shared().registry.for_each_live(|participant| live.push(participant.clone()));
        live
    }

    /// Returns a listener for the events from now on. If the session has ended, the listener has no events.
    /// Participants may have joined before this call: a listener created [on the builder](SessionBuilder::events) gets
    /// every event.
    #[must_use]
    pub fn events(&self) -> Events {
        let receiver = self.shared().events.subscribe();
        // In this order, because the end of a session sets `ended` first and sends its last event second.
        Events::new(receiver, self.shared().ended.get().is_some())
    }

    /// Returns the statistics of the session, read without stopping any of its tasks. Visits every participant once,
    /// for the oldest message.
    #[must_use]
    pub fn stats(&self) -> SessionStats {
        self.shared().stats()
    }

    /// Stops accepting messages, delivers what was accepted until `deadline` from now, cancels the rest, ends every
    /// task, and returns what became of the messages.
    ///
    /// A separate task does the work. Dropping the future changes nothing, and a second call waits for the same report,
    /// with the deadline of the first call.
    ///
    /// # Errors
    /// [`CloseError`] if this was called from within the session, if a task of the session panicked or didn't end, or
    /// if the runtime ended first.
    pub async fn close(&self, deadline: Duration) -> Result<CloseReport, CloseError> {
        if INSIDE.try_with(|id| *id == self.shared().id).unwrap_or(false) {
            return Err(CloseError::FromCallback);
        }
        self.shared().start_close(deadline, None);
        self.ended().await
    }

    /// Ends the session now: every flush stops, even in the middle of a write, and the backlog counts as abandoned.
    /// Returns at once; [`ended`](Self::ended) waits for the end. Works from any thread.
    pub fn cancel(&self) {
        self.shared().start_close(Duration::ZERO, None);
        // If the session was closing already, this ends its deadline.
        self.shared().hurry.cancel();
    }

    /// Waits until the session has ended, for any reason, and returns what became of the messages.
    ///
    /// # Errors
    /// The errors of [`close`](Self::close).
    pub async fn ended(&self) -> Result<CloseReport, CloseError> {
        self.shared().ended.wait().await.clone()
    }
}

impl<R: Room> Shared<R> {
    fn emit(&self, event: SessionEvent) {
        self.events.send(event);
    }

    fn streaks(&self) -> MutexGuard<'_, Streaks> {
        // A panic leaves no change half done: each is complete before other code is called.
        self.streaks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds publishers back while the uplink is stalled, and spares the participants for the uplink patience.
    fn set_uplink(&self, state: UplinkState) {
        if self.fanout.set_uplink(state, self.config.uplink_patience) == state {
            return;
        }
        match state {
            UplinkState::Stalled => {
                self.counters.uplink_stalls.add_one();
                tracing::warn!("uplink stalled");
                self.emit(SessionEvent::UplinkStalled);
            }
            UplinkState::Flowing => {
                tracing::info!("uplink flowing");
                self.emit(SessionEvent::UplinkFlowing);
            }
        }
    }

    fn stats(&self) -> SessionStats {
        let account = self.fanout.account();
        let mut oldest: Option<Duration> = None;
        let mut half_full = 0;
        self.registry.for_each_live(|participant| {
            oldest = oldest.max(participant.outbox().oldest());
            half_full += usize::from(participant.outbox().is_half_full());
        });
        SessionStats {
            participants: self.registry.len(),
            joins: self.counters.joins.get(),
            replacements: self.counters.replacements.get(),
            stale_joins: self.counters.stale_joins.get(),
            refused: self.counters.refused.get(),
            failed_joins: self.counters.failed_joins.get(),
            resets: Resets::of(&self.counters),
            vanished: self.counters.vanished.get(),
            account,
            backlog: account.waiting(),
            half_full,
            oldest,
            shard_lag: self.fanout.lag(),
            uplink_stalled: self.fanout.is_held(),
            uplink_stalls: self.counters.uplink_stalls.get(),
            stray_streams: self.counters.stray_streams.get(),
        }
    }
}

impl<R: Room> Clone for Session<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Room> fmt::Debug for Session<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("participants", &self.shared().registry.len()).finish_non_exhaustive()
    }
}

impl<R: Room> WeakSession<R> {
    /// Returns the session, unless its last handle has been dropped.
    #[must_use]
    pub fn upgrade(&self) -> Option<Session<R>> {
        self.0.upgrade().map(Session)
    }
}

impl<R: Room> Clone for WeakSession<R> {
    fn clone(&self) -> Self {
        Self(Weak::clone(&self.0))
    }
}

impl<R: Room> fmt::Debug for WeakSession<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakSession")
    }
}

impl<R: Room> Drop for Owned<R> {
    fn drop(&mut self) {
        self.0.start_close(Duration::ZERO, None);
    }
}

/// What a handle does that doesn't name the room is what the session does.
impl<R: Room> AnySession<R::Message> for Session<R> {
    fn participant(&self, identity: &ParticipantIdentity) -> Option<Participant<R::Message>> {
        self.participant(identity)
    }

    fn participant_by_sid(&self, sid: &ParticipantSid) -> Option<Participant<R::Message>> {
        self.participant_by_sid(sid)
    }

    fn participants(&self) -> Vec<Participant<R::Message>> {
        self.participants()
    }

    fn events(&self) -> Events {
        self.events()
    }

    fn stats(&self) -> SessionStats {
        self.stats()
    }

    fn close(&self, deadline: Duration) -> erased::BoxFuture<'_, Result<CloseReport, CloseError>> {
        Box::pin(self.close(deadline))
    }

    fn cancel(&self) {
        self.cancel();
    }

    fn ended(&self) -> erased::BoxFuture<'_, Result<CloseReport, CloseError>> {
        Box::pin(self.ended())
    }
}
