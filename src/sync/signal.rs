//! Sleep/wake handshake: no lost wake-ups, and no wake-up for a task that is already awake.
//!
//! A signal has one sleeper and any number of wakers. The sleeper announces that it is about to sleep, checks once more
//! everything it could be woken for, and only then returns `Pending`: [`Signal::sleeps_unless`]. A waker makes its work
//! visible first and calls [`Signal::wake`] second.
//!
//! # Orderings
//! The sleeper stores the flag, then checks for work. A waker stores the work, then checks the flag. Each side writes
//! one place and reads the other. Only a `SeqCst` fence between the write and the read, on both sides, rules out that
//! both read the old value, which would leave a sleeper that nobody wakes. The fences do the ordering. The accesses
//! themselves are relaxed, except for the swap that claims the wake-up, which is `AcqRel`: of several wakers, each sees
//! what the ones before it did.

use std::task::Waker;

use crate::sync::{AtomicBool, AtomicWaker, Ordering, fence};

/// Lets one task sleep until another task or thread has work for it.
#[derive(Debug)]
pub(crate) struct Signal {
    asleep: AtomicBool,
    waker: AtomicWaker,
}

impl Signal {
    pub(crate) fn new() -> Self {
        Self { asleep: AtomicBool::new(false), waker: AtomicWaker::new() }
    }

    /// Whether the task of `waker` may sleep. It may not if `finds`, which checks for work once more, returns true.
    pub(crate) fn sleeps_unless(&self, waker: &Waker, finds: impl FnOnce() -> bool) -> bool {
        self.doze(waker);
        let found = finds();
        if found {
            self.rise();
        }
        !found
    }

    /// Announces that the task of `waker` is about to sleep. The caller checks for work once more after this call.
    pub(crate) fn doze(&self, waker: &Waker) {
        self.waker.register(waker);
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Announces that the task is awake after all.
    pub(crate) fn rise(&self) {
        // Relaxed: a waker that still sees the task asleep wakes it once without need.
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the sleeper if it sleeps. The caller has written the work before this call.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        self.wake_after_fence();
    }

    /// Like [`wake`](Self::wake), for a caller that has put the fence between its write and this call itself.
    pub(crate) fn wake_after_fence(&self) {
        // The load before the swap keeps the cache line shared while the sleeper is awake. Of many wakers, one wakes
        // the sleeper.
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
    }
}
