//! What decoding says about messages that are wrong, new or extreme.

use bytes::Bytes;

use super::server::{self, Capability, ParameterValues};
use super::{ClientMessage, DecodeError, FrameKind, Parameter, ParameterValue, ServerMessage};

fn server_error(kind: FrameKind, data: &'static [u8]) -> DecodeError {
    ServerMessage::decode(kind, &Bytes::from_static(data)).unwrap_err()
}

fn client_error(kind: FrameKind, data: &'static [u8]) -> DecodeError {
    ClientMessage::decode(kind, &Bytes::from_static(data)).unwrap_err()
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
fn what_is_newer_than_this_crate_is_skipped() {
    let info = Bytes::from_static(
        br#"{"op":"serverInfo","name":"n","capabilities":["teleport","time"],"dataStartTime":{"sec":1,"nsec":2}}"#,
    );
    let expected = server::ServerInfo { name: "n".into(), capabilities: vec![Capability::Time], ..Default::default() };
    assert_eq!(ServerMessage::decode(FrameKind::Text, &info), Ok(ServerMessage::ServerInfo(expected)));
    let time = Bytes::from_static(&[2, 1, 0, 0, 0, 0, 0, 0, 0, 99]);
    let expected = ServerMessage::Time(server::Time { timestamp_ns: 1 });
    assert_eq!(ServerMessage::decode(FrameKind::Binary, &time), Ok(expected));
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
    let decoded = ServerMessage::decode(frame.kind(), &frame.to_bytes());
    let Ok(ServerMessage::ParameterValues(mut values)) = decoded else {
        panic!("{decoded:?}");
    };
    let Some(ParameterValue::Float64Array(read)) = values.parameters.remove(0).value else {
        panic!("not floats");
    };
    let bits = |floats: &[f64]| floats.iter().map(|float| float.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&read), bits(&floats));
}
