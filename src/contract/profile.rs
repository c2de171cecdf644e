//! Delivery classes: what of a topic's messages may be lost, and how they are handed on.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

/// How a topic's messages reach a subscriber: the class, and what else holds for the topic.
///
/// ```
/// use lanecast::{Latest, Lossy, Profile, Rate, Topic};
/// use std::time::Duration;
///
/// // Camera images: at most 250 ms old, and the last one for whoever subscribes late.
/// let images = Topic::with(Profile::lossy(Lossy::default().max_age(Duration::from_millis(250))).retain(1));
/// // A pose of which only the newest counts, twenty times a second.
/// let pose = Topic::with(Profile::latest(Latest::default().rate(Rate::every(Duration::from_millis(50)))));
/// // Alarms: every one, in order.
/// let alarms = Topic::new();
/// # let _ = (images, pose, alarms);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Profile {
    /// The delivery class.
    pub class: Class,
    /// How many of the topic's last messages a late subscriber gets first.
    pub retain: u32,
    /// Whether a message of the topic ends a session's [linger](crate::SessionBuilder::linger).
    pub urgent: bool,
}

/// The delivery class of a topic: which messages a subscriber that is behind may lose. A subscriber that keeps up gets
/// every message in each class, unless a [`Rate`] says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// Nothing: a subscriber that falls too far behind is reset.
    #[default]
    Reliable,
    /// The oldest: a subscriber that is behind gets the newest messages, within bounds.
    Lossy(Lossy),
    /// All but the newest message.
    Latest(Latest),
}

/// The bounds of a lossy topic: how much may wait for one subscriber that is behind. What exceeds them is dropped, the
/// oldest first, and [counted](crate::Losses).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lossy {
    /// How many messages may wait; at least 1. Default 64.
    pub max_messages: NonZeroU32,
    /// How many bytes may wait. One message may always wait, however long it is. Default 4 MiB.
    pub max_bytes: u64,
    /// How long a message may wait, from when the subscriber's shard reads it until it is handed to the sink. Default
    /// 1 s. Truncated to whole milliseconds. A write that has begun isn't interrupted.
    pub max_age: Duration,
    /// The topic's weight in the round robin among the messages that may be dropped, 1 to 65,535. Default 1.
    pub weight: Weight,
    /// The maximum rate per subscriber; `None`, the default, is no limit. With a rate, only the newest message waits:
    /// `max_messages`, `max_bytes` and `max_age` don't apply.
    pub rate: Option<Rate>,
}

/// How the newest message of a topic is handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latest {
    /// The topic's weight in the round robin among the messages that may be dropped, 1 to 65,535. Default 1.
    pub weight: Weight,
    /// The maximum rate per subscriber; `None`, the default, is no limit.
    pub rate: Option<Rate>,
}

/// A topic's weight in the round robin by which the lossy and latest topics of a subscriber share a slow link.
pub type Weight = std::num::NonZeroU16;

/// A limit for messages, or for bytes, per second. A newer message replaces one that is delayed; the rate never drops
/// the newest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(Limit);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// At most one message in so many microseconds.
    Interval(u64),
    BytesPerSecond(NonZeroU64),
}

const MICROS: u64 = 1_000_000;

/// One, the weight of a topic that sets none.
const ONE: Weight = Weight::MIN;

impl Profile {
    /// Every message in order; a subscriber that falls too far behind is reset. This is the default.
    #[must_use]
    pub fn reliable() -> Self {
        Self::default()
    }

    /// A subscriber that is behind gets the newest messages, within the bounds of `lossy`.
    #[must_use]
    pub fn lossy(lossy: Lossy) -> Self {
        Self { class: Class::Lossy(lossy), ..Self::default() }
    }

    /// A subscriber that is behind gets the newest message only.
    #[must_use]
    pub fn latest(latest: Latest) -> Self {
        Self { class: Class::Latest(latest), ..Self::default() }
    }

    /// Gives a late subscriber the topic's last `messages` first, then the live ones: no gap and no duplicate between.
    /// Of a [`Latest`] topic it gets one at most.
    ///
    /// Each shard keeps the messages, with their payloads and without a limit in bytes, until
    /// [`Session::end_topic`](crate::Session::end_topic), or until some time after the topic's last handle is dropped.
    /// A broadcast to such a topic goes to the log even if nobody is subscribed.
    #[must_use]
    pub fn retain(mut self, messages: u32) -> Self {
        self.retain = messages;
        self
    }

    /// Has each message of the topic end a session's [linger](crate::SessionBuilder::linger): it goes on at once, with
    /// what has gathered before it.
    #[must_use]
    pub fn urgent(mut self) -> Self {
        self.urgent = true;
        self
    }

    /// How many messages are retained.
    pub(crate) fn retained(&self) -> usize {
        let most = if matches!(self.class, Class::Latest(_)) { 1 } else { u32::MAX };
        self.retain.min(most) as usize
    }

    /// The rate, if it limits anything.
    pub(crate) fn rate(&self) -> Option<Rate> {
        let rate = match self.class {
            Class::Reliable => None,
            Class::Lossy(Lossy { rate, .. }) | Class::Latest(Latest { rate, .. }) => rate,
        };
        rate.filter(|rate| *rate != Rate::UNLIMITED)
    }

    /// How long a message may wait.
    pub(crate) fn max_age(&self) -> Duration {
        match self.class {
            Class::Lossy(Lossy { max_age, .. }) => max_age,
            Class::Reliable | Class::Latest(_) => Duration::MAX,
        }
    }

    pub(crate) fn is_reliable(&self) -> bool {
        self.class == Class::Reliable
    }
}

impl Default for Lossy {
    fn default() -> Self {
        Self {
            max_messages: NonZeroU32::MIN.saturating_add(63),
            max_bytes: 4 << 20,
            max_age: Duration::from_secs(1),
            weight: ONE,
            rate: None,
        }
    }
}

impl Lossy {
    /// Sets how many messages may wait.
    #[must_use]
    pub fn max_messages(mut self, messages: NonZeroU32) -> Self {
        self.max_messages = messages;
        self
    }

    /// Sets how many bytes may wait.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets how long a message may wait, truncated to whole milliseconds.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// Sets the topic's weight in the round robin.
    #[must_use]
    pub fn weight(mut self, weight: Weight) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the maximum rate per subscriber.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.rate = Some(rate);
        self
    }
}

impl Default for Latest {
    fn default() -> Self {
        Self { weight: ONE, rate: None }
    }
}

impl Latest {
    /// Sets the topic's weight in the round robin.
    #[must_use]
    pub fn weight(mut self, weight: Weight) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the maximum rate per subscriber.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.rate = Some(rate);
        self
    }
}

impl Rate {
    const UNLIMITED: Self = Self(Limit::Interval(0));

    /// At most one message per `interval`. The interval is truncated to whole microseconds; below 1 µs there is no
    /// limit.
    #[must_use]
    pub fn every(interval: Duration) -> Self {
        Self(Limit::Interval(u64::try_from(interval.as_micros()).unwrap_or(u64::MAX)))
    }

    /// At most this many messages per second. The interval is rounded up to whole microseconds, so at most 1,000,000.
    #[must_use]
    pub fn messages_per_second(messages: NonZeroU32) -> Self {
        Self(Limit::Interval(MICROS.div_ceil(u64::from(messages.get()))))
    }

    /// At most this many bytes per second: after a message of `n` bytes, the next one waits `n / bytes` seconds.
    #[must_use]
    pub fn bytes_per_second(bytes: NonZeroU64) -> Self {
        Self(Limit::BytesPerSecond(bytes))
    }

    /// For how many microseconds a message of `bytes` keeps the next one waiting.
    pub(crate) fn wait_after(self, bytes: usize) -> u64 {
        match self.0 {
            Limit::Interval(micros) => micros,
            Limit::BytesPerSecond(rate) => {
                let micros = (bytes as u128 * u128::from(MICROS)).div_ceil(u128::from(rate.get()));
                u64::try_from(micros).unwrap_or(u64::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_says_how_long_the_next_message_waits() {
        let each = |count| Rate::messages_per_second(NonZeroU32::new(count).expect("not zero")).wait_after(1);
        assert_eq!((each(1), each(3), each(1000)), (1_000_000, 333_334, 1000));
        let bytes = |rate| Rate::bytes_per_second(NonZeroU64::new(rate).expect("not zero"));
        assert_eq!((bytes(1000).wait_after(500), bytes(3).wait_after(1)), (500_000, 333_334));
        assert_eq!(bytes(1).wait_after(usize::MAX), u64::MAX);
        assert_eq!(Rate::every(Duration::ZERO).wait_after(9), 0);
        assert_eq!(Rate::every(Duration::MAX).wait_after(9), u64::MAX);
    }
}
