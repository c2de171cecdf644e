//! Instructions of the hot paths, counted by callgrind: broadcast, direct send, and the shard's work for each.
//!
//! Everything runs on one thread, so that each count is the same from run to run, except for the seeds of hash maps,
//! which make a difference of some percent. `.ci/instructions` runs this and compares the counts with the recorded
//! ones. It needs valgrind, so `cargo bench` leaves it out.

#![allow(missing_docs, reason = "the macros of gungraun make public items")]

use std::sync::Arc;

use bytes::Bytes;
use gungraun::{library_benchmark, library_benchmark_group, main};
use lanecast::{Lossy, Participant, Profile, Session, SubscriptionTag, Topic};
use lanecast_benches::room::{BenchRoom, identity};
use lanecast_benches::sink::{Counting, Counts, INITIAL, Sinks};
use tokio::runtime::{Builder, Runtime};

const PARTICIPANTS: usize = 1_000;
/// Direct messages sent in advance, which give the participant the queue that it has when many messages wait.
const FIRST: usize = 32;
/// Broadcasts sent in advance, which give the log the slots that it has when many wait.
const FIRST_TO_ALL: usize = 64;
/// One in this many participants is subscribed to the topic.
const SUBSCRIBED: usize = 10;

/// A session whose participants have no backlog, on a runtime that runs only when `carry` drives it.
struct Stage {
    runtime: Runtime,
    session: Session<BenchRoom<Counting>>,
    counts: Arc<Counts>,
    one: Participant<Bytes>,
    topic: Topic,
    delivered: u64,
    messages: Vec<Bytes>,
    /// Kept until the end: how many instructions the allocator takes to free a payload differs from run to run.
    _payloads: Vec<Bytes>,
}

impl Stage {
    /// Sets up a session, and `messages` messages to be sent, each with a payload of its own.
    fn new(messages: usize) -> Self {
        Self::with(messages, Profile::reliable())
    }

    /// Sets up the same with a topic that has this profile.
    fn with(messages: usize, profile: Profile) -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let room = BenchRoom::new(Counting::default(), PARTICIPANTS, PARTICIPANTS);
        let counts = Arc::clone(room.sinks().counts());
        let topic = Topic::with(profile);
        let session = runtime.block_on(async {
            let session = Session::builder(room).shards(1).initial(async |_| vec![INITIAL]).build().expect("a session");
            counts.initial.reach(PARTICIPANTS as u64).await;
            for number in (0..PARTICIPANTS).step_by(SUBSCRIBED) {
                let participant = session.participant(&identity(number)).expect("it is present");
                participant.subscribe(&topic, SubscriptionTag(1)).await;
            }
            session
        });
        let one = session.participant(&identity(1)).expect("it is present");
        let payloads: Vec<_> = (0..messages).map(|_| Bytes::from(vec![7; 64])).collect();
        let messages = payloads.clone();
        let delivered = PARTICIPANTS as u64;
        let mut stage = Self { runtime, session, counts, one, topic, delivered, messages, _payloads: payloads };
        // The first message of each kind allocates what later ones reuse. That takes several.
        (0..FIRST_TO_ALL).for_each(|_| stage.session.try_broadcast(Bytes::from(vec![7; 64])).expect("there is room"));
        stage.session.try_broadcast_to(&stage.topic, Bytes::from(vec![7; 64])).expect("there is room");
        (0..FIRST).for_each(|_| stage.one.try_send(Bytes::from(vec![7; 64])).expect("there is room"));
        stage.carry(FIRST_TO_ALL * PARTICIPANTS + PARTICIPANTS / SUBSCRIBED + FIRST);
        stage
    }

    fn broadcast(&mut self) {
        for message in self.messages.drain(..) {
            self.session.try_broadcast(message).expect("there is room");
        }
    }

    fn send(&mut self) {
        for message in self.messages.drain(..) {
            self.one.try_send(message).expect("there is room");
        }
    }

    /// Runs the shard until `deliveries` more messages have been delivered.
    fn carry(&mut self, deliveries: usize) {
        self.delivered += deliveries as u64;
        self.runtime.block_on(self.counts.delivered.reach(self.delivered));
    }
}

/// A stage on which `messages` messages have been broadcast, and the number of deliveries that makes.
fn broadcast_already(messages: usize) -> (Stage, usize) {
    let mut stage = Stage::new(messages);
    stage.broadcast();
    (stage, messages * PARTICIPANTS)
}

fn broadcast_to_topic_already(messages: usize) -> Stage {
    broadcast_already_to(messages, Profile::reliable())
}

fn broadcast_to_lossy_topic_already(messages: usize) -> Stage {
    broadcast_already_to(messages, Profile::lossy(Lossy::default()))
}

fn broadcast_already_to(messages: usize, profile: Profile) -> Stage {
    let mut stage = Stage::with(messages, profile);
    for message in stage.messages.drain(..) {
        stage.session.try_broadcast_to(&stage.topic, message).expect("there is room");
    }
    stage
}

fn sent_already(messages: usize) -> Stage {
    let mut stage = Stage::new(messages);
    stage.send();
    stage
}

// Each name ends with how often the counted operation is done. Each function returns the stage, so that the end of the
// stage isn't counted.

#[library_benchmark]
#[bench::to_everybody_64(args = (64), setup = Stage::new)]
fn publish(mut stage: Stage) -> Stage {
    stage.broadcast();
    stage
}

#[library_benchmark]
#[bench::to_one_64(args = (64), setup = Stage::new)]
fn send(mut stage: Stage) -> Stage {
    stage.send();
    stage
}

#[library_benchmark]
#[bench::broadcast_1000(args = (1), setup = broadcast_already)]
#[bench::burst_16000(args = (16), setup = broadcast_already)]
fn deliver((mut stage, deliveries): (Stage, usize)) -> Stage {
    stage.carry(deliveries);
    stage
}

#[library_benchmark]
#[bench::messages_400(args = (4), setup = broadcast_to_topic_already)]
fn deliver_topic(mut stage: Stage) -> Stage {
    stage.carry(4 * PARTICIPANTS / SUBSCRIBED);
    stage
}

#[library_benchmark]
#[bench::messages_400(args = (4), setup = broadcast_to_lossy_topic_already)]
fn deliver_lossy(mut stage: Stage) -> Stage {
    stage.carry(4 * PARTICIPANTS / SUBSCRIBED);
    stage
}

#[library_benchmark]
#[bench::messages_256(args = (256), setup = sent_already)]
fn deliver_direct(mut stage: Stage) -> Stage {
    stage.carry(256);
    stage
}

library_benchmark_group!(
    name = hot,
    benchmarks = [publish, send, deliver, deliver_topic, deliver_lossy, deliver_direct]
);
main!(library_benchmark_groups = hot);
