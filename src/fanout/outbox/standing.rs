//! The standing of a member: whether the [gate](crate::fanout::log::gate) of the log counts it, and as what.
//!
//! A member is *heavy* from the moment half of its bound is taken until less than three eighths are. Any sender, and
//! the member's shard, may observe that the bound passes one of the two limits. Exactly one thread observes it, but the
//! bound may have changed back before that thread reports it. So the thread doesn't report what it observed: it copies
//! the bound's current level into the standing, and repeats this until both agree.
//!
//! # Orderings
//! All changes are read-modify-writes with `AcqRel` of one word. Of two threads the one that changes the word second
//! sees what the first did to the bound before. So the last change of the word agrees with the bound, and each change
//! from light to heavy or back is counted by the thread that made it, unless the member isn't counted at that moment:
//! it begins with the weight that it has then, and retires with the weight that it has then.

use crate::sync::{AtomicU8, Ordering};

const COUNTED: u8 = 1;
const HEAVY: u8 = 2;

/// Whether a member counts, and whether it is heavy.
#[derive(Debug)]
pub(super) struct Standing(AtomicU8);

/// What a change of the weight means for the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reweighed {
    /// The member counts, and its weight has changed.
    Changed,
    /// The member had that weight, or doesn't count.
    Uncounted,
}

/// What the end of a member means for the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Discounted {
    Heavy,
    Light,
    /// The member has never begun.
    NeverCounted,
}

impl Standing {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    /// Whether the member counts and is heavy.
    pub(super) fn is_counted_as_heavy(&self) -> bool {
        // Relaxed: a hint that may be outdated at once.
        self.0.load(Ordering::Relaxed) == COUNTED | HEAVY
    }

    /// Counts the member from now on. Returns whether it is heavy.
    pub(super) fn count(&self) -> bool {
        self.0.fetch_or(COUNTED, Ordering::AcqRel) & HEAVY != 0
    }

    /// Counts the member no longer.
    pub(super) fn discount(&self) -> Discounted {
        let before = self.0.fetch_and(!COUNTED, Ordering::AcqRel);
        match (before & COUNTED != 0, before & HEAVY != 0) {
            (true, true) => Discounted::Heavy,
            (true, false) => Discounted::Light,
            (false, _) => Discounted::NeverCounted,
        }
    }

    /// Notes the weight that the bound shows.
    pub(super) fn weigh(&self, is_heavy: bool) -> Reweighed {
        let before = match is_heavy {
            true => self.0.fetch_or(HEAVY, Ordering::AcqRel),
            false => self.0.fetch_and(!HEAVY, Ordering::AcqRel),
        };
        let changes = before & COUNTED != 0 && (before & HEAVY != 0) != is_heavy;
        if changes { Reweighed::Changed } else { Reweighed::Uncounted }
    }
}
