//! Latency from publish to sink: 4,000 participants, 1,000 broadcasts a second, with and without 1 % of the
//! participants stalled.
//!
//! A case takes one percentile of the latencies at healthy participants in windows of about a second.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use std::{convert::Infallible, pin::Pin, slice};

use bytes::Bytes;
use futures_util::Sink;
use hdrhistogram::Histogram;
use lanecast::{BroadcastRun, RunSink};
use lanecast_benches::baseline::Baseline;
use lanecast_benches::contender::{Contender, Lanecast};
use lanecast_benches::sink::{Counting, CountingSink, Counts, GatedSink, Sinks, TakeRun};
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use crate::case::{Case, Runner};
use crate::stage::Stage;

const PARTICIPANTS: usize = 4_000;
const PERIOD: Duration = Duration::from_millis(1);
/// Broadcasts in one window.
const WINDOW: u64 = 1_000;
/// One in this many participants looks at the clock. With more, the clock readings would distort the measurement.
const SAMPLED: usize = 4;
/// One in this many participants is stalled.
const STALLED: usize = 100;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for stalled in [false, true] {
        for (name, percentile) in [("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9)] {
            let name = format!("n={PARTICIPANTS}/rate=1000/stalled={}/{name}", if stalled { "1%" } else { "0" });
            let case = Case::new("latency", name, 1, percentile == 99.0 && !stalled)
                .column("baseline", move |r| percentile_of::<Baseline<_>>(r, stalled, percentile))
                .column("lanecast", move |r| percentile_of::<Lanecast<_>>(r, stalled, percentile));
            cases.push(case);
        }
    }
    let own = Case::new("latency", format!("own=stalled:healthy/n={PARTICIPANTS}/rate=1000/p99"), 1, true)
        .own_ratio("lanecast-stalled", "lanecast-healthy")
        .column("lanecast-stalled", |r| percentile_of::<Lanecast<_>>(r, true, 99.0))
        .column("lanecast-healthy", |r| percentile_of::<Lanecast<_>>(r, false, 99.0));
    cases.push(own);
    cases
}

/// Measures as many windows as there are iterations, and reports the percentile over all of them as the time of each.
fn percentile_of<C: Contender<Timing>>(runtime: &Arc<Runtime>, stalled: bool, percentile: f64) -> Runner {
    let stage = Stage::<C, _>::new(runtime, Timing::new(stalled), PARTICIPANTS, PARTICIPANTS);
    Box::new(move |iterations| {
        let timing = stage.room.sinks();
        timing.histogram.lock().reset();
        let session = stage.session.clone();
        let begun = timing.begun;
        // On a worker thread, as a publisher would be.
        let publishing = stage.runtime.spawn(async move {
            let mut next = Instant::now();
            for _ in 0..iterations * WINDOW {
                next += PERIOD;
                tokio::time::sleep_until(next.into()).await;
                let now = u64::try_from(begun.elapsed().as_nanos()).expect("it isn't that late");
                let mut message = vec![7; 64];
                message[..8].copy_from_slice(&now.to_le_bytes());
                session.broadcast(Bytes::from(message)).await;
            }
        });
        stage.runtime.block_on(publishing).expect("publishing doesn't panic");
        // Waits for the messages that are on their way. There is no count to wait for, because participants that the
        // baseline resets miss some.
        std::thread::sleep(Duration::from_millis(50));
        let nanos = timing.histogram.lock().value_at_percentile(percentile);
        Duration::from_nanos(nanos) * u32::try_from(iterations).expect("a few windows")
    })
}

/// Sinks that compare the time in a message with the clock.
struct Timing {
    counting: Counting,
    begun: Instant,
    stalled: bool,
    histogram: Arc<Mutex<Histogram<u64>>>,
}

impl Timing {
    fn new(stalled: bool) -> Self {
        let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("sensible bounds");
        Self {
            counting: Counting::default(),
            begun: Instant::now(),
            stalled,
            histogram: Arc::new(Mutex::new(histogram)),
        }
    }
}

impl Sinks for Timing {
    type Sink = GatedSink<TimingSink>;

    fn open(&self, number: usize) -> Self::Sink {
        let stalls = self.stalled && number.is_multiple_of(STALLED);
        let sampled = !stalls && number % SAMPLED == 1;
        let histogram = sampled.then(|| Arc::clone(&self.histogram));
        let inner = TimingSink { inner: self.counting.open(number), begun: self.begun, histogram };
        GatedSink { stalls, reported: false, counts: Arc::clone(self.counts()), inner }
    }

    fn counts(&self) -> &Arc<Counts> {
        self.counting.counts()
    }
}

struct TimingSink {
    inner: CountingSink,
    begun: Instant,
    histogram: Option<Arc<Mutex<Histogram<u64>>>>,
}

impl Sink<Bytes> for TimingSink {
    type Error = Infallible;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Pin::new(&mut self.inner).poll_ready(cx)
    }

    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Infallible> {
        self.take_run(slice::from_ref(&message)).map(drop)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

impl TakeRun for TimingSink {
    fn take_run(mut self: Pin<&mut Self>, messages: &[Bytes]) -> Result<usize, Infallible> {
        for message in messages {
            let sent = message.first_chunk().map(|nanos| u64::from_le_bytes(*nanos));
            if let (Some(histogram), Some(sent)) = (&self.histogram, sent) {
                let now = u64::try_from(self.begun.elapsed().as_nanos()).expect("it isn't that late");
                histogram.lock().saturating_record(now.saturating_sub(sent));
            }
        }
        Pin::new(&mut self.inner).take_run(messages)
    }
}

impl RunSink<Bytes> for TimingSink {
    fn start_send_run(self: Pin<&mut Self>, run: &BroadcastRun<'_, Bytes>) -> Result<usize, Infallible> {
        self.take_run(run.messages())
    }
}
