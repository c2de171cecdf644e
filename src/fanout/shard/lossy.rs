//! The droppable messages that wait for one member: a queue for each of their topics, served by round robin.
//!
//! A member that keeps up, and has no rate, has none of this. The queues hold references to broadcasts that the shard
//! [retains](Retained), as a backlog does.
//!
//! # Round robin
//! Queues with a message that may go are served by deficit round robin (Shreedhar and Varghese, *Efficient fair queuing
//! using deficit round robin*, 1995). In each round a queue's deficit grows by [`QUANTUM`] bytes times its weight, and
//! the queue hands on messages for as long as the deficit covers them. A message longer than that goes when the deficit
//! has grown to it, and the others go on meanwhile. A queue that has nothing left loses its deficit: it can't save up
//! for a burst.
//!
//! # Rates
//! A queue with a rate has at most one message, the newest. While the rate delays it, it is not in the round robin.
//! `delayed` orders these queues by their time. A queue knows when it last handed on a message, so that another rate
//! applies at once.
//!
//! # Drops
//! The drop of a message is foreign code, and may panic. So everything is counted first, and the keys of what is
//! dropped are kept in `dropped` until [`free`](LossyQueues::free) releases them.

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;
use slab::Slab;

use crate::contract::profile::{Class, Latest, Lossy, Profile, Rate, Weight};
use crate::contract::topic::TopicKey;
use crate::contract::{Losses, Message, SubscriptionTag, Topic};
use crate::fanout::clock::SessionMs;
use crate::fanout::shard::retained::{Handed, Retained};
use crate::time::millis;

/// How many bytes a topic of weight 1 may hand on in each round. Small, so that topics of small messages
/// alternate often.
const QUANTUM: u64 = 512;

/// A time by the fan-out's clock, in microseconds: rates are finer than the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Micros(u64);

impl Micros {
    fn of(SessionMs(ms): SessionMs) -> Self {
        Self(ms.saturating_mul(1000))
    }

    /// The first tick of the clock at or behind this time.
    fn tick(self) -> SessionMs {
        SessionMs(self.0.div_ceil(1000))
    }
}

/// The queues of one member.
#[derive(Debug, Default)]
pub(super) struct LossyQueues {
    queues: Slab<Queue>,
    by_topic: FxHashMap<TopicKey, usize>,
    /// The queues with a message that may go, the next one first.
    ready: VecDeque<usize>,
    /// The first of `ready` has the quantum of this round.
    has_quantum: bool,
    /// The queues whose message is delayed, by the time until which it is.
    delayed: BTreeSet<(Micros, usize)>,
    messages: usize,
    bytes: u64,
    /// The queues in which bytes wait, by how many, from when the bound over all topics is reached until less than half
    /// of it waits. Of equal ones, the newest topic's comes last.
    by_size: Option<BTreeSet<(u64, TopicKey, usize)>>,
    total_rate: Option<TotalRate>,
    /// When the shard's timers have the member visited. Outdated once that time has come.
    armed: Option<SessionMs>,
    /// What was lost since the shard last took it, by topic.
    lost: FxHashMap<TopicKey, (Topic, Losses)>,
    /// What was dropped with a subscription since the shard last took it.
    unsubscribed: u64,
    /// Keys of messages that are counted as lost and not released yet.
    dropped: Vec<u32>,
}

/// What waits of one topic.
#[derive(Debug)]
struct Queue {
    topic: Topic,
    profile: Profile,
    items: VecDeque<Item>,
    bytes: u64,
    deficit: u64,
    state: QueueState,
    /// When the last message was handed on, and its length, if the queue had a rate then.
    last: Option<(Micros, usize)>,
    /// No message may go before this. Zero without a rate.
    due: Micros,
    /// The subscriber's own rate. It makes the subscription one to the newest message only.
    own_rate: Option<Rate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueueState {
    /// Nothing waits.
    Empty,
    /// In the round robin. What waited there may have been dropped.
    Ready,
    /// The message is delayed by a rate.
    Delayed,
}

/// A change of the time at which the shard's timers have a member visited.
pub(super) struct Rearmed {
    /// The time that was set before, if it is still to come.
    pub(super) before: Option<SessionMs>,
    pub(super) due: SessionMs,
}

/// A message that waits: its key among the retained ones, the tag of the subscription, and its length.
#[derive(Clone, Copy, Debug)]
struct Item {
    key: u32,
    tag: SubscriptionTag,
    bytes: u64,
}

/// The total rate of a member: a token bucket as deep as the rate times [`TotalRate::SPAN`]. All messages are charged,
/// and only droppable ones wait for it.
#[derive(Debug)]
struct TotalRate {
    bytes_per_second: u64,
    /// In bytes times 1,000; may be negative.
    tokens: i128,
    filled: SessionMs,
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Overflowed,
    Expired,
    Conflated,
    RateLimited,
}

/// Whether a call has changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Made,
    None,
}

/// A message that was taken out of the queues.
pub(super) struct Taken<'a, M> {
    pub(super) message: Handed<'a, M>,
    pub(super) bytes: usize,
    pub(super) tag: SubscriptionTag,
}

impl Queue {
    fn new(topic: Topic, profile: Profile) -> Self {
        Self {
            topic,
            profile,
            items: VecDeque::new(),
            bytes: 0,
            deficit: 0,
            state: QueueState::Empty,
            last: None,
            due: Micros::default(),
            own_rate: None,
        }
    }

    fn rates(&self) -> impl Iterator<Item = Rate> + use<> {
        [self.own_rate, self.profile.rate()].into_iter().flatten()
    }

    /// Whether a message has to keep to a rate.
    fn is_rated(&self) -> bool {
        self.rates().next().is_some()
    }

    /// Whether only the newest message waits.
    fn is_conflating(&self) -> bool {
        self.is_rated() || !matches!(self.profile.class, Class::Lossy(_))
    }

    /// How many messages, how many bytes and for how long (in milliseconds) they may wait.
    fn bounds(&self) -> (usize, u64, u64) {
        match self.profile.class {
            Class::Lossy(Lossy { max_messages, max_bytes, max_age, .. }) if !self.is_rated() => {
                (max_messages.get() as usize, max_bytes, millis(max_age))
            }
            _ => (1, u64::MAX, u64::MAX),
        }
    }

    fn quantum(&self) -> u64 {
        let weight = match self.profile.class {
            Class::Reliable => Weight::MIN,
            Class::Lossy(Lossy { weight, .. }) | Class::Latest(Latest { weight, .. }) => weight,
        };
        QUANTUM * u64::from(weight.get())
    }

    /// Notes that a message of `bytes` is handed on now. The next one waits from here on. A message that the clock's
    /// tick has delayed counts from its time, so that a rate that isn't whole milliseconds is kept on average.
    fn start_wait(&mut self, bytes: usize, now: Micros) {
        if !self.is_rated() {
            return;
        }
        debug_assert_ne!(self.state, QueueState::Delayed, "a delayed queue is found by its time");
        let from = if now.0.saturating_sub(self.due.0) < 1000 { self.due } else { now };
        self.last = Some((from, bytes));
        self.due = self.due_by_rates();
    }

    /// When the rates, as they are now, allow the next message.
    fn due_by_rates(&self) -> Micros {
        let Some((Micros(from), bytes)) = self.last else { return Micros::default() };
        let wait = self.rates().map(|rate| rate.wait_after(bytes)).max();
        wait.map_or(Micros::default(), |wait| Micros(from.saturating_add(wait)))
    }

    fn why_replaced(&self) -> Loss {
        match (self.is_conflating(), self.state) {
            (false, _) => Loss::Overflowed,
            (true, QueueState::Delayed) => Loss::RateLimited,
            (true, _) => Loss::Conflated,
        }
    }
}

impl LossyQueues {
    pub(super) fn new() -> Box<Self> {
        Box::default()
    }

    /// Whether nothing is kept that a member without queues would lose: no message, no rate, nothing to report, and no
    /// timer.
    pub(super) fn is_idle(&self, now: SessionMs) -> bool {
        self.queues.is_empty()
            && self.total_rate.is_none()
            && self.lost.is_empty()
            && self.unsubscribed == 0
            && self.dropped.is_empty()
            && self.armed(now).is_none()
    }

    /// How many messages wait, those included that are delayed.
    pub(super) fn len(&self) -> usize {
        self.messages
    }

    /// Whether a message of any topic may go now.
    pub(super) fn may_go(&self, now: SessionMs) -> bool {
        self.has_ready() && self.is_within_total_rate(now)
    }

    /// Whether a message waits for nothing but the sink, or for the member's total rate.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    fn is_within_total_rate(&self, now: SessionMs) -> bool {
        self.total_rate.as_ref().is_none_or(|rate| rate.allows(now))
    }

    /// Whether a message for `topic` may go straight into the sink: none is in the round robin, none of
    /// the topic itself waits, and the rates allow it.
    pub(super) fn is_open(&mut self, topic: &Topic, profile: &Profile, now: SessionMs) -> bool {
        if let Some(at) = self.by_topic.get(&topic.key()).copied() {
            self.set_profile(at, profile, now);
            // It may be gone: without a rate, an empty queue isn't kept.
            let queue = self.queues.get(at);
            if queue.is_some_and(|queue| !queue.items.is_empty() || queue.due > Micros::of(now)) {
                return false;
            }
        }
        !self.has_ready() && self.is_within_total_rate(now)
    }

    /// Notes that a message of `bytes` for `topic` went straight into the sink.
    pub(super) fn note_handed_on(&mut self, topic: &Topic, profile: &Profile, bytes: usize, now: SessionMs) {
        let at = self.queue(topic, profile, now);
        self.queues[at].start_wait(bytes, Micros::of(now));
        self.remove_if_done(at);
    }

    /// Whether messages of `topic` have to keep to a rate.
    pub(super) fn is_rated(&self, topic: TopicKey) -> bool {
        self.by_topic.get(&topic).is_some_and(|at| self.queues[*at].is_rated())
    }

    /// The topic's queue, made if there is none, with the profile as it is now.
    fn queue(&mut self, topic: &Topic, profile: &Profile, now: SessionMs) -> usize {
        if let Some(at) = self.by_topic.get(&topic.key()).copied() {
            self.set_profile(at, profile, now);
        }
        // Looked up again: the change may have emptied the queue.
        let queues = &mut self.queues;
        *self.by_topic.entry(topic.key()).or_insert_with(|| queues.insert(Queue::new(topic.clone(), *profile)))
    }

    fn set_profile(&mut self, at: usize, profile: &Profile, now: SessionMs) {
        if self.queues[at].profile != *profile {
            self.queues[at].profile = *profile;
            self.apply_rates(at, now);
        }
    }

    /// Gives the subscriber's own rate to its subscription, or takes it away.
    pub(super) fn set_own_rate(&mut self, topic: &Topic, profile: &Profile, own_rate: Option<Rate>, now: SessionMs) {
        if own_rate.is_some() || self.by_topic.contains_key(&topic.key()) {
            let at = self.queue(topic, profile, now);
            self.queues[at].own_rate = own_rate;
            self.apply_rates(at, now);
        }
    }

    /// Has a queue keep to its rates, and to its number of messages, as they are now. Its other bounds apply when a
    /// message is added or taken. Forgets it if nothing is left to keep.
    fn apply_rates(&mut self, at: usize, now: SessionMs) {
        let most = self.queues[at].bounds().0;
        while self.queues[at].items.len() > most {
            self.drop_oldest(at, self.queues[at].why_replaced());
        }
        let (state, due) = (self.queues[at].state, self.queues[at].due_by_rates());
        if state == QueueState::Delayed || (state == QueueState::Ready && due > Micros::of(now)) {
            self.leave(at);
            self.queues[at].due = due;
            self.enter(at, now);
        } else {
            self.queues[at].due = due;
        }
        self.remove_if_done(at);
    }

    /// Sets the member's total rate, in bytes per second. What the member has saved up, or owes, stays.
    pub(super) fn set_total_rate(&mut self, bytes_per_second: Option<u64>, now: SessionMs) -> Change {
        if self.total_rate.as_ref().map(|rate| rate.bytes_per_second) == bytes_per_second {
            return Change::None;
        }
        let before = self.total_rate.take();
        self.total_rate =
            bytes_per_second.map(|bytes_per_second| TotalRate::new(bytes_per_second, before.as_ref(), now));
        Change::Made
    }

    pub(super) fn has_total_rate(&self) -> bool {
        self.total_rate.is_some()
    }

    /// Charges the member's total rate.
    pub(super) fn charge(&mut self, bytes: usize, now: SessionMs) {
        if let Some(rate) = &mut self.total_rate {
            rate.charge(bytes, now);
        }
    }

    /// Adds the message at `key`. Drops what exceeds the bounds of the topic, or `most_bytes` over all topics; the
    /// caller then [frees](Self::free) it.
    pub(super) fn push<M: Message>(
        &mut self,
        (topic, profile): (&Topic, &Profile),
        (key, tag): (usize, SubscriptionTag),
        most_bytes: u64,
        retained: &Retained<M>,
        now: SessionMs,
    ) {
        let at = self.queue(topic, profile, now);
        let bytes = retained.bytes(key) as u64;
        let (max_messages, max_bytes, _) = self.queues[at].bounds();
        loop {
            let queue = &self.queues[at];
            let fits = queue.items.len() < max_messages && queue.bytes.saturating_add(bytes) <= max_bytes;
            if queue.items.is_empty() || fits {
                break;
            }
            self.drop_oldest(at, self.queues[at].why_replaced());
        }
        if self.bytes.saturating_add(bytes) > most_bytes {
            self.drop_from_largest(most_bytes.saturating_sub(bytes), at);
        } else if self.bytes < most_bytes / 2 {
            self.by_size = None;
        }
        let key = u32::try_from(key).expect("no shard retains four billion messages");
        self.queues[at].items.push_back(Item { key, tag, bytes });
        self.messages += 1;
        self.resize(at, self.queues[at].bytes + bytes);
        if self.queues[at].state == QueueState::Empty {
            self.enter(at, now);
        }
    }

    /// Sets how many bytes wait in a queue.
    fn resize(&mut self, at: usize, bytes: u64) {
        let queue = &mut self.queues[at];
        let before = std::mem::replace(&mut queue.bytes, bytes);
        self.bytes = self.bytes - before + bytes;
        if let Some(by_size) = &mut self.by_size {
            let key = queue.topic.key();
            by_size.remove(&(before, key, at));
            if bytes > 0 {
                by_size.insert((bytes, key, at));
            }
        }
    }

    /// Takes the first message out of a queue, which keeps its place in the round robin, also if it is empty now.
    fn pop_item(&mut self, at: usize) -> Option<Item> {
        let item = self.queues[at].items.pop_front()?;
        self.messages -= 1;
        self.resize(at, self.queues[at].bytes - item.bytes);
        Some(item)
    }

    /// Drops the oldest messages of the topics with most bytes until no more than `most` bytes wait. A topic that has
    /// nothing left has no place in the round robin, except the one that is about to get a message.
    #[cold]
    fn drop_from_largest(&mut self, most: u64, gets_more: usize) {
        let with_bytes = self.queues.iter().filter(|(_, queue)| queue.bytes > 0);
        self.by_size
            .get_or_insert_with(|| with_bytes.map(|(at, queue)| (queue.bytes, queue.topic.key(), at)).collect());
        while self.bytes > most
            && let Some((.., at)) = self.by_size.as_ref().and_then(|by_size| by_size.last().copied())
        {
            self.drop_oldest(at, Loss::Overflowed);
            if at != gets_more && self.queues[at].items.is_empty() {
                self.leave(at);
                self.remove_if_done(at);
            }
        }
    }

    /// Drops the first message of a queue, which keeps its place in the round robin.
    fn drop_oldest(&mut self, at: usize, loss: Loss) {
        let Some(item) = self.pop_item(at) else { return };
        self.dropped.push(item.key);
        let mut one = Losses::default();
        *match loss {
            Loss::Overflowed => &mut one.overflowed,
            Loss::Expired => &mut one.expired,
            Loss::Conflated => &mut one.conflated,
            Loss::RateLimited => &mut one.rate_limited,
        } += 1;
        let topic = &self.queues[at].topic;
        topic.count_lost(&one);
        self.lost.entry(topic.key()).or_insert_with(|| (topic.clone(), Losses::default())).1.add(&one);
    }

    /// Releases what was dropped. May panic with the drop of a message; what is left is released by the next call.
    pub(super) fn free<M: Message>(&mut self, retained: &mut Retained<M>) {
        while let Some(key) = self.dropped.pop() {
            retained.release(key as usize, 1);
        }
    }

    /// Puts a queue that has a message into the round robin, or among the delayed ones. It is in neither.
    fn enter(&mut self, at: usize, now: SessionMs) {
        let queue = &mut self.queues[at];
        if queue.due > Micros::of(now) {
            queue.state = QueueState::Delayed;
            self.delayed.insert((queue.due, at));
        } else {
            queue.state = QueueState::Ready;
            self.ready.push_back(at);
        }
    }

    /// Takes a queue out of the round robin, or out of those that are delayed.
    fn leave(&mut self, at: usize) {
        let queue = &mut self.queues[at];
        match queue.state {
            QueueState::Empty => {}
            QueueState::Delayed => {
                self.delayed.remove(&(queue.due, at));
            }
            QueueState::Ready if self.ready.front() == Some(&at) => {
                self.ready.pop_front();
                self.has_quantum = false;
            }
            QueueState::Ready => self.ready.retain(|ready| *ready != at),
        }
        (queue.state, queue.deficit) = (QueueState::Empty, 0);
    }

    /// Puts the queues whose delay is over into the round robin. If the session `drains`, that is all of them, and no
    /// total rate applies.
    pub(super) fn release_due(&mut self, now: SessionMs, drains: bool) {
        if drains {
            self.total_rate = None;
        }
        while let Some((due, at)) = self.delayed.first().copied() {
            if due > Micros::of(now) && !drains {
                return;
            }
            self.delayed.pop_first();
            self.queues[at].state = QueueState::Ready;
            self.ready.push_back(at);
        }
    }

    /// When the shard has to look at the member again: a message's time comes, or the total rate allows more.
    fn next_due(&self, now: SessionMs) -> Option<SessionMs> {
        let delayed = self.delayed.first().map(|(due, _)| due.tick());
        let paused = self.total_rate.as_ref().filter(|rate| self.has_ready() && !rate.allows(now));
        [delayed, paused.map(TotalRate::allows_at)].into_iter().flatten().min()
    }

    /// Returns [when](Self::next_due) the shard has to look at the member again, unless its timers see to it already.
    pub(super) fn rearm(&mut self, now: SessionMs) -> Option<Rearmed> {
        let due = self.next_due(now)?;
        let before = self.armed(now);
        if before.is_some_and(|before| before <= due) {
            return None;
        }
        self.armed = Some(due);
        Some(Rearmed { before, due })
    }

    /// When the shard's timers have the member visited, if that time is still to come.
    pub(super) fn armed(&self, now: SessionMs) -> Option<SessionMs> {
        self.armed.filter(|armed| *armed > now)
    }

    /// Takes out the next message of the round robin. Drops those that are too old; the caller [frees](Self::free)
    /// them. The caller has made sure that the [total rate](Self::may_go) allows a message.
    pub(super) fn pop<'a, M: Message>(
        &mut self,
        retained: &'a mut Retained<M>,
        now: SessionMs,
    ) -> Option<Taken<'a, M>> {
        let mut passed = 0;
        loop {
            let at = *self.ready.front()?;
            self.drop_expired(at, retained, now);
            let Some(item) = self.queues[at].items.front().copied() else {
                self.leave(at);
                self.remove_if_done(at);
                passed = 0;
                continue;
            };
            let alone = self.ready.len() == 1;
            let queue = &mut self.queues[at];
            if !self.has_quantum {
                self.has_quantum = true;
                queue.deficit = queue.deficit.saturating_add(queue.quantum());
            }
            if queue.deficit < item.bytes && !alone {
                self.has_quantum = false;
                self.ready.rotate_left(1);
                passed += 1;
                if passed == self.ready.len() {
                    self.skip_rounds();
                    passed = 0;
                }
                continue;
            }
            queue.deficit = queue.deficit.saturating_sub(item.bytes);
            queue.topic.count_handed_on(1);
            queue.start_wait(retained.bytes(item.key as usize), Micros::of(now));
            self.pop_item(at);
            if self.queues[at].items.is_empty() {
                self.leave(at);
                self.remove_if_done(at);
            }
            let (message, bytes) = retained.take(item.key as usize);
            return Some(Taken { message, bytes, tag: item.tag });
        }
    }

    /// Gives all ready queues the quanta of the rounds in which none could hand on its first message.
    fn skip_rounds(&mut self) {
        let rounds = |at: &usize| {
            let queue = &self.queues[*at];
            let wanted = queue.items.front().map_or(0, |item| item.bytes);
            wanted.saturating_sub(queue.deficit).div_ceil(queue.quantum())
        };
        let fewest = self.ready.iter().map(rounds).min().unwrap_or(0).saturating_sub(1);
        for at in &self.ready {
            let queue = &mut self.queues[*at];
            queue.deficit = queue.deficit.saturating_add(queue.quantum().saturating_mul(fewest));
        }
    }

    /// Forgets a queue that is empty and has no rate to keep to.
    fn remove_if_done(&mut self, at: usize) {
        let queue = &self.queues[at];
        if queue.state == QueueState::Empty && !queue.is_rated() {
            self.by_topic.remove(&queue.topic.key());
            self.queues.remove(at);
        }
    }

    fn drop_expired<M: Message>(&mut self, at: usize, retained: &Retained<M>, now: SessionMs) {
        let (.., max_age) = self.queues[at].bounds();
        while let Some(item) = self.queues[at].items.front()
            && now.since(retained.since(item.key as usize)) > max_age
        {
            self.drop_oldest(at, Loss::Expired);
        }
    }

    /// Drops all messages that are too old; the caller [frees](Self::free) them.
    pub(super) fn sweep<M: Message>(&mut self, retained: &Retained<M>, now: SessionMs) {
        for at in self.ready.clone() {
            self.drop_expired(at, retained, now);
            if self.queues[at].items.is_empty() {
                self.leave(at);
                self.remove_if_done(at);
            }
        }
    }

    /// Ends a subscription: drops what waits for it; the caller [frees](Self::free) that.
    pub(super) fn unsubscribe(&mut self, topic: TopicKey) {
        let Some(queue) = self.take_queue(topic) else { return };
        self.unsubscribed += queue.items.len() as u64;
        queue.topic.count_ended(queue.items.len() as u64);
        self.dropped.extend(queue.items.iter().map(|item| item.key));
    }

    /// Takes out what waits of a topic that has become reliable, with the tags, in order.
    pub(super) fn take_all(&mut self, topic: TopicKey) -> impl Iterator<Item = (usize, SubscriptionTag)> + use<> {
        let queue = self.take_queue(topic);
        if let Some(queue) = &queue {
            // From here on they count as reliable messages.
            queue.topic.count_handed_on(queue.items.len() as u64);
        }
        queue.into_iter().flat_map(|queue| queue.items).map(|item| (item.key as usize, item.tag))
    }

    fn take_queue(&mut self, topic: TopicKey) -> Option<Queue> {
        let at = self.by_topic.remove(&topic)?;
        self.leave(at);
        self.resize(at, 0);
        let queue = self.queues.remove(at);
        self.messages -= queue.items.len();
        Some(queue)
    }

    /// Whether something was lost that the shard hasn't taken note of.
    pub(super) fn has_losses(&self) -> bool {
        !self.lost.is_empty() || self.unsubscribed > 0
    }

    /// What was lost, by topic, and what was dropped with a subscription, since this was last called.
    pub(super) fn take_losses(&mut self) -> (impl Iterator<Item = (Topic, Losses)>, u64) {
        (self.lost.drain().map(|(_, lost)| lost), std::mem::take(&mut self.unsubscribed))
    }

    /// Counts what waits as ended with the member, and returns the keys of all that the queues need retained.
    pub(super) fn end(self) -> impl Iterator<Item = usize> {
        for (_, queue) in &self.queues {
            queue.topic.count_ended(queue.items.len() as u64);
        }
        let waiting = self.queues.into_iter().flat_map(|(_, queue)| queue.items).map(|item| item.key);
        self.dropped.into_iter().chain(waiting).map(|key| key as usize)
    }
}

impl TotalRate {
    /// For how long the member may save up, in milliseconds.
    const SPAN: u64 = 100;

    fn new(bytes_per_second: u64, before: Option<&Self>, now: SessionMs) -> Self {
        let mut rate = Self { bytes_per_second, tokens: 0, filled: now };
        rate.tokens = before.map_or(i128::MAX, |before| before.tokens_at(now)).min(rate.most());
        rate
    }

    fn most(&self) -> i128 {
        i128::from(self.bytes_per_second) * i128::from(Self::SPAN)
    }

    fn tokens_at(&self, now: SessionMs) -> i128 {
        let more = i128::from(self.bytes_per_second) * i128::from(now.since(self.filled));
        (self.tokens + more).min(self.most())
    }

    fn allows(&self, now: SessionMs) -> bool {
        self.tokens_at(now) > 0
    }

    /// When it allows a message again.
    fn allows_at(&self) -> SessionMs {
        let missing = 1_i128.saturating_sub(self.tokens).max(0) as u128;
        let wait = missing.div_ceil(u128::from(self.bytes_per_second));
        SessionMs(self.filled.0.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// Charges a message. What the member owes is a second of its rate at most, or the longest message: otherwise
    /// reliable messages above the rate would keep the others back long after they have ceased.
    fn charge(&mut self, bytes: usize, now: SessionMs) {
        let (tokens, cost) = (self.tokens_at(now), bytes as i128 * 1000);
        let most_owed = cost.max(i128::from(self.bytes_per_second) * 1000);
        self.tokens = (tokens - cost).max(tokens.min(-most_owed));
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::fanout::shard::batch::ReadBatch;

    const NOW: SessionMs = SessionMs(1_000_000);
    const TAG: SubscriptionTag = SubscriptionTag(1);

    /// One member's queues, and the messages that they name.
    struct Stage {
        queues: Box<LossyQueues>,
        retained: Retained<Bytes>,
        topics: Vec<(Topic, Profile)>,
        /// How many bytes may wait over all topics.
        most_bytes: u64,
    }

    impl Stage {
        /// One topic for each of these weights.
        fn new(weights: &[u16]) -> Self {
            let profile = |weight: &u16| {
                let lossy = Lossy::default().weight(Weight::new(*weight).expect("not zero")).max_bytes(u64::MAX);
                Profile::lossy(lossy.max_messages(std::num::NonZeroU32::MAX))
            };
            let topics = weights.iter().map(|weight| (Topic::new(), profile(weight))).collect();
            Self { queues: LossyQueues::new(), retained: Retained::new(), topics, most_bytes: u64::MAX }
        }

        fn push(&mut self, at: usize, bytes: usize) {
            let mut batch = ReadBatch::new(1);
            // The first byte says of which topic the message is.
            let message = Bytes::from(vec![u8::try_from(at).expect("few topics"); bytes]);
            batch.push(Default::default(), bytes, message, None, None);
            let key = self.retained.keep(&mut batch, 0, NOW);
            let (topic, profile) = &self.topics[at];
            self.queues.push((topic, profile), (key, TAG), self.most_bytes, &self.retained, NOW);
            self.queues.free(&mut self.retained);
            self.retained.end_turn(&mut batch);
        }

        /// The topic and the length of the message whose turn it is.
        fn pop(&mut self) -> Option<(usize, usize)> {
            let taken = self.queues.pop(&mut self.retained, NOW)?;
            let Handed::Own(message) = taken.message else { panic!("no other member needs it") };
            Some((usize::from(message[0]), taken.bytes))
        }
    }

    // Whatever the lengths and weights, for as long as all topics have messages, what each was given per weight differs
    // by no more than a quantum and one message of either.
    #[test]
    fn topics_share_by_their_weights_within_a_message() {
        fastrand::seed(3);
        for round in 0..60 {
            let weights: Vec<u16> = (0..fastrand::usize(2..6)).map(|_| fastrand::u16(1..5)).collect();
            let longest: Vec<usize> =
                weights.iter().map(|_| fastrand::choice([20, 700, 9000, 300_000]).unwrap()).collect();
            let mut stage = Stage::new(&weights);
            let mut given = vec![0; weights.len()];
            (0..weights.len()).for_each(|at| (0..3).for_each(|_| stage.push(at, fastrand::usize(1..=longest[at]))));
            for _ in 0..2000 {
                let (at, bytes) = stage.pop().expect("each topic has messages");
                given[at] += bytes;
                stage.push(at, fastrand::usize(1..=longest[at]));
                // In the middle of its turn a topic is ahead by what its turn gives it.
                let share = |at: usize| given[at] as f64 / f64::from(weights[at]);
                let slack = |at: usize| QUANTUM as f64 + longest[at] as f64 / f64::from(weights[at]);
                for other in 0..weights.len() {
                    let ahead = share(at) - share(other);
                    assert!(ahead <= slack(at) + slack(other), "round {round}: {ahead} of {weights:?}, {longest:?}");
                }
            }
        }
    }

    #[test]
    fn a_topic_that_was_silent_has_saved_nothing_up() {
        let mut stage = Stage::new(&[1, 1]);
        (0..400).for_each(|_| stage.push(0, 100));
        (0..100).for_each(|_| assert_eq!(stage.pop(), Some((0, 100))));
        (0..200).for_each(|_| stage.push(1, 100));
        let of_second = (0..100).filter(|_| stage.pop() == Some((1, 100))).count();
        assert!((45..=55).contains(&of_second), "{of_second} of 100");
    }

    // A topic from which messages were handed on, or that has ended, is no larger than what waits of it now.
    #[test]
    fn beyond_the_bound_over_all_topics_the_largest_one_loses() {
        fastrand::seed(5);
        let mut stage = Stage::new(&[1, 2, 3, 1, 2, 3]);
        stage.most_bytes = 5000;
        let mut waiting = vec![VecDeque::new(); stage.topics.len()];
        let mut overflows = 0;
        for round in 0..20_000 {
            let at = fastrand::usize(..waiting.len());
            let mut expected = vec![0; waiting.len()];
            match fastrand::u8(..10) {
                0..6 => {
                    let bytes = fastrand::usize(1..1500);
                    while waiting.iter().flatten().sum::<usize>() + bytes > 5000 {
                        // The last of equal ones.
                        let largest = (0..waiting.len()).max_by_key(|at| waiting[*at].iter().sum::<usize>()).unwrap();
                        waiting[largest].pop_front();
                        expected[largest] += 1;
                    }
                    waiting[at].push_back(bytes);
                    stage.push(at, bytes);
                }
                6..9 => {
                    if let Some((at, bytes)) = stage.pop() {
                        assert_eq!(waiting[at].pop_front(), Some(bytes));
                    }
                }
                _ => {
                    waiting[at].clear();
                    stage.queues.unsubscribe(stage.topics[at].0.key());
                    stage.queues.free(&mut stage.retained);
                }
            }
            let mut lost = vec![0; waiting.len()];
            for (topic, losses) in stage.queues.take_losses().0 {
                let at = stage.topics.iter().position(|(known, _)| known.key() == topic.key());
                lost[at.expect("a known topic")] = losses.overflowed;
            }
            assert_eq!(lost, expected, "round {round}");
            overflows += expected.iter().sum::<u64>();
        }
        assert!(overflows > 1000, "{overflows}");
    }

    #[test]
    fn queues_are_idle_again_after_a_message_was_delayed() {
        let mut stage = Stage::new(&[1]);
        let (topic, profile) = stage.topics[0].clone();
        stage.queues.set_own_rate(&topic, &profile, Some(Rate::every(std::time::Duration::from_secs(1))), NOW);
        stage.queues.note_handed_on(&topic, &profile, 10, NOW);
        stage.push(0, 10);
        let due = stage.queues.rearm(NOW).expect("the message is delayed").due;
        stage.queues.release_due(due, false);
        assert!(stage.queues.pop(&mut stage.retained, due).is_some());
        assert!(!stage.queues.is_idle(due), "it has a rate");
        stage.queues.unsubscribe(topic.key());
        assert!(stage.queues.is_idle(due));
    }

    #[test]
    fn every_message_is_handed_on_once_or_counted() {
        fastrand::seed(9);
        let mut stage = Stage::new(&[1, 2, 3]);
        for (_, profile) in &mut stage.topics {
            let Class::Lossy(lossy) = &mut profile.class else { unreachable!("all are lossy") };
            lossy.max_messages = std::num::NonZeroU32::new(5).expect("not zero");
        }
        let (mut pushed, mut popped, mut lost, mut unsubscribed) = (0, 0, 0, 0);
        for _ in 0..20_000 {
            match fastrand::u8(..20) {
                0..12 => {
                    stage.push(fastrand::usize(..3), fastrand::usize(1..3000));
                    pushed += 1;
                }
                12..18 => popped += u64::from(stage.pop().is_some()),
                18 => {
                    let topic = stage.topics[fastrand::usize(..3)].0.key();
                    stage.queues.unsubscribe(topic);
                    stage.queues.free(&mut stage.retained);
                }
                _ => stage.queues.sweep(&stage.retained, NOW),
            }
            let (losses, dropped) = stage.queues.take_losses();
            lost += losses.map(|(_, losses)| losses.total()).sum::<u64>();
            unsubscribed += dropped;
            assert_eq!(pushed, popped + lost + unsubscribed + stage.queues.len() as u64);
        }
        while stage.pop().is_some() {}
        assert_eq!((stage.queues.len(), stage.queues.bytes), (0, 0));
        assert!(stage.queues.is_idle(NOW) && stage.queues.by_topic.is_empty());
    }
}
