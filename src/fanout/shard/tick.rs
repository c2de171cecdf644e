//! The timer by which a shard finds blocked members that make no progress.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// The longest period, however long the session's write time-out is: a transport may have set a shorter one for its
/// participants.
const LONGEST: Duration = Duration::from_secs(2);

/// A timer that runs while it is armed.
pub(super) struct Tick {
    sleep: Pin<Box<Sleep>>,
    armed: bool,
    period: Duration,
}

impl Tick {
    /// Creates a timer that is fine enough for `timeout`. Its period is a sixteenth of the time-out, so that the
    /// time-out is noticed at most that much late and a check costs little. The period is at most `span`.
    pub(super) fn for_timeout(timeout: Duration, span: Duration) -> Self {
        let period = (timeout / 16).min(span).clamp(Duration::from_millis(1), LONGEST);
        Self { sleep: Box::pin(sleep_until(Instant::now())), armed: false, period }
    }

    pub(super) fn arm(&mut self) {
        if !self.armed {
            self.armed = true;
            self.sleep.as_mut().reset(Instant::now() + self.period);
        }
    }

    /// Whether the period is over; if so, the timer has to be armed again. If not, an armed timer wakes the task at its
    /// end.
    pub(super) fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        let due = self.armed && self.sleep.as_mut().poll(cx).is_ready();
        self.armed &= !due;
        due
    }
}
