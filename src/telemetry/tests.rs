//! What can't be seen from outside: that nobody stays in the audience of a channel that is gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::channel::ChannelState;
use super::{Channel, Telemetry};
use crate::protocol::Frame;
use crate::room::Presence;
use crate::room::memory::MemoryRoom;

const ROUNDS: usize = 300;
const VIEWERS: usize = 4;

async fn emptied(channel: &ChannelState) {
    let emptied = async {
        while channel.audience.subscribers() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), emptied).await.expect("somebody stays in the audience");
}

async fn viewer(room: &MemoryRoom<Frame>, name: &str) -> mpsc::Sender<Frame> {
    let presence = Presence::new(name.parse().unwrap(), format!("PA_{name}").parse().unwrap(), 1);
    room.join(presence.clone()).await.unwrap();
    let requests = room.open_incoming(&presence.identity, &presence.sid).await.unwrap();
    room.line(&presence.identity).wait_for(|received| !received.is_empty()).await;
    requests
}

fn subscribe(id: usize, channel: u64) -> Frame {
    Frame::text(format!(r#"{{"op":"subscribe","subscriptions":[{{"id":{id},"channelId":{channel}}}]}}"#))
}

#[tokio::test]
async fn an_unadvertise_empties_the_audience() {
    let room = MemoryRoom::new();
    let telemetry = Telemetry::builder(room.clone()).build().unwrap();
    let channel = telemetry.advertise(Channel::new("/one", "json")).await.unwrap();
    let inner = Arc::clone(channel.inner());
    // 1. A viewer subscribes, and says nothing more.
    let requests = viewer(&room, "ada").await;
    requests.send(subscribe(1, channel.id())).await.unwrap();
    while inner.audience.subscribers() == 0 {
        tokio::task::yield_now().await;
    }
    // 2. The channel goes, and with it the subscription.
    channel.unadvertise().await.unwrap();
    emptied(&inner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn nobody_slips_into_the_audience_of_a_channel_that_goes() {
    let room = MemoryRoom::new();
    let telemetry = Telemetry::builder(room.clone()).build().unwrap();
    let mut viewers = Vec::new();
    for n in 0..VIEWERS {
        viewers.push(viewer(&room, &format!("v{n}")).await);
    }
    let mut gone = Vec::new();
    for round in 0..ROUNDS {
        // 1. Everybody subscribes while the channel goes.
        let channel = telemetry.advertise(Channel::new("/one", "json")).await.unwrap();
        gone.push(Arc::clone(channel.inner()));
        for requests in &viewers {
            requests.send(subscribe(round, channel.id())).await.unwrap();
        }
        for _ in 0..round % 16 {
            tokio::task::yield_now().await;
        }
        channel.unadvertise().await.unwrap();
    }
    // 2. Nobody stays behind, whoever was first.
    for channel in &gone {
        emptied(channel).await;
    }
}
