//! Stand-in for `arc_swap::ArcSwap`.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{AcqRel, Acquire};

use super::hidden::Hidden;

/// An `Arc` that can be swapped. All former values are kept, since a load may return an outdated one.
pub(crate) struct ArcSwap<T> {
    /// The index of the current value in `held`.
    index: AtomicUsize,
    held: Hidden<Vec<Arc<T>>>,
}

/// The value that a load or a compare-and-swap found.
pub(crate) struct Guard<T>(Arc<T>);

impl<T> ArcSwap<T> {
    pub(crate) fn new(value: Arc<T>) -> Self {
        Self { index: AtomicUsize::new(0), held: Hidden::new(vec![value]) }
    }

    pub(crate) fn load(&self) -> Guard<T> {
        Guard(self.load_full())
    }

    pub(crate) fn load_full(&self) -> Arc<T> {
        self.at(self.index.load(Acquire))
    }

    /// Stores `new` unconditionally. Only broken variants use it; the code under test doesn't.
    #[cfg(test)]
    #[allow(clippy::needless_pass_by_value, reason = "the signature of the original")]
    pub(crate) fn swap(&self, new: Arc<T>) -> Arc<T> {
        let new = self.keep(&new);
        self.at(self.index.swap(new, AcqRel))
    }

    /// Replaces the value with `new` if it is `current`. Returns the value it found.
    #[allow(clippy::needless_pass_by_value, reason = "the signature of the original")]
    pub(crate) fn compare_and_swap(&self, current: &Arc<T>, new: Arc<T>) -> Guard<T> {
        let (current, new) = (self.keep(current), self.keep(&new));
        let found = match self.index.compare_exchange(current, new, AcqRel, Acquire) {
            Ok(found) | Err(found) => found,
        };
        Guard(self.at(found))
    }

    fn at(&self, index: usize) -> Arc<T> {
        Arc::clone(&self.held.get()[index])
    }

    /// Keeps `value` and returns its index. The same allocation always has the same index.
    fn keep(&self, value: &Arc<T>) -> usize {
        let mut held = self.held.get();
        let known = held.iter().position(|held| Arc::ptr_eq(held, value));
        known.unwrap_or_else(|| {
            held.push(Arc::clone(value));
            held.len() - 1
        })
    }
}

impl<T> Deref for Guard<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.0
    }
}

impl<T> fmt::Debug for ArcSwap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArcSwap").finish_non_exhaustive()
    }
}
