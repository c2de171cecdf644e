//! The atomics and the fence of the models, with a switch that removes orderings from the code under test.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::atomic::Ordering::Relaxed;

use loom::sync::atomic::Ordering;

/// The ordering that is removed from the code under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only models weaken anything"))]
pub(crate) enum Weaken {
    /// No ordering is removed.
    Nothing,
    /// Fences do nothing.
    Fences,
    /// The claim of a position in the log is relaxed.
    Claim,
    /// The release of capacity in a participant's bound is relaxed.
    Release,
    /// The decrement of a count is relaxed.
    Fall,
}

thread_local! {
    // All threads of a model are coroutines of one OS thread. The models of other tests run on other OS threads.
    static WEAKENED: Cell<Weaken> = const { Cell::new(Weaken::Nothing) };
}

impl Weaken {
    /// Removes the ordering until the result is dropped.
    #[cfg(test)]
    pub(crate) fn apply(self) -> Restore {
        WEAKENED.set(self);
        Restore
    }

    fn is_applied(self) -> bool {
        WEAKENED.get() == self
    }
}

/// Restores the ordering that [`Weaken::apply`] removed.
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

/// loom's `AtomicU64`, with the operations that [`Weaken`] weakens replaced. Only the claim uses
/// `compare_exchange_weak`, and only the bound uses `fetch_sub`.
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

/// loom's `AtomicUsize`, with a replaced `fetch_sub`. [`Weaken`] weakens the subtraction. Destructors call it, so it
/// must also work while a failed model unwinds, when loom's state is gone.
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

/// A flag that some threads store and others swap.
///
/// loom doesn't place a swap directly after the value it read. A later store, by a thread that hasn't seen the swap,
/// would be unordered with the swap, and a third thread could read the swap's value after the store's. Here a store is
/// a swap, so that a flag has the single modification order that the language promises. A swap also passes on what the
/// swap before it released, which a store doesn't. A swap is therefore relaxed, whatever ordering the caller asked for:
/// the models show that nothing depends on it.
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

/// A number that some threads store and others swap. A store is a swap, and a swap is relaxed, for the reasons given at
/// [`AtomicBool`].
#[derive(Debug)]
pub(crate) struct AtomicWord(loom::sync::atomic::AtomicU64);

impl AtomicWord {
    pub(crate) fn new(value: u64) -> Self {
        Self(loom::sync::atomic::AtomicU64::new(value))
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        self.0.swap(value, order);
    }

    pub(crate) fn swap(&self, value: u64, _: Ordering) -> u64 {
        self.0.swap(value, Relaxed)
    }
}

impl Deref for AtomicWord {
    type Target = loom::sync::atomic::AtomicU64;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
