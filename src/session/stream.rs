//! What a participant's own stream to us comes with.

use std::fmt;
use std::sync::Weak;

use super::Shared;
use crate::ids::{ParticipantIdentity, ParticipantSid};
use crate::participant::Participant;
use crate::room::Room;

/// A participant's own stream to us, for as long as its connection lasts: through resets, not through reconnects.
pub struct ControlStream<R: Room> {
    /// Whose it is.
    pub identity: ParticipantIdentity,
    /// Its connection.
    pub sid: ParticipantSid,
    /// The stream.
    pub stream: R::Incoming,
    pub(crate) session: Weak<Shared<R>>,
}

impl<R: Room> ControlStream<R> {
    /// The instance that is registered for this connection now; none while it is being reset.
    ///
    /// Ask anew for each message: a reset changes the instance, and what was asked of the old one died with it.
    #[must_use]
    pub fn participant(&self) -> Option<Participant<R::Message>> {
        self.session.upgrade()?.registry.by_sid(&self.sid)
    }

    /// Tells the session's listeners what its handler found out.
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
