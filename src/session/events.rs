//! The events of a session, and their way to its listeners.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::{Notify, oneshot};

use super::error::JoinError;
use super::feed::{Feed, Received, Subscription};
use crate::caught::lock;
use crate::contract::{Account, EndReason, Losses, Message};
use crate::ids::{ClientId, ParticipantIdentity, ParticipantSid};
use crate::participant::Participant;

/// The instance that an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstanceId {
    /// The identity of the participant.
    pub identity: ParticipantIdentity,
    /// The id of its connection.
    pub sid: ParticipantSid,
    /// The id of the instance.
    pub client_id: ClientId,
}

impl InstanceId {
    pub(crate) fn of<M: Message>(participant: &Participant<M>) -> Self {
        Self {
            identity: participant.identity().clone(),
            sid: participant.sid().clone(),
            client_id: participant.client_id(),
        }
    }
}

/// An event of a session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionEvent {
    /// An instance was registered, and its identity had none before.
    Joined(InstanceId),
    /// An instance took the place of an older one, which was ended by this.
    Replaced {
        /// The instance that is registered now.
        who: InstanceId,
        /// The instance that was registered before.
        prior: InstanceId,
        /// The outcome of the messages for `prior`.
        account: Account,
    },
    /// An instance left: the room reported its connection gone, or had a newer connection when the instance was
    /// registered, or a write found the connection gone. In the last case, if the connection is still there, a fresh
    /// instance will join.
    Left {
        /// The instance that left.
        who: InstanceId,
        /// Which of the three applies: [`Disconnected`](EndReason::Disconnected), [`Replaced`](EndReason::Replaced) or
        /// [`Vanished`](EndReason::Vanished).
        reason: EndReason,
        /// The outcome of the messages for the instance.
        account: Account,
    },
    /// An instance failed and was removed. If its connection is still there, a fresh instance will join.
    Reset {
        /// The instance that was removed.
        who: InstanceId,
        /// The fault that ended the instance.
        reason: EndReason,
        /// The outcome of the messages for the instance.
        account: Account,
    },
    /// A connection was refused, and isn't tried again for now. A connection that was refused as stale still joins if
    /// it is present when the later one leaves.
    Refused {
        /// The identity of the participant.
        identity: ParticipantIdentity,
        /// The id of the connection.
        sid: ParticipantSid,
        /// Why the connection was refused.
        error: JoinError,
    },
    /// An attempt to join a connection failed. Another one follows after a back-off.
    JoinFailed {
        /// The identity of the participant.
        identity: ParticipantIdentity,
        /// The id of the connection.
        sid: ParticipantSid,
        /// Why the attempt failed.
        error: JoinError,
    },
    /// The code that handles the participant's stream reports that nothing was heard of the participant for too long.
    /// The participant isn't reset for that: the fate of its writes decides. Emitted once per silence. Telemetry
    /// reports this of a viewer that had pinged before; a session alone never does.
    Unresponsive(InstanceId),
    /// The code that handles the participant's stream reports that an unresponsive participant is heard again. Not
    /// emitted if the instance ends before.
    Responsive(InstanceId),
    /// Droppable messages were dropped at participants that are behind or have a rate. Emitted at most
    /// once a second. [`Participant::losses`] and [`Topic::stats`](crate::Topic::stats) tell whose and which.
    Lost {
        /// What was dropped since the last event of this kind.
        lost: Losses,
    },
    /// The uplink is stalled. Publishers are held back until it flows.
    UplinkStalled,
    /// The uplink flows again.
    UplinkFlowing,
    /// Publishers are held because most participants are behind: see [`OverloadPolicy`](crate::OverloadPolicy). A
    /// publisher that is too fast is held and released many times a second, and that is reported once: this event
    /// follows the first hold.
    PublishersHeld,
    /// No publisher has been held for a second.
    PublishersReleased,
    /// The session has ended. No event follows.
    Closed,
}

impl SessionEvent {
    /// Returns the account to fill in, if this event reports the end of an instance.
    fn account_mut(&mut self) -> Option<&mut Account> {
        match self {
            Self::Replaced { account, .. } | Self::Left { account, .. } | Self::Reset { account, .. } => Some(account),
            _ => None,
        }
    }
}

/// A listener to a session's events, from its creation on. It is bounded: a listener that is too slow misses the oldest
/// events, and can read how many.
///
/// Each registered instance is reported once when it arrives and once when it goes, unless it stays until the session
/// ends. The event of its end carries its account, complete except for a message that was being sent to it at that very
/// moment. That event waits, and so do those behind it, until the shard has counted the messages. A blocked shard holds
/// up at most [`event_capacity`](crate::SessionBuilder::event_capacity) events.
#[derive(Debug)]
pub struct Events {
    source: Source,
    missed: u64,
    ended: bool,
}

#[derive(Debug)]
enum Source {
    /// The session isn't built yet.
    Unbuilt(oneshot::Receiver<Subscription<SessionEvent>>),
    Built(Subscription<SessionEvent>),
}

impl Events {
    pub(super) fn new(subscription: Subscription<SessionEvent>, ended: bool) -> Self {
        Self { source: Source::Built(subscription), missed: 0, ended }
    }

    /// Creates a listener to a session that isn't built yet, and the sender of the subscription to its events.
    pub(crate) fn before_build() -> (Listener, Self) {
        let (listener, receiver) = oneshot::channel();
        (Listener(listener), Self { source: Source::Unbuilt(receiver), missed: 0, ended: false })
    }

    /// Returns the next event, or `None` after [`SessionEvent::Closed`], if the session had ended before, or if it was
    /// never built.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, no event is lost.
    pub async fn next(&mut self) -> Option<SessionEvent> {
        while !self.ended {
            let subscription = match &mut self.source {
                Source::Built(subscription) => subscription,
                Source::Unbuilt(built) => {
                    match built.await {
                        Ok(subscription) => self.source = Source::Built(subscription),
                        Err(_) => self.ended = true,
                    }
                    continue;
                }
            };
            match subscription.receive().await {
                Received::Item(event) => {
                    self.ended = matches!(event, SessionEvent::Closed);
                    return Some(event);
                }
                Received::Missed(missed) => self.missed += missed,
                Received::Ended => self.ended = true,
            }
        }
        None
    }

    /// Returns how many events this listener has missed because it was too slow.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

/// Hands a listener that was created before its session the subscription to its events.
pub(crate) struct Listener(oneshot::Sender<Subscription<SessionEvent>>);

/// A waiting event, and the instance whose end it reports, if it reports one.
type Waiting<M> = (SessionEvent, Option<Participant<M>>);

/// Events on their way to the listeners, in one order.
///
/// An event that reports the end of an instance waits until the instance's sink is back with the room, because its
/// messages are counted by then. This always happens: every shard hands back every sink, however the shard ends.
pub(crate) struct EventQueue<M> {
    listeners: Feed<SessionEvent>,
    waiting: Mutex<VecDeque<Waiting<M>>>,
    capacity: usize,
    /// Notified when another event may have become the first that waits.
    changed: Notify,
}

impl<M: Message> EventQueue<M> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { listeners: Feed::new(capacity), waiting: Mutex::default(), capacity, changed: Notify::new() }
    }

    pub(super) fn subscribe(&self) -> Subscription<SessionEvent> {
        self.listeners.subscribe()
    }

    /// Subscribes a listener that was created before the session. If it was dropped meanwhile, it listens no more.
    pub(crate) fn connect(&self, listener: Listener) {
        let _ = listener.0.send(self.listeners.subscribe());
    }

    pub(crate) fn send(&self, event: SessionEvent) {
        self.put(event, None);
    }

    /// Sends an event that reports the end of `ended`, and fills in its account.
    pub(crate) fn send_end(&self, ended: Participant<M>, event: SessionEvent) {
        self.put(event, Some(ended));
    }

    /// Sends [`SessionEvent::Closed`], behind all waiting events.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.push_back((SessionEvent::Closed, None));
        self.release(waiting, |_, _| true);
    }

    /// Sends each waiting event once it may be sent. Has to be polled.
    ///
    /// # Cancel safety
    /// If the future is dropped, no event is lost.
    pub(crate) async fn run(&self) {
        loop {
            let first = self.lock().front().and_then(|(_, ended)| ended.clone());
            match first {
                Some(ended) => {
                    tokio::select! {
                        () = ended.retired() => self.send_ready(self.lock()),
                        // Another event may be the first by now.
                        () = self.changed.notified() => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    fn put(&self, event: SessionEvent, ended: Option<Participant<M>>) {
        let mut waiting = self.lock();
        waiting.push_back((event, ended));
        self.send_ready(waiting);
    }

    fn send_ready(&self, waiting: MutexGuard<'_, VecDeque<Waiting<M>>>) {
        self.release(waiting, |ended, count| ended.is_none_or(Participant::is_retired) || count > self.capacity);
    }

    /// Sends waiting events in order for as long as `may` allows it. `may` gets the instance whose end the first event
    /// reports, and the number of waiting events.
    fn release(
        &self,
        mut waiting: MutexGuard<'_, VecDeque<Waiting<M>>>,
        may: impl Fn(Option<&Participant<M>>, usize) -> bool,
    ) {
        // Dropped after the lock is released: the last handle of an instance runs code of its messages.
        let mut sent = Vec::new();
        loop {
            let count = waiting.len();
            let Some((mut event, ended)) = waiting.pop_front_if(|(_, ended)| may(ended.as_ref(), count)) else { break };
            if let (Some(account), Some(ended)) = (event.account_mut(), &ended) {
                *account = ended.outbox().account();
            }
            self.listeners.send(event);
            sent.extend(ended);
        }
        let waits = !waiting.is_empty();
        drop(waiting);
        if waits {
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting<M>>> {
        lock(&self.waiting)
    }
}
