//! Requests that cross the end of their channel on the way are no mistakes, and cause no warning.

use super::*;

#[tokio::test]
async fn requests_that_cross_the_end_of_their_channel_cause_no_warning() {
    let (room, telemetry) = telemetry();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    let newer = Viewer::join(&room, "bob", V2).await;
    for round in 0..3 {
        let first = 10 * round;
        let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
        let id = channel.id();
        // 1. Two viewers subscribe, the channel ends, and they answer that with an unsubscribe, as viewers do.
        viewer.subscribe(first, id).await;
        newer.subscribe_channel(id).await;
        viewer.settle().await;
        newer.settle().await;
        channel.unadvertise().await.unwrap();
        for viewer in [&viewer, &newer] {
            viewer.until("the end", |seen| believed(seen).is_empty()).await;
        }
        viewer.unsubscribe(first).await;
        newer.unsubscribe_channel(id).await;
        // 2. A subscription comes too late, and is ended when the viewer learns of the channel's end.
        viewer.subscribe(first + 1, id).await;
        newer.subscribe_channel(id).await;
        viewer.unsubscribe(first + 1).await;
        newer.unsubscribe_channel(id).await;
        for viewer in [&viewer, &newer] {
            viewer.settle().await;
            assert_eq!(statuses(&viewer.told()), []);
        }
    }
    // 3. What was never valid still causes a warning: a second end of the same subscription, an unknown subscription
    // id, an unknown channel.
    viewer.unsubscribe(0).await;
    viewer.unsubscribe(99).await;
    viewer.subscribe(7, 1000).await;
    newer.unsubscribe_channel(1000).await;
    viewer.settle().await;
    newer.settle().await;
    let texts = |viewer: &Viewer| statuses(&viewer.told()).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
    let expected =
        ["there is no subscription 0", "there is no subscription 99", "subscription 7: there is no channel 1000"];
    assert_eq!(texts(&viewer), expected);
    assert_eq!(texts(&newer), ["channel 1000 is not subscribed to"]);
}

#[tokio::test]
async fn unsubscribing_from_thousands_of_ended_channels_causes_no_warning() {
    const CHANNELS: u32 = 5000;
    let (room, telemetry) = telemetry();
    let mut channels = Vec::new();
    for n in 0..CHANNELS {
        channels.push(telemetry.advertise(Channel::new(format!("/{n}"), "json")).await.unwrap());
    }
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    let wanted: Vec<_> = (0..CHANNELS).map(|n| format!(r#"{{"id":{n},"channelId":{}}}"#, n + 1)).collect();
    viewer.say(format!(r#"{{"op":"subscribe","subscriptions":[{}]}}"#, wanted.join(","))).await;
    viewer.settle().await;
    assert!(channels.iter().all(AdvertisedChannel::has_subscribers));
    // 1. All channels end. 2. The viewer unsubscribes from all of them in one request.
    for channel in channels {
        within(channel.unadvertise()).await.unwrap();
    }
    let ids: Vec<_> = (0..CHANNELS).map(|n| n.to_string()).collect();
    viewer.say(format!(r#"{{"op":"unsubscribe","subscriptionIds":[{}]}}"#, ids.join(","))).await;
    viewer.settle().await;
    assert_eq!(statuses(&viewer.told()), []);
}
