//! The state that few participants need: losses of droppable messages, and a total rate. It is made when it is first
//! needed, so that the others pay for a pointer.

use std::sync::Mutex;

use rustc_hash::FxHashMap;

use crate::caught::lock;
use crate::contract::topic::{TopicKey, WeakTopic};
use crate::contract::{Losses, Topic};
use crate::fanout::counters::SingleWriterCounter;
use crate::sync::{AtomicU64, Ordering};

/// The rarely needed part of an outbox. The participant's shard writes the counters.
#[derive(Debug)]
pub(super) struct Rare {
    lost: [SingleWriterCounter; Losses::REASONS],
    unsubscribed: SingleWriterCounter,
    /// Locked by the shard only when something is lost.
    by_topic: Mutex<ByTopic>,
    /// The total rate in bytes per second; 0 if there is none. Relaxed: the mail bit that follows a change orders it.
    rate: AtomicU64,
}

/// Losses by topic.
#[derive(Debug, Default)]
struct ByTopic {
    losses: FxHashMap<TopicKey, (WeakTopic, Losses)>,
    /// How many there may be before those of topics that nobody has any more are removed.
    sweep_at: usize,
}

impl ByTopic {
    fn add(&mut self, topic: &Topic, lost: &Losses) {
        let entry = self.losses.entry(topic.key());
        entry.or_insert_with(|| (topic.downgrade(), Losses::default())).1.add(lost);
        if self.losses.len() > self.sweep_at {
            self.losses.retain(|_, (topic, _)| topic.is_alive());
            self.sweep_at = self.losses.len() * 2 + FEW;
        }
    }
}

/// So many losses of topics that nobody has any more may stay.
const FEW: usize = 16;

impl Rare {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            lost: std::array::from_fn(|_| SingleWriterCounter::new()),
            unsubscribed: SingleWriterCounter::new(),
            by_topic: Mutex::default(),
            rate: AtomicU64::new(0),
        })
    }

    pub(super) fn set_rate(&self, bytes_per_second: Option<u64>) {
        self.rate.store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Counts what the participant has lost, by topic. Returns the sum.
    pub(super) fn lose(&self, lost: impl Iterator<Item = (Topic, Losses)>) -> Losses {
        let mut sum = Losses::default();
        for (topic, losses) in lost {
            lock(&self.by_topic).add(&topic, &losses);
            sum.add(&losses);
        }
        for (counter, count) in self.lost.iter().zip(sum.counts()) {
            counter.add(count);
        }
        sum
    }

    pub(super) fn unsubscribe(&self, messages: u64) {
        self.unsubscribed.add(messages);
    }

    pub(super) fn losses(&self) -> Losses {
        Losses::from_counts(self.lost.each_ref().map(SingleWriterCounter::get))
    }

    pub(super) fn unsubscribed(&self) -> u64 {
        self.unsubscribed.get()
    }

    pub(super) fn losses_of(&self, topic: TopicKey) -> Losses {
        lock(&self.by_topic).losses.get(&topic).map(|(_, losses)| *losses).unwrap_or_default()
    }

    /// Forgets the losses of a topic that has ended.
    pub(super) fn forget(&self, topic: TopicKey) {
        lock(&self.by_topic).losses.remove(&topic);
    }
}
