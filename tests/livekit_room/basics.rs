//! Joining, order and content.

use std::time::Duration;

use bytes::Bytes;
use lanecast::protocol::Frame;
use lanecast::protocol::stream::MAX_STREAM_FRAME;
use lanecast::{Session, SessionEvent};

use crate::kit::{Server, Viewer, joined, settled, text, texts, within};

#[tokio::test(flavor = "multi_thread")]
async fn initial_messages_come_first() {
    let Some(server) = Server::of_environment() else { return };
    let early = server.viewer("early").await;
    let room = server.device().await;
    let session = Session::builder(room.clone())
        .initial(|viewer| async move { vec![text(format!("hello, {}", viewer.identity())), text("state")] })
        .build()
        .expect("the settings make sense");
    let mut events = session.events();
    assert_eq!(texts(&early.frames(2).await), ["hello, early", "state"]);
    let late = server.viewer("late").await;
    assert_eq!(texts(&late.frames(2).await), ["hello, late", "state"]);
    while session.participants().len() < 2 {
        assert!(matches!(within(events.next()).await, Some(SessionEvent::Joined(_))));
    }
    session.broadcast(text("to all")).await.expect("the session is open");
    for viewer in [&early, &late] {
        assert_eq!(texts(&viewer.frames(3).await)[2], "to all");
    }
    let report = session.close(Duration::from_secs(5)).await.expect("nothing hangs");
    assert_eq!(report.account.delivered, 6);
    for viewer in [&early, &late] {
        let streams = viewer.wait_for("the end", |streams| streams[0].ended.is_some()).await;
        assert_eq!((streams.len(), &streams[0].ended), (1, &Some(Ok(()))));
    }
    within(room.close()).await;
}

/// 20 viewers, 10,000 broadcasts in quick succession, direct messages in between: every byte arrives unchanged, in
/// order.
#[tokio::test(flavor = "multi_thread")]
async fn every_byte_arrives_in_order() {
    let Some(server) = Server::of_environment() else { return };
    const VIEWERS: usize = 20;
    const BROADCASTS: usize = 10_000;
    let room = server.device().await;
    let session = Session::builder(room.clone()).build().expect("the settings make sense");
    let viewers = server.viewers(VIEWERS).await;
    joined(&session.handle(), VIEWERS).await;
    // More messages than a participant's queue holds, and far more bytes than the uplink takes at once.
    for number in 0..BROADCASTS {
        session.broadcast(text(format!("{number} {}", "x".repeat(number % 97)))).await.expect("the session is open");
        if number % 100 == 7 {
            let viewer = number / 100 % VIEWERS;
            let participant = session.participant(&format!("v{viewer}").parse().expect("well-formed"));
            let participant = participant.expect("nobody is reset");
            within(participant.send_waiting(text(format!("direct {number}")))).await.expect("nobody is reset");
        }
    }
    for (viewer, seen) in viewers.iter().enumerate() {
        let direct = |number: usize| number % 100 == 7 && number / 100 % VIEWERS == viewer;
        let mut expected = Vec::new();
        for number in 0..BROADCASTS {
            expected.push(format!("{number} {}", "x".repeat(number % 97)));
            if direct(number) {
                expected.push(format!("direct {number}"));
            }
        }
        assert!(texts(&seen.frames(expected.len()).await) == expected, "viewer {viewer}");
        assert_eq!(seen.streams().len(), 1);
    }
    settled(&session).await;
    assert_eq!(session.stats().resets.total(), 0);
    within(room.close()).await;
}

/// Frames of all sizes, cut and joined at the borders of chunks. The largest frame arrives whole.
#[tokio::test(flavor = "multi_thread")]
async fn frames_of_all_sizes_arrive_whole() {
    let Some(server) = Server::of_environment() else { return };
    let room = server.device().await;
    let session = Session::builder(room.clone()).build().expect("the settings make sense");
    let viewer: Viewer = server.viewer("v").await;
    joined(&session.handle(), 1).await;
    fastrand::seed(3);
    let sizes = [MAX_STREAM_FRAME - 1, 0, 1, 14_994, 14_995, 14_996, 15_000, 30_000, 100_001];
    let random = (0..200).map(|_| fastrand::usize(..20_000));
    let frames: Vec<_> =
        sizes.into_iter().chain(random).map(|len| Frame::binary(Bytes::from(vec![len as u8; len]))).collect();
    for frame in &frames {
        within(session.broadcast(frame.clone())).await.expect("the session is open");
    }
    let seen = viewer.frames(frames.len()).await;
    assert!(seen.iter().zip(&frames).all(|(seen, sent)| seen.payload() == sent.payload()));
    let too_large = Frame::binary(Bytes::from(vec![0; MAX_STREAM_FRAME + 1]));
    assert!(session.broadcast(too_large).await.is_err(), "it is refused, and nobody is reset for it");
    assert_eq!(session.stats().resets.total(), 0);
    within(room.close()).await;
}
