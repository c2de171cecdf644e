//! `lanecast watch`: prints what a server shows.
//!
//! A message is a line: topic, time, content. Lines that begin with `+`, `-` or `!` say that a channel came, that one
//! went, or what else is worth knowing. Whatever the server sends is made harmless before it reaches the terminal.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use lanecast::protocol::client::{Subscribe, Subscription};
use lanecast::protocol::server::{Channel, MessageData, Status, StatusLevel};
use lanecast::protocol::{ClientMessage, FrameKind, ServerMessage, Subprotocol, WireFormat};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::args::WatchArgs;
use crate::text::escape;
use crate::{Failure, text};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long after `serverInfo` the channels may take to be listed. A server that has any sends them right behind.
const LISTING: Duration = Duration::from_secs(1);

/// How long the server may take to answer a goodbye.
const FAREWELL: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &WatchArgs) -> Result<(), Failure> {
    args.verbosity.apply();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("no thread to run on: {error}")))?;
    match runtime.block_on(watch(args)) {
        Ok(()) | Err(End::Quiet) => Ok(()),
        Err(End::Failed(failure)) => Err(failure),
    }
}

/// Why watching ends.
enum End {
    /// Nobody reads any more, or all that was asked for is done.
    Quiet,
    Failed(Failure),
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

async fn watch(args: &WatchArgs) -> Result<(), End> {
    let (url, topics) = args.target();
    let mut socket = connect(&url).await?;
    let mut view = View::new(args, topics);
    let mut listed_by: Option<Instant> = None;
    let ended = loop {
        tokio::select! {
            next = socket.next() => {
                let (kind, data) = match next {
                    Some(Ok(Message::Text(text))) => (FrameKind::Text, Bytes::from(text)),
                    Some(Ok(Message::Binary(data))) => (FrameKind::Binary, data),
                    Some(Ok(Message::Close(frame))) => break Err(closed(frame)),
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => break Err(End::failed(format!("the connection to {url} broke: {error}"))),
                    None => break Err(End::failed(format!("the connection to {url} ended without a goodbye"))),
                };
                match view.show(kind, &data) {
                    Ok(Reply::None) => {}
                    Ok(Reply::Listing) => listed_by = Some(Instant::now() + LISTING),
                    Ok(Reply::Subscribe(message)) => {
                        if let Err(error) = socket.send(message).await {
                            break Err(End::failed(format!("the connection to {url} broke: {error}")));
                        }
                    }
                    Err(end) => break Err(end),
                }
            }
            () = sleep_until(listed_by.unwrap_or_else(Instant::now)), if listed_by.is_some() => {
                listed_by = None;
                if let Err(end) = view.listed() {
                    break Err(end);
                }
            }
            _ = tokio::signal::ctrl_c() => break Ok(()),
        }
    };
    if !matches!(ended, Err(End::Failed(_))) {
        // It is over either way.
        let _ = timeout(FAREWELL, socket.close(None)).await;
    }
    ended
}

async fn connect(url: &str) -> Result<Socket, End> {
    if url.starts_with("wss://") {
        return Err(End::failed(format!("{url}: TLS isn't supported, only ws://")));
    }
    let request = url.into_client_request().ok().filter(|request| request.uri().scheme_str() == Some("ws"));
    let Some(mut request) = request else {
        return Err(End::failed(format!("{url:?} is no server's address: give ws://HOST:PORT")));
    };
    // Not the schema-table dialect: a viewer that needs no schemas has nothing to gain from it.
    let offered = [Subprotocol::SdkV1, Subprotocol::WebsocketV1].map(Subprotocol::as_str).join(", ");
    let offered = offered.parse().expect("subprotocol names are made of letters and dots");
    request.headers_mut().insert("sec-websocket-protocol", offered);
    match timeout(PATIENCE, connect_async(request)).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(error)) => Err(End::failed(unconnected(url, &error))),
        Err(_) => Err(End::failed(format!("{url} didn't answer for {} s", PATIENCE.as_secs()))),
    }
}

fn unconnected(url: &str, error: &Error) -> String {
    match error {
        Error::Io(io) if io.kind() == io::ErrorKind::ConnectionRefused => {
            format!("nobody listens at {url}: start `lanecast serve` first")
        }
        Error::Io(io) => format!("can't connect to {url}: {io}"),
        Error::Http(response) => format!("{url} is no telemetry server for this viewer: HTTP {}", response.status()),
        error => format!("{url} is no telemetry server for this viewer: {error}"),
    }
}

fn closed(frame: Option<CloseFrame>) -> End {
    End::failed(match frame {
        Some(frame) if frame.reason.is_empty() => {
            format!("the server closed the connection: {}", u16::from(frame.code))
        }
        Some(frame) => format!("the server closed the connection: {} ({})", u16::from(frame.code), frame.reason),
        None => "the server closed the connection without saying why".to_owned(),
    })
}

/// What a message from the server asks for.
enum Reply {
    None,
    /// The channels follow.
    Listing,
    Subscribe(Message),
}

/// What the viewer knows and wants.
struct View<'a> {
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
    fn new(args: &WatchArgs, topics: Vec<&'a str>) -> Self {
        Self {
            list: args.list,
            left: args.count,
            topics,
            channels: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            next_id: 1,
        }
    }

    fn show(&mut self, kind: FrameKind, data: &Bytes) -> Result<Reply, End> {
        let message = match ServerMessage::decode(WireFormat::V1, kind, data) {
            Ok(message) => message,
            Err(error) => return note(&format!("unreadable message: {error}")),
        };
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
            ServerMessage::MessageData(data) => self.message(&data),
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
            return Err(End::Quiet);
        }
        if subscriptions.is_empty() {
            return Ok(Reply::None);
        }
        let frame = ClientMessage::Subscribe(Subscribe { subscriptions }).encode();
        let text = String::from_utf8(frame.to_bytes().to_vec()).expect("a text frame is UTF-8");
        Ok(Reply::Subscribe(Message::text(text)))
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

    fn message(&mut self, data: &MessageData) -> Result<Reply, End> {
        let channel = self.subscriptions.get(&data.subscription_id).and_then(|id| self.channels.get(id));
        // Of a channel that has just gone.
        let Some(channel) = channel else { return Ok(Reply::None) };
        let content = text::message(&channel.encoding, &data.payload);
        print(&format!("{} {} {content}", escape(&channel.topic), text::time(data.log_time_ns)))?;
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
