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
//! `New → Live → Gone(reason)`, or `New → Gone(reason)`. Sends are accepted in `New` (the closure that computes the
//! initial messages may send) and in `Live`.
//!
//! # Orderings
//! - A sender reads the stamp (the log's tail, `Acquire`) before it pushes: see the order across the lanes in
//!   [`shard`](crate::fanout::shard).
//! - A sender pushes, passes a `SeqCst` fence and reads the state. The teardown writes `Gone`, passes a `SeqCst` fence
//!   and drains. Each side writes one place and reads the other, so at least one of them sees the message that would
//!   otherwise be lost in between.
//! - The sender's fence also stands between the push and the check whether the shard sleeps.
//! - An end writes `Gone`, passes the fence and reads the slot. An admission stores the slot, passes the fence and
//!   reads the state. So the shard either learns of the end through its mail bit or finds it at admission.

pub(in crate::fanout) mod control_queue;
pub(in crate::fanout) mod mail;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::caught::caught;
use crate::contract::{Account, EndReason, Message, Progress, Uplink};
use crate::fanout::counters::{Tally, Totals};
use crate::fanout::log::BroadcastLog;
use crate::fanout::outbox::control_queue::ControlQueue;
use crate::fanout::outbox::mail::Mail;
use crate::sync::bits::Bits;
use crate::sync::relief::Relief;
use crate::sync::signal::Signal;
use crate::sync::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// The part of a shard that senders need.
#[derive(Debug)]
pub(crate) struct Port<M> {
    pub(crate) log: Arc<BroadcastLog<M>>,
    pub(crate) signal: Arc<Signal>,
    pub(crate) mail: Mail,
    /// Members that their sinks have woken.
    pub(crate) ready: Bits,
    /// True while the shard doesn't read the log because of a shared uplink, and until it has caught up afterwards.
    pub(crate) behind: AtomicBool,
    pub(crate) totals: Arc<Totals>,
    /// The zero of the clock of all shards.
    pub(crate) epoch: Instant,
}

/// The state of a shard that is about to sleep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stance {
    /// The first position that the shard hasn't read.
    pub(crate) position: u64,
    /// No member has a slot at or above this one.
    pub(crate) extent: usize,
    /// The shard reads no further, whatever the log has for it.
    pub(crate) is_braked: bool,
    /// The shard has taken note of the seal.
    pub(crate) is_draining: bool,
}

impl<M: Message> Port<M> {
    /// The port of a shard with `slots` for members, which reads `log` and is woken by `signal`.
    pub(crate) fn new(
        log: Arc<BroadcastLog<M>>,
        signal: Arc<Signal>,
        slots: usize,
        totals: Arc<Totals>,
        epoch: Instant,
    ) -> Self {
        let (mail, ready) = (Mail::new(slots), Bits::new(slots));
        Self { log, signal, mail, ready, behind: AtomicBool::new(false), totals, epoch }
    }

    /// Whether there is work for the shard, apart from its commands. The shard checks this once more before it sleeps.
    /// It checks the slot and not the tail, because the tail would make it spin behind a slot that is claimed and
    /// empty.
    pub(crate) fn has_work(&self, shard: Stance) -> bool {
        (self.log.is_filled(shard.position) && !shard.is_braked)
            || self.mail.any(shard.extent)
            || self.ready.any(shard.extent)
            || (!shard.is_draining && self.log.tail().is_sealed() && self.log.tail().position() == shard.position)
    }
}

/// Milliseconds since `epoch`.
pub(crate) fn now_ms(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// How much may wait for one participant, over both lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) messages: u32,
    pub(crate) bytes: u64,
    /// The largest size of one message, in bytes.
    pub(crate) largest: u64,
}

/// A direct message, and the log's tail when it was sent.
#[derive(Debug)]
pub(crate) struct Direct<M> {
    pub(crate) stamp: u64,
    pub(crate) bytes: usize,
    pub(crate) message: M,
}

/// Why a message was not accepted; the message comes back.
#[derive(Debug)]
pub(crate) enum Refused<M> {
    Full(M),
    TooLarge(M),
    Closed(M),
}

/// A value of the state at the time it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    New,
    Live,
    Gone(EndReason),
}

const NEW: u8 = 0;
const LIVE: u8 = 1;
const GONE: u8 = 2;
const NO_SLOT: u32 = u32::MAX;

/// The sending side of one participant, shared by its senders and its shard.
#[derive(Debug)]
pub(crate) struct Outbox<M> {
    port: Arc<Port<M>>,
    limits: Limits,
    state: AtomicU8,
    /// The participant overflowed by what gathered while it joined. Set before the end, which orders it.
    outpaced: AtomicBool,
    /// The slot in which the shard keeps the member; written once, at admission.
    slot: AtomicU32,
    waiting: Waiting,
    queue: ControlQueue<M>,
    direct_offered: AtomicU64,
    lane_offered: Tally,
    delivered: Tally,
    delivered_bytes: Tally,
    lost: AtomicU64,
    rejected: AtomicU64,
    /// Wakes tasks that wait for half of the bound to be free.
    relief: Relief,
    /// When the oldest waiting message arrived, in the session's milliseconds plus one; 0 while none waits.
    oldest: AtomicU64,
    /// The uplink that all participants of the room share, if there is one, and the progress of this participant's
    /// writes.
    uplink: Option<(Uplink, Progress)>,
}

impl<M: Message> Outbox<M> {
    pub(crate) fn new(port: Arc<Port<M>>, limits: Limits, uplink: Option<(Uplink, Progress)>) -> Self {
        Self {
            port,
            limits,
            uplink,
            state: AtomicU8::new(NEW),
            outpaced: AtomicBool::new(false),
            slot: AtomicU32::new(NO_SLOT),
            waiting: Waiting(AtomicU64::new(0)),
            queue: ControlQueue::new(limits.messages),
            direct_offered: AtomicU64::new(0),
            lane_offered: Tally::new(),
            delivered: Tally::new(),
            delivered_bytes: Tally::new(),
            lost: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            relief: Relief::new(),
            oldest: AtomicU64::new(0),
        }
    }

    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            NEW => State::New,
            LIVE => State::Live,
            gone => State::Gone(EndReason::ALL[usize::from(gone - GONE)]),
        }
    }

    /// Why the instance ended, if it has.
    pub(crate) fn end_reason(&self) -> Option<EndReason> {
        match self.state() {
            State::Gone(reason) => Some(reason),
            State::New | State::Live => None,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.state.load(Ordering::Acquire) >= GONE
    }

    /// Changes `New` to `Live`. False if the instance has ended in the meantime.
    pub(crate) fn go_live(&self) -> bool {
        self.state.compare_exchange(NEW, LIVE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends the instance, and has its shard tear it down. True for the one caller whose reason is recorded.
    pub(crate) fn end(&self, reason: EndReason) -> bool {
        let ended = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| (state < GONE).then_some(GONE + reason as u8));
        if ended.is_err() {
            return false;
        }
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence.
        let slot = self.slot.load(Ordering::Relaxed);
        if slot != NO_SLOT {
            self.port.mail.set(slot as usize);
            self.port.signal.wake();
        }
        self.relief.note();
        true
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
        if bytes as u64 > self.limits.largest {
            return Err(Refused::TooLarge(message));
        }
        if !self.waiting.reserve(1, bytes, self.limits) {
            return Err(Refused::Full(message));
        }
        self.offer_direct();
        self.queue.push(Direct { stamp: tail.position(), bytes, message });
        let slot = self.slot.load(Ordering::Relaxed);
        debug_assert_ne!(slot, NO_SLOT, "nobody has a participant before its shard has admitted it");
        self.port.mail.set(slot as usize);
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
        uplink.is_some_and(|(uplink, progress)| self.port.behind.load(Ordering::Relaxed) || uplink.has_held(progress))
    }

    /// Waits until a shard has delivered something over the shared uplink, counted from this call on. `None` if there
    /// is no shared uplink.
    pub(crate) fn uplink_moves(&self) -> Option<impl Future<Output = ()> + Send + use<M>> {
        self.uplink.as_ref().map(|(uplink, _)| uplink.room())
    }

    /// Ends the instance because of a direct message that exceeds its bound, and counts that message as offered and
    /// lost. True for the one caller whose reason is recorded.
    pub(crate) fn overflow(&self) -> bool {
        self.offer_direct();
        // Counted before the end: a listener that is told of the end finds the message in the account.
        self.lost.fetch_add(1, Ordering::Release);
        let first = self.end(EndReason::Overflow);
        if let Some(reason) = self.end_reason() {
            self.port.totals.lose(reason, 1);
        }
        first
    }

    fn offer_direct(&self) {
        self.direct_offered.fetch_add(1, Ordering::Release);
        self.port.totals.direct_offered.add(1);
    }

    fn reject(&self, message: M) -> Refused<M> {
        self.offer_direct();
        self.rejected.fetch_add(1, Ordering::Release);
        self.port.totals.reject();
        Refused::Closed(message)
    }

    /// Counts `count` messages as lost, with the reason for which the instance ended.
    pub(crate) fn lose(&self, count: u64) {
        if let Some(reason) = self.end_reason() {
            self.lost.fetch_add(count, Ordering::Release);
            self.port.totals.lose(reason, count);
        }
    }

    /// Empties the control queue of an instance that has ended, and counts its messages as lost.
    pub(crate) fn lose_queue(&self) {
        self.take_queue(|direct| {
            // Counted before the drop, which is foreign code and may take long: the event of the end says what was
            // lost.
            self.lose(1);
            caught(|| drop(direct));
        });
    }

    /// Hands everything in the control queue to `each`, oldest first.
    pub(crate) fn take_queue(&self, each: impl FnMut(Direct<M>)) {
        self.queue.drain(each);
    }

    // The shard's side, and what both sides read.

    /// Records the slot in which the shard keeps the member. False if the instance has ended already: then no mail bit
    /// tells the shard of the end.
    pub(crate) fn admit(&self, slot: usize) -> bool {
        let slot = u32::try_from(slot).expect("a shard holds fewer members");
        // Relaxed: ordered by the fence, and for senders by the reply to the admission.
        self.slot.store(slot, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.has_ended()
    }

    /// Notes that the instance is about to end because of what gathered for it while it joined.
    pub(crate) fn note_outpaced(&self) {
        self.outpaced.store(true, Ordering::Relaxed);
    }

    /// The slot in which the shard keeps the member.
    pub(crate) fn slot(&self) -> usize {
        // Relaxed: callers learned of the admission through a channel, which orders this read; others may find no slot.
        self.slot.load(Ordering::Relaxed) as usize
    }

    /// Counts `count` messages as offered to the participant by its shard.
    pub(crate) fn offer_from_lane(&self, count: u64) {
        self.lane_offered.add(count);
    }

    /// Reserves capacity in the bound for messages from the log. False if that would exceed the bound.
    pub(crate) fn reserve(&self, messages: u32, bytes: usize) -> bool {
        self.waiting.reserve(messages, bytes, self.limits)
    }

    /// Reserves capacity for messages from the log that the uplink holds up, beyond the bound if necessary: the shard
    /// reads no further while [half](Self::is_half_full) of the bound is taken. False if the count can't hold them.
    pub(crate) fn reserve_beyond(&self, messages: u32, bytes: usize) -> bool {
        self.waiting.reserve(messages, bytes, COUNTABLE)
    }

    /// Whether half of the bound is taken, in messages or in bytes.
    pub(crate) fn is_half_full(&self) -> bool {
        let (messages, bytes) = self.waiting.get();
        messages >= u64::from(self.limits.messages.div_ceil(2)) || bytes >= self.limits.bytes.div_ceil(2)
    }

    /// Whether the whole bound is taken, in messages or in bytes.
    pub(crate) fn is_full(&self) -> bool {
        let (messages, bytes) = self.waiting.get();
        messages >= u64::from(self.limits.messages) || bytes >= self.limits.bytes
    }

    /// Releases the capacity that messages took.
    pub(crate) fn release(&self, messages: u32, bytes: usize) {
        self.waiting.release(messages, bytes);
        if !self.is_half_full() {
            self.relief.note();
        }
    }

    /// Waits until half of the bound is free and a message of `bytes` fits, or until the instance has ended. A message
    /// that is too large to be sent waits like the largest that can be sent.
    pub(crate) async fn room_for(&self, bytes: usize) {
        let bytes = (bytes as u64).min(self.limits.largest);
        let fits = || self.waiting.get().1.saturating_add(bytes) <= self.limits.bytes;
        self.relief.until(|| self.has_ended() || (!self.is_half_full() && fits())).await;
    }

    pub(crate) fn deliver(&self, messages: u64, bytes: u64) {
        self.delivered.add(messages);
        self.delivered_bytes.add(bytes);
    }

    /// Records the time since which the oldest message has waited, in the session's milliseconds.
    pub(crate) fn set_oldest(&self, since: Option<u64>) {
        // Relaxed: only used for statistics.
        self.oldest.store(since.map_or(0, |ms| ms + 1), Ordering::Relaxed);
    }

    /// For how long the oldest waiting message has waited.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        let since = self.oldest.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(now_ms(self.port.epoch).saturating_sub(since)))
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
        account.offered = self.lane_offered.get() + self.direct_offered.load(Ordering::Acquire);
        account
    }
}

/// Waiting messages and bytes, in one word, so that one compare-exchange checks and takes both.
#[derive(Debug)]
struct Waiting(AtomicU64);

/// Bytes take the low 40 bits, messages the high 24.
const BYTE_BITS: u32 = 40;

/// The largest limits that a session may set: half of what the word can count to.
pub(crate) const LARGEST_LIMITS: Limits =
    Limits { messages: (1 << 23) - 1, bytes: HALF_OF_THE_BYTES, largest: HALF_OF_THE_BYTES };

const HALF_OF_THE_BYTES: u64 = (1 << (BYTE_BITS - 1)) - 1;

/// The largest counts that the word can hold.
const COUNTABLE: Limits = Limits { messages: (1 << 24) - 1, bytes: (1 << BYTE_BITS) - 1, largest: u64::MAX };

impl Waiting {
    /// The waiting messages and their bytes.
    fn get(&self) -> (u64, u64) {
        let word = self.0.load(Ordering::Relaxed);
        (word >> BYTE_BITS, word & ((1 << BYTE_BITS) - 1))
    }

    /// Takes capacity for `messages` of `bytes` together, if the limits leave it.
    ///
    /// This is a compare-exchange rather than an addition that is undone on excess. Even a short excess could make
    /// another sender find the participant full that isn't.
    fn reserve(&self, messages: u32, bytes: usize, limits: Limits) -> bool {
        // Acquire, paired with the Release in `release`: a sender that takes the capacity sees the queue slot free.
        self.0
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| {
                let waiting = (word >> BYTE_BITS) + u64::from(messages);
                let weight = (word & ((1 << BYTE_BITS) - 1)).saturating_add(bytes as u64);
                let fits = waiting <= u64::from(limits.messages) && weight <= limits.bytes;
                fits.then_some(waiting << BYTE_BITS | weight)
            })
            .is_ok()
    }

    fn release(&self, messages: u32, bytes: usize) {
        self.0.fetch_sub(u64::from(messages) << BYTE_BITS | bytes as u64, Ordering::Release);
    }
}
