//! What a viewer's request costs the server, at its worst. The memory is measured with a counting allocator, so this
//! test has a binary of its own.
#![cfg(feature = "telemetry")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lanecast::protocol::{Frame, Subprotocol};
use lanecast::room::Presence;
use lanecast::room::memory::{Behavior, MemoryRoom};
use lanecast::telemetry::Telemetry;
use tokio::sync::Mutex;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// A refused request takes memory in proportion to its length, however many items it names.
/// The allocator is counted for one test at a time.
static COUNTED: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn a_refused_request_costs_memory_in_proportion_to_its_length() {
    let _counted = COUNTED.lock().await;
    let ids = format!(r#"{{"op":"unsubscribe","subscriptionIds":[1{}]}}"#, ",1".repeat(1 << 17));
    let wanted = r#",{"id":1,"channelId":9}"#.repeat(1 << 14);
    let wanted = format!(r#"{{"op":"subscribe","subscriptions":[{{"id":1,"channelId":9}}{wanted}]}}"#);
    let values = r#",{"":0}"#.repeat(1 << 15);
    let values = format!(r#"{{"op":"setParameters","parameters":[{{"name":"","value":[0{values}]}}]}}"#);
    for request in [ids, wanted, values] {
        let (room, length) = (MemoryRoom::<Frame>::new(), request.len());
        let _telemetry = Telemetry::builder(room.clone()).build().expect("a test's settings make sense");
        let presence = Presence::new("ada".parse().unwrap(), "PA_1".parse().unwrap(), 1);
        let presence = presence.with_dialect(Subprotocol::SdkV1);
        room.join(presence.clone()).await.expect("the session listens");
        let requests = room.open_incoming(&presence.identity, &presence.sid).await.expect("the session listens");
        let recorder = room.recorder(&presence.identity);
        let answers = |count| recorder.wait_for(move |all| all.last().is_some_and(|one| one.messages.len() >= count));
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

/// Bytes that tell when they are dropped.
struct Watched(Vec<u8>, Arc<AtomicBool>);

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
    }
}

// 1. Half of what may wait for a viewer does, so that its answers wait. 2. It sends a long request of which one item
//    can't
// be read, or a long call. 3. The answer waits, and holds nothing of the request.
#[tokio::test]
async fn an_answer_that_waits_holds_nothing_of_its_request() {
    const LONG: usize = 1 << 18;
    let _counted = COUNTED.lock().await;
    let ids = format!(r#"{{"op":"unsubscribe","subscriptionIds":["x"{}]}}"#, ",1".repeat(LONG / 2));
    let call = [&[2_u8; 9][..], &4_u32.to_le_bytes(), b"json", &[0; LONG]].concat();
    // What decoding takes at least, of the memory that is counted.
    for (is_text, request, taken) in [(true, ids.into_bytes(), LONG), (false, call, 0)] {
        let room = MemoryRoom::<Frame>::new();
        let telemetry = Telemetry::builder(room.clone()).configure(|session| session.queue_capacity(8)).build();
        let telemetry = telemetry.expect("a test's settings make sense");
        let presence = Presence::new("ada".parse().unwrap(), "PA_1".parse().unwrap(), 1);
        let presence = presence.with_dialect(Subprotocol::SdkV1);
        let recorder = room.recorder(&presence.identity);
        room.join(presence.clone()).await.expect("the session listens");
        let requests = room.open_incoming(&presence.identity, &presence.sid).await.expect("the session listens");
        let wait = |count| recorder.wait_for(move |all| all.last().is_some_and(|one| one.messages.len() >= count));
        tokio::time::timeout(Duration::from_secs(60), wait(1)).await.expect("timed out");
        recorder.set_behavior(Behavior::Stall { capacity: 0 });
        let ada = telemetry.session().participants().remove(0);
        for _ in 0..4 {
            ada.send(Frame::text("x")).expect("there is capacity");
        }
        let dropped = Arc::new(AtomicBool::new(is_text));
        let frame = if is_text {
            Frame::text(String::from_utf8(request).expect("it is JSON"))
        } else {
            Frame::binary(Bytes::from_owner(Watched(request, Arc::clone(&dropped))))
        };
        let counting = dhat::Profiler::builder().testing().trim_backtraces(Some(1)).build();
        requests.send(frame).await.expect("the session listens");
        let released = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                let stats = dhat::HeapStats::get();
                let is_decoded = stats.total_bytes >= taken as u64;
                if dropped.load(Ordering::Relaxed) && is_decoded && stats.curr_bytes < LONG / 4 {
                    return;
                }
                // Polled: nothing announces that memory is freed.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        released.await.expect("the request is held while its answer waits");
        drop(counting);
        assert_eq!(recorder.received().len(), 1, "the answer waits");
        assert_eq!(ada.end_reason(), None);
    }
}
