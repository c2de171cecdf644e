//! lanecast through `Telemetry`, as an embedder uses it: one advertised channel. Every setting is the default.

use std::net::SocketAddr;

use bytes::Bytes;
use lanecast::room::websocket::WebSocketRoom;
use lanecast::telemetry::{self, AdvertisedChannel, Channel};
use tokio::runtime::Runtime;

use super::Peer;
use crate::serve::{Next, Task};
use crate::{Error, wire};

pub struct Telemetry {
    address: SocketAddr,
    channel: AdvertisedChannel,
    runtime: Runtime,
    _telemetry: telemetry::Telemetry,
}

impl Telemetry {
    pub fn start() -> Result<Self, Error> {
        let runtime = Runtime::new()?;
        let (address, telemetry, channel) = runtime.block_on(async {
            let room = WebSocketRoom::builder().bind("127.0.0.1:0").await?;
            let address = room.local_addr();
            let telemetry = telemetry::Telemetry::builder(room).build()?;
            let channel = telemetry.advertise(Channel::new("/bench", "raw")).await?;
            Ok::<_, Error>((address, telemetry, channel))
        })?;
        Ok(Self { address, channel, runtime, _telemetry: telemetry })
    }
}

impl Peer for Telemetry {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn publish(&self, payload: Bytes, log_time: u64) {
        // Publishing fails only when the session is closed.
        let _ = self.runtime.block_on(self.channel.publish_at(log_time, payload));
    }

    /// In a task of the runtime, as embedders publish. Tokio's timers count milliseconds.
    fn publish_all(&self, task: &Task, first: u64) -> u64 {
        let (channel, task) = (self.channel.clone(), *task);
        let publishing = self.runtime.spawn(async move {
            let (start, mut sent) = (wire::now(), 0);
            loop {
                match task.next(start, sent) {
                    Next::Due(due) => {
                        // Publishing fails only when the session is closed.
                        let _ = channel.publish_at(due, wire::payload(first + sent, due, task.size)).await;
                        sent += 1;
                    }
                    Next::Wait(time) => tokio::time::sleep(time).await,
                    Next::Done => return sent,
                }
            }
        });
        self.runtime.block_on(publishing).expect("publishing doesn't panic")
    }

    fn subscribers(&self) -> usize {
        self.channel.subscribers()
    }
}
