//! The broadcast log: a bounded ring to which a broadcast is written once, whatever the number of participants.
//!
//! Any thread may [publish](BroadcastLog::publish). Each shard reads every entry, in order, and nothing else reads.
//! Promises:
//! - A publish claims the next position and fills its slot, or returns [`Refused`] with the message. A
//!   failed publish leaves no trace, in particular no hole in the log.
//! - Each shard takes its own copy of each entry once. A slot is written again only after all shards have read it.
//! - After [`seal`](BroadcastLog::seal), which returns the final tail, no publish succeeds.
//!
//! A claim is a compare-exchange after the capacity check, so that a full log can refuse a message without leaving a
//! hole. The seal is the top bit of the same word that is claimed, so that no publish above the final tail returns
//! `Ok`. Between claim and store there is no await, no user code and no drop: a hole would stall every shard. A slot
//! holds a copy of the message for each shard, because sending a message to another thread requires less of its type
//! than sharing it. The copies are in a queue that is allocated up front: publishing allocates only the copies for the
//! second and further shards. Shards take the copies out, so a payload lives until the last shard has read it, not
//! until the ring wraps around.
//!
//! # Orderings
//! - `tail` is claimed with `AcqRel` and read with `Acquire`: claims and the stamps of direct messages are ordered with
//!   what happened before them (the order across the lanes, see [`shard`](crate::fanout::shard)).
//! - A slot is filled by storing its position (`Release`) after the copies are pushed, and checked with a load
//!   (`Acquire`): a shard that sees the position sees the copies. A slot that still names the previous lap isn't
//!   filled.
//! - A shard stores its head with `Release` after it has read up to it. A publisher loads the heads with `Acquire`
//!   before a slot is claimed again. `free_until` caches the smallest head plus the capacity; it only rises. It is
//!   raised with `AcqRel` and read with `Acquire`: a publisher that relies on the cached value has acquired the heads
//!   that another publisher read for it.
//! - `held` is stored with `Release` and loaded with `Acquire`: a publisher that finds the log released sees what
//!   happened before the release. A publisher that races with the store may see either value.

pub(in crate::fanout) mod publisher;

use std::fmt;
use std::sync::Arc;

use crossbeam::utils::CachePadded;

use crate::contract::topic::Audience;
use crate::contract::{Message, UplinkState};
use crate::sync::signal::Signal;
use crate::sync::{ArrayQueue, AtomicBool, AtomicU64, Ordering, fence};

/// The bit of the tail that is set once the log takes no more messages.
const SEALED: u64 = 1 << 63;

/// A bounded ring of broadcasts, each of which every shard reads.
#[derive(Debug)]
pub(in crate::fanout) struct BroadcastLog<M> {
    tail: CachePadded<AtomicU64>,
    /// No position at or above this one may be claimed before the heads are read again.
    free_until: CachePadded<AtomicU64>,
    /// True while the uplink is stalled: no position may be claimed for now.
    held: AtomicBool,
    /// For each shard, the first position that it hasn't read.
    heads: Box<[CachePadded<AtomicU64>]>,
    slots: Box<[LogSlot<M>]>,
    /// For each shard, the signal that wakes it.
    readers: Box<[Arc<Signal>]>,
    /// Wakes the publisher that waits for capacity.
    pub(in crate::fanout) space_freed: Signal,
}

#[derive(Debug)]
struct LogSlot<M> {
    /// The position whose entry the slot holds or held last.
    filled: AtomicU64,
    /// One copy for each shard that hasn't read the entry.
    copies: ArrayQueue<Entry<M>>,
}

/// One shard's copy of a broadcast.
#[derive(Debug)]
pub(in crate::fanout) struct Entry<M> {
    pub(in crate::fanout) audience: Audience,
    pub(in crate::fanout) bytes: usize,
    pub(in crate::fanout) message: M,
}

/// Why a message was not accepted; the message comes back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused<M> {
    /// The log: some shard hasn't read the slot yet, or the uplink is stalled. A participant: its bound is taken.
    Full(M),
    /// The message is longer than the longest that may be sent. The log itself refuses no message for its length.
    TooLarge(M),
    /// The log is sealed, or the participant has ended.
    Closed(M),
}

/// The number of a broadcast in the log: the first has 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(u64);

impl Position {
    /// Behind every broadcast.
    pub(in crate::fanout) const END: Self = Self(u64::MAX);

    /// The position that lies `count` broadcasts behind this one.
    pub(crate) fn after(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A value of the tail at the time it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fanout) struct Tail(u64);

impl Tail {
    /// The next position to be claimed.
    pub(in crate::fanout) fn position(self) -> Position {
        Position(self.0 & !SEALED)
    }

    pub(in crate::fanout) fn is_sealed(self) -> bool {
        self.0 & SEALED != 0
    }
}

impl<M: Message> BroadcastLog<M> {
    /// Creates a log of `capacity` slots (at least 1), read by the shards that `readers` wake.
    pub(in crate::fanout) fn new(capacity: usize, readers: Box<[Arc<Signal>]>) -> Self {
        assert!(capacity > 0 && !readers.is_empty(), "the builder checks both");
        Self {
            tail: CachePadded::new(AtomicU64::new(0)),
            free_until: CachePadded::new(AtomicU64::new(capacity as u64)),
            held: AtomicBool::new(false),
            heads: readers.iter().map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            slots: (0..capacity).map(|_| LogSlot::new(readers.len())).collect(),
            readers,
            space_freed: Signal::new(),
        }
    }

    /// The claim counter. A direct message is stamped with it.
    pub(in crate::fanout) fn tail(&self) -> Tail {
        Tail(self.tail.load(Ordering::Acquire))
    }

    /// Writes `message` for `audience` at the next position, and returns that position.
    pub(in crate::fanout) fn publish(&self, audience: &Audience, message: M) -> Result<Position, Refused<M>> {
        // An early check spares a full log the allocations below.
        let first = self.tail();
        if first.is_sealed() {
            return Err(Refused::Closed(message));
        }
        if !self.has_space(first) {
            return Err(Refused::Full(message));
        }
        let bytes = message.byte_len();
        let entry = |message| Entry { audience: audience.clone(), bytes, message };
        let mut others: Vec<_> = (1..self.readers.len()).map(|_| entry(message.clone())).collect();
        let position = match self.claim(first) {
            Ok(position) => position,
            Err(Unclaimed::Sealed) => return Err(Refused::Closed(message)),
            Err(Unclaimed::Full) => return Err(Refused::Full(message)),
        };
        let slot = self.slot(position);
        // Drained, not consumed: the list's own memory is freed only when the function returns.
        others.drain(..).for_each(|other| slot.put(other));
        slot.put(entry(message));
        slot.filled.store(position.0, Ordering::Release);
        // The fence of the wake-up protocol, one for all shards: see `signal`.
        fence(Ordering::SeqCst);
        for reader in &self.readers {
            reader.wake_after_fence();
        }
        Ok(position)
    }

    fn claim(&self, mut tail: Tail) -> Result<Position, Unclaimed> {
        loop {
            if tail.is_sealed() {
                return Err(Unclaimed::Sealed);
            }
            if !self.has_space(tail) {
                return Err(Unclaimed::Full);
            }
            match self.tail.compare_exchange_weak(tail.0, tail.0 + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(tail.position()),
                Err(now) => tail = Tail(now),
            }
        }
    }

    /// Whether the position at `tail` may be claimed.
    pub(in crate::fanout) fn has_space(&self, tail: Tail) -> bool {
        if self.is_held() {
            return false;
        }
        let Position(position) = tail.position();
        position < self.free_until.load(Ordering::Acquire) || position < self.measure_space()
    }

    fn measure_space(&self) -> u64 {
        let slowest = self.heads.iter().map(|head| head.load(Ordering::Acquire)).min().unwrap_or(0);
        let until = slowest + self.slots.len() as u64;
        self.free_until.fetch_max(until, Ordering::AcqRel);
        until
    }

    /// Whether the entry at `position` is ready to be taken.
    pub(in crate::fanout) fn is_filled(&self, position: Position) -> bool {
        self.slot(position).filled.load(Ordering::Acquire) == position.0
    }

    /// Takes the entry at `position`, if it is filled. A shard takes each position once.
    pub(in crate::fanout) fn take(&self, position: Position) -> Option<Entry<M>> {
        let filled = self.is_filled(position);
        filled.then(|| self.slot(position).copies.pop().expect("it holds a copy for each shard, and each takes one"))
    }

    /// Notes that `shard` has read everything below `position`, and wakes a waiting publisher.
    pub(in crate::fanout) fn advance(&self, shard: usize, position: Position) {
        self.heads[shard].store(position.0, Ordering::Release);
        self.space_freed.wake();
    }

    /// How far `shard` is behind the tail, in entries.
    pub(in crate::fanout) fn lag(&self, shard: usize) -> u64 {
        let head = self.heads[shard].load(Ordering::Acquire);
        self.tail().position().0.saturating_sub(head)
    }

    /// Closes the log for publishers, wakes all tasks that have to know, and returns the final tail. It is safe to
    /// repeat.
    pub(in crate::fanout) fn seal(&self) -> Position {
        let tail = Tail(self.tail.fetch_or(SEALED, Ordering::AcqRel));
        self.readers.iter().for_each(|reader| reader.wake());
        self.space_freed.wake();
        tail.position()
    }

    /// Holds publishers back while the uplink is stalled, and lets them continue when it flows.
    pub(in crate::fanout) fn hold(&self, uplink: UplinkState) {
        self.held.store(uplink == UplinkState::Stalled, Ordering::Release);
        self.space_freed.wake();
    }

    /// Whether publishers are held back.
    pub(in crate::fanout) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    fn slot(&self, position: Position) -> &LogSlot<M> {
        let index = position.0 % self.slots.len() as u64;
        &self.slots[usize::try_from(index).expect("an index below a length")]
    }
}

/// Why no position was claimed.
enum Unclaimed {
    /// Some shard hasn't read the slot yet, or the uplink is stalled.
    Full,
    Sealed,
}

impl<M> LogSlot<M> {
    fn new(shards: usize) -> Self {
        Self { filled: AtomicU64::new(u64::MAX), copies: ArrayQueue::new(shards) }
    }

    fn put(&self, copy: Entry<M>) {
        assert!(self.copies.push(copy).is_ok(), "every shard has read what was here");
    }
}
