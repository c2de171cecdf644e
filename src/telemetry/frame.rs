//! How a frame of a wire format travels in a session.

use crate::lane::{Message, SubscriptionTag};
use crate::protocol::Frame;

/// A copy for one subscriber carries its own subscription id in the head; the payload stays shared.
impl Message for Frame {
    fn byte_len(&self) -> usize {
        self.len()
    }

    fn address(&mut self, tag: SubscriptionTag) {
        self.set_subscription_id(tag.0);
    }
}
