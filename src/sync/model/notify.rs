//! Stand-in for `tokio::sync::Notify`: notifies all waiting tasks at once, or the only one that ever waits.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::Relaxed;

use super::hidden::Hidden;

/// Wakes waiting tasks. Only the wake-up of a task makes visible what the notifying thread did before; checking
/// for a notification doesn't. The original takes a lock for both, but doesn't promise that ordering.
pub(crate) struct Notify {
    /// The number of calls of `notify_waiters`.
    calls: AtomicUsize,
    /// 1 if `notify_one` was called and no wait has ended by it yet.
    permit: AtomicUsize,
    waiting: Hidden<Vec<Waker>>,
}

/// A wait for a notification. It begins when this value is created.
pub(crate) struct Notified<'a> {
    notify: &'a Notify,
    /// The number of calls before the wait began. They don't end it.
    calls: usize,
}

impl Notify {
    pub(crate) fn new() -> Self {
        Self { calls: AtomicUsize::new(0), permit: AtomicUsize::new(0), waiting: Hidden::new(Vec::new()) }
    }

    pub(crate) fn notify_waiters(&self) {
        self.calls.fetch_add(1, Relaxed);
        self.wake();
    }

    /// For one waiting task. If it doesn't wait yet, its next wait ends at once.
    pub(crate) fn notify_one(&self) {
        self.permit.swap(1, Relaxed);
        self.wake();
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut *self.waiting.get());
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn notified(&self) -> Notified<'_> {
        Notified { notify: self, calls: self.calls() }
    }

    /// Reads the number of calls by a read-modify-write, so that each call comes either before this read or after it.
    fn calls(&self) -> usize {
        self.calls.fetch_add(0, Relaxed)
    }
}

impl Notified<'_> {
    /// Whether a notification has arrived since this value was created.
    pub(crate) fn enable(self: Pin<&mut Self>) -> bool {
        self.notify.calls() != self.calls
    }
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.notify.waiting.get().push(cx.waker().clone());
        if self.notify.permit.swap(0, Relaxed) == 1 || self.enable() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notify").finish_non_exhaustive()
    }
}
