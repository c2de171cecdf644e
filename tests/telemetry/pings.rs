//! Round trips, and viewers that fall silent. The clock stands still unless every task waits.

use std::time::SystemTime;

use lanecast::protocol::client::{Ping, PingAck};
use lanecast::protocol::server::Pong;
use lanecast::telemetry::Viewer as Instance;
use lanecast::{Events, InstanceId, Participant};
use tokio::time::{Instant, advance, timeout};

use super::*;

const SILENCE: Duration = Duration::from_secs(15);
/// Long enough for anything wrong to happen.
const LONG: Duration = Duration::from_secs(1000);

fn pongs(seen: &[ServerMessage]) -> Vec<Pong> {
    let pongs = seen.iter().filter_map(|message| match message {
        ServerMessage::Pong(pong) => Some(*pong),
        _ => None,
    });
    pongs.collect()
}

impl Viewer {
    async fn send(&self, message: ClientMessage) {
        self.requests.send(message.encode()).await.unwrap();
    }

    /// Pings, and waits for the pong.
    async fn ping(&self, app_timestamp: u64) -> Pong {
        let before = pongs(&self.seen()).len();
        self.send(ClientMessage::Ping(Ping { app_timestamp })).await;
        let seen = self.until("a pong", |seen| pongs(seen).len() > before).await;
        *pongs(&seen).last().unwrap()
    }

    async fn acknowledge(&self, device_timestamp_ms: u64) {
        self.send(ClientMessage::PingAck(PingAck { device_timestamp_ms })).await;
        self.settle().await;
    }
}

fn instance(telemetry: &Telemetry, participant: &Participant<Frame>) -> Instance {
    telemetry.viewer(participant.client_id()).expect("it is registered")
}

/// Takes no time on the paused clock: the viewer has its serverInfo already.
async fn joined(telemetry: &Telemetry, name: &str) -> Instance {
    within(async {
        loop {
            match telemetry.session().participant(&name.parse().unwrap()) {
                Some(participant) => return instance(telemetry, &participant),
                None => tokio::task::yield_now().await,
            }
        }
    })
    .await
}

/// The next event, which has to be about silence.
async fn silence(events: &mut Events) -> (bool, InstanceId) {
    match timeout(LONG, events.next()).await.expect("nothing happens") {
        Some(SessionEvent::Unresponsive(who)) => (true, who),
        Some(SessionEvent::Responsive(who)) => (false, who),
        other => panic!("{other:?}"),
    }
}

async fn assert_nothing_happens(events: &mut Events) {
    let happened = timeout(LONG, events.next()).await;
    assert!(happened.is_err(), "{happened:?}");
}

#[tokio::test(start_paused = true)]
async fn a_round_trip_is_measured_from_a_pong_to_its_acknowledgement() {
    let (room, telemetry) = telemetry();
    let viewer = Viewer::join(&room, "ada", V2).await;
    let ada = joined(&telemetry, "ada").await;
    assert_eq!(ada.stats().round_trip, None);
    // 1. A ping is answered with its own timestamp and the server's time.
    let pong = viewer.ping(u64::MAX).await;
    assert_eq!(pong.app_timestamp, u64::MAX);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let told = Duration::from_millis(pong.device_timestamp_ms);
    assert!(told <= now && now - told < Duration::from_secs(60), "{told:?} at {now:?}");
    assert_eq!(ada.stats().round_trip, None);
    // 2. 40 ms later the pong is acknowledged.
    advance(Duration::from_millis(40)).await;
    viewer.acknowledge(pong.device_timestamp_ms).await;
    assert_eq!(ada.stats().round_trip, Some(Duration::from_millis(40)));
    // 3. A timestamp that was acknowledged already, was never sent, or is far off is ignored.
    advance(Duration::from_millis(40)).await;
    let made_up = [pong.device_timestamp_ms, 0, pong.device_timestamp_ms + 1_000_000, u64::MAX];
    for stamp in made_up {
        viewer.acknowledge(stamp).await;
        assert_eq!(ada.stats().round_trip, Some(Duration::from_millis(40)));
    }
    // 4. The latest round trip counts; one of minutes isn't counted.
    let pong = viewer.ping(2).await;
    advance(Duration::from_millis(3)).await;
    viewer.acknowledge(pong.device_timestamp_ms).await;
    assert_eq!(ada.stats().round_trip, Some(Duration::from_millis(3)));
    let pong = viewer.ping(3).await;
    advance(Duration::from_secs(3600)).await;
    viewer.acknowledge(pong.device_timestamp_ms).await;
    assert_eq!(ada.stats().round_trip, Some(Duration::from_millis(3)));
    // 5. None of this caused a status.
    assert_eq!(statuses(&viewer.told()), []);
}

#[tokio::test(start_paused = true)]
async fn a_viewer_that_pinged_and_fell_silent_is_reported_once() {
    let (room, telemetry) = telemetry();
    // 1. Ada pings. Bob also speaks v2 and doesn't ping; Eve can't ping.
    let viewer = Viewer::join(&room, "ada", V2).await;
    let others = [Viewer::join(&room, "bob", V2).await, Viewer::join(&room, "eve", SDK_V1).await];
    for other in &others {
        other.settle().await;
    }
    let ada = joined(&telemetry, "ada").await;
    let mut events = telemetry.session().events();
    viewer.ping(1).await;
    // 2. Any request counts as a sign of life, also an unreadable one.
    for _ in 0..3 {
        advance(SILENCE - Duration::from_secs(1)).await;
        viewer.requests.send(Frame::binary(Bytes::from_static(&[99]))).await.unwrap();
        viewer.settle().await;
        assert!(!ada.stats().unresponsive);
    }
    // 3. Then Ada sends nothing: she is reported after the time that was set, and not again.
    let heard = Instant::now();
    let (unresponsive, who) = silence(&mut events).await;
    assert!(unresponsive && who.client_id == ada.participant().client_id());
    let after = heard.elapsed();
    assert!(after >= SILENCE && after < SILENCE + Duration::from_millis(10), "{after:?}");
    assert!(ada.stats().unresponsive);
    assert_nothing_happens(&mut events).await;
    // 4. She isn't reset: published messages reach her.
    assert_eq!(ada.participant().end_reason(), None);
    telemetry.status(StatusLevel::Info, "still here", None).await.unwrap();
    viewer.until_status(StatusLevel::Info, "still here").await;
    // 5. She sends again: this is reported, and the flag is cleared.
    viewer.say("whatever").await;
    let (unresponsive, who) = silence(&mut events).await;
    assert!(!unresponsive && who.client_id == ada.participant().client_id());
    assert!(!ada.stats().unresponsive);
    // 6. The next silence is reported again.
    assert!(silence(&mut events).await.0);
    viewer.settle().await;
    assert!(!silence(&mut events).await.0);
    assert_eq!(viewer.recorder.received().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_instance_starts_afresh() {
    let (room, telemetry) = telemetry();
    let viewer = Viewer::join(&room, "ada", V2).await;
    let first = joined(&telemetry, "ada").await;
    let mut events = telemetry.session().events();
    // 1. The instance has a round trip, then falls silent.
    let pong = viewer.ping(1).await;
    viewer.acknowledge(pong.device_timestamp_ms).await;
    assert!(silence(&mut events).await.0);
    // 2. The instance is reset.
    let reset = async |events: &mut Events| {
        viewer.recorder.set_behavior(Behavior::Fail);
        telemetry.status(StatusLevel::Info, "lost", None).await.unwrap();
        viewer.recorder.wait_for(|received| received.last().is_some_and(|stream| stream.closed)).await;
        viewer.recorder.set_behavior(Behavior::Flow);
        // Skips instances that were joined and failed again before the stream flowed.
        loop {
            let event = within(events.next()).await;
            let now = telemetry.session().participant(first.participant().identity());
            if let (Some(SessionEvent::Joined(who)), Some(now)) = (event, now)
                && who.client_id == now.client_id()
            {
                break instance(&telemetry, &now);
            }
        }
    };
    let second = reset(&mut events).await;
    assert_ne!(first.participant().client_id(), second.participant().client_id());
    // 3. The new instance has no round trip, and its silence isn't reported before it pings.
    assert_eq!((second.stats().round_trip, second.stats().unresponsive), (None, false));
    viewer.settle().await;
    assert_nothing_happens(&mut events).await;
    // 4. It pings, and is reset before it counts as silent: the new instance starts afresh.
    let pong = viewer.ping(2).await;
    let third = reset(&mut events).await;
    viewer.settle().await;
    assert_nothing_happens(&mut events).await;
    // 5. The new instance can't acknowledge a pong of the old one.
    viewer.acknowledge(pong.device_timestamp_ms).await;
    assert_eq!(third.stats().round_trip, None);
    // 6. It leaves while it is silent: only its departure is reported.
    viewer.ping(3).await;
    room.leave(third.participant().identity(), third.participant().sid()).await.unwrap();
    assert!(matches!(within(events.next()).await, Some(SessionEvent::Left { .. })));
    assert_nothing_happens(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn the_silence_timeout_can_be_set() {
    let build = |timeout| Telemetry::builder(Room::new()).silence_timeout(timeout).build();
    assert!(build(Duration::ZERO).unwrap_err().to_string().contains("silence_timeout"));
    for (timeout, reported) in [(Duration::from_secs(2), true), (Duration::MAX, false)] {
        let room = Room::new();
        let telemetry = Telemetry::builder(room.clone()).silence_timeout(timeout).build().unwrap();
        let viewer = Viewer::join(&room, "ada", V2).await;
        let ada = joined(&telemetry, "ada").await;
        let mut events = telemetry.session().events();
        viewer.ping(1).await;
        let before = Instant::now();
        if reported {
            assert!(silence(&mut events).await.0);
            assert!(before.elapsed() < Duration::from_millis(2010));
        } else {
            assert_nothing_happens(&mut events).await;
        }
        assert_eq!(ada.stats().unresponsive, reported);
    }
}
