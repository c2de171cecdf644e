//! The framing of v2: frames on an ordered byte stream.
//!
//! A stream is a sequence of `<kind: 1 byte, 1 = text, 2 = binary> <length: u32> <payload>`, little-endian. The
//! transport may cut it into chunks anywhere: the end of a chunk says nothing about the end of a frame.
//!
//! ```
//! use bytes::Bytes;
//! use lanecast::protocol::Frame;
//! use lanecast::protocol::stream::{StreamDecoder, StreamError};
//!
//! let mut wire = Vec::new();
//! Frame::text("{}").append_to_stream(&mut wire);
//! let wire = Bytes::from(wire);
//!
//! let mut decoder = StreamDecoder::default();
//! decoder.push(wire.slice(..6));
//! assert!(decoder.next_frame()?.is_none());
//! decoder.push(wire.slice(6..));
//! assert_eq!(decoder.next_frame()?.unwrap().payload(), "{}");
//! # Ok::<(), StreamError>(())
//! ```

use std::collections::VecDeque;
use std::fmt;

use bytes::{Buf, Bytes};
use thiserror::Error;

use super::{Frame, FrameKind};

/// Maximum value of the length field in a frame's prefix, in bytes: 16 MiB.
pub const MAX_STREAM_FRAME: usize = 16 << 20;

/// Length in bytes of the prefix before a payload: kind and length.
const PREFIX: usize = 1 + 4;

const TEXT: u8 = 1;
const BINARY: u8 = 2;

/// The form of a frame in a v2 stream.
impl Frame {
    /// Number of bytes that [`append_to_stream`](Self::append_to_stream) appends, including the five bytes of the
    /// prefix. A reader refuses a frame that is longer than [`MAX_STREAM_FRAME`] and the prefix together.
    pub fn stream_len(&self) -> usize {
        PREFIX + self.v2_len()
    }

    /// Appends the frame in its v2 form: prefix, head and payload. The payload is copied.
    ///
    /// The sender must check the length first: see [`stream_len`](Self::stream_len). A length that does not fit into
    /// the prefix is written as the largest one that does, which every reader refuses.
    pub fn append_to_stream(&self, buffer: &mut Vec<u8>) {
        buffer.reserve(self.stream_len());
        self.append_head_to_stream(buffer);
        buffer.extend_from_slice(self.payload());
    }

    /// Appends the prefix and the head, without the payload.
    pub(crate) fn append_head_to_stream(&self, buffer: &mut Vec<u8>) {
        buffer.push(match self.kind() {
            FrameKind::Text => TEXT,
            FrameKind::Binary => BINARY,
        });
        let len = u32::try_from(self.v2_len()).unwrap_or(u32::MAX);
        buffer.extend_from_slice(&len.to_le_bytes());
        self.put_v2_head(buffer);
    }
}

/// Bytes from a peer are not a sequence of frames.
///
/// The beginning of the next frame is unknown, so the rest of the stream can't be read. End the stream and report this
/// error; the peer may open another stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The peer announced a frame that is longer than [`MAX_STREAM_FRAME`].
    #[error("a frame of {bytes} bytes was announced: the longest allowed is {MAX_STREAM_FRAME}")]
    TooLarge {
        /// The announced length in bytes.
        bytes: u64,
    },
    /// The kind of a frame is neither text (1) nor binary (2).
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
}

/// Reassembles the frames of a stream from its chunks.
///
/// A frame whose payload lies within one chunk shares that chunk's memory, and keeps the whole chunk in memory until
/// the frame is dropped. The payload of any other frame is gathered in a buffer. The buffer grows with the bytes that
/// arrive, never with the length that a peer announces: it is at most twice as large as the part of the payload that
/// has arrived. Decoding time is proportional to the number of bytes, however small the chunks are.
///
/// Text is not checked here: [decoding the message](super::ClientMessage::decode) checks that it is UTF-8.
///
/// # States
/// `Prefix → Payload → Prefix` for each frame. An invalid prefix leads to `failed`, which is final.
#[derive(Default)]
pub struct StreamDecoder {
    /// Received bytes that have not been decoded yet. No chunk is empty.
    chunks: VecDeque<Bytes>,
    state: State,
    failed: Option<StreamError>,
}

/// The part of the next frame that has been taken from the chunks.
enum State {
    /// The first `have` bytes of the prefix.
    Prefix { bytes: [u8; PREFIX], have: usize },
    /// The prefix, and the beginning of a payload of `len` bytes.
    Payload { kind: FrameKind, len: usize, begun: Vec<u8> },
}

impl Default for State {
    fn default() -> Self {
        Self::Prefix { bytes: [0; PREFIX], have: 0 }
    }
}

impl StreamDecoder {
    /// Takes the next chunk of the stream. After an error, chunks are dropped.
    pub fn push(&mut self, chunk: Bytes) {
        if self.failed.is_none() && !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// Returns the next frame, or `None` if it has not arrived completely. Call this until it returns `None` before you
    /// [push](Self::push) the next chunk: chunks that wait are kept in memory whole.
    ///
    /// # Errors
    /// [`StreamError`] when all frames before the invalid prefix have been returned, and from then on at each call.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, StreamError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.advance().inspect_err(|error| {
            self.failed = Some(*error);
            self.chunks = VecDeque::new();
        })
    }

    /// Whether a frame has arrived in part, after [`next_frame`](Self::next_frame) has returned `None`. A stream that
    /// ends then was cut off.
    pub fn is_mid_frame(&self) -> bool {
        !matches!(self.state, State::Prefix { have: 0, .. })
    }

    /// Announced length in bytes of a payload that has not arrived completely, after [`next_frame`](Self::next_frame)
    /// has returned `None`. `None` if no complete prefix waits for its payload.
    #[cfg(feature = "byte-stream")]
    pub(crate) fn announced(&self) -> Option<usize> {
        match self.state {
            State::Payload { len, .. } => Some(len),
            State::Prefix { .. } => None,
        }
    }

    fn advance(&mut self) -> Result<Option<Frame>, StreamError> {
        loop {
            match &mut self.state {
                State::Prefix { bytes, have: PREFIX } => {
                    let (kind, len) = read_prefix(*bytes)?;
                    self.state = State::Payload { kind, len, begun: Vec::new() };
                }
                State::Prefix { bytes, have } => {
                    let Some(chunk) = self.chunks.front_mut() else { return Ok(None) };
                    let taken = chunk.len().min(PREFIX - *have);
                    chunk.copy_to_slice(&mut bytes[*have..*have + taken]);
                    *have += taken;
                }
                State::Payload { kind, len, begun } if begun.len() == *len => {
                    let frame = Frame::with_head(*kind, [], Bytes::from(std::mem::take(begun)));
                    self.state = State::default();
                    return Ok(Some(frame));
                }
                State::Payload { kind, len, begun } => {
                    let Some(chunk) = self.chunks.front_mut() else { return Ok(None) };
                    if begun.is_empty() && chunk.len() >= *len {
                        let frame = Frame::with_head(*kind, [], chunk.split_to(*len));
                        self.state = State::default();
                        self.drop_empty();
                        return Ok(Some(frame));
                    }
                    let part = chunk.split_to(chunk.len().min(*len - begun.len()));
                    append(begun, &part, *len);
                }
            }
            self.drop_empty();
        }
    }

    fn drop_empty(&mut self) {
        self.chunks.pop_front_if(|chunk| chunk.is_empty());
    }
}

/// Reads the kind and the length of the payload from a prefix.
fn read_prefix([kind, len @ ..]: [u8; PREFIX]) -> Result<(FrameKind, usize), StreamError> {
    let kind = match kind {
        TEXT => FrameKind::Text,
        BINARY => FrameKind::Binary,
        unknown => return Err(StreamError::UnknownKind(unknown)),
    };
    let announced = u32::from_le_bytes(len);
    match usize::try_from(announced) {
        Ok(len) if len <= MAX_STREAM_FRAME => Ok((kind, len)),
        _ => Err(StreamError::TooLarge { bytes: announced.into() }),
    }
}

/// Appends `part` to a payload that will have `len` bytes. The capacity doubles as it fills, so that each byte is moved
/// a bounded number of times, and never exceeds `len`.
fn append(begun: &mut Vec<u8>, part: &[u8], len: usize) {
    let filled = begun.len() + part.len();
    if filled > begun.capacity() {
        begun.reserve_exact(filled.max(2 * begun.capacity()).min(len) - begun.len());
    }
    begun.extend_from_slice(part);
}

/// Shows the number of bytes that wait, never the bytes.
impl fmt::Debug for StreamDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting: usize = self.chunks.iter().map(Bytes::len).sum();
        f.debug_struct("StreamDecoder")
            .field("mid_frame", &self.is_mid_frame())
            .field("waiting", &waiting)
            .field("failed", &self.failed)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_for_what_has_come_not_for_what_is_announced() {
        let mut decoder = StreamDecoder::default();
        let [a, b, c, d] = (MAX_STREAM_FRAME as u32).to_le_bytes();
        decoder.push(Bytes::copy_from_slice(&[BINARY, a, b, c, d]));
        let mut come = 0;
        for len in [0, 1, 1, 1, 10, 1000, 3, 100_000, MAX_STREAM_FRAME - 101_017] {
            decoder.push(vec![7; len].into());
            assert!(decoder.next_frame().unwrap().is_none());
            come += len;
            let State::Payload { begun, .. } = &decoder.state else { panic!("not in a payload") };
            assert_eq!(begun.len(), come);
            assert!(begun.capacity() <= (2 * come).min(MAX_STREAM_FRAME), "{} for {come}", begun.capacity());
        }
    }
}
