//! Measurements in process: the SDK's own writers on a transport that acknowledges at once. They show our own cost,
//! without network and server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{Stream, stream};
use lanecast::protocol::Frame;
use lanecast::protocol::stream::MAX_STREAM_FRAME;
use lanecast::room::byte_stream::{ByteStreamSink, StreamLimits};
use lanecast::room::{OpenError, Presence, Room, RoomEvent};
use lanecast::{ParticipantIdentity, Progress, Session, Uplink};
use lanecast_benches::counter::Counter;
use livekit_data_stream::api::{ByteStreamWriter, StreamByteOptions, StreamResult};
use livekit_data_stream::backend::outgoing;
use livekit_protocol::DataPacket;
use livekit_protocol::data_packet::Value;
use tokio::runtime::Runtime;

use crate::report::Report;
use crate::rounds::{Figure, Rounds, Sample, Watch};
use crate::way::Way;

const VIEWERS: [usize; 3] = [1, 20, 100];
const PAYLOADS: [usize; 4] = [64, 1 << 10, 15 << 10, 256 << 10];
const BURSTS: [usize; 2] = [1, 64];
const ROUNDS: usize = 5;
/// The length of a way's turn. The way sends bursts, each when the one before is through, until this time has passed.
const TURN: Duration = Duration::from_millis(50);

pub(crate) fn measure(testing: bool, report: &mut Report) {
    report.table(
        "In process",
        "The SDK's `ByteStreamWriter`s, whose packets are acknowledged at once. Per frame delivered, until the transport \
         has the last byte; processor time is of two cores.",
        &[
            "viewers",
            "payload, B",
            "burst",
            "loop, ns",
            "joined, ns",
            "lanecast, ns",
            "of the loop's",
            "of joined's",
            "per byte: loop, ns",
            "lanecast, ns",
            "CPU: loop, ns",
            "joined, ns",
            "lanecast, ns",
            "packets per frame: loop",
            "lanecast",
        ],
    );
    let runtime = Runtime::new().expect("a runtime");
    for viewers in VIEWERS {
        for payload in PAYLOADS {
            for burst in BURSTS {
                // A test needs only the small cases.
                if !testing || (viewers != 100 && payload != 256 << 10) {
                    let row = runtime.block_on(case(viewers, payload, burst, testing));
                    report.row(&row);
                }
            }
        }
    }
}

async fn case(viewers: usize, payload: usize, burst: usize, testing: bool) -> Vec<String> {
    let (rounds, turn) = if testing { (1, Duration::ZERO) } else { (ROUNDS, TURN) };
    let columns = columns(viewers).await;
    // Each frame has a payload of its own, as in real use.
    let frames: Arc<[Frame]> = (0..burst).map(|_| Frame::binary(Bytes::from(vec![7; payload]))).collect();
    let mut samples = Rounds(columns.iter().map(|_| Vec::new()).collect());
    // The first round warms up.
    for round in 0..=rounds {
        for (column, samples) in columns.iter().zip(&mut samples.0) {
            // On a worker thread, as a publisher would be.
            let taking = tokio::spawn(Arc::clone(column).take(Arc::clone(&frames), turn));
            let sample = taking.await.expect("nothing panics");
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    for column in columns {
        column.way.end().await;
    }
    let times = samples.figures(Sample::nanos);
    let cpu = samples.figures(Sample::cpu_nanos);
    let packets = samples.figures(Sample::packets_per_frame);
    let mut cells = vec![viewers.to_string(), payload.to_string(), burst.to_string()];
    cells.extend(times.iter().map(Figure::to_string));
    cells.extend([0, 1].map(|way| samples.last_of(way, Sample::nanos).to_string()));
    cells.extend([&times[0], &times[2]].map(|time| format!("{:#}", time.by(1.0 / payload as f64))));
    cells.extend(cpu.iter().map(Figure::to_string));
    cells.extend([&packets[0], &packets[2]].map(|packets| format!("{packets:#}")));
    cells
}

/// The columns, each with a way on a transport of its own.
async fn columns(viewers: usize) -> [Arc<Column>; 3] {
    let looped = LocalRoom::new(viewers);
    let joined = LocalRoom::new(viewers);
    let room = LocalRoom::new(viewers);
    let transports = [&looped, &joined, &room].map(|room| Arc::clone(&room.transport));
    let session = Session::builder(room).build().expect("inside a runtime");
    let ways = [Way::Loop(looped.writers().await), Way::Joined(joined.writers().await), Way::Lanecast(session)];
    ways[2].joined(viewers).await;
    let mut columns = ways.into_iter().zip(transports).map(|(way, transport)| Column { way, transport, viewers });
    std::array::from_fn(|_| Arc::new(columns.next().expect("there are three")))
}

struct Column {
    way: Way<LocalRoom>,
    transport: Arc<Transport>,
    viewers: usize,
}

impl Column {
    /// Sends these frames in one burst, and again each time they are through, until the turn is over.
    async fn take(self: Arc<Self>, frames: Arc<[Frame]>, turn: Duration) -> Sample {
        let Transport { bytes, packets } = &*self.transport;
        let wire: usize = frames.iter().map(Frame::stream_len).sum();
        let (mut due, packets_before, mut bursts) = (bytes.get(), packets.load(Ordering::Relaxed), 0);
        let watch = Watch::start();
        loop {
            for frame in &*frames {
                self.way.publish(frame).await;
            }
            due += (wire * self.viewers) as u64;
            bytes.reach(due).await;
            bursts += frames.len();
            if watch.time() >= turn {
                break;
            }
        }
        let (time, cpu) = watch.stop();
        let packets = packets.load(Ordering::Relaxed) - packets_before;
        Sample { time, cpu, frames: (bursts * self.viewers) as u64, packets }
    }
}

/// Counts of the bytes and packets taken from the streams of a room.
#[derive(Default)]
struct Transport {
    bytes: Counter,
    packets: AtomicU64,
}

impl Transport {
    fn take(&self, packets: Vec<DataPacket>) {
        let chunk = |packet: DataPacket| match packet.value {
            Some(Value::StreamChunk(chunk)) => Some(chunk.content.len()),
            _ => None,
        };
        for bytes in packets.into_iter().filter_map(chunk) {
            self.packets.fetch_add(1, Ordering::Relaxed);
            self.bytes.add(bytes as u64);
        }
    }
}

/// A room whose viewers are all present, and stay.
struct LocalRoom {
    viewers: Vec<Presence>,
    outgoing: outgoing::Manager,
    transport: Arc<Transport>,
    uplink: Uplink,
}

impl LocalRoom {
    fn new(viewers: usize) -> Self {
        let (outgoing, mut requests) = outgoing::Manager::new();
        let transport = Arc::<Transport>::default();
        let taking = Arc::clone(&transport);
        // Handles one request after the other, as the SDK's task does, but without sending anything.
        tokio::spawn(async move {
            while let Ok((packets, responder)) = requests.recv().await {
                taking.take(packets);
                // Fails if the write was given up, when no writer waits for the answer.
                let _ = responder.respond(Ok(()));
            }
        });
        let presence = |number| {
            let identity = format!("viewer-{number}").parse().expect("short");
            Presence::new(identity, format!("PA_{number}").parse().expect("short"), 0)
        };
        Self { viewers: (0..viewers).map(presence).collect(), outgoing, transport, uplink: Uplink::new() }
    }

    /// Opens a stream to each viewer.
    async fn writers(&self) -> Vec<ByteStreamWriter> {
        let opening = self.viewers.iter().map(|viewer| self.writer(viewer));
        join_all(opening).await.into_iter().map(|opened| opened.expect("the transport stands")).collect()
    }

    async fn writer(&self, viewer: &Presence) -> StreamResult<ByteStreamWriter> {
        let to = viewer.identity.as_str();
        self.outgoing.stream_bytes(StreamByteOptions::new_with_topic("control").with_destination_identity(to)).await
    }
}

/// Opens streams and writes to them as the LiveKit room does.
impl Room for LocalRoom {
    type Message = Frame;
    type Sink = ByteStreamSink;
    type Incoming = ();

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<()>> + Send + 'static> {
        Some(stream::pending())
    }

    fn participants(&self) -> Vec<Presence> {
        self.viewers.clone()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        self.viewers.iter().find(|viewer| viewer.identity == *identity).cloned()
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<ByteStreamSink, OpenError> {
        let writer = self.writer(to).await.map_err(OpenError::transport)?;
        // A case may send more than a stream may carry in real use.
        let mut limits = StreamLimits::default();
        limits.bytes = u64::MAX;
        Ok(ByteStreamSink::new(writer, self.uplink.clone(), progress, limits))
    }

    fn uplink(&self) -> Option<Uplink> {
        Some(self.uplink.clone())
    }

    fn largest_message(&self) -> usize {
        MAX_STREAM_FRAME
    }
}
