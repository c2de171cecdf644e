//! Frames on their way into chunks.

use bytes::Bytes;

use crate::protocol::Frame;

/// What the transport sends in one packet; a longer write would be cut there.
const CHUNK: usize = 15_000;

/// With as much in hand it is written, whether or not more could be handed over: four chunks.
const FULL: usize = 4 * CHUNK;

/// A payload from here on isn't copied: after the chunk that it begins in there is a whole one of it at least.
const LONG: usize = 2 * CHUNK;

/// What was handed over and isn't written, in order: `buffer`, then `long`.
#[derive(Default)]
pub(super) struct Batch {
    /// Frames as they stand in the stream. If `long` isn't empty, a number of whole chunks.
    buffer: Vec<u8>,
    /// The rest of a long payload, shared with all others who get it.
    long: Bytes,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.buffer.len() + self.long.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is to be written before more is taken.
    pub(super) fn is_full(&self) -> bool {
        !self.long.is_empty() || self.buffer.len() >= FULL
    }

    pub(super) fn push(&mut self, frame: &Frame) {
        // Only for who hands over without asking whether it may.
        self.buffer.extend_from_slice(&std::mem::take(&mut self.long));
        let payload = frame.payload();
        if payload.len() < LONG {
            self.reserve(frame.stream_len());
            return frame.append_to_stream(&mut self.buffer);
        }
        frame.append_head_to_stream(&mut self.buffer);
        let begun = self.buffer.len().next_multiple_of(CHUNK) - self.buffer.len();
        self.buffer.extend_from_slice(&payload[..begun]);
        self.long = payload.slice(begun..);
    }

    /// Grows as a vector does, but not above what a batch needs.
    fn reserve(&mut self, more: usize) {
        let (needed, capacity) = (self.buffer.len() + more, self.buffer.capacity());
        if needed > capacity {
            let wanted = needed.max((2 * capacity).min(FULL + LONG));
            self.buffer.reserve_exact(wanted - self.buffer.len());
        }
    }

    /// All of it, in chunks of which none but the last is short.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.buffer.chunks(CHUNK).chain(self.long.chunks(CHUNK))
    }

    /// Lets go of it, but for the memory that the next one needs.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        self.long = Bytes::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the sizes: every byte once, in order, and no short chunk but the last of a batch.
    #[test]
    fn chunks_are_what_was_pushed() {
        fastrand::seed(5);
        let sizes = [0, 100, CHUNK - 5, CHUNK, LONG - 1, LONG, LONG + 1, 3 * CHUNK - 5, 100_000];
        let mut batch = Batch::default();
        for _ in 0..200 {
            let mut expected = Vec::new();
            while !batch.is_full() && fastrand::u8(..9) > 0 {
                let frame = Frame::message_data(1, 2, vec![fastrand::u8(..); sizes[fastrand::usize(..9)]].into());
                batch.push(&frame);
                frame.append_to_stream(&mut expected);
            }
            assert_eq!(batch.len(), expected.len());
            let chunks: Vec<_> = batch.chunks().collect();
            assert!(chunks.concat() == expected);
            let whole = |chunk: &&[u8]| chunk.len() == CHUNK;
            assert!(chunks.split_last().is_none_or(|(last, others)| others.iter().all(whole) && last.len() <= CHUNK));
            batch.clear();
            assert!(batch.is_empty() && batch.buffer.capacity() <= FULL + LONG + 22);
        }
    }

    /// Ten viewers of one long payload don't hold it ten times.
    #[test]
    fn a_long_payload_is_shared() {
        let payload = Bytes::from(vec![7; 1_000_000]);
        let mut batch = Batch::default();
        batch.push(&Frame::binary(payload.clone()));
        assert!(batch.buffer.len() == CHUNK && batch.long.as_ptr_range().end == payload.as_ptr_range().end);
    }
}
