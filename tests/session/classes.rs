//! Delivery classes: what a participant that is behind gets of lossy and latest topics, what it loses, how that is
//! counted, and that it costs it nothing else.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use bytes::Bytes;
use lanecast::room::memory::{Behavior, MemoryRoom};
use lanecast::{
    Latest, Losses, Lossy, Participant, Profile, Rate, Session, SessionEvent, Subscribed, SubscriptionTag, Topic,
    Unsubscribed, Weight,
};
use tokio::time::{Instant, sleep};

use crate::common::{
    Note, Streams, Valve, assert_settled, assert_waiting, close_settled, event, id, joined, live, memory, msg,
    presence, receives, settle, texts, within,
};

const TAG: SubscriptionTag = SubscriptionTag(1);
const STALLED: Behavior = Behavior::Stall { capacity: 0 };

type Room = MemoryRoom<Bytes>;

fn lossy(messages: u32) -> Lossy {
    Lossy::default().max_messages(NonZeroU32::new(messages).expect("not zero"))
}

/// A session with one participant, Ada, that is subscribed to a topic with this profile.
async fn subscribed(profile: Profile) -> (Room, Session<Room>, Participant<Bytes>, Topic) {
    let (room, session) = memory(|builder| builder.queue_capacity(16).shards(1));
    let ada = joined(&room, &session, "ada").await;
    let topic = Topic::with(profile);
    assert_eq!(ada.subscribe(&topic, TAG).await, Subscribed::New);
    (room, session, ada, topic)
}

fn behave(room: &Room, behavior: Behavior) {
    room.recorder(&id("ada")).set_behavior(behavior);
}

async fn publish(session: &Session<Room>, topic: &Topic, texts: &[String]) {
    for text in texts {
        session.broadcast_to(topic, msg(text.clone())).await.expect("the session is open");
    }
    settle().await;
}

/// A duration in which everything due happens on a paused clock.
async fn pass(ms: u64) {
    sleep(Duration::from_millis(ms)).await;
    settle().await;
}

fn lost(set: impl FnOnce(&mut Losses)) -> Losses {
    let mut losses = Losses::default();
    set(&mut losses);
    losses
}

fn received(room: &Room) -> Vec<String> {
    room.recorder(&id("ada")).received().last().map(crate::common::as_text).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn who_keeps_up_gets_every_message_in_each_class() {
    for profile in [Profile::reliable(), Profile::lossy(lossy(1)), Profile::latest(Latest::default())] {
        let (room, session, ada, topic) = subscribed(profile).await;
        publish(&session, &topic, &texts("m", 100)).await;
        assert_eq!(received(&room), texts("m", 100), "{profile:?}");
        assert_eq!(ada.losses(&topic), Losses::default());
        assert_eq!(close_settled(&session).await.delivered, 100);
    }
}

// 1. Ada's sink is busy. 2. Three times as many lossy messages come as may wait. 3. The newest wait, the others are
// counted as overflowed, and Ada isn't reset. 4. Her sink is ready again: she gets the newest.
#[tokio::test(start_paused = true)]
async fn who_is_behind_gets_the_newest_and_is_never_reset() {
    let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(20))).await;
    behave(&room, STALLED);
    let all = texts("m", 60);
    publish(&session, &topic, &all).await;
    assert_eq!(ada.end_reason(), None, "16 reliable messages may wait, and lossy ones don't count");
    let overflowed = lost(|lost| lost.overflowed = 40);
    assert_eq!(ada.losses(&topic), overflowed);
    let account = ada.stats().account;
    assert_eq!(account.dropped.lossy, overflowed);
    assert_waiting(&account, 20);
    let stats = topic.stats();
    assert_eq!((stats.offered, stats.handed_on, stats.lost, stats.waiting()), (60, 0, overflowed, 20));
    behave(&room, Behavior::Flow);
    settle().await;
    assert_eq!(received(&room), all[40..]);
    assert_eq!((topic.stats().handed_on, topic.stats().waiting()), (20, 0));
    let account = close_settled(&session).await;
    assert_eq!((account.delivered, account.dropped.lossy), (20, overflowed));
}

// 1. Ada's sink fails, or panics, at the first message of several. 2. She is reset, and gets what comes after that.
//    What
// she missed is in her account, and the topic's figures are in balance, with nothing that waits.
#[tokio::test(start_paused = true)]
async fn a_topic_is_in_balance_after_a_sink_has_failed() {
    for fault in [Behavior::Fail, Behavior::Panic] {
        let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(20))).await;
        publish(&session, &topic, &texts("a", 3)).await;
        behave(&room, fault);
        publish(&session, &topic, &texts("b", 3)).await;
        assert!(ada.end_reason().is_some(), "{fault:?}");
        behave(&room, Behavior::Flow);
        let stats = topic.stats();
        let outcomes = stats.handed_on + stats.lost.total() + stats.ended;
        assert_eq!(stats.offered, outcomes, "{fault:?}: {stats:?}");
        assert_settled(&ada.stats().account);
        close_settled(&session).await;
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_are_bounded_and_one_message_may_always_wait() {
    let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(100).max_bytes(10))).await;
    behave(&room, STALLED);
    publish(&session, &topic, &["aaaa".into(), "bbbb".into(), "cccc".into()]).await;
    assert_eq!(ada.losses(&topic).overflowed, 1, "twelve bytes are more than ten");
    publish(&session, &topic, &["longer than ten bytes".into()]).await;
    assert_eq!(ada.losses(&topic).overflowed, 3);
    behave(&room, Behavior::Flow);
    settle().await;
    assert_eq!(received(&room), ["longer than ten bytes"]);
    close_settled(&session).await;
}

#[tokio::test(start_paused = true)]
async fn bytes_are_bounded_over_all_topics_at_the_cost_of_the_largest() {
    let (room, session) = memory(|builder| builder.shards(1).lossy_bytes(100));
    let ada = joined(&room, &session, "ada").await;
    let topics = [Topic::with(Profile::lossy(lossy(64))), Topic::with(Profile::lossy(lossy(64)))];
    for topic in &topics {
        ada.subscribe(topic, TAG).await;
    }
    behave(&room, STALLED);
    publish(&session, &topics[0], &["a".into(), "b".into()]).await;
    for _ in 0..5 {
        publish(&session, &topics[1], &["x".repeat(30)]).await;
    }
    assert_eq!(ada.losses(&topics[0]), Losses::default());
    assert_eq!(ada.losses(&topics[1]).overflowed, 2, "2 + 3 × 30 bytes are within 100");
    close_settled(&session).await;
}

// A message is dropped when it would be sent too late, and the tick drops it of a participant that nothing visits.
#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_old_is_dropped() {
    let age = Duration::from_millis(500);
    let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(64).max_age(age))).await;
    behave(&room, STALLED);
    publish(&session, &topic, &["old".into()]).await;
    pass(400).await;
    publish(&session, &topic, &["young".into()]).await;
    pass(200).await;
    behave(&room, Behavior::Flow);
    settle().await;
    assert_eq!(received(&room), ["young"]);
    assert_eq!(ada.losses(&topic), lost(|lost| lost.expired = 1));

    behave(&room, STALLED);
    publish(&session, &topic, &["forgotten".into()]).await;
    pass(1200).await;
    assert_eq!(ada.losses(&topic), lost(|lost| lost.expired = 2), "swept by the tick");
    assert_settled(&ada.stats().account);
    close_settled(&session).await;
}

#[tokio::test(start_paused = true)]
async fn of_a_latest_topic_only_the_newest_waits_and_it_never_gets_too_old() {
    let (room, session, ada, topic) = subscribed(Profile::latest(Latest::default())).await;
    behave(&room, STALLED);
    publish(&session, &topic, &texts("m", 50)).await;
    pass(4000).await;
    assert_eq!(ada.losses(&topic), lost(|lost| lost.conflated = 49));
    behave(&room, Behavior::Flow);
    settle().await;
    assert_eq!(received(&room), ["m49"]);
    close_settled(&session).await;
}

// Reliable messages and direct ones go first, whatever came before.
#[tokio::test(start_paused = true)]
async fn reliable_messages_go_first() {
    let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(64))).await;
    behave(&room, STALLED);
    publish(&session, &topic, &texts("lossy", 3)).await;
    session.broadcast(msg("reliable")).await.expect("the session is open");
    ada.send(msg("direct")).expect("it is there");
    settle().await;
    behave(&room, Behavior::Flow);
    settle().await;
    assert_eq!(received(&room), ["reliable", "direct", "lossy0", "lossy1", "lossy2"]);
    close_settled(&session).await;
}

// 1. Image messages of 50 kB and state messages of 20 bytes wait. 2. Both get the same number of bytes: all states
// arrive before the second image. 3. With a weight of 4, images get four times as many.
#[tokio::test(start_paused = true)]
async fn a_big_topic_does_not_starve_a_small_one() {
    for (weight, before) in [(1, 1), (4, 4)] {
        let weight = Weight::new(weight).expect("not zero");
        let (room, session) = memory(|builder| builder.shards(1));
        let ada = joined(&room, &session, "ada").await;
        let images = Topic::with(Profile::lossy(lossy(64).weight(weight)));
        let states = Topic::with(Profile::lossy(lossy(2500)));
        ada.subscribe(&images, TAG).await;
        ada.subscribe(&states, TAG).await;
        behave(&room, STALLED);
        publish(&session, &images, &vec!["x".repeat(50_000); 10]).await;
        publish(&session, &states, &vec!["y".repeat(20); 2500]).await;
        behave(&room, Behavior::Flow);
        within(room.recorder(&id("ada")).wait_for(|all| all[0].messages.len() == 2510)).await;
        let received = received(&room);
        let last_state = received.iter().rposition(|text| text.len() == 20).expect("there are some");
        let images = received[..last_state].iter().filter(|text| text.len() > 20).count();
        assert!((before - 1..=before).contains(&images), "{images} images came before the last state, weight {weight}");
        close_settled(&session).await;
    }
}

#[tokio::test(start_paused = true)]
async fn unsubscribing_drops_what_waits_and_subscribing_again_begins_with_nothing() {
    let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(64))).await;
    behave(&room, STALLED);
    publish(&session, &topic, &texts("old", 3)).await;
    assert_eq!(ada.unsubscribe(&topic).await, Unsubscribed::Removed);
    let account = ada.stats().account;
    assert_eq!(account.abandoned.unsubscribed, 3);
    assert_settled(&account);
    assert_eq!((topic.stats().ended, topic.stats().waiting()), (3, 0));
    assert_eq!(ada.subscribe(&topic, TAG).await, Subscribed::New);
    publish(&session, &topic, &["new".into()]).await;
    behave(&room, Behavior::Flow);
    settle().await;
    assert_eq!(received(&room), ["new"]);
    assert_eq!(close_settled(&session).await.abandoned.unsubscribed, 3);
}

// What waits when a participant ends is counted with the reason of its end, as every message is.
#[tokio::test(start_paused = true)]
async fn what_waits_at_the_end_is_counted_with_its_reason() {
    let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(64))).await;
    behave(&room, STALLED);
    publish(&session, &topic, &texts("m", 3)).await;
    room.leave(&id("ada"), &crate::common::sid("PA_ada")).await.expect("the session listens");
    within(ada.closed()).await;
    let account = ada.stats().account;
    assert_eq!(account.abandoned.disconnected, 3);
    assert_settled(&account);
    assert_eq!((topic.stats().ended, topic.stats().waiting()), (3, 0));
    close_settled(&session).await;
}

// A write that is under way when the bound fills up with reliable messages counts only those.
#[tokio::test(start_paused = true)]
async fn lossy_messages_never_count_against_the_bound() {
    let (stage, streams) = Streams::<Note>::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.queue_capacity(8).shards(1));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let topic = Topic::with(Profile::lossy(lossy(4)));
    ada.subscribe(&topic, TAG).await;
    for n in 0..8 {
        session.broadcast_to(&topic, Note::new(format!("lossy{n}"))).await.expect("the session is open");
        session.broadcast(Note::new(format!("reliable{n}"))).await.expect("the session is open");
        settle().await;
    }
    assert_eq!(ada.end_reason(), None, "eight reliable messages may wait");
    let valve = streams.nth("ada", 0).await;
    session.broadcast(Note::new("one more")).await.expect("the session is open");
    within(ada.closed()).await;
    assert!(valve.lock().dropped);
    assert_settled(&ada.stats().account);
    close_settled(&session).await;
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_becomes_reliable_keeps_its_order_and_what_waits_is_lost_no_more() {
    let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(2))).await;
    behave(&room, STALLED);
    publish(&session, &topic, &texts("lossy", 3)).await;
    topic.set_profile(Profile::reliable());
    assert_eq!(topic.profile(), Profile::reliable());
    publish(&session, &topic, &texts("reliable", 3)).await;
    topic.set_profile(Profile::latest(Latest::default()));
    publish(&session, &topic, &texts("latest", 3)).await;
    pass(2000).await;
    behave(&room, Behavior::Flow);
    settle().await;
    assert_eq!(received(&room), ["lossy1", "lossy2", "reliable0", "reliable1", "reliable2", "latest2"]);
    let expected = lost(|lost| (lost.overflowed, lost.conflated) = (1, 2));
    assert_eq!(ada.losses(&topic), expected);
    close_settled(&session).await;
}

#[tokio::test(start_paused = true)]
async fn a_rate_hands_on_the_newest_at_its_time_and_the_last_always_arrives() {
    let (room, session, ada, topic) =
        subscribed(Profile::latest(Latest::default().rate(Rate::every(Duration::from_millis(100))))).await;
    let begun = Instant::now();
    for n in 0..25 {
        publish(&session, &topic, &[format!("m{n}")]).await;
        pass(10).await;
    }
    pass(100).await;
    // At 0, 100, 200 ms what is newest then, and at 300 ms the last.
    assert_eq!(received(&room), ["m0", "m9", "m19", "m24"], "after {:?}", begun.elapsed());
    assert_eq!(ada.losses(&topic), lost(|lost| lost.rate_limited = 21));
    close_settled(&session).await;
}

#[tokio::test(start_paused = true)]
async fn a_rate_above_the_clock_is_kept_on_average() {
    let rate = Rate::messages_per_second(NonZeroU32::new(300).expect("not zero"));
    let (room, session, _ada, topic) = subscribed(Profile::lossy(lossy(64).rate(rate))).await;
    for n in 0..1000 {
        publish(&session, &topic, &[format!("m{n}")]).await;
        pass(1).await;
    }
    let count = received(&room).len();
    assert!((295..=301).contains(&count), "{count} messages in a second");
    close_settled(&session).await;
}

#[tokio::test(start_paused = true)]
async fn a_byte_rate_has_the_next_message_wait_for_the_bytes_of_the_last() {
    let rate = Rate::bytes_per_second(NonZeroU64::new(1000).expect("not zero"));
    let (room, session, _ada, topic) = subscribed(Profile::latest(Latest::default().rate(rate))).await;
    publish(&session, &topic, &["x".repeat(500)]).await;
    publish(&session, &topic, &["next".into()]).await;
    pass(499).await;
    assert_eq!(received(&room).len(), 1);
    pass(1).await;
    assert_eq!(received(&room).len(), 2);
    close_settled(&session).await;
}

// Ada asks for two messages a second of a reliable topic, Bob for all.
#[tokio::test(start_paused = true)]
async fn a_subscribers_own_rate_is_its_own() {
    let (room, session) = memory(|builder| builder.shards(1));
    let (ada, bob) = (joined(&room, &session, "ada").await, joined(&room, &session, "bob").await);
    let topic = Topic::new();
    assert_eq!(ada.subscribe_at(&topic, TAG, Rate::every(Duration::from_millis(500))).await, Subscribed::New);
    bob.subscribe(&topic, TAG).await;
    for n in 0..10 {
        publish(&session, &topic, &[format!("m{n}")]).await;
        pass(100).await;
    }
    pass(500).await;
    assert_eq!(received(&room), ["m0", "m4", "m9"]);
    let all = texts("m", 10);
    receives(&room, "bob", &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(ada.losses(&topic), lost(|lost| lost.rate_limited = 7));
    assert_eq!(ada.subscribe(&topic, TAG).await, Subscribed::Retagged, "and takes its rate back");
    publish(&session, &topic, &texts("more", 3)).await;
    assert_eq!(received(&room).len(), 6);
    close_settled(&session).await;
}

// 1. A message waits for its time. 2. The rate goes: Ada takes hers back, or the topic loses its own. 3. What waited
// comes before what is published next.
#[tokio::test(start_paused = true)]
async fn a_topic_keeps_its_order_when_a_rate_goes() {
    let rate = Rate::every(Duration::from_secs(3600));
    let (room, session, ada, topic) = subscribed(Profile::reliable()).await;
    assert_eq!(ada.subscribe_at(&topic, TAG, rate).await, Subscribed::Retagged);
    publish(&session, &topic, &texts("m", 2)).await;
    assert_eq!(received(&room), ["m0"]);
    assert_eq!(ada.subscribe(&topic, TAG).await, Subscribed::Retagged);
    settle().await;
    assert_eq!(received(&room), ["m0", "m1"], "it waits for no time any more");
    publish(&session, &topic, &["m2".into()]).await;
    assert_eq!(received(&room), texts("m", 3));
    close_settled(&session).await;

    let (room, session, _ada, topic) = subscribed(Profile::latest(Latest::default().rate(rate))).await;
    publish(&session, &topic, &texts("m", 2)).await;
    topic.set_profile(Profile::lossy(lossy(8)));
    publish(&session, &topic, &["m2".into()]).await;
    assert_eq!(received(&room), texts("m", 3));
    close_settled(&session).await;
}

// What a sink was given when it failed is counted by the participant, and has left the topic's balance.
#[tokio::test(start_paused = true)]
async fn a_failed_write_leaves_the_balance_of_a_topic_even() {
    for behavior in [Behavior::Fail, Behavior::Panic] {
        let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(8))).await;
        behave(&room, behavior);
        for text in texts("m", 3) {
            session.try_broadcast_to(&topic, msg(text)).expect("the log has capacity");
        }
        within(ada.closed()).await;
        let stats = topic.stats();
        assert_eq!(stats.offered, stats.handed_on + stats.lost.total() + stats.ended, "{stats:?}");
        assert_settled(&ada.stats().account);
        behave(&room, Behavior::Flow);
        close_settled(&session).await;
    }
}

// Empty messages take no bytes, and give way to nobody. A queue that is there only for its rate has none to give.
#[tokio::test(start_paused = true)]
async fn one_message_above_all_bounds_may_wait_beside_empty_ones() {
    let (room, session) = memory(|builder| builder.shards(1).lossy_bytes(100));
    let ada = joined(&room, &session, "ada").await;
    let (empty, rated) = (Topic::with(Profile::lossy(lossy(8))), Topic::with(Profile::lossy(lossy(8))));
    ada.subscribe(&empty, TAG).await;
    behave(&room, STALLED);
    publish(&session, &empty, &[String::new(), String::new()]).await;
    ada.subscribe_at(&rated, TAG, Rate::every(Duration::from_millis(10))).await;
    publish(&session, &empty, &["x".repeat(200)]).await;
    assert_eq!(ada.losses(&empty), Losses::default());
    behave(&room, Behavior::Flow);
    settle().await;
    assert_eq!(received(&room), [String::new(), String::new(), "x".repeat(200)]);
    close_settled(&session).await;
}

// A topic whose messages all gave way to those of others has no place in the turns until it has a message again.
#[tokio::test(start_paused = true)]
async fn a_topic_that_has_lost_everything_comes_last_again() {
    let (room, session) = memory(|builder| builder.shards(1).lossy_bytes(100));
    let ada = joined(&room, &session, "ada").await;
    let (first, second) = (Topic::with(Profile::lossy(lossy(8))), Topic::with(Profile::lossy(lossy(8))));
    ada.subscribe(&first, TAG).await;
    ada.subscribe(&second, TAG).await;
    behave(&room, STALLED);
    publish(&session, &first, &["x".repeat(60)]).await;
    publish(&session, &second, &vec!["y".repeat(30); 2]).await;
    assert_eq!(ada.losses(&first).overflowed, 1, "60 + 2 × 30 bytes are more than 100");
    publish(&session, &first, &["x".into()]).await;
    behave(&room, Behavior::Flow);
    settle().await;
    assert_eq!(received(&room), ["y".repeat(30), "y".repeat(30), "x".into()]);
    close_settled(&session).await;
}

#[tokio::test(start_paused = true)]
async fn the_oldest_message_is_known_while_a_snapshot_waits() {
    let (room, session) = memory(|builder| builder.shards(1));
    let topic = Topic::with(Profile::reliable().retain(1));
    publish(&session, &topic, &["retained".into()]).await;
    let ada = joined(&room, &session, "ada").await;
    let other = Topic::with(Profile::lossy(lossy(8)));
    ada.subscribe(&other, TAG).await;
    behave(&room, STALLED);
    publish(&session, &other, &["blocked".into()]).await;
    ada.subscribe(&topic, TAG).await;
    settle().await;
    assert!(ada.stats().oldest_waiting.is_some());
    assert_eq!(session.stats().account.offered, ada.stats().account.offered, "the session counts it as well");
    ada.unsubscribe(&topic).await;
    settle().await;
    assert_eq!(ada.stats().oldest_waiting, None);
    close_settled(&session).await;
}

#[tokio::test(start_paused = true)]
async fn of_two_rates_the_lower_one_applies() {
    let slow = Rate::every(Duration::from_millis(400));
    let fast = Rate::every(Duration::from_millis(100));
    for (of_topic, own) in [(slow, fast), (fast, slow)] {
        let (room, session) = memory(|builder| builder.shards(1));
        let ada = joined(&room, &session, "ada").await;
        let topic = Topic::with(Profile::latest(Latest::default().rate(of_topic)));
        ada.subscribe_at(&topic, TAG, own).await;
        for n in 0..10 {
            publish(&session, &topic, &[format!("m{n}")]).await;
            pass(100).await;
        }
        assert_eq!(received(&room).len(), 3, "at 0, 400 and 800 ms");
        close_settled(&session).await;
    }
}

// 1. A participant may have 1,000 bytes a second, and saves up for 100 ms. 2. Reliable messages pass at once and are
// charged. 3. Lossy ones wait until the rate allows them, and the newest remain.
#[tokio::test(start_paused = true)]
async fn a_total_rate_delays_lossy_messages_and_never_reliable_ones() {
    let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(2).max_age(Duration::from_secs(60)))).await;
    ada.set_rate(NonZeroU64::new(1000));
    settle().await;
    session.broadcast(msg("x".repeat(1100))).await.expect("the session is open");
    publish(&session, &topic, &texts("lossy", 3)).await;
    assert_eq!(received(&room).len(), 1, "the reliable one");
    session.broadcast(msg("reliable")).await.expect("the session is open");
    settle().await;
    assert_eq!(received(&room).len(), 2);
    assert_eq!(ada.losses(&topic).overflowed, 1);
    // 100 saved up, 1,100 charged; the other 8 exceed the second that may be owed. That takes a second, and another
    // millisecond until a byte is free.
    pass(1000).await;
    assert_eq!(received(&room).len(), 2);
    pass(10).await;
    assert_eq!(received(&room)[2..], ["lossy1", "lossy2"]);
    ada.set_rate(None);
    settle().await;
    publish(&session, &topic, &texts("free", 20)).await;
    assert_eq!(received(&room).len(), 24);
    close_settled(&session).await;
}

// A drain delivers what waits for its time, at once.
#[tokio::test(start_paused = true)]
async fn closing_hands_on_what_waits_for_its_time() {
    let (room, session, ada, topic) =
        subscribed(Profile::latest(Latest::default().rate(Rate::every(Duration::from_secs(3600))))).await;
    publish(&session, &topic, &texts("m", 3)).await;
    let other = Topic::with(Profile::lossy(lossy(64)));
    ada.subscribe(&other, TAG).await;
    ada.set_rate(NonZeroU64::new(1));
    settle().await;
    session.broadcast(msg("x".repeat(100))).await.expect("the session is open");
    publish(&session, &other, &["of the other".into()]).await;
    let begun = Instant::now();
    let account = close_settled(&session).await;
    assert_eq!((account.delivered, account.dropped.lossy.rate_limited), (4, 1));
    assert_eq!(received(&room)[2..], ["of the other", "m2"]);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_late_subscriber_gets_the_last_messages_then_the_live_ones() {
    let (room, session) = memory(|builder| builder.shards(1));
    let topic = Topic::with(Profile::reliable().retain(3));
    publish(&session, &topic, &texts("m", 5)).await;
    let ada = joined(&room, &session, "ada").await;
    assert_eq!(ada.subscribe(&topic, TAG).await, Subscribed::New);
    publish(&session, &topic, &["live".into()]).await;
    assert_eq!(received(&room), ["m2", "m3", "m4", "live"]);
    assert_eq!(ada.subscribe(&topic, TAG).await, Subscribed::Retagged, "and gets nothing again");
    settle().await;
    assert_eq!(received(&room).len(), 4);
    topic.set_profile(Profile::latest(Latest::default()).retain(3));
    let bob = joined(&room, &session, "bob").await;
    bob.subscribe(&topic, TAG).await;
    receives(&room, "bob", &["live"]).await;
    topic.set_profile(Profile::reliable());
    let cyd = joined(&room, &session, "cyd").await;
    cyd.subscribe(&topic, TAG).await;
    publish(&session, &topic, &["last".into()]).await;
    receives(&room, "cyd", &["last"]).await;
    assert_settled(&close_settled(&session).await);
}

// A retained topic is read without subscribers, so that messages never fill the log.
#[tokio::test]
async fn messages_of_a_retained_topic_never_fill_the_log() {
    let (room, session) = memory(|builder| builder.log_capacity(8).shards(3));
    let topic = Topic::with(Profile::lossy(lossy(4)).retain(2));
    within(publish(&session, &topic, &texts("m", 1000))).await;
    let ada = joined(&room, &session, "ada").await;
    ada.subscribe(&topic, TAG).await;
    receives(&room, "ada", &["m998", "m999"]).await;
    close_settled(&session).await;
}

// While a participant doesn't read, subscribing again and again leaves one snapshot of each topic at most, and no more
// bytes than may wait.
#[tokio::test(start_paused = true)]
async fn snapshots_that_wait_are_bounded_and_go_with_their_subscription() {
    let (room, session) = memory(|builder| builder.shards(1).lossy_bytes(100));
    let topics = [(); 2].map(|()| Topic::with(Profile::reliable().retain(3)));
    for topic in &topics {
        publish(&session, topic, &vec!["x".repeat(30); 3]).await;
    }
    let ada = joined(&room, &session, "ada").await;
    behave(&room, STALLED);
    for _ in 0..20 {
        assert_eq!(ada.subscribe(&topics[0], TAG).await, Subscribed::New);
        settle().await;
        assert_eq!(ada.subscribe(&topics[1], TAG).await, Subscribed::WithoutRetained);
        assert_waiting(&ada.stats().account, 3);
        assert_eq!(ada.unsubscribe(&topics[1]).await, Unsubscribed::Removed);
        assert_eq!(ada.unsubscribe(&topics[0]).await, Unsubscribed::Removed);
        assert_settled(&ada.stats().account);
    }
    assert_eq!(ada.stats().account.abandoned.unsubscribed, 60);
    assert_eq!(ada.subscribe(&topics[1], TAG).await, Subscribed::New);
    behave(&room, Behavior::Flow);
    settle().await;
    assert_eq!(received(&room).len(), 3);
    close_settled(&session).await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_starts_the_clock_of_a_rate() {
    let rated = Latest::default().rate(Rate::every(Duration::from_millis(100)));
    let (room, session) = memory(|builder| builder.shards(1));
    let topic = Topic::with(Profile::latest(rated).retain(1));
    publish(&session, &topic, &["retained".into()]).await;
    let ada = joined(&room, &session, "ada").await;
    ada.subscribe(&topic, TAG).await;
    publish(&session, &topic, &["live".into()]).await;
    assert_eq!(received(&room), ["retained"]);
    pass(100).await;
    assert_eq!(received(&room), ["retained", "live"]);
    close_settled(&session).await;
}

// Listeners are told of losses at most once a second, with sums that miss nothing.
#[tokio::test(start_paused = true)]
async fn losses_are_reported_once_a_second() {
    let (room, session, _ada, topic) = subscribed(Profile::lossy(lossy(1).max_age(Duration::from_secs(60)))).await;
    let mut events = session.events();
    behave(&room, STALLED);
    let begun = Instant::now();
    let mut reported = 0;
    for n in 0..30 {
        publish(&session, &topic, &[format!("m{n}")]).await;
        pass(100).await;
    }
    let lost = |event: &SessionEvent| match event {
        SessionEvent::Lost { lost } => Some(lost.overflowed),
        _ => None,
    };
    let mut count = 0;
    while reported < 29 {
        reported += event(&mut events, lost).await;
        count += 1;
    }
    assert_eq!(reported, 29);
    assert!(count <= 5, "{count} events in {:?}", begun.elapsed());
    close_settled(&session).await;
}

#[tokio::test(start_paused = true)]
async fn a_joining_participant_is_not_failed_by_lossy_messages() {
    let (room, session) = {
        let room = MemoryRoom::new();
        let session =
            Session::builder(room.clone()).shards(1).joining_bytes(100).initial(|ada: Participant<Bytes>| async move {
                let topic = TOPIC.get_or_init(|| Topic::with(Profile::lossy(lossy(2))));
                ada.subscribe(topic, TAG).await;
                sleep(Duration::from_millis(300)).await;
                vec![msg("initial")]
            });
        (room, session.build().expect("a session"))
    };
    static TOPIC: std::sync::OnceLock<Topic> = std::sync::OnceLock::new();
    room.join(presence("ada", "PA_1", 1)).await.expect("the session listens");
    pass(100).await;
    let topic = TOPIC.get().expect("Ada has subscribed");
    publish(&session, topic, &vec!["x".repeat(50); 10]).await;
    pass(300).await;
    let ada = live(&session, "ada").await;
    assert_eq!(received(&room).len(), 3, "the initial message and the two newest");
    assert_eq!(ada.losses(topic).overflowed, 8);
    close_settled(&session).await;
}

// 1. A lossy message is handed on, one waits, one is retained. 2. The topic ends, behind a last message. 3. The last
// message of a participant that keeps up has arrived, what waits is dropped, and nothing is left for who subscribes
// later.
#[tokio::test(start_paused = true)]
async fn a_topic_ends_at_one_position_with_all_that_is_kept_for_it() {
    let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(8)).retain(4)).await;
    let bob = joined(&room, &session, "bob").await;
    bob.subscribe(&topic, TAG).await;
    behave(&room, STALLED);
    for text in texts("m", 10) {
        session.try_broadcast_to(&topic, msg(text)).expect("the log has capacity");
    }
    within(session.end_topic(&topic)).await;
    session.broadcast(msg("unadvertised")).await.expect("the session is open");
    settle().await;
    assert_eq!(topic.subscribers(), 0);
    assert_eq!((topic.stats().handed_on, topic.stats().ended, topic.stats().waiting()), (10, 8, 0));
    assert_eq!(ada.stats().account.abandoned.unsubscribed, 8);
    assert_eq!(ada.losses(&topic), Losses::default(), "what was lost of it is forgotten");
    behave(&room, Behavior::Flow);
    let mut expected = texts("m", 10);
    expected.push("unadvertised".to_owned());
    receives(&room, "bob", &expected.iter().map(String::as_str).collect::<Vec<_>>()).await;
    settle().await;
    assert_eq!(received(&room), ["unadvertised"]);
    assert_eq!(bob.subscribe(&topic, TAG).await, Subscribed::New, "it begins anew");
    settle().await;
    receives(&room, "bob", &expected.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(bob.unsubscribe(&topic).await, Unsubscribed::Removed);
    close_settled(&session).await;
    within(session.end_topic(&topic)).await;
}

// A process that makes a retained topic for each of its jobs, and drops it, doesn't grow.
#[tokio::test]
async fn retained_messages_go_with_the_last_handle_of_their_topic() {
    let (room, session) = memory(|builder| builder.shards(1));
    joined(&room, &session, "ada").await;
    let messages: Vec<_> = (0..1000).map(|n| msg(format!("message {n}"))).collect();
    for message in &messages {
        let topic = Topic::with(Profile::lossy(lossy(4)).retain(1));
        within(session.broadcast_to(&topic, message.clone())).await.expect("the session is open");
        drop(topic);
        settle().await;
    }
    let kept = messages.iter().filter(|message| !message.is_unique()).count();
    assert!(kept <= 128, "the messages of {kept} of 1,000 topics are kept");
    close_settled(&session).await;
}

// A message waits for its time, and the rate goes: the message comes at once, before the next one.
#[tokio::test(start_paused = true)]
async fn what_waits_for_its_time_comes_first_when_the_rate_goes() {
    let hourly = Rate::every(Duration::from_secs(3600));
    // The topic's own rate.
    let (room, session, _ada, topic) = subscribed(Profile::lossy(lossy(8).rate(hourly))).await;
    publish(&session, &topic, &texts("m", 2)).await;
    topic.set_profile(Profile::lossy(lossy(8)));
    publish(&session, &topic, &["m2".into()]).await;
    assert_eq!(received(&room), texts("m", 3));
    close_settled(&session).await;
    // The subscriber's rate, on topics of each class.
    for profile in [Profile::reliable(), Profile::lossy(lossy(8)), Profile::latest(Latest::default())] {
        let (room, session) = memory(|builder| builder.shards(1));
        let ada = joined(&room, &session, "ada").await;
        let topic = Topic::with(profile);
        ada.subscribe_at(&topic, TAG, hourly).await;
        publish(&session, &topic, &texts("m", 2)).await;
        assert_eq!(received(&room), ["m0"]);
        assert_eq!(ada.subscribe(&topic, TAG).await, Subscribed::Retagged);
        settle().await;
        publish(&session, &topic, &["m2".into()]).await;
        assert_eq!(received(&room), texts("m", 3), "{profile:?}");
        close_settled(&session).await;
    }
}

#[tokio::test(start_paused = true)]
async fn another_rate_applies_at_once() {
    let (room, session) = memory(|builder| builder.shards(1));
    let ada = joined(&room, &session, "ada").await;
    let topic = Topic::new();
    ada.subscribe_at(&topic, TAG, Rate::every(Duration::MAX)).await;
    publish(&session, &topic, &texts("m", 2)).await;
    ada.subscribe_at(&topic, TAG, Rate::every(Duration::from_millis(50))).await;
    pass(60).await;
    assert_eq!(received(&room), texts("m", 2));
    // Of several that wait, a rate leaves the newest.
    let lossy_topic = Topic::with(Profile::lossy(lossy(8)));
    ada.subscribe(&lossy_topic, TAG).await;
    behave(&room, STALLED);
    publish(&session, &lossy_topic, &texts("l", 5)).await;
    ada.subscribe_at(&lossy_topic, TAG, Rate::every(Duration::from_secs(1))).await;
    behave(&room, Behavior::Flow);
    settle().await;
    assert_eq!(received(&room)[2..], ["l4"]);
    assert_eq!(ada.losses(&lossy_topic).total(), 4);
    close_settled(&session).await;
}

// Timers that wait for hours and messages that come and go leave nothing behind.
#[tokio::test(start_paused = true)]
async fn a_slow_rate_does_not_disturb_a_fast_one() {
    let (room, session) = memory(|builder| builder.shards(1));
    let ada = joined(&room, &session, "ada").await;
    let (slow, fast) = (Topic::new(), Topic::new());
    ada.subscribe_at(&slow, TAG, Rate::every(Duration::from_secs(10))).await;
    ada.subscribe_at(&fast, TAG, Rate::every(Duration::from_millis(10))).await;
    publish(&session, &slow, &texts("slow", 2)).await;
    for n in 0..500 {
        publish(&session, &fast, &[format!("fast{n}.0"), format!("fast{n}.1")]).await;
        pass(25).await;
    }
    let received = received(&room);
    assert_eq!(received.iter().filter(|text| text.starts_with("fast")).count(), 1000);
    assert_eq!(received.iter().filter(|text| text.starts_with("slow")).count(), 2);
    close_settled(&session).await;
}

// A burst that a turn reads at once is charged message by message.
#[tokio::test(start_paused = true)]
async fn a_total_rate_is_not_passed_by_in_a_burst() {
    let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(64))).await;
    ada.set_rate(NonZeroU64::new(10_000));
    settle().await;
    for _ in 0..100 {
        session.try_broadcast_to(&topic, msg("x".repeat(1000))).expect("the log has capacity");
    }
    settle().await;
    assert!(received(&room).len() <= 2, "{} kB of one saved up", received(&room).len());
    // Another rate neither forgives what is owed nor gives anything.
    let before = received(&room).len();
    for rate in [10_001, 10_002, 10_003] {
        ada.set_rate(NonZeroU64::new(rate));
        settle().await;
    }
    assert!(received(&room).len() <= before + 1);
    // What waits for the total rate grows too old as well.
    ada.set_rate(NonZeroU64::new(1));
    pass(2000).await;
    assert_eq!(ada.stats().account.waiting(), 0, "{:?}", ada.stats());
    close_settled(&session).await;
}

// A write fails, or panics, in each of its steps: the topic's figures add up nevertheless.
#[tokio::test(start_paused = true)]
async fn the_figures_of_a_topic_add_up_after_a_fault() {
    for behavior in [Behavior::Fail, Behavior::Panic] {
        let (room, session, ada, topic) = subscribed(Profile::lossy(lossy(8))).await;
        publish(&session, &topic, &texts("m", 3)).await;
        behave(&room, behavior);
        for text in texts("n", 5) {
            session.try_broadcast_to(&topic, msg(text)).expect("the log has capacity");
        }
        within(ada.closed()).await;
        let stats = topic.stats();
        assert_eq!((stats.offered, stats.waiting()), (stats.handed_on + stats.ended, 0), "{stats:?}");
        assert_settled(&ada.stats().account);
        session.cancel();
    }
}

// What waits is counted as it is dropped, whatever waits in the sink.
#[tokio::test(start_paused = true)]
async fn what_the_sink_has_taken_is_not_dropped_with_its_subscription() {
    let (stage, streams) =
        Streams::<Note>::stage(|to| if to.identity == id("ada") { Valve::shut() } else { Valve::open() });
    let session = stage.session(|builder| builder.shards(1));
    for name in ["ada", "bob"] {
        stage.join(presence(name, &format!("PA_{name}"), 1));
    }
    let (ada, bob) = (live(&session, "ada").await, live(&session, "bob").await);
    let topic = Topic::with(Profile::lossy(lossy(2)));
    ada.subscribe(&topic, TAG).await;
    for n in 0..5 {
        session.broadcast_to(&topic, Note::new(format!("m{n}"))).await.expect("the session is open");
        settle().await;
    }
    assert_eq!(ada.unsubscribe(&topic).await, Unsubscribed::Removed);
    let account = ada.stats().account;
    assert_eq!((account.dropped.lossy.overflowed, account.abandoned.unsubscribed), (2, 2), "one is in the sink");
    assert_waiting(&account, 1);
    assert_eq!(bob.end_reason(), None);
    assert_eq!(streams.nth("bob", 0).await.lock().flushed.len(), 0);
    session.cancel();
}
