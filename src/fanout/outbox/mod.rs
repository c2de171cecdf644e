//! The sending side of one participant: its state, its control queue, its bound and its account.
//!
//! Any thread may send to a participant or end it; the participant's shard takes the messages out. Promises:
//! - The instance ends once: of all callers of [`Outbox::end`], exactly one is told that its call did it.
//! - A message that was accepted is delivered, or counted with the reason for which the instance ended. There is no
//!   third outcome.
//! - What waits, over both lanes, never exceeds the limits, except for what a shared [uplink](crate::contract::uplink)
//!   holds up. A send that is refused as full or too large changes nothing.
//!
//! # States
//! `New → Live → Ended(reason)`, or `New → Ended(reason)`. Sends are accepted in `New` (the closure that computes the
//! initial messages may send) and in `Live`.
//!
//! # Orderings
//! - A sender reads the stamp (the log's tail, `Acquire`) before it pushes: see the order across the lanes in
//!   [`shard`](crate::fanout::shard).
//! - A sender pushes, passes a `SeqCst` fence and reads the state. The teardown writes `Ended`, passes a `SeqCst` fence
//!   and drains. Each side writes one place and reads the other, so at least one of them sees the message that would
//!   otherwise be lost in between.
//! - The sender's fence also stands between the push and the check whether the shard sleeps.
//! - An end writes `Ended`, passes the fence and reads the slot. An admission stores the slot, passes the fence and
//!   reads the state. So the shard either learns of the end through its mail bit or finds it at admission.
//! - The state is changed with `AcqRel` and read with `Acquire`: a reader that sees an end sees what the ending caller
//!   wrote before it, such as `outpaced`. The counters have the orderings of [`counters`](crate::fanout::counters).

pub(in crate::fanout) mod bound;
pub(in crate::fanout) mod control_queue;
pub(in crate::fanout) mod drain;
mod rare;
mod standing;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::caught::caught;
use crate::contract::topic::TopicKey;
use crate::contract::{
    Account, EndReason, Ending, Losses, Message, Progress, Rate, Subscribed, SubscriptionTag, Topic, Unsubscribed,
    Uplink,
};
use crate::fanout::clock::SessionMs;
use crate::fanout::command::{Begin, Command};
use crate::fanout::counters::SingleWriterCounter;
use crate::fanout::log::gate::Count;
use crate::fanout::log::{Position, Refused};
use crate::fanout::outbox::bound::{Bound, Exceeded, Level, Limits, TakenChange};
use crate::fanout::outbox::control_queue::{ControlQueue, Direct};
use crate::fanout::outbox::rare::Rare;
use crate::fanout::outbox::standing::{Discounted, Reweighed, Standing};
use crate::fanout::port::Port;
use crate::fanout::slot::{MemberRef, Slot};
use crate::ids::ClientId;
use crate::sync::capacity::CapacityNotify;
use crate::sync::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, OnceBox, Ordering, fence};

const NEW: u8 = 0;
const LIVE: u8 = 1;
/// The state of an ended instance is this plus the number of the reason.
const ENDED: u8 = 2;
const NO_SLOT: u32 = u32::MAX;

/// The senders' half of a participant's outbox, and the session's line to the shard. The shard's half is
/// [`Drain`](drain::Drain).
///
/// The order of the fields is their order in memory: a visit to a clear member touches the first ones, up to the
/// counters, which usually are on one cache line.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Outbox<M> {
    /// The slot in which the shard keeps the member; written once, at admission.
    slot: AtomicU32,
    state: AtomicU8,
    /// The participant overflowed by what gathered while it joined. Set before the end, which orders it.
    outpaced: AtomicBool,
    /// Whether the log counts the member, and as what. Not used unless the log counts members.
    standing: Standing,
    shard_offered: SingleWriterCounter,
    delivered: SingleWriterCounter,
    delivered_bytes: SingleWriterCounter,
    client_id: ClientId,
    port: Arc<Port<M>>,
    bound: Bound,
    queue: ControlQueue<M>,
    direct_offered: AtomicU64,
    lost: AtomicU64,
    rejected: AtomicU64,
    /// Wakes tasks that wait for half of the bound to be free.
    capacity: CapacityNotify,
    /// When the oldest waiting message arrived, by the fan-out's clock, plus one; 0 while none waits.
    oldest: AtomicU64,
    rare: OnceBox<Rare>,
    /// The uplink that all participants of the room share, if there is one.
    uplink: Option<Uplink>,
    /// The progress of this participant's writes, and what its link carries.
    progress: Progress,
}

impl<M> Outbox<M> {
    pub(crate) fn client_id(&self) -> ClientId {
        self.client_id
    }
}

impl<M: Message> Outbox<M> {
    pub(in crate::fanout) fn new(
        port: Arc<Port<M>>,
        client_id: ClientId,
        limits: Limits,
        uplink: Option<Uplink>,
        progress: Progress,
    ) -> Self {
        Self {
            port,
            client_id,
            uplink,
            progress,
            state: AtomicU8::new(NEW),
            outpaced: AtomicBool::new(false),
            standing: Standing::new(),
            slot: AtomicU32::new(NO_SLOT),
            bound: Bound::new(limits),
            queue: ControlQueue::new(limits.messages),
            direct_offered: AtomicU64::new(0),
            shard_offered: SingleWriterCounter::new(),
            delivered: SingleWriterCounter::new(),
            delivered_bytes: SingleWriterCounter::new(),
            lost: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            capacity: CapacityNotify::new(),
            oldest: AtomicU64::new(0),
            rare: OnceBox::new(),
        }
    }

    fn rare(&self) -> &Rare {
        self.rare.get_or_init(Rare::new)
    }

    /// Whether the instance is in the state `Live`.
    pub(crate) fn is_live(&self) -> bool {
        self.state.load(Ordering::Acquire) == LIVE
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.state.load(Ordering::Acquire) >= ENDED
    }

    /// Why the instance ended, if it has.
    pub(crate) fn end_reason(&self) -> Option<EndReason> {
        let reason = self.state.load(Ordering::Acquire).checked_sub(ENDED)?;
        Some(EndReason::ALL[usize::from(reason)])
    }

    /// Changes `New` to `Live`; called once. Fails, with the reason, if the instance has ended in the meantime.
    pub(crate) fn go_live(&self) -> Result<(), EndReason> {
        let changed = self.state.compare_exchange(NEW, LIVE, Ordering::AcqRel, Ordering::Acquire);
        changed
            .map(drop)
            .map_err(|_| self.end_reason().expect("go_live is called once, so an instance that isn't new has ended"))
    }

    /// Ends the instance, and has its shard tear it down.
    pub(crate) fn end(&self, reason: EndReason) -> Ending {
        let ended = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| (state < ENDED).then_some(ENDED + reason as u8));
        if ended.is_err() {
            return Ending::Before;
        }
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence.
        let slot = self.slot.load(Ordering::Relaxed);
        if slot != NO_SLOT {
            self.port.mail.set(Slot::from_number(slot));
            self.port.signal.wake();
        }
        self.capacity.note();
        Ending::ByThis
    }

    /// Whether the instance ended because of what gathered for it while it joined.
    pub(crate) fn is_outpaced(&self) -> bool {
        self.end_reason() == Some(EndReason::Overflow) && self.outpaced.load(Ordering::Relaxed)
    }

    /// Sends the message, or gives it back. Never blocks, and never asks for a reset.
    pub(crate) fn try_send(&self, message: M) -> Result<(), Refused<M>> {
        if self.has_ended() {
            return Err(self.reject(message));
        }
        let tail = self.port.log.tail();
        if tail.is_sealed() {
            return Err(self.reject(message));
        }
        let bytes = message.byte_len();
        if bytes as u64 > self.bound.limits().largest {
            return Err(Refused::TooLarge(message));
        }
        match self.bound.reserve(1, bytes) {
            Ok(change) => self.note_reserved(change),
            Err(Exceeded) => return Err(Refused::Full(message)),
        }
        self.offer_direct();
        self.queue.push(Direct { stamp: tail.position(), bytes, message });
        self.port.mail.set(self.slot());
        fence(Ordering::SeqCst);
        if self.has_ended() {
            self.lose_queue();
        }
        self.port.signal.wake_after_fence();
        Ok(())
    }

    /// Whether the uplink that all participants share holds up the backlog: the participant's own write waits for the
    /// uplink, or the uplink keeps the shard from reading the log.
    pub(crate) fn is_held_up(&self) -> bool {
        let uplink = self.uplink.as_ref();
        // Relaxed: a sender that races with the shard's store may see either value.
        uplink.is_some_and(|uplink| self.port.behind.load(Ordering::Relaxed) || uplink.has_held(&self.progress))
    }

    /// Waits until a shard has delivered something over the shared uplink, counted from this call on. `None` if there
    /// is no shared uplink.
    pub(crate) fn uplink_moves(&self) -> Option<impl Future<Output = ()> + Send + use<M>> {
        self.uplink.as_ref().map(Uplink::capacity)
    }

    /// Ends the instance because of a direct message that exceeds its bound, and counts that message as offered and
    /// lost.
    pub(crate) fn overflow(&self) -> Ending {
        self.offer_direct();
        // Counted before the end: a listener that is told of the end finds the message in the account.
        self.lost.fetch_add(1, Ordering::Release);
        let ending = self.end(EndReason::Overflow);
        if let Some(reason) = self.end_reason() {
            self.port.counters.lose(reason, 1);
        }
        ending
    }

    /// Has the log count the member as heavy, if a reservation has made it so.
    #[inline]
    fn note_reserved(&self, change: TakenChange) {
        if self.port.log.counts_members() && self.bound.has_risen(change) {
            self.weigh();
        }
    }

    /// Has the log count the member as light, if a release has made it so.
    #[inline]
    fn note_released(&self, change: TakenChange) {
        if self.port.log.counts_members() && self.bound.has_fallen(change) {
            self.weigh();
        }
        if !self.bound.is_high_after(change) {
            self.capacity.note();
        }
    }

    /// Has the log count the member by the weight that its bound shows: see [`standing`].
    #[cold]
    fn weigh(&self) {
        loop {
            let level = self.bound.level();
            let is_heavy = match level {
                Level::Low => false,
                Level::Between => return,
                Level::High => true,
            };
            if self.standing.weigh(is_heavy) == Reweighed::Changed {
                self.port.log.count(if is_heavy { Count::Heavy } else { Count::Light });
            }
            if self.bound.level() == level {
                return;
            }
        }
    }

    /// Has the log count the member, which begins.
    fn count(&self) {
        if self.port.log.counts_members() {
            let is_heavy = self.standing.count();
            self.port.log.count(Count::Begun { is_heavy });
        }
    }

    /// Has the log count the member no longer, which retires.
    fn discount(&self) {
        if self.port.log.counts_members() {
            let was_heavy = match self.standing.discount() {
                Discounted::Heavy => true,
                Discounted::Light => false,
                Discounted::NeverCounted => return,
            };
            self.port.log.count(Count::Retired { was_heavy });
        }
    }

    fn offer_direct(&self) {
        self.direct_offered.fetch_add(1, Ordering::Release);
        self.port.counters.direct_offered.add(1);
    }

    fn reject(&self, message: M) -> Refused<M> {
        self.offer_direct();
        self.rejected.fetch_add(1, Ordering::Release);
        self.port.counters.reject();
        Refused::Closed(message)
    }

    /// Counts `count` messages as lost, with the reason for which the instance ended.
    fn lose(&self, count: u64) {
        if let Some(reason) = self.end_reason() {
            self.lost.fetch_add(count, Ordering::Release);
            self.port.counters.lose(reason, count);
        }
    }

    /// Empties the control queue of an instance that has ended, and counts its messages as lost. The shard and a sender
    /// may do this at the same time.
    fn lose_queue(&self) {
        self.queue.drain(|direct| {
            // Counted before the drop, which is foreign code and may take long: the event of the end says what was
            // lost.
            self.lose(1);
            caught(|| drop(direct));
        });
    }

    /// The slot in which the shard keeps the member. Nobody has a participant before its shard has admitted it.
    fn slot(&self) -> Slot {
        // Relaxed: callers learned of the admission through a channel, which orders this read.
        let slot = self.slot.load(Ordering::Relaxed);
        debug_assert_ne!(slot, NO_SLOT, "nobody has a participant before its shard has admitted it");
        Slot::from_number(slot)
    }

    /// Names the member to its shard.
    pub(crate) fn member(&self) -> MemberRef {
        MemberRef { slot: self.slot(), client_id: self.client_id }
    }

    /// Whether half of the bound is taken, in messages or in bytes.
    pub(crate) fn is_half_full(&self) -> bool {
        self.bound.is_half_full()
    }

    /// Waits until half of the bound is free and a message of `bytes` fits, or until the instance has ended. A message
    /// that is too large to be sent waits like the largest that can be sent.
    pub(crate) async fn wait_for_capacity(&self, bytes: usize) {
        let fits = || !self.bound.is_half_full() && self.bound.has_bytes_for(bytes);
        self.capacity.until(|| self.has_ended() || fits()).await;
    }

    /// Limits the droppable messages to what this total rate leaves to them.
    pub(crate) fn set_rate(&self, bytes_per_second: Option<u64>) {
        self.rare().set_rate(bytes_per_second);
        self.port.mail.set(self.slot());
        self.port.signal.wake();
    }

    /// What the participant has lost of `topic`.
    pub(crate) fn losses_of(&self, topic: TopicKey) -> Losses {
        self.rare.get().map_or_else(Losses::default, |rare| rare.losses_of(topic))
    }

    /// For how long the oldest waiting message has waited.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        // Relaxed: only used for statistics.
        let since = self.oldest.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.port.clock.now().since(SessionMs(since))))
    }

    /// What the participant's link carries, in bytes per second, if its sink was ever busy.
    pub(crate) fn link_rate(&self) -> Option<u64> {
        self.progress.link_rate()
    }

    /// What became of the participant's messages so far.
    pub(crate) fn account(&self) -> Account {
        let mut account = Account {
            delivered: self.delivered.get(),
            delivered_bytes: self.delivered_bytes.get(),
            ..Account::default()
        };
        account.dropped.closed = self.rejected.load(Ordering::Acquire);
        let lost = self.lost.load(Ordering::Acquire);
        if let Some(reason) = self.end_reason() {
            account.add_lost(reason, lost);
        }
        if let Some(rare) = self.rare.get() {
            account.dropped.lossy = rare.losses();
            account.abandoned.unsubscribed = rare.unsubscribed();
        }
        account.offered = self.shard_offered.get() + self.direct_offered.load(Ordering::Acquire);
        account
    }
}

/// The session's line to the member's shard.
impl<M: Message> Outbox<M> {
    /// Subscribes the member to `topic`; also says from which position of the log on. `None` if the shard has
    /// ended.
    pub(crate) async fn subscribe(
        &self,
        topic: &Topic,
        tag: SubscriptionTag,
        own_rate: Option<Rate>,
    ) -> Option<(Subscribed, Position)> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Subscribe { member: self.member(), counted: topic.raise(), tag, own_rate, reply }, answer)
            .await
    }

    /// Ends the member's subscription to `topic`.
    pub(crate) async fn unsubscribe(&self, topic: &Topic) -> Unsubscribed {
        let (reply, answer) = oneshot::channel();
        let command = Command::Unsubscribe { member: self.member(), topic: topic.key(), reply };
        self.ask(command, answer).await.unwrap_or(Unsubscribed::NotSubscribed)
    }

    /// Sends a command to the shard and waits for the answer. `None` if the shard has ended.
    async fn ask<T>(&self, command: Command<M>, answer: oneshot::Receiver<T>) -> Option<T> {
        let commands = &self.port.commands;
        commands.send(command).await.ok()?;
        tokio::select! {
            biased;
            answer = answer => answer.ok(),
            // A shard that ends drops the commands that it doesn't carry out, which ends the wait for the answer. That
            // misses a command that arrives late because this future wasn't polled.
            () = commands.closed() => None,
        }
    }

    /// Waits for a place in the shard's channel, and returns what has the shard deliver the initial messages, given
    /// with their lengths, and then what has gathered. `None` if the fan-out ends.
    pub(crate) async fn ready_to_begin(&self) -> Option<impl FnOnce(Vec<(M, usize)>)> {
        let place = self.port.begins.reserve().await.ok()?;
        Some(|initial| place.send(Begin { member: self.member(), initial }))
    }

    /// The channel of the line, for a test of a command that is on its way.
    #[cfg(test)]
    pub(crate) fn commands(&self) -> &tokio::sync::mpsc::Sender<Command<M>> {
        &self.port.commands
    }
}
