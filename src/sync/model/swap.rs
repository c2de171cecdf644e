//! Stands in for `arc_swap::ArcSwapOption` and `arc_swap::ArcSwap`.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{AcqRel, Acquire};

use super::Hidden;

/// A place for an `Arc` or nothing. What was ever in it is kept, since a load may return what is outdated.
pub(crate) struct ArcSwapOption<T> {
    /// Which of `held` it is, counted from one; 0 is nothing.
    index: AtomicUsize,
    held: Hidden<Vec<Arc<T>>>,
}

/// What a load or a compare-and-swap found.
pub(crate) struct Guard<T>(Option<Arc<T>>);

impl<T> ArcSwapOption<T> {
    pub(crate) fn empty() -> Self {
        Self { index: AtomicUsize::new(0), held: Hidden::new(Vec::new()) }
    }

    pub(crate) fn load(&self) -> Guard<T> {
        Guard(self.load_full())
    }

    pub(crate) fn load_full(&self) -> Option<Arc<T>> {
        self.at(self.index.load(Acquire))
    }

    #[allow(clippy::needless_pass_by_value, reason = "the signature of the original")]
    pub(crate) fn swap(&self, new: Option<Arc<T>>) -> Option<Arc<T>> {
        let new = self.keep(new.as_ref());
        self.at(self.index.swap(new, AcqRel))
    }

    /// Puts `new` in the place of `current`, if that is what is there. Returns what was there.
    #[allow(clippy::needless_pass_by_value, reason = "the signature of the original")]
    pub(crate) fn compare_and_swap(&self, current: &Option<Arc<T>>, new: Option<Arc<T>>) -> Guard<T> {
        let (current, new) = (self.keep(current.as_ref()), self.keep(new.as_ref()));
        let found = match self.index.compare_exchange(current, new, AcqRel, Acquire) {
            Ok(found) | Err(found) => found,
        };
        Guard(self.at(found))
    }

    fn at(&self, index: usize) -> Option<Arc<T>> {
        index.checked_sub(1).map(|index| Arc::clone(&self.held.get()[index]))
    }

    /// The index of `value`, the same whenever it is the same allocation.
    fn keep(&self, value: Option<&Arc<T>>) -> usize {
        let Some(value) = value else { return 0 };
        let mut held = self.held.get();
        let known = held.iter().position(|held| Arc::ptr_eq(held, value));
        known.unwrap_or_else(|| {
            held.push(Arc::clone(value));
            held.len() - 1
        }) + 1
    }
}

/// A place for an `Arc`.
pub(crate) struct ArcSwap<T>(ArcSwapOption<T>);

/// What a load or a compare-and-swap found.
pub(crate) struct FullGuard<T>(Arc<T>);

const FULL: &str = "it was made full";

impl<T> ArcSwap<T> {
    pub(crate) fn new(value: Arc<T>) -> Self {
        let place = ArcSwapOption::empty();
        place.swap(Some(value));
        Self(place)
    }

    pub(crate) fn load(&self) -> FullGuard<T> {
        FullGuard(self.load_full())
    }

    pub(crate) fn load_full(&self) -> Arc<T> {
        self.0.load_full().expect(FULL)
    }

    /// For broken variants: what the code under test doesn't do.
    #[cfg(test)]
    pub(crate) fn swap(&self, new: Arc<T>) -> Arc<T> {
        self.0.swap(Some(new)).expect(FULL)
    }

    /// Puts `new` in the place of `current`, if that is what is there. Returns what was there.
    pub(crate) fn compare_and_swap(&self, current: &Arc<T>, new: Arc<T>) -> FullGuard<T> {
        let found = self.0.compare_and_swap(&Some(Arc::clone(current)), Some(new));
        FullGuard(found.clone().expect(FULL))
    }
}

impl<T> Deref for FullGuard<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.0
    }
}

impl<T> Deref for Guard<T> {
    type Target = Option<Arc<T>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T> fmt::Debug for ArcSwapOption<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArcSwapOption").finish_non_exhaustive()
    }
}
