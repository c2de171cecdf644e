//! The wire formats, tested against messages that a peer encoded, against themselves, and against random bytes.
//!
//! `data/foxglove-0.30.3.json` holds 52 messages that the `foxglove` crate 0.30.3 encoded. The test builds each message
//! from its fields (see `expected`), encodes it and compares, decodes it and compares.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lanecast::protocol::client::{self, ChannelRequest, Subscription};
use lanecast::protocol::server::{self, Capability, Channel, Service, ServiceCall, ServiceSchema, StatusLevel};
use lanecast::protocol::{
    ClientMessage, DecodeError, Frame, FrameKind, Parameter, ParameterValue, Schema, SchemaTable, ServerMessage,
    WireFormat,
};
use serde_json::{Value, json};

/// A message of either direction.
#[derive(Debug, Clone, PartialEq)]
enum Message {
    Server(ServerMessage),
    Client(ClientMessage),
}

impl Message {
    fn encode(&self) -> Frame {
        match self {
            Self::Server(message) => message.encode(),
            Self::Client(message) => message.encode(),
        }
    }

    fn decode(format: WireFormat, side: &str, kind: FrameKind, data: &Bytes) -> Result<Self, DecodeError> {
        match side {
            "server" => ServerMessage::decode(format, kind, data).map(Self::Server),
            "client" => ClientMessage::decode(format, kind, data).map(Self::Client),
            other => panic!("side {other}"),
        }
    }

    fn side(&self) -> &'static str {
        match self {
            Self::Server(_) => "server",
            Self::Client(_) => "client",
        }
    }
}

const FORMATS: [WireFormat; 2] = [WireFormat::V1, WireFormat::V2];

/// What `format` sends of a frame, without the length prefix of v2.
fn bytes(format: WireFormat, frame: &Frame) -> Bytes {
    match format {
        WireFormat::V1 => frame.to_bytes(),
        WireFormat::V2 => {
            let mut bytes = Vec::new();
            frame.append_to_stream(&mut bytes);
            Bytes::from(bytes).slice(5..)
        }
    }
}

/// One entry of the data file.
struct Vector {
    name: String,
    side: String,
    /// The formats that have this message.
    formats: &'static [WireFormat],
    kind: FrameKind,
    data: Bytes,
    fields: Value,
}

fn vectors() -> Vec<Vector> {
    let entries: Vec<Value> = serde_json::from_str(include_str!("data/foxglove-0.30.3.json")).unwrap();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    let vectors = entries.iter().map(|entry| {
        let (kind, data) = match entry["kind"].as_str().unwrap() {
            "text" => (FrameKind::Text, Bytes::from(entry["json"].to_string())),
            "binary" => (FrameKind::Binary, unhex(&text(entry, "hex"))),
            other => panic!("kind {other}"),
        };
        Vector {
            name: text(entry, "message"),
            side: text(entry, "side"),
            formats: match entry["version"].as_str().unwrap() {
                "v1" => &FORMATS[..1],
                "v2" => &FORMATS[1..],
                "v1+v2" => &FORMATS,
                // The schema table, which a subprotocol of v1 has as well.
                "v2>=2.3.0" => &FORMATS,
                other => panic!("version {other}"),
            },
            kind,
            data,
            fields: entry["fields"].clone(),
        }
    });
    vectors.collect()
}

fn unhex(hex: &str) -> Bytes {
    let digits = hex.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// The fields of a binary vector; fields of 64 bits are strings.
impl Vector {
    fn u64(&self, key: &str) -> u64 {
        self.fields[key].as_str().unwrap().parse().unwrap()
    }

    fn u32(&self, key: &str) -> u32 {
        u32::try_from(self.fields[key].as_u64().unwrap()).unwrap()
    }

    fn text(&self, key: &str) -> String {
        self.fields[key].as_str().unwrap().to_owned()
    }

    /// Whether only v2 has it.
    fn is_v2(&self) -> bool {
        *self.formats == [WireFormat::V2]
    }

    fn payload(&self) -> Bytes {
        unhex(self.fields["dataHex"].as_str().unwrap())
    }

    fn call(&self) -> ServiceCall {
        ServiceCall {
            service_id: self.u32("serviceId"),
            call_id: self.u32("callId"),
            encoding: self.text("encoding"),
            payload: self.payload(),
        }
    }
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|&item| item.to_owned()).collect()
}

fn channel(id: u64, topic: &str, encoding: &str, schema: Option<&Arc<Schema>>) -> Channel {
    Channel { id, topic: topic.into(), encoding: encoding.into(), schema: schema.cloned() }
}

fn jsonschema(name: &str, data: &'static str) -> Schema {
    Schema::new(name, "jsonschema", data)
}

fn protobuf() -> Arc<Schema> {
    Arc::new(Schema::new("pkg.Imu", "protobuf", &[0, 1, 2, 255][..]))
}

fn parameters() -> Vec<Parameter> {
    let integers = vec![ParameterValue::Integer(1), ParameterValue::Integer(2)];
    let dict = BTreeMap::from([("k".to_owned(), ParameterValue::Bool(true))]);
    vec![
        Parameter::new("f", ParameterValue::Float64(1.5)),
        Parameter::new("i", ParameterValue::Integer(-3)),
        Parameter::new("ia", ParameterValue::Array(integers)),
        Parameter::new("fa", ParameterValue::Float64Array(vec![1.0, 2.5])),
        Parameter::new("s", ParameterValue::String("x".into())),
        Parameter::new("b", ParameterValue::Bytes(Bytes::from_static(&[0, 1, 255]))),
        Parameter::new("t", ParameterValue::Bool(true)),
        Parameter::new("d", ParameterValue::Dict(dict)),
        Parameter { name: "e".into(), value: None },
    ]
}

/// The message that a vector encodes.
fn expected(vector: &Vector) -> Message {
    match vector.side.as_str() {
        "server" => Message::Server(expected_from_server(vector)),
        _ => Message::Client(expected_from_client(vector)),
    }
}

fn expected_from_server(vector: &Vector) -> ServerMessage {
    let advertise = |channels| ServerMessage::Advertise(server::Advertise { channels });
    let services = |services| ServerMessage::AdvertiseServices(server::AdvertiseServices { services });
    let status = |level, message: &str, id: Option<&str>| {
        let id = id.map(str::to_owned);
        ServerMessage::Status(server::Status { level, message: message.into(), id })
    };
    match vector.name.as_str() {
        "MessageData" if vector.is_v2() => ServerMessage::ChannelData(server::ChannelData {
            channel_id: vector.u64("channelId"),
            log_time_ns: vector.u64("logTime"),
            payload: vector.payload(),
        }),
        "Pong" => ServerMessage::Pong(server::Pong {
            app_timestamp: vector.u64("appTimestamp"),
            device_timestamp_ms: vector.u64("deviceTimestamp"),
        }),
        "MessageData" => ServerMessage::MessageData(server::MessageData {
            subscription_id: vector.u32("subscriptionId"),
            log_time_ns: vector.u64("logTime"),
            payload: vector.payload(),
        }),
        "Time" => ServerMessage::Time(server::Time { timestamp_ns: vector.u64("timestamp") }),
        "ServiceCallResponse" => ServerMessage::ServiceCallResponse(vector.call()),
        "FetchAssetResponse.data" => ServerMessage::FetchAssetResponse(server::FetchAssetResponse {
            request_id: vector.u32("requestId"),
            result: Ok(vector.payload()),
        }),
        "FetchAssetResponse.error" => ServerMessage::FetchAssetResponse(server::FetchAssetResponse {
            request_id: vector.u32("requestId"),
            result: Err(vector.text("error")),
        }),
        "ServerInfo" => ServerMessage::ServerInfo(server::ServerInfo {
            name: "rig-7".into(),
            capabilities: vec![
                Capability::ClientPublish,
                Capability::Parameters,
                Capability::ParametersSubscribe,
                Capability::Time,
                Capability::Services,
                Capability::ConnectionGraph,
                Capability::Assets,
            ],
            supported_encodings: strings(&["json", "protobuf"]),
            metadata: BTreeMap::from([("rosDistro".to_owned(), "jazzy".to_owned())]),
            session_id: Some("s-1".into()),
        }),
        "ServerInfo.minimal" => {
            ServerMessage::ServerInfo(server::ServerInfo { name: "x".into(), ..Default::default() })
        }
        "Status.info" => status(StatusLevel::Info, "a", None),
        "Status.warning" => status(StatusLevel::Warning, "b", Some("id-1")),
        "Status.error" => status(StatusLevel::Error, "c", None),
        "RemoveStatus" => ServerMessage::RemoveStatus(server::RemoveStatus { status_ids: strings(&["id-1", "id-2"]) }),
        "Advertise.jsonschema" => {
            let schema = Arc::new(jsonschema("Imu", r#"{"type":"object"}"#));
            advertise(vec![channel(1, "/imu", "json", Some(&schema))])
        }
        "Advertise.protobuf" => advertise(vec![channel(1, "/imu", "json", Some(&protobuf()))]),
        "Advertise.noschema" => advertise(vec![channel(2, "/raw", "json", None)]),
        "Advertise.schemaTable" => advertise(vec![
            channel(1, "/imu", "protobuf", Some(&protobuf())),
            channel(2, "/imu2", "protobuf", Some(&protobuf())),
            channel(3, "/raw", "json", None),
        ]),
        "Unadvertise" => ServerMessage::Unadvertise(server::Unadvertise { channel_ids: vec![1, 2] }),
        "AdvertiseServices" => {
            let described = |name| ServiceSchema::Described { encoding: "json".into(), schema: jsonschema(name, "{}") };
            services(vec![Service {
                id: 1,
                name: "/reset".into(),
                type_name: "std_srvs/Trigger".into(),
                request: described("Req"),
                response: described("Res"),
            }])
        }
        "AdvertiseServices.plain" => services(vec![Service {
            id: 2,
            name: "/ping".into(),
            type_name: "Ping".into(),
            request: ServiceSchema::Text(String::new()),
            response: ServiceSchema::Text(String::new()),
        }]),
        "UnadvertiseServices" => {
            ServerMessage::UnadvertiseServices(server::UnadvertiseServices { service_ids: vec![1, 2] })
        }
        "ServiceCallFailure" => ServerMessage::ServiceCallFailure(server::ServiceCallFailure {
            service_id: 1,
            call_id: 2,
            message: "busy".into(),
        }),
        "ParameterValues" => {
            ServerMessage::ParameterValues(server::ParameterValues { id: Some("r1".into()), parameters: parameters() })
        }
        "ConnectionGraphUpdate" => ServerMessage::ConnectionGraphUpdate(server::ConnectionGraphUpdate {
            removed_topics: strings(&["/old"]),
            ..Default::default()
        }),
        other => panic!("no message for the vector {other}"),
    }
}

fn expected_from_client(vector: &Vector) -> ClientMessage {
    match vector.name.as_str() {
        "MessageData" => ClientMessage::MessageData(client::MessageData {
            channel_id: vector.u32("channelId"),
            payload: vector.payload(),
        }),
        "ServiceCallRequest" => ClientMessage::ServiceCallRequest(vector.call()),
        "Subscribe" if vector.is_v2() => ClientMessage::SubscribeChannels(client::SubscribeChannels {
            channels: vec![
                ChannelRequest { id: 10, request_video_track: false },
                ChannelRequest { id: 20, request_video_track: true },
            ],
        }),
        "Unsubscribe" if vector.is_v2() => {
            ClientMessage::UnsubscribeChannels(client::UnsubscribeChannels { channel_ids: vec![10, 20] })
        }
        "Ping" => ClientMessage::Ping(client::Ping { app_timestamp: vector.u64("appTimestamp") }),
        "PingAck" => ClientMessage::PingAck(client::PingAck { device_timestamp_ms: vector.u64("deviceTimestamp") }),
        "Subscribe" => ClientMessage::Subscribe(client::Subscribe {
            subscriptions: vec![
                Subscription { id: 1, channel_id: 10 },
                Subscription { id: 2, channel_id: 4_503_599_627_370_495 },
            ],
        }),
        "Unsubscribe" => ClientMessage::Unsubscribe(client::Unsubscribe { subscription_ids: vec![1, 2] }),
        "FetchAsset" => {
            ClientMessage::FetchAsset(client::FetchAsset { request_id: 1, uri: "package://robot/base.stl".into() })
        }
        "GetParameters" => ClientMessage::GetParameters(client::GetParameters {
            parameter_names: strings(&["a", "b"]),
            id: Some("r1".into()),
        }),
        "SetParameters" => {
            ClientMessage::SetParameters(client::SetParameters { id: Some("r2".into()), parameters: parameters() })
        }
        "SubscribeParameterUpdates" => ClientMessage::SubscribeParameterUpdates(client::SubscribeParameterUpdates {
            parameter_names: strings(&["a"]),
        }),
        "UnsubscribeParameterUpdates" => {
            ClientMessage::UnsubscribeParameterUpdates(client::UnsubscribeParameterUpdates {
                parameter_names: strings(&["a"]),
            })
        }
        "Unadvertise" => ClientMessage::Unadvertise(client::Unadvertise { channel_ids: vec![1] }),
        other => panic!("no message for the vector {other}"),
    }
}

/// Messages that no vector covers; both formats have them.
fn further_messages() -> Vec<Message> {
    let client_channel = |id, schema| client::Channel { id, topic: "/cmd".into(), encoding: "json".into(), schema };
    let schema = |name: &str, encoding: &str, data: &'static [u8]| Schema::new(name, encoding, data);
    let nested = ParameterValue::Array(vec![
        ParameterValue::Dict(BTreeMap::from([("x".to_owned(), ParameterValue::Float64Array(vec![0.1, -0.0]))])),
        ParameterValue::Float64(1e300),
        ParameterValue::Array(vec![]),
    ]);
    let client = [
        ClientMessage::Advertise(client::Advertise {
            channels: vec![
                client_channel(1, None),
                client_channel(2, Some(schema("Cmd", "jsonschema", b"{}"))),
                client_channel(3, Some(schema("pkg.Cmd", "protobuf", &[255, 0]))),
                client_channel(4, Some(schema("std_msgs/String", "", b""))),
            ],
        }),
        ClientMessage::SubscribeConnectionGraph,
        ClientMessage::UnsubscribeConnectionGraph,
        ClientMessage::GetParameters(client::GetParameters { parameter_names: vec![], id: None }),
        ClientMessage::SetParameters(client::SetParameters {
            id: None,
            parameters: vec![
                Parameter::new("empty", ParameterValue::Float64Array(vec![])),
                Parameter::new("nested", nested),
            ],
        }),
    ];
    let server = [
        ServerMessage::Advertise(server::Advertise {
            channels: vec![
                channel(u64::MAX, "/t", "cdr", Some(&Arc::new(schema("s/T", "ros2msg", b"int32 x")))),
                channel(0, "/ü", "x", Some(&Arc::new(schema("s", "unheard-of", "größer".as_bytes())))),
                channel(1, "", "", Some(&Arc::new(schema("", "flatbuffer", b"")))),
            ],
        }),
        ServerMessage::ConnectionGraphUpdate(server::ConnectionGraphUpdate {
            published_topics: vec![server::PublishedTopic { name: "/a".into(), publisher_ids: strings(&["p"]) }],
            subscribed_topics: vec![server::SubscribedTopic { name: "/b".into(), subscriber_ids: strings(&["s"]) }],
            advertised_services: vec![server::AdvertisedService { name: "/c".into(), provider_ids: vec![] }],
            removed_topics: vec![],
            removed_services: strings(&["/d"]),
        }),
        ServerMessage::ParameterValues(server::ParameterValues { id: None, parameters: vec![] }),
    ];
    client.map(Message::Client).into_iter().chain(server.map(Message::Server)).collect()
}

fn assert_same_bytes(format: WireFormat, frame: &Frame, kind: FrameKind, data: &Bytes, context: &str) {
    assert_eq!(frame.kind(), kind, "{context}");
    assert_eq!(frame.len(), frame.to_bytes().len(), "{context}");
    let bytes = bytes(format, frame);
    assert_eq!(frame.stream_len() - 5, self::bytes(WireFormat::V2, frame).len(), "{context}");
    match kind {
        FrameKind::Binary => assert_eq!(bytes, data, "{context}"),
        FrameKind::Text => {
            let ours: Value = serde_json::from_slice(&bytes).unwrap();
            let theirs: Value = serde_json::from_slice(data).unwrap();
            assert_eq!(ours, theirs, "{context}");
        }
    }
}

#[test]
fn every_vector_encodes_and_decodes_exactly() {
    let (mut checked, mut in_format) = (0, BTreeMap::new());
    for vector in vectors() {
        let table = vector.name == "Advertise.schemaTable";
        let message = expected(&vector);
        let frame = match &message {
            Message::Server(ServerMessage::Advertise(advertise)) if table => {
                advertise.encode_with_table(&mut SchemaTable::new())
            }
            message => message.encode(),
        };
        for format in vector.formats {
            let context = format!("{} from {}, {format:?}", vector.name, vector.side);
            assert_same_bytes(*format, &frame, vector.kind, &vector.data, &context);
            let decoded = Message::decode(*format, &vector.side, vector.kind, &vector.data);
            assert_eq!(decoded.as_ref(), Ok(&message), "{context}");
            *in_format.entry(format!("{format:?}")).or_default() += 1;
        }
        checked += 1;
    }
    assert_eq!(checked, 52);
    assert_eq!(in_format, BTreeMap::from([("V1".to_owned(), 44), ("V2".to_owned(), 47)]));
}

#[test]
fn decoding_undoes_encoding() {
    let from_vectors = vectors().into_iter().map(|vector| (expected(&vector), vector.formats));
    let further = further_messages().into_iter().map(|message| (message, &FORMATS[..]));
    for (message, formats) in from_vectors.chain(further) {
        let frame = message.encode();
        for format in formats {
            let decoded = Message::decode(*format, message.side(), frame.kind(), &bytes(*format, &frame));
            assert_eq!(decoded.as_ref(), Ok(&message), "{format:?}");
        }
    }
}

#[test]
fn client_advertisements_leave_out_absent_fields() {
    let frame = further_messages()[0].encode();
    let json: Value = serde_json::from_slice(&frame.to_bytes()).unwrap();
    let common = |id: u32, more: Value| {
        let mut object = json!({"id": id, "topic": "/cmd", "encoding": "json"});
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object
    };
    let channels = [
        common(1, json!({"schemaName": ""})),
        common(2, json!({"schemaName": "Cmd", "schemaEncoding": "jsonschema", "schema": "{}"})),
        common(3, json!({"schemaName": "pkg.Cmd", "schemaEncoding": "protobuf", "schema": "/wA="})),
        common(4, json!({"schemaName": "std_msgs/String"})),
    ];
    assert_eq!(json, json!({"op": "advertise", "channels": channels}));
}

#[test]
fn a_schema_table_keeps_its_numbers_from_message_to_message() {
    let mut table = SchemaTable::new();
    let other = Arc::new(jsonschema("Other", "{}"));
    let mut ids = |schema: &Arc<Schema>| {
        let advertise = server::Advertise { channels: vec![channel(1, "/t", "json", Some(schema))] };
        let bytes = advertise.encode_with_table(&mut table).to_bytes();
        let decoded = ServerMessage::decode(WireFormat::V1, FrameKind::Text, &bytes);
        assert_eq!(decoded, Ok(ServerMessage::Advertise(advertise)));
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["schemas"].as_array().unwrap().len(), 1);
        assert_eq!(json["schemas"][0]["id"], json["channels"][0]["schemaId"]);
        json["channels"][0]["schemaId"].as_u64().unwrap()
    };
    assert_eq!([ids(&protobuf()), ids(&other), ids(&protobuf())], [1, 2, 1]);
}

#[test]
fn payloads_are_shared_not_copied() {
    let payload = Bytes::from(vec![7; 100]);
    let data = server::MessageData { subscription_id: 1, log_time_ns: 2, payload: payload.clone() };
    let frame = ServerMessage::MessageData(data).encode();
    assert_eq!(frame.payload().as_ptr(), payload.as_ptr());

    let wire = frame.to_bytes();
    let decoded = ServerMessage::decode(WireFormat::V1, FrameKind::Binary, &wire);
    let Ok(ServerMessage::MessageData(data)) = decoded else { panic!("not message data") };
    assert_eq!(data.payload.as_ptr(), wire[13..].as_ptr());

    let data = server::ChannelData { channel_id: 1, log_time_ns: 2, payload: payload.clone() };
    let frame = ServerMessage::ChannelData(data).encode();
    assert_eq!(frame.payload().as_ptr(), payload.as_ptr());

    let wire = bytes(WireFormat::V2, &frame);
    let decoded = ServerMessage::decode(WireFormat::V2, FrameKind::Binary, &wire);
    let Ok(ServerMessage::ChannelData(data)) = decoded else { panic!("not message data") };
    assert_eq!(data.payload.as_ptr(), wire[17..].as_ptr());
}

#[test]
fn one_frame_of_a_channel_serves_both_formats() {
    let payload = Bytes::from_static(b"{}");
    let mut frame = Frame::message_data(1 << 40, 42, payload.clone());
    frame.set_subscription_id(7);
    let v1 = server::MessageData { subscription_id: 7, log_time_ns: 42, payload: payload.clone() };
    let v2 = server::ChannelData { channel_id: 1 << 40, log_time_ns: 42, payload };
    let expected = [ServerMessage::MessageData(v1), ServerMessage::ChannelData(v2)];
    for (format, expected) in FORMATS.into_iter().zip(expected) {
        assert_eq!(ServerMessage::decode(format, frame.kind(), &bytes(format, &frame)), Ok(expected));
    }
}

/// Decodes the bytes as every format, kind and side. A decoded message must encode again, and an error must be brief.
fn survive(data: &Bytes) -> usize {
    let mut decoded = 0;
    let kinds = [FrameKind::Text, FrameKind::Binary].map(|kind| ["server", "client"].map(|side| (kind, side)));
    for (kind, side) in kinds.into_iter().flatten() {
        for format in FORMATS {
            match Message::decode(format, side, kind, data) {
                Ok(message) => {
                    decoded += 1;
                    let frame = message.encode();
                    let again = Message::decode(format, side, frame.kind(), &bytes(format, &frame));
                    assert!(again.is_ok(), "{message:?} became {again:?}");
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.chars().count() < 140, "{text}");
                    assert!(!text.contains(char::is_control), "{text}");
                }
            }
        }
    }
    decoded
}

#[test]
fn no_bytes_make_decoding_panic() {
    let mut random = fastrand::Rng::with_seed(0x1a_4e_ca_57);
    let mut decoded = 0;

    for _ in 0..20_000 {
        let mut bytes = vec![0; random.usize(..64)];
        random.fill(&mut bytes);
        if let Some(first) = bytes.first_mut().filter(|_| random.bool()) {
            *first %= 8;
        }
        decoded += survive(&bytes.into());
    }
    for vector in vectors() {
        for end in 0..=vector.data.len() {
            decoded += survive(&vector.data.slice(..end));
        }
        for _ in 0..500 {
            let mut bytes = vector.data.to_vec();
            for _ in 0..random.usize(1..=4) {
                let at = random.usize(..bytes.len());
                bytes[at] ^= 1 << random.u8(..8);
            }
            decoded += survive(&bytes.into());
        }
    }
    assert!(decoded > 10_000, "only {decoded} decoded: the random bytes resemble no messages");
}
