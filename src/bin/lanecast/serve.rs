//! `lanecast serve`: publishes this host's telemetry.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use lanecast::CloseError;
use lanecast::protocol::Frame;
#[cfg(feature = "server-livekit")]
use lanecast::room::livekit::LiveKitRoom;
use lanecast::room::websocket::{BindError, WebSocketRoom, WebSocketRoomBuilder};
use lanecast::room::{Inbound, Room};
use lanecast::telemetry::{AdvertisedChannel, Channel, Schema, StatusLevel, Telemetry};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use crate::args::{Rate, ServeArgs, is_loopback};
use crate::host::{self, Source};
use crate::interrupts::Interrupts;
#[cfg(feature = "server-livekit")]
use crate::secrets;
use crate::{Failure, descriptors, output, report};

/// Origins that are allowed if the server listens on this host only: those of common viewers. Desktop viewers send
/// `file://`.
const VIEWERS: [&str; 3] = ["file://", "https://app.foxglove.dev", "https://embed.foxglove.dev"];

/// How long viewers may take to receive their backlog after the end was requested.
const FAREWELL: Duration = Duration::from_secs(2);

/// Maximum number of viewers, if the process may open enough files. It is the room's default.
const MAX_CONNECTIONS: usize = 10_000;

pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    args.verbosity.apply();
    let place = Place::of(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("no threads to run on: {error}")))?;
    let served = runtime.block_on(serve(args, place));
    // A sample that hangs in the system, for example on a dead network disk, must not keep the program running.
    runtime.shutdown_background();
    served
}

/// Where viewers connect.
enum Place {
    Listen(Vec<SocketAddr>),
    #[cfg(feature = "server-livekit")]
    LiveKit {
        url: String,
        access: crate::livekit::Access,
    },
}

impl Place {
    fn of(args: &ServeArgs) -> Result<Self, Failure> {
        #[cfg(feature = "server-livekit")]
        if let Some(url) = &args.livekit {
            let access = crate::livekit::Access::of_environment(&host_name())?;
            return Ok(Self::LiveKit { url: url.clone(), access });
        }
        args.addrs().map(Self::Listen)
    }
}

async fn serve(args: &ServeArgs, place: Place) -> Result<(), Failure> {
    let interrupts = Interrupts::new()?;
    match place {
        Place::Listen(addrs) => {
            let (connections, open_files) = descriptors::connections(MAX_CONNECTIONS);
            let room = listen(args, &addrs, connections)?;
            let mut introduction = listening(&room);
            introduction.ways.extend(open_files.map(|limit| few_files(connections, limit)));
            let leave = room.clone();
            show(args, room, interrupts, &introduction, async move { leave.shutdown().await }).await
        }
        #[cfg(feature = "server-livekit")]
        Place::LiveKit { url, access } => {
            let introduction = joined(&url, &access);
            let tokens = move || std::future::ready(access.token());
            let room = LiveKitRoom::builder(&url).connect_supervised(tokens).await;
            let room = room.map_err(|error| Failure::new(format!("--livekit {}: {error}", secrets::public(&url))))?;
            let leave = room.clone();
            show(args, room, interrupts, &introduction, async move { leave.close().await }).await
        }
    }
}

/// Creates a room that listens on these addresses. If they are all loopback addresses, it also allows the origins of
/// common viewers and of pages on this host.
fn listen(args: &ServeArgs, addrs: &[SocketAddr], connections: usize) -> Result<WebSocketRoom, Failure> {
    let mut builder = WebSocketRoom::builder().max_connections(connections);
    if addrs.iter().all(is_loopback) {
        builder = VIEWERS.into_iter().fold(builder.allow_loopback_origins(), WebSocketRoomBuilder::allow_origin);
    }
    let visitors = &args.visitors;
    builder = visitors.public_urls.iter().fold(builder, WebSocketRoomBuilder::public_url);
    builder = visitors.allowed_origins.iter().fold(builder, WebSocketRoomBuilder::allow_origin);
    builder = visitors.trusted_proxies.iter().fold(builder, |builder, proxy| builder.trusted_proxy(*proxy));
    builder.bind_all(addrs).map_err(not_listening)
}

fn host_name() -> String {
    sysinfo::System::host_name().unwrap_or_else(|_| "this host".to_owned())
}

/// Publishes this host's telemetry in `room` until the program is asked to end or the session ends. Then closes the
/// session and leaves the room.
async fn show<R>(
    args: &ServeArgs,
    room: R,
    mut interrupts: Interrupts,
    introduction: &Introduction,
    leave: impl Future<Output = ()>,
) -> Result<(), Failure>
where
    R: Room<Message = Frame, Incoming: Inbound>,
{
    let host = host_name();
    let name = args.name.clone().unwrap_or_else(|| host.clone());
    let telemetry = Telemetry::builder(room).name(name).metadata([("host", host)]).time(!args.no_time).build();
    let telemetry = telemetry.map_err(|error| Failure::new(error.to_string()))?;
    let (sources, missing) = host::sources(telemetry.session());
    let mut samplers = JoinSet::new();
    let mut topics = Vec::new();
    for source in sources {
        let schema = Schema::new(source.name, "jsonschema", source.schema.to_string());
        let channel = telemetry.advertise(Channel::new(source.topic, "json").schema(schema)).await;
        let channel = channel.map_err(|error| Failure::new(error.to_string()))?;
        topics.push(source.topic);
        samplers.spawn(sample(source, channel, args.rate, telemetry.clone()));
    }
    say(&introduction.with(&topics, args.rate, &missing));

    let ended = tokio::select! {
        () = interrupts.next() => None,
        ended = telemetry.session().ended() => Some(ended),
    };
    let why = ended.map(|ended| match ended {
        Ok(report) => report.room_closed.map_or_else(|| "no reason was given".to_owned(), |closed| closed.to_string()),
        Err(error) => error.to_string(),
    });
    if why.is_none() {
        say("closing; press Ctrl-C again to end at once\n");
    }
    let closing = async {
        let closed = telemetry.close(FAREWELL).await;
        samplers.shutdown().await;
        leave.await;
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
        (Some(why), _) => Err(Failure::new(format!("the session ended unexpectedly: {why}"))),
        (None, Some(trouble)) => Err(Failure::new(trouble)),
        (None, None) => Ok(()),
    }
}

/// Samples a source and publishes the samples, until publishing fails or the source panics. Each source has a task of
/// its own, so that one that hangs delays no other.
async fn sample(source: Source, channel: AdvertisedChannel, rate: Rate, telemetry: Telemetry) {
    let Source { topic, mut sample, .. } = source;
    let mut trouble = Trouble { telemetry, topic, told: None };
    let mut ticks = interval(rate.period());
    // After a long sample, the next one is due at its regular time, not at once.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        // A status that is shown must stay true, so sampling goes on even without subscribers.
        if !channel.has_subscribers() && trouble.told.is_none() {
            continue;
        }
        let sampled = spawn_blocking(move || (sample(), sample));
        let sampled = match sampled.await {
            Ok((sampled, source)) => {
                sample = source;
                sampled
            }
            Err(error) => {
                tracing::error!(topic, %error, "the source failed, its channel is silent from now on");
                trouble.tell(StatusLevel::Error, format!("{topic} has failed and is silent from now on")).await;
                return;
            }
        };
        let message = match sampled {
            Ok(message) => message.to_string(),
            // Nothing is published: an old or empty message with a current time would be taken for the truth.
            Err(error) => {
                tracing::debug!(topic, error, "no sample");
                trouble.tell(StatusLevel::Warning, format!("{topic} can't be read: {error}")).await;
                continue;
            }
        };
        trouble.is_over().await;
        if let Err(error) = channel.publish(message).await {
            return tracing::debug!(topic, %error, "sampling ends");
        }
    }
}

/// The status for viewers about a source that can't be read.
struct Trouble {
    telemetry: Telemetry,
    topic: &'static str,
    told: Option<String>,
}

impl Trouble {
    /// Id of the status.
    fn id(&self) -> String {
        format!("source {}", self.topic)
    }

    /// Shows a status, unless the same one is shown already.
    async fn tell(&mut self, level: StatusLevel, message: String) {
        if self.told.as_ref() == Some(&message) {
            return;
        }
        match self.telemetry.status(level, &message, Some(&self.id())).await {
            Ok(()) => self.told = Some(message),
            Err(error) => tracing::debug!(topic = self.topic, %error, "a status isn't shown"),
        }
    }

    /// Removes the status.
    async fn is_over(&mut self) {
        if self.told.take().is_some()
            && let Err(error) = self.telemetry.remove_status([self.id()]).await
        {
            tracing::debug!(topic = self.topic, %error, "a status isn't removed");
        }
    }
}

/// The text that is printed once viewers can connect.
struct Introduction {
    /// Where viewers connect.
    place: String,
    /// How viewers connect and what to note, one line each.
    ways: Vec<String>,
}

impl Introduction {
    fn with(&self, topics: &[&str], rate: Rate, missing: &[String]) -> String {
        let mut lines = format!("{}: {} at {rate}\n", self.place, topics.join(" "));
        for line in missing.iter().chain(&self.ways) {
            lines += &format!("  {line}\n");
        }
        lines += "Ctrl-C ends it\n";
        lines
    }
}

fn listening(room: &WebSocketRoom) -> Introduction {
    let addrs = room.local_addrs();
    // IPv4 addresses are understood everywhere.
    let addr = addrs.iter().copied().find(SocketAddr::is_ipv4).unwrap_or(room.local_addr());
    let port = addr.port();
    let url = if addr.ip().is_unspecified() { format!("ws://127.0.0.1:{port}") } else { format!("ws://{addr}") };
    let mut ways = vec![
        format!("in a terminal  lanecast watch {url}"),
        format!("from sources   cargo run --release --features server -- watch {url}"),
        format!("in Foxglove    Open connection > Foxglove WebSocket > {url}"),
    ];
    if !addrs.iter().all(is_loopback) {
        ways.push("viewers in a browser or on a desktop need --allow-origin, for example file://".to_owned());
        ways.push("--insecure: anybody who reaches this port sees everything".to_owned());
    }
    let addrs: Vec<_> = addrs.iter().map(SocketAddr::to_string).collect();
    Introduction { place: format!("listening on {}", addrs.join(" and ")), ways }
}

fn few_files(connections: usize, limit: u64) -> String {
    format!("at most {connections} viewers at once: the process may open {limit} files (`ulimit -n` raises that)")
}

/// The failure to listen, with the argument to change.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` has")]
fn not_listening(error: BindError) -> Failure {
    let advice = match &error {
        BindError::AddressInUse { .. } => "choose another port with --addr HOST:PORT; port 0 picks one that is free",
        BindError::Unavailable { source, .. } => match source.kind() {
            io::ErrorKind::AddrNotAvailable => "give an address of this host with --addr HOST:PORT",
            io::ErrorKind::PermissionDenied => {
                "choose a port from 1024 on with --addr HOST:PORT; those below are the system's"
            }
            _ => "give another address with --addr HOST:PORT",
        },
        BindError::InvalidPublicUrl { .. } => return Failure::new(format!("--public-url: {error}")),
        BindError::InvalidOrigin { .. } => return Failure::new(format!("--allow-origin: {error}")),
        // The room's message names the setting.
        _ => return Failure::new(error.to_string()),
    };
    let what = match &error {
        BindError::AddressInUse { address, .. } => format!("cannot listen on {address}: another program does"),
        error => error.to_string(),
    };
    Failure::new(format!("{what}: {advice}"))
}

#[cfg(feature = "server-livekit")]
fn joined(url: &str, access: &crate::livekit::Access) -> Introduction {
    let url = secrets::public(url);
    let ways = vec![
        format!("in a terminal  lanecast watch --livekit {url}"),
        format!("from sources   cargo run --release --features server-livekit -- watch --livekit {url}"),
    ];
    Introduction { place: format!("in {} on {url}", access.room()), ways }
}

/// Writes to standard output. Serving goes on even if nobody reads it.
fn say(text: &str) {
    output::stdout().write(text);
}
