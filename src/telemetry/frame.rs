//! Frames of a wire format as the messages of a session.

use crate::contract::{Message, SubscriptionTag};
use crate::protocol::Frame;

/// The copy for one subscriber carries that viewer's subscription id in its head; the payload stays shared.
impl Message for Frame {
    /// Length of the frame in v2, whatever the participant speaks: a message of a channel is four bytes longer there
    /// than in v1.
    fn byte_len(&self) -> usize {
        self.v2_len()
    }

    fn address(&mut self, tag: SubscriptionTag) {
        self.set_subscription_id(tag.0);
    }
}
