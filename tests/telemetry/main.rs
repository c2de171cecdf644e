//! Channels, subscriptions, statuses and assets, on a room in process.
//!
//! Each test is a schedule of numbered steps, driven by what was received, never by sleeping; [`within`] turns a hang
//! into a failure.
#![cfg(feature = "telemetry")]

#[path = "../common/mod.rs"]
mod common;

mod announcing;
mod assets;
mod crossings;
mod in_flight;
mod joining;
mod lifetimes;
mod pings;
mod publishing;
mod races;
mod requests;
mod streams;
mod v2;
mod versions;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lanecast::protocol::server::{
    Advertise, Capability, ChannelData, FetchAssetResponse, MessageData, ServerInfo, StatusLevel,
};
use lanecast::protocol::stream::StreamDecoder;
use lanecast::protocol::{ClientMessage, Frame, FrameKind, ServerMessage, Subprotocol, WireFormat, negotiate};
use lanecast::room::memory::{Behavior, MemoryRoom, Received, Recorder};
use lanecast::room::{Presence, RoomEvent};
use lanecast::telemetry::{
    AdvertisedChannel, AnnounceError, Channel, PublishError, Published, Sample, Schema, Telemetry, TryPublishError,
};
use lanecast::{EndReason, Participant, SessionEvent, SessionHandle};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

type Room = MemoryRoom<Frame>;

const SDK_V1: &str = "foxglove.sdk.v1";
const SDK_V1_1: &str = "foxglove.sdk.v1.1";
/// Advertised versions, of wire format v2.
const V2: &str = "2.2.0";
const V2_3: &str = "2.3.0";

/// A test that waits longer than this fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("timed out")
}

fn telemetry() -> (Room, Telemetry) {
    let room = Room::new();
    let telemetry = Telemetry::builder(room.clone()).name("test").session_id("one").build().unwrap();
    (room, telemetry)
}

/// Waits until `identity` is registered.
async fn live(session: &SessionHandle<Frame>, identity: &str) -> Participant<Frame> {
    let identity = common::id(identity);
    common::until(|| session.participant(&identity).is_some()).await;
    session.participant(&identity).expect("it was registered a moment ago")
}

fn json_channel(topic: &str) -> Channel {
    Channel::new(topic, "json").schema(Schema::new("Thing", "jsonschema", r#"{"type":"object"}"#))
}

/// A presence whose `protocol` was negotiated for v1, or advertised for v2.
fn presence(name: &str, protocol: &str) -> Presence {
    let presence = Presence::new(name.parse().unwrap(), format!("PA_{name}").parse().unwrap(), 1);
    match format_of(protocol) {
        WireFormat::V1 => presence.with_dialect(dialect(protocol)),
        WireFormat::V2 => presence.with_attribute("protocolVersion", protocol),
    }
}

fn dialect(name: &str) -> Subprotocol {
    negotiate([name].into_iter()).expect("it is supported")
}

fn format_of(protocol: &str) -> WireFormat {
    if protocol.starts_with("foxglove.") { WireFormat::V1 } else { WireFormat::V2 }
}

/// A viewer: the stream for its requests, and what it has received.
struct Viewer {
    recorder: Recorder<Frame>,
    requests: mpsc::Sender<Frame>,
    format: WireFormat,
}

impl Viewer {
    /// Joins, opens its own stream, and waits until it has the serverInfo.
    async fn join(room: &Room, name: &str, protocol: &str) -> Self {
        let presence = presence(name, protocol);
        room.join(presence.clone()).await.unwrap();
        let requests = room.open_incoming(&presence.identity, &presence.sid).await.unwrap();
        let viewer = Self { recorder: room.recorder(&presence.identity), requests, format: format_of(protocol) };
        viewer.until("serverInfo", |seen| matches!(seen.first(), Some(ServerMessage::ServerInfo(_)))).await;
        viewer
    }

    async fn say(&self, text: impl Into<String>) {
        self.requests.send(Frame::text(text)).await.unwrap();
    }

    async fn subscribe(&self, id: u32, channel: u64) {
        self.say(format!(r#"{{"op":"subscribe","subscriptions":[{{"id":{id},"channelId":{channel}}}]}}"#)).await;
    }

    /// Subscribes in v2.
    async fn subscribe_channel(&self, channel: u64) {
        self.say(format!(r#"{{"op":"subscribe","channels":[{{"id":{channel},"requestVideoTrack":false}}]}}"#)).await;
    }

    async fn unsubscribe_channel(&self, channel: u64) {
        self.say(format!(r#"{{"op":"unsubscribe","channelIds":[{channel}]}}"#)).await;
    }

    async fn unsubscribe(&self, id: u32) {
        self.say(format!(r#"{{"op":"unsubscribe","subscriptionIds":[{id}]}}"#)).await;
    }

    /// Waits until every request so far has been handled: the answer to one more comes behind their effects.
    async fn settle(&self) {
        let statuses = |seen: &[ServerMessage]| seen.iter().filter(|message| is_probe(message)).count();
        let before = statuses(&self.seen());
        self.say(r#"{"op":"getParameters","parameterNames":[]}"#).await;
        self.until("the probe's answer", |seen| statuses(seen) > before).await;
    }

    /// What the latest stream carried.
    fn seen(&self) -> Vec<ServerMessage> {
        decoded(self.format, &self.recorder.received())
    }

    /// The same without what [`settle`](Self::settle) caused.
    fn told(&self) -> Vec<ServerMessage> {
        self.seen().into_iter().filter(|message| !is_probe(message)).collect()
    }

    async fn until(&self, what: &str, mut condition: impl FnMut(&[ServerMessage]) -> bool) -> Vec<ServerMessage> {
        let found = self.recorder.wait_for(|received| condition(&decoded(self.format, received)));
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(received) => decoded(self.format, &received),
            Err(_) => panic!("timed out waiting for {what}, has {:#?}", self.seen()),
        }
    }

    async fn until_data(&self, count: usize) -> Vec<MessageData> {
        data(&self.until("messages", |seen| data(seen).len() >= count).await)
    }

    /// Waits for messages in v2.
    async fn until_channel_data(&self, count: usize) -> Vec<ChannelData> {
        channel_data(&self.until("messages", |seen| channel_data(seen).len() >= count).await)
    }

    async fn until_status(&self, level: StatusLevel, text: &str) {
        let found = |seen: &[ServerMessage]| statuses(seen).iter().any(|(l, t)| *l == level && t.contains(text));
        self.until(text, found).await;
    }

    async fn until_asset(&self, request_id: u32) -> Result<Bytes, String> {
        let answer = |seen: &[ServerMessage]| {
            seen.iter().find_map(|message| match message {
                ServerMessage::FetchAssetResponse(FetchAssetResponse { request_id: id, result })
                    if *id == request_id =>
                {
                    Some(result.clone())
                }
                _ => None,
            })
        };
        answer(&self.until("an asset", |seen| answer(seen).is_some()).await).unwrap()
    }

    async fn fetch(&self, request_id: u32, uri: &str) {
        self.say(format!(r#"{{"op":"fetchAsset","requestId":{request_id},"uri":"{uri}"}}"#)).await;
    }
}

fn is_probe(message: &ServerMessage) -> bool {
    matches!(message, ServerMessage::Status(status) if status.message == "this server has no parameters")
}

/// Decodes a frame as a viewer of the format receives it.
fn decode(format: WireFormat, frame: &Frame) -> ServerMessage {
    let read = match format {
        WireFormat::V1 => frame.clone(),
        WireFormat::V2 => {
            let mut decoder = StreamDecoder::default();
            decoder.push(chunk(frame));
            decoder.next_frame().unwrap().expect("it is complete")
        }
    };
    ServerMessage::decode(format, read.kind(), &read.to_bytes()).unwrap()
}

/// The bytes of `frame` in a stream.
fn chunk(frame: &Frame) -> Bytes {
    let mut bytes = Vec::new();
    frame.append_to_stream(&mut bytes);
    bytes.into()
}

fn decoded(format: WireFormat, received: &[Received<Frame>]) -> Vec<ServerMessage> {
    received
        .last()
        .map(|stream| stream.messages.iter().map(|frame| decode(format, frame)).collect())
        .unwrap_or_default()
}

fn data(seen: &[ServerMessage]) -> Vec<MessageData> {
    let data = seen.iter().filter_map(|message| match message {
        ServerMessage::MessageData(data) => Some(data.clone()),
        _ => None,
    });
    data.collect()
}

fn channel_data(seen: &[ServerMessage]) -> Vec<ChannelData> {
    let data = seen.iter().filter_map(|message| match message {
        ServerMessage::ChannelData(data) => Some(data.clone()),
        _ => None,
    });
    data.collect()
}

fn statuses(seen: &[ServerMessage]) -> Vec<(StatusLevel, String)> {
    let statuses = seen.iter().filter_map(|message| match message {
        ServerMessage::Status(status) => Some((status.level, status.message.clone())),
        _ => None,
    });
    statuses.collect()
}

/// The channels that a viewer which applies all messages believes to exist.
fn believed(seen: &[ServerMessage]) -> BTreeSet<u64> {
    let mut channels = BTreeSet::new();
    for message in seen {
        match message {
            ServerMessage::ServerInfo(_) => channels.clear(),
            ServerMessage::Advertise(advertise) => {
                channels.extend(advertise.channels.iter().map(|channel| channel.id));
            }
            ServerMessage::Unadvertise(gone) => channels.retain(|id| !gone.channel_ids.contains(id)),
            _ => {}
        }
    }
    channels
}

fn text(frame: &Frame) -> String {
    String::from_utf8(frame.to_bytes().to_vec()).unwrap()
}
