//! Tests of internal invariants: no viewer stays in the audience of a channel that has ended, and no instance that has
//! ended stays among the viewers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::catalog::entry::ChannelEntry;
use super::{Channel, Telemetry};
use crate::protocol::{Frame, Subprotocol, WireFormat};
use crate::room::Presence;
use crate::room::memory::MemoryRoom;

const PATIENCE: Duration = Duration::from_secs(60);

const ROUNDS: usize = 300;
const VIEWERS: usize = 4;

async fn emptied(channel: &ChannelEntry) {
    let emptied = async {
        while channel.audience.subscribers() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, emptied).await.expect("somebody stays in the audience");
}

async fn viewer(room: &MemoryRoom<Frame>, name: &str, format: WireFormat) -> mpsc::Sender<Frame> {
    let mut presence = Presence::new(name.parse().unwrap(), format!("PA_{name}").parse().unwrap(), 1);
    if format == WireFormat::V1 {
        presence = presence.with_dialect(Subprotocol::SdkV1);
    }
    room.join(presence.clone()).await.unwrap();
    let requests = room.open_incoming(&presence.identity, &presence.sid).await.unwrap();
    room.recorder(&presence.identity).wait_for(|received| !received.is_empty()).await;
    requests
}

fn subscribe(format: WireFormat, id: usize, channel: u64) -> Frame {
    Frame::text(match format {
        WireFormat::V1 => format!(r#"{{"op":"subscribe","subscriptions":[{{"id":{id},"channelId":{channel}}}]}}"#),
        WireFormat::V2 => format!(r#"{{"op":"subscribe","channels":[{{"id":{channel}}}]}}"#),
    })
}

#[tokio::test]
async fn an_unadvertise_empties_the_audience() {
    let room = MemoryRoom::new();
    let telemetry = Telemetry::builder(room.clone()).build().unwrap();
    let channel = telemetry.advertise(Channel::new("/one", "json")).await.unwrap();
    let inner = Arc::clone(channel.inner());
    // 1. A viewer of each format subscribes, and stays silent.
    let mut streams = Vec::new();
    for (name, format) in [("ada", WireFormat::V1), ("bob", WireFormat::V2)] {
        let requests = viewer(&room, name, format).await;
        requests.send(subscribe(format, 1, channel.id())).await.unwrap();
        streams.push(requests);
    }
    while inner.audience.subscribers() < streams.len() {
        tokio::task::yield_now().await;
    }
    // 2. The channel is unadvertised, which ends the subscriptions.
    channel.unadvertise().await.unwrap();
    emptied(&inner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn nobody_slips_into_the_audience_of_a_channel_that_goes() {
    let room = MemoryRoom::new();
    let telemetry = Telemetry::builder(room.clone()).build().unwrap();
    let mut viewers = Vec::new();
    for n in 0..VIEWERS {
        let format = if n % 2 == 0 { WireFormat::V1 } else { WireFormat::V2 };
        viewers.push((format, viewer(&room, &format!("v{n}"), format).await));
    }
    let mut gone = Vec::new();
    for round in 0..ROUNDS {
        // 1. All viewers subscribe while the channel is unadvertised.
        let channel = telemetry.advertise(Channel::new("/one", "json")).await.unwrap();
        gone.push(Arc::clone(channel.inner()));
        for (format, requests) in &viewers {
            requests.send(subscribe(*format, round, channel.id())).await.unwrap();
        }
        for _ in 0..round % 16 {
            tokio::task::yield_now().await;
        }
        channel.unadvertise().await.unwrap();
    }
    // 2. No viewer stays in an audience, whether it or the unadvertise came first.
    for channel in &gone {
        emptied(channel).await;
    }
}

// 1. A viewer joins and leaves, and its entry goes. 2. Its join enters it again, as if the shard had been faster: the
// entry goes, too.
#[tokio::test]
async fn an_instance_that_is_retired_before_it_is_entered_leaves_no_entry() {
    let room = MemoryRoom::new();
    let telemetry = Telemetry::builder(room.clone()).build().unwrap();
    let _requests = viewer(&room, "ada", WireFormat::V2).await;
    let ada = loop {
        match telemetry.session().participants().pop() {
            Some(ada) => break ada,
            None => tokio::task::yield_now().await,
        }
    };
    let viewers = &telemetry.0.viewers;
    let protocol = telemetry.viewer(ada.client_id()).unwrap().protocol().clone();
    room.leave(ada.identity(), ada.sid()).await.unwrap();
    timeout(PATIENCE, ada.closed()).await.expect("timed out");
    assert_eq!(viewers.len(), 0);
    viewers.enter(&ada, protocol);
    assert_eq!(viewers.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn joins_that_are_cut_off_leave_no_entries() {
    let room: MemoryRoom<Frame> = MemoryRoom::new();
    let telemetry = Telemetry::builder(room.clone()).build().unwrap();
    // 1. Each viewer leaves, or connects again, before, while or after it joins.
    for round in 0..ROUNDS as u64 {
        for n in 0..VIEWERS {
            let name = format!("v{n}").parse().unwrap();
            room.join(Presence::new(name, format!("PA_{n}_{round}").parse().unwrap(), round)).await.unwrap();
        }
        for _ in 0..round % 16 {
            tokio::task::yield_now().await;
        }
        for n in 0..VIEWERS / 2 {
            room.leave(&format!("v{n}").parse().unwrap(), &format!("PA_{n}_{round}").parse().unwrap()).await.unwrap();
        }
    }
    // 2. Those that stay have entries; in the end nobody has one.
    let viewers = &telemetry.0.viewers;
    let settled = async {
        while viewers.len() != VIEWERS / 2 || telemetry.session().stats().participants != VIEWERS / 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, settled).await.expect("an entry stays behind");
    telemetry.close(PATIENCE).await.unwrap();
    assert_eq!(viewers.len(), 0);
}
