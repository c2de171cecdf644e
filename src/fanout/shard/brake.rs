//! The brake, which keeps a shard from reading the log while members wait for a shared uplink.

use slab::Slab;

use crate::contract::Message;
use crate::contract::uplink::Uplink;
use crate::fanout::outbox::Port;
use crate::fanout::shard::member::Member;
use crate::fanout::shard::owner::Owner;
use crate::sync::Ordering;

/// The members whose bound is half taken, and whether the shard waits for them.
///
/// # How senders learn of it
/// While the log isn't read, direct messages to every member wait for their place in it, and fill the queues of
/// participants that have nothing to do with the uplink. Senders therefore look at the [port](Port::behind): its flag
/// is set while the brake is on, and until the shard has read up to the tail that the log had when the brake came off.
#[derive(Debug, Default)]
pub(super) struct Brake {
    heavy: Vec<usize>,
    /// The log isn't read for now, except for a [trickle](Reading::Trickle).
    pub(super) is_on: bool,
    /// The last value written to [`Port::behind`].
    told: bool,
    /// The log's tail when the brake was last on.
    tail: u64,
}

/// How much of the log the shard may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Free,
    /// One entry at each tick: no other write is under way that would show whether the uplink flows, and the members
    /// that wait have capacity for one more message.
    Trickle,
    Nothing,
}

impl Brake {
    /// Remembers a blocked member if its bound is half taken.
    pub(super) fn weigh<O: Owner<M>, M: Message>(&mut self, slot: usize, member: &mut Member<O, M>) {
        if !member.heavy && member.owner.outbox().is_half_full() {
            member.heavy = true;
            self.heavy.push(slot);
        }
    }

    /// Updates [`Port::behind`], with the shard at `position` and the log at `tail`. True if the flag has changed.
    pub(super) fn tell<M>(&mut self, port: &Port<M>, position: u64, tail: u64) -> bool {
        if self.is_on {
            self.tail = tail;
        }
        let behind = self.is_on || (self.told && position < self.tail);
        let news = behind != self.told;
        if news {
            self.told = behind;
            // Relaxed: a sender racing with this store may see either value.
            port.behind.store(behind, Ordering::Relaxed);
        }
        news
    }

    /// Decides how much may be read now. No member is waited for if `uplink` is `None`: there is none, or it was given
    /// up.
    pub(super) fn apply<O: Owner<M>, M: Message>(
        &mut self,
        members: &mut Slab<Member<O, M>>,
        uplink: Option<&Uplink>,
    ) -> Reading {
        self.is_on = false;
        if self.heavy.is_empty() {
            return Reading::Free;
        }
        let mut held = 0;
        let mut has_room = true;
        self.heavy.retain(|slot| {
            let Some(member) = members.get_mut(*slot).filter(|member| member.heavy) else { return false };
            member.heavy = member.owner.outbox().is_half_full();
            if member.heavy && member.is_held_up(uplink) {
                held += 1;
                has_room &= !member.owner.outbox().is_full();
            }
            member.heavy
        });
        self.is_on = held > 0;
        let alone = uplink.is_some_and(|uplink| uplink.under_way() <= held) && members.len() > held;
        match self.is_on {
            false => Reading::Free,
            true if alone && has_room => Reading::Trickle,
            true => Reading::Nothing,
        }
    }
}
