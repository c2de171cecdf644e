//! A newcomer on its way to a shard.

use tokio::sync::oneshot;

use crate::contract::Progress;
use crate::fanout::log::Position;
use crate::fanout::member_handle::MemberHandle;
use crate::fanout::shard::shared::OnTheWay;

/// A newcomer for a shard to admit, and the channel for its answer: the position of the admission.
pub(in crate::fanout) struct Newcomer<O: MemberHandle> {
    pub(in crate::fanout) handle: O,
    pub(in crate::fanout) sink: O::Sink,
    pub(in crate::fanout) progress: Progress,
    pub(in crate::fanout) reply: oneshot::Sender<Position>,
    /// Counts the newcomer as on its way until the shard counts it as a member.
    pub(in crate::fanout) on_the_way: OnTheWay,
}
