//! What the other viewers notice when one of a thousand viewers over WebSockets stops reading. Draws the README's
//! picture.
//!
//! `cargo bench -p lanecast-benches --features websocket --bench one_stuck -- --out ../perf/results` writes
//! `one-stuck.svg` there (cargo runs a bench in the folder of its package). Server and viewers share this process: the
//! server has two workers, and all viewers have one thread. The queue capacity of a viewer is small ([`CAPACITY`]), so
//! that the viewer that stops overflows within the picture.

use std::cell::RefCell;
use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use hdrhistogram::Histogram;
use lanecast::protocol::Frame;
use lanecast::room::websocket::{Admission, Rejection, UpgradeRequest, WebSocketRoom};
use lanecast::telemetry::{Channel, Telemetry};
use lanecast::{ParticipantIdentity, SessionEvent, SessionHandle};
use plotters::prelude::*;
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{interval, sleep_until};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Messages a second.
const RATE: u32 = 40;
/// Bytes of a message's payload.
const PAYLOAD: usize = 4096;
/// The most messages that may wait for one viewer.
const CAPACITY: u32 = 256;
/// The receive buffer of the viewer that stops, in bytes. The server can't see what waits in there.
const STUCK_BUFFER: u32 = 64 << 10;
/// The time that one point of the upper curves covers.
const WINDOW: Duration = Duration::from_millis(250);
/// The time between two points of the lower curve.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes before the payload of a message in v1: opcode, subscription id and log time.
const HEAD: usize = 1 + 4 + 8;
/// The name of the viewer that stops.
const STUCK: &str = "stuck";

type Fallible<T> = Result<T, Box<dyn Error>>;

struct Plan {
    viewers: usize,
    length: Duration,
}

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let plan = if arguments.iter().any(|argument| argument == "--test") {
        Plan { viewers: 20, length: Duration::from_secs(2) }
    } else {
        Plan { viewers: 1_000, length: Duration::from_secs(24) }
    };
    let out = arguments.iter().position(|argument| argument == "--out").and_then(|at| arguments.get(at + 1));
    allow_open_files(2 * plan.viewers as u64 + 100)?;
    let seen = run(&plan)?;
    print(&plan, &seen);
    if let Some(folder) = out {
        draw(&PathBuf::from(folder).join("one-stuck.svg"), &plan, &seen)?;
    }
    Ok(())
}

/// Raises the limit of open files to `wanted`, as far as the system allows. Both ends of each connection are in this
/// process.
fn allow_open_files(wanted: u64) -> Fallible<()> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        if limit.current.is_some_and(|current| current < wanted) {
            limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
            setrlimit(Resource::Nofile, limit)?;
        }
    }
    let _ = wanted;
    Ok(())
}

/// The measurements. Times count from the moment when all viewers had subscribed.
#[derive(Default)]
struct Seen {
    /// The latencies from publishing to reading, at the viewers that read, in each window.
    latencies: Vec<Histogram<u64>>,
    /// Messages that these viewers missed.
    missed: u64,
    /// Messages that these viewers got.
    got: u64,
    /// How many messages waited for the viewer that stops, and when.
    waiting: Vec<(Duration, u64)>,
    /// When the viewer that stops was reset.
    reset: Option<Duration>,
    /// When the viewer that stops was back.
    back: Option<Duration>,
}

impl Plan {
    /// When the one viewer stops reading, and when it reads again.
    fn pause(&self) -> (Duration, Duration) {
        (self.length / 6, self.length * 5 / 6)
    }
}

fn run(plan: &Plan) -> Fallible<Seen> {
    let server = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (go, gone) = watch::channel(None);
    let (address, telemetry) = server.block_on(async {
        let room = WebSocketRoom::builder().on_upgrade(named).bind("127.0.0.1:0").await?;
        let address = room.local_addr();
        let telemetry = Telemetry::builder(room).configure(|session| session.queue_capacity(CAPACITY)).build()?;
        Ok::<_, Box<dyn Error>>((address, telemetry))
    })?;
    let channel = server.block_on(telemetry.advertise(Channel::new("/position", "raw")))?;
    let (viewers, pause) = (plan.viewers, plan.pause());
    let watching = thread::spawn(move || watch_all(address, viewers, pause, &gone));

    let seen = server.block_on(server.spawn({
        let (telemetry, channel, length) = (telemetry.clone(), channel.clone(), plan.length);
        async move {
            let mut ticks = interval(Duration::from_secs(1) / RATE);
            while channel.subscribers() < viewers {
                ticks.tick().await;
            }
            let begun = Instant::now();
            go.send_replace(Some(begun));
            let told = tokio::spawn(what_becomes_of_it(telemetry.session().clone(), begun));
            for number in 0_u64.. {
                ticks.tick().await;
                if begun.elapsed() >= length {
                    break;
                }
                let mut payload = vec![0; PAYLOAD];
                payload[..8].copy_from_slice(&number.to_le_bytes());
                payload[8..16].copy_from_slice(&nanos(begun.elapsed()).to_le_bytes());
                channel.publish(payload).await.expect("the session is open");
            }
            telemetry.close(Duration::from_secs(5)).await.expect("the session closes");
            told.await.expect("it doesn't panic")
        }
    }))?;
    let Watched { latencies, missed, got } = watching.join().map_err(|_| "the viewers panicked")?;
    Ok(Seen { latencies, missed, got, ..seen })
}

/// Admits a viewer. The path of the request is the viewer's name.
fn named(request: &UpgradeRequest) -> Result<Admission, Rejection> {
    let name = ParticipantIdentity::new(request.path().trim_start_matches('/'));
    name.map(Admission::new).map_err(|error| Rejection::new(400, error.to_string()))
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Observes the viewer that stops, until the session ends.
async fn what_becomes_of_it(session: SessionHandle<Frame>, begun: Instant) -> Seen {
    let stuck: ParticipantIdentity = STUCK.parse().expect("it is well-formed");
    let (mut seen, mut events, mut looks) = (Seen::default(), session.events(), interval(LOOK));
    loop {
        tokio::select! {
            event = events.next() => match event {
                None => return seen,
                Some(SessionEvent::Reset { who, .. }) if who.identity == stuck => seen.reset = Some(begun.elapsed()),
                Some(SessionEvent::Joined(who)) if who.identity == stuck => seen.back = Some(begun.elapsed()),
                Some(_) => {}
            },
            _ = looks.tick() => {
                let waiting = session.participant(&stuck).map_or(0, |stuck| stuck.stats().account.waiting());
                seen.waiting.push((begun.elapsed(), waiting));
            }
        }
    }
}

/// The measurements at the viewers that read.
#[derive(Default)]
struct Watched {
    latencies: Vec<Histogram<u64>>,
    missed: u64,
    got: u64,
}

impl Watched {
    fn note(&mut self, at: Duration, latency: Duration) {
        let window = usize::try_from(at.as_nanos() / WINDOW.as_nanos()).expect("the run is short");
        while self.latencies.len() <= window {
            self.latencies.push(Histogram::new(2).expect("two digits are possible"));
        }
        self.latencies[window].record(nanos(latency)).expect("a histogram grows");
        self.got += 1;
    }
}

type Go = watch::Receiver<Option<Instant>>;

/// Runs all viewers on one thread, until the server closes their connections.
fn watch_all(address: SocketAddr, viewers: usize, pause: (Duration, Duration), go: &Go) -> Watched {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let watched = Rc::new(RefCell::new(Watched::default()));
    LocalSet::new().block_on(&runtime, async {
        let mut tasks = JoinSet::new();
        tasks.spawn_local(stop_and_go(address, pause, go.clone()));
        for number in 1..viewers {
            tasks.spawn_local(read_on(address, format!("v{number}"), go.clone(), Rc::clone(&watched)));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("a viewer doesn't panic");
        }
    });
    watched.take()
}

/// Connects a viewer and subscribes it to the channel.
async fn connect(address: SocketAddr, name: &str, socket: TcpSocket) -> Fallible<WebSocketStream<TcpStream>> {
    let mut request = format!("ws://{address}/{name}").into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", "foxglove.sdk.v1".parse()?);
    let (mut stream, _) = client_async(request, socket.connect(address).await?).await?;
    while let Some(message) = stream.next().await {
        if message?.to_text().is_ok_and(|text| text.contains("\"advertise\"")) {
            let subscribe = r#"{"op":"subscribe","subscriptions":[{"id":1,"channelId":1}]}"#;
            stream.send(Message::text(subscribe)).await?;
            return Ok(stream);
        }
    }
    Err("the server closed the connection".into())
}

async fn read_on(address: SocketAddr, name: String, go: Go, watched: Rc<RefCell<Watched>>) {
    let socket = TcpSocket::new_v4().expect("there are descriptors");
    let mut stream = connect(address, &name, socket).await.expect("the server lets everybody in");
    let mut due = 0;
    while let Some(Ok(message)) = stream.next().await {
        let Message::Binary(bytes) = message else { continue };
        let Some(begun) = *go.borrow() else { continue };
        let field = |at: usize| u64::from_le_bytes(bytes[HEAD + at..][..8].try_into().expect("eight bytes"));
        let (number, sent, at) = (field(0), Duration::from_nanos(field(8)), begun.elapsed());
        let mut watched = watched.borrow_mut();
        watched.missed += number - due;
        watched.note(at, at.saturating_sub(sent));
        due = number + 1;
    }
}

/// Runs the viewer that stops: it reads, stops for a while, reads on, and comes back when it has been reset.
async fn stop_and_go(address: SocketAddr, (stops, resumes): (Duration, Duration), mut go: Go) {
    let socket = TcpSocket::new_v4().expect("there are descriptors");
    socket.set_recv_buffer_size(STUCK_BUFFER).expect("it is a socket");
    let mut stream = connect(address, STUCK, socket).await.expect("the server lets everybody in");
    let begun = go.wait_for(Option::is_some).await.expect("the run begins").expect("it has begun");
    let until_it_stops = async { while let Some(Ok(_)) = stream.next().await {} };
    let _ = tokio::time::timeout_at((begun + stops).into(), until_it_stops).await;
    sleep_until((begun + resumes).into()).await;
    while let Some(Ok(_)) = stream.next().await {}
    let socket = TcpSocket::new_v4().expect("there are descriptors");
    if let Ok(mut stream) = connect(address, STUCK, socket).await {
        while let Some(Ok(_)) = stream.next().await {}
    }
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

fn seconds(at: Option<Duration>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| format!("{:.1} s", at.as_secs_f64()))
}

fn print(plan: &Plan, seen: &Seen) {
    let (stops, resumes) = plan.pause();
    let percentile = |from: Duration, to: Duration, quantile: f64| {
        let window = |at: Duration| (at.as_nanos() / WINDOW.as_nanos()) as usize;
        let mut all = Histogram::<u64>::new(2).expect("two digits are possible");
        for latencies in seen.latencies.iter().take(window(to)).skip(window(from)) {
            all.add(latencies).expect("they are alike");
        }
        millis(all.value_at_quantile(quantile))
    };
    println!("{} viewers, {RATE} messages of {PAYLOAD} B a second", plan.viewers);
    println!("one stops reading: {}, reset: {}", seconds(Some(stops)), seconds(seen.reset));
    println!("it reads again: {}, back: {}", seconds(Some(resumes)), seconds(seen.back));
    println!("the others got {} messages and missed {}", seen.got, seen.missed);
    for (when, from, to) in [("before", Duration::ZERO, stops), ("meanwhile", stops, resumes)] {
        let (p50, p99) = (percentile(from, to, 0.5), percentile(from, to, 0.99));
        println!("their latency {when}: p50 {p50:.2} ms, p99 {p99:.2} ms");
    }
}

fn draw(path: &Path, plan: &Plan, seen: &Seen) -> Fallible<()> {
    const OTHERS: RGBColor = RGBColor(30, 110, 180);
    const ONE: RGBColor = RGBColor(200, 70, 60);
    let root = SVGBackend::new(path, (900, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(250);
    let length = plan.length.as_secs_f64();
    let curve = |quantile: f64| {
        let latencies = seen.latencies.iter().enumerate().filter(|(_, latencies)| !latencies.is_empty());
        let middle = |at: usize| (at as f64 + 0.5) * WINDOW.as_secs_f64();
        latencies.map(move |(at, latencies)| (middle(at), millis(latencies.value_at_quantile(quantile))))
    };
    let tallest = curve(0.99).map(|(_, latency)| latency).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(&upper)
        .caption(format!("{} viewers that read: from publish to read", plan.viewers - 1), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..length, 0.0..tallest * 1.3)?;
    chart.configure_mesh().y_desc("ms").draw()?;
    for (name, quantile, width) in [("p50", 0.5, 1), ("p99", 0.99, 2)] {
        let style = OTHERS.stroke_width(width);
        let series = chart.draw_series(LineSeries::new(curve(quantile), style))?;
        series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE.mix(0.8)).draw()?;

    let caption = format!("the one that stops reading: messages that wait for it, {CAPACITY} at most");
    let mut chart = ChartBuilder::on(&lower)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..length, 0.0..f64::from(CAPACITY) * 1.3)?;
    chart.configure_mesh().x_desc("seconds").y_desc("messages").draw()?;
    let waiting = seen.waiting.iter().map(|(at, waiting)| (at.as_secs_f64(), *waiting as f64));
    chart.draw_series(LineSeries::new(waiting, ONE.stroke_width(2)))?;
    let stops = Some(plan.pause().0);
    for (what, at) in [("stops reading", stops), ("reset", seen.reset), ("comes back", seen.back)] {
        let Some(at) = at.map(|at| at.as_secs_f64()) else { continue };
        chart.draw_series(LineSeries::new([(at, 0.0), (at, f64::from(CAPACITY) * 1.12)], BLACK.mix(0.5)))?;
        let place = (at + length / 200.0, f64::from(CAPACITY) * 1.2);
        chart.draw_series([Text::new(what, place, ("sans-serif", 14).into_font())])?;
    }
    root.present()?;
    Ok(())
}
