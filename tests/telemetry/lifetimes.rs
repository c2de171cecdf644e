//! How subscriptions, channels and sessions end.

use super::*;

#[tokio::test]
async fn an_unadvertise_ends_subscriptions_and_publishing() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    viewer.subscribe(7, channel.id()).await;
    viewer.settle().await;
    // 1. A message is published, then the channel ends.
    channel.publish("last").await.unwrap();
    channel.unadvertise().await.unwrap();
    // 2. A late publish is an error; a second unadvertise isn't.
    assert_eq!(channel.publish("late").await, Err(PublishError::Unadvertised));
    assert_eq!(channel.try_publish("late"), Err(TryPublishError::Rejected(PublishError::Unadvertised)));
    assert!(!channel.has_subscribers());
    channel.clone().unadvertise().await.unwrap();
    // 3. The message came before the unadvertise, and nothing behind it.
    viewer.settle().await;
    let told = viewer.told();
    assert!(
        matches!(&told[told.len() - 2..], [ServerMessage::MessageData(_), ServerMessage::Unadvertise(_)]),
        "{told:?}"
    );
    // 4. The viewer's subscription id is free again. Subscribing to the ended channel comes too late, and causes no
    // status.
    let next = telemetry.advertise(json_channel("/one")).await.unwrap();
    assert_ne!(next.id(), channel.id());
    viewer.subscribe(7, next.id()).await;
    viewer.subscribe(8, channel.id()).await;
    viewer.settle().await;
    assert_eq!(statuses(&viewer.told()), []);
    next.publish("next").await.unwrap();
    assert_eq!(viewer.until_data(2).await[1].payload, "next");
    // 5. Dropping the last handle unadvertises as well.
    let id = next.id();
    let clone = next.clone();
    drop(next);
    assert!(clone.has_subscribers());
    drop(clone);
    let gone = |seen: &[ServerMessage]| match seen.last() {
        Some(ServerMessage::Unadvertise(gone)) => gone.channel_ids == [id],
        _ => false,
    };
    viewer.until("the unadvertise", gone).await;
}

#[tokio::test]
async fn a_reset_ends_subscriptions() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    viewer.subscribe(7, channel.id()).await;
    viewer.settle().await;
    let mut events = telemetry.session().events();
    let first = telemetry.session().participants()[0].clone();
    // 1. A write fails: the instance is reset while its connection stands, and comes back.
    viewer.recorder.set_behavior(Behavior::Fail);
    channel.publish("lost").await.unwrap();
    assert_eq!(within(first.closed()).await, EndReason::WriteFailed);
    viewer.recorder.set_behavior(Behavior::Flow);
    while !matches!(within(events.next()).await, Some(SessionEvent::Joined(_))) {}
    // 2. The viewer gets everything afresh, on a stream of its own, and has no subscription.
    viewer.until("fresh initial messages", |seen| seen.len() == 2).await;
    assert!(viewer.recorder.received().len() >= 2);
    assert_eq!(believed(&viewer.seen()), BTreeSet::from([channel.id()]));
    assert_eq!(channel.publish("nobody").await.unwrap(), Published::ToNobody);
    // 3. Its old subscription id is unknown, and may be used for a new subscription. (Requests come on the same
    // stream.)
    viewer.unsubscribe(7).await;
    viewer.subscribe(7, channel.id()).await;
    viewer.settle().await;
    assert_eq!(statuses(&viewer.told()), [(StatusLevel::Warning, "there is no subscription 7".to_owned())]);
    channel.publish("again").await.unwrap();
    assert_eq!(viewer.until_data(1).await[0].payload, "again");
}

#[tokio::test]
async fn a_reconnect_starts_without_subscriptions() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    viewer.subscribe(7, channel.id()).await;
    viewer.settle().await;
    // 1. The same identity comes back on a new connection while the old one stands; the old disconnect comes late.
    let presence = Presence::new("ada".parse().unwrap(), "PA_2".parse().unwrap(), 2).with_dialect(dialect(SDK_V1));
    room.join(presence.clone()).await.unwrap();
    let again = Viewer {
        recorder: viewer.recorder.clone(),
        requests: room.open_incoming(&presence.identity, &presence.sid).await.unwrap(),
        format: WireFormat::V1,
    };
    again.recorder.wait_for(|received| received.len() == 2 && received[1].messages.len() == 2).await;
    room.leave(&presence.identity, &"PA_ada".parse().unwrap()).await.unwrap();
    again.settle().await;
    // 2. No channel has a subscriber; the new connection's requests are its own.
    assert!(!channel.has_subscribers());
    again.subscribe(8, channel.id()).await;
    again.settle().await;
    channel.publish("{}").await.unwrap();
    assert_eq!(again.until_data(1).await[0].subscription_id, 8);
    // 3. The viewer leaves, and no channel has a subscriber.
    room.leave(&presence.identity, &presence.sid).await.unwrap();
    let participant = telemetry.session().participant(&presence.identity);
    if let Some(participant) = participant {
        within(participant.closed()).await;
    }
    within(async {
        while channel.has_subscribers() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn every_call_after_close_returns_closed() {
    let (room, telemetry) = telemetry();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    viewer.subscribe(1, channel.id()).await;
    viewer.settle().await;
    channel.publish("delivered").await.unwrap();
    let report = within(telemetry.close(Duration::from_secs(5))).await.unwrap();
    // 1. Everything published was delivered: two initial messages, the probe's answer, the message.
    assert_eq!(report.account.delivered, 4);
    assert_eq!(data(&viewer.told()).len(), 1);
    // 2. Every call returns that the session is closed, and dropping is harmless.
    assert_eq!(channel.publish("late").await, Err(PublishError::Closed));
    assert_eq!(channel.try_publish("late"), Err(TryPublishError::Rejected(PublishError::Closed)));
    assert_eq!(channel.unadvertise().await, Ok(()));
    assert!(matches!(telemetry.advertise(json_channel("/two")).await, Err(AnnounceError::Closed)));
    assert_eq!(telemetry.status(StatusLevel::Info, "late", None).await, Err(AnnounceError::Closed));
    assert_eq!(within(telemetry.close(Duration::ZERO)).await.unwrap(), report);
}

#[test]
fn dropping_everything_ends_everything() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        for stalled in [false, true] {
            let (room, telemetry) = telemetry();
            let mut events = telemetry.session().events();
            let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
            let viewer = Viewer::join(&room, "ada", SDK_V1).await;
            viewer.subscribe(1, channel.id()).await;
            viewer.settle().await;
            if stalled {
                // 1. The announcer is waiting for capacity in the log.
                room.emit(RoomEvent::UplinkStalled).await.unwrap();
                while !matches!(within(events.next()).await, Some(SessionEvent::UplinkStalled)) {}
                let mut waits = Box::pin(telemetry.advertise(json_channel("/two")));
                assert!(futures_util::poll!(&mut waits).is_pending());
                tokio::task::yield_now().await;
            }
            // 2. All handles are dropped.
            drop(telemetry);
            assert!(channel.has_subscribers(), "a channel keeps its session");
            drop(channel);
            // 3. The session is cancelled, and no task is left.
            while !matches!(within(events.next()).await, Some(SessionEvent::Closed) | None) {}
            within(async {
                while tokio::runtime::Handle::current().metrics().num_alive_tasks() > before {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    });
}

/// Checks at compile time that the future of each operation may be moved to another thread.
#[tokio::test]
async fn the_future_of_every_operation_can_be_spawned() {
    let (_room, telemetry) = telemetry();
    let told = Arc::new(Notify::new());
    let tell = Arc::clone(&told);
    tokio::spawn(async move {
        let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
        channel.publish("{}").await.unwrap();
        channel.unadvertise().await.unwrap();
        telemetry.remove_status([String::from("x")]).await.unwrap();
        telemetry.close(Duration::from_secs(1)).await.unwrap();
        tell.notify_one();
    });
    within(told.notified()).await;
}
