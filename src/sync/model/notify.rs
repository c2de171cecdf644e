//! Stands in for `tokio::sync::Notify`, as far as all who wait are notified at once.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::Relaxed;

use super::Hidden;

/// Wakes every task that waits. What the notifying thread did before becomes visible by the wake-up of the task alone,
/// not by looking: the original takes a lock for either, and doesn't promise it.
pub(crate) struct Notify {
    /// How often all were notified.
    calls: AtomicUsize,
    waiting: Hidden<Vec<Waker>>,
}

/// A wait that began when this was made.
pub(crate) struct Notified<'a> {
    notify: &'a Notify,
    /// The calls that it doesn't wait for.
    calls: usize,
}

impl Notify {
    pub(crate) fn new() -> Self {
        Self { calls: AtomicUsize::new(0), waiting: Hidden::new(Vec::new()) }
    }

    pub(crate) fn notify_waiters(&self) {
        self.calls.fetch_add(1, Relaxed);
        let waiting = std::mem::take(&mut *self.waiting.get());
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn notified(&self) -> Notified<'_> {
        Notified { notify: self, calls: self.calls() }
    }

    /// A read-modify-write, so that each call comes either before this or after.
    fn calls(&self) -> usize {
        self.calls.fetch_add(0, Relaxed)
    }
}

impl Notified<'_> {
    /// Whether it has been notified already. It has waited since it was made.
    pub(crate) fn enable(self: Pin<&mut Self>) -> bool {
        self.notify.calls() != self.calls
    }
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.notify.waiting.get().push(cx.waker().clone());
        if self.enable() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notify").finish_non_exhaustive()
    }
}
