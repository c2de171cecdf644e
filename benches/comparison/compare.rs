//! Runs the cases interleaved, column by column and round by round, so that other load on the machine affects all
//! columns alike. Prints medians.
//!
//! Arguments: `--quick` (fewer cases, five short rounds), `--only TEXT` (cases whose name contains it), `--out DIR`
//! (where the table and the plot go).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lanecast_benches::quantile::quantile;
use tokio::runtime::Runtime;

use crate::case::{Case, Runner};
use crate::report;

/// The least number of rounds.
const ROUNDS: usize = 5;
/// The most rounds, for cases whose rounds differ much.
const MOST_ROUNDS: usize = 15;
/// A case gets more rounds while the middle half of its ratios spans more than this part of their median.
const WIDE: f64 = 0.15;

struct Settings {
    quick: bool,
    only: Option<String>,
    out: Option<PathBuf>,
}

/// The result of a case.
pub(crate) struct Outcome {
    pub(crate) group: &'static str,
    pub(crate) name: String,
    /// The name of each column, and its median in nanoseconds.
    pub(crate) columns: Vec<(&'static str, f64)>,
    /// The median of the rounds' ratios.
    pub(crate) ratio: f64,
    /// The middle half of the rounds' ratios, as a part of the median.
    pub(crate) spread: f64,
}

impl Outcome {
    pub(crate) fn column(&self, name: &str) -> Option<f64> {
        self.columns.iter().find(|column| column.0 == name).map(|column| column.1)
    }

    fn line(&self) -> String {
        let columns: String = self.columns.iter().map(|(name, nanos)| format!(" {name}={nanos:.1}")).collect();
        let Self { group, name, ratio, spread, .. } = self;
        format!("case={group}/{name}{columns} ratio={ratio:.2} spread={spread:.2}")
    }
}

pub(crate) fn main(cases: &[Case], arguments: &[String]) {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let settings = Settings {
        quick: arguments.iter().any(|argument| argument == "--quick"),
        only: value("--only"),
        out: value("--out").map(PathBuf::from),
    };
    let mut outcomes = Vec::new();
    for case in cases {
        let chosen = settings.only.as_ref().is_none_or(|only| case.full_name().contains(only));
        if chosen && (case.quick || !settings.quick) {
            let outcome = compare(case, &settings);
            println!("{}", outcome.line());
            outcomes.push(outcome);
        }
    }
    if let Some(out) = settings.out {
        report::write(&out, &outcomes).expect("the results can be written");
    }
}

fn compare(case: &Case, settings: &Settings) -> Outcome {
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let mut runners: Vec<Runner> = case.columns.iter().map(|column| (column.start)(&runtime)).collect();
    let round = Duration::from_millis(if settings.quick { 60 } else { 200 });
    let iterations: Vec<u64> = runners.iter_mut().map(|runner| calibrate(runner, round)).collect();
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    loop {
        let mut times = Vec::new();
        for (runner, iterations) in runners.iter_mut().zip(&iterations) {
            let taken = runner(*iterations).as_nanos() as f64;
            times.push(taken / (*iterations * case.per) as f64);
        }
        rounds.push(times);
        let most = if settings.quick { ROUNDS } else { MOST_ROUNDS };
        if rounds.len() >= most || (rounds.len() >= ROUNDS && outcome(case, &rounds).spread <= WIDE) {
            break;
        }
    }
    outcome(case, &rounds)
}

/// Returns how many times the load is carried in a round, so that a round takes about `round` in total, whatever part
/// of it is measured. Warms up as well.
pub(crate) fn calibrate(runner: &mut Runner, round: Duration) -> u64 {
    let begun = Instant::now();
    let mut iterations = 1;
    loop {
        let start = Instant::now();
        runner(iterations);
        let taken = start.elapsed();
        if taken * 4 >= round || iterations > 1 << 20 || begun.elapsed() > 4 * round {
            let wanted = round.as_secs_f64() / taken.as_secs_f64() * iterations as f64;
            return (wanted as u64).max(1);
        }
        iterations *= 4;
    }
}

fn outcome(case: &Case, rounds: &[Vec<f64>]) -> Outcome {
    // The mean of all columns of that name.
    let time = |times: &[f64], name: &str| {
        let of_name = case.columns.iter().zip(times).filter(|(column, _)| column.name == name);
        let (count, sum) = of_name.fold((0_u32, 0.0), |(count, sum), (_, time)| (count + 1, sum + time));
        sum / f64::from(count)
    };
    let median = |name| (name, quantile(rounds.iter().map(|times| time(times, name)), 0.5));
    let columns: Vec<_> = case.distinct().map(|column| median(column.name)).collect();
    let ratios = || rounds.iter().map(|times| time(times, case.ratio.0) / time(times, case.ratio.1));
    let ratio = quantile(ratios(), 0.5);
    let spread = (quantile(ratios(), 0.75) - quantile(ratios(), 0.25)) / ratio;
    Outcome { group: case.group, name: case.name.clone(), columns, ratio, spread }
}
