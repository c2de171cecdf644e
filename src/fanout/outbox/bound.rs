//! The bound: how much may wait for one participant, over both lanes, and how much does.
//!
//! Messages and bytes share one word, so that one compare-exchange checks and takes both:
//!
//! ```text
//! 63            40 39                                  0
//! | messages (24) | bytes (40)                         |
//! ```

use crate::sync::{AtomicU64, Ordering};

/// How much may wait for one participant, over both lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) messages: u32,
    pub(crate) bytes: u64,
    /// The largest size of one message, in bytes.
    pub(crate) largest: u64,
}

const BYTE_BITS: u32 = 40;
const BYTES: u64 = (1 << BYTE_BITS) - 1;

impl Limits {
    /// The largest limits that a session may set: half of what the word can count to.
    pub(crate) const LARGEST: Self = Self { messages: (1 << 23) - 1, bytes: BYTES >> 1, largest: BYTES >> 1 };

    /// The largest counts that the word can hold.
    const COUNTABLE: Self = Self { messages: (1 << 24) - 1, bytes: BYTES, largest: u64::MAX };
}

/// How much of a bound is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Less than three eighths.
    Low,
    Between,
    /// At least half, in messages or in bytes.
    High,
}

/// How much was taken before and after a call. Whether a level was crossed is asked for only where members are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TakenChange {
    before: u64,
    after: u64,
}

/// The bound can't take that much more.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::fanout) struct Exceeded;

/// The capacity that messages for one participant take, and its limits.
#[derive(Debug)]
pub(super) struct Bound {
    limits: Limits,
    taken: AtomicU64,
}

impl Bound {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, taken: AtomicU64::new(0) }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Takes capacity for `messages` of `bytes` together.
    #[inline]
    pub(super) fn reserve(&self, messages: u32, bytes: usize) -> Result<TakenChange, Exceeded> {
        self.reserve_within(messages, bytes, self.limits)
    }

    /// Takes capacity beyond the limits, as far as the word can count.
    pub(super) fn reserve_beyond(&self, messages: u32, bytes: usize) -> Result<TakenChange, Exceeded> {
        self.reserve_within(messages, bytes, Limits::COUNTABLE)
    }

    /// This is a compare-exchange rather than an addition that is undone on excess. Even a short excess could make
    /// another sender find the participant full that isn't.
    #[inline]
    fn reserve_within(&self, messages: u32, bytes: usize, limits: Limits) -> Result<TakenChange, Exceeded> {
        // Acquire, paired with the Release in `release`: a sender that takes the capacity sees the queue slot free.
        let before = self
            .taken
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| {
                let waiting = (word >> BYTE_BITS) + u64::from(messages);
                let weight = (word & BYTES).saturating_add(bytes as u64);
                let fits = waiting <= u64::from(limits.messages) && weight <= limits.bytes;
                fits.then_some(waiting << BYTE_BITS | weight)
            })
            .map_err(|_| Exceeded)?;
        Ok(TakenChange { before, after: before + (u64::from(messages) << BYTE_BITS | bytes as u64) })
    }

    /// Gives back the capacity that messages took.
    pub(super) fn release(&self, messages: u32, bytes: usize) -> TakenChange {
        let given_back = u64::from(messages) << BYTE_BITS | bytes as u64;
        let before = self.taken.fetch_sub(given_back, Ordering::Release);
        TakenChange { before, after: before - given_back }
    }

    /// Whether the level is high since this change.
    pub(super) fn has_risen(&self, TakenChange { before, after }: TakenChange) -> bool {
        self.is_high(after) && !self.is_high(before)
    }

    /// Whether the level is low since this change.
    pub(super) fn has_fallen(&self, TakenChange { before, after }: TakenChange) -> bool {
        self.level_of(after) == Level::Low && self.level_of(before) != Level::Low
    }

    /// Whether the change left the level high.
    pub(super) fn is_high_after(&self, TakenChange { after, .. }: TakenChange) -> bool {
        self.is_high(after)
    }

    pub(super) fn level(&self) -> Level {
        // Relaxed: the caller has an order of its own with those who take and give back.
        self.level_of(self.taken.load(Ordering::Relaxed))
    }

    fn level_of(&self, word: u64) -> Level {
        let Limits { messages, bytes, .. } = self.limits;
        if self.is_high(word) {
            Level::High
        } else if 8 * (word >> BYTE_BITS) < 3 * u64::from(messages) && 8 * (word & BYTES) < 3 * bytes {
            Level::Low
        } else {
            Level::Between
        }
    }

    #[inline]
    fn is_high(&self, word: u64) -> bool {
        2 * (word >> BYTE_BITS) >= u64::from(self.limits.messages) || 2 * (word & BYTES) >= self.limits.bytes
    }

    /// Whether half of the bound is taken, in messages or in bytes.
    pub(super) fn is_half_full(&self) -> bool {
        self.level() == Level::High
    }

    /// Whether the whole bound is taken, in messages or in bytes.
    pub(super) fn is_full(&self) -> bool {
        let (messages, bytes) = self.taken();
        messages >= u64::from(self.limits.messages) || bytes >= self.limits.bytes
    }

    /// Whether a message of `bytes` fits within the byte limit. One that is too large to be sent counts like the
    /// largest that can be sent.
    pub(super) fn has_bytes_for(&self, bytes: usize) -> bool {
        let bytes = (bytes as u64).min(self.limits.largest);
        self.taken().1.saturating_add(bytes) <= self.limits.bytes
    }

    /// The waiting messages and their bytes.
    fn taken(&self) -> (u64, u64) {
        // Relaxed: a hint that may be outdated at once; `reserve` decides.
        let word = self.taken.load(Ordering::Relaxed);
        (word >> BYTE_BITS, word & BYTES)
    }
}
