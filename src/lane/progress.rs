//! How a sink tells that a long write is getting on.

use std::sync::Arc;

use crate::sync::{AtomicU64, Ordering};

/// A sink's way of saying that bytes have gone out, so that a long write isn't taken for a stuck one.
///
/// A write times out when neither a flush completed nor bytes were reported for the session's write time-out. A sink
/// whose flush is always short needs no handle. Clones report for the same participant.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: AtomicU64,
    /// When the last write into a shared [uplink](super::uplink) began, by that one's clock; 0 if none has, or it was
    /// given up.
    began: AtomicU64,
}

impl Default for Inner {
    fn default() -> Self {
        Self { total: AtomicU64::new(0), began: AtomicU64::new(0) }
    }
}

// Relaxed throughout: figures that are only ever compared with others of their kind.
impl Progress {
    /// Reports `bytes` more written.
    pub fn report(&self, bytes: usize) {
        self.0.total.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    pub(super) fn begin(&self, now: u64) {
        self.0.began.store(now, Ordering::Relaxed);
    }

    pub(super) fn give_up(&self) {
        self.0.began.store(0, Ordering::Relaxed);
    }

    pub(super) fn began(&self) -> Option<u64> {
        Some(self.0.began.load(Ordering::Relaxed)).filter(|began| *began > 0)
    }
}
