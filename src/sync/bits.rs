//! A concurrent set of small numbers that many threads add to and one takes from. It names the members that their shard
//! has to look at.
//!
//! Any thread may `set`; only the shard that owns the set may `take`. Promise: once `set(i)` has returned, a `take`
//! that starts after it, in happens-before order, reports `i`.
//!
//! # Orderings
//! `set` writes the leaf first and the summary second, both unconditionally and with `AcqRel`. `take` swaps the summary
//! first and the leaf second. So a `take` that takes a sender's summary bit also sees that sender's leaf bit, and
//! everything the sender did before it (the message it pushed). Both writes are unconditional on purpose. Otherwise a
//! second sender could return early because the bit is already set, while the first sender is still between leaf and
//! summary. A broadcast that the second sender publishes next could then overtake its message.

use crate::sync::{AtomicU64, Ordering};

const WORD: usize = 64;

/// A set of numbers below a fixed capacity, as two levels of bits.
#[derive(Debug)]
pub(crate) struct Bits {
    summary: Box<[AtomicU64]>,
    leaves: Box<[AtomicU64]>,
}

impl Bits {
    /// Creates a set for the numbers below `capacity`; it takes a little more than `capacity / 8` bytes.
    pub(crate) fn new(capacity: usize) -> Self {
        let words = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect::<Box<[_]>>();
        let leaves = capacity.div_ceil(WORD);
        Self { summary: words(leaves.div_ceil(WORD)), leaves: words(leaves) }
    }

    /// Adds `i`, and returns after both levels are written.
    pub(crate) fn set(&self, i: usize) {
        let leaf = i / WORD;
        self.leaves[leaf].fetch_or(1 << (i % WORD), Ordering::AcqRel);
        self.summary[leaf / WORD].fetch_or(1 << (leaf % WORD), Ordering::AcqRel);
    }

    /// Whether anything is in the set, among the numbers below `extent` rounded up to a multiple of 4,096.
    pub(crate) fn any(&self, extent: usize) -> bool {
        self.summary_words(extent).iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Takes out every number below `extent` (rounded up as in [`any`](Self::any)) and hands it to `each`, ascending.
    pub(crate) fn take(&self, extent: usize, mut each: impl FnMut(usize)) {
        for (s, summary) in self.summary_words(extent).iter().enumerate() {
            // A plain load first: a swap would take the cache line from its senders in every turn. A bit that the load
            // misses was set concurrently, and the check before sleeping finds it.
            if summary.load(Ordering::Acquire) == 0 {
                continue;
            }
            for_each_bit(summary.swap(0, Ordering::AcqRel), |bit| {
                let leaf = s * WORD + bit;
                for_each_bit(self.leaves[leaf].swap(0, Ordering::AcqRel), |bit| each(leaf * WORD + bit));
            });
        }
    }

    fn summary_words(&self, extent: usize) -> &[AtomicU64] {
        &self.summary[..extent.div_ceil(WORD * WORD).min(self.summary.len())]
    }
}

fn for_each_bit(mut word: u64, mut each: impl FnMut(usize)) {
    while word != 0 {
        each(word.trailing_zeros() as usize);
        word &= word - 1;
    }
}
