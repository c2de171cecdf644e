//! The sending side of one participant: its state, its control queue, its bound, its account.
//!
//! Any thread may send or end; the participant's shard takes the messages out. Promises:
//! - The instance ends once: of all who call [`Outbox::end`], one is told that it did it.
//! - A message that was accepted is delivered, or counted with the reason the instance ended for. Never neither.
//! - What waits, over both lanes, never exceeds the limits but for what an [uplink](super::uplink) that all share holds
//!   up; a refused send changes nothing.
//!
//! # States
//! `New → Live → Gone(reason)`, or `New → Gone(reason)`. Sends are accepted in `New` (the closure that computes the
//! initial messages may send) and in `Live`.
//!
//! # Orderings
//! - The stamp (the log's tail, `Acquire`) is read before the push: see the order across the lanes in
//!   [`shard`](super::shard).
//! - Push, `SeqCst` fence, look at the state; and for the teardown: `Gone`, `SeqCst` fence, drain. Each side writes
//!   one and reads the other, so at least one of them sees the message that would otherwise be lost in between.
//! - The same fence stands between the push and the look at the sleeping shard.
//! - Ending: `Gone`, fence, look at the slot; admission: store the slot, fence, look at the state. Either the shard
//!   learns of the end through its mail bit or finds it at admission.

use std::sync::Arc;

use super::Message;
use super::account::{Account, EndReason, Tally, Totals};
use super::bits::Bits;
use super::caught::caught;
use super::control_queue::ControlQueue;
use super::log::BroadcastLog;
use super::reader::Mail;
use super::relief::Relief;
use super::signal::Signal;
use crate::sync::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// What senders need of a shard.
#[derive(Debug)]
pub(crate) struct Port<M> {
    pub(crate) log: Arc<BroadcastLog<M>>,
    pub(crate) signal: Arc<Signal>,
    pub(crate) mail: Mail,
    /// Members whose sink has woken them.
    pub(crate) ready: Bits,
    /// The shard doesn't read the log because of an uplink that all share, or hasn't caught up since.
    pub(crate) behind: AtomicBool,
    pub(crate) totals: Arc<Totals>,
}

/// Where a shard stands that is about to sleep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stance {
    /// The first position it hasn't read.
    pub(crate) position: u64,
    /// It has no members at or above this slot.
    pub(crate) extent: usize,
    /// It doesn't read on, whatever the log has for it.
    pub(crate) is_braked: bool,
    /// It has taken note of the seal.
    pub(crate) is_draining: bool,
}

impl<M: Message> Port<M> {
    /// Whether there is something here for a shard to do, but for its commands. Looked at once more before it sleeps:
    /// at the slot, not the tail, as behind a claimed, empty slot that would spin.
    pub(crate) fn has_work(&self, shard: Stance) -> bool {
        (self.log.is_filled(shard.position) && !shard.is_braked)
            || self.mail.any(shard.extent)
            || self.ready.any(shard.extent)
            || (!shard.is_draining && self.log.tail().is_sealed() && self.log.tail().position() == shard.position)
    }
}

/// How much may wait for one participant, over both lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) messages: u32,
    pub(crate) bytes: u64,
    /// The most that one message may have.
    pub(crate) largest: u64,
}

/// A direct message and the log's tail when it was sent.
#[derive(Debug)]
pub(crate) struct Direct<M> {
    pub(crate) stamp: u64,
    pub(crate) bytes: usize,
    pub(crate) message: M,
}

/// Why a message was not taken; it comes back.
#[derive(Debug)]
pub(crate) enum Refused<M> {
    Full(M),
    TooLarge(M),
    Closed(M),
}

/// A reading of the state.
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

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Outbox<M> {
    port: Arc<Port<M>>,
    limits: Limits,
    state: AtomicU8,
    /// It overflowed by what gathered while it joined. Set before it ends, which orders it.
    outpaced: AtomicBool,
    /// Where its shard keeps it; written once, at admission.
    slot: AtomicU32,
    waiting: Waiting,
    queue: ControlQueue<M>,
    direct_offered: AtomicU64,
    lane_offered: Tally,
    delivered: Tally,
    delivered_bytes: Tally,
    lost: AtomicU64,
    rejected: AtomicU64,
    /// Whoever waits for half of the bound to be free.
    relief: Relief,
    /// When the oldest waiting message came, in the session's milliseconds plus one; 0 while none waits.
    oldest: AtomicU64,
}

impl<M: Message> Outbox<M> {
    pub(crate) fn new(port: Arc<Port<M>>, limits: Limits) -> Self {
        Self {
            port,
            limits,
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

    /// Why it ended, if it has.
    pub(crate) fn end_reason(&self) -> Option<EndReason> {
        match self.state() {
            State::Gone(reason) => Some(reason),
            State::New | State::Live => None,
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.load(Ordering::Acquire) >= GONE
    }

    /// `New → Live`; false if it has ended in the meantime.
    pub(crate) fn go_live(&self) -> bool {
        self.state.compare_exchange(NEW, LIVE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends the instance, and has its shard tear it down. True for the one caller whose reason it is.
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

    /// Whether it ended by what gathered for it while it joined.
    pub(crate) fn is_outpaced(&self) -> bool {
        self.end_reason() == Some(EndReason::Overflow) && self.outpaced.load(Ordering::Relaxed)
    }

    /// Sends, or gives the message back. Never blocks, asks for nothing.
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

    /// Whether its direct messages wait because its shard doesn't read the log.
    pub(crate) fn is_behind(&self) -> bool {
        self.port.behind.load(Ordering::Relaxed)
    }

    /// Ends the instance because of a direct message that is too much for it, and counts the message as offered and
    /// lost. True for the one caller whose reason it is.
    pub(crate) fn overflow(&self) -> bool {
        self.offer_direct();
        // Before the end: whoever is told of that finds the message counted.
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

    /// Counts `count` messages as lost for the reason the instance ended for.
    pub(crate) fn lose(&self, count: u64) {
        if let Some(reason) = self.end_reason() {
            self.lost.fetch_add(count, Ordering::Release);
            self.port.totals.lose(reason, count);
        }
    }

    /// Empties the control queue of an instance that has ended.
    pub(crate) fn lose_queue(&self) {
        self.take_queue(|direct| {
            // Before the drop, which is code of others: it may take long, and the event of the end tells what was lost.
            self.lose(1);
            caught(|| drop(direct));
        });
    }

    /// Hands everything in the control queue to `each`, oldest first.
    pub(crate) fn take_queue(&self, each: impl FnMut(Direct<M>)) {
        self.queue.drain(each);
    }

    // The rest is the shard's.

    /// Says where the shard keeps it. False if it has ended already: then no mail bit tells the shard so.
    pub(crate) fn admit(&self, slot: usize) -> bool {
        let slot = u32::try_from(slot).expect("a shard holds fewer members");
        // Relaxed: ordered by the fence, and for senders by the reply to the admission.
        self.slot.store(slot, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.has_ended()
    }

    /// Says that it is about to end by what gathered for it while it joined.
    pub(crate) fn note_outpaced(&self) {
        self.outpaced.store(true, Ordering::Relaxed);
    }

    /// Where the shard keeps it.
    pub(crate) fn slot(&self) -> usize {
        // Relaxed: who asks has learned of the admission by a message, or finds nothing there.
        self.slot.load(Ordering::Relaxed) as usize
    }

    /// Counts `count` messages as offered to it by its shard.
    pub(crate) fn offer_from_lane(&self, count: u64) {
        self.lane_offered.add(count);
    }

    /// Makes room in the bound for messages from the log. False if that would exceed it.
    pub(crate) fn reserve(&self, messages: u32, bytes: usize) -> bool {
        self.waiting.reserve(messages, bytes, self.limits)
    }

    /// Makes room in the bound for messages from the log that the uplink holds up, beyond it if need be: its shard
    /// reads no further while [half](Self::is_half_full) of it is taken. False if that can't be counted.
    pub(crate) fn reserve_beyond(&self, messages: u32, bytes: usize) -> bool {
        self.waiting.reserve(messages, bytes, COUNTABLE)
    }

    /// Whether half of what may wait for it does.
    pub(crate) fn is_half_full(&self) -> bool {
        let (messages, bytes) = self.waiting.get();
        messages >= u64::from(self.limits.messages.div_ceil(2)) || bytes >= self.limits.bytes.div_ceil(2)
    }

    /// Whether all of it does.
    pub(crate) fn is_full(&self) -> bool {
        let (messages, bytes) = self.waiting.get();
        messages >= u64::from(self.limits.messages) || bytes >= self.limits.bytes
    }

    /// Gives back what messages took of the bound.
    pub(crate) fn release(&self, messages: u32, bytes: usize) {
        self.waiting.release(messages, bytes);
        if !self.is_half_full() {
            self.relief.note();
        }
    }

    /// Waits until half of the bound is free and a message of so many bytes fits, or the instance has ended. One that
    /// is too large in any case isn't waited for.
    pub(crate) async fn room_for(&self, bytes: usize) {
        let bytes = (bytes as u64).min(self.limits.largest);
        let fits = || self.waiting.get().1.saturating_add(bytes) <= self.limits.bytes;
        self.relief.until(|| self.has_ended() || (!self.is_half_full() && fits())).await;
    }

    /// Counts messages as delivered.
    pub(crate) fn deliver(&self, messages: u64, bytes: u64) {
        self.delivered.add(messages);
        self.delivered_bytes.add(bytes);
    }

    /// Says since when the oldest message has waited, in the session's milliseconds.
    pub(crate) fn set_oldest(&self, since: Option<u64>) {
        // Relaxed: a figure for statistics.
        self.oldest.store(since.map_or(0, |ms| ms + 1), Ordering::Relaxed);
    }

    pub(crate) fn oldest(&self) -> Option<u64> {
        self.oldest.load(Ordering::Relaxed).checked_sub(1)
    }

    /// What became of its messages so far.
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

/// Messages and bytes that wait, in one word, so that one compare-exchange checks and takes both.
#[derive(Debug)]
struct Waiting(AtomicU64);

/// Bytes have the low 40 bits, messages the high 24.
const BYTE_BITS: u32 = 40;

/// The largest limits the word can count to.
pub(crate) const LARGEST_LIMITS: Limits =
    Limits { messages: (1 << 23) - 1, bytes: HALF_OF_THE_BYTES, largest: HALF_OF_THE_BYTES };

const HALF_OF_THE_BYTES: u64 = (1 << (BYTE_BITS - 1)) - 1;

/// What the word can count to.
const COUNTABLE: Limits = Limits { messages: (1 << 24) - 1, bytes: (1 << BYTE_BITS) - 1, largest: u64::MAX };

impl Waiting {
    /// Messages and bytes.
    fn get(&self) -> (u64, u64) {
        let word = self.0.load(Ordering::Relaxed);
        (word >> BYTE_BITS, word & ((1 << BYTE_BITS) - 1))
    }

    /// Takes room for `messages` of `bytes` together, if the limits leave it.
    ///
    /// A compare-exchange rather than an addition taken back on excess: the excess, short as it would stand, could
    /// make another sender find the participant full that isn't.
    fn reserve(&self, messages: u32, bytes: usize, limits: Limits) -> bool {
        // Acquire, with the Release of `release`: who takes the room sees the slot of the queue free.
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
