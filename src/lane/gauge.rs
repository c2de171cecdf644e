//! A shard's figures and switches.

use super::account::Tally;
use crate::sync::{AtomicBool, AtomicUsize};

/// What others read of a shard, and how they steer it.
#[derive(Debug)]
pub(crate) struct Gauge {
    pub(crate) offered: Tally,
    pub(crate) delivered: Tally,
    pub(crate) delivered_bytes: Tally,
    pub(crate) members: AtomicUsize,
    /// The uplink is stalled: write time-outs don't run.
    pub(crate) paused: AtomicBool,
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
            paused: AtomicBool::new(false),
            abort: AtomicBool::new(false),
        }
    }
}
