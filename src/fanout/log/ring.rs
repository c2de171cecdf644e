//! The slots of a log of one shape.

use crossbeam::utils::CachePadded;

use crate::contract::topic::Audience;
use crate::fanout::log::tail::Position;
use crate::sync::{ArrayQueue, AtomicU32, AtomicU64, Ordering};

/// The slots that positions are claimed in while the log has one shape.
#[derive(Debug)]
pub(super) struct Ring<M> {
    /// No position at or above this one may be claimed in this ring before the heads are read again. It belongs to the
    /// ring: a publisher that hasn't heard of a new reader may raise it beyond what that reader has read, but can't
    /// claim a position any more.
    pub(super) free_until: CachePadded<AtomicU64>,
    /// How many readers take a copy of each entry.
    pub(super) readers: usize,
    slots: Box<[LogSlot<M>]>,
}

#[derive(Debug)]
pub(super) struct LogSlot<M> {
    /// The position whose entry the slot holds or held last.
    filled: AtomicU64,
    /// One copy for each shard that hasn't read the entry.
    copies: ArrayQueue<Entry<M>>,
    /// How many shards haven't said that they have their copy, if several take one.
    left: AtomicU32,
}

/// Whether a shard was the last to take its copy of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Last,
    OthersFollow,
}

/// One shard's copy of a broadcast, or of the end of a topic.
#[derive(Debug)]
pub(in crate::fanout) struct Entry<M> {
    pub(in crate::fanout) audience: Audience,
    pub(in crate::fanout) bytes: usize,
    /// `None`: the topic of the audience ends here.
    pub(in crate::fanout) message: Option<M>,
}

impl<M> Ring<M> {
    pub(super) fn new(slots: usize, readers: usize) -> Self {
        Self {
            free_until: CachePadded::new(AtomicU64::new(0)),
            readers,
            slots: (0..slots).map(|_| LogSlot::new(readers)).collect(),
        }
    }

    #[inline]
    pub(super) fn len(&self) -> u64 {
        self.slots.len() as u64
    }

    #[inline]
    pub(super) fn slot(&self, position: Position) -> &LogSlot<M> {
        let index = position.number() % self.slots.len() as u64;
        &self.slots[usize::try_from(index).expect("an index below a length")]
    }
}

impl<M> LogSlot<M> {
    fn new(readers: usize) -> Self {
        Self { filled: AtomicU64::new(u64::MAX), copies: ArrayQueue::new(readers), left: AtomicU32::new(0) }
    }

    #[inline]
    pub(super) fn put(&self, copy: Entry<M>) {
        assert!(self.copies.push(copy).is_ok(), "every shard has read what was here");
    }

    /// Notes how many shards take a copy, if several do. The caller then [fills](Self::fill) the slot.
    pub(super) fn set_readers(&self, readers: usize) {
        // Relaxed: the store that fills the slot shows it.
        self.left.store(readers as u32, Ordering::Relaxed);
    }

    /// Shows the copies of `position` to its readers.
    #[inline]
    pub(super) fn fill(&self, position: Position) {
        self.filled.store(position.number(), Ordering::Release);
    }

    #[inline]
    pub(super) fn is_filled(&self, position: Position) -> bool {
        self.filled.load(Ordering::Acquire) == position.number()
    }

    /// Notes that a shard has taken its copy. Each shard says so once, or none does.
    pub(super) fn leave(&self) -> Left {
        // AcqRel: what the others did before, the taking of their copies, is done for the last.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 { Left::Last } else { Left::OthersFollow }
    }

    #[inline]
    pub(super) fn take(&self) -> Entry<M> {
        self.copies.pop().expect("it holds a copy for each shard, and each takes one")
    }
}
