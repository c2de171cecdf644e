//! Keeps a shard from reading the log while members wait for a shared uplink.

use slab::Slab;

use crate::contract::uplink::Uplink;
use crate::fanout::log::Position;
use crate::fanout::member_handle::MemberHandle;
use crate::fanout::port::Port;
use crate::fanout::shard::member::Member;
use crate::fanout::slot::{Slot, SlotSet};
use crate::sync::Ordering;

/// The members whose bound is half taken, and whether the shard waits for them.
///
/// # How senders learn of it
/// While the log isn't read, direct messages to every member wait for their place in it, and fill the queues of
/// participants that have nothing to do with the uplink. Senders therefore look at the [port](Port::behind): its flag
/// is set while the shard holds back, and until it has read up to the tail that the log had when it went on.
#[derive(Debug, Default)]
pub(super) struct Backpressure {
    half_full: SlotSet,
    /// The log isn't read for now, except for a [trickle](MayRead::Trickle).
    holds_back: bool,
    /// The log's tail when the shard last held back.
    tail: Position,
}

/// How much of the log the shard may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MayRead {
    Everything,
    /// One entry at each tick: no other write is under way that would show whether the uplink flows, and the members
    /// that wait have capacity for one more message.
    Trickle,
    Nothing,
}

/// What became of [`Port::behind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BehindFlag {
    Changed,
    Unchanged,
}

impl Backpressure {
    pub(super) fn holds_back(&self) -> bool {
        self.holds_back
    }

    /// Remembers a blocked member if its bound is half taken.
    pub(super) fn weigh<O: MemberHandle>(&mut self, slot: Slot, member: &Member<O>) {
        if member.drain().is_half_full() {
            self.half_full.insert(slot);
        }
    }

    /// Updates [`Port::behind`], with the shard at `position` and the log at `tail`.
    pub(super) fn update_behind<M>(&mut self, port: &Port<M>, position: Position, tail: Position) -> BehindFlag {
        if self.holds_back {
            self.tail = tail;
        }
        // Relaxed: nobody else writes the flag, and a sender that races with the store may see either value.
        let was_behind = port.behind.load(Ordering::Relaxed);
        let is_behind = self.holds_back || (was_behind && position < self.tail);
        if is_behind == was_behind {
            return BehindFlag::Unchanged;
        }
        port.behind.store(is_behind, Ordering::Relaxed);
        BehindFlag::Changed
    }

    /// Decides how much may be read now. No member is waited for if `uplink` is `None`: there is none, or it was given
    /// up.
    pub(super) fn decide<O: MemberHandle>(&mut self, members: &Slab<Member<O>>, uplink: Option<&Uplink>) -> MayRead {
        self.holds_back = false;
        if self.half_full.is_empty() {
            return MayRead::Everything;
        }
        let mut held = 0;
        let mut has_capacity = true;
        self.half_full.retain(|slot| {
            let Some(member) = members.get(slot.index()) else { return false };
            let is_half_full = member.drain().is_half_full();
            if is_half_full && member.is_held_up(uplink) {
                held += 1;
                has_capacity &= !member.drain().is_full();
            }
            is_half_full
        });
        self.holds_back = held > 0;
        let alone = uplink.is_some_and(|uplink| uplink.under_way() <= held) && members.len() > held;
        match self.holds_back {
            false => MayRead::Everything,
            true if alone && has_capacity => MayRead::Trickle,
            true => MayRead::Nothing,
        }
    }
}
