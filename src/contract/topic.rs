//! Topics: the audience of a broadcast that isn't for everybody.

use std::fmt;
use std::sync::Arc;

use crate::sync::{AtomicUsize, Ordering};

/// A set of subscribers that a broadcast can be addressed to. Clones name the same topic; topics are compared by
/// identity.
#[derive(Clone)]
pub struct Topic(Arc<Subscribers>);

struct Subscribers {
    count: AtomicUsize,
}

/// The tag that a subscriber chooses for its subscription, passed to [`Message::address`](crate::Message::address).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SubscriptionTag(pub u32);

impl Topic {
    /// Creates a topic without subscribers.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Subscribers { count: AtomicUsize::new(0) }))
    }

    /// The number of subscribers, over all sessions in which this topic is used.
    ///
    /// The count rises before a subscription takes effect and falls after it has ended. Zero means that a broadcast to
    /// this topic would reach nobody.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        // Acquire, paired with the Release in the drop of `Counted`: a caller that sees a subscriber gone sees what
        // that subscriber was handed.
        self.0.count.load(Ordering::Acquire)
    }

    /// Counts a subscriber for as long as the returned value lives.
    pub(crate) fn raise(&self) -> Counted {
        // Relaxed: a caller that has learned of the subscription, through anything that orders the two, finds it
        // counted.
        self.0.count.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }

    /// The identity of this topic.
    pub(crate) fn key(&self) -> TopicKey {
        TopicKey(Arc::as_ptr(&self.0) as usize)
    }
}

/// A topic's address: unique for as long as the topic, or any subscriber [`Counted`] in it, lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TopicKey(usize);

/// One subscriber in its topic's count.
pub(crate) struct Counted(Topic);

impl Counted {
    pub(crate) fn topic(&self) -> TopicKey {
        self.0.key()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Release: see `subscribers`.
        self.0.0.count.fetch_sub(1, Ordering::Release);
    }
}

impl Default for Topic {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Topic {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Topic {}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic").field("subscribers", &self.subscribers()).finish_non_exhaustive()
    }
}

/// The outcome of a request to subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subscribed {
    /// The participant gets the topic's messages from here on.
    New,
    /// The participant was subscribed already: from here on, its messages carry the new tag.
    Retagged,
    /// The participant has ended, and gets nothing.
    Closed,
}

/// The outcome of a request to unsubscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsubscribed {
    /// The participant gets nothing more of the topic from here on.
    Removed,
    /// The participant wasn't subscribed, or has ended.
    NotSubscribed,
}

/// The audience of a broadcast.
#[derive(Clone, Debug)]
pub(crate) enum Audience {
    /// Every participant of the session.
    All,
    /// The subscribers of a topic.
    Topic(Topic),
}
