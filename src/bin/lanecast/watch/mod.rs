//! `lanecast watch`: prints what a server shows.
//!
//! A message is a line: topic, time, content. Lines that begin with `+`, `-` or `!` say that a channel came, that one
//! went, or what else is worth knowing. Whatever the server sends is made harmless before it reaches the terminal.

#[cfg(feature = "server-livekit")]
mod livekit;
mod websocket;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use lanecast::protocol::client::{ChannelRequest, Subscribe, SubscribeChannels, Subscription};
use lanecast::protocol::server::{Channel, Status, StatusLevel};
use lanecast::protocol::{ClientMessage, FrameKind, ServerMessage, WireFormat};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::args::WatchArgs;
use crate::interrupts::Interrupts;
use crate::text::escape;
use crate::{Failure, text};

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long after `serverInfo`, and after each piece, the channels may take to be listed. A server that has any sends them
/// right behind.
const LISTING: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &WatchArgs) -> Result<(), Failure> {
    args.verbosity.apply();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("no thread to run on: {error}")))?;
    let interrupted = CancellationToken::new();
    let watching = async {
        // On the worker: this thread may be printing, to somebody who doesn't read.
        tokio::spawn(end_at_second(Interrupts::new()?, interrupted.clone()));
        watch_any(args, &interrupted).await
    };
    let ended = runtime.block_on(watching);
    // Looking up a name can't be interrupted; it isn't waited for.
    runtime.shutdown_background();
    match ended {
        Ok(()) | Err(End::Quiet) => Ok(()),
        Err(End::Failed(failure)) => Err(failure),
    }
}

/// The first interrupt takes leave of the server, as soon as what is being printed is read; the second ends the program
/// wherever it is.
async fn end_at_second(mut interrupts: Interrupts, first: CancellationToken) {
    interrupts.next().await;
    first.cancel();
    interrupts.next().await;
    std::process::exit(130);
}

/// Why watching ends.
enum End {
    /// Nobody reads any more, or all that was asked for is done.
    Quiet,
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Quiet,
            _ => Self::Failed(Failure::new(format!("can't print: {error}"))),
        }
    }
}

impl End {
    fn failed(message: impl Into<String>) -> Self {
        Self::Failed(Failure::new(message))
    }
}

/// How frames come from a server, and requests go to it.
trait Wire {
    const FORMAT: WireFormat;

    /// The next frame. Safe to cancel.
    async fn next(&mut self) -> Result<(FrameKind, Bytes), End>;

    async fn send(&mut self, message: &ClientMessage) -> Result<(), End>;

    /// Says goodbye.
    async fn close(self);
}

async fn watch_any(args: &WatchArgs, interrupted: &CancellationToken) -> Result<(), End> {
    #[cfg(feature = "server-livekit")]
    if let Some(url) = &args.livekit {
        let connected = interrupted.run_until_cancelled(livekit::LiveKit::connect(url)).await;
        return watch(args, args.topics(), connected.ok_or(End::Quiet)??, interrupted).await;
    }
    let (url, topics) = args.target();
    let connected = interrupted.run_until_cancelled(websocket::WebSocket::connect(&url)).await;
    watch(args, topics, connected.ok_or(End::Quiet)??, interrupted).await
}

async fn watch<W: Wire>(
    args: &WatchArgs,
    topics: Vec<&str>,
    mut wire: W,
    interrupted: &CancellationToken,
) -> Result<(), End> {
    let mut view = View::new(args, topics, W::FORMAT);
    let mut listed_by: Option<Instant> = None;
    let ended = loop {
        let shown = tokio::select! {
            next = wire.next() => next.and_then(|(kind, data)| view.show(kind, &data)),
            () = sleep_until(listed_by.unwrap_or_else(Instant::now)), if listed_by.is_some() => {
                listed_by = None;
                view.listed().map(|()| Reply::None)
            }
            () = interrupted.cancelled() => break Ok(()),
        };
        match shown {
            Ok(Reply::None) => {}
            Ok(Reply::Listing) => listed_by = Some(Instant::now() + LISTING),
            Ok(Reply::Request(message)) => {
                if let Err(end) = wire.send(&message).await {
                    break Err(end);
                }
            }
            Err(end) => break Err(end),
        }
    };
    if !matches!(ended, Err(End::Failed(_))) {
        wire.close().await;
    }
    ended
}

/// What a message from the server asks for.
enum Reply {
    None,
    /// The channels follow.
    Listing,
    Request(ClientMessage),
}

/// What the viewer knows and wants.
struct View<'a> {
    format: WireFormat,
    list: bool,
    /// Messages that are still wanted.
    left: Option<u64>,
    /// Empty: all.
    topics: Vec<&'a str>,
    channels: BTreeMap<u64, Channel>,
    /// Channels by subscription.
    subscriptions: BTreeMap<u32, u64>,
    next_id: u32,
}

impl<'a> View<'a> {
    fn new(args: &WatchArgs, topics: Vec<&'a str>, format: WireFormat) -> Self {
        Self {
            format,
            list: args.list,
            left: args.count,
            topics,
            channels: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            next_id: 1,
        }
    }

    fn show(&mut self, kind: FrameKind, data: &Bytes) -> Result<Reply, End> {
        let mut faults = Vec::new();
        let message = match ServerMessage::decode_each(self.format, kind, data, &mut faults) {
            Ok(message) => message,
            Err(error) => return note(&format!("unreadable message: {error}")),
        };
        for fault in faults {
            note(&format!("unreadable {fault}"))?;
        }
        match message {
            ServerMessage::ServerInfo(info) => {
                // A new beginning: what was known is void.
                self.channels.clear();
                self.subscriptions.clear();
                note(&format!("connected to {}", info.name))?;
                Ok(Reply::Listing)
            }
            ServerMessage::Advertise(advertise) => self.advertise(advertise.channels),
            ServerMessage::Unadvertise(gone) => self.unadvertise(&gone.channel_ids),
            ServerMessage::MessageData(data) => match self.subscriptions.get(&data.subscription_id) {
                Some(channel) => self.message(*channel, data.log_time_ns, &data.payload),
                // Of a channel that has just gone.
                None => Ok(Reply::None),
            },
            ServerMessage::ChannelData(data) => self.message(data.channel_id, data.log_time_ns, &data.payload),
            ServerMessage::Status(Status { level, message, .. }) => {
                let level = match level {
                    StatusLevel::Info => "info",
                    StatusLevel::Warning => "warning",
                    StatusLevel::Error => "error",
                };
                note(&format!("{level}: {message}"))
            }
            ServerMessage::RemoveStatus(over) => note(&format!("no longer: {}", over.status_ids.join(", "))),
            _ => Ok(Reply::None),
        }
    }

    fn advertise(&mut self, channels: Vec<Channel>) -> Result<Reply, End> {
        let mut subscriptions = Vec::new();
        for channel in channels {
            // Told twice: fine.
            if self.channels.contains_key(&channel.id) {
                continue;
            }
            let schema = channel.schema.as_ref().map_or("", |schema| &schema.name);
            print(&format!("+ {}  {}  {}", escape(&channel.topic), escape(&channel.encoding), escape(schema)))?;
            if !self.list && (self.topics.is_empty() || self.topics.contains(&&*channel.topic)) {
                let subscription = Subscription { id: self.next_id, channel_id: channel.id };
                self.next_id = self.next_id.wrapping_add(1);
                self.subscriptions.insert(subscription.id, channel.id);
                subscriptions.push(subscription);
            }
            self.channels.insert(channel.id, channel);
        }
        if self.list {
            // More pieces may follow.
            return Ok(Reply::Listing);
        }
        if subscriptions.is_empty() {
            return Ok(Reply::None);
        }
        Ok(Reply::Request(match self.format {
            WireFormat::V1 => ClientMessage::Subscribe(Subscribe { subscriptions }),
            WireFormat::V2 => {
                let request =
                    |wanted: Subscription| ChannelRequest { id: wanted.channel_id, request_video_track: false };
                let channels = subscriptions.into_iter().map(request).collect();
                ClientMessage::SubscribeChannels(SubscribeChannels { channels })
            }
        }))
    }

    fn unadvertise(&mut self, ids: &[u64]) -> Result<Reply, End> {
        for id in ids {
            if let Some(channel) = self.channels.remove(id) {
                print(&format!("- {}", escape(&channel.topic)))?;
            }
            self.subscriptions.retain(|_, channel| channel != id);
        }
        Ok(Reply::None)
    }

    fn message(&mut self, channel: u64, log_time_ns: u64, payload: &Bytes) -> Result<Reply, End> {
        // Else of a channel that has just gone.
        let Some(channel) = self.channels.get(&channel) else { return Ok(Reply::None) };
        let content = text::message(&channel.encoding, payload);
        print(&format!("{} {} {content}", escape(&channel.topic), text::time(log_time_ns)))?;
        if let Some(left) = &mut self.left {
            *left -= 1;
            if *left == 0 {
                return Err(End::Quiet);
            }
        }
        Ok(Reply::None)
    }

    /// The time for listing channels is over: says what isn't there.
    fn listed(&self) -> Result<(), End> {
        if self.channels.is_empty() {
            note("no channels so far")?;
        }
        for topic in &self.topics {
            if !self.channels.values().any(|channel| channel.topic == *topic) {
                note(&format!("nothing is called {topic} so far"))?;
            }
        }
        if self.list { Err(End::Quiet) } else { Ok(()) }
    }
}

fn note(text: &str) -> Result<Reply, End> {
    print(&format!("! {}", escape(text)))?;
    Ok(Reply::None)
}

/// Prints a line. Blocks while the terminal does: then the server sees a slow viewer, as it should.
fn print(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
}
