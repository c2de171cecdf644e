//! Clients that send without pause: their load delays only themselves.

use std::io::Write;
use std::time::Instant;

use futures_util::future::{join_all, select_all};
use lanecast::room::PeerLimits;

use super::*;

// 1. Clients send bytes that are no upgrade request, are answered, and go on sending as fast as they can. 2. The
// runtime's only thread serves everything else meanwhile. 3. When their time is up they lose the connection.
#[tokio::test]
async fn a_refused_client_that_goes_on_sending_holds_up_nobody() {
    const FLOOD: Duration = Duration::from_secs(6);
    let server = Server::start(WebSocketRoom::builder().close_timeout(Duration::from_millis(500))).await;
    let (address, begun) = (server.room.local_addr(), Instant::now());
    let flooders = (0..8).map(|_| {
        tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(b"NONSENSE\r\n\r\n").unwrap();
            let much = vec![b'x'; 4 << 20];
            while begun.elapsed() < FLOOD && stream.write_all(&much).is_ok() {}
        })
    });
    let mut flooders = Box::pin(join_all(flooders.collect::<Vec<_>>()));
    let (mut last, mut longest) = (begun, Duration::ZERO);
    while (&mut flooders).now_or_never().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    assert!(longest < FLOOD / 3, "nothing else ran for {longest:?}");
    assert!(begun.elapsed() < FLOOD, "the clients could send all the time");
}

/// Of the pings that are read at once only the last one is answered.
#[tokio::test]
async fn only_the_last_of_many_pings_is_answered() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let mut client = server.raw().await;
    server.joined().await;
    let count: u16 = 10_000;
    let pings: Vec<u8> = (0..count).flat_map(|n| masked(0x89, &n.to_be_bytes())).collect();
    client.write_all(&pings).await.unwrap();
    let (mut pongs, mut last) = (0, 0);
    while last != count - 1 {
        let mut pong = [0; 4];
        soon("a pong", client.read_exact(&mut pong)).await.unwrap();
        assert_eq!(pong[..2], [0x8a, 2]);
        pongs += 1;
        last = u16::from_be_bytes([pong[2], pong[3]]);
    }
    assert!(pongs < count / 10, "{pongs} pongs");
}

/// The first bytes of a frame of `length`, masked with zeroes.
fn header(first: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![first, 0xff];
    bytes.extend((length as u64).to_be_bytes());
    bytes.extend([0; 4]);
    bytes
}

fn long(length: usize) -> Vec<u8> {
    [header(0x82, length), vec![7; length]].concat()
}

/// Waits for a condition that nothing announces.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

// 1. Peers send nearly all of their long messages, and stop: they hold the whole budget. 2. Others want to send long
// messages, and wait. Short messages and pings don't wait. 3. Those that hold the budget are closed with 1013 when
// their time is up; the others get it.
#[tokio::test]
async fn unfinished_messages_starve_nobody() {
    const LENGTH: usize = 1 << 20;
    let limits = PeerLimits::with_patience(4 * LENGTH, Duration::from_millis(300));
    let mut server = Server::start(WebSocketRoom::builder().peer_limits(limits.clone())).await;
    let mut unfinished = Vec::new();
    for _ in 0..4 {
        let mut client = server.raw().await;
        client.write_all(&long(LENGTH)[..LENGTH - 10_000]).await.unwrap();
        unfinished.push((client, server.joined().await));
    }
    until("all of the budget to be claimed", || limits.claimed() == limits.bytes()).await;
    assert_eq!(limits.waiting(), 0);

    let mut honest = server.raw().await;
    let (_, mut incoming) = server.joined().await;
    honest.write_all(&[masked(0x82, b"short"), long(300_000), masked(0x82, b"after")].concat()).await.unwrap();
    assert_eq!(soon("what is short", incoming.next()).await.unwrap().len(), 5);
    let reading = tokio::spawn(async move {
        let long = soon("what is long", incoming.next()).await.unwrap();
        (long.len(), soon("what is behind it", incoming.next()).await.unwrap().len())
    });
    until("the long one to wait", || limits.waiting() == 1).await;
    let mut other = server.raw().await;
    let (_, mut also) = server.joined().await;
    other.write_all(&[masked(0x82, b"short"), masked(0x89, b"there?")].concat()).await.unwrap();
    assert_eq!(soon("what is short", also.next()).await.unwrap().len(), 5);
    assert_eq!(soon("the pong", read_frame(&mut other)).await.unwrap(), (0x8a, b"there?".to_vec()));

    assert_eq!(reading.await.unwrap(), (300_000, 5));
    let closing = unfinished.iter_mut().map(|(client, _joined)| Box::pin(read_close(client)));
    let ((code, reason), ..) = select_all(closing).await;
    assert_eq!(code, 1013, "{reason}");
}

/// A slow message may take any time while no other viewer waits, and may be longer than the whole budget.
#[tokio::test]
async fn a_slow_message_arrives_while_nobody_else_waits() {
    let patience = Duration::from_millis(20);
    let limits = PeerLimits::with_patience(1, patience);
    let mut server = Server::start(WebSocketRoom::builder().peer_limits(limits.clone())).await;
    let mut client = server.raw().await;
    let (_, mut incoming) = server.joined().await;
    for part in long(1 << 20).chunks((1 << 20) / 3) {
        client.write_all(part).await.unwrap();
        tokio::time::sleep(2 * patience).await;
    }
    assert_eq!(soon("the message", incoming.next()).await.unwrap().len(), 1 << 20);
    // The message's claim is returned when the next message is requested.
    assert_eq!(limits.claimed(), 1);
    assert!(incoming.next().now_or_never().is_none());
    assert_eq!(limits.claimed(), 0);
}

// 1. A viewer sends several long messages, and no handler takes them: it claims memory for one of them. 2. A viewer of
// another room that shares the budget waits for it. 3. The messages are taken: all arrive, in order.
#[tokio::test]
async fn rooms_share_a_budget_and_a_viewer_claims_one_long_message() {
    let limits = PeerLimits::new(100_000);
    let builder = || WebSocketRoom::builder().peer_limits(limits.clone());
    let (mut first, mut second) = (Server::start(builder()).await, Server::start(builder()).await);
    let (mut client, mut other) = (first.raw().await, second.raw().await);
    let (_, mut incoming) = first.joined().await;
    let (_, mut elsewhere) = second.joined().await;
    let sending = tokio::spawn(async move {
        for length in 60_000..60_005 {
            client.write_all(&long(length)).await.unwrap();
        }
        client
    });
    until("a claim", || limits.claimed() == 60_000).await;
    other.write_all(&long(60_000)).await.unwrap();
    until("the other one to wait", || limits.waiting() == 1).await;
    assert_eq!(limits.claimed(), 100_000, "the rest is reserved for the waiting viewer");
    let all = async {
        for length in 60_000..60_005 {
            assert_eq!(soon("a message", incoming.next()).await.unwrap().len(), length);
        }
        drop(incoming);
    };
    let the_other = async {
        assert_eq!(soon("the other one", elsewhere.next()).await.unwrap().len(), 60_000);
        drop(elsewhere);
    };
    tokio::join!(all, the_other);
    assert_eq!((limits.claimed(), limits.waiting()), (0, 0));
    drop(sending.await.unwrap());
}

/// A viewer whose stream has no reader claims nothing, and its pings are answered.
#[tokio::test]
async fn discarded_messages_claim_nothing() {
    let limits = PeerLimits::with_patience(1, Duration::MAX);
    let mut server = Server::start(WebSocketRoom::builder().peer_limits(limits.clone())).await;
    let mut holder = server.raw().await;
    holder.write_all(&header(0x82, 5000)).await.unwrap();
    let _holds = server.joined().await;
    until("the budget to be used up", || limits.claimed() == 1).await;
    let mut client = server.raw().await;
    let (_, incoming) = server.joined().await;
    drop(incoming);
    // The first message shows that the stream has no reader.
    client.write_all(&masked(0x82, b"lost")).await.unwrap();
    for _ in 0..3 {
        client.write_all(&long(1 << 20)).await.unwrap();
    }
    client.write_all(&masked(0x89, b"still there?")).await.unwrap();
    assert_eq!(soon("the pong", read_frame(&mut client)).await.unwrap(), (0x8a, b"still there?".to_vec()));
}

/// Times that never come have no effect: no connection is given up, and the close handshake is completed.
#[tokio::test]
async fn the_longest_durations_break_nothing() {
    let builder = WebSocketRoom::builder().ping_interval(Duration::from_millis(5));
    let mut server = Server::start(builder.idle_timeout(Duration::MAX).close_timeout(Duration::MAX)).await;
    let mut client = server.raw().await;
    let (presence, _incoming) = server.joined().await;
    let mut ping = [0; 2];
    soon("a ping", client.read_exact(&mut ping)).await.unwrap();
    assert_eq!(ping, [0x89, 0]);
    client.write_all(&masked(0x88, &1000_u16.to_be_bytes())).await.unwrap();
    let mut rest = Vec::new();
    soon("the goodbye", client.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.windows(4).any(|bytes| bytes[0] == 0x88 && bytes[2..] == 1000_u16.to_be_bytes()), "{rest:?}");
    server.left(&presence).await;
}

/// A client's short frame, masked with zeroes.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}
