//! The command line, run as a program: what it serves, what it prints, how it ends.
#![cfg(feature = "server")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use lanecast::protocol::server::{Advertise, Channel, MessageData};
use lanecast::protocol::{FrameKind, ServerMessage, WireFormat};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, accept_hdr_async, connect_async};

#[cfg(unix)]
#[path = "server/burdens.rs"]
mod burdens;
#[path = "server/watching.rs"]
mod watching;

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A test that waits longer than this fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

fn lanecast(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lanecast"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A run of the program; it is killed when the test ends, whether or not the test passes.
struct Run {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Run {
    fn start(args: &[&str]) -> Self {
        Self::of(lanecast(args).spawn().unwrap())
    }

    fn of(mut child: Child) -> Self {
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// Waits for the next line of standard output that `wanted` accepts.
    fn line(&self, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("timed out waiting for a line");
            if wanted(&line) {
                return line;
            }
        }
    }

    /// Waits for the program's end; returns its status, the rest of standard output, and standard error.
    fn end(mut self) -> (ExitStatus, Vec<String>, String) {
        let rest: Vec<_> = std::iter::from_fn(|| match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the program doesn't end"),
        })
        .collect();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (self.child.wait().unwrap(), rest, stderr)
    }

    #[cfg(unix)]
    fn interrupt(&self) {
        self.signal("-INT");
    }

    #[cfg(unix)]
    fn signal(&self, signal: &str) {
        signal_to(&self.child, signal);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It is not an error that the program has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(unix)]
fn signal_to(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// A server on a port of its own.
struct Server {
    run: Run,
    addr: String,
}

impl Server {
    fn start(more: &[&str]) -> Self {
        Self::of(Run::start(&[&["serve", "--addr", "127.0.0.1:0", "--rate", "20"], more].concat()))
    }

    fn of(run: Run) -> Self {
        let line = run.line(|line| line.starts_with("listening on "));
        let addr = line["listening on ".len()..].split(": ").next().unwrap().to_owned();
        assert!(addr.parse::<std::net::SocketAddr>().unwrap().port() != 0, "{line}");
        run.line(|line| line == "Ctrl-C ends it");
        Self { run, addr }
    }

    fn url(&self) -> String {
        format!("ws://{}", self.addr)
    }

    async fn connect(&self) -> Client {
        let mut request = self.url().into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
        soon(connect_async(request)).await.unwrap().0
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("timed out")
}

fn decode(kind: FrameKind, data: &Bytes) -> ServerMessage {
    ServerMessage::decode(WireFormat::V1, kind, data).unwrap()
}

/// The next message of a channel. The server's time comes before it, and never steps back.
async fn next_data(client: &mut Client, clock: &mut u64) -> MessageData {
    loop {
        match next(client).await {
            ServerMessage::MessageData(data) => return data,
            ServerMessage::Time(time) if time.timestamp_ns > *clock => *clock = time.timestamp_ns,
            other => panic!("neither a message nor a later time: {other:?}"),
        }
    }
}

async fn next(client: &mut Client) -> ServerMessage {
    loop {
        match soon(client.next()).await.expect("the connection is open").unwrap() {
            Message::Text(text) => return decode(FrameKind::Text, &Bytes::from(text)),
            Message::Binary(data) => return decode(FrameKind::Binary, &data),
            Message::Close(frame) => panic!("closed: {frame:?}"),
            _ => {}
        }
    }
}

/// Checks `value` against a JSON schema, as far as the schemas here go: types, properties, items.
fn check(schema: &Value, value: &Value, at: &str) {
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("number") => value.is_number(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("string") => value.is_string(),
        other => panic!("{at}: a type {other:?} isn't used"),
    };
    assert!(fits, "{at}: {value} is no {}", schema["type"]);
    if let Some(properties) = schema["properties"].as_object() {
        let object = value.as_object().unwrap();
        let required: Vec<_> =
            schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert!(required.iter().all(|name| object.contains_key(*name)), "{at}: {value} lacks one of {required:?}");
        for (name, value) in object {
            let schema = properties.get(name).unwrap_or_else(|| panic!("{at}: {name} isn't in the schema"));
            check(schema, value, &format!("{at}.{name}"));
        }
    }
    for item in value.as_array().into_iter().flatten() {
        check(&schema["items"], item, &format!("{at}[]"));
    }
}

#[tokio::test]
async fn a_third_party_viewer_sees_this_hosts_telemetry() {
    let server = Server::start(&["--name", "the rig"]);
    let mut client = server.connect().await;
    // 1. The server info comes first, then the channels.
    let ServerMessage::ServerInfo(info) = next(&mut client).await else { panic!("not a serverInfo") };
    assert_eq!((info.name.as_str(), info.capabilities.len()), ("the rig", 1));
    let ServerMessage::Advertise(Advertise { channels }) = next(&mut client).await else { panic!("not an advertise") };
    let topics: Vec<_> = channels.iter().map(|channel| channel.topic.as_str()).collect();
    assert_eq!(topics, ["/cpu", "/memory", "/network", "/disks", "/load", "/session"]);
    // 2. The client subscribes to everything, under ids of its own.
    let number = |channel: &Channel| 1000 + u32::try_from(channel.id).unwrap();
    let subscriptions: Vec<_> =
        channels.iter().map(|channel| format!(r#"{{"id":{},"channelId":{}}}"#, number(channel), channel.id)).collect();
    let request = format!(r#"{{"op":"subscribe","subscriptions":[{}]}}"#, subscriptions.join(","));
    client.send(Message::text(request)).await.unwrap();
    // 3. Three messages of each channel come, each as its schema says.
    let by_number: BTreeMap<u32, &Channel> = channels.iter().map(|channel| (number(channel), channel)).collect();
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut clock = 0;
    while counts.len() < topics.len() || counts.values().any(|count| *count < 3) {
        let data = next_data(&mut client, &mut clock).await;
        let channel = by_number[&data.subscription_id];
        assert_eq!(channel.encoding, "json");
        let schema = channel.schema.as_ref().unwrap();
        assert_eq!(schema.encoding, "jsonschema");
        let schema: Value = serde_json::from_slice(&schema.data).unwrap();
        let message: Value = serde_json::from_slice(&data.payload).unwrap();
        check(&schema, &message, &channel.topic);
        assert!(data.log_time_ns > 1_600_000_000_000_000_000);
        assert!(clock.abs_diff(data.log_time_ns) < 1_000_000_000, "{clock}");
        match channel.topic.as_str() {
            "/cpu" => assert!(!message["cores"].as_array().unwrap().is_empty()),
            "/memory" => assert!(message["total_bytes"].as_u64().unwrap() > 0),
            "/session" => assert_eq!(message["participants"], 1),
            _ => {}
        }
        *counts.entry(&channel.topic).or_default() += 1;
    }
    // 4. Channels without subscribers aren't sampled: only messages of the one subscribed channel are counted.
    let others: Vec<_> =
        channels.iter().filter(|channel| channel.topic != "/session").map(|c| number(c).to_string()).collect();
    let request = format!(r#"{{"op":"unsubscribe","subscriptionIds":[{}]}}"#, others.join(","));
    client.send(Message::text(request)).await.unwrap();
    client.send(Message::text(r#"{"op":"getParameters","parameterNames":[]}"#)).await.unwrap();
    while !matches!(next(&mut client).await, ServerMessage::Status(_)) {}
    for _ in 0..5 {
        let data = next_data(&mut client, &mut clock).await;
        assert_eq!(by_number[&data.subscription_id].topic, "/session");
    }
}

#[test]
fn watch_lists_and_prints() {
    let server = Server::start(&["--name", "the rig"]);
    // 1. All channels are watched, until the count is reached.
    let (status, messages, notes) = Run::start(&["watch", &server.url(), "--count", "12"]).end();
    assert!(status.success(), "{notes}");
    let notes: Vec<_> = notes.lines().collect();
    assert_eq!(notes[..2], ["! connected to the rig", "+ /cpu  json  lanecast.Cpu"]);
    assert_eq!(notes.len(), 7, "{notes:?}");
    assert_eq!(messages.len(), 12);
    for line in messages {
        let [topic, time, content] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert!(["/cpu", "/memory", "/network", "/disks", "/load", "/session"].contains(&topic), "{line}");
        assert!(time.len() == "2026-01-01T00:00:00.000Z".len() && time.ends_with('Z'), "{line}");
        assert!(serde_json::from_str::<Value>(content).unwrap().is_object());
    }
    // 2. Some are watched, by name; two of the names don't exist, and one of those is close to an existing one.
    let mut run = Run::start(&["watch", &server.addr, "/load", "/nothing", "/mmeory"]);
    let mut notes = BufReader::new(run.child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let missing: Vec<_> = notes.by_ref().filter(|note| note.starts_with("! nothing")).take(2).collect();
    let meant = "! nothing is called /mmeory so far: did you mean /memory?";
    assert_eq!(missing, ["! nothing is called /nothing so far", meant]);
    for _ in 0..3 {
        let line = run.line(|_| true);
        assert!(line.starts_with("/load "), "{line}");
    }
    // 3. Only the list is printed.
    let (status, lines, notes) = Run::start(&["watch", "--list", &server.url()]).end();
    assert!(status.success() && notes == "! connected to the rig\n", "{notes}");
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert_eq!(lines[0], "+ /cpu  json  lanecast.Cpu");
}

#[test]
fn watch_ends_quietly_when_nobody_reads() {
    let server = Server::start(&[]);
    let mut child = lanecast(&["watch", &server.url()]).spawn().unwrap();
    // 1. One line is read, then the pipe is closed.
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    // 2. `watch` ends without a complaint.
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert!(status.success(), "{status}");
    let notes = String::from_utf8(stderr).unwrap();
    assert!(notes.lines().all(|note| note.starts_with(['!', '+'])), "{notes}");
}

#[cfg(unix)]
#[tokio::test]
async fn an_interrupt_closes_and_reports() {
    let server = Server::start(&[]);
    let mut client = server.connect().await;
    while !matches!(next(&mut client).await, ServerMessage::Advertise(_)) {}
    // 1. Ctrl-C.
    server.run.interrupt();
    // 2. The viewer gets a close frame.
    let goodbye = loop {
        match soon(client.next()).await {
            Some(Ok(Message::Close(frame))) => break frame.unwrap(),
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(goodbye.code, CloseCode::Away);
    assert!(!goodbye.reason.is_empty());
    while let Some(Ok(_)) = soon(client.next()).await {}
    // 3. The server prints its report and exits with success.
    let (status, lines, stderr) = server.run.end();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    let report = lines.join("\n");
    assert!(report.contains("closed in ") && report.contains("viewers    1"), "{report}");
    assert!(report.contains("delivered  2 messages"), "{report}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_second_interrupt_ends_at_once() {
    let server = Server::start(&[]);
    // 1. A viewer doesn't answer the close frame: closing has to wait for it.
    let mut client = server.connect().await;
    while !matches!(next(&mut client).await, ServerMessage::Advertise(_)) {}
    server.run.interrupt();
    server.run.line(|line| line.starts_with("closing"));
    // 2. The second interrupt.
    server.run.interrupt();
    let (status, lines, _) = server.run.end();
    assert_eq!(status.code(), Some(130));
    assert_eq!(lines, [""; 0]);
    drop(client);
}

/// The reader of the log is gone: the server goes on, and exits with success.
#[cfg(unix)]
#[tokio::test]
async fn the_server_outlives_the_reader_of_its_log() {
    let mut server = Server::start(&["-v"]);
    drop(server.run.child.stderr.take());
    let mut client = server.connect().await;
    while !matches!(next(&mut client).await, ServerMessage::Advertise(_)) {}
    server.run.interrupt();
    while let Some(Ok(_)) = soon(client.next()).await {}
    assert_eq!(
        soon(tokio::task::spawn_blocking(move || server.run.child.wait())).await.unwrap().unwrap().code(),
        Some(0)
    );
}

/// Nobody reads what `watch` prints, so its output stalls. Ctrl-C still takes effect, the second one at once.
#[cfg(unix)]
#[tokio::test]
async fn a_stalled_watch_can_be_interrupted() {
    let much = "x".repeat(1 << 20);
    let say = vec![
        Message::text(r#"{"op":"serverInfo","name":"x","capabilities":[]}"#),
        Message::text(
            r#"{"op":"advertise","channels":[{"id":1,"topic":"/a","encoding":"json","schemaName":"","schema":""}]}"#,
        ),
        Message::binary([&[1, 1, 0, 0, 0][..], &0_u64.to_le_bytes(), format!("\"{much}\"").as_bytes()].concat()),
    ];
    let (url, _task) = foreign_server(say).await;
    let mut child = lanecast(&["watch", &url]).spawn().unwrap();
    // `watch` has begun to print, and the rest is more than a pipe holds.
    let mut stdout = child.stdout.take().unwrap();
    let (mut stdout, mut begun) = tokio::task::spawn_blocking(move || {
        let mut begun = [0; 8 << 10];
        stdout.read_exact(&mut begun).unwrap();
        (stdout, begun)
    })
    .await
    .unwrap();
    assert!(begun.starts_with(b"/a 1970"));
    let id = child.id().to_string();
    let interrupt = || assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let ended = soon(async {
        loop {
            // A signal that comes while another is being taken counts as the same signal.
            interrupt();
            if let Some(ended) = child.try_wait().unwrap() {
                break ended;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(ended.await.code(), Some(130));
    let _ = stdout.read(&mut begun);
}

#[test]
fn errors_take_one_line() {
    let server = Server::start(&[]);
    // Bound and not listening, so no other process gets the port meanwhile.
    let deaf = tokio::net::TcpSocket::new_v4().unwrap();
    deaf.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = format!("ws://{}", deaf.local_addr().unwrap());
    let mistakes: &[(&[&str], &str)] = &[
        (&["serve", "--addr", &server.addr], "another program does: choose another port with --addr"),
        (&["serve", "--addr", "nonsense"], "--addr \"nonsense\" is no address"),
        (&["serve", "--addr", "127.0.0.1:99999"], "no address to listen on: the port has to be a number"),
        (&["serve", "--addr", ":8765"], "--addr"),
        (&["serve", "--addr", "no such host:0"], "--addr"),
        (&["serve", "--addr", "192.0.2.1:0", "--insecure"], "give an address of this host with --addr"),
        (&["serve", "--addr", "0.0.0.0:0"], "--addr 0.0.0.0:0"),
        (&["serve", "--addr", "0.0.0.0:0"], "--insecure"),
        (&["serve", "--addr", "[::]:0"], "--insecure"),
        (&["serve", "--rate", "0"], "from 0.1 to 50"),
        (&["serve", "--rate"], "--rate"),
        (&["serve", "--nonsense"], "--nonsense"),
        (&["dance"], "dance"),
        (&[], "lanecast serve"),
        (&["watch", "http://127.0.0.1"], "ws://HOST:PORT"),
        (&["watch", "wss://127.0.0.1"], "TLS"),
        (&["watch", "ws://127.0.0.1:99999"], "port"),
        (&["watch", "ws://[::1]:99999"], "port"),
        (&["watch", "127.0.0.1:99999", "/load"], "port"),
        (&["watch", "http://127.0.0.1:1/live"], "did you mean ws://127.0.0.1:1/live?"),
        (&["watch", "ws//localhost"], "did you mean ws://localhost:8765?"),
        (&["watch", "localhost"], "did you mean ws://localhost:8765?"),
        (&["watch", "ws://no such host"], "ws://HOST:PORT"),
        (&["watch", "ws://host.invalid:1"], "can't connect to ws://host.invalid:1"),
        (&["watch", "--lsit"], "--lsit"),
        (&["watch", &nobody], "nobody listens"),
        (&["watch", "--count", "x"], "--count"),
    ];
    for &(args, part) in mistakes {
        let Output { status, stdout, stderr } = lanecast(args).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(!status.success(), "{args:?}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
        assert!(stderr.ends_with('\n') && stderr.lines().count() == 1, "{args:?}: {stderr}");
        assert_eq!(stdout, b"", "{args:?}");
    }
    // The server whose port was wanted goes on.
    let (status, _, _) = Run::start(&["watch", "--list", &server.url()]).end();
    assert!(status.success());
}

#[test]
fn help_and_version_succeed() {
    for args in [&["--help"][..], &["--version"], &["serve", "--help"], &["watch", "--help"]] {
        let Output { status, stdout, stderr } = lanecast(args).output().unwrap();
        assert!(status.success() && !stdout.is_empty() && stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn an_insecure_server_warns_and_listens_on_all_addresses() {
    let run = Run::start(&["serve", "--addr", "0.0.0.0:0", "--insecure"]);
    run.line(|line| line.starts_with("listening on 0.0.0.0:"));
    run.line(|line| line.contains("--insecure: anybody who reaches this port"));
}

/// A server of another kind that sends the given messages.
async fn foreign_server(say: Vec<Message>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        #[expect(clippy::result_large_err, reason = "the library's type")]
        let choose = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            assert_eq!(request.headers()["sec-websocket-protocol"], "foxglove.sdk.v1, foxglove.websocket.v1");
            response.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
            Ok(response)
        };
        let mut socket = accept_hdr_async(stream, choose).await.unwrap();
        for message in say {
            socket.send(message).await.unwrap();
        }
        while let Some(Ok(_)) = socket.next().await {}
    });
    (url, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_lists_channels_of_several_advertisements() {
    let piece = |id: u64| {
        let channel = format!(r#"{{"id":{id},"topic":"/{id}","encoding":"json","schemaName":"","schema":""}}"#);
        Message::text(format!(r#"{{"op":"advertise","channels":[{channel},7]}}"#))
    };
    let say = vec![Message::text(r#"{"op":"serverInfo","name":"x","capabilities":[]}"#), piece(1), piece(2)];
    let (url, task) = foreign_server(say).await;
    let run = move || Run::start(&["watch", "--list", &url]).end();
    let (status, lines, stderr) = tokio::task::spawn_blocking(run).await.unwrap();
    let channels: Vec<_> = lines.iter().filter(|line| line.starts_with('+')).collect();
    assert_eq!(channels, ["+ /1  json  ", "+ /2  json  "]);
    // An unreadable channel of an advertisement is named.
    let all = lines.join("\n") + &stderr;
    assert_eq!(all.matches("unreadable channel number 2").count(), 2, "{all}");
    assert_eq!(status.code(), Some(0));
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_follows_channels_and_escapes_its_output() {
    let evil = "\\u001b]0;owned\\u0007\\u009b2J\\u202e";
    let say = vec![
        Message::text(format!(r#"{{"op":"serverInfo","name":"x{evil}","capabilities":["what","assets"]}}"#)),
        Message::text(format!(
            r#"{{"op":"advertise","channels":[
                {{"id":1,"topic":"/a{evil}","encoding":"json{evil}","schemaName":"{evil}","schema":""}},
                {{"id":2,"topic":"/j","encoding":"json","schemaName":"","schema":""}}]}}"#
        )),
        // The channel is advertised twice and shown once.
        Message::text(
            r#"{"op":"advertise","channels":[{"id":2,"topic":"/j","encoding":"json","schemaName":"","schema":""}]}"#,
        ),
        Message::text(format!(r#"{{"op":"status","level":2,"message":"hot\nhot {evil}"}}"#)),
        Message::text("\u{1b}[31m{"),
        Message::binary([&[1, 1, 0, 0, 0][..], &0_u64.to_le_bytes(), &[0xff; 20]].concat()),
        Message::binary(
            [&[1, 2, 0, 0, 0][..], &1_500_000_000_u64.to_le_bytes(), "{ \"a\" :\n\"\u{9b}x\" }".as_bytes()].concat(),
        ),
        Message::text(r#"{"op":"unadvertise","channelIds":[1]}"#),
        Message::binary([&[1, 1, 0, 0, 0][..], &0_u64.to_le_bytes(), b"late"].concat()),
        Message::Close(Some(CloseFrame { code: CloseCode::Again, reason: "too slow\u{1b}[31m".into() })),
    ];
    let (url, task) = foreign_server(say).await;
    let watched = move || Run::start(&["watch", &url, "--no-reconnect"]).end();
    let (status, lines, notes) = tokio::task::spawn_blocking(watched).await.unwrap();
    let all = lines.join("\n") + &notes;
    assert!(!all.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{all:?}");
    let shown = "\\u001b]0;owned\\u0007\\u009b2J\\u202e";
    let notes: Vec<_> = notes.lines().collect();
    assert_eq!(notes[0], format!("! connected to x{shown}"));
    assert_eq!(notes[1], format!("+ /a{shown}  json{shown}  {shown}"));
    assert_eq!(notes[2], "+ /j  json  ");
    assert_eq!(notes[3], format!("! error: hot\\u000ahot {shown}"));
    assert!(notes[4].starts_with("! unreadable message: invalid JSON"), "{}", notes[4]);
    assert_eq!(notes[5], format!("- /a{shown}"));
    assert_eq!(notes[6], "lanecast: the server closed the connection: 1013 (too slow\\u001b[31m)");
    assert_eq!(notes.len(), 7, "{notes:?}");
    let hex = "ff ".repeat(16);
    assert_eq!(lines[0], format!("/a{shown} 1970-01-01T00:00:00.000Z 20 bytes: {hex}..."));
    assert_eq!(lines[1], r#"/j 1970-01-01T00:00:01.500Z {"a":"\u009bx"}"#);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(status.code(), Some(1));
    task.await.unwrap();
}
