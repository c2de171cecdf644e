//! What a session tells of itself.

use tokio::sync::broadcast;

use super::error::JoinError;
use crate::ids::{ClientId, ParticipantIdentity, ParticipantSid};
use crate::lane::{EndReason, Message};
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
    /// An instance took the place of an older one, which has ended.
    Replaced {
        /// The one that is registered now.
        who: Who,
        /// The one that was.
        prior: Who,
    },
    /// An instance left: its room reported it gone, or had a newer connection by the time it was registered.
    Left(Who),
    /// An instance failed and was removed; if its connection is still there, a fresh one will join.
    Reset {
        /// The one that was removed.
        who: Who,
        /// Why.
        reason: EndReason,
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

/// A listener's view of a session's events, from when it was made on. Bounded: a listener that is slow misses the
/// oldest, and is told how many.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<SessionEvent>,
    missed: u64,
    ended: bool,
}

impl Events {
    pub(crate) fn new(receiver: broadcast::Receiver<SessionEvent>, ended: bool) -> Self {
        Self { receiver, missed: 0, ended }
    }

    /// The next event; `None` after [`SessionEvent::Closed`], or if the session had ended before. Safe to cancel: no
    /// event is lost.
    pub async fn next(&mut self) -> Option<SessionEvent> {
        while !self.ended {
            match self.receiver.recv().await {
                Ok(event) => {
                    self.ended = matches!(event, SessionEvent::Closed);
                    return Some(event);
                }
                Err(broadcast::error::RecvError::Closed) => return None,
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
