//! Frames on their way into one write, and how a server's frame looks on the wire.

use std::cell::Cell;

use bytes::Bytes;

use crate::lane::SubscriptionTag;
use crate::protocol::{Frame, FrameKind};

/// A payload of this size or more isn't copied: the kernel takes it from where all viewers share it. Below, one copy
/// costs less than a second piece in the write; and what a stalled viewer keeps of a large message is then a reference.
const SHARED_PAYLOAD: usize = 16 << 10;

/// What gathers before the sink flushes by itself: enough that a system call's fixed cost doesn't show.
pub(super) const BATCH_BYTES: usize = 64 << 10;

/// A buffer up to this size is kept for the thread's next batch; one batch of small frames fits.
const SPARE_BYTES: usize = 2 * BATCH_BYTES;

/// Bits of a frame's first byte.
const FINAL: u8 = 0x80;
pub(super) const TEXT: u8 = 0x1;
pub(super) const BINARY: u8 = 0x2;
pub(super) const CLOSE: u8 = 0x8;
pub(super) const PING: u8 = 0x9;
pub(super) const PONG: u8 = 0xa;

thread_local! {
    /// One buffer per thread, used by whichever sink is being written to: an idle one owns none.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Encoded frames: some bytes, and perhaps the large payload of the last one.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) tail: Bytes,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.tail.len()
    }

    /// Whether it should be flushed before more is added.
    pub(super) fn is_full(&self) -> bool {
        !self.tail.is_empty() || self.bytes.len() >= BATCH_BYTES
    }

    /// Appends `frame`, addressed by `tag`.
    pub(super) fn push(&mut self, frame: &Frame, tag: Option<SubscriptionTag>) {
        if self.bytes.capacity() == 0 {
            // A thread that is being torn down has no spare any more.
            self.bytes = SPARE.try_with(Cell::take).unwrap_or_default();
        }
        // Only a sink that is fed without being asked whether it is ready gets here with a tail.
        let tail = std::mem::take(&mut self.tail);
        self.bytes.extend_from_slice(&tail);
        let opcode = match frame.kind() {
            FrameKind::Text => TEXT,
            FrameKind::Binary => BINARY,
        };
        put_header(&mut self.bytes, opcode, frame.len());
        match tag.and_then(|tag| frame.head_for(tag.0)) {
            Some(head) => self.bytes.extend_from_slice(&head),
            None => self.bytes.extend_from_slice(frame.head()),
        }
        if frame.payload().len() >= SHARED_PAYLOAD {
            self.tail = frame.payload().clone();
        } else {
            self.bytes.extend_from_slice(frame.payload());
        }
    }

    /// Empties it, and gives its buffer back to the thread.
    pub(super) fn recycle(&mut self) {
        self.tail = Bytes::new();
        let mut bytes = std::mem::take(&mut self.bytes);
        if (1..=SPARE_BYTES).contains(&bytes.capacity()) {
            bytes.clear();
            let _ = SPARE.try_with(|spare| spare.set(bytes));
        }
    }
}

/// Appends the header of a whole, unmasked frame with a payload of `len` bytes.
pub(super) fn put_header(bytes: &mut Vec<u8>, opcode: u8, len: usize) {
    let first = FINAL | opcode;
    match len {
        0..=125 => bytes.extend_from_slice(&[first, len as u8]),
        126..=0xffff => {
            let [a, b] = (len as u16).to_be_bytes();
            bytes.extend_from_slice(&[first, 126, a, b]);
        }
        _ => {
            bytes.extend_from_slice(&[first, 127]);
            bytes.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// Length, header included, of a frame that [`put_header`] began.
pub(super) fn frame_len(bytes: &[u8]) -> usize {
    match *bytes {
        [_, 127, a, b, c, d, e, f, g, h, ..] => 10 + u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize,
        [_, 126, a, b, ..] => 4 + usize::from(u16::from_be_bytes([a, b])),
        [_, len, ..] => 2 + usize::from(len),
        [] | [_] => unreachable!("a header is never cut in two"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_every_length_are_read_back() {
        for len in [0, 1, 125, 126, 127, 0xffff, 0x1_0000, 1 << 33] {
            let mut bytes = Vec::new();
            put_header(&mut bytes, BINARY, len);
            assert_eq!(frame_len(&bytes), bytes.len() + len);
        }
    }

    #[test]
    fn a_large_payload_is_shared_and_a_small_one_joins_the_others() {
        let large = Bytes::from(vec![7; SHARED_PAYLOAD]);
        let mut batch = Batch::default();
        batch.push(&Frame::text("ab"), None);
        batch.push(&Frame::message_data(1, 2, Bytes::from_static(b"cd")), Some(SubscriptionTag(0x0304)));
        assert_eq!(batch.bytes, b"\x81\x02ab\x82\x0f\x01\x04\x03\0\0\x02\0\0\0\0\0\0\0cd");
        assert!(!batch.is_full());
        batch.push(&Frame::binary(large.clone()), None);
        assert!(batch.is_full());
        assert_eq!(batch.tail.as_ptr(), large.as_ptr());
        batch.push(&Frame::text("e"), None);
        assert!(batch.tail.is_empty() && batch.bytes.ends_with(b"\x07\x07\x81\x01e"));
    }

    #[test]
    fn one_buffer_serves_the_thread() {
        let mut first = Batch::default();
        first.push(&Frame::text("one"), None);
        let address = first.bytes.as_ptr();
        first.recycle();
        assert_eq!(first.bytes.capacity(), 0);
        let mut second = Batch::default();
        second.push(&Frame::text("two"), None);
        assert_eq!(second.bytes.as_ptr(), address);
    }
}
