//! Why an instance of a participant ended.

use std::fmt;

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
            Self::Replaced => "superseded by a newer connection of the same identity",
            Self::Disconnected => "the participant disconnected",
            Self::Vanished => "a write found the connection gone",
            Self::Refused => "the participant was not admitted",
            Self::JoinFailed => "the join failed: try again",
            Self::SessionClosed => "the session ended",
        }
    }
}

/// The effect of a call that ends an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The instance ended by this call, whose reason is on record.
    ByThis,
    /// The instance had ended before, for the reason of another call.
    Before,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
