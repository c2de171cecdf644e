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
    place.send(ShardCommand::Subscribe { member, counted: topic.raise(), tag: SubscriptionTag(1), wish: None, reply });
    session.ended().await.unwrap();
    assert_eq!(topic.subscribers(), 0);
    assert!(answer.await.is_err(), "nobody subscribed");
}
