//! How a shard is given a newcomer, and how it empties its channels at its end.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::contract::Progress;
use crate::fanout::log::Position;
use crate::fanout::member_handle::MemberHandle;
use crate::fanout::shard::shared::OnTheWay;

/// How long a shard that ends waits for commands that are still being sent, which takes a few instructions.
pub(super) const LAST_COMMANDS: Duration = Duration::from_millis(100);

/// A newcomer for a shard to admit, and the channel for its answer: the position of the admission.
pub(in crate::fanout) struct Admission<O: MemberHandle> {
    pub(in crate::fanout) handle: O,
    pub(in crate::fanout) sink: O::Sink,
    pub(in crate::fanout) progress: Progress,
    pub(in crate::fanout) reply: oneshot::Sender<Position>,
    /// Counts the newcomer as on its way until the shard counts it as a member.
    pub(in crate::fanout) on_the_way: OnTheWay,
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
