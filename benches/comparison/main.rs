//! The comparison with the [baseline]: as criterion benches, or, with `--compare`, interleaved, as
//! `perf/compare.sh` runs it.

mod case;
mod compare;
mod direct;
mod fanout;
mod latency;
mod membership;
mod report;
mod resets;
mod stage;
mod topics;

#[path = "../baseline/mod.rs"]
mod baseline;
#[path = "../common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use tokio::runtime::Runtime;

use self::case::Case;

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.any(|argument| argument == "--compare") {
        let rest: Vec<String> = std::env::args().skip(1).collect();
        return compare::main(&rest);
    }
    let testing = std::env::args().any(|argument| argument == "--test");
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for case in case::all() {
        // A smoke test needs no more than the quick cases.
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
    for column in &case.columns {
        let mut runner = None;
        group.bench_function(BenchmarkId::new(column.name, &case.name), |b| {
            b.iter_custom(|iterations| runner.get_or_insert_with(|| (column.start)(&runtime))(iterations));
        });
    }
    group.finish();
}
