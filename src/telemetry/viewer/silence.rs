//! How long a viewer has been silent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Measures how long a viewer has been silent: from [`watch`](Self::watch) on, until it has reported once that the
/// limit was exceeded.
///
/// A frame from the viewer only updates an instant. When the timer fires, it is compared with that instant and set
/// again if the limit isn't exceeded yet.
pub(super) struct Silence {
    limit: Duration,
    heard: Instant,
    /// `None` unless the viewer is watched.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, heard: Instant::now(), timer: None }
    }

    /// Notes that something was heard.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Starts to count silence.
    pub(super) fn watch(&mut self) {
        if self.timer.is_none() {
            // No timer for a time beyond the clock's range, which is never reached.
            self.timer = self.due().map(|due| Box::pin(sleep_until(due)));
        }
    }

    /// Stops counting silence.
    pub(super) fn disregard(&mut self) {
        self.timer = None;
    }

    /// Ready once the viewer has been silent for the limit. Silence then doesn't count until the viewer is
    /// [watched](Self::watch) again.
    pub(super) fn poll_exceeded(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let due = self.due();
            let (Some(timer), Some(due)) = (&mut self.timer, due) else { return Poll::Pending };
            ready!(timer.as_mut().poll(cx));
            if due <= Instant::now() {
                self.timer = None;
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }

    fn due(&self) -> Option<Instant> {
        self.heard.checked_add(self.limit)
    }
}
