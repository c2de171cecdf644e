//! Models of the wait for capacity: a task that waits for capacity in a participant's bound is woken when there is
//! some.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use loom::thread;

use super::order::{Serving, Viewer};
use super::{port, position, reader};
use crate::contract::{EndReason, Ending};
use crate::fanout::log::Position;
use crate::fanout::shard::reader::Horizon;
use crate::sync::capacity::CapacityNotify;
use crate::sync::kit::{SLEEPS_FOR_EVER, Weaken, block_on, holds, must_fail};
use crate::sync::{AtomicU64, AtomicUsize, Notify, Ordering, fence};

/// Waits for `future` as a task does.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    block_on(|cx| future.as_mut().poll(cx))
}

/// The operations that the models use. The production type and the sketch have them.
trait Waits: Send + Sync + 'static {
    fn note(&self);
    fn until(&self, is_there: impl Fn() -> bool);
}

impl Waits for CapacityNotify {
    fn note(&self) {
        self.note();
    }

    fn until(&self, is_there: impl Fn() -> bool) {
        wait(self.until(is_there));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Breakage {
    /// Doesn't look again after it is counted.
    LooksOnce,
    /// Begins to wait for a notification only after it has looked.
    LooksFirst,
    /// Nothing is broken. Shows that the sketch fails only because of its breakage.
    None,
}

/// A type like the production one, reduced to the parts that can break.
struct Sketch {
    waiting: AtomicUsize,
    made: Notify,
    breakage: Breakage,
}

impl Sketch {
    fn new(breakage: Breakage) -> Self {
        Self { waiting: AtomicUsize::new(0), made: Notify::new(), breakage }
    }
}

impl Waits for Sketch {
    fn note(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.made.notify_waiters();
        }
    }

    fn until(&self, is_there: impl Fn() -> bool) {
        if is_there() {
            return;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut made = self.made.notified();
        fence(Ordering::SeqCst);
        if self.breakage == Breakage::LooksOnce || !is_there() {
            if self.breakage == Breakage::LooksFirst {
                made = self.made.notified();
            }
            wait(made);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One thread waits for capacity, and another frees it. Only `capacity` orders the two.
fn one_waits(capacity: impl Waits) {
    let (capacity, free) = (Arc::new(capacity), Arc::new(AtomicU64::new(0)));
    let waiting = thread::spawn({
        let (capacity, free) = (Arc::clone(&capacity), Arc::clone(&free));
        move || capacity.until(|| free.load(Ordering::Relaxed) == 1)
    });
    free.store(1, Ordering::Relaxed);
    capacity.note();
    waiting.join().expect("the thread that waits doesn't panic");
}

/// Two threads wait for capacity. A third frees the capacity for both, in two steps.
fn two_wait(capacity: impl Waits) {
    let (capacity, free) = (Arc::new(capacity), Arc::new(AtomicU64::new(0)));
    let waiting = [1, 2].map(|enough| {
        let (capacity, free) = (Arc::clone(&capacity), Arc::clone(&free));
        thread::spawn(move || capacity.until(|| free.load(Ordering::Relaxed) >= enough))
    });
    for _ in 0..2 {
        free.fetch_add(1, Ordering::Relaxed);
        capacity.note();
    }
    for waiting in waiting {
        waiting.join().expect("a thread that waits doesn't panic");
    }
}

#[test]
fn a_wait_for_capacity_ends_when_there_is_some() {
    holds(|| one_waits(CapacityNotify::new()));
}

#[test]
fn every_wait_for_capacity_ends() {
    holds(|| two_wait(CapacityNotify::new()));
}

#[test]
fn the_sketch_holds_unbroken() {
    holds(|| one_waits(Sketch::new(Breakage::None)));
}

#[test]
fn broken_without_fences_a_wait_for_capacity_never_ends() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || one_waits(CapacityNotify::new()));
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || two_wait(CapacityNotify::new()));
}

#[test]
fn broken_without_a_second_look_a_wait_for_capacity_never_ends() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || one_waits(Sketch::new(Breakage::LooksOnce)));
}

#[test]
fn broken_a_wait_that_begins_after_the_look_never_ends() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || one_waits(Sketch::new(Breakage::LooksFirst)));
}

/// The event that ends the wait for the bound.
#[derive(Clone, Copy)]
enum Frees {
    Delivery,
    End,
}

/// A participant's bound is full. A sender waits until the shard has delivered, or until the participant ends.
fn a_sender_waits(frees: Frees) {
    let port = port(1);
    let viewer = Viewer::admitted(&port, 1);
    viewer.send("first");
    let shard = thread::spawn({
        let (port, viewer) = (Arc::clone(&port), viewer.clone());
        let (mut reader, mut shard) = (reader(&port), Serving::new(&viewer, &port));
        move || match frees {
            Frees::Delivery => {
                shard.member.collect_mail();
                reader.read(&Horizon::at(&port.log, position(0)), Position::END, &mut shard);
                shard.visit(reader.position());
            }
            Frees::End => assert_eq!(viewer.outbox.end(EndReason::Disconnected), Ending::ByThis),
        }
    });
    wait(viewer.outbox.wait_for_capacity(1));
    shard.join().expect("the shard doesn't panic");
}

#[test]
fn a_sender_waits_until_its_message_fits() {
    holds(|| a_sender_waits(Frees::Delivery));
}

#[test]
fn a_sender_waits_no_longer_than_the_participant_lives() {
    holds(|| a_sender_waits(Frees::End));
}

#[test]
fn broken_without_fences_a_sender_waits_for_ever() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || a_sender_waits(Frees::Delivery));
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || a_sender_waits(Frees::End));
}
