//! Broadcasts that gather before they are handed on: for how long, and what ends it early. On a paused clock, which
//! stands still while any task can run.

use std::time::Duration;

use bytes::Bytes;
use lanecast::room::RoomEvent;
use lanecast::{Hold, Lossy, OverloadPolicy, Participant, Profile, Session, SessionBuilder, SubscriptionTag, Topic};
use tokio::time::{Instant, advance, sleep};

use crate::common::{Stage, Streams, Valve, close_settled, live, msg, presence, settle, texts, until, within};

/// How long broadcasts gather in these tests.
const LINGER: Duration = Duration::from_millis(20);

/// What tokio's timer may be late by.
const TIMER: Duration = Duration::from_millis(1);

/// A session of one shard that lingers, and its only participant, `ada`.
struct Scene {
    stage: Stage<Bytes>,
    streams: Streams<Bytes>,
    session: Session<Stage<Bytes>>,
    ada: Participant<Bytes>,
    valve: Valve<Bytes>,
    begun: Instant,
}

impl Scene {
    async fn new(set: impl FnOnce(SessionBuilder<Stage<Bytes>>) -> SessionBuilder<Stage<Bytes>>) -> Self {
        let (stage, streams) = Streams::stage(|_| Valve::open());
        let session = stage.session(|builder| set(builder.shards(1).linger(LINGER)));
        stage.join(presence("ada", "PA_ada", 1));
        let ada = live(&session, "ada").await;
        let valve = streams.nth("ada", 0).await;
        settle().await;
        Self { stage, streams, session, ada, valve, begun: Instant::now() }
    }

    fn broadcast(&self, text: &str) {
        self.session.try_broadcast(msg(text)).expect("the log has capacity");
    }

    fn flushed(&self) -> Vec<String> {
        self.valve.lock().flushed.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }

    /// Waits until `ada` has so many messages, and returns how long that took.
    async fn has(&self, messages: usize) -> Duration {
        self.valve.wait_for(|seen| seen.flushed.len() >= messages).await;
        self.begun.elapsed()
    }

    /// Brings every task to rest, and asserts that `ada` has got these messages, without the clock having moved.
    #[track_caller]
    fn has_at_once(&self, expected: &[&str]) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            settle().await;
            assert_eq!(self.begun.elapsed(), Duration::ZERO, "the clock stands still at {place}");
            assert_eq!(self.flushed(), expected, "at {place}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn broadcasts_gather_and_are_flushed_together() {
    let scene = Scene::new(|builder| builder).await;
    for text in ["a", "b", "c"] {
        scene.broadcast(text);
        scene.has_at_once(&[]).await;
    }
    assert_eq!(scene.session.stats().shard_lag, 3, "what gathers has yet to be read");
    let took = scene.has(1).await;
    assert!((LINGER - TIMER..=LINGER).contains(&took), "{took:?}");
    assert_eq!(scene.flushed(), ["a", "b", "c"]);
    assert_eq!(scene.valve.lock().batches, [3]);
    assert_eq!(scene.session.stats().shard_lag, 0);
    close_settled(&scene.session).await;
}

#[tokio::test(start_paused = true)]
async fn the_time_begins_with_the_first_that_waits() {
    let scene = Scene::new(|builder| builder).await;
    // A stream without a pause as long as the linger.
    let publishing = async {
        for text in texts("m", 40) {
            scene.broadcast(&text);
            sleep(LINGER / 4).await;
        }
    };
    let delivering = async {
        for batch in 0..5 {
            scene.valve.wait_for(|seen| seen.batches.len() > batch).await;
            let (carried, total) = {
                let seen = scene.valve.lock();
                (seen.batches[batch], seen.flushed.len())
            };
            assert!((4..=6).contains(&carried), "{carried} gathered");
            let oldest = u32::try_from(total - carried).expect("few") * (LINGER / 4);
            let waited = scene.begun.elapsed() - oldest;
            assert!(
                (LINGER - TIMER..=LINGER + TIMER).contains(&waited),
                "the first of batch {batch} waited {waited:?}"
            );
        }
    };
    tokio::join!(publishing, delivering);
    scene.has(40).await;
    assert_eq!(scene.flushed(), texts("m", 40));
}

#[tokio::test(start_paused = true)]
async fn by_default_nothing_gathers() {
    let scene = Scene::new(|builder| builder.linger(Duration::ZERO)).await;
    scene.broadcast("a");
    scene.has_at_once(&["a"]).await;
    scene.broadcast("b");
    scene.has_at_once(&["a", "b"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_turn_ends_the_gathering() {
    // A turn hands on a quarter of the capacity.
    let scene = Scene::new(|builder| builder.queue_capacity(16)).await;
    for text in ["a", "b", "c"] {
        scene.broadcast(text);
    }
    scene.has_at_once(&[]).await;
    scene.broadcast("d");
    scene.has_at_once(&["a", "b", "c", "d"]).await;
    // The next one gathers anew.
    scene.broadcast("e");
    scene.has_at_once(&["a", "b", "c", "d"]).await;
    let took = scene.has(5).await;
    assert!((LINGER - TIMER..=LINGER).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn half_a_log_ends_the_gathering() {
    let scene = Scene::new(|builder| builder.log_capacity(8)).await;
    for text in ["a", "b", "c"] {
        scene.broadcast(text);
    }
    scene.has_at_once(&[]).await;
    scene.broadcast("d");
    scene.has_at_once(&["a", "b", "c", "d"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_longer_than_a_turn_is_delivered_wholly() {
    let scene = Scene::new(|builder| builder.queue_capacity(16)).await;
    let burst = texts("m", 30);
    for text in &burst {
        scene.broadcast(text);
    }
    let expected: Vec<&str> = burst.iter().map(String::as_str).collect();
    scene.has_at_once(&expected).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_of_one_place_lets_nothing_gather() {
    let scene = Scene::new(|builder| builder.log_capacity(1)).await;
    for text in ["a", "b", "c"] {
        scene.session.broadcast(msg(text)).await.expect("the session is open");
    }
    scene.has_at_once(&["a", "b", "c"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_direct_message_ends_the_gathering_and_comes_behind_what_gathered() {
    let scene = Scene::new(|builder| builder).await;
    scene.ada.send(msg("first")).expect("there is capacity");
    scene.has_at_once(&["first"]).await;
    scene.broadcast("a");
    scene.broadcast("b");
    scene.has_at_once(&["first"]).await;
    scene.ada.send(msg("direct")).expect("there is capacity");
    scene.has_at_once(&["first", "a", "b", "direct"]).await;
    scene.broadcast("c");
    scene.has_at_once(&["first", "a", "b", "direct"]).await;
    scene.has(5).await;
    assert_eq!(scene.flushed(), ["first", "a", "b", "direct", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_direct_message_to_one_ends_the_gathering_for_all() {
    let scene = Scene::new(|builder| builder).await;
    scene.stage.join(presence("bob", "PA_bob", 1));
    let bob = live(&scene.session, "bob").await;
    scene.broadcast("a");
    scene.has_at_once(&[]).await;
    bob.send(msg("direct")).expect("there is capacity");
    scene.has_at_once(&["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn subscriptions_and_joins_do_not_wait() {
    let scene = Scene::new(|builder| builder).await;
    let topic = Topic::new();
    scene.broadcast("a");
    scene.has_at_once(&[]).await;
    within(scene.ada.subscribe(&topic, SubscriptionTag(1))).await;
    scene.has_at_once(&["a"]).await;
    scene.session.try_broadcast_to(&topic, msg("b")).expect("the log has capacity");
    scene.has_at_once(&["a"]).await;
    within(scene.ada.unsubscribe(&topic)).await;
    scene.has_at_once(&["a", "b"]).await;
    scene.broadcast("c");
    scene.has_at_once(&["a", "b"]).await;
    scene.stage.join(presence("bob", "PA_bob", 1));
    live(&scene.session, "bob").await;
    scene.has_at_once(&["a", "b", "c"]).await;
    let bob = scene.streams.nth("bob", 0).await;
    assert!(bob.lock().flushed.is_empty(), "the gathered broadcast was published before bob's position");
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_waits_ends_the_gathering() {
    let scene = Scene::new(|builder| builder).await;
    scene.broadcast("a");
    scene.has_at_once(&[]).await;
    scene.stage.emit(RoomEvent::UplinkStalled);
    until(|| scene.session.stats().uplink_stalled).await;
    scene.has_at_once(&[]).await;
    let waiting = tokio::spawn({
        let session = scene.session.clone();
        async move { session.broadcast(msg("b")).await.expect("the session is open") }
    });
    scene.has_at_once(&["a"]).await;
    scene.stage.emit(RoomEvent::UplinkFlowing);
    waiting.await.expect("it doesn't panic");
    scene.has(2).await;
    assert_eq!(scene.flushed(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn closing_delivers_what_has_gathered_at_once() {
    let scene = Scene::new(|builder| builder).await;
    scene.broadcast("a");
    scene.broadcast("b");
    scene.has_at_once(&[]).await;
    let account = close_settled(&scene.session).await;
    assert_eq!(account.delivered, 2);
    scene.has_at_once(&["a", "b"]).await;
}

#[tokio::test(start_paused = true)]
async fn cancelling_does_not_wait_for_what_gathers() {
    let scene = Scene::new(|builder| builder).await;
    scene.broadcast("a");
    scene.has_at_once(&[]).await;
    scene.session.cancel();
    let account = close_settled(&scene.session).await;
    assert_eq!((account.offered, scene.begun.elapsed()), (1, Duration::ZERO));
}

// 1. A viewer is stuck with a backlog. 2. A broadcast gathers. 3. The viewer reads again: it gets its backlog at once,
// and the gathered broadcast with the others.
#[tokio::test(start_paused = true)]
async fn a_member_that_is_behind_is_visited_while_others_gather() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.shards(1).linger(LINGER));
    stage.join(presence("ada", "PA_ada", 1));
    live(&session, "ada").await;
    let valve = streams.nth("ada", 0).await;
    for text in ["in the sink", "in the backlog"] {
        session.try_broadcast(msg(text)).expect("the log has capacity");
        advance(LINGER + TIMER).await;
        settle().await;
    }
    let begun = Instant::now();
    session.try_broadcast(msg("gathers")).expect("the log has capacity");
    settle().await;
    assert!(valve.lock().flushed.is_empty());
    valve.release();
    settle().await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(valve.lock().flushed, ["in the sink", "in the backlog"]);
    valve.wait_for(|seen| seen.flushed.len() == 3).await;
    let took = begun.elapsed();
    assert!((LINGER - TIMER..=LINGER).contains(&took), "{took:?}");
    close_settled(&session).await;
}

// A message of an urgent topic takes along what has gathered.
#[tokio::test(start_paused = true)]
async fn an_urgent_message_ends_the_gathering() {
    let scene = Scene::new(|builder| builder).await;
    let alarm = Topic::with(Profile::reliable().urgent());
    scene.ada.subscribe(&alarm, SubscriptionTag(1)).await;
    let begun = Instant::now();
    scene.broadcast("a");
    settle().await;
    assert!(scene.flushed().is_empty());
    scene.session.try_broadcast_to(&alarm, msg("alarm")).expect("the log has capacity");
    settle().await;
    assert_eq!(scene.flushed(), ["a", "alarm"]);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    scene.broadcast("b");
    settle().await;
    assert_eq!(scene.flushed().len(), 2, "and what comes later gathers anew");
    close_settled(&scene.session).await;
}

// What may wait for 20 ms only doesn't spend it in the log.
#[tokio::test(start_paused = true)]
async fn the_time_is_a_quarter_of_the_shortest_age_at_most() {
    let scene = Scene::new(|builder| builder).await;
    let topic = Topic::with(Profile::lossy(Lossy::default().max_age(LINGER)));
    scene.ada.subscribe(&topic, SubscriptionTag(1)).await;
    for (age, longest) in [(LINGER, LINGER / 4), (10 * LINGER, LINGER)] {
        topic.set_profile(Profile::lossy(Lossy::default().max_age(age)));
        // The shard learns of the age with a message.
        scene.session.try_broadcast_to(&topic, msg("first")).expect("the log has capacity");
        sleep(2 * LINGER).await;
        let (before, begun) = (scene.flushed().len(), Instant::now());
        scene.session.try_broadcast_to(&topic, msg("second")).expect("the log has capacity");
        scene.valve.wait_for(|seen| seen.flushed.len() > before).await;
        assert!((longest - TIMER..=longest).contains(&begun.elapsed()), "{:?} for {age:?}", begun.elapsed());
    }
    close_settled(&scene.session).await;
}

// A topic's age limit no longer shortens the time when the topic has ended.
#[tokio::test(start_paused = true)]
async fn a_topic_that_has_ended_does_not_shorten_the_time() {
    let scene = Scene::new(|builder| builder).await;
    let topic = Topic::with(Profile::lossy(Lossy::default().max_age(LINGER / 4)));
    scene.ada.subscribe(&topic, SubscriptionTag(1)).await;
    scene.session.try_broadcast_to(&topic, msg("short-lived")).expect("the log has capacity");
    sleep(2 * LINGER).await;
    within(scene.session.end_topic(&topic)).await;
    sleep(2 * LINGER).await;
    let (before, begun) = (scene.flushed().len(), Instant::now());
    scene.broadcast("b");
    scene.valve.wait_for(|seen| seen.flushed.len() > before).await;
    assert!((LINGER - TIMER..=LINGER).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    close_settled(&scene.session).await;
}

// Where publishers may be held, the log has a bound in bytes. Half of it ends the gathering, so that nobody is refused
// while the shard sleeps.
#[tokio::test(start_paused = true)]
async fn half_of_the_logs_bytes_end_the_gathering() {
    let hold = OverloadPolicy::from(Hold::default());
    let scene = Scene::new(|builder| builder.overload(hold).queue_bytes(8000).log_capacity(64)).await;
    for text in ["a", "b", "c"] {
        scene.session.try_broadcast(msg(text.repeat(600))).expect("the log takes 1,000 bytes");
        settle().await;
        assert_eq!(scene.begun.elapsed(), Duration::ZERO);
    }
    assert_eq!(scene.flushed().len(), 3);
    close_settled(&scene.session).await;
}
