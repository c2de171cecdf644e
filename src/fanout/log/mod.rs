//! The broadcast log: a bounded ring to which a broadcast is written once, whatever the number of participants.
//!
//! Any thread may [publish](BroadcastLog::publish). Each shard reads every entry, in order, and nothing else reads.
//! Promises:
//! - A publish claims the next position and fills its slot, or returns [`Refused`] with the message. A
//!   failed publish leaves no trace, in particular no hole in the log.
//! - Each shard takes its own copy of each entry once. A slot is written again only after all shards have read it.
//! - A shard that is added later reads every entry from the position on at which it was added, and none below.
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
//! # Growth
//! An idle session has a log of a few slots with one reader. The log grows in two directions, and never shrinks:
//! - A publisher that finds all slots taken makes more of them, up to the capacity. So the memory is in proportion to
//!   how far the slowest shard has been behind, and the log is full only when its whole capacity is taken.
//! - A shard [adds readers](BroadcastLog::add_readers) for shards that are made later.
//!
//! How far it has grown is the log's *shape*, which is a part of the claimed word ([`tail`]). Each shape has a ring of
//! its own: as many slots as the shape says, with room for a copy for each of its readers. A position is claimed in the
//! ring of the shape that the word had at that moment. The ring exists before the compare-exchange, which fails if the
//! shape has changed; the publisher then looks the ring up again, and makes the copies that are missing. If it kept the
//! first ring, it would write to a place where no shard looks. If the readers weren't in the word, a publisher that has
//! seen one of them would make one copy, and a second reader that begins below its claim would find none.
//!
//! A shard looks for an entry in the ring where it found the last one. If the entry isn't there, and the word has
//! another shape, it looks in the rings of the shapes between the two. A position is written in one ring only, and a
//! slot names its position, so an entry can't be mistaken. The rings of shapes that are past stay allocated. The slots
//! grow fourfold and the readers twofold, so all of the past rings together take about as much as the last.
//!
//! # Orderings
//! - `tail` is claimed with `AcqRel` and read with `Acquire`: claims and the stamps of direct messages are ordered with
//!   what happened before them (the order across the lanes, see [`shard`](crate::fanout::shard)). The word's shape is
//!   changed in the same way: a publisher that sees a shape sees its ring, and the heads and signals of its readers.
//! - A slot is filled by storing its position (`Release`) after the copies are pushed, and checked with a load
//!   (`Acquire`): a shard that sees the position sees the copies. A slot that still names the previous lap isn't
//!   filled.
//! - A shard stores its head with `Release` after it has read up to it. A publisher loads the heads with `Acquire`
//!   before a slot is claimed again. A ring's `free_until` caches the smallest head plus the number of slots; it only
//!   rises. It is raised with `AcqRel` and read with `Acquire`: a publisher that relies on the cached value has
//!   acquired the heads that another publisher read for it.
//! - A shard that is about to sleep looks for its entry, and then perhaps at the word, behind its fence; a publisher
//!   has claimed, and filled, before its own fence. So a shard that isn't woken has seen the new shape
//!   (see [`signal`](crate::sync::signal)).
//! - `urgent_below` is relaxed: a publisher raises it before a fence and a wake-up, and a shard that gathers looks at
//!   it behind its own fence. The same holds for `space_freed`'s announcement that a publisher waits. Earlier looks,
//!   without a fence, may miss either: the last one before the shard sleeps doesn't.
//! - The [gate](gate) and the bound in [bytes](bytes) have orderings of their own.

mod bytes;
pub(in crate::fanout) mod gate;
pub(in crate::fanout) mod publisher;
mod ring;
mod tail;

use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crossbeam::utils::CachePadded;

pub(in crate::fanout) use self::ring::Entry;
use self::ring::{Left, Ring};
pub(crate) use self::tail::Position;
pub(in crate::fanout) use self::tail::Tail;
use self::tail::{SHAPES, STEPS, Shape};
use crate::contract::topic::Audience;
use crate::contract::{Hold, Message, Topic, UplinkState};
use crate::fanout::clock::{Clock, SessionMs};
use crate::fanout::log::bytes::{ByteBound, NoBytes};
use crate::fanout::log::gate::{Count, Gate, Gated, HoldStats};
use crate::sync::signal::Signal;
use crate::sync::{AtomicU64, OnceBox, Ordering, fence};

/// Slots of a log that hasn't grown, unless its capacity is less: a few kilobytes.
pub(in crate::fanout) const FEW: usize = 16;

/// How many times as many slots a log has as before, when it has grown by a step.
const GROWTH: usize = 4;

/// A bounded ring of broadcasts, each of which every shard reads.
#[derive(Debug)]
pub(in crate::fanout) struct BroadcastLog<M> {
    tail: CachePadded<AtomicU64>,
    /// Closed while no position may be claimed, whatever the capacity.
    gate: Gate,
    /// The bound in bytes. A log whose gate closes because of members has one.
    bytes: Option<Box<ByteBound>>,
    dimensions: Dimensions,
    /// The position after the last urgent entry; 0 if there was none.
    urgent_below: AtomicU64,
    /// By shape; a shape that the log doesn't get has no ring.
    rings: Box<[OnceBox<Ring<M>>; SHAPES]>,
    /// As many as there may be. Those of the log's shape are there.
    readers: Box<[OnceBox<LogReader>]>,
    /// Wakes the publisher that waits for capacity.
    pub(in crate::fanout) space_freed: Signal,
}

/// The bounds of a log. None of them is 0.
#[derive(Clone, Copy, Debug)]
pub(in crate::fanout) struct Dimensions {
    /// How many slots the log has at first, and the most that it may get.
    pub(in crate::fanout) first_slots: usize,
    pub(in crate::fanout) capacity: usize,
    /// How many readers the log has at first, and the most that it may get.
    pub(in crate::fanout) first_readers: usize,
    pub(in crate::fanout) most_readers: usize,
}

/// What the log has of a shard that reads it.
#[derive(Debug)]
struct LogReader {
    /// The first position that the shard hasn't read.
    head: CachePadded<AtomicU64>,
    /// Wakes the shard.
    signal: Arc<Signal>,
}

/// A shard's place among the readers. Only the shard has it.
#[derive(Debug)]
pub(in crate::fanout) struct Cursor {
    /// The number of the shard among the readers.
    reader: usize,
    /// The shape in whose ring the shard has found its last entry.
    shape: Shape,
}

impl Cursor {
    pub(in crate::fanout) fn new(reader: usize) -> Self {
        Self { reader, shape: Shape::default() }
    }
}

/// Why a message was not accepted; the message comes back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused<M> {
    /// The log: some shard hasn't read the slot yet, or the uplink is stalled, or publishers are held because most
    /// members are behind. A participant: its bound is taken.
    Full(M),
    /// The message is longer than the longest that may be sent. The log itself refuses no message for its length.
    TooLarge(M),
    /// The log is sealed, or the participant has ended.
    Closed(M),
}

impl<M> Refused<M> {
    pub(crate) fn map<T>(self, map: impl FnOnce(M) -> T) -> Refused<T> {
        match self {
            Self::Full(message) => Refused::Full(map(message)),
            Self::TooLarge(message) => Refused::TooLarge(map(message)),
            Self::Closed(message) => Refused::Closed(map(message)),
        }
    }
}

impl Dimensions {
    /// The slots of a log of this shape.
    fn slots(self, shape: Shape) -> usize {
        let factor = GROWTH.saturating_pow(u32::try_from(shape.slots_step()).expect("there are few steps"));
        self.first_slots.saturating_mul(factor).min(self.capacity)
    }

    /// The readers of a log of this shape.
    fn readers(self, shape: Shape) -> usize {
        self.first_readers.saturating_mul(1 << shape.readers_step()).min(self.most_readers)
    }

    /// The shape with more slots, if there may be more.
    fn with_more_slots(self, shape: Shape) -> Option<Shape> {
        (self.slots(shape) < self.capacity).then(|| Shape::new(shape.slots_step() + 1, shape.readers_step()))
    }

    /// The shape with more readers, if there may be more.
    fn with_more_readers(self, shape: Shape) -> Option<Shape> {
        (self.readers(shape) < self.most_readers).then(|| Shape::new(shape.slots_step(), shape.readers_step() + 1))
    }

    /// Whether the word can name every shape that the log may get.
    fn can_be_named(self) -> bool {
        let last = Shape::new(STEPS - 1, STEPS - 1);
        self.slots(last) == self.capacity && self.readers(last) == self.most_readers
    }
}

impl<M: Message> BroadcastLog<M> {
    /// Creates a log that is read by the shards that `signals` wake: as many as `dimensions` says for the first.
    pub(in crate::fanout) fn new(dimensions: Dimensions, signals: impl IntoIterator<Item = Arc<Signal>>) -> Self {
        let Dimensions { first_slots, first_readers, most_readers, .. } = dimensions;
        assert!(first_slots > 0 && first_readers > 0 && dimensions.can_be_named(), "the builder checks the bounds");
        let log = Self {
            tail: CachePadded::new(AtomicU64::new(0)),
            gate: Gate::new(),
            bytes: None,
            dimensions,
            urgent_below: AtomicU64::new(0),
            rings: Box::new(std::array::from_fn(|_| OnceBox::new())),
            readers: (0..most_readers).map(|_| OnceBox::new()).collect(),
            space_freed: Signal::new(),
        };
        log.ring(Shape::default());
        let signals: Vec<_> = signals.into_iter().collect();
        assert_eq!(signals.len(), first_readers, "each reader has a signal");
        signals.into_iter().enumerate().for_each(|(reader, signal)| log.prepare_reader(reader, signal));
        log
    }

    /// Has the log hold publishers while most members are behind, and bound the `bytes` that stand in it. For a log
    /// that nobody uses yet.
    pub(in crate::fanout) fn with_hold(mut self, hold: Hold, bytes: u64, clock: Clock) -> Self {
        self.bytes = Some(Box::new(ByteBound::new(bytes)));
        self.gate = Gate::with_hold(hold, clock);
        self
    }

    /// The claim counter. A direct message is stamped with it.
    #[inline]
    pub(in crate::fanout) fn tail(&self) -> Tail {
        Tail::from_word(self.tail.load(Ordering::Acquire))
    }

    /// Writes `message` for `audience` at the next position, and returns that position.
    pub(in crate::fanout) fn publish(&self, audience: &Audience, message: M) -> Result<Position, Refused<M>> {
        let bytes = message.byte_len();
        let written = self.write(audience, bytes, Some(message));
        if let (Ok(position), Audience::Topic(topic)) = (&written, audience)
            && topic.is_urgent()
        {
            self.hurry(*position);
        } else if self.has_half_its_bytes() {
            // A message that was written has passed its fence, and one that was refused has changed nothing.
            self.end_gathering();
        }
        written.map_err(|refused| refused.map(|back| back.expect("it was given")))
    }

    /// Writes the end of a topic at the next position: there the shards forget what they keep for it.
    pub(in crate::fanout) fn end_topic(&self, topic: &Topic) -> Result<Position, Refused<()>> {
        self.write(&Audience::Topic(topic.clone()), 0, None).map_err(|refused| refused.map(drop))
    }

    #[inline]
    fn write(&self, audience: &Audience, bytes: usize, message: Option<M>) -> Result<Position, Refused<Option<M>>> {
        let mut tail = self.tail();
        let mut ring = self.ring(tail.shape());
        // An early check spares a full log the copies that are made below, and bytes that are given back. The claim
        // checks again.
        let is_costly = self.bytes.is_some() || ring.readers > 1;
        if is_costly && !tail.is_sealed() && !(self.has_space(tail) && self.has_bytes(bytes)) {
            return Err(Refused::Full(message));
        }
        let entry = |message| Entry { audience: audience.clone(), bytes, message };
        let mut others = Vec::new();
        let position = loop {
            while others.len() + 1 < ring.readers {
                others.push(entry(message.clone()));
            }
            match self.claim(tail, ring, bytes) {
                Ok(position) => break position,
                Err(Unclaimed::Reshaped(now)) => (tail, ring) = (now, self.ring(now.shape())),
                Err(Unclaimed::Sealed) => return Err(Refused::Closed(message)),
                Err(Unclaimed::Full) => return Err(Refused::Full(message)),
            }
        };
        let slot = ring.slot(position);
        // Drained, not consumed: the list's own memory is freed only when the function returns.
        if !others.is_empty() {
            slot.set_readers(ring.readers);
            others.drain(..).for_each(|other| slot.put(other));
        }
        slot.put(entry(message));
        slot.fill(position);
        // The fence of the wake-up protocol, one for all shards: see `signal`.
        fence(Ordering::SeqCst);
        for reader in self.first_readers(ring.readers) {
            reader.signal.wake_for(position.number());
        }
        Ok(position)
    }

    /// Claims the next position in `ring`, which is that of the shape of `tail`, for a message of `bytes`.
    #[inline]
    fn claim(&self, tail: Tail, ring: &Ring<M>, bytes: usize) -> Result<Position, Unclaimed> {
        match &self.bytes {
            None => self.claim_position(tail, ring),
            Some(bound) => self.claim_with_bytes(tail, ring, bound, bytes),
        }
    }

    #[inline(never)]
    fn claim_with_bytes(
        &self,
        tail: Tail,
        ring: &Ring<M>,
        bound: &ByteBound,
        bytes: usize,
    ) -> Result<Position, Unclaimed> {
        bound.reserve(bytes).map_err(|NoBytes| Unclaimed::Full)?;
        self.claim_position(tail, ring).inspect_err(|_| {
            bound.give_back(bytes);
            self.space_freed.wake();
        })
    }

    // As a call it costs each publish some 30 instructions.
    #[inline(always)]
    fn claim_position(&self, mut tail: Tail, ring: &Ring<M>) -> Result<Position, Unclaimed> {
        loop {
            if tail.is_sealed() {
                return Err(Unclaimed::Sealed);
            }
            if self.gate.is_closed() {
                return Err(Unclaimed::Full);
            }
            if !self.fits(tail, ring) {
                return Err(self.grow(tail));
            }
            let claimed = tail.claimed().word();
            match self.tail.compare_exchange_weak(tail.word(), claimed, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(tail.position()),
                Err(now) => {
                    let now = Tail::from_word(now);
                    if now.shape() != tail.shape() {
                        return Err(Unclaimed::Reshaped(now));
                    }
                    tail = now;
                }
            }
        }
    }

    /// Gives the log more slots, because those of the shape of `tail` are taken, if there may be more.
    #[cold]
    fn grow(&self, tail: Tail) -> Unclaimed {
        let Some(shape) = self.dimensions.with_more_slots(tail.shape()) else { return Unclaimed::Full };
        // Before the exchange: a thread that sees the shape finds its ring.
        self.ring(shape);
        let grown = tail.with_shape(shape);
        match self.tail.compare_exchange(tail.word(), grown.word(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Unclaimed::Reshaped(grown),
            Err(now) => Unclaimed::Reshaped(Tail::from_word(now)),
        }
    }

    /// Whether the position at `tail` may be claimed, perhaps after the log has grown.
    pub(in crate::fanout) fn has_space(&self, tail: Tail) -> bool {
        if self.gate.is_closed() {
            return false;
        }
        self.fits(tail, self.ring(tail.shape())) || self.dimensions.with_more_slots(tail.shape()).is_some()
    }

    /// Whether the bound in bytes allows a message of `bytes`.
    #[inline]
    pub(in crate::fanout) fn has_bytes(&self, bytes: usize) -> bool {
        self.bytes.as_ref().is_none_or(|bound| bound.fits(bytes))
    }

    /// Whether `ring`, that of the shape of `tail`, has a slot for the position at `tail`.
    #[inline]
    fn fits(&self, tail: Tail, ring: &Ring<M>) -> bool {
        let position = tail.position().number();
        position < ring.free_until.load(Ordering::Acquire) || position < self.measure_space(ring)
    }

    fn measure_space(&self, ring: &Ring<M>) -> u64 {
        let slowest = self.first_readers(ring.readers).map(|reader| reader.head.load(Ordering::Acquire)).min();
        let until = slowest.unwrap_or(0) + ring.len();
        ring.free_until.fetch_max(until, Ordering::AcqRel);
        until
    }

    /// How many entries take half of the log.
    pub(in crate::fanout) fn half(&self) -> u64 {
        self.dimensions.capacity as u64 / 2
    }

    /// Ends the gathering of all shards. The caller has stored the reason and passed a fence: it waits for capacity
    /// (which [`space_freed`](Self::space_freed) announces), its message is urgent, or half of the log's bytes are
    /// taken.
    pub(in crate::fanout) fn end_gathering(&self) {
        self.first_readers(self.dimensions.readers(self.tail().shape()))
            .for_each(|reader| reader.signal.wake_gathering());
    }

    /// Ends the gathering of all shards that have yet to read `position`, an urgent message.
    #[cold]
    fn hurry(&self, position: Position) {
        self.urgent_below.fetch_max(position.number() + 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.end_gathering();
    }

    /// Whether the reader of `cursor`, which lets entries gather from `from` on, has to read them before its time is
    /// up: the entry at `until` is filled, one of them is urgent, half of the log's bytes are taken, a publisher waits
    /// for capacity, or the log is sealed.
    pub(in crate::fanout) fn ends_gathering(&self, cursor: &Cursor, from: Position, until: Position) -> bool {
        self.is_filled(cursor, until)
            || from.number() < self.urgent_below.load(Ordering::Relaxed)
            || self.has_half_its_bytes()
            || self.space_freed.is_asleep()
            || self.tail().is_sealed()
    }

    /// Whether the log has a bound in bytes, and half of that is taken.
    #[inline]
    fn has_half_its_bytes(&self) -> bool {
        self.bytes.as_ref().is_some_and(|bytes| bytes.is_half_taken())
    }

    /// Whether the entry at `position` is ready to be taken by the reader of `cursor`.
    pub(in crate::fanout) fn is_filled(&self, cursor: &Cursor, position: Position) -> bool {
        self.find(cursor.shape, position).is_some()
    }

    /// Takes the entry at `position`, if it is filled. A shard takes each position once.
    pub(in crate::fanout) fn take(&self, cursor: &mut Cursor, position: Position) -> Option<Entry<M>> {
        let shape = self.find(cursor.shape, position)?;
        cursor.shape = shape;
        let ring = self.ring(shape);
        let entry = ring.slot(position).take();
        if let Some(bound) = &self.bytes
            && (ring.readers == 1 || ring.slot(position).leave() == Left::Last)
        {
            // The shard wakes the publishers that wait when it advances.
            bound.give_back(entry.bytes);
        }
        Some(entry)
    }

    /// The shape in whose ring the entry at `position` is, if it is filled. Entries below `position` were found at
    /// `shape`.
    #[inline]
    fn find(&self, shape: Shape, position: Position) -> Option<Shape> {
        if self.ring(shape).slot(position).is_filled(position) { Some(shape) } else { self.find_grown(shape, position) }
    }

    /// Looks in the rings of all shapes above `shape`, up to that of the tail. There are none, unless the log has grown
    /// since the entry before `position` was published.
    fn find_grown(&self, shape: Shape, position: Position) -> Option<Shape> {
        let now = self.tail().shape();
        if now == shape {
            return None;
        }
        let steps = (shape.readers_step()..=now.readers_step())
            .flat_map(|readers| (shape.slots_step()..=now.slots_step()).map(move |slots| Shape::new(slots, readers)));
        let mut grown = steps.filter(|shape| {
            self.rings[shape.index()].get().is_some_and(|ring| ring.slot(position).is_filled(position))
        });
        grown.next()
    }

    /// Notes that the reader of `cursor` has read everything below `position`, and wakes a waiting publisher.
    pub(in crate::fanout) fn advance(&self, cursor: &Cursor, position: Position) {
        self.reader(cursor.reader).head.store(position.number(), Ordering::Release);
        self.space_freed.wake();
    }

    /// How far the slowest shard is behind the tail, in entries.
    pub(in crate::fanout) fn lag(&self) -> u64 {
        let tail = self.tail();
        let readers = self.first_readers(self.dimensions.readers(tail.shape()));
        let slowest = readers.map(|reader| reader.head.load(Ordering::Acquire)).min();
        // The heads are read after the tail, and may have passed it.
        tail.position().number().saturating_sub(slowest.unwrap_or(0))
    }

    /// Prepares the next readers, in ascending order, before they are added.
    pub(in crate::fanout) fn prepare_reader(&self, reader: usize, signal: Arc<Signal>) {
        let head = CachePadded::new(AtomicU64::new(0));
        self.readers[reader].get_or_init(|| Box::new(LogReader { head, signal }));
    }

    /// How many readers the log has after the next call of [`add_readers`](Self::add_readers) if it has `count` now.
    pub(in crate::fanout) fn next_count(&self, count: usize) -> usize {
        count.saturating_mul(2).min(self.dimensions.most_readers)
    }

    /// Adds the next readers, which were [prepared](Self::prepare_reader). They read from the returned position on.
    /// `None` if the log is sealed, or has all the readers it may have.
    pub(in crate::fanout) fn add_readers(&self) -> Option<Position> {
        let mut tail = self.tail();
        loop {
            let shape = self.dimensions.with_more_readers(tail.shape()).filter(|_| !tail.is_sealed())?;
            self.ring(shape);
            for reader in self.new_readers(tail.shape(), shape) {
                // Relaxed: nobody reads the head before the exchange, which releases it.
                self.reader(reader).head.store(tail.position().number(), Ordering::Relaxed);
            }
            let grown = tail.with_shape(shape).word();
            match self.tail.compare_exchange(tail.word(), grown, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(tail.position()),
                Err(now) => tail = Tail::from_word(now),
            }
        }
    }

    fn new_readers(&self, before: Shape, after: Shape) -> Range<usize> {
        self.dimensions.readers(before)..self.dimensions.readers(after)
    }

    /// Closes the log for publishers, wakes all tasks that have to know, and returns the final tail. It is safe to
    /// repeat.
    pub(in crate::fanout) fn seal(&self) -> Position {
        let tail = Tail::from_word(self.tail.fetch_or(Tail::SEAL, Ordering::AcqRel));
        self.first_readers(self.dimensions.readers(tail.shape())).for_each(|reader| reader.signal.wake());
        self.space_freed.wake();
        tail.position()
    }

    /// Holds publishers back while the uplink is stalled, and lets them continue when it flows.
    pub(in crate::fanout) fn set_uplink(&self, state: UplinkState) {
        let gated = self.gate.set_uplink(state);
        self.wake_if_opened(gated);
    }

    /// Whether publishers are held back because the uplink is stalled.
    pub(in crate::fanout) fn is_uplink_stalled(&self) -> bool {
        self.gate.is_uplink_stalled()
    }

    /// Whether the log counts the members that are behind.
    #[inline]
    pub(in crate::fanout) fn counts_members(&self) -> bool {
        self.gate.counts()
    }

    /// For how long publishers are held while no heavy member makes progress; `None` if they never are.
    pub(in crate::fanout) fn patience(&self) -> Option<Duration> {
        self.gate.patience()
    }

    /// Counts a change of a member. This may hold publishers, or let them continue.
    pub(in crate::fanout) fn count(&self, change: Count) {
        let gated = self.gate.count(change);
        self.wake_if_opened(gated);
    }

    /// Notes that a heavy member has made progress.
    pub(in crate::fanout) fn note_progress(&self, now: SessionMs) {
        self.gate.note_progress(now);
    }

    /// Lets publishers continue if no heavy member has made progress for the patience.
    pub(in crate::fanout) fn give_up_if_stuck(&self, now: SessionMs) {
        let gated = self.gate.give_up_if_stuck(now);
        self.wake_if_opened(gated);
    }

    /// How often and how long publishers were held because most members were behind.
    pub(in crate::fanout) fn hold_stats(&self) -> HoldStats {
        self.gate.stats()
    }

    /// For how long no publisher was held because of members; `None` while publishers are held.
    pub(in crate::fanout) fn open_for(&self) -> Option<Duration> {
        self.gate.open_for()
    }

    /// Waits until there have been more than `seen` holds because of members, and returns how many. For one task.
    pub(in crate::fanout) fn poll_holds(&self, seen: u64, cx: &mut Context<'_>) -> Poll<u64> {
        self.gate.poll_holds(seen, cx)
    }

    /// The members that the log counts, and how many of them are heavy.
    #[cfg(all(test, lanecast_loom))]
    pub(in crate::fanout) fn counted(&self) -> (u64, i64) {
        self.gate.counted()
    }

    fn wake_if_opened(&self, gated: Gated) {
        if gated == Gated::Opened {
            self.space_freed.wake();
        }
    }

    /// The ring of `shape`, which is made if it isn't there.
    #[inline]
    fn ring(&self, shape: Shape) -> &Ring<M> {
        self.rings[shape.index()]
            .get_or_init(|| Box::new(Ring::new(self.dimensions.slots(shape), self.dimensions.readers(shape))))
    }

    /// The first `count` readers, which were added.
    #[inline]
    fn first_readers(&self, count: usize) -> impl Iterator<Item = &LogReader> {
        self.readers[..count].iter().map(|reader| reader.get().expect(PREPARED))
    }

    fn reader(&self, reader: usize) -> &LogReader {
        self.readers[reader].get().expect(PREPARED)
    }
}

const PREPARED: &str = "a reader is prepared before it is added";

/// Why no position was claimed.
enum Unclaimed {
    /// Some shard hasn't read the slot yet, or the gate is closed, or the bytes don't fit.
    Full,
    Sealed,
    /// The log has grown: this is its tail now.
    Reshaped(Tail),
}
