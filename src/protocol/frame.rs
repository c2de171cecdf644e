//! Encoded messages, for viewers of both formats.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

/// Length of a message-data head in v1: opcode, subscription id (u32), log time (u64). No other frame has a head of
/// this length, so [`Frame::set_subscription_id`] identifies message data by it.
const MESSAGE_DATA_HEAD: usize = 1 + 4 + 8;

/// Offset of the log time in a message-data head in v1.
const LOG_TIME: usize = 1 + 4;

/// Length of a message-data head in v2: opcode, channel id (u64), log time (u64).
const CHANNEL_DATA_HEAD: usize = 1 + 8 + 8;

/// Capacity for a head, in bytes: the length of the longest one.
const HEAD_CAPACITY: usize = MESSAGE_DATA_HEAD;

/// Opcode of message data, in either direction.
pub(super) const OPCODE_MESSAGE_DATA: u8 = 1;

/// Whether a frame is sent as text or as binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// UTF-8 text, a JSON object.
    Text,
    /// Bytes, of which the first is an opcode.
    Binary,
}

/// An encoded message: a small head that may differ from viewer to viewer, and a payload shared by all viewers.
///
/// A transport sends the head followed by the payload. A clone copies the head and shares the payload. So sending one
/// message to many viewers, each with its own subscription id, copies no payload.
///
/// A frame serves viewers of both formats: the transport decides which one is written. Only message data differs
/// between the formats, and only in its head. A WebSocket writes [`head`](Self::head) and payload, which is v1. A byte
/// stream gets the output of [`append_to_stream`](Self::append_to_stream), which is v2.
#[derive(Clone)]
pub struct Frame {
    payload: Bytes,
    /// Channel id of message data; 0 in any other frame.
    channel_id: u64,
    head: [u8; HEAD_CAPACITY],
    head_len: u8,
    kind: FrameKind,
    /// Whether the log time is also the server's time: see [`Frame::live`].
    is_live: bool,
}

impl Frame {
    /// Makes a text frame without a head.
    pub fn text(text: impl Into<String>) -> Self {
        Self::with_head(FrameKind::Text, [], Bytes::from(text.into()))
    }

    /// Makes a binary frame without a head.
    pub fn binary(payload: Bytes) -> Self {
        Self::with_head(FrameKind::Binary, [], payload)
    }

    /// Makes a message-data frame from server to client. The head names the channel and the log time in nanoseconds,
    /// and the payload is the message.
    ///
    /// In v2, the head carries `channel_id`. In v1, it carries the viewer's own [subscription
    /// id](Self::set_subscription_id), which is 0 until it is set.
    pub fn message_data(channel_id: u64, log_time_ns: u64, payload: Bytes) -> Self {
        let mut head = [0; MESSAGE_DATA_HEAD];
        head[0] = OPCODE_MESSAGE_DATA;
        head[LOG_TIME..].copy_from_slice(&log_time_ns.to_le_bytes());
        Self { channel_id, ..Self::with_head(FrameKind::Binary, head, payload) }
    }

    pub(super) fn with_head<const N: usize>(kind: FrameKind, head: [u8; N], payload: Bytes) -> Self {
        const { assert!(N <= HEAD_CAPACITY) };
        let mut padded = [0; HEAD_CAPACITY];
        padded[..N].copy_from_slice(&head);
        Self { payload, channel_id: 0, head: padded, head_len: N as u8, kind, is_live: false }
    }

    /// Marks the log time of a frame made by [`Frame::message_data`] as the server's time. This is for v1 viewers of a
    /// server with the capability `time`: see [`live_time_ns`](Self::live_time_ns).
    #[must_use]
    pub fn live(mut self) -> Self {
        self.is_live = true;
        self
    }

    /// The server's time that goes with this frame, in nanoseconds; `None` unless the frame is message data that was
    /// marked [`live`](Self::live).
    ///
    /// A v1 transport writes a [time message](super::server::Time) with this time directly before the frame, at the
    /// moment it hands the frame over. It does so only if the time is later than every time it has sent to this viewer:
    /// a viewer takes an earlier time for a jump. [`WebSocketRoom`](crate::room::websocket::WebSocketRoom) follows this
    /// rule.
    pub fn live_time_ns(&self) -> Option<u64> {
        let head: &[u8; MESSAGE_DATA_HEAD] = self.head().as_array().filter(|_| self.is_live)?;
        head[LOG_TIME..].as_array().copied().map(u64::from_le_bytes)
    }

    /// Writes a v1 viewer's own subscription id into a frame made by [`Frame::message_data`]. Any other frame is left
    /// unchanged.
    pub fn set_subscription_id(&mut self, id: u32) {
        if let Some(head) = self.head_for(id) {
            self.head[..MESSAGE_DATA_HEAD].copy_from_slice(&head);
        }
    }

    /// The v1 head with the subscription id `id` in it; `None` if the frame is not message data.
    pub(crate) fn head_for(&self, id: u32) -> Option<[u8; MESSAGE_DATA_HEAD]> {
        let mut head = *self.head().as_array()?;
        head[1..LOG_TIME].copy_from_slice(&id.to_le_bytes());
        Some(head)
    }

    /// The v2 head of message data; `None` for any other frame, whose head is the same in both formats.
    fn channel_head(&self) -> Option<[u8; CHANNEL_DATA_HEAD]> {
        let head: &[u8; MESSAGE_DATA_HEAD] = self.head().as_array()?;
        let mut channel_head = [0; CHANNEL_DATA_HEAD];
        channel_head[0] = head[0];
        channel_head[1..9].copy_from_slice(&self.channel_id.to_le_bytes());
        channel_head[9..].copy_from_slice(&head[LOG_TIME..]);
        Some(channel_head)
    }

    /// Offset of the subscription id in the v1 head; `None` if the frame is not message data.
    #[cfg(feature = "websocket")]
    pub(crate) fn subscription_id_offset(&self) -> Option<usize> {
        (usize::from(self.head_len) == MESSAGE_DATA_HEAD).then_some(1)
    }

    /// Whether the frame is sent as text or as binary.
    pub fn kind(&self) -> FrameKind {
        self.kind
    }

    /// The bytes sent before the payload in v1; often none.
    pub fn head(&self) -> &[u8] {
        &self.head[..usize::from(self.head_len)]
    }

    /// The bytes sent after the head.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Length in bytes of head and payload together, in v1. In v2, message data is four bytes longer.
    pub fn len(&self) -> usize {
        usize::from(self.head_len) + self.payload.len()
    }

    /// Whether head and payload are both empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Head and payload in one buffer, in v1. Copies the payload unless the head is empty.
    ///
    /// A frame received from a peer has no head, so this returns what the peer sent, in either format.
    pub fn to_bytes(&self) -> Bytes {
        if self.head_len == 0 {
            return self.payload.clone();
        }
        let mut bytes = BytesMut::with_capacity(self.len());
        bytes.put_slice(self.head());
        bytes.put_slice(&self.payload);
        bytes.freeze()
    }
}

/// The v2 form of a frame, without the prefix, which [`stream`](super::stream) adds.
impl Frame {
    /// Length in bytes of head and payload, in v2.
    pub(crate) fn v2_len(&self) -> usize {
        match usize::from(self.head_len) {
            MESSAGE_DATA_HEAD => CHANNEL_DATA_HEAD + self.payload.len(),
            _ => self.len(),
        }
    }

    pub(super) fn put_v2_head(&self, buffer: &mut Vec<u8>) {
        match self.channel_head() {
            Some(head) => buffer.extend_from_slice(&head),
            None => buffer.extend_from_slice(self.head()),
        }
    }
}

/// Shows the kind and the lengths, never the contents of the payload.
impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("kind", &self.kind)
            .field("head_len", &self.head_len)
            .field("payload_len", &self.payload.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_a_cache_line() {
        assert!(size_of::<Frame>() <= 64, "{}", size_of::<Frame>());
    }

    #[test]
    fn the_subscription_id_is_patched_and_the_payload_shared() {
        let payload = Bytes::from(vec![0xaa, 0xbb]);
        let first = Frame::message_data(7, 0x0102_0304_0506_0708, payload.clone());
        let mut second = first.clone();
        second.set_subscription_id(0x0a0b_0c0d);

        assert_eq!(first.to_bytes()[..], [1, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0xaa, 0xbb]);
        assert_eq!(second.to_bytes()[..5], [1, 0x0d, 0x0c, 0x0b, 0x0a]);
        assert_eq!(second.to_bytes()[5..], first.to_bytes()[5..]);
        assert_eq!(second.payload().as_ptr(), payload.as_ptr());
        assert_eq!(second.len(), 15);
    }

    #[test]
    fn v2_has_the_channel_where_v1_has_the_subscription() {
        let frame = Frame::message_data(0x0102_0304_0506_0708, 9, Bytes::from_static(&[0xaa]));
        let mut patched = frame.clone();
        patched.set_subscription_id(u32::MAX);
        for frame in [frame, patched] {
            let mut bytes = Vec::new();
            frame.put_v2_head(&mut bytes);
            bytes.extend_from_slice(frame.payload());
            assert_eq!(bytes, [1, 8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0, 0xaa]);
            assert_eq!(frame.v2_len(), bytes.len());
        }
    }

    #[test]
    fn other_frames_ignore_a_subscription_id() {
        let others = [
            Frame::text("{}"),
            Frame::binary(Bytes::from_static(&[1; 20])),
            Frame::with_head(FrameKind::Binary, [1; 5], Bytes::new()),
        ];
        for frame in others {
            let mut patched = frame.clone();
            patched.set_subscription_id(u32::MAX);
            assert_eq!(patched.to_bytes(), frame.to_bytes());
            let mut v2 = Vec::new();
            patched.put_v2_head(&mut v2);
            v2.extend_from_slice(patched.payload());
            assert_eq!(v2, frame.to_bytes());
            assert_eq!(patched.v2_len(), v2.len());
        }
    }

    #[test]
    fn debug_shows_no_payload() {
        let frame = Frame::text("secret");
        assert_eq!(format!("{frame:?}"), "Frame { kind: Text, head_len: 0, payload_len: 6 }");
        assert!(Frame::binary(Bytes::new()).is_empty());
    }
}
