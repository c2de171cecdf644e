//! Joins, departures and look-ups, with 16,000 participants present.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lanecast_benches::baseline::Baseline;
use lanecast_benches::contender::{Contender, Lanecast};
use lanecast_benches::room::{identity, sid};
use lanecast_benches::sink::Counting;
use tokio::runtime::Runtime;
use tokio::time::MissedTickBehavior;

use crate::case::{Case, Runner};
use crate::stage::Stage;

const PRESENT: usize = 16_000;
/// Participants that join, are replaced or leave in one run.
const MOVING: usize = 1_024;
/// Look-ups of one thread in one run.
const LOOKUPS: usize = 50_000;
/// Reconnects in a storm.
const STORM: usize = 10_000;

#[derive(Clone, Copy)]
enum Move {
    Join,
    Replace,
    Remove,
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, kind) in [("join", Move::Join), ("replace", Move::Replace), ("remove", Move::Remove)] {
        for threads in [1, 4] {
            let case = Case::new("membership", format!("{name}/threads={threads}"), MOVING as u64, threads == 1)
                .column("baseline", move |r| moving::<Baseline<_>>(r, kind, threads))
                .column("lanecast", move |r| moving::<Lanecast<_>>(r, kind, threads));
            cases.push(case);
        }
    }
    for (key, by_sid) in [("identity", false), ("sid", true)] {
        for threads in [1, 4] {
            let per = (LOOKUPS * threads) as u64;
            let case = Case::new("membership", format!("look-up/by={key}/threads={threads}"), per, threads == 1)
                .column("baseline", move |r| looking_up::<Baseline<_>>(r, by_sid, threads))
                .column("lanecast", move |r| looking_up::<Lanecast<_>>(r, by_sid, threads));
            cases.push(case);
        }
    }
    for threads in [1, 4] {
        let per = (LOOKUPS * threads) as u64;
        let lookups = Case::new("membership", format!("look-up/storm/threads={threads}"), per, true)
            .column("baseline", move |r| looking_up_in_storm::<Baseline<_>>(r, threads))
            .column("lanecast", move |r| looking_up_in_storm::<Lanecast<_>>(r, threads));
        cases.push(lookups);
    }
    let storm = Case::new("membership", format!("storm/reconnects={STORM}"), STORM as u64, true)
        .column("baseline", |r| storming::<Baseline<_>>(r, false))
        .column("lanecast", |r| storming::<Lanecast<_>>(r, false));
    let busy = Case::new("membership", format!("storm/reconnects={STORM}/broadcasts=50"), STORM as u64, true)
        .column("baseline", |r| storming::<Baseline<_>>(r, true))
        .column("lanecast", |r| storming::<Lanecast<_>>(r, true));
    cases.extend([storm, busy]);
    cases
}

/// Calls `each` for every number in the range, which is shared out to `threads` threads.
fn share_out(range: std::ops::Range<usize>, threads: usize, each: impl Fn(usize) + Sync) {
    if threads == 1 {
        return range.for_each(each);
    }
    thread::scope(|scope| {
        for first in 0..threads {
            let (range, each) = (range.clone(), &each);
            scope.spawn(move || range.skip(first).step_by(threads).for_each(each));
        }
    });
}

fn moving<C: Contender<Counting>>(runtime: &Arc<Runtime>, kind: Move, threads: usize) -> Runner {
    let stage = Stage::<C, _>::new(runtime, Counting::default(), PRESENT, PRESENT + MOVING);
    let mut generation = 0;
    Box::new(move |iterations| {
        let counts = stage.counts();
        let newcomers = PRESENT..PRESENT + MOVING;
        let mut taken = Duration::ZERO;
        for _ in 0..iterations {
            generation += 1;
            let (initial, closed) = (counts.initial.get(), counts.closed.get());
            let connect = || {
                let range = if matches!(kind, Move::Replace) { 0..MOVING } else { newcomers.clone() };
                share_out(range, threads, |number| stage.room.connect(number, generation));
                stage.runtime.block_on(counts.initial.reach(initial + MOVING as u64));
            };
            let disconnect = || {
                share_out(newcomers.clone(), threads, |number| stage.room.disconnect(number));
                stage.runtime.block_on(counts.closed.reach(closed + MOVING as u64));
            };
            let timed = |what: &dyn Fn()| {
                let start = Instant::now();
                what();
                start.elapsed()
            };
            match kind {
                Move::Join => {
                    taken += timed(&connect);
                    disconnect();
                }
                Move::Replace => {
                    taken += timed(&|| {
                        connect();
                        stage.runtime.block_on(counts.closed.reach(closed + MOVING as u64));
                    });
                }
                Move::Remove => {
                    connect();
                    taken += timed(&disconnect);
                }
            }
        }
        taken
    })
}

fn looking_up<C: Contender<Counting>>(runtime: &Arc<Runtime>, by_sid: bool, threads: usize) -> Runner {
    let stage = Stage::<C, _>::new(runtime, Counting::default(), PRESENT, PRESENT);
    let identities: Vec<_> = shuffled().map(identity).collect();
    let sids: Vec<_> = shuffled().map(|number| sid(number, 0)).collect();
    Box::new(move |iterations| {
        let start = Instant::now();
        for _ in 0..iterations {
            share_out(0..LOOKUPS * threads, threads, |n| {
                let found = if by_sid {
                    stage.session.by_sid(&sids[n % PRESENT])
                } else {
                    stage.session.by_identity(&identities[n % PRESENT])
                };
                assert!(found.is_some());
            });
        }
        start.elapsed()
    })
}

fn shuffled() -> impl Iterator<Item = usize> {
    let mut numbers: Vec<usize> = (0..PRESENT).collect();
    fastrand::Rng::with_seed(7).shuffle(&mut numbers);
    numbers.into_iter()
}

/// Look-ups while another thread reconnects all participants over and over and broadcasts in between.
fn looking_up_in_storm<C: Contender<Counting>>(runtime: &Arc<Runtime>, threads: usize) -> Runner {
    let stage = Stage::<C, _>::new(runtime, Counting::default(), PRESENT, PRESENT);
    let identities: Vec<_> = shuffled().map(identity).collect();
    let mut generation = 0;
    Box::new(move |iterations| {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let storm = scope.spawn(|| {
                let counts = stage.counts();
                let mut wanted = counts.initial.get();
                while !stop.load(Ordering::Relaxed) {
                    generation += 1;
                    for numbers in (0..PRESENT).collect::<Vec<_>>().chunks(MOVING) {
                        numbers.iter().for_each(|number| stage.room.connect(*number, generation));
                        wanted += numbers.len() as u64;
                        stage.runtime.block_on(counts.initial.reach(wanted));
                        stage.runtime.block_on(stage.session.broadcast(Bytes::from_static(&[7; 64])));
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                }
            });
            let start = Instant::now();
            for n in 0..iterations {
                share_out(0..LOOKUPS * threads, threads, |i| {
                    std::hint::black_box(stage.session.by_identity(&identities[(n as usize + i) % PRESENT]));
                });
            }
            let taken = start.elapsed();
            stop.store(true, Ordering::Relaxed);
            storm.join().expect("the storm ends");
            taken
        })
    })
}

/// 10,000 participants reconnect at once: the time until all have their initial messages. If `busy`, there are 50
/// broadcasts a second meanwhile. At 1,000 a second the baseline's publisher falls behind and offers its runtime a
/// fraction of the load.
fn storming<C: Contender<Counting>>(runtime: &Arc<Runtime>, busy: bool) -> Runner {
    let stage = Stage::<C, _>::new(runtime, Counting::default(), PRESENT, PRESENT);
    let mut generation = 0;
    Box::new(move |iterations| {
        let counts = stage.counts();
        let mut taken = Duration::ZERO;
        for _ in 0..iterations {
            generation += 1;
            let publishing = busy.then(|| {
                let session = stage.session.clone();
                stage.runtime.spawn(async move {
                    let mut tick = tokio::time::interval(Duration::from_millis(20));
                    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
                    loop {
                        tick.tick().await;
                        session.broadcast(Bytes::from_static(&[7; 64])).await;
                    }
                })
            });
            let wanted = counts.initial.get() + STORM as u64;
            let start = Instant::now();
            (0..STORM).for_each(|number| stage.room.connect(number, generation));
            stage.runtime.block_on(counts.initial.reach(wanted));
            taken += start.elapsed();
            if let Some(publishing) = publishing {
                publishing.abort();
            }
        }
        taken
    })
}
