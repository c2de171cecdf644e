//! Models of the log: the claim, the seal, and the wait for capacity.
//!
//! Every message whose publish returned `Ok` is below the final tail and is read once, in the order of the sequence.
//! `Full` and `Closed` leave no trace and give the message back.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use loom::thread;

use super::{Note, dimensions, port, position, read_first};
use crate::contract::topic::Audience;
use crate::fanout::log::publisher::Publisher;
use crate::fanout::log::{BroadcastLog, Cursor, Position, Refused};
use crate::sync::kit::{SLEEPS_FOR_EVER, Weaken, block_on, holds, holds_narrowly, must_fail};
use crate::sync::signal::Signal;
use crate::sync::{ArrayQueue, AtomicBool, AtomicU64, Ordering, fence};

/// How many entries come before this position.
fn count(position: Position) -> u64 {
    (0..8).find(|count| super::position(*count) == position).expect("a model's log is short")
}

/// The operations of a log that the models use. The production type and the sketch have them.
trait Log: Send + Sync + 'static {
    fn publish(&self, note: Note) -> Result<(), Refused<Note>>;
    fn is_filled(&self, cursor: &Cursor, position: u64) -> bool;
    fn take(&self, cursor: &mut Cursor, position: u64) -> Option<Note>;
    fn advance(&self, cursor: &Cursor, position: u64);
    /// Seals the log and returns the final tail.
    fn seal(&self) -> u64;
    /// The final tail; `None` until the log is sealed.
    fn end(&self) -> Option<u64>;
    fn signal(&self) -> &Signal;
}

struct Production {
    log: BroadcastLog<Note>,
    signal: Arc<Signal>,
}

impl Production {
    fn new(capacity: usize) -> Self {
        let signal = Arc::new(Signal::new());
        Self { log: BroadcastLog::new(dimensions(capacity), [Arc::clone(&signal)]), signal }
    }
}

impl Log for Production {
    fn publish(&self, note: Note) -> Result<(), Refused<Note>> {
        self.log.publish(&Audience::All, note).map(drop)
    }

    fn is_filled(&self, cursor: &Cursor, position: u64) -> bool {
        self.log.is_filled(cursor, super::position(position))
    }

    fn take(&self, cursor: &mut Cursor, position: u64) -> Option<Note> {
        self.log.take(cursor, super::position(position)).map(|taken| taken.message.expect("a message"))
    }

    fn advance(&self, cursor: &Cursor, position: u64) {
        self.log.advance(cursor, super::position(position));
    }

    fn seal(&self) -> u64 {
        count(self.log.seal())
    }

    fn end(&self) -> Option<u64> {
        let tail = self.log.tail();
        tail.is_sealed().then(|| count(tail.position()))
    }

    fn signal(&self) -> &Signal {
        &self.signal
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Breakage {
    /// Takes a position first and checks the capacity second.
    ClaimsByAdding,
    /// Keeps the seal in a flag beside the tail, instead of in the tail.
    SealsBeside,
    /// Nothing is broken. Shows that the sketch fails only because of its breakage.
    None,
}

/// A log like the production one, reduced to the parts that can break.
struct Sketch {
    breakage: Breakage,
    tail: AtomicU64,
    sealed: AtomicBool,
    head: AtomicU64,
    slots: Box<[(AtomicU64, ArrayQueue<Note>)]>,
    signal: Signal,
}

const SEALED: u64 = 1 << 63;

impl Sketch {
    fn new(capacity: usize, breakage: Breakage) -> Self {
        Self {
            breakage,
            tail: AtomicU64::new(0),
            sealed: AtomicBool::new(false),
            head: AtomicU64::new(0),
            slots: (0..capacity).map(|_| (AtomicU64::new(u64::MAX), ArrayQueue::new(1))).collect(),
            signal: Signal::new(),
        }
    }

    fn has_room(&self, position: u64) -> bool {
        position < self.head.load(Ordering::Acquire) + self.slots.len() as u64
    }

    fn claim(&self, note: Note) -> Result<u64, Refused<Note>> {
        let mut tail = self.tail.load(Ordering::Acquire);
        loop {
            let sealed = match self.breakage {
                Breakage::SealsBeside => self.sealed.load(Ordering::Acquire),
                Breakage::ClaimsByAdding | Breakage::None => tail & SEALED != 0,
            };
            if sealed {
                return Err(Refused::Closed(note));
            }
            if self.breakage == Breakage::ClaimsByAdding {
                tail = self.tail.fetch_add(1, Ordering::AcqRel);
            }
            if !self.has_room(tail & !SEALED) {
                return Err(Refused::Full(note));
            }
            if self.breakage == Breakage::ClaimsByAdding {
                return Ok(tail);
            }
            match self.tail.compare_exchange_weak(tail, tail + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(tail),
                Err(now) => tail = now,
            }
        }
    }

    fn slot(&self, position: u64) -> &(AtomicU64, ArrayQueue<Note>) {
        &self.slots[position as usize % self.slots.len()]
    }
}

impl Log for Sketch {
    fn publish(&self, note: Note) -> Result<(), Refused<Note>> {
        let position = self.claim(note)?;
        let (filled, copies) = self.slot(position);
        copies.push(note).expect("the shard has read what was here");
        filled.store(position, Ordering::Release);
        self.signal.wake();
        Ok(())
    }

    fn is_filled(&self, _: &Cursor, position: u64) -> bool {
        self.slot(position).0.load(Ordering::Acquire) == position
    }

    fn take(&self, cursor: &mut Cursor, position: u64) -> Option<Note> {
        self.is_filled(cursor, position).then(|| self.slot(position).1.pop().expect("it is filled"))
    }

    fn advance(&self, _: &Cursor, position: u64) {
        self.head.store(position, Ordering::Release);
    }

    fn seal(&self) -> u64 {
        let tail = if self.breakage == Breakage::SealsBeside {
            self.sealed.store(true, Ordering::Release);
            fence(Ordering::SeqCst);
            self.tail.load(Ordering::Acquire)
        } else {
            self.tail.fetch_or(SEALED, Ordering::AcqRel)
        };
        self.signal.wake();
        tail & !SEALED
    }

    fn end(&self) -> Option<u64> {
        let tail = self.tail.load(Ordering::Acquire);
        let sealed = if self.breakage == Breakage::SealsBeside {
            self.sealed.load(Ordering::Acquire)
        } else {
            tail & SEALED != 0
        };
        sealed.then_some(tail & !SEALED)
    }

    fn signal(&self) -> &Signal {
        &self.signal
    }
}

/// Reads in order up to the end that the seal fixes. Sleeps whenever the next slot isn't filled.
fn read_to_the_end(log: &impl Log) -> Vec<Note> {
    let (mut cursor, mut position, mut read) = (Cursor::new(0), 0, Vec::new());
    block_on(|cx| {
        log.signal().rise();
        loop {
            let end = log.end();
            while end.is_none_or(|end| position < end)
                && let Some(note) = log.take(&mut cursor, position)
            {
                read.push(note);
                position += 1;
                log.advance(&cursor, position);
            }
            if end == Some(position) {
                return Poll::Ready(());
            }
            log.signal().doze(cx.waker());
            if !log.is_filled(&cursor, position) && log.end() != Some(position) {
                return Poll::Pending;
            }
            log.signal().rise();
        }
    });
    read
}

/// Publishes each note and returns those that were accepted. Asserts that the others come back.
fn publish_all(log: &impl Log, notes: &[Note]) -> Vec<Note> {
    let accepted = |note: &&Note| match log.publish(**note) {
        Ok(()) => true,
        Err(Refused::Full(back) | Refused::Closed(back) | Refused::TooLarge(back)) => {
            assert_eq!(back, **note);
            false
        }
    };
    notes.iter().filter(accepted).copied().collect()
}

/// When the log is sealed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seal {
    /// While a publisher may still be at work.
    Amid,
    /// When both publishers are done.
    After,
}

/// One thread publishes, another publishes and seals, a third reads to the end.
fn publish_and_seal(log: impl Log, first: &'static [Note], second: &'static [Note], seal: Seal) {
    let log = Arc::new(log);
    let reader = thread::spawn({
        let log = Arc::clone(&log);
        move || read_to_the_end(&*log)
    });
    let publisher = thread::spawn({
        let log = Arc::clone(&log);
        move || publish_all(&*log, first)
    });
    let mut accepted = publish_all(&*log, second);
    let mut join = Some(|| publisher.join().expect("the publisher doesn't panic"));
    if seal == Seal::After {
        accepted.extend(join.take().map(|join| join()).into_iter().flatten());
    }
    let end = log.seal();
    assert_eq!(log.publish(Note("late")), Err(Refused::Closed(Note("late"))));
    accepted.extend(join.take().map(|join| join()).into_iter().flatten());
    let mut read = reader.join().expect("the reader doesn't panic");
    assert_eq!(read.len() as u64, end, "{HOLE}");
    read.sort_unstable();
    accepted.sort_unstable();
    assert_eq!(read, accepted, "{LOST}");
}

const HOLE: &str = "the reader hasn't read exactly the claimed positions";
const LOST: &str = "the reader hasn't read exactly the accepted messages";

#[test]
fn what_is_accepted_is_read_and_nothing_else() {
    holds_narrowly(|| publish_and_seal(Production::new(2), &[Note("a")], &[Note("b")], Seal::Amid));
}

#[test]
fn a_full_log_says_so_and_leaves_no_hole() {
    holds_narrowly(|| publish_and_seal(Production::new(1), &[Note("a")], &[Note("b")], Seal::Amid));
}

#[test]
fn no_slot_is_written_again_unread() {
    holds(|| publish_and_seal(Production::new(1), &[Note("a"), Note("b")], &[], Seal::Amid));
}

#[test]
fn the_sketch_holds_unbroken() {
    holds_narrowly(|| publish_and_seal(Sketch::new(1, Breakage::None), &[Note("a")], &[Note("b")], Seal::Amid));
    holds_narrowly(|| publish_and_seal(Sketch::new(2, Breakage::None), &[Note("a")], &[Note("b")], Seal::Amid));
}

#[test]
fn broken_a_claim_by_adding_leaves_a_hole() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || {
        publish_and_seal(Sketch::new(1, Breakage::ClaimsByAdding), &[Note("a")], &[Note("b")], Seal::After);
    });
}

#[test]
fn broken_a_seal_beside_the_tail_accepts_what_nobody_reads() {
    must_fail(Weaken::Nothing, LOST, || {
        publish_and_seal(Sketch::new(2, Breakage::SealsBeside), &[Note("a")], &[], Seal::Amid);
    });
}

/// Publishes, and waits while the log is full.
pub(super) fn publish_and_wait(publisher: &Publisher<Note>, note: Note) -> Result<(), Refused<Note>> {
    let mut publishing = pin!(publisher.publish(&Audience::All, note));
    block_on(|cx| publishing.as_mut().poll(cx))
}

/// A wait for capacity that doesn't look again after it has declared that it waits.
fn publish_and_wait_broken(log: &BroadcastLog<Note>, note: Note) {
    block_on(|cx| {
        if log.publish(&Audience::All, note).is_ok() {
            return Poll::Ready(());
        }
        log.space_freed.doze(cx.waker());
        Poll::Pending
    });
}

/// The log is full and its reader is awake, so only the publisher can sleep for ever.
fn wait_for_room(publish: impl FnOnce(&Publisher<Note>, &BroadcastLog<Note>) + Send + 'static) {
    let port = port(1);
    port.log.publish(&Audience::All, Note("a")).expect("the log has capacity");
    let waiting = thread::spawn({
        let log = Arc::clone(&port.log);
        move || publish(&Publisher::new(Arc::clone(&log), u64::MAX), &log)
    });
    read_first(&port, 1);
    waiting.join().expect("the publisher doesn't panic");
    assert!(port.log.is_filled(&Cursor::new(0), position(1)));
}

#[test]
fn a_publisher_that_waits_for_capacity_is_woken() {
    holds(|| wait_for_room(|publisher, _| assert_eq!(publish_and_wait(publisher, Note("b")), Ok(()))));
}

#[test]
fn broken_without_fences_a_publisher_that_waits_for_capacity_sleeps_for_ever() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || {
        wait_for_room(|publisher, _| assert_eq!(publish_and_wait(publisher, Note("b")), Ok(())));
    });
}

#[test]
fn broken_a_publisher_that_does_not_look_again_for_capacity_sleeps_for_ever() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || wait_for_room(|_, log| publish_and_wait_broken(log, Note("b"))));
}

/// Two publishers wait for capacity in turn. Both are served, also if the second gets its turn only when the first is
/// done.
#[test]
fn two_publishers_that_wait_are_both_served() {
    holds(|| {
        let port = port(2);
        for name in ["a", "b"] {
            port.log.publish(&Audience::All, Note(name)).expect("the log has capacity");
        }
        let publisher = Arc::new(Publisher::new(Arc::clone(&port.log), u64::MAX));
        let waiting = ["c", "d"].map(|name| {
            let publisher = Arc::clone(&publisher);
            thread::spawn(move || publish_and_wait(&publisher, Note(name)))
        });
        read_first(&port, 2);
        for waiting in waiting {
            assert_eq!(waiting.join().expect("a publisher doesn't panic"), Ok(()));
        }
    });
}

const OVERTAKEN: &str = "a publisher that waits was overtaken by one that knew of it";

/// A publish that doesn't wait. The production code and the broken one have this type.
type TryPublish = fn(&Publisher<Note>, &BroadcastLog<Note>, Note) -> Result<(), Refused<Note>>;

/// The log is full and a publisher waits. Another publisher knows of it, and tries to publish while the shard frees
/// capacity.
fn publish_past_who_waits(try_publish: TryPublish) {
    let port = port(1);
    port.log.publish(&Audience::All, Note("a")).expect("the log has capacity");
    let publisher = Arc::new(Publisher::new(Arc::clone(&port.log), u64::MAX));
    let waits = Arc::new(AtomicU64::new(0));
    let waiting = thread::spawn({
        let (publisher, waits) = (Arc::clone(&publisher), Arc::clone(&waits));
        move || {
            let mut publishing = pin!(publisher.publish(&Audience::All, Note("b")));
            block_on(|cx| {
                let published = publishing.as_mut().poll(cx);
                waits.store(1, Ordering::Release);
                published
            })
        }
    });
    let other = thread::spawn({
        let port = Arc::clone(&port);
        move || {
            if waits.load(Ordering::Acquire) == 1 {
                let tried = try_publish(&publisher, &port.log, Note("c"));
                assert_eq!(tried, Err(Refused::Full(Note("c"))), "{OVERTAKEN}");
            }
        }
    });
    read_first(&port, 1);
    other.join().expect("the other publisher doesn't panic");
    assert_eq!(waiting.join().expect("the publisher doesn't panic"), Ok(()));
}

#[test]
fn a_publisher_that_waits_is_not_overtaken() {
    holds(|| publish_past_who_waits(|publisher, _, note| publisher.try_publish(&Audience::All, note)));
}

#[test]
fn broken_a_publish_that_ignores_a_publisher_that_waits_overtakes() {
    must_fail(Weaken::Nothing, OVERTAKEN, || {
        publish_past_who_waits(|_, log, note| log.publish(&Audience::All, note).map(drop));
    });
}

/// No shard reads. The seal wakes the publisher that waits, which gets its message back.
#[test]
fn the_seal_gives_a_publisher_that_waits_its_message_back() {
    holds(seal_under_who_waits);
}

#[test]
fn broken_without_fences_the_seal_leaves_a_publisher_that_waits_asleep() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, seal_under_who_waits);
}

fn seal_under_who_waits() {
    let port = port(1);
    port.log.publish(&Audience::All, Note("a")).expect("the log has capacity");
    let waiting = thread::spawn({
        let publisher = Publisher::new(Arc::clone(&port.log), u64::MAX);
        move || publish_and_wait(&publisher, Note("b"))
    });
    assert_eq!(port.log.seal(), position(1));
    assert_eq!(waiting.join().expect("the publisher doesn't panic"), Err(Refused::Closed(Note("b"))));
}
