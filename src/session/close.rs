//! The end of a session: it delivers what it has, ends its tasks, and reports what became of the messages.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::Shared;
use super::error::CloseError;
use crate::contract::{Account, EndReason};
use crate::participant::registry::Instance;
use crate::room::{Room, RoomClosed};
use crate::sync::Ordering;

/// How long cancelled tasks may take to end before they are reported as stuck. None of them has anything to wait for.
const GRACE: Duration = Duration::from_secs(5);

/// The minimum time for goodbyes, even past the deadline: a goodbye that can be said at once is said.
const FAREWELL: Duration = Duration::from_millis(250);

/// Deadlines are cut to this: longer ones could overflow the clock that they are added to.
const LONGEST_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What became of a session and its messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReport {
    /// The outcome of all messages. None is waiting any more.
    pub account: Account,
    /// How long closing took, from its start to this report.
    pub took: Duration,
    /// The reason of the room, if the session ended because its room closed.
    pub room_closed: Option<RoomClosed>,
}

/// The tasks of a session: its shards, and last its event loop.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<Vec<JoinHandle<()>>>);

impl Running {
    /// Starts the tasks, once. The lock is held meanwhile, so a close during the start waits for it and then gets all
    /// tasks.
    pub(crate) fn start(&self, tasks: impl FnOnce() -> Vec<JoinHandle<()>>) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *running = tasks();
    }

    fn take(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<R: Room> Shared<R> {
    /// Starts closing, unless closing has started already. When the call that starts it returns, the log is sealed and
    /// joins are stopped.
    pub(crate) fn start_close(self: &Arc<Self>, deadline: Duration, room_closed: Option<RoomClosed>) {
        if self.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.stop.cancel();
        self.fanout.seal();
        tracing::info!(?deadline, room_closed = room_closed.as_ref().map(tracing::field::display), "session closing");
        // In a task of its own, so that closing goes on if its caller stops waiting.
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
        // The event loop keeps the room's events, and with them perhaps the room's streams, until everything is
        // delivered.
        let mut event_loop: Vec<_> = running.pop().into_iter().collect();
        // The shards end on their own when everything is delivered.
        if !self.in_time(until, join_all(&mut running, &mut panicked)).await {
            self.fanout.abort();
            // Tasks that are left after this are counted below.
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
        // Only the call that set `closing` gets here.
        let _ = self.ended.set(outcome);
        self.events.close();
    }

    /// Returns whether `work` is done before the deadline, and before the session is cancelled.
    async fn in_time(&self, until: Instant, work: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = work => true,
            () = sleep_until(until) => false,
            () = self.hurry.cancelled() => false,
        }
    }

    /// Returns the account once no send is in progress: a send that races with the end counts as offered a moment
    /// before it counts as dropped. The wait is for that other thread's next instructions only.
    async fn settled_account(&self) -> Account {
        // Not tokio's clock, which may be paused.
        let begun = std::time::Instant::now();
        loop {
            let account = self.fanout.account();
            if account.waiting() == 0 || begun.elapsed() >= FAREWELL {
                return account;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Waits for the tasks one by one, the last first. Tasks that have ended are taken out, so that this can be called
/// again.
async fn join_all(running: &mut Vec<JoinHandle<()>>, panicked: &mut bool) {
    while let Some(task) = running.last_mut() {
        *panicked |= task.await.is_err_and(|error| error.is_panic());
        running.pop();
    }
}

/// Reports the end of the session if the closing task is dropped, with its runtime, before it has done so. Otherwise
/// callers would wait forever.
struct Unended<R: Room>(Arc<Shared<R>>);

impl<R: Room> Drop for Unended<R> {
    fn drop(&mut self) {
        // Fails if there is an outcome already, as there is after every complete close.
        if self.0.ended.set(Err(CloseError::RuntimeEnded)).is_ok() {
            self.0.registry.clear();
            self.0.events.close();
        }
    }
}

/// Ends the session if the task that it watches dies.
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
