//! What an idle participant costs: measured with a counting allocator, so this test has a binary of its own.
//!
//! `dhat` because it counts the bytes in use, which a peak counter doesn't, without any `unsafe` of ours, and is kept
//! up.

mod common;

use common::{id, live, memory, msg, presence, size, until};
use lanecast::room::memory::MemoryRoom;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

fn in_use() -> usize {
    dhat::HeapStats::get().curr_bytes
}

// 1. Thousands join; they get their initial message and a broadcast, and nothing directly. 2. None of them holds a
// queue of 1,024 slots. 3. Nor does one that gets a direct message. 4. One for which many wait at once does: the
// measure would have seen them.
#[tokio::test]
async fn participants_not_sent_anything_directly_hold_no_queue() {
    let _counting = dhat::Profiler::builder().testing().trim_backtraces(Some(1)).build();
    let count = size(2_000, 10_000);
    let (room, session) = memory(|builder| builder.initial(|_| async { vec![msg("hello")] }));
    let presences: Vec<_> = (0..count).map(|n| presence(&format!("p{n}"), &format!("PA_{n}"), 1)).collect();
    // The room's records aren't the session's cost.
    presences.iter().for_each(|presence| room.place(presence.clone()));
    let lines: Vec<_> = presences.iter().map(|presence| room.line(&presence.identity)).collect();
    let before = in_use();
    for presence in presences {
        room.join(presence).await.expect("the session listens");
    }
    until(|| session.stats().participants == count && session.stats().account.delivered == count as u64).await;
    session.broadcast(msg("to all")).await.expect("the session is open");
    until(|| session.stats().account.delivered == 2 * count as u64).await;
    let each = (in_use() - before) / count;
    let queue = 1_024 * (size_of::<bytes::Bytes>() + 24);
    println!("an idle participant takes {each} bytes, its queue would take {queue}");
    assert!(each <= 2_048, "an idle participant takes {each} bytes");

    let before = in_use();
    let first = live(&session, "p0").await;
    first.send(msg("directly")).expect("there is room");
    until(|| session.stats().account.delivered == 2 * count as u64 + 1).await;
    let few = in_use() - before;
    println!("one that got a direct message takes {few} more");
    assert!(few < queue / 10, "one direct message takes {few} bytes");

    // Nothing is awaited: all of them wait for the shard together.
    (0..100).for_each(|_| first.send(msg("directly")).expect("there is room"));
    until(|| session.stats().account.delivered == 2 * count as u64 + 101).await;
    assert!(in_use() - before >= queue / 2, "the measure doesn't see a queue");
    drop(lines);
    assert!(session.participant(&id("p0")).is_some());
    let _: &MemoryRoom<_> = session.room();
}
