//! Waiting until a participant has free capacity again.
//!
//! Any number of tasks may wait. A task that frees capacity wakes them all, and each checks again.
//!
//! # Orderings
//! A waiting task counts itself, registers, and checks the capacity. A task that frees capacity does so first, and then
//! checks whether any task is counted. A `SeqCst` fence stands between the two steps on either side, as in
//! [`signal`](crate::sync::signal): at least one side sees the other.

use crate::sync::waiting::Waiting;
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
        // The fence in the loop orders the count.
        let _waits = Waiting::begin(&self.waiting);
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
