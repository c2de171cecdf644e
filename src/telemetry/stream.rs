//! A viewer's own stream, whatever its room: so the code that handles requests is compiled once.

use crate::ids::{ParticipantIdentity, ParticipantSid};
use crate::participant::Participant;
use crate::protocol::Frame;
use crate::room::{Inbound, Room};
use crate::session::{ControlStream, SessionEvent};

/// A [`ControlStream`] of any room. One box holds all of it: an idle viewer keeps little more than it would if the room
/// were named.
pub(super) trait ViewerStream: Send {
    fn identity(&self) -> &ParticipantIdentity;

    fn sid(&self) -> &ParticipantSid;

    /// The frames that the viewer sends.
    fn inbound(&mut self) -> &mut dyn Inbound;

    /// The instance that is registered for the connection now, or `None` while it is being reset.
    fn participant(&self) -> Option<Participant<Frame>>;

    /// Emits an event to the session's listeners.
    fn emit(&self, event: SessionEvent);
}

impl<R: Room<Message = Frame, Incoming: Inbound>> ViewerStream for ControlStream<R> {
    fn identity(&self) -> &ParticipantIdentity {
        &self.identity
    }

    fn sid(&self) -> &ParticipantSid {
        &self.sid
    }

    fn inbound(&mut self) -> &mut dyn Inbound {
        &mut self.stream
    }

    fn participant(&self) -> Option<Participant<Frame>> {
        self.participant()
    }

    fn emit(&self, event: SessionEvent) {
        self.emit(event);
    }
}
