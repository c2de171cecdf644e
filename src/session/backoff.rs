//! How long an identity that was reset again waits before it is joined anew.
//!
//! A streak of resets belongs to an identity, not to an instance or a connection: who reconnects after each reset waits
//! as long as who stays. It is forgotten once its last reset lies back longer than the longest wait, so what is kept is
//! bounded by the resets of that time, and by nothing that anybody can ask for without being reset.

use std::collections::VecDeque;
use std::time::Duration;

use foldhash::HashMap;
use tokio::time::Instant;

use crate::ids::ParticipantIdentity;

/// How long a participant that failed again waits before its next attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Backoff {
    /// The wait before the attempt that follows `failures` failures in a row: none after the first, then doubling,
    /// less up to half of it at random, so that those who failed together don't come back together.
    pub(crate) fn delay(self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(2) else { return Duration::ZERO };
        let full = self.first.saturating_mul(1 << doublings.min(20)).min(self.longest);
        full.mul_f64(1.0 - fastrand::f64() / 2.0)
    }
}

/// Resets of one identity in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streak {
    pub(crate) failures: u32,
    /// When the last one was.
    pub(crate) last: Instant,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Streaks {
    memory: Duration,
    by_identity: HashMap<ParticipantIdentity, Streak>,
    /// Each reset, the oldest first: when it is to be forgotten.
    forget: VecDeque<(Instant, ParticipantIdentity)>,
}

impl Streaks {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { memory: backoff.longest, by_identity: HashMap::default(), forget: VecDeque::new() }
    }

    /// Notes that an instance of `identity`, that lasted for `age` and came after `failures` failures, was reset.
    pub(crate) fn note_reset(&mut self, identity: &ParticipantIdentity, failures: u32, age: Duration) {
        let last = Instant::now();
        self.expire(last);
        let failures = if age > self.memory { 1 } else { failures.saturating_add(1) };
        self.by_identity.insert(identity.clone(), Streak { failures, last });
        self.forget.push_back((last, identity.clone()));
    }

    /// The streak of `identity`, if it has one.
    pub(crate) fn of(&mut self, identity: &ParticipantIdentity) -> Option<Streak> {
        if self.forget.is_empty() {
            return None;
        }
        self.expire(Instant::now());
        self.by_identity.get(identity).copied()
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, identity)) = self.forget.pop_front_if(|(at, _)| now.duration_since(*at) > self.memory) {
            // A later reset of the same identity keeps it.
            if self.by_identity.get(&identity).is_some_and(|streak| streak.last == at) {
                self.by_identity.remove(&identity);
            }
        }
    }
}
