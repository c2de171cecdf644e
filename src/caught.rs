//! Calls to code of messages, sinks and rooms, which may panic, and locks that such a panic may have poisoned.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Runs `work` and returns its result, or `None` if it panics. The panic's payload is dropped in here as well, because
/// its `drop` is foreign code, too.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => Some(done),
        Err(payload) => {
            if let Err(worse) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(worse);
            }
            None
        }
    }
}

/// Locks `mutex`, also after a thread that held the lock has panicked. For values that a panic leaves consistent: each
/// change is complete before code is called that may panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
