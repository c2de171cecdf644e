//! A shard's counters and switches.

use std::sync::Arc;

use crate::fanout::counters::Tally;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// What other tasks read of a shard, and how they steer it.
#[derive(Debug)]
pub(crate) struct Gauge {
    pub(crate) offered: Tally,
    pub(crate) delivered: Tally,
    pub(crate) delivered_bytes: Tally,
    pub(crate) members: AtomicUsize,
    /// Newcomers that the shard was chosen for and has not admitted yet.
    on_the_way: AtomicUsize,
    /// Until when no member is reset because the uplink is stalled, in the session's milliseconds; 0 while the uplink
    /// isn't stalled. Relaxed throughout: the value is compared with a clock, and orders nothing else.
    pub(crate) stalled_until: AtomicU64,
    /// Tells the shard to end all its members at once.
    pub(crate) abort: AtomicBool,
}

impl Gauge {
    pub(crate) fn new() -> Self {
        Self {
            offered: Tally::new(),
            delivered: Tally::new(),
            delivered_bytes: Tally::new(),
            members: AtomicUsize::new(0),
            on_the_way: AtomicUsize::new(0),
            stalled_until: AtomicU64::new(0),
            abort: AtomicBool::new(false),
        }
    }

    /// Members, plus newcomers on their way. Relaxed: the value is only used to compare shards, and orders nothing.
    pub(crate) fn population(&self) -> usize {
        self.members.load(Ordering::Relaxed) + self.on_the_way.load(Ordering::Relaxed)
    }

    /// Whether the uplink is stalled and no member is reset because of it yet.
    pub(super) fn is_waited_for(&self, now: u64) -> bool {
        now < self.stalled_until.load(Ordering::Relaxed)
    }

    /// Whether the uplink has been stalled for longer than `uplink_patience`.
    pub(super) fn is_given_up(&self, now: u64) -> bool {
        let until = self.stalled_until.load(Ordering::Relaxed);
        until > 0 && until <= now
    }
}

/// Counts a newcomer as on its way to a shard, for as long as this lives: until the shard has admitted it, or the join
/// was given up. Joins that run at the same time see each other's choice of shard in this count.
#[derive(Debug)]
pub(crate) struct OnTheWay(Arc<Gauge>);

impl OnTheWay {
    pub(crate) fn to(gauge: &Arc<Gauge>) -> Self {
        gauge.on_the_way.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(gauge))
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.0.on_the_way.fetch_sub(1, Ordering::Relaxed);
    }
}
