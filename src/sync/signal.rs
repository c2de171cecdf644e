//! Sleep/wake handshake: no lost wake-ups, and no wake-up for a task that is already awake.
//!
//! A signal has one sleeper and any number of wakers. The sleeper announces that it is about to sleep, checks once more
//! everything it could be woken for, and only then returns `Pending`: [`Signal::sleeps_unless`]. A waker makes its work
//! visible first and calls [`Signal::wake`] second.
//!
//! # States
//! Work may be numbered: a publisher wakes a shard with the position of its broadcast in the log. A sleeper that
//! lets such work gather names the first number that wakes it.
//!
//! | state | the word | [`wake`](Signal::wake) | [`wake_for`](Signal::wake_for) `n` | [`wake_gathering`](Signal::wake_gathering) |
//! |---|---|---|---|---|
//! | awake | [`AWAKE`], above all numbers | | | |
//! | asleep | [`ASLEEP`], below all numbers | wakes | wakes | |
//! | gathering up to `u` | `u` | wakes | wakes if `n >= u` | wakes |
//!
//! A sleeper changes the word to *asleep* or *gathering* before it sleeps. A waker that wakes it, and the sleeper
//! itself when it runs, change the word to *awake*.
//!
//! # Orderings
//! The sleeper stores the word, then checks for work. A waker stores the work, then checks the word. Each side writes
//! one place and reads the other. Only a `SeqCst` fence between the write and the read, on both sides, rules out that
//! both read the old value, which would leave a sleeper that nobody wakes. The fences do the ordering. The accesses
//! themselves are relaxed, except for the swap that claims the wake-up, which is `AcqRel`: of several wakers, each sees
//! what the ones before it did. A waker whose swap meets a later sleep than its load did wakes the sleeper once without
//! need.

use std::task::Waker;

use crate::sync::{AtomicWaker, AtomicWord, Ordering, fence};

const AWAKE: u64 = u64::MAX;
const ASLEEP: u64 = 0;

/// Lets one task sleep until another task or thread has work for it.
#[derive(Debug)]
pub(crate) struct Signal {
    /// The state: numbered work wakes the sleeper from this number on.
    wakes_from: AtomicWord,
    waker: AtomicWaker,
}

impl Signal {
    pub(crate) fn new() -> Self {
        Self { wakes_from: AtomicWord::new(AWAKE), waker: AtomicWaker::new() }
    }

    /// Whether the task of `waker` may sleep. It may not if `finds`, which checks for work once more, returns true.
    pub(crate) fn sleeps_unless(&self, waker: &Waker, finds: impl FnOnce() -> bool) -> bool {
        self.gathers_unless(waker, ASLEEP, finds)
    }

    /// Like [`sleeps_unless`](Self::sleeps_unless), for a task that lets numbered work gather: work below `until`
    /// doesn't wake it. `finds` has to check for the work `until`, and need not check for any below it.
    pub(crate) fn gathers_unless(&self, waker: &Waker, until: u64, finds: impl FnOnce() -> bool) -> bool {
        self.doze_until(waker, until);
        let found = finds();
        if found {
            self.rise();
        }
        !found
    }

    /// Announces that the task of `waker` is about to sleep. The caller checks for work once more after this call.
    pub(crate) fn doze(&self, waker: &Waker) {
        self.doze_until(waker, ASLEEP);
    }

    /// Announces that the task is about to sleep until there is work numbered `until` or above, or work without a
    /// number.
    pub(crate) fn doze_until(&self, waker: &Waker, until: u64) {
        self.waker.register(waker);
        self.wakes_from.store(until, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Announces that the task is awake after all.
    pub(crate) fn rise(&self) {
        // Relaxed: a waker that still sees the task asleep wakes it once without need.
        self.wakes_from.store(AWAKE, Ordering::Relaxed);
    }

    /// Wakes the sleeper if it sleeps. The caller has written the work before this call.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        self.wake_after_fence();
    }

    /// Like [`wake`](Self::wake), for a caller that has put the fence between its write and this call itself.
    pub(crate) fn wake_after_fence(&self) {
        // The load before the swap keeps the cache line shared while the sleeper is awake.
        if self.wakes_from.load(Ordering::Relaxed) != AWAKE {
            self.claim_wake_up();
        }
    }

    /// Like [`wake_after_fence`](Self::wake_after_fence), for work that has a number.
    pub(crate) fn wake_for(&self, number: u64) {
        if number >= self.wakes_from.load(Ordering::Relaxed) {
            self.claim_wake_up();
        }
    }

    /// Like [`wake_after_fence`](Self::wake_after_fence), for a sleeper that lets numbered work gather, and no other.
    pub(crate) fn wake_gathering(&self) {
        if !matches!(self.wakes_from.load(Ordering::Relaxed), AWAKE | ASLEEP) {
            self.claim_wake_up();
        }
    }

    /// Whether the task is about to sleep, or sleeps. The caller has put a fence between its own write and this call.
    pub(crate) fn is_asleep(&self) -> bool {
        self.wakes_from.load(Ordering::Relaxed) != AWAKE
    }

    fn claim_wake_up(&self) {
        // Of many wakers, one wakes the sleeper.
        if self.wakes_from.swap(AWAKE, Ordering::AcqRel) != AWAKE {
            self.waker.wake();
        }
    }
}
