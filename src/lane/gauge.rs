//! A shard's figures and switches.

use super::account::Tally;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// What others read of a shard, and how they steer it.
#[derive(Debug)]
pub(crate) struct Gauge {
    pub(crate) offered: Tally,
    pub(crate) delivered: Tally,
    pub(crate) delivered_bytes: Tally,
    pub(crate) members: AtomicUsize,
    /// Until when nobody is reset because the uplink is stalled, in the session's milliseconds; 0 while it isn't.
    /// Relaxed throughout: it is compared with a clock, and orders nothing else.
    pub(crate) stalled_until: AtomicU64,
    /// Tear everything down at once.
    pub(crate) abort: AtomicBool,
}

impl Gauge {
    pub(crate) fn new() -> Self {
        Self {
            offered: Tally::new(),
            delivered: Tally::new(),
            delivered_bytes: Tally::new(),
            members: AtomicUsize::new(0),
            stalled_until: AtomicU64::new(0),
            abort: AtomicBool::new(false),
        }
    }

    /// Whether the uplink is stalled, and nobody is reset for it yet.
    pub(super) fn is_waited_for(&self, now: u64) -> bool {
        now < self.stalled_until.load(Ordering::Relaxed)
    }

    /// Whether the uplink has been stalled for longer than anybody is spared for.
    pub(super) fn is_given_up(&self, now: u64) -> bool {
        let until = self.stalled_until.load(Ordering::Relaxed);
        until > 0 && until <= now
    }
}
