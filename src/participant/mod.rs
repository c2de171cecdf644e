//! Participants, the registry that finds them, and the pending resets.

mod error;
#[cfg(all(test, lanecast_loom))]
mod models;
pub(crate) mod pending;
pub(crate) mod registry;

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::SetOnce;
use tokio::time::Instant;

pub use self::error::{SendError, TrySendError};

use self::pending::PendingResets;
use self::registry::Instance;
use crate::caught::caught;
use crate::contract::{
    Account, Attributes, EndReason, Ending, Losses, Message, Presence, Rate, Subscribed, SubscriptionTag, Topic,
    Unsubscribed,
};
use crate::fanout::{Outbox, Position, Refused};
use crate::ids::{ClientId, ParticipantIdentity, ParticipantSid};
use crate::sync::{AtomicBool, Ordering};

/// A handle to one connection instance of one viewer. Clones are handles to the same instance.
///
/// The handle can be kept and used after the instance has ended: sends then fail as closed. After a reset the viewer
/// has a new instance, with a new [`ClientId`], which the session finds.
///
/// # Sending
/// The three ways to send a direct message differ in what they do while its queue is full. *Uplink full* means that the
/// queue is full because the uplink that all participants of the room [share](crate::room::Room::uplink) takes no more.
///
/// | | queue full | uplink full | participant ended | message too large |
/// |---|---|---|---|---|
/// | [`try_send`](Self::try_send) | [`Full`](TrySendError::Full), the message comes back | the same | [`Closed`](TrySendError::Closed), the message comes back | [`TooLarge`](TrySendError::TooLarge), the message comes back |
/// | [`send`](Self::send) | [`Overflow`](SendError::Overflow), the participant is reset | [`UplinkFull`](SendError::UplinkFull), the message comes back | [`Closed`](SendError::Closed) | [`TooLarge`](SendError::TooLarge), the message comes back |
/// | [`send_waiting`](Self::send_waiting) | as `send` | waits until the uplink moves, then tries again | as `send` | as `send` |
///
/// The account counts a message that overflowed or came too late as dropped, and one that came back for any other
/// reason not at all.
pub struct Participant<M>(Arc<Inner<M>>);

pub(crate) struct Inner<M> {
    presence: Presence,
    /// The number of consecutive resets and failed joins before this instance. The next back-off depends on it.
    attempt: u32,
    created: Instant,
    /// Set once the event loop has announced to the session's listeners that the instance joined.
    announced: AtomicBool,
    /// The span of the participant's log lines: identity, sid, client id.
    span: tracing::Span,
    outbox: Outbox<M>,
    pending: Arc<PendingResets>,
    /// Set once the sink has been handed back to the room.
    retired: SetOnce<EndReason>,
    /// Set once the sink is gone.
    closed: SetOnce<EndReason>,
}

/// The parts of the session and of its fan-out that a participant uses.
pub(crate) struct Home<M> {
    pub(crate) outbox: Outbox<M>,
    pub(crate) pending: Arc<PendingResets>,
}

/// Statistics of one participant, read without blocking any other task.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ParticipantStats {
    /// Counts of the messages offered to the participant, and of their outcomes. [`Account::waiting`] is the number of
    /// messages that wait for the participant, over both lanes.
    pub account: Account,
    /// How long the oldest waiting message has waited since the participant's shard saw it (±1 ms). `None` if no
    /// message waits.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::contract::seconds::serialize_some"))]
    pub oldest_waiting: Option<Duration>,
    /// The measured throughput of the participant's link, in bytes of messages per second, smoothed over about a
    /// second. It is measured only while the sink is busy, and keeps its last value afterwards. `None` if the sink was
    /// never busy, or if the room's participants share an [uplink](crate::room::Room::uplink).
    pub link_rate: Option<u64>,
}

impl<M: Message> Participant<M> {
    pub(crate) fn new(presence: Presence, attempt: u32, home: Home<M>) -> Self {
        let Home { outbox, pending } = home;
        let client_id = outbox.client_id();
        // The highest level, so that every log line about the participant names it.
        let span = tracing::error_span!("participant", identity = %presence.identity, sid = %presence.sid, %client_id);
        Self(Arc::new(Inner {
            presence,
            attempt,
            created: Instant::now(),
            announced: AtomicBool::new(false),
            span,
            outbox,
            pending,
            retired: SetOnce::new(),
            closed: SetOnce::new(),
        }))
    }

    /// The connection that the instance was joined for, as the room reported it then.
    #[must_use]
    pub fn presence(&self) -> &Presence {
        &self.0.presence
    }

    /// The identity of the viewer. It stays the same after a reconnect.
    #[must_use]
    pub fn identity(&self) -> &ParticipantIdentity {
        &self.0.presence.identity
    }

    /// The room's id of the viewer's connection.
    #[must_use]
    pub fn sid(&self) -> &ParticipantSid {
        &self.0.presence.sid
    }

    /// The id of this instance.
    #[must_use]
    pub fn client_id(&self) -> ClientId {
        self.0.outbox.client_id()
    }

    /// When the connection joined, by the room's clock, in milliseconds since the epoch.
    #[must_use]
    pub fn joined_at(&self) -> u64 {
        self.0.presence.joined_at
    }

    /// The attributes that the room reports about the participant.
    #[must_use]
    pub fn attributes(&self) -> &Attributes {
        &self.0.presence.attributes
    }

    /// Why the instance ended; `None` while it hasn't.
    #[must_use]
    pub fn end_reason(&self) -> Option<EndReason> {
        self.0.outbox.end_reason()
    }

    /// Sends `message` to this participant alone, or gives it back. Never blocks, and never resets the participant.
    ///
    /// The bound covers both lanes: a caller that fills the queue of a busy participant leaves no capacity for the next
    /// broadcast, which then resets the participant.
    ///
    /// # Errors
    /// [`TrySendError::Full`] if the queue is full: nothing has changed. [`TrySendError::TooLarge`] if the message
    /// exceeds `queue_bytes` or the largest that the room can carry. [`TrySendError::Closed`] if the
    /// participant has ended: the message is counted as dropped.
    pub fn try_send(&self, message: M) -> Result<(), TrySendError<M>> {
        self.0.outbox.try_send(message).map_err(|refused| match refused {
            Refused::Full(message) => TrySendError::Full(message),
            Refused::TooLarge(message) => TrySendError::TooLarge(message),
            Refused::Closed(message) => {
                self.note_closed();
                TrySendError::Closed(message)
            }
        })
    }

    /// Sends `message` to this participant alone. If the queue is full, the participant is reset, because it has missed
    /// a message and must start afresh. Never blocks.
    ///
    /// # Errors
    /// [`SendError::Overflow`] if the queue is full: the message and all waiting messages are counted as dropped, and
    /// the session brings the viewer back with its initial messages. [`SendError::Closed`] if the participant had ended
    /// before: the message is counted as dropped, and there is no further reset. [`SendError::TooLarge`] gives the
    /// message back, and nothing has changed. So does [`SendError::UplinkFull`], in a room whose participants
    /// [share](crate::room::Room::uplink) an uplink.
    pub fn send(&self, message: M) -> Result<(), SendError<M>> {
        match self.0.outbox.try_send(message) {
            Ok(()) => Ok(()),
            Err(Refused::TooLarge(message)) => Err(SendError::TooLarge(message)),
            Err(Refused::Closed(_)) => {
                self.note_closed();
                Err(SendError::Closed)
            }
            Err(Refused::Full(message)) => {
                if self.0.outbox.is_held_up() {
                    return Err(SendError::UplinkFull(message));
                }
                if self.0.outbox.overflow() == Ending::ByThis {
                    self.ask_for_reset(EndReason::Overflow, None);
                }
                Err(SendError::Overflow)
            }
        }
    }

    /// Sends like [`send`](Self::send), but waits while the uplink that all participants share is full.
    ///
    /// # Errors
    /// The errors of [`send`](Self::send), except [`SendError::UplinkFull`].
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, nothing has been sent.
    pub async fn send_waiting(&self, mut message: M) -> Result<(), SendError<M>> {
        loop {
            let moves = self.0.outbox.uplink_moves();
            message = match (self.send(message), moves) {
                (Err(SendError::UplinkFull(message)), Some(moves)) => {
                    tokio::select! {
                        () = moves => {}
                        _ = self.closed() => {}
                    }
                    message
                }
                (sent, _) => return sent,
            };
        }
    }

    /// Waits until less than half of the participant's bound is taken and a message of `bytes` fits, or until the
    /// participant has ended.
    ///
    /// This is for a caller that answers a participant's requests. If the caller waits for this before each answer, a
    /// participant that reads doesn't overflow, however much it asks for. A concurrent sender may take the capacity
    /// first. Safe to cancel.
    pub async fn wait_for_capacity(&self, bytes: usize) {
        self.0.outbox.wait_for_capacity(bytes).await;
    }

    fn note_closed(&self) {
        self.log(|| tracing::debug!(reason = ?self.end_reason(), "send to a closed participant"));
    }

    /// Subscribes the participant to `topic`. The participant gets the messages that are published there after this has
    /// returned, subject to the topic's [class](crate::Class). Each is passed through [`Message::address`] with `tag`.
    /// A new subscription first gets the topic's [retained messages](crate::Profile::retain).
    ///
    /// The subscription takes effect at one position of the broadcast log. A second call for the same topic changes the
    /// tag and removes the rate that [`subscribe_at`](Self::subscribe_at) has set. It gets no retained messages.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, the participant may or may not have been subscribed.
    pub async fn subscribe(&self, topic: &Topic, tag: SubscriptionTag) -> Subscribed {
        self.subscribe_from(topic, tag).await.map_or(Subscribed::Closed, |(subscribed, _)| subscribed)
    }

    /// Subscribes like [`subscribe`](Self::subscribe), to the newest message only, at most at `rate`. While a message
    /// waits, for the rate or for the sink, a newer one replaces it, even if the topic is reliable; messages that are
    /// replaced count as [losses](crate::Losses). If the topic has a rate as well, the lower one applies. Another call
    /// replaces the rate; a call of `subscribe` removes it.
    ///
    /// # Cancel safety
    /// As [`subscribe`](Self::subscribe).
    pub async fn subscribe_at(&self, topic: &Topic, tag: SubscriptionTag, rate: Rate) -> Subscribed {
        let subscribed = self.0.outbox.subscribe(topic, tag, Some(rate)).await;
        subscribed.map_or(Subscribed::Closed, |(subscribed, _)| subscribed)
    }

    /// Subscribes like [`subscribe`](Self::subscribe), and also returns the log position from which the participant
    /// gets the topic's messages. `None` if the participant has ended.
    pub(crate) async fn subscribe_from(&self, topic: &Topic, tag: SubscriptionTag) -> Option<(Subscribed, Position)> {
        self.0.outbox.subscribe(topic, tag, None).await
    }

    /// Limits the bytes per second that the participant gets in all. `None`, the default, is no limit.
    ///
    /// Every message is charged, but only messages that may be dropped are delayed: those of [lossy and
    /// latest](crate::Class) topics, and of subscriptions with a rate of their own. The limit is a token bucket: it
    /// allows bursts of 100 ms of the rate, and its debt is at most a second of the rate or the longest message,
    /// whichever is more. Messages that wait remain subject to their topics' bounds. Never blocks; has no effect on a
    /// participant that has ended.
    pub fn set_rate(&self, bytes_per_second: Option<NonZeroU64>) {
        self.0.outbox.set_rate(bytes_per_second.map(NonZeroU64::get));
    }

    /// Returns how many messages of `topic` were dropped for the participant, by reason. Zero after
    /// [`end_topic`](crate::Session::end_topic). The [account](ParticipantStats::account) has the sum over all topics,
    /// including those that have ended.
    #[must_use]
    pub fn losses(&self, topic: &Topic) -> Losses {
        self.0.outbox.losses_of(topic.key())
    }

    /// Ends the participant's subscription to `topic`. The participant gets nothing that is published there after this
    /// has returned. Reliable messages of the topic that wait already are still delivered. Messages that may be
    /// dropped, and retained ones, are discarded, and counted as [`unsubscribed`](crate::Abandoned::unsubscribed).
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, the subscription may or may not have ended.
    pub async fn unsubscribe(&self, topic: &Topic) -> Unsubscribed {
        self.0.outbox.unsubscribe(topic).await
    }

    /// Waits until the instance has ended and its sink is gone, and returns the reason. Safe to cancel and to repeat.
    pub async fn closed(&self) -> EndReason {
        *self.0.closed.wait().await
    }

    /// The participant's statistics, read without blocking any other task.
    #[must_use]
    pub fn stats(&self) -> ParticipantStats {
        let outbox = &self.0.outbox;
        ParticipantStats { account: outbox.account(), oldest_waiting: outbox.oldest(), link_rate: outbox.link_rate() }
    }

    pub(crate) fn outbox(&self) -> &Outbox<M> {
        &self.0.outbox
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// How long this instance has existed.
    pub(crate) fn age(&self) -> Duration {
        self.0.created.elapsed()
    }

    /// Adds the instance to the pending resets. Called once, by the caller that ended the instance for a fault or found
    /// its peer gone.
    pub(crate) fn ask_for_reset(&self, reason: EndReason, detail: Option<&dyn fmt::Debug>) {
        let detail = detail.map(tracing::field::debug);
        // Formatting the sink's error may panic. The participant is reset nevertheless.
        caught(|| {
            self.log(|| match reason {
                EndReason::Vanished => tracing::info!(%reason, detail, "vanished"),
                _ => tracing::info!(%reason, detail, "failed, reset pending"),
            });
        });
        self.0.pending.insert(self.client_id(), self.sid().clone());
    }

    /// Notes that the instance's arrival has been announced to the session's listeners. Only the event loop calls this.
    pub(crate) fn note_announced(&self) {
        self.0.announced.store(true, Ordering::Relaxed);
    }

    /// Whether the instance's arrival has been announced to the session's listeners.
    pub(crate) fn is_announced(&self) -> bool {
        // Relaxed: only the event loop's task writes and reads the flag.
        self.0.announced.load(Ordering::Relaxed)
    }

    /// Logs within the participant's span.
    pub(crate) fn log(&self, event: impl FnOnce()) {
        self.0.span.in_scope(event);
    }

    /// Notes that the sink has been handed back to the room.
    pub(crate) fn note_retired(&self, reason: EndReason) {
        // Only the shard that had the sink sets this, once; a second value would be the same.
        let _ = self.0.retired.set(reason);
    }

    /// Whether the sink has been handed back to the room. All messages of the instance are counted by then.
    pub(crate) fn is_retired(&self) -> bool {
        self.0.retired.get().is_some()
    }

    /// Waits until the sink has been handed back to the room.
    pub(crate) async fn retired(&self) {
        self.0.retired.wait().await;
    }

    /// Notes that the sink is gone.
    pub(crate) fn note_gone(&self, reason: EndReason) {
        let _ = self.0.closed.set(reason);
    }
}

impl<M: Message> Instance for Participant<M> {
    type Shared = Inner<M>;

    fn shared(&self) -> &Arc<Inner<M>> {
        &self.0
    }

    fn from_shared(shared: Arc<Inner<M>>) -> Self {
        Self(shared)
    }

    fn identity(&self) -> &ParticipantIdentity {
        self.identity()
    }

    fn sid(&self) -> &ParticipantSid {
        self.sid()
    }

    fn joined_at(&self) -> u64 {
        self.joined_at()
    }

    fn client_id(&self) -> ClientId {
        self.client_id()
    }

    fn is_live(&self) -> bool {
        self.0.outbox.is_live()
    }

    fn go_live(&self) -> Result<(), EndReason> {
        self.0.outbox.go_live()
    }

    fn end(&self, reason: EndReason) -> Ending {
        self.0.outbox.end(reason)
    }
}

impl<M> Clone for Participant<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> PartialEq for Participant<M> {
    fn eq(&self, other: &Self) -> bool {
        self.0.outbox.client_id() == other.0.outbox.client_id()
    }
}

impl<M> Eq for Participant<M> {}

/// Shows the identity, the sid and the client id.
impl<M> fmt::Display for Participant<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, #{})", self.0.presence.identity, self.0.presence.sid, self.0.outbox.client_id())
    }
}

impl<M> fmt::Debug for Participant<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participant")
            .field("identity", &self.0.presence.identity)
            .field("sid", &self.0.presence.sid)
            .field("client_id", &self.0.outbox.client_id())
            .field("joined_at", &self.0.presence.joined_at)
            .finish_non_exhaustive()
    }
}
