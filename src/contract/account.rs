//! Message accounting: the counters, and the reasons why messages were not delivered.
//!
//! At rest, `offered = delivered + dropped + abandoned + waiting` holds exactly, for each participant and for the
//! session. While messages are moving, a reader takes the outcomes first and the offered messages last, so that no
//! difference is negative.
//!
//! The orderings are those of the fan-out's counters (`fanout::counters`).

use super::end_reason::EndReason;

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
    /// The participant was refused.
    pub refused: u64,
    /// The participant's join failed.
    pub join_failed: u64,
    /// The session ended.
    pub session_closed: u64,
}

impl Abandoned {
    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.replaced + self.disconnected + self.vanished + self.refused + self.join_failed + self.session_closed
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
    /// The number of messages that wait: those that were offered, less those that have an outcome.
    ///
    /// While messages move, the outcomes are read before the offers, so a message that got its outcome in between
    /// counts as waiting. At rest the number is exact.
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
            EndReason::Refused => &mut self.abandoned.refused,
            EndReason::JoinFailed => &mut self.abandoned.join_failed,
            EndReason::SessionClosed => &mut self.abandoned.session_closed,
        } += count;
    }
}
