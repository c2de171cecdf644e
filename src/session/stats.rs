//! Statistics of a session, read without stopping any of its tasks.

use std::time::Duration;

use crate::contract::{Account, EndReason};
use crate::room::RoomClosed;
use crate::sync::{AtomicU64, Ordering};

/// Statistics of a session.
///
/// While messages move, the figures don't all belong to one moment. Outcomes are read before offers, so that no
/// difference is negative.
///
/// With the feature `serde`, this and the statistics of participants, topics and viewers can be serialized. Times are then
/// numbers of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SessionStats {
    /// How many participants are registered now.
    pub participants: usize,
    /// How many instances have been registered, including replacements and those that returned after a reset.
    pub joins: u64,
    /// How many of those took the place of an older instance.
    pub replacements: u64,
    /// How many connections were refused because a later one of the same identity was there.
    pub stale_joins: u64,
    /// How many connections were refused for any other reason.
    pub refused: u64,
    /// How many attempts to join failed and were tried again.
    pub failed_joins: u64,
    /// How many instances were reset, by reason.
    pub resets: Resets,
    /// How many instances ended because a write found their connection gone: see [`EndReason::Vanished`]. They don't
    /// count as reset.
    pub vanished: u64,
    /// The outcome of all messages. `delivered` and `delivered_bytes` count what was sent. [`Account::waiting`] is the
    /// number of messages that wait, over all participants.
    pub account: Account,
    /// How many participants have half of their [`queue_capacity`](crate::SessionBuilder::queue_capacity) or
    /// [`queue_bytes`](crate::SessionBuilder::queue_bytes) taken, and so may overflow next. If most participants do,
    /// the cause isn't a slow participant but the publisher, the machine or the network.
    pub half_full: usize,
    /// How long the oldest waiting message has waited since its shard saw it (±1 ms); `None` if none waits.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::contract::seconds::serialize_some"))]
    pub oldest_waiting: Option<Duration>,
    /// How many shards there are now: see [`shards`](crate::SessionBuilder::shards).
    pub shards: usize,
    /// How many broadcasts the shard furthest behind has yet to read, including those that
    /// [gather](crate::SessionBuilder::linger). A broadcast that a shard has read and is handing
    /// on counts neither here nor as [waiting](Account::waiting): `account` says what is delivered.
    pub shard_lag: u64,
    /// Whether the uplink is stalled now.
    pub uplink_stalled: bool,
    /// How often the uplink has stalled.
    pub uplink_stalls: u64,
    /// Whether publishers are held now because most participants are behind: see
    /// [`OverloadPolicy`](crate::OverloadPolicy).
    pub publishers_held: bool,
    /// How many times publishers were held for that reason. Every hold counts, however short; events merge holds that
    /// follow each other within a second.
    pub publisher_holds: u64,
    /// The total time for which publishers were held for that reason (±1 ms per hold).
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::contract::seconds::serialize"))]
    pub publishers_held_for: Duration,
    /// How many streams to this host were dropped, because they came from a connection that isn't present or was
    /// refused.
    pub stray_streams: u64,
}

/// What became of a session and its messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReport {
    /// The outcome of all messages. None is waiting any more.
    pub account: Account,
    /// How long closing took, from its start to this report.
    pub took: Duration,
    /// The reason of the room, if the session ended because its room closed.
    pub room_closed: Option<RoomClosed>,
}

/// How many instances were reset, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Resets {
    /// Resets because the backlog exceeded its bound.
    pub overflow: u64,
    /// Resets because the sink returned an error.
    pub write_failed: u64,
    /// Resets because the sink panicked.
    pub write_panicked: u64,
    /// Resets because the sink made no progress for the write time-out.
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

    /// Returns the number of resets for all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.overflow + self.write_failed + self.write_panicked + self.write_timed_out
    }
}

/// The counters of arrivals and departures.
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

/// A counter of rare events.
#[derive(Debug)]
pub(crate) struct Counter(AtomicU64);

impl Default for Counter {
    fn default() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Counter {
    pub(crate) fn add_one(&self) {
        // Relaxed: a figure for statistics, which orders nothing.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
