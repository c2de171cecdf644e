//! What waits for busy members: a shelf that all of a shard share, and eight bytes per message and member.

use std::collections::VecDeque;

use slab::Slab;

use super::Message;
use super::outbox::Direct;
use super::topic::SubscriptionTag;

/// An entry of the log during the turn that delivers it.
#[derive(Debug)]
pub(crate) struct TurnEntry<M> {
    pub(crate) seq: u64,
    pub(crate) bytes: usize,
    pub(crate) message: M,
    /// Where it stands on the shelf, once a busy member needs it.
    shelved: Option<usize>,
}

impl<M> TurnEntry<M> {
    pub(crate) fn new(seq: u64, bytes: usize, message: M) -> Self {
        Self { seq, bytes, message, shelved: None }
    }
}

/// The broadcasts that busy members of one shard still need, each kept once.
#[derive(Debug)]
pub(crate) struct Shelf<M>(Slab<Shelved<M>>);

#[derive(Debug)]
struct Shelved<M> {
    message: M,
    bytes: usize,
    since: u64,
    needed_by: u32,
}

impl<M: Message> Shelf<M> {
    pub(crate) fn new() -> Self {
        Self(Slab::new())
    }

    /// Keeps `entry` for one member more.
    pub(super) fn keep(&mut self, entry: &mut TurnEntry<M>, now: u64) -> usize {
        let key = *entry.shelved.get_or_insert_with(|| {
            // The turn itself needs it as long as it lasts: another member may.
            let message = entry.message.clone();
            self.0.insert(Shelved { message, bytes: entry.bytes, since: now, needed_by: 1 })
        });
        self.0[key].needed_by += 1;
        key
    }

    /// What one member needed of it; the last one takes it away.
    fn take(&mut self, key: usize) -> (Taken<'_, M>, usize) {
        if self.0[key].needed_by == 1 {
            let shelved = self.0.remove(key);
            return (Taken::Own(shelved.message), shelved.bytes);
        }
        let shelved = &mut self.0[key];
        shelved.needed_by -= 1;
        (Taken::Shared(&shelved.message), shelved.bytes)
    }

    fn since(&self, key: usize) -> u64 {
        self.0[key].since
    }

    /// A member that needed it has gone, or the turn that could still have needed it is over.
    pub(super) fn release(&mut self, key: usize) {
        let shelved = &mut self.0[key];
        shelved.needed_by -= 1;
        if shelved.needed_by == 0 {
            self.0.remove(key);
        }
    }

    /// Ends a turn: its entries stay only for the members that need them.
    pub(crate) fn end_turn(&mut self, entries: impl Iterator<Item = TurnEntry<M>>) {
        entries.filter_map(|entry| entry.shelved).for_each(|key| self.release(key));
    }
}

/// A message on its way from the backlog to the sink.
pub(super) enum Taken<'a, M> {
    /// Nobody else needs it.
    Own(M),
    /// Others need it as well.
    Shared(&'a M),
}

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(super) messages: u32,
    pub(super) bytes: usize,
}

impl Load {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    pub(crate) fn add_all(&mut self, more: Self) {
        self.messages = self.messages.saturating_add(more.messages);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }

    /// Whether it is as much as `quota` allows. One message is always allowed, however large.
    pub(crate) fn reaches(self, quota: Quota) -> bool {
        self.messages >= quota.messages || self.bytes as u64 >= quota.bytes
    }
}

/// How much is handed on, or read from the log, before the reactor has to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    pub(crate) messages: u32,
    pub(crate) bytes: u64,
}

/// What waits for a busy member outside its sink.
#[derive(Debug)]
pub(super) struct Backlog<M> {
    pub(super) order: VecDeque<Item>,
    /// The member's own messages, in the order in which `order` refers to them.
    own: VecDeque<Own<M>>,
    /// Direct messages whose place among the broadcasts isn't known yet: stamped above the shard's position.
    pub(super) unplaced: VecDeque<Direct<M>>,
}

#[derive(Debug)]
struct Own<M> {
    message: M,
    bytes: usize,
    since: u64,
}

/// The first message of a backlog.
pub(super) struct Popped<'a, M> {
    pub(super) kind: Kind,
    pub(super) message: Taken<'a, M>,
    pub(super) bytes: usize,
    pub(super) tag: Option<SubscriptionTag>,
}

/// A place in the backlog's order: two bits of kind, thirty of shelf key, and the tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    word: u32,
    tag: SubscriptionTag,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A broadcast to everybody, on the shelf.
    All,
    /// A broadcast to a topic, on the shelf, with the subscriber's tag.
    Topic,
    /// The next of the member's own: a direct message.
    Direct,
    /// The next of the member's own: an initial message, which the bound doesn't count.
    Initial,
}

const KEY_BITS: u32 = 30;

impl Item {
    pub(super) fn shelved(key: usize, tag: Option<SubscriptionTag>) -> Self {
        let key = u32::try_from(key).ok().filter(|key| *key < 1 << KEY_BITS);
        let key = key.expect("the log is shorter than the shelf's keys are wide");
        match tag {
            None => Self { word: key, tag: SubscriptionTag::default() },
            Some(tag) => Self { word: 1 << KEY_BITS | key, tag },
        }
    }

    fn own(kind: Kind) -> Self {
        let word = if kind == Kind::Direct { 2 } else { 3 } << KEY_BITS;
        Self { word, tag: SubscriptionTag::default() }
    }

    pub(super) fn kind(self) -> Kind {
        match self.word >> KEY_BITS {
            0 => Kind::All,
            1 => Kind::Topic,
            2 => Kind::Direct,
            _ => Kind::Initial,
        }
    }

    pub(super) fn key(self) -> usize {
        (self.word & ((1 << KEY_BITS) - 1)) as usize
    }
}

impl<M: Message> Backlog<M> {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self { order: VecDeque::new(), own: VecDeque::new(), unplaced: VecDeque::new() })
    }

    pub(super) fn push_own(&mut self, kind: Kind, message: M, bytes: usize, since: u64) {
        self.order.push_back(Item::own(kind));
        self.own.push_back(Own { message, bytes, since });
    }

    /// Puts initial messages ahead of all else.
    pub(super) fn push_initial(&mut self, initial: Vec<(M, usize)>, since: u64) {
        for (message, bytes) in initial.into_iter().rev() {
            self.order.push_front(Item::own(Kind::Initial));
            self.own.push_front(Own { message, bytes, since });
        }
    }

    /// Takes the first message, with its kind, its bytes, and the tag it is to be addressed by.
    pub(super) fn pop<'a>(&mut self, shelf: &'a mut Shelf<M>) -> Option<Popped<'a, M>> {
        let item = self.order.pop_front()?;
        let kind = item.kind();
        let (message, bytes) = match kind {
            Kind::All | Kind::Topic => shelf.take(item.key()),
            Kind::Direct | Kind::Initial => {
                let own = self.own.pop_front().expect("the order names as many own messages as there are");
                (Taken::Own(own.message), own.bytes)
            }
        };
        Some(Popped { kind, message, bytes, tag: (kind == Kind::Topic).then_some(item.tag) })
    }

    /// Since when its first message waits.
    pub(super) fn oldest(&self, shelf: &Shelf<M>) -> Option<u64> {
        let first = self.order.front()?;
        match first.kind() {
            Kind::All | Kind::Topic => Some(shelf.since(first.key())),
            Kind::Direct | Kind::Initial => self.own.front().map(|own| own.since),
        }
    }

    pub(super) fn is_large(&self) -> bool {
        self.order.capacity() + self.own.capacity() + self.unplaced.capacity() > SMALL_BACKLOG
    }
}

/// An empty backlog with room for no more than this is kept for the next time.
const SMALL_BACKLOG: usize = 64;
