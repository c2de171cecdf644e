//! When publishers are held, as the model has it: it decides anew after each change of a participant.
//!
//! # What isn't determined
//! If several participants change in one operation, some towards a hold and others away from it, their order isn't
//! promised. If the order matters, publishers may be held and released on the way. Then the model takes over from the
//! runtime whether publishers are held, how often they were, and which of the waiting ones went, as far as the
//! counts of participants and of changes allow. Everything else is compared as always.
//!
//! Once the patience is over, publishers continue at most a quarter of it later. The test waits until that is over. A
//! publisher that waits tells the exact time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::linger::Entry;
use crate::subject::{Event, Inst, Lane};

/// A participant is heavy once this fraction of its bound is taken, in messages or in bytes.
const HEAVY_FROM: Fraction = Fraction(1, 2);
/// A heavy participant is heavy until less than this fraction is taken, in messages and in bytes.
const LIGHT_BELOW: Fraction = Fraction(3, 8);
/// How often within the patience the runtime looks who makes progress. So its end is noticed at most one look late.
const LOOKS: u64 = 4;
/// A log whose publishers may be held has this fraction of the bytes that may wait for a participant, and at most this
/// fraction of the messages.
const LOG_BYTES: Fraction = Fraction(1, 8);
const LOG_SLOTS: Fraction = Fraction(1, 4);
/// For how many milliseconds no publisher may have been held before that is reported.
const QUIET: u64 = 1000;

/// When publishers are held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) at_least: u32,
    pub(crate) share_percent: u8,
    /// In milliseconds; a multiple of [`LOOKS`].
    pub(crate) patience: u64,
}

#[derive(Clone, Copy, Debug)]
struct Fraction(u64, u64);

/// How full a bound is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Low,
    Between,
    High,
}

/// The participants that have begun, and those of them that are heavy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Counts {
    pub(crate) members: u64,
    pub(crate) heavy: u64,
}

/// A change of a participant that may begin or end a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Change {
    Begun,
    /// It has begun, and is heavy by what it was sent before.
    BegunHeavy,
    RetiredHeavy,
    RetiredLight,
    Heavy,
    Light,
    /// It is heavy, and makes progress.
    Progress,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    #[default]
    Open,
    Held,
    /// The majority makes no progress, and publishers continue.
    GivenUp,
}

/// The figures of holds that the runtime shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HoldStats {
    pub(crate) is_held: bool,
    pub(crate) holds: u64,
}

/// A point in an order of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    counts: Counts,
    state: State,
    holds: u64,
}

/// The state before an operation.
#[derive(Clone, Copy, Debug, Default)]
struct Prior {
    stats: HoldStats,
    is_told: bool,
    progress: (u64, u64),
    opened: (u64, u64),
}

/// Whether publishers are held, and those that wait. Times are in milliseconds since the session began.
#[derive(Debug)]
pub(crate) struct Holding {
    policy: Option<Policy>,
    at: Point,
    /// When the hold began, or a heavy participant last made progress under it: between these times.
    progress: (u64, u64),
    /// When publishers were last let go: between these times.
    opened: (u64, u64),
    /// Whether listeners were last told that publishers are held.
    is_told: bool,
    pub(crate) waiting: VecDeque<Entry>,
    /// When the runtime let the first of them go, of those that have gone and haven't here yet.
    pub(crate) gone: VecDeque<u64>,
    /// The changes of which no order is promised, and the state before them.
    changes: Vec<(Inst, Change)>,
    before: Point,
    /// Since when the order of the changes matters and isn't known, if it does.
    unsure_since: Option<u64>,
    prior: Prior,
    /// How many changes there were since then.
    changed: u64,
    /// Publishers had been let go for lack of progress when the operation began, or were during it.
    had_given_up: bool,
    pub(crate) times_given_up: usize,
    pub(crate) times_unsure: usize,
}

impl Fraction {
    fn of(self, limit: u64) -> u64 {
        limit * self.0 / self.1
    }

    fn is_reached(self, taken: u64, limit: u64) -> bool {
        taken * self.1 >= limit * self.0
    }
}

impl Level {
    /// The level of a bound, by the messages and the bytes that are taken, and what may be.
    pub(crate) fn of(taken: (u64, u64), limits: (u64, u64)) -> Self {
        let is_reached = |by: Fraction| by.is_reached(taken.0, limits.0) || by.is_reached(taken.1, limits.1);
        match (is_reached(HEAVY_FROM), is_reached(LIGHT_BELOW)) {
            (true, _) => Self::High,
            (false, true) => Self::Between,
            (false, false) => Self::Low,
        }
    }

    /// Whether this much more may make a participant heavy that has only just become light.
    pub(crate) fn may_become_heavy(more: (u64, u64), limits: (u64, u64)) -> bool {
        let rises = |more, limit| more >= HEAVY_FROM.of(limit) - LIGHT_BELOW.of(limit);
        rises(more.0, limits.0) || rises(more.1, limits.1)
    }
}

impl Policy {
    /// The time between two looks at who makes progress.
    pub(crate) fn look(&self) -> u64 {
        self.patience / LOOKS
    }

    /// The largest log beside a queue of so many messages.
    pub(crate) fn most_slots(queue_capacity: u32) -> usize {
        LOG_SLOTS.of(queue_capacity.into()) as usize
    }

    /// How many bytes stand in the log at most, unless it is one message.
    pub(crate) fn log_bytes(queue_bytes: u64) -> u64 {
        LOG_BYTES.of(queue_bytes)
    }

    fn is_majority(&self, Counts { members, heavy }: Counts) -> bool {
        members >= u64::from(self.at_least) && heavy * 100 > u64::from(self.share_percent) * members
    }
}

impl Point {
    fn after(self, change: Change, policy: Policy) -> Self {
        let Counts { members, heavy } = self.counts;
        let counts = match change {
            Change::Begun => Counts { members: members + 1, heavy },
            Change::BegunHeavy => Counts { members: members + 1, heavy: heavy + 1 },
            Change::RetiredHeavy => Counts { members: members - 1, heavy: heavy - 1 },
            Change::RetiredLight => Counts { members: members - 1, heavy },
            Change::Heavy => Counts { members, heavy: heavy + 1 },
            Change::Light => Counts { members, heavy: heavy - 1 },
            Change::Progress => self.counts,
        };
        let state = match self.state {
            _ if !policy.is_majority(counts) => State::Open,
            State::GivenUp if change != Change::Progress => State::GivenUp,
            State::Open | State::Held | State::GivenUp => State::Held,
        };
        let begins = state == State::Held && self.state != State::Held;
        Self { counts, state, holds: self.holds + u64::from(begins) }
    }
}

/// Takes one of those that are counted under `key`.
fn take_one<K: Ord>(counted: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counted.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counted.remove(key);
        }
    }
}

impl Holding {
    pub(crate) fn new(policy: Option<Policy>) -> Self {
        Self {
            policy,
            at: Point::default(),
            progress: (0, 0),
            opened: (0, 0),
            is_told: false,
            waiting: VecDeque::new(),
            gone: VecDeque::new(),
            changes: Vec::new(),
            before: Point::default(),
            unsure_since: None,
            prior: Prior::default(),
            changed: 0,
            had_given_up: false,
            times_given_up: 0,
            times_unsure: 0,
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        self.at.state == State::Held
    }

    pub(crate) fn has_given_up(&self) -> bool {
        self.at.state == State::GivenUp
    }

    pub(crate) fn stats(&self) -> HoldStats {
        HoldStats { is_held: self.is_held(), holds: self.at.holds }
    }

    /// Whether a publisher waits with a message of `topic`.
    pub(crate) fn waits_for(&self, topic: usize) -> bool {
        let is_of_topic = |entry: &Entry| matches!(entry, Entry::Broadcast(msg) if msg.lane == Lane::Topic(topic));
        self.waiting.iter().any(is_of_topic)
    }

    /// Begins an operation.
    pub(crate) fn begin(&mut self) {
        let (stats, is_told, progress, opened) = (self.stats(), self.is_told, self.progress, self.opened);
        (self.prior, self.had_given_up) = (Prior { stats, is_told, progress, opened }, self.has_given_up());
        self.changed = 0;
        self.begin_phase();
    }

    /// Takes in the change of a participant.
    pub(crate) fn count(&mut self, inst: Inst, change: Change, now: u64, events: &mut Vec<Event>) {
        let Some(policy) = self.policy else { return };
        self.changes.push((inst, change));
        self.changed += 1;
        let after = self.at.after(change, policy);
        if self.is_held() && after.state != State::Held {
            self.opened = (now, now);
        }
        if after.holds > self.at.holds || change == Change::Progress {
            self.progress = (now, now);
        }
        if after.holds > self.at.holds && !std::mem::replace(&mut self.is_told, true) {
            events.push(Event::Held);
        }
        self.at = after;
    }

    /// Begins a phase: all changes so far came before those that follow.
    pub(crate) fn begin_phase(&mut self) {
        self.changes.clear();
        self.before = self.at;
    }

    /// Looks whether the order of what has happened matters. It tries all orders in which what happened to each
    /// participant stays in its own order.
    pub(crate) fn judge_order(&mut self, now: u64) {
        let Some(policy) = self.policy.filter(|_| !self.changes.is_empty()) else { return };
        let mut of_each: BTreeMap<Inst, Vec<Change>> = BTreeMap::new();
        for (inst, change) in &self.changes {
            of_each.entry(*inst).or_default().push(*change);
        }
        // Participants to which the same happens are as good as each other.
        let mut left: BTreeMap<Vec<Change>, usize> = BTreeMap::new();
        for changes in of_each.into_values() {
            *left.entry(changes).or_default() += 1;
        }
        let mut orders = BTreeSet::from([(left, self.before)]);
        let mut ends = BTreeSet::new();
        while let Some((left, at)) = orders.pop_first() {
            if left.is_empty() {
                ends.insert((at.state, at.holds));
            }
            for changes in left.keys() {
                let mut left = left.clone();
                take_one(&mut left, changes);
                if changes.len() > 1 {
                    *left.entry(changes[1..].to_vec()).or_default() += 1;
                }
                orders.insert((left, at.after(changes[0], policy)));
            }
        }
        // A publisher that was let go in between may have found the next hold, or not.
        let is_held_again = self.before.state == State::Held && self.is_held() && self.at.holds > self.before.holds;
        if ends.len() > 1 || is_held_again && !self.waiting.is_empty() {
            self.note_unsure(now);
        }
    }

    /// Whether a viewer has just been let go.
    pub(crate) fn is_let_go(&self) -> bool {
        self.changes.iter().any(|(_, change)| *change == Change::Light)
    }

    pub(crate) fn is_unsure(&self) -> bool {
        self.unsure_since.is_some()
    }

    pub(crate) fn note_unsure(&mut self, now: u64) {
        self.unsure_since.get_or_insert(now);
    }

    /// When publishers continue because nobody makes progress: when the first that waits went, or at the latest time.
    pub(crate) fn gives_up_at(&self) -> Option<u64> {
        let policy = self.policy.filter(|_| self.is_held())?;
        let window = self.progress.0 + policy.patience..=self.progress.1 + policy.patience + policy.look() + 1;
        let seen = self.gone.front().copied().filter(|at| window.contains(at));
        Some(seen.unwrap_or(*window.end()))
    }

    /// Whether the patience may be noticed to be over at any time, or a release be reported.
    pub(crate) fn is_in_doubt(&self, now: u64) -> bool {
        self.policy.is_some_and(|policy| match self.is_held() {
            true => now >= self.progress.0 + policy.patience,
            false => self.is_told && now >= self.opened.0 + QUIET,
        })
    }

    pub(crate) fn give_up(&mut self, now: u64) {
        let patience = self.policy.map_or(0, |policy| policy.patience);
        let since = if self.gone.front() == Some(&now) { now } else { self.progress.0 + patience };
        (self.at.state, self.opened) = (State::GivenUp, (since, now));
        self.had_given_up = true;
        self.times_given_up += 1;
    }

    /// When listeners are told that publishers are held no longer.
    pub(crate) fn is_released_at(&self) -> Option<u64> {
        (self.is_told && !self.is_held()).then_some(self.opened.1 + QUIET)
    }

    pub(crate) fn tell_released(&mut self, events: &mut Vec<Event>) {
        self.is_told = false;
        events.push(Event::Released);
    }

    /// Takes over what the runtime shows, if the order of the changes matters and the counts allow that.
    pub(crate) fn adopt(&mut self, seen: HoldStats, now: u64) {
        let Some(since) = self.unsure_since.take() else { return };
        self.times_unsure += 1;
        // Each change begins one hold at most.
        let explained = self.prior.stats.holds..=self.prior.stats.holds + self.changed;
        let is_majority = self.policy.is_some_and(|policy| policy.is_majority(self.at.counts));
        let is_possible = seen.is_held == is_majority || self.had_given_up && !seen.is_held;
        if !is_possible || !explained.contains(&seen.holds) {
            return;
        }
        if seen == self.prior.stats {
            (self.progress, self.opened) = (self.prior.progress, self.prior.opened);
        } else if seen != self.stats() {
            (self.progress, self.opened) = ((since, now), (since, now));
        }
        self.at.holds = seen.holds;
        self.at.state = match (seen.is_held, is_majority) {
            (true, _) => State::Held,
            (false, true) => State::GivenUp,
            (false, false) => State::Open,
        };
    }

    /// Takes over whether listeners know of a hold, from what they were told during an operation.
    pub(crate) fn adopt_told(&mut self, events: &[Event]) {
        let last = events.iter().rev().find(|event| event.is_of_hold());
        self.is_told = last.map_or(self.prior.is_told, |last| *last == Event::Held);
    }
}
