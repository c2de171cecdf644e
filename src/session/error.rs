//! The errors of a session, one type for each operation.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::stats::CloseReport;
use crate::contract::EndReason;
use crate::ids::ClientId;
use crate::runtime::Lacking;

/// Why a session was not built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no tokio runtime. A session runs its tasks on tokio: build it inside a runtime that has timers.
    #[error("no tokio runtime here: build the session inside one")]
    NoRuntime,
    /// The runtime has no timers. Enable them with `enable_time` or `enable_all` where the runtime is built.
    #[error("this tokio runtime has no timers: enable them with `enable_time` where it is built")]
    NoTimers,
    /// The room gives its [events](crate::room::Room::events) to one session, and another session has them; or the room
    /// is closed. Share the session that has them (its clones are handles to the same session), or give this one a room
    /// of its own.
    #[error("the room has a session already, or is closed: share that session, or give this one a room of its own")]
    RoomTaken,
    /// A setting is out of range.
    #[error("{setting} is {value}: it must be {must}")]
    InvalidSetting {
        /// The name of the setting.
        setting: &'static str,
        /// The value that was given.
        value: String,
        /// The values that are allowed.
        must: &'static str,
    },
}

impl From<Lacking> for BuildError {
    fn from(lacking: Lacking) -> Self {
        match lacking {
            Lacking::Runtime => Self::NoRuntime,
            Lacking::Timers => Self::NoTimers,
        }
    }
}

/// Why an attempt to join a participant ended before the participant was registered.
///
/// [`SessionEvent::Refused`](super::SessionEvent::Refused) and
/// [`SessionEvent::JoinFailed`](super::SessionEvent::JoinFailed) carry this error. After the latter, the session tries
/// again while the participant is present.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The participant is no longer in the room. Nothing to do.
    #[error("the participant left before it was registered")]
    NotPresent,
    /// An instance of the same identity that joined later is registered or being joined. Nothing to do.
    #[error("a later connection of the same identity is here already")]
    Stale,
    /// The sid of the connection is registered already. Nothing to do.
    #[error("its connection is registered already, as client {by}")]
    Duplicate {
        /// The id of the instance that has the sid.
        by: ClientId,
    },
    /// The hook [`accept`](crate::SessionBuilder::accept) refused the connection. The participant gets the hook's
    /// message, if there is one, and what the reason names has to change before it connects again.
    #[error(transparent)]
    NotAccepted {
        /// The hook's reason. `downcast_ref` tells one error from another: telemetry's own reason is an
        /// `IncompatibleVersion`.
        reason: Arc<dyn Error + Send + Sync>,
    },
    /// The stream to the participant could not be opened. The session tries again.
    #[error("its stream could not be opened: {0}")]
    Open(Arc<crate::room::OpenError>),
    /// Opening the stream took longer than the [`open_timeout`](crate::SessionBuilder::open_timeout). The session tries
    /// again.
    #[error("opening its stream took longer than {0:?}")]
    OpenTimedOut(Duration),
    /// Computing the initial messages took longer than the [`open_timeout`](crate::SessionBuilder::open_timeout). The
    /// session tries again: make the closure faster.
    #[error("computing its initial messages took longer than {0:?}")]
    InitialTimedOut(Duration),
    /// An initial message is longer than the room can carry. The session tries again: make the message shorter.
    #[error("an initial message of {bytes} bytes exceeds the limit of {largest} bytes (largest_message of the room)")]
    InitialTooLarge {
        /// The length of the message, in bytes.
        bytes: usize,
        /// The maximum length, in bytes: see [`Room::largest_message`](crate::room::Room::largest_message).
        largest: usize,
    },
    /// The room, or a closure given to the session, panicked. The session tries again: fix what panicked.
    #[error("the room or a closure given to the session panicked during the join")]
    Panicked,
    /// The participant failed or overflowed while it joined. The session tries again.
    #[error("the participant ended while it joined: {0}")]
    Ended(EndReason),
    /// More was broadcast while the initial messages were computed than may gather for a newcomer, or the first of it
    /// waited too long. The session tries again: make the closure faster, or
    /// [`joining_bytes`](crate::SessionBuilder::joining_bytes) larger.
    #[error(
        "more than {bytes} bytes of broadcasts (64 added for each) gathered while the initial messages were computed, \
         or the first waited longer than {age:?}: make the closure faster, or raise joining_bytes"
    )]
    Outpaced {
        /// How much may gather, in bytes: the setting `joining_bytes`.
        bytes: u64,
        /// How long the first broadcast that gathers may wait: twice the setting `open_timeout`.
        age: Duration,
    },
    /// A newer connection of the same identity arrived during the join, or the participant left. Nothing to do.
    #[error("the join was superseded: a newer connection arrived, or the participant left")]
    Superseded,
    /// The session is closing. Nothing to do.
    #[error("the session is closing")]
    SessionClosed,
}

impl JoinError {
    /// Returns whether another attempt may succeed.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Open(_)
                | Self::OpenTimedOut(_)
                | Self::InitialTimedOut(_)
                | Self::InitialTooLarge { .. }
                | Self::Panicked
                | Self::Ended(_)
                | Self::Outpaced { .. }
        )
    }
}

/// Why a broadcast was not sent. The error returns the message.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BroadcastError<M> {
    /// The session is closed, or was closed while this broadcast waited.
    #[error("the session is closed")]
    Closed(M),
    /// The message is longer than [`queue_bytes`](super::SessionBuilder::queue_bytes), or than the
    /// [room](crate::room::Room::largest_message) can carry. Make it smaller, or raise the limit that it exceeds.
    #[error("message exceeds the maximum size (queue_bytes, or the room's limit)")]
    TooLarge(M),
}

/// Why a broadcast was not sent at once. The error returns the message.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryBroadcastError<M> {
    /// The log has no capacity left: the shards have to catch up, another publisher waits, the uplink is stalled, or
    /// publishers are [held](crate::OverloadPolicy::Hold).
    /// Try later, or wait with [`broadcast`](super::Session::broadcast).
    #[error("the broadcast log is full: try later, or wait")]
    Full(M),
    /// The session is closed.
    #[error("the session is closed")]
    Closed(M),
    /// The message is longer than [`queue_bytes`](super::SessionBuilder::queue_bytes), or than the
    /// [room](crate::room::Room::largest_message) can carry. Make it smaller, or raise the limit that it exceeds.
    #[error("message exceeds the maximum size (queue_bytes, or the room's limit)")]
    TooLarge(M),
}

impl<M> BroadcastError<M> {
    /// Returns the message that wasn't sent.
    pub fn into_message(self) -> M {
        match self {
            Self::Closed(message) | Self::TooLarge(message) => message,
        }
    }
}

impl<M> TryBroadcastError<M> {
    /// Returns the message that wasn't sent.
    pub fn into_message(self) -> M {
        match self {
            Self::Full(message) | Self::Closed(message) | Self::TooLarge(message) => message,
        }
    }
}

/// Prints the name of the variant, never the payload.
impl<M> fmt::Debug for BroadcastError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed(_) => "Closed(..)",
            Self::TooLarge(_) => "TooLarge(..)",
        })
    }
}

/// Prints the name of the variant, never the payload.
impl<M> fmt::Debug for TryBroadcastError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
            Self::TooLarge(_) => "TooLarge(..)",
        })
    }
}

/// Why a session did not close properly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// `close` was called from within the session (from the closure for initial messages, a stream handler or a sink),
    /// where it would wait for itself. Call it from a task of your own.
    #[error("close was called from within the session it closes: call it from a task of your own")]
    FromCallback,
    /// A flush shard or the event loop panicked, in code of a message or a room, and the session ended with it. This
    /// covers a single panic: if a message's drop panics while another panic unwinds, the process aborts.
    #[error("a task of the session panicked and ended it")]
    Panicked(CloseReport),
    /// The runtime was shut down before the session had ended. The backlog was not delivered.
    #[error("the runtime ended before the session")]
    RuntimeEnded,
    /// A task of the session didn't end after it was cancelled, because code of a sink or closure blocks its thread.
    #[error("{tasks} tasks of the session didn't end: something blocks their threads")]
    Stuck {
        /// The number of tasks that didn't end.
        tasks: usize,
        /// What became of the session so far.
        report: CloseReport,
    },
}
