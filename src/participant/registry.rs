//! The registry of participants: a slot per identity, swapped by compare-and-swap in the order of `joined_at`, and an
//! index by sid.
//!
//! Promises, whatever the interleaving:
//! - An instance never replaces one that joined later. Of two that joined at the same time, the later registration
//!   wins.
//! - Each instance that loses its place, or is refused one, is handed to exactly one caller.
//! - A look-up by sid finds the live instance registered under the sid, or nothing. It never finds an instance of
//!   another identity, nor one that has ended.
//! - While no operation is under way, both indexes hold the same instances, and neither has an entry for an identity
//!   that is gone.
//!
//! A slot is never empty. A slot is swapped only under the guard of its map entry. A shared guard is enough, because
//! the swap itself is atomic. A slot leaves the map by `remove_if`, if it holds the instance to be removed; the
//! exclusive guard rules out all swaps meanwhile. Without the guard, a registration could land in a slot that has just
//! left the map, where no look-up finds it. No await and no user code runs under a guard.

use std::sync::Arc;

use crate::contract::{EndReason, Ending};
use crate::ids::{ClientId, ParticipantIdentity, ParticipantSid};
use crate::sync::{ArcSwap, DashMap, Entry, new_map};

/// A participant's instance, as far as the registry needs to know it.
pub(crate) trait Instance: Clone {
    /// The data that all handles of an instance share.
    type Shared;

    fn shared(&self) -> &Arc<Self::Shared>;
    fn from_shared(shared: Arc<Self::Shared>) -> Self;
    fn identity(&self) -> &ParticipantIdentity;
    fn sid(&self) -> &ParticipantSid;
    fn joined_at(&self) -> u64;
    fn client_id(&self) -> ClientId;
    fn is_live(&self) -> bool;
    /// Makes the transition `New → Live`. Fails, with the reason, if the instance has ended.
    fn go_live(&self) -> Result<(), EndReason>;
    /// Ends the instance. [`Ending::ByThis`] for the one caller whose `reason` is recorded.
    fn end(&self, reason: EndReason) -> Ending;
}

/// The participants of a session, by identity and by sid. The module says what holds whatever the interleaving.
pub(crate) struct Registry<P: Instance> {
    slots: DashMap<ParticipantIdentity, Slot<P>>,
    by_sid: DashMap<ParticipantSid, P>,
}

/// The slot of an identity. It holds the shared data, not a handle, which saves a look-up one pointer.
type Slot<P> = ArcSwap<<P as Instance>::Shared>;

/// The outcome of a registration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Registration<P> {
    /// The identity had no instance.
    Inserted,
    /// The newcomer took the place of this instance, which is ended.
    Replaced(P),
    /// This instance joined later. The newcomer is refused.
    Stale(P),
    /// This instance has the sid and stays. The newcomer is refused.
    Duplicate(P),
    /// The newcomer ended before it went live. The instance whose place it had taken, if any, is ended as well.
    Ended(Option<P>),
}

/// The outcome of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// This call removed the instance.
    Removed,
    /// The instance had lost its slot before.
    RemovedBefore,
}

impl<P: Instance> Registry<P> {
    pub(crate) fn new() -> Self {
        Self { slots: new_map(), by_sid: new_map() }
    }

    /// Registers `new` and makes it live, unless a registered instance keeps it out. A refused newcomer isn't ended
    /// here.
    pub(crate) fn register(&self, new: &P) -> Registration<P> {
        if let Err(present) = self.claim_sid(new) {
            return Registration::Duplicate(present);
        }
        let prior = match self.claim_slot(new) {
            Ok(prior) => prior,
            Err(later) => {
                self.release_sid(new);
                return Registration::Stale(later);
            }
        };
        if let Some(prior) = &prior {
            self.release_sid(prior);
            prior.end(EndReason::Replaced);
        }
        // Last, so that an instance found live is in both indexes.
        if new.go_live().is_err() {
            self.remove(new);
            return Registration::Ended(prior);
        }
        prior.map_or(Registration::Inserted, Registration::Replaced)
    }

    /// Adds the entry for the sid if there is none. `Err` is the instance that has the sid.
    fn claim_sid(&self, new: &P) -> Result<(), P> {
        match self.by_sid.entry(new.sid().clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(new.clone());
                Ok(())
            }
            Entry::Occupied(occupied) => Err(occupied.get().clone()),
        }
    }

    fn release_sid(&self, instance: &P) {
        self.by_sid.remove_if(instance.sid(), |_, stored| stored.client_id() == instance.client_id());
    }

    /// Puts `new` into its identity's slot and returns the instance it replaced. `Err` is the instance that joined
    /// later and keeps the slot.
    fn claim_slot(&self, new: &P) -> Result<Option<P>, P> {
        // Dropped after the guard, because dropping the last handle of an instance may run the code of its messages.
        let mut outdated = Vec::new();
        let mut swap = |slot: &Slot<P>| {
            let mut current = slot.load_full();
            loop {
                let stored = P::from_shared(Arc::clone(&current));
                if stored.joined_at() > new.joined_at() {
                    return Err(stored);
                }
                let seen = slot.compare_and_swap(&current, Arc::clone(new.shared()));
                if Arc::ptr_eq(&seen, &current) {
                    return Ok(Some(stored));
                }
                outdated.push(stored);
                current = Arc::clone(&seen);
            }
        };
        if let Some(slot) = self.slots.get(new.identity()) {
            return swap(&slot);
        }
        match self.slots.entry(new.identity().clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(ArcSwap::new(Arc::clone(new.shared())));
                Ok(None)
            }
            Entry::Occupied(occupied) => swap(occupied.get()),
        }
    }

    /// Removes exactly this instance from both indexes.
    pub(crate) fn remove(&self, instance: &P) -> Removal {
        self.release_sid(instance);
        let is_it = |slot: &Slot<P>| Arc::ptr_eq(&slot.load(), instance.shared());
        match self.slots.remove_if(instance.identity(), |_, slot| is_it(slot)) {
            Some(_) => Removal::Removed,
            None => Removal::RemovedBefore,
        }
    }

    /// The live instance of `identity`.
    pub(crate) fn by_identity(&self, identity: &ParticipantIdentity) -> Option<P> {
        self.stored(identity).filter(P::is_live)
    }

    /// The instance stored for `identity`, live or not.
    pub(crate) fn stored(&self, identity: &ParticipantIdentity) -> Option<P> {
        Some(P::from_shared(self.slots.get(identity)?.load_full()))
    }

    /// The live instance registered under `sid`.
    pub(crate) fn by_sid(&self, sid: &ParticipantSid) -> Option<P> {
        let stored = self.by_sid.get(sid)?;
        stored.is_live().then(|| stored.clone())
    }

    /// The instance stored under `sid`, live or not.
    pub(crate) fn stored_by_sid(&self, sid: &ParticipantSid) -> Option<P> {
        self.by_sid.get(sid).map(|stored| stored.clone())
    }

    /// Calls `each` for every live instance, in no particular order. `each` runs under a guard, so it must be short and
    /// must not call the embedder's code.
    pub(crate) fn for_each_live(&self, mut each: impl FnMut(&P)) {
        self.by_sid.iter().filter(|entry| entry.is_live()).for_each(|entry| each(entry.value()));
    }

    /// The number of identities that have a slot.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Removes all instances. The caller has ended them.
    pub(crate) fn clear(&self) {
        self.slots.clear();
        self.by_sid.clear();
    }
}
