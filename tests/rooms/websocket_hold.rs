//! Holding publishers while most of the WebSocket viewers are behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lanecast::protocol::Frame;
use lanecast::room::websocket::WebSocketRoom;
use lanecast::{Hold, OverloadPolicy, Session};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// The settings of a session under overload.
#[derive(Clone, Copy)]
struct Choice {
    policy: OverloadPolicy,
    queue_capacity: u32,
}

/// What the viewers of an overloaded server get.
struct Outcome {
    /// Messages per second, by viewer.
    received: Vec<u64>,
    published: u64,
    resets: u64,
    holds: u64,
    present: usize,
}

/// Viewers that read all the time, in turns on one thread of their own, and a publisher of 200,000 short messages a
/// second, for so long.
async fn overload(Choice { policy, queue_capacity }: Choice, viewers: usize, time: Duration) -> Outcome {
    let room = WebSocketRoom::builder().bind("127.0.0.1:0").await.unwrap();
    let session = Session::builder(room.clone()).overload(policy).queue_capacity(queue_capacity).build().unwrap();
    let readers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let counters: Vec<Arc<AtomicU64>> = (0..viewers).map(|_| Arc::default()).collect();
    for counter in &counters {
        let address = room.local_addr();
        let mut request = format!("ws://{}/", room.local_addr()).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
        let counter = Arc::clone(counter);
        readers.spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let (mut client, _) = client_async(request, stream).await.unwrap();
            while let Some(Ok(_)) = client.next().await {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while session.stats().participants < viewers {
        tokio::task::yield_now().await;
    }
    let reading = Frame::text("a reading of some forty bytes, as sensors have them");
    let (begun, mut published) = (Instant::now(), 0);
    while begun.elapsed() < time {
        let due = (begun.elapsed().as_micros() / 5) as u64;
        while published < due && begun.elapsed() < time {
            session.broadcast(reading.clone()).await.unwrap();
            published += 1;
        }
        tokio::task::yield_now().await;
    }
    let stats = session.stats();
    let per_second = |counter: &Arc<AtomicU64>| (counter.load(Ordering::Relaxed) as f64 / time.as_secs_f64()) as u64;
    session.cancel();
    readers.shutdown_background();
    Outcome {
        received: counters.iter().map(per_second).collect(),
        published,
        resets: stats.resets.total(),
        holds: stats.publisher_holds,
        present: stats.participants,
    }
}

fn in_a_runtime<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(what)
}

fn is_full() -> bool {
    std::env::var("LANECAST_TEST_SIZE").is_ok_and(|size| size == "full")
}

/// Prints what becomes of 100 viewers: the table in perf/README.md. While one viewer is read, the others' queues fill
/// one after the other, so few are heavy at a time: nearly all stay only where two in a hundred start a hold.
#[test]
fn figures_of_an_overload() {
    if !is_full() {
        return eprintln!("left out: it needs LANECAST_TEST_SIZE=full");
    }
    println!("| policy | queue capacity | published | received, least to most | present | resets | holds |");
    println!("|---|---|---|---|---|---|---|");
    let hold = |share| OverloadPolicy::from(Hold::default().share_percent(share));
    for _round in 0..2 {
        for (name, policy, queue_capacity) in [
            ("Reset", OverloadPolicy::Reset, 4_096),
            ("Hold, more than 50 %", hold(50), 4_096),
            ("Hold, more than 5 %", hold(5), 4_096),
            ("Hold, more than 5 %", hold(5), 65_536),
            ("Hold, more than 1 %", hold(1), 4_096),
            ("Hold, more than 1 %", hold(1), 65_536),
        ] {
            let Outcome { received, published, resets, holds, present } =
                in_a_runtime(overload(Choice { policy, queue_capacity }, 100, Duration::from_secs(10)));
            let (least, most) = (received.iter().min().unwrap(), received.iter().max().unwrap());
            let published = published / 10;
            println!(
                "| {name} | {queue_capacity} | {published} | {least} to {most} | {present} | {resets} | {holds} |"
            );
        }
    }
}
