//! The direct messages that wait for one participant's shard to take them.
//!
//! The queue grows in steps, as a chain of bounded queues: the first message makes one of [`FEW`] slots, and whenever
//! the newest is full, one of [`GROWTH`] times as many follows, up to as many as may wait. So the memory is in
//! proportion to what has waited at once, and an idle participant holds none. None of the queues is freed while the
//! participant lives. Promises, as those of one queue:
//! - If one push happens before another, [`drain`](ControlQueue::drain) hands over the first before the second.
//! - A push finds a free slot if no more wait than the limit.
//!
//! # The order of the queues
//! A push goes to the newest queue that it sees. So nothing in an older queue was pushed after (in the sense of
//! happens-before) something in a newer one. A drain takes a message out of a queue, then empties all older ones *by the
//! same rule*, and hands over what it found there before the message that it holds: what was pushed before that one is
//! in there by then. The other way round, a message that came to an older queue after that was emptied would be
//! overtaken by one that its sender pushed to a newer queue thereafter.
//!
//! It isn't enough to hold a message of the newest queue, and then to empty the others from the oldest on: a sender that
//! knows only the first queue pushes there when that has been emptied, learns of the second and pushes there next, and
//! that message comes out first. So each queue of the chain is emptied with one of its messages held back.

use super::outbox::Direct;
use crate::sync::{ArrayQueue, OnceBox};

/// Slots of the first queue. The models make do with one.
pub(super) const FEW: usize = if cfg!(lanecast_loom) { 1 } else { 16 };

/// How many times as many slots as the one before a queue has. With 4, no more than five times as many slots are
/// allocated as messages have waited at once, and eleven queues reach the largest limit.
const GROWTH: usize = if cfg!(lanecast_loom) { 1 } else { 4 };

/// Queues that grow; the one after them has as many slots as may wait. More than the largest limit needs; the models
/// make do with two.
const GROWING: u32 = if cfg!(lanecast_loom) { 2 } else { 10 };

const FREE: &str = "the last queue has a slot for each message the limit lets wait";

/// See the [module](self).
#[derive(Debug)]
pub(super) struct ControlQueue<M> {
    limit: usize,
    first: OnceBox<ArrayQueue<Direct<M>>>,
    second: OnceBox<Link<M>>,
}

/// A queue of the chain, from the second on, and the one after it.
#[derive(Debug)]
struct Link<M> {
    queue: ArrayQueue<Direct<M>>,
    next: OnceBox<Self>,
}

impl<M: Send> ControlQueue<M> {
    /// A queue in which no more than `limit` will wait.
    pub(super) fn new(limit: u32) -> Self {
        Self { limit: limit as usize, first: OnceBox::new(), second: OnceBox::new() }
    }

    #[inline]
    pub(super) fn push(&self, direct: Direct<M>) {
        let (newest, ..) = self.newest();
        if let Err(back) = newest.push(direct) {
            self.grow(back);
        }
    }

    /// Pushes, and makes the next queue if the newest is full.
    #[cold]
    fn grow(&self, direct: Direct<M>) {
        let mut direct = direct;
        loop {
            let (newest, next, step) = self.newest();
            match newest.push(direct) {
                Ok(()) => return,
                Err(back) => direct = back,
            }
            assert!(self.slots(step) < self.limit, "{FREE}");
            // Whoever else makes it at the same time: the message goes to the newest, which may be another by then.
            next.get_or_init(|| Box::new(Link { queue: ArrayQueue::new(self.slots(step + 1)), next: OnceBox::new() }));
        }
    }

    /// The newest queue that this thread sees, where the one after it would be, and how many come before it.
    fn newest(&self) -> (&ArrayQueue<Direct<M>>, &OnceBox<Link<M>>, u32) {
        let first = self.first.get_or_init(|| Box::new(ArrayQueue::new(self.slots(0))));
        let (mut newest, mut next, mut step): (&ArrayQueue<_>, _, _) = (first, &self.second, 0);
        while let Some(newer) = next.get() {
            (newest, next) = (&newer.queue, &newer.next);
            step += 1;
        }
        (newest, next, step)
    }

    /// How many slots the queue has that so many others come before.
    fn slots(&self, step: u32) -> usize {
        if step < GROWING { self.limit.min(FEW * GROWTH.pow(step)) } else { self.limit }
    }

    /// Hands everything in it to `each`, oldest first.
    pub(super) fn drain(&self, mut each: impl FnMut(Direct<M>)) {
        if let Some(first) = self.first.get() {
            Drain { queue: first, older: None }.run(&self.second, &mut each);
        }
    }
}

/// A queue that is being drained, with all that are older.
struct Drain<'a, M> {
    queue: &'a ArrayQueue<Direct<M>>,
    older: Option<&'a Self>,
}

impl<M: Send> Drain<'_, M> {
    /// Drains the chain, of which `next` is the part that is newer than this.
    fn run(&self, next: &OnceBox<Link<M>>, each: &mut impl FnMut(Direct<M>)) {
        match next.get() {
            Some(newer) => Drain { queue: &newer.queue, older: Some(self) }.run(&newer.next, each),
            None => self.empty(each),
        }
    }

    fn empty(&self, each: &mut impl FnMut(Direct<M>)) {
        while let Some(held) = self.queue.pop() {
            self.empty_older(each);
            each(held);
        }
        self.empty_older(each);
    }

    fn empty_older(&self, each: &mut impl FnMut(Direct<M>)) {
        let mut next = self.older;
        while let Some(older) = next {
            // A look is cheaper than a pop in vain.
            if !older.queue.is_empty() {
                return older.empty(each);
            }
            next = older.older;
        }
    }
}
