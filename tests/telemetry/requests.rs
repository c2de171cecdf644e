//! The requests of viewers, and how they are answered.

use super::*;
use lanecast::SessionBuilder;

#[tokio::test]
async fn invalid_subscriptions_are_answered_with_warnings() {
    let (room, telemetry) = telemetry();
    let one = telemetry.advertise(json_channel("/one")).await.unwrap();
    let two = telemetry.advertise(json_channel("/two")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    viewer.subscribe(7, one.id()).await;
    // 1. A second subscription to one channel; an id in use; an unknown channel and an unknown subscription; an id
    // twice in one request.
    viewer.subscribe(8, one.id()).await;
    viewer.subscribe(7, two.id()).await;
    viewer.subscribe(9, 99).await;
    viewer.unsubscribe(10).await;
    let [first, second] = [two.id(), two.id()];
    viewer
        .say(format!(
            r#"{{"op":"subscribe","subscriptions":[{{"id":20,"channelId":{first}}},{{"id":21,"channelId":{second}}}]}}"#
        ))
        .await;
    viewer.settle().await;
    let one_id = one.id();
    let expected = [
        format!("channel {one_id} is subscribed to already, as subscription 7"),
        format!("subscription id 7 is in use already, for channel {one_id}"),
        "subscription 9: there is no channel 99".to_owned(),
        "there is no subscription 10".to_owned(),
        format!("channel {first} is subscribed to already, as subscription 20"),
    ];
    assert_eq!(statuses(&viewer.told()), expected.map(|text| (StatusLevel::Warning, text)));
    // 2. The connection stays, and the valid subscriptions hold.
    one.publish("1").await.unwrap();
    two.publish("2").await.unwrap();
    let ids: Vec<_> = viewer.until_data(2).await.iter().map(|message| message.subscription_id).collect();
    assert_eq!(ids, [7, 20]);
    assert_eq!(viewer.recorder.received().len(), 1);
    // 3. A request with a thousand mistakes is answered with a few statuses.
    let many: Vec<_> = (0..1000).map(|id| format!(r#"{{"id":{id},"channelId":77}}"#)).collect();
    viewer.say(format!(r#"{{"op":"subscribe","subscriptions":[{}]}}"#, many.join(","))).await;
    viewer.until_status(StatusLevel::Warning, "984 more of this kind").await;
    assert_eq!(statuses(&viewer.told()).len(), 5 + 17);
}

// One of several items in a request can't be read: it is named, and the others are handled.
#[tokio::test]
async fn an_unreadable_item_does_not_affect_the_rest_of_its_request() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    let id = channel.id();
    let wanted = format!(r#"[{{"id":"7","channelId":{id}}},{{"id":8,"channelId":{id}}}]"#);
    viewer.say(format!(r#"{{"op":"subscribe","subscriptions":{wanted}}}"#)).await;
    viewer.until_status(StatusLevel::Error, "subscription number 1: invalid JSON").await;
    viewer.settle().await;
    channel.publish("1").await.unwrap();
    assert_eq!(viewer.until_data(1).await[0].subscription_id, 8);
    viewer.say(r#"{"op":"unsubscribe","subscriptionIds":[null,8]}"#).await;
    viewer.until_status(StatusLevel::Error, "subscription id number 1: invalid JSON").await;
    viewer.settle().await;
    assert_eq!(channel.subscribers(), 0);
    // However many items can't be read, only a few are named.
    viewer.say(format!(r#"{{"op":"unsubscribe","subscriptionIds":[1{}]}}"#, ",{}".repeat(1000))).await;
    viewer.until_status(StatusLevel::Error, "at least 84 more of this kind").await;
}

#[tokio::test]
async fn an_unreadable_request_is_an_error_and_the_connection_stays() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    // 1. The viewer sends unreadable requests of every kind.
    let rubbish = [
        (Frame::text("{"), "invalid JSON"),
        (Frame::text("[1]"), "without an op"),
        (Frame::text(r#"{"op":"subscribe"}"#), "invalid JSON"),
        (Frame::text(r#"{"op":"dance"}"#), "unknown op \"dance\""),
        (Frame::text(r#"{"op":"serverInfo"}"#), "wrong side"),
        (Frame::binary(Bytes::new()), "truncated"),
        (Frame::binary(Bytes::from_static(&[77])), "unknown binary opcode 77"),
        (Frame::binary(Bytes::from_static(&[1, 0])), "truncated message data"),
        (Frame::binary(Bytes::from_static(&[2, 0, 0, 0, 0])), "truncated service call request"),
    ];
    for (frame, _) in &rubbish {
        viewer.requests.send(frame.clone()).await.unwrap();
    }
    viewer.settle().await;
    let answers = statuses(&viewer.told());
    assert_eq!(answers.len(), rubbish.len(), "{answers:#?}");
    for ((level, answer), (_, part)) in answers.iter().zip(&rubbish) {
        assert_eq!(*level, StatusLevel::Error);
        assert!(answer.contains(part), "{answer} has no {part}");
    }
    // 2. Later requests work.
    viewer.subscribe(1, channel.id()).await;
    viewer.settle().await;
    channel.publish("{}").await.unwrap();
    viewer.until_data(1).await;
    assert_eq!(viewer.recorder.received().len(), 1);
}

#[tokio::test]
async fn disabled_features_are_refused() {
    let (room, _telemetry) = telemetry();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    // 1. The viewer requests everything that this server doesn't offer.
    let requests = [
        r#"{"op":"getParameters","parameterNames":[],"id":"x"}"#,
        r#"{"op":"setParameters","parameters":[]}"#,
        r#"{"op":"subscribeParameterUpdates","parameterNames":[]}"#,
        r#"{"op":"unsubscribeParameterUpdates","parameterNames":[]}"#,
        r#"{"op":"subscribeConnectionGraph"}"#,
        r#"{"op":"unsubscribeConnectionGraph"}"#,
        r#"{"op":"advertise","channels":[]}"#,
        r#"{"op":"unadvertise","channelIds":[]}"#,
    ];
    for request in requests {
        viewer.say(request).await;
    }
    viewer.requests.send(Frame::binary(Bytes::from_static(&[1, 1, 0, 0, 0, b'x']))).await.unwrap();
    // 2. Each request is answered with an error.
    let seen = viewer.until("nine errors", |seen| statuses(seen).len() == 9).await;
    assert!(statuses(&seen).iter().all(|(level, _)| *level == StatusLevel::Error));
    // 3. A service call and a request for an asset have answers of their own.
    let mut call = vec![2];
    for number in [5_u32, 6, 4] {
        call.extend(number.to_le_bytes());
    }
    call.extend(b"json{}");
    viewer.requests.send(Frame::binary(call.into())).await.unwrap();
    let seen = viewer.until("failure", |seen| matches!(seen.last(), Some(ServerMessage::ServiceCallFailure(_)))).await;
    let Some(ServerMessage::ServiceCallFailure(failure)) = seen.last() else { unreachable!() };
    assert_eq!((failure.service_id, failure.call_id), (5, 6));
    viewer.fetch(9, "package://x").await;
    assert_eq!(viewer.until_asset(9).await, Err("this server has no assets".to_owned()));
}

#[tokio::test]
async fn a_viewers_requests_take_effect_in_order() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    // 1. A burst of requests subscribes and unsubscribes, each time under another id.
    for id in 1..=100 {
        viewer.subscribe(id, channel.id()).await;
        viewer.unsubscribe(id).await;
    }
    viewer.subscribe(101, channel.id()).await;
    viewer.settle().await;
    // 2. There is no warning, and the last subscription holds.
    assert_eq!(statuses(&viewer.told()), []);
    assert_eq!(channel.subscribers(), 1);
    channel.publish("{}").await.unwrap();
    assert_eq!(viewer.until_data(1).await[0].subscription_id, 101);
}

/// A viewer that sends requests faster than they are answered, and reads, is slowed down: its own answers don't reset
/// it.
#[tokio::test]
async fn every_request_of_a_burst_is_answered() {
    let room = Room::new();
    let calm = |session: SessionBuilder<Room>| session.queue_capacity(8).write_timeout(Duration::from_secs(600));
    let _telemetry = Telemetry::builder(room.clone()).name("test").configure(calm).build().unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    for _ in 0..500 {
        viewer.say("{").await;
    }
    let seen = viewer.until("500 errors", |seen| statuses(seen).len() == 500).await;
    assert_eq!(seen.len(), 501);
    assert_eq!(viewer.recorder.received().len(), 1);
    // A viewer that doesn't read delays nobody else.
    viewer.recorder.set_behavior(Behavior::Stall { capacity: 0 });
    let other = Viewer::join(&room, "bob", SDK_V1).await;
    for _ in 0..100 {
        viewer.say("{").await;
    }
    other.settle().await;
    viewer.recorder.set_behavior(Behavior::Flow);
    viewer.until("600 errors", |seen| statuses(seen).len() == 600).await;
}

/// A viewer that falls behind may unsubscribe, and the server handles the request.
#[tokio::test]
async fn a_viewer_that_falls_behind_may_unsubscribe() {
    let room = Room::new();
    let builder = Telemetry::builder(room.clone()).name("test");
    let calm = |session: SessionBuilder<Room>| session.queue_capacity(16).write_timeout(Duration::from_secs(600));
    let telemetry = builder.configure(calm).build().unwrap();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    viewer.subscribe(7, channel.id()).await;
    viewer.settle().await;
    viewer.recorder.set_behavior(Behavior::Stall { capacity: 0 });
    for _ in 0..12 {
        channel.publish("{}").await.unwrap();
    }
    viewer.unsubscribe(7).await;
    within(async {
        while channel.has_subscribers() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..50 {
        channel.publish("{}").await.unwrap();
    }
    viewer.recorder.set_behavior(Behavior::Flow);
    assert_eq!(viewer.until_data(12).await.len(), 12);
    assert_eq!(viewer.recorder.received().len(), 1, "it was reset");
}

/// However much one request asks for, the answers don't overflow a viewer that reads: many warnings, many assets at
/// once.
#[tokio::test]
async fn answers_never_overflow_a_viewer_that_reads() {
    let room = Room::new();
    let builder = Telemetry::builder(room.clone()).name("test").assets(|_| async {
        tokio::task::yield_now().await;
        Ok(Bytes::from(vec![0; 3000]))
    });
    let telemetry = builder.configure(|session| session.queue_capacity(4).queue_bytes(4000)).build().unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    let many: Vec<_> = (0..20).map(|id| format!(r#"{{"id":{id},"channelId":77}}"#)).collect();
    viewer.say(format!(r#"{{"op":"subscribe","subscriptions":[{}]}}"#, many.join(","))).await;
    viewer.until("17 warnings", |seen| statuses(seen).len() == 17).await;
    for id in 0..32 {
        viewer.fetch(id, "package://x").await;
    }
    for id in 0..32 {
        assert_eq!(viewer.until_asset(id).await.map(|asset| asset.len()), Ok(3000));
    }
    assert_eq!((viewer.recorder.received().len(), telemetry.session().stats().resets.total()), (1, 0));
}

// 1. A viewer sends many requests on a stream, and opens another stream while its answers wait for capacity. 2. It goes
// on there. 3. It is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn requests_on_a_second_stream_in_a_burst_are_answered() {
    let rounds = if std::env::var("LANECAST_TEST_SIZE").is_ok_and(|size| size == "full") { 10_000 } else { 100 };
    for _ in 0..rounds {
        let room = Room::new();
        let builder = Telemetry::builder(room.clone()).name("test").configure(|session| session.queue_capacity(8));
        let _telemetry = builder.build().unwrap();
        let mut viewer = Viewer::join(&room, "ada", SDK_V1).await;
        let Presence { identity, sid, .. } = presence("ada", SDK_V1);
        for _ in 0..30 {
            for _ in 0..12 {
                // The stream may have no capacity for more, which isn't an error.
                let _ = viewer.requests.try_send(Frame::text("{"));
            }
            viewer.requests = room.open_incoming(&identity, &sid).await.unwrap();
            for _ in 0..4 {
                viewer.say("{").await;
            }
        }
        viewer.fetch(77, "x").await;
        assert!(viewer.until_asset(77).await.is_err());
    }
}

/// A long request delays no other viewer, even on a single-threaded runtime: it is decoded on a thread of its own.
#[tokio::test]
async fn a_long_request_of_one_viewer_delays_no_other() {
    let (room, _telemetry) = telemetry();
    let (rude, honest) = (Viewer::join(&room, "rude", SDK_V1).await, Viewer::join(&room, "ada", SDK_V1).await);
    let more = r#",{"id":1,"channelId":9}"#.repeat(300_000);
    rude.say(format!(r#"{{"op":"subscribe","subscriptions":[{{"id":1,"channelId":9}}{more}]}}"#)).await;
    honest.unsubscribe(10).await;
    honest.until_status(StatusLevel::Warning, "there is no subscription 10").await;
    assert_eq!(statuses(&rude.told()), [], "the long request came first, and was done first");
    rude.until_status(StatusLevel::Warning, "299985 more of this kind").await;
}
