//! The broadcasts that a turn of a shard has read from the log.

use std::ops::Range;

use crate::contract::Topic;
use crate::contract::profile::Profile;
use crate::contract::run::BroadcastId;
use crate::contract::topic::{SubscriptionTag, TopicKey};
use crate::fanout::log::Position;

/// Messages in the order of the log, and the runs they form. A run is a sequence of adjacent messages with one
/// audience. A member is told of a whole run, whatever its length.
pub(in crate::fanout) struct ReadBatch<M> {
    pub(super) messages: Vec<M>,
    /// One for each message.
    pub(super) entries: Vec<EntryMeta>,
    runs: Vec<Run>,
    /// The profiled topics of this turn.
    profiled: Vec<ProfiledTopic>,
    /// The runs that are for everybody, ascending.
    to_all: Vec<u32>,
    /// The audience of the last run: a topic, or everybody (`None`).
    last: Option<TopicKey>,
    /// The id of the first message.
    pub(super) first_id: BroadcastId,
    /// The most messages that a turn reads.
    most: u32,
}

#[derive(Debug)]
struct Run {
    messages: Range<usize>,
    treatment: Treatment,
}

/// What a member has to check before it is handed a run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Treatment {
    /// Nothing: the run is for everybody, or for a topic that isn't profiled.
    Plain,
    /// Whether it has queues or a rate: the messages are droppable, and the topic has no rate. Without either, the
    /// member is handed the run as a plain one. The number is the topic's index among the profiled ones.
    Droppable(u32),
    /// The profile of the topic with this index.
    ByProfile(u32),
}

impl Treatment {
    fn of(profile: &Profile, index: u32) -> Self {
        if profile.is_reliable() || profile.rate().is_some() { Self::ByProfile(index) } else { Self::Droppable(index) }
    }

    /// The index of the topic among the profiled ones.
    pub(super) fn profiled(self) -> Option<u32> {
        match self {
            Self::Plain => None,
            Self::Droppable(index) | Self::ByProfile(index) => Some(index),
        }
    }
}

/// A topic of a run that needs more than to be handed on in order: it has, or had, another profile than the default, or
/// some subscriber has a rate of its own.
#[derive(Debug)]
pub(super) struct ProfiledTopic {
    pub(super) topic: Topic,
    pub(super) profile: Profile,
    version: u64,
    /// Messages that went straight into sinks in this turn. (Those that wait are counted at once.)
    pub(super) straight: u64,
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
            profiled: Vec::new(),
            to_all: Vec::new(),
            last: None,
            first_id: BroadcastId::reserve(0),
            most,
        }
    }

    /// Adds the message at `position`, for `topic` or for everybody. A profiled topic comes with its profile and
    /// the version of that. If a run begins with the message, returns the index of the run.
    pub(in crate::fanout) fn push(
        &mut self,
        position: Position,
        bytes: usize,
        message: M,
        topic: Option<TopicKey>,
        profiled: Option<(Topic, Profile, u64)>,
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
            Some(last)
                if self.last == topic
                    && last.treatment.profiled().map(|at| self.profiled[at as usize].version)
                        == profiled.as_ref().map(|(_, _, version)| *version) =>
            {
                last.messages.end += 1;
                None
            }
            _ => {
                let run = u32::try_from(self.runs.len()).expect("there are no more than messages");
                let treatment = profiled.map_or(Treatment::Plain, |(topic, profile, version)| {
                    let index = u32::try_from(self.profiled.len()).expect("there are no more than messages");
                    self.profiled.push(ProfiledTopic { topic, profile, version, straight: 0 });
                    Treatment::of(&profile, index)
                });
                self.runs.push(Run { messages: at..at + 1, treatment });
                self.last = topic;
                if topic.is_none() {
                    self.to_all.push(run);
                }
                Some(run)
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The messages of a run, and what a member has to check.
    #[inline]
    pub(super) fn run(&self, index: u32) -> (Range<usize>, Treatment) {
        let run = &self.runs[index as usize];
        (run.messages.clone(), run.treatment)
    }

    pub(super) fn profiled(&mut self, index: u32) -> &mut ProfiledTopic {
        &mut self.profiled[index as usize]
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
        for profiled in self.profiled.drain(..) {
            if profiled.straight > 0 {
                profiled.topic.count_straight(profiled.straight);
            }
        }
    }
}

/// A run that reaches a member by a topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct TopicRun {
    /// The index of the run in the batch.
    pub(super) run: u32,
    pub(super) tag: SubscriptionTag,
    /// The subscription has a rate of its own.
    pub(super) has_own_rate: bool,
}

/// The runs of a turn that reach one member by a topic, ascending. The first is stored inline: a turn usually has only
/// one, so thousands of members need no memory of their own for it, and a walk has none to load.
#[derive(Debug, Default)]
pub(super) struct TopicRuns {
    first: Option<TopicRun>,
    others: Vec<TopicRun>,
}

impl TopicRuns {
    pub(in crate::fanout) fn push(&mut self, run: TopicRun) {
        match self.first {
            None => self.first = Some(run),
            Some(_) => self.others.push(run),
        }
    }

    pub(super) fn get(&self, at: usize) -> Option<TopicRun> {
        if at == 0 { self.first } else { self.others.get(at - 1).copied() }
    }

    pub(super) fn clear(&mut self) {
        self.first = None;
        self.others.clear();
    }
}
