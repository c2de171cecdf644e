//! Lets broadcasts gather for a while before a shard reads them.
//!
//! Most of what a delivery costs is the system call and the work of the kernel's network stack, whatever the message's
//! length. A shard that lingers leaves the entries in the log, and hands on together what has gathered.
//!
//! The time begins when the shard first sees a filled entry that it hasn't read. An entry that the shard finds after it
//! has handed on others counts from when it began with those. The time that handing on takes, and the granularity of
//! the runtime's timers, are taken off, so that the last member gets a message later by about the session's linger.
//! Half of the time is always left for gathering. While entries gather, the shard goes on with everything else: members
//! with a backlog are visited, newcomers get their initial messages, and members that have ended go. Gathering ends
//! - when the time is over,
//! - when as many entries are filled as a turn reads, or half of the log is taken, in slots or in bytes,
//! - when a publisher waits for capacity,
//! - when a message of an urgent topic is published,
//! - when a command waits for its position,
//! - when a direct message waits for the broadcasts before it: the gathered entries go first,
//! - when a shared uplink keeps the shard from reading, which then reads at the uplink's pace,
//! - when the log is sealed.
//!
//! Then the shard reads what was published up to that moment, in as many turns as it takes. What comes later gathers
//! anew.
//!
//! # Sleep
//! A shard that lets entries gather isn't woken by each publish, which is part of what is saved. It names the position
//! whose entry ends the gathering, and publishers wake it from that position on: see [`signal`](crate::sync::signal).
//! Everything else that wakes a shard wakes it while entries gather as well. Before it sleeps, it looks once more for
//! what ends the gathering: [`BroadcastLog::ends_gathering`].

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::contract::Message;
use crate::fanout::log::{BroadcastLog, Position};
use crate::fanout::shard::reader::Unread;

/// What a shard lets gather, and until when.
#[derive(Debug)]
pub(in crate::fanout) struct Linger<T> {
    /// `None` if nothing gathers.
    timer: Option<T>,
    /// Entries below this position don't gather: they have gathered already, or were there when gathering ended or the
    /// shard was called.
    released: Position,
    /// While entries gather: the position of the entry that ends it.
    until: Option<Position>,
}

/// How much may gather.
#[derive(Clone, Copy, Debug)]
pub(in crate::fanout) struct GatherLimits {
    /// How many entries.
    pub(in crate::fanout) entries: u32,
    /// The shortest time for which a message of any topic may wait.
    pub(in crate::fanout) age: Duration,
}

impl GatherLimits {
    /// A message that may wait for no longer must not spend its age in the log.
    fn time(self) -> Duration {
        self.age / 4
    }
}

/// The time for which entries gather.
pub(in crate::fanout) trait GatherTimer {
    /// Begins the time, which is `at_most` this.
    fn begin(&mut self, at_most: Duration);

    /// Whether the time is over. If not, its end wakes the task of `cx`.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool;

    /// Notes that the shard begins to read what has gathered.
    fn note_released(&mut self) {}

    /// Notes that the shard has handed on all that had gathered, if it hasn't noted that since it began to read.
    fn note_handed_on(&mut self) {}

    /// Notes that the shard reads on beyond what had gathered.
    fn note_more(&mut self) {}
}

impl<T: GatherTimer> Linger<T> {
    pub(in crate::fanout) fn new(timer: Option<T>) -> Self {
        Self { timer, released: Position::default(), until: None }
    }

    /// While entries gather: the position of the entry that ends it.
    pub(in crate::fanout) fn gathers_until(&self) -> Option<Position> {
        self.until
    }

    /// Whether the shard reads nothing in this turn, because entries of `log` gather, or there are none. None gather if
    /// the shard `is_called` to read.
    pub(in crate::fanout) fn gathers<M: Message>(
        &mut self,
        cx: &mut Context<'_>,
        log: &BroadcastLog<M>,
        unread: Unread<'_>,
        limits: GatherLimits,
        is_called: bool,
    ) -> bool {
        let Some(timer) = &mut self.timer else { return false };
        let gathered = self.until.take();
        if unread.from < self.released {
            // More may have to be read than was published at that moment: it doesn't gather either.
            if is_called || unread.has_command {
                self.released = log.tail().position();
                timer.note_more();
            }
            return false;
        }
        timer.note_handed_on();
        if !is_called && !unread.has_command {
            if !log.is_filled(unread.cursor, unread.from) {
                // If it is filled from now on, it isn't read by this turn: it is the first of those that gather.
                return true;
            }
            let most = u64::from(limits.entries).min(log.half()).max(1);
            let until = gathered.unwrap_or_else(|| unread.from.after(most - 1));
            if !log.ends_gathering(unread.cursor, unread.from, until) {
                if gathered.is_none() {
                    timer.begin(limits.time());
                }
                if !timer.is_over(cx) {
                    self.until = Some(until);
                    return true;
                }
            }
        }
        // What this turn doesn't read of it, because it began with a lower tail or has had enough, the next one does.
        self.released = log.tail().position();
        if gathered.is_some() {
            timer.note_released();
        }
        false
    }
}

/// By how much tokio's timers may be late.
const GRANULARITY: Duration = Duration::from_millis(1);

/// The time by tokio's clock.
#[derive(Debug)]
pub(super) struct GatherSleep {
    /// The time that the session has set.
    time: Duration,
    sleep: Pin<Box<Sleep>>,
    /// When the shard began to read what had gathered, until it has handed that on.
    released_at: Option<Instant>,
    /// How long it took to hand on what had gathered last.
    handing_on: Duration,
    /// For how long an entry that the shard sees now may have been there already.
    unseen: Duration,
}

impl GatherSleep {
    /// Creates a timer for `time`; `None` if that is zero.
    pub(super) fn new(time: Duration) -> Option<Self> {
        (!time.is_zero()).then(|| Self {
            time,
            sleep: Box::pin(sleep_until(Instant::now())),
            released_at: None,
            handing_on: Duration::ZERO,
            unseen: Duration::ZERO,
        })
    }
}

impl GatherTimer for GatherSleep {
    fn begin(&mut self, at_most: Duration) {
        let time = self.time.min(at_most);
        let wait = time.saturating_sub(self.unseen + self.handing_on + GRANULARITY).max(time / 2);
        self.sleep.as_mut().reset(Instant::now() + wait);
    }

    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.sleep.as_mut().poll(cx).is_ready()
    }

    fn note_released(&mut self) {
        self.released_at = Some(Instant::now());
    }

    fn note_more(&mut self) {
        self.released_at = None;
    }

    fn note_handed_on(&mut self) {
        self.unseen = Duration::ZERO;
        if let Some(released_at) = self.released_at.take() {
            self.handing_on = released_at.elapsed();
            self.unseen = self.handing_on;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::{Poll, Waker};

    use super::*;

    const TIME: Duration = Duration::from_millis(20);

    /// How long entries gather that begin to do so now.
    async fn gathered(timer: &mut GatherSleep) -> Duration {
        timer.begin(Duration::MAX);
        let begun = Instant::now();
        poll_fn(|cx| if timer.is_over(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn what_handing_on_takes_is_a_part_of_the_time() {
        let mut timer = GatherSleep::new(TIME).expect("not zero");
        for (taken, first, later) in [(0, 19, 19), (3, 13, 16), (8, 10, 11), (50, 10, 10), (0, 19, 19)] {
            timer.note_released();
            tokio::time::advance(Duration::from_millis(taken)).await;
            // An entry that is there now may have been published as early as when handing on began.
            timer.note_handed_on();
            let waited = gathered(&mut timer).await;
            assert_eq!(waited, Duration::from_millis(first), "when handing on took {taken} ms");
            timer.note_handed_on();
            let waited = gathered(&mut timer).await;
            assert_eq!(waited, Duration::from_millis(later), "when handing on took {taken} ms, and nothing was there");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_that_is_called_meanwhile_measures_nothing() {
        let mut timer = GatherSleep::new(TIME).expect("not zero");
        timer.note_released();
        tokio::time::advance(TIME).await;
        timer.note_more();
        timer.note_handed_on();
        assert_eq!(gathered(&mut timer).await, Duration::from_millis(19));
        timer.begin(TIME / 10);
        assert!(!timer.is_over(&mut Context::from_waker(Waker::noop())));
    }
}
