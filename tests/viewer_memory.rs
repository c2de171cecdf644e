//! What an idle viewer of telemetry costs in memory: a WebSocket client with one subscription. The memory is counted at
//! the allocator, so this test has a binary of its own.
//!
//! `LANECAST_HEAP=FILE` writes the blocks that there are at the end, by the place where they were allocated, for dhat's
//! viewer.
#![cfg(feature = "websocket")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::{until, within};
use lanecast::room::websocket::WebSocketRoom;
use lanecast::telemetry::{Channel, Telemetry};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// The first viewers make tables grow that a few more don't.
const FIRST: usize = 64;
const MORE: usize = 320;

/// The most bytes that a viewer may hold, and in how many blocks. The allocator adds some 8 to 16 bytes to each.
const MOST_BYTES: usize = 3500;
const MOST_BLOCKS: usize = 20;

/// A masked text frame, with a key of zeroes.
fn text(text: &str) -> Vec<u8> {
    let mut bytes = vec![0x81, 0x80 | u8::try_from(text.len()).expect("a short text"), 0, 0, 0, 0];
    bytes.extend(text.as_bytes());
    bytes
}

/// Connects viewers that subscribe to channel 1. Their end of the connections holds no memory of this process.
fn connect(server: SocketAddr, count: usize) -> Vec<TcpStream> {
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Protocol: foxglove.sdk.v1\r\n\r\n";
    let connect = |_| {
        let mut stream = TcpStream::connect(server).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it listens");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("it answers");
        assert_eq!(&answer, b"HTTP/1.1 101");
        let subscribe = r#"{"op":"subscribe","subscriptions":[{"id":7,"channelId":1}]}"#;
        stream.write_all(&text(subscribe)).expect("it listens");
        stream
    };
    (0..count).map(connect).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_idle_viewer_with_one_subscription_is_small() {
    let room = WebSocketRoom::builder().bind("127.0.0.1:0").await.expect("a free port");
    let server = room.local_addr();
    let heap = std::env::var_os("LANECAST_HEAP");
    let profiler = match &heap {
        Some(file) => dhat::Profiler::builder().file_name(file).trim_backtraces(Some(40)).build(),
        None => dhat::Profiler::builder().testing().trim_backtraces(Some(1)).build(),
    };
    let telemetry = Telemetry::builder(room).build().expect("the settings are valid");
    let channel = telemetry.advertise(Channel::new("/state", "raw")).await.expect("the session is open");
    assert_eq!(channel.id(), 1);

    let mut viewers = Vec::new();
    let mut before = dhat::HeapStats::get();
    for count in [FIRST, MORE] {
        before = dhat::HeapStats::get();
        let joined = tokio::task::spawn_blocking(move || connect(server, count)).await.expect("they connect");
        viewers.extend(joined);
        within(until(|| channel.subscribers() == viewers.len())).await;
    }
    let after = dhat::HeapStats::get();
    drop(profiler);
    let bytes = (after.curr_bytes - before.curr_bytes) / MORE;
    let blocks = (after.curr_blocks - before.curr_blocks) / MORE;
    println!("an idle viewer holds {bytes} bytes in {blocks} blocks");
    assert!(bytes <= MOST_BYTES && blocks <= MOST_BLOCKS, "{bytes} bytes in {blocks} blocks");
    telemetry.close(Duration::from_secs(1)).await.expect("it is the first call");
    drop(viewers);
}
