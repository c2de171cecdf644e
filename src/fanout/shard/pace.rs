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

use crate::fanout::outbox::Limits;
use crate::fanout::shard::load::{Load, Quota};

/// How many small messages fill what one write carries well.
const BATCH: u32 = 512;

/// The most messages that a turn reads while any member is behind: half of what a visit hands on. So a member with a
/// long backlog and a ready sink, such as a newcomer, catches up with a publisher that never pauses.
const CAREFUL: u32 = BATCH / 2;

/// What a shard may read, and what it has read since the reactor last ran.
#[derive(Debug)]
pub(super) struct Pace {
    /// The quota while all members keep up, and the quota while some don't.
    free: Quota,
    careful: Quota,
    batch_bytes: usize,
    /// How many bytes may wait for one participant.
    bound: u64,
    /// Members that wait for their sinks, or have more to deliver. Joining members aren't counted.
    behind: usize,
    /// What was read since the reactor last ran, what this turn has read of it, and what this turn may read.
    unyielded: Load,
    turn: Load,
    allowed: Quota,
    /// How many bytes the turn has read when its next batch is full.
    full: usize,
    /// The next entry has to wait until the reactor has run.
    is_cut: bool,
}

impl Pace {
    pub(super) fn new(limits: Limits, batch_bytes: usize) -> Self {
        let bytes = (limits.bytes / 4).max(1);
        let quarter = limits.messages / 4;
        let free = if limits.messages >= 2 * BATCH { BATCH } else { quarter };
        let free = Quota { messages: free.max(1), bytes };
        let careful = ((limits.messages - free.messages) / 3).min(CAREFUL);
        Self {
            free,
            careful: Quota { messages: careful.clamp(1, free.messages), bytes },
            batch_bytes: batch_bytes.max(1),
            bound: limits.bytes,
            behind: 0,
            unyielded: Load::default(),
            turn: Load::default(),
            allowed: free,
            full: 0,
            is_cut: false,
        }
    }

    /// The most that a visit hands on, which is also the most that a turn ever reads.
    pub(super) fn quota(&self) -> Quota {
        self.free
    }

    /// Notes whether a member was behind, and whether it is now.
    pub(super) fn note(&mut self, was: bool, is: bool) {
        self.behind = self.behind + usize::from(is) - usize::from(was);
    }

    /// Begins a turn, and returns how many entries it may read.
    pub(super) fn begin(&mut self) -> u32 {
        self.turn = Load::default();
        self.full = self.batch_bytes;
        self.allowed = self.reading().after(self.unyielded);
        self.allowed.messages
    }

    /// Whether the turn may read another entry.
    pub(super) fn goes_on(&mut self) -> bool {
        if self.turn.reaches(self.allowed) {
            return false;
        }
        if self.turn.bytes < self.full {
            return true;
        }
        self.full = self.turn.bytes.saturating_add(self.batch_bytes);
        let average = self.turn.bytes / self.turn.messages as usize;
        let left = self.allowed.after(self.turn);
        let left =
            (left.messages as usize).saturating_mul(average).min(usize::try_from(left.bytes).unwrap_or(usize::MAX));
        left >= self.batch_bytes
    }

    /// Whether the turn may read an entry of `bytes`. It may not if everything read since the reactor last ran would
    /// then exceed what may wait: a sink that is busy until the reactor runs would overflow. The first entry always
    /// fits.
    pub(super) fn fits(&mut self, bytes: usize) -> bool {
        let read = self.unyielded;
        self.is_cut = read.messages > 0 && read.bytes.saturating_add(bytes) as u64 > self.bound;
        !self.is_cut
    }

    /// Whether the next entry has to wait until the reactor has run.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Counts an entry of `bytes` as read by the turn.
    pub(super) fn add(&mut self, bytes: usize) {
        self.turn.add(Load::of_one(bytes));
        self.unyielded.add(Load::of_one(bytes));
    }

    /// Whether the reactor has to run before the next turn. If not, the next turn may still read half of what a whole
    /// one reads.
    pub(super) fn is_due(&self) -> bool {
        let Quota { messages, bytes } = self.reading();
        self.is_cut || self.unyielded.reaches(Quota { messages: messages.div_ceil(2), bytes: bytes.div_ceil(2) })
    }

    /// Notes that the reactor has run. What an open turn has read still counts, because some members have yet to get
    /// it.
    pub(super) fn yielded(&mut self, turn_is_open: bool) {
        self.unyielded = if turn_is_open { self.turn } else { Load::default() };
        self.is_cut = false;
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
    fn turn(pace: &mut Pace, bytes: usize) -> u32 {
        let most = pace.begin();
        let mut read = 0;
        while read < most && pace.goes_on() {
            pace.add(bytes);
            read += 1;
        }
        read
    }

    #[test]
    fn a_member_that_becomes_busy_has_the_reactor_run_four_times() {
        for messages in 6..20_000 {
            let mut pace = Pace::new(Limits { messages, ..LIMITS }, usize::MAX);
            let mut waiting = turn(&mut pace, 100);
            pace.note(false, true);
            for _ in 0..3 {
                assert!(pace.is_due());
                pace.yielded(false);
                waiting += turn(&mut pace, 100);
            }
            assert!(waiting <= messages && waiting > (messages / 3).min(2 * BATCH), "{waiting} of {messages}");
            let catches_up = messages < 2 * BATCH || 2 * pace.careful.messages <= pace.quota().messages;
            assert!(catches_up && pace.careful.messages <= pace.quota().messages, "{messages}");
        }
    }

    #[test]
    fn between_two_runs_of_the_reactor_no_more_is_read_than_by_one_turn() {
        fastrand::seed(11);
        for behind in [false, true] {
            let mut pace = Pace::new(LIMITS, usize::MAX);
            pace.note(false, behind);
            let most = if behind { 170 } else { 512 };
            let mut read = 0;
            for _ in 0..10_000 {
                let wanted = fastrand::u32(1..=600);
                let may = pace.begin();
                assert!(may >= most / 2, "a turn is cut short: {may}");
                let now = wanted.min(may);
                (0..now).for_each(|_| pace.add(10));
                read += now;
                assert!(read <= most);
                if fastrand::u8(..8) == 0 {
                    // In the middle of the turn's walk.
                    pace.yielded(true);
                    read = now;
                }
                if pace.is_due() {
                    pace.yielded(false);
                    read = 0;
                }
            }
        }
    }

    #[test]
    fn small_messages_end_with_a_batch_and_large_ones_with_the_quota() {
        let batch = 60 << 10;
        for (bytes, read) in [(40, 512), (120, 512), (145, 424), (250, 492), (1000, 496), (4096, 510), (1 << 20, 16)] {
            let mut pace = Pace::new(LIMITS, batch);
            assert_eq!(turn(&mut pace, bytes), read, "messages of {bytes}");
        }
    }
}
