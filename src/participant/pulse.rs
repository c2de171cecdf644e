//! Whether, and how fast, a viewer answers: written by who speaks with it, read by statistics.

use std::time::Duration;

use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// No round trip was measured.
const NONE: u64 = u64::MAX;

/// See the [module](self). Every access is relaxed: these are figures for statistics, and nothing is read by their
/// help.
#[derive(Debug)]
pub(super) struct Pulse {
    /// The last round trip in nanoseconds.
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

    #[cfg(feature = "telemetry")]
    pub(super) fn set_round_trip(&self, round_trip: Duration) {
        // Five hundred years stand for what is longer.
        let nanos = u64::try_from(round_trip.as_nanos()).unwrap_or(NONE).min(NONE - 1);
        self.round_trip.store(nanos, Ordering::Relaxed);
    }

    /// True if that is new.
    #[cfg(feature = "telemetry")]
    pub(super) fn set_unresponsive(&self, unresponsive: bool) -> bool {
        // Mostly it is as it was, and then nothing is written.
        self.is_unresponsive() != unresponsive
            && self.unresponsive.swap(unresponsive, Ordering::Relaxed) != unresponsive
    }
}
