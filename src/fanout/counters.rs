//! The counters behind an [`Account`].
//!
//! # Orderings
//! An outcome is written with `Release`, after its message was counted as offered. A reader loads the outcomes with
//! `Acquire`, before it loads the offered messages: a reader that sees an outcome also sees the offer it belongs to.

use std::cell::Cell;

use crossbeam::utils::CachePadded;

use crate::contract::{Account, EndReason, Losses};
use crate::sync::{AtomicBool, AtomicU64, Notify, Ordering, fence};

/// A counter that one task writes and any thread reads, without a read-modify-write. That task is a member's shard: it
/// writes through the [`Drain`](crate::fanout::outbox::drain::Drain) and in
/// [`Delivery`](crate::fanout::shard::delivery::Delivery).
#[derive(Debug)]
pub(in crate::fanout) struct SingleWriterCounter(AtomicU64);

impl SingleWriterCounter {
    pub(in crate::fanout) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(in crate::fanout) fn add(&self, n: u64) {
        // Relaxed: only this task writes the counter.
        self.0.store(self.0.load(Ordering::Relaxed) + n, Ordering::Release);
    }

    pub(in crate::fanout) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A counter that any thread adds to without contending with the others.
#[derive(Debug)]
pub(in crate::fanout) struct Striped(Box<[CachePadded<AtomicU64>]>);

/// Enough stripes that, of a few busy threads, two seldom share one.
const STRIPES: usize = 16;

impl Striped {
    pub(in crate::fanout) fn new() -> Self {
        Self((0..STRIPES).map(|_| CachePadded::new(AtomicU64::new(0))).collect())
    }

    pub(in crate::fanout) fn add(&self, n: u64) {
        self.0[stripe()].fetch_add(n, Ordering::Release);
    }

    pub(in crate::fanout) fn get(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.load(Ordering::Acquire)).sum()
    }
}

/// The stripe of the calling thread; threads are assigned to stripes round-robin.
fn stripe() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    // The cell of a thread that is being torn down is gone: that thread uses the first stripe.
    MINE.try_with(|mine| {
        if mine.get() == usize::MAX {
            // Relaxed: the number only spreads threads over stripes.
            mine.set(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % STRIPES);
        }
        mine.get()
    })
    .unwrap_or(0)
}

/// The part of the session's account that its shards don't write.
#[derive(Debug)]
pub(in crate::fanout) struct SessionCounters {
    /// Direct messages, counted when they are sent.
    pub(in crate::fanout) direct_offered: Striped,
    lost: [AtomicU64; EndReason::ALL.len()],
    lossy: [AtomicU64; Losses::REASONS],
    unsubscribed: AtomicU64,
    rejected: AtomicU64,
    /// Messages were lost since the session's event loop last looked.
    has_losses: AtomicBool,
    losses: Notify,
}

impl SessionCounters {
    pub(in crate::fanout) fn new() -> Self {
        Self {
            direct_offered: Striped::new(),
            lost: std::array::from_fn(|_| AtomicU64::new(0)),
            lossy: std::array::from_fn(|_| AtomicU64::new(0)),
            unsubscribed: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            has_losses: AtomicBool::new(false),
            losses: Notify::new(),
        }
    }

    /// Counts `count` messages as lost with a participant that ended for `reason`.
    pub(in crate::fanout) fn lose(&self, reason: EndReason, count: u64) {
        self.lost[reason as usize].fetch_add(count, Ordering::Release);
    }

    /// Counts messages that were lost, and those that were dropped with a subscription.
    pub(in crate::fanout) fn lose_lossy(&self, lost: &Losses, unsubscribed: u64) {
        if unsubscribed > 0 {
            self.unsubscribed.fetch_add(unsubscribed, Ordering::Release);
        }
        for (counter, count) in self.lossy.iter().zip(lost.counts()) {
            if count > 0 {
                counter.fetch_add(count, Ordering::Release);
            }
        }
        if lost.total() == 0 {
            return;
        }
        // Only the first loss since the last look notifies. The load keeps the cache line shared. A fence stands
        // between the counts and the load, and in `until_lost` between the swap and the look at the counts: at least
        // one side sees the other.
        fence(Ordering::SeqCst);
        if !self.has_losses.load(Ordering::Relaxed) && !self.has_losses.swap(true, Ordering::AcqRel) {
            self.losses.notify_one();
        }
    }

    /// Waits until messages of lossy topics were lost that the last call hasn't reported. For one task.
    ///
    /// # Cancel safety
    /// If the future is dropped, no loss goes unreported.
    pub(in crate::fanout) async fn until_lost(&self) {
        while !self.has_losses.swap(false, Ordering::AcqRel) {
            self.losses.notified().await;
        }
        fence(Ordering::SeqCst);
    }

    /// The messages that were lost.
    pub(in crate::fanout) fn losses(&self) -> Losses {
        Losses::from_counts(self.lossy.each_ref().map(|counter| counter.load(Ordering::Acquire)))
    }

    /// Counts a message sent to a participant that had ended.
    pub(in crate::fanout) fn reject(&self) {
        self.rejected.fetch_add(1, Ordering::Release);
    }

    /// Adds the outcomes counted here to `account`.
    pub(in crate::fanout) fn outcomes(&self, account: &mut Account) {
        account.dropped.closed += self.rejected.load(Ordering::Acquire);
        for reason in EndReason::ALL {
            account.add_lost(reason, self.lost[reason as usize].load(Ordering::Acquire));
        }
        account.dropped.lossy = self.losses();
        account.abandoned.unsubscribed = self.unsubscribed.load(Ordering::Acquire);
    }
}
