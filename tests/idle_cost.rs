//! What an idle participant costs. The memory is measured with a counting allocator, so this test has a binary of its
//! own.
//!
//! `dhat` counts the bytes in use, which a peak counter doesn't; it needs no `unsafe` code here, and it is maintained.

mod common;

use std::task::Poll;

use bytes::Bytes;
use common::{Stage, StageSink, close_settled, id, live, memory, msg, presence, size, until};
use lanecast::room::memory::MemoryRoom;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

fn in_use() -> usize {
    dhat::HeapStats::get().curr_bytes
}

// 1. Thousands join; they get their initial message and a broadcast, and no direct message: none of them holds a queue.
// 2. A participant that gets direct messages holds a queue in proportion to how many have waited at once, whatever the
// capacity.
#[tokio::test]
async fn a_control_queue_grows_with_the_messages_waiting_at_once() {
    let _counting = dhat::Profiler::builder().testing().trim_backtraces(Some(1)).build();
    let count = size(2_000, 10_000);
    let (room, session) = memory(|builder| builder.initial(|_| async { vec![msg("hello")] }));
    let presences: Vec<_> = (0..count).map(|n| presence(&format!("p{n}"), &format!("PA_{n}"), 1)).collect();
    // The room's records aren't part of the session's cost.
    presences.iter().for_each(|presence| room.insert_silently(presence.clone()));
    let recorders: Vec<_> = presences.iter().map(|presence| room.recorder(&presence.identity)).collect();
    let before = in_use();
    for presence in presences {
        room.join(presence).await.expect("the session listens");
    }
    until(|| session.stats().participants == count && session.stats().account.delivered == count as u64).await;
    session.broadcast(msg("to all")).await.expect("the session is open");
    until(|| session.stats().account.delivered == 2 * count as u64).await;
    let each = (in_use() - before) / count;
    println!("an idle participant takes {each} bytes");
    assert!(each <= 2_048, "an idle participant takes {each} bytes");

    drop(recorders);
    assert!(session.participant(&id("p0")).is_some());
    let _: &MemoryRoom<_> = session.room();
    close_settled(&session).await;
    drop((room, session));

    // A room that keeps no record of the messages.
    let stage = Stage::<Bytes>::new(|_, _| async { Ok(StageSink::new(|_, _| Poll::Ready(Ok(())))) });
    let session = stage.session(|builder| builder);
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let slot = size_of::<Bytes>() + 24;
    let (before, mut delivered) = (in_use(), 0);
    for (at_once, slots) in [(1, 16), (20, 80), (100, 336), (1_000, 1_360), (4_000, 5_456)] {
        // Nothing is awaited: all messages wait for the shard together.
        (0..at_once).for_each(|_| ada.send(msg("directly")).expect("there is capacity"));
        delivered += at_once;
        until(|| session.stats().account.delivered == delivered).await;
        let queue = in_use() - before;
        println!("a participant that got {at_once} direct messages at once takes {queue} bytes more");
        assert!(queue >= slots * slot, "the measure doesn't see a queue of {slots} slots: {queue} bytes");
        assert!(queue < slots * slot + 8_192, "{at_once} direct messages take {queue} bytes");
    }
    close_settled(&session).await;
}
