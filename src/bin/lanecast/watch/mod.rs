//! `lanecast watch`: prints what a server publishes.
//!
//! Standard output carries the data. A message is one line: topic, time, content. With `--json`, each message is a JSON
//! object, and so is each gap that a lost connection leaves behind. With `--list`, the data are the channels.
//!
//! Standard error carries notes. A line that begins with `+` announces a channel, one that begins with `-` reports a
//! channel that was withdrawn, and one that begins with `!` carries any other information.
//!
//! Everything that the server sends is escaped before it reaches the terminal.

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

/// How long connecting may take, and after that, with `--list`, the server's first `serverInfo`.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long `watch` waits for channels after `serverInfo` and, with `--list`, after each advertisement. A server that
/// has channels advertises them directly after `serverInfo`.
const LISTING: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &WatchArgs) -> Result<(), Failure> {
    args.verbosity.apply();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("no thread to run on: {error}")))?;
    let interrupted = CancellationToken::new();
    let watching = async {
        // This runs on the worker, because this thread may be blocked by printing to a reader that doesn't read.
        tokio::spawn(end_at_second(Interrupts::new()?, interrupted.clone()));
        #[cfg(unix)]
        end_without_reader(interrupted.clone());
        watch_any(args, &interrupted).await
    };
    let ended = runtime.block_on(watching);
    // Looking up a name can't be interrupted, so it isn't waited for.
    runtime.shutdown_background();
    match ended {
        Ok(()) | Err(End::Quiet) => Ok(()),
        Err(End::Failed(failure) | End::Lost { failure, .. }) => Err(failure),
    }
}

/// The first interrupt closes the connection to the server, as soon as the line that is being printed has been read.
/// The second ends the program at once.
async fn end_at_second(mut interrupts: Interrupts, first: CancellationToken) {
    interrupts.next().await;
    first.cancel();
    interrupts.next().await;
    std::process::exit(130);
}

/// Ends the program when the pipe that it prints to is closed, even while there is nothing to print.
#[cfg(unix)]
fn end_without_reader(ended: CancellationToken) {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;

    // This takes a thread: tokio's safe ways to wait for a descriptor would switch the terminal or pipe, which other
    // programs share, to non-blocking writes. `poll` reports that the reader is gone without being asked for it. A file
    // has no reader, so nothing is reported for it.
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
    /// Nobody reads the output any more, or everything that was requested is done.
    Quiet,
    Failed(Failure),
    /// The connection is lost, or could not be made. Another attempt may succeed.
    Lost {
        failure: Failure,
        /// How long the server asks to wait before the next attempt.
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

/// A connection that carries frames from a server, and requests to it.
trait Wire {
    const FORMAT: WireFormat;

    /// Returns the next frame. Cancel safe.
    async fn next(&mut self) -> Result<(FrameKind, Bytes), End>;

    async fn send(&mut self, message: &ClientMessage) -> Result<(), End>;

    /// Closes the connection.
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

/// Watches, and connects again when the connection is lost. If the first attempt to connect fails, there is no other: a
/// server that has never been there is more likely a mistake.
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
    // A list is asked for by somebody who waits for its end.
    let mut due = view.list.then(|| Instant::now() + PATIENCE);
    let mut is_known = false;
    let ended = loop {
        let shown = tokio::select! {
            // Frames first: one that has arrived in time counts even if this process was stopped until after the
            // deadline.
            biased;
            () = interrupted.cancelled() => break Ok(()),
            next = wire.next() => next.and_then(|(kind, data)| view.show(kind, &data)),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                if !is_known {
                    break Err(End::lost(format!("the server sent no serverInfo within {PATIENCE:?}")));
                }
                view.listed().map(|()| Reply::None)
            }
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
    // This also happens if the server has sent its close frame: it waits for one in return.
    wire.close().await;
    ended
}

/// The reaction to a message from the server.
enum Reply {
    None,
    /// Wait for the channels that follow.
    Listing,
    Request(ClientMessage),
}

/// The state of the viewer: its options, and its knowledge of the server.
struct View<'a> {
    format: WireFormat,
    list: bool,
    json: bool,
    /// Number of messages that are still to be printed; `None` for no limit.
    left: Option<u64>,
    /// Topics to print; all if this is empty.
    topics: Vec<&'a str>,
    channels: BTreeMap<u64, Channel>,
    /// Channel ids by subscription id.
    subscriptions: BTreeMap<u32, u64>,
    next_id: u32,
    /// When the last message arrived, in nanoseconds since the epoch; `None` before the first `serverInfo`.
    heard: Option<u64>,
    /// Why the last connection was lost, until the gap is reported.
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
                // With `serverInfo` everything starts over: the channels and subscriptions before it are void.
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
                // A message on a channel that has just been withdrawn.
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

    /// Reports a gap. The server has started over, at least for this viewer, so what it has published since `from` may
    /// be missing.
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
            // It is not an error if a channel is advertised twice.
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
            // More advertisements may follow.
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

    /// Reports a new channel: as data with `--list`, otherwise as a note.
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
        // Otherwise it is a message on a channel that has just been withdrawn.
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

    /// Reports what is missing when the time for listing channels is over.
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

/// A message as a JSON object. A JSON payload is embedded as it was written, without its white space; any other payload
/// is embedded as base64.
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

/// Writes a note, which is no data, to standard error.
fn note(text: &str) {
    say(&format!("! {text}"));
}

/// Writes a line to standard error. It must not hold up the data if nobody reads it.
fn say(line: &str) {
    output::stderr().note(&escape(line));
}

/// Prints a line of data. Blocks while standard output does, so that the server sees a slow viewer (back-pressure).
fn print(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
}
