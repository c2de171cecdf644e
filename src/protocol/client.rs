//! Messages from a client to a server.

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::capability::Capability;
use super::ops::client::{
    ADVERTISE, FETCH_ASSET, GET_PARAMETERS, SET_PARAMETERS, SUBSCRIBE, SUBSCRIBE_CONNECTION_GRAPH,
    SUBSCRIBE_PARAMETER_UPDATES, UNADVERTISE, UNSUBSCRIBE, UNSUBSCRIBE_CONNECTION_GRAPH, UNSUBSCRIBE_PARAMETER_UPDATES,
};
use super::parameter::WireParameters;
use super::wire::{self, Reader, Text};
use super::{DecodeError, Frame, FrameKind, Parameter, Schema, WireFormat, frame, ops, parameter};

pub use super::service::ServiceCall;

/// A message from a client to a server.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ClientMessage {
    /// Subscribes to channels. v1.
    Subscribe(Subscribe),
    /// Ends subscriptions. v1.
    Unsubscribe(Unsubscribe),
    /// Subscribes to channels. v2.
    SubscribeChannels(SubscribeChannels),
    /// Unsubscribes from channels. v2.
    UnsubscribeChannels(UnsubscribeChannels),
    /// Asks for a pong. v2.
    Ping(Ping),
    /// Answers a pong. v2.
    PingAck(PingAck),
    /// Announces channels of the client.
    Advertise(Advertise),
    /// Withdraws channels of the client.
    Unadvertise(Unadvertise),
    /// A message on a channel of the client.
    MessageData(MessageData),
    /// Calls a service.
    ServiceCallRequest(ServiceCall),
    /// Asks for an asset.
    FetchAsset(FetchAsset),
    /// Asks for parameters.
    GetParameters(GetParameters),
    /// Sets parameters.
    SetParameters(SetParameters),
    /// Subscribes to changes of parameters.
    SubscribeParameterUpdates(SubscribeParameterUpdates),
    /// Ends subscriptions to changes of parameters.
    UnsubscribeParameterUpdates(UnsubscribeParameterUpdates),
    /// Subscribes to the connection graph: the publishers, subscribers and service providers.
    SubscribeConnectionGraph,
    /// Ends the subscription to the connection graph.
    UnsubscribeConnectionGraph,
}

/// Subscribes to channels, in v1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Subscribe {
    /// One subscription per channel.
    pub subscriptions: Vec<Subscription>,
}

/// A subscription to one channel, in v1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    /// Subscription id, chosen by the client. Message data carries it.
    pub id: u32,
    /// Channel id, from the server's advertisement.
    pub channel_id: u64,
}

/// Ends subscriptions, in v1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unsubscribe {
    /// Ids of the subscriptions.
    pub subscription_ids: Vec<u32>,
}

/// Subscribes to channels, in v2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubscribeChannels {
    /// One request per channel.
    pub channels: Vec<ChannelRequest>,
}

/// A subscription to one channel, in v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelRequest {
    /// Channel id, from the server's advertisement.
    pub id: u64,
    /// Whether the client prefers a video track. This crate offers none. `false` if the field is absent.
    #[serde(default, deserialize_with = "wire::or_default")]
    pub request_video_track: bool,
}

/// Unsubscribes from channels, in v2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnsubscribeChannels {
    /// Ids of the channels.
    pub channel_ids: Vec<u64>,
}

/// Asks for a [pong](super::server::Pong).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// Timestamp of the client. The pong repeats it unchanged.
    pub app_timestamp: u64,
}

/// Answers a [pong](super::server::Pong).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingAck {
    /// The server's time from the pong, in milliseconds since the epoch.
    pub device_timestamp_ms: u64,
}

/// Announces channels on which the client will publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertise {
    /// Channels of the client, new to the server.
    pub channels: Vec<Channel>,
}

/// A channel of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Channel id, chosen by the client. Another client may use the same id.
    pub id: u32,
    /// Name of the topic.
    pub topic: String,
    /// Encoding of the channel's messages.
    pub encoding: String,
    /// Schema of the channel's messages. A client may know only the schema's name; its encoding and data are empty
    /// then.
    pub schema: Option<Schema>,
}

/// Withdraws channels of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unadvertise {
    /// Ids of the client's channels.
    pub channel_ids: Vec<u32>,
}

/// A message on a channel of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageData {
    /// Id of the client's channel.
    pub channel_id: u32,
    /// The message, in the channel's encoding.
    pub payload: Bytes,
}

/// Asks for an asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchAsset {
    /// Request id, chosen by the client. The answer repeats it.
    pub request_id: u32,
    /// URI of the asset, for example `package://robot/base.stl`.
    pub uri: String,
}

/// Asks for parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GetParameters {
    /// Names of the parameters; an empty list means all.
    pub parameter_names: Vec<String>,
    /// Request id, chosen by the client. The answer repeats it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// Sets parameters. A parameter without a value is deleted.
#[derive(Debug, Clone, PartialEq)]
pub struct SetParameters {
    /// Request id, chosen by the client. A request with an id is answered with the parameters' values.
    pub id: Option<String>,
    /// The parameters to set.
    pub parameters: Vec<Parameter>,
}

/// Subscribes to changes of parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscribeParameterUpdates {
    /// Names of the parameters; an empty list means all.
    pub parameter_names: Vec<String>,
}

/// Ends subscriptions to changes of parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnsubscribeParameterUpdates {
    /// Names of the parameters; an empty list means all.
    pub parameter_names: Vec<String>,
}

#[derive(Serialize)]
struct WireAdvertise {
    channels: Vec<WireChannel>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireChannel {
    id: u32,
    topic: String,
    encoding: String,
    #[serde(default, deserialize_with = "wire::or_default")]
    schema_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<String>,
}

impl From<&Channel> for WireChannel {
    fn from(channel: &Channel) -> Self {
        let schema = channel.schema.as_ref();
        Self {
            id: channel.id,
            topic: channel.topic.clone(),
            encoding: channel.encoding.clone(),
            schema_name: schema.map_or_else(String::new, |schema| schema.name.clone()),
            schema_encoding: schema.map(|schema| schema.encoding.clone()).filter(|encoding| !encoding.is_empty()),
            schema: schema.map(|schema| schema.wire_data().into_owned()).filter(|data| !data.is_empty()),
        }
    }
}

impl TryFrom<WireChannel> for Channel {
    type Error = DecodeError;

    fn try_from(wire: WireChannel) -> Result<Self, DecodeError> {
        let schema = Schema::from_wire(
            wire.schema_name,
            wire.schema_encoding.unwrap_or_default(),
            wire.schema.unwrap_or_default(),
        )?;
        let schema = (!schema.is_blank()).then_some(schema);
        Ok(Self { id: wire.id, topic: wire.topic, encoding: wire.encoding, schema })
    }
}

const OPCODE_SERVICE_CALL_REQUEST: u8 = 2;
const OPCODE_PING: u8 = 4;
const OPCODE_PING_ACK: u8 = 5;

fn needed_by_op(op: &str) -> Option<Capability> {
    match op {
        ADVERTISE | UNADVERTISE => Some(Capability::ClientPublish),
        FETCH_ASSET => Some(Capability::Assets),
        GET_PARAMETERS | SET_PARAMETERS => Some(Capability::Parameters),
        SUBSCRIBE_PARAMETER_UPDATES | UNSUBSCRIBE_PARAMETER_UPDATES => Some(Capability::ParametersSubscribe),
        SUBSCRIBE_CONNECTION_GRAPH | UNSUBSCRIBE_CONNECTION_GRAPH => Some(Capability::ConnectionGraph),
        _ => None,
    }
}

fn needed_by_opcode(opcode: u8) -> Option<Capability> {
    match opcode {
        frame::OPCODE_MESSAGE_DATA => Some(Capability::ClientPublish),
        OPCODE_SERVICE_CALL_REQUEST => Some(Capability::Services),
        _ => None,
    }
}

/// Reads the names in a request for parameters. An empty list means all parameters, so a list is an error if it has
/// names and none of them can be read.
fn read_names(text: &Text<'_>, faults: &mut Vec<DecodeError>) -> Result<Vec<String>, DecodeError> {
    let mut unreadable = Vec::new();
    let names = text.list("parameterNames", "parameter name", &mut unreadable, Ok)?;
    if names.is_empty() && !unreadable.is_empty() {
        return Err(unreadable.swap_remove(0));
    }
    faults.append(&mut unreadable);
    Ok(names)
}

/// The fields of a message without fields.
#[derive(Serialize)]
struct Nothing {}

impl ClientMessage {
    /// Encodes the message. The payload of message data is shared, not copied.
    pub fn encode(&self) -> Frame {
        match self {
            Self::Subscribe(subscribe) => wire::text(SUBSCRIBE, subscribe),
            Self::Unsubscribe(unsubscribe) => wire::text(UNSUBSCRIBE, unsubscribe),
            Self::SubscribeChannels(subscribe) => wire::text(SUBSCRIBE, subscribe),
            Self::UnsubscribeChannels(unsubscribe) => wire::text(UNSUBSCRIBE, unsubscribe),
            Self::Ping(ping) => wire::stamped(OPCODE_PING, ping.app_timestamp),
            Self::PingAck(ack) => wire::stamped(OPCODE_PING_ACK, ack.device_timestamp_ms),
            Self::Advertise(advertise) => {
                let channels = advertise.channels.iter().map(WireChannel::from).collect();
                wire::text(ADVERTISE, &WireAdvertise { channels })
            }
            Self::Unadvertise(unadvertise) => wire::text(UNADVERTISE, unadvertise),
            Self::MessageData(data) => {
                let mut head = [frame::OPCODE_MESSAGE_DATA; 1 + 4];
                head[1..].copy_from_slice(&data.channel_id.to_le_bytes());
                Frame::with_head(FrameKind::Binary, head, data.payload.clone())
            }
            Self::ServiceCallRequest(call) => call.encode(OPCODE_SERVICE_CALL_REQUEST),
            Self::FetchAsset(fetch) => wire::text(FETCH_ASSET, fetch),
            Self::GetParameters(get) => wire::text(GET_PARAMETERS, get),
            Self::SetParameters(set) => {
                wire::text(SET_PARAMETERS, &WireParameters::new(set.id.as_ref(), &set.parameters))
            }
            Self::SubscribeParameterUpdates(subscribe) => wire::text(SUBSCRIBE_PARAMETER_UPDATES, subscribe),
            Self::UnsubscribeParameterUpdates(unsubscribe) => wire::text(UNSUBSCRIBE_PARAMETER_UPDATES, unsubscribe),
            Self::SubscribeConnectionGraph => wire::text(SUBSCRIBE_CONNECTION_GRAPH, &Nothing {}),
            Self::UnsubscribeConnectionGraph => wire::text(UNSUBSCRIBE_CONNECTION_GRAPH, &Nothing {}),
        }
    }

    /// Decodes a message that a server received from a client that speaks `format`. Payloads share the memory of
    /// `data`.
    ///
    /// Unknown fields are ignored. An unreadable item of a list is left out, and [`decode_each`](Self::decode_each)
    /// reports it.
    ///
    /// # Errors
    /// [`DecodeError`] if nothing of the message can be read. The connection is still in sync: the next frame can be
    /// decoded.
    pub fn decode(format: WireFormat, kind: FrameKind, data: &Bytes) -> Result<Self, DecodeError> {
        let mut faults = Vec::new();
        let message = Self::decode_each(format, kind, data, &Capability::ALL, &mut faults)?;
        match faults.pop() {
            Some(fault) if message.is_empty() => Err(fault),
            _ => Ok(message),
        }
    }

    /// Decodes a message for a server that offers no capabilities but `offered`. A message that needs another
    /// capability is refused. A text message is refused before its fields are read, because the decoded fields may take
    /// many times the length of the message.
    ///
    /// For each unreadable item of a list, an error is appended to `faults`: at most 100 per message. It identifies the
    /// item by its name or by its place in the list. The message may be empty then.
    ///
    /// # Errors
    /// [`DecodeError::NotOffered`] if the message needs a capability that is not in `offered`, and any other
    /// [`DecodeError`] if the message as a whole can't be read. An unreadable item of a list is not such an error,
    /// unless it is the name of a parameter and no name in the list can be read.
    pub fn decode_each(
        format: WireFormat,
        kind: FrameKind,
        data: &Bytes,
        offered: &[Capability],
        faults: &mut Vec<DecodeError>,
    ) -> Result<Self, DecodeError> {
        let check = |needed: Option<Capability>| match needed {
            Some(capability) if !offered.contains(&capability) => Err(DecodeError::NotOffered { capability }),
            _ => Ok(()),
        };
        match kind {
            FrameKind::Text => {
                let text = Text::parse(data)?;
                check(needed_by_op(&text.op))?;
                Self::decode_text(format, &text, faults)
            }
            FrameKind::Binary => {
                // Decoding before the check costs little: a payload is shared.
                let message = Self::decode_binary(format, data)?;
                check(needed_by_opcode(Reader::opcode(data)?))?;
                Ok(message)
            }
        }
    }

    /// Whether the message is an empty list.
    fn is_empty(&self) -> bool {
        match self {
            Self::Subscribe(request) => request.subscriptions.is_empty(),
            Self::Unsubscribe(request) => request.subscription_ids.is_empty(),
            Self::SubscribeChannels(request) => request.channels.is_empty(),
            Self::UnsubscribeChannels(request) => request.channel_ids.is_empty(),
            Self::Advertise(advertise) => advertise.channels.is_empty(),
            Self::Unadvertise(unadvertise) => unadvertise.channel_ids.is_empty(),
            Self::GetParameters(get) => get.parameter_names.is_empty(),
            Self::SetParameters(set) => set.parameters.is_empty(),
            Self::SubscribeParameterUpdates(request) => request.parameter_names.is_empty(),
            Self::UnsubscribeParameterUpdates(request) => request.parameter_names.is_empty(),
            _ => false,
        }
    }

    fn decode_text(format: WireFormat, text: &Text<'_>, faults: &mut Vec<DecodeError>) -> Result<Self, DecodeError> {
        match text.op.as_str() {
            SUBSCRIBE => match format {
                WireFormat::V1 => {
                    let subscriptions = text.list("subscriptions", "subscription", faults, Ok)?;
                    Ok(Self::Subscribe(Subscribe { subscriptions }))
                }
                WireFormat::V2 => {
                    let channels = text.list("channels", "channel", faults, Ok)?;
                    Ok(Self::SubscribeChannels(SubscribeChannels { channels }))
                }
            },
            UNSUBSCRIBE => match format {
                WireFormat::V1 => {
                    let subscription_ids = text.list("subscriptionIds", "subscription id", faults, Ok)?;
                    Ok(Self::Unsubscribe(Unsubscribe { subscription_ids }))
                }
                WireFormat::V2 => {
                    let channel_ids = text.list("channelIds", "channel id", faults, Ok)?;
                    Ok(Self::UnsubscribeChannels(UnsubscribeChannels { channel_ids }))
                }
            },
            ADVERTISE => {
                let channels = text.list("channels", "channel", faults, |channel: WireChannel| channel.try_into())?;
                Ok(Self::Advertise(Advertise { channels }))
            }
            UNADVERTISE => {
                let channel_ids = text.list("channelIds", "channel id", faults, Ok)?;
                Ok(Self::Unadvertise(Unadvertise { channel_ids }))
            }
            FETCH_ASSET => text.read().map(Self::FetchAsset),
            GET_PARAMETERS => {
                let parameter_names = read_names(text, faults)?;
                Ok(Self::GetParameters(GetParameters { parameter_names, id: text.id()? }))
            }
            SET_PARAMETERS => {
                let (id, parameters) = parameter::read_all(text, faults)?;
                Ok(Self::SetParameters(SetParameters { id, parameters }))
            }
            SUBSCRIBE_PARAMETER_UPDATES => {
                let parameter_names = read_names(text, faults)?;
                Ok(Self::SubscribeParameterUpdates(SubscribeParameterUpdates { parameter_names }))
            }
            UNSUBSCRIBE_PARAMETER_UPDATES => {
                let parameter_names = read_names(text, faults)?;
                Ok(Self::UnsubscribeParameterUpdates(UnsubscribeParameterUpdates { parameter_names }))
            }
            SUBSCRIBE_CONNECTION_GRAPH => text.read().map(|_: IgnoredAny| Self::SubscribeConnectionGraph),
            UNSUBSCRIBE_CONNECTION_GRAPH => text.read().map(|_: IgnoredAny| Self::UnsubscribeConnectionGraph),
            op => Err(wire::stray_op(op, &ops::server::ALL)),
        }
    }

    fn decode_binary(format: WireFormat, data: &Bytes) -> Result<Self, DecodeError> {
        match Reader::opcode(data)? {
            frame::OPCODE_MESSAGE_DATA => {
                let mut reader = Reader::new("message data", data);
                Ok(Self::MessageData(MessageData { channel_id: reader.u32()?, payload: reader.rest() }))
            }
            OPCODE_SERVICE_CALL_REQUEST => {
                ServiceCall::decode(Reader::new("service call request", data)).map(Self::ServiceCallRequest)
            }
            OPCODE_PING if format == WireFormat::V2 => {
                let app_timestamp = Reader::new("ping", data).u64()?;
                Ok(Self::Ping(Ping { app_timestamp }))
            }
            OPCODE_PING_ACK if format == WireFormat::V2 => {
                let device_timestamp_ms = Reader::new("ping ack", data).u64()?;
                Ok(Self::PingAck(PingAck { device_timestamp_ms }))
            }
            unknown => Err(DecodeError::UnknownOpcode(unknown)),
        }
    }
}
