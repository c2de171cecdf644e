//! The uplink that all participants of a room share, and how a stuck stream is told from a congested uplink.
//!
//! On some transports, the writes of all participants go through one pipe, in the order in which they began (on
//! LiveKit, the data channel to the server). A queue that fills then says nothing about its participant: a congested
//! pipe fills all of them at once, and resetting everybody would make it worse. Order tells a stuck stream from a slow
//! pipe. A write that is still under way when one that began clearly later has ended was *passed*: the pipe flows, and
//! that stream alone is at fault.
//!
//! | the participant's write | its queue fills | it makes no progress |
//! |---|---|---|
//! | was passed | overflow | write time-out |
//! | was not passed | its shard stops reading the log, direct sends give the message back | no time-out runs |
//!
//! So publishers are held back by the log, which fills. With one participant, nothing passes its write, and a stall
//! counts as the uplink's. A room that wants to know earlier than the next message to another participant sends
//! something of its own, a [`probe`](Uplink::probe).
//!
//! # Orderings
//! All values are read one by one (relaxed). A judgement is made only of writes that lie [`CLEARLY`] apart, which is
//! some hundred thousand times as long as a store takes to be seen.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::contract::progress::{LastWrite, Progress, UplinkMs};
use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// How much later a write must have begun to have passed another one by ending. This is far longer than a shard takes
/// to notice that a write has ended, however busy the machine, and far shorter than a write time-out.
pub(crate) const CLEARLY: Duration = Duration::from_millis(CLEARLY_MS);
const CLEARLY_MS: u64 = 250;

/// An uplink that the sinks of a room share. The room returns it from [`Room::uplink`](crate::room::Room::uplink).
/// Clones are the same uplink.
///
/// A sink tells the uplink of each write, for as long as the write is in the pipe. A write should be small (a packet, a
/// chunk), because the time at which it ends is what counts.
#[derive(Clone)]
pub struct Uplink(Arc<Inner>);

struct Inner {
    epoch: Instant,
    under_way: AtomicUsize,
    /// Of the writes that have ended, when the one that began last began, in milliseconds.
    passed: AtomicU64,
    /// When a write last ended, or the first of those under way began, in milliseconds.
    moved: AtomicU64,
    /// Notified when a write has ended or was given up, and when the first has begun.
    movement: Arc<Notify>,
    /// Notified when a queue may have capacity again.
    capacity: Arc<Notify>,
}

/// A write that is in the pipe. Dropped without [`done`](Self::done), the write was given up, which says nothing about
/// the pipe.
#[derive(Debug)]
#[must_use = "a write is under way for as long as this lives"]
pub struct UplinkWrite {
    uplink: Uplink,
    /// The participant's progress; `None` for a probe.
    progress: Option<Progress>,
    began: UplinkMs,
}

/// The state of the uplink that all sinks of a room share, as the room reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UplinkState {
    Stalled,
    Flowing,
}

impl Uplink {
    /// Creates an uplink with no write under way.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            epoch: Instant::now(),
            under_way: AtomicUsize::new(0),
            passed: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            movement: Arc::default(),
            capacity: Arc::default(),
        }))
    }

    /// Begins a write of the participant that `progress` was given to. The participant's previous write must have
    /// ended.
    pub fn begin(&self, progress: &Progress) -> UplinkWrite {
        let began = self.enter();
        progress.set_last_write(LastWrite::UnderWay { since: began });
        UplinkWrite { uplink: self.clone(), progress: Some(progress.clone()), began }
    }

    /// Begins a write of the room's own that travels the same way, to show whether the uplink flows.
    pub fn probe(&self) -> UplinkWrite {
        UplinkWrite { uplink: self.clone(), progress: None, began: self.enter() }
    }

    fn enter(&self) -> UplinkMs {
        let now = self.now();
        if self.0.under_way.fetch_add(1, Ordering::Relaxed) == 0 {
            self.0.moved.store(now.0, Ordering::Relaxed);
            self.0.movement.notify_waiters();
        }
        now
    }

    /// Milliseconds since the uplink was created, plus one.
    fn now(&self) -> UplinkMs {
        UplinkMs(1 + u64::try_from(self.0.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1))
    }

    /// The number of writes under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.0.under_way.load(Ordering::Relaxed)
    }

    /// Waits until writes have been under way for `span` and none has ended in that time.
    ///
    /// # Cancel safety
    /// If the future is dropped and this is called again, the wait is no longer than it would have been.
    pub async fn quiet(&self, span: Duration) {
        loop {
            let movement = self.movement();
            match self.quiet_for() {
                None => movement.await,
                Some(quiet) if quiet >= span => return,
                Some(quiet) => sleep(span - quiet).await,
            }
        }
    }

    /// For how long writes have been under way without one ending; `None` if none is under way.
    #[must_use]
    pub fn quiet_for(&self) -> Option<Duration> {
        let moved = self.0.moved.load(Ordering::Relaxed);
        (self.under_way() > 0).then(|| Duration::from_millis(self.now().0.saturating_sub(moved)))
    }

    /// Waits for the next write to end or be given up, or for the first to begin. The wait counts from this call on,
    /// not from the first poll.
    pub fn movement(&self) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(&self.0.movement).notified_owned()
    }

    /// Waits until a queue may have capacity again, counted from this call on.
    pub(crate) fn capacity(&self) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(&self.0.capacity).notified_owned()
    }

    /// Notes that a queue may have capacity again.
    pub(crate) fn note_capacity(&self) {
        self.0.capacity.notify_waiters();
    }

    /// Whether the participant has a write under way that wasn't passed. What waits for the participant then waits for
    /// the uplink.
    pub(crate) fn holds(&self, progress: &Progress) -> bool {
        match progress.last_write() {
            LastWrite::UnderWay { since } => self.0.passed.load(Ordering::Relaxed) < since.0 + CLEARLY_MS,
            LastWrite::None | LastWrite::Ended { .. } => false,
        }
    }

    /// Like [`holds`](Self::holds), for a caller that can't see when the shard has released the capacity of a write
    /// that has ended: true for a while longer ([`CLEARLY`]).
    pub(crate) fn has_held(&self, progress: &Progress) -> bool {
        match progress.last_write() {
            LastWrite::Ended { at } => self.now().0 < at.0 + CLEARLY_MS,
            LastWrite::None | LastWrite::UnderWay { .. } => self.holds(progress),
        }
    }
}

impl UplinkWrite {
    /// Ends the write as completed.
    pub fn done(mut self) {
        let now = self.uplink.now();
        if let Some(progress) = self.progress.take() {
            progress.set_last_write(LastWrite::Ended { at: now });
        }
        let inner = &self.uplink.0;
        inner.passed.fetch_max(self.began.0, Ordering::Relaxed);
        inner.moved.store(now.0, Ordering::Relaxed);
    }
}

impl Drop for UplinkWrite {
    fn drop(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.set_last_write(LastWrite::None);
        }
        self.uplink.0.under_way.fetch_sub(1, Ordering::Relaxed);
        self.uplink.0.movement.notify_waiters();
    }
}

impl Default for Uplink {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uplink").field("under_way", &self.under_way()).finish_non_exhaustive()
    }
}
