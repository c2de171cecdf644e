//! The participants that wait to be reset, and the wake-up of the loop that does it.
//!
//! Any thread inserts; the session's event loop alone takes out, oldest instance first. An instance is in the set at
//! most once. A skip list, as it hands out the oldest first, so that nobody starves, and nobody who inserts waits for a
//! lock; what it was measured against is in `perf/README.md`. It isn't the set that makes a reset happen once, though,
//! but the instance's state word: only who ended it inserts it.
//!
//! # Orderings
//! Insert, then [`Signal::wake`]; [`Signal::doze`], then look at the set again: see [`signal`](crate::lane::signal).

use std::task::{Context, Poll};

use crate::ids::{ClientId, ParticipantSid};
use crate::lane::signal::Signal;
use crate::sync::SkipSet;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct PendingResets {
    set: SkipSet<(ClientId, ParticipantSid)>,
    signal: Signal,
}

impl PendingResets {
    pub(crate) fn new() -> Self {
        Self { set: SkipSet::new(), signal: Signal::new() }
    }

    /// Adds an instance and wakes the loop. Adding it again changes nothing.
    pub(crate) fn insert(&self, client_id: ClientId, sid: ParticipantSid) {
        self.set.insert((client_id, sid));
        self.signal.wake();
    }

    /// Takes the oldest instance out, or has the task woken by the next insert.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<(ClientId, ParticipantSid)> {
        if let Some(taken) = self.take() {
            return Poll::Ready(taken);
        }
        self.signal.doze(cx.waker());
        match self.take() {
            Some(taken) => {
                self.signal.rise();
                Poll::Ready(taken)
            }
            None => Poll::Pending,
        }
    }

    /// Takes the oldest instance out, if there is one.
    pub(crate) fn take(&self) -> Option<(ClientId, ParticipantSid)> {
        self.set.pop_front().map(|entry| entry.value().clone())
    }
}
