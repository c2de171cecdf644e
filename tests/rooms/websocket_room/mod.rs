//! The WebSocket room against real sockets: a WebSocket library as client where it must behave, raw TCP where it must
//! not.

mod addresses;
mod connections;
mod floods;
mod handshake;
mod origins;

use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, Stream, StreamExt};
use lanecast::protocol::{Frame, FrameKind, Subprotocol};
use lanecast::room::websocket::WebSocketInbox;
use lanecast::room::websocket::{
    Admission, BindError, Rejection, UpgradeRequest, WebSocketRoom, WebSocketRoomBuilder, WebSocketSink,
    WebSocketSinkError,
};
use lanecast::room::{OpenError, Presence, Room, RoomEvent};
use lanecast::{ParticipantIdentity, Progress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

const SDK: &str = "foxglove.sdk.v1";

/// A test that waits longer than this fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

/// A room and its events, as a session has them.
struct Server {
    room: WebSocketRoom,
    events: Pin<Box<dyn Stream<Item = RoomEvent<WebSocketInbox>> + Send>>,
}

impl Server {
    async fn start(builder: WebSocketRoomBuilder) -> Self {
        let room = builder.bind("127.0.0.1:0").await.unwrap();
        let events = Box::pin(room.events().expect("nobody else has them"));
        Self { room, events }
    }

    async fn event(&mut self) -> RoomEvent<WebSocketInbox> {
        soon("an event", self.events.next()).await.expect("the room is open")
    }

    /// The next connection, with its own stream.
    async fn joined(&mut self) -> (Presence, WebSocketInbox) {
        let RoomEvent::Active(presence) = self.event().await else { panic!("nobody became active") };
        let RoomEvent::StreamOpened { identity, sid, stream } = self.event().await else { panic!("no stream") };
        assert_eq!((&identity, &sid), (&presence.identity, &presence.sid));
        (presence, stream)
    }

    async fn left(&mut self, presence: &Presence) {
        match self.event().await {
            RoomEvent::Disconnected { identity, sid } => {
                assert_eq!((identity, sid), (presence.identity.clone(), presence.sid.clone()));
            }
            other => panic!("{other:?}"),
        }
    }

    async fn open(&self, presence: &Presence) -> WebSocketSink {
        self.room.open(presence, Progress::default()).await.unwrap()
    }

    async fn connect_as(&self, path: &str, offered: Option<&str>) -> Result<(Client, String), Error> {
        let mut request = format!("ws://{}{path}", self.room.local_addr()).into_client_request()?;
        if let Some(offered) = offered {
            request.headers_mut().insert("sec-websocket-protocol", offered.parse()?);
        }
        let (client, response) = soon("the hand-shake", connect_async(request)).await?;
        let chosen = response.headers()["sec-websocket-protocol"].to_str()?.to_owned();
        Ok((client, chosen))
    }

    async fn connect(&self) -> Client {
        self.connect_as("/", Some(SDK)).await.unwrap().0
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.room.local_addr()).await.unwrap()
    }

    /// A client that is a plain TCP stream after the handshake.
    async fn raw(&self) -> TcpStream {
        let mut stream = self.tcp().await;
        stream.write_all(request("GET / HTTP/1.1", "").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(soon("the answer", stream.read_u8()).await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
        stream
    }
}

fn request(line: &str, more: &str) -> String {
    format!(
        "{line}\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {SDK}\r\n{more}\r\n"
    )
}

fn refused(outcome: Result<(Client, String), Error>) -> (u16, String) {
    match outcome {
        Err(Error::Http(response)) => {
            let body = String::from_utf8_lossy(response.body().as_deref().unwrap_or_default()).into_owned();
            (response.status().as_u16(), body)
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// An address of this machine that other machines can reach: connections to it don't count as local ones. Nothing is
/// sent.
fn own_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    let own = socket.connect("198.51.100.1:9").and_then(|()| socket.local_addr()).map(|address| address.ip());
    let own = own.ok().filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
    if own.is_none() {
        eprintln!("left out: this machine has no address but loopback");
    }
    own
}

/// Sends these bytes; returns what the server answers until it closes.
async fn answer_to(server: &Server, bytes: &[u8]) -> String {
    let mut stream = server.tcp().await;
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    soon("the answer", stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// A client's frame, masked.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 250];
    let mut bytes = vec![first];
    match u16::try_from(payload.len()).unwrap() {
        short @ 0..=125 => bytes.push(0x80 | short as u8),
        long => {
            bytes.push(0x80 | 126);
            bytes.extend(long.to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// One frame of a server: first byte and payload.
async fn read_frame(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let first = stream.read_u8().await?;
    let len = match stream.read_u8().await? {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    let mut payload = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut payload).await?;
    Ok((first, payload))
}

/// The next frame, which has to be a close frame: code and reason.
async fn read_close(stream: &mut TcpStream) -> (u16, String) {
    let (first, payload) = soon("a close frame", read_frame(stream)).await.unwrap();
    assert_eq!(first, 0x88);
    let (code, reason) = payload.split_first_chunk().unwrap();
    (u16::from_be_bytes(*code), String::from_utf8(reason.to_vec()).unwrap())
}

/// The next message, which has to be a close frame, and after it the end of the connection without an error.
async fn close_of(client: &mut Client) -> (u16, String) {
    let Some(Ok(Message::Close(Some(frame)))) = soon("a close frame", client.next()).await else { panic!("no close") };
    let after = soon("the end", client.next()).await;
    assert!(after.is_none(), "{after:?}");
    (frame.code.into(), frame.reason.to_string())
}

#[tokio::test]
async fn the_best_subprotocol_is_chosen() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    for (offered, best) in [
        ("foxglove.websocket.v1", "foxglove.websocket.v1"),
        ("foxglove.websocket.v1,foxglove.sdk.v1", SDK),
        ("x, foxglove.sdk.v1,foxglove.sdk.v1.1 , y", "foxglove.sdk.v1.1"),
    ] {
        let (client, chosen) = server.connect_as("/", Some(offered)).await.unwrap();
        assert_eq!(chosen, best);
        let (presence, _stream) = server.joined().await;
        assert_eq!(presence.dialect.map(Subprotocol::as_str), Some(best));
        drop(client);
        server.left(&presence).await;
    }
    // Two headers count as one list.
    let more = "Sec-WebSocket-Protocol: foxglove.sdk.v1.1\r\n";
    let mut stream = server.tcp().await;
    stream.write_all(request("GET / HTTP/1.1", more).as_bytes()).await.unwrap();
    let (presence, _stream) = server.joined().await;
    assert_eq!(presence.dialect.map(Subprotocol::as_str), Some("foxglove.sdk.v1.1"));
}

#[tokio::test]
async fn an_unknown_subprotocol_is_refused() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    for offered in [None, Some("foxglove.sdk.v2"), Some("Foxglove.sdk.v1"), Some("foxglove.sdk.v1.1.1, mqtt")] {
        let (status, body) = refused(server.connect_as("/", offered).await);
        assert_eq!(status, 400);
        assert!(body.contains("foxglove.sdk.v1.1, foxglove.sdk.v1, foxglove.websocket.v1"), "{body}");
    }
    assert!(server.events.next().now_or_never().is_none(), "nobody came");
    assert_eq!(server.room.connections(), 0);
}

#[tokio::test]
async fn requests_that_are_no_upgrade_are_answered() {
    let server = Server::start(WebSocketRoom::builder()).await;
    let good = request("GET / HTTP/1.1", "");
    let long = format!("X-Long: {}\r\n", "x".repeat(20_000));
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), "426"),
        (request("POST / HTTP/1.1", ""), "405"),
        (good.replace("13", "8"), "426"),
        (good.replace("dGhl", ""), "400"),
        (request("GET / HTTP/1.0", ""), "400"),
        ("\u{16}\u{3}\u{1} not HTTP at all".to_owned(), "400"),
        (good.clone() + "\u{1}more", "400"),
        (request("GET / HTTP/1.1", &long), "431"),
    ] {
        let answer = answer_to(&server, bytes.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{bytes:.60}: {answer}");
    }
    // A request in two pieces is accepted as well.
    let (front, back) = good.split_at(good.len() - 2);
    let mut stream = server.tcp().await;
    stream.write_all(front.as_bytes()).await.unwrap();
    // The server has had the time to answer.
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
    assert!(stream.read_u8().now_or_never().is_none());
    stream.write_all(back.as_bytes()).await.unwrap();
    assert_eq!(soon("the answer", stream.read_u8()).await.unwrap(), b'H');
}

#[tokio::test]
async fn a_slow_hand_shake_times_out() {
    let server = Server::start(WebSocketRoom::builder().handshake_timeout(Duration::from_millis(50))).await;
    let answer = answer_to(&server, b"GET / HTTP/1.1\r\nHost:").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

fn who(request: &UpgradeRequest) -> Result<Admission, Rejection> {
    assert!(request.peer().ip().is_loopback());
    assert_eq!(request.subprotocol().as_str(), SDK);
    assert!(request.headers().any(|(name, value)| name == "upgrade" && value == b"websocket"));
    let identity = match request.path() {
        "/viewer" => ParticipantIdentity::new(request.query().unwrap_or("nobody")).unwrap(),
        "/odd" => return Err(Rejection::new(101, "no way")),
        path => return Err(Rejection::new(404, format!("there is no {path} here"))),
    };
    Ok(Admission::new(identity).with_attribute("host", request.header("Host").unwrap_or_default()))
}

#[tokio::test]
async fn the_hook_names_or_refuses_a_viewer() {
    let mut server = Server::start(WebSocketRoom::builder().on_upgrade(who)).await;
    let (_client, _) = server.connect_as("/viewer?ada", Some(SDK)).await.unwrap();
    let (presence, _stream) = server.joined().await;
    assert_eq!(presence.identity.as_str(), "ada");
    assert_eq!(presence.attributes["host"], server.room.local_addr().to_string());
    assert_eq!(refused(server.connect_as("/else", Some(SDK)).await), (404, "there is no /else here\n".to_owned()));
    assert_eq!(refused(server.connect_as("/odd", Some(SDK)).await).0, 403);
}

#[tokio::test]
async fn without_a_hook_each_viewer_has_an_identity_of_its_own() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let (_a, _b) = (server.connect().await, server.connect().await);
    let ((a, _), (b, _)) = (server.joined().await, server.joined().await);
    assert_ne!(a.identity, b.identity);
    assert_ne!(a.sid, b.sid);
    assert!(a.joined_at < b.joined_at || b.joined_at < a.joined_at);
    let mut all = server.room.participants();
    all.sort_by_key(|presence| presence.joined_at);
    assert_eq!(all.len(), 2);
    assert_eq!(server.room.present(&a.identity), Some(a));
    assert_eq!(server.room.present(&b.identity), Some(b));
}

#[tokio::test]
async fn a_viewer_over_the_cap_is_refused_until_a_place_is_free() {
    let mut server = Server::start(WebSocketRoom::builder().max_connections(1)).await;
    let first = server.connect().await;
    let (presence, _stream) = server.joined().await;
    let (status, body) = refused(server.connect_as("/", Some(SDK)).await);
    assert_eq!(status, 503, "{body}");
    drop(first);
    server.left(&presence).await;
    // The place is free once the connection's task has ended, just after it has reported the end.
    soon("a free place", async { while server.connect_as("/", Some(SDK)).await.is_err() {} }).await;
}

#[tokio::test]
async fn messages_go_both_ways() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let mut client = server.connect().await;
    let (presence, mut incoming) = server.joined().await;
    let mut sink = server.open(&presence).await;

    client.send(Message::text("up")).await.unwrap();
    client.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    let text = soon("a text", incoming.next()).await.unwrap();
    assert_eq!((text.kind(), &text.to_bytes()[..]), (FrameKind::Text, &b"up"[..]));
    let binary = soon("a binary", incoming.next()).await.unwrap();
    assert_eq!((binary.kind(), &binary.to_bytes()[..]), (FrameKind::Binary, &[1, 2, 3][..]));

    // Every length of header, and payloads that are copied and shared, in one flush.
    let lengths = [0, 1, 112, 113, 125, 126, 5000, 65_535, 65_536, 1 << 20];
    // Fed while the client reads: the kernel takes only part of what can't be sent yet.
    let feeding = async {
        for len in lengths {
            let mut frame = Frame::message_data(1, 9, Bytes::from(vec![len as u8; len]));
            frame.set_subscription_id(7);
            sink.feed(frame).await?;
        }
        sink.feed(Frame::text("down")).await?;
        sink.flush().await
    };
    let (flushed, ()) = tokio::join!(feeding, async {
        for len in lengths {
            let Some(Ok(Message::Binary(got))) = soon("a frame", client.next()).await else { panic!("{len}") };
            assert_eq!(got.len(), 13 + len);
            assert!(got.starts_with(&[1, 7, 0, 0, 0, 9]) && got[13..].iter().all(|byte| *byte == len as u8));
        }
        assert_eq!(soon("a text", client.next()).await.unwrap().unwrap(), Message::text("down"));
    });
    flushed.unwrap();
}

#[tokio::test]
async fn a_fragmented_message_arrives_whole() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let mut stream = server.raw().await;
    let (_, mut incoming) = server.joined().await;
    let bytes =
        [masked(0x01, "gr\u{fc}\u{df}".as_bytes()), masked(0x89, b"!"), masked(0x00, b""), masked(0x80, b"e")].concat();
    for piece in bytes.chunks(3) {
        stream.write_all(piece).await.unwrap();
        stream.flush().await.unwrap();
    }
    let whole = soon("the message", incoming.next()).await.unwrap();
    assert_eq!((whole.kind(), &whole.to_bytes()[..]), (FrameKind::Text, "gr\u{fc}\u{df}e".as_bytes()));
    assert_eq!(soon("the pong", read_frame(&mut stream)).await.unwrap(), (0x8a, b"!".to_vec()));
}

#[tokio::test]
async fn a_protocol_violation_is_closed_with_its_code() {
    let mut server = Server::start(WebSocketRoom::builder().max_message_bytes(1000)).await;
    let mut unmasked = masked(0x82, b"x");
    unmasked[1] &= 0x7f;
    for (bytes, code) in [
        (unmasked, 1002),
        (masked(0xf2, b"x"), 1002),
        (masked(0x80, b"x"), 1002),
        (masked(0x81, b"\xc3("), 1007),
        (masked(0x82, &[0; 1001]), 1009),
        ([masked(0x02, &[0; 600]), masked(0x80, &[0; 600])].concat(), 1009),
    ] {
        let mut stream = server.raw().await;
        let (presence, mut incoming) = server.joined().await;
        let mut sink = server.open(&presence).await;
        stream.write_all(&bytes).await.unwrap();
        let (got, reason) = read_close(&mut stream).await;
        assert_eq!(got, code, "{reason}");
        assert!(!reason.is_empty());
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the close frame is the last");
        server.left(&presence).await;
        assert_eq!(server.room.present(&presence.identity), None);
        assert!(incoming.next().await.is_none());
        let late = sink.send(Frame::text("late")).await;
        assert!(matches!(late, Err(WebSocketSinkError::Closed | WebSocketSinkError::Io(_))), "{late:?}");
    }
    // A message of exactly the limit is accepted.
    let mut stream = server.raw().await;
    let (_, mut incoming) = server.joined().await;
    stream.write_all(&masked(0x82, &[0; 1000])).await.unwrap();
    assert_eq!(soon("the message", incoming.next()).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn a_ping_is_answered_with_its_payload_and_a_close_with_its_code() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let mut stream = server.raw().await;
    let (presence, _incoming) = server.joined().await;
    stream.write_all(&[masked(0x89, &[7; 125]), masked(0x8a, b"unasked")].concat()).await.unwrap();
    assert_eq!(soon("the pong", read_frame(&mut stream)).await.unwrap(), (0x8a, vec![7; 125]));
    stream.write_all(&masked(0x88, &[&4321_u16.to_be_bytes()[..], b"bye"].concat())).await.unwrap();
    assert_eq!(read_close(&mut stream).await.0, 4321);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    server.left(&presence).await;
}

#[tokio::test]
async fn a_client_library_completes_the_close_handshake() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let mut client = server.connect().await;
    let (presence, _incoming) = server.joined().await;
    client.close(None).await.unwrap();
    assert_eq!(close_of(&mut client).await.0, 1000);
    server.left(&presence).await;
}

#[tokio::test]
async fn a_silent_viewer_is_pinged_and_given_up_and_a_live_one_is_not() {
    // Time enough for the live one to answer on a machine that is busy with something else.
    let builder =
        WebSocketRoom::builder().ping_interval(Duration::from_millis(100)).idle_timeout(Duration::from_millis(1000));
    let mut server = Server::start(builder).await;
    let mut silent = server.raw().await;
    let (silent_one, _incoming) = server.joined().await;
    let mut live = server.connect().await;
    let (live_one, _also) = server.joined().await;
    // The library answers pings while it is read from.
    let live = tokio::spawn(async move { while live.next().await.is_some() {} });

    assert_eq!(soon("a ping", read_frame(&mut silent)).await.unwrap(), (0x89, Vec::new()));
    server.left(&silent_one).await;
    let code = loop {
        let (first, payload) = soon("the close", read_frame(&mut silent)).await.unwrap();
        if first == 0x88 {
            break u16::from_be_bytes(*payload.first_chunk().unwrap());
        }
        assert_eq!(first, 0x89);
    };
    assert_eq!(code, 1011);
    assert_eq!(server.room.present(&live_one.identity), Some(live_one), "it has outlived the other");
    live.abort();
}

#[tokio::test]
async fn a_viewer_whose_messages_are_not_taken_is_not_idle() {
    // Time enough for this test to send, on a machine that is busy with something else.
    let builder =
        WebSocketRoom::builder().ping_interval(Duration::from_millis(100)).idle_timeout(Duration::from_millis(600));
    let mut server = Server::start(builder).await;
    let mut stream = server.raw().await;
    let (held_up, mut incoming) = server.joined().await;
    // More messages than the inbox holds: the rest isn't read, and neither is any answer to a ping.
    for i in 0..100_u8 {
        stream.write_all(&masked(0x82, &[i])).await.unwrap();
    }
    let mut watch = server.raw().await;
    let (watched, _also) = server.joined().await;
    // The other viewer, silent as well, is given up meanwhile.
    server.left(&watched).await;
    while read_frame(&mut watch).await.is_ok() {}
    assert!(server.room.present(&held_up.identity).is_some());
    for i in 0..100_u8 {
        assert_eq!(soon("a message", incoming.next()).await.unwrap().payload()[..], [i], "none is lost");
    }
}

#[tokio::test]
async fn without_a_reader_messages_are_discarded() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let mut stream = server.raw().await;
    let (_, incoming) = server.joined().await;
    drop(incoming);
    for _ in 0..200 {
        stream.write_all(&masked(0x82, &[0; 1000])).await.unwrap();
    }
    stream.write_all(&masked(0x89, b"still there?")).await.unwrap();
    assert_eq!(soon("the pong", read_frame(&mut stream)).await.unwrap(), (0x8a, b"still there?".to_vec()));
}
