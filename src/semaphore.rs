//! Admission control: at most N requests of a kind in flight per participant. Callers are refused, never queued.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts requests in flight against a limit. Clones share the count.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    in_flight: Arc<AtomicU32>,
    limit: u32,
}

/// A permit for one request in flight. Dropping the permit releases it, also while a panic unwinds.
#[derive(Debug)]
#[must_use = "the permit is released when this is dropped"]
pub struct Permit {
    in_flight: Arc<AtomicU32>,
}

/// All permits are taken. Answer the request with an error; the participant may ask again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} requests of this kind are in flight already: wait for one of them")]
pub struct AdmissionError {
    /// The most requests of this kind that may be in flight at once.
    pub limit: u32,
}

impl Admission {
    pub(crate) fn new(limit: u32) -> Self {
        Self { in_flight: Arc::default(), limit }
    }

    /// Takes a permit if one is free. Never blocks.
    pub(crate) fn try_acquire(&self) -> Result<Permit, AdmissionError> {
        // Relaxed: the count limits a number and guards no data.
        self.in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < self.limit).then_some(n + 1))
            .map(|_| Permit { in_flight: Arc::clone(&self.in_flight) })
            .map_err(|_| AdmissionError { limit: self.limit })
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
