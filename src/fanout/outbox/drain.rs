//! The shard's half of an outbox.

use crate::contract::topic::TopicKey;
use crate::contract::{EndReason, Ending, Losses, Topic};
use crate::fanout::clock::SessionMs;
use crate::fanout::member_handle::MemberHandle;
use crate::fanout::outbox::Outbox;
use crate::fanout::outbox::bound::Exceeded;
use crate::fanout::outbox::control_queue::Direct;
use crate::fanout::outbox::rare::Rare;
use crate::fanout::slot::{MemberRef, Slot};
use crate::sync::{Ordering, fence};

/// The operations on a member's outbox that belong to the member's shard alone: taking messages out, counting what
/// became of them, and giving capacity back. Can't be cloned: the counters behind it have one writer.
pub(in crate::fanout) struct Drain<O: MemberHandle> {
    handle: O,
}

/// Whether a newcomer was still there when its shard admitted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fanout) enum Admitted {
    InTime,
    /// The instance had ended already, and no mail bit tells the shard so.
    Ended,
}

impl<O: MemberHandle> Drain<O> {
    pub(in crate::fanout) fn new(handle: O) -> Self {
        Self { handle }
    }

    #[inline]
    fn outbox(&self) -> &Outbox<O::Message> {
        self.handle.outbox()
    }

    /// Records the slot in which the shard keeps the member.
    pub(in crate::fanout) fn admit(&self, slot: Slot) -> Admitted {
        // Relaxed: ordered by the fence, and for senders by the reply to the admission.
        self.outbox().slot.store(slot.number(), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.has_ended() { Admitted::Ended } else { Admitted::InTime }
    }

    pub(in crate::fanout) fn is(&self, member: MemberRef) -> bool {
        self.outbox().client_id == member.client_id
    }

    #[inline]
    pub(in crate::fanout) fn has_ended(&self) -> bool {
        self.outbox().has_ended()
    }

    pub(in crate::fanout) fn end_reason(&self) -> Option<EndReason> {
        self.outbox().end_reason()
    }

    pub(in crate::fanout) fn end(&self, reason: EndReason) -> Ending {
        self.outbox().end(reason)
    }

    /// Notes that the instance is about to end because of what gathered for it while it joined.
    pub(in crate::fanout) fn note_outpaced(&self) {
        self.outbox().outpaced.store(true, Ordering::Relaxed);
    }

    /// Hands everything in the control queue to `each`, oldest first.
    pub(in crate::fanout) fn take_queue(&self, each: impl FnMut(Direct<O::Message>)) {
        self.outbox().queue.drain(each);
    }

    /// Counts `count` messages as offered to the participant by its shard.
    pub(in crate::fanout) fn offer(&self, count: u64) {
        self.outbox().shard_offered.add(count);
    }

    pub(in crate::fanout) fn deliver(&self, messages: u64, bytes: u64) {
        self.outbox().delivered.add(messages);
        self.outbox().delivered_bytes.add(bytes);
    }

    /// Counts messages that were lost, by topic, and those that were dropped with a subscription.
    pub(in crate::fanout) fn lose_lossy(&self, lost: impl Iterator<Item = (Topic, Losses)>, unsubscribed: u64) {
        let rare = self.outbox().rare();
        let lost = rare.lose(lost);
        rare.unsubscribe(unsubscribed);
        self.outbox().port.counters.lose_lossy(&lost, unsubscribed);
    }

    /// Forgets what was lost of a topic that has ended.
    pub(in crate::fanout) fn forget_losses(&self, topic: TopicKey) {
        if let Some(rare) = self.outbox().rare.get() {
            rare.forget(topic);
        }
    }

    /// The participant's total rate in bytes per second, if it has one.
    pub(in crate::fanout) fn rate(&self) -> Option<u64> {
        self.outbox().rare.get().and_then(Rare::rate)
    }

    /// Counts `count` messages as lost, with the reason for which the instance ended, and all that are in the control
    /// queue.
    pub(in crate::fanout) fn lose(&self, count: u64) {
        self.outbox().lose(count);
        self.outbox().lose_queue();
    }

    /// Reserves capacity in the bound for messages from the log.
    pub(in crate::fanout) fn reserve(&self, messages: u32, bytes: usize) -> Result<(), Exceeded> {
        self.outbox().bound.reserve(messages, bytes).map(|change| self.outbox().note_reserved(change))
    }

    /// Reserves capacity for messages from the log that the uplink holds up, beyond the bound if necessary: the shard
    /// reads no further while [half](Self::is_half_full) of the bound is taken.
    pub(in crate::fanout) fn reserve_beyond(&self, messages: u32, bytes: usize) -> Result<(), Exceeded> {
        self.outbox().bound.reserve_beyond(messages, bytes).map(|change| self.outbox().note_reserved(change))
    }

    /// Gives back the capacity that messages took, and wakes those who wait for it.
    pub(in crate::fanout) fn release(&self, messages: u32, bytes: usize) {
        let change = self.outbox().bound.release(messages, bytes);
        self.outbox().note_released(change);
    }

    /// Tells the log that the member has made progress, if the member counts as heavy.
    pub(in crate::fanout) fn note_progress(&self, now: SessionMs) {
        if self.outbox().standing.is_counted_as_heavy() {
            self.outbox().port.log.note_progress(now);
        }
    }

    /// Has the log count the member from now on.
    pub(in crate::fanout) fn count(&self) {
        self.outbox().count();
    }

    /// Has the log count the member no longer.
    pub(in crate::fanout) fn discount(&self) {
        self.outbox().discount();
    }

    pub(in crate::fanout) fn is_half_full(&self) -> bool {
        self.outbox().bound.is_half_full()
    }

    pub(in crate::fanout) fn is_full(&self) -> bool {
        self.outbox().bound.is_full()
    }

    /// Records the time since which the oldest message has waited.
    pub(in crate::fanout) fn set_oldest(&self, since: Option<SessionMs>) {
        // Relaxed: only used for statistics.
        self.outbox().oldest.store(since.map_or(0, |SessionMs(ms)| ms + 1), Ordering::Relaxed);
    }

    pub(in crate::fanout) fn handle(&self) -> &O {
        &self.handle
    }

    pub(in crate::fanout) fn into_handle(self) -> O {
        self.handle
    }
}
