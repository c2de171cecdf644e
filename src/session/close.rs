//! The end of a session: it delivers what it has, ends its tasks, and reports what became of the messages.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument;

use super::closing::Transition;
use super::core::Core;
use super::error::CloseError;
use super::stats::CloseReport;
use crate::contract::{Account, EndReason};
use crate::participant::registry::Instance;
use crate::room::{Room, RoomClosed};
use crate::time::LONGEST;

/// How long cancelled tasks may take to end before they are reported as stuck. None of them has anything to wait for.
const GRACE: Duration = Duration::from_secs(5);

/// The minimum time for goodbyes, even past the deadline: a goodbye that can be said at once is said.
const GOODBYE_TIME: Duration = Duration::from_millis(250);

/// How long to wait for sends that race with the end to be counted.
const SETTLE: Duration = Duration::from_millis(250);

impl<R: Room> Core<R> {
    /// Starts closing, unless closing has started already. When the call that starts it returns, the log is sealed and
    /// joins are stopped.
    pub(crate) fn start_close(self: &Arc<Self>, deadline: Duration, room_closed: Option<RoomClosed>) {
        if self.closing.seal() == Transition::MadeBefore {
            return;
        }
        self.fanout.seal();
        self.span.in_scope(|| {
            let room_closed = room_closed.as_ref().map(tracing::field::display);
            tracing::info!(?deadline, room_closed, "session closing");
        });
        // In a task of its own, so that closing goes on if its caller stops waiting.
        let unended = Unended(Arc::clone(self));
        let closed = async move {
            Arc::clone(&unended.0).close(deadline, room_closed).await;
            drop(unended);
        };
        self.runtime.spawn(closed.instrument(self.span.clone()));
    }

    async fn close(self: Arc<Self>, deadline: Duration, room_closed: Option<RoomClosed>) {
        let begun = Instant::now();
        let until = begun + deadline.min(LONGEST);
        let mut running = self.closing.take_running();
        let mut panicked = false;
        // The event loop keeps the room's events, and with them perhaps the room's streams, until everything is
        // delivered.
        let mut event_loop: Vec<_> = running.pop().into_iter().collect();
        // The shards end on their own when everything is delivered.
        if !self.closing.in_time(until, join_all(&mut running, &mut panicked)).await {
            self.fanout.abort();
            // Tasks that are left after this are counted below.
            let _ = timeout(GRACE, join_all(&mut running, &mut panicked)).await;
        }
        let closing = &self.closing;
        closing.drained();
        let latest = Instant::now() + GOODBYE_TIME;
        if !closing.in_time(until, closing.until_goodbyes_end()).await
            && timeout_at(latest, closing.until_goodbyes_end()).await.is_err()
        {
            closing.cut_goodbyes_off();
            let _ = timeout(GRACE, closing.until_goodbyes_end()).await;
        }
        closing.goodbyes_said();
        let _ = timeout(GRACE, join_all(&mut event_loop, &mut panicked)).await;
        running.append(&mut event_loop);
        let left = running.iter().filter(|task| !task.is_finished()).count() + closing.goodbyes_left();
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
        // Only the call that sealed the session gets here.
        closing.ended(outcome);
        self.events.close();
    }

    /// Returns the account once no send is in progress: a send that races with the end counts as offered a moment
    /// before it counts as dropped. The wait is for that other thread's next instructions only.
    async fn settled_account(&self) -> Account {
        // Not tokio's clock, which may be paused.
        let begun = std::time::Instant::now();
        loop {
            let account = self.fanout.account();
            if account.waiting() == 0 || begun.elapsed() >= SETTLE {
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
struct Unended<R: Room>(Arc<Core<R>>);

impl<R: Room> Drop for Unended<R> {
    fn drop(&mut self) {
        // Fails if there is an outcome already, as there is after every complete close.
        if self.0.closing.ended(Err(CloseError::RuntimeEnded)) == Transition::Made {
            self.0.registry.clear();
            self.0.events.close();
        }
    }
}

impl<R: Room> Core<R> {
    /// Starts more shards if they pay now, unless the session ends.
    pub(crate) fn grow(self: &Arc<Self>) {
        let Some(shards) = self.fanout.grow() else { return };
        tracing::debug!(shards = self.fanout.shard_count(), "more shards");
        self.closing.start(|| self.spawn_shards(shards));
    }

    /// Spawns shards. Outside tokio's cooperative budget: see [`shard`](crate::fanout).
    pub(crate) fn spawn_shards(
        self: &Arc<Self>,
        shards: Vec<impl Future<Output = ()> + Send + 'static>,
    ) -> Vec<JoinHandle<()>> {
        shards.into_iter().map(|shard| self.spawn_watched(tokio::task::unconstrained(shard))).collect()
    }

    /// Spawns a task without which the session can't go on: if the task dies, the session ends.
    pub(crate) fn spawn_watched(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let guard = TaskGuard { session: Arc::clone(self), well: false };
        let watched = async move {
            task.await;
            guard.ended_well();
        };
        self.runtime.spawn(self.inside(watched))
    }
}

/// Closes the session when dropped, unless its task has ended well.
struct TaskGuard<R: Room> {
    session: Arc<Core<R>>,
    well: bool,
}

impl<R: Room> TaskGuard<R> {
    fn ended_well(mut self) {
        self.well = true;
    }
}

impl<R: Room> Drop for TaskGuard<R> {
    fn drop(&mut self) {
        if !self.well {
            tracing::error!("a task of the session died; the session ends");
            self.session.start_close(Duration::ZERO, None);
        }
    }
}
