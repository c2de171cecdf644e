//! Topics: which participants get a message, from where on, and under which tag.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use lanecast::room::RoomEvent;
use lanecast::room::memory::{Behavior, MemoryRoom};
use lanecast::{Session, Subscribed, SubscriptionTag, Topic, TryBroadcastError, Unsubscribed};

use crate::common::{
    self, Call, Note, Stage, StageSink, Streams, Valve, close_settled, id, joined, live, memory, msg, presence,
    receives, settle, sid, size, until, within,
};

const TAG: SubscriptionTag = SubscriptionTag(1);

fn tagged(seen: &[Note]) -> Vec<(&str, Option<u32>)> {
    assert!(seen.iter().all(|note| note.addressed <= 1), "a copy was addressed twice: {seen:?}");
    seen.iter().map(|note| (note.text.as_str(), note.tag)).collect()
}

#[tokio::test]
async fn only_subscribers_get_a_message_each_with_its_own_tag() {
    let (stage, streams) = Streams::<Note>::stage(|_| Valve::open());
    let session = stage.session(|builder| builder.shards(2));
    for name in ["ada", "bob", "cyd"] {
        stage.join(presence(name, &format!("PA_{name}"), 1));
    }
    let topic = Topic::new();
    assert_eq!(live(&session, "ada").await.subscribe(&topic, SubscriptionTag(7)).await, Subscribed::New);
    assert_eq!(live(&session, "bob").await.subscribe(&topic, SubscriptionTag(9)).await, Subscribed::New);
    live(&session, "cyd").await;
    session.broadcast_to(&topic, Note::new("speed")).await.expect("the session is open");
    session.broadcast(Note::new("all")).await.expect("the session is open");
    for (name, tag) in [("ada", Some(7)), ("bob", Some(9))] {
        let valve = streams.nth(name, 0).await;
        valve.wait_for(|seen| seen.flushed.len() == 2).await;
        assert_eq!(tagged(&valve.lock().flushed), [("speed", tag), ("all", None)]);
    }
    let valve = streams.nth("cyd", 0).await;
    valve.wait_for(|seen| !seen.flushed.is_empty()).await;
    assert_eq!(tagged(&valve.lock().flushed), [("all", None)]);
    settle().await;
    assert_eq!(session.stats().account.offered, 5, "a message is offered to its recipients only");
}

// 1. A subscriber's sink is stuck. 2. A message is published. 3. The subscriber subscribes again, with another tag. 4.
// Another message is published. 5. Written much later, each carries the tag that was valid when it was handed over.
#[tokio::test]
async fn the_tag_is_fixed_when_a_message_is_handed_over() {
    let (stage, streams) = Streams::<Note>::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder);
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let topic = Topic::new();
    session.broadcast(Note::new("in the sink")).await.expect("the session is open");
    let valve = streams.nth("ada", 0).await;
    valve.wait_for(|seen| seen.taken.len() == 1).await;
    assert_eq!(ada.subscribe(&topic, SubscriptionTag(1)).await, Subscribed::New);
    session.broadcast_to(&topic, Note::new("first")).await.expect("the session is open");
    assert_eq!(ada.subscribe(&topic, SubscriptionTag(2)).await, Subscribed::Retagged);
    assert_eq!(topic.subscribers(), 1, "subscribing twice is one subscription");
    session.broadcast_to(&topic, Note::new("second")).await.expect("the session is open");
    assert_eq!(ada.unsubscribe(&topic).await, Unsubscribed::Removed);
    // Messages published while the subscription was active still arrive.
    valve.release();
    valve.wait_for(|seen| seen.flushed.len() == 3).await;
    assert_eq!(tagged(&valve.lock().flushed), [("in the sink", None), ("first", Some(1)), ("second", Some(2))]);
}

/// A subscription and its end take effect at the answer at the latest, and not before the request: each message
/// published between the two arrives, and no other.
#[tokio::test]
async fn subscribing_has_a_position() {
    subscribe_and_unsubscribe(50).await;
}

/// The same with the shard on another thread, where the request comes in the middle of a turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribing_has_a_position_on_another_thread() {
    subscribe_and_unsubscribe(common::size(1_000, 5_000)).await;
}

async fn subscribe_and_unsubscribe(rounds: usize) {
    let (room, session) = memory(|builder| builder);
    let ada = joined(&room, &session, "ada").await;
    let bob = joined(&room, &session, "bob").await;
    let topic = Topic::new();
    // Bob keeps the topic from being empty, so that every message takes a place in the log.
    assert_eq!(bob.subscribe(&topic, TAG).await, Subscribed::New);
    let mut expected = Vec::new();
    for round in 0..rounds {
        session.broadcast_to(&topic, msg(format!("before {round}"))).await.expect("the session is open");
        assert_eq!(ada.subscribe(&topic, TAG).await, Subscribed::New);
        let during = format!("during {round}");
        session.broadcast_to(&topic, msg(during.clone())).await.expect("the session is open");
        expected.push(during);
        assert_eq!(ada.unsubscribe(&topic).await, Unsubscribed::Removed);
        session.broadcast_to(&topic, msg(format!("after {round}"))).await.expect("the session is open");
    }
    session.broadcast(msg("end")).await.expect("the session is open");
    expected.push("end".to_owned());
    let expected: Vec<_> = expected.iter().map(String::as_str).collect();
    receives(&room, "ada", &expected).await;
    within(room.recorder(&id("bob")).wait_for(|all| all[0].messages.len() == 3 * rounds + 1)).await;
}

// 1. One task publishes without pause. 2. The other subscribes, notes what had been published at the answer, and
// unsubscribes. 3. The messages it received form a piece of the sequence without a gap, which includes everything in
// between.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_subscription_under_load_has_no_gap() {
    let rounds = common::size(100, 500);
    let (room, session) = memory(|builder| builder.shards(2).queue_capacity(1 << 20));
    let ada = joined(&room, &session, "ada").await;
    let topic = Topic::new();
    let published = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let publisher = tokio::spawn({
        let (session, topic) = (session.clone(), topic.clone());
        let (published, stop) = (Arc::clone(&published), Arc::clone(&stop));
        async move {
            let mut n = 0;
            while !stop.load(Ordering::Acquire) {
                session.broadcast_to(&topic, msg(n.to_string())).await.expect("the session is open");
                n += 1;
                published.store(n, Ordering::Release);
                tokio::task::yield_now().await;
            }
        }
    });
    let recorder = room.recorder(&id("ada"));
    let mut seen = 0;
    for _ in 0..rounds {
        assert_eq!(within(ada.subscribe(&topic, TAG)).await, Subscribed::New);
        // Everything published from here on must arrive: wait for a few messages.
        let from = published.load(Ordering::Acquire) + 1;
        until(|| published.load(Ordering::Acquire) > from + 3).await;
        let to = published.load(Ordering::Acquire) - 1;
        assert_eq!(within(ada.unsubscribe(&topic)).await, Unsubscribed::Removed);
        session.broadcast(msg("mark")).await.expect("the session is open");
        let all = within(
            recorder
                .wait_for(|all| all[0].messages.last().is_some_and(|m| m == "mark") && all[0].messages.len() > seen),
        )
        .await;
        let piece = &all[0].messages[seen..all[0].messages.len() - 1];
        seen = all[0].messages.len();
        let numbers: Vec<usize> =
            piece.iter().map(|m| std::str::from_utf8(m).expect("text").parse().expect("a number")).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap or a duplicate: {numbers:?}");
        assert!(numbers.first().is_some_and(|first| *first <= from), "{numbers:?} doesn't begin by {from}");
        assert!(numbers.last().is_some_and(|last| *last >= to), "{numbers:?} doesn't reach {to}");
    }
    stop.store(true, Ordering::Release);
    within(publisher).await.expect("it doesn't panic");
}

#[tokio::test]
async fn subscribers_are_counted_until_they_leave_or_end() {
    let (room, session) = memory(|builder| builder);
    let topic = Topic::new();
    let ada = joined(&room, &session, "ada").await;
    let bob = joined(&room, &session, "bob").await;
    let cyd = joined(&room, &session, "cyd").await;
    for participant in [&ada, &bob, &cyd] {
        assert_eq!(participant.subscribe(&topic, TAG).await, Subscribed::New);
    }
    assert_eq!(topic.subscribers(), 3);
    assert_eq!(ada.unsubscribe(&topic).await, Unsubscribed::Removed);
    assert_eq!(ada.unsubscribe(&topic).await, Unsubscribed::NotSubscribed);
    assert_eq!(topic.subscribers(), 2);
    room.leave(&id("bob"), &sid("PA_bob")).await.expect("the session listens");
    until(|| topic.subscribers() == 1).await;
    room.recorder(&id("cyd")).set_behavior(Behavior::Fail);
    session.broadcast_to(&topic, msg("x")).await.expect("the session is open");
    until(|| topic.subscribers() == 0).await;
    assert_eq!(bob.subscribe(&topic, TAG).await, Subscribed::Closed);
    assert_eq!(bob.unsubscribe(&topic).await, Unsubscribed::NotSubscribed);
    assert_eq!(topic.subscribers(), 0, "a refused subscriber isn't counted");
}

/// While the uplink is stalled a broadcast can't take a place in the log. A message without recipients doesn't need a
/// place.
#[tokio::test]
async fn a_message_without_recipients_takes_no_place_in_the_log() {
    let (room, session) = memory(|builder| builder);
    let ada = joined(&room, &session, "ada").await;
    let topic = Topic::new();
    room.emit(RoomEvent::UplinkStalled).await.expect("the session listens");
    until(|| session.stats().uplink_stalled).await;
    within(session.broadcast_to(&topic, msg("x"))).await.expect("the topic has no subscribers");
    session.try_broadcast_to(&topic, msg("x")).expect("the topic has no subscribers");
    assert_eq!(ada.subscribe(&topic, TAG).await, Subscribed::New);
    assert!(matches!(session.try_broadcast_to(&topic, msg("x")), Err(TryBroadcastError::Full(_))));
}

/// A message for one participant of many doesn't poll any other participant's sink.
#[tokio::test]
async fn a_message_for_one_participant_polls_no_other_sink() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let stage = Stage::<Note>::new(move |_, _| {
        let asked = Arc::clone(&count);
        let sink = StageSink::new(move |call, _| {
            if !matches!(call, Call::Drop) {
                asked.fetch_add(1, Ordering::Relaxed);
            }
            Poll::Ready(Ok(()))
        });
        async move { Ok(sink) }
    });
    let session = stage.session(|builder| builder);
    for n in 0..500 {
        stage.join(presence(&format!("p{n}"), &format!("PA_{n}"), 1));
    }
    until(|| session.stats().participants == 500).await;
    let topic = Topic::new();
    live(&session, "p77").await.subscribe(&topic, TAG).await;
    settle().await;
    let before = asked.load(Ordering::Relaxed);
    for _ in 0..10 {
        session.broadcast_to(&topic, Note::new("x")).await.expect("the session is open");
    }
    until(|| session.stats().account.delivered == 10).await;
    let calls = asked.load(Ordering::Relaxed) - before;
    assert!((12..=30).contains(&calls), "ten messages for one took {calls} calls");
}

/// Messages to all, to a topic, to another topic and direct ones, in turn.
#[tokio::test]
async fn topic_messages_keep_their_order_with_all_others() {
    for stalled in [false, true] {
        let (stage, streams) = Streams::<Note>::stage(move |_| if stalled { Valve::shut() } else { Valve::open() });
        let session = stage.session(|builder| builder);
        stage.join(presence("ada", "PA_1", 1));
        let ada = live(&session, "ada").await;
        let (one, two) = (Topic::new(), Topic::new());
        ada.subscribe(&one, SubscriptionTag(1)).await;
        ada.subscribe(&two, SubscriptionTag(2)).await;
        let mut expected = Vec::new();
        for n in 0..100 {
            let text = format!("m{n}");
            let note = Note::new(text.clone());
            match n % 4 {
                0 => session.broadcast(note).await.expect("the session is open"),
                1 => session.broadcast_to(&one, note).await.expect("the session is open"),
                2 => session.broadcast_to(&two, note).await.expect("the session is open"),
                _ => ada.send(note).expect("there is capacity"),
            }
            expected.push((text, [None, Some(1), Some(2), None][n % 4]));
        }
        let valve = streams.nth("ada", 0).await;
        settle().await;
        valve.release();
        valve.wait_for(|seen| seen.flushed.len() == 100).await;
        let expected: Vec<_> = expected.iter().map(|(text, tag)| (text.as_str(), *tag)).collect();
        assert_eq!(tagged(&valve.lock().flushed), expected);
        close_settled(&session).await;
    }
}

/// Topics are distinguished by identity. With hundreds made and dropped, a new topic may lie at an old one's address.
#[tokio::test]
async fn a_new_topic_has_no_subscribers_of_an_old_one() {
    let (room, session) = memory(|builder| builder);
    let ada = joined(&room, &session, "ada").await;
    let bob = joined(&room, &session, "bob").await;
    for n in 0..200 {
        let old = Topic::new();
        assert_eq!(ada.subscribe(&old, TAG).await, Subscribed::New);
        if n % 2 == 0 {
            assert_eq!(ada.unsubscribe(&old).await, Unsubscribed::Removed);
        }
        drop(old);
        let new = Topic::new();
        assert_eq!(bob.subscribe(&new, TAG).await, Subscribed::New);
        session.broadcast_to(&new, msg("for bob")).await.expect("the session is open");
        assert_eq!(bob.unsubscribe(&new).await, Unsubscribed::Removed);
    }
    session.broadcast(msg("end")).await.expect("the session is open");
    receives(&room, "ada", &["end"]).await;
}

// 1. Four tasks subscribe and unsubscribe without pause. 2. The session is cancelled, each time at another moment. 3.
// Every count returns to zero, although the participant's handle lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_subscription_that_races_with_the_end_is_not_counted() {
    for round in 0..size(100, 5_000) {
        let room = MemoryRoom::<bytes::Bytes>::new();
        let session = Session::builder(room.clone()).shards(1).build().expect("a test's settings make sense");
        let ada = joined(&room, &session, "ada").await;
        let subscribers: Vec<_> = (0..4)
            .map(|_| {
                let ada = ada.clone();
                tokio::spawn(async move {
                    let topic = Topic::new();
                    while ada.subscribe(&topic, TAG).await != Subscribed::Closed {
                        ada.unsubscribe(&topic).await;
                    }
                    topic
                })
            })
            .collect();
        for _ in 0..round % 32 {
            tokio::task::yield_now().await;
        }
        session.cancel();
        within(session.ended()).await.expect("it ends without an error");
        for subscriber in subscribers {
            let topic = within(subscriber).await.expect("nobody panics");
            assert_eq!(topic.subscribers(), 0, "round {round}");
        }
    }
}
