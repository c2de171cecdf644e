//! Slow viewers get everything, or what is fresh of a lossy topic, and stuck viewers are disconnected, on links that
//! are really slow.
//!
//! Each scene runs in a network namespace of its own, whose loopback the kernel slows down. The test binary starts
//! itself there again, with the name of the scene in an environment variable. Where no such namespace can be made, or
//! `ip`, `tc` or `unshare` is missing, the scenes are left out.
#![cfg(all(feature = "websocket", target_os = "linux"))]

mod common;

use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lanecast::protocol::{Frame, FrameKind, ServerMessage, WireFormat};
use lanecast::room::websocket::WebSocketRoom;
use lanecast::telemetry::{Channel, Telemetry};
use lanecast::{EndReason, Events, Lossy, Profile, Session, SessionEvent, SubscriptionTag, Topic};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use common::size;

/// Environment variable that names the scene in the process that plays it.
const SCENE: &str = "LANECAST_SCENE";

/// How long a stuck viewer may stay connected.
const LET_GO_WITHIN: Duration = Duration::from_secs(40);

/// Longer than anything takes that a link doesn't slow down.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn everything_arrives_over_slow_links() {
    let quick = ["deliver 128 500000", "deliver 256 1000000", "deliver 512 2000000", "deliver 64 100000"];
    let full = [
        "deliver 64 100000",
        "deliver 64 1000000",
        "deliver 128 100000",
        "deliver 128 1000000",
        "deliver 256 100000",
        "deliver 256 1000000",
        "deliver 256 5000000",
        "deliver 512 100000",
        "deliver 512 1000000",
        "deliver 512 5000000",
    ];
    play_all(if size(0, 1) == 0 { &quick } else { &full });
}

#[test]
fn everything_arrives_at_a_slow_reader() {
    play_all(if size(0, 1) == 0 { &["read 8000 300000"] } else { &["read 8000 1000000", "read 250000 5000000"] });
}

/// A stream of ten times what the link carries.
#[test]
fn a_slow_viewer_of_a_lossy_topic_gets_fresh_messages() {
    let seconds = size(10, 600);
    let scenes = [256, 1000, 10_000].map(|kbit| format!("fresh {kbit} {seconds}"));
    play_all(&scenes.each_ref().map(String::as_str));
}

#[test]
fn a_join_that_takes_long_to_transfer_succeeds_at_once() {
    play_all(if size(0, 1) == 0 { &["join 512 2000"] } else { &["join 512 10000"] });
}

#[test]
fn a_slow_viewer_is_told_why_its_connection_ends() {
    play_all(&["farewell 128 250000"]);
}

#[test]
fn a_stuck_viewer_is_disconnected() {
    play_all(&["cut busy", "cut idle", "shut", "shut full", "stopped busy", "stopped idle"]);
}

/// At full length only: it takes two minutes, and needs 2,100 open files.
#[test]
fn slow_links_of_some_do_not_delay_the_others() {
    if size(0, 1) == 0 {
        return eprintln!("left out: it needs LANECAST_TEST_SIZE=full");
    }
    play_all(&["crowd"]);
}

/// At full length only: the link is made in user space (perf/delayed.py) and takes a core.
#[test]
fn a_long_link_is_filled() {
    if size(0, 1) == 0 {
        return eprintln!("left out: it needs LANECAST_TEST_SIZE=full");
    }
    let Some(way) = way_in() else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/perf/delayed.py");
    play_all_by(&[way, &[script, "--rate", "100", "--delay", "50"]].concat(), &["long"]);
}

/// The process that plays one scene; it is no test on its own.
#[test]
#[ignore = "is started by the other tests"]
fn scene() {
    let Ok(scene) = std::env::var(SCENE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let words: Vec<&str> = scene.split(' ').collect();
        match words[..] {
            ["deliver", kbit, bytes] => deliver(kbit, bytes.parse().unwrap()).await,
            ["read", rate, bytes] => read_slowly(rate.parse().unwrap(), bytes.parse().unwrap()).await,
            ["join", kbit, channels] => join(kbit, channels.parse().unwrap()).await,
            ["farewell", kbit, bytes] => farewell(kbit, bytes.parse().unwrap()).await,
            ["fresh", kbit, seconds] => fresh(kbit, Duration::from_secs(seconds.parse().unwrap())).await,
            ["crowd"] => crowd().await,
            ["long"] => {
                let rate = fill(64 << 10, 64 << 10, 10.0).await;
                assert!(rate > 80.0, "{rate:.1} Mbit/s of 100");
            }
            ["window", bytes, seconds] => {
                fill(bytes.parse().unwrap(), 1000, seconds.parse().unwrap()).await;
            }
            ["cut", load] => cut(load == "busy").await,
            ["shut"] => shut(5).await,
            ["shut", "full"] => shut(8).await,
            ["stopped", load] => stopped(load == "busy").await,
            ["viewer", address] => view(address.parse().unwrap()).await,
            _ => panic!("unknown scene: {scene}"),
        }
    });
}

// What the tests do.

/// Plays these scenes side by side.
fn play_all(scenes: &[&str]) {
    if let Some(way) = way_in() {
        play_all_by(way, scenes);
    }
}

/// Plays these scenes side by side, each started by `unshare` with the arguments `way`.
fn play_all_by(way: &[&str], scenes: &[&str]) {
    let start = |scene: &&str| {
        let mut command = Command::new("unshare");
        command.args(way).arg(std::env::current_exe().unwrap()).args(["--exact", "scene", "--ignored", "--nocapture"]);
        command.env(SCENE, scene).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        (scene.to_string(), command.spawn().unwrap())
    };
    let playing: Vec<_> = scenes.iter().map(start).collect();
    let mut failed = Vec::new();
    for (scene, child) in playing {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        for figure in said.lines().filter_map(|line| line.strip_prefix("figure: ")) {
            println!("{scene}: {figure}");
        }
        if !output.status.success() || !said.contains("1 passed") {
            failed.push(format!("{scene}:\n{said}{}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Arguments that make `unshare` create a network namespace here, if any do.
fn way_in() -> Option<&'static [&'static str]> {
    static WAY: OnceLock<Option<&'static [&'static str]>> = OnceLock::new();
    *WAY.get_or_init(|| {
        let ways: [&[&str]; 2] = [&["--net"], &["--net", "--map-root-user"]];
        let way = ways.into_iter().find(|way| {
            let mut command = Command::new("unshare");
            command.args(*way).args(["sh", "-c", &shaping("512")]).stderr(Stdio::null()).stdout(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        });
        if way.is_none() {
            eprintln!("left out: no network namespace with a slow link can be made here (unshare, ip, tc)");
        }
        way
    })
}

/// Makes loopback a link of `kbit` kbit/s, with the packets of an ordinary link. The bucket holds two packets: more
/// would be a burst.
fn shaping(kbit: &str) -> String {
    format!(
        "ip link set lo mtu 1500 && ip link set lo up && \
         tc qdisc replace dev lo root tbf rate {kbit}kbit burst 3000 latency 400ms"
    )
}

// What the scenes do.

fn run(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn figure(text: std::fmt::Arguments<'_>) {
    println!("figure: {text}");
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(address: SocketAddr, stream: S) -> WebSocketStream<S> {
    let mut request = format!("ws://{address}/").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
    soon("the hand-shake", client_async(request, stream)).await.unwrap().0
}

/// A session with all settings at their defaults.
async fn serve() -> (Session<WebSocketRoom>, Events, SocketAddr) {
    let room = WebSocketRoom::builder().bind("127.0.0.1:0").await.unwrap();
    let address = room.local_addr();
    let session = Session::builder(room).build().unwrap();
    let events = session.events();
    (session, events, address)
}

async fn joined(events: &mut Events) {
    let event = soon("a join", events.next()).await;
    assert!(matches!(event, Some(SessionEvent::Joined(_))), "{event:?}");
}

/// Waits for the viewer to be disconnected.
async fn let_go(events: &mut Events) -> SessionEvent {
    let event = timeout(2 * LET_GO_WITHIN, events.next()).await.expect("still connected").expect("the session runs");
    assert!(!matches!(event, SessionEvent::Joined(_)), "{event:?}");
    event
}

/// Broadcasts a long message and then a number each second, and sees all of it arrive.
async fn deliver_to<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    session: &Session<WebSocketRoom>,
    events: &mut Events,
    client: &mut WebSocketStream<S>,
    bytes: usize,
    within: Duration,
) {
    let long: Bytes = (0..bytes).map(|at| (at / 7) as u8).collect();
    session.broadcast(Frame::binary(long.clone())).await.unwrap();
    let mut sent = 0_u32;
    let mut seen = 0_u32;
    let mut beat = interval(Duration::from_secs(1));
    let started = Instant::now();
    let mut arrived = false;
    while !arrived || seen < sent {
        tokio::select! {
            _ = beat.tick(), if !arrived => {
                session.broadcast(Frame::binary(Bytes::copy_from_slice(&sent.to_be_bytes()))).await.unwrap();
                sent += 1;
            }
            message = client.next() => match message {
                Some(Ok(Message::Binary(message))) if !arrived => {
                    assert!(message == long, "the long message is damaged");
                    arrived = true;
                }
                Some(Ok(Message::Binary(number))) => {
                    assert_eq!(number[..], seen.to_be_bytes());
                    seen += 1;
                }
                Some(Ok(Message::Ping(_))) => {}
                other => panic!("after {:?}: {other:?}", started.elapsed()),
            },
            event = events.next() => panic!("after {:?}: {event:?}", started.elapsed()),
            () = tokio::time::sleep_until(started + within) => panic!("not all has arrived after {within:?}"),
        }
    }
    figure(format_args!("{bytes} bytes in {:.1} s", started.elapsed().as_secs_f64()));
}

/// How much a viewer gets over the link that `perf/delayed.py` makes, in Mbit/s, once the connection has got going. The
/// kernel holds at most `unsent` bytes unsent, and messages of `bytes` come as fast as the link takes them.
async fn fill(unsent: u32, bytes: usize, seconds: f64) -> f64 {
    let room = WebSocketRoom::builder().unsent_bytes(unsent).bind("10.77.0.1:0").await.unwrap();
    let address = room.local_addr();
    let session = Session::builder(room).build().unwrap();
    let mut events = session.events();
    // This host, behind the link.
    let stream = soon("the connection", TcpStream::connect(("10.77.0.2", address.port()))).await.unwrap();
    let mut viewer = connect(address, stream).await;
    joined(&mut events).await;
    let reading = tokio::spawn(async move {
        let (begun, mut bytes) = (Instant::now(), 0);
        while begun.elapsed().as_secs_f64() < 3.0 + seconds {
            let message = soon("a message", viewer.next()).await.unwrap().unwrap();
            if begun.elapsed() > Duration::from_secs(3) {
                bytes += message.len();
            }
        }
        bytes as f64 * 8.0 / seconds / 1e6
    });
    let message = Bytes::from(vec![0; bytes]);
    while !reading.is_finished() {
        let stats = session.stats();
        if stats.account.waiting() + stats.shard_lag < 100 {
            session.broadcast(Frame::binary(message.clone())).await.unwrap();
        } else {
            // Paced by a figure that nothing announces.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let rate = reading.await.unwrap();
    figure(format_args!("{rate:.3} Mbit/s"));
    rate
}

async fn deliver(kbit: &str, bytes: usize) {
    run(&shaping(kbit));
    let (session, mut events, address) = serve().await;
    let mut client = connect(address, TcpStream::connect(address).await.unwrap()).await;
    joined(&mut events).await;
    let ideal = Duration::from_secs_f64(bytes as f64 / (125.0 * kbit.parse::<f64>().unwrap()));
    deliver_to(&session, &mut events, &mut client, bytes, ideal * 3 / 2 + PATIENCE / 2).await;
}

/// Reads at a steady pace, and no more than the pace allows.
struct Paced {
    stream: TcpStream,
    pace: Interval,
    at_once: usize,
}

impl AsyncRead for Paced {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let Self { stream, pace, at_once } = self.get_mut();
        ready!(pace.poll_tick(cx));
        let most = buf.remaining().min(*at_once);
        let mut some = ReadBuf::new(buf.initialize_unfilled_to(most));
        let outcome = Pin::new(stream).poll_read(cx, &mut some);
        let read = some.filled().len();
        buf.advance(read);
        outcome
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A reader of `rate` bytes a second, whose receive buffer is 128 KiB, on an unshaped loopback.
async fn read_slowly(rate: usize, bytes: usize) {
    run("ip link set lo up");
    let (session, mut events, address) = serve().await;
    let socket = TcpSocket::new_v4().unwrap();
    // The kernel doubles it.
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let stream = socket.connect(address).await.unwrap();
    let mut pace = interval(Duration::from_millis(50));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client = connect(address, Paced { stream, pace, at_once: rate / 20 }).await;
    joined(&mut events).await;
    let ideal = Duration::from_secs_f64(bytes as f64 / rate as f64);
    deliver_to(&session, &mut events, &mut client, bytes, ideal * 3 / 2 + PATIENCE / 2).await;
}

/// Publishes ten times what the link carries, for so long, and returns how many messages that were. Each has its
/// number, and the time since `begun` as its log time. Each twentieth is the largest, eight times as long as the
/// others.
async fn flood(session: &Session<WebSocketRoom>, topic: &Topic, kbit: f64, time: Duration, begun: Instant) -> u64 {
    let (ordinary, largest) = sizes(kbit);
    let rate = 10.0 * kbit * 125.0 / (0.95 * ordinary as f64 + 0.05 * largest as f64);
    let mut beat = interval(Duration::from_millis(5));
    let from = Instant::now();
    let mut sent = 0_u64;
    while from.elapsed() < time {
        beat.tick().await;
        let due = (from.elapsed().as_secs_f64() * rate) as u64;
        while sent < due {
            let mut payload = vec![0; if sent.is_multiple_of(20) { largest } else { ordinary }];
            payload[..8].copy_from_slice(&sent.to_be_bytes());
            let frame = Frame::message_data(1, begun.elapsed().as_nanos() as u64, payload.into());
            session.broadcast_to(topic, frame).await.unwrap();
            sent += 1;
        }
    }
    sent
}

/// The length of an ordinary message of a flood, and of the largest.
fn sizes(kbit: f64) -> (usize, usize) {
    let ordinary = (kbit as usize * 4).clamp(1000, 4000);
    (ordinary, 8 * ordinary)
}

/// A viewer of a lossy topic gets messages that are no older than the topic allows when they leave, and what it gets
/// and what it loses is what was published.
///
/// The scene uses reno: bbr doesn't slow down for a queue that drops, and then resends a third of what it sends, which
/// delays what is behind by seconds.
async fn fresh(kbit: &str, time: Duration) {
    run(&shaping(kbit));
    run("echo reno > /proc/sys/net/ipv4/tcp_congestion_control");
    let kbit: f64 = kbit.parse().unwrap();
    let topic = Topic::with(Profile::lossy(Lossy::default()));
    let (session, mut events, address) = serve().await;
    let mut client = connect(address, TcpStream::connect(address).await.unwrap()).await;
    joined(&mut events).await;
    let participant = session.participants().pop().expect("it has joined");
    participant.subscribe(&topic, SubscriptionTag(1)).await;
    let begun = Instant::now();
    // Reads until the session closes: the publish time and the age of each message that has arrived, in seconds.
    let reading = tokio::spawn(async move {
        let (mut ages, mut next, mut bytes) = (Vec::new(), 0, 0);
        while let Some(Ok(message)) = client.next().await {
            let Message::Binary(message) = message else { continue };
            let now = begun.elapsed().as_secs_f64();
            let message = ServerMessage::decode(WireFormat::V1, FrameKind::Binary, &message).unwrap();
            let ServerMessage::MessageData(message) = message else { panic!("{message:?}") };
            let number = u64::from_be_bytes(*message.payload.first_chunk().unwrap());
            assert!(number >= next, "{number} comes after {next}");
            next = number + 1;
            bytes += message.payload.len();
            let published = message.log_time_ns as f64 / 1e9;
            ages.push((published, now - published));
        }
        (ages, bytes)
    });
    let published = flood(&session, &topic, kbit, time, begun).await;
    let link_rate = participant.stats().link_rate.expect("the viewer was slow") as f64;
    let report = session.close(PATIENCE).await.unwrap();
    let (ages, bytes) = soon("the end", reading).await.unwrap();
    let lost = report.account.dropped.lossy.total();
    assert_eq!(ages.len() as u64 + lost, published, "{:?}", report.account);
    assert_eq!(report.account.delivered, ages.len() as u64);
    let took = ages.last().map(|(published, age)| published + age).expect("something has arrived");
    // Until the viewer has proved slow, its sink and its kernel are given as much as those of a fast one.
    let known = 64.0 * 1024.0 * 2.0 / (kbit * 125.0) + 1.0;
    let (before, after): (Vec<_>, Vec<_>) = ages.into_iter().partition(|(published, _)| *published < known);
    let worst = |ages: &[(f64, f64)]| ages.iter().map(|(_, age)| *age).fold(0.0, f64::max);
    let mut sorted: Vec<f64> = after.iter().map(|(_, age)| *age).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
    figure(format_args!(
        "age p50 {:.2} s, p99 {:.2} s, at most {:.2} s (before the link was known {:.2} s), {:.0} kbit/s of payload, \
         link rate {:.0} kbit/s, {lost} of {published} lost: {:?}",
        at(0.5),
        at(0.99),
        worst(&after),
        worst(&before),
        bytes as f64 / 125.0 / took,
        link_rate / 125.0,
        report.account.dropped.lossy,
    ));
    let transmission = |bytes: f64| bytes / (kbit * 125.0);
    // The kernel holds what the link carries in 50 to 100 ms, and at least 4 KiB.
    let window = transmission(4096.0).max(0.1);
    let (largest, queue) = (transmission(sizes(kbit).1 as f64), 0.4);
    let allowed = 1.0 + 0.5 + largest + window + queue;
    assert!(worst(&after) <= allowed, "{:.2} s are more than {allowed:.2} s", worst(&after));
    let allowed = allowed + transmission(2.0 * 65536.0);
    assert!(worst(&before) <= allowed, "{:.2} s at first are more than {allowed:.2} s", worst(&before));
    // Of large messages there are few in a sample.
    assert!((0.5..2.0).contains(&(link_rate / 125.0 / kbit)), "{link_rate} bytes a second at {kbit} kbit/s");
}

/// A thousand viewers, of which a hundred have links of their own that carry two fifths of the stream, and the same
/// without slow links, in turns.
async fn crowd() {
    // What the kernel sends to 127.0.1.N goes through the link N.
    let mut script =
        "ip link set lo mtu 1500 && ip link set lo up && tc qdisc add dev lo root handle 1: htb default 1 && \
         tc class add dev lo parent 1: classid 1:1 htb rate 10gbit quantum 60000 && \
         tc filter add dev lo parent 1: protocol ip u32 match ip dst 127.0.0.1 flowid 1:1"
            .to_owned();
    for link in 2..SLOW_OF_CROWD + 2 {
        script += &format!(
            " && tc class add dev lo parent 1: classid 1:{link:x} htb rate 256kbit burst 3000 quantum 3000 && \
             tc qdisc add dev lo parent 1:{link:x} pfifo limit 10 && \
             tc filter add dev lo parent 1: protocol ip u32 match ip dst 127.0.1.{link} flowid 1:{link:x}"
        );
    }
    run(&script);
    run("echo reno > /proc/sys/net/ipv4/tcp_congestion_control");
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let none = crowd_ages(0).await;
        let some = crowd_ages(SLOW_OF_CROWD).await;
        let shown = |ages: &[Duration]| format!("p50 {:.2?}, p99 {:.2?}", of_sorted(ages, 0.5), of_sorted(ages, 0.99));
        figure(format_args!("none slow: {}; {SLOW_OF_CROWD} slow: {}", shown(&none), shown(&some)));
        ratios.push(of_sorted(&some, 0.99).as_secs_f64() / of_sorted(&none, 0.99).as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    figure(format_args!("p99 of the others, {SLOW_OF_CROWD} slow to none: {ratios:.2?}"));
}

const CROWD: usize = 1000;
const SLOW_OF_CROWD: usize = 100;

fn of_sorted(ages: &[Duration], share: f64) -> Duration {
    ages[((ages.len() - 1) as f64 * share) as usize]
}

/// The ages, sorted, of what those viewers of a crowd get whose links aren't slow.
async fn crowd_ages(slow: usize) -> Vec<Duration> {
    let topic = Topic::with(Profile::lossy(Lossy::default()));
    let (session, mut events, address) = serve().await;
    let begun = Instant::now();
    let mut viewers = tokio::task::JoinSet::new();
    for number in 0..CROWD {
        let socket = TcpSocket::new_v4().unwrap();
        let from = if number < slow { format!("127.0.1.{}:0", number + 2) } else { "127.0.0.1:0".to_owned() };
        socket.bind(from.parse().unwrap()).unwrap();
        let mut client = connect(address, socket.connect(address).await.unwrap()).await;
        viewers.spawn(async move {
            let mut ages = Vec::new();
            while let Some(Ok(message)) = client.next().await {
                let now = begun.elapsed();
                let Message::Binary(message) = message else { continue };
                let message = ServerMessage::decode(WireFormat::V1, FrameKind::Binary, &message).unwrap();
                let ServerMessage::MessageData(message) = message else { panic!("{message:?}") };
                ages.push(now - Duration::from_nanos(message.log_time_ns));
            }
            if number < slow { Vec::new() } else { ages }
        });
        joined(&mut events).await;
    }
    for participant in session.participants() {
        participant.subscribe(&topic, SubscriptionTag(1)).await;
    }
    let payload = Bytes::from(vec![7; 8000]);
    let mut beat = interval(Duration::from_millis(100));
    for _ in 0..100 {
        beat.tick().await;
        let frame = Frame::message_data(1, begun.elapsed().as_nanos() as u64, payload.clone());
        session.broadcast_to(&topic, frame).await.unwrap();
    }
    session.close(PATIENCE).await.unwrap();
    let mut ages = soon("the end", viewers.join_all()).await.concat();
    // On a busy machine one of the others may be behind for a moment.
    let (arrived, published) = (ages.len(), 100 * (CROWD - slow));
    assert!(arrived <= published && arrived > published * 99 / 100, "{arrived} of {published}");
    ages.sort();
    ages
}

/// A viewer joins while this many channels are advertised.
async fn join(kbit: &str, channels: usize) {
    run(&shaping(kbit));
    let room = WebSocketRoom::builder().bind("127.0.0.1:0").await.unwrap();
    let address = room.local_addr();
    let telemetry = Telemetry::builder(room).build().unwrap();
    let mut events = telemetry.session().events();
    // The channels are advertised for as long as these handles live.
    let mut advertised = Vec::new();
    for number in 0..channels {
        // The name makes the channel as long as an ordinary schema would.
        advertised.push(telemetry.advertise(Channel::new(format!("/{number:0>380}"), "json")).await.unwrap());
    }
    let mut client = connect(address, TcpStream::connect(address).await.unwrap()).await;
    let started = Instant::now();
    let mut seen = 0;
    while seen < channels {
        let message = timeout(5 * PATIENCE, client.next()).await.expect("it takes too long");
        let text = match message {
            Some(Ok(Message::Text(text))) => Bytes::from(text),
            Some(Ok(Message::Ping(_))) => continue,
            other => panic!("after {:?}: {other:?}", started.elapsed()),
        };
        if let Ok(ServerMessage::Advertise(advertise)) = ServerMessage::decode(WireFormat::V1, FrameKind::Text, &text) {
            seen += advertise.channels.len();
        }
    }
    joined(&mut events).await;
    figure(format_args!("{channels} channels in {:.1} s", started.elapsed().as_secs_f64()));
}

/// A viewer that overflows in the middle of a long message gets the rest of it, and the reason.
async fn farewell(kbit: &str, bytes: usize) {
    run(&shaping(kbit));
    let room = WebSocketRoom::builder().bind("127.0.0.1:0").await.unwrap();
    let address = room.local_addr();
    let session = Session::builder(room).queue_capacity(4).build().unwrap();
    let mut events = session.events();
    let mut client = connect(address, TcpStream::connect(address).await.unwrap()).await;
    joined(&mut events).await;
    for _ in 0..8 {
        session.broadcast(Frame::binary(Bytes::from(vec![7; bytes]))).await.unwrap();
    }
    match soon("a reset", events.next()).await {
        Some(SessionEvent::Reset { reason, .. }) => assert_eq!(reason, EndReason::Overflow),
        other => panic!("{other:?}"),
    }
    let started = Instant::now();
    loop {
        match soon("the rest", client.next()).await {
            Some(Ok(Message::Binary(message))) => assert_eq!(message.len(), bytes),
            Some(Ok(Message::Close(Some(frame)))) => break assert_eq!(u16::from(frame.code), 1013),
            other => panic!("after {:?}: {other:?}", started.elapsed()),
        }
    }
    figure(format_args!("the reason came after {:.1} s", started.elapsed().as_secs_f64()));
}

/// Bytes sent from this port that the kernel still holds.
fn held_from(port: u16) -> u64 {
    let sockets = run(&format!("ss -tmnH state all sport = :{port}"));
    let queued = sockets.split("skmem:(").skip(1).filter_map(|of_one| {
        let figures = of_one.split(')').next()?;
        figures.split(',').find_map(|figure| figure.strip_prefix('w')?.parse::<u64>().ok())
    });
    queued.sum()
}

/// Broadcasts `load` bytes each tenth of a second, if `load` isn't zero, until the viewer is disconnected.
async fn until_let_go(session: &Session<WebSocketRoom>, events: &mut Events, load: usize, port: u16) {
    let started = Instant::now();
    let mut beat = interval(Duration::from_millis(100));
    let message = Frame::binary(Bytes::from(vec![0; load]));
    let mut held = 0;
    let mut gone = std::pin::pin!(let_go(events));
    let event = loop {
        tokio::select! {
            event = &mut gone => break event,
            _ = beat.tick() => {
                held = held.max(held_from(port));
                if load > 0 {
                    session.broadcast(message.clone()).await.unwrap();
                }
            }
        }
    };
    let took = started.elapsed();
    assert!(took <= LET_GO_WITHIN + Duration::from_secs(1), "{took:?}: {event:?}");
    // The close frame may wait behind what the viewer didn't take.
    while held_from(port) > 0 {
        assert!(
            started.elapsed() <= LET_GO_WITHIN + Duration::from_secs(1),
            "{} bytes are still held",
            held_from(port)
        );
        held = held.max(held_from(port));
        beat.tick().await;
    }
    let freed = started.elapsed();
    let (took, freed) = (took.as_secs_f64(), freed.as_secs_f64());
    figure(format_args!(
        "let go after {took:.1} s, freed after {freed:.1} s, the kernel held {held} bytes ({event:?})"
    ));
}

/// The network between server and viewer is gone: in the middle of a message, or when everything is delivered.
async fn cut(busy: bool) {
    run(&shaping("10000"));
    let (session, mut events, address) = serve().await;
    let mut client = connect(address, TcpStream::connect(address).await.unwrap()).await;
    joined(&mut events).await;
    session.broadcast(Frame::binary(Bytes::from(vec![0; 1 << 20]))).await.unwrap();
    if !busy {
        soon("the message", client.next()).await.unwrap().unwrap();
    }
    let reading = tokio::spawn(async move { while let Some(Ok(_)) = client.next().await {} });
    // No packet fits into the bucket: all are dropped.
    run("tc qdisc replace dev lo root tbf rate 8bit burst 10 limit 3000");
    until_let_go(&session, &mut events, if busy { 4000 } else { 0 }, address.port()).await;
    reading.abort();
}

/// A viewer reads nothing, and its kernel announces a full buffer. With seven messages it overflows.
async fn shut(messages: usize) {
    run("ip link set lo up");
    let (session, mut events, address) = serve().await;
    let client = connect(address, TcpStream::connect(address).await.unwrap()).await;
    joined(&mut events).await;
    let held_before = held_from(address.port());
    for _ in 0..messages {
        session.broadcast(Frame::binary(Bytes::from(vec![0; 10 << 20]))).await.unwrap();
    }
    until_let_go(&session, &mut events, 0, address.port()).await;
    figure(format_args!("before, it held {held_before}"));
    drop(client);
}

/// A viewer's process is stopped.
async fn stopped(busy: bool) {
    run("ip link set lo up");
    let (session, mut events, address) = serve().await;
    let mut viewer = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "scene", "--ignored", "--nocapture"])
        .env(SCENE, format!("viewer {address}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    joined(&mut events).await;
    run(&format!("kill -STOP {}", viewer.id().unwrap()));
    until_let_go(&session, &mut events, if busy { 4000 } else { 0 }, address.port()).await;
    viewer.kill().await.unwrap();
}

/// The viewer that is stopped.
async fn view(address: SocketAddr) {
    let mut client = connect(address, TcpStream::connect(address).await.unwrap()).await;
    while let Some(Ok(_)) = client.next().await {}
}
