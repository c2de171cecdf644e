//! A handle to a session whose room isn't named, and broadcasting, which needs no room.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::error::{BroadcastError, CloseError, TryBroadcastError};
use super::events::Events;
use super::stats::{CloseReport, SessionStats};
use crate::contract::topic::Audience;
use crate::contract::{Message, Topic};
use crate::fanout::{Publisher, Refused};
use crate::ids::{ParticipantIdentity, ParticipantSid};
use crate::participant::Participant;

/// A handle to a session with messages of type `M`, whatever its room: code that holds it isn't generic over rooms.
///
/// [`Session::handle`](super::Session::handle) returns it. It keeps the session open like a clone of the
/// [`Session`](super::Session): dropping the last handle of either kind without [`close`](Self::close) cancels the
/// session. Don't hold it in a closure that the session itself keeps; hold a [weak one](Self::downgrade) there.
///
/// Broadcasting costs the same as through a `Session`. The other methods cost a virtual call, and those that wait for
/// the end an allocation as well.
///
/// ```
/// use bytes::Bytes;
/// use lanecast::room::{Presence, memory::MemoryRoom};
/// use lanecast::{Session, SessionHandle};
/// use std::time::Duration;
///
/// /// Knows nothing of rooms.
/// struct Clock(SessionHandle<Bytes>);
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let room = MemoryRoom::new();
/// room.join(Presence::new("ada".parse()?, "PA_1".parse()?, 1)).await?;
/// let clock = Clock(Session::builder(room).build()?.handle());
/// clock.0.broadcast(Bytes::from_static(b"noon")).await?;
/// clock.0.close(Duration::from_secs(1)).await?;
/// # Ok(()) }
/// ```
pub struct SessionHandle<M: Message> {
    /// Named, so that a broadcast makes no virtual call.
    publisher: Arc<Publisher<M>>,
    session: Arc<dyn AnySession<M>>,
}

/// A [`SessionHandle`] that doesn't keep the session open. Use it in the closures that the session itself keeps, such
/// as the asset handler of telemetry.
pub struct WeakSessionHandle<M: Message>(Arc<dyn AnyWeakSession<M>>);

pub(super) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A session of any room, as [`SessionHandle`] uses it. Dropping the last one cancels the session.
pub(super) trait AnySession<M: Message>: fmt::Debug + Send + Sync {
    fn downgrade(&self) -> Arc<dyn AnyWeakSession<M>>;
    fn participant(&self, identity: &ParticipantIdentity) -> Option<Participant<M>>;
    fn participant_by_sid(&self, sid: &ParticipantSid) -> Option<Participant<M>>;
    fn participants(&self) -> Vec<Participant<M>>;
    fn events(&self) -> Events;
    fn stats(&self) -> SessionStats;
    fn close(&self, deadline: Duration) -> BoxFuture<'_, Result<CloseReport, CloseError>>;
    fn cancel(&self);
    fn ended(&self) -> BoxFuture<'_, Result<CloseReport, CloseError>>;
}

/// A weak handle to a session of any room.
pub(super) trait AnyWeakSession<M: Message>: Send + Sync {
    fn upgrade(&self) -> Option<SessionHandle<M>>;
}

impl<M: Message> WeakSessionHandle<M> {
    /// Returns a handle to the session, unless the last one has been dropped.
    #[must_use]
    pub fn upgrade(&self) -> Option<SessionHandle<M>> {
        self.0.upgrade()
    }
}

impl<M: Message> Clone for WeakSessionHandle<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Message> fmt::Debug for WeakSessionHandle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakSessionHandle")
    }
}

impl<M: Message> SessionHandle<M> {
    pub(super) fn new(publisher: Arc<Publisher<M>>, session: Arc<dyn AnySession<M>>) -> Self {
        Self { publisher, session }
    }

    /// Returns a handle that doesn't keep the session open.
    #[must_use]
    pub fn downgrade(&self) -> WeakSessionHandle<M> {
        WeakSessionHandle(self.session.downgrade())
    }

    /// Sends `message` to all participants, as [`Session::broadcast`](super::Session::broadcast) does.
    ///
    /// # Errors
    /// [`BroadcastError`] returns the message: the session is closed, or the message is too large.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, nothing has been sent. Don't keep it without polling it, because
    /// other publishers may wait behind it.
    pub async fn broadcast(&self, message: M) -> Result<(), BroadcastError<M>> {
        broadcast(&self.publisher, message).await
    }

    /// Sends `message` to the subscribers of `topic`, as [`Session::broadcast_to`](super::Session::broadcast_to) does.
    ///
    /// # Errors
    /// The errors of [`broadcast`](Self::broadcast).
    ///
    /// # Cancel safety
    /// As [`broadcast`](Self::broadcast).
    pub async fn broadcast_to(&self, topic: &Topic, message: M) -> Result<(), BroadcastError<M>> {
        broadcast_to(&self.publisher, topic, message).await
    }

    /// Sends `message` to all participants at once, or not at all. Works from any thread, and doesn't overtake
    /// publishers that wait.
    ///
    /// # Errors
    /// [`TryBroadcastError`] returns the message.
    pub fn try_broadcast(&self, message: M) -> Result<(), TryBroadcastError<M>> {
        try_broadcast(&self.publisher, message)
    }

    /// Sends `message` to the subscribers of `topic` at once, or not at all; otherwise like
    /// [`try_broadcast`](Self::try_broadcast).
    ///
    /// # Errors
    /// [`TryBroadcastError`] returns the message.
    pub fn try_broadcast_to(&self, topic: &Topic, message: M) -> Result<(), TryBroadcastError<M>> {
        try_broadcast_to(&self.publisher, topic, message)
    }

    /// Ends `topic` in this session, as [`Session::end_topic`](super::Session::end_topic) does.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, the topic hasn't ended. Don't keep it without polling it: other
    /// publishers wait behind it.
    pub async fn end_topic(&self, topic: &Topic) {
        self.publisher.end_topic(topic).await;
    }

    /// The way into the log, in which telemetry also claims the places of its announcements.
    #[cfg(feature = "telemetry")]
    pub(crate) fn publisher(&self) -> &Publisher<M> {
        &self.publisher
    }

    /// Returns the registered instance of `identity`.
    #[must_use]
    pub fn participant(&self, identity: &ParticipantIdentity) -> Option<Participant<M>> {
        self.session.participant(identity)
    }

    /// Returns the instance registered under `sid`; never one that has ended.
    #[must_use]
    pub fn participant_by_sid(&self, sid: &ParticipantSid) -> Option<Participant<M>> {
        self.session.participant_by_sid(sid)
    }

    /// Returns all registered instances, in no particular order.
    #[must_use]
    pub fn participants(&self) -> Vec<Participant<M>> {
        self.session.participants()
    }

    /// Returns a listener for the events from now on, as [`Session::events`](super::Session::events) does.
    #[must_use]
    pub fn events(&self) -> Events {
        self.session.events()
    }

    /// Returns the statistics of the session, read without stopping any of its tasks. Visits every participant once,
    /// for the oldest message.
    #[must_use]
    pub fn stats(&self) -> SessionStats {
        self.session.stats()
    }

    /// Stops accepting messages, delivers what was accepted until `deadline` from now, cancels the rest, ends every
    /// task, and returns what became of the messages: see [`Session::close`](super::Session::close).
    ///
    /// # Errors
    /// [`CloseError`] if this was called from within the session, if a task of the session panicked or didn't end, or
    /// if the runtime ended first.
    pub async fn close(&self, deadline: Duration) -> Result<CloseReport, CloseError> {
        self.session.close(deadline).await
    }

    /// Ends the session now, as [`Session::cancel`](super::Session::cancel) does. Returns at once;
    /// [`ended`](Self::ended) waits for the end. Works from any thread.
    pub fn cancel(&self) {
        self.session.cancel();
    }

    /// Waits until the session has ended, for any reason, and returns what became of the messages.
    ///
    /// # Errors
    /// The errors of [`close`](Self::close).
    pub async fn ended(&self) -> Result<CloseReport, CloseError> {
        self.session.ended().await
    }
}

impl<M: Message> Clone for SessionHandle<M> {
    fn clone(&self) -> Self {
        Self { publisher: Arc::clone(&self.publisher), session: Arc::clone(&self.session) }
    }
}

impl<M: Message> fmt::Debug for SessionHandle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SessionHandle").field(&self.session).finish()
    }
}

/// Sends `message` to all participants.
pub(super) async fn broadcast<M: Message>(publisher: &Publisher<M>, message: M) -> Result<(), BroadcastError<M>> {
    Ok(publisher.publish(&Audience::All, message).await?)
}

/// Sends `message` to the subscribers of `topic`; writes nothing if it has none and retains nothing.
pub(super) async fn broadcast_to<M: Message>(
    publisher: &Publisher<M>,
    topic: &Topic,
    message: M,
) -> Result<(), BroadcastError<M>> {
    if publisher.reaches_nobody(topic) {
        return Ok(());
    }
    Ok(publisher.publish(&Audience::Topic(topic.clone()), message).await?)
}

/// As [`broadcast`], at once or not at all.
pub(super) fn try_broadcast<M: Message>(publisher: &Publisher<M>, message: M) -> Result<(), TryBroadcastError<M>> {
    Ok(publisher.try_publish(&Audience::All, message)?)
}

/// As [`broadcast_to`], at once or not at all.
pub(super) fn try_broadcast_to<M: Message>(
    publisher: &Publisher<M>,
    topic: &Topic,
    message: M,
) -> Result<(), TryBroadcastError<M>> {
    if publisher.reaches_nobody(topic) {
        return Ok(());
    }
    Ok(publisher.try_publish(&Audience::Topic(topic.clone()), message)?)
}

impl<M> From<Refused<M>> for BroadcastError<M> {
    fn from(refused: Refused<M>) -> Self {
        match refused {
            Refused::TooLarge(message) => Self::TooLarge(message),
            // A publisher that waits isn't refused because the log is full.
            Refused::Closed(message) | Refused::Full(message) => Self::Closed(message),
        }
    }
}

impl<M> From<Refused<M>> for TryBroadcastError<M> {
    fn from(refused: Refused<M>) -> Self {
        match refused {
            Refused::TooLarge(message) => Self::TooLarge(message),
            Refused::Full(message) => Self::Full(message),
            Refused::Closed(message) => Self::Closed(message),
        }
    }
}
