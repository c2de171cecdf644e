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
    /// How many topics there may be before the shard looks for those that have ended.
    sweep_at: usize,
    /// The shortest age limit of the topics that the shard knows.
    least_age: Duration,
    /// A topic with that limit is gone, or has another one.
    is_age_outdated: bool,
}

/// What the shard knows of a topic.
pub(super) struct TopicEntry<M> {
    subscribers: Vec<Subscriber>,
    /// How many of the subscribers have a rate of their own.
    wishes: u32,
    /// For a topic that has, or had, another profile than the default.
    special: Option<Box<Special<M>>>,
}

/// A copy of a topic's profile, and the messages that the shard keeps for late subscribers.
pub(super) struct Special<M> {
    topic: WeakTopic,
    version: u32,
    profile: Profile,
    last: VecDeque<(M, usize)>,
}

/// What a shard keeps of topics, for a shard that is made later.
pub(in crate::fanout) struct KeptTopics<M>(Vec<(TopicKey, Special<M>)>);

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
    pub(super) has_wish: bool,
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
    /// The topic's profile and its version, unless the topic is plain: reliable ever since, and nobody has a rate.
    pub(super) special: Option<(Profile, u32)>,
}

impl TopicAudience<'_> {
    pub(super) const NOBODY: Self = Self { subscribers: &[], special: None };
}

/// Up to so many topics, looking at all of them costs next to nothing.
const FEW: usize = 64;

impl<M> Default for TopicEntry<M> {
    fn default() -> Self {
        Self { subscribers: Vec::new(), wishes: 0, special: None }
    }
}

impl<M> TopicEntry<M> {
    /// How long a message may wait.
    fn max_age(&self) -> Duration {
        self.special.as_ref().map_or(Duration::MAX, |special| special.profile.max_age())
    }

    /// Whether nothing is lost if the shard forgets the topic.
    fn is_idle(&self) -> bool {
        self.subscribers.is_empty() && self.special.as_ref().is_none_or(|special| special.last.is_empty())
    }
}

impl<M: Message> TopicIndex<M> {
    pub(super) fn new() -> Self {
        Self {
            topics: FxHashMap::default(),
            members: Vec::new(),
            sweep_at: 0,
            least_age: Duration::MAX,
            is_age_outdated: false,
        }
    }

    /// The audience of a message for `topic`.
    #[inline]
    pub(super) fn audience(&mut self, topic: &Topic) -> TopicAudience<'_> {
        let key = topic.key();
        if topic.version() > 0 {
            return self.special_audience(topic);
        }
        let Some(entry) = self.topics.get(&key) else { return TopicAudience::NOBODY };
        let special = (entry.wishes > 0).then(|| (Profile::default(), 0));
        TopicAudience { subscribers: &entry.subscribers, special }
    }

    #[cold]
    fn special_audience(&mut self, topic: &Topic) -> TopicAudience<'_> {
        self.update(topic);
        let Some(entry) = self.topics.get(&topic.key()) else { return TopicAudience::NOBODY };
        let special = entry.special.as_ref().map(|special| (special.profile, special.version));
        TopicAudience { subscribers: &entry.subscribers, special }
    }

    /// Takes over the topic's profile, if it has changed.
    fn update(&mut self, topic: &Topic) {
        let entry = self.topics.entry(topic.key()).or_default();
        let version = topic.version();
        if version == 0 || entry.special.as_ref().is_some_and(|special| special.version == version) {
            return;
        }
        let (profile, version) = topic.versioned();
        let before = entry.special.as_ref().map_or(Duration::MAX, |special| special.profile.max_age());
        match &mut entry.special {
            Some(special) => {
                (special.profile, special.version) = (profile, version);
                let excess = special.last.len().saturating_sub(profile.retained());
                // The drop of a message may panic.
                caught(|| drop(special.last.drain(..excess)));
            }
            none => {
                *none = Some(Box::new(Special { topic: topic.downgrade(), version, profile, last: VecDeque::new() }));
            }
        }
        self.sweep();
        self.least_age = self.least_age.min(profile.max_age());
        self.is_age_outdated |= before == self.least_age && profile.max_age() > before;
    }

    /// The shortest time for which a topic lets its messages wait.
    pub(super) fn least_age(&mut self) -> Duration {
        if std::mem::take(&mut self.is_age_outdated) {
            let special = self.topics.values().filter_map(|entry| entry.special.as_ref());
            self.least_age = special.map(|special| special.profile.max_age()).min().unwrap_or(Duration::MAX);
        }
        self.least_age
    }

    /// Forgets a topic. The drop of a retained message may panic.
    fn forget(&mut self, topic: TopicKey) {
        if let Some(entry) = self.topics.remove(&topic) {
            self.is_age_outdated |= entry.max_age() == self.least_age;
            caught(|| drop(entry));
        }
    }

    /// Keeps a message of `topic` for late subscribers, if the topic retains any.
    pub(super) fn retain(&mut self, topic: TopicKey, message: &M, bytes: usize) {
        let special = self.topics.get_mut(&topic).and_then(|entry| entry.special.as_mut());
        let Some(special) = special.filter(|special| special.profile.retained() > 0) else { return };
        special.last.push_back((message.clone(), bytes));
        while special.last.len() > special.profile.retained() {
            special.last.pop_front();
        }
    }

    /// A copy of what is kept for late subscribers, with the topics' profiles.
    pub(super) fn kept(&self) -> KeptTopics<M> {
        let special = self.topics.iter().filter_map(|(key, entry)| Some((*key, entry.special.as_deref()?)));
        let copies = special.map(|(key, special)| {
            let Special { topic, version, profile, last } = special;
            (key, Special { topic: topic.clone(), version: *version, profile: *profile, last: last.clone() })
        });
        KeptTopics(copies.collect())
    }

    /// Takes over what another shard has kept. This one has kept nothing yet.
    pub(super) fn take_over(&mut self, kept: KeptTopics<M>) {
        for (key, special) in kept.0 {
            self.least_age = self.least_age.min(special.profile.max_age());
            self.topics.entry(key).or_default().special = Some(Box::new(special));
        }
        self.sweep();
    }

    /// The profile of `topic`, and the messages that a late subscriber gets, with their lengths, if it `is_late`.
    pub(super) fn snapshot(&mut self, topic: &Topic, is_late: bool) -> (Profile, VecDeque<(M, usize)>) {
        self.update(topic);
        let special = self.topics.get(&topic.key()).and_then(|entry| entry.special.as_ref());
        let last = |special: &Special<M>| if is_late { special.last.clone() } else { VecDeque::new() };
        special.map_or_else(Default::default, |special| (special.profile, last(special)))
    }

    /// Looks for topics that have ended: each time a topic comes, while there are few, and later each time their number
    /// has doubled.
    fn sweep(&mut self) {
        if self.topics.len() > FEW && self.topics.len() < self.sweep_at {
            return;
        }
        let is_alive = |entry: &TopicEntry<M>| entry.special.as_ref().is_some_and(|special| special.topic.is_alive());
        let ended = self.topics.extract_if(|_, entry| entry.subscribers.is_empty() && !is_alive(entry));
        for (_, ended) in ended {
            self.is_age_outdated |= ended.max_age() == self.least_age;
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
        wish: Option<Rate>,
    ) -> Subscribed {
        let (topic, has_wish) = (counted.topic().key(), wish.is_some());
        let entry = self.topics.entry(topic).or_default();
        if slot.index() >= self.members.len() {
            self.members.resize_with(slot.index() + 1, Places::default);
        }
        let places = &mut self.members[slot.index()];
        if let Some(place) = places.get_mut(topic) {
            let subscriber = &mut entry.subscribers[place.index as usize];
            entry.wishes = entry.wishes + u32::from(has_wish) - u32::from(subscriber.has_wish);
            (subscriber.tag, subscriber.has_wish) = (tag, has_wish);
            return Subscribed::Retagged;
        }
        let index = u32::try_from(entry.subscribers.len()).expect("a shard holds fewer members");
        places.insert(SubscriberIndex { index, counted });
        entry.subscribers.push(Subscriber { slot, tag, has_wish });
        entry.wishes += u32::from(has_wish);
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
        entry.wishes -= u32::from(gone.has_wish);
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
