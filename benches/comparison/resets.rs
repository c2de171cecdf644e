//! 1,000 or 10,000 participants overflow at once: the time until all are back with their initial messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lanecast_benches::baseline::Baseline;
use lanecast_benches::contender::{Contender, Lanecast};
use lanecast_benches::sink::Gated;
use tokio::runtime::Runtime;

use crate::case::{Case, Runner};
use crate::stage::{Stage, messages};

pub(crate) fn cases() -> Vec<Case> {
    let case = |n: usize, quick: bool| {
        Case::new("resets", format!("overflowing={n}"), n as u64, quick)
            .column("baseline", move |r| overflowing::<Baseline<_>>(r, n))
            .column("lanecast", move |r| overflowing::<Lanecast<_>>(r, n))
    };
    vec![case(1_000, true), case(10_000, false)]
}

fn overflowing<C: Contender<Gated>>(runtime: &Arc<Runtime>, participants: usize) -> Runner {
    let runtime = Arc::clone(runtime);
    Box::new(move |iterations| {
        let mut taken = Duration::ZERO;
        for _ in 0..iterations {
            // The streams that are opened here stall for as long as they live. Streams that are opened later don't.
            let sinks = Gated::default();
            sinks.shut(true);
            let stage = Stage::<C, _>::new(&runtime, sinks, participants, participants);
            stage.room.sinks().shut(false);
            taken += runtime.block_on(async {
                let counts = stage.counts();
                // One message goes into each sink first, so that the messages after it fill the queues and nothing
                // else.
                let mut messages = messages(C::FILL as u64 + 1, 64).into_iter();
                let (first, last) = (messages.next(), messages.next_back());
                stage.session.broadcast(first.expect("there are some")).await;
                counts.stalled.reach(participants as u64).await;
                for message in messages {
                    stage.session.broadcast(message).await;
                }
                while !stage.session.is_full() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let wanted = counts.initial.get() + participants as u64;
                let start = Instant::now();
                stage.session.broadcast(last.expect("there are some")).await;
                counts.initial.reach(wanted).await;
                start.elapsed()
            });
        }
        taken
    })
}
