//! What a shard is told.

use tokio::sync::oneshot;

use super::Message;
use super::owner::{Newcomer, Owner};
use super::roster::{Subscribed, Unsubscribed};
use super::topic::{Counted, SubscriptionTag, TopicKey};

/// How many commands wait for a shard before who gives more has to wait.
pub(crate) const COMMAND_CAPACITY: usize = 1024;

/// What a shard is asked to do at a position of the log.
pub(crate) enum Command<M> {
    /// Deliver the initial messages, given with their lengths, then everything that has gathered.
    Begin {
        slot: usize,
        key: u64,
        initial: Vec<(M, usize)>,
    },
    Subscribe {
        slot: usize,
        key: u64,
        counted: Counted,
        tag: SubscriptionTag,
        /// The outcome, and the first position at which it holds.
        reply: oneshot::Sender<(Subscribed, u64)>,
    },
    Unsubscribe {
        slot: usize,
        key: u64,
        topic: TopicKey,
        reply: oneshot::Sender<Unsubscribed>,
    },
}

/// A newcomer, and whom to tell where it was admitted.
pub(crate) struct Admission<O: Owner<M>, M: Message> {
    pub(crate) newcomer: Newcomer<O, M>,
    pub(crate) reply: oneshot::Sender<u64>,
}
