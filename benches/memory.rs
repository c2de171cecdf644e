//! Bytes of memory per participant: idle, after one direct message, and with a full backlog. Counted at the allocator.
//!
//! Nothing is timed, so this doesn't use criterion. By default it prints a line per case, as `perf/compare.sh` does for
//! the others. With `--growth` it prints the memory of an idle session over the number of participants, for
//! `perf/growth.sh`. With `--backlogs` it prints the memory of full backlogs over the capacity of the queue.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lanecast::{Session, SubscriptionTag, Topic};
use lanecast_benches::baseline::Baseline;
use lanecast_benches::contender::{Contender, Lanecast};
use lanecast_benches::fit::fit;
use lanecast_benches::room::BenchRoom;
use lanecast_benches::sink::{Counts, Gated, INITIAL, Sinks};
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Bytes per participant in the three states.
struct Taken {
    idle: i64,
    direct: i64,
    backlog: i64,
}

fn main() {
    let mode = |name: &str| std::env::args().any(|argument| argument == name);
    let participants = if mode("--test") { 100 } else { 2_000 };
    // The backtraces aren't used, so they are as short as possible.
    let _profiler = dhat::Profiler::builder().testing().trim_backtraces(Some(1)).build();
    let runtime = Runtime::new().expect("a runtime");
    if mode("--growth") {
        return runtime.block_on(growth());
    }
    if mode("--backlogs") {
        return runtime.block_on(backlogs());
    }
    let baseline = runtime.block_on(measure::<Baseline<_>>(participants));
    let lanecast = runtime.block_on(measure::<Lanecast<_>>(participants));
    let states = [
        ("idle", baseline.idle, lanecast.idle),
        ("one-direct", baseline.direct, lanecast.direct),
        ("full-backlog", baseline.backlog, lanecast.backlog),
    ];
    for (state, baseline, lanecast) in states {
        let ratio = baseline as f64 / lanecast as f64;
        println!(
            "case=memory/n={participants}/{state} baseline={baseline} lanecast={lanecast} ratio={ratio:.2} spread=0.00"
        );
    }
}

async fn growth() {
    println!("\n## An idle session\n\n| participants | baseline, kB | lanecast, kB |\n|---|---|---|");
    let mut rows = Vec::new();
    for n in [16, 256, 1_000, 4_000, 16_000, 64_000] {
        let kilobytes = |each: (i64, i64)| (each.0 * n as i64) as f64 / 1e3;
        let baseline = kilobytes(stage::<Baseline<_>>(n, async |_, _| ()).await);
        let lanecast = kilobytes(stage::<Lanecast<_>>(n, async |_, _| ()).await);
        println!("| {n} | {baseline:.0} | {lanecast:.0} |");
        rows.push((n as f64, baseline, lanecast));
    }
    let lines = [fit(rows.iter().map(|row| (row.0, row.1))), fit(rows.iter().map(|row| (row.0, row.2)))];
    println!();
    for (name, line) in ["baseline", "lanecast"].into_iter().zip(lines) {
        println!("- {name}, kB = {:.1} + {:.3} × participants", line.at_zero, line.slope);
    }
}

/// The source of the messages of a full backlog.
#[derive(Clone, Copy)]
enum Lane {
    All,
    Topic,
    Direct,
}

/// Prints the bytes per participant of full backlogs over the queue's capacity, without what the messages hold.
async fn backlogs() {
    println!("\n## A full backlog, bytes per participant\n");
    println!("| queue_capacity | messages to all | to a topic | sent directly, at once |\n|---|---|---|---|");
    for capacity in [1_024, 4_096, 8_192, 16_384, 32_768] {
        let all = full_backlog(capacity, Lane::All, 500).await;
        let topic = full_backlog(capacity, Lane::Topic, 500).await;
        let direct = full_backlog(capacity, Lane::Direct, 20).await;
        println!("| {capacity} | {all} | {topic} | {direct} |");
    }
}

async fn full_backlog(capacity: u32, lane: Lane, participants: usize) -> i64 {
    const MESSAGE: Bytes = Bytes::from_static(&[7; 64]);
    settle().await;
    let sinks = Gated::default();
    sinks.shut(true);
    let room = BenchRoom::new(sinks, participants, participants);
    let counts = Arc::clone(room.sinks().counts());
    let builder = Session::builder(room).queue_capacity(capacity).initial(async |_| vec![INITIAL]);
    let session = builder.write_timeout(Duration::from_secs(3_600)).build().expect("inside a runtime");
    counts.initial.reach(participants as u64).await;
    let (everybody, topic) = (session.participants(), Topic::new());
    for participant in &everybody {
        participant.subscribe(&topic, SubscriptionTag(1)).await;
    }
    settle().await;
    let before = allocated();
    match lane {
        Lane::All => {
            for _ in 0..capacity {
                session.broadcast(MESSAGE).await.expect("the session is open");
            }
        }
        Lane::Topic => {
            for _ in 0..capacity {
                session.broadcast_to(&topic, MESSAGE).await.expect("the session is open");
            }
        }
        Lane::Direct => {
            for participant in &everybody {
                (0..capacity).for_each(|_| participant.try_send(MESSAGE).expect("its queue is empty"));
            }
        }
    }
    while !everybody.iter().all(|participant| participant.stats().account.waiting() == u64::from(capacity)) {
        settle().await;
    }
    let each = (allocated() - before) / participants as i64;
    session.cancel();
    session.ended().await.expect("nothing is stuck");
    each
}

fn allocated() -> i64 {
    i64::try_from(dhat::HeapStats::get().curr_bytes).expect("less than the address space")
}

async fn measure<C: Contender<Gated>>(participants: usize) -> Taken {
    let (idle, direct) = stage::<C>(participants, async |session, counts| {
        for participant in &session.everybody() {
            C::try_send(participant, Bytes::from_static(&[7; 64])).expect("its queue is empty");
        }
        counts.stalled.reach(participants as u64).await;
    })
    .await;
    // The same broadcasts wait for all participants: one less than fill them up to their bound.
    let (_, backlog) = stage::<C>(participants, async |session, counts| {
        for _ in 1..C::FILL {
            session.broadcast(Bytes::from(vec![7; 64])).await;
        }
        counts.stalled.reach(participants as u64).await;
    })
    .await;
    Taken { idle, direct, backlog }
}

/// Bytes per participant before and after `load`, whose messages no sink flushes.
async fn stage<C: Contender<Gated>>(participants: usize, load: impl AsyncFnOnce(&C, &Counts)) -> (i64, i64) {
    // Lets the session of an earlier stage go first.
    settle().await;
    let sinks = Gated::default();
    sinks.shut(true);
    // The room's own list isn't counted: it exists before the first reading and stays.
    let room = BenchRoom::new(sinks, participants, participants);
    let counts = Arc::clone(room.sinks().counts());
    let before = allocated();
    let each = |now: i64| (now - before) / participants as i64;
    let session = C::start(room).await;
    counts.initial.reach(participants as u64).await;
    settle().await;
    let idle = each(allocated());
    load(&session, &counts).await;
    settle().await;
    let loaded = each(allocated());
    session.end().await;
    (idle, loaded)
}

/// Waits until the work that has been started comes to rest.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}
