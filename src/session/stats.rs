//! Figures of a session, read without stopping anybody.

use std::time::Duration;

use crate::lane::{Account, EndReason};
use crate::sync::{AtomicU64, Ordering};

/// Figures of a session.
///
/// A snapshot in motion is not one moment's: outcomes are read before what was offered, so that no difference is
/// negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStats {
    /// Registered now.
    pub participants: usize,
    /// Instances registered so far, replacements and those that came back after a reset included.
    pub joins: u64,
    /// Those of them that took the place of an older instance.
    pub replacements: u64,
    /// Connections refused because a later one of the same identity was there.
    pub stale_joins: u64,
    /// Connections refused for any other reason.
    pub refused: u64,
    /// Attempts to join that failed and were tried again.
    pub failed_joins: u64,
    /// Instances that were reset, by reason.
    pub resets: Resets,
    /// Instances whose connection a write found gone: see [`EndReason::Vanished`]. They don't count as reset.
    pub vanished: u64,
    /// What became of all messages. `delivered` and `delivered_bytes` are what was sent.
    pub account: Account,
    /// Messages that wait, over all participants.
    pub backlog: u64,
    /// Participants with half of their [`queue_capacity`](crate::SessionBuilder::queue_capacity) or
    /// [`queue_bytes`](crate::SessionBuilder::queue_bytes) taken, who may overflow next. If most are, it isn't they who
    /// are slow: the publisher, the machine or the network is.
    pub half_full: usize,
    /// How long the oldest of them has waited since its shard saw it (±1 ms).
    pub oldest: Option<Duration>,
    /// Broadcasts that the shard furthest behind has yet to read. What a shard has read and is just handing on stands
    /// neither here nor in the backlog: `account` says what is delivered.
    pub shard_lag: u64,
    /// Whether the uplink is stalled.
    pub uplink_stalled: bool,
    /// How often it has been.
    pub uplink_stalls: u64,
    /// Streams to us that were dropped, as they came from nobody who is present, or from one who was refused.
    pub stray_streams: u64,
}

/// Instances that were reset, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resets {
    /// More waited than may.
    pub overflow: u64,
    /// The sink returned an error.
    pub write_failed: u64,
    /// The sink panicked.
    pub write_panicked: u64,
    /// The sink made no progress.
    pub write_timed_out: u64,
}

impl Resets {
    pub(crate) fn of(counters: &Counters) -> Self {
        let count = |reason: EndReason| counters.resets[reason as usize].get();
        Self {
            overflow: count(EndReason::Overflow),
            write_failed: count(EndReason::WriteFailed),
            write_panicked: count(EndReason::WritePanicked),
            write_timed_out: count(EndReason::WriteTimedOut),
        }
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.overflow + self.write_failed + self.write_panicked + self.write_timed_out
    }
}

/// What the session counts of comings and goings.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) joins: Counter,
    pub(crate) replacements: Counter,
    pub(crate) stale_joins: Counter,
    pub(crate) refused: Counter,
    pub(crate) failed_joins: Counter,
    pub(crate) resets: [Counter; EndReason::ALL.len()],
    pub(crate) vanished: Counter,
    pub(crate) uplink_stalls: Counter,
    pub(crate) stray_streams: Counter,
}

/// A count of rare things.
#[derive(Debug)]
pub(crate) struct Counter(AtomicU64);

impl Default for Counter {
    fn default() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Counter {
    pub(crate) fn add_one(&self) {
        // Relaxed: a figure for statistics.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
