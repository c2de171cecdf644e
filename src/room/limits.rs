//! Limits on what all peers together may take of this process, however badly they behave.
//!
//! Two resources are rationed. **Memory**: a message longer than a connection's own few kilobytes is read only once its
//! whole length has been claimed from one budget. **Time**: reading from peers that never stop sending, and decoding
//! long messages, happen in turns, one peer at a time. Each turn is followed by a rest of three times the work done in
//! it.
//!
//! # Why no peer waits forever
//! A message that has its claim needs nothing else to become complete, and a message without a claim holds nothing. So
//! there is no cycle of peers that wait for what another one holds. Claims are granted in order. A peer that has its
//! claim loses its connection if it doesn't complete its message within the [patience](PeerLimits::with_patience), or
//! sends nothing of it for a quarter of that, and other peers wait by then. Turns are granted in order, too, and no
//! turn waits for its peer.
//!
//! A peer that has asked for little lately doesn't wait behind all those that ask for much. Of these only the first
//! waits in the queue; the others wait in an entry queue before it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::time::LONGEST;

/// The default budget: 64 times the longest message that the WebSocket room allows by default, and 200 times a request
/// for 10,000 channels.
const DEFAULT_BYTES: usize = 64 << 20;

/// The default patience with a message that others wait for: 300 kB at 120 kbit/s.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(20);

/// How long a ration rests after a turn, as a multiple of the work in that turn: each ration takes at most a quarter of
/// one core. Rests are rounded up to the timer's millisecond, so short turns take less.
const REST: u32 = 3;

/// The longest message that claims nothing of the budget.
pub(crate) const SMALL_MESSAGE: usize = 2 << 10;

/// The patience is divided by this for the longest gap in a message that others wait for: 5 s by default, in which a
/// lost packet has been sent again several times.
const STALLED: u32 = 4;

/// How much work a peer may cause at once before it has to wait for turns: some fifty short requests. A hundred peers
/// that arrive at the same moment then take a tenth of a second of one core before they have to wait. With 5 ms they
/// would take half a second.
const BURST: Duration = Duration::from_millis(1);

/// The elapsed time divided by this is added to a peer's allowance: 0.5 ms per second, some twenty-five short requests.
const REFILL: u32 = 2000;

/// The maximum charge for one piece of work.
const MOST_CHARGED: Duration = Duration::from_millis(10);

/// A budget for the memory that the messages of all peers of one or several rooms may take, and for the time that they
/// may take.
///
/// Clones are handles to the same budget. Give clones to the rooms that are to share it, and to the telemetry on them.
/// Otherwise each of these has a budget of its own.
///
/// # What counts
/// A message of more than 2 KiB counts with its whole length, from its first byte until its reader is done with it:
/// until the reader asks for the next message, and for [telemetry](crate::telemetry) until the message has been
/// decoded. Beside that, a connection may hold some 10 KiB of its own: short messages that the reader hasn't taken yet,
/// and what one read brought.
///
/// # When the budget is used up
/// Peers that send long messages aren't read for a while, which holds them up by TCP's back-pressure. Short messages
/// and pings continue. No peer waits forever: messages are admitted in order. While others wait, a peer is closed (on a
/// WebSocket with 1013) if it doesn't complete its message within the [patience](Self::with_patience), or sends nothing
/// of it for a quarter of that.
#[derive(Clone)]
pub struct PeerLimits(Arc<Shared>);

struct Shared {
    bytes: u32,
    patience: Duration,
    memory: Arc<Semaphore>,
    /// The entry queue for memory: peers without allowance wait here before they wait for memory.
    entry: Mutex<()>,
    waiting: AtomicUsize,
    reading: Ration,
    decoding: Ration,
}

impl PeerLimits {
    /// Creates a budget of `bytes`, with a patience of 20 s.
    ///
    /// The default is 64 MiB. A message longer than the whole budget is admitted when no other message is. 0 counts as
    /// 1, and more than 4 GiB as 4 GiB.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self::with_patience(bytes, DEFAULT_PATIENCE)
    }

    /// Creates a budget of `bytes` under which a message that others wait for has to be complete within `patience`, and
    /// to make progress within a quarter of it.
    ///
    /// The default is 20 s, in which a request for 10,000 channels arrives at 120 kbit/s. While no peer waits, no
    /// message is too slow.
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

    /// Returns the size of the budget, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes as usize
    }

    /// Returns how much of the budget is claimed now, in bytes.
    #[must_use]
    pub fn claimed(&self) -> usize {
        self.bytes() - self.0.memory.available_permits()
    }

    /// Returns how many peers wait for memory now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        // Relaxed: the count guards nothing.
        self.0.waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn patience(&self) -> Duration {
        self.0.patience
    }

    /// The turns in which peers that send without pause are read.
    pub(crate) fn reading(&self) -> &Ration {
        &self.0.reading
    }

    /// The turns in which long messages are decoded.
    pub(crate) fn decoding(&self) -> &Ration {
        &self.0.decoding
    }

    /// Claims memory for a message of `bytes`, unless it would have to wait.
    pub(crate) fn try_claim(&self, bytes: usize) -> Option<Claim> {
        // Also fails while another claim waits: free memory belongs to the first in the queue.
        Arc::clone(&self.0.memory).try_acquire_many_owned(self.share(bytes)).ok().map(Claim)
    }

    /// Claims memory for a message of `bytes`, in order. A peer that `has_allowance` passes those that have none.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, nothing has been claimed.
    pub(crate) async fn claim(&self, bytes: usize, has_allowance: bool) -> Claim {
        let _waiting = Waiting::begin(&self.0.waiting);
        let _entry = if has_allowance { None } else { Some(self.0.entry.lock().await) };
        let permit = Arc::clone(&self.0.memory).acquire_many_owned(self.share(bytes)).await;
        Claim(permit.expect("the semaphore is never closed"))
    }

    /// Limits a claim to the whole budget: a larger one would wait forever.
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

/// Memory claimed for one message. Dropping the claim returns the memory to the budget.
#[derive(Debug)]
pub(crate) struct Claim(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// Tracks how long a message has had its claim, and how long nothing of it has arrived.
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

    /// Records that a part of the message has arrived.
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
            // A late message that no peer waits for is checked again after each quarter of the patience.
            let next = if late_at <= now { later(now, patience / STALLED) } else { late_at };
            self.check.as_mut().reset(next.max(now + Duration::from_millis(1)));
        }
    }
}

/// Returns `from + time`, or a year after `from` if the clock can't represent that.
fn later(from: Instant, time: Duration) -> Instant {
    from.checked_add(time).unwrap_or_else(|| from + LONGEST)
}

/// Counts a waiting peer for as long as this lives.
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

/// Turns at one kind of work, one at a time and in order, with rests between them.
pub(crate) struct Ration {
    /// Locked by the peer whose turn it is. The value is when the next turn may begin.
    turn: Arc<Mutex<Instant>>,
    /// The entry queue: peers without allowance wait here before they wait for a turn.
    entry: Mutex<()>,
}

impl Ration {
    fn new() -> Self {
        Self { turn: Arc::new(Mutex::new(Instant::now())), entry: Mutex::default() }
    }

    /// Waits for a turn. A peer that `has_allowance` passes those that have none.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, no turn has been taken.
    pub(crate) async fn turn(&self, has_allowance: bool) -> Turn {
        let _entry = if has_allowance { None } else { Some(self.entry.lock().await) };
        let next = Arc::clone(&self.turn).lock_owned().await;
        sleep_until(*next).await;
        Turn { next, begun: Instant::now(), work: None }
    }
}

/// A turn, which lasts until this is dropped.
pub(crate) struct Turn {
    next: OwnedMutexGuard<Instant>,
    begun: Instant,
    work: Option<Duration>,
}

impl Turn {
    /// Ends the turn, in which `work` was done. A turn that is only dropped counts as work from its beginning to its
    /// end.
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
/// The allowance is kept as a debt that elapsed time repays: at `paid_at`, nothing is owed any more.
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
        // A thread that was preempted during its work is charged for the pause, too, but for no more than this maximum.
        self.paid_at = self.paid_at.max(Instant::now()) + REFILL * work.min(MOST_CHARGED);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    /// Waiting claims are granted in order, and a peer that has its allowance passes all but the first of those that
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
        // A claim that is given up leaves no gap.
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

    /// A message that makes progress is late after the patience, one that doesn't after a quarter of it, and both only
    /// while another peer waits.
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
        // However much is spent at once, the allowance is back within seconds.
        allowance.spend(Duration::MAX);
        tokio::time::advance(REFILL * MOST_CHARGED).await;
        assert!(allowance.is_left());
    }
}
