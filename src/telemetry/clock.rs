//! The clock of the log times.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch; 0 if the clock is set before it.
pub(super) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
