//! What a session tells of itself.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, broadcast, oneshot};

use super::error::JoinError;
use crate::ids::{ClientId, ParticipantIdentity, ParticipantSid};
use crate::lane::{Account, EndReason, Message};
use crate::participant::Participant;

/// Which instance an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Who {
    /// Who it is.
    pub identity: ParticipantIdentity,
    /// Its connection.
    pub sid: ParticipantSid,
    /// The instance.
    pub client_id: ClientId,
}

impl Who {
    pub(crate) fn of<M: Message>(participant: &Participant<M>) -> Self {
        Self {
            identity: participant.identity().clone(),
            sid: participant.sid().clone(),
            client_id: participant.client_id(),
        }
    }
}

/// Something happened in a session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionEvent {
    /// An instance was registered where there was none.
    Joined(Who),
    /// An instance took the place of an older one, which was ended for that.
    Replaced {
        /// The one that is registered now.
        who: Who,
        /// The one that was.
        prior: Who,
        /// What became of the messages for the one that was.
        account: Account,
    },
    /// An instance left: its room reported it gone, or had a newer connection by the time it was registered, or a write
    /// found its connection gone. In that last case, and if its connection is still there, a fresh one will join.
    Left {
        /// The one that left.
        who: Who,
        /// Which of the three: [`Disconnected`](EndReason::Disconnected), [`Replaced`](EndReason::Replaced) or
        /// [`Vanished`](EndReason::Vanished).
        reason: EndReason,
        /// What became of the messages for it.
        account: Account,
    },
    /// An instance failed and was removed; if its connection is still there, a fresh one will join.
    Reset {
        /// The one that was removed.
        who: Who,
        /// Why.
        reason: EndReason,
        /// What became of the messages for it.
        account: Account,
    },
    /// A connection is not registered, and not tried again for now. One that was stale joins after all if it is still
    /// there when the later one leaves.
    Refused {
        /// Whose it is.
        identity: ParticipantIdentity,
        /// Which one.
        sid: ParticipantSid,
        /// Why.
        error: JoinError,
    },
    /// An attempt to join a connection failed; another follows after a back-off.
    JoinFailed {
        /// Whose it is.
        identity: ParticipantIdentity,
        /// Which one.
        sid: ParticipantSid,
        /// Why.
        error: JoinError,
    },
    /// Nothing was heard of a viewer for too long, which had pinged before. It isn't reset: what becomes of it is seen
    /// by its writes. Once for each silence; telemetry's viewers only.
    Unresponsive(Who),
    /// Something is heard again of a viewer that was unresponsive. Not sent if the instance ends before.
    Responsive(Who),
    /// The uplink is stalled: publishers are held back until it flows.
    UplinkStalled,
    /// The uplink flows again.
    UplinkFlowing,
    /// The session has ended. Nothing follows.
    Closed,
}

impl SessionEvent {
    /// Where what became of an instance's messages goes, if this says how one ended.
    fn account_mut(&mut self) -> Option<&mut Account> {
        match self {
            Self::Replaced { account, .. } | Self::Left { account, .. } | Self::Reset { account, .. } => Some(account),
            _ => None,
        }
    }
}

/// A listener's view of a session's events, from when it was made on. Bounded: a listener that is slow misses the
/// oldest, and is told how many.
///
/// Each instance that was registered is told of once when it comes and once when it goes, unless it stays until the
/// session ends. What is told of its end has its account, complete but for a message that somebody was sending to it
/// at that very moment: the event waits, and those behind it, until the shard has counted. A shard that is blocked
/// holds up as many events as the session's [`event_capacity`](crate::SessionBuilder::event_capacity), no more.
#[derive(Debug)]
pub struct Events {
    source: Source,
    missed: u64,
    ended: bool,
}

#[derive(Debug)]
enum Source {
    /// The session is still to be built.
    Unbuilt(oneshot::Receiver<broadcast::Receiver<SessionEvent>>),
    Built(broadcast::Receiver<SessionEvent>),
}

impl Events {
    pub(crate) fn new(receiver: broadcast::Receiver<SessionEvent>, ended: bool) -> Self {
        Self { source: Source::Built(receiver), missed: 0, ended }
    }

    /// A listener to a session that isn't built yet, and what its events come by once it is.
    pub(crate) fn before_build() -> (Listener, Self) {
        let (listener, receiver) = oneshot::channel();
        (listener, Self { source: Source::Unbuilt(receiver), missed: 0, ended: false })
    }

    /// The next event; `None` after [`SessionEvent::Closed`], or if the session had ended before, or was never built.
    /// Safe to cancel: no event is lost.
    pub async fn next(&mut self) -> Option<SessionEvent> {
        while !self.ended {
            let receiver = match &mut self.source {
                Source::Built(receiver) => receiver,
                Source::Unbuilt(built) => {
                    match built.await {
                        Ok(receiver) => self.source = Source::Built(receiver),
                        Err(_) => self.ended = true,
                    }
                    continue;
                }
            };
            match receiver.recv().await {
                Ok(event) => {
                    self.ended = matches!(event, SessionEvent::Closed);
                    return Some(event);
                }
                Err(broadcast::error::RecvError::Closed) => self.ended = true,
                Err(broadcast::error::RecvError::Lagged(missed)) => self.missed += missed,
            }
        }
        None
    }

    /// How many events this listener was too slow for.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

/// Where a listener that was made before its session gets its events from.
pub(crate) type Listener = oneshot::Sender<broadcast::Receiver<SessionEvent>>;

/// An event that waits, and whose end it tells of.
type Waiting<M> = (SessionEvent, Option<Participant<M>>);

/// Events on their way to the listeners, in one order.
///
/// One that tells of an instance's end waits until the instance's sink is back with the room, for its messages are
/// counted then. It never waits in vain: every shard hands back every sink, however it ends.
pub(crate) struct Outgoing<M> {
    listeners: broadcast::Sender<SessionEvent>,
    waiting: Mutex<VecDeque<Waiting<M>>>,
    capacity: usize,
    /// The first that waits may be another one.
    changed: Notify,
}

impl<M: Message> Outgoing<M> {
    pub(crate) fn new(capacity: usize) -> Self {
        let listeners = broadcast::channel(capacity).0;
        Self { listeners, waiting: Mutex::default(), capacity, changed: Notify::new() }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<SessionEvent> {
        self.listeners.subscribe()
    }

    pub(crate) fn send(&self, event: SessionEvent) {
        self.put(event, None);
    }

    /// Sends what tells of the end of `ended`, with its account.
    pub(crate) fn send_end(&self, ended: Participant<M>, event: SessionEvent) {
        self.put(event, Some(ended));
    }

    /// Sends that the session has ended, behind everything that waits.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.push_back((SessionEvent::Closed, None));
        self.release(waiting, |_, _| true);
    }

    /// Sends what waits when its time has come; has to be polled. Safe to cancel.
    pub(crate) async fn run(&self) {
        loop {
            let first = self.lock().front().and_then(|(_, ended)| ended.clone());
            match first {
                Some(ended) => {
                    tokio::select! {
                        () = ended.retired() => self.send_ready(self.lock()),
                        // Another may be the first by now.
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

    /// Sends the first events as long as `may` says so of one, given who ended and how many wait.
    fn release(
        &self,
        mut waiting: MutexGuard<'_, VecDeque<Waiting<M>>>,
        may: impl Fn(Option<&Participant<M>>, usize) -> bool,
    ) {
        // Dropped after the lock: the last handle of an instance runs code of its messages'.
        let mut sent = Vec::new();
        loop {
            let count = waiting.len();
            let Some((mut event, ended)) = waiting.pop_front_if(|(_, ended)| may(ended.as_ref(), count)) else { break };
            if let (Some(account), Some(ended)) = (event.account_mut(), &ended) {
                *account = ended.outbox().account();
            }
            // It is not an error to have no listeners.
            let _ = self.listeners.send(event);
            sent.extend(ended);
        }
        let waits = !waiting.is_empty();
        drop(waiting);
        if waits {
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting<M>>> {
        // Every change is whole before anything else is called.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
