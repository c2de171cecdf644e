//! Requests in flight: each viewer may have a limited number of each kind.

use std::sync::{Arc, Barrier};

use lanecast::telemetry::{TelemetryBuilder, Viewer};

use super::*;

fn start(set: impl FnOnce(TelemetryBuilder<Room>) -> TelemetryBuilder<Room>) -> (Room, Telemetry) {
    let room = Room::new();
    let telemetry = set(Telemetry::builder(room.clone())).build().expect("a test's settings make sense");
    (room, telemetry)
}

/// Waits until the viewer is registered.
async fn live(telemetry: &Telemetry, name: &str) -> Viewer {
    let participant = super::live(telemetry.session(), name).await;
    telemetry.viewer(participant.client_id()).expect("it is registered")
}

async fn joined(room: &Room, telemetry: &Telemetry, name: &str) -> Viewer {
    room.join(presence(name, V2)).await.expect("the session listens");
    live(telemetry, name).await
}

#[tokio::test]
async fn each_viewer_has_32_permits_of_each_kind() {
    let (room, telemetry) = start(|builder| builder);
    let ada = joined(&room, &telemetry, "ada").await;
    let bob = joined(&room, &telemetry, "bob").await;
    let calls: Vec<_> = (0..32).map(|_| ada.admit_service_call().expect("32 may be in flight")).collect();
    let error = ada.admit_service_call().expect_err("the 33rd is refused");
    assert_eq!(error.limit, 32);
    let fetches: Vec<_> = (0..32).map(|_| ada.admit_asset_fetch().expect("the kinds are counted apart")).collect();
    assert!(ada.admit_asset_fetch().is_err());
    bob.admit_service_call().map(drop).expect("viewers are counted apart");
    assert_eq!((ada.stats().service_calls, ada.stats().asset_fetches), (32, 32));
    drop(calls);
    assert_eq!((ada.stats().service_calls, ada.stats().asset_fetches), (0, 32));
    ada.admit_service_call().map(drop).expect("they were returned");
    drop(fetches);
    assert_eq!(ada.stats().asset_fetches, 0);
}

#[tokio::test]
async fn limits_can_be_set_down_to_zero() {
    let (room, telemetry) = start(|builder| builder.service_calls_in_flight(1).asset_fetches_in_flight(0));
    let ada = joined(&room, &telemetry, "ada").await;
    let call = ada.admit_service_call().expect("one may be in flight");
    assert_eq!(ada.admit_service_call().expect_err("one only").limit, 1);
    assert_eq!(ada.admit_asset_fetch().expect_err("none").limit, 0);
    drop(call);
}

/// A handler that panics, or is cancelled, returns its permit.
#[tokio::test]
async fn a_panic_returns_the_permit() {
    let (room, telemetry) = start(|builder| builder.service_calls_in_flight(1));
    let ada = joined(&room, &telemetry, "ada").await;
    let permit = ada.admit_service_call().expect("one may be in flight");
    let handler = tokio::spawn(async move {
        let _permit = permit;
        panic!("the handler was told to panic");
    });
    assert!(handler.await.is_err_and(|error| error.is_panic()));
    let permit = ada.admit_service_call().expect("it was returned");
    let handler = tokio::spawn(async move {
        let _permit = permit;
        std::future::pending::<()>().await;
    });
    tokio::task::yield_now().await;
    handler.abort();
    assert!(handler.await.is_err_and(|error| error.is_cancelled()));
    assert_eq!(ada.stats().service_calls, 0);
}

/// Eight threads take and return permits. Never more than three are held at once, and in the end none is.
#[tokio::test]
async fn concurrent_callers_never_exceed_the_limit() {
    let (room, telemetry) = start(|builder| builder.service_calls_in_flight(3));
    let ada = joined(&room, &telemetry, "ada").await;
    let start = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (ada, start) = (ada.clone(), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                let mut got = 0;
                for _ in 0..common::size(5_000, 500_000) {
                    if let Ok(permit) = ada.admit_service_call() {
                        got += 1;
                        assert!(ada.stats().service_calls <= 3);
                        drop(permit);
                    }
                }
                got
            })
        })
        .collect();
    let got: usize = threads.into_iter().map(|thread| thread.join().expect("no thread panics")).sum();
    assert!(got > 0);
    assert_eq!(ada.stats().service_calls, 0);
}

/// A permit belongs to its instance: after a reset the new instance has all its permits, whatever the old one still
/// holds.
#[tokio::test]
async fn a_new_instance_has_all_its_permits() {
    let (room, telemetry) = start(|builder| builder.service_calls_in_flight(1));
    let mut events = telemetry.session().events();
    let old = joined(&room, &telemetry, "ada").await;
    let held = old.admit_service_call().expect("one may be in flight");
    room.recorder(&common::id("ada")).set_behavior(Behavior::Fail);
    old.participant().send(Frame::text("x")).expect("there is capacity");
    common::reset(&mut events).await;
    room.recorder(&common::id("ada")).set_behavior(Behavior::Flow);
    let new = live(&telemetry, "ada").await;
    assert!(old.admit_service_call().is_err());
    let permit = new.admit_service_call().expect("the new instance has its own permit");
    drop(held);
    assert_eq!((old.stats().service_calls, new.stats().service_calls), (0, 1));
    drop(permit);
}

/// The entry of an instance goes when the instance is retired, and the handles that are left go on.
#[tokio::test]
async fn an_instance_that_has_ended_is_not_found() {
    let (room, telemetry) = start(|builder| builder);
    let ada = joined(&room, &telemetry, "ada").await;
    let client_id = ada.participant().client_id();
    assert!(telemetry.viewer(client_id).is_some());
    let permit = ada.admit_asset_fetch().expect("32 may be in flight");
    room.leave(ada.participant().identity(), ada.participant().sid()).await.expect("the session listens");
    assert_eq!(within(ada.participant().closed()).await, EndReason::Disconnected);
    common::until(|| telemetry.viewer(client_id).is_none()).await;
    assert_eq!(ada.stats().asset_fetches, 1);
    drop(permit);
    assert_eq!(ada.stats().asset_fetches, 0);
    ada.admit_service_call().map(drop).expect("the handle still counts");
}
