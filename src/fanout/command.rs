//! The requests of the session to a member's shard.

use tokio::sync::oneshot;

use crate::contract::Rate;
use crate::contract::topic::{Counted, Subscribed, SubscriptionTag, TopicKey, Unsubscribed};
use crate::fanout::log::Position;
use crate::fanout::shard::topics::KeptTopics;
use crate::fanout::slot::MemberRef;

/// Capacity of each of a shard's command channels; further senders wait. A shard empties its channels in each turn,
/// unless as many commands wait for their positions. So this is what may arrive during a turn, and a small part of what
/// the members themselves take.
pub(in crate::fanout) const COMMAND_CAPACITY: usize = 1024;

/// A request that a shard carries out at a position of the log.
pub(crate) enum Command<M> {
    Subscribe {
        member: MemberRef,
        counted: Counted,
        tag: SubscriptionTag,
        /// The subscriber's own rate, if it has one.
        own_rate: Option<Rate>,
        /// The outcome, and the first position at which it holds.
        reply: oneshot::Sender<(Subscribed, Position)>,
    },
    Unsubscribe {
        member: MemberRef,
        topic: TopicKey,
        reply: oneshot::Sender<Unsubscribed>,
    },
    /// Only for the first shard.
    AddShards(AddedShards<M>),
}

/// Shards that were made later, and wait for the position from which they read.
///
/// The first shard adds them to the log's readers when it takes the command, which fixes the position, and starts them
/// when it has read up to there. With the start it hands over what it keeps of the messages below that position.
pub(crate) struct AddedShards<M> {
    /// `None` until the position is fixed.
    pub(in crate::fanout) from: Option<Position>,
    /// One for each shard. If these are dropped, the shards end.
    pub(in crate::fanout) starts: Vec<oneshot::Sender<Start<M>>>,
}

/// What a shard that was made later begins with.
pub(in crate::fanout) struct Start<M> {
    /// The first position that it reads.
    pub(in crate::fanout) position: Position,
    /// What topics retain of the messages below that position.
    pub(in crate::fanout) kept: KeptTopics<M>,
}

/// Starts the delivery to a newcomer: the initial messages, given with their lengths, then everything that has
/// gathered.
///
/// This command has a channel of its own, because it takes effect at once: the newcomer's position was fixed when it
/// was admitted. If it waited behind commands until the shard has read a full log, everything published in the meantime
/// would gather against the newcomer's bound.
pub(in crate::fanout) struct Begin<M> {
    pub(in crate::fanout) member: MemberRef,
    pub(in crate::fanout) initial: Vec<(M, usize)>,
}
