//! Shards that are made as they are needed: participants that join while they are made miss nothing and get nothing
//! twice, and a session that ends meanwhile accounts for everything.

use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use lanecast::{Session, SubscriptionTag, Topic};

use crate::common::{Call, Stage, StageSink, close_settled, id, msg, presence, size, until, within};

/// With eight workers a session may get seven shards.
const MOST: usize = 7;

/// What each participant was given, by the number in its name.
type Given = Arc<Vec<Mutex<Vec<Bytes>>>>;

/// A room for `count` participants whose sinks take everything.
fn recording(count: usize) -> (Stage<Bytes>, Given) {
    let given: Given = Arc::new((0..count).map(|_| Mutex::default()).collect());
    let into = Arc::clone(&given);
    let stage = Stage::new(move |presence, _| {
        let into = Arc::clone(&into);
        let at: usize = presence.identity.as_str()[1..].parse().expect("a test names it p<number>");
        async move {
            Ok(StageSink::new(move |call, _| {
                if let Call::Send(message) = call {
                    into[at].lock().expect("no sink panics").push(message);
                }
                Poll::Ready(Ok(()))
            }))
        }
    });
    (stage, given)
}

fn join(stage: &Stage<Bytes>, numbers: std::ops::Range<usize>) {
    numbers.for_each(|n| stage.join(presence(&format!("p{n}"), &format!("PA_{n}"), 1)));
}

async fn joined(session: &Session<Stage<Bytes>>, count: usize) {
    until(|| session.stats().participants == count).await;
}

fn number(message: &Bytes) -> u64 {
    std::str::from_utf8(message).expect("it is a number").parse().expect("it is a number")
}

// 1. A session begins with one shard, and keeps it with 200 participants. 2. Shards are made while 2,000 join, up to
// one less than there are workers. 3. None are made beyond that.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn shards_are_made_while_participants_join() {
    let (stage, _) = recording(2_600);
    let session = stage.session(|builder| builder);
    assert_eq!(session.stats().shards, 1);
    let mut present = 0;
    for (until, shards) in [(200, 1), (400, 2), (700, 4), (1_100, MOST), (2_600, MOST)] {
        join(&stage, present..until);
        joined(&session, until).await;
        assert_eq!(session.stats().shards, shards, "with {until} participants");
        present = until;
    }
    close_settled(&session).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn as_many_shards_as_are_asked_for_are_made_at_once() {
    let (stage, _) = recording(600);
    let session = stage.session(|builder| builder.shards(3));
    assert_eq!(session.stats().shards, 3);
    join(&stage, 0..600);
    joined(&session, 600).await;
    assert_eq!(session.stats().shards, 3);
    close_settled(&session).await;
}

// 1. Two tasks publish numbers without pause, one to everybody and one to a topic. 2. Meanwhile thousands join, and
// every fifth subscribes: shards are made. 3. Each participant has every number from its first one on, once and in
// order.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn participants_that_join_while_shards_are_made_miss_nothing() {
    let count = size(1_200, 4_000);
    let (stage, given) = recording(count);
    let session = stage.session(|builder| builder.log_capacity(64));
    let topic = Topic::new();
    let publishing = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let publish = |to: Option<Topic>, step: u64| {
        let (session, publishing) = (session.clone(), Arc::clone(&publishing));
        tokio::spawn(async move {
            let mut sent = step;
            while publishing.load(std::sync::atomic::Ordering::Relaxed) {
                let message = msg(sent.to_string());
                match &to {
                    Some(topic) => session.broadcast_to(topic, message).await.expect("the session is open"),
                    None => session.broadcast(message).await.expect("the session is open"),
                }
                sent += 2;
                tokio::task::yield_now().await;
            }
            sent - 2
        })
    };
    let publishers = [publish(None, 0), publish(Some(topic.clone()), 1)];
    join(&stage, 0..count);
    for n in (0..count).step_by(5) {
        until(|| session.participant(&id(&format!("p{n}"))).is_some()).await;
        let participant = session.participant(&id(&format!("p{n}"))).expect("it has joined and stays");
        within(participant.subscribe(&topic, SubscriptionTag(1))).await;
    }
    joined(&session, count).await;
    assert_eq!(session.stats().shards, MOST);
    publishing.store(false, std::sync::atomic::Ordering::Relaxed);
    let mut last = Vec::new();
    for publisher in publishers {
        last.push(within(publisher).await.expect("the publisher doesn't panic"));
    }
    let account = close_settled(&session).await;
    assert_eq!(account.delivered, account.offered, "everybody kept up");
    for (n, given) in given.iter().enumerate() {
        let given = given.lock().expect("no sink panics");
        for (parity, last) in last.iter().enumerate() {
            let numbers: Vec<_> = given.iter().map(number).filter(|number| number % 2 == parity as u64).collect();
            let Some(first) = numbers.first() else { continue };
            assert!(numbers.iter().copied().eq((*first..=*last).step_by(2)), "p{n} from {first} to {last}");
        }
    }
}

// In each round the session ends at another moment while participants join and shards are made: everything is
// delivered or counted, and no task is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_session_that_ends_while_shards_are_made_accounts_for_everything() {
    for round in 0..size(24, 200) {
        let count = 1_200;
        let (stage, _) = recording(count);
        let session = stage.session(|builder| builder.log_capacity(32));
        let publisher = tokio::spawn({
            let session = session.clone();
            async move { while session.broadcast(msg("a message")).await.is_ok() {} }
        });
        join(&stage, 0..count);
        let present = round * 45 % count;
        until(|| session.stats().participants >= present).await;
        if round % 3 == 0 {
            session.cancel();
        }
        close_settled(&session).await;
        within(publisher).await.expect("the publisher learns of the end");
        assert_eq!(session.stats().participants, 0);
        until(|| stage.is_deserted()).await;
    }
}

// 1. Five messages are published to a topic that retains three. 2. So many participants join that seven shards are
// made. 3. Everybody subscribes, whatever its shard: it gets the last three.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_late_subscriber_in_a_late_shard_gets_what_the_topic_retains() {
    let count = 1_200;
    let (stage, given) = recording(count);
    let session = stage.session(|builder| builder);
    let topic = Topic::with(lanecast::Profile::reliable().retain(3));
    for number in 0..5 {
        session.broadcast_to(&topic, msg(number.to_string())).await.expect("the session is open");
    }
    join(&stage, 0..count);
    joined(&session, count).await;
    assert_eq!(session.stats().shards, MOST);
    for n in 0..count {
        let participant = session.participant(&id(&format!("p{n}"))).expect("it has joined and stays");
        within(participant.subscribe(&topic, SubscriptionTag(1))).await;
    }
    close_settled(&session).await;
    for (n, given) in given.iter().enumerate() {
        let numbers: Vec<_> = given.lock().expect("no sink panics").iter().map(number).collect();
        assert_eq!(numbers, [2, 3, 4], "p{n}");
    }
}
