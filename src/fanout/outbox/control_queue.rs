//! The control queue: the direct messages that wait for one participant's shard to take them.
//!
//! The queue grows in steps, as a chain of bounded queues. The first message creates a queue of [`FEW`] slots. Whenever
//! the newest queue is full, one with [`GROWTH`] times as many slots follows, up to as many as may wait. So the memory
//! is proportional to how many messages have waited at once, and a participant that never got a direct message holds
//! none. None of the queues is freed while the participant lives. Promises, the same as those of a single queue:
//! - If one push happens before another, [`drain`](ControlQueue::drain) hands over the first before the second.
//! - A push finds a free slot if no more messages wait than the limit.
//!
//! # The order of the queues
//! A push goes to the newest queue that it sees. So nothing in an older queue was pushed after (in the sense of
//! happens-before) something in a newer one. A drain takes a message out of a queue, then empties all older queues *by
//! the same rule*, and hands over what it found there before the message that it holds: everything that was pushed
//! before the held message is in the older queues by then. In the other order, a message could reach an older queue
//! after that queue was emptied, and its sender could then push another one to a newer queue: the later message would
//! overtake the earlier one.
//!
//! It isn't enough to hold a message of the newest queue and then to empty the others from the oldest on. A sender that
//! knows only the first queue pushes there after it has been emptied, then learns of the second queue and pushes there
//! next: the message in the second queue comes out first. So each queue of the chain is emptied with one of its
//! messages held back.

use crate::fanout::log::Position;
use crate::sync::{ArrayQueue, OnceBox};

/// Slots of the first queue. The loom models use one.
pub(in crate::fanout) const FEW: usize = if cfg!(lanecast_loom) { 1 } else { 16 };

/// How many times as many slots a queue has as the one before it. With 4, fewer than 5⅓ times as many slots are
/// allocated as messages have waited at once (beyond the first queue), and eleven queues reach the largest limit.
const GROWTH: usize = if cfg!(lanecast_loom) { 1 } else { 4 };

/// How many queues grow; the one after them has as many slots as messages may wait. Ten are enough for the largest
/// limit; the loom models use two.
const GROWING: u32 = if cfg!(lanecast_loom) { 2 } else { 10 };

const FREE: &str = "the last queue has a slot for each message the limit lets wait";

/// A direct message, and the log's tail when it was sent.
#[derive(Debug)]
pub(in crate::fanout) struct Direct<M> {
    pub(in crate::fanout) stamp: Position,
    pub(in crate::fanout) bytes: usize,
    pub(in crate::fanout) message: M,
}

/// A queue of direct messages that grows as a chain of bounded queues.
#[derive(Debug)]
pub(in crate::fanout) struct ControlQueue<M> {
    limit: usize,
    first: OnceBox<ArrayQueue<Direct<M>>>,
    second: OnceBox<Link<M>>,
}

/// A queue of the chain, from the second on, and the link to the next.
#[derive(Debug)]
struct Link<M> {
    queue: ArrayQueue<Direct<M>>,
    next: OnceBox<Self>,
}

impl<M: Send> ControlQueue<M> {
    /// Creates a queue in which no more than `limit` messages will wait.
    pub(in crate::fanout) fn new(limit: u32) -> Self {
        Self { limit: limit as usize, first: OnceBox::new(), second: OnceBox::new() }
    }

    #[inline]
    pub(in crate::fanout) fn push(&self, direct: Direct<M>) {
        let (newest, ..) = self.newest();
        if let Err(back) = newest.push(direct) {
            self.grow(back);
        }
    }

    /// Pushes, and creates the next queue if the newest is full.
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
            // Another thread may create the next queue at the same time. The message goes to the newest queue, which
            // may be yet another one by then.
            next.get_or_init(|| Box::new(Link { queue: ArrayQueue::new(self.slots(step + 1)), next: OnceBox::new() }));
        }
    }

    /// The newest queue that this thread sees, the place for the one after it, and how many queues come before it.
    fn newest(&self) -> (&ArrayQueue<Direct<M>>, &OnceBox<Link<M>>, u32) {
        let first = self.first.get_or_init(|| Box::new(ArrayQueue::new(self.slots(0))));
        let (mut newest, mut next, mut step): (&ArrayQueue<_>, _, _) = (first, &self.second, 0);
        while let Some(newer) = next.get() {
            (newest, next) = (&newer.queue, &newer.next);
            step += 1;
        }
        (newest, next, step)
    }

    /// Slots of the queue that `step` others come before.
    fn slots(&self, step: u32) -> usize {
        if step < GROWING { self.limit.min(FEW * GROWTH.pow(step)) } else { self.limit }
    }

    /// Hands everything in the queue to `each`, oldest first.
    pub(in crate::fanout) fn drain(&self, mut each: impl FnMut(Direct<M>)) {
        if let Some(first) = self.first.get() {
            Drain { queue: first, older: None }.run(&self.second, &mut each);
        }
    }
}

/// A queue that is being drained, together with all older ones.
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
            // Checking is cheaper than a `pop` that finds nothing.
            if !older.queue.is_empty() {
                return older.empty(each);
            }
            next = older.older;
        }
    }
}
