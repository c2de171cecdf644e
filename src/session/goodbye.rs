//! The goodbye to a member that has ended: its sink goes back to the room, which may take some time for it.

use tokio::time::timeout;

use super::core::Core;
use super::member::Retire;
use crate::caught::caught;
use crate::contract::{EndReason, Message};
use crate::participant::Participant;
use crate::room::Room;

impl<R: Room> Retire<R> for Core<R> {
    fn retire(&self, participant: Participant<R::Message>, sink: R::Sink, reason: EndReason) {
        let goodbye = caught(|| self.room.retire(sink, reason));
        participant.note_retired(reason);
        // Telemetry counts on this order: see `telemetry::viewer::viewers`.
        #[cfg(any(feature = "telemetry", feature = "test-util"))]
        self.hooks.on_retired.iter().for_each(|hook| {
            // What the hook drops may be foreign, and the shard goes on.
            caught(|| hook(&participant, reason));
        });
        let Some(Some(goodbye)) = goodbye else {
            if goodbye.is_none() {
                participant.log(|| tracing::warn!("the room panicked while it released the sink"));
            }
            return participant.note_gone(reason);
        };
        let limit = self.config.retire_timeout;
        // The timer starts in the task: a sink may be handed back where there is no runtime any more.
        let goodbye = self.closing.until_cut_off(async move { timeout(limit, goodbye).await });
        let gone = Gone { participant, reason };
        let said = async move {
            // Named first, so that it is dropped first if the runtime has ended and the task never runs.
            let goodbye = goodbye;
            // Dropped last, even if the goodbye panics.
            let _gone = gone;
            // A goodbye that takes too long is dropped, with all it holds.
            let _ = goodbye.await;
        };
        self.closing.spawn(self.inside(said), &self.runtime);
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
