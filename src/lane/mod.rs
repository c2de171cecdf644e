//! How a message travels: control queue, broadcast log, flush shard.
//!
//! Two lanes lead to a participant. A broadcast is written once to the [log](log::BroadcastLog), whatever the number
//! of participants; a direct message goes to the participant's own control queue in its [outbox](outbox::Outbox). A
//! [flush shard](shard::FlushShard) carries both, in one order, into the sinks of its share of the participants. This
//! module knows bytes and sequence numbers, and nothing of rooms, formats or telemetry.

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

/// What a session carries: cheap to clone, and able to tell its length.
///
/// A broadcast is cloned once per shard by the publisher and, unless the room
/// [spares](crate::room::Room::start_send_run) it, once per participant by the shards, so a clone should share its
/// payload, as [`Bytes`] does.
///
/// Its `drop` must not panic. Messages are dropped on the session's own tasks: one that panics may end the session, and
/// a second one that panics while the first is unwinding aborts the process.
pub trait Message: Clone + Send + 'static {
    /// Its length in bytes, as it counts against the byte limit and in the statistics.
    fn byte_len(&self) -> usize;

    /// Makes this copy the one of a single subscriber, by the tag that subscriber gave when it subscribed.
    ///
    /// Called once for each copy of a broadcast to a topic, never for a broadcast to everybody or a direct message.
    /// A format whose header names the subscription patches it here; the payload stays shared. Does nothing unless
    /// overridden.
    fn address(&mut self, tag: SubscriptionTag) {
        let _ = tag;
    }
}

impl Message for Bytes {
    fn byte_len(&self) -> usize {
        self.len()
    }
}
