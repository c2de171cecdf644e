//! What all peers together may take of this process, however rude they are.
//!
//! Two things are rationed. **Memory**: a message that is longer than a connection's own few kilobytes is read only once
//! its whole length has been claimed from one budget. **Time**: reading from peers that never stop sending, and decoding
//! what is long, takes turns, one peer at a time, with a rest of three times the work behind each turn.
//!
//! # Why nobody waits for ever
//! A message that has its claim needs nothing more to become complete, and one that has none holds nothing: there is no
//! circle of peers each of which waits for what another one holds. Claims are granted in order. A peer that has its claim
//! and doesn't complete its message loses its connection after the [patience](PeerLimits::with_patience), or sends
//! nothing of it for a quarter of that, if others wait by then. Turns are granted in order too, and end by themselves.
//!
//! A peer that has asked for little lately doesn't wait behind those who ask for much: of these only the first one
//! stands in the queue, the others wait in a queue before it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// The default of what peers' messages may take: sixty-four of the longest that the WebSocket room allows by default,
/// and two hundred times a request for 10,000 channels.
const DEFAULT_BYTES: usize = 64 << 20;

/// The default for how long a message that others wait for may take: 300 kB at 120 kbit/s.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(20);

/// How long a ration rests behind a turn, as a multiple of that turn: each ration takes at most a quarter of one core. Rests
/// are rounded up to the timer's millisecond, so short turns take less.
const REST: u32 = 3;

/// The longest message that claims nothing of the budget.
pub(crate) const SMALL_MESSAGE: usize = 2 << 10;

/// One part in so many of the patience is how long nothing may come of a message that others wait for: 5 s, in which a lost
/// packet has been sent again several times.
const STALLED: u32 = 4;

/// How much work a peer may cause at once before it has to wait for turns: some fifty short requests. A hundred peers that
/// come at the same moment then take a tenth of a second of one core before they have to wait, not half a second.
const BURST: Duration = Duration::from_millis(1);

/// One part in so many of the time that passes is added to a peer's allowance again: 0.5 ms in a second, some twenty-five
/// short requests.
const REFILL: u32 = 2000;

/// The most that one piece of work is charged.
const MOST_CHARGED: Duration = Duration::from_millis(10);

/// One budget for what all peers of one room, or of several, may have under way, and for the time that they may take.
///
/// A handle: clones share the budget. Give clones to the rooms that are to share it, and to the telemetry on them; each
/// has one of its own otherwise.
///
/// # What counts
/// A message of more than 2 KiB, with its whole length, from its first byte until the one that reads it (for
/// [telemetry](crate::telemetry): until it has been decoded). What a connection may hold besides is
/// some 10 KiB of its own: short messages that nobody has taken yet, and what one read brought.
///
/// # When it is used up
/// Peers that send long messages aren't read for a while, which holds them up by TCP's back-pressure. Short messages go
/// on, and so do pings. Nobody waits for ever: messages are admitted in order, and a peer that doesn't complete its
/// message within the [patience](Self::with_patience), or sends nothing of it for a quarter of that, while others wait is
/// closed (on a WebSocket with 1013).
#[derive(Clone)]
pub struct PeerLimits(Arc<Shared>);

struct Shared {
    bytes: u32,
    patience: Duration,
    memory: Arc<Semaphore>,
    /// Where those who have claimed much lately wait before they wait for memory.
    entry: Mutex<()>,
    waiting: AtomicUsize,
    reading: Ration,
    decoding: Ration,
}

impl PeerLimits {
    /// A budget of `bytes`, with a patience of 20 s.
    ///
    /// 64 MiB by default. A message that is longer than all of it is admitted when nothing else is; 0 counts as 1, and
    /// more than 4 GiB as 4 GiB.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self::with_patience(bytes, DEFAULT_PATIENCE)
    }

    /// A budget of `bytes` under which a message that others wait for has to be complete within `patience`, and to go on
    /// within a quarter of it.
    ///
    /// 20 s by default: a request for 10,000 channels takes as long at 120 kbit/s. As long as nobody waits, no message is
    /// too slow.
    #[must_use]
    pub fn with_patience(bytes: usize, patience: Duration) -> Self {
        let bytes = u32::try_from(bytes.max(1)).unwrap_or(u32::MAX);
        Self(Arc::new(Shared {
            bytes,
            patience,
            memory: Arc::new(Semaphore::new(bytes as usize)),
            entry: Mutex::default(),
            waiting: AtomicUsize::new(0),
            reading: Ration::new(),
            decoding: Ration::new(),
        }))
    }

    /// How large the budget is, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes as usize
    }

    /// How much of the budget is claimed just now, in bytes.
    #[must_use]
    pub fn claimed(&self) -> usize {
        self.bytes() - self.0.memory.available_permits()
    }

    /// How many peers wait for memory just now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        // Relaxed: a figure, which guards nothing.
        self.0.waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn patience(&self) -> Duration {
        self.0.patience
    }

    /// The turns in which peers that flood are read.
    pub(crate) fn reading(&self) -> &Ration {
        &self.0.reading
    }

    /// The turns in which long messages are decoded.
    pub(crate) fn decoding(&self) -> &Ration {
        &self.0.decoding
    }

    /// Claims memory for a message of `bytes` if nobody has to wait for it.
    pub(crate) fn try_claim(&self, bytes: usize) -> Option<Claim> {
        // It fails too while somebody waits: whatever is free belongs to the first in the queue.
        Arc::clone(&self.0.memory).try_acquire_many_owned(self.share(bytes)).ok().map(Claim)
    }

    /// Claims memory for a message of `bytes`, in order; one that `has_allowance` passes by those who have none.
    /// Dropped before it is done, it has claimed nothing.
    pub(crate) async fn claim(&self, bytes: usize, has_allowance: bool) -> Claim {
        let _waiting = Waiting::begin(&self.0.waiting);
        let _entry = if has_allowance { None } else { Some(self.0.entry.lock().await) };
        let permit = Arc::clone(&self.0.memory).acquire_many_owned(self.share(bytes)).await;
        Claim(permit.expect("the semaphore is never closed"))
    }

    /// Not more than there is, or it would wait for ever.
    fn share(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.0.bytes)
    }
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self::new(DEFAULT_BYTES)
    }
}

impl fmt::Debug for PeerLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerLimits")
            .field("bytes", &self.bytes())
            .field("patience", &self.patience())
            .field("claimed", &self.claimed())
            .field("waiting", &self.waiting())
            .finish()
    }
}

/// Memory that one message may take. Dropping it gives the memory back to those who wait.
#[derive(Debug)]
pub(crate) struct Claim(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// How long a message has had that has its claim, and how long nothing of it has come.
#[derive(Debug)]
pub(crate) struct Deadline {
    limits: PeerLimits,
    begun: Instant,
    heard: Instant,
    check: Pin<Box<Sleep>>,
}

impl Deadline {
    pub(crate) fn new(limits: &PeerLimits) -> Self {
        let now = Instant::now();
        let check = Box::pin(sleep_until(later(now, limits.patience() / STALLED)));
        Self { limits: limits.clone(), begun: now, heard: now, check }
    }

    /// Something of the message has come.
    pub(crate) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Ready once the message is late and others wait for memory.
    pub(crate) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self.limits.patience();
        loop {
            ready!(self.check.as_mut().poll(cx));
            let now = Instant::now();
            let late_at = later(self.begun, patience).min(later(self.heard, patience / STALLED));
            if late_at <= now && self.limits.waiting() > 0 {
                return Poll::Ready(());
            }
            // One that is late, and that nobody waits for, is looked at again now and then.
            let next = if late_at <= now { later(now, patience / STALLED) } else { late_at };
            self.check.as_mut().reset(next.max(now + Duration::from_millis(1)));
        }
    }
}

/// So long after `from`, or never: a clock can't say every time.
fn later(from: Instant, time: Duration) -> Instant {
    from.checked_add(time).unwrap_or_else(|| from + Duration::from_secs(365 * 24 * 3600))
}

/// One who waits, as long as this lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        // Relaxed, here and below: see `PeerLimits::waiting`.
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Turns at some work, one at a time and in order, with rests between them.
pub(crate) struct Ration {
    /// Whose turn it is; in it, when the next turn may begin.
    turn: Arc<Mutex<Instant>>,
    /// Where those who have used up their allowance wait before they wait for a turn.
    entry: Mutex<()>,
}

impl Ration {
    fn new() -> Self {
        Self { turn: Arc::new(Mutex::new(Instant::now())), entry: Mutex::default() }
    }

    /// Waits for a turn; one that `has_allowance` passes by those who have none. Safe to cancel.
    pub(crate) async fn turn(&self, has_allowance: bool) -> Turn {
        let _entry = if has_allowance { None } else { Some(self.entry.lock().await) };
        let next = Arc::clone(&self.turn).lock_owned().await;
        sleep_until(*next).await;
        Turn { next, begun: Instant::now(), work: None }
    }
}

/// One's turn, until this is dropped.
pub(crate) struct Turn {
    next: OwnedMutexGuard<Instant>,
    begun: Instant,
    work: Option<Duration>,
}

impl Turn {
    /// Ends the turn in which so much was done. One that is just dropped has worked all the time.
    pub(crate) fn end(mut self, work: Duration) {
        self.work = Some(work);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let now = Instant::now();
        *self.next = now + REST * self.work.unwrap_or(now - self.begun);
    }
}

/// How much work one peer may still cause before it has to wait for turns.
///
/// It is a debt that time pays: `paid_at` is when nothing will be owed any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    paid_at: Instant,
}

impl Allowance {
    pub(crate) fn new() -> Self {
        Self { paid_at: Instant::now() }
    }

    pub(crate) fn is_left(&self) -> bool {
        self.paid_at <= Instant::now() + REFILL * BURST
    }

    pub(crate) fn spend(&mut self, work: Duration) {
        // A thread that was put aside in the middle of its work is charged for the pause as well: not for more than this.
        self.paid_at = self.paid_at.max(Instant::now()) + REFILL * work.min(MOST_CHARGED);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    /// Those who wait for memory get it in order, and one that has its allowance passes by all but the first of those who
    /// have none.
    #[tokio::test]
    async fn claims_are_granted_in_order_and_the_modest_first() {
        let limits = PeerLimits::new(100);
        let all = limits.try_claim(1000).expect("it is free");
        assert_eq!((limits.claimed(), limits.bytes()), (100, 100));
        assert!(limits.try_claim(1).is_none());
        let mut greedy: Vec<_> = (0..3).map(|_| Box::pin(limits.claim(80, false))).collect();
        for claim in &mut greedy {
            assert!(claim.now_or_never().is_none());
        }
        let mut modest = pin!(limits.claim(80, true));
        assert!(modest.as_mut().now_or_never().is_none());
        assert_eq!(limits.waiting(), 4);
        drop(all);
        let first = greedy.remove(0).now_or_never().expect("it is the first");
        assert!(limits.try_claim(1).is_none(), "what is free belongs to those who wait");
        assert!(greedy[0].as_mut().now_or_never().is_none());
        drop(first);
        let second = modest.now_or_never().expect("it has passed by the others");
        assert!(greedy[0].as_mut().now_or_never().is_none());
        // One that gives up leaves no gap.
        drop(greedy.remove(0));
        drop(second);
        assert!(greedy[0].as_mut().now_or_never().is_some());
        drop(greedy);
        assert_eq!((limits.waiting(), limits.claimed()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_followed_by_a_rest() {
        let limits = PeerLimits::default();
        let begun = Instant::now();
        limits.reading().turn(false).await.end(Duration::from_millis(10));
        assert_eq!(begun.elapsed(), Duration::ZERO, "the first need not wait");
        let turn = limits.reading().turn(true).await;
        assert_eq!(begun.elapsed().as_millis(), 30);
        let mut other = pin!(limits.reading().turn(true));
        assert!(other.as_mut().now_or_never().is_none(), "one at a time");
        assert!(limits.decoding().turn(true).now_or_never().is_some(), "the other ration is another");
        tokio::time::advance(Duration::from_millis(5)).await;
        drop(turn);
        drop(other.await);
        assert_eq!(begun.elapsed().as_millis(), 30 + 5 + 15);
    }

    /// A message that goes on is late after the patience, one that doesn't after a quarter of it, and either only once
    /// somebody waits.
    #[tokio::test(start_paused = true)]
    async fn a_message_is_late_when_others_wait() {
        let limits = PeerLimits::with_patience(1, Duration::from_secs(8));
        let is_late = |deadline: &mut Deadline| poll_fn(|cx| deadline.poll_late(cx)).now_or_never().is_some();
        let (mut slow, mut stalled) = (Deadline::new(&limits), Deadline::new(&limits));
        let _all = limits.try_claim(1).expect("it is free");
        let mut waiting = Box::pin(limits.claim(1, true));
        assert!((&mut waiting).now_or_never().is_none());
        for second in 0..8 {
            slow.heard();
            assert_eq!((is_late(&mut slow), is_late(&mut stalled)), (false, second >= 2), "{second}");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(is_late(&mut slow));
        drop(waiting);
        let (mut again, begun) = (Deadline::new(&limits), Instant::now());
        while begun.elapsed() < Duration::from_secs(30) {
            assert!(!is_late(&mut again), "nobody waits");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let mut waiting = Box::pin(limits.claim(1, true));
        assert!((&mut waiting).now_or_never().is_none());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(is_late(&mut again));
    }

    #[tokio::test(start_paused = true)]
    async fn an_allowance_is_used_up_and_comes_back() {
        let mut allowance = Allowance::new();
        allowance.spend(BURST);
        assert!(allowance.is_left());
        allowance.spend(Duration::from_micros(100));
        assert!(!allowance.is_left());
        tokio::time::advance(Duration::from_millis(199)).await;
        assert!(!allowance.is_left());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(allowance.is_left());
        // However much is spent at once, it is back within seconds.
        allowance.spend(Duration::MAX);
        tokio::time::advance(REFILL * MOST_CHARGED).await;
        assert!(allowance.is_left());
    }
}
