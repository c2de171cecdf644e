//! The part of the protocol that peers and load client need: the handshake, the texts, and message data.

use base64::Engine;
use rustix::time::{ClockId, clock_gettime};

pub const SUBPROTOCOL: &str = "foxglove.sdk.v1";

/// Opcode of message data and length of its head: opcode, subscription id, log time.
pub const MESSAGE_DATA: u8 = 1;
pub const HEAD: usize = 1 + 4 + 8;

/// Length of the beginning of a measured message: its number, and the time at which it was due, in nanoseconds of
/// [`now`].
pub const STAMP: usize = 16;

/// The messages that the hand-made peers send on connect, as the others do.
pub const SERVER_INFO: &str =
    r#"{"op":"serverInfo","name":"peers","capabilities":[],"supportedEncodings":[],"metadata":{},"sessionId":"1"}"#;
pub const ADVERTISE: &str =
    r#"{"op":"advertise","channels":[{"id":1,"topic":"/bench","encoding":"raw","schemaName":"","schema":""}]}"#;

/// Opcodes of WebSocket frames, with the bit of a final frame.
pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

/// Nanoseconds of a clock that all processes of a machine share.
pub fn now() -> u64 {
    nanos(ClockId::Monotonic)
}

/// CPU time of this process, in nanoseconds.
pub fn process_cpu() -> u64 {
    nanos(ClockId::ProcessCPUTime)
}

/// CPU time of this thread, in nanoseconds.
pub fn thread_cpu() -> u64 {
    nanos(ClockId::ThreadCPUTime)
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A measured message of `size` bytes.
pub fn payload(number: u64, due: u64, size: usize) -> Vec<u8> {
    let mut payload = vec![0x55; size.max(STAMP)];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload[8..STAMP].copy_from_slice(&due.to_le_bytes());
    payload
}

/// The head of message data.
pub fn head(id: u32, time: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[0] = MESSAGE_DATA;
    head[1..5].copy_from_slice(&id.to_le_bytes());
    head[5..].copy_from_slice(&time.to_le_bytes());
    head
}

/// Appends the header of a server's frame.
pub fn put_header(bytes: &mut Vec<u8>, first: u8, len: usize) {
    bytes.push(first);
    match len {
        0..=125 => bytes.push(len as u8),
        126..=0xffff => {
            bytes.push(126);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            bytes.push(127);
            bytes.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// A client's frame, masked with a key of zeros.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 8);
    put_header(&mut bytes, first, payload.len());
    bytes[1] |= 0x80;
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// Reads the header of the frame that `bytes` begin with: first byte, length of the header (mask included), and length
/// of the payload.
pub fn header(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let [first, second, rest @ ..] = bytes else { return None };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    match second & 0x7f {
        126 => Some((*first, 4 + mask, usize::from(u16::from_be_bytes(*rest.first_chunk()?)))),
        127 => Some((*first, 10 + mask, u64::from_be_bytes(*rest.first_chunk()?) as usize)),
        len => Some((*first, 2 + mask, usize::from(len))),
    }
}

pub fn upgrade_request() -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    )
}

/// The answer to an upgrade request; `None` if `request` isn't one.
pub fn upgrade_response(request: &str) -> Option<String> {
    let name = "sec-websocket-key:";
    let line = request.lines().find(|line| line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name))?;
    let mut digest = sha1_smol::Sha1::new();
    digest.update(line[name.len()..].trim().as_bytes());
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = base64::engine::general_purpose::STANDARD.encode(digest.digest().bytes());
    Some(format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    ))
}

pub fn subscribe(id: u32, channel: u64) -> String {
    format!(r#"{{"op":"subscribe","subscriptions":[{{"id":{id},"channelId":{channel}}}]}}"#)
}

/// The subscription id of a `subscribe` with one subscription.
pub fn subscription_id(text: &[u8]) -> Option<u32> {
    let message: serde_json::Value = serde_json::from_slice(text).ok()?;
    (message["op"] == "subscribe").then(|| message["subscriptions"][0]["id"].as_u64()).flatten()?.try_into().ok()
}

/// The id of the first channel of an `advertise`.
pub fn advertised_channel(text: &[u8]) -> Option<u64> {
    let message: serde_json::Value = serde_json::from_slice(text).ok()?;
    (message["op"] == "advertise").then(|| message["channels"][0]["id"].as_u64()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_back() {
        for len in [0, 125, 126, 0xffff, 0x1_0000] {
            let frame = masked(BINARY, &vec![1; len]);
            let (first, head, payload) = header(&frame).unwrap();
            assert_eq!((first, head + payload, payload), (BINARY, frame.len(), len));
        }
        assert_eq!(header(&[BINARY, 126, 0]), None);
    }

    #[test]
    fn texts_are_understood() {
        assert_eq!(subscription_id(subscribe(7, 1).as_bytes()), Some(7));
        assert_eq!(advertised_channel(ADVERTISE.as_bytes()), Some(1));
        assert_eq!(advertised_channel(SERVER_INFO.as_bytes()), None);
        // The example of RFC 6455.
        assert!(upgrade_response(&upgrade_request()).unwrap().contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    }
}
