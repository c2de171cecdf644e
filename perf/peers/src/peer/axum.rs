//! The server that people write by hand: axum and `tokio::sync::broadcast`, with a task per client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::get;
use axum::serve::ListenerExt;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::Peer;
use crate::{Error, wire};

/// Capacity of the broadcast channel: the number of messages that lanecast and foxglove let wait by default.
const CAPACITY: usize = 1024;

pub struct Axum {
    address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

struct Shared {
    messages: broadcast::Sender<(u64, Bytes)>,
    subscribers: AtomicUsize,
}

impl Axum {
    pub fn start(tuned: bool) -> Result<Self, Error> {
        let runtime = Runtime::new()?;
        let shared = Arc::new(Shared { messages: broadcast::channel(CAPACITY).0, subscribers: AtomicUsize::new(0) });
        let for_clients = Arc::clone(&shared);
        let upgrade = move |upgrade: WebSocketUpgrade| async move {
            let upgrade = upgrade.protocols([wire::SUBPROTOCOL]);
            let upgrade = if tuned { upgrade.read_buffer_size(4 << 10) } else { upgrade };
            upgrade.on_upgrade(|socket| serve(socket, for_clients))
        };
        let router = Router::new().route("/", get(upgrade));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let listener = listener.tap_io(move |stream| {
            if tuned {
                // The connection also works without it, only slower.
                let _ = stream.set_nodelay(true);
            }
        });
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, shared, _runtime: runtime })
    }
}

async fn serve(mut socket: WebSocket, shared: Arc<Shared>) {
    let mut messages = shared.messages.subscribe();
    let mut subscription = None;
    for text in [wire::SERVER_INFO, wire::ADVERTISE] {
        if socket.send(Message::text(text)).await.is_err() {
            return;
        }
    }
    loop {
        tokio::select! {
            received = messages.recv(), if subscription.is_some() => match (received, subscription) {
                (Ok((time, payload)), Some(id)) => {
                    let mut message = BytesMut::with_capacity(wire::HEAD + payload.len());
                    message.put_slice(&wire::head(id, time));
                    message.put_slice(&payload);
                    if socket.send(Message::Binary(message.freeze())).await.is_err() {
                        break;
                    }
                }
                (Err(RecvError::Closed), _) => break,
                (Err(RecvError::Lagged(_)), _) | (_, None) => {}
            },
            incoming = socket.recv() => match incoming {
                Some(Ok(Message::Text(text))) => {
                    if let Some(id) = wire::subscription_id(text.as_bytes()) && subscription.replace(id).is_none() {
                        messages = shared.messages.subscribe();
                        shared.subscribers.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Some(Ok(_)) => {}
                None | Some(Err(_)) => break,
            },
        }
    }
    if subscription.is_some() {
        shared.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peer for Axum {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn publish(&self, payload: Bytes, log_time: u64) {
        // It is not an error to have no subscribers.
        let _ = self.shared.messages.send((log_time, payload));
    }

    fn subscribers(&self) -> usize {
        self.shared.subscribers.load(Ordering::Relaxed)
    }
}
