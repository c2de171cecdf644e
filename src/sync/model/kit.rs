//! What every model needs: running it, breaking it, and something to sleep on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use loom::model::Builder;
use loom::sync::Notify;

pub(crate) use super::weaken::Weaken;

/// How often threads are preempted at most, in one execution, unless `LOOM_MAX_PREEMPTIONS` says otherwise.
const PREEMPTIONS: usize = 3;

/// The same for what would take minutes otherwise. Every broken variant is caught with it.
const FEWER_PREEMPTIONS: usize = 2;

/// loom's word for a model in which every thread that is left waits for another.
pub(crate) const SLEEPS_FOR_EVER: &str = "deadlock";

/// loom's word for a model in which a thread goes on and on.
pub(crate) const SPINS: &str = "exceeded maximum number of branches";

/// Runs `model` in every interleaving within the bound.
pub(crate) fn holds(model: impl Fn() + Send + Sync + 'static) {
    explore(Weaken::Nothing, PREEMPTIONS, model);
}

/// The same within the narrower bound, for a model with many steps.
pub(crate) fn holds_narrowly(model: impl Fn() + Send + Sync + 'static) {
    explore(Weaken::Nothing, FEWER_PREEMPTIONS, model);
}

/// Demands that `model`, without what `weaken` takes away, fails in some interleaving, with `how` in the message.
pub(crate) fn caught(weaken: Weaken, how: &str, model: impl Fn() + Send + Sync + 'static) {
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
        // Relaxed: one thread of the system runs them all.
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
}

/// Says in how many ways a model was run, however it ends; `cargo test -- --show-output` shows it.
struct Executions(Arc<AtomicUsize>);

impl Drop for Executions {
    fn drop(&mut self) {
        eprintln!("{} executions", self.0.load(Ordering::Relaxed));
    }
}

/// Polls until `Ready`, and sleeps in between until the waker is woken.
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

/// A bell that rings once for any number of wake-ups, and now and then for none.
struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify();
    }
}
