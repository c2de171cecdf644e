//! What ends a member from within its shard.

use std::fmt;

use super::account::EndReason;
use super::caught::caught;

/// Why a member can't go on. What its sink says comes with it, to be formatted if somebody listens.
#[derive(Debug)]
pub(crate) enum Fault<E> {
    Overflow,
    /// More gathered for it while it joined than may.
    Outpaced,
    Failed(E),
    Panicked,
    TimedOut,
}

impl<E: fmt::Debug> Fault<E> {
    /// `has_vanished` says of a sink's error whether the peer is gone.
    pub(crate) fn reason(&self, has_vanished: impl FnOnce(&E) -> bool) -> EndReason {
        match self {
            // Code of others: what can't be told apart has failed.
            Self::Failed(error) if caught(|| has_vanished(error)).unwrap_or(false) => EndReason::Vanished,
            Self::Overflow | Self::Outpaced => EndReason::Overflow,
            Self::Failed(_) => EndReason::WriteFailed,
            Self::Panicked => EndReason::WritePanicked,
            Self::TimedOut => EndReason::WriteTimedOut,
        }
    }

    pub(crate) fn detail(&self) -> Option<&dyn fmt::Debug> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Overflow | Self::Outpaced | Self::Panicked | Self::TimedOut => None,
        }
    }
}
