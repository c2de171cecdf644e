//! Clients that send without pause: what they get is theirs alone to bear.

use std::io::Write;
use std::time::Instant;

use futures_util::future::join_all;

use super::*;

// 1. Clients send what is no upgrade, are answered, and go on sending as fast as they can. 2. The only thread of the
// runtime serves everybody else meanwhile. 3. When their time is up they lose the connection.
#[tokio::test]
async fn who_is_refused_and_goes_on_sending_holds_up_nobody() {
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
    assert!(begun.elapsed() < FLOOD, "they could send all the time");
}

/// Of the pings that are read at once the last one is answered.
#[tokio::test]
async fn of_many_pings_the_last_one_is_answered() {
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

/// Times that never come are as good as none: nobody is given up, and a goodbye is said.
#[tokio::test]
async fn times_as_long_as_can_be_break_nothing() {
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
