//! A shard's figures and switches.

use super::account::Tally;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize};

/// What others read of a shard, and how they steer it.
#[derive(Debug)]
pub(crate) struct Gauge {
    pub(crate) offered: Tally,
    pub(crate) delivered: Tally,
    pub(crate) delivered_bytes: Tally,
    pub(crate) members: AtomicUsize,
    /// Until when nobody is reset because the uplink is stalled, in the session's milliseconds; 0 while it isn't.
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
}
