//! How a session ends.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::Shared;
use super::error::CloseError;
use crate::lane::{Account, EndReason};
use crate::participant::registry::Instance;
use crate::room::{Room, RoomClosed};
use crate::sync::Ordering;

/// How long tasks that were cancelled may take to end before they are reported as stuck: none has anything to wait for.
const GRACE: Duration = Duration::from_secs(5);

/// How long goodbyes may take in any case: what can be said at once is said.
const FAREWELL: Duration = Duration::from_millis(250);

/// As good as none.
const LONGEST_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a session came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReport {
    /// What became of all messages; nothing waits any more.
    pub account: Account,
    /// How long closing took.
    pub took: Duration,
    /// Why the room closed, if it was the room.
    pub room_closed: Option<RoomClosed>,
}

/// The session's own tasks.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<Vec<JoinHandle<()>>>);

impl Running {
    /// Starts the tasks, once. Who closes while they are being started waits for all of them.
    pub(crate) fn start(&self, tasks: impl FnOnce() -> Vec<JoinHandle<()>>) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *running = tasks();
    }

    fn take(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<R: Room> Shared<R> {
    /// Starts closing, unless somebody has. The log is sealed and joins are stopped when this returns.
    pub(crate) fn start_close(self: &Arc<Self>, deadline: Duration, room_closed: Option<RoomClosed>) {
        if self.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.stop.cancel();
        self.log.seal();
        tracing::info!(?deadline, room_closed = room_closed.as_ref().map(tracing::field::display), "session closing");
        // In a task of its own, so that it goes on if whoever asked stops waiting.
        let unended = Unended(Arc::clone(self));
        self.runtime.spawn(async move {
            Arc::clone(&unended.0).close(deadline, room_closed).await;
            drop(unended);
        });
    }

    async fn close(self: Arc<Self>, deadline: Duration, room_closed: Option<RoomClosed>) {
        let begun = Instant::now();
        let until = begun + deadline.min(LONGEST_DEADLINE);
        let mut running = self.running.take();
        let mut panicked = false;
        // The event loop keeps the room's events, and with them perhaps its streams, until everything is delivered.
        let mut event_loop: Vec<_> = running.pop().into_iter().collect();
        // The shards end by themselves when everything is delivered.
        if !self.in_time(until, join_all(&mut running, &mut panicked)).await {
            self.abort();
            // Whoever is left after that is counted below.
            let _ = timeout(GRACE, join_all(&mut running, &mut panicked)).await;
        }
        self.tasks.close();
        let farewell = Instant::now() + FAREWELL;
        if !self.in_time(until, self.tasks.wait()).await && timeout_at(farewell, self.tasks.wait()).await.is_err() {
            self.abandoned.cancel();
            let _ = timeout(GRACE, self.tasks.wait()).await;
        }
        self.delivered.cancel();
        let _ = timeout(GRACE, join_all(&mut event_loop, &mut panicked)).await;
        running.append(&mut event_loop);
        let left = running.iter().filter(|task| !task.is_finished()).count() + self.tasks.len();
        self.registry.for_each_live(|participant| {
            participant.end(EndReason::SessionClosed);
        });
        self.registry.clear();
        let report = CloseReport { account: self.settled_account().await, took: begun.elapsed(), room_closed };
        tracing::info!(account = ?report.account, took = ?report.took, "session closed");
        let outcome = match (left, panicked) {
            (0, false) => Ok(report),
            (0, true) => Err(CloseError::Panicked(report)),
            (tasks, _) => Err(CloseError::Stuck { tasks, report }),
        };
        // Only the one who set `closing` comes here.
        let _ = self.ended.set(outcome);
        self.events.close();
    }

    /// Whether `work` is done before the deadline, and before the session is cancelled.
    async fn in_time(&self, until: Instant, work: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = work => true,
            () = sleep_until(until) => false,
            () = self.hurry.cancelled() => false,
        }
    }

    /// The account, once nothing is under way: a send that races with the end is counted as offered a moment before it
    /// is counted as dropped. There is nothing to wait for but that other thread's next instructions.
    async fn settled_account(&self) -> Account {
        // Not tokio's clock, which may stand still.
        let begun = std::time::Instant::now();
        loop {
            let account = self.account();
            if account.waiting() == 0 || begun.elapsed() >= FAREWELL {
                return account;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Has every shard tear down all it has.
    fn abort(&self) {
        for shard in &self.shards {
            shard.gauge.abort.store(true, Ordering::Release);
            shard.port.signal.wake();
        }
    }
}

/// Waits for the tasks one by one, the last first; those that have ended are taken out, so that it can be called again.
async fn join_all(running: &mut Vec<JoinHandle<()>>, panicked: &mut bool) {
    while let Some(task) = running.last_mut() {
        *panicked |= task.await.is_err_and(|error| error.is_panic());
        running.pop();
    }
}

/// Lets nobody wait for an end that doesn't come: the task that brings it about was dropped, with its runtime.
struct Unended<R: Room>(Arc<Shared<R>>);

impl<R: Room> Drop for Unended<R> {
    fn drop(&mut self) {
        // Refused if there is an outcome, as there nearly always is.
        if self.0.ended.set(Err(CloseError::RuntimeEnded)).is_ok() {
            self.0.registry.clear();
            self.0.events.close();
        }
    }
}

/// Ends the session if the task it watches dies.
pub(crate) struct Watch<R: Room> {
    session: Arc<Shared<R>>,
    well: bool,
}

impl<R: Room> Watch<R> {
    pub(crate) fn new(session: Arc<Shared<R>>) -> Self {
        Self { session, well: false }
    }

    pub(crate) fn ended_well(mut self) {
        self.well = true;
    }
}

impl<R: Room> Drop for Watch<R> {
    fn drop(&mut self) {
        if !self.well {
            tracing::error!("a task of the session died; the session ends");
            self.session.start_close(Duration::ZERO, None);
        }
    }
}
