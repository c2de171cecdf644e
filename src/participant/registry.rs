//! Who is registered: a slot per identity, swapped by compare-and-swap on `joined_at`, and an index by sid.
//!
//! Promises, whatever the interleaving:
//! - An instance never replaces one that joined later. Of two that joined at the same time the later registration wins.
//! - Each instance that loses its place, or is refused one, is handed to exactly one caller.
//! - A sid finds the live instance registered under it or nothing: never another identity's, never one that has ended.
//! - When things are quiet, both indexes hold the same instances, and an identity that is gone leaves nothing behind.
//!
//! A slot is never empty. It is swapped only under the guard of its map entry (shared is enough: the swap itself is
//! atomic), and leaves the map by `remove_if` it holds the instance that goes (which excludes all swaps). Without the
//! guard a registration could land in a slot that has just been taken out of the map, where nobody would find it. No
//! await and no user code runs under a guard.

use std::sync::Arc;

use crate::ids::{ClientId, ParticipantIdentity, ParticipantSid};
use crate::lane::EndReason;
use crate::sync::{ArcSwap, DashMap, Entry};

/// What the registry has to know of an instance.
pub(crate) trait Instance: Clone {
    /// What all its handles share.
    type Shared;

    fn shared(&self) -> &Arc<Self::Shared>;
    fn from_shared(shared: Arc<Self::Shared>) -> Self;
    fn identity(&self) -> &ParticipantIdentity;
    fn sid(&self) -> &ParticipantSid;
    fn joined_at(&self) -> u64;
    fn client_id(&self) -> ClientId;
    fn is_live(&self) -> bool;
    /// `New → Live`; false if it has ended.
    fn go_live(&self) -> bool;
    /// Ends it; true for the caller whose reason it is.
    fn end(&self, reason: EndReason) -> bool;
}

/// See the [module](self).
pub(crate) struct Registry<P: Instance> {
    slots: DashMap<ParticipantIdentity, Slot<P>>,
    by_sid: DashMap<ParticipantSid, P>,
}

/// Holds what the handles share, not a handle: a look-up follows one pointer less.
type Slot<P> = ArcSwap<<P as Instance>::Shared>;

/// What became of a registration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Registration<P> {
    /// Its identity had no instance.
    Inserted,
    /// It took the place of this one, which is ended.
    Replaced(P),
    /// This one joined later: the newcomer is refused.
    Stale(P),
    /// This one has the sid: it stays, the newcomer is refused.
    Duplicate(P),
    /// The newcomer ended before it went live; what had its place until then, if anything, is ended as well.
    Ended(Option<P>),
}

impl<P: Instance> Registry<P> {
    pub(crate) fn new() -> Self {
        Self { slots: DashMap::default(), by_sid: DashMap::default() }
    }

    /// Registers `new` and makes it live, unless what is there forbids it. A refused newcomer isn't ended here.
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
        // Last, so that whoever finds it live finds it in both indexes.
        if !new.go_live() {
            self.remove(new);
            return Registration::Ended(prior);
        }
        prior.map_or(Registration::Inserted, Registration::Replaced)
    }

    /// Makes the sid entry if it is vacant; else says who has it.
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

    /// Puts `new` into its identity's slot and gives back what was there; or says which later instance keeps it out.
    fn claim_slot(&self, new: &P) -> Result<Option<P>, P> {
        // Dropped after the guard: the last handle of an instance runs code of its messages'.
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

    /// Takes exactly this instance out of both indexes. False if it had lost its place already.
    pub(crate) fn remove(&self, instance: &P) -> bool {
        self.release_sid(instance);
        let is_it = |slot: &Slot<P>| Arc::ptr_eq(&slot.load(), instance.shared());
        self.slots.remove_if(instance.identity(), |_, slot| is_it(slot)).is_some()
    }

    /// The live instance of `identity`.
    pub(crate) fn by_identity(&self, identity: &ParticipantIdentity) -> Option<P> {
        self.stored(identity).filter(P::is_live)
    }

    /// Whatever is stored for `identity`, also if it has just ended.
    pub(crate) fn stored(&self, identity: &ParticipantIdentity) -> Option<P> {
        Some(P::from_shared(self.slots.get(identity)?.load_full()))
    }

    /// The live instance registered under `sid`.
    pub(crate) fn by_sid(&self, sid: &ParticipantSid) -> Option<P> {
        let stored = self.by_sid.get(sid)?;
        stored.is_live().then(|| stored.clone())
    }

    /// Whatever is stored under `sid`, also if it has just ended.
    pub(crate) fn stored_by_sid(&self, sid: &ParticipantSid) -> Option<P> {
        self.by_sid.get(sid).map(|stored| stored.clone())
    }

    /// Shows all that are live, in no order. `each` runs under a guard: short, and nothing of the embedder's.
    pub(crate) fn for_each_live(&self, mut each: impl FnMut(&P)) {
        self.by_sid.iter().filter(|entry| entry.is_live()).for_each(|entry| each(entry.value()));
    }

    /// How many identities have a slot.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Forgets everybody. The caller has ended them.
    pub(crate) fn clear(&self) {
        self.slots.clear();
        self.by_sid.clear();
    }
}
