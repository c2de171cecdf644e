//! A stream that a participant opens to this host, as the session's stream handler gets it.

use std::fmt;
use std::sync::Weak;

#[cfg(feature = "telemetry")]
use super::events::SessionEvent;
use crate::ids::{ParticipantIdentity, ParticipantSid};
use crate::participant::Participant;
use crate::room::Room;

/// What the stream of a connection uses of its session.
pub(crate) trait StreamHost<M>: Send + Sync {
    /// The instance that is registered under `sid` and hasn't ended.
    fn participant(&self, sid: &ParticipantSid) -> Option<Participant<M>>;

    #[cfg(feature = "telemetry")]
    fn emit(&self, event: SessionEvent);
}

/// A stream that a participant has opened to this host. It lasts as long as the participant's connection: it survives
/// resets, but not reconnects.
pub struct ControlStream<R: Room> {
    /// The identity of the participant.
    pub identity: ParticipantIdentity,
    /// The id of the connection that the stream belongs to.
    pub sid: ParticipantSid,
    /// The stream, as the room delivers it.
    pub stream: R::Incoming,
    pub(crate) session: Weak<dyn StreamHost<R::Message>>,
}

impl<R: Room> ControlStream<R> {
    /// Returns the instance that is registered for this connection now, or `None` while it is being reset.
    ///
    /// Call this for each message: a reset changes the instance, and requests of the old instance ended with it.
    #[must_use]
    pub fn participant(&self) -> Option<Participant<R::Message>> {
        self.session.upgrade()?.participant(&self.sid)
    }

    /// Emits an event to the session's listeners, on behalf of the stream handler.
    #[cfg(feature = "telemetry")]
    pub(crate) fn emit(&self, event: SessionEvent) {
        if let Some(session) = self.session.upgrade() {
            session.emit(event);
        }
    }
}

impl<R: Room> fmt::Debug for ControlStream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlStream")
            .field("identity", &self.identity)
            .field("sid", &self.sid)
            .finish_non_exhaustive()
    }
}
