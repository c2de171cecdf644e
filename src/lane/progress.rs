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
    /// Of the last write into a shared [uplink](super::uplink), by that one's clock: when it began, 0 if none has or it
    /// was given up; and when it ended, 0 while it is under way.
    began: AtomicU64,
    ended: AtomicU64,
}

/// How a participant's last write into a shared uplink stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum LastWrite {
    None,
    UnderWay { since: u64 },
    Ended { at: u64 },
}

impl Default for Inner {
    fn default() -> Self {
        Self { total: AtomicU64::new(0), began: AtomicU64::new(0), ended: AtomicU64::new(0) }
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
        self.0.ended.store(0, Ordering::Relaxed);
        self.0.began.store(now, Ordering::Relaxed);
    }

    pub(super) fn end(&self, now: u64) {
        self.0.ended.store(now, Ordering::Relaxed);
    }

    pub(super) fn give_up(&self) {
        self.0.began.store(0, Ordering::Relaxed);
    }

    pub(super) fn last_write(&self) -> LastWrite {
        match (self.0.began.load(Ordering::Relaxed), self.0.ended.load(Ordering::Relaxed)) {
            (0, _) => LastWrite::None,
            (since, 0) => LastWrite::UnderWay { since },
            (_, at) => LastWrite::Ended { at },
        }
    }
}
