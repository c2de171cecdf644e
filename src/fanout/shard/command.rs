//! The commands that a shard takes.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::contract::Message;
use crate::contract::topic::{Counted, SubscriptionTag, TopicKey};
use crate::contract::topic::{Subscribed, Unsubscribed};
use crate::fanout::shard::gauge::OnTheWay;
use crate::fanout::shard::owner::{Newcomer, Owner};

/// Capacity of each of a shard's command channels; further senders wait.
pub(crate) const COMMAND_CAPACITY: usize = 1024;

/// How long a shard that ends waits for commands that are still being sent, which takes a few instructions.
pub(super) const LAST_COMMANDS: Duration = Duration::from_millis(100);

/// A request that a shard carries out at a position of the log.
pub(crate) enum Command {
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

/// A newcomer for a shard to admit, and the channel for its answer: the position of the admission.
pub(crate) struct Admission<O: Owner<M>, M: Message> {
    pub(crate) newcomer: Newcomer<O, M>,
    pub(crate) reply: oneshot::Sender<u64>,
    /// Counts the newcomer as on its way until the shard counts it as a member.
    pub(crate) on_the_way: OnTheWay,
}

/// Starts the delivery to a newcomer: the initial messages, given with their lengths, then everything that has
/// gathered.
///
/// This command has a channel of its own, because it takes effect at once: the newcomer's position was fixed when it
/// was admitted. If it waited behind commands until the shard has read a full log, everything published in the meantime
/// would gather against the newcomer's bound.
pub(crate) struct Begin<M> {
    pub(crate) slot: usize,
    pub(crate) key: u64,
    pub(crate) initial: Vec<(M, usize)>,
}

/// Closes a channel and takes everything that is in it or still being sent. This can't wait for the task of a sender,
/// only for another thread, and for at most [`LAST_COMMANDS`].
pub(super) fn empty<T>(channel: &mut mpsc::Receiver<T>) -> Vec<T> {
    channel.close();
    let begun = Instant::now();
    let mut taken = Vec::new();
    loop {
        taken.extend(std::iter::from_fn(|| channel.try_recv().ok()));
        let nobody_has_a_place = channel.capacity() == channel.max_capacity();
        if nobody_has_a_place || begun.elapsed() >= LAST_COMMANDS {
            return taken;
        }
        std::thread::yield_now();
    }
}
