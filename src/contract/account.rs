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
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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
    /// Messages that a topic, a rate or [`lossy_bytes`](crate::SessionBuilder::lossy_bytes) let be dropped.
    pub lossy: Losses,
}

/// Messages that were dropped at a participant that was behind or has a [rate](crate::Rate), by reason: those of lossy
/// and latest topics, and of subscriptions with a rate of their own. The participant isn't reset for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Losses {
    /// More waited than the topic, or the participant's [`lossy_bytes`](crate::SessionBuilder::lossy_bytes), allows.
    pub overflowed: u64,
    /// Waited for longer than the topic allows.
    pub expired: u64,
    /// Replaced by a newer message while it waited for the sink.
    pub conflated: u64,
    /// Replaced by a newer message while it was delayed by a rate.
    pub rate_limited: u64,
}

impl Losses {
    /// The number of reasons.
    pub(crate) const REASONS: usize = 4;

    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts().iter().sum()
    }

    pub(crate) fn counts(&self) -> [u64; Self::REASONS] {
        [self.overflowed, self.expired, self.conflated, self.rate_limited]
    }

    pub(crate) fn from_counts([overflowed, expired, conflated, rate_limited]: [u64; Self::REASONS]) -> Self {
        Self { overflowed, expired, conflated, rate_limited }
    }

    /// What was lost since `before`, an earlier state of the same count.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let mut counts = self.counts();
        counts.iter_mut().zip(before.counts()).for_each(|(count, before)| *count -= before);
        Self::from_counts(counts)
    }

    pub(crate) fn add(&mut self, more: &Self) {
        self.overflowed += more.overflowed;
        self.expired += more.expired;
        self.conflated += more.conflated;
        self.rate_limited += more.rate_limited;
    }
}

/// What became of the messages of a topic, over all of its subscribers.
///
/// `offered` is `handed_on`, `lost`, `ended` and what waits: at rest exactly. A message to many subscribers counts once
/// for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TopicStats {
    /// Messages that a shard has read for a subscriber.
    pub offered: u64,
    /// Messages given to a subscriber's sink, or put behind its reliable messages when the topic became reliable. The
    /// subscriber's [`Account`] says what became of them.
    pub handed_on: u64,
    /// Messages that were dropped, by reason.
    pub lost: Losses,
    /// Messages that still waited when the subscriber's instance, its subscription or the topic ended.
    pub ended: u64,
}

impl TopicStats {
    /// The number of messages that wait.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.offered.saturating_sub(self.handed_on + self.lost.total() + self.ended)
    }
}

impl Dropped {
    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        let faults = self.overflow + self.write_failed + self.write_panicked + self.write_timed_out;
        faults + self.closed + self.lossy.total()
    }
}

/// Messages that an ordinary end of their participant left undelivered, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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
    /// The participant unsubscribed, or the topic ended, before a droppable message was handed on.
    pub unsubscribed: u64,
}

impl Abandoned {
    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        let ends = self.replaced + self.disconnected + self.vanished + self.refused;
        ends + self.join_failed + self.session_closed + self.unsubscribed
    }
}

/// What became of the messages of one participant, or of the whole session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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
