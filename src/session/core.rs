//! The core of a session: the state that its handles, its event loop, its joins and its shards share.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tracing::{Instrument, Span};

use super::backoff::Streaks;
use super::closing::Closing;
use super::events::{EventQueue, SessionEvent};
use super::member::SessionMember;
use super::settings::{Config, Hooks};
use super::stats::{Counters, Resets, SessionStats};
use super::stream::StreamHost;
use crate::caught::lock;
use crate::fanout::Fanout;
use crate::ids::ParticipantSid;
use crate::participant::Participant;
use crate::participant::pending::PendingResets;
use crate::participant::registry::Registry;
use crate::room::Room;

tokio::task_local! {
    /// The id of the session that the current task or callback belongs to.
    static INSIDE: u64;
}

/// A member of a shard of this session.
pub(crate) type Member<R> = SessionMember<R, Core<R>>;

/// The state that the handles, the event loop, the joins and the shards share.
pub(crate) struct Core<R: Room> {
    pub(crate) id: u64,
    /// Names the session in what its tasks log, if it has a name.
    pub(crate) span: Span,
    pub(crate) room: R,
    pub(crate) config: Config,
    pub(crate) hooks: Hooks<R>,
    pub(crate) runtime: Handle,
    pub(crate) fanout: Fanout<Member<R>>,
    pub(crate) registry: Registry<Participant<R::Message>>,
    pub(crate) pending_resets: Arc<PendingResets>,
    pub(crate) counters: Counters,
    /// Locked when a participant joins or fails.
    pub(crate) streaks: Mutex<Streaks>,
    pub(crate) permits: Semaphore,
    pub(crate) events: EventQueue<R::Message>,
    pub(crate) closing: Closing,
}

impl<R: Room> Core<R> {
    /// Runs `task` within the session: [`is_inside`](Self::is_inside) holds there, because closing the session would
    /// wait for itself, and what it logs is in the session's span.
    pub(crate) fn inside<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<R, F> {
        self.inside_without_span(task).instrument(self.span.clone())
    }

    /// Runs `task` [within](Self::inside) the session, but not in its span. For the task that each idle viewer has: it
    /// would take 112 bytes more.
    pub(crate) fn inside_without_span<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<R, F> {
        INSIDE.scope(self.id, task)
    }

    /// Whether the caller is within the session.
    pub(crate) fn is_inside(&self) -> bool {
        INSIDE.try_with(|id| *id == self.id).unwrap_or(false)
    }

    pub(crate) fn emit(&self, event: SessionEvent) {
        self.events.send(event);
    }

    pub(crate) fn streaks(&self) -> MutexGuard<'_, Streaks> {
        lock(&self.streaks)
    }

    pub(crate) fn stats(&self) -> SessionStats {
        let account = self.fanout.account();
        let hold = self.fanout.hold_stats();
        let mut oldest_waiting: Option<Duration> = None;
        let mut half_full = 0;
        self.registry.for_each_live(|participant| {
            oldest_waiting = oldest_waiting.max(participant.outbox().oldest());
            half_full += usize::from(participant.outbox().is_half_full());
        });
        SessionStats {
            participants: self.registry.len(),
            joins: self.counters.joins.get(),
            replacements: self.counters.replacements.get(),
            stale_joins: self.counters.stale_joins.get(),
            refused: self.counters.refused.get(),
            failed_joins: self.counters.failed_joins.get(),
            resets: Resets::of(&self.counters),
            vanished: self.counters.vanished.get(),
            account,
            half_full,
            oldest_waiting,
            shards: self.fanout.shard_count(),
            shard_lag: self.fanout.lag(),
            uplink_stalled: self.fanout.is_uplink_stalled(),
            uplink_stalls: self.counters.uplink_stalls.get(),
            publishers_held: hold.is_held,
            publisher_holds: hold.holds,
            publishers_held_for: hold.held_for,
            stray_streams: self.counters.stray_streams.get(),
        }
    }
}

impl<R: Room> StreamHost<R::Message> for Core<R> {
    fn participant(&self, sid: &ParticipantSid) -> Option<Participant<R::Message>> {
        self.registry.by_sid(sid)
    }

    #[cfg(feature = "telemetry")]
    fn emit(&self, event: SessionEvent) {
        self.events.send(event);
    }
}
