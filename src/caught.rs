//! Calls to code of messages, sinks and rooms, which may panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

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
