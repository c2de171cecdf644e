//! Slots: where a shard keeps its members.

use crate::ids::ClientId;

/// The index of a member in its shard. A member keeps its slot for as long as it lives; the slot may then go to another
/// member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::fanout) struct Slot(u32);

impl Slot {
    /// The slot with this index, which is below the shard's capacity.
    #[inline]
    pub(in crate::fanout) fn new(index: usize) -> Self {
        Self(u32::try_from(index).expect("a shard holds fewer members"))
    }

    #[inline]
    pub(in crate::fanout) fn from_number(number: u32) -> Self {
        Self(number)
    }

    #[inline]
    pub(in crate::fanout) fn index(self) -> usize {
        self.0 as usize
    }

    pub(in crate::fanout) fn number(self) -> u32 {
        self.0
    }
}

/// Identifies one member of a shard, and not a later member in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemberRef {
    pub(in crate::fanout) slot: Slot,
    pub(in crate::fanout) client_id: ClientId,
}

const WORD: usize = u64::BITS as usize;

/// A list of slots, each of which is in it once. It keeps the order of the first insertions.
///
/// A slot stays in the set when its member leaves. Users look the member up, and find none or another one.
#[derive(Debug, Default)]
pub(in crate::fanout) struct SlotSet {
    list: Vec<Slot>,
    /// One bit per slot: whether the list has it.
    listed: Vec<u64>,
}

impl SlotSet {
    #[inline]
    pub(in crate::fanout) fn insert(&mut self, slot: Slot) {
        let (word, bit) = (slot.index() / WORD, 1 << (slot.index() % WORD));
        let listed = match self.listed.get_mut(word) {
            Some(listed) => listed,
            None => self.grow(word),
        };
        if *listed & bit == 0 {
            *listed |= bit;
            self.list.push(slot);
        }
    }

    #[cold]
    fn grow(&mut self, word: usize) -> &mut u64 {
        self.listed.resize(word + 1, 0);
        &mut self.listed[word]
    }

    /// The slot that was inserted as number `at`, counted from 0.
    pub(in crate::fanout) fn get(&self, at: usize) -> Option<Slot> {
        self.list.get(at).copied()
    }

    pub(in crate::fanout) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(in crate::fanout) fn clear(&mut self) {
        drop(self.drain());
    }

    /// Takes all slots out, in order. Dropping the iterator takes out the rest.
    pub(in crate::fanout) fn drain(&mut self) -> impl Iterator<Item = Slot> {
        if self.list.len() < self.listed.len() {
            self.list.iter().for_each(|slot| self.listed[slot.index() / WORD] = 0);
        } else {
            self.listed.fill(0);
        }
        self.list.drain(..)
    }

    /// Takes out every slot for which `keep` returns false.
    pub(in crate::fanout) fn retain(&mut self, mut keep: impl FnMut(Slot) -> bool) {
        let listed = &mut self.listed;
        self.list.retain(|slot| {
            let kept = keep(*slot);
            if !kept {
                listed[slot.index() / WORD] &= !(1 << (slot.index() % WORD));
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_is_listed_once_in_the_order_of_insertion() {
        fastrand::seed(5);
        let (mut set, mut expected) = (SlotSet::default(), Vec::new());
        for round in 0..20_000 {
            let slot = Slot::new(fastrand::usize(..300));
            set.insert(slot);
            if !expected.contains(&slot) {
                expected.push(slot);
            }
            match fastrand::u8(..100) {
                0 => {
                    assert!(set.drain().eq(expected.drain(..)), "round {round}");
                    assert!(set.is_empty());
                }
                1 => {
                    set.clear();
                    expected.clear();
                }
                2..5 => {
                    let keeps = |slot: Slot| !slot.index().is_multiple_of(3);
                    set.retain(keeps);
                    expected.retain(|slot| keeps(*slot));
                }
                _ => {}
            }
            assert!((0..).map_while(|at| set.get(at)).eq(expected.iter().copied()), "round {round}");
        }
    }
}
