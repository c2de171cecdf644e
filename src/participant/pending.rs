//! The participants that wait to be reset, and the wake-up of the event loop that resets them.
//!
//! Any thread inserts. Only the session's event loop takes instances out, the oldest first. An instance is in the set
//! at most once. The set is a skip list: it hands out the oldest instance first, so that none starves, and an inserting
//! thread never waits for a lock. `perf/README.md` has the alternative it was measured against. The set doesn't ensure
//! that an instance is reset only once. The instance's state word does: only the caller that ended the instance inserts
//! it.
//!
//! # Orderings
//! A thread inserts, then calls [`Signal::wake`]. The event loop calls [`Signal::doze`], then looks at the set again.
//! See [`signal`](crate::sync::signal).

use std::task::{Context, Poll};

use crate::ids::{ClientId, ParticipantSid};
use crate::sync::SkipSet;
use crate::sync::signal::Signal;

/// The set of instances that wait to be reset, and the signal that wakes the event loop for them.
#[derive(Debug)]
pub(crate) struct PendingResets {
    set: SkipSet<(ClientId, ParticipantSid)>,
    signal: Signal,
}

impl PendingResets {
    pub(crate) fn new() -> Self {
        Self { set: SkipSet::new(), signal: Signal::new() }
    }

    /// Adds an instance and wakes the event loop. Adding it again changes nothing.
    pub(crate) fn insert(&self, client_id: ClientId, sid: ParticipantSid) {
        self.set.insert((client_id, sid));
        self.signal.wake();
    }

    /// Takes the oldest instance out. If there is none, the next insert wakes the task.
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
