//! How a sink reports that a long write makes progress.

use std::sync::Arc;
use std::time::Duration;

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::time::millis;

/// A handle by which a sink reports that bytes have gone out, so that a long write isn't mistaken for a stuck one.
///
/// A write times out when no flush has completed and no bytes were reported for the session's
/// [write time-out](crate::SessionBuilder::write_timeout), or for the one that is [set](Self::set_write_timeout)
/// here. A sink whose flushes are always short needs no handle. All clones report for the same participant.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: AtomicU64,
    /// The participant's own write time-out, in milliseconds; 0 if it has none, and [`FOR_EVER`].
    write_timeout: AtomicU32,
    /// What the participant's link carries, in bytes per second; 0 while that isn't known.
    link_rate: AtomicU32,
    /// The last write into a shared [uplink](crate::contract::uplink), as [`LastWrite`] packs it. It is one word, so
    /// that no reader sees half of a change.
    last_write: AtomicU64,
}

/// A write time-out that never ends: any that is longer than 49 days.
const FOR_EVER: u32 = u32::MAX;

/// A time by the clock of a shared uplink, in milliseconds; never 0. It isn't the time of the fan-out's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UplinkMs(pub(crate) u64);

/// The state of a participant's last write into a shared uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastWrite {
    /// None has begun, or the last one was given up.
    None,
    UnderWay {
        since: UplinkMs,
    },
    Ended {
        at: UplinkMs,
    },
}

impl LastWrite {
    /// The bit that tells the two states with a time apart; the bits above it are the time. The word of `None` is 0.
    const ENDED: u64 = 1;

    fn pack(self) -> u64 {
        match self {
            Self::None => 0,
            Self::UnderWay { since: UplinkMs(ms) } => ms << 1,
            Self::Ended { at: UplinkMs(ms) } => ms << 1 | Self::ENDED,
        }
    }

    fn unpack(word: u64) -> Self {
        match (word, UplinkMs(word >> 1)) {
            (0, _) => Self::None,
            (word, since) if word & Self::ENDED == 0 => Self::UnderWay { since },
            (_, at) => Self::Ended { at },
        }
    }
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            total: AtomicU64::new(0),
            write_timeout: AtomicU32::new(0),
            link_rate: AtomicU32::new(0),
            last_write: AtomicU64::new(0),
        }
    }
}

// Relaxed throughout: these values are only ever compared with others of their kind.
impl Progress {
    /// Reports that `bytes` more have been written.
    pub fn report(&self, bytes: usize) {
        self.0.total.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Replaces the session's write time-out for this participant; at least one millisecond.
    ///
    /// A buffer on the way to a slow peer takes bytes in large steps, which may be many seconds apart; the transport
    /// knows how many. [`Duration::MAX`] is for a transport that detects a stuck peer on its own, and then makes its
    /// sink fail.
    ///
    /// A room calls this before [`open`](crate::room::Room::open) returns, or at any later time. A shard reads the
    /// value when it looks for stuck participants, which is at least every two seconds while one of them is blocked.
    pub fn set_write_timeout(&self, timeout: Duration) {
        let millis = u32::try_from(millis(timeout)).unwrap_or(FOR_EVER).max(1);
        self.0.write_timeout.store(millis, Ordering::Relaxed);
    }

    /// The time-out that was [set](Self::set_write_timeout), in milliseconds.
    pub(crate) fn write_timeout(&self) -> Option<u64> {
        match self.0.write_timeout.load(Ordering::Relaxed) {
            0 => None,
            FOR_EVER => Some(u64::MAX),
            millis => Some(millis.into()),
        }
    }

    /// Returns what the participant's link carries, in bytes per second. `None` until the participant's sink has been
    /// busy, and where all participants share an [uplink](crate::Uplink).
    ///
    /// The participant's shard measures it while the sink is busy, and renews it about ten times a second. A sink may
    /// use it to decide how much it buffers.
    #[must_use]
    pub fn link_rate(&self) -> Option<u64> {
        Some(self.0.link_rate.load(Ordering::Relaxed).into()).filter(|rate| *rate > 0)
    }

    /// Records the rate, of which a link of more than 34 Gbit/s isn't told apart.
    pub(crate) fn set_link_rate(&self, rate: u64) {
        self.0.link_rate.store(u32::try_from(rate).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    pub(crate) fn set_last_write(&self, last: LastWrite) {
        self.0.last_write.store(last.pack(), Ordering::Relaxed);
    }

    pub(crate) fn last_write(&self) -> LastWrite {
        LastWrite::unpack(self.0.last_write.load(Ordering::Relaxed))
    }
}
