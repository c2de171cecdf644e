//! The slots of a shard that hold a member. A walk over the members costs in proportion to the members, not to the
//! slots.
//!
//! A slot keeps its number for as long as its member lives. So a peak of members leaves vacant slots behind, and a
//! latecomer may sit at the far end of them. Two levels of bits skip 4,096 vacant slots with one word. They yield the
//! slots in ascending order, which is their order in memory.

use crate::fanout::slot::Slot;

const WORD: usize = u64::BITS as usize;

/// A set of slots, as two levels of bits.
#[derive(Debug, Default)]
pub(super) struct Occupied {
    /// One bit per slot.
    leaves: Vec<u64>,
    /// One bit per leaf, set if the leaf isn't zero.
    summary: Vec<u64>,
}

/// The slots of one word that held a member when the word was read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Word {
    base: usize,
    bits: u64,
}

impl Word {
    /// The first of these slots. There must be one.
    #[inline]
    fn first(self) -> Slot {
        Slot::new(self.base + self.bits.trailing_zeros() as usize)
    }

    /// Takes the first of these slots out.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<Slot> {
        let first = (self.bits != 0).then(|| self.first())?;
        self.bits &= self.bits - 1;
        Some(first)
    }
}

impl Occupied {
    pub(super) fn insert(&mut self, slot: Slot) {
        let slot = slot.index();
        let leaf = slot / WORD;
        if leaf >= self.leaves.len() {
            self.leaves.resize(leaf + 1, 0);
            self.summary.resize(leaf / WORD + 1, 0);
        }
        self.leaves[leaf] |= 1 << (slot % WORD);
        self.summary[leaf / WORD] |= 1 << (leaf % WORD);
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        let slot = slot.index();
        let leaf = slot / WORD;
        self.leaves[leaf] &= !(1 << (slot % WORD));
        if self.leaves[leaf] == 0 {
            self.summary[leaf / WORD] &= !(1 << (leaf % WORD));
        }
    }

    /// The first slot at or above `from` that holds a member.
    pub(super) fn next(&self, from: usize) -> Option<Slot> {
        self.word(from).map(Word::first)
    }

    /// The occupied slots at or above `from` in the first word that has any.
    #[inline]
    pub(super) fn word(&self, from: usize) -> Option<Word> {
        let leaf = from / WORD;
        let bits = self.leaves.get(leaf)? & (u64::MAX << (from % WORD));
        if bits != 0 {
            return Some(Word { base: leaf * WORD, bits });
        }
        self.next_leaf(leaf + 1).map(|leaf| Word { base: leaf * WORD, bits: self.leaves[leaf] })
    }

    /// The first leaf at or above `from` that isn't zero.
    fn next_leaf(&self, from: usize) -> Option<usize> {
        let mut above = u64::MAX << (from % WORD);
        for (at, word) in self.summary.iter().enumerate().skip(from / WORD) {
            if word & above != 0 {
                return Some(at * WORD + (word & above).trailing_zeros() as usize);
            }
            above = u64::MAX;
        }
        None
    }

    /// One more than the highest slot that holds a member.
    pub(super) fn extent(&self) -> usize {
        let Some(at) = self.summary.iter().rposition(|word| *word != 0) else { return 0 };
        let leaf = at * WORD + self.summary[at].ilog2() as usize;
        leaf * WORD + self.leaves[leaf].ilog2() as usize + 1
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_is_a_set_in_ascending_order() {
        fastrand::seed(7);
        for most in [1, 63, 64, 65, 4_095, 4_096, 4_097, 300_000] {
            let (mut occupied, mut expected) = (Occupied::default(), BTreeSet::new());
            for _ in 0..2_000 {
                let slot = Slot::new(fastrand::usize(..most));
                if expected.remove(&slot) {
                    occupied.remove(slot);
                } else {
                    expected.insert(slot);
                    occupied.insert(slot);
                }
                assert_eq!(occupied.extent(), expected.last().map_or(0, |last| last.index() + 1));
                let from = fastrand::usize(..=most);
                assert_eq!(occupied.next(from), expected.range(Slot::new(from)..).next().copied());
            }
            let (mut slots, mut from) = (Vec::<Slot>::new(), 0);
            while let Some(mut word) = occupied.word(from) {
                slots.extend(std::iter::from_fn(|| word.pop()));
                from = slots.last().expect("a word has at least one").index() + 1;
            }
            assert!(slots.iter().eq(&expected));
        }
    }
}
