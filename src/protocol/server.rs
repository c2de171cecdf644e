//! Messages from a server to a client.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::ops::server::{
    ADVERTISE, ADVERTISE_SERVICES, CONNECTION_GRAPH_UPDATE, PARAMETER_VALUES, REMOVE_STATUS, SERVER_INFO,
    SERVICE_CALL_FAILURE, STATUS, UNADVERTISE, UNADVERTISE_SERVICES,
};
use super::parameter::WireParameters;
use super::wire::{self, Reader, Text};
use super::{DecodeError, Frame, FrameKind, Parameter, WireFormat, frame, ops, parameter};

pub use super::advertise::{Advertise, Channel};
pub use super::capability::Capability;
pub use super::service::{AdvertiseServices, Service, ServiceCall, ServiceSchema};

/// A message from a server to a client.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ServerMessage {
    /// Describes the server; the first message of a connection.
    ServerInfo(ServerInfo),
    /// A notice for the user.
    Status(Status),
    /// Removes statuses that no longer hold.
    RemoveStatus(RemoveStatus),
    /// Announces channels.
    Advertise(Advertise),
    /// Withdraws channels.
    Unadvertise(Unadvertise),
    /// A message on a channel. v1.
    MessageData(MessageData),
    /// A message on a channel. v2.
    ChannelData(ChannelData),
    /// The server's time.
    Time(Time),
    /// Answers a ping. v2.
    Pong(Pong),
    /// Announces services.
    AdvertiseServices(AdvertiseServices),
    /// Withdraws services.
    UnadvertiseServices(UnadvertiseServices),
    /// The answer to a service call.
    ServiceCallResponse(ServiceCall),
    /// Reports that a service call has failed.
    ServiceCallFailure(ServiceCallFailure),
    /// The answer to a request for an asset.
    FetchAssetResponse(FetchAssetResponse),
    /// Values of parameters that were requested or that have changed.
    ParameterValues(ParameterValues),
    /// Changes of the connection graph.
    ConnectionGraphUpdate(ConnectionGraphUpdate),
}

/// Describes a server and its capabilities.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerInfo {
    /// Name of the server, for users.
    pub name: String,
    /// Capabilities of the server beyond sending messages. Unknown capabilities of a peer are left out.
    #[serde(default, deserialize_with = "known_capabilities")]
    pub capabilities: Vec<Capability>,
    /// Encodings that the server accepts in client messages and service calls.
    #[serde(default, deserialize_with = "wire::or_default", skip_serializing_if = "Vec::is_empty")]
    pub supported_encodings: Vec<String>,
    /// Additional information about the server. Entries of a peer whose value is `null` are left out.
    #[serde(default, deserialize_with = "known_values", skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Distinguishes one run of the server from the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// Leaves out unknown capabilities: they are of no use here, and a newer peer must not be refused for them.
fn known_capabilities<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Capability>, D::Error> {
    let names: Vec<Value> = wire::or_default(deserializer)?;
    Ok(names.iter().filter_map(|name| Capability::deserialize(name).ok()).collect())
}

/// Leaves out entries whose value is `null`.
fn known_values<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let values: BTreeMap<String, Option<String>> = wire::or_default(deserializer)?;
    Ok(values.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
}

/// A notice for the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Severity of the notice.
    pub level: StatusLevel,
    /// Text of the notice.
    pub message: String,
    /// Id by which the status can be replaced or removed. A status without an id is shown once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// Severity of a status; a number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum StatusLevel {
    /// 0: for information.
    Info,
    /// 1: something was ignored or may be wrong.
    Warning,
    /// 2: something failed.
    Error,
}

impl From<StatusLevel> for u8 {
    fn from(level: StatusLevel) -> Self {
        match level {
            StatusLevel::Info => 0,
            StatusLevel::Warning => 1,
            StatusLevel::Error => 2,
        }
    }
}

impl TryFrom<u8> for StatusLevel {
    type Error = &'static str;

    fn try_from(level: u8) -> Result<Self, &'static str> {
        match level {
            0 => Ok(Self::Info),
            1 => Ok(Self::Warning),
            2 => Ok(Self::Error),
            _ => Err("unknown status level"),
        }
    }
}

/// Removes statuses that no longer hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemoveStatus {
    /// Ids of the statuses.
    pub status_ids: Vec<String>,
}

/// Withdraws channels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unadvertise {
    /// Ids of the channels.
    pub channel_ids: Vec<u64>,
}

/// A message on a channel, in v1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageData {
    /// Subscription id, chosen by the client.
    pub subscription_id: u32,
    /// Log time in nanoseconds, usually since the epoch.
    pub log_time_ns: u64,
    /// The message, in the channel's encoding.
    pub payload: Bytes,
}

/// A message on a channel, in v2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelData {
    /// Channel id, from the server's advertisement.
    pub channel_id: u64,
    /// Log time in nanoseconds, usually since the epoch.
    pub log_time_ns: u64,
    /// The message, in the channel's encoding.
    pub payload: Bytes,
}

/// The server's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// The time in nanoseconds, usually since the epoch.
    pub timestamp_ns: u64,
}

/// Answers a [ping](super::client::Ping) and asks for a [ping ack](super::client::PingAck). So each side measures a
/// round trip with its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// The timestamp of the ping, unchanged.
    pub app_timestamp: u64,
    /// The server's time, in milliseconds since the epoch. The ack repeats it.
    pub device_timestamp_ms: u64,
}

/// Withdraws services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnadvertiseServices {
    /// Ids of the services.
    pub service_ids: Vec<u32>,
}

/// Reports that a service call has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceCallFailure {
    /// Service id, from the server's advertisement.
    pub service_id: u32,
    /// Call id, chosen by the client.
    pub call_id: u32,
    /// Why the call failed.
    pub message: String,
}

/// The answer to a request for an asset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchAssetResponse {
    /// Request id, chosen by the client.
    pub request_id: u32,
    /// The bytes of the asset, or the reason why there is none.
    pub result: Result<Bytes, String>,
}

/// Values of parameters that were requested or that have changed.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterValues {
    /// Id of the request that this message answers. `None` if it answers none, or if the request had no id.
    pub id: Option<String>,
    /// The parameters with their values.
    pub parameters: Vec<Parameter>,
}

/// Changes of the connection graph since the last update: publishers, subscribers and service providers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionGraphUpdate {
    /// Topics whose publishers changed.
    #[serde(deserialize_with = "wire::or_default")]
    pub published_topics: Vec<PublishedTopic>,
    /// Topics whose subscribers changed.
    #[serde(deserialize_with = "wire::or_default")]
    pub subscribed_topics: Vec<SubscribedTopic>,
    /// Services whose providers changed.
    #[serde(deserialize_with = "wire::or_default")]
    pub advertised_services: Vec<AdvertisedService>,
    /// Topics that were removed.
    #[serde(deserialize_with = "wire::or_default")]
    pub removed_topics: Vec<String>,
    /// Services that were removed.
    #[serde(deserialize_with = "wire::or_default")]
    pub removed_services: Vec<String>,
}

/// A topic and all its publishers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedTopic {
    /// Name of the topic.
    pub name: String,
    /// Ids of the publishers.
    pub publisher_ids: Vec<String>,
}

/// A topic and all its subscribers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscribedTopic {
    /// Name of the topic.
    pub name: String,
    /// Ids of the subscribers.
    pub subscriber_ids: Vec<String>,
}

/// A service and all its providers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdvertisedService {
    /// Name of the service.
    pub name: String,
    /// Ids of the providers.
    pub provider_ids: Vec<String>,
}

const OPCODE_TIME: u8 = 2;
const OPCODE_SERVICE_CALL_RESPONSE: u8 = 3;
const OPCODE_FETCH_ASSET_RESPONSE: u8 = 4;
const OPCODE_PONG: u8 = 6;

const ASSET_DATA: u8 = 0;
const ASSET_ERROR: u8 = 1;

impl ServerMessage {
    /// Encodes the message. The payload of message data and of an asset is shared, not copied.
    ///
    /// An advertisement is encoded in its plain form. Every subprotocol understands that form, except those with a
    /// schema table: see [`Advertise::encode_with_table`]. Message data is encoded for its own format only,
    /// [`MessageData`](Self::MessageData) for v1 and [`ChannelData`](Self::ChannelData) for v2. [`Frame::message_data`]
    /// makes a frame for both formats.
    pub fn encode(&self) -> Frame {
        match self {
            Self::ServerInfo(info) => wire::text(SERVER_INFO, info),
            Self::Status(status) => wire::text(STATUS, status),
            Self::RemoveStatus(remove) => wire::text(REMOVE_STATUS, remove),
            Self::Advertise(advertise) => advertise.encode_plain(),
            Self::Unadvertise(unadvertise) => wire::text(UNADVERTISE, unadvertise),
            Self::MessageData(data) => {
                let mut frame = Frame::message_data(0, data.log_time_ns, data.payload.clone());
                frame.set_subscription_id(data.subscription_id);
                frame
            }
            Self::ChannelData(data) => Frame::message_data(data.channel_id, data.log_time_ns, data.payload.clone()),
            Self::Time(time) => wire::stamped(OPCODE_TIME, time.timestamp_ns),
            Self::Pong(pong) => pong.encode(),
            Self::AdvertiseServices(advertise) => advertise.encode(),
            Self::UnadvertiseServices(unadvertise) => wire::text(UNADVERTISE_SERVICES, unadvertise),
            Self::ServiceCallResponse(call) => call.encode(OPCODE_SERVICE_CALL_RESPONSE),
            Self::ServiceCallFailure(failure) => wire::text(SERVICE_CALL_FAILURE, failure),
            Self::FetchAssetResponse(response) => response.encode(),
            Self::ParameterValues(values) => {
                wire::text(PARAMETER_VALUES, &WireParameters::new(values.id.as_ref(), &values.parameters))
            }
            Self::ConnectionGraphUpdate(update) => wire::text(CONNECTION_GRAPH_UPDATE, update),
        }
    }

    /// Decodes a message that a client that speaks `format` received from a server. Payloads share the memory of
    /// `data`.
    ///
    /// Unknown fields and trailing bytes are ignored. `null` is read as an absent field where the field may be absent.
    /// An unreadable channel, service or parameter is left out, and [`decode_each`](Self::decode_each) reports it.
    ///
    /// # Errors
    /// [`DecodeError`] if nothing of the message can be read. The connection is still in sync: the next frame can be
    /// decoded.
    pub fn decode(format: WireFormat, kind: FrameKind, data: &Bytes) -> Result<Self, DecodeError> {
        let mut faults = Vec::new();
        let message = Self::decode_each(format, kind, data, &mut faults)?;
        let is_empty = match &message {
            Self::Advertise(advertise) => advertise.channels.is_empty(),
            Self::AdvertiseServices(advertise) => advertise.services.is_empty(),
            Self::ParameterValues(values) => values.parameters.is_empty(),
            _ => false,
        };
        match faults.pop() {
            Some(fault) if is_empty => Err(fault),
            _ => Ok(message),
        }
    }

    /// Like [`decode`](Self::decode), but for each unreadable item of a list, an error is appended to `faults`: at most
    /// 100 per message. It identifies the item by its name or by its place in the list. The message may be empty then.
    ///
    /// # Errors
    /// [`DecodeError`] if the message as a whole can't be read. An unreadable item of a list is not such an error.
    pub fn decode_each(
        format: WireFormat,
        kind: FrameKind,
        data: &Bytes,
        faults: &mut Vec<DecodeError>,
    ) -> Result<Self, DecodeError> {
        match kind {
            FrameKind::Text => Self::decode_text(data, faults),
            FrameKind::Binary => Self::decode_binary(format, data),
        }
    }

    fn decode_text(data: &Bytes, faults: &mut Vec<DecodeError>) -> Result<Self, DecodeError> {
        let text = Text::parse(data)?;
        match text.op.as_str() {
            SERVER_INFO => text.read().map(Self::ServerInfo),
            STATUS => text.read().map(Self::Status),
            REMOVE_STATUS => text.read().map(Self::RemoveStatus),
            ADVERTISE => Advertise::decode(&text, faults).map(Self::Advertise),
            UNADVERTISE => text.read().map(Self::Unadvertise),
            ADVERTISE_SERVICES => AdvertiseServices::decode(&text, faults).map(Self::AdvertiseServices),
            UNADVERTISE_SERVICES => text.read().map(Self::UnadvertiseServices),
            SERVICE_CALL_FAILURE => text.read().map(Self::ServiceCallFailure),
            PARAMETER_VALUES => {
                let (id, parameters) = parameter::read_all(&text, faults)?;
                Ok(Self::ParameterValues(ParameterValues { id, parameters }))
            }
            CONNECTION_GRAPH_UPDATE => text.read().map(Self::ConnectionGraphUpdate),
            op => Err(wire::stray_op(op, &ops::client::ALL)),
        }
    }

    fn decode_binary(format: WireFormat, data: &Bytes) -> Result<Self, DecodeError> {
        match Reader::opcode(data)? {
            frame::OPCODE_MESSAGE_DATA => {
                let mut reader = Reader::new("message data", data);
                Ok(match format {
                    WireFormat::V1 => Self::MessageData(MessageData {
                        subscription_id: reader.u32()?,
                        log_time_ns: reader.u64()?,
                        payload: reader.rest(),
                    }),
                    WireFormat::V2 => Self::ChannelData(ChannelData {
                        channel_id: reader.u64()?,
                        log_time_ns: reader.u64()?,
                        payload: reader.rest(),
                    }),
                })
            }
            OPCODE_TIME => {
                let timestamp_ns = Reader::new("time", data).u64()?;
                Ok(Self::Time(Time { timestamp_ns }))
            }
            OPCODE_SERVICE_CALL_RESPONSE => {
                ServiceCall::decode(Reader::new("service call response", data)).map(Self::ServiceCallResponse)
            }
            OPCODE_FETCH_ASSET_RESPONSE => {
                FetchAssetResponse::decode(Reader::new("fetch asset response", data)).map(Self::FetchAssetResponse)
            }
            OPCODE_PONG if format == WireFormat::V2 => Pong::decode(Reader::new("pong", data)).map(Self::Pong),
            unknown => Err(DecodeError::UnknownOpcode(unknown)),
        }
    }
}

/// On the wire: opcode, the client's timestamp (u64), the server's timestamp (u64).
impl Pong {
    fn encode(self) -> Frame {
        let mut bytes = [OPCODE_PONG; 1 + 8 + 8];
        bytes[1..9].copy_from_slice(&self.app_timestamp.to_le_bytes());
        bytes[9..].copy_from_slice(&self.device_timestamp_ms.to_le_bytes());
        Frame::binary(Bytes::copy_from_slice(&bytes))
    }

    fn decode(mut reader: Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { app_timestamp: reader.u64()?, device_timestamp_ms: reader.u64()? })
    }
}

/// On the wire: opcode, request id (u32), status (u8), length of the error message (u32), error message, asset.
impl FetchAssetResponse {
    fn encode(&self) -> Frame {
        match &self.result {
            Ok(asset) => {
                let mut head = [0; 1 + 4 + 1 + 4];
                head[0] = OPCODE_FETCH_ASSET_RESPONSE;
                head[1..5].copy_from_slice(&self.request_id.to_le_bytes());
                head[5] = ASSET_DATA;
                Frame::with_head(FrameKind::Binary, head, asset.clone())
            }
            Err(error) => {
                let mut buffer = BytesMut::with_capacity(1 + 4 + 1 + 4 + error.len());
                buffer.put_u8(OPCODE_FETCH_ASSET_RESPONSE);
                buffer.put_u32_le(self.request_id);
                buffer.put_u8(ASSET_ERROR);
                wire::put_string(&mut buffer, error);
                Frame::binary(buffer.freeze())
            }
        }
    }

    fn decode(mut reader: Reader<'_>) -> Result<Self, DecodeError> {
        let request_id = reader.u32()?;
        let result = match reader.u8()? {
            ASSET_DATA => {
                reader.counted()?;
                Ok(reader.rest())
            }
            ASSET_ERROR => Err(reader.string("asset error")?),
            unknown => return Err(DecodeError::UnknownAssetStatus(unknown)),
        };
        Ok(Self { request_id, result })
    }
}
