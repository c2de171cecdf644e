//! Message accounting: the counters, and the reasons why messages were not delivered.
//!
//! At rest, `offered = delivered + dropped + abandoned + waiting` holds exactly, for each participant and for the
//! session. While messages are moving, a reader takes the outcomes first and the offered messages last, so that no
//! difference is negative.
//!
//! # Orderings
//! An outcome is written with `Release`, after its message was counted as offered. A reader loads the outcomes with
//! `Acquire`, before it loads the offered messages: a reader that sees an outcome also sees the offer it belongs to.

use std::cell::Cell;
use std::fmt;

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicU64, Ordering};

/// Why an instance of a participant ended.
///
/// The first four are faults: undelivered messages are counted as *dropped*, and the participant is reset. The others
/// are ordinary ends: undelivered messages are counted as *abandoned*. After [`Vanished`](Self::Vanished), the
/// participant starts afresh as after a fault, if its room still has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum EndReason {
    /// One more message would have exceeded the participant's queue capacity or byte limit.
    Overflow,
    /// The participant's sink returned an error.
    WriteFailed,
    /// The participant's sink panicked.
    WritePanicked,
    /// The participant's sink made no progress for the write time-out.
    WriteTimedOut,
    /// A newer instance of the same identity took the participant's place.
    Replaced,
    /// The room reported the participant gone.
    Disconnected,
    /// A write found the participant's connection gone before the room had reported that: see
    /// [`Room::has_vanished`](crate::room::Room::has_vanished).
    Vanished,
    /// The participant was never registered, for a reason that another attempt of the same connection doesn't change:
    /// the connection was stale, a duplicate, or superseded while it joined.
    Refused,
    /// The participant was never registered, because its join failed for a reason that may pass: see
    /// [`JoinError`](crate::JoinError).
    JoinFailed,
    /// The session ended.
    SessionClosed,
}

impl EndReason {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [Self; 10] = [
        Self::Overflow,
        Self::WriteFailed,
        Self::WritePanicked,
        Self::WriteTimedOut,
        Self::Replaced,
        Self::Disconnected,
        Self::Vanished,
        Self::Refused,
        Self::JoinFailed,
        Self::SessionClosed,
    ];

    /// Whether the reason is a fault, which resets the participant.
    #[must_use]
    pub fn is_fault(self) -> bool {
        matches!(self, Self::Overflow | Self::WriteFailed | Self::WritePanicked | Self::WriteTimedOut)
    }

    /// Whether the session afterwards joins whatever connection its room has for the identity.
    pub(crate) fn starts_afresh(self) -> bool {
        self.is_fault() || self == Self::Vanished
    }

    /// The reason in words, as it appears in logs and close frames.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overflow => "too slow: the backlog exceeded the queue capacity or byte limit",
            Self::WriteFailed => "a write to the participant failed",
            Self::WritePanicked => "a write to the participant panicked",
            Self::WriteTimedOut => "a write to the participant made no progress",
            Self::Replaced => "replaced by a newer connection of the same identity",
            Self::Disconnected => "the participant disconnected",
            Self::Vanished => "a write found the connection gone",
            Self::Refused => "the participant was not admitted",
            Self::JoinFailed => "the join failed: try again",
            Self::SessionClosed => "the session ended",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Messages that were dropped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dropped {
    /// Dropped because the participant overflowed.
    pub overflow: u64,
    /// Dropped because the participant's sink returned an error.
    pub write_failed: u64,
    /// Dropped because the participant's sink panicked.
    pub write_panicked: u64,
    /// Dropped because the participant's sink made no progress for the write time-out.
    pub write_timed_out: u64,
    /// Sent to a participant that had ended.
    pub closed: u64,
}

impl Dropped {
    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.overflow + self.write_failed + self.write_panicked + self.write_timed_out + self.closed
    }
}

/// Messages that an ordinary end of their participant left undelivered, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Abandoned {
    /// A newer instance took the participant's place.
    pub replaced: u64,
    /// The participant disconnected.
    pub disconnected: u64,
    /// A write found the participant's connection gone.
    pub vanished: u64,
    /// The participant was never registered: it was refused, or its join failed.
    pub refused: u64,
    /// The session ended.
    pub session_closed: u64,
}

impl Abandoned {
    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.replaced + self.disconnected + self.vanished + self.refused + self.session_closed
    }
}

/// What became of the messages of one participant, or of the whole session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Account {
    /// Direct messages sent to the participant, its initial messages, and the broadcasts that its shard has reached for
    /// it.
    pub offered: u64,
    /// Messages whose flush succeeded.
    pub delivered: u64,
    /// Bytes of the delivered messages.
    pub delivered_bytes: u64,
    /// Messages that were dropped, by reason.
    pub dropped: Dropped,
    /// Messages that were abandoned, by reason.
    pub abandoned: Abandoned,
}

impl Account {
    /// Messages that were offered and have no outcome yet.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.offered.saturating_sub(self.delivered + self.dropped.total() + self.abandoned.total())
    }

    /// Adds `count` messages lost with a participant that ended for `reason`.
    pub(crate) fn add_lost(&mut self, reason: EndReason, count: u64) {
        *match reason {
            EndReason::Overflow => &mut self.dropped.overflow,
            EndReason::WriteFailed => &mut self.dropped.write_failed,
            EndReason::WritePanicked => &mut self.dropped.write_panicked,
            EndReason::WriteTimedOut => &mut self.dropped.write_timed_out,
            EndReason::Replaced => &mut self.abandoned.replaced,
            EndReason::Disconnected => &mut self.abandoned.disconnected,
            EndReason::Vanished => &mut self.abandoned.vanished,
            EndReason::Refused | EndReason::JoinFailed => &mut self.abandoned.refused,
            EndReason::SessionClosed => &mut self.abandoned.session_closed,
        } += count;
    }
}

/// A counter that one thread at a time writes and any thread reads, without a read-modify-write.
#[derive(Debug)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + n, Ordering::Release);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A counter that any thread adds to without contending with the others.
#[derive(Debug)]
pub(crate) struct Striped(Box<[CachePadded<AtomicU64>]>);

/// Enough stripes that, of a few busy threads, two seldom share one.
const STRIPES: usize = 16;

impl Striped {
    pub(crate) fn new() -> Self {
        Self((0..STRIPES).map(|_| CachePadded::new(AtomicU64::new(0))).collect())
    }

    pub(crate) fn add(&self, n: u64) {
        self.0[stripe()].fetch_add(n, Ordering::Release);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.load(Ordering::Acquire)).sum()
    }
}

/// The stripe of the calling thread; threads are assigned to stripes round-robin.
fn stripe() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    // The cell of a thread that is being torn down is gone: that thread uses the first stripe.
    MINE.try_with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % STRIPES);
        }
        mine.get()
    })
    .unwrap_or(0)
}

/// The part of the session's account that its shards don't write.
#[derive(Debug)]
pub(crate) struct Totals {
    /// Direct messages, counted when they are sent.
    pub(crate) direct_offered: Striped,
    lost: [AtomicU64; EndReason::ALL.len()],
    rejected: AtomicU64,
}

impl Totals {
    pub(crate) fn new() -> Self {
        Self {
            direct_offered: Striped::new(),
            lost: std::array::from_fn(|_| AtomicU64::new(0)),
            rejected: AtomicU64::new(0),
        }
    }

    /// Counts `count` messages as lost with a participant that ended for `reason`.
    pub(crate) fn lose(&self, reason: EndReason, count: u64) {
        self.lost[reason as usize].fetch_add(count, Ordering::Release);
    }

    /// Counts a message sent to a participant that had ended.
    pub(crate) fn reject(&self) {
        self.rejected.fetch_add(1, Ordering::Release);
    }

    /// Adds the outcomes counted here to `account`.
    pub(crate) fn outcomes(&self, account: &mut Account) {
        account.dropped.closed += self.rejected.load(Ordering::Acquire);
        for reason in EndReason::ALL {
            account.add_lost(reason, self.lost[reason as usize].load(Ordering::Acquire));
        }
    }
}
