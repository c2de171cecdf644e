//! What a shard is told.

use tokio::sync::oneshot;

use super::Message;
use super::gauge::OnTheWay;
use super::owner::{Newcomer, Owner};
use super::roster::{Subscribed, Unsubscribed};
use super::topic::{Counted, SubscriptionTag, TopicKey};

/// How many commands wait for a shard before who gives more has to wait.
pub(crate) const COMMAND_CAPACITY: usize = 1024;

/// What a shard is asked to do at a position of the log.
pub(crate) enum Command {
    Subscribe { slot: usize, key: u64, counted: Counted, tag: SubscriptionTag, reply: oneshot::Sender<Subscribed> },
    Unsubscribe { slot: usize, key: u64, topic: TopicKey, reply: oneshot::Sender<Unsubscribed> },
}

/// A newcomer, and whom to tell where it was admitted.
pub(crate) struct Admission<O: Owner<M>, M: Message> {
    pub(crate) newcomer: Newcomer<O, M>,
    pub(crate) reply: oneshot::Sender<u64>,
    /// Counts the newcomer as on its way until the shard counts it as a member.
    pub(crate) on_the_way: OnTheWay,
}

/// Deliver the initial messages, given with their lengths, then everything that has gathered.
///
/// It has a channel of its own, because it takes effect at once: the newcomer's position was fixed when it was
/// admitted. Behind commands that wait for the shard to have read a full log, what is published meanwhile would gather
/// against the newcomer's bound.
pub(crate) struct Begin<M> {
    pub(crate) slot: usize,
    pub(crate) key: u64,
    pub(crate) initial: Vec<(M, usize)>,
}
