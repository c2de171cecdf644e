//! One connection to the server.

use std::sync::Arc;

use livekit::data_stream::api::{ByteStreamWriter, StreamByteOptions, StreamError, StreamResult};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::error::LiveKitError;
use super::shared::Config;
use crate::contract::Uplink;
use crate::ids::ParticipantIdentity;
use crate::room::byte_stream::ByteStreamSink;

/// The topic of the streams in both directions.
pub(super) const CONTROL: &str = "control";

/// The topic of the stream that the room opens to itself.
const PROBE: &str = "lanecast.probe";

/// A connection, and its events.
pub(super) struct Link {
    pub(super) room: Arc<livekit::Room>,
    pub(super) events: mpsc::UnboundedReceiver<livekit::RoomEvent>,
}

impl Link {
    pub(super) async fn connect(url: &str, token: &str, config: &Config) -> Result<Self, LiveKitError> {
        if token.trim().is_empty() {
            return Err(LiveKitError::Unauthorized("it is empty".to_owned()));
        }
        let mut sdk = livekit::RoomOptions::default();
        sdk.auto_subscribe = false;
        if let Some(configure) = &config.configure {
            configure(&mut sdk);
        }
        let connecting = livekit::Room::connect(url, token, sdk);
        let connected = timeout(config.connect_timeout, connecting).await;
        let connected = connected.map_err(|_| LiveKitError::TimedOut(config.connect_timeout))?;
        let (room, events) = connected.map_err(|error| LiveKitError::of_connect(&error, token))?;
        Ok(Self { room: Arc::new(room), events })
    }
}

/// Opens a stream that is addressed to this process alone, so that the server passes it on to nobody.
pub(super) async fn open_probe(room: &livekit::Room) -> StreamResult<ByteStreamWriter> {
    let us = room.local_participant();
    us.stream_bytes(StreamByteOptions::new_with_topic(PROBE).with_destination_identity(us.identity())).await
}

/// Opens the stream to a participant, in a task of its own: the request may already lie in the SDK when the caller
/// gives up waiting. The stream then has to be ended all the same, which a sink does when it is dropped.
pub(super) async fn open_control(
    room: Arc<livekit::Room>,
    to: &ParticipantIdentity,
    sink: impl FnOnce(ByteStreamWriter) -> ByteStreamSink + Send + 'static,
    uplink: Uplink,
) -> StreamResult<ByteStreamSink> {
    let options = StreamByteOptions::new_with_topic(CONTROL).with_destination_identity(to.as_str());
    let (hand_over, opened) = oneshot::channel();
    tokio::spawn(async move {
        // The request travels as chunks do.
        let travelling = uplink.probe();
        let writer = room.local_participant().stream_bytes(options).await;
        if writer.is_ok() {
            travelling.done();
        }
        // It is not an error if the caller no longer waits.
        let _ = hand_over.send(writer.map(sink));
    });
    opened.await.unwrap_or(Err(StreamError::Internal))
}

/// Leaves the room, and waits for the SDK no longer than the close time-out.
///
/// Leaving runs on a thread of its own: where the SDK hangs, it blocks its thread in the native library, where no
/// time-out takes effect; and a runtime waits for its own threads when it is dropped.
pub(super) async fn leave(room: Arc<livekit::Room>, config: &Config) {
    let runtime = Handle::current();
    let (left, leaving) = oneshot::channel();
    let leave = move || {
        // It is not an error if the caller no longer waits.
        let _ = left.send(runtime.block_on(room.close()));
    };
    if let Err(error) = std::thread::Builder::new().name("livekit-leave".to_owned()).spawn(leave) {
        return tracing::warn!(%error, "no thread to leave the room on: it is dropped");
    }
    match timeout(config.close_timeout, leaving).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::debug!(%error, "leaving the room"),
        Ok(Err(_)) => tracing::warn!("the SDK panicked while it left the room"),
        Err(_) => tracing::warn!(waited = ?config.close_timeout, "the SDK didn't leave the room in time"),
    }
}
