//! How long nothing has been heard of a viewer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// The clock that runs between what is heard of a viewer. It runs from [`watch`](Self::watch) on, until it has said
/// once that the limit was exceeded.
///
/// What is heard only moves an instant; the timer looks at it when it goes off, and is set anew.
pub(super) struct Silence {
    limit: Duration,
    heard: Instant,
    /// Nobody has one who isn't watched.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, heard: Instant::now(), timer: None }
    }

    /// Something was heard.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// From now on silence counts.
    pub(super) fn watch(&mut self) {
        if self.timer.is_none() {
            // One that lies beyond what the clock can say never comes.
            self.timer = self.due().map(|due| Box::pin(sleep_until(due)));
        }
    }

    /// Silence doesn't count any more.
    pub(super) fn disregard(&mut self) {
        self.timer = None;
    }

    /// Ready once nothing has been heard for as long as the limit; then silence doesn't count until it is
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
