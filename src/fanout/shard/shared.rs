//! What other tasks read of a shard, and how they steer it.

use std::sync::Arc;

use crate::fanout::clock::SessionMs;
use crate::fanout::counters::SingleWriterCounter;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The figures of a shard, which it alone writes, apart from the newcomers on their way.
#[derive(Debug)]
pub(in crate::fanout) struct ShardStats {
    pub(in crate::fanout) offered: SingleWriterCounter,
    pub(in crate::fanout) delivered: SingleWriterCounter,
    pub(in crate::fanout) delivered_bytes: SingleWriterCounter,
    members: AtomicUsize,
    /// Newcomers that the shard was chosen for and has not admitted yet.
    on_the_way: AtomicUsize,
    /// Since when the shard hasn't slept, by the fan-out's clock, plus one; 0 if it has slept since it last yielded.
    /// Relaxed: the value is compared with a clock, and orders nothing else.
    awake_since: AtomicU64,
}

/// The switches of all shards of a fan-out, which others turn. Shards that are made later find them as they stand.
#[derive(Debug)]
pub(in crate::fanout) struct ShardControl {
    /// Until when no member is reset because the uplink is stalled, by the fan-out's clock; 0 while the uplink isn't
    /// stalled. Relaxed throughout: the value is compared with a clock, and orders nothing else.
    stalled_until: AtomicU64,
    /// Tells the shards to end all their members at once.
    abort: AtomicBool,
}

impl ShardStats {
    pub(in crate::fanout) fn new() -> Self {
        Self {
            offered: SingleWriterCounter::new(),
            delivered: SingleWriterCounter::new(),
            delivered_bytes: SingleWriterCounter::new(),
            members: AtomicUsize::new(0),
            on_the_way: AtomicUsize::new(0),
            awake_since: AtomicU64::new(0),
        }
    }

    /// For how many milliseconds the shard has had work without a pause.
    pub(in crate::fanout) fn awake_for(&self, now: SessionMs) -> u64 {
        self.awake_since.load(Ordering::Relaxed).checked_sub(1).map_or(0, |since| now.since(SessionMs(since)))
    }

    /// Notes since when the shard hasn't slept; `None` if it is about to sleep.
    pub(super) fn set_awake_since(&self, since: Option<SessionMs>) {
        self.awake_since.store(since.map_or(0, |SessionMs(ms)| ms + 1), Ordering::Relaxed);
    }

    /// Members, plus newcomers on their way. Relaxed: the value is only used to compare shards, and orders nothing.
    pub(in crate::fanout) fn population(&self) -> usize {
        self.members.load(Ordering::Relaxed) + self.on_the_way.load(Ordering::Relaxed)
    }

    pub(super) fn set_members(&self, count: usize) {
        self.members.store(count, Ordering::Relaxed);
    }
}

impl ShardControl {
    pub(in crate::fanout) fn new() -> Self {
        Self { stalled_until: AtomicU64::new(0), abort: AtomicBool::new(false) }
    }

    /// Spares the members until this time because the uplink is stalled; `None` while it isn't.
    pub(in crate::fanout) fn set_stalled_until(&self, until: Option<SessionMs>) {
        self.stalled_until.store(until.map_or(0, |SessionMs(ms)| ms), Ordering::Relaxed);
    }

    /// Whether the uplink is stalled and no member is reset because of it yet.
    pub(super) fn spares_members(&self, now: SessionMs) -> bool {
        now.0 < self.stalled_until.load(Ordering::Relaxed)
    }

    /// Whether the uplink has been stalled for longer than `uplink_patience`.
    pub(super) fn has_given_up(&self, now: SessionMs) -> bool {
        let until = self.stalled_until.load(Ordering::Relaxed);
        until > 0 && until <= now.0
    }

    /// Tells the shards to end all their members. The caller then wakes each shard, which orders the flag with the
    /// shard's last look before it sleeps.
    pub(in crate::fanout) fn abort(&self) {
        // Release, with the Acquire below: a shard that aborts sees what happened before.
        self.abort.store(true, Ordering::Release);
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.abort.load(Ordering::Acquire)
    }
}

/// Counts a newcomer as on its way to a shard, for as long as this lives: until the shard has admitted it, or the join
/// was given up. Joins that run at the same time see each other's choice of shard in this count.
#[derive(Debug)]
pub(in crate::fanout) struct OnTheWay(Arc<ShardStats>);

impl OnTheWay {
    pub(in crate::fanout) fn to(stats: &Arc<ShardStats>) -> Self {
        stats.on_the_way.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(stats))
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.0.on_the_way.fetch_sub(1, Ordering::Relaxed);
    }
}
