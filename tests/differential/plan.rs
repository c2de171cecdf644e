//! Delivery classes, rates and losses, in terms that the model can reckon with.

use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::time::Duration;

use lanecast::{Latest, Losses, Lossy, Profile, Rate};

/// A rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// At most one message in so many microseconds.
    Every(u64),
    BytesPerSecond(u64),
}

/// What of a topic's messages may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Reliable,
    /// `age` is in milliseconds.
    Lossy {
        messages: u32,
        bytes: u64,
        age: u64,
    },
    Latest,
}

/// The profile of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) class: Class,
    pub(crate) weight: u16,
    pub(crate) pace: Option<Pace>,
    pub(crate) retain: u32,
}

/// Why a message gave way to a newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    Overflowed,
    Expired,
    Conflated,
    RateLimited,
}

impl Pace {
    pub(crate) fn rate(self) -> Rate {
        match self {
            Self::Every(micros) => Rate::every(Duration::from_micros(micros)),
            Self::BytesPerSecond(bytes) => Rate::bytes_per_second(NonZeroU64::new(bytes).expect("not zero")),
        }
    }

    /// For how many microseconds a message of `size` bytes keeps the next one waiting.
    pub(crate) fn wait_after(self, size: usize) -> u64 {
        match self {
            Self::Every(micros) => micros,
            Self::BytesPerSecond(bytes) => (size as u64 * 1_000_000).div_ceil(bytes),
        }
    }
}

impl Plan {
    /// Every message in order, and nothing else.
    pub(crate) const RELIABLE: Self = Self { class: Class::Reliable, weight: 1, pace: None, retain: 0 };

    pub(crate) fn profile(&self) -> Profile {
        let weight = NonZeroU16::new(self.weight).expect("not zero");
        let profile = match self.class {
            Class::Reliable => Profile::reliable(),
            Class::Lossy { messages, bytes, age } => {
                let lossy = Lossy::default().max_messages(NonZeroU32::new(messages).expect("not zero"));
                let lossy = lossy.max_bytes(bytes).max_age(Duration::from_millis(age)).weight(weight);
                Profile::lossy(self.pace.map_or(lossy, |pace| lossy.rate(pace.rate())))
            }
            Class::Latest => {
                let latest = Latest::default().weight(weight);
                Profile::latest(self.pace.map_or(latest, |pace| latest.rate(pace.rate())))
            }
        };
        profile.retain(self.retain)
    }

    pub(crate) fn is_reliable(&self) -> bool {
        self.class == Class::Reliable
    }

    /// How many messages a late subscriber gets.
    pub(crate) fn retained(&self) -> usize {
        let most = if self.class == Class::Latest { 1 } else { u32::MAX };
        self.retain.min(most) as usize
    }
}

impl Loss {
    pub(crate) fn count(self, losses: &mut Losses) {
        *match self {
            Self::Overflowed => &mut losses.overflowed,
            Self::Expired => &mut losses.expired,
            Self::Conflated => &mut losses.conflated,
            Self::RateLimited => &mut losses.rate_limited,
        } += 1;
    }
}
