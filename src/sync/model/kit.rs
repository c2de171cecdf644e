//! Tools for every model: running a model, breaking it, and an executor that sleeps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use loom::model::Builder;
use loom::sync::Notify;

pub(crate) use super::weaken::Weaken;

/// The most preemptions in one execution, unless `LOOM_MAX_PREEMPTIONS` sets another limit.
const PREEMPTIONS: usize = 3;

/// The most preemptions for models that would take minutes otherwise. Every broken variant is caught within this limit.
const FEWER_PREEMPTIONS: usize = 2;

/// Part of loom's panic message when every remaining thread waits for another.
pub(crate) const SLEEPS_FOR_EVER: &str = "deadlock";

/// Part of loom's panic message when a thread never stops.
pub(crate) const SPINS: &str = "exceeded maximum number of branches";

/// Runs `model` in every interleaving with at most [`PREEMPTIONS`] preemptions.
pub(crate) fn holds(model: impl Fn() + Send + Sync + 'static) {
    explore(Weaken::Nothing, PREEMPTIONS, model);
}

/// Runs `model` in every interleaving with at most [`FEWER_PREEMPTIONS`] preemptions, for a model with many steps.
pub(crate) fn holds_narrowly(model: impl Fn() + Send + Sync + 'static) {
    explore(Weaken::Nothing, FEWER_PREEMPTIONS, model);
}

/// Asserts that `model`, without the orderings that `weaken` removes, fails in some interleaving with a message that
/// contains `how`.
pub(crate) fn must_fail(weaken: Weaken, how: &str, model: impl Fn() + Send + Sync + 'static) {
    let outcome = catch_unwind(AssertUnwindSafe(|| explore(weaken, FEWER_PREEMPTIONS, model)));
    let failure = outcome.expect_err("the model doesn't catch its broken variant");
    let text = failure.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| failure.downcast_ref::<&str>().copied()).unwrap_or("no text");
    assert!(text.contains(how), "caught for another reason: {text}");
}

fn explore(weaken: Weaken, preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    let _restored = weaken.apply();
    let executions = Executions(Arc::default());
    let count = Arc::clone(&executions.0);
    builder.check(move || {
        // Relaxed: all executions run on one OS thread.
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
}

/// Prints the number of executions of a model when dropped, whether the model holds or fails.
/// `cargo test -- --show-output` shows the output.
struct Executions(Arc<AtomicUsize>);

impl Drop for Executions {
    fn drop(&mut self) {
        eprintln!("{} executions", self.0.load(Ordering::Relaxed));
    }
}

/// Polls until `Ready`. After each `Pending`, sleeps until the waker is woken.
pub(crate) fn block_on<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let bell = Arc::new(Bell(Notify::new()));
    let waker = Waker::from(Arc::clone(&bell));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(outcome) = poll(&mut cx) {
            return outcome;
        }
        bell.0.wait();
    }
}

/// A bell that rings once for any number of wake-ups, and sometimes spuriously.
struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify();
    }
}
