//! Announcements that wait, fail, or race with joins and subscriptions.

use super::announcing::contradictions;
use super::*;

const ADVERTISERS: usize = 3;
/// Number of gates; viewers join through each gate one after the other.
const GATES: usize = 6;
/// How many viewers join at each gate.
const JOINS: usize = 40;

#[tokio::test]
async fn an_announcement_waits_for_a_stalled_uplink_and_is_not_lost() {
    let (room, telemetry) = telemetry();
    let mut events = telemetry.session().events();
    let ada = Viewer::join(&room, "ada", SDK_V1).await;
    // 1. The uplink stalls.
    room.emit(RoomEvent::UplinkStalled).await.unwrap();
    while !matches!(within(events.next()).await, Some(SessionEvent::UplinkStalled)) {}
    // 2. A channel is advertised, and the future is dropped before it completes: nobody will ever have its handle.
    {
        let mut given_up = Box::pin(telemetry.advertise(json_channel("/given-up")));
        assert!(futures_util::poll!(&mut given_up).is_pending());
    }
    // 3. Another channel is advertised, and its future is kept.
    let kept = tokio::spawn({
        let telemetry = telemetry.clone();
        async move { telemetry.advertise(json_channel("/kept")).await }
    });
    // 4. A viewer joins meanwhile.
    let bob = Viewer::join(&room, "bob", SDK_V1_1).await;
    assert!(!kept.is_finished());
    // 5. The uplink flows: both viewers know the one channel that exists, and no other.
    room.emit(RoomEvent::UplinkFlowing).await.unwrap();
    let kept = within(kept).await.unwrap().unwrap();
    telemetry.status(StatusLevel::Info, "done", None).await.unwrap();
    for viewer in [&ada, &bob] {
        viewer.until_status(StatusLevel::Info, "done").await;
        assert_eq!(believed(&viewer.seen()), BTreeSet::from([kept.id()]), "{:#?}", viewer.seen());
        assert_eq!(contradictions(&viewer.seen()), [""; 0]);
    }
}

#[tokio::test]
async fn an_announcement_too_large_is_taken_back() {
    let room = Room::new();
    let telemetry = Telemetry::builder(room.clone()).configure(|session| session.queue_bytes(300)).build().unwrap();
    let ada = Viewer::join(&room, "ada", SDK_V1).await;
    // 1. The announcement of a channel is larger than a message may be.
    let large = Schema::new("Large", "jsonschema", "x".repeat(1000));
    let refused = telemetry.advertise(Channel::new("/large", "json").schema(large)).await;
    assert!(matches!(refused, Err(AnnounceError::TooLarge { bytes, .. }) if bytes > 1000));
    let refused = telemetry.status(StatusLevel::Error, "x".repeat(1000), Some("large")).await;
    assert!(matches!(refused, Err(AnnounceError::TooLarge { .. })));
    // 2. A message on a valid channel is too large.
    let channel = telemetry.advertise(Channel::new("/fine", "json")).await.unwrap();
    ada.subscribe(1, channel.id()).await;
    ada.settle().await;
    assert_eq!(channel.publish(vec![0; 1000]).await, Err(PublishError::TooLarge { bytes: 1017 }));
    // 3. No viewer knows the large channels, whether it was present before or joins now.
    let bob = Viewer::join(&room, "bob", SDK_V1).await;
    bob.settle().await;
    for viewer in [&ada, &bob] {
        assert_eq!(believed(&viewer.seen()), BTreeSet::from([channel.id()]));
        assert_eq!(contradictions(&viewer.seen()), [""; 0]);
        assert_eq!(statuses(&viewer.told()), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn joins_that_race_with_thousands_of_changes_are_told_of_each_channel_once() {
    let room = Room::new();
    // A short log, so that announcements also find it full.
    let telemetry = Telemetry::builder(room.clone()).configure(|session| session.log_capacity(4)).build().unwrap();
    // 1. Advertisers add and remove channels, in every way a channel can end, until all have joined. They keep the
    // channels that they advertise while a viewer joins: a viewer that missed such a channel would never learn of it.
    let joined = Arc::new(AtomicUsize::new(0));
    let advertisers: Vec<_> =
        (0..ADVERTISERS).map(|n| tokio::spawn(churn(telemetry.clone(), n, Arc::clone(&joined)))).collect();
    // 2. Meanwhile viewers of both forms join one after the other through each gate, and some are reset.
    let gates: Vec<_> = (0..GATES)
        .map(|gate| {
            let (room, joined) = (room.clone(), Arc::clone(&joined));
            tokio::spawn(async move {
                let mut viewers = Vec::new();
                for n in 0..JOINS {
                    let protocol = if n % 2 == 0 { SDK_V1 } else { SDK_V1_1 };
                    let viewer = Viewer::join(&room, &format!("v{gate}-{n}"), protocol).await;
                    if n % 10 == 0 {
                        viewer.recorder.set_behavior(Behavior::Fail);
                        viewer.recorder.wait_for(|received| received.last().is_some_and(|stream| stream.closed)).await;
                        viewer.recorder.set_behavior(Behavior::Flow);
                    }
                    viewers.push(viewer);
                    joined.fetch_add(1, Ordering::Relaxed);
                }
                viewers
            })
        })
        .collect();
    let mut viewers = Vec::new();
    for gate in gates {
        viewers.extend(within(gate).await.unwrap());
    }
    let mut channels = Vec::new();
    for advertiser in advertisers {
        channels.extend(within(advertiser).await.unwrap());
    }
    // 3. After the last announcement all viewers know exactly the channels that exist.
    let exist: BTreeSet<u64> = channels.iter().map(AdvertisedChannel::id).collect();
    telemetry.status(StatusLevel::Info, "all is said", Some("end")).await.unwrap();
    for viewer in viewers {
        let is_last = |received: &[Received<Frame>]| {
            let last = received.last().and_then(|stream| stream.messages.last());
            last.is_some_and(|frame| text(frame).contains("all is said"))
        };
        within(viewer.recorder.wait_for(is_last)).await;
        let seen = viewer.seen();
        assert_eq!(believed(&seen), exist, "{seen:#?}");
        assert_eq!(contradictions(&seen), [""; 0]);
        assert!(matches!(seen[0], ServerMessage::ServerInfo(_)));
    }
    drop(channels);
}

/// Advertises one channel after the other until all viewers have joined, and ends most of them.
async fn churn(telemetry: Telemetry, n: usize, joined: Arc<AtomicUsize>) -> Vec<AdvertisedChannel> {
    // Three of four channels end again. Decoding each viewer's whole stream takes most of the time.
    let rounds = if std::env::var("LANECAST_TEST_SIZE").is_ok_and(|size| size == "full") { 2000 } else { 250 };
    let mut kept = Vec::new();
    for round in 0.. {
        let joins = joined.load(Ordering::Relaxed);
        // A minimum of rounds, in case the viewers were fast: enough has to change for the test to show anything.
        if joins == GATES * JOINS && round >= rounds {
            break;
        }
        let channel = telemetry.advertise(json_channel(&format!("/{n}/{round}"))).await.unwrap();
        match round % 4 {
            0 => channel.unadvertise().await.unwrap(),
            1 => drop(channel),
            // Dropped before it completes, at once or a little later.
            2 => drop(tokio::time::timeout(Duration::ZERO, telemetry.advertise(json_channel("/gone"))).await),
            // At most one channel for each join is kept.
            _ if kept.len() <= joins => kept.push(channel),
            _ => {}
        }
    }
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn subscriptions_that_race_with_an_unadvertise_leave_nothing_behind() {
    let (room, telemetry) = telemetry();
    let mut viewers = Vec::new();
    for n in 0..8 {
        viewers.push(Viewer::join(&room, &format!("v{n}"), SDK_V1).await);
    }
    for round in 0..50 {
        // 1. All viewers subscribe while the channel ends.
        let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
        let id = channel.id();
        let gone = tokio::spawn({
            let channel = channel.clone();
            async move {
                let _ = channel.publish("{}").await;
                channel.unadvertise().await.unwrap();
            }
        });
        for viewer in &viewers {
            viewer.subscribe(round, id).await;
        }
        within(gone).await.unwrap();
        // 2. The id is free, whichever came first: the same id works for the next channel.
        let next = telemetry.advertise(json_channel("/next")).await.unwrap();
        for viewer in &viewers {
            viewer.subscribe(round, next.id()).await;
            viewer.settle().await;
        }
        assert_eq!(next.subscribers(), viewers.len());
        next.unadvertise().await.unwrap();
    }
    // 3. No viewer has caused a warning.
    for viewer in &viewers {
        assert_eq!(statuses(&viewer.told()), []);
    }
}
