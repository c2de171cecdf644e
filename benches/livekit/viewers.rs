//! Viewers in a process of their own: participants of the official SDK that count what they get and how late it is.
//!
//! The bench starts its own program again with [`MODE`], the room and the number of viewers, and exchanges lines with
//! it:
//!
//! | to the viewers | from the viewers |
//! |---|---|
//! | | `connected`, once all viewers are |
//! | `COUNT`: this many more bytes will go to all viewers together | `ready` |
//! | | `P50 P99 CHUNKS`: the bytes have arrived; latencies in ns |
//!
//! The viewers leave when their input ends.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use hdrhistogram::Histogram;
use lanecast::protocol::stream::StreamDecoder;
use lanecast_benches::clock::{ClockId, clock};
use lanecast_benches::counter::Counter;
use livekit::data_stream::api::ByteStreamReader;
use livekit::{RoomEvent, RoomOptions};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::server::Server;

/// The argument that makes the program run the viewers.
pub(crate) const MODE: &str = "--viewers";

/// The longest wait for the viewers to connect, and for each of their answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// The viewers, as the publisher sees them.
pub(crate) struct Audience {
    // The process is killed when this is dropped.
    _child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// The viewers' report of what they got.
pub(crate) struct Got {
    /// Latency from when a frame was stamped to when a viewer had read it: the median.
    pub(crate) p50: Duration,
    /// The 99th percentile of the same latency.
    pub(crate) p99: Duration,
    pub(crate) chunks: u64,
}

impl Audience {
    /// Starts this many viewers. `None` if they aren't connected in time.
    pub(crate) async fn start(server: &Server, viewers: usize) -> Option<Self> {
        let mut command = Command::new(std::env::current_exe().expect("this is one"));
        command.args([MODE, &server.room, &viewers.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("this very program starts");
        let orders = child.stdin.take().expect("it is piped");
        let mut answers = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let connected = timeout(PATIENCE, answers.next_line()).await.ok()?.ok()??;
        (connected == "connected").then_some(Self { _child: child, orders, answers })
    }

    /// Tells the viewers how many more bytes will come.
    pub(crate) async fn expect(&mut self, bytes: u64) {
        self.orders.write_all(format!("{bytes}\n").as_bytes()).await.expect("they listen");
        assert_eq!(self.answer().await, "ready");
    }

    /// Waits until the viewers have all bytes, and returns their report.
    pub(crate) async fn got(&mut self) -> Got {
        let answer = self.answer().await;
        let mut numbers = answer.split(' ').map(|number| number.parse().expect("a number"));
        let mut number = || numbers.next().expect("three of them");
        Got { p50: Duration::from_nanos(number()), p99: Duration::from_nanos(number()), chunks: number() }
    }

    async fn answer(&mut self) -> String {
        let line = timeout(PATIENCE, self.answers.next_line()).await.expect("all that was sent arrives");
        line.expect("it writes text").expect("they are there")
    }
}

/// Runs the viewers, in the process of their own.
pub(crate) fn main(room: &str, viewers: usize) {
    let server = Server::of_environment(room.to_owned());
    let runtime = Runtime::new().expect("a runtime");
    let seen = Arc::new(Seen::new());
    let rooms = runtime.block_on(connect_all(&server, viewers, &seen));
    println!("connected");
    let mut due = 0;
    for order in std::io::stdin().lines() {
        due += order.expect("it is text").parse::<u64>().expect("a number of bytes");
        seen.latencies.lock().reset();
        let chunks = seen.chunks.load(Ordering::Relaxed);
        println!("ready");
        runtime.block_on(seen.bytes.reach(due));
        let chunks = seen.chunks.load(Ordering::Relaxed) - chunks;
        let latencies = seen.latencies.lock();
        let [p50, p99] = [50.0, 99.0].map(|percentile| latencies.value_at_percentile(percentile));
        println!("{p50} {p99} {chunks}");
    }
    // An orderly departure would take the SDK a while, and nothing depends on it.
    drop(rooms);
    std::process::exit(0);
}

struct Seen {
    bytes: Counter,
    chunks: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
}

impl Seen {
    fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("sensible bounds");
        Self { bytes: Counter::default(), chunks: AtomicU64::new(0), latencies: Mutex::new(latencies) }
    }
}

async fn connect_all(server: &Server, viewers: usize, seen: &Arc<Seen>) -> Vec<livekit::Room> {
    let mut rooms = Vec::new();
    // If all connected at once, some would time out.
    for first in (0..viewers).step_by(10) {
        let some = (first..viewers.min(first + 10)).map(|number| connect(server, number, seen));
        rooms.extend(join_all(some).await);
    }
    rooms
}

async fn connect(server: &Server, number: usize, seen: &Arc<Seen>) -> livekit::Room {
    let mut options = RoomOptions::default();
    options.auto_subscribe = false;
    let token = server.token(&format!("viewer-{number}"));
    let (room, mut events) = livekit::Room::connect(&server.url, &token, options).await.expect("the server is there");
    let seen = Arc::clone(seen);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let RoomEvent::ByteStreamOpened { reader, .. } = event
                && let Some(reader) = reader.take()
            {
                tokio::spawn(read(reader, Arc::clone(&seen)));
            }
        }
    });
    room
}

/// Reads the frames of a stream. Each payload begins with the time at which it was sent.
async fn read(mut reader: ByteStreamReader, seen: Arc<Seen>) {
    let mut decoder = StreamDecoder::default();
    while let Some(Ok(chunk)) = reader.next().await {
        let bytes = chunk.len() as u64;
        decoder.push(chunk);
        {
            let now = stamp();
            let mut latencies = seen.latencies.lock();
            while let Some(frame) = decoder.next_frame().expect("the publisher writes frames") {
                let sent = frame.payload().first_chunk().map(|nanos| u64::from_le_bytes(*nanos));
                latencies.saturating_record(now.saturating_sub(sent.expect("it begins with a stamp")));
            }
        }
        seen.chunks.fetch_add(1, Ordering::Relaxed);
        seen.bytes.add(bytes);
    }
}

/// The current time in nanoseconds, by the clock that all processes share.
pub(crate) fn stamp() -> u64 {
    u64::try_from(clock(ClockId::Monotonic).as_nanos()).expect("it isn't that late")
}
