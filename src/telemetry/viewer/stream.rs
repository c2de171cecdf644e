//! A viewer's own stream, without the type of its room: the code that handles requests is compiled once for all rooms.

use crate::ids::{ParticipantIdentity, ParticipantSid};
use crate::participant::Participant;
use crate::protocol::Frame;
use crate::room::{Inbound, Room};
use crate::session::{ControlStream, SessionEvent};

/// A [`ControlStream`] of any room. The task of an idle viewer holds all of it in one box, which costs less memory than
/// separate boxes for the frames and for the weak handle of the session.
pub(in crate::telemetry) trait ViewerStream: Send {
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
