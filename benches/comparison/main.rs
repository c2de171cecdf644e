//! The comparison with the [baseline](lanecast_benches::baseline). By default it runs as criterion benches; with
//! `--compare` interleaved, as `perf/compare.sh` does; with `--carry` for a profiler. With `--growth` it measures how
//! cost grows.

mod case;
mod compare;
mod direct;
mod fanout;
#[cfg(unix)]
mod growth;
mod latency;
mod lossy;
mod membership;
mod profile;
mod report;
mod resets;
mod stage;
mod topics;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use tokio::runtime::Runtime;

use self::case::Case;

fn main() -> ExitCode {
    // cargo appends an argument of its own, `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.split_first() {
        Some((mode, rest)) if mode == "--compare" => compare::main(&cases(), rest),
        #[cfg(unix)]
        Some((mode, _)) if mode == "--growth" => growth::main(),
        Some((mode, rest)) if mode == "--carry" => return profile::carry(&cases(), rest),
        _ => measure(arguments.iter().any(|argument| argument == "--test")),
    }
    ExitCode::SUCCESS
}

/// All cases, group by group.
fn cases() -> Vec<Case> {
    let mut cases = fanout::cases();
    cases.extend(topics::cases());
    cases.extend(lossy::cases());
    cases.extend(direct::cases());
    cases.extend(membership::cases());
    cases.extend(resets::cases());
    cases.extend(latency::cases());
    cases
}

fn measure(testing: bool) {
    let criterion = Criterion::default();
    #[cfg(unix)]
    let criterion = criterion.with_profiler(profile::Sampling::default());
    let mut criterion = criterion
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for case in cases() {
        // A smoke test needs only the quick cases.
        if case.quick || !testing {
            bench(&mut criterion, &case);
        }
    }
    criterion.final_summary();
}

fn bench(criterion: &mut Criterion, case: &Case) {
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let mut group = criterion.benchmark_group(case.group);
    group.throughput(Throughput::Elements(case.per)).sampling_mode(SamplingMode::Flat);
    for column in case.distinct() {
        let mut runner = None;
        group.bench_function(BenchmarkId::new(column.name, &case.name), |b| {
            b.iter_custom(|iterations| runner.get_or_insert_with(|| (column.start)(&runtime))(iterations));
        });
    }
    group.finish();
}
