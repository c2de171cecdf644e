//! Whether a viewer answers, and how fast. The task that handles its messages writes this, and statistics read it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The value of `round_trip` before the first measurement.
const NONE: u64 = u64::MAX;

/// Whether a viewer has become unresponsive, or responsive again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// It was responsive.
    Silent,
    /// It was unresponsive.
    Heard,
}

/// The responsiveness of one viewer. Every access is relaxed: the values only serve statistics, and no other data is
/// ordered by them.
#[derive(Debug)]
pub(super) struct Pulse {
    /// The last round trip in nanoseconds, or [`NONE`].
    round_trip: AtomicU64,
    unresponsive: AtomicBool,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { round_trip: AtomicU64::new(NONE), unresponsive: AtomicBool::new(false) }
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        let nanos = self.round_trip.load(Ordering::Relaxed);
        (nanos != NONE).then(|| Duration::from_nanos(nanos))
    }

    pub(super) fn is_unresponsive(&self) -> bool {
        self.unresponsive.load(Ordering::Relaxed)
    }

    pub(super) fn set_round_trip(&self, round_trip: Duration) {
        // Saturates just below `NONE`, at some 580 years.
        let nanos = u64::try_from(round_trip.as_nanos()).unwrap_or(NONE).min(NONE - 1);
        self.round_trip.store(nanos, Ordering::Relaxed);
    }

    /// Sets the flag.
    pub(super) fn set_unresponsive(&self, unresponsive: bool) -> Change {
        // The value usually stays the same, and then nothing is written.
        if self.is_unresponsive() == unresponsive
            || self.unresponsive.swap(unresponsive, Ordering::Relaxed) == unresponsive
        {
            return Change::Nothing;
        }
        if unresponsive { Change::Silent } else { Change::Heard }
    }
}
