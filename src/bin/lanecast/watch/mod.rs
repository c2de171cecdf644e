//! `lanecast watch`: prints what a server shows.
//!
//! Standard output carries the data. A message is a line: topic, time, content; with `--json` it is an object, and so is
//! a gap, which a lost connection leaves behind. With `--list` the data are the channels.
//!
//! Standard error carries notes. Lines that begin with `+`, `-` or `!` say that a channel came, that one went, or what
//! else is worth knowing.
//!
//! Whatever the server sends is made harmless before it reaches the terminal.

#[cfg(feature = "server-livekit")]
mod livekit;
mod pause;
mod similar;
mod websocket;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use lanecast::protocol::client::{ChannelRequest, Subscribe, SubscribeChannels, Subscription};
use lanecast::protocol::server::{Channel, Status, StatusLevel};
use lanecast::protocol::{ClientMessage, FrameKind, ServerMessage, WireFormat};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::pause::Pause;
use self::similar::similar;
use crate::args::WatchArgs;
use crate::interrupts::Interrupts;
use crate::text::escape;
use crate::{Failure, output, secrets, text};

/// How long connecting may take, and then the server's first word of itself.
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
        #[cfg(unix)]
        end_without_reader(interrupted.clone());
        watch_any(args, &interrupted).await
    };
    let ended = runtime.block_on(watching);
    // Looking up a name can't be interrupted; it isn't waited for.
    runtime.shutdown_background();
    match ended {
        Ok(()) | Err(End::Quiet) => Ok(()),
        Err(End::Failed(failure) | End::Lost { failure, .. }) => Err(failure),
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

/// Ends the program when the pipe that it prints to is closed, also while there is nothing to print.
#[cfg(unix)]
fn end_without_reader(ended: CancellationToken) {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;

    // A thread of its own: tokio's safe ways to wait for a descriptor would switch the terminal or pipe, which other
    // programs share, to non-blocking writes. That the reader is gone is told without being asked for; a file has none,
    // and nothing is told of it.
    std::thread::spawn(move || {
        let stdout = io::stdout();
        let mut waited_for = [PollFd::new(&stdout, PollFlags::empty())];
        while poll(&mut waited_for, None) == Err(Errno::INTR) {}
        if waited_for[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            ended.cancel();
        }
    });
}

/// Why watching ends.
enum End {
    /// Nobody reads any more, or all that was asked for is done.
    Quiet,
    Failed(Failure),
    /// The connection is gone, or there was none: that may be different later.
    Lost {
        failure: Failure,
        /// How long the server asks to be left alone.
        wait: Option<Duration>,
    },
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

    fn lost(message: impl Into<String>) -> Self {
        Self::lost_for(message, None)
    }

    fn lost_for(message: impl Into<String>, wait: Option<Duration>) -> Self {
        Self::Lost { failure: Failure::new(message), wait }
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
        return keep_watching(args, args.topics(), async || livekit::LiveKit::connect(url).await, interrupted).await;
    }
    let (url, topics) = args.target();
    let server = websocket::Server::of(&url)?;
    keep_watching(args, topics, async || server.connect().await, interrupted).await
}

/// Watches, and connects again when a connection is lost, if there was one at all: a server that has never been there is
/// more likely a mistake.
async fn keep_watching<W: Wire>(
    args: &WatchArgs,
    topics: Vec<&str>,
    connect: impl AsyncFn() -> Result<W, End>,
    interrupted: &CancellationToken,
) -> Result<(), End> {
    let mut view = View::new(args, topics, W::FORMAT);
    let mut pause = Pause::new();
    let mut was_connected = false;
    loop {
        let begun = Instant::now();
        let ended = match interrupted.run_until_cancelled(connect()).await {
            Some(Ok(wire)) => {
                was_connected = true;
                watch(&mut view, wire, interrupted).await
            }
            Some(Err(end)) => Err(end),
            None => Ok(()),
        };
        let Err(End::Lost { failure: Failure(lost), wait }) = ended else { return ended };
        if !was_connected || args.list || args.no_reconnect {
            return Err(End::failed(lost));
        }
        let wait = pause.next(begun.elapsed(), wait);
        note(&format!("{lost}; connecting again in {}", text::span(wait)));
        view.lost.get_or_insert(lost);
        if interrupted.run_until_cancelled(sleep(wait)).await.is_none() {
            return Ok(());
        }
    }
}

async fn watch<W: Wire>(view: &mut View<'_>, mut wire: W, interrupted: &CancellationToken) -> Result<(), End> {
    let mut is_known = false;
    let mut due = Some(Instant::now() + PATIENCE);
    let ended = loop {
        let shown = tokio::select! {
            next = wire.next() => next.and_then(|(kind, data)| view.show(kind, &data)),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                if !is_known {
                    break Err(End::lost(format!("the server says nothing of itself: no serverInfo within {PATIENCE:?}")));
                }
                view.listed().map(|()| Reply::None)
            }
            () = interrupted.cancelled() => break Ok(()),
        };
        match shown {
            Ok(Reply::None) => {}
            Ok(Reply::Listing) => {
                is_known = true;
                due = Some(Instant::now() + LISTING);
            }
            Ok(Reply::Request(message)) => {
                if let Err(end) = wire.send(&message).await {
                    break Err(end);
                }
            }
            Err(end) => break Err(end),
        }
    };
    // Also if the server has said goodbye: it waits for ours.
    wire.close().await;
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
    json: bool,
    /// Messages that are still wanted.
    left: Option<u64>,
    /// Empty: all.
    topics: Vec<&'a str>,
    channels: BTreeMap<u64, Channel>,
    /// Channels by subscription.
    subscriptions: BTreeMap<u32, u64>,
    next_id: u32,
    /// When something was last heard, in nanoseconds since the epoch; `None` before the first `serverInfo`.
    heard: Option<u64>,
    /// Why the last connection was lost, until there is another.
    lost: Option<String>,
}

impl<'a> View<'a> {
    fn new(args: &WatchArgs, topics: Vec<&'a str>, format: WireFormat) -> Self {
        Self {
            format,
            list: args.list,
            json: args.json,
            left: args.count,
            topics,
            channels: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            next_id: 1,
            heard: None,
            lost: None,
        }
    }

    fn show(&mut self, kind: FrameKind, data: &Bytes) -> Result<Reply, End> {
        let mut faults = Vec::new();
        let message = match ServerMessage::decode_each(self.format, kind, data, &mut faults) {
            Ok(message) => message,
            Err(error) => {
                note(&format!("unreadable message: {error}"));
                return Ok(Reply::None);
            }
        };
        for fault in faults {
            note(&format!("unreadable {fault}"));
        }
        if let Some(heard) = &mut self.heard {
            let before = std::mem::replace(heard, now());
            if matches!(message, ServerMessage::ServerInfo(_)) {
                self.gap(before)?;
            }
        }
        match message {
            ServerMessage::ServerInfo(info) => {
                // A new beginning: what was known is void.
                self.channels.clear();
                self.subscriptions.clear();
                self.heard = Some(now());
                note(&format!("connected to {}", info.name));
                Ok(Reply::Listing)
            }
            ServerMessage::Advertise(advertise) => self.advertise(advertise.channels),
            ServerMessage::Unadvertise(gone) => Ok(self.unadvertise(&gone.channel_ids)),
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
                note(&format!("{level}: {message}"));
                Ok(Reply::None)
            }
            ServerMessage::RemoveStatus(over) => {
                note(&format!("no longer: {}", over.status_ids.join(", ")));
                Ok(Reply::None)
            }
            _ => Ok(Reply::None),
        }
    }

    /// The server has started afresh, for us at least: what it has published since `from` may be missing.
    fn gap(&mut self, from: u64) -> Result<(), End> {
        let reason = self.lost.take().unwrap_or_else(|| "the server started afresh".to_owned());
        let (from, to) = (text::exact_time(from), text::exact_time(now()));
        note(&format!("gap from {from} to {to}: {reason}"));
        if self.json && !self.list {
            let gap = json!({ "gap": { "reason": secrets::hide(&reason), "from": from, "to": to } });
            print(&escape(&gap.to_string()))?;
        }
        Ok(())
    }

    fn advertise(&mut self, channels: Vec<Channel>) -> Result<Reply, End> {
        let mut subscriptions = Vec::new();
        for channel in channels {
            // Told twice: fine.
            if self.channels.contains_key(&channel.id) {
                continue;
            }
            self.found(&channel)?;
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

    /// A channel has come: the data of a list, else a note.
    fn found(&self, channel: &Channel) -> io::Result<()> {
        let schema = channel.schema.as_ref().map_or("", |schema| &schema.name);
        let line = format!("+ {}  {}  {}", channel.topic, channel.encoding, schema);
        if !self.list {
            say(&line);
            return Ok(());
        }
        if !self.json {
            return print(&escape(&line));
        }
        let encoding = channel.schema.as_ref().map_or("", |schema| &schema.encoding);
        let line = json!({
            "topic": channel.topic,
            "encoding": channel.encoding,
            "schema_name": schema,
            "schema_encoding": encoding,
        });
        print(&escape(&line.to_string()))
    }

    fn unadvertise(&mut self, ids: &[u64]) -> Reply {
        for id in ids {
            if let Some(channel) = self.channels.remove(id) {
                say(&format!("- {}", channel.topic));
            }
            self.subscriptions.retain(|_, channel| channel != id);
        }
        Reply::None
    }

    fn message(&mut self, channel: u64, log_time_ns: u64, payload: &Bytes) -> Result<Reply, End> {
        // Else of a channel that has just gone.
        let Some(channel) = self.channels.get(&channel) else { return Ok(Reply::None) };
        if self.json {
            print(&json_line(channel, log_time_ns, payload))?;
        } else {
            let content = text::message(&channel.encoding, payload);
            print(&format!("{} {} {content}", escape(&channel.topic), text::time(log_time_ns)))?;
        }
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
            note("no channels so far");
        }
        let known = || self.channels.values().map(|channel| &*channel.topic);
        for topic in &self.topics {
            if !known().any(|known| known == *topic) {
                let meant =
                    similar(topic, known()).map_or_else(String::new, |meant| format!(": did you mean {meant}?"));
                note(&format!("nothing is called {topic} so far{meant}"));
            }
        }
        if self.list { Err(End::Quiet) } else { Ok(()) }
    }
}

/// A message as an object. JSON stands in it as it was written, anything else as Base64.
fn json_line(channel: &Channel, log_time_ns: u64, payload: &Bytes) -> String {
    let content = text::json(&channel.encoding, payload).map_or_else(
        || format!("\"payload_base64\":\"{}\"", BASE64_STANDARD.encode(payload)),
        |message| format!("\"message\":{message}"),
    );
    let (topic, encoding) = (Value::from(&*channel.topic), Value::from(&*channel.encoding));
    let head = format!(
        "\"topic\":{topic},\"time\":\"{}\",\"log_time_ns\":{log_time_ns},\"encoding\":{encoding}",
        text::exact_time(log_time_ns)
    );
    format!("{{{},{content}}}", escape(&head))
}

/// Nanoseconds since the epoch.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Says something that isn't data.
fn note(text: &str) {
    say(&format!("! {text}"));
}

/// A line on standard error, which must not hold up the data if nobody reads it.
fn say(line: &str) {
    output::stderr().note(&escape(line));
}

/// Prints a line of data. Blocks while the terminal does: then the server sees a slow viewer, as it should.
fn print(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
}
