//! Stands in for `crossbeam::queue::ArrayQueue`.

use std::cmp;
use std::fmt;

use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::Hidden;

/// A bounded queue: each element carries to whom it goes what its push released, and the counters carry nothing.
pub(crate) struct ArrayQueue<T> {
    /// How many pushes have claimed a place.
    tail: AtomicUsize,
    /// How many elements have been popped.
    head: AtomicUsize,
    /// Per place, one more than the position of the push that filled it last.
    filled: Box<[AtomicUsize]>,
    inner: Hidden<Inner<T>>,
}

/// The newest values: where an attempt starts. The atomics decide whether it succeeds.
struct Inner<T> {
    tail: usize,
    head: usize,
    items: Vec<Option<T>>,
}

impl<T> ArrayQueue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "as the original");
        Self {
            tail: AtomicUsize::new(0),
            head: AtomicUsize::new(0),
            filled: (0..capacity).map(|_| AtomicUsize::new(0)).collect(),
            inner: Hidden::new(Inner { tail: 0, head: 0, items: (0..capacity).map(|_| None).collect() }),
        }
    }

    pub(crate) fn push(&self, value: T) -> Result<(), T> {
        loop {
            let tail = self.inner.get().tail;
            // Relaxed: who pushes without having learned of a pop may be told that the queue is full.
            if tail.saturating_sub(self.head.load(Relaxed)) >= self.filled.len() {
                return Err(value);
            }
            if self.tail.compare_exchange(tail, tail + 1, Relaxed, Relaxed).is_err() {
                continue;
            }
            let place = tail % self.filled.len();
            let mut inner = self.inner.get();
            inner.tail = tail + 1;
            inner.items[place] = Some(value);
            drop(inner);
            // A swap, so that it is ordered behind the push of the lap before.
            self.filled[place].swap(tail + 1, Release);
            return Ok(());
        }
    }

    pub(crate) fn pop(&self) -> Option<T> {
        loop {
            let head = self.inner.get().head;
            let place = head % self.filled.len();
            match self.filled[place].load(Acquire).cmp(&(head + 1)) {
                cmp::Ordering::Equal => {
                    if self.head.compare_exchange(head, head + 1, Relaxed, Relaxed).is_ok() {
                        let mut inner = self.inner.get();
                        inner.head = head + 1;
                        return inner.items[place].take();
                    }
                }
                // Somebody else has popped it.
                cmp::Ordering::Greater => {}
                cmp::Ordering::Less => {
                    // Relaxed: who pops without having learned of a push may find the queue empty.
                    if self.tail.load(Relaxed) <= head {
                        return None;
                    }
                    // A push has claimed the place and is about to fill it. Behind it there may be an element whose
                    // push is over, so the queue isn't empty: as the original, wait.
                    loom::thread::yield_now();
                }
            }
        }
    }

    /// Whether a pop would find nothing.
    pub(crate) fn is_empty(&self) -> bool {
        let head = self.inner.get().head;
        self.filled[head % self.filled.len()].load(Acquire) <= head && self.tail.load(Relaxed) <= head
    }
}

impl<T> fmt::Debug for ArrayQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArrayQueue").finish_non_exhaustive()
    }
}
