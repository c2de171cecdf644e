//! Which channels are announced to viewers: each once, in messages that any viewer can read, and no refused ones.

use super::*;

/// Contradictions in what a viewer received: ends of channels that it doesn't know, and channels announced twice.
pub(super) fn contradictions(seen: &[ServerMessage]) -> Vec<String> {
    let (mut known, mut wrong) = (BTreeSet::new(), Vec::new());
    for message in seen {
        match message {
            ServerMessage::ServerInfo(_) => known.clear(),
            ServerMessage::Advertise(advertise) => {
                let twice = advertise.channels.iter().filter(|channel| !known.insert(channel.id));
                wrong.extend(twice.map(|channel| format!("channel {} is told twice", channel.id)));
            }
            ServerMessage::Unadvertise(gone) => {
                let unknown = gone.channel_ids.iter().filter(|id| !known.remove(id));
                wrong.extend(unknown.map(|id| format!("channel {id} ends unknown")));
            }
            _ => {}
        }
    }
    wrong
}

async fn set_uplink(room: &Room, telemetry: &Telemetry, stalled: bool) {
    let mut events = telemetry.session().events();
    room.emit(if stalled { RoomEvent::UplinkStalled } else { RoomEvent::UplinkFlowing }).await.unwrap();
    let is_due = |event: &SessionEvent| match event {
        SessionEvent::UplinkStalled => stalled,
        SessionEvent::UplinkFlowing => !stalled,
        _ => false,
    };
    while !within(events.next()).await.is_some_and(|event| is_due(&event)) {}
}

#[tokio::test]
async fn a_joiner_is_told_once_of_a_channel_whose_announcement_waits() {
    let (room, telemetry) = telemetry();
    let early = Viewer::join(&room, "early", SDK_V1).await;
    let early_table = Viewer::join(&room, "early-table", SDK_V1_1).await;
    // 1. The log takes nothing; a channel is advertised, and its announcement waits.
    set_uplink(&room, &telemetry, true).await;
    let advertising = tokio::spawn({
        let telemetry = telemetry.clone();
        async move { telemetry.advertise(json_channel("/one")).await.unwrap() }
    });
    tokio::task::yield_now().await;
    // 2. Viewers of each form join meanwhile: they don't wait behind the announcement.
    let mut viewers = vec![early, early_table];
    for (name, protocol) in [("a", SDK_V1), ("b", SDK_V1_1), ("c", V2), ("d", V2_3)] {
        viewers.push(Viewer::join(&room, name, protocol).await);
    }
    assert!(!advertising.is_finished());
    // 3. The log takes the announcement.
    set_uplink(&room, &telemetry, false).await;
    let channel = within(advertising).await.unwrap();
    for viewer in &viewers {
        let seen = viewer.until("the channel", |seen| believed(seen).contains(&channel.id())).await;
        assert_eq!(contradictions(&seen), [""; 0], "{seen:#?}");
    }
    // 4. The channel ends: each viewer is told so, once.
    channel.unadvertise().await.unwrap();
    for viewer in &viewers {
        let seen = viewer.until("the end", |seen| believed(seen).is_empty()).await;
        assert_eq!(contradictions(&seen), [""; 0], "{seen:#?}");
    }
}

#[tokio::test]
async fn a_joiner_is_not_told_of_the_end_of_a_channel_it_never_knew() {
    let (room, telemetry) = telemetry();
    let early = Viewer::join(&room, "early", SDK_V1).await;
    let kept = telemetry.advertise(json_channel("/kept")).await.unwrap();
    let gone = telemetry.advertise(json_channel("/gone")).await.unwrap();
    // 1. The log takes nothing; a channel ends, and the announcement waits.
    set_uplink(&room, &telemetry, true).await;
    let leaving = tokio::spawn(async move { gone.unadvertise().await });
    tokio::task::yield_now().await;
    // 2. Viewers join meanwhile.
    let mut viewers = vec![early];
    for (name, protocol) in [("a", SDK_V1), ("b", SDK_V1_1), ("c", V2), ("d", V2_3)] {
        viewers.push(Viewer::join(&room, name, protocol).await);
    }
    assert!(!leaving.is_finished());
    // 3. The log takes the announcement: only viewers that know the channel are told of its end.
    set_uplink(&room, &telemetry, false).await;
    within(leaving).await.unwrap().unwrap();
    telemetry.status(StatusLevel::Info, "done", None).await.unwrap();
    for viewer in &viewers {
        viewer.until_status(StatusLevel::Info, "done").await;
        let seen = viewer.seen();
        assert_eq!(contradictions(&seen), [""; 0], "{seen:#?}");
        assert_eq!(believed(&seen), BTreeSet::from([kept.id()]));
    }
}

#[tokio::test]
async fn a_joiner_is_told_once_of_a_status_whose_replacement_waits() {
    let (room, telemetry) = telemetry();
    telemetry.status(StatusLevel::Warning, "warm", Some("temperature")).await.unwrap();
    telemetry.status(StatusLevel::Warning, "ajar", Some("door")).await.unwrap();
    let early = Viewer::join(&room, "early", SDK_V1).await;
    // 1. The log takes nothing; a status is to replace another.
    set_uplink(&room, &telemetry, true).await;
    let changing = tokio::spawn({
        let telemetry = telemetry.clone();
        async move { telemetry.status(StatusLevel::Error, "hot", Some("temperature")).await }
    });
    tokio::task::yield_now().await;
    // 2. Another viewer joins meanwhile.
    let late = Viewer::join(&room, "late", SDK_V1_1).await;
    assert!(!changing.is_finished());
    set_uplink(&room, &telemetry, false).await;
    within(changing).await.unwrap().unwrap();
    // 3. Both viewers received the same. A viewer that joins now gets the current statuses, in the order in which their
    // ids were first announced.
    for viewer in [&early, &late] {
        viewer.until_status(StatusLevel::Error, "hot").await;
        let texts: Vec<_> = statuses(&viewer.seen()).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["warm", "ajar", "hot"]);
    }
    let last = Viewer::join(&room, "last", SDK_V1).await;
    last.settle().await;
    let texts: Vec<_> = statuses(&last.told()).into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["hot", "ajar"]);
}

#[tokio::test]
async fn a_refused_channel_is_never_announced() {
    let room = Room::new();
    let telemetry = Telemetry::builder(room.clone()).configure(|session| session.queue_bytes(600)).build().unwrap();
    let viewers = [Viewer::join(&room, "ada", SDK_V1).await, Viewer::join(&room, "bob", SDK_V1_1).await];
    // 1. A channel larger than a message may be is refused; the error names it.
    let large = Schema::new("Large", "jsonschema", "x".repeat(1000));
    let refused = telemetry.advertise(Channel::new("/large", "json").schema(large)).await.unwrap_err();
    assert!(matches!(&refused, AnnounceError::TooLarge { bytes, limit: 600, .. } if *bytes > 1000));
    assert!(refused.to_string().contains("\"/large\""), "{refused}");
    // 2. A topic that another channel has is refused, and so is a channel that can't be shown.
    let one = telemetry.advertise(Channel::new("/one", "json")).await.unwrap();
    let refused = telemetry.advertise(Channel::new("/one", "protobuf")).await.unwrap_err();
    assert_eq!(refused, AnnounceError::DuplicateTopic { topic: "/one".into(), id: one.id() });
    let refused = telemetry.advertise(Channel::new("", "json")).await.unwrap_err();
    assert_eq!(refused, AnnounceError::EmptyTopic);
    let refused = telemetry.advertise(Channel::new("/two", "")).await.unwrap_err();
    assert_eq!(refused, AnnounceError::EmptyEncoding { topic: "/two".into() });
    // 3. A topic is free once its channel has ended, in whatever way.
    one.unadvertise().await.unwrap();
    let again = telemetry.advertise(Channel::new("/one", "json")).await.unwrap();
    drop(again);
    let last = telemetry.advertise(Channel::new("/one", "json")).await.unwrap();
    // 4. No viewer received anything about the refused channels, neither an announcement nor an end.
    telemetry.status(StatusLevel::Info, "done", None).await.unwrap();
    for viewer in &viewers {
        viewer.until_status(StatusLevel::Info, "done").await;
        let seen = viewer.seen();
        assert_eq!(contradictions(&seen), [""; 0], "{seen:#?}");
        assert_eq!(believed(&seen), BTreeSet::from([last.id()]));
        let told = seen
            .iter()
            .filter(|message| matches!(message, ServerMessage::Advertise(_) | ServerMessage::Unadvertise(_)));
        assert_eq!(told.count(), 5, "{seen:#?}");
    }
}

#[tokio::test]
async fn a_topic_is_free_once_its_end_was_requested() {
    let (room, telemetry) = telemetry();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    // 1. A channel's end is requested, and waits in the queue behind another channel of its topic.
    let one = telemetry.advertise(json_channel("/one")).await.unwrap();
    let mut other = Box::pin(telemetry.advertise(json_channel("/one")));
    assert!(futures_util::poll!(&mut other).is_pending());
    let mut leaving = Box::pin(one.unadvertise());
    assert!(futures_util::poll!(&mut leaving).is_pending());
    // 2. The first channel ends before the second begins.
    let other = within(other).await.unwrap();
    within(leaving).await.unwrap();
    let seen = viewer.until("the second", |seen| believed(seen) == BTreeSet::from([other.id()])).await;
    assert_eq!(contradictions(&seen), [""; 0]);
    assert!(matches!(&seen[2], ServerMessage::Unadvertise(gone) if gone.channel_ids == [one.id()]), "{seen:#?}");
}

#[tokio::test]
async fn channels_are_announced_in_messages_of_limited_size() {
    const CHANNELS: usize = 1050;
    /// The schema's size, which puts a channel into a message of its own.
    const LARGE: usize = 300 << 10;
    let (room, telemetry) = telemetry();
    // 1. There are many small channels of one schema, a large one, and some of medium size.
    let mut channels = Vec::new();
    for n in 0..CHANNELS {
        channels.push(telemetry.advertise(json_channel(&format!("/{n}"))).await.unwrap());
        if n == 500 {
            let large = Schema::new("Large", "protobuf", vec![7; LARGE]);
            channels.push(telemetry.advertise(Channel::new("/large", "protobuf").schema(large)).await.unwrap());
        }
    }
    for n in 0..8_u8 {
        let schema = Schema::new(format!("Middling{n}"), "protobuf", vec![n; 60 << 10]);
        channels.push(telemetry.advertise(Channel::new(format!("/m{n}"), "protobuf").schema(schema)).await.unwrap());
    }
    // 2. Viewers of each form get all channels, in several messages.
    for (name, protocol) in [("a", SDK_V1), ("b", SDK_V1_1), ("c", V2), ("d", V2_3)] {
        let viewer = Viewer::join(&room, name, protocol).await;
        viewer.settle().await;
        let seen = viewer.told();
        assert_eq!(believed(&seen), channels.iter().map(AdvertisedChannel::id).collect());
        assert_eq!(contradictions(&seen), [""; 0]);
        let mut alone = 0;
        for (message, frame) in seen.iter().zip(&viewer.recorder.received()[0].messages) {
            let ServerMessage::Advertise(Advertise { channels }) = message else { continue };
            assert!(channels.len() <= 100, "{}", channels.len());
            if frame.len() > 256 << 10 {
                assert_eq!(channels.iter().map(|channel| &channel.topic).collect::<Vec<_>>(), ["/large"]);
                alone += 1;
            }
        }
        assert_eq!(alone, 1);
        // 3. There are no more messages than needed: those before the large channel, its own, and those that follow.
        assert!(seen.len() <= 1 + 6 + 1 + 6 + 4, "{}", seen.len());
    }
}

#[tokio::test]
async fn a_schema_in_a_table_counts_once_for_a_message() {
    let (room, telemetry) = telemetry();
    let shared = Arc::new(Schema::new("Shared", "protobuf", vec![7; 150 << 10]));
    let mut channels = Vec::new();
    for n in 0..50 {
        let channel = Channel::new(format!("/{n}"), "protobuf").schema(Arc::clone(&shared));
        channels.push(telemetry.advertise(channel).await.unwrap());
    }
    let advertisements =
        |seen: &[ServerMessage]| seen.iter().filter(|message| matches!(message, ServerMessage::Advertise(_))).count();
    let table = Viewer::join(&room, "table", SDK_V1_1).await;
    table.settle().await;
    assert_eq!(advertisements(&table.told()), 1);
    // Where the schema is repeated in each channel, it counts each time.
    let plain = Viewer::join(&room, "plain", SDK_V1).await;
    plain.settle().await;
    assert_eq!(advertisements(&plain.told()), 50);
}

// 1. Most viewers are behind, and publishers are held: an announcement waits, and a publisher gets its message back. 2.
// Another viewer joins, is told of the channel that there is, subscribes, and is answered. 3. The others catch up: the
// announcement reaches everybody.
#[tokio::test]
async fn an_announcement_waits_while_publishers_are_held_and_requests_go_on() {
    let room = Room::new();
    let hold = lanecast::Hold::default().at_least(3).patience(Duration::from_secs(3600));
    let telemetry = Telemetry::builder(room.clone())
        .configure(|session| session.queue_capacity(16).log_capacity(4).overload(hold))
        .build()
        .unwrap();
    let channel = telemetry.advertise(json_channel("/one")).await.unwrap();
    let mut behind = Vec::new();
    for name in ["ada", "bob", "eve"] {
        let viewer = Viewer::join(&room, name, SDK_V1).await;
        viewer.subscribe(1, channel.id()).await;
        viewer.settle().await;
        viewer.recorder.set_behavior(Behavior::Stall { capacity: 1 });
        behind.push(viewer);
    }
    while !telemetry.session().stats().publishers_held {
        within(channel.publish(r#"{"n":1}"#)).await.unwrap();
        common::settle().await;
    }
    assert!(matches!(channel.try_publish("late"), Err(TryPublishError::Full(back)) if back == "late"));
    let announcing = tokio::spawn({
        let telemetry = telemetry.clone();
        async move { telemetry.advertise(json_channel("/two")).await }
    });
    common::settle().await;

    let late = Viewer::join(&room, "late", SDK_V1).await;
    late.until("the channel", |seen| believed(seen).len() == 1).await;
    late.subscribe(1, channel.id()).await;
    late.settle().await;
    assert_eq!(channel.subscribers(), 4);
    assert!(!announcing.is_finished());

    behind.iter().for_each(|viewer| viewer.recorder.set_behavior(Behavior::Flow));
    let _two = within(announcing).await.unwrap().unwrap();
    for viewer in behind.iter().chain([&late]) {
        let seen = viewer.until("both channels", |seen| believed(seen).len() == 2).await;
        assert_eq!(contradictions(&seen), [""; 0]);
    }
    assert_eq!(telemetry.session().stats().resets.total(), 0);
}
