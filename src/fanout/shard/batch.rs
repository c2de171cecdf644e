//! The broadcasts that a turn of a shard has read from the log.

use std::ops::Range;

use crate::contract::run::BroadcastId;
use crate::contract::topic::{SubscriptionTag, TopicKey};
use crate::fanout::log::Position;

/// Messages in the order of the log, and the runs they form. A run is a sequence of adjacent messages with one
/// audience. A member is told of a whole run, whatever its length.
pub(in crate::fanout) struct ReadBatch<M> {
    pub(super) messages: Vec<M>,
    /// One for each message.
    pub(super) entries: Vec<EntryMeta>,
    runs: Vec<Range<usize>>,
    /// The runs that are for everybody, ascending.
    to_all: Vec<u32>,
    /// The audience of the last run: a topic, or everybody (`None`).
    last: Option<TopicKey>,
    /// The id of the first message.
    pub(super) first_id: BroadcastId,
    /// The most messages that a turn reads.
    most: u32,
}

/// The facts about a broadcast that a turn needs besides the message.
#[derive(Debug)]
pub(super) struct EntryMeta {
    pub(super) position: Position,
    pub(super) bytes: usize,
    /// Bytes of the messages before it in the batch.
    pub(super) before: usize,
    /// The broadcast's key among the retained ones, once a busy member needs it.
    pub(super) retained: Option<usize>,
}

impl<M> ReadBatch<M> {
    pub(in crate::fanout) fn new(most: u32) -> Self {
        Self {
            messages: Vec::new(),
            entries: Vec::new(),
            runs: Vec::new(),
            to_all: Vec::new(),
            last: None,
            first_id: BroadcastId::reserve(0),
            most,
        }
    }

    /// Adds the message at `position`, for `topic` or for everybody. If a run begins with it, returns the index of the
    /// run.
    pub(in crate::fanout) fn push(
        &mut self,
        position: Position,
        bytes: usize,
        message: M,
        topic: Option<TopicKey>,
    ) -> Option<u32> {
        let at = self.messages.len();
        assert!(at < self.most as usize, "a turn reads at most the quota, and has ids for no more");
        if at == 0 {
            self.first_id = BroadcastId::reserve(u64::from(self.most));
        }
        let before = self.entries.last().map_or(0, |last| last.before.saturating_add(last.bytes));
        self.messages.push(message);
        self.entries.push(EntryMeta { position, bytes, before, retained: None });
        match self.runs.last_mut() {
            Some(last) if self.last == topic => {
                last.end += 1;
                None
            }
            _ => {
                let run = u32::try_from(self.runs.len()).expect("there are no more than messages");
                self.runs.push(at..at + 1);
                self.last = topic;
                if topic.is_none() {
                    self.to_all.push(run);
                }
                Some(run)
            }
        }
    }

    /// The messages of a run.
    pub(super) fn run(&self, index: u32) -> Range<usize> {
        self.runs[index as usize].clone()
    }

    pub(super) fn to_all(&self) -> &[u32] {
        &self.to_all
    }

    /// Whether some of the messages are for topics.
    pub(super) fn is_addressed(&self) -> bool {
        self.runs.len() > self.to_all.len()
    }

    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.entries.clear();
        self.runs.clear();
        self.to_all.clear();
    }
}

/// The runs of a turn that reach one member by a topic: index and tag, ascending. The first is stored inline: a turn
/// usually has only one, so thousands of members need no memory of their own for it, and a walk has none to load.
#[derive(Debug, Default)]
pub(super) struct TopicRuns {
    first: Option<(u32, SubscriptionTag)>,
    others: Vec<(u32, SubscriptionTag)>,
}

impl TopicRuns {
    pub(in crate::fanout) fn push(&mut self, index: u32, tag: SubscriptionTag) {
        match self.first {
            None => self.first = Some((index, tag)),
            Some(_) => self.others.push((index, tag)),
        }
    }

    pub(super) fn get(&self, at: usize) -> Option<(u32, SubscriptionTag)> {
        if at == 0 { self.first } else { self.others.get(at - 1).copied() }
    }

    pub(super) fn clear(&mut self) {
        self.first = None;
        self.others.clear();
    }
}
