//! The faults that end a member from within its shard.

use std::fmt;

use crate::caught::caught;
use crate::contract::EndReason;

/// Why a member can't go on. The sink's error comes with it, and is formatted only if it is logged.
#[derive(Debug)]
pub(crate) enum Fault<E> {
    Overflow,
    /// More gathered for the member while it joined than is allowed.
    Outpaced,
    Failed(E),
    Panicked,
    TimedOut,
}

impl<E: fmt::Debug> Fault<E> {
    /// The reason for which the participant ends; `has_vanished` tells whether a sink's error means that its peer is
    /// gone.
    pub(crate) fn reason(&self, has_vanished: impl FnOnce(&E) -> bool) -> EndReason {
        match self {
            // `has_vanished` is foreign code: if it panics, the write counts as failed.
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
