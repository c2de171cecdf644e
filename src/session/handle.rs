//! The handles to a session.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::core::Core;
use super::erased::{self, AnySession, AnyWeakSession, BoxFuture, SessionHandle};
use super::error::{BroadcastError, CloseError, TryBroadcastError};
use super::events::Events;
use super::stats::{CloseReport, SessionStats};
use crate::contract::Topic;
use crate::fanout::Publisher;
use crate::ids::{ParticipantIdentity, ParticipantSid};
use crate::participant::Participant;
use crate::room::Room;

/// A session: the participants of one room, the shards that deliver to them, and the event loop. Clones are handles to
/// the same session.
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
struct Owned<R: Room>(Arc<Core<R>>);

impl<R: Room> Session<R> {
    pub(crate) fn new(core: Arc<Core<R>>) -> Self {
        Self(Arc::new(Owned(core)))
    }

    pub(super) fn core(&self) -> &Arc<Core<R>> {
        &self.0.0
    }

    /// Returns a handle that doesn't keep the session open.
    #[must_use]
    pub fn downgrade(&self) -> WeakSession<R> {
        WeakSession(Arc::downgrade(&self.0))
    }

    /// The span that names the session.
    #[cfg(feature = "telemetry")]
    pub(crate) fn span(&self) -> &tracing::Span {
        &self.core().span
    }

    /// Returns a handle that keeps the session open, and whose type doesn't name the room.
    #[must_use]
    pub fn handle(&self) -> SessionHandle<R::Message> {
        SessionHandle::new(Arc::clone(self.publisher()), Arc::new(self.clone()))
    }

    /// Returns the room of the session.
    #[must_use]
    pub fn room(&self) -> &R {
        &self.core().room
    }

    /// Sends `message` to all participants.
    ///
    /// Writes the message to the log once, whatever the number of participants, and returns. Waits only while the
    /// shards are a whole log behind, the uplink is stalled, or publishers are [held](crate::OverloadPolicy::Hold),
    /// never for a single participant. Waiting publishers are served in the order of their calls.
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
    /// no subscribers and [retains](crate::Profile::retain) nothing, the call writes nothing and costs next to nothing.
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

    /// Ends `topic` in this session, after every message that was broadcast to it before. Ends all of its
    /// subscriptions, discards its waiting droppable messages and its retained messages, and resets the
    /// [losses](crate::Participant::losses) that participants had of it.
    ///
    /// Waits like [`broadcast`](Self::broadcast); returns at once if the session is closed. A later subscription starts
    /// from nothing. A topic that is no longer used and isn't ended costs each shard some hundred bytes, and its
    /// retained messages, until some time after its last handle is dropped.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, the topic hasn't ended. Don't keep it without polling it: other
    /// publishers wait behind it.
    pub async fn end_topic(&self, topic: &Topic) {
        self.publisher().end_topic(topic).await;
    }

    fn publisher(&self) -> &Arc<Publisher<R::Message>> {
        self.core().fanout.publisher()
    }

    /// Returns the registered instance of `identity`.
    #[must_use]
    pub fn participant(&self, identity: &ParticipantIdentity) -> Option<Participant<R::Message>> {
        self.core().registry.by_identity(identity)
    }

    /// Returns the instance registered under `sid`; never one that has ended.
    #[must_use]
    pub fn participant_by_sid(&self, sid: &ParticipantSid) -> Option<Participant<R::Message>> {
        self.core().registry.by_sid(sid)
    }

    /// Returns all registered instances, in no particular order.
    #[must_use]
    pub fn participants(&self) -> Vec<Participant<R::Message>> {
        let mut live = Vec::new();
        self.core().registry.for_each_live(|participant| live.push(participant.clone()));
        live
    }

    /// Returns a listener for the events from now on. If the session has ended, the listener has no events.
    /// Participants may have joined before this call: a listener created [on the
    /// builder](super::SessionBuilder::events) gets every event.
    #[must_use]
    pub fn events(&self) -> Events {
        let subscription = self.core().events.subscribe();
        // In this order, because a session ends first and sends its last event second.
        Events::new(subscription, self.core().closing.has_ended())
    }

    /// Returns the statistics of the session, read without stopping any of its tasks. Visits every participant once,
    /// for the oldest message.
    #[must_use]
    pub fn stats(&self) -> SessionStats {
        self.core().stats()
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
        if self.core().is_inside() {
            return Err(CloseError::FromCallback);
        }
        self.core().start_close(deadline, None);
        self.ended().await
    }

    /// Ends the session now: every flush stops, even in the middle of a write, and the backlog counts as abandoned.
    /// Returns at once; [`ended`](Self::ended) waits for the end. Works from any thread.
    pub fn cancel(&self) {
        self.core().start_close(Duration::ZERO, None);
        // If the session was closing already, this ends its deadline.
        self.core().closing.hurry();
    }

    /// Waits until the session has ended, for any reason, and returns what became of the messages.
    ///
    /// # Errors
    /// The errors of [`close`](Self::close).
    pub async fn ended(&self) -> Result<CloseReport, CloseError> {
        self.core().closing.until_ended().await
    }
}

impl<R: Room> Clone for Session<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Room> fmt::Debug for Session<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("participants", &self.core().registry.len()).finish_non_exhaustive()
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
    fn downgrade(&self) -> Arc<dyn AnyWeakSession<R::Message>> {
        Arc::new(self.downgrade())
    }

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

    fn close(&self, deadline: Duration) -> BoxFuture<'_, Result<CloseReport, CloseError>> {
        Box::pin(self.close(deadline))
    }

    fn cancel(&self) {
        self.cancel();
    }

    fn ended(&self) -> BoxFuture<'_, Result<CloseReport, CloseError>> {
        Box::pin(self.ended())
    }
}

impl<R: Room> AnyWeakSession<R::Message> for WeakSession<R> {
    fn upgrade(&self) -> Option<SessionHandle<R::Message>> {
        self.upgrade().map(|session| session.handle())
    }
}
