use bytes::Bytes;
use tokio::sync::oneshot;

use super::Session;
use crate::contract::{SubscriptionTag, Topic};
use crate::fanout::ShardCommand;
use crate::room::Presence;
use crate::room::memory::MemoryRoom;

// 1. A subscription has its place in the shard's channel, but isn't in it yet.
// 2. The session is cancelled, and the shard releases its last member.
// 3. The command arrives. The topic's count goes back to zero although the participant lives on.
#[tokio::test(start_paused = true)]
async fn a_command_on_its_way_at_the_end_is_not_left_in_the_channel() {
    let room = MemoryRoom::<Bytes>::new();
    let session = Session::builder(room.clone()).shards(1).build().unwrap();
    room.join(Presence::new("ada".parse().unwrap(), "PA_1".parse().unwrap(), 1)).await.unwrap();
    let ada = loop {
        match session.participant(&"ada".parse().unwrap()) {
            Some(ada) => break ada,
            None => tokio::task::yield_now().await,
        }
    };
    let topic = Topic::new();
    let place = ada.outbox().commands().clone().reserve_owned().await.unwrap();
    session.cancel();
    ada.closed().await;
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
    let (reply, answer) = oneshot::channel();
    let member = ada.outbox().member();
    place.send(ShardCommand::Subscribe {
        member,
        counted: topic.raise(),
        tag: SubscriptionTag(1),
        own_rate: None,
        reply,
    });
    session.ended().await.unwrap();
    assert_eq!(topic.subscribers(), 0);
    assert!(answer.await.is_err(), "nobody subscribed");
}

// Thousands join at once, most of them before the last shards are made: members never change their shard, and still no
// shard has more than one step of growth more than another.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_burst_of_joins_spreads_over_shards_that_are_made_meanwhile() {
    for count in [300, 1_000, 5_000] {
        let room = MemoryRoom::<Bytes>::new();
        let session = Session::builder(room.clone()).build().unwrap();
        for n in 0..count {
            let presence = Presence::new(format!("p{n}").parse().unwrap(), format!("PA_{n}").parse().unwrap(), 1);
            room.join(presence).await.unwrap();
        }
        while session.stats().participants < count {
            tokio::task::yield_now().await;
        }
        let populations = session.core().fanout.populations();
        println!("{count} joined at once: {populations:?}");
        let (most, fewest) = (populations.iter().max().unwrap(), populations.iter().min().unwrap());
        // Joins that choose at the same moment may choose the same shard.
        assert!(most - fewest <= 256 + 64, "{populations:?}");
        session.close(std::time::Duration::from_secs(30)).await.unwrap();
    }
}
