//! Waiting until there is room for a participant again.
//!
//! Any number of tasks may wait. Who makes room wakes them all, and each looks again.
//!
//! # Orderings
//! Who waits counts itself, registers, and looks; who makes room makes it, and then looks whether anybody is counted. A
//! `SeqCst` fence stands between the two on either side, as in [`signal`](super::signal): both can't miss each other.

use crate::sync::{AtomicUsize, Notify, Ordering, fence};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Relief {
    waiting: AtomicUsize,
    made: Notify,
}

impl Relief {
    pub(crate) fn new() -> Self {
        Self { waiting: AtomicUsize::new(0), made: Notify::new() }
    }

    /// Room was made: costs a fence and a look while nobody waits.
    pub(crate) fn note(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.made.notify_waiters();
        }
    }

    /// Waits until `is_there` says that there is room. Safe to cancel.
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

/// One who waits, for as long as it does.
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
