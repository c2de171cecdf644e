//! Models of what grows: the slots of the log, its readers, and the mail bits.
//!
//! Every reader takes each entry from its first position on, once, however the log grows meanwhile. No slot is written
//! again before all of its readers have read it. A bit that is set is taken, whoever makes its piece.

use std::sync::Arc;
use std::task::Poll;

use loom::thread;

use super::{Note, Sleeping, Watch, port_of, reader, run};
use crate::contract::topic::Audience;
use crate::fanout::log::{BroadcastLog, Cursor, Dimensions, Position, Refused};
use crate::sync::bits::Bits;
use crate::sync::kit::{SLEEPS_FOR_EVER, Weaken, block_on, holds, holds_narrowly, must_fail};
use crate::sync::signal::Signal;
use crate::sync::{ArrayQueue, AtomicU64, Ordering};

/// A log that begins with one slot and one reader, and may get two of each.
const GROWS: Dimensions = Dimensions { first_slots: 1, capacity: 2, first_readers: 1, most_readers: 2 };

/// The same, with slots that don't grow.
const ONE_SLOT: Dimensions = Dimensions { capacity: 1, ..GROWS };

/// Part of both of the following.
const LOST: &str = "an entry is lost";
const HOLE: &str = "an entry is lost: a reader finds none at a position that was claimed";
const UNREAD: &str = "an entry is lost: a slot was written again before all of its readers have read it";

/// The operations of a log that the models use. The production type and the sketch have them.
trait Log: Send + Sync + 'static {
    /// Publishes the note, and returns whether there was capacity.
    fn publish(&self, note: Note) -> bool;
    /// Adds the second reader, and returns its first position.
    fn add_reader(&self) -> u64;
    fn take(&self, at: &mut Place) -> Option<Note>;
    fn tail(&self) -> u64;
}

/// Where a reader is.
struct Place {
    reader: usize,
    position: u64,
    cursor: Cursor,
    /// The sketch's cursor: the ring of the last entry.
    ring: usize,
}

impl Place {
    fn new(reader: usize, position: u64) -> Self {
        Self { reader, position, cursor: Cursor::new(reader), ring: 0 }
    }

    /// Takes everything up to the tail, all of which is filled.
    fn read_on(&mut self, log: &impl Log) -> Vec<Note> {
        let end = log.tail();
        let rest = self.position..end;
        rest.map(|_| log.take(self).expect(HOLE)).collect()
    }
}

struct Production(BroadcastLog<Note>);

impl Production {
    fn new(dimensions: Dimensions) -> Self {
        let log = BroadcastLog::new(dimensions, [Arc::new(Signal::new())]);
        log.prepare_reader(1, Arc::new(Signal::new()));
        Self(log)
    }
}

/// How many entries come before this position.
fn count(position: Position) -> u64 {
    (0..8).find(|count| super::position(*count) == position).expect("a model's log is short")
}

impl Log for Production {
    fn publish(&self, note: Note) -> bool {
        match self.0.publish(&Audience::All, note) {
            Ok(_) => true,
            Err(Refused::Full(_)) => false,
            Err(refused) => panic!("the log is open: {refused:?}"),
        }
    }

    fn add_reader(&self) -> u64 {
        count(self.0.add_readers().expect("the log is open and has one reader"))
    }

    fn take(&self, at: &mut Place) -> Option<Note> {
        let entry = self.0.take(&mut at.cursor, super::position(at.position))?;
        at.position += 1;
        self.0.advance(&at.cursor, super::position(at.position));
        entry.message
    }

    fn tail(&self) -> u64 {
        count(self.0.tail().position())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Breakage {
    /// Keeps the number of readers beside the word that is claimed.
    ReadersBeside,
    /// Goes on with the ring that it has looked up before a claim that fails.
    KeepsItsRing,
    /// All rings share the position up to which capacity was found.
    SharesTheSpace,
    /// Nothing is broken. Shows that the sketch fails only because of its breakage.
    None,
}

/// A log like the production one, reduced to the parts that can break. The slots of each ring have place for the copies
/// of two readers.
struct Sketch {
    breakage: Breakage,
    /// The position, and above it one bit each for more slots and for more readers.
    tail: AtomicU64,
    readers: AtomicU64,
    heads: [AtomicU64; 2],
    capacity: usize,
    rings: [Vec<(AtomicU64, ArrayQueue<Note>)>; 4],
    free_until: [AtomicU64; 4],
}

const MORE_SLOTS: u64 = 1 << 8;
const MORE_READERS: u64 = 1 << 9;
const POSITION: u64 = MORE_SLOTS - 1;

impl Sketch {
    fn new(dimensions: Dimensions, breakage: Breakage) -> Self {
        let ring = |slots| (0..slots).map(|_| (AtomicU64::new(u64::MAX), ArrayQueue::new(2))).collect();
        let more = dimensions.capacity;
        Self {
            breakage,
            tail: AtomicU64::new(0),
            readers: AtomicU64::new(1),
            heads: [AtomicU64::new(0), AtomicU64::new(0)],
            capacity: more,
            rings: [ring(1), ring(more), ring(1), ring(more)],
            free_until: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn shape(tail: u64) -> usize {
        (tail >> 8) as usize
    }

    fn reader_count(&self, tail: u64) -> usize {
        match self.breakage {
            Breakage::ReadersBeside => self.readers.load(Ordering::Acquire) as usize,
            _ => 1 + usize::from(tail & MORE_READERS != 0),
        }
    }

    fn fits(&self, tail: u64, readers: usize) -> bool {
        let shape = if self.breakage == Breakage::SharesTheSpace { 0 } else { Self::shape(tail) };
        if tail & POSITION < self.free_until[shape].load(Ordering::Acquire) {
            return true;
        }
        let slowest = self.heads[..readers].iter().map(|head| head.load(Ordering::Acquire)).min().unwrap_or(0);
        let until = slowest + self.rings[Self::shape(tail)].len() as u64;
        self.free_until[shape].fetch_max(until, Ordering::AcqRel);
        tail & POSITION < until
    }
}

impl Log for Sketch {
    fn publish(&self, note: Note) -> bool {
        let mut tail = self.tail.load(Ordering::Acquire);
        let (mut shape, mut readers) = (Self::shape(tail), self.reader_count(tail));
        loop {
            if self.breakage != Breakage::KeepsItsRing {
                shape = Self::shape(tail);
            }
            if self.breakage != Breakage::ReadersBeside {
                readers = self.reader_count(tail);
            }
            let fits = self.fits(tail, readers);
            if !fits && self.rings[Self::shape(tail)].len() == self.capacity {
                return false;
            }
            let next = if fits { tail + 1 } else { tail | MORE_SLOTS };
            match self.tail.compare_exchange_weak(tail, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if fits => break,
                Ok(_) => (tail, shape) = (next, Self::shape(next)),
                Err(now) => tail = now,
            }
        }
        let (position, ring) = (tail & POSITION, &self.rings[shape]);
        let (filled, copies) = &ring[position as usize % ring.len()];
        assert!(copies.is_empty(), "{UNREAD}");
        (0..readers).for_each(|_| copies.push(note).expect(UNREAD));
        filled.store(position, Ordering::Release);
        true
    }

    fn add_reader(&self) -> u64 {
        if self.breakage == Breakage::ReadersBeside {
            self.readers.store(2, Ordering::Release);
            return self.tail.load(Ordering::Acquire) & POSITION;
        }
        let mut tail = self.tail.load(Ordering::Acquire);
        loop {
            self.heads[1].store(tail & POSITION, Ordering::Relaxed);
            match self.tail.compare_exchange(tail, tail | MORE_READERS, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return tail & POSITION,
                Err(now) => tail = now,
            }
        }
    }

    fn take(&self, at: &mut Place) -> Option<Note> {
        let newest = Self::shape(self.tail.load(Ordering::Acquire));
        for shape in at.ring..=newest {
            let ring = &self.rings[shape];
            let (filled, copies) = &ring[at.position as usize % ring.len()];
            if filled.load(Ordering::Acquire) == at.position {
                at.ring = shape;
                at.position += 1;
                let note = copies.pop()?;
                self.heads[at.reader].store(at.position, Ordering::Release);
                return Some(note);
            }
        }
        None
    }

    fn tail(&self) -> u64 {
        self.tail.load(Ordering::Acquire) & POSITION
    }
}

/// Two threads publish while a second reader is added. Each reader takes everything from its first position on.
fn a_reader_is_added(log: impl Log) {
    let log = Arc::new(log);
    let publisher = thread::spawn({
        let log = Arc::clone(&log);
        move || log.publish(Note("a"))
    });
    let shard = thread::spawn({
        let log = Arc::clone(&log);
        move || Place::new(1, log.add_reader())
    });
    let published = usize::from(log.publish(Note("b")));
    let published = published + usize::from(publisher.join().expect("the publisher doesn't panic"));
    assert_eq!(published as u64, log.tail());
    let mut late = shard.join().expect("the shard doesn't panic");
    let begun = late.position;
    let mut early = Place::new(0, 0);
    let all = early.read_on(&*log);
    assert_eq!(late.read_on(&*log), all[begun as usize..]);
}

/// One thread publishes two messages, for which the log grows, and reads them. Another publishes one.
fn the_slots_grow(log: impl Log) {
    let log = Arc::new(log);
    let publisher = thread::spawn({
        let log = Arc::clone(&log);
        move || log.publish(Note("late"))
    });
    let mut published = [Note("a"), Note("b")].map(|note| log.publish(note)).into_iter().filter(|done| *done).count();
    let mut place = Place::new(0, 0);
    let mut read = Vec::new();
    while let Some(note) = log.take(&mut place) {
        read.push(note);
    }
    published += usize::from(publisher.join().expect("the publisher doesn't panic"));
    read.extend(place.read_on(&*log));
    assert_eq!(read.len(), published);
}

/// A publisher that doesn't know of the second reader looks for capacity, while another finds the only slot read by the
/// first reader.
fn a_slot_is_used_again(log: impl Log) {
    let log = Arc::new(log);
    let publisher = thread::spawn({
        let log = Arc::clone(&log);
        move || log.publish(Note("late"))
    });
    let mut late = Place::new(1, log.add_reader());
    let mut early = Place::new(0, 0);
    let mut published = usize::from(log.publish(Note("a")));
    let mut read = Vec::new();
    read.extend(log.take(&mut early));
    published += usize::from(log.publish(Note("b")));
    published += usize::from(publisher.join().expect("the publisher doesn't panic"));
    assert_eq!(published as u64, log.tail());
    let begun = late.position as usize;
    read.extend(early.read_on(&*log));
    assert_eq!(late.read_on(&*log), read[begun..], "{UNREAD}");
}

#[test]
fn a_reader_that_is_added_misses_nothing() {
    holds_narrowly(|| a_reader_is_added(Production::new(GROWS)));
}

#[test]
fn a_publisher_follows_a_log_that_has_grown() {
    holds(|| the_slots_grow(Production::new(GROWS)));
}

#[test]
fn no_slot_is_written_again_before_a_reader_that_was_added_has_read_it() {
    holds(|| a_slot_is_used_again(Production::new(ONE_SLOT)));
}

#[test]
fn the_sketch_holds_unbroken() {
    holds_narrowly(|| a_reader_is_added(Sketch::new(GROWS, Breakage::None)));
    holds(|| the_slots_grow(Sketch::new(GROWS, Breakage::None)));
    holds(|| a_slot_is_used_again(Sketch::new(ONE_SLOT, Breakage::None)));
}

#[test]
fn broken_a_number_of_readers_beside_the_tail_makes_too_few_copies() {
    must_fail(Weaken::Nothing, HOLE, || a_reader_is_added(Sketch::new(GROWS, Breakage::ReadersBeside)));
}

#[test]
fn broken_a_ring_that_is_kept_after_a_failed_claim_is_the_wrong_one() {
    must_fail(Weaken::Nothing, LOST, || the_slots_grow(Sketch::new(GROWS, Breakage::KeepsItsRing)));
}

#[test]
fn broken_space_that_is_shared_with_new_readers_overwrites_what_they_have_not_read() {
    must_fail(Weaken::Nothing, UNREAD, || a_slot_is_used_again(Sketch::new(ONE_SLOT, Breakage::SharesTheSpace)));
}

/// Two publishers make the log grow while its reader sleeps and wakes, then the log is sealed.
fn the_log_grows_over_a_sleeping_shard() {
    let port = port_of(GROWS);
    let shard = thread::spawn({
        let (port, mut reader, mut watch) = (Arc::clone(&port), reader(&port), Watch::default());
        move || {
            run(&port, &mut reader, &mut watch, Sleeping::Right, |watch| watch.read.len() == 2);
        }
    });
    port.log.publish(&Audience::All, Note("a")).expect("the log has capacity");
    port.log.publish(&Audience::All, Note("b")).expect("the log has capacity, or gets it");
    shard.join().expect("the shard doesn't panic");
}

#[test]
fn a_shard_is_woken_for_an_entry_in_a_ring_that_it_has_not_seen() {
    holds(the_log_grows_over_a_sleeping_shard);
}

#[test]
fn broken_without_fences_the_shard_sleeps_on_a_ring_that_it_has_not_seen() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, the_log_grows_over_a_sleeping_shard);
}

/// A shard is added and begins at its position on a thread of its own, as an added shard does. It sleeps until the
/// entry is there.
#[test]
fn a_shard_that_is_added_is_woken() {
    holds(|| {
        let signal = Arc::new(Signal::new());
        let log = Arc::new(BroadcastLog::new(GROWS, [Arc::new(Signal::new())]));
        log.prepare_reader(1, Arc::clone(&signal));
        let publisher = thread::spawn({
            let log = Arc::clone(&log);
            move || log.publish(&Audience::All, Note("a")).is_ok()
        });
        let from = log.add_readers().expect("the log is open and has one reader");
        let shard = thread::spawn({
            let log = Arc::clone(&log);
            move || {
                let mut cursor = Cursor::new(1);
                block_on(|cx| {
                    signal.rise();
                    if log.take(&mut cursor, from).is_some() {
                        return Poll::Ready(());
                    }
                    if signal.sleeps_unless(cx.waker(), || log.is_filled(&cursor, from)) {
                        return Poll::Pending;
                    }
                    cx.waker().wake_by_ref();
                    Poll::Pending
                });
            }
        });
        log.publish(&Audience::All, Note("b")).expect("the log has capacity, or gets it");
        publisher.join().expect("the publisher doesn't panic");
        shard.join().expect("the shard doesn't panic");
    });
}

/// What the models need of a set of bits.
trait Set: Send + Sync + 'static {
    fn set(&self, i: usize);
    fn take(&self) -> u64;
}

impl Set for Bits {
    fn set(&self, i: usize) {
        self.set(i);
    }

    fn take(&self) -> u64 {
        let mut taken = 0;
        self.take(2, |i| taken |= 1 << i);
        taken
    }
}

/// Bits whose piece each sender makes if it finds none. The last one's stays.
struct MadeTwice {
    made: AtomicU64,
    pieces: [AtomicU64; 2],
}

impl Set for MadeTwice {
    fn set(&self, i: usize) {
        if self.made.load(Ordering::Acquire) == 0 {
            self.made.store(i as u64 + 1, Ordering::Release);
        }
        let piece = self.made.load(Ordering::Acquire) - 1;
        self.pieces[piece as usize].fetch_or(1 << i, Ordering::AcqRel);
    }

    fn take(&self) -> u64 {
        match self.made.load(Ordering::Acquire) {
            0 => 0,
            made => self.pieces[made as usize - 1].swap(0, Ordering::AcqRel),
        }
    }
}

const FORGOTTEN: &str = "a bit that was set isn't taken";

/// Two senders add the first numbers while the shard takes what there is.
fn two_senders_make_a_piece(bits: impl Set) {
    let bits = Arc::new(bits);
    let senders = [0, 1].map(|i| {
        let bits = Arc::clone(&bits);
        thread::spawn(move || bits.set(i))
    });
    let mut taken = bits.take();
    for sender in senders {
        sender.join().expect("a sender doesn't panic");
    }
    taken |= bits.take();
    assert_eq!(taken, 0b11, "{FORGOTTEN}");
}

#[test]
fn senders_that_make_a_piece_of_the_bits_at_once_are_both_found() {
    holds(|| two_senders_make_a_piece(Bits::new(2)));
}

#[test]
fn broken_a_piece_that_replaces_another_forgets_its_bits() {
    must_fail(Weaken::Nothing, FORGOTTEN, || {
        two_senders_make_a_piece(MadeTwice { made: AtomicU64::new(0), pieces: [AtomicU64::new(0), AtomicU64::new(0)] });
    });
}
