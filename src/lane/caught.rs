//! Code of messages, sinks and rooms, which may panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `work` comes to; `None` if it panics. What the panic carries is dropped in here as well: that is code of others
/// too.
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
