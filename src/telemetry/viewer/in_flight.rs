//! How many requests of a kind one viewer may have in flight. Further requests are refused, never queued.

use std::sync::atomic::{AtomicU32, Ordering};

/// A kind of requests that are counted while they are in flight.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    ServiceCall,
    AssetFetch,
}

/// Counts the requests of one kind in flight against a limit.
#[derive(Debug)]
pub(super) struct InFlightLimit {
    in_flight: AtomicU32,
    limit: u32,
}

/// As many requests of this kind are in flight as the viewer may have. Answer the request with an error; the viewer may
/// ask again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} requests of this kind are in flight already: wait for one of them")]
#[non_exhaustive]
pub struct TooManyInFlight {
    /// The most requests of this kind that may be in flight at once.
    pub limit: u32,
}

impl InFlightLimit {
    pub(super) fn new(limit: u32) -> Self {
        Self { in_flight: AtomicU32::new(0), limit }
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts one more request, unless the limit is reached. Never blocks.
    pub(super) fn try_add(&self) -> Result<(), TooManyInFlight> {
        // Relaxed: the count limits a number and guards no data.
        self.in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < self.limit).then_some(n + 1))
            .map(drop)
            .map_err(|_| TooManyInFlight { limit: self.limit })
    }

    /// Counts one request less, which was added before.
    pub(super) fn remove(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many requests of each kind one viewer may have in flight.
#[derive(Clone, Copy, Debug)]
pub(in crate::telemetry) struct InFlightLimits {
    pub(in crate::telemetry) service_calls: u32,
    pub(in crate::telemetry) asset_fetches: u32,
}
