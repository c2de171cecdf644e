//! What several modules need of times: the longest one, whole milliseconds, and the waits of a back-off.

use std::time::Duration;

/// A year, and as good as forever. Settings and deadlines are cut to this: a longer time could overflow the clock that
/// it is added to.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Whole milliseconds; `u64::MAX` for a span that is longer than that.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// How long to wait before the next attempt, after attempts that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Backoff {
    /// Returns the first wait, doubled so many times, up to the longest. Up to half of it is taken off at random, so
    /// that those who failed together don't return together.
    pub(crate) fn wait(self, doublings: u32) -> Duration {
        let full = self.first.saturating_mul(1 << doublings.min(20)).min(self.longest);
        full.mul_f64(1.0 - fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_less_up_to_half() {
        let backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(30) };
        for doublings in 0..40 {
            let full = (backoff.first * 2_u32.pow(doublings.min(10))).min(backoff.longest);
            let wait = backoff.wait(doublings);
            assert!(wait >= full / 2 && wait <= full, "{doublings}: {wait:?}");
        }
    }
}
