//! The clock by which a shard finds blocked members that don't move.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// The longest wait between two looks, however long the session's write time-out: a transport may have set a shorter one
/// for its participants.
const LONGEST: Duration = Duration::from_secs(2);

/// Runs while it is armed.
pub(super) struct Tick {
    sleep: Pin<Box<Sleep>>,
    armed: bool,
    period: Duration,
}

impl Tick {
    /// Fine enough for a time-out: a sixteenth of it, so that it is noticed at most that much late, and a look costs
    /// little; and at least every `span`.
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

    /// Whether it is time; if so, it has to be armed again. If not, the task is woken when it is.
    pub(super) fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        let due = self.armed && self.sleep.as_mut().poll(cx).is_ready();
        self.armed &= !due;
        due
    }
}
