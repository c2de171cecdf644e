//! How much of the log a shard reads before it lets the reactor run.
//!
//! A sink that doesn't finish its flush can finish it only once the reactor has run, and usually its peer has to run as
//! well. So a turn reads at most a quarter of the queue capacity, and a member that becomes busy gets at least four
//! reactor runs before it overflows. (Where the bytes are the limit, it gets three: a turn ends with the message that
//! fills its quarter of them, and so exceeds it by up to one message.) A turn also reads no more than [`BATCH`]
//! messages: a longer turn writes no better, and the members at the end of its walk wait for it.
//!
//! Where [`BATCH`] is more than a quarter of the queue capacity, and no more than half, a turn reads [`BATCH`] messages
//! while all members keep up: the larger a write, the smaller the system call's share of its cost. While any member is
//! behind, a turn reads less, so that there are four reactor runs again.
//!
//! Reading ends early, with a batch that a sink carries well ([`Room::batch_bytes`](crate::room::Room::batch_bytes)),
//! if what may still be read wouldn't make another batch: a partial batch would cost each sink a write.

use crate::fanout::outbox::bound::Limits;

/// How often the reactor runs, at least, while the queue of a member that has become busy fills.
const RUNS_BEFORE_OVERFLOW: u32 = 4;

/// How many small messages fill what one write carries well.
const BATCH: u32 = 512;

/// The most messages that a turn reads while any member is behind: half of what a visit hands on. So a member with a
/// long backlog and a ready sink, such as a newcomer, catches up with a publisher that never pauses.
const CAREFUL: u32 = BATCH / 2;

/// An amount of messages and their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::fanout) struct Load {
    pub(in crate::fanout) messages: u32,
    pub(in crate::fanout) bytes: usize,
}

impl Load {
    /// One message of `bytes`.
    pub(in crate::fanout) fn of_one(bytes: usize) -> Self {
        Self { messages: 1, bytes }
    }

    /// The sum of messages can't overflow: a load is at most what one turn reads, one visit hands on, or a sink holds,
    /// and a sink gets nothing more until its flush completes.
    pub(in crate::fanout) fn add(&mut self, more: Self) {
        self.messages += more.messages;
        self.bytes = self.bytes.saturating_add(more.bytes);
    }

    /// Whether the load is as much as `quota` allows. One message is always allowed, however large.
    pub(in crate::fanout) fn reaches(self, quota: Quota) -> bool {
        self.messages >= quota.messages || self.bytes as u64 >= quota.bytes
    }
}

/// How much may be handed on, or read from the log, before the reactor has to run.
#[derive(Clone, Copy, Debug)]
pub(in crate::fanout) struct Quota {
    pub(in crate::fanout) messages: u32,
    pub(in crate::fanout) bytes: u64,
}

impl Quota {
    /// No quota at all.
    pub(super) const UNBOUNDED: Self = Self { messages: u32::MAX, bytes: u64::MAX };

    /// The rest of the quota after `load`: at least one message.
    pub(super) fn after(self, load: Load) -> Self {
        Self {
            messages: self.messages.saturating_sub(load.messages).max(1),
            bytes: self.bytes.saturating_sub(load.bytes as u64).max(1),
        }
    }
}

/// How much may gather for a joining member while its initial messages are computed.
#[derive(Clone, Copy, Debug)]
pub(in crate::fanout) struct Gathering {
    pub(in crate::fanout) bytes: u64,
    /// How long the first gathered message may wait, in milliseconds.
    pub(in crate::fanout) age: u64,
}

impl Gathering {
    /// The bytes that each message counts in addition to its own: about what it takes to retain a message. So empty
    /// messages are bounded as well.
    pub(super) const PER_MESSAGE: u64 = 64;
}

/// How much of the log a shard may read, and how much it has read since the reactor last ran.
#[derive(Debug)]
pub(super) struct ReadBudget {
    /// The quota while all members keep up, and the quota while some don't.
    free: Quota,
    careful: Quota,
    batch_bytes: usize,
    /// How many bytes may wait for one participant.
    bound: u64,
    /// Members that wait for their sinks, or have more to deliver. Joining members aren't counted.
    behind: usize,
    /// Read since the reactor last ran.
    since_yield: Load,
    /// Read by this turn, which `since_yield` includes.
    this_turn: Load,
    /// The limit of this turn.
    turn_budget: Quota,
    /// How many bytes the turn has read when its next batch is full.
    next_batch_boundary: usize,
    /// The next entry has to wait until the reactor has run.
    defers_to_yield: bool,
}

impl ReadBudget {
    pub(in crate::fanout) fn new(limits: Limits, batch_bytes: usize) -> Self {
        let bytes = (limits.bytes / u64::from(RUNS_BEFORE_OVERFLOW)).max(1);
        let free = if limits.messages >= 2 * BATCH { BATCH } else { limits.messages / RUNS_BEFORE_OVERFLOW };
        let free = Quota { messages: free.max(1), bytes };
        // A member becomes busy in a turn that may read `free`; the turns of the other runs are careful. Together they
        // stay within the bound: free + (RUNS_BEFORE_OVERFLOW - 1) * careful <= limits.messages, if that is at least 4.
        let careful = ((limits.messages - free.messages) / (RUNS_BEFORE_OVERFLOW - 1)).min(CAREFUL);
        Self {
            free,
            careful: Quota { messages: careful.clamp(1, free.messages), bytes },
            batch_bytes: batch_bytes.max(1),
            bound: limits.bytes,
            behind: 0,
            since_yield: Load::default(),
            this_turn: Load::default(),
            turn_budget: free,
            next_batch_boundary: 0,
            defers_to_yield: false,
        }
    }

    /// The most that a visit hands on, which is also the most that a turn ever reads.
    pub(in crate::fanout) fn quota(&self) -> Quota {
        self.free
    }

    /// Notes whether a member was behind, and whether it is now.
    pub(super) fn note(&mut self, was_behind: bool, is_behind: bool) {
        self.behind = self.behind + usize::from(is_behind) - usize::from(was_behind);
    }

    /// Begins a turn, and returns how many entries it may read.
    pub(in crate::fanout) fn begin(&mut self) -> u32 {
        self.this_turn = Load::default();
        self.next_batch_boundary = self.batch_bytes;
        self.turn_budget = self.reading().after(self.since_yield);
        self.turn_budget.messages
    }

    /// Whether the turn may read another entry.
    pub(in crate::fanout) fn goes_on(&mut self) -> bool {
        if self.this_turn.reaches(self.turn_budget) {
            return false;
        }
        if self.this_turn.bytes < self.next_batch_boundary {
            return true;
        }
        self.next_batch_boundary = self.this_turn.bytes.saturating_add(self.batch_bytes);
        let average = self.this_turn.bytes / self.this_turn.messages as usize;
        let left = self.turn_budget.after(self.this_turn);
        let left =
            (left.messages as usize).saturating_mul(average).min(usize::try_from(left.bytes).unwrap_or(usize::MAX));
        left >= self.batch_bytes
    }

    /// Whether the turn may read an entry of `bytes`. It may not if everything read since the reactor last ran would
    /// then exceed what may wait: a sink that is busy until the reactor runs would overflow. The first entry always
    /// fits.
    pub(in crate::fanout) fn fits(&mut self, bytes: usize) -> bool {
        let read = self.since_yield;
        self.defers_to_yield = read.messages > 0 && read.bytes.saturating_add(bytes) as u64 > self.bound;
        !self.defers_to_yield
    }

    /// Whether the next entry has to wait until the reactor has run.
    pub(in crate::fanout) fn defers_to_yield(&self) -> bool {
        self.defers_to_yield
    }

    /// Counts an entry of `bytes` as read by the turn.
    pub(in crate::fanout) fn add(&mut self, bytes: usize) {
        self.this_turn.add(Load::of_one(bytes));
        self.since_yield.add(Load::of_one(bytes));
    }

    /// Whether the reactor has to run before the next turn. If not, the next turn may still read half of what a whole
    /// one reads.
    pub(in crate::fanout) fn is_due(&self) -> bool {
        let Quota { messages, bytes } = self.reading();
        self.defers_to_yield
            || self.since_yield.reaches(Quota { messages: messages.div_ceil(2), bytes: bytes.div_ceil(2) })
    }

    /// Notes that the reactor has run. What an open turn has read still counts, because some members have yet to get
    /// it.
    pub(in crate::fanout) fn yielded(&mut self, turn_is_open: bool) {
        self.since_yield = if turn_is_open { self.this_turn } else { Load::default() };
        self.defers_to_yield = false;
    }

    fn reading(&self) -> Quota {
        if self.behind == 0 { self.free } else { self.careful }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { messages: 1024, bytes: 64 << 20, largest: u64::MAX };

    /// Reads as much as a turn may of a log full of messages of `bytes`.
    fn turn(budget: &mut ReadBudget, bytes: usize) -> u32 {
        let most = budget.begin();
        let mut read = 0;
        while read < most && budget.goes_on() {
            budget.add(bytes);
            read += 1;
        }
        read
    }

    #[test]
    fn a_member_that_becomes_busy_has_the_reactor_run_four_times() {
        for messages in 6..20_000 {
            let mut budget = ReadBudget::new(Limits { messages, ..LIMITS }, usize::MAX);
            let mut waiting = turn(&mut budget, 100);
            budget.note(false, true);
            for _ in 0..3 {
                assert!(budget.is_due());
                budget.yielded(false);
                waiting += turn(&mut budget, 100);
            }
            assert!(waiting <= messages && waiting > (messages / 3).min(2 * BATCH), "{waiting} of {messages}");
            let catches_up = messages < 2 * BATCH || 2 * budget.careful.messages <= budget.quota().messages;
            assert!(catches_up && budget.careful.messages <= budget.quota().messages, "{messages}");
        }
    }

    #[test]
    fn between_two_runs_of_the_reactor_no_more_is_read_than_by_one_turn() {
        fastrand::seed(11);
        for behind in [false, true] {
            let mut budget = ReadBudget::new(LIMITS, usize::MAX);
            budget.note(false, behind);
            let most = if behind { 170 } else { 512 };
            let mut read = 0;
            for _ in 0..10_000 {
                let wanted = fastrand::u32(1..=600);
                let may = budget.begin();
                assert!(may >= most / 2, "a turn is cut short: {may}");
                let now = wanted.min(may);
                (0..now).for_each(|_| budget.add(10));
                read += now;
                assert!(read <= most);
                if fastrand::u8(..8) == 0 {
                    // In the middle of the turn's walk.
                    budget.yielded(true);
                    read = now;
                }
                if budget.is_due() {
                    budget.yielded(false);
                    read = 0;
                }
            }
        }
    }

    #[test]
    fn small_messages_end_with_a_batch_and_large_ones_with_the_quota() {
        let batch = 60 << 10;
        for (bytes, read) in [(40, 512), (120, 512), (145, 424), (250, 492), (1000, 496), (4096, 510), (1 << 20, 16)] {
            let mut budget = ReadBudget::new(LIMITS, batch);
            assert_eq!(turn(&mut budget, bytes), read, "messages of {bytes}");
        }
    }
}
