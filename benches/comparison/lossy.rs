//! Broadcasts to a topic that everybody is subscribed to, reliable or lossy, while none or some of the participants are
//! behind: the time until those who keep up have the last message.
//!
//! A reliable topic is measured with nobody behind only: a participant that is behind would overflow and be reset.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lanecast::{Lossy, Profile, Session, SubscriptionTag, Topic};
use lanecast_benches::room::BenchRoom;
use lanecast_benches::sink::{Behind, INITIAL, Sinks};
use tokio::runtime::Runtime;

use crate::case::{Case, Runner};
use crate::stage::messages;

const PARTICIPANTS: [usize; 4] = [16, 1_000, 16_000, 64_000];
const BURSTS: [u64; 2] = [1, 16];

/// Longer than any measurement: a participant that is behind stays so.
const NEVER: Duration = Duration::from_secs(100_000);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in PARTICIPANTS {
        for burst in BURSTS {
            let lossy = || Profile::lossy(Lossy::default());
            let column = move |profile: Profile, one_in| {
                move |runtime: &Arc<Runtime>| to_topic(runtime, n, burst, profile, one_in)
            };
            let case = Case::new("lossy", format!("n={n}/burst={burst}"), n as u64 * burst, n == 1_000)
                .own_ratio("lossy", "reliable")
                .column("reliable", column(Profile::reliable(), None))
                .column("lossy", column(lossy(), None))
                .column("lossy", column(lossy(), None))
                .column("reliable", column(Profile::reliable(), None))
                .column("lossy-1%-behind", column(lossy(), Some(100)))
                .column("lossy-10%-behind", column(lossy(), Some(10)))
                .column("lossy-50%-behind", column(lossy(), Some(2)));
            cases.push(case);
        }
    }
    cases
}

/// One in `one_in` participants is behind.
fn to_topic(
    runtime: &Arc<Runtime>,
    participants: usize,
    burst: u64,
    profile: Profile,
    one_in: Option<usize>,
) -> Runner {
    let runtime = Arc::clone(runtime);
    let room = BenchRoom::new(Behind::new(one_in), participants, participants);
    let counts = Arc::clone(room.sinks().counts());
    let topic = Topic::with(profile);
    let session = runtime.block_on(async {
        let builder = Session::builder(room.clone()).write_timeout(NEVER).initial(async |_| vec![INITIAL]);
        let session = builder.build().expect("inside a runtime");
        counts.initial.reach(participants as u64).await;
        let everybody = session.participants();
        let subscribing = everybody.iter().map(|participant| participant.subscribe(&topic, SubscriptionTag(1)));
        join_all(subscribing).await;
        session
    });
    let keep_up = participants - one_in.map_or(0, |one_in| participants / one_in);
    let mut total = counts.delivered.get();
    Box::new(move |iterations| {
        runtime.block_on(async {
            let mut taken = Duration::ZERO;
            for _ in 0..iterations {
                let messages = messages(burst, 64);
                let start = Instant::now();
                for message in messages {
                    session.broadcast_to(&topic, message).await.expect("the session is open");
                }
                total += keep_up as u64 * burst;
                counts.delivered.reach(total).await;
                taken += start.elapsed();
            }
            taken
        })
    })
}
