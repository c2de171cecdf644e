//! How long to wait before connecting again.

use std::time::Duration;

/// The first wait, and the longest one. A server that restarts is back within seconds; a server that is down for long
/// is tried twice a minute.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// The longest wait that is granted to a server that asks for one.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits that double from one lost connection to the next. Each is shortened at random to between half and all of its
/// length, so that the viewers of a server that restarts don't connect all at once.
pub(super) struct Pause(Duration);

impl Pause {
    pub(super) fn new() -> Self {
        Self(FIRST)
    }

    /// How long to wait now, after a connection that lasted for `lasted`. If the server `asked` for a longer wait, that
    /// is returned.
    pub(super) fn next(&mut self, lasted: Duration, asked: Option<Duration>) -> Duration {
        // The connection lasted longer than any wait, so this is another outage.
        if lasted > LONGEST {
            self.0 = FIRST;
        }
        let wait = self.0;
        self.0 = (wait * 2).min(LONGEST);
        let asked = asked.unwrap_or_default().min(PATIENCE);
        wait.mul_f64(0.5 + 0.5 * fastrand::f64()).max(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew_after_a_connection_that_held() {
        let mut pause = Pause::new();
        let mut longest = FIRST;
        for _ in 0..10 {
            let wait = pause.next(Duration::ZERO, None);
            assert!(longest / 2 <= wait && wait <= longest, "{wait:?}");
            longest = (longest * 2).min(LONGEST);
        }
        assert!(pause.next(LONGEST * 2, None) <= FIRST);
        let asked = Duration::from_secs(7);
        assert_eq!(pause.next(Duration::ZERO, Some(asked)), asked);
        assert_eq!(pause.next(Duration::ZERO, Some(Duration::MAX)), PATIENCE);
    }
}
