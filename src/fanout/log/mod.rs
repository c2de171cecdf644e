//! The broadcast log: a bounded ring to which a broadcast is written once, whatever the number of participants.
//!
//! Any thread may [publish](BroadcastLog::publish). Each shard reads every entry, in order, and nothing else reads.
//! Promises:
//! - A publish claims the next sequence number and fills its slot, or returns [`PublishError`] with the message. A
//!   failed publish leaves no trace, in particular no hole in the sequence.
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
//!   before a slot is claimed again. `room_until` caches the smallest head plus the capacity; it only rises.

pub(crate) mod publisher;

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use crate::contract::Message;
use crate::contract::topic::Audience;
use crate::sync::signal::Signal;
use crate::sync::{ArrayQueue, AtomicBool, AtomicU64, Ordering, fence};

/// The bit of the tail that is set once the log takes no more messages.
const SEALED: u64 = 1 << 63;

/// A bounded ring of broadcasts, each of which every shard reads.
#[derive(Debug)]
pub(crate) struct BroadcastLog<M> {
    tail: CachePadded<AtomicU64>,
    /// No position at or above this one may be claimed before the heads are read again.
    room_until: CachePadded<AtomicU64>,
    /// True while the uplink is stalled: no position may be claimed for now.
    held: AtomicBool,
    /// For each shard, the first position that it hasn't read.
    heads: Box<[CachePadded<AtomicU64>]>,
    slots: Box<[Slot<M>]>,
    /// For each shard, the signal that wakes it.
    readers: Box<[Arc<Signal>]>,
    /// Wakes the publisher that waits for capacity.
    pub(crate) room: Signal,
}

#[derive(Debug)]
struct Slot<M> {
    /// The position whose entry the slot holds or held last.
    filled: AtomicU64,
    /// One copy for each shard that hasn't read the entry.
    copies: ArrayQueue<Entry<M>>,
}

/// One shard's copy of a broadcast.
#[derive(Debug)]
pub(crate) struct Entry<M> {
    pub(crate) audience: Audience,
    pub(crate) bytes: usize,
    pub(crate) message: M,
}

/// Why a message was not published; the message comes back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PublishError<M> {
    /// Some shard hasn't read the slot yet, or the uplink is stalled.
    Full(M),
    /// The log is sealed.
    Closed(M),
}

/// A value of the tail at the time it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail(u64);

impl Tail {
    /// The next position to be claimed.
    pub(crate) fn position(self) -> u64 {
        self.0 & !SEALED
    }

    pub(crate) fn is_sealed(self) -> bool {
        self.0 & SEALED != 0
    }
}

impl<M: Message> BroadcastLog<M> {
    /// Creates a log of `capacity` slots (at least 1), read by the shards that `readers` wake.
    pub(crate) fn new(capacity: usize, readers: Box<[Arc<Signal>]>) -> Self {
        assert!(capacity > 0 && !readers.is_empty(), "the builder checks both");
        Self {
            tail: CachePadded::new(AtomicU64::new(0)),
            room_until: CachePadded::new(AtomicU64::new(capacity as u64)),
            held: AtomicBool::new(false),
            heads: readers.iter().map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            slots: (0..capacity).map(|_| Slot::new(readers.len())).collect(),
            readers,
            room: Signal::new(),
        }
    }

    /// The claim counter. A direct message is stamped with it.
    pub(crate) fn tail(&self) -> Tail {
        Tail(self.tail.load(Ordering::Acquire))
    }

    /// Writes `message` for `audience` at the next position.
    pub(crate) fn publish(&self, audience: &Audience, message: M) -> Result<(), PublishError<M>> {
        self.place(audience, message).map(|_| ())
    }

    /// Like [`publish`](Self::publish), and returns the position.
    pub(crate) fn place(&self, audience: &Audience, message: M) -> Result<u64, PublishError<M>> {
        // An early check spares a full log the allocations below.
        let first = self.tail();
        if first.is_sealed() {
            return Err(PublishError::Closed(message));
        }
        if !self.has_room(first) {
            return Err(PublishError::Full(message));
        }
        let bytes = message.byte_len();
        let entry = |message| Entry { audience: audience.clone(), bytes, message };
        let mut others: Vec<_> = (1..self.readers.len()).map(|_| entry(message.clone())).collect();
        let seq = match self.claim(first) {
            Ok(seq) => seq,
            Err(true) => return Err(PublishError::Closed(message)),
            Err(false) => return Err(PublishError::Full(message)),
        };
        let slot = self.slot(seq);
        // Drained, not consumed: the list's own memory is freed only when the function returns.
        others.drain(..).for_each(|other| slot.put(other));
        slot.put(entry(message));
        slot.filled.store(seq, Ordering::Release);
        // The fence of the wake-up protocol, one for all shards: see `signal`.
        fence(Ordering::SeqCst);
        for reader in &self.readers {
            reader.wake_after_fence();
        }
        Ok(seq)
    }

    /// Claims a position. `Err(true)` means that the log is sealed, `Err(false)` that it is full.
    fn claim(&self, mut tail: Tail) -> Result<u64, bool> {
        loop {
            if tail.is_sealed() {
                return Err(true);
            }
            if !self.has_room(tail) {
                return Err(false);
            }
            match self.tail.compare_exchange_weak(tail.0, tail.0 + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(tail.0),
                Err(now) => tail = Tail(now),
            }
        }
    }

    /// Whether the position at `tail` may be claimed.
    pub(crate) fn has_room(&self, tail: Tail) -> bool {
        if self.held.load(Ordering::Acquire) {
            return false;
        }
        let position = tail.position();
        position < self.room_until.load(Ordering::Acquire) || position < self.measure_room()
    }

    fn measure_room(&self) -> u64 {
        let slowest = self.heads.iter().map(|head| head.load(Ordering::Acquire)).min().unwrap_or(0);
        let until = slowest + self.slots.len() as u64;
        self.room_until.fetch_max(until, Ordering::AcqRel);
        until
    }

    /// Whether the entry at `position` is ready to be taken.
    pub(crate) fn is_filled(&self, position: u64) -> bool {
        self.slot(position).filled.load(Ordering::Acquire) == position
    }

    /// Takes the entry at `position`, if it is filled. A shard takes each position once.
    pub(crate) fn take(&self, position: u64) -> Option<Entry<M>> {
        let filled = self.is_filled(position);
        filled.then(|| self.slot(position).copies.pop().expect("it holds a copy for each shard, and each takes one"))
    }

    /// Notes that `shard` has read everything below `position`, and wakes a waiting publisher.
    pub(crate) fn advance(&self, shard: usize, position: u64) {
        self.heads[shard].store(position, Ordering::Release);
        self.room.wake();
    }

    /// How far `shard` is behind the tail, in entries.
    pub(crate) fn lag(&self, shard: usize) -> u64 {
        let head = self.heads[shard].load(Ordering::Acquire);
        self.tail().position().saturating_sub(head)
    }

    /// Closes the log for publishers, wakes all tasks that have to know, and returns the final tail. It is safe to
    /// repeat.
    pub(crate) fn seal(&self) -> u64 {
        let tail = Tail(self.tail.fetch_or(SEALED, Ordering::AcqRel));
        self.readers.iter().for_each(|reader| reader.wake());
        self.room.wake();
        tail.position()
    }

    /// Holds publishers back while the uplink is stalled (`true`), or lets them continue (`false`).
    pub(crate) fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Release);
        self.room.wake();
    }

    fn slot(&self, position: u64) -> &Slot<M> {
        let index = position % self.slots.len() as u64;
        &self.slots[usize::try_from(index).expect("an index below a length")]
    }
}

impl<M> Slot<M> {
    fn new(shards: usize) -> Self {
        Self { filled: AtomicU64::new(u64::MAX), copies: ArrayQueue::new(shards) }
    }

    fn put(&self, copy: Entry<M>) {
        assert!(self.copies.push(copy).is_ok(), "every shard has read what was here");
    }
}
