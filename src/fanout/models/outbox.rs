//! Models of the outbox: every accepted message is delivered or counted, and no end goes unnoticed.

use std::sync::Arc;

use loom::thread;

use super::order::{Serving, Viewer};
use super::{Note, Sleeping, Watch, port, position, reader, run, slot};
use crate::contract::{EndReason, Ending};
use crate::fanout::log::Position;
use crate::fanout::outbox::drain::{Admitted, Drain};
use crate::fanout::shard::reader::Horizon;
use crate::sync::kit::{SLEEPS_FOR_EVER, Weaken, holds, must_fail};
use crate::sync::{ArrayQueue, AtomicU8, AtomicU64, Ordering, fence};

/// A sender, a thread that ends the participant, and a shard that delivers until it learns of the end.
fn send_and_end() {
    let port = port(1);
    let viewer = Viewer::admitted(&port, 1);
    let shard = thread::spawn({
        let (port, mut reader, mut shard) = (Arc::clone(&port), reader(&port), Serving::new(&viewer, &port));
        move || {
            let mut reason = None;
            run(&port, &mut reader, &mut shard, Sleeping::Right, |shard| {
                reason = shard.ended;
                reason.is_some()
            });
            shard.member.retire(&mut shard.retained, reason.expect("it ran until there was one"));
        }
    });
    let ender = thread::spawn({
        let viewer = viewer.clone();
        move || assert_eq!(viewer.outbox.end(EndReason::Disconnected), Ending::ByThis)
    });
    let accepted = viewer.outbox.try_send(Note("direct")).is_ok();
    ender.join().expect("the ending thread doesn't panic");
    shard.join().expect("the shard doesn't panic");
    assert_accounted(&viewer, accepted);
}

/// A sender, and a shard that ends the participant itself. Broken unless the shard ends the participant before it
/// drains the queue.
fn send_and_fault(ends_first: bool) {
    let port = port(1);
    let viewer = Viewer::admitted(&port, 1);
    let shard = thread::spawn({
        let mut shard = Serving::new(&viewer, &port);
        let viewer = viewer.clone();
        move || {
            if ends_first {
                assert_eq!(viewer.outbox.end(EndReason::Overflow), Ending::ByThis);
            }
            shard.member.retire(&mut shard.retained, EndReason::Overflow);
            viewer.outbox.end(EndReason::Overflow);
        }
    });
    let accepted = viewer.outbox.try_send(Note("direct")).is_ok();
    shard.join().expect("the shard doesn't panic");
    assert_accounted(&viewer, accepted);
}

fn assert_accounted(viewer: &Viewer, accepted: bool) {
    let account = viewer.outbox.account();
    assert_eq!(account.offered, 1);
    assert_eq!(account.waiting(), 0, "{LOST}: {account:?}");
    assert_eq!(account.delivered, viewer.delivered().len() as u64);
    assert_eq!(account.dropped.closed == 0, accepted);
}

const LOST: &str = "a message was neither delivered nor counted";

#[test]
fn what_is_accepted_is_delivered_or_counted() {
    holds(send_and_end);
}

#[test]
fn what_is_accepted_is_counted_when_the_shard_ends_it() {
    holds(|| send_and_fault(true));
}

#[test]
fn broken_draining_before_the_end_loses_what_comes_in_between() {
    must_fail(Weaken::Nothing, LOST, || send_and_fault(false));
}

/// One message may wait. Two are sent while the shard delivers. A sender that finds capacity in the bound finds a free
/// slot in the queue.
fn send_two() {
    let port = port(1);
    let viewer = Viewer::admitted(&port, 1);
    viewer.send("first");
    let shard = thread::spawn({
        let (port, mut reader, mut shard) = (Arc::clone(&port), reader(&port), Serving::new(&viewer, &port));
        move || {
            shard.member.collect_mail();
            reader.read(&Horizon::at(&port.log, position(0)), Position::END, &mut shard);
            shard.visit(reader.position());
        }
    });
    let accepted = viewer.outbox.try_send(Note("second")).is_ok();
    shard.join().expect("the shard doesn't panic");
    assert!(viewer.delivered().contains(&Note("first")));
    assert_eq!(viewer.outbox.account().offered, 1 + u64::from(accepted));
}

#[test]
fn what_the_bound_lets_in_fits_into_the_queue() {
    holds(send_two);
}

#[test]
fn broken_room_given_back_relaxed_finds_no_free_slot() {
    must_fail(Weaken::Release, "the last queue has a slot for each message", send_two);
}

/// The state and the queue of an outbox, and nothing else. In the outbox both sides also set the mail bit, and two
/// read-modify-writes of one word order them even without the fences. Here only the fences order them.
struct Sketch {
    gone: AtomicU8,
    queue: ArrayQueue<Note>,
    counted: AtomicU64,
    /// Whether the sender looks at the state again after its push.
    looks_again: bool,
}

impl Sketch {
    fn new(looks_again: bool) -> Self {
        Self { gone: AtomicU8::new(0), queue: ArrayQueue::new(1), counted: AtomicU64::new(0), looks_again }
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire) == 1
    }

    fn send(&self, note: Note) -> bool {
        if self.is_gone() {
            return false;
        }
        assert_eq!(self.queue.push(note), Ok(()));
        fence(Ordering::SeqCst);
        if self.looks_again && self.is_gone() {
            self.drain();
        }
        true
    }

    fn tear_down(&self) {
        self.gone.swap(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.drain();
    }

    fn drain(&self) {
        while self.queue.pop().is_some() {
            self.counted.fetch_add(1, Ordering::Release);
        }
    }
}

fn send_and_tear_down(looks_again: bool) {
    let sketch = Arc::new(Sketch::new(looks_again));
    let teardown = thread::spawn({
        let sketch = Arc::clone(&sketch);
        move || sketch.tear_down()
    });
    let accepted = sketch.send(Note("direct"));
    teardown.join().expect("the teardown doesn't panic");
    assert_eq!(sketch.counted.load(Ordering::Acquire), u64::from(accepted), "{LOST}");
}

#[test]
fn push_fence_look_and_gone_fence_drain_meet() {
    holds(|| send_and_tear_down(true));
}

#[test]
fn broken_a_sender_that_does_not_look_again_after_its_push_loses_it() {
    must_fail(Weaken::Nothing, LOST, || send_and_tear_down(false));
}

#[test]
fn broken_without_fences_a_push_and_a_teardown_miss_each_other() {
    must_fail(Weaken::Fences, LOST, || send_and_tear_down(true));
}

/// An instance ends while its shard admits it. The shard learns of the end at admission or by the mail bit.
fn end_at_admission() {
    let port = port(1);
    let viewer = Viewer::new(&port, 1);
    let shard = thread::spawn({
        let (port, mut reader, viewer) = (Arc::clone(&port), reader(&port), viewer.clone());
        move || {
            if Drain::new(viewer.clone()).admit(slot()) == Admitted::Ended {
                return;
            }
            run(&port, &mut reader, &mut Watch::default(), Sleeping::Right, |watch| watch.mail > 0);
            assert_eq!(viewer.outbox.end_reason(), Some(EndReason::Refused));
        }
    });
    assert_eq!(viewer.outbox.end(EndReason::Refused), Ending::ByThis);
    shard.join().expect("the shard doesn't panic");
}

#[test]
fn an_end_at_admission_is_noticed() {
    holds(end_at_admission);
}

#[test]
fn broken_without_fences_an_end_at_admission_goes_unnoticed() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, end_at_admission);
}

/// Of two threads that end an instance, one is told that it did.
#[test]
fn an_instance_ends_once() {
    holds(|| {
        let outbox = Viewer::new(&port(1), 1).outbox;
        let other = thread::spawn({
            let outbox = Arc::clone(&outbox);
            move || outbox.end(EndReason::Disconnected)
        });
        let live = outbox.go_live();
        let mine = outbox.end(EndReason::Overflow);
        let theirs = other.join().expect("the ending thread doesn't panic");
        assert_ne!(mine, theirs, "one of the two ends it");
        assert!(live.is_ok() || theirs == Ending::ByThis);
    });
}
