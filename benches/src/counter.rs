//! Counters that a task can wait for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use futures_util::task::AtomicWaker;

/// A count over all sinks together, and the task that waits for it to reach a number.
#[derive(Default)]
pub struct Counter {
    count: AtomicU64,
    awaited: AtomicU64,
    waker: AtomicWaker,
}

impl Counter {
    pub fn get(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Waits until the count is `wanted` or more.
    pub async fn reach(&self, wanted: u64) {
        std::future::poll_fn(|cx| {
            self.awaited.store(wanted, Ordering::SeqCst);
            self.waker.register(cx.waker());
            if self.get() >= wanted { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Spins until the count is `wanted` or more. Doesn't give up the thread.
    pub fn spin_until(&self, wanted: u64) {
        while self.get() < wanted {
            std::hint::spin_loop();
        }
    }

    #[inline]
    pub fn add(&self, n: u64) {
        let now = self.count.fetch_add(n, Ordering::SeqCst) + n;
        if now >= self.awaited.load(Ordering::Relaxed) {
            self.waker.wake();
        }
    }
}
