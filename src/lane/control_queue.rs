//! The direct messages that wait for one participant's shard to take them.
//!
//! An idle participant holds no slots, and one that gets a message now and then holds a few: the first message makes a
//! queue of [`FEW`], and only who has more waiting at once gets one for all that may wait, for good. Promises, as those
//! of one queue:
//! - If one push happens before another, [`drain`](ControlQueue::drain) hands over the first before the second.
//! - A push finds a free slot if no more wait than the limit.
//!
//! # The order of two queues
//! Once the second queue is there, a push goes there. So nothing in the first queue was pushed after (in the sense of
//! happens-before) something in the second. A drain takes a message out of the second, then empties the first, and
//! hands over what it found there before the one that it holds: what was pushed before that one is in the first by
//! then. The other way round, a message that came to the first after that was emptied would be overtaken by one that
//! its sender pushed to the second thereafter.

use super::outbox::Direct;
use crate::sync::{ArrayQueue, OnceBox};

/// Slots of the first queue. The models make do with one.
pub(super) const FEW: usize = if cfg!(lanecast_loom) { 1 } else { 16 };

const FREE: &str = "a queue has a slot for each message the limit lets wait";

/// See the [module](self).
#[derive(Debug)]
pub(super) struct ControlQueue<M> {
    limit: usize,
    few: OnceBox<ArrayQueue<Direct<M>>>,
    all: OnceBox<ArrayQueue<Direct<M>>>,
}

impl<M: Send> ControlQueue<M> {
    /// A queue in which no more than `limit` will wait.
    pub(super) fn new(limit: u32) -> Self {
        Self { limit: limit as usize, few: OnceBox::new(), all: OnceBox::new() }
    }

    pub(super) fn push(&self, direct: Direct<M>) {
        if let Some(all) = self.all.get() {
            return put(all, direct);
        }
        let few = self.few.get_or_init(|| Box::new(ArrayQueue::new(self.limit.min(FEW))));
        if let Err(direct) = few.push(direct) {
            assert!(self.limit > FEW, "{FREE}");
            put(self.all.get_or_init(|| Box::new(ArrayQueue::new(self.limit))), direct);
        }
    }

    /// Hands everything in it to `each`, oldest first.
    pub(super) fn drain(&self, mut each: impl FnMut(Direct<M>)) {
        let Some(few) = self.few.get() else { return };
        if let Some(all) = self.all.get() {
            while let Some(held) = all.pop() {
                // A look is cheaper than a pop in vain.
                while !few.is_empty()
                    && let Some(direct) = few.pop()
                {
                    each(direct);
                }
                each(held);
            }
        }
        while let Some(direct) = few.pop() {
            each(direct);
        }
    }
}

fn put<M>(all: &ArrayQueue<Direct<M>>, direct: Direct<M>) {
    assert!(all.push(direct).is_ok(), "{FREE}");
}
