//! The errors of sending a direct message.

use std::fmt;

/// The error of [`Participant::try_send`](super::Participant::try_send). Each variant gives the message back.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError<M> {
    /// The participant's queue is full. Try again later, or call [`send`](super::Participant::send), which resets the
    /// participant.
    #[error("the participant's queue is full: try later, or reset it")]
    Full(M),
    /// The message is larger than [`queue_bytes`](crate::SessionBuilder::queue_bytes), or than the room can
    /// [carry](crate::room::Room::largest_message). Make the message smaller, or the limit that it exceeds larger.
    #[error("message exceeds the maximum size (queue_bytes, or the room's limit)")]
    TooLarge(M),
    /// The participant has ended. Drop the handle; the viewer's next instance starts with the initial messages.
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

/// The error of [`Participant::send`](super::Participant::send) and
/// [`Participant::send_waiting`](super::Participant::send_waiting).
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError<M> {
    /// The participant's queue was full. The message is counted as dropped and the participant is being reset. The
    /// caller has nothing to do.
    #[error("the participant's queue was full: it is being reset")]
    Overflow,
    /// The message is larger than [`queue_bytes`](crate::SessionBuilder::queue_bytes), or than the room can
    /// [carry](crate::room::Room::largest_message). The message comes back. Make it smaller, or the limit that it
    /// exceeds larger.
    #[error("message exceeds the maximum size (queue_bytes, or the room's limit)")]
    TooLarge(M),
    /// The participant's queue is full because the uplink that all participants share takes no more. Nothing has
    /// changed and the message comes back. Try later, or [wait](super::Participant::send_waiting).
    #[error("the uplink that all participants share is full: try later, or wait")]
    UplinkFull(M),
    /// The participant had ended. The message is counted as dropped. Drop the handle.
    #[error("the participant has ended")]
    Closed,
}

/// Shows the variant, never the payload.
impl<M> fmt::Debug for TrySendError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::TooLarge(_) => "TooLarge(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

/// Shows the variant, never the payload.
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
