//! How a frame of a wire format travels in a session.

use crate::lane::{Message, SubscriptionTag};
use crate::protocol::Frame;

/// A copy for one subscriber carries its own subscription id in the head; the payload stays shared.
impl Message for Frame {
    /// That of its longer form, whatever the participant speaks: a message of a channel has four bytes more in v2.
    fn byte_len(&self) -> usize {
        self.v2_len()
    }

    fn address(&mut self, tag: SubscriptionTag) {
        self.set_subscription_id(tag.0);
    }
}
