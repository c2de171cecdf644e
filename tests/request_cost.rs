//! What a viewer's request costs the server, at its worst. The memory is measured with a counting allocator, so this
//! test has a binary of its own.
#![cfg(feature = "telemetry")]

use std::time::Duration;

use lanecast::protocol::Frame;
use lanecast::room::Presence;
use lanecast::room::memory::MemoryRoom;
use lanecast::telemetry::Telemetry;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// A refused request takes memory in proportion to its length, however many items it names.
#[tokio::test]
async fn a_refused_request_costs_memory_in_proportion_to_its_length() {
    let ids = format!(r#"{{"op":"unsubscribe","subscriptionIds":[1{}]}}"#, ",1".repeat(1 << 17));
    let wanted = r#",{"id":1,"channelId":9}"#.repeat(1 << 14);
    let wanted = format!(r#"{{"op":"subscribe","subscriptions":[{{"id":1,"channelId":9}}{wanted}]}}"#);
    let values = r#",{"":0}"#.repeat(1 << 15);
    let values = format!(r#"{{"op":"setParameters","parameters":[{{"name":"","value":[0{values}]}}]}}"#);
    for request in [ids, wanted, values] {
        let (room, length) = (MemoryRoom::<Frame>::new(), request.len());
        let _telemetry = Telemetry::builder(room.clone()).build().expect("a test's settings make sense");
        let presence = Presence::new("ada".parse().unwrap(), "PA_1".parse().unwrap(), 1);
        let presence = presence.with_negotiated("foxglove.sdk.v1");
        room.join(presence.clone()).await.expect("the session listens");
        let requests = room.open_incoming(&presence.identity, &presence.sid).await.expect("the session listens");
        let line = room.line(&presence.identity);
        let answers = |count| line.wait_for(move |all| all.last().is_some_and(|one| one.messages.len() >= count));
        tokio::time::timeout(Duration::from_secs(60), answers(1)).await.expect("timed out");
        let counting = dhat::Profiler::builder().testing().trim_backtraces(Some(1)).build();
        let op = request[..24].to_owned();
        requests.send(Frame::text(request)).await.expect("the session listens");
        tokio::time::timeout(Duration::from_secs(60), answers(2)).await.expect("timed out");
        let peak = dhat::HeapStats::get().max_bytes;
        drop(counting);
        println!("{length} bytes of {op} take {peak}");
        assert!(peak <= 8 * length, "{length} bytes of {op} take {peak}");
    }
}
