//! How far a session has closed: the states and their transitions. `close.rs` performs them.

use std::future::Future;
use std::mem;
use std::sync::Mutex;

use tokio::runtime::Handle;
use tokio::sync::SetOnce;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::CloseError;
use super::stats::CloseReport;
use crate::caught::lock;
use crate::sync::{AtomicBool, Ordering};

/// How far a session has closed, and the tasks that have to end for it.
///
/// The states follow each other in this order:
///
/// | state | what is true | marked by | who makes the transition to it |
/// |---|---|---|---|
/// | Open | messages are accepted and connections are joined | none of the below | [`new`](Self::new) |
/// | Sealed | no join begins and, once [`start_close`](super::core::Core::start_close) has sealed the log as well, no message is accepted; the shards deliver what was accepted | `claimed`, `sealed` | the first caller of [`seal`](Self::seal): a handle, the event loop when its room is gone, a task that dies |
/// | Drained | the shards have ended: everything is delivered, or was cut off at the deadline | `tasks` is closed | the closing task: [`drained`](Self::drained) |
/// | GoodbyesSaid | all goodbyes are said or cut off; nobody needs the room any more | `goodbyes_said` | the closing task: [`goodbyes_said`](Self::goodbyes_said) |
/// | Ended | all tasks have ended, or are given up; what became of the session is known | `outcome` | the closing task, or its drop if the runtime ends first: [`ended`](Self::ended) |
///
/// The drop of the closing task skips the states that are left. Two tokens are no states: `hurried` ends the time that
/// the session may take for the next states, and `goodbyes_cut_off` ends the goodbyes that are in progress.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    /// Set by the one caller that closes the session.
    claimed: AtomicBool,
    /// Ends the event loop's work, the joins and the stream handlers.
    sealed: CancellationToken,
    /// Ends the event loop.
    goodbyes_said: CancellationToken,
    outcome: SetOnce<Outcome>,
    hurried: CancellationToken,
    goodbyes_cut_off: CancellationToken,
    running: Mutex<Running>,
    /// The goodbyes and the stream handlers.
    tasks: TaskTracker,
}

/// The tasks that the closing task joins.
#[derive(Debug, Default)]
struct Running {
    /// The shards, and last the event loop.
    tasks: Vec<JoinHandle<()>>,
    /// The closing task has them: no more are started.
    are_taken: bool,
}

/// What became of a session.
pub(crate) type Outcome = Result<CloseReport, CloseError>;

/// The result of a transition that several callers may attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    /// This call made it.
    Made,
    /// Another call had made it before.
    MadeBefore,
}

impl Closing {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Starts tasks of the session: first its shards, and last its event loop; later more shards. The lock is held
    /// meanwhile, so a close during the start waits for it and then gets all tasks. Once it has them, nothing is
    /// started.
    pub(crate) fn start(&self, tasks: impl FnOnce() -> Vec<JoinHandle<()>>) {
        let mut running = lock(&self.running);
        if running.are_taken {
            // The lock isn't held while what wasn't started is dropped, which may run foreign code.
            drop(running);
            return drop(tasks);
        }
        let started = tasks();
        running.tasks.splice(0..0, started);
    }

    /// Takes the tasks that [`start`](Self::start) has started.
    pub(crate) fn take_running(&self) -> Vec<JoinHandle<()>> {
        let mut running = lock(&self.running);
        running.are_taken = true;
        mem::take(&mut running.tasks)
    }

    /// Spawns a goodbye or a stream handler.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static, runtime: &Handle) -> JoinHandle<()> {
        self.tasks.spawn_on(task, runtime)
    }

    /// Open → Sealed.
    pub(crate) fn seal(&self) -> Transition {
        // AcqRel: a caller that comes second sees what the first did before its claim.
        if self.claimed.swap(true, Ordering::AcqRel) {
            return Transition::MadeBefore;
        }
        self.sealed.cancel();
        Transition::Made
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.is_cancelled()
    }

    /// Waits until the session is sealed.
    pub(crate) async fn until_sealed(&self) {
        self.sealed.cancelled().await;
    }

    /// Sealed → Drained.
    pub(crate) fn drained(&self) {
        self.tasks.close();
    }

    /// Waits until no goodbye and no stream handler is left, after the session is drained.
    pub(crate) async fn until_goodbyes_end(&self) {
        self.tasks.wait().await;
    }

    /// The number of goodbyes and stream handlers that haven't ended.
    pub(crate) fn goodbyes_left(&self) -> usize {
        self.tasks.len()
    }

    /// Ends the goodbyes that are in progress.
    pub(crate) fn cut_goodbyes_off(&self) {
        self.goodbyes_cut_off.cancel();
    }

    /// Carries out a goodbye until it is cut off. A goodbye that is cut off is dropped, with all it holds.
    pub(crate) fn until_cut_off<F: Future>(&self, goodbye: F) -> impl Future<Output = Option<F::Output>> + use<F> {
        self.goodbyes_cut_off.clone().run_until_cancelled_owned(goodbye)
    }

    /// Drained → GoodbyesSaid.
    pub(crate) fn goodbyes_said(&self) {
        self.goodbyes_said.cancel();
    }

    /// Waits until all goodbyes are said.
    pub(crate) async fn until_goodbyes_said(&self) {
        self.goodbyes_said.cancelled().await;
    }

    /// GoodbyesSaid → Ended; or from any state, if the runtime has ended.
    pub(crate) fn ended(&self, outcome: Outcome) -> Transition {
        match self.outcome.set(outcome) {
            Ok(()) => Transition::Made,
            Err(_) => Transition::MadeBefore,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Waits until the session has ended.
    pub(crate) async fn until_ended(&self) -> Outcome {
        self.outcome.wait().await.clone()
    }

    /// Ends the time that closing may still take.
    pub(crate) fn hurry(&self) {
        self.hurried.cancel();
    }

    /// Returns whether `work` is done before the deadline, and before closing is [hurried](Self::hurry).
    pub(crate) async fn in_time(&self, deadline: Instant, work: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = work => true,
            () = sleep_until(deadline) => false,
            () = self.hurried.cancelled() => false,
        }
    }
}
