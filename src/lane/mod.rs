//! The path of a message: control queue, broadcast log, flush shard.
//!
//! Two lanes lead to a participant. A broadcast is written once to the [log](log::BroadcastLog), whatever the number of
//! participants. A direct message goes to the participant's own control queue in its [outbox](outbox::Outbox). A [flush
//! shard](shard::FlushShard) takes messages from both lanes, in one order, and hands them to the sinks of its share of
//! the participants. This module knows bytes and sequence numbers, and nothing of rooms, formats or telemetry.

pub(crate) mod account;
mod backlog;
pub(crate) mod bits;
mod brake;
pub(crate) mod caught;
pub(crate) mod command;
mod control_queue;
mod fault;
pub(crate) mod gauge;
mod inbox;
pub(crate) mod intake;
pub(crate) mod load;
pub(crate) mod log;
#[cfg(all(test, lanecast_loom))]
mod loom_models;
pub(crate) mod member;
mod occupied;
pub(crate) mod outbox;
pub(crate) mod owner;
mod pace;
pub(crate) mod parts;
pub(crate) mod progress;
pub(crate) mod publisher;
pub(crate) mod reader;
pub(crate) mod relief;
pub(crate) mod roster;
pub(crate) mod run;
pub(crate) mod shard;
pub(crate) mod shelf;
pub(crate) mod signal;
mod tick;
pub(crate) mod topic;
mod turn;
pub(crate) mod uplink;

use bytes::Bytes;

pub use self::account::{Abandoned, Account, Dropped, EndReason};
pub use self::progress::Progress;
pub use self::roster::{Subscribed, Unsubscribed};
pub use self::run::{BroadcastId, BroadcastRun};
pub use self::topic::{SubscriptionTag, Topic};
pub use self::uplink::{Uplink, UplinkWrite};

/// A message that a session carries: cheap to clone, and able to tell its length.
///
/// The publisher clones a broadcast once for each shard but the first. The shards clone it once per participant, unless
/// the room [spares](crate::room::Room::start_send_run) them that. So a clone should share its payload, as [`Bytes`]
/// does.
///
/// Its `drop` must not panic. Messages are dropped on the session's own tasks: a panic there may end the session, and a
/// second panic while the first is unwinding aborts the process.
pub trait Message: Clone + Send + 'static {
    /// The length in bytes, as it counts against the byte limit and in the statistics.
    fn byte_len(&self) -> usize;

    /// Addresses this copy to a single subscriber, by the tag that the subscriber gave when it subscribed.
    ///
    /// This method is called once for each copy of a broadcast to a topic, and never for a broadcast to everybody or a
    /// direct message. A format whose header names the subscription patches the header here; the payload stays shared.
    /// The default does nothing.
    fn address(&mut self, tag: SubscriptionTag) {
        let _ = tag;
    }
}

impl Message for Bytes {
    fn byte_len(&self) -> usize {
        self.len()
    }
}
