//! Broadcasts that gather before they are handed on, as the model has it.
//!
//! The test lets everything that has gathered be handed on before it looks. What can be observed still depends on the
//! time: ages, rates and ticks count from when a message is handed on.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::plan::{Class, Plan};
use crate::subject::{Msg, Setup};

/// A message is delayed by at most the shortest time for which one of any topic may wait, divided by this.
const OF_AGE: u32 = 4;
/// How late a timer may be. The wait is shorter by this, but never shorter than half of the time.
const TIMER: Duration = Duration::from_millis(1);
/// The gathering ends once a quarter of a viewer's queue, or half of the log, is filled.
const OF_QUEUE: u32 = 4;
const OF_LOG: usize = 2;

/// An entry of the log.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    Broadcast(Msg),
    EndTopic(usize),
}

/// The entries that gather.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    pub(crate) entries: Vec<Entry>,
    /// When the time is over, in milliseconds since the session began.
    until: Option<u64>,
    /// How many entries the operation has published.
    published: usize,
    /// A direct message has come behind them: nothing gathers any more.
    is_over: bool,
    /// The ages of the topics in use, as of the last message or subscription of each, in milliseconds.
    ages: BTreeMap<usize, u64>,
}

impl Gathering {
    /// Begins an operation.
    pub(crate) fn begin(&mut self) {
        (self.published, self.is_over) = (0, false);
    }

    pub(crate) fn add(&mut self, entry: Entry, setup: &Setup, now: u64) {
        self.published += 1;
        self.entries.push(entry);
        self.until.get_or_insert(now + self.time(setup));
    }

    /// For how long entries gather that are published now.
    pub(crate) fn time(&self, setup: &Setup) -> u64 {
        let age = self.ages.values().min().map_or(Duration::MAX, |age| Duration::from_millis(*age));
        let time = setup.linger.min(age / OF_AGE);
        let left = time.saturating_sub(TIMER).max(time / 2);
        u64::try_from(left.as_nanos().div_ceil(1_000_000)).expect("short")
    }

    pub(crate) fn until(&self) -> Option<u64> {
        self.until
    }

    /// Ends the gathering, for all that the operation publishes.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
    }

    /// Whether the operation has ended the gathering.
    pub(crate) fn is_over(&self, setup: &Setup) -> bool {
        let most = ((setup.queue_capacity / OF_QUEUE) as usize).min(setup.log_capacity / OF_LOG).max(1);
        self.is_over || self.published >= most
    }

    /// Whether some may have been read while the rest gathers: a direct message ends the gathering of one shard, and a
    /// publisher that waits for the log ends it for what was published before.
    pub(crate) fn is_split(&self, setup: &Setup) -> bool {
        self.is_over && setup.shards > 1 || self.published > setup.log_capacity
    }

    pub(crate) fn take(&mut self) -> Vec<Entry> {
        self.until = None;
        std::mem::take(&mut self.entries)
    }

    /// A message or a subscription tells of a topic's profile.
    pub(crate) fn learn(&mut self, topic: usize, plan: &Plan) {
        match plan.class {
            Class::Lossy { age, .. } => self.ages.insert(topic, age),
            Class::Reliable | Class::Latest => self.ages.remove(&topic),
        };
    }

    /// Nobody uses the topic any more.
    pub(crate) fn forget(&mut self, topic: usize) {
        self.ages.remove(&topic);
    }
}
