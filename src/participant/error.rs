//! Why a direct message was not sent.

use std::fmt;

/// Why [`Participant::try_send`](super::Participant::try_send) didn't send. The message comes back.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError<M> {
    /// As much waits for the participant as may: try again later, or [`send`](super::Participant::send) and let it be
    /// reset.
    #[error("the participant's queue is full: try later, or reset it")]
    Full(M),
    /// The message alone exceeds the session's byte limit: make it smaller, or the limit larger.
    #[error("the message is larger than all that may wait for a participant")]
    TooLarge(M),
    /// The participant has ended: drop the handle, its next instance starts with the initial messages.
    #[error("the participant has ended")]
    Closed(M),
}

impl<M> TrySendError<M> {
    /// The message that wasn't sent.
    pub fn into_message(self) -> M {
        match self {
            Self::Full(message) | Self::TooLarge(message) | Self::Closed(message) => message,
        }
    }
}

/// Why [`Participant::send`](super::Participant::send) didn't send.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError<M> {
    /// As much waited for the participant as may. It is being reset, the message is counted as dropped: nothing to do.
    #[error("the participant's queue was full: it is being reset")]
    Overflow,
    /// The message alone exceeds the session's byte limit. It comes back: make it smaller, or the limit larger.
    #[error("the message is larger than all that may wait for a participant")]
    TooLarge(M),
    /// As much waits for the participant as may, and it is the uplink that all share which doesn't take it: nothing has
    /// changed. It comes back: try later, or [wait](super::Participant::send_waiting).
    #[error("the uplink that all participants share is full: try later, or wait")]
    UplinkFull(M),
    /// The participant had ended; the message is counted as dropped. Drop the handle.
    #[error("the participant has ended")]
    Closed,
}

/// Names the variant, never the payload.
impl<M> fmt::Debug for TrySendError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::TooLarge(_) => "TooLarge(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

/// Names the variant, never the payload.
impl<M> fmt::Debug for SendError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overflow => "Overflow",
            Self::UplinkFull(_) => "UplinkFull(..)",
            Self::TooLarge(_) => "TooLarge(..)",
            Self::Closed => "Closed",
        })
    }
}
