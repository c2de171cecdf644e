//! The `foxglove` crate's server, with its defaults.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use foxglove::websocket::{ChannelView, Client, ServerListener};
use foxglove::{ChannelBuilder, PartialMetadata, RawChannel, WebSocketServer, WebSocketServerHandle};

use super::Peer;
use crate::Error;

pub struct Foxglove {
    server: WebSocketServerHandle,
    channel: Arc<RawChannel>,
    subscribers: Arc<Subscribers>,
}

#[derive(Default)]
struct Subscribers(AtomicUsize);

impl ServerListener for Subscribers {
    fn on_subscribe(&self, _client: Client, _channel: ChannelView) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn on_unsubscribe(&self, _client: Client, _channel: ChannelView) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Foxglove {
    pub fn start() -> Result<Self, Error> {
        let subscribers = Arc::new(Subscribers::default());
        let channel = ChannelBuilder::new("/bench").message_encoding("raw").build_raw()?;
        let server = WebSocketServer::new().bind("127.0.0.1", 0).listener(Arc::clone(&subscribers) as _);
        Ok(Self { server: server.start_blocking()?, channel, subscribers })
    }
}

impl Peer for Foxglove {
    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.server.port()).into()
    }

    fn publish(&self, payload: Bytes, log_time: u64) {
        self.channel.log_with_meta(&payload, PartialMetadata::with_log_time(log_time));
    }

    fn subscribers(&self) -> usize {
        self.subscribers.0.load(Ordering::Relaxed)
    }
}
