//! The data of a stand-in, which loom doesn't see.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Data that loom doesn't see. The mutex is never contended, because loom switches threads only at its own operations.
#[derive(Debug, Default)]
pub(super) struct Hidden<T>(Mutex<T>);

impl<T> Hidden<T> {
    pub(super) fn new(data: T) -> Self {
        Self(Mutex::new(data))
    }

    /// Locks the data. The caller must not do any loom operation while it holds the guard.
    pub(super) fn get(&self) -> MutexGuard<'_, T> {
        // A failing model unwinds every thread. Nothing reads the data after that, so poisoning is ignored.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
