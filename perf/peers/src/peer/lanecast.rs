//! lanecast: a session over its WebSocket room, with a topic as its channel. Every setting is the default.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::StreamExt;
use lanecast::protocol::{ClientMessage, Frame, WireFormat};
use lanecast::room::websocket::WebSocketRoom;
use lanecast::{ControlStream, Profile, Session, SubscriptionTag, Topic, TryBroadcastError};
use tokio::runtime::Runtime;

use super::Peer;
use crate::{Error, wire};

pub struct Lanecast {
    session: Session<WebSocketRoom>,
    topic: Topic,
    runtime: Runtime,
}

impl Lanecast {
    /// Starts a server whose topic has this profile.
    pub fn start(profile: Profile) -> Result<Self, Error> {
        let runtime = Runtime::new()?;
        let topic = Topic::with(profile);
        let session = runtime.block_on(async {
            let room = WebSocketRoom::builder().bind("127.0.0.1:0").await?;
            let on_stream = topic.clone();
            let session = Session::builder(room)
                .initial(|_| async { vec![Frame::text(wire::SERVER_INFO), Frame::text(wire::ADVERTISE)] })
                .on_stream(move |stream| serve(stream, on_stream.clone()))
                .build()?;
            Ok::<_, Error>(session)
        })?;
        Ok(Self { session, topic, runtime })
    }
}

async fn serve(mut control: ControlStream<WebSocketRoom>, topic: Topic) {
    while let Some(frame) = control.stream.next().await {
        // Boxed: this task lives as long as the connection, and the future that handles a message is larger than the
        // rest of the task.
        Box::pin(take(&control, &topic, frame)).await;
    }
}

async fn take(control: &ControlStream<WebSocketRoom>, topic: &Topic, frame: Frame) {
    let message = ClientMessage::decode(WireFormat::V1, frame.kind(), &frame.to_bytes());
    let Ok(ClientMessage::Subscribe(subscribe)) = message else { return };
    // A stream is handed over once its participant is registered. If there is none any more, the participant has been
    // reset.
    let Some(participant) = control.participant() else { return };
    for subscription in subscribe.subscriptions {
        participant.subscribe(topic, SubscriptionTag(subscription.id)).await;
    }
}

impl Peer for Lanecast {
    fn address(&self) -> SocketAddr {
        self.session.room().local_addr()
    }

    fn publish(&self, payload: Bytes, log_time: u64) {
        let frame = Frame::message_data(0, log_time, payload);
        if let Err(TryBroadcastError::Full(frame)) = self.session.try_broadcast_to(&self.topic, frame) {
            // Broadcasting fails only when the session is closed.
            let _ = self.runtime.block_on(self.session.broadcast_to(&self.topic, frame));
        }
    }

    fn subscribers(&self) -> usize {
        self.topic.subscribers()
    }
}
