//! Direct messages: to one participant from several producers, to all participants round-robin, and among broadcasts.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lanecast_benches::baseline::Baseline;
use lanecast_benches::contender::{Contender, Lanecast};
use lanecast_benches::room::identity;
use lanecast_benches::sink::Counting;
use tokio::runtime::Runtime;

use crate::case::{Case, Runner};
use crate::stage::{Stage, messages};

/// Messages of one run to one participant, over all producers.
const STREAM: u64 = 100_000;
/// Rounds in one round-robin run.
const ROUNDS: u64 = 4;
/// Participants of the mix.
const MIXED: usize = 1_000;
/// How many times one run of the mix sends ten broadcasts and one direct message.
const MIXES: u64 = 8;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for producers in [1, 2, 4] {
        let case = Case::new("direct", format!("one/producers={producers}"), STREAM, producers != 2)
            .column("baseline", move |r| to_one::<Baseline<_>>(r, producers))
            .column("lanecast", move |r| to_one::<Lanecast<_>>(r, producers));
        cases.push(case);
    }
    for n in [16, 1_000, 4_000] {
        let case = Case::new("direct", format!("round-robin/n={n}"), n as u64 * ROUNDS, n == 1_000)
            .column("baseline", move |r| round_robin::<Baseline<_>>(r, n))
            .column("lanecast", move |r| round_robin::<Lanecast<_>>(r, n));
        cases.push(case);
    }
    let per = MIXES * (10 * MIXED as u64 + 1);
    let mix = Case::new("direct", format!("mix=1:10/n={MIXED}"), per, true)
        .column("baseline", mixed::<Baseline<_>>)
        .column("lanecast", mixed::<Lanecast<_>>);
    cases.push(mix);
    cases
}

/// Sends `message`, and tries again while the queue is full.
fn send<C: Contender<Counting>>(to: &C::Participant, mut message: Bytes) {
    while let Err(back) = C::try_send(to, message) {
        message = back;
        thread::yield_now();
    }
}

fn to_one<C: Contender<Counting>>(runtime: &Arc<Runtime>, producers: u64) -> Runner {
    let stage = Stage::<C, _>::new(runtime, Counting::default(), 1, 1);
    let participant = stage.session.by_identity(&identity(0)).expect("it is present");
    let mut total = stage.counts().delivered.get();
    Box::new(move |iterations| {
        let mut taken = Duration::ZERO;
        for _ in 0..iterations {
            let shares: Vec<_> = (0..producers).map(|_| messages(STREAM / producers, 64)).collect();
            total += STREAM;
            let start = Instant::now();
            thread::scope(|scope| {
                for share in shares {
                    scope.spawn(|| share.into_iter().for_each(|message| send::<C>(&participant, message)));
                }
            });
            stage.runtime.block_on(stage.counts().delivered.reach(total));
            taken += start.elapsed();
        }
        taken
    })
}

fn round_robin<C: Contender<Counting>>(runtime: &Arc<Runtime>, participants: usize) -> Runner {
    let stage = Stage::<C, _>::new(runtime, Counting::default(), participants, participants);
    let everybody = stage.session.everybody();
    let mut total = stage.counts().delivered.get();
    Box::new(move |iterations| {
        let mut taken = Duration::ZERO;
        for _ in 0..iterations {
            let mut messages = messages(ROUNDS * stage.participants as u64, 64).into_iter();
            total += messages.len() as u64;
            let start = Instant::now();
            for _ in 0..ROUNDS {
                everybody.iter().zip(&mut messages).for_each(|(participant, message)| send::<C>(participant, message));
            }
            stage.runtime.block_on(stage.counts().delivered.reach(total));
            taken += start.elapsed();
        }
        taken
    })
}

fn mixed<C: Contender<Counting>>(runtime: &Arc<Runtime>) -> Runner {
    let stage = Stage::<C, _>::new(runtime, Counting::default(), MIXED, MIXED);
    let everybody = stage.session.everybody();
    let mut total = stage.counts().delivered.get();
    let mut next = 0;
    Box::new(move |iterations| {
        stage.runtime.block_on(async {
            let mut taken = Duration::ZERO;
            for _ in 0..iterations {
                let mut messages = messages(MIXES * 11, 64).into_iter();
                let start = Instant::now();
                for (count, message) in (&mut messages).enumerate() {
                    if count % 11 == 5 {
                        next = (next + 1) % everybody.len();
                        send::<C>(&everybody[next], message);
                    } else {
                        stage.session.broadcast(message).await;
                    }
                }
                total += MIXES * (10 * MIXED as u64 + 1);
                stage.counts().delivered.reach(total).await;
                taken += start.elapsed();
            }
            taken
        })
    })
}
