//! The clock of a fan-out: milliseconds since it was made.

use std::time::Duration;

use tokio::time::Instant;

use crate::time::{LONGEST, millis};

/// A time by the fan-out's clock, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::fanout) struct SessionMs(pub(in crate::fanout) u64);

impl SessionMs {
    /// The milliseconds from `earlier` to this time; 0 if `earlier` is the later of the two.
    pub(in crate::fanout) fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The time that lies `span` behind this one.
    pub(in crate::fanout) fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }
}

/// The clock, which all shards and outboxes of a fan-out share by copy.
#[derive(Clone, Copy, Debug)]
pub(in crate::fanout) struct Clock {
    zero: Instant,
}

impl Clock {
    /// A clock that begins at zero now.
    pub(in crate::fanout) fn new() -> Self {
        Self { zero: Instant::now() }
    }

    /// The moment at which the clock reaches `time`. A time beyond what the runtime's clock can tell is cut to a year
    /// from now.
    pub(in crate::fanout) fn at(self, SessionMs(ms): SessionMs) -> Instant {
        let longest = Instant::now() + LONGEST;
        self.zero.checked_add(Duration::from_millis(ms)).map_or(longest, |at| at.min(longest))
    }

    pub(in crate::fanout) fn now(self) -> SessionMs {
        SessionMs(millis(self.zero.elapsed()))
    }
}
