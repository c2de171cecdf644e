//! A participant as a member of its shard, which acts for the session.

use std::fmt;
use std::pin::Pin;
use std::sync::Weak;

use tokio::time::timeout;

use super::{INSIDE, Shared};
use crate::caught::caught;
use crate::contract::{BroadcastRun, EndReason, Message};
use crate::fanout::{MemberHandle, Outbox};
use crate::participant::Participant;
use crate::room::{Room, SinkError};

/// The session's side of a member: where its bytes go, and what happens when it ends.
pub(crate) struct Tenant<R: Room> {
    pub(crate) participant: Participant<R::Message>,
    /// Weak: a tenant that is stranded on its way to a shard that has ended keeps only itself alive.
    pub(crate) session: Weak<Shared<R>>,
}

impl<R: Room> MemberHandle for Tenant<R> {
    type Message = R::Message;
    type Sink = R::Sink;

    fn start_send_run(sink: Pin<&mut R::Sink>, run: &BroadcastRun<'_, R::Message>) -> Result<usize, SinkError<R>> {
        R::start_send_run(sink, run)
    }

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
        let goodbye = caught(|| session.room.retire(sink, reason));
        participant.note_retired(reason);
        // Telemetry counts on this order: see `telemetry::viewer`.
        #[cfg(feature = "telemetry")]
        (session.config.on_retired)(participant.client_id());
        let Some(Some(goodbye)) = goodbye else {
            if goodbye.is_none() {
                participant.log(|| tracing::warn!("the room panicked while it released the sink"));
            }
            return participant.note_gone(reason);
        };
        let limit = session.config.retire_timeout;
        // The timer starts in the task: a sink may be handed back where there is no runtime any more.
        let goodbye = session.closing.until_cut_off(async move { timeout(limit, goodbye).await });
        let gone = Gone { participant, reason };
        let said = async move {
            // Moved into the task and dropped last, even if the goodbye panics or the runtime has ended.
            let _gone = gone;
            // A goodbye that takes too long is dropped, with all it holds.
            let _ = goodbye.await;
        };
        session.closing.spawn(INSIDE.scope(session.id, said), &session.runtime);
    }
}

/// Records that the sink is gone when this is dropped.
struct Gone<M: Message> {
    participant: Participant<M>,
    reason: EndReason,
}

impl<M: Message> Drop for Gone<M> {
    fn drop(&mut self) {
        self.participant.note_gone(self.reason);
    }
}
