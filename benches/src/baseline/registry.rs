//! The registry of participants: plain hash maps, all under one lock.

use std::collections::HashMap;

use lanecast::{ParticipantIdentity, ParticipantSid};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::participant::Participant;

/// The registered participants and their tasks.
#[derive(Default)]
pub(super) struct Registry {
    by_identity: HashMap<ParticipantIdentity, Participant>,
    by_sid: HashMap<ParticipantSid, Participant>,
    tasks: HashMap<u64, JoinHandle<()>>,
}

/// The outcome of a registration.
pub(super) enum Registration {
    Inserted,
    Replaced(Participant),
    /// A later instance is registered.
    Stale,
    /// An instance with the same sid is registered.
    Duplicate,
}

impl Registry {
    /// Registers `new`, unless a registered instance keeps it out.
    pub(super) fn register(&mut self, new: &Participant) -> Registration {
        if self.by_sid.contains_key(new.sid()) {
            return Registration::Duplicate;
        }
        if self.by_identity.get(new.identity()).is_some_and(|stored| stored.joined_at() > new.joined_at()) {
            return Registration::Stale;
        }
        self.by_sid.insert(new.sid().clone(), new.clone());
        match self.by_identity.insert(new.identity().clone(), new.clone()) {
            Some(prior) => {
                self.by_sid.remove(prior.sid());
                self.tasks.remove(&prior.id());
                Registration::Replaced(prior)
            }
            None => Registration::Inserted,
        }
    }

    /// Keeps the handle of a participant's task, if the participant is registered.
    pub(super) fn keep_task(&mut self, participant: &Participant, task: JoinHandle<()>) {
        if self.holds(participant) {
            self.tasks.insert(participant.id(), task);
        }
    }

    pub(super) fn holds(&self, participant: &Participant) -> bool {
        self.by_sid.get(participant.sid()).is_some_and(|stored| stored.id() == participant.id())
    }

    /// Removes the instance registered under `sid`, and returns it with its task.
    pub(super) fn remove(&mut self, sid: &ParticipantSid) -> Option<(Participant, Option<JoinHandle<()>>)> {
        let participant = self.by_sid.remove(sid)?;
        self.by_identity.remove(participant.identity());
        let task = self.tasks.remove(&participant.id());
        Some((participant, task))
    }

    #[inline]
    pub(super) fn by_identity(&self, identity: &ParticipantIdentity) -> Option<Participant> {
        self.by_identity.get(identity).cloned()
    }

    #[inline]
    pub(super) fn by_sid(&self, sid: &ParticipantSid) -> Option<Participant> {
        self.by_sid.get(sid).cloned()
    }

    pub(super) fn all(&self) -> Vec<Participant> {
        self.by_identity.values().cloned().collect()
    }

    /// Removes all participants, and returns their cancellation tokens and their tasks.
    pub(super) fn clear(&mut self) -> (Vec<CancellationToken>, Vec<JoinHandle<()>>) {
        self.by_sid.clear();
        let cancels = self.by_identity.drain().map(|(_, participant)| participant.cancellation().clone()).collect();
        (cancels, self.tasks.drain().map(|(_, task)| task).collect())
    }
}
