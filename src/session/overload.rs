//! What happens while most participants are behind, and how listeners are told of it.

use std::future::poll_fn;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::contract::Hold;
use crate::fanout::{Fanout, MemberHandle};

/// What happens while most participants are behind: set with
/// [`SessionBuilder::overload`](crate::SessionBuilder::overload).
///
/// If one participant is behind, the participant or its network is slow. If most of them are, then the publisher, the
/// machine or its network is at fault, and resetting participants doesn't help: all of them start afresh, and overflow
/// again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverloadPolicy {
    /// A publisher never waits for a participant. Every participant that overflows is reset.
    #[default]
    Reset,
    /// Publishers are held while more than a share of the participants are behind.
    Hold(Hold),
}

impl From<Hold> for OverloadPolicy {
    fn from(hold: Hold) -> Self {
        Self::Hold(hold)
    }
}

/// What listeners are told of holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HoldChange {
    Held,
    Released,
}

/// Makes one change of many holds in a row: the first begins it, and it ends when none has been for [`QUIET`].
#[derive(Debug, Default)]
pub(super) struct HoldWatch {
    /// How many holds there had been when the last change was reported.
    seen: u64,
    /// When to look whether publishers are still held; `None` unless [`HoldChange::Held`] was the last change.
    look: Option<Instant>,
}

/// For how long no publisher may have been held before that is reported. It bounds how often listeners are told.
const QUIET: Duration = Duration::from_secs(1);

impl HoldWatch {
    /// Waits for the next change. If the future is dropped, no change is lost.
    pub(super) async fn next<O: MemberHandle>(&mut self, fanout: &Fanout<O>) -> HoldChange {
        let Some(look) = &mut self.look else {
            self.seen = poll_fn(|cx| fanout.poll_holds(self.seen, cx)).await;
            self.look = Some(Instant::now() + QUIET);
            return HoldChange::Held;
        };
        loop {
            sleep_until(*look).await;
            // Read first: a hold that begins after the look is the first of the next change.
            let holds = fanout.hold_stats().holds;
            let wait = match fanout.open_for() {
                Some(quiet) if quiet >= QUIET => {
                    (self.seen, self.look) = (holds, None);
                    return HoldChange::Released;
                }
                Some(quiet) => QUIET - quiet,
                None => QUIET,
            };
            *look = Instant::now() + wait;
        }
    }
}
