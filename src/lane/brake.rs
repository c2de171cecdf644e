//! What keeps a shard from reading the log while members wait for an uplink that all share.

use slab::Slab;

use super::Message;
use super::member::Member;
use super::outbox::Port;
use super::owner::Owner;
use super::uplink::Uplink;
use crate::sync::Ordering;

/// Members whose bound is half taken, and whether they are waited for.
///
/// # Who learns of it
/// While the log isn't read, direct messages to everybody wait for their place in it, and fill queues of participants
/// who have nothing to do with the uplink. So senders look at the [port](Port::behind): it is set while the brake is
/// on, and until the shard has read up to where the log stood when it came off.
#[derive(Debug, Default)]
pub(super) struct Brake {
    heavy: Vec<usize>,
    /// The log isn't read for now.
    pub(super) is_on: bool,
    /// What the port says.
    told: bool,
    /// Where the log stood when it was last on.
    tail: u64,
}

/// How much of the log may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Free,
    /// Nothing, but now and then an entry: nobody else has anything under way that would show how things stand, and
    /// those who wait have room for one.
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

    /// Tells senders how things stand, with the shard at `position` and the log at `tail`. True if that is news.
    pub(super) fn tell<M>(&mut self, port: &Port<M>, position: u64, tail: u64) -> bool {
        if self.is_on {
            self.tail = tail;
        }
        let behind = self.is_on || (self.told && position < self.tail);
        let news = behind != self.told;
        if news {
            self.told = behind;
            // Relaxed: who fills a queue in the same moment is as right to find it full.
            port.behind.store(behind, Ordering::Relaxed);
        }
        news
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
