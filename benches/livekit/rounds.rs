//! The samples of interleaved rounds, and their medians.

use std::fmt;
use std::time::Duration;

use lanecast_benches::clock::{ClockId, clock};
use lanecast_benches::quantile::quantile;

/// The measurement of one way in one round.
pub(crate) struct Sample {
    pub(crate) time: Duration,
    /// The processor time of this process.
    pub(crate) cpu: Duration,
    /// Frames delivered, counted at each viewer.
    pub(crate) frames: u64,
    /// Packets that carried the frames.
    pub(crate) packets: u64,
}

impl Sample {
    pub(crate) fn nanos(&self) -> f64 {
        self.per_frame(self.time)
    }

    pub(crate) fn cpu_nanos(&self) -> f64 {
        self.per_frame(self.cpu)
    }

    pub(crate) fn packets_per_frame(&self) -> f64 {
        self.packets as f64 / self.frames as f64
    }

    fn per_frame(&self, time: Duration) -> f64 {
        time.as_nanos() as f64 / self.frames as f64
    }
}

/// A stopwatch for time and processor time.
pub(crate) struct Watch {
    time: Duration,
    cpu: Duration,
}

impl Watch {
    pub(crate) fn start() -> Self {
        Self { cpu: clock(ClockId::ProcessCPUTime), time: clock(ClockId::Monotonic) }
    }

    /// The time since the start.
    pub(crate) fn time(&self) -> Duration {
        clock(ClockId::Monotonic) - self.time
    }

    /// The time since the start, and the processor time spent meanwhile.
    pub(crate) fn stop(&self) -> (Duration, Duration) {
        (self.time(), clock(ClockId::ProcessCPUTime) - self.cpu)
    }
}

/// The rounds' samples, by way.
pub(crate) struct Rounds<T>(pub(crate) Vec<Vec<T>>);

impl<T> Rounds<T> {
    /// A figure for each way.
    pub(crate) fn figures(&self, value: impl Fn(&T) -> f64) -> Vec<Figure> {
        self.0.iter().map(|samples| Figure::of(samples.iter().map(&value))).collect()
    }

    /// The last way's value as a fraction of the value of `way`, round by round.
    pub(crate) fn last_of(&self, way: usize, value: impl Fn(&T) -> f64) -> Figure {
        let last = self.0.last().expect("there are ways");
        Figure::of(last.iter().zip(&self.0[way]).map(|(last, other)| value(last) / value(other)))
    }
}

/// A median, and the bounds of the middle half of the values.
pub(crate) struct Figure {
    median: f64,
    low: f64,
    high: f64,
}

impl Figure {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.collect();
        let [low, median, high] = [0.25, 0.5, 0.75].map(|at| quantile(values.iter().copied(), at));
        Self { median, low, high }
    }

    /// The figure multiplied by `factor`, to change its unit.
    pub(crate) fn by(&self, factor: f64) -> Self {
        Self { median: self.median * factor, low: self.low * factor, high: self.high * factor }
    }
}

/// Shows `4.20 (4.10-4.40)`, or with `{:#}` only the median.
impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.median {
            median if median >= 100.0 => 0,
            median if median >= 10.0 => 1,
            median if median >= 0.1 => 2,
            _ => 3,
        };
        let Self { median, low, high } = self;
        write!(f, "{median:.digits$}")?;
        if f.alternate() { Ok(()) } else { write!(f, " ({low:.digits$}-{high:.digits$})") }
    }
}
