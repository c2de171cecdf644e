//! What one thread sends to a participant, or has sent before another, comes out in that order, whichever of the two
//! queues it went through.

use std::sync::Arc;

use loom::thread;

use super::Note;
use crate::lane::control_queue::{ControlQueue, FEW};
use crate::lane::outbox::Direct;
use crate::sync::kit::{Weaken, caught, holds};
use crate::sync::{ArrayQueue, AtomicBool, AtomicU64, Ordering};

/// What the model asks of a queue: the production one and the broken ones.
trait Queue: Send + Sync + 'static {
    fn push(&self, name: &'static str);
    fn drain(&self, into: &mut Vec<&'static str>);
}

impl Queue for ControlQueue<Note> {
    fn push(&self, name: &'static str) {
        self.push(Direct { stamp: 0, bytes: 0, message: Note(name) });
    }

    fn drain(&self, into: &mut Vec<&'static str>) {
        self.drain(|direct| into.push(direct.message.0));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Breakage {
    /// Empties the first queue before the second.
    FewFirst,
    /// Pushes to the first queue whenever that has room.
    BackToFew,
    /// None: shows that the sketch fails for nothing but what is broken in it.
    None,
}

/// Two queues as the production ones, reduced to what can break.
struct Sketch {
    few: ArrayQueue<&'static str>,
    all: ArrayQueue<&'static str>,
    overflown: AtomicBool,
    breakage: Breakage,
}

impl Sketch {
    fn new(breakage: Breakage) -> Self {
        let (few, all) = (ArrayQueue::new(FEW), ArrayQueue::new(LIMIT as usize));
        Self { few, all, overflown: AtomicBool::new(false), breakage }
    }
}

impl Queue for Sketch {
    fn push(&self, name: &'static str) {
        let to_all = self.breakage != Breakage::BackToFew && self.overflown.load(Ordering::Acquire);
        if !to_all && self.few.push(name).is_ok() {
            return;
        }
        self.overflown.store(true, Ordering::Release);
        self.all.push(name).expect("it has room for all");
    }

    fn drain(&self, into: &mut Vec<&'static str>) {
        if self.breakage == Breakage::FewFirst {
            into.extend(std::iter::from_fn(|| self.few.pop()));
        }
        while let Some(held) = self.all.pop() {
            if self.breakage != Breakage::FewFirst {
                into.extend(std::iter::from_fn(|| self.few.pop()));
            }
            into.push(held);
        }
        into.extend(std::iter::from_fn(|| self.few.pop()));
    }
}

const LIMIT: u32 = 3;

const INVERTED: &str = "what was sent before came out after";

fn assert_order(drained: &[&str], names: &[&str]) {
    let places: Vec<_> = names.iter().map(|name| drained.iter().position(|drained| drained == name)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{INVERTED}: {drained:?}");
}

/// Empties the queue while `push` is at work, and once more when that is done.
fn drain_while<Q: Queue>(queue: &Arc<Q>, drains: usize, push: impl FnOnce()) -> Vec<&'static str> {
    let shard = thread::spawn({
        let queue = Arc::clone(queue);
        move || {
            let mut drained = Vec::new();
            (0..drains).for_each(|_| queue.drain(&mut drained));
            drained
        }
    });
    push();
    let mut drained = shard.join().expect("the shard doesn't panic");
    queue.drain(&mut drained);
    drained
}

/// One sender, more messages than the first queue holds.
fn one_sender<Q: Queue>(queue: Q) {
    let queue = Arc::new(queue);
    let names = ["first", "second", "third"];
    let drained = drain_while(&queue, 2, || names.iter().for_each(|name| queue.push(name)));
    assert_order(&drained, &names);
}

/// One thread sends and tells another, which sends once it has been told.
fn handed_over<Q: Queue>(queue: Q) {
    let queue = Arc::new(queue);
    let told = Arc::new(AtomicU64::new(0));
    let drained = drain_while(&queue, 1, || {
        let second = thread::spawn({
            let (told, queue) = (Arc::clone(&told), Arc::clone(&queue));
            move || queue.push(if told.load(Ordering::Acquire) == 1 { "told" } else { "early" })
        });
        queue.push("first");
        queue.push("second");
        told.store(1, Ordering::Release);
        second.join().expect("the sender doesn't panic");
    });
    assert_order(&drained, &["first", "second"]);
    if drained.contains(&"told") {
        assert_order(&drained, &["second", "told"]);
    }
}

#[test]
fn a_senders_messages_keep_their_order_through_both_queues() {
    holds(|| one_sender(ControlQueue::new(LIMIT)));
}

#[test]
fn messages_handed_over_keep_their_order_through_both_queues() {
    holds(|| handed_over(ControlQueue::new(LIMIT)));
}

#[test]
fn the_sketch_holds_unbroken() {
    holds(|| one_sender(Sketch::new(Breakage::None)));
}

#[test]
fn broken_emptying_the_first_queue_first_inverts() {
    caught(Weaken::Nothing, INVERTED, || one_sender(Sketch::new(Breakage::FewFirst)));
}

#[test]
fn broken_going_back_to_the_first_queue_inverts() {
    caught(Weaken::Nothing, INVERTED, || one_sender(Sketch::new(Breakage::BackToFew)));
}
