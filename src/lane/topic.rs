//! Topics: whom a broadcast is for when it isn't for everybody.

use std::fmt;
use std::sync::Arc;

use crate::sync::{AtomicUsize, Ordering};

/// A set of subscribers that a broadcast can be addressed to. Clones name the same topic; compared by identity.
#[derive(Clone)]
pub struct Topic(Arc<Subscribers>);

struct Subscribers {
    count: AtomicUsize,
}

/// What one subscriber calls its subscription, handed to [`Message::address`](crate::Message::address).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SubscriptionTag(pub u32);

impl Topic {
    /// A topic nobody has subscribed to yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Subscribers { count: AtomicUsize::new(0) }))
    }

    /// How many have subscribed, over all sessions this topic is used in.
    ///
    /// The count rises before a subscription takes effect and falls after it has ended: zero means that a broadcast
    /// to this topic would reach nobody.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        // Acquire, with the Release of the fall: a caller that sees a subscriber gone sees what that one was handed.
        self.0.count.load(Ordering::Acquire)
    }

    /// Counts a subscriber for as long as the result lives.
    pub(crate) fn raise(&self) -> Counted {
        // Relaxed: a caller that has learned of the subscription, by whatever orders the two, finds it counted.
        self.0.count.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }

    /// What makes this topic itself.
    pub(crate) fn key(&self) -> TopicKey {
        TopicKey(Arc::as_ptr(&self.0) as usize)
    }
}

/// A topic's address: unique for as long as the topic, or anybody [`Counted`] in it, lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TopicKey(usize);

/// A subscriber in its topic's count.
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

/// Whom a broadcast is for.
#[derive(Clone, Debug)]
pub(crate) enum Audience {
    /// Everybody in the session.
    All,
    /// The subscribers of a topic.
    Topic(Topic),
}
