//! What differs for viewers of wire format v2, and that both formats work in one session.

use lanecast::protocol::server::ServiceCall;

use super::*;

#[tokio::test]
async fn one_publish_reaches_viewers_of_both_formats() {
    let (room, telemetry) = telemetry();
    let other = telemetry.advertise(json_channel("/other")).await.unwrap();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    // 1. Two viewers of each format subscribe; and one of each to another channel.
    let old = [Viewer::join(&room, "a", SDK_V1).await, Viewer::join(&room, "b", SDK_V1_1).await];
    let new = [Viewer::join(&room, "c", V2).await, Viewer::join(&room, "d", V2_3).await];
    let elsewhere = [Viewer::join(&room, "e", SDK_V1).await, Viewer::join(&room, "f", V2).await];
    for (viewer, id) in old.iter().zip([7, 4_000_000_000]) {
        viewer.subscribe(id, channel.id()).await;
    }
    for viewer in &new {
        viewer.subscribe_channel(channel.id()).await;
    }
    elsewhere[0].subscribe(7, other.id()).await;
    elsewhere[1].subscribe_channel(other.id()).await;
    for viewer in old.iter().chain(&new).chain(&elsewhere) {
        viewer.settle().await;
    }
    assert_eq!(channel.subscribers(), 4);
    // 2. Messages are published by each method.
    channel.publish_at(42, "1").await.unwrap();
    channel.try_publish_at(43, "2").unwrap();
    channel.publish_with(|| Sample { log_time_ns: 44, payload: "3" }).await.unwrap();
    // 3. Each message names the channel in the viewer's format, and all share the payload.
    let times = [(42, "1"), (43, "2"), (44, "3")];
    for (viewer, id) in old.iter().zip([7, 4_000_000_000]) {
        let expected = times.map(|(log_time_ns, payload)| MessageData {
            subscription_id: id,
            log_time_ns,
            payload: payload.into(),
        });
        assert_eq!(viewer.until_data(3).await, expected);
        assert_eq!(channel_data(&viewer.seen()), []);
    }
    for viewer in &new {
        let expected = times.map(|(log_time_ns, payload)| ChannelData {
            channel_id: channel.id(),
            log_time_ns,
            payload: payload.into(),
        });
        assert_eq!(viewer.until_channel_data(3).await, expected);
        assert_eq!(data(&viewer.seen()), []);
    }
    let payload = |viewer: &Viewer| {
        let frames = viewer.recorder.received()[0].messages.clone();
        frames.iter().rfind(|frame| frame.kind() == FrameKind::Binary).unwrap().payload().as_ptr()
    };
    assert!(old.iter().chain(&new).all(|viewer| payload(viewer) == payload(&old[0])));
    // 4. The viewers of the other channel got nothing.
    for viewer in &elsewhere {
        viewer.settle().await;
        assert!(data(&viewer.seen()).is_empty() && channel_data(&viewer.seen()).is_empty());
    }
}

#[tokio::test]
async fn invalid_subscriptions_to_channels_are_answered_with_warnings() {
    let (room, telemetry) = telemetry();
    let one = telemetry.advertise(json_channel("/one")).await.unwrap();
    let two = telemetry.advertise(json_channel("/two")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", V2).await;
    viewer.subscribe_channel(one.id()).await;
    // 1. A second subscription to one channel; an unknown channel; one without a subscription; a channel twice in one
    // request.
    viewer.subscribe_channel(one.id()).await;
    viewer.subscribe_channel(99).await;
    viewer.unsubscribe_channel(two.id()).await;
    let second = two.id();
    viewer.say(format!(r#"{{"op":"subscribe","channels":[{{"id":{second}}},{{"id":{second}}}]}}"#)).await;
    viewer.settle().await;
    let expected = [
        format!("channel {} is subscribed to already", one.id()),
        "there is no channel 99".to_owned(),
        format!("channel {second} is not subscribed to"),
        format!("channel {second} is subscribed to already"),
    ];
    assert_eq!(statuses(&viewer.told()), expected.map(|text| (StatusLevel::Warning, text)));
    // 2. The connection stays, and the valid subscriptions hold.
    one.publish("1").await.unwrap();
    two.publish("2").await.unwrap();
    let ids: Vec<_> = viewer.until_channel_data(2).await.iter().map(|message| message.channel_id).collect();
    assert_eq!(ids, [one.id(), two.id()]);
    // 3. The viewer unsubscribes from one channel, which one request names twice.
    let first = one.id();
    viewer.say(format!(r#"{{"op":"unsubscribe","channelIds":[{first},{first}]}}"#)).await;
    viewer.settle().await;
    assert_eq!(statuses(&viewer.told())[4].1, format!("channel {first} is not subscribed to"));
    assert!(!one.has_subscribers() && two.has_subscribers());
    // 4. A request with a thousand mistakes is answered with a few statuses.
    let many: Vec<_> = (1000..2000).map(|id| id.to_string()).collect();
    viewer.say(format!(r#"{{"op":"unsubscribe","channelIds":[{}]}}"#, many.join(","))).await;
    viewer.until_status(StatusLevel::Warning, "984 more of this kind").await;
    assert_eq!(statuses(&viewer.told()).len(), 5 + 17);
    assert_eq!(viewer.recorder.received().len(), 1);
}

#[tokio::test]
async fn requests_of_the_other_format_are_refused() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let old = Viewer::join(&room, "old", SDK_V1).await;
    let new = Viewer::join(&room, "new", V2).await;
    // 1. Each viewer sends the requests of the other format.
    old.subscribe_channel(channel.id()).await;
    new.subscribe(1, channel.id()).await;
    old.requests.send(Frame::binary(Bytes::from(vec![4; 9]))).await.unwrap();
    old.requests.send(Frame::binary(Bytes::from(vec![5; 9]))).await.unwrap();
    old.settle().await;
    new.settle().await;
    // 2. Each is answered with an error, and nothing else happens.
    let texts = |viewer: &Viewer| statuses(&viewer.told()).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
    let [subscribe, ping, ack] = &texts(&old)[..] else { panic!("{:?}", texts(&old)) };
    assert!(subscribe.contains("invalid JSON") && subscribe.contains("subscriptions"), "{subscribe}");
    assert_eq!((&**ping, &**ack), ("unknown binary opcode 4", "unknown binary opcode 5"));
    let [subscribe] = &texts(&new)[..] else { panic!("{:?}", texts(&new)) };
    assert!(subscribe.contains("invalid JSON") && subscribe.contains("channels"), "{subscribe}");
    assert!(!channel.has_subscribers());
}

#[tokio::test]
async fn a_reset_and_an_unadvertise_end_subscriptions_to_channels() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let gone = telemetry.advertise(json_channel("/gone")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", V2).await;
    viewer.subscribe_channel(channel.id()).await;
    viewer.subscribe_channel(gone.id()).await;
    viewer.settle().await;
    // 1. A channel ends.
    gone.publish("last").await.unwrap();
    gone.unadvertise().await.unwrap();
    viewer.unsubscribe_channel(gone.id()).await;
    viewer.settle().await;
    assert_eq!(statuses(&viewer.told()), []);
    // 2. The instance is reset while its connection stands.
    let mut events = telemetry.session().events();
    let first = telemetry.session().participants()[0].clone();
    viewer.recorder.set_behavior(Behavior::Fail);
    channel.publish("lost").await.unwrap();
    assert_eq!(within(first.closed()).await, EndReason::WriteFailed);
    viewer.recorder.set_behavior(Behavior::Flow);
    while !matches!(within(events.next()).await, Some(SessionEvent::Joined(_))) {}
    viewer.until("fresh initial messages", |seen| seen.len() == 2).await;
    // 3. The new instance has no subscription, and may make one.
    assert_eq!(channel.publish("nobody").await.unwrap(), Published::ToNobody);
    viewer.subscribe_channel(channel.id()).await;
    viewer.settle().await;
    assert_eq!(statuses(&viewer.told()), []);
    channel.publish("again").await.unwrap();
    assert_eq!(viewer.until_channel_data(1).await[0].payload, "again");
}

#[tokio::test]
async fn common_requests_are_answered_alike_in_both_formats() {
    let room = Room::new();
    let telemetry =
        Telemetry::builder(room.clone()).assets(|_| async { Ok(Bytes::from_static(b"mesh")) }).build().unwrap();
    let viewer = Viewer::join(&room, "ada", V2).await;
    // 1. A request for an asset, a service call, a feature that isn't offered, an unreadable request.
    viewer.fetch(1, "package://x").await;
    assert_eq!(viewer.until_asset(1).await, Ok(Bytes::from_static(b"mesh")));
    let call = ServiceCall { service_id: 5, call_id: 6, encoding: "json".into(), payload: Bytes::new() };
    viewer.requests.send(ClientMessage::ServiceCallRequest(call).encode()).await.unwrap();
    viewer.until("failure", |seen| matches!(seen.last(), Some(ServerMessage::ServiceCallFailure(_)))).await;
    viewer.say(r#"{"op":"subscribeConnectionGraph"}"#).await;
    viewer.until_status(StatusLevel::Error, "connection graph").await;
    viewer.say("{").await;
    viewer.until_status(StatusLevel::Error, "invalid JSON").await;
    assert_eq!(viewer.recorder.received().len(), 1);
    drop(telemetry);
}
