//! The backlog of a busy member: what waits for it outside its sink. It takes eight bytes per message or per run of
//! broadcasts, plus the member's own messages.

use std::collections::VecDeque;

use slab::Slab;

use crate::contract::Message;
use crate::contract::topic::{SubscriptionTag, TopicKey};
use crate::fanout::clock::SessionMs;
use crate::fanout::outbox::control_queue::Direct;
use crate::fanout::shard::budget::Gathering;
use crate::fanout::shard::lossy::LossyQueues;
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
    /// The droppable messages that wait, and the rates that the member has to keep to.
    pub(super) lossy: Option<Box<LossyQueues>>,
    /// The snapshots to which `order` refers.
    snapshots: Option<Box<Snapshots<M>>>,
}

/// Retained messages of topics that the member has subscribed to: at most one snapshot for each topic.
#[derive(Debug)]
struct Snapshots<M> {
    waiting: Slab<Snapshot<M>>,
    bytes: u64,
}

/// The last messages of a topic, for a late subscriber.
#[derive(Debug)]
struct Snapshot<M> {
    topic: TopicKey,
    messages: VecDeque<(M, usize)>,
    since: SessionMs,
}

/// What became of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SnapshotTaken {
    Waits,
    /// Too many bytes of snapshots wait for the member already.
    TooLarge,
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

/// A place in the order, packed: 3 bits kind, 29 bits key, 32 bits run length or tag.
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
    /// A broadcast to a topic that was not reliable when it was read, like `Topic`. The bound doesn't count it.
    Exempt,
    /// The messages of a snapshot, with the subscriber's tag. The bound doesn't count them.
    Snapshot,
}

const KEY_BITS: u32 = 29;

impl Item {
    fn new(kind: Kind, key: usize, more: u32) -> Self {
        let key = u32::try_from(key).ok().filter(|key| *key < 1 << KEY_BITS);
        let key = key.expect("no shard retains half a billion messages");
        Self { word: (kind as u32) << KEY_BITS | key, more }
    }

    fn retained(key: usize, tag: Option<SubscriptionTag>) -> Self {
        match tag {
            None => Self::new(Kind::All, key, 1),
            Some(tag) => Self::new(Kind::Topic, key, tag.0),
        }
    }

    fn own(kind: Kind) -> Self {
        Self::new(kind, 0, 0)
    }

    fn kind(self) -> Kind {
        match self.word >> KEY_BITS {
            0 => Kind::All,
            1 => Kind::Topic,
            2 => Kind::Direct,
            3 => Kind::Initial,
            4 => Kind::Exempt,
            _ => Kind::Snapshot,
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
            lossy: None,
            snapshots: None,
        })
    }

    /// Whether no reliable message waits that has a place in the order.
    pub(super) fn is_empty(&self) -> bool {
        self.placed == 0
    }

    /// All messages of the backlog, including droppable ones, and direct ones that have no place yet.
    pub(super) fn len(&self) -> usize {
        self.placed + self.unordered.len() + self.lossy.as_ref().map_or(0, |lossy| lossy.len())
    }

    /// Whether a droppable message may go now.
    pub(super) fn may_go_lossy(&self, now: SessionMs) -> bool {
        self.lossy.as_ref().is_some_and(|lossy| lossy.may_go(now))
    }

    /// Whether a droppable message waits or is delayed.
    pub(super) fn has_lossy(&self) -> bool {
        self.lossy.as_ref().is_some_and(|lossy| lossy.len() > 0)
    }

    pub(super) fn push_retained(&mut self, key: usize, tag: Option<SubscriptionTag>) {
        self.placed += 1;
        match self.order.back_mut() {
            Some(last) if tag.is_none() && last.is_followed_by(key) => last.more += 1,
            _ => self.order.push_back(Item::retained(key, tag)),
        }
    }

    /// Puts what waits of a topic that has become reliable behind the reliable messages. Whether anything waits.
    pub(super) fn make_reliable(&mut self, topic: TopicKey) -> bool {
        let Some(lossy) = &mut self.lossy else { return false };
        let before = self.placed;
        for (key, tag) in lossy.take_all(topic) {
            self.placed += 1;
            self.order.push_back(Item::new(Kind::Exempt, key, tag.0));
        }
        self.placed > before
    }

    /// Adds the last messages of a topic, given with their lengths, for a new subscriber. No more than `most` bytes of
    /// snapshots wait for a member.
    pub(super) fn push_snapshot(
        &mut self,
        topic: TopicKey,
        tag: SubscriptionTag,
        messages: VecDeque<(M, usize)>,
        most: u64,
        now: SessionMs,
    ) -> SnapshotTaken {
        let snapshots = self.snapshots.get_or_insert_with(|| Box::new(Snapshots { waiting: Slab::new(), bytes: 0 }));
        let bytes = messages.iter().fold(snapshots.bytes, |sum, (_, bytes)| sum.saturating_add(*bytes as u64));
        // One snapshot may always wait.
        if bytes > most && !snapshots.waiting.is_empty() {
            return SnapshotTaken::TooLarge;
        }
        snapshots.bytes = bytes;
        self.placed += messages.len();
        let key = snapshots.waiting.insert(Snapshot { topic, messages, since: now });
        self.order.push_back(Item::new(Kind::Snapshot, key, tag.0));
        SnapshotTaken::Waits
    }

    /// Takes out what waits of a topic's snapshot.
    pub(super) fn take_snapshot(&mut self, topic: TopicKey) -> VecDeque<(M, usize)> {
        let Some(snapshots) = &mut self.snapshots else { return VecDeque::new() };
        let found = snapshots.waiting.iter().find(|(_, snapshot)| snapshot.topic == topic);
        let Some(key) = found.map(|(key, _)| key) else { return VecDeque::new() };
        let place = self.order.iter().position(|item| item.kind() == Kind::Snapshot && item.key() == key);
        self.order.remove(place.expect("each snapshot has a place in the order"));
        let snapshot = snapshots.waiting.remove(key);
        snapshots.bytes -= snapshot.messages.iter().map(|(_, bytes)| *bytes as u64).sum::<u64>();
        self.placed -= snapshot.messages.len();
        snapshot.messages
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
        let item = *self.order.front()?;
        let kind = item.kind();
        let is_last = match kind {
            Kind::All => item.more == 1,
            Kind::Snapshot => self.snapshot(item).messages.len() == 1,
            _ => true,
        };
        match (kind, is_last) {
            (_, true) => drop(self.order.pop_front()),
            (Kind::All, false) => {
                let first = self.order.front_mut()?;
                first.word += 1;
                first.more -= 1;
            }
            (_, false) => {}
        }
        self.placed -= 1;
        let (message, bytes) = match kind {
            Kind::All | Kind::Topic | Kind::Exempt => retained.take(item.key()),
            Kind::Snapshot => {
                let (message, bytes) =
                    self.snapshot(item).messages.pop_front().expect("an empty snapshot has no place");
                let snapshots = self.snapshots.as_mut().expect(SNAPSHOT);
                snapshots.bytes -= bytes as u64;
                if is_last {
                    snapshots.waiting.remove(item.key());
                }
                (Handed::Own(message), bytes)
            }
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
            Kind::Initial | Kind::Exempt | Kind::Snapshot => true,
        };
        let is_addressed = matches!(kind, Kind::Topic | Kind::Exempt | Kind::Snapshot);
        Some(Popped { is_exempt, message, bytes, tag: is_addressed.then_some(SubscriptionTag(item.more)) })
    }

    fn snapshot(&mut self, item: Item) -> &mut Snapshot<M> {
        let snapshots = self.snapshots.as_mut().expect(SNAPSHOT);
        &mut snapshots.waiting[item.key()]
    }

    /// The time since which the first message waits.
    pub(super) fn oldest(&self, retained: &Retained<M>) -> Option<SessionMs> {
        let first = self.order.front()?;
        match first.kind() {
            Kind::All | Kind::Topic | Kind::Exempt => Some(retained.since(first.key())),
            Kind::Direct | Kind::Initial => self.own.front().map(|own| own.since),
            Kind::Snapshot => self.snapshots.as_ref().map(|snapshots| snapshots.waiting[first.key()].since),
        }
    }

    /// Releases everything that the backlog needs retained.
    pub(super) fn release(self, retained: &mut Retained<M>) {
        for item in self.order {
            match item.kind() {
                Kind::All => retained.release(item.key(), item.more as usize),
                Kind::Topic | Kind::Exempt => retained.release(item.key(), 1),
                Kind::Direct | Kind::Initial | Kind::Snapshot => {}
            }
        }
        if let Some(lossy) = self.lossy {
            lossy.end().for_each(|key| retained.release(key, 1));
        }
    }

    /// Whether an empty backlog isn't worth its memory: see [`SMALL_BACKLOG`].
    pub(super) fn is_large(&self) -> bool {
        self.snapshots.is_some()
            || self.own.capacity() > 0
            || self.order.capacity() + self.unordered.capacity() > SMALL_BACKLOG
    }
}

const SNAPSHOT: &str = "an item that names a snapshot has one";

/// An empty backlog with capacity for no more than this many items is kept for reuse, unless it has held messages of
/// the member's own. The initial messages come once, and the capacity they took is as much as half of an idle member.
const SMALL_BACKLOG: usize = 64;
