//! Fetching assets.

use super::*;

#[tokio::test]
async fn assets_are_fetched_concurrently_with_other_requests() {
    let room = Room::new();
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let telemetry = Telemetry::builder(room.clone())
        .asset_fetches_in_flight(2)
        .configure(|session| session.queue_bytes(1000))
        .assets(move |request| {
            let gate = Arc::clone(&held);
            async move {
                assert_eq!(request.participant.identity().as_str(), "ada");
                match request.uri.as_str() {
                    "slow" => {
                        gate.acquire().await.unwrap().forget();
                        Ok(Bytes::from_static(b"slow one"))
                    }
                    "panic" => panic!("as told"),
                    "none" => Err("no such thing".to_owned()),
                    "large" => Ok(Bytes::from(vec![0; 2000])),
                    _ => Ok(Bytes::from_static(b"mesh")),
                }
            }
        })
        .build()
        .unwrap();
    let channel = telemetry.advertise(Channel::new("/one", "json")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", SDK_V1).await;
    // 1. The viewer fetches an asset, one that is refused with a reason, one whose handler panics (an error to this
    // viewer alone), and one too large to be sent.
    viewer.fetch(1, "mesh").await;
    viewer.fetch(2, "none").await;
    assert_eq!(viewer.until_asset(1).await, Ok(Bytes::from_static(b"mesh")));
    assert_eq!(viewer.until_asset(2).await, Err("no such thing".to_owned()));
    viewer.fetch(3, "panic").await;
    assert_eq!(viewer.until_asset(3).await, Err("the server failed to fetch the asset".to_owned()));
    viewer.fetch(4, "large").await;
    assert_eq!(viewer.until_asset(4).await, Err("the asset is too large".to_owned()));
    // 2. Two slow fetches take both permits: a third is refused at once, and other requests are served.
    viewer.fetch(5, "slow").await;
    viewer.fetch(6, "slow").await;
    viewer.fetch(7, "mesh").await;
    let refused = viewer.until_asset(7).await.unwrap_err();
    assert!(refused.contains("2 requests of this kind are in flight"), "{refused}");
    viewer.subscribe(1, channel.id()).await;
    viewer.settle().await;
    assert!(channel.has_subscribers());
    // 3. A fetch that ends returns its permit, before its answer arrives.
    gate.add_permits(1);
    viewer.until("one of them", |seen| seen.iter().any(|message| asset_text(message) == Some("slow one"))).await;
    viewer.fetch(8, "mesh").await;
    assert_eq!(viewer.until_asset(8).await, Ok(Bytes::from_static(b"mesh")));
    gate.add_permits(1);
    viewer.until_asset(5).await.unwrap();
    viewer.until_asset(6).await.unwrap();
    let ada = telemetry.viewer(telemetry.session().participants()[0].client_id()).unwrap();
    assert_eq!(ada.stats().asset_fetches, 0);
}

fn asset_text(message: &ServerMessage) -> Option<&str> {
    match message {
        ServerMessage::FetchAssetResponse(FetchAssetResponse { result: Ok(asset), .. }) => {
            std::str::from_utf8(asset).ok()
        }
        _ => None,
    }
}

#[tokio::test]
async fn a_fetch_ends_with_its_viewer_and_with_the_session() {
    struct OnDrop(mpsc::UnboundedSender<&'static str>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }
    let (report, mut reports) = mpsc::unbounded_channel();
    let room = Room::new();
    let telemetry = Telemetry::builder(room.clone())
        .assets(move |_| {
            let guard = OnDrop(report.clone());
            async move {
                guard.0.send("begun").unwrap();
                std::future::pending().await
            }
        })
        .build()
        .unwrap();
    // 1. The viewer is reset while it fetches.
    let ada = Viewer::join(&room, "ada", SDK_V1).await;
    ada.fetch(1, "x").await;
    assert_eq!(within(reports.recv()).await, Some("begun"));
    ada.recorder.set_behavior(Behavior::Fail);
    telemetry.status(StatusLevel::Info, "lost", None).await.unwrap();
    assert_eq!(within(reports.recv()).await, Some("dropped"));
    // 2. The viewer leaves while it fetches.
    let bob = Viewer::join(&room, "bob", SDK_V1).await;
    bob.fetch(1, "x").await;
    assert_eq!(within(reports.recv()).await, Some("begun"));
    room.leave(&"bob".parse().unwrap(), &"PA_bob".parse().unwrap()).await.unwrap();
    assert_eq!(within(reports.recv()).await, Some("dropped"));
    // 3. The session closes while it fetches.
    let eve = Viewer::join(&room, "eve", SDK_V1).await;
    eve.fetch(1, "x").await;
    assert_eq!(within(reports.recv()).await, Some("begun"));
    within(telemetry.close(Duration::from_secs(5))).await.unwrap();
    assert_eq!(within(reports.recv()).await, Some("dropped"));
}
