//! Waiting until a participant has free capacity again.
//!
//! Any number of tasks may wait. A task that frees capacity wakes them all, and each checks again.
//!
//! # Orderings
//! A waiting task counts itself, registers, and checks the capacity. A task that frees capacity does so first, and then
//! checks whether any task is counted. A `SeqCst` fence stands between the two steps on either side, as in
//! [`signal`](crate::sync::signal): at least one side sees the other.

use crate::sync::{AtomicUsize, Notify, Ordering, fence};

/// Wakes the tasks that wait for a participant's free capacity.
#[derive(Debug)]
pub(crate) struct CapacityNotify {
    waiting: AtomicUsize,
    made: Notify,
}

impl CapacityNotify {
    pub(crate) fn new() -> Self {
        Self { waiting: AtomicUsize::new(0), made: Notify::new() }
    }

    /// Wakes the waiting tasks, which check again. Costs a fence and a load while no task waits.
    pub(crate) fn note(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.made.notify_waiters();
        }
    }

    /// Waits until `is_there` returns true, that is until there is capacity. Safe to cancel.
    pub(crate) async fn until(&self, is_there: impl Fn() -> bool) {
        if is_there() {
            return;
        }
        let _counted = Counted::new(&self.waiting);
        loop {
            let mut made = std::pin::pin!(self.made.notified());
            made.as_mut().enable();
            fence(Ordering::SeqCst);
            if is_there() {
                return;
            }
            made.await;
        }
    }
}

/// Counts a waiting task for as long as it waits.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        // Relaxed: ordered by the fence that follows.
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
