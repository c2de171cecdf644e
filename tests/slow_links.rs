//! Slow viewers get everything, and stuck viewers are disconnected, on links that are really slow.
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
use lanecast::{EndReason, Events, Session, SessionEvent};
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
            ["long"] => fill().await,
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
    serve_at("127.0.0.1:0").await
}

async fn serve_at(address: &str) -> (Session<WebSocketRoom>, Events, SocketAddr) {
    let room = WebSocketRoom::builder().bind(address).await.unwrap();
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

/// How much a viewer gets over a link of 100 Mbit/s whose round trip takes 50 ms, once the connection has got going.
async fn fill() {
    let (session, mut events, address) = serve_at("10.77.0.1:0").await;
    // This host, behind the link.
    let stream = soon("the connection", TcpStream::connect(("10.77.0.2", address.port()))).await.unwrap();
    let mut viewer = connect(address, stream).await;
    joined(&mut events).await;
    let reading = tokio::spawn(async move {
        let (begun, mut bytes) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(13) {
            let message = soon("a message", viewer.next()).await.unwrap().unwrap();
            if begun.elapsed() > Duration::from_secs(3) {
                bytes += message.len();
            }
        }
        bytes as f64 * 8.0 / 10e6
    });
    let message = Bytes::from(vec![0; 64 << 10]);
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
    figure(format_args!("{rate:.1} Mbit/s"));
    assert!(rate > 80.0, "{rate:.1} Mbit/s of 100");
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
