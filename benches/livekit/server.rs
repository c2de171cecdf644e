//! Measurements on a real server, with the viewers in a process of their own. All ways use one connection and take
//! turns.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use lanecast::protocol::Frame;
use lanecast::room::livekit::{LiveKitRoom, TokenRequest};
use lanecast::{ParticipantIdentity, Session};
use livekit::data_stream::api::{ByteStreamWriter, StreamByteOptions};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::report::Report;
use crate::rounds::{Figure, Rounds, Sample, Watch};
use crate::viewers::{Audience, Got, stamp};
use crate::way::Way;

const VIEWERS: [usize; 3] = [1, 20, 100];
const PAYLOADS: [usize; 2] = [64, 4096];
/// Frames in a burst. A burst has a quarter of them where that many bytes to that many viewers would take seconds.
const BURST: usize = 64;
const ROUNDS: usize = 5;
/// The length of a way's turn. The way sends bursts, each when the one before has arrived, until this time has passed.
const TURN: Duration = Duration::from_millis(200);
/// The time between two frames at the steady rate: 200 frames a second.
const PERIOD: Duration = Duration::from_millis(5);
/// Frames at the steady rate, which last one second.
const PACED: usize = 200;

/// The address of the server, and a room on it that nobody else uses.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) room: String,
    key: String,
    secret: String,
}

impl Server {
    pub(crate) fn of_environment(room: String) -> Self {
        let var = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let url = std::env::var("LIVEKIT_URL").expect("it was asked for before");
        Self { url, room, key: var("LIVEKIT_API_KEY", "devkey"), secret: var("LIVEKIT_API_SECRET", "secret") }
    }

    pub(crate) fn token(&self, identity: &str) -> String {
        let identity: ParticipantIdentity = identity.parse().expect("short");
        let Self { key, secret, room, .. } = self;
        let request = TokenRequest { key, secret, room, identity: &identity, valid_for: Duration::from_secs(3600) };
        request.mint().expect("the key is not empty")
    }
}

pub(crate) fn measure(testing: bool, report: &mut Report) {
    let runtime = Runtime::new().expect("a runtime");
    let (mut bursts, mut paced) = (Vec::new(), Vec::new());
    let viewers = if testing { &VIEWERS[..1] } else { &VIEWERS };
    for &viewers in viewers {
        let row = runtime.block_on(with(viewers, testing));
        let Some((of_bursts, of_paced)) = row else {
            report.say(&format!("On a server, {viewers} viewers: left out, they weren't connected in time."));
            continue;
        };
        bursts.extend(of_bursts);
        paced.push(of_paced);
    }
    report.table(
        "On a server",
        "Bursts, each when all viewers have the last byte of the one before. Per frame delivered; processor time \
         is the publishing process's. Viewers, server and publisher share this machine's cores.",
        &[
            "viewers",
            "payload, B",
            "burst",
            "loop, µs",
            "joined, µs",
            "lanecast, µs",
            "of the loop's",
            "of joined's",
            "CPU: loop, µs",
            "joined, µs",
            "lanecast, µs",
            "of the loop's",
            "packets per frame: loop",
            "lanecast",
        ],
    );
    bursts.iter().for_each(|row| report.row(row));
    report.table(
        "On a server, at a steady rate",
        "200 frames of 64 B a second, for a second. From when a frame was to be published to when a viewer has read it; the \
         publishing process's time per frame delivered.",
        &[
            "viewers",
            "loop, p50, ms",
            "joined",
            "lanecast",
            "loop, p99, ms",
            "joined",
            "lanecast",
            "CPU: loop, µs",
            "joined, µs",
            "lanecast, µs",
            "packets per frame: lanecast",
        ],
    );
    paced.iter().for_each(|row| report.row(row));
}

/// Measures with this many viewers. Returns the rows of the bursts and the row of the steady rate; `None` if the
/// viewers aren't connected in time.
async fn with(viewers: usize, testing: bool) -> Option<(Vec<Vec<String>>, Vec<String>)> {
    let server = Server::of_environment(format!("lanecast-{:016x}", fastrand::u64(..)));
    let (rounds, turn) = if testing { (1, Duration::ZERO) } else { (ROUNDS, TURN) };
    let mut stage = Stage::new(&server, viewers).await?;
    let mut bursts = Vec::new();
    for payload in PAYLOADS {
        bursts.push(stage.bursts(payload, rounds, turn).await);
    }
    let paced = stage.paced(rounds).await;
    for way in stage.ways {
        way.end().await;
    }
    stage.room.close().await;
    Some((bursts, paced))
}

struct Stage {
    room: LiveKitRoom,
    ways: [Arc<Way<LiveKitRoom>>; 3],
    audience: Audience,
    viewers: usize,
}

/// The measurement of one way, and the report of the viewers.
struct Turn {
    sample: Sample,
    got: Got,
}

impl Turn {
    /// Adds another measurement. The viewers' latencies stay those of the first.
    fn add(&mut self, more: &Self) {
        self.sample.time += more.sample.time;
        self.sample.cpu += more.sample.cpu;
        self.sample.frames += more.sample.frames;
        self.sample.packets += more.sample.packets;
    }
}

impl Stage {
    async fn new(server: &Server, viewers: usize) -> Option<Self> {
        let token = server.token("device");
        let connecting = LiveKitRoom::builder(&server.url).connect(&token);
        let room = connecting.await.expect("the server is there");
        let audience = Audience::start(server, viewers).await?;
        let looped = writers(&room, viewers).await;
        let joined = writers(&room, viewers).await;
        let session = Session::builder(room.clone()).build().expect("inside a runtime");
        let ways = [Way::Loop(looped), Way::Joined(joined), Way::Lanecast(session)].map(Arc::new);
        ways[2].joined(viewers).await;
        Some(Self { room, ways, audience, viewers })
    }

    async fn bursts(&mut self, payload: usize, rounds: usize, turn: Duration) -> Vec<String> {
        let burst = if self.viewers * payload > 1 << 18 { BURST / 4 } else { BURST };
        let mut turns = Rounds(self.ways.iter().map(|_| Vec::new()).collect());
        // The first round warms up.
        for round in 0..=rounds {
            for way in 0..self.ways.len() {
                let taken = self.burst_after_burst(way, payload, burst, turn).await;
                if round > 0 {
                    turns.0[way].push(taken);
                }
            }
        }
        let micros = |figure: &Figure| figure.by(1e-3).to_string();
        let time = |turn: &Turn| turn.sample.nanos();
        let cpu = |turn: &Turn| turn.sample.cpu_nanos();
        let packets = turns.figures(|turn| turn.sample.packets_per_frame());
        let mut cells = vec![self.viewers.to_string(), payload.to_string(), burst.to_string()];
        cells.extend(turns.figures(time).iter().map(micros));
        cells.extend([0, 1].map(|way| turns.last_of(way, time).to_string()));
        cells.extend(turns.figures(cpu).iter().map(micros));
        cells.push(turns.last_of(0, cpu).to_string());
        cells.extend([&packets[0], &packets[2]].map(|packets| format!("{packets:#}")));
        cells
    }

    async fn burst_after_burst(&mut self, way: usize, payload: usize, burst: usize, turn: Duration) -> Turn {
        let mut all = self.publish(way, payload, burst, None).await;
        while all.sample.time < turn {
            let next = self.publish(way, payload, burst, None).await;
            all.add(&next);
        }
        all
    }

    async fn paced(&mut self, rounds: usize) -> Vec<String> {
        let mut turns = Rounds(self.ways.iter().map(|_| Vec::new()).collect());
        for _ in 0..rounds {
            for way in 0..self.ways.len() {
                turns.0[way].push(self.publish(way, PAYLOADS[0], PACED, Some(PERIOD)).await);
            }
        }
        let mut cells = vec![self.viewers.to_string()];
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        cells.extend(turns.figures(|turn| millis(turn.got.p50)).iter().map(Figure::to_string));
        cells.extend(turns.figures(|turn| millis(turn.got.p99)).iter().map(Figure::to_string));
        let cpu = turns.figures(|turn| turn.sample.cpu_nanos());
        cells.extend(cpu.iter().map(|figure| figure.by(1e-3).to_string()));
        cells.push(format!("{:#}", turns.figures(|turn| turn.sample.packets_per_frame())[2]));
        cells
    }

    /// Publishes the frames, and measures until all viewers have the last byte.
    async fn publish(&mut self, way: usize, payload: usize, frames: usize, period: Option<Duration>) -> Turn {
        let wire = stamped(payload, 0).stream_len() * frames * self.viewers;
        self.audience.expect(wire as u64).await;
        let watch = Watch::start();
        let publishing = tokio::spawn(publish(Arc::clone(&self.ways[way]), payload, frames, period));
        let got = self.audience.got().await;
        let (time, cpu) = watch.stop();
        publishing.await.expect("nothing panics");
        let frames = (frames * self.viewers) as u64;
        Turn { sample: Sample { time, cpu, frames, packets: got.chunks }, got }
    }
}

/// Publishes the frames, one per `period` if there is one. Runs on a worker thread, as a publisher would.
async fn publish(way: Arc<Way<LiveKitRoom>>, payload: usize, frames: usize, period: Option<Duration>) {
    let (begun, begun_stamp) = (Instant::now(), stamp());
    for number in 0..frames {
        let mut sent = stamp();
        if let Some(period) = period {
            let due = period * u32::try_from(number).expect("a few");
            // The latency of a frame that earlier frames made late counts from when the frame was due. The timer's own
            // lateness doesn't count.
            if begun.elapsed() < due {
                tokio::time::sleep_until(begun + due).await;
                sent = stamp();
            } else {
                sent = begun_stamp + u64::try_from(due.as_nanos()).expect("a second");
            }
        }
        way.publish(&stamped(payload, sent)).await;
    }
}

fn stamped(payload: usize, sent: u64) -> Frame {
    let mut bytes = vec![7; payload];
    bytes[..8].copy_from_slice(&sent.to_le_bytes());
    Frame::binary(Bytes::from(bytes))
}

/// Opens a stream to each viewer, on the connection of the room.
async fn writers(room: &LiveKitRoom, viewers: usize) -> Vec<ByteStreamWriter> {
    let us = room.sdk().expect("it is connected").local_participant();
    let open = |number| {
        let options = StreamByteOptions::new_with_topic("plain");
        us.stream_bytes(options.with_destination_identity(format!("viewer-{number}")))
    };
    let opened = join_all((0..viewers).map(open)).await;
    opened.into_iter().map(|writer| writer.expect("the connection stands")).collect()
}
