//! The buffer in which frames wait to be written, cut into chunks.

use bytes::Bytes;

use crate::protocol::Frame;

/// What the transport sends in one packet, in bytes. The transport would cut a longer write there.
const CHUNK: usize = 15_000;

/// A buffer of this length is written, whether or not more frames could be added: four chunks.
const FULL: usize = 4 * CHUNK;

/// A payload of at least this length isn't copied: after the chunk in which it begins, at least one whole chunk of it
/// follows.
const LONG: usize = 2 * CHUNK;

/// Frames that were handed over and aren't written yet, in order: `bytes`, then `long`.
#[derive(Default)]
pub(super) struct ChunkBuffer {
    /// Frames as they stand in the stream. If `long` isn't empty, a number of whole chunks.
    bytes: Vec<u8>,
    /// The rest of a long payload, shared with all other participants that get it.
    long: Bytes,
}

impl ChunkBuffer {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.long.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the buffer has to be written before more is added.
    pub(super) fn is_full(&self) -> bool {
        !self.long.is_empty() || self.bytes.len() >= FULL
    }

    pub(super) fn push(&mut self, frame: &Frame) {
        // Needed only if the caller pushes without asking whether the buffer is full.
        self.bytes.extend_from_slice(&std::mem::take(&mut self.long));
        let payload = frame.payload();
        if payload.len() < LONG {
            self.reserve(frame.stream_len());
            return frame.append_to_stream(&mut self.bytes);
        }
        frame.append_head_to_stream(&mut self.bytes);
        let begun = self.bytes.len().next_multiple_of(CHUNK) - self.bytes.len();
        self.bytes.extend_from_slice(&payload[..begun]);
        self.long = payload.slice(begun..);
    }

    /// Grows the buffer as a vector grows, but not beyond what it needs when it is full.
    fn reserve(&mut self, more: usize) {
        let (needed, capacity) = (self.bytes.len() + more, self.bytes.capacity());
        if needed > capacity {
            let wanted = needed.max((2 * capacity).min(FULL + LONG));
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
    }

    /// All frames in chunks, of which only the last may be short.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(CHUNK).chain(self.long.chunks(CHUNK))
    }

    /// Empties the buffer, but keeps the memory that the next frames need.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.long = Bytes::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For all sizes, the chunks hold every byte once and in order, and only the last chunk of a buffer is short.
    #[test]
    fn chunks_are_what_was_pushed() {
        fastrand::seed(5);
        let sizes = [0, 100, CHUNK - 5, CHUNK, LONG - 1, LONG, LONG + 1, 3 * CHUNK - 5, 100_000];
        let mut buffer = ChunkBuffer::default();
        for _ in 0..200 {
            let mut expected = Vec::new();
            while !buffer.is_full() && fastrand::u8(..9) > 0 {
                let frame = Frame::message_data(1, 2, vec![fastrand::u8(..); sizes[fastrand::usize(..9)]].into());
                buffer.push(&frame);
                frame.append_to_stream(&mut expected);
            }
            assert_eq!(buffer.len(), expected.len());
            let chunks: Vec<_> = buffer.chunks().collect();
            assert!(chunks.concat() == expected);
            let whole = |chunk: &&[u8]| chunk.len() == CHUNK;
            assert!(chunks.split_last().is_none_or(|(last, others)| others.iter().all(whole) && last.len() <= CHUNK));
            buffer.clear();
            assert!(buffer.is_empty() && buffer.bytes.capacity() <= FULL + LONG + 22);
        }
    }

    /// Ten viewers of one long payload don't hold it ten times.
    #[test]
    fn a_long_payload_is_shared() {
        let payload = Bytes::from(vec![7; 1_000_000]);
        let mut buffer = ChunkBuffer::default();
        buffer.push(&Frame::binary(payload.clone()));
        assert!(buffer.bytes.len() == CHUNK && buffer.long.as_ptr_range().end == payload.as_ptr_range().end);
    }
}
