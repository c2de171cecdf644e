//! What a turn of a shard has read from the log.

use std::ops::Range;

use crate::contract::run::BroadcastId;
use crate::contract::topic::TopicKey;

/// Messages in the order of the log, and the runs they form. A run is a sequence of adjacent messages with one
/// audience. A member is told of a whole run, whatever its length.
pub(crate) struct Intake<M> {
    pub(super) messages: Vec<M>,
    /// One for each message.
    pub(super) marks: Vec<Mark>,
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

/// A broadcast's place in the log, in the intake and on the shelf.
#[derive(Debug)]
pub(crate) struct Mark {
    pub(super) seq: u64,
    pub(super) bytes: usize,
    /// Bytes of the messages before it in the intake.
    pub(super) before: usize,
    /// The broadcast's key on the shelf, once a busy member needs it.
    pub(super) shelved: Option<usize>,
}

impl<M> Intake<M> {
    pub(crate) fn new(most: u32) -> Self {
        Self {
            messages: Vec::new(),
            marks: Vec::new(),
            runs: Vec::new(),
            to_all: Vec::new(),
            last: None,
            first_id: BroadcastId::reserve(0),
            most,
        }
    }

    /// Adds the message at `seq`, for `topic` or for everybody. If a run begins with it, returns the index of the run.
    pub(crate) fn push(&mut self, seq: u64, bytes: usize, message: M, topic: Option<TopicKey>) -> Option<u32> {
        let at = self.messages.len();
        assert!(at < self.most as usize, "a turn reads at most the quota, and has ids for no more");
        if at == 0 {
            self.first_id = BroadcastId::reserve(u64::from(self.most));
        }
        let before = self.marks.last().map_or(0, |last| last.before.saturating_add(last.bytes));
        self.messages.push(message);
        self.marks.push(Mark { seq, bytes, before, shelved: None });
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
    pub(crate) fn run(&self, index: u32) -> Range<usize> {
        self.runs[index as usize].clone()
    }

    pub(crate) fn to_all(&self) -> &[u32] {
        &self.to_all
    }

    /// Whether some of the messages are for topics.
    pub(crate) fn is_addressed(&self) -> bool {
        self.runs.len() > self.to_all.len()
    }

    pub(crate) fn clear(&mut self) {
        self.messages.clear();
        self.marks.clear();
        self.runs.clear();
        self.to_all.clear();
    }
}
