//! What ends a member from within its shard.

use std::fmt;

use super::account::EndReason;

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
    pub(crate) fn reason(&self) -> EndReason {
        match self {
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
