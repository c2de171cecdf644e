//! A set of small numbers that many threads add to and one takes from: which members want a look.
//!
//! Promises: once `set(i)` has returned, a `take` that starts after it, in the order of happens-before, reports `i`.
//! Anybody may `set`; only the shard that owns the set may `take`.
//!
//! # Orderings
//! `set` writes the leaf first and the summary second, both unconditionally and with `AcqRel`; `take` swaps the
//! summary first and the leaf second. So whoever's summary bit is taken has its leaf bit seen, and with it everything
//! it did before (the message it pushed). Both writes are unconditional on purpose: if a second sender returned early
//! because the bit is set already, its message could be overtaken by a broadcast it sends next, while the first sender
//! is still between leaf and summary.

use crate::sync::{AtomicU64, Ordering};

const WORD: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Bits {
    summary: Box<[AtomicU64]>,
    leaves: Box<[AtomicU64]>,
}

impl Bits {
    /// A set for the numbers below `capacity`; takes `capacity / 8` bytes and a little.
    pub(crate) fn new(capacity: usize) -> Self {
        let words = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect::<Box<[_]>>();
        let leaves = capacity.div_ceil(WORD);
        Self { summary: words(leaves.div_ceil(WORD)), leaves: words(leaves) }
    }

    /// Adds `i`. Returns after both levels are written.
    pub(crate) fn set(&self, i: usize) {
        let leaf = i / WORD;
        self.leaves[leaf].fetch_or(1 << (i % WORD), Ordering::AcqRel);
        self.summary[leaf / WORD].fetch_or(1 << (leaf % WORD), Ordering::AcqRel);
    }

    /// Whether anything is in the set, among the numbers below `extent`.
    pub(crate) fn any(&self, extent: usize) -> bool {
        self.summary_words(extent).iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Takes out every number below `extent` and hands it to `each`, ascending.
    pub(crate) fn take(&self, extent: usize, mut each: impl FnMut(usize)) {
        for (s, summary) in self.summary_words(extent).iter().enumerate() {
            // A plain look first: a swap would take the line from its senders each turn. What it misses was set
            // concurrently, and the look before sleeping finds it.
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
