//! Connections that the SDK resumes or replaces, and those whose loss it doesn't notice.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lanecast::protocol::client::{ChannelRequest, SubscribeChannels};
use lanecast::protocol::{ClientMessage, ServerMessage};
use lanecast::room::livekit::{Connection, LiveKitRoom};
use lanecast::telemetry::{Channel, Telemetry};
use lanecast::{Session, SessionEvent};
use livekit::SimulateScenario;
use livekit::data_stream::api::StreamWriter;
use tokio::time::{Instant, timeout};

use crate::kit::{Incoming, OwnServer, Server, joined, text, texts, within};

/// The numbers that a stream carried, between its initial message and the last; they have no gap.
fn numbers(stream: &Incoming) -> Vec<u64> {
    let seen = texts(&stream.frames);
    let numbers: Vec<_> = seen.iter().filter_map(|text| text.strip_prefix('m')?.parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a gap");
    assert_eq!(seen.first().map(String::as_str), Some("state"));
    numbers
}

/// Publishes while the SDK's connection is broken as `scenario` says; returns how many messages, and each viewer's
/// streams.
async fn broken(server: &Server, scenario: SimulateScenario) -> (u64, Vec<Vec<Incoming>>) {
    let room = server.device().await;
    let initial = |_| async { vec![text("state")] };
    let session = Session::builder(room.clone()).initial(initial).build().expect("the settings make sense");
    let viewers = server.viewers(3).await;
    joined(&session.handle(), 3).await;
    // A registered viewer may not have its stream yet: messages that the connection still holds are lost with it.
    for viewer in &viewers {
        viewer.frames(1).await;
    }
    let over = AtomicBool::new(false);
    let publishing = async {
        let mut published = 0;
        let mut ticks = tokio::time::interval(Duration::from_millis(2));
        while !over.load(Ordering::SeqCst) {
            ticks.tick().await;
            within(session.broadcast(text(format!("m{published}")))).await.expect("the session is open");
            published += 1;
        }
        published
    };
    let breaking = async {
        let mut connection = room.connection();
        let sdk = room.sdk().expect("it is connected");
        within(sdk.simulate_scenario(scenario)).await.expect("the SDK can");
        within(connection.wait_for(|now| matches!(now, Connection::Resuming))).await.expect("the room is open");
        within(connection.wait_for(|now| matches!(now, Connection::Up))).await.expect("the room is open");
        joined(&session.handle(), 3).await;
        over.store(true, Ordering::SeqCst);
    };
    let (published, ()) = tokio::join!(publishing, breaking);
    within(session.broadcast(text("last"))).await.expect("the session is open");
    assert_eq!(session.stats().resets.total(), 0);
    let mut seen = Vec::new();
    for viewer in &viewers {
        let is_last = |stream: &Incoming| texts(&stream.frames).last().is_some_and(|text| text == "last");
        let is_over = |streams: &[Incoming]| {
            streams.iter().any(is_last) && streams.iter().all(|stream| is_last(stream) || stream.ended.is_some())
        };
        seen.push(viewer.wait_for("the last message", is_over).await);
    }
    within(room.close()).await;
    (published, seen)
}

/// After a resumption the streams go on where they were.
#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_connection_misses_nothing() {
    let Some(server) = Server::of_environment() else { return };
    let (published, seen) = broken(&server, SimulateScenario::SignalReconnect).await;
    for streams in seen {
        assert_eq!(streams.len(), 1);
        assert_eq!(numbers(&streams[0]), (0..published).collect::<Vec<_>>());
    }
}

/// After a full reconnect every stream ends and a fresh one begins with the initial state; neither has a gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_connection_has_fresh_streams() {
    let Some(server) = Server::of_environment() else { return };
    let (_, seen) = broken(&server, SimulateScenario::FullReconnect).await;
    for streams in seen {
        assert!(streams.len() >= 2);
        let (last, others) = streams.split_last().expect("there are two");
        numbers(last);
        for stream in others {
            assert!(matches!(stream.ended, Some(Err(_))), "{:?}", stream.ended);
            if !stream.frames.is_empty() {
                numbers(stream);
            }
        }
    }
}

/// A viewer's own stream to the device ends with the connection as well: the viewer opens another, which is read.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_fresh_connection_a_viewer_opens_a_fresh_stream() {
    let Some(server) = Server::of_environment() else { return };
    let room = server.device().await;
    let telemetry = Telemetry::builder(room.clone()).build().expect("the settings make sense");
    let speed = telemetry.advertise(Channel::new("/speed", "json")).await.expect("the session is open");
    let viewer = server.viewer("ada").await;
    viewer.frames(2).await;
    within(room.sdk().expect("it is connected").simulate_scenario(SimulateScenario::FullReconnect))
        .await
        .expect("the SDK can");
    viewer.wait_for("a fresh stream", |streams| streams.len() > 1 && streams[1].frames.len() >= 2).await;
    let mut subscribe = Vec::new();
    let channels = vec![ChannelRequest { id: speed.id(), request_video_track: false }];
    ClientMessage::SubscribeChannels(SubscribeChannels { channels }).encode().append_to_stream(&mut subscribe);
    let control = viewer.open("control").await;
    within(control.write(&subscribe)).await.expect("the connection stands");
    let heard = |streams: &[Incoming]| {
        let messages = streams.last().map(Incoming::messages).unwrap_or_default();
        messages.iter().any(|message| matches!(message, ServerMessage::ChannelData(_)))
    };
    let publishing = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            speed.publish("1").await.expect("the session is open");
        }
    };
    tokio::select! {
        () = publishing => {}
        _ = viewer.wait_for("a message", heard) => {}
    }
    within(room.close()).await;
}

// 1. The uplink is full: more waits in the data channel than the SDK allows. 2. The server dies. The SDK then waits
// forever. 3. The room gives the connection up, and a supervised room connects again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_under_load_is_noticed() {
    let Some(mut own) = OwnServer::start().await else { return };
    let server = own.server.clone();
    let tokens = {
        let server = server.clone();
        move || std::future::ready(Ok::<_, Infallible>(server.token("device")))
    };
    let builder = LiveKitRoom::builder(&server.url).connect_timeout(Duration::from_secs(5));
    let builder = builder.lost_after(Duration::from_secs(5)).close_timeout(Duration::from_secs(2));
    let room = within(builder.connect_supervised(tokens)).await.expect("the server is there");
    let mut connection = room.connection();
    let session = Session::builder(room.clone()).build().expect("the settings make sense");
    let _viewers = server.viewers(3).await;
    joined(&session.handle(), 3).await;
    own.signal("STOP");
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(2) {
        let _ = timeout(Duration::from_millis(100), session.broadcast(text("x".repeat(10_000)))).await;
    }
    own.kill().await;
    within(connection.wait_for(|now| matches!(now, Connection::Down { .. }))).await.expect("the room is open");
    joined(&session.handle(), 0).await;
    assert_eq!(session.stats().resets.total(), 0);
    own.restart().await;
    within(connection.wait_for(|now| matches!(now, Connection::Up))).await.expect("the room is open");
    let mut events = session.events();
    let viewer = server.viewer("bob").await;
    // The others come back on their own.
    let is_bob = |event| matches!(event, Some(SessionEvent::Joined(who)) if who.identity.as_str() == "bob");
    while !is_bob(within(events.next()).await) {}
    within(session.broadcast(text("again"))).await.expect("the session is open");
    assert_eq!(texts(&viewer.frames(1).await), ["again"]);
    within(room.close()).await;
}

// 1. The uplink is stalled, and the session's patience runs out: all viewers are reset, and tried again and again. 2.
// The uplink flows. 3. Each viewer has one stream with the state; every other stream ended with an error.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_abandoned_attempts_end_with_an_error() {
    let Some(own) = OwnServer::start().await else { return };
    let room = own.server.device().await;
    let second = Duration::from_secs(1);
    let session = Session::builder(room.clone())
        .initial(|_| async { vec![text("state")] })
        .uplink_patience(second)
        .write_timeout(second)
        .open_timeout(second)
        .build()
        .expect("the settings make sense");
    let viewers = own.server.viewers(2).await;
    joined(&session.handle(), 2).await;
    let mut events = session.events();
    own.signal("STOP");
    let tried_again = async {
        while session.stats().resets.total() < 2 || session.stats().failed_joins < 2 {
            let _ = timeout(second / 10, session.broadcast(text("x".repeat(10_000)))).await;
        }
    };
    within(tried_again).await;
    own.signal("CONT");
    while !matches!(within(events.next()).await, Some(SessionEvent::UplinkFlowing)) {}
    joined(&session.handle(), 2).await;
    within(session.broadcast(text("last"))).await.expect("the session is open");
    for viewer in &viewers {
        let is_last = |stream: &Incoming| texts(&stream.frames).last().is_some_and(|text| text == "last");
        let all_but_one_ended = |streams: &[Incoming]| {
            let (last, others): (Vec<_>, Vec<_>) = streams.iter().partition(|stream| is_last(stream));
            last.len() == 1 && others.iter().all(|stream| matches!(stream.ended, Some(Err(_))))
        };
        viewer.wait_for("one stream, and the ends of all others", all_but_one_ended).await;
    }
    within(room.close()).await;
}
