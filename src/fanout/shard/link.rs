//! How fast a busy member's sink drains, and how much it is given at once.
//!
//! A *stretch* is a time in which the member is behind without a pause: its sink is found busy, and after each
//! completed flush it is busy again within [`PAUSE`]. Bytes flushed between two completed flushes of one stretch are
//! what the link carried in that time. The first flush of a stretch is an exception: the buffers behind the sink were
//! empty and took its first bytes at once. It only gives a *preliminary* rate, which is too high, and which the first
//! sample replaces.
//!
//! A sample spans at least [`SAMPLE`], and counts by its length: the rate moves towards it by `length / (length +`
//! [`INERTIA`]`)`, which is an eleventh for the shortest one. A kernel takes bytes in bursts, so that single samples
//! are up to twice the rate. A changed link is known after some seconds, and a flush that took ten counts nearly alone.

use crate::fanout::clock::SessionMs;
use crate::fanout::shard::budget::Quota;

/// The longest time between a completed flush and the next sign of a busy sink within a stretch, in milliseconds. The
/// buffers behind the sink of a slow member hold about as much, so that the link isn't idle meanwhile.
const PAUSE: u64 = 50;

/// The shortest sample, in milliseconds: a hundred steps of the fan-out's clock.
const SAMPLE: u64 = 100;

/// How far the rate lags behind its samples, in milliseconds.
const INERTIA: u64 = 1000;

/// How long the first flush of a stretch must have taken to count as a sample, in milliseconds: by then, what the
/// buffers took at once is a small part.
const LONG: u64 = 2000;

/// A batch is at most what the link carries in a second divided by this, that is in 100 ms. Smaller batches would cost
/// more writes, and larger ones would be older when they arrive.
const BATCHES_PER_SECOND: u64 = 10;

/// How long a member counts as slow after its sink was last busy, in milliseconds: longer than the pause between two
/// bursts of an ordinary stream.
const SLOW_FOR: u64 = 10_000;

/// The measured rate of one member's link.
#[derive(Debug, Default)]
pub(in crate::fanout) struct LinkRate {
    /// Bytes per second; 0 while it isn't known.
    rate: u64,
    is_preliminary: bool,
    stretch: Stretch,
    /// When the sink was last found busy.
    last_busy: SessionMs,
}

/// The state of the measurement.
///
/// | | `busy` | `flushed` |
/// |---|---|---|
/// | `None` | → `Begun` | |
/// | `Begun` | | → `Sampling`, idle; perhaps a preliminary rate |
/// | `Sampling`, idle | → busy; after a pause → `Begun` | counts; after a pause → `None` |
/// | `Sampling`, busy | | counts, → idle |
#[derive(Clone, Copy, Debug, Default)]
enum Stretch {
    #[default]
    None,
    /// The sink is busy, and no flush has completed in this stretch.
    Begun { since: SessionMs },
    /// `bytes` were flushed since a flush that completed at the time `since`.
    Sampling { since: SessionMs, bytes: u64, sink: Sink },
}

#[derive(Clone, Copy, Debug)]
enum Sink {
    Busy,
    /// The last flush completed at the time `since`.
    Idle {
        since: SessionMs,
    },
}

impl LinkRate {
    /// Goes on from a rate in bytes per second that was measured before, if one was.
    pub(in crate::fanout) fn resume(rate: Option<u64>) -> Self {
        Self { rate: rate.unwrap_or(0), ..Self::default() }
    }

    /// Notes that a flush didn't complete at once.
    pub(in crate::fanout) fn busy(&mut self, now: SessionMs) {
        self.last_busy = now;
        match &mut self.stretch {
            Stretch::Begun { .. } => {}
            Stretch::Sampling { sink: Sink::Idle { since }, .. } if now.since(*since) > PAUSE => {
                self.stretch = Stretch::Begun { since: now };
            }
            Stretch::Sampling { sink, .. } => *sink = Sink::Busy,
            Stretch::None => self.stretch = Stretch::Begun { since: now },
        }
    }

    /// Notes that a flush of `bytes` has completed.
    pub(in crate::fanout) fn flushed(&mut self, bytes: usize, now: SessionMs) {
        match &mut self.stretch {
            Stretch::None => {}
            Stretch::Begun { since } => {
                let took = now.since(*since);
                if took >= LONG {
                    self.sample(bytes as u64, took);
                } else if self.rate == 0 || self.is_preliminary {
                    self.rate = per_second(bytes as u64, took);
                    self.is_preliminary = true;
                }
                self.stretch = Stretch::sampling(now);
            }
            Stretch::Sampling { sink: Sink::Idle { since }, .. } if now.since(*since) > PAUSE => {
                self.stretch = Stretch::None;
            }
            Stretch::Sampling { since, bytes: sum, sink } => {
                *sum += bytes as u64;
                *sink = Sink::Idle { since: now };
                let (sum, took) = (*sum, now.since(*since));
                if took >= SAMPLE {
                    self.sample(sum, took);
                    self.stretch = Stretch::sampling(now);
                }
            }
        }
    }

    fn sample(&mut self, bytes: u64, took: u64) {
        let sample = per_second(bytes, took);
        self.rate = if self.rate == 0 || self.is_preliminary {
            sample
        } else {
            // Each factor is a time or a rate of a real link, so the products stay far below 2^64.
            (self.rate.saturating_mul(INERTIA) + sample.saturating_mul(took)) / (INERTIA + took)
        };
        self.is_preliminary = false;
    }

    /// Returns what the link carries in bytes per second while the sink is busy, if that is known.
    pub(in crate::fanout) fn rate(&self) -> Option<u64> {
        Some(self.rate).filter(|rate| *rate > 0)
    }

    /// Lowers `quota` to what the sink should hold at once: what the link carries in 100 ms, and at least one message.
    pub(in crate::fanout) fn quota(&self, quota: Quota) -> Quota {
        let bytes = self.rate().map_or(u64::MAX, |rate| (rate / BATCHES_PER_SECOND).max(1));
        Quota { bytes: quota.bytes.min(bytes), ..quota }
    }

    /// Whether the sink hasn't been busy for so long that the member counts as fast again.
    pub(in crate::fanout) fn is_over(&self, now: SessionMs) -> bool {
        let is_busy = matches!(self.stretch, Stretch::Begun { .. } | Stretch::Sampling { sink: Sink::Busy, .. });
        !is_busy && now.since(self.last_busy) > SLOW_FOR
    }
}

impl Stretch {
    fn sampling(now: SessionMs) -> Self {
        Self::Sampling { since: now, bytes: 0, sink: Sink::Idle { since: now } }
    }
}

fn per_second(bytes: u64, millis: u64) -> u64 {
    bytes.saturating_mul(1000) / millis.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout::shard::budget::Load;

    const QUOTA: Quota = Quota { messages: 512, bytes: 16 << 20 };

    /// Flushes `batch` bytes again and again over a link of `rate` bytes per second, for `millis`.
    fn carry(link: &mut LinkRate, now: &mut u64, rate: u64, batch: usize, millis: u64) {
        let begun = *now;
        let mut flushed = 0;
        while *now < begun + millis {
            link.busy(SessionMs(*now));
            flushed += batch as u64;
            *now = begun + flushed * 1000 / rate;
            link.flushed(batch, SessionMs(*now));
        }
    }

    #[test]
    fn the_rate_of_a_steady_link_is_measured_whatever_the_batches() {
        for rate in [8_000, 32_000, 125_000, 1_250_000, 12_500_000] {
            for batch in [100, 1000, 50_000] {
                let (mut link, mut now) = (LinkRate::default(), 0);
                carry(&mut link, &mut now, rate, batch, 5000);
                let measured = link.rate().unwrap();
                assert!(measured.abs_diff(rate) <= rate / 50, "{measured} of {rate} by {batch}");
            }
        }
    }

    #[test]
    fn what_the_buffers_took_at_once_is_not_taken_for_the_rate() {
        let mut link = LinkRate::default();
        // 64 kB went into the kernel's buffer, and the flush completed when it had taken another 6 kB.
        link.busy(SessionMs(1000));
        link.flushed(70_000, SessionMs(1200));
        assert_eq!(link.rate(), Some(350_000), "preliminary");
        link.busy(SessionMs(1200));
        link.flushed(3200, SessionMs(1300));
        assert_eq!(link.rate(), Some(32_000));
        // The next stretch begins with empty buffers again, which changes nothing.
        link.busy(SessionMs(9000));
        link.flushed(70_000, SessionMs(9200));
        assert_eq!(link.rate(), Some(32_000));
    }

    #[test]
    fn a_link_that_changes_is_known_after_some_seconds() {
        let (mut link, mut now) = (LinkRate::default(), 0);
        carry(&mut link, &mut now, 32_000, 3200, 3000);
        carry(&mut link, &mut now, 1_250_000, 3200, 3000);
        assert!(link.rate().unwrap() > 1_100_000, "{link:?}");
        // One batch is still as large as the fast link would carry, and takes four seconds.
        carry(&mut link, &mut now, 32_000, 125_000, 1);
        carry(&mut link, &mut now, 32_000, 12_500, 4000);
        assert!(link.rate().unwrap() < 60_000, "{link:?}");
    }

    #[test]
    fn idle_time_is_not_measured() {
        let (mut link, mut now) = (LinkRate::default(), 0);
        carry(&mut link, &mut now, 100_000, 10_000, 2000);
        let before = link.rate();
        for _ in 0..20 {
            // Flushes that complete at once, far apart.
            now += 500;
            link.flushed(1000, SessionMs(now));
        }
        assert_eq!(link.rate(), before);
        carry(&mut link, &mut now, 100_000, 10_000, 2000);
        assert!(link.rate().unwrap().abs_diff(100_000) <= 2000, "{link:?}");
    }

    #[test]
    fn one_long_flush_gives_the_rate() {
        let mut link = LinkRate::default();
        link.busy(SessionMs(0));
        (1..20).for_each(|second| link.busy(SessionMs(1000 * second)));
        link.flushed(640_000, SessionMs(20_000));
        assert_eq!(link.rate(), Some(32_000));
    }

    #[test]
    fn a_batch_is_a_tenth_of_a_second_and_at_least_one_message() {
        let quota = |rate| LinkRate::resume(Some(rate)).quota(QUOTA);
        assert_eq!(LinkRate::default().quota(QUOTA).bytes, QUOTA.bytes);
        assert_eq!(quota(32_000).bytes, 3200);
        assert_eq!(quota(1 << 40).bytes, QUOTA.bytes);
        assert_eq!(quota(32_000).messages, QUOTA.messages);
        assert!(!Load::default().reaches(quota(3)), "one message is always allowed");
    }

    #[test]
    fn a_member_is_fast_again_after_some_seconds_without_a_busy_sink() {
        let mut link = LinkRate::default();
        link.busy(SessionMs(0));
        assert!(!link.is_over(SessionMs(60_000)), "still busy");
        link.flushed(100, SessionMs(60_000));
        link.busy(SessionMs(60_010));
        link.flushed(100, SessionMs(60_020));
        assert!(!link.is_over(SessionMs(70_010)));
        assert!(link.is_over(SessionMs(70_011)));
    }
}
