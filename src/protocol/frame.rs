//! One encoded message.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

/// Room for the longest head, that of a message-data frame, rounded up.
const HEAD_CAPACITY: usize = 16;

/// Length of a message-data head: opcode, subscription id (u32), log time (u64). No other frame has
/// a head of this length, which is how [`Frame::set_subscription_id`] knows one.
const MESSAGE_DATA_HEAD: usize = 1 + 4 + 8;

/// Opcode of message data, in either direction.
pub(super) const OPCODE_MESSAGE_DATA: u8 = 1;

/// How a transport carries a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// UTF-8 text, a JSON object.
    Text,
    /// Bytes, the first of them an opcode.
    Binary,
}

/// One message, encoded: a small head that may differ from viewer to viewer, and a payload shared
/// by all.
///
/// What goes out is the head followed by the payload. A clone copies the head and shares the
/// payload, so handing one message to many viewers, each with a subscription id of its own, copies
/// no payload.
#[derive(Clone)]
pub struct Frame {
    payload: Bytes,
    head: [u8; HEAD_CAPACITY],
    head_len: u8,
    kind: FrameKind,
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

    /// Makes a message-data frame from server to client: the head holds the opcode, the viewer's
    /// subscription id and the log time (nanoseconds), the payload is the message.
    pub fn message_data(subscription_id: u32, log_time_ns: u64, payload: Bytes) -> Self {
        let mut head = [0; MESSAGE_DATA_HEAD];
        head[0] = OPCODE_MESSAGE_DATA;
        head[1..5].copy_from_slice(&subscription_id.to_le_bytes());
        head[5..].copy_from_slice(&log_time_ns.to_le_bytes());
        Self::with_head(FrameKind::Binary, head, payload)
    }

    pub(super) fn with_head<const N: usize>(kind: FrameKind, head: [u8; N], payload: Bytes) -> Self {
        const { assert!(N <= HEAD_CAPACITY) };
        let mut padded = [0; HEAD_CAPACITY];
        padded[..N].copy_from_slice(&head);
        Self { payload, head: padded, head_len: N as u8, kind }
    }

    /// Writes a viewer's own subscription id into a frame made by [`Frame::message_data`]; any
    /// other frame stays as it is.
    pub fn set_subscription_id(&mut self, id: u32) {
        if let Some(head) = self.head_for(id) {
            self.head[..MESSAGE_DATA_HEAD].copy_from_slice(&head);
        }
    }

    /// The head with a viewer's own subscription id in it; `None` if there is none to be told by.
    pub(crate) fn head_for(&self, id: u32) -> Option<[u8; MESSAGE_DATA_HEAD]> {
        let mut head = *self.head().as_array()?;
        head[1..5].copy_from_slice(&id.to_le_bytes());
        Some(head)
    }

    /// Whether both are one message: the same head, and the very same payload, not an equal one.
    #[cfg(feature = "websocket")]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let place = |frame: &Self| (frame.payload.as_ptr(), frame.payload.len(), frame.kind);
        place(self) == place(other) && self.head() == other.head()
    }

    /// Whether this goes out as text or as binary.
    pub fn kind(&self) -> FrameKind {
        self.kind
    }

    /// The bytes that go out before the payload; often none.
    pub fn head(&self) -> &[u8] {
        &self.head[..usize::from(self.head_len)]
    }

    /// The bytes that go out after the head.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Length in bytes of head and payload together.
    pub fn len(&self) -> usize {
        usize::from(self.head_len) + self.payload.len()
    }

    /// Whether there is neither head nor payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Head and payload in one piece; copies unless there is no head.
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

/// Shows kind and lengths, never what a payload holds.
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

        assert_eq!(first.to_bytes()[..], [1, 7, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0xaa, 0xbb]);
        assert_eq!(second.to_bytes()[..5], [1, 0x0d, 0x0c, 0x0b, 0x0a]);
        assert_eq!(second.to_bytes()[5..], first.to_bytes()[5..]);
        assert_eq!(second.payload().as_ptr(), payload.as_ptr());
        assert_eq!(second.len(), 15);
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
        }
    }

    #[test]
    fn debug_shows_no_payload() {
        let frame = Frame::text("secret");
        assert_eq!(format!("{frame:?}"), "Frame { kind: Text, head_len: 0, payload_len: 6 }");
        assert!(Frame::binary(Bytes::new()).is_empty());
    }
}
