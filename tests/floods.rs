//! Peers that send as fast as they can, beside viewers that only watch. Measures how late the viewers get the published
//! messages, and how many of them, with and without such peers.
//!
//! Two servers run at the same time, each on two worker threads, with the same publisher and the same viewers. One of
//! them is attacked. The machine time that the attackers themselves take is lost to both servers, so the other server
//! is the reference. A release build runs every attack. `LANECAST_TEST_SIZE=full` gives longer windows, and five
//! windows of each attack; perf/floods.md records their figures.
#![cfg(feature = "websocket")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{PATIENCE, size};
use futures_util::{SinkExt, StreamExt};
use hdrhistogram::Histogram;
use lanecast::room::websocket::WebSocketRoom;
use lanecast::telemetry::{AdvertisedChannel, Channel, Telemetry};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Viewers of each server.
const VIEWERS: usize = 16;

/// Messages a second that each server publishes where latency is measured.
const RATE: u64 = 500;

/// Number of attacks to run. In a debug build connecting a hundred peers keeps both cores busy for a second.
const ATTACKS: usize = if cfg!(debug_assertions) { 3 } else { 9 };

/// What a viewer's data begins with: opcode and subscription id. The log time follows.
const HEAD: usize = 1 + 4;

/// What attackers send.
#[derive(Clone, Copy, Debug)]
enum Attack {
    /// Requests of this many bytes of JSON, all of which has to be parsed.
    Json(usize),
    /// WebSocket pings.
    Pings,
    /// Requests of some forty bytes, each of which is answered.
    Requests,
    /// Pings sent without waiting for the answer to the upgrade request: the server refuses such a peer.
    ImpatientPings,
}

impl Attack {
    /// The bytes that are sent again and again: whole frames.
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Json(length) => {
                let one = r#",{"id":1,"channelId":9}"#;
                let more = one.repeat(length / one.len() - 2);
                frame(
                    0x81,
                    format!(r#"{{"op":"subscribe","subscriptions":[{{"id":1,"channelId":9}}{more}]}}"#).as_bytes(),
                )
            }
            Self::Pings | Self::ImpatientPings => frame(0x89, b"").repeat(10_000),
            Self::Requests => frame(0x81, br#"{"op":"unsubscribe","subscriptionIds":[1]}"#).repeat(1000),
        }
    }
}

/// A client's frame, masked with zeroes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..=125 => bytes.push(0x80 | short as u8),
        long @ 126..=0xffff => {
            bytes.push(0xfe);
            bytes.extend((long as u16).to_be_bytes());
        }
        long => {
            bytes.push(0xff);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

/// Connections that send without pause, read the answers, and reconnect when they are closed.
struct Attackers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    sent: Arc<AtomicU64>,
}

impl Attackers {
    fn start(server: SocketAddr, attack: Attack, count: usize) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let bytes: Arc<[u8]> = attack.bytes().into();
        let threads = (0..count).map(|_| {
            let (stop, sent, bytes) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&bytes));
            let attacker = std::thread::Builder::new().stack_size(64 << 10);
            attacker.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // A closed connection is made again.
                    let _ = send_until(&stop, server, attack, &bytes, &sent);
                }
            })
        });
        Self { threads: threads.map(|thread| thread.expect("a thread")).collect(), stop, sent }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("an attacker doesn't panic");
        }
        self.sent.load(Ordering::Relaxed)
    }
}

fn send_until(
    stop: &AtomicBool,
    server: SocketAddr,
    attack: Attack,
    bytes: &[u8],
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: foxglove.sdk.v1\r\n\r\n",
    )?;
    if !matches!(attack, Attack::ImpatientPings) {
        let mut last = [0; 4];
        while &last != b"\r\n\r\n" {
            last.rotate_left(1);
            stream.read_exact(&mut last[3..])?;
        }
    }
    let mut reading = stream.try_clone()?;
    let reader = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        let mut scrap = [0; 4096];
        while reading.read(&mut scrap).is_ok_and(|count| count > 0) {}
    })?;
    // A connection that isn't read checks now and then whether to stop.
    stream.set_write_timeout(Some(Duration::from_millis(50)))?;
    let sending = (|| {
        while !stop.load(Ordering::Relaxed) {
            let mut left = bytes;
            while !left.is_empty() && !stop.load(Ordering::Relaxed) {
                match stream.write(left) {
                    Ok(count) => {
                        sent.fetch_add(count as u64, Ordering::Relaxed);
                        left = &left[count..];
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    })();
    let _ = stream.shutdown(std::net::Shutdown::Both);
    reader.join().expect("a reader doesn't panic");
    sending
}

/// A server with a publisher.
struct Server {
    runtime: Runtime,
    address: SocketAddr,
    telemetry: Telemetry,
    channel: Arc<AdvertisedChannel>,
}

impl Server {
    fn start() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
        let (address, telemetry, channel) = runtime.block_on(async {
            let room = WebSocketRoom::builder().bind("127.0.0.1:0").await.expect("a free port");
            let address = room.local_addr();
            let telemetry = Telemetry::builder(room).build().expect("a test's settings make sense");
            let channel = telemetry.advertise(Channel::new("/data", "bytes")).await.expect("it is open");
            (address, telemetry, Arc::new(channel))
        });
        Self { runtime, address, telemetry, channel }
    }

    /// Publishes at [`RATE`] for `window`. Late messages are stamped with the time at which they were due.
    fn publish_for(&self, epoch: Instant, window: Duration) -> tokio::task::JoinHandle<u64> {
        let channel = Arc::clone(&self.channel);
        self.runtime.spawn(async move {
            let begun = epoch.elapsed();
            let count = window.as_millis() as u64 * RATE / 1000;
            for number in 0..count {
                let due = begun + Duration::from_nanos(number * 1_000_000_000 / RATE);
                tokio::time::sleep_until((epoch + due).into()).await;
                channel.publish_at(due.as_nanos() as u64, vec![7; 200]).await.expect("it is open");
            }
            count
        })
    }

    /// Publishes as fast as all viewers take it, sixteen messages at a time, for `window`; returns messages a second.
    fn publish_flat_out(&self, received: &Arc<AtomicU64>, window: Duration) -> tokio::task::JoinHandle<f64> {
        let (channel, received) = (Arc::clone(&self.channel), Arc::clone(received));
        self.runtime.spawn(async move {
            let (begun, before) = (Instant::now(), received.load(Ordering::Relaxed));
            let mut published = 0;
            while begun.elapsed() < window {
                for _ in 0..16 {
                    channel.publish_at(1, vec![7; 200]).await.expect("it is open");
                }
                published += 16;
                while received.load(Ordering::Relaxed) - before < published * VIEWERS as u64 {
                    // A viewer that was reset meanwhile never gets there, which lowers the rate.
                    if begun.elapsed() > 10 * window {
                        return published as f64 / begun.elapsed().as_secs_f64();
                    }
                    tokio::task::yield_now().await;
                }
            }
            published as f64 / begun.elapsed().as_secs_f64()
        })
    }
}

/// The viewers of one server, and what they received.
struct Viewers {
    received: Arc<AtomicU64>,
    latency: Arc<std::sync::Mutex<Histogram<u64>>>,
    _tasks: JoinSet<()>,
}

impl Viewers {
    async fn connect(server: &Server, epoch: Instant) -> Self {
        // Up to a minute, in microseconds, two digits.
        let latency = Histogram::new_with_max(60_000_000, 2).expect("the bounds are in order");
        let (received, latency) = (Arc::new(AtomicU64::new(0)), Arc::new(std::sync::Mutex::new(latency)));
        let mut tasks = JoinSet::new();
        for _ in 0..VIEWERS {
            let mut request = format!("ws://{}/", server.address).into_client_request().expect("a valid address");
            request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().expect("a valid value"));
            let (mut socket, _) = connect_async(request).await.expect("it is let in");
            let channel = server.channel.id();
            let subscribe = format!(r#"{{"op":"subscribe","subscriptions":[{{"id":7,"channelId":{channel}}}]}}"#);
            socket.send(Message::text(subscribe)).await.expect("it is connected");
            let (received, latency) = (Arc::clone(&received), Arc::clone(&latency));
            tasks.spawn(async move {
                while let Some(Ok(message)) = socket.next().await {
                    let Message::Binary(data) = message else { continue };
                    let Some(due) = data.get(HEAD..).and_then(|rest| rest.first_chunk()) else { continue };
                    let late = epoch.elapsed().saturating_sub(Duration::from_nanos(u64::from_le_bytes(*due)));
                    latency.lock().expect("nobody panics").saturating_record(late.as_micros() as u64);
                    received.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let all = async {
            while server.channel.subscribers() < VIEWERS {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("everybody subscribes");
        Self { received, latency, _tasks: tasks }
    }

    fn begin(&self) {
        self.received.store(0, Ordering::Relaxed);
        self.latency.lock().expect("nobody panics").reset();
    }

    /// The 99th percentile, in milliseconds.
    fn p99(&self) -> f64 {
        self.latency.lock().expect("nobody panics").value_at_quantile(0.99) as f64 / 1000.0
    }
}

/// What one window showed, of the attacked server and of the other.
struct Outcome {
    p99: [f64; 2],
    /// The part of the published messages that all viewers received in the window or soon after it.
    arrived: [f64; 2],
    /// Messages a second, published as fast as the viewers take them.
    rate: [f64; 2],
    /// Bytes a second of all attackers.
    sent: f64,
}

impl Outcome {
    /// Whether the latency is below 50 ms or twice the other server's, and the rate no lower than noise explains.
    fn holds(&self) -> bool {
        self.p99[0] < 50_f64.max(2.0 * self.p99[1]) && self.arrived[0] == 1.0 && self.rate[0] > 0.75 * self.rate[1]
    }
}

fn measure(attack: Attack, count: usize, window: Duration) -> Outcome {
    let servers = [Server::start(), Server::start()];
    let watching = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread");
    let epoch = Instant::now();
    let viewers = watching
        .block_on(async { [Viewers::connect(&servers[0], epoch).await, Viewers::connect(&servers[1], epoch).await] });
    let (attackers, begun) = (Attackers::start(servers[0].address, attack, count), Instant::now());
    // The attackers' first second is part of the window, but they have to have begun.
    while attackers.sent.load(Ordering::Relaxed) == 0 {
        assert!(begun.elapsed() < PATIENCE, "no attacker gets in");
        std::thread::yield_now();
    }
    let outcome = watching.block_on(async {
        viewers.iter().for_each(Viewers::begin);
        let publishing = [servers[0].publish_for(epoch, window), servers[1].publish_for(epoch, window)];
        let mut arrived = [0.0; 2];
        for ((published, viewers), arrived) in publishing.into_iter().zip(&viewers).zip(&mut arrived) {
            let published = published.await.expect("no publisher panics") * VIEWERS as u64;
            let all = async {
                while viewers.received.load(Ordering::Relaxed) < published {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            // A viewer that was reset has missed some messages, and never gets there.
            let _ = tokio::time::timeout(Duration::from_secs(10), all).await;
            *arrived = viewers.received.load(Ordering::Relaxed) as f64 / published as f64;
        }
        let p99 = [viewers[0].p99(), viewers[1].p99()];
        let mut rate = [0.0; 2];
        if arrived == [1.0; 2] {
            let racing = [0, 1].map(|which| servers[which].publish_flat_out(&viewers[which].received, window));
            for (racing, rate) in racing.into_iter().zip(&mut rate) {
                *rate = racing.await.expect("no publisher panics");
            }
        }
        Outcome { p99, arrived, rate, sent: 0.0 }
    });
    let took = begun.elapsed();
    let sent = attackers.stop() as f64 / took.as_secs_f64();
    for server in servers {
        let Server { runtime, telemetry, .. } = server;
        drop(telemetry);
        runtime.shutdown_timeout(Duration::from_secs(10));
    }
    Outcome { sent, ..outcome }
}

/// Peers that flood a server raise no viewer's latency above 50 ms, or twice that of a server beside it that isn't
/// attacked, and cost no viewer messages or rate.
#[test]
fn floods_harm_nobody_else() {
    let attacks = [
        (Attack::Json(1 << 20), 2),
        (Attack::Pings, 8),
        (Attack::ImpatientPings, 8),
        (Attack::Json(64 << 10), 120),
        (Attack::Json(1 << 20), 8),
        (Attack::Json(1 << 20), 120),
        (Attack::Requests, 8),
        (Attack::Requests, 120),
        (Attack::Pings, 120),
    ];
    let window = Duration::from_millis(size(1000, 4000) as u64);
    let mut harmed = Vec::new();
    for (attack, count) in attacks.into_iter().take(ATTACKS) {
        // Other builds and tests on a busy machine may slow one of the two servers alone, but not in five windows in a
        // row.
        let mut held = false;
        for _ in 0..5 {
            let outcome = measure(attack, count, window);
            let Outcome { p99: [p99, other], arrived, rate: [rate, other_rate], sent } = &outcome;
            println!(
                "{count} x {attack:?}: p99 {p99:.1} ms, beside it {other:.1}; arrived {arrived:.3?}; \
                 {rate:.0}/s, beside it {other_rate:.0}; {:.1} MB/s sent",
                sent / 1e6
            );
            held |= outcome.holds();
            if held && size(0, 1) == 0 {
                break;
            }
        }
        if !held {
            harmed.push(format!("{count} peers that send {attack:?}"));
        }
    }
    assert!(harmed.is_empty(), "others were harmed by {harmed:?}");
}
