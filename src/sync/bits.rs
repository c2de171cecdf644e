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
//!
//! The set is made in pieces of one summary word each, by the first `set` that needs the piece. That piece is visible
//! to whatever the sender's bits are visible to: it was published by a release that the sender has acquired, or made
//! itself.

use crate::sync::{AtomicU64, OnceBox, Ordering};

const WORD: usize = 64;

/// Leaves of a piece. The loom models have one.
const LEAVES: usize = if cfg!(lanecast_loom) { 1 } else { WORD };

/// How many numbers a piece is for.
const PIECE: usize = LEAVES * WORD;

/// A set of numbers below a fixed capacity, as two levels of bits.
#[derive(Debug)]
pub(crate) struct Bits {
    pieces: Box<[OnceBox<Piece>]>,
}

#[derive(Debug)]
struct Piece {
    /// One bit per leaf.
    summary: AtomicU64,
    leaves: [AtomicU64; LEAVES],
}

impl Piece {
    fn new() -> Box<Self> {
        Box::new(Self { summary: AtomicU64::new(0), leaves: std::array::from_fn(|_| AtomicU64::new(0)) })
    }
}

impl Bits {
    /// Creates a set for the numbers below `capacity`. It takes a word for each 4,096 of them, and 520 bytes for those
    /// 4,096 once one of them is added.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { pieces: (0..capacity.div_ceil(PIECE)).map(|_| OnceBox::new()).collect() }
    }

    /// Adds `i`, and returns after both levels are written.
    pub(crate) fn set(&self, i: usize) {
        let piece = self.pieces[i / PIECE].get_or_init(Piece::new);
        let leaf = i % PIECE / WORD;
        piece.leaves[leaf].fetch_or(1 << (i % WORD), Ordering::AcqRel);
        piece.summary.fetch_or(1 << leaf, Ordering::AcqRel);
    }

    /// Whether anything is in the set, among the numbers below `extent` rounded up to a multiple of 4,096.
    pub(crate) fn any(&self, extent: usize) -> bool {
        self.pieces(extent).any(|(_, piece)| piece.summary.load(Ordering::Acquire) != 0)
    }

    /// Takes out every number below `extent` (rounded up as in [`any`](Self::any)) and hands it to `each`, ascending.
    pub(crate) fn take(&self, extent: usize, mut each: impl FnMut(usize)) {
        for (first, Piece { summary, leaves }) in self.pieces(extent) {
            // A plain load first: a swap would take the cache line from its senders in every turn. A bit that the load
            // misses was set concurrently, and the check before sleeping finds it.
            if summary.load(Ordering::Acquire) == 0 {
                continue;
            }
            for_each_bit(summary.swap(0, Ordering::AcqRel), |leaf| {
                let first = first + leaf * WORD;
                for_each_bit(leaves[leaf].swap(0, Ordering::AcqRel), |bit| each(first + bit));
            });
        }
    }

    /// The pieces that are there of those below `extent`, each with its first number.
    fn pieces(&self, extent: usize) -> impl Iterator<Item = (usize, &Piece)> {
        let below = &self.pieces[..extent.div_ceil(PIECE).min(self.pieces.len())];
        below.iter().enumerate().filter_map(|(at, piece)| Some((at * PIECE, piece.get()?)))
    }
}

fn for_each_bit(mut word: u64, mut each: impl FnMut(usize)) {
    while word != 0 {
        each(word.trailing_zeros() as usize);
        word &= word - 1;
    }
}
