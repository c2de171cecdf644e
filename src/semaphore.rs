//! Admission: at most N calls of a kind in flight per participant, never waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts what is in flight against a limit. Cloning shares the count.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    in_flight: Arc<AtomicU32>,
    limit: u32,
}

/// A place among the calls in flight; dropping it, a panic's unwinding included, gives it back.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct Permit {
    in_flight: Arc<AtomicU32>,
}

/// Every place is taken: answer the request with an error, the participant may ask again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} requests of this kind are in flight already: wait for one of them")]
pub struct AdmissionError {
    /// How many may be in flight at once.
    pub limit: u32,
}

impl Admission {
    pub(crate) fn new(limit: u32) -> Self {
        Self { in_flight: Arc::default(), limit }
    }

    /// Takes a place if there is one; never blocks.
    pub(crate) fn try_acquire(&self) -> Result<Permit, AdmissionError> {
        // Relaxed: the count guards a number, not data.
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
