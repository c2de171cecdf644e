//! Close handshakes, and the two writers of one connection, against real sockets.
//!
//! The rest is tested from outside, in tests/rooms/websocket_room/; only code in here can call `close_with` on a sink.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::shared::Event;
use super::{WebSocketRoom, WebSocketRoomBuilder, WebSocketSink, batch};
use crate::contract::{EndReason, Progress};
use crate::protocol::Frame;
use crate::room::{Presence, Room, RoomEvent};

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// A room with small socket buffers and one raw client in it.
struct Scene {
    room: WebSocketRoom,
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    presence: Presence,
    sink: WebSocketSink,
    progress: Progress,
    client: TcpStream,
}

impl Scene {
    async fn set(builder: WebSocketRoomBuilder) -> Self {
        let room = builder.send_buffer_bytes(8 << 10).bind("127.0.0.1:0").await.unwrap();
        let mut events = Box::pin(room.events().unwrap());
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 << 10).unwrap();
        let mut client = socket.connect(room.local_addr()).await.unwrap();
        let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Protocol: foxglove.sdk.v1\r\n\r\n";
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(client.read_u8().await.unwrap());
        }
        let Some(RoomEvent::Active(presence)) = events.next().await else { panic!("nobody came") };
        assert!(matches!(events.next().await, Some(RoomEvent::StreamOpened { .. })));
        let progress = Progress::default();
        let sink = room.open(&presence, progress.clone()).await.unwrap();
        Self { room, events, presence, sink, progress, client }
    }

    /// Sends frames of `len` bytes until the client's window and both buffers are full. Returns how many the sink has
    /// taken.
    fn stall(&mut self, len: usize) -> usize {
        let mut count = 0;
        while self.sink.feed(numbered(count, len)).now_or_never().is_some_and(|fed| fed.is_ok()) {
            count += 1;
            if self.sink.flush().now_or_never().is_none() {
                return count;
            }
        }
        panic!("it didn't stall");
    }
}

/// A frame that carries its number.
fn numbered(number: usize, len: usize) -> Frame {
    let mut payload = vec![number as u8; len.max(8)];
    payload[..8].copy_from_slice(&number.to_be_bytes());
    Frame::binary(payload.into())
}

fn number_of(payload: &[u8]) -> usize {
    let (number, rest) = payload.split_first_chunk().unwrap();
    let number = usize::from_be_bytes(*number);
    assert!(rest.iter().all(|byte| *byte == number as u8), "frame {number} is whole");
    number
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [9, 8, 7, 6];
    let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [first, 0x80 | payload.len() as u8].into_iter().chain(mask).chain(masked).collect()
}

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

#[tokio::test]
async fn every_end_has_its_code_and_reason() {
    for (reason, code) in [
        (EndReason::Overflow, 1013_u16),
        (EndReason::WriteFailed, 1013),
        (EndReason::WriteTimedOut, 1013),
        (EndReason::Replaced, 4000),
        (EndReason::Refused, 1008),
        (EndReason::JoinFailed, 1013),
        (EndReason::SessionClosed, 1001),
    ] {
        let Scene { room, mut events, presence, mut sink, mut client, .. } = Scene::set(WebSocketRoom::builder()).await;
        // Discarded: the frame is handed over and not begun.
        sink.feed(Frame::text("too late")).await.unwrap();
        let mut goodbye = sink.close_with(reason);
        assert_eq!(room.present(&presence.identity), None, "at once");
        assert!(room.participants().is_empty());
        assert!(goodbye.as_mut().now_or_never().is_none());
        let (first, payload) = soon("the close", read_frame(&mut client)).await.unwrap();
        assert_eq!((first, &payload[..2], &payload[2..]), (0x88, &code.to_be_bytes()[..], reason.as_str().as_bytes()));
        assert!(matches!(soon("leaving", events.next()).await, Some(RoomEvent::Disconnected { .. })));
        // The client answers, without ending its side.
        client.write_all(&masked(0x88, &code.to_be_bytes())).await.unwrap();
        soon("the goodbye", goodbye).await;
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_stalled_client_that_resumes_in_time_sees_a_whole_stream_and_1013() {
    for len in [1000, 100_000] {
        let mut scene = Scene::set(WebSocketRoom::builder()).await;
        let handed = scene.stall(len);
        let goodbye = scene.sink.close_with(EndReason::Overflow);
        let mut seen = 0;
        let payload = loop {
            match soon("a frame", read_frame(&mut scene.client)).await.unwrap() {
                (0x82, payload) => assert_eq!(number_of(&payload), seen),
                (first, payload) => {
                    assert_eq!(first, 0x88);
                    break payload;
                }
            }
            seen += 1;
        };
        assert!(seen <= handed);
        assert_eq!(payload[..2], 1013_u16.to_be_bytes());
        assert_eq!(scene.client.read(&mut [0]).await.unwrap(), 0);
        drop(scene.client);
        soon("the goodbye", goodbye).await;
    }
}

#[tokio::test]
async fn a_stalled_client_that_doesnt_resume_is_reset_when_the_room_closes() {
    // The client has the stall time-out for its close handshake, which the closing room cuts short.
    let day = Duration::from_secs(86_400);
    let builder = WebSocketRoom::builder().close_timeout(Duration::from_millis(50)).stall_timeout(day);
    let mut scene = Scene::set(builder).await;
    scene.stall(100_000);
    let goodbye = scene.sink.close_with(EndReason::Overflow);
    assert!(matches!(soon("leaving", scene.events.next()).await, Some(RoomEvent::Disconnected { .. })));
    soon("the room", scene.room.shutdown()).await;
    soon("the goodbye", goodbye).await;
    let error = loop {
        if let Err(error) = soon("the end", read_frame(&mut scene.client)).await {
            break error;
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(scene.room.connections(), 0);
}

#[tokio::test]
async fn a_client_that_reads_everything_and_stays_is_reset() {
    let builder = WebSocketRoom::builder().close_timeout(Duration::from_millis(50));
    let mut scene = Scene::set(builder).await;
    let goodbye = scene.sink.close_with(EndReason::Refused);
    assert_eq!(soon("the close", read_frame(&mut scene.client)).await.unwrap().0, 0x88);
    soon("the goodbye", goodbye).await;
    let answer = scene.client.write_all(b"x").await;
    let after = scene.client.read(&mut [0]).await;
    assert!(answer.is_err() || after.is_err() || matches!(after, Ok(0)), "{after:?}");
}

#[tokio::test]
async fn a_pong_goes_between_the_frames_of_a_stalled_stream() {
    for len in [1000, 100_000] {
        let mut scene = Scene::set(WebSocketRoom::builder()).await;
        let handed = scene.stall(len);
        assert!(scene.sink.feed(numbered(handed, len)).now_or_never().is_none(), "not ready while stalled");
        let before = scene.progress.total();
        // Of several pings that can't be answered at once, the last one is answered.
        for payload in [&b"one"[..], b"two", b"three"] {
            scene.client.write_all(&masked(0x89, payload)).await.unwrap();
        }
        let flushed = tokio::spawn(async move {
            scene.sink.flush().await.unwrap();
            scene.sink.send(Frame::text("the end")).await.unwrap();
            (scene.sink, scene.progress.total())
        });
        let (mut seen, mut pongs) = (0, Vec::new());
        loop {
            match soon("a frame", read_frame(&mut scene.client)).await.unwrap() {
                (0x82, payload) => {
                    assert_eq!(number_of(&payload), seen);
                    seen += 1;
                }
                (0x8a, payload) => pongs.push(payload),
                (first, payload) => {
                    assert_eq!((first, &payload[..]), (0x81, &b"the end"[..]));
                    break;
                }
            }
        }
        assert_eq!(seen, handed);
        assert!(len < 100_000 || !pongs.is_empty(), "it doesn't wait for the end");
        let (_sink, after) = flushed.await.unwrap();
        assert!(after > before, "progress is reported");
        while pongs.last().is_none_or(|last| last != b"three") {
            pongs.push(soon("the pong", read_frame(&mut scene.client)).await.unwrap().1);
        }
    }
}

/// Both writers write on two threads, against a client that reads in small pieces and pings all the time: every data
/// frame arrives, whole and in order, and the last ping is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_never_tear_a_frame() {
    const FRAMES: usize = 4000;
    let scene = Scene::set(WebSocketRoom::builder()).await;
    let Scene { mut sink, client, events, room, .. } = scene;
    let writing = tokio::spawn(async move {
        for number in 0..FRAMES {
            sink.feed(numbered(number, 8 + (number * 37) % 900 + (number % 50 / 49) * 40_000)).await.unwrap();
            if number % 7 == 0 {
                sink.flush().await.unwrap();
            }
        }
        sink.flush().await.unwrap();
        sink
    });
    let (mut reading, mut pinging) = client.into_split();
    let pings = tokio::spawn(async move {
        for number in 0..2000_u32 {
            pinging.write_all(&masked(0x89, &number.to_be_bytes())).await.unwrap();
            if number % 16 == 0 {
                tokio::task::yield_now().await;
            }
        }
        pinging
    });
    let (mut bytes, mut seen, mut last_pong) = (Vec::new(), 0, None);
    while seen < FRAMES || last_pong != Some(1999) {
        let mut bite = [0; 700];
        let count = soon("bytes", reading.read(&mut bite)).await.unwrap();
        assert_ne!(count, 0);
        bytes.extend_from_slice(&bite[..count]);
        let mut at = 0;
        while let Some(frame) = whole_frame(&bytes[at..]) {
            at += frame.len();
            match frame {
                [0x8a, 4, number @ ..] => {
                    let number = u32::from_be_bytes(number.try_into().unwrap());
                    assert!(last_pong < Some(number), "pongs come in order");
                    last_pong = Some(number);
                }
                [0x82, 127, payload @ ..] => seen = follow(seen, &payload[8..]),
                [0x82, 126, payload @ ..] => seen = follow(seen, &payload[2..]),
                [0x82, _, payload @ ..] => seen = follow(seen, payload),
                torn => panic!("{:x?}", &torn[..2]),
            }
        }
        bytes.drain(..at);
    }
    drop((writing.await.unwrap(), pings.await.unwrap(), events, room));
}

fn whole_frame(bytes: &[u8]) -> Option<&[u8]> {
    let header = match bytes.get(1)? {
        127 => 10,
        126 => 4,
        _ => 2,
    };
    bytes.get(..header).and_then(|_| bytes.get(..batch::frame_len(bytes)))
}

fn follow(seen: usize, payload: &[u8]) -> usize {
    assert_eq!(number_of(payload), seen);
    seen + 1
}

#[tokio::test]
async fn a_viewer_that_takes_bytes_slowly_is_not_silent() {
    let builder =
        WebSocketRoom::builder().ping_interval(Duration::from_millis(20)).idle_timeout(Duration::from_millis(100));
    // The viewer may take nothing for longer than the idle time-out while bytes wait for it.
    let builder = builder.stall_timeout(Duration::from_secs(3));
    let mut scene = Scene::set(builder).await;
    let started = tokio::time::Instant::now();
    let payload = Bytes::from(vec![0; 4 << 20]);
    let mut sink = scene.sink;
    let flushing = tokio::spawn(async move { sink.send(Frame::binary(payload)).await.map(|()| sink) });
    // The viewer never answers a ping, but takes some of the message at intervals longer than the idle time-out.
    let mut pace = tokio::time::interval(Duration::from_millis(150));
    while started.elapsed() < Duration::from_millis(900) {
        pace.tick().await;
        let mut some = vec![0; 100 << 10];
        scene.client.read_exact(&mut some).await.unwrap();
    }
    assert!(scene.room.present(&scene.presence.identity).is_some());
    assert!(!flushing.is_finished(), "it is still in the middle of it");
    // Then the viewer stops.
    assert!(matches!(soon("giving up", scene.events.next()).await, Some(RoomEvent::Disconnected { .. })));
    assert!(soon("the error", flushing).await.unwrap().is_err());
}
