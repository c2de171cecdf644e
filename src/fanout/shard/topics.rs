//! The topic subscriptions of the members of one shard, and what the shard keeps of topics.

use std::collections::VecDeque;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::caught::caught;
use crate::contract::profile::Profile;
use crate::contract::topic::{Counted, TopicKey, WeakTopic};
use crate::contract::{Message, Rate, Subscribed, SubscriptionTag, Topic, Unsubscribed};
use crate::fanout::slot::Slot;

/// The subscriptions of a shard's members, by topic and by member.
pub(super) struct TopicIndex<M> {
    topics: FxHashMap<TopicKey, TopicEntry<M>>,
    /// The places of each member in the topics' lists, by its slot. Ends behind the last member that has subscribed.
    members: Vec<Places>,
    /// How many topics there may be before the shard looks for those without handles.
    sweep_at: usize,
    /// The shortest age limit of the topics that the shard knows, if it was asked for since they changed.
    least_age: Option<Duration>,
}

/// What the shard knows of a topic.
pub(super) struct TopicEntry<M> {
    subscribers: Vec<Subscriber>,
    /// How many of the subscribers have a rate of their own.
    own_rates: u32,
    /// For a topic that has, or had, another profile than the default.
    profiled: Option<Box<Profiled<M>>>,
}

/// A copy of a topic's profile, and the messages that the shard keeps for late subscribers.
pub(super) struct Profiled<M> {
    topic: WeakTopic,
    version: u64,
    profile: Profile,
    last: VecDeque<(M, usize)>,
}

/// What a shard keeps of topics, for a shard that is made later.
pub(in crate::fanout) struct KeptTopics<M>(Vec<(TopicKey, Profiled<M>)>);

impl<M> Default for KeptTopics<M> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// A member in a topic's list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subscriber {
    pub(super) slot: Slot,
    pub(super) tag: SubscriptionTag,
    /// The subscriber has a rate of its own, which its queues know.
    pub(super) has_own_rate: bool,
}

/// A member's index in a topic's list, and its share of the topic's count.
struct SubscriberIndex {
    index: u32,
    counted: Counted,
}

impl SubscriberIndex {
    fn topic(&self) -> TopicKey {
        self.counted.topic().key()
    }
}

/// A member's places in the lists of the topics that it has subscribed to.
///
/// Two are stored inline: a viewer of telemetry that watches one channel has subscribed to that and to the
/// announcements, and thousands of such viewers need no memory of their own for it.
#[derive(Default)]
struct Places {
    few: [Option<SubscriberIndex>; 2],
    others: Option<Box<FxHashMap<TopicKey, SubscriberIndex>>>,
}

impl Places {
    fn get_mut(&mut self, topic: TopicKey) -> Option<&mut SubscriberIndex> {
        let Self { few, others } = self;
        let found = few.iter_mut().flatten().find(|place| place.topic() == topic);
        found.or_else(|| others.as_mut()?.get_mut(&topic))
    }

    /// Adds the place in the list of a topic that has none yet.
    fn insert(&mut self, place: SubscriberIndex) {
        match self.few.iter_mut().find(|free| free.is_none()) {
            Some(free) => *free = Some(place),
            None => drop(self.others.get_or_insert_default().insert(place.topic(), place)),
        }
    }

    fn remove(&mut self, topic: TopicKey) -> Option<SubscriberIndex> {
        let found = self.few.iter_mut().find_map(|place| place.take_if(|place| place.topic() == topic));
        found.or_else(|| {
            let removed = self.others.as_mut()?.remove(&topic);
            self.others.take_if(|others| others.is_empty());
            removed
        })
    }
}

/// What a shard has to know of a topic to hand on its message.
pub(super) struct TopicAudience<'a> {
    pub(super) subscribers: &'a [Subscriber],
    /// The topic's profile and its version. `None` if it never had one and no subscriber has a rate.
    pub(super) profiled: Option<(Profile, u64)>,
}

impl TopicAudience<'_> {
    pub(super) const NOBODY: Self = Self { subscribers: &[], profiled: None };
}

/// Up to so many topics, looking at all of them costs next to nothing.
const FEW: usize = 64;

impl<M> Default for TopicEntry<M> {
    fn default() -> Self {
        Self { subscribers: Vec::new(), own_rates: 0, profiled: None }
    }
}

impl<M> TopicEntry<M> {
    /// How long a message may wait.
    fn max_age(&self) -> Duration {
        self.profiled.as_ref().map_or(Duration::MAX, |profiled| profiled.profile.max_age())
    }

    /// Whether nothing is lost if the shard forgets the topic.
    fn is_idle(&self) -> bool {
        self.subscribers.is_empty() && self.profiled.as_ref().is_none_or(|profiled| profiled.last.is_empty())
    }
}

impl<M: Message> TopicIndex<M> {
    pub(super) fn new() -> Self {
        Self { topics: FxHashMap::default(), members: Vec::new(), sweep_at: 0, least_age: None }
    }

    /// The audience of a message for `topic`.
    #[inline]
    pub(super) fn audience(&mut self, topic: &Topic) -> TopicAudience<'_> {
        let key = topic.key();
        if topic.version() > 0 {
            return self.profiled_audience(topic);
        }
        let Some(entry) = self.topics.get(&key) else { return TopicAudience::NOBODY };
        let profiled = (entry.own_rates > 0).then(|| (Profile::default(), 0));
        TopicAudience { subscribers: &entry.subscribers, profiled }
    }

    #[inline(never)]
    fn profiled_audience(&mut self, topic: &Topic) -> TopicAudience<'_> {
        self.update(topic);
        let Some(entry) = self.topics.get(&topic.key()) else { return TopicAudience::NOBODY };
        let profiled = entry.profiled.as_ref().map(|profiled| (profiled.profile, profiled.version));
        TopicAudience { subscribers: &entry.subscribers, profiled }
    }

    /// Takes over the topic's profile, if it has changed.
    fn update(&mut self, topic: &Topic) {
        let entry = self.topics.entry(topic.key()).or_default();
        let version = topic.version();
        if version == 0 || entry.profiled.as_ref().is_some_and(|profiled| profiled.version == version) {
            return;
        }
        let (profile, version) = topic.versioned();
        match &mut entry.profiled {
            Some(profiled) => {
                (profiled.profile, profiled.version) = (profile, version);
                let excess = profiled.last.len().saturating_sub(profile.retained());
                // The drop of a message may panic.
                caught(|| drop(profiled.last.drain(..excess)));
            }
            none => {
                *none = Some(Box::new(Profiled { topic: topic.downgrade(), version, profile, last: VecDeque::new() }));
            }
        }
        self.sweep();
        self.least_age = None;
    }

    /// The shortest time for which a topic lets its messages wait.
    pub(super) fn least_age(&mut self) -> Duration {
        let topics = &self.topics;
        *self.least_age.get_or_insert_with(|| topics.values().map(TopicEntry::max_age).min().unwrap_or(Duration::MAX))
    }

    /// Forgets a topic. The drop of a retained message may panic.
    fn forget(&mut self, topic: TopicKey) {
        if let Some(entry) = self.topics.remove(&topic) {
            self.least_age = None;
            caught(|| drop(entry));
        }
    }

    /// Keeps a message of `topic` for late subscribers, if the topic retains any.
    pub(super) fn retain(&mut self, topic: TopicKey, message: &M, bytes: usize) {
        let profiled = self.topics.get_mut(&topic).and_then(|entry| entry.profiled.as_mut());
        let Some(profiled) = profiled.filter(|profiled| profiled.profile.retained() > 0) else { return };
        profiled.last.push_back((message.clone(), bytes));
        while profiled.last.len() > profiled.profile.retained() {
            profiled.last.pop_front();
        }
    }

    /// A copy of what is kept for late subscribers, with the topics' profiles.
    pub(super) fn kept(&self) -> KeptTopics<M> {
        let profiled = self.topics.iter().filter_map(|(key, entry)| Some((*key, entry.profiled.as_deref()?)));
        let copies = profiled.map(|(key, profiled)| {
            let Profiled { topic, version, profile, last } = profiled;
            (key, Profiled { topic: topic.clone(), version: *version, profile: *profile, last: last.clone() })
        });
        KeptTopics(copies.collect())
    }

    /// Takes over what another shard has kept. This one has kept nothing yet.
    pub(super) fn take_over(&mut self, kept: KeptTopics<M>) {
        for (key, profiled) in kept.0 {
            self.least_age = None;
            self.topics.entry(key).or_default().profiled = Some(Box::new(profiled));
        }
        self.sweep();
    }

    /// The profile of `topic`, and the messages that a late subscriber gets, with their lengths, if it `is_new`.
    pub(super) fn snapshot(&mut self, topic: &Topic, is_new: bool) -> (Profile, VecDeque<(M, usize)>) {
        self.update(topic);
        let profiled = self.topics.get(&topic.key()).and_then(|entry| entry.profiled.as_ref());
        let last = |profiled: &Profiled<M>| if is_new { profiled.last.clone() } else { VecDeque::new() };
        profiled.map_or_else(Default::default, |profiled| (profiled.profile, last(profiled)))
    }

    /// Looks for topics without handles: each time a topic comes, while there are few, and later each time their number
    /// has doubled.
    fn sweep(&mut self) {
        if self.topics.len() > FEW && self.topics.len() < self.sweep_at {
            return;
        }
        let is_alive =
            |entry: &TopicEntry<M>| entry.profiled.as_ref().is_some_and(|profiled| profiled.topic.is_alive());
        let ended = self.topics.extract_if(|_, entry| entry.subscribers.is_empty() && !is_alive(entry));
        for (_, ended) in ended {
            self.least_age = None;
            // The drop of a message may panic.
            caught(|| drop(ended));
        }
        self.sweep_at = self.topics.len() * 2;
    }

    /// Subscribes a member, with a rate of its own if it has one.
    pub(super) fn subscribe(
        &mut self,
        slot: Slot,
        counted: Counted,
        tag: SubscriptionTag,
        own_rate: Option<Rate>,
    ) -> Subscribed {
        let (topic, has_own_rate) = (counted.topic().key(), own_rate.is_some());
        let entry = self.topics.entry(topic).or_default();
        if slot.index() >= self.members.len() {
            self.members.resize_with(slot.index() + 1, Places::default);
        }
        let places = &mut self.members[slot.index()];
        if let Some(place) = places.get_mut(topic) {
            let subscriber = &mut entry.subscribers[place.index as usize];
            entry.own_rates = entry.own_rates + u32::from(has_own_rate) - u32::from(subscriber.has_own_rate);
            (subscriber.tag, subscriber.has_own_rate) = (tag, has_own_rate);
            return Subscribed::Retagged;
        }
        let index = u32::try_from(entry.subscribers.len()).expect("a shard holds fewer members");
        places.insert(SubscriberIndex { index, counted });
        entry.subscribers.push(Subscriber { slot, tag, has_own_rate });
        entry.own_rates += u32::from(has_own_rate);
        Subscribed::New
    }

    pub(super) fn unsubscribe(&mut self, slot: Slot, topic: TopicKey) -> Unsubscribed {
        let place = self.members.get_mut(slot.index()).and_then(|places| places.remove(topic));
        let Some(place) = place else { return Unsubscribed::NotSubscribed };
        self.vacate(topic, place);
        Unsubscribed::Removed
    }

    /// Ends a topic, and returns the slots of its subscribers.
    pub(super) fn end(&mut self, topic: TopicKey) -> Vec<Slot> {
        let entry = self.topics.get_mut(&topic).map(|entry| std::mem::take(&mut entry.subscribers));
        let slots: Vec<_> = entry.unwrap_or_default().into_iter().map(|subscriber| subscriber.slot).collect();
        for slot in &slots {
            self.members[slot.index()].remove(topic);
        }
        self.forget(topic);
        slots
    }

    /// Ends all subscriptions of a member that leaves.
    pub(super) fn remove(&mut self, slot: Slot) {
        let Some(places) = self.members.get_mut(slot.index()) else { return };
        let Places { few, others } = std::mem::take(places);
        let others = others.into_iter().flat_map(|others| others.into_values());
        for place in few.into_iter().flatten().chain(others) {
            self.vacate(place.topic(), place);
        }
    }

    fn vacate(&mut self, topic: TopicKey, SubscriberIndex { index, counted }: SubscriberIndex) {
        let entry = self.topics.get_mut(&topic).expect("a topic with a place has a list");
        let gone = entry.subscribers.swap_remove(index as usize);
        entry.own_rates -= u32::from(gone.has_own_rate);
        match entry.subscribers.get(index as usize).copied() {
            Some(moved) => {
                let place = self.members[moved.slot.index()].get_mut(topic);
                place.expect("a subscriber belongs to a member with a place").index = index;
            }
            None if entry.is_idle() => self.forget(topic),
            None => {}
        }
        drop(counted);
    }
}
