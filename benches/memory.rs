//! Bytes of memory per participant: idle; after one direct message; with a full backlog. Counted at the allocator.
//!
//! Not timed, so no criterion: prints a line per case, as `perf/compare.sh` does for the others.

#[path = "baseline/mod.rs"]
#[allow(dead_code, reason = "each bench uses its part")]
mod baseline;
#[path = "common/mod.rs"]
#[allow(dead_code, reason = "each bench uses its part")]
mod common;

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Runtime;

use self::baseline::Baseline;
use self::common::contender::{Contender, Lanecast};
use self::common::room::BenchRoom;
use self::common::sink::{Gated, Sinks};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Bytes per participant in the three states.
struct Taken {
    idle: i64,
    direct: i64,
    backlog: i64,
}

fn main() {
    let testing = std::env::args().any(|argument| argument == "--test");
    let participants = if testing { 100 } else { 2_000 };
    // No more than it takes to know that a site is one: the backtraces aren't looked at.
    let _profiler = dhat::Profiler::builder().testing().trim_backtraces(Some(1)).build();
    let runtime = Runtime::new().expect("a runtime");
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

fn allocated() -> i64 {
    i64::try_from(dhat::HeapStats::get().curr_bytes).expect("less than the address space")
}

async fn measure<C: Contender<Gated>>(participants: usize) -> Taken {
    let (idle, direct) = stage::<C>(participants, async |session| {
        for participant in &session.everybody() {
            C::try_send(participant, Bytes::from_static(&[7; 64])).expect("its queue is empty");
        }
    })
    .await;
    // All that waits is what all wait for. One less than resets them.
    let (_, backlog) = stage::<C>(participants, async |session| {
        for _ in 1..C::FILL {
            session.broadcast(Bytes::from(vec![7; 64])).await;
        }
    })
    .await;
    Taken { idle, direct, backlog }
}

/// Bytes per participant before and after `load`, which nobody's sink gets rid of.
async fn stage<C: Contender<Gated>>(participants: usize, load: impl AsyncFnOnce(&C)) -> (i64, i64) {
    let sinks = Gated::default();
    sinks.shut(true);
    // The room's own list is there before and after.
    let room = BenchRoom::new(sinks, participants, participants);
    let counts = Arc::clone(room.sinks().counts());
    let before = allocated();
    let each = |now: i64| (now - before) / participants as i64;
    let session = C::start(room).await;
    counts.initial.reach(participants as u64).await;
    settle().await;
    let idle = each(allocated());
    load(&session).await;
    counts.stalled.reach(participants as u64).await;
    settle().await;
    let loaded = each(allocated());
    session.end().await;
    (idle, loaded)
}

/// Lets what has been started come to rest.
async fn settle() {
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
}
