//! What a broadcast costs: the publisher, which should not notice how many participants there are, and everybody,
//! until the last participant has it.

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::CountingRoom;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;

const PARTICIPANTS: [usize; 4] = [16, 1_000, 4_000, 16_000];
const PAYLOAD: usize = 64;

/// What the publisher sends at once: the first wakes a shard that sleeps, which costs what waking a thread costs here
/// (some microseconds), the others find it awake. A fraction of the log, so that none waits for room. Between bursts the
/// publisher spins: parked for longer the more participants there are, it would come back to colder caches.
const BURST: u64 = 64;

fn broadcast(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let payload = Bytes::from(vec![7; PAYLOAD]);
    for participants in PARTICIPANTS {
        let room = CountingRoom::new(participants);
        let delivered = room.delivered();
        let session = runtime.block_on(room.into_session());
        let mut total = 0;

        let mut group = c.benchmark_group("broadcast/publisher");
        group.throughput(Throughput::Elements(BURST));
        group.bench_function(BenchmarkId::from_parameter(participants), |b| {
            b.iter_custom(|iterations| {
                runtime.block_on(async {
                    let mut publishing = Duration::ZERO;
                    for _ in 0..iterations {
                        // Each message a payload of its own, as in life: the shards count references to the one
                        // they are delivering.
                        let messages: Vec<_> = (0..BURST).map(|_| Bytes::from(vec![7; PAYLOAD])).collect();
                        let start = Instant::now();
                        for message in messages {
                            session.broadcast(message).await.expect("the session is open");
                        }
                        publishing += start.elapsed();
                        total += participants as u64 * BURST;
                        delivered.spin_until(total);
                    }
                    publishing
                })
            });
        });
        group.finish();

        let mut group = c.benchmark_group("broadcast/delivered");
        for burst in [1, 16] {
            group.throughput(Throughput::Elements(participants as u64 * burst));
            group.bench_function(BenchmarkId::new(format!("burst-{burst}"), participants), |b| {
                b.iter_custom(|iterations| {
                    runtime.block_on(async {
                        let start = Instant::now();
                        for _ in 0..iterations {
                            for _ in 0..burst {
                                session.broadcast(payload.clone()).await.expect("the session is open");
                            }
                            total += participants as u64 * burst;
                            delivered.reach(total).await;
                        }
                        start.elapsed()
                    })
                });
            });
        }
        group.finish();
        runtime.block_on(session.close(Duration::from_secs(5))).expect("nothing is stuck");
    }
}

criterion_group!(benches, broadcast);
criterion_main!(benches);
