//! Loads for profilers: `--carry CASE COLUMN` carries one column of one case until it is killed, as
//! `perf/flamegraph.sh` runs it, and criterion's `--profile-time` has a sampling profiler inside.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::case::Case;

/// The longest time for which a load is carried, longer than any profile. A process that the profiler forgot ends then.
const LONGEST: Duration = Duration::from_secs(120);

/// Sets up the load, then prints the process's id to say so, and carries the load from then on.
pub(crate) fn carry(cases: &[Case], arguments: &[String]) -> ExitCode {
    let [name, column] = arguments else {
        eprintln!("--carry needs a case and one of its columns");
        return ExitCode::FAILURE;
    };
    let Some(case) = cases.iter().find(|case| case.full_name() == *name) else {
        eprintln!("no case {name}: perf/compare.sh prints them, --list of this bench as well");
        return ExitCode::FAILURE;
    };
    let Some(chosen) = case.columns.iter().find(|there| there.name == column) else {
        let columns: Vec<_> = case.columns.iter().map(|there| there.name).collect();
        eprintln!("{name} has no column {column}, but {}", columns.join(", "));
        return ExitCode::FAILURE;
    };
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let mut runner = (chosen.start)(&runtime);
    runner(1);
    println!("{}", std::process::id());
    let begun = Instant::now();
    while begun.elapsed() < LONGEST {
        runner(1);
    }
    ExitCode::SUCCESS
}

/// Draws a flamegraph into the folder that criterion names.
#[cfg(unix)]
mod sampling {
    use std::fs::{self, File};
    use std::path::Path;

    use criterion::profiler::Profiler;
    use pprof::{ProfilerGuard, ProfilerGuardBuilder};

    /// Samples per second of processor time. A prime, so that the sampling doesn't beat with anything periodic.
    const FREQUENCY: i32 = 997;

    /// pprof behind criterion's trait. pprof's own integration is for criterion 0.5.
    #[derive(Default)]
    pub(crate) struct Sampling(Option<ProfilerGuard<'static>>);

    impl Profiler for Sampling {
        fn start_profiling(&mut self, _: &str, _: &Path) {
            // A signal handler walks the stack. It must not interrupt another walk, or code that holds the loader's
            // locks.
            let builder =
                ProfilerGuardBuilder::default().frequency(FREQUENCY).blocklist(&["libc", "libgcc", "pthread", "vdso"]);
            self.0 = Some(builder.build().expect("no other profiler is at work"));
        }

        fn stop_profiling(&mut self, _: &str, folder: &Path) {
            let Some(guard) = self.0.take() else { return };
            let report = guard.report().build().expect("the samples can be read");
            fs::create_dir_all(folder).expect("criterion's folder can be made");
            let path = folder.join("flamegraph.svg");
            let file = File::create(&path).expect("criterion's folder can be written to");
            report.flamegraph(file).expect("the flamegraph can be drawn");
            println!("drawn: {}", path.display());
        }
    }
}

#[cfg(unix)]
pub(crate) use self::sampling::Sampling;
