//! The topic subscriptions of the members of one shard.

use rustc_hash::FxHashMap;

use crate::contract::topic::{Counted, TopicKey};
use crate::contract::{Subscribed, SubscriptionTag, Unsubscribed};
use crate::fanout::slot::Slot;

/// The subscriptions of a shard's members, by topic and by member.
#[derive(Default)]
pub(super) struct TopicIndex {
    topics: FxHashMap<TopicKey, Vec<Subscriber>>,
    members: FxHashMap<Slot, FxHashMap<TopicKey, SubscriberIndex>>,
}

/// A member in a topic's list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subscriber {
    pub(super) slot: Slot,
    pub(super) tag: SubscriptionTag,
}

/// A member's index in a topic's list, and its share of the topic's count.
struct SubscriberIndex {
    index: usize,
    _counted: Counted,
}

impl TopicIndex {
    /// The subscribers of `topic` in this shard.
    pub(super) fn subscribers(&self, topic: TopicKey) -> &[Subscriber] {
        self.topics.get(&topic).map_or(&[], Vec::as_slice)
    }

    pub(super) fn subscribe(&mut self, slot: Slot, counted: Counted, tag: SubscriptionTag) -> Subscribed {
        let topic = counted.topic();
        let subscribers = self.topics.entry(topic).or_default();
        let places = self.members.entry(slot).or_default();
        if let Some(place) = places.get(&topic) {
            subscribers[place.index].tag = tag;
            return Subscribed::Retagged;
        }
        places.insert(topic, SubscriberIndex { index: subscribers.len(), _counted: counted });
        subscribers.push(Subscriber { slot, tag });
        Subscribed::New
    }

    pub(super) fn unsubscribe(&mut self, slot: Slot, topic: TopicKey) -> Unsubscribed {
        let place = self.members.get_mut(&slot).and_then(|places| places.remove(&topic));
        let Some(place) = place else { return Unsubscribed::NotSubscribed };
        self.vacate(topic, place.index);
        if self.members.get(&slot).is_some_and(FxHashMap::is_empty) {
            self.members.remove(&slot);
        }
        Unsubscribed::Removed
    }

    /// Ends all subscriptions of a member that leaves.
    pub(super) fn remove(&mut self, slot: Slot) {
        for (topic, place) in self.members.remove(&slot).into_iter().flatten() {
            self.vacate(topic, place.index);
        }
    }

    fn vacate(&mut self, topic: TopicKey, index: usize) {
        let subscribers = self.topics.get_mut(&topic).expect("a topic with a place has a list");
        subscribers.swap_remove(index);
        match subscribers.get(index).copied() {
            Some(moved) => {
                let places = self.members.get_mut(&moved.slot);
                let place = places.and_then(|places| places.get_mut(&topic));
                place.expect("a subscriber belongs to a member with a place").index = index;
            }
            None if subscribers.is_empty() => {
                self.topics.remove(&topic);
            }
            None => {}
        }
    }
}
