//! The backlog of a busy member: what waits for it outside its sink. It takes eight bytes per message or per run of
//! broadcasts, plus the member's own messages.

use std::collections::VecDeque;

use crate::contract::Message;
use crate::contract::topic::SubscriptionTag;
use crate::fanout::clock::SessionMs;
use crate::fanout::outbox::control_queue::Direct;
use crate::fanout::shard::budget::Gathering;
use crate::fanout::shard::retained::{Handed, Retained};

/// The messages that wait for one member, in the order in which they are to be delivered.
#[derive(Debug)]
pub(super) struct Backlog<M> {
    order: VecDeque<Item>,
    /// How many messages `order` names; a run of broadcasts is one item.
    placed: usize,
    /// How many of the first broadcasts in `order` gathered while the member joined. The bound doesn't count them.
    gathered: usize,
    /// Bytes that the gathered broadcasts counted as, with [`Gathering::PER_MESSAGE`] for each.
    gathered_bytes: u64,
    /// The member's own messages, in the order in which `order` refers to them.
    own: VecDeque<Own<M>>,
    /// Direct messages whose place among the broadcasts isn't known yet: their stamp is above the shard's position.
    pub(super) unordered: VecDeque<Direct<M>>,
}

#[derive(Debug)]
struct Own<M> {
    message: M,
    bytes: usize,
    since: SessionMs,
}

/// The first message of a backlog, taken out of it.
pub(super) struct Popped<'a, M> {
    /// True if the bound doesn't count the message: an initial message, or one that gathered while the member joined.
    pub(super) is_exempt: bool,
    pub(super) message: Handed<'a, M>,
    pub(super) bytes: usize,
    pub(super) tag: Option<SubscriptionTag>,
}

/// A place in the order, packed: 2 bits kind, 30 bits key, 32 bits run length or tag.
#[derive(Clone, Copy, Debug)]
struct Item {
    word: u32,
    /// The length of a run of broadcasts to everybody, or the tag of a topic's message.
    more: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Broadcasts to everybody, retained under consecutive keys.
    All,
    /// A broadcast to a topic, retained, with the subscriber's tag.
    Topic,
    /// A direct message, the next of the member's own messages.
    Direct,
    /// An initial message, the next of the member's own messages. The bound doesn't count it.
    Initial,
}

const KEY_BITS: u32 = 30;

impl Item {
    fn retained(key: usize, tag: Option<SubscriptionTag>) -> Self {
        let key = u32::try_from(key).ok().filter(|key| *key < 1 << KEY_BITS);
        let key = key.expect("no shard retains a billion messages");
        match tag {
            None => Self { word: key, more: 1 },
            Some(tag) => Self { word: 1 << KEY_BITS | key, more: tag.0 },
        }
    }

    fn own(kind: Kind) -> Self {
        let word = if kind == Kind::Direct { 2 } else { 3 } << KEY_BITS;
        Self { word, more: 0 }
    }

    fn kind(self) -> Kind {
        match self.word >> KEY_BITS {
            0 => Kind::All,
            1 => Kind::Topic,
            2 => Kind::Direct,
            _ => Kind::Initial,
        }
    }

    fn key(self) -> usize {
        (self.word & ((1 << KEY_BITS) - 1)) as usize
    }

    /// Whether this is a run that `key` continues.
    fn is_followed_by(self, key: usize) -> bool {
        self.kind() == Kind::All && self.key() + self.more as usize == key
    }
}

impl<M: Message> Backlog<M> {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            order: VecDeque::new(),
            placed: 0,
            gathered: 0,
            gathered_bytes: 0,
            own: VecDeque::new(),
            unordered: VecDeque::new(),
        })
    }

    /// Whether no message waits that has a place in the order.
    pub(super) fn is_empty(&self) -> bool {
        self.placed == 0
    }

    /// All messages of the backlog, including those that have no place yet.
    pub(super) fn len(&self) -> usize {
        self.placed + self.unordered.len()
    }

    pub(super) fn push_retained(&mut self, key: usize, tag: Option<SubscriptionTag>) {
        self.placed += 1;
        match self.order.back_mut() {
            Some(last) if tag.is_none() && last.is_followed_by(key) => last.more += 1,
            _ => self.order.push_back(Item::retained(key, tag)),
        }
    }

    /// Whether a broadcast of `bytes` may gather for a joining member. If so, the caller then
    /// [pushes](Self::push_retained) it.
    pub(super) fn gather(&mut self, bytes: usize, may: &Gathering, retained: &Retained<M>, now: SessionMs) -> bool {
        let bytes = self.gathered_bytes.saturating_add(bytes as u64).saturating_add(Gathering::PER_MESSAGE);
        let is_old = self.oldest(retained).is_some_and(|since| now.since(since) > may.age);
        let fits = bytes <= may.bytes && !is_old;
        if fits {
            self.gathered += 1;
            self.gathered_bytes = bytes;
        }
        fits
    }

    pub(super) fn push_own(&mut self, kind: Kind, message: M, bytes: usize, since: SessionMs) {
        self.placed += 1;
        self.order.push_back(Item::own(kind));
        self.own.push_back(Own { message, bytes, since });
    }

    /// Puts initial messages ahead of everything else.
    pub(super) fn push_initial(&mut self, initial: Vec<(M, usize)>, since: SessionMs) {
        self.placed += initial.len();
        for (message, bytes) in initial.into_iter().rev() {
            self.order.push_front(Item::own(Kind::Initial));
            self.own.push_front(Own { message, bytes, since });
        }
    }

    /// Takes the first message out, with its length and the tag by which it is to be addressed.
    pub(super) fn pop<'a>(&mut self, retained: &'a mut Retained<M>) -> Option<Popped<'a, M>> {
        let first = self.order.front_mut()?;
        let item = *first;
        let kind = item.kind();
        if kind == Kind::All && item.more > 1 {
            first.word += 1;
            first.more -= 1;
        } else {
            self.order.pop_front();
        }
        self.placed -= 1;
        let (message, bytes) = match kind {
            Kind::All | Kind::Topic => retained.take(item.key()),
            Kind::Direct | Kind::Initial => {
                let own = self.own.pop_front().expect("the order names as many own messages as there are");
                (Handed::Own(own.message), own.bytes)
            }
        };
        let is_exempt = match kind {
            Kind::All | Kind::Topic if self.gathered > 0 => {
                self.gathered -= 1;
                true
            }
            Kind::All | Kind::Topic | Kind::Direct => false,
            Kind::Initial => true,
        };
        Some(Popped { is_exempt, message, bytes, tag: (kind == Kind::Topic).then_some(SubscriptionTag(item.more)) })
    }

    /// The time since which the first message waits.
    pub(super) fn oldest(&self, retained: &Retained<M>) -> Option<SessionMs> {
        let first = self.order.front()?;
        match first.kind() {
            Kind::All | Kind::Topic => Some(retained.since(first.key())),
            Kind::Direct | Kind::Initial => self.own.front().map(|own| own.since),
        }
    }

    /// Releases everything that the backlog needs retained.
    pub(super) fn release(self, retained: &mut Retained<M>) {
        for item in self.order {
            match item.kind() {
                Kind::All => retained.release(item.key(), item.more as usize),
                Kind::Topic => retained.release(item.key(), 1),
                Kind::Direct | Kind::Initial => {}
            }
        }
    }

    pub(super) fn is_large(&self) -> bool {
        self.own.capacity() > 0 || self.order.capacity() + self.unordered.capacity() > SMALL_BACKLOG
    }
}

/// An empty backlog with capacity for no more than this many items is kept for reuse, unless it has held messages of
/// the member's own. The initial messages come once, and the capacity they took is as much as half of an idle member.
const SMALL_BACKLOG: usize = 64;
