//! Viewers that are slow, and a viewer of another author.

use std::process::Stdio;
use std::time::Duration;

use lanecast::Session;
use lanecast::protocol::Frame;
use lanecast::telemetry::{Channel, Telemetry};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::kit::{Process, Server, joined, settled, text, texts, within};

// 1. A viewer's process stops, so that nothing of its connection is read; 19 viewers go on. 2. They get everything,
// nobody is reset, and publishers aren't held back: the server takes what is sent. 3. The viewer goes on: the messages
// that waited for it at the server arrive, late, and none is missing.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_buffers_for_a_viewer_that_stops_reading() {
    let Some(server) = Server::of_environment() else { return };
    let room = server.device().await;
    let session = Session::builder(room.clone()).build().expect("the settings make sense");
    let viewers = server.viewers(19).await;
    let stopped = Process::start(&server, "stopped").await;
    joined(&session.handle(), 20).await;
    stopped.signal("STOP");
    const MESSAGES: usize = 600;
    // Three megabytes for each viewer: more than the buffers of the kernel and of the viewer's own end hold.
    let message = |number: usize| text(format!("{number} {}", "x".repeat(5000)));
    for number in 0..MESSAGES {
        within(session.broadcast(message(number))).await.expect("the session is open");
    }
    for viewer in &viewers {
        let seen = texts(&viewer.frames(MESSAGES).await);
        assert!(seen.iter().enumerate().all(|(number, seen)| seen.starts_with(&format!("{number} "))));
    }
    // Delivered means taken by the server, also for the viewer that has stopped.
    settled(&session).await;
    assert_eq!(session.stats().resets.total(), 0);
    stopped.signal("CONT");
    let received = within(stopped.received(MESSAGES * 5000)).await;
    assert!(received >= MESSAGES * 5000);
    assert_eq!(session.stats().resets.total(), 0);
    within(room.close()).await;
}

/// A viewer of another author: the PyPI package `livekit`, on the real libwebrtc. `LANECAST_TEST_PYTHON` names a Python
/// that has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_third_party_viewer_gets_every_byte() {
    let Some(server) = Server::of_environment() else { return };
    let Ok(python) = std::env::var("LANECAST_TEST_PYTHON") else {
        return eprintln!("left out: LANECAST_TEST_PYTHON names no Python with the package livekit");
    };
    let room = server.device().await;
    let telemetry = Telemetry::builder(room.clone()).name("rig-7").build().expect("the settings make sense");
    let blob = telemetry.advertise(Channel::new("/blob", "raw")).await.expect("the session is open");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/livekit_room/viewer.py");
    let mut viewer = Command::new(python)
        .args([script, &server.url, &server.token("snake"), &blob.id().to_string(), "300"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("there is such a Python");
    // The viewer acknowledges the pong: its earlier requests have taken effect by then.
    let snake = "snake".parse().expect("well-formed");
    let acknowledged = || telemetry.viewer(telemetry.session().participant(&snake)?.client_id())?.stats().round_trip;
    within(async {
        while acknowledged().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut expected = Vec::new();
    for number in 0..300_usize {
        let payload = vec![number as u8; number * 131 % 40_000];
        blob.publish_at(number as u64, payload.clone()).await.expect("the session is open");
        Frame::message_data(blob.id(), number as u64, payload.into()).append_to_stream(&mut expected);
    }
    let mut seen = Vec::new();
    within(viewer.stdout.take().expect("it is piped").read_to_end(&mut seen)).await.expect("it writes");
    assert_eq!((seen.len(), seen == expected), (expected.len(), true));
    assert!(within(viewer.wait()).await.expect("it ends").success());
    within(telemetry.close(Duration::from_secs(5))).await.expect("no task hangs");
    within(room.close()).await;
}
