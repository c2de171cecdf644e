//! The differential test: random operations against a plain sequential model.
//!
//! Viewers join, leave, reconnect, stall, resume and fail; the embedder sends, broadcasts, subscribes and closes. What
//! the runtime then shows (what each stream received, look-ups, accounts, events, figures) has to be what the model
//! says, after every single operation. The test is in three parts:
//! - [`one_operation_at_a_time`]: one long session. A paused clock tells when nothing moves any more: tokio advances
//!   it only when no task can run. So the model says exactly what is to be seen, and time-outs cost no time.
//! - [`short_lives`]: many short sessions, for their ends.
//! - [`everything_at_once`]: producers and viewers run free on several threads; the model says what happened before
//!   what, and how the accounts come out at rest.
//!
//! The runtime under test is a [`Subject`](subject::Subject), so that another one can be put to the same test.
//!
//! The seed is told at the start and with every failure; `LANECAST_SEED` repeats it, `LANECAST_OPS` says how many
//! operations there are to be.

mod concurrent;
mod evidence;
mod lanecast;
mod model;
mod ops;
mod sequential;
mod state;
mod subject;

use std::fmt;
use std::io::Write;
use std::sync::Once;

use self::lanecast::Lanecast;

/// Operations of a run, unless `LANECAST_OPS` says otherwise.
const OPS: usize = 10_000;

/// Operations of a short session.
const SHORT: usize = 60;

/// What a panic says that is part of the test.
pub(crate) const ON_COMMAND: &str = "the closure was told to panic";

/// Where a run comes from, and how to have it again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seed {
    pub(crate) test: &'static str,
    pub(crate) number: u64,
    pub(crate) ops: usize,
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { test, number, ops } = self;
        write!(f, "LANECAST_SEED={number} LANECAST_OPS={ops} cargo test --test differential {test}")
    }
}

impl Seed {
    /// From the environment, or by chance. Tells it, past the capture of output.
    fn new(test: &'static str) -> Self {
        silence_panics_on_command();
        let number = setting("LANECAST_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000_000));
        let ops = setting("LANECAST_OPS").map_or(OPS, |ops| usize::try_from(ops).expect("a number of operations"));
        let seed = Self { test, number, ops };
        tell(&seed);
        seed
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}: give a number")))
}

fn tell(what: &dyn fmt::Display) {
    // Nobody listens: fine.
    let _ = writeln!(std::io::stderr(), "{what}");
}

fn silence_panics_on_command() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let commanded = [ON_COMMAND, "the line was told to panic"];
            if !info.payload_as_str().is_some_and(|what| commanded.contains(&what)) {
                tell(info);
            }
        }));
    });
}

/// Runs on a paused clock, in this thread alone.
fn paused<T>(seed: Seed, run: impl Future<Output = T>) -> T {
    // What the runtime draws: the back-off's jitter.
    fastrand::seed(seed.number);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(run)
}

#[test]
fn one_operation_at_a_time() {
    let seed = Seed::new("one_operation_at_a_time");
    let reached = paused(seed, sequential::run::<Lanecast>(seed, seed.ops));
    tell(&reached);
    // A test that never gets anywhere proves nothing.
    assert!(seed.ops < OPS || reached.is_everything(), "{seed}: the draw doesn't reach everything: {reached}");
}

#[test]
fn short_lives() {
    let seed = Seed::new("short_lives");
    for life in 0..seed.ops.div_ceil(SHORT) as u64 {
        let seed = Seed { number: seed.number + life, ops: SHORT, ..seed };
        paused(seed, sequential::run::<Lanecast>(seed, SHORT));
    }
}

#[test]
fn everything_at_once() {
    let seed = Seed::new("everything_at_once");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build();
    let (done, resets) = runtime.expect("a runtime").block_on(concurrent::run::<Lanecast>(seed, seed.ops));
    tell(&format_args!("{done} operations, {resets} resets"));
    assert!(seed.ops < OPS || resets > 0, "{seed}: nobody was reset");
}
