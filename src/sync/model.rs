//! What the model checker is given in place of the real atomics and containers.
//!
//! # What is promised by whom
//! loom runs a closure in every interleaving, up to a bound on preemptions, and lets every load return every value that
//! the C++ memory model allows. It sees only its own types. A container is therefore replaced by a stand-in, which
//! keeps its data where loom doesn't look (loom switches threads at its own operations only, so the `std` mutex around
//! the data is never contended and orders nothing) and says with loom's atomics what becomes visible to whom. A
//! stand-in has no ordering that its original doesn't promise:
//!
//! | type | what the original's documentation promises | what the stand-in does |
//! |---|---|---|
//! | [`ArrayQueue`] | first in, first out; bounded; `pop` is `None` only when the queue is empty | who pops an element acquires what its push released, and nothing of other pushes; a full or empty answer may be stale |
//! | [`ArcSwap`] | every operation holds a SeqCst read-modify-write | less: load acquires, compare-and-swap is AcqRel on this one place |
//! | [`SkipSet`] | inserting and popping from any thread; each element is popped once | who pops an element acquires what its insert released; an insert that didn't happen before the pop may be missed |
//! | [`DashMap`] | a reader-writer lock over each part of the map | loom's reader-writer lock, one for each key as far as they go; what a guard has let go is unordered |
//! | [`OnceBox`] | the first to initialise wins, the others get its value | compare-exchange (AcqRel), loads acquire |
//! | [`Notify`] | `notify_waiters` wakes every wait that was begun before | one relaxed read-modify-write each; what was done before the call becomes visible by the wake-up alone |
//! | [`AtomicWaker`] | `register` acquires what earlier calls of `wake` released, a later `wake` wakes | one atomic step each: `register` acquires, `wake` releases |
//!
//! A model on top of them shows that *our* algorithm holds if the originals keep those promises. It doesn't check the
//! originals. One thing is stronger than promised: loom's lock also orders a reader after an earlier reader.
//!
//! # Broken variants
//! A model proves something only if it fails when what it guards is taken away. [`Weaken`] takes it away below the code
//! under test, which stays as it is: fences that do nothing, a claim that orders nothing.

mod map;
mod notify;
mod once;
mod queue;
mod set;
mod swap;
mod waker;
mod weaken;

#[cfg(test)]
pub(crate) mod kit;

pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU32, Ordering};

pub(crate) use self::map::{DashMap, Entry};
pub(crate) use self::notify::Notify;
pub(crate) use self::once::OnceBox;
pub(crate) use self::queue::ArrayQueue;
pub(crate) use self::set::SkipSet;
pub(crate) use self::swap::ArcSwap;
pub(crate) use self::waker::AtomicWaker;
pub(crate) use self::weaken::{AtomicBool, AtomicU64, AtomicUsize, fence};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Data that loom doesn't see: never contended, for loom switches threads only at its own operations.
#[derive(Debug, Default)]
struct Hidden<T>(Mutex<T>);

impl<T> Hidden<T> {
    fn new(data: T) -> Self {
        Self(Mutex::new(data))
    }

    /// The caller does no operation of loom's while it holds this.
    fn get(&self) -> MutexGuard<'_, T> {
        // A model that fails unwinds every thread; what is left behind is looked at by nobody.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
