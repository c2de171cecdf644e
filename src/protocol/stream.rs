//! Frames on an ordered byte stream, as v2 has them.
//!
//! A stream is a sequence of `<kind: 1 byte, 1 = text, 2 = binary> <length: u32> <payload>`, little-endian. The
//! transport cuts it into chunks as it likes: where a chunk ends says nothing about where a frame does.
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

/// The longest payload that a frame of a stream may have, in bytes: 16 MiB.
pub const MAX_STREAM_FRAME: usize = 16 << 20;

/// Length of what stands before a payload.
const PREFIX: usize = 1 + 4;

const TEXT: u8 = 1;
const BINARY: u8 = 2;

/// What a frame looks like in a v2 stream.
impl Frame {
    /// Length in bytes of what [`append_to_stream`](Self::append_to_stream) appends, the five bytes of its prefix
    /// included. A reader refuses what is longer than that and [`MAX_STREAM_FRAME`] together.
    pub fn stream_len(&self) -> usize {
        PREFIX + self.v2_len()
    }

    /// Appends the frame as it stands in a v2 stream: prefix, head, payload, of which the payload is copied.
    ///
    /// Who sends it has seen to its length. One that the prefix can't even say is announced as the longest that it can,
    /// which every reader refuses.
    pub fn append_to_stream(&self, buffer: &mut Vec<u8>) {
        buffer.reserve(self.stream_len());
        self.append_head_to_stream(buffer);
        buffer.extend_from_slice(self.payload());
    }

    /// The same up to the payload.
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

/// Bytes from a peer that are no sequence of frames.
///
/// Where the next frame begins is not known any more: what else comes on this stream can't be read. End it and say why;
/// the peer may open another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A frame is announced that is longer than [`MAX_STREAM_FRAME`].
    #[error("a frame of {bytes} bytes was announced: the longest allowed is {MAX_STREAM_FRAME}")]
    TooLarge {
        /// How long it is announced to be.
        bytes: u64,
    },
    /// The kind of a frame is neither text (1) nor binary (2).
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
}

/// Puts the frames of a stream together from its chunks.
///
/// A frame whose payload lies within one chunk shares that chunk's memory, and keeps the whole of it until it is
/// dropped. Any other is gathered in a buffer that grows as the bytes arrive, never by what a peer announces: it is at
/// most twice as large as what has arrived of the frame. Decoding takes time in proportion to the bytes, however small
/// the chunks.
///
/// Text isn't looked at here: that it is UTF-8 is seen when the [message](super::ClientMessage::decode) is read.
///
/// # States
/// `Prefix → Payload → Prefix` for each frame, and from either to `failed` for good.
#[derive(Default)]
pub struct StreamDecoder {
    /// What has come and wasn't looked at yet; none of them is empty.
    chunks: VecDeque<Bytes>,
    state: State,
    failed: Option<StreamError>,
}

/// What of the next frame has been taken from the chunks.
enum State {
    /// The first `have` bytes of its prefix.
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
    /// Takes what came next on the stream. After an error it is dropped.
    pub fn push(&mut self, chunk: Bytes) {
        if self.failed.is_none() && !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// The next frame; `None` if it hasn't come in full yet. Ask until there is none before the next chunk is
    /// [pushed](Self::push): chunks that wait are kept as they are.
    ///
    /// # Errors
    /// [`StreamError`] once the frames before it were taken, and from then on at each call.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, StreamError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.advance().inspect_err(|error| {
            self.failed = Some(*error);
            self.chunks = VecDeque::new();
        })
    }

    /// Whether a frame has begun to come and isn't complete, once [`next_frame`](Self::next_frame) has given `None`: a
    /// stream that ends then was cut off.
    pub fn is_mid_frame(&self) -> bool {
        !matches!(self.state, State::Prefix { have: 0, .. })
    }

    /// How long the payload is of which only the beginning has come, once [`next_frame`](Self::next_frame) has given
    /// `None`.
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

/// Kind and length of the payload that follows.
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

/// Appends `part` to a payload that will have `len` bytes. Room is doubled as it fills, so that each byte is moved a
/// bounded number of times, and never made for more than the payload.
fn append(begun: &mut Vec<u8>, part: &[u8], len: usize) {
    let filled = begun.len() + part.len();
    if filled > begun.capacity() {
        begun.reserve_exact(filled.max(2 * begun.capacity()).min(len) - begun.len());
    }
    begun.extend_from_slice(part);
}

/// Shows how much waits, never what.
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
