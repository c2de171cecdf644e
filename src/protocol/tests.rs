//! What decoding says about messages that are wrong, new or extreme.

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
        DecodeError::InvalidBase64 { what: "schema" }
    );
    assert_eq!(
        server_error(Text, br#"{"op":"advertise","channels":[{"id":1,"topic":"","encoding":"","schemaId":9}]}"#),
        DecodeError::UnknownSchemaId(9)
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

    // An op of both has other fields in each.
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

/// Needs serde_json's feature `float_roundtrip`: its faster parser is off by a bit now and then.
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

/// What comes behind an op that is refused isn't looked at; what comes behind one that is served is looked at once, and
/// where the op stands makes no difference to what is read.
#[test]
fn a_request_is_parsed_once() {
    let decode = |json: &str| {
        let data = Bytes::copy_from_slice(json.as_bytes());
        ClientMessage::decode_offered(WireFormat::V1, FrameKind::Text, &data, &[])
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
