//! What a shard is told.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::Message;
use super::gauge::OnTheWay;
use super::owner::{Newcomer, Owner};
use super::roster::{Subscribed, Unsubscribed};
use super::topic::{Counted, SubscriptionTag, TopicKey};

/// How many commands wait for a shard before who gives more has to wait.
pub(crate) const COMMAND_CAPACITY: usize = 1024;

/// How long a shard that ends waits for commands that are on their way, which takes a few instructions.
pub(super) const LAST_COMMANDS: Duration = Duration::from_millis(100);

/// What a shard is asked to do at a position of the log.
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

/// Closes a channel and takes what is in it or on its way. This can't wait for the task of a sender, only for another
/// thread, and not for long.
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
