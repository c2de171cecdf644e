//! A participant as a member of its shard, which acts for the session.

use std::fmt;
use std::sync::Weak;

use crate::caught::caught;
use crate::contract::EndReason;
use crate::fanout::{MemberHandle, Outbox};
use crate::participant::Participant;
use crate::room::{Room, SinkError};

/// The session's side of a member: where its bytes go, and what happens when it ends. `S` is the session: its
/// [core](super::core::Core), which names this type.
pub(crate) struct SessionMember<R: Room, S> {
    participant: Participant<R::Message>,
    /// Weak: a member that is stranded on its way to a shard that has ended keeps only itself alive.
    session: Weak<S>,
}

/// What a member that has ended needs of its session.
pub(crate) trait Retire<R: Room>: Send + Sync + 'static {
    /// Hands the sink back to the room, and notes at the participant when it is retired, and when the sink is gone.
    fn retire(&self, participant: Participant<R::Message>, sink: R::Sink, reason: EndReason);
}

impl<R: Room, S> SessionMember<R, S> {
    pub(crate) fn new(participant: Participant<R::Message>, session: Weak<S>) -> Self {
        Self { participant, session }
    }
}

impl<R: Room, S: Retire<R>> MemberHandle for SessionMember<R, S> {
    type Message = R::Message;
    type Sink = R::Sink;

    fn has_vanished(error: &SinkError<R>) -> bool {
        R::has_vanished(error)
    }

    fn outbox(&self) -> &Outbox<R::Message> {
        self.participant.outbox()
    }

    fn faulted(&self, reason: EndReason, detail: Option<&dyn fmt::Debug>) {
        self.participant.ask_for_reset(reason, detail);
    }

    fn retire(self, sink: R::Sink, reason: EndReason) {
        let Self { participant, session } = self;
        participant.log(|| tracing::debug!(%reason, "stream ended"));
        let Some(session) = session.upgrade() else {
            caught(|| drop(sink));
            participant.note_retired(reason);
            return participant.note_gone(reason);
        };
        session.retire(participant, sink, reason);
    }
}
