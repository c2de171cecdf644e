//! The initial messages of a viewer, and the announcements that follow.

use super::*;

#[tokio::test]
async fn initial_messages_come_first_and_in_order() {
    let (room, telemetry) = telemetry();
    // 1. The server has nothing to announce but its name.
    let early = Viewer::join(&room, "early", SDK_V1).await;
    early.settle().await;
    assert_eq!(early.told().len(), 1);

    // 2. There are two channels with one schema, a lasting status, a transient one, one that is replaced and one that
    // is removed.
    let one = telemetry.advertise(json_channel("/one")).await.unwrap();
    let two = telemetry.advertise(json_channel("/two")).await.unwrap();
    telemetry.status(StatusLevel::Warning, "hot", Some("temperature")).await.unwrap();
    telemetry.status(StatusLevel::Info, "hello", None).await.unwrap();
    telemetry.status(StatusLevel::Error, "door open", Some("door")).await.unwrap();
    telemetry.status(StatusLevel::Error, "too hot", Some("temperature")).await.unwrap();
    telemetry.remove_status(["door"]).await.unwrap();

    // 3. Viewers of each protocol join: they get serverInfo, an advertise in their form, and the lasting status.
    let protocols = [
        ("a", "foxglove.websocket.v1", false),
        ("b", SDK_V1, false),
        ("c", SDK_V1_1, true),
        ("d", V2, false),
        ("e", V2_3, true),
    ];
    for (name, protocol, table) in protocols {
        let viewer = Viewer::join(&room, name, protocol).await;
        viewer.settle().await;
        let frames = viewer.recorder.received()[0].messages.clone();
        let [info, advertise, status] = [&frames[0], &frames[1], &frames[2]]
            .map(|frame| serde_json::from_str::<serde_json::Value>(&text(frame)).unwrap());
        assert_eq!(
            info,
            serde_json::json!({"op": "serverInfo", "name": "test", "capabilities": [], "sessionId": "one"})
        );
        assert_eq!(advertise["op"], "advertise");
        assert_eq!(advertise["channels"][1]["topic"], "/two");
        assert_eq!(advertise["channels"][1]["id"], two.id());
        assert_eq!(advertise["schemas"].as_array().map(Vec::len), table.then_some(1), "{advertise}");
        assert_eq!(advertise["channels"][0]["schemaId"].is_u64(), table);
        assert_eq!(advertise["channels"][0]["schema"].is_string(), !table);
        assert_eq!(status, serde_json::json!({"op": "status", "level": 2, "message": "too hot", "id": "temperature"}));
        assert_eq!(frames.len(), 4, "and the answer to the probe");
    }

    // 4. The viewer that was present before got everything as it happened.
    early.settle().await;
    let told = early.told();
    assert_eq!(believed(&told), BTreeSet::from([one.id(), two.id()]));
    let texts: Vec<_> = statuses(&told).into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["hot", "hello", "door open", "too hot"]);
    assert!(matches!(told.last(), Some(ServerMessage::RemoveStatus(gone)) if gone.status_ids == ["door"]));
}

#[tokio::test]
async fn a_joiner_shares_the_encoded_advertisement() {
    let (room, telemetry) = telemetry();
    let _one = telemetry.advertise(json_channel("/one")).await.unwrap();
    // 1. Four viewers join, two for each form, one of them in each format.
    let mut payloads = Vec::new();
    for (name, protocol) in [("a", SDK_V1), ("b", V2), ("c", SDK_V1_1), ("d", V2_3)] {
        let viewer = Viewer::join(&room, name, protocol).await;
        viewer.settle().await;
        payloads.push(viewer.recorder.received()[0].messages[1].payload().as_ptr());
    }
    // 2. Each form was encoded once.
    assert_eq!(payloads[0], payloads[1]);
    assert_eq!(payloads[2], payloads[3]);
    assert_ne!(payloads[0], payloads[2]);
}

#[tokio::test]
async fn server_info_names_the_enabled_capabilities() {
    let room = Room::new();
    let telemetry = Telemetry::builder(room.clone())
        .name("rig-7")
        .supported_encodings(["json"])
        .metadata([("host", "here")])
        .assets(|_| async { Ok(Bytes::new()) })
        .time(true)
        .build()
        .unwrap();
    // Only v1 has a message for the time.
    let newer = Viewer::join(&room, "bob", V2).await;
    assert!(matches!(&newer.seen()[0], ServerMessage::ServerInfo(info) if info.capabilities == [Capability::Assets]));
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    let Some(ServerMessage::ServerInfo(ServerInfo { name, capabilities, supported_encodings, metadata, session_id })) =
        viewer.seen().into_iter().next()
    else {
        panic!("not a serverInfo");
    };
    assert_eq!(name, "rig-7");
    assert_eq!(capabilities, [Capability::Time, Capability::Assets]);
    assert_eq!(supported_encodings, ["json"]);
    assert_eq!(metadata["host"], "here");
    assert!(session_id.is_some_and(|id| !id.is_empty()));
    drop(telemetry);
}

#[tokio::test]
async fn an_advertisement_goes_out_in_the_form_of_each_viewer() {
    let (room, telemetry) = telemetry();
    // 1. One viewer of each form joins, in each format.
    let plain = Viewer::join(&room, "plain", SDK_V1).await;
    let table = Viewer::join(&room, "table", SDK_V1_1).await;
    let older = Viewer::join(&room, "older", V2).await;
    let newer = Viewer::join(&room, "newer", V2_3).await;
    // 2. Two channels of one schema are advertised, one after the other.
    let one = telemetry.advertise(json_channel("/one")).await.unwrap();
    let two = telemetry.advertise(json_channel("/two")).await.unwrap();
    // 3. One of them ends.
    one.unadvertise().await.unwrap();
    // 4. All viewers know the same channels, announced in their form, each advertisement once.
    for (viewer, has_table) in [(&plain, false), (&table, true), (&older, false), (&newer, true)] {
        viewer.until("unadvertise", |seen| matches!(seen.last(), Some(ServerMessage::Unadvertise(_)))).await;
        let frames = viewer.recorder.received()[0].messages.clone();
        assert_eq!(frames.len(), 4);
        assert_eq!(believed(&viewer.seen()), BTreeSet::from([two.id()]));
        for frame in &frames[1..3] {
            let advertise: serde_json::Value = serde_json::from_str(&text(frame)).unwrap();
            assert_eq!(advertise["schemas"][0]["id"].as_u64(), has_table.then_some(1), "{advertise}");
            assert_eq!(advertise["channels"][0]["schemaName"].is_string(), !has_table);
        }
    }
}

#[tokio::test]
async fn an_incompatible_viewer_gets_an_error_status() {
    let (room, telemetry) = telemetry();
    let mut events = telemetry.session().events();
    let presence = presence("old", "1.9.0");
    room.join(presence.clone()).await.unwrap();
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Refused { .. })));
    let received = room.recorder(&presence.identity).received();
    let seen = decoded(WireFormat::V2, &received);
    let [(StatusLevel::Error, text)] = &statuses(&seen)[..] else { panic!("{seen:?}") };
    assert!(text.contains("1.9.0") && text.contains("2.2.0"), "{text}");
    assert!(received[0].closed);
}

/// A status whose replacement failed still holds, for viewers that join and for those present.
#[tokio::test]
async fn a_status_holds_when_its_replacement_fails() {
    let room = Room::new();
    let builder = Telemetry::builder(room.clone()).name("test").configure(|session| session.queue_bytes(1 << 10));
    let telemetry = builder.build().unwrap();
    telemetry.status(StatusLevel::Warning, "hot", Some("temperature")).await.unwrap();
    // 1. The replacement is too long: no viewer gets it.
    let long = "x".repeat(2 << 10);
    let error = telemetry.status(StatusLevel::Error, &long, Some("temperature")).await.unwrap_err();
    assert!(matches!(error, AnnounceError::TooLarge { .. }));
    // 2. A status of that length that replaces none is refused, too.
    assert!(telemetry.status(StatusLevel::Error, &long, Some("door")).await.is_err());
    // 3. A viewer that joins gets the first status.
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    viewer.settle().await;
    assert_eq!(statuses(&viewer.told()), [(StatusLevel::Warning, "hot".to_owned())]);
}

/// The advertisement encoded for all joiners changes with the channels.
#[tokio::test]
async fn a_joiner_after_an_unadvertise_is_not_told_of_the_ended_channel() {
    let (room, telemetry) = telemetry();
    let one = telemetry.advertise(json_channel("/one")).await.unwrap();
    let two = telemetry.advertise(json_channel("/two")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    viewer.settle().await;
    assert_eq!(believed(&viewer.seen()), BTreeSet::from([one.id(), two.id()]));
    one.unadvertise().await.unwrap();
    let viewer = Viewer::join(&room, "bob", SDK_V1).await;
    viewer.settle().await;
    assert_eq!(believed(&viewer.seen()), BTreeSet::from([two.id()]));
    assert!(!viewer.seen().iter().any(|message| matches!(message, ServerMessage::Unadvertise(_))));
}
