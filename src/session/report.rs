//! What the session counts, logs and tells its listeners: each thing that happens to an instance, once, in one place.

use std::time::Duration;

use super::core::Core;
use super::error::JoinError;
use super::events::{InstanceId, SessionEvent};
use super::overload::HoldChange;
use crate::contract::{Account, EndReason, Losses, UplinkState};
use crate::ids::{ParticipantIdentity, ParticipantSid};
use crate::participant::Participant;
use crate::room::{Presence, Room};

/// How often losses are reported, at most.
const LOSSES_EVERY: Duration = Duration::from_secs(1);

/// A join that succeeded.
pub(crate) struct Registered<M> {
    pub(crate) participant: Participant<M>,
    /// The instance whose place the participant took, if there was one.
    pub(crate) prior: Option<Participant<M>>,
}

impl<R: Room> Core<R> {
    /// Counts and reports that a connection is refused.
    pub(crate) fn refuse(&self, presence: &Presence, error: &JoinError) {
        let quiet = matches!(error, JoinError::SessionClosed | JoinError::NotPresent | JoinError::Superseded);
        if quiet {
            tracing::debug!(identity = %presence.identity, sid = %presence.sid, %error, "join given up");
            return;
        }
        tracing::info!(identity = %presence.identity, sid = %presence.sid, %error, "join refused");
        match error {
            JoinError::Stale => self.counters.stale_joins.add_one(),
            _ => self.counters.refused.add_one(),
        }
        let (identity, sid) = (presence.identity.clone(), presence.sid.clone());
        self.emit(SessionEvent::Refused { identity, sid, error: error.clone() });
    }

    /// Counts and reports that an attempt to join has failed and is followed by another one.
    pub(crate) fn note_join_failed(&self, presence: Presence, error: JoinError) {
        let Presence { identity, sid, .. } = presence;
        tracing::info!(%identity, %sid, %error, "join failed");
        self.counters.failed_joins.add_one();
        self.emit(SessionEvent::JoinFailed { identity, sid, error });
    }

    /// Reports what lossy and latest topics lose, for as long as it is polled, and at most once in each
    /// [`LOSSES_EVERY`].
    pub(crate) async fn report_losses(&self) {
        let mut reported = Losses::default();
        loop {
            let lost = self.fanout.until_lost().await;
            // The counts rise before the notice, so the last report may have had these already.
            if lost != reported {
                self.emit(SessionEvent::Lost { lost: lost.since(&reported) });
                reported = lost;
                tokio::time::sleep(LOSSES_EVERY).await;
            }
        }
    }

    /// Counts a stream of a connection that isn't present or was refused.
    pub(crate) fn note_stray_stream(&self, identity: &ParticipantIdentity, sid: &ParticipantSid) {
        tracing::debug!(%identity, %sid, "stream of a connection that isn't present, or was refused");
        self.counters.stray_streams.add_one();
    }

    /// Counts and reports how a registered instance ended. Called once for each instance, by the caller that took it
    /// out of the registry. The end of an instance that stayed until the session ended isn't reported.
    pub(crate) fn note_end(&self, participant: &Participant<R::Message>) {
        let Some(reason) = participant.end_reason().filter(|reason| *reason != EndReason::SessionClosed) else {
            return;
        };
        if reason.is_fault() {
            self.streaks().note_reset(participant.identity(), participant.attempt(), participant.age());
            return self.note_reset(participant, reason);
        }
        if reason == EndReason::Vanished {
            self.counters.vanished.add_one();
        }
        participant.log(|| tracing::info!(%reason, "left"));
        let left = SessionEvent::Left { who: InstanceId::of(participant), reason, account: Account::default() };
        self.events.send_end(participant.clone(), left);
    }

    /// Counts and reports that an instance took the place of `prior`, and ended for `reason` before it was live.
    ///
    /// The join calls this itself, and doesn't leave it to the event loop: the join isn't over, and what it reports of
    /// its next attempts has to follow this.
    pub(crate) fn note_short_lived(
        &self,
        participant: &Participant<R::Message>,
        prior: Participant<R::Message>,
        reason: EndReason,
    ) {
        if reason.is_fault() {
            self.note_joined(&Registered { participant: participant.clone(), prior: Some(prior) });
            self.note_reset(participant, reason);
        } else {
            self.note_end(&prior);
        }
    }

    /// Counts and reports that an instance was reset.
    fn note_reset(&self, participant: &Participant<R::Message>, reason: EndReason) {
        participant.log(|| tracing::info!(%reason, "reset"));
        self.counters.resets[reason as usize].add_one();
        let reset = SessionEvent::Reset { who: InstanceId::of(participant), reason, account: Account::default() };
        self.events.send_end(participant.clone(), reset);
    }

    /// Counts and reports that an instance was registered, and what became of the one whose place it took. The event
    /// loop calls this, so that no other event of the instance is emitted before.
    pub(crate) fn note_joined(&self, registered: &Registered<R::Message>) {
        let Registered { participant, prior } = registered;
        self.counters.joins.add_one();
        let who = InstanceId::of(participant);
        let replaced = prior.as_ref().filter(|prior| prior.end_reason() == Some(EndReason::Replaced));
        let Some(prior) = replaced else {
            // The prior instance had ended before it lost its place, which has not been reported yet.
            if let Some(prior) = prior {
                self.note_end(prior);
            }
            participant.log(|| tracing::info!("joined"));
            return self.emit(SessionEvent::Joined(who));
        };
        self.counters.replacements.add_one();
        participant.log(|| tracing::info!(%prior, "joined in place of an older one"));
        prior.log(|| tracing::info!(reason = %EndReason::Replaced, "replaced"));
        let replaced = SessionEvent::Replaced { who, prior: InstanceId::of(prior), account: Account::default() };
        self.events.send_end(prior.clone(), replaced);
    }

    /// Reports that publishers are held because most participants are behind, or no longer are.
    pub(super) fn note_hold(&self, change: HoldChange) {
        let holds = self.fanout.hold_stats().holds;
        match change {
            HoldChange::Held => {
                tracing::warn!(holds, "publishers are held: most participants are behind");
                self.emit(SessionEvent::PublishersHeld);
            }
            HoldChange::Released => {
                tracing::info!(holds, "publishers are no longer held");
                self.emit(SessionEvent::PublishersReleased);
            }
        }
    }

    /// Holds publishers back while the uplink is stalled, and spares the participants for the uplink patience.
    pub(crate) fn set_uplink(&self, state: UplinkState) {
        if self.fanout.set_uplink(state, self.config.uplink_patience) == state {
            return;
        }
        match state {
            UplinkState::Stalled => {
                self.counters.uplink_stalls.add_one();
                tracing::warn!("uplink stalled");
                self.emit(SessionEvent::UplinkStalled);
            }
            UplinkState::Flowing => {
                tracing::info!("uplink flowing");
                self.emit(SessionEvent::UplinkFlowing);
            }
        }
    }
}
