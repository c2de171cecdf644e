//! What can go wrong with a session, by what was asked of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::close::CloseReport;
use crate::ids::ClientId;
use crate::lane::EndReason;
use crate::participant::IncompatibleVersion;
use crate::runtime::Lacking;

/// Why no session was built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A session runs its tasks on tokio: build it inside a runtime (with time enabled).
    #[error("no tokio runtime here: build the session inside one")]
    NoRuntime,
    /// The runtime has no timers: enable them with `enable_time` or `enable_all` where it is built.
    #[error("this tokio runtime has no timers: enable them with `enable_time` where it is built")]
    NoTimers,
    /// The room gives its [events](crate::room::Room::events) to one session, and another has them; or it is closed.
    /// Share that session (its clones are the same one), or give this one a room of its own.
    #[error("the room has a session already, or is closed: share that session, or give this one a room of its own")]
    RoomTaken,
    /// A setting makes no sense.
    #[error("{setting} is {value}: it must be {must}")]
    InvalidSetting {
        /// Which one.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
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

/// Why an attempt to join a participant ended without it being registered.
///
/// [`SessionEvent::Refused`](super::SessionEvent::Refused) and
/// [`SessionEvent::JoinFailed`](super::SessionEvent::JoinFailed) carry it; the latter are tried again.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The room no longer has it. Nothing to do.
    #[error("the participant left before it was registered")]
    NotPresent,
    /// An instance of the same identity that joined later is registered, or on its way. Nothing to do.
    #[error("a later connection of the same identity is here already")]
    Stale,
    /// Its sid is registered already. Nothing to do.
    #[error("its connection is registered already, as client {by}")]
    Duplicate {
        /// The instance that has the sid.
        by: ClientId,
    },
    /// It speaks a protocol version that we don't; it was told so. It has to be updated.
    #[error(transparent)]
    Incompatible(#[from] IncompatibleVersion),
    /// Its stream could not be opened. Tried again while it is present.
    #[error("its stream could not be opened: {0}")]
    Open(Arc<crate::room::OpenError>),
    /// Opening its stream took too long. Tried again while it is present.
    #[error("opening its stream took longer than {0:?}")]
    OpenTimedOut(Duration),
    /// Computing its initial messages took too long. Tried again while it is present: mend the closure.
    #[error("computing its initial messages took longer than {0:?}")]
    InitialTimedOut(Duration),
    /// One of its initial messages is longer than its room can carry. Tried again while it is present: mend the closure.
    #[error("an initial message of {bytes} bytes is longer than the {largest} its room can carry")]
    InitialTooLarge {
        /// How long the message is.
        bytes: usize,
        /// How long it may be: see [`Room::largest_message`](crate::room::Room::largest_message).
        largest: usize,
    },
    /// The room, or a closure given to the session, panicked. Tried again while it is present: mend what panicked.
    #[error("the room or a closure of the session's panicked while it joined")]
    Panicked,
    /// It failed or overflowed while it joined. Tried again while it is present.
    #[error("it ended while it joined: {0}")]
    Ended(EndReason),
    /// What was broadcast while its initial messages were computed was more than may gather for it meanwhile. Tried again
    /// while it is present: make the closure faster, or
    /// [`joining_bytes`](crate::SessionBuilder::joining_bytes) larger.
    #[error(
        "more than {bytes} bytes, 64 for each message included, were broadcast while its initial messages were \
         computed, or that took longer than {age:?}: make the closure faster, or joining_bytes larger"
    )]
    Outpaced {
        /// How much may gather.
        bytes: u64,
        /// How long the first of it may wait.
        age: Duration,
    },
    /// A newer connection of the same identity came while it joined, or it left. Nothing to do.
    #[error("its join was superseded")]
    Superseded,
    /// The session is closing. Nothing to do.
    #[error("the session is closing")]
    SessionClosed,
}

impl JoinError {
    /// Whether another attempt may succeed.
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

/// Why a broadcast was not sent. The message comes back.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BroadcastError<M> {
    /// The session is closed, or was closed while this broadcast waited.
    #[error("the session is closed")]
    Closed(M),
    /// The message alone exceeds the session's byte limit: make it smaller, or the limit larger.
    #[error("the message is larger than all that may wait for a participant")]
    TooLarge(M),
}

/// Why a broadcast was not sent at once. The message comes back.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryBroadcastError<M> {
    /// The shards have to catch up, another publisher waits for that, or the uplink is stalled: try later, or wait with
    /// [`broadcast`](super::Session::broadcast).
    #[error("the broadcast log is full: try later, or wait")]
    Full(M),
    /// The session is closed.
    #[error("the session is closed")]
    Closed(M),
    /// The message alone exceeds the session's byte limit: make it smaller, or the limit larger.
    #[error("the message is larger than all that may wait for a participant")]
    TooLarge(M),
}

impl<M> BroadcastError<M> {
    /// The message that wasn't sent.
    pub fn into_message(self) -> M {
        match self {
            Self::Closed(message) | Self::TooLarge(message) => message,
        }
    }
}

impl<M> TryBroadcastError<M> {
    /// The message that wasn't sent.
    pub fn into_message(self) -> M {
        match self {
            Self::Full(message) | Self::Closed(message) | Self::TooLarge(message) => message,
        }
    }
}

/// Names the variant, never the payload.
impl<M> fmt::Debug for BroadcastError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed(_) => "Closed(..)",
            Self::TooLarge(_) => "TooLarge(..)",
        })
    }
}

/// Names the variant, never the payload.
impl<M> fmt::Debug for TryBroadcastError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
            Self::TooLarge(_) => "TooLarge(..)",
        })
    }
}

/// Why a session was not closed in good order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Called from within the session (the closure for initial messages, a stream handler, a sink), which would wait
    /// for itself: call it from a task of your own.
    #[error("close was called from within the session it closes")]
    FromCallback,
    /// A flush shard or the event loop panicked, in code of a message or a room, and the session ended with it. That is
    /// one panic: a message whose drop panics while another's is unwinding aborts the process.
    #[error("a task of the session panicked and ended it")]
    Panicked(CloseReport),
    /// The runtime was shut down before the session had ended: what waited was not delivered.
    #[error("the runtime ended before the session")]
    RuntimeEnded,
    /// A task of the session didn't end after it was cancelled: code of a sink or closure blocks its thread.
    #[error("{tasks} tasks of the session didn't end: something blocks their threads")]
    Stuck {
        /// How many.
        tasks: usize,
        /// What the session came to so far.
        report: CloseReport,
    },
}
