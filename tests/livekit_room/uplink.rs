//! A server that stops: publishers wait, and nobody is reset. Needs a server of the test's own, which it can stop.

use std::time::Duration;

use lanecast::room::livekit::{Connection, LiveKitError, LiveKitRoom, TokenRequest};
use lanecast::telemetry::{Channel, Telemetry};
use lanecast::{Session, SessionEvent};
use tokio::time::{Instant, timeout};

use crate::kit::{HOUR, OwnServer, Process, Server, joined, text, texts, within};

// 1. The server stops. 2. Messages go on until publishers are held back; the session reports that the uplink has
// stalled. 3. Nobody is reset. 4. The server goes on: every byte arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_congested_uplink_holds_publishers_back() {
    let Some(own) = OwnServer::start().await else { return };
    let server = own.server.clone();
    let room = server.device().await;
    let session = Session::builder(room.clone()).build().expect("the settings make sense");
    let viewers = server.viewers(4).await;
    joined(&session.handle(), 4).await;
    let mut events = session.events();
    own.signal("STOP");
    let mut published = 0;
    // Two megabytes wait in the data channel before the stall shows, and 1,024 messages in the log.
    let message = |number: usize| text(format!("{number} {}", "x".repeat(1000)));
    {
        let stalls = async { while !matches!(within(events.next()).await, Some(SessionEvent::UplinkStalled)) {} };
        let mut stalls = std::pin::pin!(stalls);
        loop {
            tokio::select! {
                biased;
                () = &mut stalls => break,
                sent = session.broadcast(message(published)) => sent.expect("the session is open"),
            }
            published += 1;
        }
    }
    assert!(session.try_broadcast(message(published)).is_err(), "publishers are held back after {published}");
    assert!(session.stats().uplink_stalled);
    own.signal("CONT");
    while !matches!(within(events.next()).await, Some(SessionEvent::UplinkFlowing)) {}
    for _ in 0..1000 {
        within(session.broadcast(message(published))).await.expect("the session is open");
        published += 1;
    }
    for viewer in &viewers {
        let seen = texts(&viewer.frames(published).await);
        assert!(seen.iter().enumerate().all(|(number, seen)| seen.starts_with(&format!("{number} "))));
        assert_eq!((viewer.streams().len(), seen.len()), (1, published));
    }
    let stats = session.stats();
    assert_eq!((stats.resets.total(), stats.participants), (0, 4));
    assert!(stats.uplink_stalls >= 1);
    within(room.close()).await;
}

/// The SDK waits for a server that doesn't answer; closing doesn't.
#[tokio::test(flavor = "multi_thread")]
async fn closing_does_not_wait_for_a_server_that_hangs() {
    let Some(own) = OwnServer::start().await else { return };
    let room = own.server.device_with(|room| room.close_timeout(Duration::from_secs(2))).await;
    let session = Session::builder(room.clone()).build().expect("the settings make sense");
    let _viewer = own.server.viewer("ada").await;
    joined(&session.handle(), 1).await;
    own.signal("STOP");
    for _ in 0..100 {
        let _ = session.try_broadcast(text("x".repeat(100_000)));
    }
    let begun = Instant::now();
    within(session.close(Duration::from_secs(1))).await.expect("no task hangs");
    within(room.close()).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    own.signal("CONT");
}

// 1. The server is killed, and started again. 2. A supervised room connects again, with a fresh token. 3. The channel
// is still there; its viewers come back, and the channel is announced to them.
#[tokio::test(flavor = "multi_thread")]
async fn a_supervised_room_outlives_its_server() {
    let Some(mut own) = OwnServer::start().await else { return };
    let server = own.server.clone();
    let minted = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let tokens = {
        let (server, minted) = (server.clone(), std::sync::Arc::clone(&minted));
        move || {
            minted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let token = server.token("device");
            async move { Ok::<_, std::convert::Infallible>(token) }
        }
    };
    let builder = LiveKitRoom::builder(&server.url).connect_timeout(Duration::from_secs(5));
    let room = within(builder.connect_supervised(tokens)).await.expect("the server is there");
    let mut connection = room.connection();
    let telemetry = Telemetry::builder(room.clone()).build().expect("the settings make sense");
    let speed = telemetry.advertise(Channel::new("/speed", "json")).await.expect("the session is open");
    let before = server.viewer("ada").await;
    before.frames(2).await;
    own.kill().await;
    let down = timeout(Duration::from_secs(90), connection.wait_for(|now| matches!(now, Connection::Down { .. })));
    drop(down.await.expect("the SDK gives up").expect("the room is open"));
    joined(telemetry.session(), 0).await;
    own.restart().await;
    let up = timeout(Duration::from_secs(60), connection.wait_for(|now| matches!(now, Connection::Up)));
    drop(up.await.expect("it connects again").expect("the room is open"));
    assert!(minted.load(std::sync::atomic::Ordering::SeqCst) >= 2);
    let after = server.viewer("bob").await;
    let told = after.frames(2).await;
    assert!(String::from_utf8_lossy(told[1].payload()).contains("/speed"));
    assert!(speed.publish("1").await.is_ok());
    within(telemetry.close(Duration::from_secs(2))).await.expect("no task hangs");
    within(room.close()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_ends_the_session_with_an_error() {
    let Some(mut own) = OwnServer::start().await else { return };
    let room = own.server.device().await;
    let session = Session::builder(room.clone()).build().expect("the settings make sense");
    own.kill().await;
    let ended = timeout(Duration::from_secs(90), session.ended()).await.expect("the SDK gives up");
    let closed = ended.expect("no task hangs").room_closed.expect("the room says why");
    assert!(matches!(closed.downcast_ref(), Some(LiveKitError::Disconnected { .. })), "{closed}");
    assert!(closed.to_string().starts_with("disconnected from the room"), "{closed}");
}

/// Another participant under the device's identity replaces it: that ends the session, in supervised mode as well.
#[tokio::test(flavor = "multi_thread")]
async fn another_participant_of_our_identity_ends_the_session() {
    let Some(server) = Server::of_environment() else { return };
    let token = server.token("device");
    let tokens = move || std::future::ready(Ok::<_, std::convert::Infallible>(token.clone()));
    let room = within(LiveKitRoom::builder(&server.url).connect_supervised(tokens)).await;
    let session = Session::builder(room.expect("the server is there")).build().expect("the settings make sense");
    let _usurper = server.viewer("device").await;
    let report = within(session.ended()).await.expect("no task hangs");
    let closed = report.room_closed.expect("the room says why");
    assert!(closed.to_string().contains("another participant uses our identity"), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_named_as_the_error() {
    let Some(server) = Server::of_environment() else { return };
    let wrong = Server { secret: "of another server, and long enough for it".to_owned(), ..server.clone() };
    let identity = &"device".parse().expect("well-formed");
    for token in &[wrong.token("device"), "nonsense".to_owned(), String::new()] {
        let refused = within(LiveKitRoom::builder(&server.url).connect(token)).await.expect_err("it is wrong");
        assert!(matches!(refused, LiveKitError::Unauthorized(_)), "{refused}");
        assert!(refused.to_string().contains("token"), "{refused}");
        assert!(token.is_empty() || !refused.to_string().contains(&**token), "{refused}");
    }
    let request = TokenRequest { key: "", secret: "", room: &server.room, identity, valid_for: HOUR };
    assert!(request.mint().is_err());
    let token = server.token("device");
    let nobody = LiveKitRoom::builder("ws://127.0.0.1:1").connect(&token);
    let refused = within(nobody).await.expect_err("nobody listens there");
    assert!(matches!(refused, LiveKitError::Connect(_)), "{refused}");
}

/// No task is left once a session and its room are dropped.
#[tokio::test(flavor = "multi_thread")]
async fn dropping_everything_leaves_no_task() {
    let Some(server) = Server::of_environment() else { return };
    // The viewer runs in a process of its own, so its tasks aren't counted here.
    let _viewer = Process::start(&server, "ada").await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let room = server.device().await;
    let session = Session::builder(room).build().expect("the settings make sense");
    joined(&session.handle(), 1).await;
    within(session.broadcast(text("x"))).await.expect("the session is open");
    within(async {
        while session.stats().account.delivered == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(tasks() > before);
    drop(session);
    let gone = timeout(Duration::from_secs(20), async {
        while tasks() > before {
            tokio::task::yield_now().await;
        }
    });
    assert!(gone.await.is_ok(), "{} tasks are left", tasks() - before);
}
