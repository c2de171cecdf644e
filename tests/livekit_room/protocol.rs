//! Telemetry for viewers of wire format v2.

use std::time::Duration;

use lanecast::protocol::client::{ChannelRequest, Ping, PingAck, SubscribeChannels, UnsubscribeChannels};
use lanecast::protocol::server::{ServerInfo, Status};
use lanecast::protocol::{ClientMessage, ServerMessage};
use lanecast::room::livekit::LiveKitRoom;
use lanecast::telemetry::{Channel, IncompatibleVersion, Published, Schema, StatusLevel, Telemetry};
use lanecast::{EndReason, JoinError, SessionEvent};

use crate::kit::{Incoming, Server, Viewer, joined, within};

async fn telemetry(server: &Server) -> (LiveKitRoom, Telemetry) {
    let room = server.device().await;
    let telemetry = Telemetry::builder(room.clone()).name("rig-7").build().expect("the settings make sense");
    (room, telemetry)
}

async fn messages(viewer: &Viewer, count: usize) -> Vec<ServerMessage> {
    viewer.frames(count).await;
    viewer.streams().pop().expect("it has a stream").messages()
}

fn subscribe(id: u64) -> ClientMessage {
    let request = ChannelRequest { id, request_video_track: false };
    ClientMessage::SubscribeChannels(SubscribeChannels { channels: vec![request] })
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_subscribe_and_get_messages() {
    let Some(server) = Server::of_environment() else { return };
    let (room, telemetry) = telemetry(&server).await;
    let schema = Schema::new("Speed", "jsonschema", r#"{"type":"object"}"#);
    let speed = telemetry.advertise(Channel::new("/speed", "json").schema(schema)).await.expect("the session is open");
    let viewer = server.viewer("ada").await;
    let told = messages(&viewer, 2).await;
    assert!(matches!(&told[0], ServerMessage::ServerInfo(ServerInfo { name, .. }) if name == "rig-7"));
    assert!(matches!(&told[1], ServerMessage::Advertise(advertise) if advertise.channels[0].topic == "/speed"));
    viewer.send(&subscribe(speed.id())).await;
    // One request has taken effect before the next is read.
    viewer.send(&ClientMessage::Ping(Ping { app_timestamp: 0 })).await;
    assert!(matches!(messages(&viewer, 3).await.pop(), Some(ServerMessage::Pong(_))));
    assert_eq!(speed.publish_at(7, "42").await, Ok(Published::Sent));
    let Some(ServerMessage::ChannelData(data)) = messages(&viewer, 4).await.pop() else { panic!("no message") };
    assert_eq!((data.channel_id, data.log_time_ns, &data.payload[..]), (speed.id(), 7, &b"42"[..]));

    viewer.send(&subscribe(99)).await;
    let told = messages(&viewer, 5).await.pop();
    assert!(matches!(told, Some(ServerMessage::Status(Status { level: StatusLevel::Warning, .. }))));
    let unsubscribe = UnsubscribeChannels { channel_ids: vec![speed.id()] };
    viewer.send(&ClientMessage::UnsubscribeChannels(unsubscribe)).await;
    within(async {
        while speed.has_subscribers() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    speed.unadvertise().await.expect("the session is open");
    let told = messages(&viewer, 6).await.pop();
    assert!(matches!(told, Some(ServerMessage::Unadvertise(_))));
    within(telemetry.close(Duration::from_secs(5))).await.expect("nothing hangs");
    within(room.close()).await;
}

/// From 2.3.0 on each schema is announced once, in a table.
#[tokio::test(flavor = "multi_thread")]
async fn advertisements_have_the_form_of_the_viewers_version() {
    let Some(server) = Server::of_environment() else { return };
    let (room, telemetry) = telemetry(&server).await;
    let schema = std::sync::Arc::new(Schema::new("S", "jsonschema", r#"{"title":"only once"}"#));
    let mut channels = Vec::new();
    for topic in ["/a", "/b", "/c"] {
        let channel = Channel::new(topic, "json").schema(std::sync::Arc::clone(&schema));
        channels.push(telemetry.advertise(channel).await.expect("the session is open"));
    }
    for (version, times) in [(None, 3), (Some("2.2.7"), 3), (Some("2.3.0"), 1), (Some("2.9.1"), 1)] {
        let viewer = server.viewer_of_version(&format!("v{}", version.unwrap_or("none")), version).await;
        let frames = viewer.frames(2).await;
        let advertise = String::from_utf8_lossy(frames[1].payload()).into_owned();
        assert_eq!(advertise.matches("only once").count(), times, "{version:?}");
    }
    within(room.close()).await;
}

/// A viewer of another version is told so on a stream of its own, and isn't registered.
#[tokio::test(flavor = "multi_thread")]
async fn an_incompatible_version_is_refused_with_a_message() {
    let Some(server) = Server::of_environment() else { return };
    let (room, telemetry) = telemetry(&server).await;
    let mut events = telemetry.session().events();
    for version in ["3.0.0", "2.1.9", "latest"] {
        let viewer = server.viewer_of_version(version, Some(version)).await;
        let streams = viewer.wait_for("its end", |streams| streams.first().is_some_and(|s| s.ended.is_some())).await;
        assert_eq!(streams[0].ended, Some(Ok(())));
        let told = streams[0].messages();
        let [ServerMessage::Status(Status { level: StatusLevel::Error, message, .. })] = &told[..] else {
            panic!("not one error: {told:?}")
        };
        assert!(message.contains(version) && message.contains("2.2.0"), "{message}");
        loop {
            if let Some(SessionEvent::Refused { identity, error, .. }) = within(events.next()).await {
                let JoinError::NotAccepted { reason } = &error else { panic!("{error}") };
                assert!(identity.as_str() == version && reason.is::<IncompatibleVersion>(), "{error}");
                break;
            }
        }
        viewer.leave().await;
    }
    assert_eq!(telemetry.session().stats().joins, 0);
    within(room.close()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_is_answered_and_its_round_trip_measured() {
    let Some(server) = Server::of_environment() else { return };
    let (room, telemetry) = telemetry(&server).await;
    let viewer = server.viewer("ada").await;
    messages(&viewer, 1).await;
    viewer.send(&ClientMessage::Ping(Ping { app_timestamp: 17 })).await;
    let Some(ServerMessage::Pong(pong)) = messages(&viewer, 2).await.pop() else { panic!("no pong") };
    assert_eq!(pong.app_timestamp, 17);
    let ack = PingAck { device_timestamp_ms: pong.device_timestamp_ms };
    viewer.send(&ClientMessage::PingAck(ack)).await;
    let participant = telemetry.session().participant(&"ada".parse().expect("well-formed")).expect("she is here");
    let ada = telemetry.viewer(participant.client_id()).expect("she is here");
    let round_trip = within(async {
        loop {
            if let Some(round_trip) = ada.stats().round_trip {
                return round_trip;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(round_trip > Duration::ZERO && round_trip < Duration::from_secs(10), "{round_trip:?}");
    assert!(!ada.stats().unresponsive);
    within(room.close()).await;
}

/// Bytes that are no frame end the viewer's stream to the device, not the viewer; it is told, and may open another
/// stream. Streams on other topics are ignored.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_the_stream_and_is_reported() {
    use livekit::data_stream::api::StreamWriter;
    let Some(server) = Server::of_environment() else { return };
    let room = server.device().await;
    let telemetry = Telemetry::builder(room.clone()).build().expect("the settings make sense");
    let viewer = server.viewer("ada").await;
    messages(&viewer, 1).await;
    let other = viewer.open("chat").await;
    within(other.write(b"not for us")).await.expect("the connection stands");
    viewer.send_bytes(b"\x02\xff\xff\xff\xff").await;
    let Some(ServerMessage::Status(status)) = messages(&viewer, 2).await.pop() else { panic!("no status") };
    assert!(status.level == StatusLevel::Error && status.message.contains("4294967295"), "{}", status.message);
    let again = viewer.open("control").await;
    let mut ping = Vec::new();
    ClientMessage::Ping(Ping { app_timestamp: 1 }).encode().append_to_stream(&mut ping);
    within(again.write(&ping)).await.expect("the connection stands");
    let told = messages(&viewer, 3).await.pop();
    assert!(matches!(told, Some(ServerMessage::Pong(_))), "{told:?}");
    assert_eq!(telemetry.session().stats().resets.total(), 0);
    within(room.close()).await;
}

/// A stream that has reached its byte limit is followed by a fresh one.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_at_its_byte_limit_is_followed_by_a_fresh_one() {
    let Some(server) = Server::of_environment() else { return };
    let room = server.device_with(|room| room.stream_bytes(100_000)).await;
    let telemetry = Telemetry::builder(room.clone()).build().expect("the settings make sense");
    let viewer = server.viewer("ada").await;
    joined(telemetry.session(), 1).await;
    let mut events = telemetry.session().events();
    for _ in 0..3 {
        telemetry.status(StatusLevel::Info, "x".repeat(40_000), None).await.expect("the session is open");
    }
    let (_, reason) = within(crate::kit::reset_of(&mut events)).await;
    assert_eq!(reason, EndReason::WriteFailed);
    // The end of one stream and the beginning of the next have no order.
    let followed = |s: &[Incoming]| s.len() == 2 && s[0].ended.is_some() && !s[1].frames.is_empty();
    let streams = viewer.wait_for("the end of the stream, and a fresh one", followed).await;
    assert!(matches!(&streams[0].ended, Some(Err(_))));
    assert!(matches!(streams[1].messages()[0], ServerMessage::ServerInfo(_)));
    within(room.close()).await;
}
