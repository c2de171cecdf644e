//! Who is here: participants, the registry that finds them, and the resets that wait to be done.

mod error;
#[cfg(all(test, lanecast_loom))]
mod loom_models;
pub(crate) mod pending;
mod pulse;
pub(crate) mod registry;
mod version;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::{SetOnce, mpsc, oneshot};
use tokio::time::Instant;

pub use self::error::{SendError, TrySendError};
pub(crate) use self::version::VERSION_ATTRIBUTE;
pub use self::version::{IncompatibleVersion, Protocol};

use self::pending::PendingResets;
use self::pulse::Pulse;
use self::registry::Instance;
use crate::ids::{ClientId, ParticipantIdentity, ParticipantSid};
use crate::lane::caught::caught;
use crate::lane::command::Command;
use crate::lane::outbox::{Limits, Outbox, Port, Refused, State};
use crate::lane::parts::now_ms;
use crate::lane::{Account, EndReason, Message, Progress, Subscribed, SubscriptionTag, Topic, Unsubscribed, Uplink};
use crate::semaphore::{Admission, AdmissionError, Permit};
use crate::sync::{AtomicBool, Ordering};

/// What a room tells of a participant besides its name: free-form keys and values.
pub type Attributes = Arc<BTreeMap<String, String>>;

/// None: one for all who have none.
pub(crate) fn no_attributes() -> Attributes {
    static NONE: LazyLock<Attributes> = LazyLock::new(Attributes::default);
    Arc::clone(&NONE)
}

/// One connection instance of one viewer. Clones name the same instance.
///
/// It can be kept and used after the instance has ended: sends then answer that it is closed. After a reset the viewer
/// has a new instance, with a new [`ClientId`], to be found through the session.
pub struct Participant<M>(Arc<Inner<M>>);

pub(crate) struct Inner<M> {
    profile: Profile,
    client_id: ClientId,
    /// Resets in a row that led to this instance: its next back-off.
    attempt: u32,
    created: Instant,
    /// The event loop has told that it joined.
    told: AtomicBool,
    /// What its log lines stand in: identity, sid, client id.
    span: tracing::Span,
    outbox: Outbox<M>,
    home: Home<M>,
    calls: Admission,
    assets: Admission,
    pulse: Pulse,
    /// See [`Participant::annex`].
    #[cfg(feature = "telemetry")]
    annex: std::sync::OnceLock<Arc<dyn std::any::Any + Send + Sync>>,
    /// The sink has been handed back to the room.
    retired: SetOnce<EndReason>,
    /// The sink is gone.
    closed: SetOnce<EndReason>,
}

/// Who a participant is, as its room says.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) identity: ParticipantIdentity,
    pub(crate) sid: ParticipantSid,
    pub(crate) joined_at: u64,
    pub(crate) protocol: Protocol,
    pub(crate) attributes: Attributes,
}

/// What a participant needs of the session and shard it lives in.
pub(crate) struct Home<M> {
    pub(crate) port: Arc<Port<M>>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) pending: Arc<PendingResets>,
    /// What it shares with all others, if it does, and how its own writes in there stand.
    pub(crate) uplink: Option<(Uplink, Progress)>,
    pub(crate) epoch: Instant,
}

/// How many requests of a kind one participant may have in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) calls: u32,
    pub(crate) assets: u32,
}

/// Figures of one participant, read without stopping anybody.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ParticipantStats {
    /// What became of its messages.
    pub account: Account,
    /// Messages that wait for it, over both lanes.
    pub backlog: u64,
    /// How long the oldest of them has waited since its shard saw it (±1 ms).
    pub oldest: Option<Duration>,
    /// Service calls in flight.
    pub service_calls: u32,
    /// Asset fetches in flight.
    pub asset_fetches: u32,
    /// The last round trip to it and back that was measured; `None` before the first. Only a viewer of telemetry that
    /// pings has one, and it is the one who ends it: don't take it for more than its word.
    pub round_trip: Option<Duration>,
    /// Whether nothing is heard of it any more, though it used to ping: see
    /// [`SessionEvent::Unresponsive`](crate::SessionEvent::Unresponsive).
    pub unresponsive: bool,
}

impl<M: Message> Participant<M> {
    pub(crate) fn new(profile: Profile, attempt: u32, limits: Limits, in_flight: InFlight, home: Home<M>) -> Self {
        let client_id = ClientId::next();
        // At the highest level, so that whatever is logged of it says whose it is.
        let span = tracing::error_span!("participant", identity = %profile.identity, sid = %profile.sid, %client_id);
        Self(Arc::new(Inner {
            profile,
            client_id,
            attempt,
            created: Instant::now(),
            told: AtomicBool::new(false),
            span,
            outbox: Outbox::new(Arc::clone(&home.port), limits),
            home,
            calls: Admission::new(in_flight.calls),
            assets: Admission::new(in_flight.assets),
            pulse: Pulse::new(),
            #[cfg(feature = "telemetry")]
            annex: std::sync::OnceLock::new(),
            retired: SetOnce::new(),
            closed: SetOnce::new(),
        }))
    }

    /// Who it is; the same after a reconnect.
    #[must_use]
    pub fn identity(&self) -> &ParticipantIdentity {
        &self.0.profile.identity
    }

    /// Its connection, as the room names it.
    #[must_use]
    pub fn sid(&self) -> &ParticipantSid {
        &self.0.profile.sid
    }

    /// This instance.
    #[must_use]
    pub fn client_id(&self) -> ClientId {
        self.0.client_id
    }

    /// When the connection joined, by the room's clock: milliseconds since the epoch.
    #[must_use]
    pub fn joined_at(&self) -> u64 {
        self.0.profile.joined_at
    }

    /// What it speaks.
    #[must_use]
    pub fn protocol(&self) -> &Protocol {
        &self.0.profile.protocol
    }

    /// What the room tells of it.
    #[must_use]
    pub fn attributes(&self) -> &Attributes {
        &self.0.profile.attributes
    }

    /// Why it ended, if it has.
    #[must_use]
    pub fn end_reason(&self) -> Option<EndReason> {
        self.0.outbox.end_reason()
    }

    /// Sends to it alone, or gives the message back. Never blocks, and asks for no reset.
    ///
    /// The bound is that of both lanes: who fills the queue of a participant that is busy leaves no room for the next
    /// broadcast, which resets it.
    ///
    /// # Errors
    /// [`TrySendError::Full`] if its queue is full: nothing has changed. [`TrySendError::TooLarge`] if no queue of this
    /// session could hold the message. [`TrySendError::Closed`] if it has ended; that is counted as dropped.
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

    /// Sends to it alone; if its queue is full, resets it: it missed a message and has to start afresh. Never blocks.
    ///
    /// # Errors
    /// [`SendError::Overflow`] if its queue is full: the message and all that waited are counted as dropped, and the
    /// session brings the viewer back with its initial messages. [`SendError::Closed`] if it had ended before: counted
    /// as dropped, no further reset. [`SendError::TooLarge`] gives the message back, and nothing has changed; so does
    /// [`SendError::UplinkFull`], in a room whose participants [share](crate::room::Room::uplink) an uplink.
    pub fn send(&self, message: M) -> Result<(), SendError<M>> {
        match self.0.outbox.try_send(message) {
            Ok(()) => Ok(()),
            Err(Refused::TooLarge(message)) => Err(SendError::TooLarge(message)),
            Err(Refused::Closed(_)) => {
                self.note_closed();
                Err(SendError::Closed)
            }
            Err(Refused::Full(message)) => {
                if self.is_held_up() {
                    return Err(SendError::UplinkFull(message));
                }
                if self.0.outbox.overflow() {
                    self.ask_for_reset(EndReason::Overflow, None);
                }
                Err(SendError::Overflow)
            }
        }
    }

    /// Sends as [`send`](Self::send) does, but waits while what is full is the uplink that all participants share.
    ///
    /// # Errors
    /// As [`send`](Self::send), but for [`SendError::UplinkFull`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, it has sent nothing.
    pub async fn send_waiting(&self, mut message: M) -> Result<(), SendError<M>> {
        loop {
            let room = self.0.home.uplink.as_ref().map(|(uplink, _)| uplink.room());
            message = match (self.send(message), room) {
                (Err(SendError::UplinkFull(message)), Some(room)) => {
                    tokio::select! {
                        () = room => {}
                        _ = self.closed() => {}
                    }
                    message
                }
                (sent, _) => return sent,
            };
        }
    }

    /// Waits until less than half of what may wait for it does, and a message of `bytes` fits; or until it has ended.
    /// For who answers what a participant asks: waiting for this before each answer, one doesn't overflow a participant
    /// that reads, however much it asks for. Whoever sends to it at the same time may be first. Safe to cancel.
    pub async fn room_for(&self, bytes: usize) {
        self.0.outbox.room_for(bytes).await;
    }

    /// Whether what waits for it waits for the uplink that all share: itself, or its shard for somebody else.
    fn is_held_up(&self) -> bool {
        let uplink = self.0.home.uplink.as_ref();
        uplink.is_some_and(|(uplink, progress)| self.0.outbox.is_behind() || uplink.has_held(progress))
    }

    fn note_closed(&self) {
        self.log(|| tracing::debug!(reason = ?self.end_reason(), "send to a closed participant"));
    }

    /// Subscribes it to `topic`: it gets every message published there once this has returned, each passed through
    /// [`Message::address`] with `tag`.
    ///
    /// Takes effect at one position of the broadcast log. A second subscription to the same topic changes the tag.
    ///
    /// # Cancel safety
    /// A future dropped before it is done may or may not have subscribed.
    pub async fn subscribe(&self, topic: &Topic, tag: SubscriptionTag) -> Subscribed {
        self.subscribe_from(topic, tag).await.0
    }

    /// As [`subscribe`](Self::subscribe), and says from which position of the log on it gets the topic's messages.
    pub(crate) async fn subscribe_from(&self, topic: &Topic, tag: SubscriptionTag) -> (Subscribed, u64) {
        let (reply, answer) = oneshot::channel();
        let counted = topic.raise();
        let slot = self.0.outbox.slot();
        let command = Command::Subscribe { slot, key: self.0.client_id.get(), counted, tag, reply };
        self.ask_shard(command, answer).await.unwrap_or((Subscribed::Closed, 0))
    }

    /// Ends its subscription to `topic`: it gets nothing that is published there once this has returned.
    ///
    /// # Cancel safety
    /// A future dropped before it is done may or may not have unsubscribed.
    pub async fn unsubscribe(&self, topic: &Topic) -> Unsubscribed {
        let (reply, answer) = oneshot::channel();
        let slot = self.0.outbox.slot();
        let command = Command::Unsubscribe { slot, key: self.0.client_id.get(), topic: topic.key(), reply };
        self.ask_shard(command, answer).await.unwrap_or(Unsubscribed::NotSubscribed)
    }

    /// Gives its shard a command and waits for the answer. `None` if the shard has ended.
    async fn ask_shard<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Option<T> {
        self.0.home.commands.send(command).await.ok()?;
        tokio::select! {
            biased;
            answer = answer => answer.ok(),
            // The shard drops what it doesn't carry out, unless this was kept without being polled.
            () = self.0.home.commands.closed() => None,
        }
    }

    /// Takes one of its places for service calls; it is given back when the permit is dropped.
    ///
    /// # Errors
    /// [`AdmissionError`] if all are taken. Never blocks.
    pub fn admit_service_call(&self) -> Result<Permit, AdmissionError> {
        self.0.calls.try_acquire()
    }

    /// Takes one of its places for asset fetches; it is given back when the permit is dropped.
    ///
    /// # Errors
    /// [`AdmissionError`] if all are taken. Never blocks.
    pub fn admit_asset_fetch(&self) -> Result<Permit, AdmissionError> {
        self.0.assets.try_acquire()
    }

    /// Waits until it has ended and its sink is gone, and says why. Safe to cancel and to repeat.
    pub async fn closed(&self) -> EndReason {
        *self.0.closed.wait().await
    }

    /// Figures, read without stopping anybody.
    #[must_use]
    pub fn stats(&self) -> ParticipantStats {
        let account = self.0.outbox.account();
        let now = now_ms(self.0.home.epoch);
        ParticipantStats {
            account,
            backlog: account.waiting(),
            oldest: self.0.outbox.oldest().map(|since| Duration::from_millis(now.saturating_sub(since))),
            service_calls: self.0.calls.in_flight(),
            asset_fetches: self.0.assets.in_flight(),
            round_trip: self.0.pulse.round_trip(),
            unresponsive: self.0.pulse.is_unresponsive(),
        }
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

    /// Enters it into the pending resets. Called once, by who ended it for a fault or found its peer gone.
    pub(crate) fn ask_for_reset(&self, reason: EndReason, detail: Option<&dyn fmt::Debug>) {
        let detail = detail.map(tracing::field::debug);
        // What the sink has said may panic when it is formatted: it is reset all the same.
        caught(|| {
            self.log(|| match reason {
                EndReason::Vanished => tracing::info!(%reason, detail, "vanished"),
                _ => tracing::info!(%reason, detail, "failed, reset pending"),
            });
        });
        self.0.home.pending.insert(self.client_id(), self.sid().clone());
    }

    /// It has been told that it joined. The event loop's alone.
    pub(crate) fn note_told(&self) {
        self.0.told.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_told(&self) -> bool {
        // Relaxed: one task writes and reads it.
        self.0.told.load(Ordering::Relaxed)
    }

    /// Logs within the participant's span.
    pub(crate) fn log(&self, event: impl FnOnce()) {
        self.0.span.in_scope(event);
    }

    /// What telemetry keeps of this instance: made when it is first asked for, and gone with the instance. There is one
    /// type of it, since there is one telemetry.
    #[cfg(feature = "telemetry")]
    pub(crate) fn annex<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let annex = self.0.annex.get_or_init(|| Arc::new(T::default()));
        Arc::clone(annex).downcast().expect("an annex is asked for by one type")
    }

    #[cfg(feature = "telemetry")]
    pub(crate) fn note_round_trip(&self, round_trip: Duration) {
        self.0.pulse.set_round_trip(round_trip);
    }

    /// Something was heard of it. True if it was unresponsive.
    #[cfg(feature = "telemetry")]
    pub(crate) fn note_heard(&self) -> bool {
        self.0.pulse.set_unresponsive(false)
    }

    /// Nothing was heard of it for too long. True if that is new, and it hasn't ended.
    #[cfg(feature = "telemetry")]
    pub(crate) fn note_silent(&self) -> bool {
        self.end_reason().is_none() && self.0.pulse.set_unresponsive(true)
    }

    /// The sink has been handed back to the room.
    pub(crate) fn note_retired(&self, reason: EndReason) {
        // Set once by the one shard that had it; a second value would be the same.
        let _ = self.0.retired.set(reason);
    }

    /// Whether the sink has been handed back to the room: its messages are counted then.
    pub(crate) fn is_retired(&self) -> bool {
        self.0.retired.get().is_some()
    }

    /// Waits until the sink has been handed back to the room.
    pub(crate) async fn retired(&self) {
        self.0.retired.wait().await;
    }

    /// The sink is gone.
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
        self.0.outbox.state() == State::Live
    }

    fn go_live(&self) -> bool {
        self.0.outbox.go_live()
    }

    fn end(&self, reason: EndReason) -> bool {
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
        self.0.client_id == other.0.client_id
    }
}

impl<M> Eq for Participant<M> {}

/// Identity, sid and client id.
impl<M> fmt::Display for Participant<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, #{})", self.0.profile.identity, self.0.profile.sid, self.0.client_id)
    }
}

impl<M> fmt::Debug for Participant<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participant")
            .field("identity", &self.0.profile.identity)
            .field("sid", &self.0.profile.sid)
            .field("client_id", &self.0.client_id)
            .field("joined_at", &self.0.profile.joined_at)
            .finish_non_exhaustive()
    }
}
