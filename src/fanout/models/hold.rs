//! Models of the gate that holds publishers while most members are behind, and of the log's bound in bytes.
//!
//! The gate agrees with the counts at rest, a member that retires takes its weight along once, and a publisher that is
//! held is woken. No more bytes stand in the log than its bound allows.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use super::log::publish_and_wait;
use super::order::Viewer;
use super::{Note, dimensions, port_on, position};
use crate::contract::Hold;
use crate::contract::topic::Audience;
use crate::fanout::clock::{Clock, SessionMs};
use crate::fanout::log::publisher::Publisher;
use crate::fanout::log::{BroadcastLog, Cursor, Dimensions};
use crate::fanout::outbox::drain::Drain;
use crate::fanout::port::Port;
use crate::sync::kit::{SLEEPS_FOR_EVER, Weaken, block_on, holds, holds_narrowly, must_fail};
use crate::sync::signal::Signal;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Publishers are held if both of two members are behind. A hold without progress is given up at the first look.
const BOTH: Hold = Hold { share_percent: 50, at_least: 2, patience: Duration::ZERO };

fn held_port(bytes: u64) -> Arc<Port<Note>> {
    port_on(dimensions(1), |log| log.with_hold(BOTH, bytes, Clock::new()))
}

/// A member that has begun, whose bound one message takes. It is heavy with one message, and light with none.
fn member(port: &Arc<Port<Note>>) -> Arc<Drain<Viewer>> {
    let drain = Drain::new(Viewer::new(port, 1));
    drain.count();
    Arc::new(drain)
}

fn take(member: &Drain<Viewer>) {
    assert!(member.reserve(1, 1).is_ok());
}

fn give_back(member: &Drain<Viewer>) {
    member.release(1, 1);
}

fn is_open(port: &Port<Note>) -> bool {
    port.log.has_space(port.log.tail())
}

/// Runs both on threads of their own.
fn race(one: impl FnOnce() + Send + 'static, other: impl FnOnce() + Send + 'static) {
    let (one, other) = (thread::spawn(one), thread::spawn(other));
    one.join().expect("the one doesn't panic");
    other.join().expect("the other doesn't panic");
}

const LATCHED: &str = "the gate says something else than the counts";
const MISCOUNTED: &str = "the counts say something else than the members";

/// Two members, of which one is heavy for good, and the operations of the model on the other one. The production types
/// and the sketch have them.
trait Crossed: Send + Sync + 'static {
    /// A message waits for the other member, which is heavy then.
    fn take(&self);
    /// The message has gone, if it was there.
    fn give_back(&self);
    /// The other member retires.
    fn retire(&self);
    /// Whether the gate is open, and how many members the counts say are heavy.
    fn gate(&self) -> (bool, i64);
}

struct Production {
    port: Arc<Port<Note>>,
    other: Arc<Drain<Viewer>>,
    _heavy: Arc<Drain<Viewer>>,
}

impl Production {
    fn new() -> Self {
        let port = held_port(u64::MAX);
        let (heavy, other) = (member(&port), member(&port));
        take(&heavy);
        Self { port, other, _heavy: heavy }
    }
}

impl Crossed for Production {
    fn take(&self) {
        take(&self.other);
    }

    fn give_back(&self) {
        if self.other.is_half_full() {
            give_back(&self.other);
        }
    }

    fn retire(&self) {
        self.other.discount();
    }

    fn gate(&self) -> (bool, i64) {
        (is_open(&self.port), self.port.log.counted().1)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Breakage {
    /// Keeps the gate in a flag beside the count.
    GatesBeside,
    /// Looks whether the member counts, and counts its weight second.
    CountsBeside,
    /// Nothing is broken. Shows that the sketch fails only because of its breakage.
    None,
}

/// The counts and the gate, reduced to the parts that can break.
struct Sketch {
    breakage: Breakage,
    /// The heavy members, and in the topmost bit the gate. The heavy member isn't counted: one more closes the gate.
    heavy: AtomicU64,
    held: AtomicBool,
    /// The message of the other member.
    taken: AtomicU64,
    /// 1: the other member counts. 2: it is heavy.
    standing: AtomicU64,
}

const CLOSED: u64 = 1 << 63;
const OFFSET: u64 = 1 << 32;

impl Sketch {
    fn new(breakage: Breakage) -> Self {
        Self {
            breakage,
            heavy: AtomicU64::new(OFFSET),
            held: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            standing: AtomicU64::new(1),
        }
    }

    fn count(&self, change: i64) {
        let judge = |word: u64| if word & !CLOSED > OFFSET { word | CLOSED } else { word & !CLOSED };
        let change = |word: u64| Some(judge(word.wrapping_add(change.cast_unsigned())));
        let before = self.heavy.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        if self.breakage == Breakage::GatesBeside {
            let after = change(before.expect("it always changes")).expect("it always changes");
            self.held.store(after & CLOSED != 0, Ordering::Release);
        }
    }

    fn weigh(&self) {
        loop {
            let heavy = self.taken.load(Ordering::Relaxed) == 1;
            let (counts, changes) = if self.breakage == Breakage::CountsBeside {
                let counts = self.standing.load(Ordering::Acquire) & 1 != 0;
                let before = self.set(heavy);
                (counts, before & 2 != 0)
            } else {
                let before = self.set(heavy);
                (before & 1 != 0, before & 2 != 0)
            };
            if counts && changes != heavy {
                self.count(if heavy { 1 } else { -1 });
            }
            if (self.taken.load(Ordering::Relaxed) == 1) == heavy {
                return;
            }
        }
    }

    fn set(&self, heavy: bool) -> u64 {
        match heavy {
            true => self.standing.fetch_or(2, Ordering::AcqRel),
            false => self.standing.fetch_and(!2, Ordering::AcqRel),
        }
    }
}

impl Crossed for Sketch {
    fn take(&self) {
        self.taken.fetch_add(1, Ordering::AcqRel);
        self.weigh();
    }

    fn give_back(&self) {
        if self.taken.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.weigh();
        }
    }

    fn retire(&self) {
        let before = self.standing.fetch_and(!1, Ordering::AcqRel);
        if before & 2 != 0 {
            self.count(-1);
        }
    }

    fn gate(&self) -> (bool, i64) {
        let word = self.heavy.load(Ordering::Acquire);
        let closed =
            if self.breakage == Breakage::GatesBeside { self.held.load(Ordering::Acquire) } else { word & CLOSED != 0 };
        (!closed, (word & !CLOSED).cast_signed() - OFFSET.cast_signed() + 1)
    }
}

/// A sender gives the other member a message while its shard delivers it, if it is there by then.
fn cross_both_ways(crossed: impl Crossed) {
    let crossed = Arc::new(crossed);
    let (sender, shard) = (Arc::clone(&crossed), Arc::clone(&crossed));
    race(move || sender.take(), move || shard.give_back());
    let (open, heavy) = crossed.gate();
    assert!((1..=2).contains(&heavy), "{MISCOUNTED}: {heavy}");
    assert_eq!(open, heavy == 1, "{LATCHED}");
    // The shard learns of the message, and delivers it.
    crossed.give_back();
    assert_eq!(crossed.gate(), (true, 1), "{LATCHED}");
}

/// A sender gives the other member a message while that retires.
fn cross_and_retire(crossed: impl Crossed) {
    let crossed = Arc::new(crossed);
    let (sender, shard) = (Arc::clone(&crossed), Arc::clone(&crossed));
    race(move || sender.take(), move || shard.retire());
    let (_, heavy) = crossed.gate();
    assert_eq!(heavy, 1, "{MISCOUNTED}");
}

#[test]
fn crossings_in_both_directions_leave_the_gate_as_the_counts_say() {
    holds(|| cross_both_ways(Production::new()));
}

#[test]
fn a_member_that_retires_takes_its_weight_along_once() {
    holds(|| cross_and_retire(Production::new()));
}

#[test]
fn the_sketch_holds_unbroken() {
    holds(|| cross_both_ways(Sketch::new(Breakage::None)));
    holds(|| cross_and_retire(Sketch::new(Breakage::None)));
}

#[test]
fn broken_a_gate_beside_the_counts_stays_closed() {
    must_fail(Weaken::Nothing, LATCHED, || cross_both_ways(Sketch::new(Breakage::GatesBeside)));
}

#[test]
fn broken_a_weight_counted_beside_the_standing_is_counted_twice() {
    must_fail(Weaken::Nothing, MISCOUNTED, || cross_and_retire(Sketch::new(Breakage::CountsBeside)));
}

/// Two shards' members become heavy and light again at the same moment.
fn two_cross() {
    let port = held_port(u64::MAX);
    let shards = [(); 2].map(|()| {
        let member = member(&port);
        thread::spawn(move || {
            take(&member);
            give_back(&member);
        })
    });
    for shard in shards {
        shard.join().expect("a shard doesn't panic");
    }
    assert_eq!(port.log.counted(), (2, 0), "{MISCOUNTED}");
    assert!(is_open(&port), "{LATCHED}");
    assert!(!port.log.hold_stats().is_held, "{MISTIMED}");
}

const MISTIMED: &str = "the hold that is timed isn't that of the gate";

#[test]
fn two_shards_that_cross_at_the_same_moment_leave_the_gate_open() {
    holds_narrowly(two_cross);
}

#[test]
fn broken_without_fences_a_hold_is_timed_that_has_ended() {
    must_fail(Weaken::Fences, MISTIMED, two_cross);
}

/// What ends a hold.
#[derive(Clone, Copy)]
enum Ends {
    Delivery,
    Retirement,
    Patience,
}

/// Publishers are held. One waits while the hold ends.
fn wait_while_held(ends: Ends) {
    let port = held_port(u64::MAX);
    let members = [member(&port), member(&port)];
    members.iter().for_each(|member| take(member));
    assert!(!is_open(&port));
    let publisher = Publisher::new(Arc::clone(&port.log), u64::MAX);
    let shard = move || match ends {
        Ends::Delivery => give_back(&members[0]),
        Ends::Retirement => members[0].discount(),
        Ends::Patience => port.log.give_up_if_stuck(SessionMs(u64::MAX)),
    };
    race(move || assert_eq!(publish_and_wait(&publisher, Note("b")), Ok(())), shard);
}

#[test]
fn the_end_of_a_hold_wakes_a_publisher_that_waits() {
    for ends in [Ends::Delivery, Ends::Retirement, Ends::Patience] {
        holds(move || wait_while_held(ends));
    }
}

#[test]
fn broken_without_fences_a_publisher_that_is_held_sleeps_for_ever() {
    for ends in [Ends::Delivery, Ends::Retirement, Ends::Patience] {
        must_fail(Weaken::Fences, SLEEPS_FOR_EVER, move || wait_while_held(ends));
    }
}

/// A log whose bound is one byte, that is one message.
const ONE_BYTE: u64 = 1;

const TOO_MANY_BYTES: &str = "more bytes stand in the log than its bound allows";

/// Which shard gives the bytes of a message back, and when.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GivesBack {
    /// As in production: the last one, after it has taken its copy.
    Last,
    /// Broken: the first one.
    First,
    /// Broken: the last one, before it takes its copy.
    Early,
}

/// The bound of a log in which one message may stand, without positions.
struct Bound {
    gives_back: GivesBack,
    standing: AtomicU64,
    left: AtomicU32,
    /// How many copies the shards have taken.
    taken: AtomicU64,
}

impl Bound {
    fn take(&self) {
        if self.gives_back == GivesBack::Early {
            self.leave(1);
        }
        // Relaxed: the bound alone orders it.
        self.taken.fetch_add(1, Ordering::Relaxed);
        match self.gives_back {
            GivesBack::Last => self.leave(1),
            GivesBack::First => self.leave(2),
            GivesBack::Early => {}
        }
    }

    fn leave(&self, gives_back: u32) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == gives_back {
            self.standing.fetch_add(1_u64.wrapping_neg(), Ordering::AcqRel);
        }
    }
}

/// Two shards take a message of one byte out of the log. The next one is published only when both have.
fn publish_within_bytes(gives_back: GivesBack) {
    let [standing, taken] = [1, 0].map(AtomicU64::new);
    let bound = Arc::new(Bound { gives_back, standing, left: AtomicU32::new(2), taken });
    let shards = [(); 2].map(|()| {
        let bound = Arc::clone(&bound);
        thread::spawn(move || bound.take())
    });
    let publisher = thread::spawn(move || {
        if bound.standing.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            assert_eq!(bound.taken.load(Ordering::Relaxed), 2, "{TOO_MANY_BYTES}");
        }
    });
    publisher.join().expect("the publisher doesn't panic");
    for shard in shards {
        shard.join().expect("a shard doesn't panic");
    }
}

#[test]
fn no_more_bytes_stand_in_the_log_than_its_bound_allows() {
    holds(|| publish_within_bytes(GivesBack::Last));
}

#[test]
fn broken_bytes_given_back_by_the_first_shard_exceed_the_bound() {
    must_fail(Weaken::Nothing, TOO_MANY_BYTES, || publish_within_bytes(GivesBack::First));
}

#[test]
fn broken_bytes_given_back_before_the_copy_is_taken_exceed_the_bound() {
    must_fail(Weaken::Nothing, TOO_MANY_BYTES, || publish_within_bytes(GivesBack::Early));
}

/// Two publishers, and two shards that read. At rest as many bytes stand in the log as its messages have.
#[test]
fn the_bytes_of_a_log_are_those_of_its_messages() {
    holds_narrowly(|| {
        let dimensions = Dimensions { first_slots: 2, capacity: 2, first_readers: 2, most_readers: 2 };
        let signals = [(); 2].map(|()| Arc::new(Signal::new()));
        let log = Arc::new(BroadcastLog::new(dimensions, signals).with_hold(BOTH, ONE_BYTE, Clock::new()));
        log.publish(&Audience::All, Note("a")).expect("the log has capacity");
        let shards = [0, 1].map(|shard| {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                let mut cursor = Cursor::new(shard);
                assert!(log.take(&mut cursor, position(0)).is_some());
                log.advance(&cursor, position(1));
            })
        });
        let publisher = thread::spawn({
            let log = Arc::clone(&log);
            move || log.publish(&Audience::All, Note("b")).is_ok()
        });
        for shard in shards {
            shard.join().expect("a shard doesn't panic");
        }
        let published = publisher.join().expect("the publisher doesn't panic");
        assert_eq!(log.has_bytes(1), !published);
    });
}

/// A publisher waits while the shard reads, and another one that doesn't wait reserves bytes for which there is no
/// slot. (The shard gives bytes back before it frees the slot.) The one that waits gets its place.
fn give_bytes_back_to_a_publisher_that_waits() {
    let port = held_port(ONE_BYTE);
    port.log.publish(&Audience::All, Note("a")).expect("the log has capacity");
    let waiting = thread::spawn({
        let publisher = Publisher::new(Arc::clone(&port.log), u64::MAX);
        move || publish_and_wait(&publisher, Note("b"))
    });
    let shard = thread::spawn({
        let port = Arc::clone(&port);
        move || {
            let mut cursor = Cursor::new(0);
            assert!(port.log.take(&mut cursor, position(0)).is_some());
            port.log.advance(&cursor, position(1));
        }
    });
    let other = thread::spawn({
        let port = Arc::clone(&port);
        move || {
            if port.log.publish(&Audience::All, Note("c")).is_ok() {
                let mut cursor = Cursor::new(0);
                port.log.take(&mut cursor, position(1)).expect("it was filled a moment ago");
                port.log.advance(&cursor, position(2));
            }
        }
    });
    shard.join().expect("the shard doesn't panic");
    other.join().expect("the other publisher doesn't panic");
    assert_eq!(waiting.join().expect("the publisher doesn't panic"), Ok(()));
}

#[test]
fn bytes_that_are_given_back_wake_a_publisher_that_waits_for_them() {
    holds_narrowly(give_bytes_back_to_a_publisher_that_waits);
}

/// A log of one byte in which a publisher takes its position and its bytes in this order.
struct Ordered {
    bytes_first: bool,
    tail: AtomicU64,
    reserved: AtomicU64,
    read: AtomicU64,
    filled: [AtomicU64; 2],
    signal: Signal,
}

impl Ordered {
    fn new(bytes_first: bool) -> Self {
        let [tail, reserved, read] = [(); 3].map(|()| AtomicU64::new(0));
        let filled = [(); 2].map(|()| AtomicU64::new(0));
        Self { bytes_first, tail, reserved, read, filled, signal: Signal::new() }
    }

    fn publish(&self) -> bool {
        let position = if self.bytes_first { None } else { Some(self.tail.fetch_add(1, Ordering::AcqRel)) };
        let fits = |reserved: u64| (reserved == self.read.load(Ordering::Acquire)).then_some(reserved + 1);
        if self.reserved.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_err() {
            return false;
        }
        let position = position.unwrap_or_else(|| self.tail.fetch_add(1, Ordering::AcqRel));
        self.filled[position as usize].store(1, Ordering::Release);
        self.signal.wake();
        true
    }
}

/// Two publishers, of which at least one succeeds. The shard reads whatever was claimed.
fn publish_in_order(bytes_first: bool) {
    let log = Arc::new(Ordered::new(bytes_first));
    let publishers = [(); 2].map(|()| {
        let log = Arc::clone(&log);
        thread::spawn(move || log.publish())
    });
    let published = publishers.map(|publisher| publisher.join().expect("a publisher doesn't panic"));
    assert!(published.contains(&true));
    let claimed = log.tail.load(Ordering::Acquire) as usize;
    block_on(|cx| {
        let is_filled = || log.filled[..claimed].iter().all(|filled| filled.load(Ordering::Acquire) == 1);
        if log.signal.sleeps_unless(cx.waker(), is_filled) {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    });
}

#[test]
fn bytes_before_the_position_leave_no_hole() {
    holds(|| publish_in_order(true));
}

#[test]
fn broken_a_position_before_the_bytes_leaves_a_hole() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || publish_in_order(false));
}
