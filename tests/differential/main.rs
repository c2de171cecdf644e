//! The differential test: random operations against a plain sequential model.
//!
//! Viewers join, leave, reconnect, stall, resume and fail; the embedder sends, broadcasts, subscribes and closes. After
//! every operation, what the runtime shows (what each stream received, look-ups, accounts, events, figures) has to be
//! what the model says. The test has six parts:
//! - [`one_operation_at_a_time`]: one long session. A paused clock tells when everything is at rest: tokio advances it
//!   only when no task can run. So the model predicts exactly what can be observed, and time-outs cost no time.
//! - [`short_lives`]: many short sessions, for their ends.
//! - [`one_operation_at_a_time_with_a_linger`], [`short_lives_with_a_linger`]: the same where broadcasts gather.
//! - [`one_operation_at_a_time_with_a_hold`], [`short_lives_with_a_hold`]: the same where publishers are held while
//!   most viewers are behind.
//! - [`burst_above_the_queue`]: the one input on which the two runtimes have to differ.
//! - [`everything_at_once`]: producers and viewers run freely on several threads; the model says what happened before
//!   what, and how the accounts come out at rest.
//!
//! The runtime under test is a [`Subject`](subject::Subject). There are two: this crate, and the design that it is
//! measured against. The latter takes part in the operations that it supports ([`baseline_at_length`],
//! [`baseline_in_short`]): joins, removals, sends, broadcasts, failures and close, one at a time.
//!
//! The seed is printed at the start and with every failure. `LANECAST_SEED` repeats a run with that seed,
//! `LANECAST_OPS` sets the number of operations.

mod baseline;
mod concurrent;
mod evidence;
mod hold;
mod lanecast;
mod linger;
mod lossy;
mod model;
mod ops;
mod plan;
mod sequential;
mod state;
mod subject;
mod viewers;

use std::fmt;
use std::io::Write;
use std::sync::Once;

use self::baseline::Queues;
use self::lanecast::Lanecast;
use self::sequential::Kind;
use self::subject::Subject;

/// Operations of a run, unless `LANECAST_OPS` sets another number.
const OPS: usize = 10_000;

/// Operations of a short session.
const SHORT: usize = 60;

/// The message of a panic that is part of the test.
pub(crate) const ON_COMMAND: &str = "the closure was told to panic";

/// Lets all tasks take some turns without time passing. After them a publisher that isn't held has published, and what
/// may not gather any longer is being handed on. A number that is too small shows as a difference: a publisher that
/// waits, or a lag.
pub(crate) async fn take_turns() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

/// The seed and size of a run, for repeating it.
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
    /// Takes the seed from the environment, or a random one. Prints it to standard error, which the test harness
    /// doesn't capture.
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
    // It is not an error that nobody reads standard error.
    let _ = writeln!(std::io::stderr(), "{what}");
}

fn silence_panics_on_command() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let commanded = [ON_COMMAND, "the stream's script says that it panics"];
            if !info.payload_as_str().is_some_and(|what| commanded.contains(&what)) {
                tell(info);
            }
        }));
    });
}

/// Runs `run` on a paused clock, on this thread alone. It is spawned, so that it takes turns with the runtime's tasks.
fn paused<T: Send + 'static>(seed: Seed, run: impl Future<Output = T> + Send + 'static) -> T {
    // The runtime draws from this generator, too: the back-off's jitter.
    fastrand::seed(seed.number);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let run = async { tokio::spawn(run).await.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic())) };
    runtime.expect("a runtime").block_on(run)
}

/// A session with one shard, whose clock the model predicts, and one with several.
fn long_life<S: Subject>(seed: Seed, kind: Kind) {
    let half = seed.ops.div_ceil(2);
    let mut reached = paused(seed, sequential::run::<S>(seed, half, 1..=1, kind));
    reached.add(&paused(seed, sequential::run::<S>(seed, half, 2..=3, kind)));
    tell(&reached);
    // A run that never reaches the interesting states proves nothing.
    assert!(seed.ops < OPS || reached.is_everything::<S>(kind), "{seed}: the draw doesn't reach everything: {reached}");
}

fn many_lives<S: Subject>(seed: Seed, kind: Kind) {
    for life in 0..seed.ops.div_ceil(SHORT) as u64 {
        let seed = Seed { number: seed.number + life, ops: SHORT, ..seed };
        paused(seed, sequential::run::<S>(seed, SHORT, 1..=3, kind));
    }
}

#[test]
fn one_operation_at_a_time() {
    long_life::<Lanecast>(Seed::new("one_operation_at_a_time"), Kind::Plain);
}

#[test]
fn one_operation_at_a_time_with_a_linger() {
    long_life::<Lanecast>(Seed::new("one_operation_at_a_time_with_a_linger"), Kind::Linger);
}

#[test]
fn one_operation_at_a_time_with_a_hold() {
    long_life::<Lanecast>(Seed::new("one_operation_at_a_time_with_a_hold"), Kind::Hold);
}

#[test]
fn short_lives() {
    many_lives::<Lanecast>(Seed::new("short_lives"), Kind::Plain);
}

#[test]
fn short_lives_with_a_linger() {
    many_lives::<Lanecast>(Seed::new("short_lives_with_a_linger"), Kind::Linger);
}

#[test]
fn short_lives_with_a_hold() {
    many_lives::<Lanecast>(Seed::new("short_lives_with_a_hold"), Kind::Hold);
}

#[test]
fn burst_above_the_queue() {
    let seed = Seed::new("burst_above_the_queue");
    paused(seed, sequential::burst_above_the_queue::<Lanecast>(seed));
    paused(seed, sequential::burst_above_the_queue::<Queues>(seed));
}

#[test]
fn baseline_at_length() {
    long_life::<Queues>(Seed::new("baseline_at_length"), Kind::Plain);
}

#[test]
fn baseline_in_short() {
    many_lives::<Queues>(Seed::new("baseline_in_short"), Kind::Plain);
}

#[test]
fn everything_at_once() {
    let seed = Seed::new("everything_at_once");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build();
    let (done, resets) = runtime.expect("a runtime").block_on(concurrent::run::<Lanecast>(seed, seed.ops));
    tell(&format_args!("{done} operations, {resets} resets"));
    assert!(seed.ops < OPS || resets > 0, "{seed}: nobody was reset");
}
