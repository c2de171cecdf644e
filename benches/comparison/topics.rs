//! Broadcasts to topics: 10,000 participants, 1,000 topics, 10 subscriptions each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lanecast::SubscriptionTag;
use lanecast_benches::baseline::Baseline;
use lanecast_benches::contender::{Contender, Lanecast};
use lanecast_benches::room::identity;
use lanecast_benches::sink::Counting;
use tokio::runtime::Runtime;

use crate::case::{Case, Runner};
use crate::stage::{Stage, messages};

const PARTICIPANTS: usize = 10_000;
const TOPICS: usize = 1_000;
const SUBSCRIPTIONS: usize = 10;
const PER_TOPIC: u64 = (PARTICIPANTS * SUBSCRIPTIONS / TOPICS) as u64;

/// Messages of one run. They make as many deliveries as one broadcast to all participants.
const MESSAGES: u64 = PARTICIPANTS as u64 / PER_TOPIC;

pub(crate) fn cases() -> Vec<Case> {
    let name = || format!("participants={PARTICIPANTS}/topics={TOPICS}/subscriptions={SUBSCRIPTIONS}");
    let per = PARTICIPANTS as u64;
    let runtimes = Case::new("topics", name(), per, true)
        .column("baseline", to_topics::<Baseline<_>>)
        .column("lanecast", to_topics::<Lanecast<_>>);
    let own = Case::new("topics", format!("own=topics:everybody/{}", name()), per, true)
        .own_ratio("lanecast-topics", "lanecast-everybody")
        .column("lanecast-topics", to_topics::<Lanecast<_>>)
        .column("lanecast-everybody", to_everybody::<Lanecast<_>>);
    vec![runtimes, own]
}

fn to_topics<C: Contender<Counting>>(runtime: &Arc<Runtime>) -> Runner {
    let stage = Stage::<C, _>::new(runtime, Counting::default(), PARTICIPANTS, PARTICIPANTS);
    let topics: Vec<_> = (0..TOPICS).map(|_| C::topic()).collect();
    stage.runtime.block_on(async {
        let mut numbers: Vec<usize> = (0..PARTICIPANTS).collect();
        fastrand::Rng::with_seed(7).shuffle(&mut numbers);
        for (at, number) in numbers.into_iter().enumerate() {
            let participant = &stage.session.by_identity(&identity(number)).expect("it is present");
            // Ten different topics, and the same number of subscribers for every topic.
            let subscribing = (0..SUBSCRIPTIONS).map(async |n| {
                C::subscribe(participant, &topics[(at + 97 * n) % TOPICS], SubscriptionTag(1)).await;
            });
            join_all(subscribing).await;
        }
    });
    let mut total = stage.counts().delivered.get();
    let mut next = 0;
    Box::new(move |iterations| {
        stage.runtime.block_on(async {
            let mut taken = Duration::ZERO;
            for _ in 0..iterations {
                let messages = messages(MESSAGES, 64);
                let start = Instant::now();
                for message in messages {
                    next = (next + 1) % TOPICS;
                    stage.session.broadcast_to(&topics[next], message).await;
                }
                total += MESSAGES * PER_TOPIC;
                stage.counts().delivered.reach(total).await;
                taken += start.elapsed();
            }
            taken
        })
    })
}

/// The same number of deliveries as [`to_topics`] makes, but each message goes to all participants.
fn to_everybody<C: Contender<Counting>>(runtime: &Arc<Runtime>) -> Runner {
    let stage = Stage::<C, _>::new(runtime, Counting::default(), PARTICIPANTS, PARTICIPANTS);
    let mut total = stage.counts().delivered.get();
    Box::new(move |iterations| {
        stage.runtime.block_on(async {
            let mut taken = Duration::ZERO;
            for _ in 0..iterations {
                let messages = messages(1, 64);
                let start = Instant::now();
                for message in messages {
                    stage.session.broadcast(message).await;
                }
                total += PARTICIPANTS as u64;
                stage.counts().delivered.reach(total).await;
                taken += start.elapsed();
            }
            taken
        })
    })
}
