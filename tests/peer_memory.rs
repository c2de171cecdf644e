//! What peers that send much, and whose messages nobody takes, cost in memory. The memory is counted at the allocator,
//! so this test has a binary of its own.
#![cfg(feature = "websocket")]

mod common;

use std::sync::Arc;

use common::{until, within};
use futures_util::{FutureExt, StreamExt};
use lanecast::room::websocket::WebSocketRoom;
use lanecast::room::{PeerLimits, Room, RoomEvent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const PEERS: usize = 60;
const LONG: usize = 1 << 20;
const BUDGET: usize = 4 * LONG;

/// What a connection may hold in addition: itself, short messages in its inbox, and what one read brought.
const EACH: usize = 24 << 10;

/// A frame of `length` zeroes, masked with zeroes.
fn frame(length: usize) -> Vec<u8> {
    let mut bytes = vec![0x82, 0xff];
    bytes.extend((length as u64).to_be_bytes());
    bytes.extend(vec![0; 4 + length]);
    bytes
}

/// Sends `bytes` again and again, for as long as its future is polled.
async fn flood(server: std::net::SocketAddr, bytes: Arc<Vec<u8>>) {
    let mut stream = TcpStream::connect(server).await.expect("it listens");
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Protocol: foxglove.sdk.v1\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("it listens");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("it answers");
    assert_eq!(&answer, b"HTTP/1.1 101");
    while stream.write_all(&bytes).await.is_ok() {}
}

/// Sixty peers send without pause, half of them long messages and half short ones, and no handler takes them.
#[tokio::test]
async fn all_peers_together_stay_within_the_budget() {
    let limits = PeerLimits::new(BUDGET);
    let room = WebSocketRoom::builder().peer_limits(limits.clone()).bind("127.0.0.1:0").await.expect("a free port");
    let mut events = Box::pin(room.events().expect("it is asked for once"));
    let (long, short) = (Arc::new(frame(LONG)), Arc::new(frame(1500).repeat(100)));
    let counting = dhat::Profiler::builder().testing().trim_backtraces(Some(1)).build();
    let mut floods = tokio::task::JoinSet::new();
    for peer in 0..PEERS {
        let bytes = if peer % 2 == 0 { &long } else { &short };
        floods.spawn(flood(room.local_addr(), Arc::clone(bytes)));
    }
    let mut inboxes = Vec::new();
    while inboxes.len() < PEERS {
        if let Some(RoomEvent::StreamOpened { stream, .. }) = within(events.next()).await {
            inboxes.push(stream);
        }
    }
    // Four long messages have arrived whole, and every other peer that sends one waits.
    let waiting = PEERS / 2 - BUDGET / LONG;
    within(until(|| limits.waiting() == waiting && limits.claimed() == BUDGET)).await;
    // Only one message of each peer is taken: the four are whole when each peer has given one.
    let mut taken = Vec::new();
    let mut whole = 0;
    let all_whole = until(|| {
        let given = inboxes.extract_if(.., |inbox| match inbox.next().now_or_never() {
            Some(Some(frame)) => {
                whole += usize::from(frame.len() == LONG);
                true
            }
            _ => false,
        });
        // The messages are kept: a dropped message would return its share of the budget.
        taken.extend(given);
        whole == BUDGET / LONG
    });
    within(all_whole).await;
    let peak = dhat::HeapStats::get().max_bytes;
    drop(counting);
    println!("{PEERS} peers took {peak} bytes at most");
    assert!(peak <= BUDGET + PEERS * EACH, "{PEERS} peers took {peak} bytes");
    drop(taken);
}
