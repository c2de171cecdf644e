//! Stand-in for `crossbeam::queue::ArrayQueue`.

use std::cmp;
use std::fmt;

use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::hidden::Hidden;

/// A bounded queue. The pop of an element acquires what the element's push released. The counters order nothing.
pub(crate) struct ArrayQueue<T> {
    /// The number of pushes that have claimed a place.
    tail: AtomicUsize,
    /// The number of elements that have been popped.
    head: AtomicUsize,
    /// For each place, one more than the position of the push that filled it last.
    filled: Box<[AtomicUsize]>,
    inner: Hidden<Inner<T>>,
}

/// The newest values, from which an attempt starts. The atomics decide whether the attempt succeeds.
struct Inner<T> {
    tail: usize,
    head: usize,
    items: Vec<Option<T>>,
}

impl<T> ArrayQueue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "the original requires it too");
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
            // Relaxed: a push that isn't ordered after a pop may still find the queue full.
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
            // A swap, so that it is ordered after the push of the previous lap.
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
                // Another pop has taken the element.
                cmp::Ordering::Greater => {}
                cmp::Ordering::Less => {
                    // Relaxed: a pop that isn't ordered after a push may still find the queue empty.
                    if self.tail.load(Relaxed) <= head {
                        return None;
                    }
                    // A push has claimed the place and hasn't filled it yet. A later place may hold an element whose
                    // push has returned, so the queue isn't empty. Wait, as the original does.
                    loom::thread::yield_now();
                }
            }
        }
    }

    /// Whether a pop would return `None`.
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
