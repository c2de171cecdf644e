//! The gate of the log: while it is closed, no position may be claimed, whatever capacity the log has.
//!
//! Two things close the gate: a stalled uplink, and, if the embedder has chosen so, a majority of members that are
//! behind. Shards read on in either case, so direct messages, joins, subscriptions and the close go on.
//!
//! A member counts from the moment it begins (a joining member doesn't) until it retires. It becomes *heavy* when half
//! of its bound is taken, and stays heavy until less than three eighths are: see
//! [`Standing`](crate::fanout::outbox::standing). The majority is a share of the session's members, over all shards.
//!
//! # States
//! | state | becomes | when |
//! |---|---|---|
//! | open | held | the heavy members are more than the share, and the members are at least `at_least` |
//! | held | open | they no longer are |
//! | held | given up | no heavy member has made progress for the patience |
//! | given up | held | a heavy member makes progress |
//! | given up | open | the heavy members are no longer more than the share |
//!
//! The gate is open in the state *given up*. There is no second, lower share at which a hold ends: stalled members just
//! below the share would then prolong the hold after all others had caught up. The two limits of each member keep the
//! gate from opening and closing at each message.
//!
//! # The word
//! State, heavy members and members share one word, and change in one compare-exchange. With a separate flag, two
//! shards that change the count at the same moment could leave the flag set: the one that counts last has decided
//! first.
//!
//! ```text
//! 63               62     61         60                  30 29                  0
//! | uplink stalled | held | given up | heavy + 2³⁰ (31)    | members (30)        |
//! ```
//!
//! Two threads may count two changes of one member in the wrong order, so the number of heavy members may be too small,
//! even negative, for an instant. The word stores it with an offset. The thread whose change is outstanding decides
//! again when it counts.
//!
//! # Orderings
//! - The word is changed with `AcqRel` and read with `Acquire`: a publisher that finds the gate open sees what happened
//!   before it opened. A publisher that races with the change may see either value.
//! - The progress is noted before the compare-exchange that begins a hold. A shard that sees the hold sees a progress
//!   that is no older, and doesn't end the hold at once.
//! - A caller that has opened the gate then wakes the publishers that wait, with the fence of
//!   [`signal`](crate::sync::signal).
//! - `timed` follows the word. A thread that has changed the word looks at `timed`; one that has changed `timed` looks
//!   at the word again. A `SeqCst` fence stands between the two steps on either side, as in
//!   [`signal`](crate::sync::signal): at least one of two such threads sees what the other has changed, so that the two
//!   words agree at rest. `timed` is changed with `AcqRel`, and each change is counted by the thread that made it, in
//!   `holds` and `held_ms`, with `Release`. A reader loads those with `Acquire`, the sum before `timed`: a hold that
//!   has just ended may be in neither for an instant.

use std::task::{Context, Poll};
use std::time::Duration;

use crossbeam::utils::CachePadded;

use crate::contract::{Hold, UplinkState};
use crate::fanout::clock::{Clock, SessionMs};
use crate::sync::signal::Signal;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::time::millis;

const UPLINK: u64 = 1 << 63;
const HELD: u64 = 1 << 62;
const GIVEN_UP: u64 = 1 << 61;
const HEAVY_SHIFT: u32 = 30;
const MEMBERS: u64 = (1 << HEAVY_SHIFT) - 1;
/// What is added to the heavy members, so that the field is never negative.
const OFFSET: u64 = 1 << 30;
/// The word of an open gate without members.
const EMPTY: u64 = OFFSET << HEAVY_SHIFT;

/// How often and how long publishers were held because most members were behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HoldStats {
    pub(crate) is_held: bool,
    pub(crate) holds: u64,
    pub(crate) held_for: Duration,
}

/// A change of what the gate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fanout) enum Count {
    /// A member has begun.
    Begun { is_heavy: bool },
    /// A member that had begun has retired.
    Retired { was_heavy: bool },
    /// A member that has begun has become heavy.
    Heavy,
    /// A member that has begun is no longer heavy.
    Light,
}

/// Whether a change of the counts has opened the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gated {
    /// The gate was closed before and is open now: the caller wakes the publishers that wait.
    Opened,
    /// The gate is as it was, or is closed now.
    Unopened,
}

/// The gate of the log.
#[derive(Debug)]
pub(super) struct Gate {
    word: AtomicU64,
    /// `None` if publishers are never held because of members.
    hold: Option<Box<Holding>>,
}

#[derive(Debug)]
struct Holding {
    settings: Hold,
    patience: u64,
    clock: Clock,
    /// When a heavy member last made progress, or the hold began.
    progress: CachePadded<AtomicU64>,
    /// The lowest bit: publishers are held. The others: since when they are or aren't.
    timed: AtomicU64,
    holds: AtomicU64,
    /// For how long publishers were held, in milliseconds, without the hold of now.
    held_ms: AtomicU64,
    /// Wakes the task that reports holds.
    begun: Signal,
}

impl Count {
    /// What the change adds to the word.
    fn weight(self) -> u64 {
        let heavy = |is_heavy: bool| u64::from(is_heavy) << HEAVY_SHIFT;
        match self {
            Self::Begun { is_heavy } => 1 + heavy(is_heavy),
            Self::Retired { was_heavy } => (1 + heavy(was_heavy)).wrapping_neg(),
            Self::Heavy => heavy(true),
            Self::Light => heavy(true).wrapping_neg(),
        }
    }
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { word: AtomicU64::new(EMPTY), hold: None }
    }

    /// A gate that also closes while most members are behind.
    pub(super) fn with_hold(settings: Hold, clock: Clock) -> Self {
        let hold = Holding {
            settings,
            patience: millis(settings.patience),
            clock,
            progress: CachePadded::new(AtomicU64::new(0)),
            timed: AtomicU64::new(0),
            holds: AtomicU64::new(0),
            held_ms: AtomicU64::new(0),
            begun: Signal::new(),
        };
        Self { word: AtomicU64::new(EMPTY), hold: Some(Box::new(hold)) }
    }

    /// Whether no position may be claimed for now.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.word.load(Ordering::Acquire) & (UPLINK | HELD) != 0
    }

    pub(super) fn is_uplink_stalled(&self) -> bool {
        self.word.load(Ordering::Acquire) & UPLINK != 0
    }

    /// Whether the gate counts members.
    #[inline]
    pub(super) fn counts(&self) -> bool {
        self.hold.is_some()
    }

    pub(super) fn patience(&self) -> Option<Duration> {
        self.hold.as_ref().map(|hold| hold.settings.patience)
    }

    /// Closes the gate while the uplink is stalled.
    pub(super) fn set_uplink(&self, state: UplinkState) -> Gated {
        let before = match state {
            UplinkState::Stalled => self.word.fetch_or(UPLINK, Ordering::AcqRel),
            UplinkState::Flowing => self.word.fetch_and(!UPLINK, Ordering::AcqRel),
        };
        let opens = state == UplinkState::Flowing && before & UPLINK != 0 && before & HELD == 0;
        if opens { Gated::Opened } else { Gated::Unopened }
    }

    /// Counts a change of a member, and judges whether publishers are held.
    pub(super) fn count(&self, change: Count) -> Gated {
        let Some(hold) = &self.hold else { return Gated::Unopened };
        self.change(hold, |word| {
            let now = hold.judge(word.wrapping_add(change.weight()));
            if now & HELD != 0 && word & HELD == 0 {
                hold.note_progress(hold.clock.now());
            }
            Some(now)
        })
    }

    /// Notes that a heavy member has made progress.
    pub(super) fn note_progress(&self, now: SessionMs) {
        let Some(hold) = &self.hold else { return };
        hold.note_progress(now);
        if self.word.load(Ordering::Acquire) & GIVEN_UP != 0 {
            self.change(hold, |word| (word & GIVEN_UP != 0).then_some(word & !GIVEN_UP | HELD));
        }
    }

    /// Ends a hold under which no heavy member has made progress for the patience.
    pub(super) fn give_up_if_stuck(&self, now: SessionMs) -> Gated {
        let Some(hold) = &self.hold else { return Gated::Unopened };
        self.change(hold, |word| {
            // In this order: the progress is no older than the hold.
            let is_stuck =
                word & HELD != 0 && now.since(SessionMs(hold.progress.load(Ordering::Relaxed))) >= hold.patience;
            is_stuck.then_some(word & !HELD | GIVEN_UP)
        })
    }

    /// Changes the word, and what follows it.
    fn change(&self, hold: &Holding, mut to: impl FnMut(u64) -> Option<u64>) -> Gated {
        let mut after = 0;
        let changed = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let now = to(word)?;
            after = now;
            Some(now)
        });
        let Ok(before) = changed else { return Gated::Unopened };
        if (before ^ after) & HELD != 0 {
            hold.keep_time(|| self.word.load(Ordering::Acquire) & HELD != 0);
        }
        let opens = before & HELD != 0 && after & (HELD | UPLINK) == 0;
        if opens { Gated::Opened } else { Gated::Unopened }
    }

    pub(super) fn stats(&self) -> HoldStats {
        let Some(hold) = &self.hold else { return HoldStats::default() };
        // First the sum and then the hold of now, which is added to the sum only after it has ended.
        let ended = hold.held_ms.load(Ordering::Acquire);
        let (is_held, since) = hold.timed();
        let now = if is_held { hold.clock.now().since(since) } else { 0 };
        let holds = hold.holds.load(Ordering::Acquire);
        HoldStats { is_held, holds, held_for: Duration::from_millis(ended + now) }
    }

    /// For how long no publisher was held; `None` while publishers are held.
    pub(super) fn open_for(&self) -> Option<Duration> {
        let Some(hold) = &self.hold else { return Some(Duration::MAX) };
        let (is_held, since) = hold.timed();
        (!is_held).then(|| Duration::from_millis(hold.clock.now().since(since)))
    }

    /// Waits until there have been more than `seen` holds, and returns how many there have been.
    pub(super) fn poll_holds(&self, seen: u64, cx: &mut Context<'_>) -> Poll<u64> {
        let Some(hold) = &self.hold else { return Poll::Pending };
        let more = || Some(hold.holds.load(Ordering::Acquire)).filter(|holds| *holds > seen);
        if hold.begun.sleeps_unless(cx.waker(), || more().is_some()) {
            return Poll::Pending;
        }
        Poll::Ready(more().unwrap_or(seen))
    }

    /// The members that have begun, and how many of them are heavy.
    #[cfg(all(test, lanecast_loom))]
    pub(super) fn counted(&self) -> (u64, i64) {
        let word = self.word.load(Ordering::Acquire);
        (word & MEMBERS, heavy(word))
    }
}

impl Holding {
    /// The word with the state that its counts call for.
    fn judge(&self, word: u64) -> u64 {
        let members = word & MEMBERS;
        let is_majority = members >= u64::from(self.settings.at_least)
            && heavy(word) * 100 > i64::from(self.settings.share_percent) * members.cast_signed();
        match is_majority {
            false => word & !(HELD | GIVEN_UP),
            true if word & GIVEN_UP != 0 => word,
            true => word | HELD,
        }
    }

    fn note_progress(&self, SessionMs(now): SessionMs) {
        // Relaxed: compared with a clock. (What a hold has noted is seen with the hold.)
        self.progress.fetch_max(now, Ordering::Relaxed);
    }

    /// Whether publishers are held, as `timed` says, and since when that is so.
    fn timed(&self) -> (bool, SessionMs) {
        let timed = self.timed.load(Ordering::Acquire);
        (timed & 1 != 0, SessionMs(timed >> 1))
    }

    /// Brings `timed` in agreement with the word.
    #[cold]
    fn keep_time(&self, is_held: impl Fn() -> bool) {
        loop {
            fence(Ordering::SeqCst);
            let (is, before) = (is_held(), self.timed.load(Ordering::Acquire));
            if (before & 1 != 0) == is {
                return;
            }
            let now = self.clock.now();
            let after = now.0 << 1 | u64::from(is);
            if self.timed.compare_exchange(before, after, Ordering::AcqRel, Ordering::Acquire).is_err() {
                continue;
            }
            if is {
                self.holds.fetch_add(1, Ordering::Release);
                self.begun.wake();
            } else {
                self.held_ms.fetch_add(now.since(SessionMs(before >> 1)), Ordering::Release);
            }
        }
    }
}

/// The heavy members of a word. May be negative for an instant.
fn heavy(word: u64) -> i64 {
    let field = (word & !(UPLINK | HELD | GIVEN_UP)) >> HEAVY_SHIFT;
    field.cast_signed() - OFFSET.cast_signed()
}
