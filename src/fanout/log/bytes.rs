//! The bound of the log in bytes, if it has one.
//!
//! A publisher reserves the bytes of a message before it claims its position, and gives them back if the claim fails.
//! Bytes come before the position because a position can't be given back: a claim without bytes would leave a hole, or
//! exceed the bound. The shard that takes the last copy of a message out of the log releases its bytes. So the bound
//! doesn't depend on which shards there are, and one that is added later needs no count of what came before it. A
//! message of any length may stand in the log alone.
//!
//! # Orderings
//! Bytes are reserved and given back with `AcqRel`, and read with `Acquire`: a publisher that finds bytes free sees
//! that the copies were taken. The slots don't rely on that: the heads guard them. A shard that gathers looks at the
//! bytes behind its fence, and a publisher has reserved them before its own.

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicU64, Ordering};

/// How many bytes of messages may stand in the log, and how many do.
#[derive(Debug)]
pub(super) struct ByteBound {
    limit: u64,
    /// The bytes of the messages in the log, and of those that are about to be.
    taken: CachePadded<AtomicU64>,
}

/// The log can't take that many bytes for now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoBytes;

impl ByteBound {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, taken: CachePadded::new(AtomicU64::new(0)) }
    }

    /// Whether a message of `bytes` fits.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.with(self.taken.load(Ordering::Acquire), bytes).is_some()
    }

    /// Whether half of the bytes that may stand in the log do.
    pub(super) fn is_half_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire) >= self.limit / 2
    }

    /// Reserves the bytes of a message. The caller then claims its position, or [gives them back](Self::give_back).
    pub(super) fn reserve(&self, bytes: usize) -> Result<(), NoBytes> {
        let reserve = |taken| self.with(taken, bytes);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, reserve).map_or(Err(NoBytes), |_| Ok(()))
    }

    /// Gives back the bytes of a message that isn't in the log, or no longer. The caller then wakes the publishers that
    /// wait.
    pub(super) fn give_back(&self, bytes: usize) {
        self.taken.fetch_add((bytes as u64).wrapping_neg(), Ordering::AcqRel);
    }

    /// What stands in the log together with a message of `bytes`, if that may.
    fn with(&self, taken: u64, bytes: usize) -> Option<u64> {
        let with = taken.saturating_add(bytes as u64);
        (taken == 0 || with <= self.limit).then_some(with)
    }
}
