//! Decoding of messages that are invalid, newer than this crate, or extreme.

use bytes::Bytes;

use super::client;
use super::server::{self, Capability, ParameterValues};
use super::{ClientMessage, DecodeError, FrameKind, Parameter, ParameterValue, ServerMessage, WireFormat};

fn server_error(kind: FrameKind, data: &'static [u8]) -> DecodeError {
    ServerMessage::decode(WireFormat::V1, kind, &Bytes::from_static(data)).unwrap_err()
}

fn client_error(kind: FrameKind, data: &'static [u8]) -> DecodeError {
    ClientMessage::decode(WireFormat::V1, kind, &Bytes::from_static(data)).unwrap_err()
}

#[test]
fn each_mistake_has_its_own_error() {
    use FrameKind::{Binary, Text};

    assert!(matches!(client_error(Text, b"{"), DecodeError::InvalidJson { .. }));
    assert!(matches!(client_error(Text, b"\"op\""), DecodeError::InvalidJson { .. }));
    assert!(matches!(client_error(Text, br#"{"op":7}"#), DecodeError::InvalidJson { .. }));
    assert!(matches!(client_error(Text, br#"{"op":"subscribe"}"#), DecodeError::InvalidJson { .. }));
    assert_eq!(client_error(Text, b"{}"), DecodeError::MissingOp);
    assert_eq!(client_error(Text, br#" ["subscribeConnectionGraph"]"#), DecodeError::MissingOp);
    assert_eq!(client_error(Text, br#"{"op":"dance"}"#), DecodeError::UnknownOp { op: "dance".into() });
    assert_eq!(client_error(Text, br#"{"op":"status"}"#), DecodeError::WrongDirection { op: "status" });
    assert_eq!(server_error(Text, br#"{"op":"subscribe"}"#), DecodeError::WrongDirection { op: "subscribe" });
    assert_eq!(client_error(Text, b"{\"op\":\"\xff\"}"), DecodeError::InvalidUtf8 { what: "text message" });

    assert_eq!(client_error(Binary, &[3]), DecodeError::UnknownOpcode(3));
    assert_eq!(server_error(Binary, &[0]), DecodeError::UnknownOpcode(0));
    assert_eq!(client_error(Binary, &[]), DecodeError::Truncated { message: "binary message", need: 1, got: 0 });
    assert_eq!(client_error(Binary, &[1, 0, 0]), DecodeError::Truncated { message: "message data", need: 5, got: 3 });
    assert_eq!(
        client_error(Binary, &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, b'j']),
        DecodeError::Truncated { message: "service call request", need: 13 + 0x7fff_ffff, got: 14 }
    );
    assert_eq!(server_error(Binary, &[4, 1, 0, 0, 0, 2, 0, 0, 0, 0]), DecodeError::UnknownAssetStatus(2));
    assert_eq!(
        server_error(Binary, &[4, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0xff]),
        DecodeError::InvalidUtf8 { what: "asset error" }
    );
    assert_eq!(
        server_error(
            Text,
            br#"{"op":"advertise","channels":[{"id":1,"topic":"","encoding":"","schemaEncoding":"protobuf","schema":"?"}]}"#
        ),
        in_channel("\"\"", DecodeError::InvalidBase64 { what: "schema" })
    );
    assert_eq!(
        server_error(Text, br#"{"op":"advertise","channels":[{"id":1,"topic":"","encoding":"","schemaId":9}]}"#),
        in_channel("\"\"", DecodeError::UnknownSchemaId(9))
    );
}

fn in_channel(name: &str, fault: DecodeError) -> DecodeError {
    DecodeError::InvalidItem { kind: "channel", name: name.into(), fault: Box::new(fault) }
}

/// Decodes `json`, and returns the message and the texts of its faults.
fn with_faults(json: &'static str) -> (ServerMessage, Vec<String>) {
    let (data, mut faults) = (Bytes::from_static(json.as_bytes()), Vec::new());
    let message = ServerMessage::decode_each(WireFormat::V1, FrameKind::Text, &data, &mut faults).unwrap();
    if faults.is_empty() {
        assert_eq!(ServerMessage::decode(WireFormat::V1, FrameKind::Text, &data).as_ref(), Ok(&message));
    }
    (message, faults.iter().map(ToString::to_string).collect())
}

#[test]
fn a_bad_item_loses_itself_alone_and_is_named() {
    let (message, faults) = with_faults(
        r#"{"op":"advertise","channels":[
            {"id":1,"topic":"/one","encoding":"json"},
            {"id":2,"topic":"/two","encoding":"json","schemaEncoding":"protobuf","schema":"?"},
            {"id":"3","topic":"/three","encoding":"json"},
            7,
            {"id":5,"topic":"/five","encoding":"json","schemaName":null,"schema":null}]}"#,
    );
    let ServerMessage::Advertise(advertise) = message else { panic!("{message:?}") };
    assert_eq!(advertise.channels.iter().map(|channel| channel.id).collect::<Vec<_>>(), [1, 5]);
    assert_eq!(faults.len(), 3);
    assert_eq!(faults[0], r#"channel "/two": schema is not base64"#);
    assert!(faults[1].starts_with(r#"channel "/three": invalid JSON message: invalid type"#), "{}", faults[1]);
    assert!(faults[2].starts_with("channel number 4: invalid JSON message"), "{}", faults[2]);

    // An unreadable schema of the table also costs the channels that refer to it, but no others.
    let (message, faults) = with_faults(
        r#"{"op":"advertise","schemas":[
            {"id":1,"name":"A","encoding":"jsonschema","data":"{}"},
            {"id":2,"name":"B","encoding":"protobuf","data":"?"}],"channels":[
            {"id":1,"topic":"/a","encoding":"json","schemaId":1},
            {"id":2,"topic":"/b","encoding":"json","schemaId":2}]}"#,
    );
    let ServerMessage::Advertise(advertise) = message else { panic!("{message:?}") };
    assert_eq!(advertise.channels.iter().map(|channel| channel.id).collect::<Vec<_>>(), [1]);
    assert_eq!(faults, [r#"schema "B": schema is not base64"#, r#"channel "/b": unknown schema id 2"#]);

    let (message, faults) = with_faults(
        r#"{"op":"advertiseServices","services":[{"id":-1,"name":"/bad","type":"T"},
            {"id":2,"name":"/good","type":"T","request":null,"requestSchema":null,"responseSchema":""}]}"#,
    );
    let ServerMessage::AdvertiseServices(advertise) = message else { panic!("{message:?}") };
    assert_eq!(advertise.services[0].name, "/good");
    assert!(faults[0].starts_with(r#"service "/bad": "#), "{faults:?}");

    let (message, faults) = with_faults(
        r#"{"op":"parameterValues","id":null,"parameters":[{"name":"a","type":"float64","value":"x"},{"value":1},
            {"name":"b","value":2},{"name":"c","type":null,"value":null}]}"#,
    );
    let b = Parameter::new("b", ParameterValue::Integer(2));
    let c = Parameter { name: "c".into(), value: None };
    assert_eq!(message, ServerMessage::ParameterValues(ParameterValues { id: None, parameters: vec![b, c] }));
    assert_eq!(faults[0], r#"parameter "a": float64 is not a number"#);
    assert!(faults[1].starts_with("parameter number 2: invalid JSON message: missing field"), "{}", faults[1]);
}

#[test]
fn faults_are_bounded_and_nothing_readable_is_an_error() {
    let items = vec!["7"; 1000].join(",");
    let data = Bytes::from(format!(r#"{{"op":"advertise","channels":[{items}]}}"#));
    let mut faults = Vec::new();
    let decoded = ServerMessage::decode_each(WireFormat::V1, FrameKind::Text, &data, &mut faults);
    assert_eq!(decoded, Ok(ServerMessage::Advertise(server::Advertise { channels: vec![] })));
    assert_eq!(faults.len(), 100);
    let decoded = ServerMessage::decode(WireFormat::V1, FrameKind::Text, &data);
    assert!(matches!(decoded, Err(DecodeError::InvalidItem { kind: "channel", .. })), "{decoded:?}");
    let empty = Bytes::from_static(br#"{"op":"advertise","channels":[]}"#);
    assert!(ServerMessage::decode(WireFormat::V1, FrameKind::Text, &empty).is_ok());
}

#[test]
fn a_bad_item_of_a_request_loses_itself_alone_and_is_named() {
    let decode = |format, json: &'static str| {
        let (data, mut faults) = (Bytes::from_static(json.as_bytes()), Vec::new());
        let message = ClientMessage::decode_each(format, FrameKind::Text, &data, &Capability::ALL, &mut faults);
        if message.is_ok() {
            assert_eq!(ClientMessage::decode(format, FrameKind::Text, &data), message, "the same without names");
        }
        (message, faults.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let invalid = "invalid JSON message: invalid ";
    for (format, json, expected, kind) in [
        (
            WireFormat::V1,
            r#"{"op":"subscribe","subscriptions":[{"id":1},{"id":2,"channelId":3}]}"#,
            ClientMessage::Subscribe(client::Subscribe {
                subscriptions: vec![client::Subscription { id: 2, channel_id: 3 }],
            }),
            "subscription number 1: invalid JSON message: missing field `channelId`",
        ),
        (
            WireFormat::V1,
            r#"{"op":"unsubscribe","subscriptionIds":[1,-2,3]}"#,
            ClientMessage::Unsubscribe(client::Unsubscribe { subscription_ids: vec![1, 3] }),
            "subscription id number 2: ",
        ),
        (
            WireFormat::V2,
            r#"{"op":"subscribe","channels":[{"id":1},{"id":"2"}]}"#,
            ClientMessage::SubscribeChannels(client::SubscribeChannels {
                channels: vec![client::ChannelRequest { id: 1, request_video_track: false }],
            }),
            "channel number 2: ",
        ),
        (
            WireFormat::V2,
            r#"{"op":"unsubscribe","channelIds":[null,7]}"#,
            ClientMessage::UnsubscribeChannels(client::UnsubscribeChannels { channel_ids: vec![7] }),
            "channel id number 1: ",
        ),
        (
            WireFormat::V1,
            r#"{"op":"unadvertise","channelIds":[1,{},2]}"#,
            ClientMessage::Unadvertise(client::Unadvertise { channel_ids: vec![1, 2] }),
            "channel id number 2: ",
        ),
        (
            WireFormat::V1,
            r#"{"op":"advertise","channels":[{"id":1,"topic":"/a"},{"id":2,"topic":"/b","encoding":"json"}]}"#,
            ClientMessage::Advertise(client::Advertise {
                channels: vec![client::Channel { id: 2, topic: "/b".into(), encoding: "json".into(), schema: None }],
            }),
            r#"channel "/a": invalid JSON message: missing field `encoding`"#,
        ),
        (
            WireFormat::V1,
            r#"{"op":"getParameters","parameterNames":["a",1],"id":"x"}"#,
            ClientMessage::GetParameters(client::GetParameters {
                parameter_names: vec!["a".into()],
                id: Some("x".into()),
            }),
            "parameter name number 2: ",
        ),
        (
            WireFormat::V1,
            r#"{"op":"subscribeParameterUpdates","parameterNames":["a",1]}"#,
            ClientMessage::SubscribeParameterUpdates(client::SubscribeParameterUpdates {
                parameter_names: vec!["a".into()],
            }),
            "parameter name number 2: ",
        ),
        (
            WireFormat::V1,
            r#"{"op":"unsubscribeParameterUpdates","parameterNames":[{},"a"]}"#,
            ClientMessage::UnsubscribeParameterUpdates(client::UnsubscribeParameterUpdates {
                parameter_names: vec!["a".into()],
            }),
            "parameter name number 1: ",
        ),
    ] {
        let (message, faults) = decode(format, json);
        assert_eq!(message, Ok(expected), "{json}");
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with(kind), "{faults:?}");
        assert!(faults[0].contains(invalid) || faults[0].contains("missing field"), "{faults:?}");
    }

    // An empty list means all parameters. A client whose list has names, none of which can be read, does not mean all.
    for op in ["getParameters", "subscribeParameterUpdates", "unsubscribeParameterUpdates"] {
        let json = format!(r#"{{"op":"{op}","parameterNames":[1,2]}}"#);
        let (message, faults) = decode(WireFormat::V1, json.leak());
        assert!(matches!(message, Err(DecodeError::InvalidItem { kind: "parameter name", .. })), "{message:?}");
        assert_eq!(faults, [""; 0], "it is told once");
    }
    let (message, faults) = decode(WireFormat::V2, r#"{"op":"subscribe","channels":[]}"#);
    assert!(message.is_ok() && faults.is_empty(), "{message:?}");
}

/// The reference server in Python and others write `null` for what they don't have.
#[test]
fn null_reads_as_absent() {
    let (message, _) = with_faults(
        r#"{"op":"serverInfo","name":"n","capabilities":null,"supportedEncodings":null,
            "metadata":{"a":null,"b":"c"},"sessionId":null}"#,
    );
    let metadata = [("b".to_owned(), "c".to_owned())].into();
    let expected = server::ServerInfo { name: "n".into(), metadata, ..Default::default() };
    assert_eq!(message, ServerMessage::ServerInfo(expected));
    let (message, _) = with_faults(r#"{"op":"serverInfo","name":"n","capabilities":[],"metadata":null}"#);
    assert_eq!(message, ServerMessage::ServerInfo(server::ServerInfo { name: "n".into(), ..Default::default() }));
    let (message, faults) = with_faults(
        r#"{"op":"advertise","schemas":null,"channels":[{"id":1,"topic":"/a","encoding":"json","schemaName":null,
            "schemaEncoding":null,"schema":null,"schemaId":null}]}"#,
    );
    let channel = server::Channel { id: 1, topic: "/a".into(), encoding: "json".into(), schema: None };
    assert_eq!(message, ServerMessage::Advertise(server::Advertise { channels: vec![channel] }));
    assert_eq!(faults, [""; 0]);
    let (message, _) = with_faults(r#"{"op":"status","level":1,"message":"m","id":null}"#);
    assert!(matches!(message, ServerMessage::Status(server::Status { id: None, .. })));
    let (message, _) = with_faults(
        r#"{"op":"connectionGraphUpdate","publishedTopics":null,"subscribedTopics":null,"advertisedServices":null,
            "removedTopics":null,"removedServices":["/a"]}"#,
    );
    let expected = server::ConnectionGraphUpdate { removed_services: vec!["/a".into()], ..Default::default() };
    assert_eq!(message, ServerMessage::ConnectionGraphUpdate(expected));

    let client = |json: &'static str| {
        ClientMessage::decode(WireFormat::V2, FrameKind::Text, &Bytes::from_static(json.as_bytes())).unwrap()
    };
    let channels = vec![client::ChannelRequest { id: 7, request_video_track: false }];
    assert_eq!(
        client(r#"{"op":"subscribe","channels":[{"id":7,"requestVideoTrack":null}]}"#),
        ClientMessage::SubscribeChannels(client::SubscribeChannels { channels })
    );
    let channel = client::Channel { id: 1, topic: "/a".into(), encoding: "json".into(), schema: None };
    assert_eq!(
        client(
            r#"{"op":"advertise","channels":[{"id":1,"topic":"/a","encoding":"json","schemaName":null,
                "schemaEncoding":null,"schema":null},{"id":"x"}]}"#
        ),
        ClientMessage::Advertise(client::Advertise { channels: vec![channel] })
    );
    assert_eq!(
        client(r#"{"op":"getParameters","parameterNames":[],"id":null}"#),
        ClientMessage::GetParameters(client::GetParameters { parameter_names: vec![], id: None })
    );
    assert_eq!(
        client(r#"{"op":"setParameters","parameters":[{"name":"a","type":null,"value":null},{}],"id":null}"#),
        ClientMessage::SetParameters(client::SetParameters {
            id: None,
            parameters: vec![Parameter { name: "a".into(), value: None }]
        })
    );
}

#[test]
fn what_only_the_other_format_has_is_unknown() {
    use FrameKind::{Binary, Text};
    use WireFormat::{V1, V2};

    let number = |opcode: u8| Bytes::from(vec![opcode; 17]);
    for opcode in [4, 5] {
        let decoded = ClientMessage::decode(V1, Binary, &number(opcode));
        assert_eq!(decoded, Err(DecodeError::UnknownOpcode(opcode)));
        assert!(ClientMessage::decode(V2, Binary, &number(opcode)).is_ok());
    }
    assert_eq!(ServerMessage::decode(V1, Binary, &number(6)), Err(DecodeError::UnknownOpcode(6)));
    assert!(ServerMessage::decode(V2, Binary, &number(6)).is_ok());

    // An op that exists in both formats has different fields in each.
    let (ids, channels) = (
        Bytes::from_static(br#"{"op":"unsubscribe","subscriptionIds":[7]}"#),
        Bytes::from_static(br#"{"op":"unsubscribe","channelIds":[7]}"#),
    );
    assert!(matches!(ClientMessage::decode(V1, Text, &ids), Ok(ClientMessage::Unsubscribe(_))));
    assert!(matches!(ClientMessage::decode(V2, Text, &channels), Ok(ClientMessage::UnsubscribeChannels(_))));
    for (format, text) in [(V1, &channels), (V2, &ids)] {
        assert!(matches!(ClientMessage::decode(format, Text, text), Err(DecodeError::InvalidJson { .. })));
    }
}

#[test]
fn a_video_track_is_only_requested_where_it_says_so() {
    let text = Bytes::from_static(br#"{"op":"subscribe","channels":[{"id":18446744073709551615}]}"#);
    let channels = vec![client::ChannelRequest { id: u64::MAX, request_video_track: false }];
    let expected = ClientMessage::SubscribeChannels(client::SubscribeChannels { channels });
    assert_eq!(ClientMessage::decode(WireFormat::V2, FrameKind::Text, &text), Ok(expected));
}

#[test]
fn each_mistake_of_v2_has_its_own_error() {
    let truncated = |message, need| DecodeError::Truncated { message, need, got: 5 };
    let five = |opcode: u8| Bytes::from(vec![opcode; 5]);
    let client = |opcode| ClientMessage::decode(WireFormat::V2, FrameKind::Binary, &five(opcode)).unwrap_err();
    let server = |opcode| ServerMessage::decode(WireFormat::V2, FrameKind::Binary, &five(opcode)).unwrap_err();
    assert_eq!(client(4), truncated("ping", 9));
    assert_eq!(client(5), truncated("ping ack", 9));
    assert_eq!(server(6), truncated("pong", 9));
    assert_eq!(server(1), truncated("message data", 9));
}

#[test]
fn what_is_newer_than_this_crate_is_skipped() {
    let info = Bytes::from_static(
        br#"{"op":"serverInfo","name":"n","capabilities":["teleport","time"],"dataStartTime":{"sec":1,"nsec":2}}"#,
    );
    let expected = server::ServerInfo { name: "n".into(), capabilities: vec![Capability::Time], ..Default::default() };
    let expected = Ok(ServerMessage::ServerInfo(expected));
    assert_eq!(ServerMessage::decode(WireFormat::V1, FrameKind::Text, &info), expected);
    let time = Bytes::from_static(&[2, 1, 0, 0, 0, 0, 0, 0, 0, 99]);
    let expected = ServerMessage::Time(server::Time { timestamp_ns: 1 });
    assert_eq!(ServerMessage::decode(WireFormat::V1, FrameKind::Binary, &time), Ok(expected));
}

/// Needs the feature `float_roundtrip` of `serde_json`: its faster parser is sometimes off by one bit.
#[test]
fn floats_survive_to_the_last_bit() {
    let mut random = fastrand::Rng::with_seed(7);
    let any = std::iter::repeat_with(|| f64::from_bits(random.u64(..))).filter(|float| float.is_finite());
    let edges = [0.1 + 0.2, -0.0, f64::MAX, f64::MIN_POSITIVE, 5e-324];
    let floats: Vec<f64> = any.take(10_000).chain(edges).collect();

    let parameters = vec![Parameter::new("p", ParameterValue::Float64Array(floats.clone()))];
    let frame = ServerMessage::ParameterValues(ParameterValues { id: None, parameters }).encode();
    let decoded = ServerMessage::decode(WireFormat::V1, frame.kind(), &frame.to_bytes());
    let Ok(ServerMessage::ParameterValues(mut values)) = decoded else {
        panic!("{decoded:?}");
    };
    let Some(ParameterValue::Float64Array(read)) = values.parameters.remove(0).value else {
        panic!("not floats");
    };
    let bits = |floats: &[f64]| floats.iter().map(|float| float.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&read), bits(&floats));
}

/// The rest of a message is not read if its op is refused, and is read once if its op is served. The position of the op
/// makes no difference to what is read.
#[test]
fn a_request_is_parsed_once() {
    let decode = |json: &str| {
        let data = Bytes::copy_from_slice(json.as_bytes());
        ClientMessage::decode_each(WireFormat::V1, FrameKind::Text, &data, &[], &mut Vec::new())
    };
    let unread = decode(r#"{"op":"getParameters", none of this is JSON"#);
    assert_eq!(unread, Err(DecodeError::NotOffered { capability: Capability::Parameters }));
    let unread = decode(r#" { "op" : "getParameters\u0021", nor this"#);
    assert_eq!(unread, Err(DecodeError::UnknownOp { op: "getParameters!".into() }));

    let first = decode(r#"{"op":"unsubscribe","subscriptionIds":[1,2]}"#);
    assert_eq!(first, decode(r#"{"subscriptionIds":[1,2],"op":"unsubscribe"}"#));
    assert!(first.is_ok(), "{first:?}");
    for malformed in [
        r#"{"op":"unsubscribe","subscriptionIds":[1,2}"#,
        r#"{"op":"unsubscribe","subscriptionIds":[1,2]} and more"#,
        r#"{"op":"unsubscribe""#,
        r#"{"op":7}"#,
        r#"{"op"}"#,
        "{",
    ] {
        assert!(matches!(decode(malformed), Err(DecodeError::InvalidJson { .. })), "{malformed}");
    }
    for nameless in ["{}", r#"{"Op":"subscribe"}"#, r#"{"op":null}"#, r#"["unsubscribe"]"#] {
        assert_eq!(decode(nameless), Err(DecodeError::MissingOp), "{nameless}");
    }
    let graph = br#"{"op":"subscribeConnectionGraph", none of this is JSON"#;
    let graph = ClientMessage::decode(WireFormat::V1, FrameKind::Text, &Bytes::from_static(graph));
    assert!(matches!(graph, Err(DecodeError::InvalidJson { .. })), "{graph:?}");
}
