//! Published messages and their subscribers.

use super::*;

#[tokio::test]
async fn each_subscriber_gets_its_own_id_and_all_share_the_payload() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let other = telemetry.advertise(json_channel("/other")).await.unwrap();
    // 1. Two viewers subscribe under different ids, a third to another channel.
    let [ada, bob, eve] = [
        Viewer::join(&room, "ada", SDK_V1).await,
        Viewer::join(&room, "bob", SDK_V1_1).await,
        Viewer::join(&room, "eve", SDK_V1).await,
    ];
    ada.subscribe(7, channel.id()).await;
    bob.subscribe(4_000_000_000, channel.id()).await;
    eve.subscribe(7, other.id()).await;
    for viewer in [&ada, &bob, &eve] {
        viewer.settle().await;
    }
    assert_eq!(channel.subscribers(), 2);

    // 2. Messages are published with their time, by each method.
    assert_eq!(channel.publish_at(42, &b"{\"n\":1}"[..]).await.unwrap(), Published::Sent);
    assert_eq!(channel.try_publish_at(43, &b"{\"n\":2}"[..]).unwrap(), Published::Sent);
    assert_eq!(
        channel.publish_with(|| Sample { log_time_ns: 44, payload: "{\"n\":3}" }).await.unwrap(),
        Published::Sent
    );
    assert_eq!(channel.publish("{\"n\":4}").await.unwrap(), Published::Sent);
    assert_eq!(channel.try_publish("{\"n\":5}").unwrap(), Published::Sent);

    // 3. Both viewers get all of them in order, under their own id.
    for (viewer, id) in [(&ada, 7), (&bob, 4_000_000_000)] {
        let messages = viewer.until_data(5).await;
        assert!(messages.iter().all(|message| message.subscription_id == id));
        let texts: Vec<_> = messages.iter().map(|message| message.payload.clone()).collect();
        assert_eq!(texts, ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}", "{\"n\":4}", "{\"n\":5}"]);
        assert_eq!(messages[..3].iter().map(|message| message.log_time_ns).collect::<Vec<_>>(), [42, 43, 44]);
        assert!(messages[3].log_time_ns > 1_600_000_000_000_000_000, "the time of now");
    }
    // 4. Both share one payload.
    let payload = |viewer: &Viewer| {
        let frames = viewer.recorder.received()[0].messages.clone();
        frames.iter().rfind(|frame| frame.kind() == FrameKind::Binary).unwrap().payload().as_ptr()
    };
    assert_eq!(payload(&ada), payload(&bob));
    // 5. The viewer of the other channel got nothing.
    eve.settle().await;
    assert_eq!(data(&eve.told()), []);
}

#[tokio::test]
async fn publishing_to_nobody_does_nothing() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    viewer.settle().await;
    let before = telemetry.session().stats().account.offered;
    // 1. The channel has no subscriber: the payload isn't even computed.
    assert!(!channel.has_subscribers());
    let computed = channel.publish_with(|| -> Sample<Bytes> { unreachable!("nobody wants it") }).await;
    assert_eq!(computed.unwrap(), Published::ToNobody);
    assert_eq!(channel.try_publish_with(|| -> Sample<Bytes> { unreachable!() }).unwrap(), Published::ToNobody);
    // 2. A viewer subscribes, and unsubscribes again.
    viewer.subscribe(1, channel.id()).await;
    viewer.settle().await;
    assert!(channel.has_subscribers());
    viewer.unsubscribe(1).await;
    viewer.settle().await;
    assert!(!channel.has_subscribers());
    assert_eq!(channel.publish("{}").await.unwrap(), Published::ToNobody);
    // 3. Only the answers to the three probes were offered.
    viewer.settle().await;
    assert_eq!(telemetry.session().stats().account.offered - before, 3);
    assert_eq!(data(&viewer.told()), []);
}

#[tokio::test]
async fn a_full_log_returns_the_payload() {
    let room = Room::new();
    let telemetry = Telemetry::builder(room.clone()).build().unwrap();
    let mut events = telemetry.session().events();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    viewer.subscribe(1, channel.id()).await;
    viewer.settle().await;
    room.emit(RoomEvent::UplinkStalled).await.unwrap();
    while !matches!(within(events.next()).await, Some(SessionEvent::UplinkStalled)) {}
    let Err(TryPublishError::Full(payload)) = channel.try_publish("{}") else { panic!("not full") };
    assert_eq!(payload, "{}");
    // The payload is published once the log has capacity.
    let published = tokio::spawn(async move { channel.publish(payload).await });
    room.emit(RoomEvent::UplinkFlowing).await.unwrap();
    assert_eq!(within(published).await.unwrap(), Ok(Published::Sent));
    assert_eq!(viewer.until_data(1).await[0].payload, "{}");
}

#[tokio::test]
async fn publishing_works_from_a_thread_of_its_own() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    viewer.subscribe(1, channel.id()).await;
    viewer.settle().await;
    let count = Arc::new(AtomicUsize::new(0));
    let published = Arc::clone(&count);
    let (stopped, stop) = oneshot::channel();
    let going = Arc::new(AtomicBool::new(true));
    let on = Arc::clone(&going);
    std::thread::spawn(move || {
        while on.load(Ordering::Relaxed) {
            let n = published.load(Ordering::Relaxed);
            if channel.try_publish(n.to_string()).is_ok() {
                published.store(n + 1, Ordering::Relaxed);
            }
            std::thread::yield_now();
        }
        stopped.send(channel).unwrap();
    });
    let messages = viewer.until_data(500).await;
    going.store(false, Ordering::Relaxed);
    let _channel = within(stop).await.unwrap();
    for (n, message) in messages.iter().enumerate() {
        assert_eq!(message.payload, n.to_string());
    }
}
