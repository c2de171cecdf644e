//! What keeps a shard from reading the log while members wait for an uplink that all share.

use slab::Slab;

use super::Message;
use super::member::{Member, Owner};
use super::uplink::Uplink;

/// Members whose bound is half taken, and whether they are waited for.
#[derive(Debug, Default)]
pub(super) struct Brake {
    heavy: Vec<usize>,
    /// The log isn't read for now.
    pub(super) is_on: bool,
}

/// How much of the log may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Free,
    /// Nothing, but now and then an entry: nobody else has anything under way that would show how things stand, and those
    /// who wait have room for one.
    Trickle,
    Nothing,
}

impl Brake {
    /// Looks at a member that is blocked.
    pub(super) fn weigh<O: Owner<M>, M: Message>(&mut self, slot: usize, member: &mut Member<O, M>) {
        if !member.heavy && member.owner.outbox().is_half_full() {
            member.heavy = true;
            self.heavy.push(slot);
        }
    }

    /// Says how much may be read now. With `uplink` given up, or none, nobody is waited for.
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
