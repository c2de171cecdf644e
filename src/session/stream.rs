//! A stream that a participant opens to this host, as the session's stream handler gets it.

use std::fmt;
use std::sync::Weak;

use super::Shared;
use crate::ids::{ParticipantIdentity, ParticipantSid};
use crate::participant::Participant;
use crate::room::Room;

/// A stream that a participant has opened to this host. It lasts as long as the participant's connection: it survives
/// resets, but not reconnects.
pub struct ControlStream<R: Room> {
    /// The identity of the participant.
    pub identity: ParticipantIdentity,
    /// The id of the connection that the stream belongs to.
    pub sid: ParticipantSid,
    /// The stream, as the room delivers it.
    pub stream: R::Incoming,
    pub(crate) session: Weak<Shared<R>>,
}

impl<R: Room> ControlStream<R> {
    /// Returns the instance that is registered for this connection now, or `None` while it is being reset.
    ///
    /// Call this for each message: a reset changes the instance, and requests of the old instance ended with it.
    #[must_use]
    pub fn participant(&self) -> Option<Participant<R::Message>> {
        self.session.upgrade()?.registry.by_sid(&self.sid)
    }

    /// Emits an event to the session's listeners, on behalf of the stream handler.
    #[cfg(feature = "telemetry")]
    pub(crate) fn emit(&self, event: super::SessionEvent) {
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
