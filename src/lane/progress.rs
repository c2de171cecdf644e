//! How a sink tells that a long write is getting on.

use std::sync::Arc;

use crate::sync::{AtomicU64, Ordering};

/// A sink's way of saying that bytes have gone out, so that a long write isn't taken for a stuck one.
///
/// A write times out when neither a flush completed nor bytes were reported for the session's write time-out. A sink
/// whose flush is always short needs no handle. Clones report for the same participant.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Reports `bytes` more written.
    pub fn report(&self, bytes: usize) {
        // Relaxed: only ever compared with its own earlier value.
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
