//! Counts tasks that wait.

use crate::sync::{AtomicUsize, Ordering};

/// Counts a waiting task for as long as this lives.
///
/// The changes are relaxed: each user says what orders the count.
pub(crate) struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    pub(crate) fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
