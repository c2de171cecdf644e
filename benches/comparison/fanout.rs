//! Broadcasts to all participants: the time until the last participant has the last message, and the publisher's own
//! time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lanecast_benches::baseline::Baseline;
use lanecast_benches::contender::{Contender, DirectQueues, Lanecast};
use lanecast_benches::sink::{Cloned, Counting, Sinks};
use tokio::runtime::Runtime;

use crate::case::{Case, Runner};
use crate::stage::{Stage, messages};

const PARTICIPANTS: [usize; 6] = [16, 256, 1_000, 4_000, 16_000, 64_000];
const BURSTS: [u64; 2] = [1, 16];
const PAYLOADS: [usize; 2] = [64, 4096];

/// Messages in a burst when the publisher's own time is measured. The first one wakes a sleeping shard, which costs
/// what waking a thread costs here (some microseconds). The others find the shard awake.
const PUBLISHED: u64 = 64;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in PARTICIPANTS {
        for burst in BURSTS {
            for payload in PAYLOADS {
                let quick = payload == 64 && [1_000, 4_000, 16_000].contains(&n);
                let name = format!("n={n}/burst={burst}/payload={payload}");
                let cloned =
                    move |r: &Arc<Runtime>| until_delivered::<Lanecast<_>, Cloned<Counting>>(r, n, burst, payload);
                let mut case = Case::new("fanout", name, n as u64 * burst, quick);
                case = case.column("baseline", move |r| until_delivered::<Baseline<_>, Counting>(r, n, burst, payload));
                case = case.column("direct-queues", move |r| {
                    until_delivered::<DirectQueues<_>, Counting>(r, n, burst, payload)
                });
                case = case.column("lanecast-cloning", cloned);
                let lanecast = move |r: &Arc<Runtime>| until_delivered::<Lanecast<_>, Counting>(r, n, burst, payload);
                cases.push(case.column("lanecast", lanecast));
            }
        }
    }
    for n in [16, 1_000, 16_000] {
        let case = Case::new("publisher", format!("n={n}"), PUBLISHED, n == 16)
            .column("baseline", move |r| publishing::<Baseline<_>>(r, n))
            .column("lanecast", move |r| publishing::<Lanecast<_>>(r, n));
        cases.push(case);
    }
    let own = Case::new("publisher", "own=16000:16".to_owned(), PUBLISHED, true)
        .own_ratio("lanecast-16000", "lanecast-16")
        .column("lanecast-16000", |r| publishing::<Lanecast<_>>(r, 16_000))
        .column("lanecast-16", |r| publishing::<Lanecast<_>>(r, 16));
    cases.push(own);
    cases
}

pub(crate) fn until_delivered<C: Contender<S>, S: Sinks + Default>(
    runtime: &Arc<Runtime>,
    participants: usize,
    burst: u64,
    payload: usize,
) -> Runner {
    let stage = Stage::<C, _>::new(runtime, S::default(), participants, participants);
    let mut total = stage.counts().delivered.get();
    Box::new(move |iterations| {
        stage.runtime.block_on(async {
            let mut taken = Duration::ZERO;
            for _ in 0..iterations {
                let messages = messages(burst, payload);
                let start = Instant::now();
                for message in messages {
                    stage.session.broadcast(message).await;
                }
                total += participants as u64 * burst;
                stage.counts().delivered.reach(total).await;
                taken += start.elapsed();
            }
            taken
        })
    })
}

/// Measures the publisher's own time. The publisher spins between bursts. If it parked instead, it would be parked for
/// longer the more participants there are, and would come back to colder caches.
fn publishing<C: Contender<Counting>>(runtime: &Arc<Runtime>, participants: usize) -> Runner {
    let stage = Stage::<C, Counting>::new(runtime, Counting::default(), participants, participants);
    let mut total = stage.counts().delivered.get();
    Box::new(move |iterations| {
        stage.runtime.block_on(async {
            let mut taken = Duration::ZERO;
            for _ in 0..iterations {
                let messages = messages(PUBLISHED, 64);
                let start = Instant::now();
                for message in messages {
                    stage.session.broadcast(message).await;
                }
                taken += start.elapsed();
                total += participants as u64 * PUBLISHED;
                stage.counts().delivered.spin_until(total);
            }
            taken
        })
    })
}
