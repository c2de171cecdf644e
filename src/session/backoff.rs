//! The back-off of an identity that fails repeatedly: how long it waits before it is joined again.
//!
//! A streak of resets and failed joins belongs to an identity, not to an instance or a connection. Reconnecting neither
//! shortens nor restarts the wait. A streak is forgotten once its last failure is older than the longest wait, so the
//! memory it takes is bounded by the failures of that time.

use std::collections::VecDeque;
use std::time::Duration;

use foldhash::HashMap;
use tokio::time::Instant;

use crate::ids::ParticipantIdentity;
use crate::time::Backoff;

/// Returns the wait before the attempt that follows `failures` failures in a row. There is none after the first; from
/// the second on it doubles each time.
pub(crate) fn wait_after(backoff: Backoff, failures: u32) -> Duration {
    failures.checked_sub(2).map_or(Duration::ZERO, |doublings| backoff.wait(doublings))
}

/// The consecutive failures of one identity.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streak {
    pub(crate) failures: u32,
    /// The earliest time of its next join.
    pub(crate) until: Instant,
    noted: Instant,
}

/// The streaks of all identities that have failed lately.
#[derive(Debug)]
pub(crate) struct Streaks {
    backoff: Backoff,
    by_identity: HashMap<ParticipantIdentity, Streak>,
    /// The time of each failure, oldest first.
    forget: VecDeque<(Instant, ParticipantIdentity)>,
}

impl Streaks {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { backoff, by_identity: HashMap::default(), forget: VecDeque::new() }
    }

    /// Records that an instance of `identity` was reset, which lasted for `age` and followed `failures` failures. Its
    /// successor may have begun to join before that: failures recorded since count, too.
    pub(crate) fn note_reset(&mut self, identity: &ParticipantIdentity, failures: u32, age: Duration) -> Streak {
        let before = if age > self.backoff.longest { 0 } else { failures };
        let noted = self.of(identity).map_or(0, |streak| streak.failures);
        let failures = before.max(noted).saturating_add(1);
        self.note(identity, failures, wait_after(self.backoff, failures))
    }

    /// Records that a join of `identity` has failed, the last of `failures` failures that the join knows of. Returns
    /// until when the next attempt waits.
    pub(crate) fn note_failure(&mut self, identity: &ParticipantIdentity, failures: u32) -> Instant {
        let noted = self.of(identity).map_or(0, |streak| streak.failures);
        let failures = failures.max(noted.saturating_add(1));
        // Only the reset of an instance that worked may be followed by an attempt at once.
        self.note(identity, failures, wait_after(self.backoff, failures.max(2))).until
    }

    fn note(&mut self, identity: &ParticipantIdentity, failures: u32, wait: Duration) -> Streak {
        let noted = Instant::now();
        self.expire(noted);
        let streak = Streak { failures, until: noted + wait, noted };
        self.by_identity.insert(identity.clone(), streak);
        self.forget.push_back((noted, identity.clone()));
        streak
    }

    /// Returns the streak of `identity`, if it has one.
    pub(crate) fn of(&mut self, identity: &ParticipantIdentity) -> Option<Streak> {
        if self.forget.is_empty() {
            return None;
        }
        self.expire(Instant::now());
        self.by_identity.get(identity).copied()
    }

    fn expire(&mut self, now: Instant) {
        let longest = self.backoff.longest;
        while let Some((at, identity)) = self.forget.pop_front_if(|(at, _)| now.duration_since(*at) > longest) {
            // A later failure of the same identity keeps the streak.
            if self.by_identity.get(&identity).is_some_and(|streak| streak.noted == at) {
                self.by_identity.remove(&identity);
            }
        }
    }
}
