//! How cost grows with the participants, the message rate, the payload and the shards: tables, and the straight line
//! that best fits each column. Run by `perf/growth.sh`.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Sink;
use lanecast::{BroadcastRun, RunSink, Session};
use lanecast_benches::baseline::Baseline;
use lanecast_benches::clock::{ClockId, clock};
use lanecast_benches::contender::{Contender, Lanecast};
use lanecast_benches::fit::fit;
use lanecast_benches::quantile::quantile;
use lanecast_benches::room::BenchRoom;
use lanecast_benches::sink::{Counting, CountingSink, Counts, INITIAL, Sinks, TakeRun};
use tokio::runtime::Runtime;

use crate::case::Runner;
use crate::compare::calibrate;
use crate::fanout::until_delivered;
use crate::stage::{Stage, messages};

const PARTICIPANTS: [usize; 6] = [16, 256, 1_000, 4_000, 16_000, 64_000];
const RATES: [u64; 5] = [100, 300, 1_000, 3_000, 10_000];
const PAYLOADS: [usize; 4] = [64, 1_024, 4_096, 16_384];
const SHARDS: [usize; 4] = [1, 2, 4, 8];

/// The number of participants where something else varies.
const MANY: usize = 1_000;
const BURST: u64 = 16;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(200);
/// The time for which each rate is kept up.
const KEPT_UP: Duration = Duration::from_secs(2);
/// The number of sockets that are written to in turn.
const SOCKETS: usize = 64;
const WRITES: usize = 200;

pub(crate) fn main() {
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    participants(&runtime);
    rates(&runtime);
    payloads(&runtime);
    writes();
    shards(&runtime);
    second_shard(&runtime);
}

/// The time and the processor time of one iteration, in microseconds.
struct Cost {
    time: f64,
    cpu: f64,
}

/// Measures the runners in interleaved rounds, and returns the medians of each.
fn costs(mut runners: Vec<Runner>) -> Vec<Cost> {
    let iterations: Vec<u64> = runners.iter_mut().map(|runner| calibrate(runner, ROUND)).collect();
    let mut rounds = vec![Vec::new(); runners.len()];
    for _ in 0..ROUNDS {
        for ((runner, iterations), rounds) in runners.iter_mut().zip(&iterations).zip(&mut rounds) {
            let before = clock(ClockId::ProcessCPUTime);
            let time = runner(*iterations);
            let cpu = clock(ClockId::ProcessCPUTime) - before;
            rounds.push((micros(time) / *iterations as f64, micros(cpu) / *iterations as f64));
        }
    }
    let median = |rounds: &[(f64, f64)]| Cost {
        time: quantile(rounds.iter().map(|round| round.0), 0.5),
        cpu: quantile(rounds.iter().map(|round| round.1), 0.5),
    };
    rounds.iter().map(|rounds| median(rounds)).collect()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Prints a table of `columns` over `x`, and the line that best fits each column.
fn print(title: &str, x: &str, columns: &[&str], rows: &[(f64, Vec<f64>)]) {
    println!("\n## {title}\n\n| {x} | {} |\n|---|{}", columns.join(" | "), "---|".repeat(columns.len()));
    for (x, values) in rows {
        let values: Vec<String> = values.iter().map(|value| format!("{value:.2}")).collect();
        println!("| {x} | {} |", values.join(" | "));
    }
    println!();
    for (at, column) in columns.iter().enumerate() {
        let line = fit(rows.iter().map(|(x, values)| (*x, values[at])));
        println!("- {column} = {:.3} + {:.6} × {x}", line.at_zero, line.slope);
    }
}

fn participants(runtime: &Arc<Runtime>) {
    let row = |n| {
        let costs = costs(vec![
            until_delivered::<Baseline<_>, Counting>(runtime, n, 1, 64),
            until_delivered::<Lanecast<_>, Counting>(runtime, n, 1, 64),
        ]);
        (n as f64, costs.iter().flat_map(|cost| [cost.time, cost.cpu]).collect())
    };
    let rows: Vec<_> = PARTICIPANTS.into_iter().map(row).collect();
    let columns = ["baseline, µs", "baseline, µs of CPU", "lanecast, µs", "lanecast, µs of CPU"];
    print("One broadcast of 64 B, until the last participant has it", "participants", &columns, &rows);
}

fn rates(runtime: &Arc<Runtime>) {
    let row = |rate| {
        let baseline = at_rate::<Baseline<_>>(runtime, rate);
        (rate as f64, vec![baseline, at_rate::<Lanecast<_>>(runtime, rate)])
    };
    let rows: Vec<_> = RATES.into_iter().map(row).collect();
    let columns = ["baseline, ms of CPU per s", "lanecast, ms of CPU per s"];
    print("Broadcasts of 64 B to 1,000 participants at a steady rate", "broadcasts per second", &columns, &rows);
}

/// Milliseconds of processor time per second at this rate. Once a millisecond, the publisher sends what is due.
fn at_rate<C: Contender<Counting>>(runtime: &Arc<Runtime>, rate: u64) -> f64 {
    let stage = Stage::<C, _>::new(runtime, Counting::default(), MANY, MANY);
    let session = stage.session.clone();
    let publishing = async move {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        let (begun, mut sent) = (Instant::now(), 0);
        while begun.elapsed() < KEPT_UP {
            tick.tick().await;
            let due = (begun.elapsed().as_secs_f64() * rate as f64) as u64;
            for message in messages(due - sent, 64) {
                session.broadcast(message).await;
            }
            sent = due;
        }
        begun.elapsed()
    };
    let before = clock(ClockId::ProcessCPUTime);
    let taken = stage.runtime.block_on(stage.runtime.spawn(publishing)).expect("publishing doesn't panic");
    let cpu = clock(ClockId::ProcessCPUTime) - before;
    1e3 * cpu.as_secs_f64() / taken.as_secs_f64()
}

fn payloads(runtime: &Arc<Runtime>) {
    let row = |bytes| {
        let costs = costs(vec![
            until_delivered::<Baseline<_>, Counting>(runtime, MANY, BURST, bytes),
            until_delivered::<Lanecast<_>, Counting>(runtime, MANY, BURST, bytes),
        ]);
        let deliveries = (MANY as u64 * BURST) as f64;
        (bytes as f64, costs.iter().map(|cost| 1e3 * cost.cpu / deliveries).collect())
    };
    let rows: Vec<_> = PAYLOADS.into_iter().map(row).collect();
    let columns = ["baseline, ns of CPU per delivery", "lanecast, ns of CPU per delivery"];
    print("Bursts of 16 to 1,000 participants, sinks that only count", "bytes", &columns, &rows);
}

/// Measures what a sink that is a socket adds: the kernel's part.
fn writes() {
    let rows: Vec<_> = PAYLOADS.into_iter().map(|bytes| (bytes as f64, vec![write_cost(bytes)])).collect();
    print("One write to a loopback TCP socket, nobody waiting at the other end", "bytes", &["µs of CPU"], &rows);
}

fn write_cost(bytes: usize) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let mut pairs: Vec<_> = (0..SOCKETS)
        .map(|_| {
            let near = TcpStream::connect(address).expect("it listens");
            near.set_nodelay(true).expect("it is TCP");
            (near, listener.accept().expect("it has connected").0)
        })
        .collect();
    let mut buffer = vec![7; bytes];
    let mut spent = Vec::new();
    for _ in 0..WRITES {
        let before = clock(ClockId::ThreadCPUTime);
        pairs.iter_mut().for_each(|(near, _)| near.write_all(&buffer).expect("it is open"));
        spent.push(micros(clock(ClockId::ThreadCPUTime) - before) / SOCKETS as f64);
        pairs.iter_mut().for_each(|(_, far)| far.read_exact(&mut buffer).expect("it has been written"));
    }
    quantile(spent.into_iter(), 0.5)
}

fn shards(runtime: &Arc<Runtime>) {
    let row = |shards| {
        let costs = costs(vec![sharded(runtime, shards, 16), sharded(runtime, shards, 16_000)]);
        (shards as f64, costs.iter().flat_map(|cost| [cost.time, cost.cpu]).collect())
    };
    let rows: Vec<_> = SHARDS.into_iter().map(row).collect();
    let columns = ["16 participants, µs", "16, µs of CPU", "16,000 participants, µs", "16,000, µs of CPU"];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    print(&format!("One broadcast of 64 B, by shards, with {threads} cores"), "shards", &columns, &rows);
}

/// From how many participants on a second shard pays, if a flush costs what a write to a socket does.
fn second_shard(runtime: &Arc<Runtime>) {
    let row = |participants| {
        let costs = costs([1, 2].map(|shards| sharded_with(runtime, shards, participants, Writing::default())).into());
        (participants as f64, costs.iter().flat_map(|cost| [cost.time, cost.cpu]).collect())
    };
    let rows: Vec<_> = [4, 16, 64, 256, 1_024].into_iter().map(row).collect();
    let columns = ["one shard, µs", "one, µs of CPU", "two shards, µs", "two, µs of CPU"];
    print("One broadcast of 64 B, sinks that take 4 µs for a flush", "participants", &columns, &rows);
}

/// Sinks that count, and take [`WRITE`] for a flush.
#[derive(Default)]
struct Writing(Counting);

/// About what a write to a loopback socket takes.
const WRITE: Duration = Duration::from_micros(4);

struct WritingSink {
    inner: CountingSink,
    has_more: bool,
}

impl Sinks for Writing {
    type Sink = WritingSink;

    fn open(&self, number: usize) -> WritingSink {
        WritingSink { inner: self.0.open(number), has_more: false }
    }

    fn counts(&self) -> &Arc<Counts> {
        self.0.counts()
    }
}

impl Sink<Bytes> for WritingSink {
    type Error = Infallible;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Pin::new(&mut self.inner).poll_ready(cx)
    }

    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Infallible> {
        self.take_run(std::slice::from_ref(&message)).map(drop)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if std::mem::take(&mut self.has_more) {
            let begun = Instant::now();
            while begun.elapsed() < WRITE {
                std::hint::spin_loop();
            }
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.poll_flush(cx)
    }
}

impl TakeRun for WritingSink {
    fn take_run(mut self: Pin<&mut Self>, messages: &[Bytes]) -> Result<usize, Infallible> {
        self.has_more = true;
        Pin::new(&mut self.inner).take_run(messages)
    }
}

impl RunSink<Bytes> for WritingSink {
    fn start_send_run(self: Pin<&mut Self>, run: &BroadcastRun<'_, Bytes>) -> Result<usize, Infallible> {
        self.take_run(run.messages())
    }
}

/// Like [`until_delivered`], with the given number of shards.
fn sharded(runtime: &Arc<Runtime>, shards: usize, participants: usize) -> Runner {
    sharded_with(runtime, shards, participants, Counting::default())
}

fn sharded_with<S: Sinks>(runtime: &Arc<Runtime>, shards: usize, participants: usize, sinks: S) -> Runner {
    let runtime = Arc::clone(runtime);
    let room = BenchRoom::new(sinks, participants, participants);
    let counts = Arc::clone(room.sinks().counts());
    let session = runtime.block_on(async {
        let builder = Session::builder(room).shards(shards).initial(async |_| vec![INITIAL]);
        let session = builder.build().expect("inside a runtime");
        counts.initial.reach(participants as u64).await;
        session
    });
    let mut total = counts.delivered.get();
    Box::new(move |iterations| {
        runtime.block_on(async {
            let begun = Instant::now();
            for message in messages(iterations, 64) {
                session.broadcast(message).await.expect("the session is open");
                total += participants as u64;
                counts.delivered.reach(total).await;
            }
            begun.elapsed()
        })
    })
}
