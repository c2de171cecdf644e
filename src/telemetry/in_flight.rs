//! How many requests of a kind one viewer may have in flight. Further requests are refused, never queued.

use std::sync::atomic::{AtomicU32, Ordering};

use super::viewer::Viewer;

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

/// A permit for one request in flight. Dropping the permit releases it, also while a panic unwinds.
#[derive(Debug)]
#[must_use = "the permit is released when this is dropped"]
pub struct Permit {
    viewer: Viewer,
    kind: Kind,
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
}

impl Permit {
    /// Takes one of the viewer's permits if one is free. Never blocks.
    pub(super) fn try_acquire(viewer: &Viewer, kind: Kind) -> Result<Self, TooManyInFlight> {
        let InFlightLimit { in_flight, limit } = viewer.in_flight(kind);
        // Relaxed: the count limits a number and guards no data.
        in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < *limit).then_some(n + 1))
            .map(|_| Self { viewer: viewer.clone(), kind })
            .map_err(|_| TooManyInFlight { limit: *limit })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.viewer.in_flight(self.kind).in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
