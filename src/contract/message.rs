//! The message type of a session.

use bytes::Bytes;

use super::topic::SubscriptionTag;

/// A message that a session carries: cheap to clone, and able to tell its length.
///
/// The publisher clones a broadcast once for each shard but the first. The shards clone it once per participant, unless
/// the sink [spares](crate::RunSink) them that. So a clone should share its payload, as [`Bytes`]
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
