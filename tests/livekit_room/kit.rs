//! A server for the tests, and viewers that are participants of the official SDK.

use std::io::Write as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use lanecast::protocol::stream::StreamDecoder;
use lanecast::protocol::{ClientMessage, Frame, ServerMessage, WireFormat};
use lanecast::room::livekit::{LiveKitRoom, LiveKitRoomBuilder, TokenRequest};
use lanecast::{EndReason, Events, InstanceId, ParticipantIdentity, Session, SessionEvent, SessionHandle};
use livekit::data_stream::api::{ByteStreamReader, ByteStreamWriter, StreamByteOptions, StreamWriter};
use livekit::{Room, RoomEvent, RoomOptions};
use livekit_api::access_token::{AccessToken, VideoGrants};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Notify;

/// A test that waits longer than this fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) const DEVICE: &str = "device";

/// A LiveKit server, and a room on it that no other test uses.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) key: String,
    pub(crate) secret: String,
    pub(crate) room: String,
}

impl Server {
    /// The server that the environment names; `None`, with a note, if it names none.
    pub(crate) fn of_environment() -> Option<Self> {
        let Ok(url) = std::env::var("LIVEKIT_URL") else {
            eprintln!("left out: LIVEKIT_URL names no server (livekit-server --dev is one)");
            return None;
        };
        let var = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let (key, secret) = (var("LIVEKIT_API_KEY", "devkey"), var("LIVEKIT_API_SECRET", "secret"));
        let room = format!("lanecast-{:016x}", fastrand::u64(..));
        Some(Self { url, key, secret, room })
    }

    pub(crate) fn token(&self, identity: &str) -> String {
        let identity: ParticipantIdentity = identity.parse().expect("a test's identity is well-formed");
        let Self { key, secret, room, .. } = self;
        let request = TokenRequest { key, secret, room, identity: &identity, valid_for: HOUR };
        request.mint().expect("the key is not empty")
    }

    /// Connects to the room as the device, with the default settings.
    pub(crate) async fn device(&self) -> LiveKitRoom {
        self.device_with(|room| room).await
    }

    /// Connects to the room as the device, with what `set` changes in the default settings.
    pub(crate) async fn device_with(&self, set: impl FnOnce(LiveKitRoomBuilder) -> LiveKitRoomBuilder) -> LiveKitRoom {
        let builder = set(LiveKitRoom::builder(&self.url));
        within(builder.connect(&self.token(DEVICE))).await.expect("the server is there")
    }

    /// Viewers `v0`, `v1` and so on, which connect at once.
    pub(crate) async fn viewers(&self, count: usize) -> Vec<Viewer> {
        join_all((0..count).map(|number| async move { self.viewer(&format!("v{number}")).await })).await
    }

    /// A viewer that advertises no version.
    pub(crate) async fn viewer(&self, identity: &str) -> Viewer {
        self.viewer_of_version(identity, None).await
    }

    pub(crate) async fn viewer_of_version(&self, identity: &str, version: Option<&str>) -> Viewer {
        let grants = VideoGrants { room_join: true, room: self.room.clone(), ..VideoGrants::default() };
        let token = AccessToken::with_api_key(&self.key, &self.secret).with_identity(identity).with_grants(grants);
        let token = token.with_attributes(version.map(|version| ("protocolVersion", version)));
        let token = token.to_jwt().expect("the key is not empty");
        let mut options = RoomOptions::default();
        options.auto_subscribe = false;
        let (room, events) = within(Room::connect(&self.url, &token, options)).await.expect("the server is there");
        Viewer::new(room, events)
    }
}

/// A server of the test's own, which the test can stop and kill.
pub(crate) struct OwnServer {
    pub(crate) server: Server,
    binary: String,
    config: String,
    port: u16,
    child: Child,
}

impl OwnServer {
    /// Starts `LIVEKIT_SERVER` with the file `LIVEKIT_SERVER_CONFIG`, or `livekit-server --dev`; `None`, with a note,
    /// if there is none.
    pub(crate) async fn start() -> Option<Self> {
        let server = Server::of_environment()?;
        let binary = std::env::var("LIVEKIT_SERVER").unwrap_or_else(|_| "livekit-server".to_owned());
        let config = match std::env::var("LIVEKIT_SERVER_CONFIG") {
            Ok(file) => std::fs::read_to_string(file).expect("LIVEKIT_SERVER_CONFIG can be read"),
            Err(_) => format!("port: 0\nkeys: {{{}: \"{}\"}}\n", server.key, server.secret),
        };
        let port = free_port();
        let config = config
            .lines()
            .map(|line| if line.starts_with("port:") { format!("port: {port}") } else { line.to_owned() });
        let config = config.collect::<Vec<_>>().join("\n");
        let Some(child) = spawn(&binary, &config) else {
            eprintln!("left out: no {binary} to start, stop and kill");
            return None;
        };
        let server = Server { url: format!("ws://127.0.0.1:{port}"), ..server };
        let this = Self { server, binary, config, port, child };
        this.listens().await;
        Some(this)
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id().expect("it was not waited for"), name);
    }

    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("it runs");
    }

    /// Starts the server again, after it was killed.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(&self.binary, &self.config).expect("it has been started before");
        self.listens().await;
    }

    async fn listens(&self) {
        within(async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

fn spawn(binary: &str, config: &str) -> Option<Child> {
    let mut command = Command::new(binary);
    command.args(["--config-body", config]).stdout(Stdio::null()).stderr(Stdio::null());
    command.kill_on_drop(true).spawn().ok()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

/// A participant that keeps what it gets on control streams.
pub(crate) struct Viewer {
    pub(crate) room: Arc<Room>,
    seen: Arc<Seen>,
    control: tokio::sync::OnceCell<ByteStreamWriter>,
}

#[derive(Default)]
struct Seen {
    streams: Mutex<Vec<Incoming>>,
    changed: Notify,
}

/// One control stream that was opened to a viewer.
#[derive(Clone, Default)]
pub(crate) struct Incoming {
    pub(crate) frames: Vec<Frame>,
    /// The number of chunks that carried the frames.
    pub(crate) chunks: usize,
    /// How the stream ended: without an error, or with one.
    pub(crate) ended: Option<Result<(), String>>,
}

impl Incoming {
    pub(crate) fn messages(&self) -> Vec<ServerMessage> {
        let decode = |frame: &Frame| ServerMessage::decode(WireFormat::V2, frame.kind(), &frame.to_bytes());
        self.frames.iter().map(|frame| decode(frame).expect("a server sends what it should")).collect()
    }
}

impl Viewer {
    fn new(room: Room, mut events: tokio::sync::mpsc::UnboundedReceiver<RoomEvent>) -> Self {
        let seen = Arc::new(Seen::default());
        let watched = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let RoomEvent::ByteStreamOpened { reader, topic, .. } = event
                    && topic == "control"
                    && let Some(reader) = reader.take()
                {
                    let index = watched.lock().len();
                    watched.lock().push(Incoming::default());
                    tokio::spawn(read(Arc::clone(&watched), index, reader));
                }
            }
        });
        Self { room: Arc::new(room), seen, control: tokio::sync::OnceCell::new() }
    }

    pub(crate) fn identity(&self) -> String {
        self.room.local_participant().identity().0
    }

    /// The control streams so far, oldest first.
    pub(crate) fn streams(&self) -> Vec<Incoming> {
        self.seen.lock().clone()
    }

    /// Waits until `condition` holds for the viewer's control streams.
    pub(crate) async fn wait_for(&self, what: &str, condition: impl Fn(&[Incoming]) -> bool) -> Vec<Incoming> {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let changed = self.seen.changed.notified();
                if condition(&self.seen.lock()) {
                    return self.streams();
                }
                changed.await;
            }
        });
        waited.await.unwrap_or_else(|_| {
            let seen: Vec<_> =
                self.streams().iter().map(|stream| (stream.frames.len(), stream.ended.clone())).collect();
            panic!("{} timed out waiting for {what}: it has {seen:?}", self.identity())
        })
    }

    /// Waits until the latest stream has `count` frames, and returns them.
    pub(crate) async fn frames(&self, count: usize) -> Vec<Frame> {
        let enough = |streams: &[Incoming]| streams.last().is_some_and(|stream| stream.frames.len() >= count);
        self.wait_for("frames", enough).await.pop().expect("it has a stream").frames
    }

    /// Sends a message to the device.
    pub(crate) async fn send(&self, message: &ClientMessage) {
        let mut bytes = Vec::new();
        message.encode().append_to_stream(&mut bytes);
        self.send_bytes(&bytes).await;
    }

    pub(crate) async fn send_bytes(&self, bytes: &[u8]) {
        let control = self.control.get_or_init(|| self.open("control")).await;
        within(control.write(bytes)).await.expect("the connection stands");
    }

    /// Opens a stream to the device.
    pub(crate) async fn open(&self, topic: &str) -> ByteStreamWriter {
        let options = StreamByteOptions::new_with_topic(topic).with_destination_identity(DEVICE);
        within(self.room.local_participant().stream_bytes(options)).await.expect("the connection stands")
    }

    pub(crate) async fn leave(&self) {
        let _ = within(self.room.close()).await;
    }
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Vec<Incoming>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read(seen: Arc<Seen>, index: usize, mut reader: ByteStreamReader) {
    let mut decoder = StreamDecoder::default();
    let ended = loop {
        let chunk: Bytes = match reader.next().await {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => break Err(error.to_string()),
            None => break Ok(()),
        };
        decoder.push(chunk);
        let mut streams = seen.lock();
        streams[index].chunks += 1;
        while let Some(frame) = decoder.next_frame().expect("the device writes frames") {
            streams[index].frames.push(frame);
        }
        drop(streams);
        seen.changed.notify_waiters();
    };
    seen.lock()[index].ended = Some(ended);
    seen.changed.notify_waiters();
}

/// A viewer in a process of its own, which can be stopped and killed.
pub(crate) struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// Environment variable that tells the process where to connect.
const VIEWER: &str = "LANECAST_TEST_VIEWER";

impl Process {
    /// Starts a process, and returns when it is connected.
    pub(crate) async fn start(server: &Server, identity: &str) -> Self {
        let told = [&server.url, &server.token(identity)].map(String::as_str).join(" ");
        let mut command = Command::new(std::env::current_exe().expect("the test binary has a path"));
        command.args(["--exact", "kit::a_viewer_of_its_own", "--nocapture"]).env(VIEWER, told);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("this very program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let connected = async {
            while let Some(line) = lines.next_line().await.expect("it writes text") {
                if line.contains("connected") {
                    return;
                }
            }
            panic!("the viewer ended before it was connected");
        };
        within(connected).await;
        Self { child, lines }
    }

    /// Sends the process a signal: `KILL`, `STOP`, `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id().expect("it was not waited for"), name);
    }
}

impl Process {
    /// Waits until the process has received `bytes`, and returns how many it has.
    pub(crate) async fn received(mut self, bytes: usize) -> usize {
        loop {
            let line = self.lines.next_line().await.expect("it writes text").expect("it runs");
            if let Some(received) = line.strip_prefix("received ").and_then(|count| count.parse().ok())
                && received >= bytes
            {
                return received;
            }
        }
    }
}

/// Sends a signal to a process.
pub(crate) fn signal(process: u32, name: &str) {
    let sent = std::process::Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status();
    assert!(sent.expect("there is a kill").success());
}

/// No test: the program that [`Process`] runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_of_its_own() {
    let Ok(told) = std::env::var(VIEWER) else { return };
    let (url, token) = told.split_once(' ').expect("two words");
    let (room, mut events) = Room::connect(url, token, RoomOptions::default()).await.expect("the server is there");
    println!("connected");
    while let Some(event) = events.recv().await {
        if let RoomEvent::ByteStreamOpened { reader, .. } = event
            && let Some(mut reader) = reader.take()
        {
            tokio::spawn(async move {
                let mut received = 0;
                while let Some(Ok(chunk)) = reader.next().await {
                    received += chunk.len();
                    // The parent process may have seen enough and closed the pipe.
                    let _ = writeln!(std::io::stdout(), "received {received}");
                }
            });
        }
    }
    drop(room);
}

/// Waits until `count` participants are registered.
pub(crate) async fn joined<M: lanecast::Message>(session: &SessionHandle<M>, count: usize) {
    let mut events = session.events();
    while session.participants().len() != count {
        within(events.next()).await.expect("the session is open");
    }
}

/// Waits until nothing is under way. A viewer may have the last message before its shard has noted the delivery.
pub(crate) async fn settled<R: lanecast::room::Room>(session: &Session<R>) {
    within(async {
        while session.stats().account.waiting() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Waits for the next reset.
pub(crate) async fn reset_of(events: &mut Events) -> (InstanceId, EndReason) {
    loop {
        if let SessionEvent::Reset { who, reason, .. } = events.next().await.expect("the session is open") {
            return (who, reason);
        }
    }
}

/// Waits for `future`; panics after [`PATIENCE`] instead of hanging.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("timed out")
}

/// A text frame.
pub(crate) fn text(text: impl Into<String>) -> Frame {
    Frame::text(text)
}

/// The payloads of text frames.
pub(crate) fn texts(frames: &[Frame]) -> Vec<String> {
    frames.iter().map(|frame| String::from_utf8_lossy(frame.payload()).into_owned()).collect()
}
