//! Models of the control queue: if one message to a participant is sent before another, by one thread or by two, they
//! come out in that order, whichever of the queues they went through.

use std::sync::Arc;

use loom::thread;

use super::Note;
use crate::fanout::log::Position;
use crate::fanout::outbox::control_queue::{ControlQueue, Direct, FEW};
use crate::sync::kit::{Weaken, holds, holds_narrowly, must_fail};
use crate::sync::{ArrayQueue, AtomicBool, AtomicU64, Ordering};

/// The operations of a queue that the models use. The production type and the sketch have them.
trait Queue: Send + Sync + 'static {
    fn push(&self, name: &'static str);
    fn drain(&self, into: &mut Vec<&'static str>);
}

impl Queue for ControlQueue<Note> {
    fn push(&self, name: &'static str) {
        self.push(Direct { stamp: Position::default(), bytes: 0, message: Note(name) });
    }

    fn drain(&self, into: &mut Vec<&'static str>) {
        self.drain(|direct| into.push(direct.message.0));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Breakage {
    /// Empties the queues from the oldest to the newest.
    OldestFirst,
    /// Holds back a message of the newest queue only, and empties the others from the oldest on. That is right for two
    /// queues.
    HoldsTheNewestAlone,
    /// Pushes to the first queue whenever that has capacity.
    BackToTheFirst,
    /// Nothing is broken. Shows that the sketch fails only because of its breakage.
    None,
}

/// A chain of three queues like the production one, reduced to the parts that can break.
struct Sketch {
    queues: [ArrayQueue<&'static str>; 3],
    /// Whether the second and the third queue are in use.
    used: [AtomicBool; 2],
    breakage: Breakage,
}

impl Sketch {
    fn new(breakage: Breakage) -> Self {
        let queues = [FEW, FEW, LIMIT as usize].map(ArrayQueue::new);
        Self { queues, used: [AtomicBool::new(false), AtomicBool::new(false)], breakage }
    }

    /// Empties a queue and all older ones, in the correct order.
    fn empty(&self, at: usize, into: &mut Vec<&'static str>) {
        while let Some(held) = self.queues[at].pop() {
            self.empty_older(at, into);
            into.push(held);
        }
        self.empty_older(at, into);
    }

    fn empty_older(&self, at: usize, into: &mut Vec<&'static str>) {
        if at > 0 {
            self.empty(at - 1, into);
        }
    }

    fn empty_from_the_oldest(queues: &[ArrayQueue<&'static str>], into: &mut Vec<&'static str>) {
        queues.iter().for_each(|queue| into.extend(std::iter::from_fn(|| queue.pop())));
    }
}

impl Queue for Sketch {
    fn push(&self, name: &'static str) {
        let mut at = 0;
        loop {
            while self.breakage != Breakage::BackToTheFirst && at < 2 && self.used[at].load(Ordering::Acquire) {
                at += 1;
            }
            if self.queues[at].push(name).is_ok() {
                return;
            }
            self.used[at].store(true, Ordering::Release);
            at += 1;
        }
    }

    fn drain(&self, into: &mut Vec<&'static str>) {
        let [older @ .., newest] = &self.queues;
        match self.breakage {
            Breakage::OldestFirst => Self::empty_from_the_oldest(&self.queues, into),
            Breakage::HoldsTheNewestAlone => {
                while let Some(held) = newest.pop() {
                    Self::empty_from_the_oldest(older, into);
                    into.push(held);
                }
                self.empty(1, into);
            }
            Breakage::BackToTheFirst | Breakage::None => self.empty(2, into),
        }
    }
}

/// The most messages that a model sends.
const LIMIT: u32 = 5;

const INVERTED: &str = "a message that was sent before another came out after it";

fn assert_order(drained: &[&str], names: &[&str]) {
    let places: Vec<_> = names.iter().map(|name| drained.iter().position(|drained| drained == name)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{INVERTED}: {drained:?}");
}

/// Drains the queue `drains` times while `push` runs, and once more when `push` has returned.
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

/// One sender, which sends more messages than the first queue holds.
fn one_sender<Q: Queue>(queue: Q) {
    let queue = Arc::new(queue);
    let names = ["first", "second", "third"];
    let drained = drain_while(&queue, 2, || names.iter().for_each(|name| queue.push(name)));
    assert_order(&drained, &names);
}

/// One thread sends and tells another, which then sends.
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

/// Two senders. The first has created all queues when the shard starts. At each of its pushes, the second may know of
/// one, two or all of them.
fn two_senders<Q: Queue>(queue: Q) {
    let queue = Arc::new(queue);
    let second = thread::spawn({
        let queue = Arc::clone(&queue);
        move || ["before", "after"].iter().for_each(|name| queue.push(name))
    });
    ["first", "second", "third"].iter().for_each(|name| queue.push(name));
    let drained = drain_while(&queue, 1, || second.join().expect("the sender doesn't panic"));
    assert_order(&drained, &["before", "after"]);
    assert_order(&drained, &["first", "second", "third"]);
}

#[test]
fn a_senders_messages_keep_their_order_through_all_queues() {
    holds(|| one_sender(ControlQueue::new(LIMIT)));
}

#[test]
fn messages_handed_over_keep_their_order_through_all_queues() {
    holds(|| handed_over(ControlQueue::new(LIMIT)));
}

#[test]
fn two_senders_messages_keep_their_order_through_three_queues() {
    holds_narrowly(|| two_senders(ControlQueue::new(LIMIT)));
}

#[test]
fn the_sketch_holds_unbroken() {
    holds(|| one_sender(Sketch::new(Breakage::None)));
    holds_narrowly(|| two_senders(Sketch::new(Breakage::None)));
}

#[test]
fn broken_emptying_the_oldest_queue_first_inverts() {
    must_fail(Weaken::Nothing, INVERTED, || one_sender(Sketch::new(Breakage::OldestFirst)));
}

#[test]
fn broken_holding_a_message_of_the_newest_queue_alone_inverts() {
    must_fail(Weaken::Nothing, INVERTED, || two_senders(Sketch::new(Breakage::HoldsTheNewestAlone)));
}

#[test]
fn broken_going_back_to_the_first_queue_inverts() {
    must_fail(Weaken::Nothing, INVERTED, || one_sender(Sketch::new(Breakage::BackToTheFirst)));
}
