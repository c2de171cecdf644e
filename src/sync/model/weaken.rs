//! The atomics and the fence of the models, and taking orderings away from the code under test.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::atomic::Ordering::Relaxed;

use loom::sync::atomic::Ordering;

/// What the code under test does without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only models weaken anything"))]
pub(crate) enum Weaken {
    /// Nothing: it runs as it is.
    Nothing,
    /// No fence does anything.
    Fences,
    /// The claim of a place in the log is relaxed.
    Claim,
    /// Giving back room in a participant's bound is relaxed.
    Release,
    /// The fall of a count is relaxed.
    Fall,
}

thread_local! {
    // All threads of a model are coroutines of one thread of the system; models of other tests run on other threads.
    static WEAKENED: Cell<Weaken> = const { Cell::new(Weaken::Nothing) };
}

impl Weaken {
    /// Takes it away until the result is dropped.
    #[cfg(test)]
    pub(crate) fn apply(self) -> Restore {
        WEAKENED.set(self);
        Restore
    }

    fn is_applied(self) -> bool {
        WEAKENED.get() == self
    }
}

/// Gives back what [`Weaken::apply`] took.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Restore;

#[cfg(test)]
impl Drop for Restore {
    fn drop(&mut self) {
        WEAKENED.set(Weaken::Nothing);
    }
}

pub(crate) fn fence(order: Ordering) {
    if !Weaken::Fences.is_applied() {
        loom::sync::atomic::fence(order);
    }
}

/// loom's, but for what [`Weaken`] weakens: the compare-exchange that may fail spuriously is used by the claim alone,
/// the subtraction by the bound alone.
#[derive(Debug, Default)]
pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

impl AtomicU64 {
    pub(crate) fn new(value: u64) -> Self {
        Self(loom::sync::atomic::AtomicU64::new(value))
    }

    pub(crate) fn compare_exchange_weak(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        let (success, failure) = if Weaken::Claim.is_applied() { (Relaxed, Relaxed) } else { (success, failure) };
        self.0.compare_exchange(current, new, success, failure)
    }

    pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_sub(value, if Weaken::Release.is_applied() { Relaxed } else { order })
    }
}

impl Deref for AtomicU64 {
    type Target = loom::sync::atomic::AtomicU64;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// loom's, but for the subtraction, which [`Weaken`] weakens, and which is done by destructors: also while a model that
/// failed unwinds, when loom isn't there any more.
#[derive(Debug, Default)]
pub(crate) struct AtomicUsize(loom::sync::atomic::AtomicUsize);

impl AtomicUsize {
    pub(crate) fn new(value: usize) -> Self {
        Self(loom::sync::atomic::AtomicUsize::new(value))
    }

    pub(crate) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        if std::thread::panicking() {
            return value;
        }
        self.0.fetch_sub(value, if Weaken::Fall.is_applied() { Relaxed } else { order })
    }
}

impl Deref for AtomicUsize {
    type Target = loom::sync::atomic::AtomicUsize;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// A flag that is stored by some and swapped by others.
///
/// loom doesn't know that a swap stands right behind the value it read: a store that comes later, by a thread that
/// hasn't seen the swap, would be unordered with it, and a third thread could read the swap's value after the store's.
/// Here a store is a swap, so that flags have the one order of modification that the language promises them. A swap
/// would also pass on what the one before it released, which a store doesn't; therefore a swap that was asked for is
/// relaxed, whatever was asked: the models show that nothing depends on it.
#[derive(Debug, Default)]
pub(crate) struct AtomicBool(loom::sync::atomic::AtomicBool);

impl AtomicBool {
    pub(crate) fn new(value: bool) -> Self {
        Self(loom::sync::atomic::AtomicBool::new(value))
    }

    pub(crate) fn store(&self, value: bool, order: Ordering) {
        self.0.swap(value, order);
    }

    pub(crate) fn swap(&self, value: bool, _: Ordering) -> bool {
        self.0.swap(value, Relaxed)
    }
}

impl Deref for AtomicBool {
    type Target = loom::sync::atomic::AtomicBool;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
