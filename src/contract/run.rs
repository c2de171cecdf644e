//! Runs of broadcasts: what a sink is offered at once.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::contract::topic::SubscriptionTag;

/// Consecutive broadcasts that go to a participant by the same subscription, or that all go to everybody. Other
/// participants get the same broadcasts, with their own tags.
///
/// A run has at least one message. See [`RunSink`](crate::RunSink).
pub struct BroadcastRun<'a, M> {
    messages: &'a [M],
    first: BroadcastId,
    tag: Option<SubscriptionTag>,
}

/// An id that distinguishes a broadcast from all others of this process, each time that it is handed round.
///
/// By this id, a sink can use what it has encoded for one participant for the next one. Two shards hand round the same
/// broadcast under two ids. No id is ever used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BroadcastId(u64);

impl BroadcastId {
    /// Reserves `count` consecutive ids, and returns the first.
    pub(crate) fn reserve(count: u64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only the value has to be unique.
        Self(NEXT.fetch_add(count, Ordering::Relaxed))
    }

    /// The id of the message `distance` places behind this one in its run. Beyond the end of the run, it is another
    /// broadcast's.
    #[must_use]
    pub fn after(self, distance: usize) -> Self {
        Self(self.0 + distance as u64)
    }
}

impl<'a, M> BroadcastRun<'a, M> {
    /// Creates a standalone run, for driving a sink without a session.
    ///
    /// # Panics
    /// If `messages` is empty, or has more than `u32::MAX` elements.
    #[must_use]
    pub fn new(messages: &'a [M], tag: Option<SubscriptionTag>) -> Self {
        assert!(!messages.is_empty(), "a run has a first message");
        let count = u32::try_from(messages.len()).expect("a run has at most u32::MAX messages");
        Self { messages, first: BroadcastId::reserve(u64::from(count)), tag }
    }

    pub(crate) fn with_ids(messages: &'a [M], first: BroadcastId, tag: Option<SubscriptionTag>) -> Self {
        Self { messages, first, tag }
    }

    /// The messages, in the order in which they are to arrive.
    #[must_use]
    pub fn messages(&self) -> &'a [M] {
        self.messages
    }

    /// The id of the first message; the messages behind it have [consecutive ids](BroadcastId::after).
    #[must_use]
    pub fn first_id(&self) -> BroadcastId {
        self.first
    }

    /// The tag of the participant's subscription; `None` for a run that goes to everybody.
    #[must_use]
    pub fn tag(&self) -> Option<SubscriptionTag> {
        self.tag
    }
}

impl<M> Clone for BroadcastRun<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for BroadcastRun<'_, M> {}

/// Shows the number of messages, never what a message holds.
impl<M> fmt::Debug for BroadcastRun<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastRun")
            .field("messages", &self.messages.len())
            .field("first", &self.first)
            .field("tag", &self.tag)
            .finish()
    }
}
