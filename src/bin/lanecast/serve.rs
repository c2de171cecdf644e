//! `lanecast serve`: this host's telemetry for whoever looks.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use lanecast::CloseError;
use lanecast::room::websocket::WebSocketRoom;
use lanecast::telemetry::{AdvertisedChannel, Channel, Schema, Telemetry};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use crate::args::{Rate, ServeArgs};
use crate::host::{self, Source};
use crate::{Failure, report};

/// How long viewers have to take what is on its way to them once the end was asked for.
const FAREWELL: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    args.verbosity.apply();
    let addr = args.addr()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("no threads to run on: {error}")))?;
    let served = runtime.block_on(serve(args, addr));
    // A sample that hangs in the system, on a dead network disk, doesn't keep the program.
    runtime.shutdown_background();
    served
}

async fn serve(args: &ServeArgs, addr: SocketAddr) -> Result<(), Failure> {
    let mut interrupts = Interrupts::new()?;
    let room = WebSocketRoom::builder().bind(addr).await.map_err(|error| Failure::new(error.to_string()))?;
    let addr = room.local_addr();
    let host = sysinfo::System::host_name().unwrap_or_else(|_| "this host".to_owned());
    let name = args.name.clone().unwrap_or_else(|| host.clone());
    let telemetry = Telemetry::builder(room.clone()).name(name).metadata([("host", host)]).build();
    let telemetry = telemetry.map_err(|error| Failure::new(error.to_string()))?;
    let (sources, missing) = host::sources(telemetry.session());
    let mut samplers = JoinSet::new();
    let mut topics = Vec::new();
    for source in sources {
        let schema = Schema::new(source.name, "jsonschema", source.schema.to_string());
        let channel = telemetry.advertise(Channel::new(source.topic, "json").schema(schema)).await;
        let channel = channel.map_err(|error| Failure::new(error.to_string()))?;
        topics.push(source.topic);
        samplers.spawn(sample(source, channel, args.rate));
    }
    say(&introduction(addr, &topics, args.rate, &missing));

    let ended = tokio::select! {
        () = interrupts.next() => None,
        ended = telemetry.session().ended() => Some(ended),
    };
    let why = ended.map(|ended| match ended {
        Ok(report) => report.room_closed.map_or_else(|| "nobody said why".to_owned(), |closed| closed.to_string()),
        Err(error) => error.to_string(),
    });
    if why.is_none() {
        say("closing; once more ends it at once\n");
    }
    let closing = async {
        let closed = telemetry.close(FAREWELL).await;
        samplers.shutdown().await;
        room.shutdown().await;
        closed
    };
    let closed = tokio::select! {
        closed = closing => closed,
        () = interrupts.next() => std::process::exit(130),
    };
    let trouble = closed.as_ref().err().map(ToString::to_string);
    if let Ok(report) | Err(CloseError::Panicked(report) | CloseError::Stuck { report, .. }) = closed {
        say(&report::lines(&report, &telemetry.session().stats()));
    }
    match (why, trouble) {
        (Some(why), _) => Err(Failure::new(format!("the session ended by itself: {why}"))),
        (None, Some(trouble)) => Err(Failure::new(trouble)),
        (None, None) => Ok(()),
    }
}

/// Samples and publishes for as long as anybody can be interested; each source by itself, so that one that hangs
/// keeps nobody.
async fn sample(source: Source, channel: AdvertisedChannel<WebSocketRoom>, rate: Rate) {
    let Source { topic, mut sample, .. } = source;
    let mut ticks = interval(rate.period());
    // After a long sample the next one is due at its usual time, not at once.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        if !channel.has_subscribers() {
            continue;
        }
        let sampled = spawn_blocking(move || {
            let message = sample().to_string();
            (message, sample)
        });
        let message;
        (message, sample) = match sampled.await {
            Ok(sampled) => sampled,
            Err(error) => return tracing::error!(topic, %error, "the source failed, its channel is silent from now on"),
        };
        if let Err(error) = channel.publish(message).await {
            return tracing::debug!(topic, %error, "sampling ends");
        }
    }
}

/// Ctrl-C, and on Unix what asks a service to end.
struct Interrupts {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Interrupts {
    #[cfg(unix)]
    fn new() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).map_err(|error| Failure::new(format!("can't listen for signals: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> Result<Self, Failure> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn introduction(addr: SocketAddr, topics: &[&str], rate: Rate, missing: &[String]) -> String {
    let port = addr.port();
    let url = if addr.ip().is_unspecified() { format!("ws://127.0.0.1:{port}") } else { format!("ws://{addr}") };
    let mut lines = format!("listening on {addr}: {} at {rate}\n", topics.join(" "));
    for missing in missing {
        lines += &format!("  {missing}\n");
    }
    lines += &format!("  in a terminal  lanecast watch {url}\n");
    lines += &format!("  from sources   cargo run --release --features server -- watch {url}\n");
    lines += &format!("  in Foxglove    Open connection > Foxglove WebSocket > {url}\n");
    if !addr.ip().is_loopback() {
        lines += "  --insecure: whoever reaches this port sees everything\n";
    }
    lines += "Ctrl-C ends it\n";
    lines
}

/// Writes to standard output; that nobody reads it is no reason to stop serving.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
