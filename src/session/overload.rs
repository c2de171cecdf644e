//! What happens while most participants are behind, and how listeners are told of it.

use std::future::poll_fn;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

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

/// When publishers are held because most participants are behind: [`OverloadPolicy::Hold`].
///
/// A participant counts as behind from the moment its backlog has reached half of its bound
/// ([`queue_capacity`](crate::SessionBuilder::queue_capacity) or
/// [`queue_bytes`](crate::SessionBuilder::queue_bytes)) until it is down to less than three eighths. While more than
/// the share of the session's participants are, the log takes no broadcast: [`broadcast`](crate::Session::broadcast)
/// waits, and [`try_broadcast`](crate::Session::try_broadcast) returns the message as
/// [`Full`](crate::TryBroadcastError::Full). Everything else goes on: delivery, direct messages, joins, subscriptions,
/// and the close. A participant that joins counts once it has its initial messages.
///
/// A minority that is behind is reset as under [`OverloadPolicy::Reset`]. So is a majority that has stalled: after the
/// [patience](Self::patience) publishers continue.
///
/// ```
/// use bytes::Bytes;
/// use lanecast::room::memory::MemoryRoom;
/// use lanecast::{Hold, Session};
/// use std::time::Duration;
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let room: MemoryRoom<Bytes> = MemoryRoom::new();
/// let session = Session::builder(room).overload(Hold::default().patience(Duration::from_secs(1))).build()?;
/// assert!(!session.stats().publishers_held);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a policy does nothing until a builder is given it"]
pub struct Hold {
    pub(super) share_percent: u8,
    pub(super) at_least: u32,
    pub(super) patience: Duration,
}

impl Hold {
    /// Sets the percentage of the participants that have to be exceeded by those that are behind. Default 50: more
    /// participants are behind than keep up. From 1 to 99.
    pub fn share_percent(mut self, percent: u8) -> Self {
        self.share_percent = percent;
        self
    }

    /// Sets how many participants a session must have for its publishers to be held. Default 8: of fewer, half may be
    /// slow by chance. At least 1.
    pub fn at_least(mut self, participants: u32) -> Self {
        self.at_least = participants;
        self
    }

    /// Sets for how long publishers are held while none of the participants that are behind makes progress. Default
    /// 2 s: longer than a network takes to retransmit, shorter than the default write time-out. Longer than zero.
    ///
    /// A participant makes progress when a flush of its sink completes, or when its transport says
    /// [so](crate::Progress). After the patience publishers continue, noticed at most a quarter of it late, and
    /// participants overflow as under [`OverloadPolicy::Reset`]. Once one of those that are behind makes progress,
    /// publishers are held again.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

impl Default for Hold {
    fn default() -> Self {
        Self { share_percent: 50, at_least: 8, patience: Duration::from_secs(2) }
    }
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
