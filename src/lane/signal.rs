//! Sleep and wake without a lost wake-up, and without a wake-up for who isn't asleep.
//!
//! One sleeper, any number of wakers. The sleeper says that it is about to sleep, looks once more at everything it could
//! be woken for, and only then returns `Pending`: [`Signal::sleeps_unless`]. A waker makes its work visible first and
//! calls [`Signal::wake`] second.
//!
//! # Orderings
//! Store the flag, then look at the work; store the work, then look at the flag: each side writes one place and reads
//! the other. Only a `SeqCst` fence between the write and the read, on both sides, rules out that both read the old
//! value, which would be a sleeper that nobody wakes. The fences are what orders; the accesses themselves are relaxed,
//! but for the swap that claims the wake-up.

use std::task::Waker;

use crate::sync::{AtomicBool, AtomicWaker, Ordering, fence};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Signal {
    asleep: AtomicBool,
    waker: AtomicWaker,
}

impl Signal {
    pub(crate) fn new() -> Self {
        Self { asleep: AtomicBool::new(false), waker: AtomicWaker::new() }
    }

    /// Whether `waker`'s task may sleep: not if `finds`, which looks at its work once more, finds something.
    pub(crate) fn sleeps_unless(&self, waker: &Waker, finds: impl FnOnce() -> bool) -> bool {
        self.doze(waker);
        let found = finds();
        if found {
            self.rise();
        }
        !found
    }

    /// Says that `waker`'s task is about to sleep. The caller looks at its work again after this.
    pub(crate) fn doze(&self, waker: &Waker) {
        self.waker.register(waker);
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that the task is awake after all.
    pub(crate) fn rise(&self) {
        // Relaxed: a waker that still sees it asleep wakes it once in vain.
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the sleeper if it sleeps. What it is to find was written before.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        self.wake_after_fence();
    }

    /// The same, for a caller that has put the fence between its write and this call itself.
    pub(crate) fn wake_after_fence(&self) {
        // The look before the swap keeps the line shared while the sleeper is awake; of many wakers one wakes.
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
    }
}
