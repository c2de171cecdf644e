//! What a sink is shown of a broadcast: a run of them at once.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_sink::Sink;

use super::Message;
use super::topic::SubscriptionTag;

/// Broadcasts in a row that go to a participant by the same subscription, or all to everybody. Others get them as well,
/// but for the tag.
///
/// There is at least one. See [`Room::start_send_run`](crate::room::Room::start_send_run).
pub struct BroadcastRun<'a, M> {
    messages: &'a [M],
    first: BroadcastId,
    tag: Option<SubscriptionTag>,
}

/// Tells a broadcast from all others of this process, each time that it is handed round.
///
/// What a sink has encoded for one participant it can use for the next by it. Two shards hand round the same broadcast
/// under two ids; no id ever comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BroadcastId(u64);

impl BroadcastId {
    /// The first of `count` in a row.
    pub(crate) fn reserve(count: u64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only the value has to be unique.
        Self(NEXT.fetch_add(count, Ordering::Relaxed))
    }

    /// The id of what comes `distance` behind it in its run. Beyond the run it is another broadcast's.
    #[must_use]
    pub fn after(self, distance: usize) -> Self {
        Self(self.0 + distance as u64)
    }
}

impl<'a, M> BroadcastRun<'a, M> {
    /// A run of its own, for who has a sink and no session.
    ///
    /// # Panics
    /// If it is empty, or has more than `u32::MAX` messages.
    #[must_use]
    pub fn new(messages: &'a [M], tag: Option<SubscriptionTag>) -> Self {
        assert!(!messages.is_empty(), "a run has a first message");
        let count = u32::try_from(messages.len()).expect("a run has at most u32::MAX messages");
        Self { messages, first: BroadcastId::reserve(u64::from(count)), tag }
    }

    pub(super) fn with_ids(messages: &'a [M], first: BroadcastId, tag: Option<SubscriptionTag>) -> Self {
        Self { messages, first, tag }
    }

    /// Some of them, for a room that wraps another one.
    ///
    /// # Panics
    /// If these aren't messages of it, or none.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(!range.is_empty(), "a run has a first message");
        Self { messages: &self.messages[range.clone()], first: self.first.after(range.start), ..*self }
    }

    /// The same messages by another subscription, for a room that wraps another one.
    #[must_use]
    pub fn addressed(&self, tag: Option<SubscriptionTag>) -> Self {
        Self { tag, ..*self }
    }

    /// In the order in which they are to arrive.
    #[must_use]
    pub fn messages(&self) -> &'a [M] {
        self.messages
    }

    /// The id of the first; those behind it follow [in a row](BroadcastId::after).
    #[must_use]
    pub fn first_id(&self) -> BroadcastId {
        self.first
    }

    /// What the participant calls its subscription; `None` of what goes to everybody.
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

/// Never what a message holds.
impl<M> fmt::Debug for BroadcastRun<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastRun")
            .field("messages", &self.messages.len())
            .field("first", &self.first)
            .field("tag", &self.tag)
            .finish()
    }
}

/// Hands a sink a copy of the first message, addressed by the tag.
pub(crate) fn start_send_copy<M: Message, S: Sink<M>>(
    sink: Pin<&mut S>,
    run: &BroadcastRun<'_, M>,
) -> Result<usize, S::Error> {
    let mut copy = run.messages[0].clone();
    if let Some(tag) = run.tag {
        copy.address(tag);
    }
    sink.start_send(copy).map(|()| 1)
}
