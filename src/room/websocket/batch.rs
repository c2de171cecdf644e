//! Encodes frames into a batch that one write carries, in the format of a server's WebSocket frames.

use std::cell::Cell;

use bytes::Bytes;

use crate::contract::{BroadcastId, BroadcastRun, SubscriptionTag};
use crate::protocol::server::Time;
use crate::protocol::{Frame, FrameKind, ServerMessage};

/// The smallest payload that isn't copied, in bytes: the kernel reads it from the memory that all viewers share.
/// Copying a smaller one costs less than a second piece in the write. Of a large message a stalled viewer then keeps a
/// reference only.
const SHARED_PAYLOAD: usize = 16 << 10;

/// The size at which a sink flushes before it takes more: large enough that a system call's fixed cost doesn't show.
pub(super) const BATCH_BYTES: usize = 64 << 10;

/// The best size for one turn of a shard, in bytes. With the message that ends the turn, of up to 4,000 bytes, the
/// kernel still makes one segment, which costs it little more than half of one.
pub(super) const SEGMENT_BYTES: usize = 60 << 10;

/// The largest buffer that is kept for the thread's next batch; one batch of small frames fits.
const SPARE_BYTES: usize = 2 * BATCH_BYTES;

/// The most messages of a batch that are cached for the next viewer; further ones are framed anew for each viewer.
const CACHED_FRAMES: usize = 1024;

/// The highest bit of a frame's first byte; the opcodes below are its lowest four bits.
const FINAL: u8 = 0x80;
pub(super) const TEXT: u8 = 0x1;
pub(super) const BINARY: u8 = 0x2;
pub(super) const CLOSE: u8 = 0x8;
pub(super) const PING: u8 = 0x9;
pub(super) const PONG: u8 = 0xa;

thread_local! {
    /// One per thread, used by the sink that is being written to: an idle sink owns none.
    static SPARE: Cell<Option<Box<ReusableBuffer>>> = const { Cell::new(None) };
}

/// Encoded frames: their bytes, and the payload of the last one if it is large. An empty batch owns nothing.
#[derive(Debug, Default)]
pub(super) struct Batch(Option<Box<ReusableBuffer>>);

/// The buffer in which a batch is encoded. It passes from sink to sink, with the bytes that the last viewer was sent.
///
/// The next viewer usually gets the same messages, in frames that differ in the subscription tag alone. So the tags are
/// overwritten in place, and the rest is neither encoded nor copied again. With two messages of two bytes each:
///
/// ```text
/// bytes of the last viewer, tag 5  82 0f 01 [05 00 00 00] (log time) aa aa   82 0f 01 [05 00 00 00] (log time) bb bb
/// bytes of this viewer, tag 6      82 0f 01 [06 00 00 00] (log time) aa aa   82 0f 01 [06 00 00 00] (log time) bb bb
/// cached                           id 7, end 17, TagSlot::At(3)              id 8, end 34, TagSlot::At(20)
/// ```
///
/// The id of each message of a run is compared with that of the next cached frame. From the first one that differs, or
/// that needs a [time](LastTime) for one of the two viewers only, the old bytes are cut off; what follows is encoded,
/// and cached for the viewer after this one.
#[derive(Debug, Default)]
struct ReusableBuffer {
    bytes: Vec<u8>,
    /// The length of this batch in `bytes`; the rest is left over from the last batch.
    len: usize,
    tail: Bytes,
    /// Broadcasts whose frames stand at the beginning of `bytes`, in that order.
    cached: Vec<CachedFrame>,
    /// How many of the cached frames are in this batch.
    in_batch: usize,
}

/// A broadcast whose frame is in the buffer.
#[derive(Debug)]
struct CachedFrame {
    id: BroadcastId,
    /// The end of the frame in the buffer.
    end: usize,
    tag: TagSlot,
    /// For a live message, its log time and whether a time message precedes it in the buffer.
    time: Option<(u64, bool)>,
}

/// The last time that a viewer was sent.
///
/// Before a live message the viewer is sent the message's time, if that is at least [`TICK_NS`] later than the last
/// one. So the viewer's clock never steps back, whatever the timestamps are, and is never further behind the newest
/// timestamp than that. Viewers that keep up are sent the same times, so that a batch framed for one usually serves the
/// next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LastTime(Option<u64>);

/// One millisecond: finer than anything that a viewer draws. Live messages that follow each other faster share a time
/// message, which has eleven bytes and costs a viewer as much as any other message.
const TICK_NS: u64 = 1_000_000;

impl LastTime {
    fn is_due(self, time: u64) -> bool {
        self.0.is_none_or(|told| time >= told.saturating_add(TICK_NS) && time > told)
    }
}

/// The position of the viewer's subscription tag in an encoded frame.
#[derive(Clone, Copy, Debug)]
enum TagSlot {
    /// The frame was encoded without a tag, in the form that is the same for all viewers.
    Untagged,
    /// Frames of this kind carry no tag.
    None,
    At(usize),
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes().len() + self.tail().len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |buffer| &buffer.bytes[..buffer.len])
    }

    /// The payload of the last frame, if it is large; otherwise empty.
    pub(super) fn tail(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        self.0.as_ref().map_or(&NONE, |buffer| &buffer.tail)
    }

    /// Whether the batch has to be flushed before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.0.as_ref().is_some_and(|buffer| buffer.is_full())
    }

    /// Appends `frame`, which is for this viewer only.
    pub(super) fn push(&mut self, frame: &Frame, last_time: &mut LastTime) {
        self.buffer().push(frame, None, last_time);
    }

    /// Appends at least one broadcast of `run`, and more until the batch is full. Returns how many.
    pub(super) fn push_run(&mut self, run: &BroadcastRun<'_, Frame>, last_time: &mut LastTime) -> usize {
        self.buffer().push_run(run, last_time)
    }

    fn buffer(&mut self) -> &mut ReusableBuffer {
        // A thread that is being torn down has no spare buffer.
        self.0.get_or_insert_with(|| SPARE.try_with(Cell::take).ok().flatten().unwrap_or_default())
    }

    /// Empties the batch and gives its buffer back to the thread.
    pub(super) fn recycle(&mut self) {
        let Some(mut buffer) = self.0.take() else { return };
        if buffer.bytes.capacity() <= SPARE_BYTES {
            (buffer.len, buffer.in_batch, buffer.tail) = (0, 0, Bytes::new());
            let _ = SPARE.try_with(|spare| spare.set(Some(buffer)));
        }
    }
}

impl ReusableBuffer {
    fn is_full(&self) -> bool {
        !self.tail.is_empty() || self.len >= BATCH_BYTES
    }

    fn push_run(&mut self, run: &BroadcastRun<'_, Frame>, last_time: &mut LastTime) -> usize {
        let mut taken = self.reuse(run, last_time);
        for frame in &run.messages()[taken..] {
            if taken > 0 && self.is_full() {
                break;
            }
            self.push_cached(run.first_id().after(taken), frame, run.tag(), last_time);
            taken += 1;
        }
        taken
    }

    /// Takes over the messages of `run` whose frames are cached, and writes this viewer's tag into them. Returns how
    /// many.
    fn reuse(&mut self, run: &BroadcastRun<'_, Frame>, last_time: &mut LastTime) -> usize {
        if !self.is_all_cached() {
            return 0;
        }
        let wanted = run.messages().len();
        let mut taken = 0;
        for cached in self.cached[self.in_batch..].iter().take(wanted) {
            if cached.id != run.first_id().after(taken) || (taken > 0 && self.len >= BATCH_BYTES) {
                break;
            }
            // This viewer may already know a time that the last viewer had to be sent.
            let told = match cached.time {
                Some((time, is_told)) if last_time.is_due(time) == is_told => is_told.then_some(time),
                Some(_) => break,
                None => None,
            };
            match (cached.tag, run.tag()) {
                (TagSlot::Untagged, None) | (TagSlot::None, Some(_)) => {}
                (TagSlot::At(at), Some(tag)) => self.bytes[at..at + 4].copy_from_slice(&tag.0.to_le_bytes()),
                (TagSlot::Untagged, Some(_)) | (TagSlot::None | TagSlot::At(_), None) => break,
            }
            last_time.0 = told.or(last_time.0);
            self.len = cached.end;
            taken += 1;
        }
        self.in_batch += taken;
        taken
    }

    /// Whether the batch consists of cached frames only, so that another one can be taken over or cached behind them.
    fn is_all_cached(&self) -> bool {
        let cached = self.in_batch.checked_sub(1).map_or(0, |last| self.cached[last].end);
        cached == self.len && self.tail.is_empty()
    }

    fn push_cached(&mut self, id: BroadcastId, frame: &Frame, tag: Option<SubscriptionTag>, last_time: &mut LastTime) {
        let is_all_cached = self.is_all_cached();
        let time = self.push(frame, tag, last_time);
        if is_all_cached && self.tail.is_empty() && self.cached.len() < CACHED_FRAMES {
            let head = self.len - frame.len();
            let tag = match tag {
                None => TagSlot::Untagged,
                Some(_) => frame.subscription_id_offset().map_or(TagSlot::None, |offset| TagSlot::At(head + offset)),
            };
            self.cached.push(CachedFrame { id, end: self.len, tag, time });
            self.in_batch += 1;
        }
    }

    /// Appends a frame, preceded by its time if that is due. Returns the frame's time, and whether it was due.
    fn push(&mut self, frame: &Frame, tag: Option<SubscriptionTag>, last_time: &mut LastTime) -> Option<(u64, bool)> {
        self.cached.truncate(self.in_batch);
        self.bytes.truncate(self.len);
        // Only a sink that is fed without `poll_ready` gets here with a tail.
        let tail = std::mem::take(&mut self.tail);
        self.bytes.extend_from_slice(&tail);
        let time = frame.live_time_ns().map(|time| (time, last_time.is_due(time)));
        if let Some((timestamp_ns, true)) = time {
            let message = ServerMessage::Time(Time { timestamp_ns }).encode();
            put_header(&mut self.bytes, BINARY, message.len());
            self.bytes.extend_from_slice(message.head());
            last_time.0 = Some(timestamp_ns);
        }
        let opcode = match frame.kind() {
            FrameKind::Text => TEXT,
            FrameKind::Binary => BINARY,
        };
        put_header(&mut self.bytes, opcode, frame.len());
        let head = self.bytes.len();
        self.bytes.extend_from_slice(frame.head());
        put_head(&mut self.bytes[head..], frame, tag);
        if frame.payload().len() >= SHARED_PAYLOAD {
            self.tail = frame.payload().clone();
        } else {
            self.bytes.extend_from_slice(frame.payload());
        }
        self.len = self.bytes.len();
        time
    }
}

/// Overwrites the beginning of `bytes` with the head of `frame`, addressed by `tag`.
fn put_head(bytes: &mut [u8], frame: &Frame, tag: Option<SubscriptionTag>) {
    match tag.and_then(|tag| frame.head_for(tag.0)) {
        Some(head) => bytes[..head.len()].copy_from_slice(&head),
        None => bytes[..frame.head().len()].copy_from_slice(frame.head()),
    }
}

/// Appends the header of an unfragmented, unmasked frame with a payload of `len` bytes.
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

/// The length of a frame that [`put_header`] began, header included.
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
    use std::ops::Range;

    use super::*;

    #[test]
    fn headers_of_every_length_are_read_back() {
        for len in [0, 1, 125, 126, 127, 0xffff, 0x1_0000, 1 << 33] {
            let mut bytes = Vec::new();
            put_header(&mut bytes, BINARY, len);
            assert_eq!(frame_len(&bytes), bytes.len() + len);
        }
    }

    fn shared(number: u64) -> Frame {
        Frame::message_data(1, number, Bytes::from(vec![number as u8; 2]))
    }

    fn push_shared(batch: &mut Batch, frame: &Frame, tag: Option<u32>) {
        let run = BroadcastRun::new(std::slice::from_ref(frame), tag.map(SubscriptionTag));
        batch.push_run(&run, &mut LastTime::default());
    }

    #[test]
    fn a_large_payload_is_shared_and_a_small_one_joins_the_others() {
        let large = Bytes::from(vec![7; SHARED_PAYLOAD]);
        let mut batch = Batch::default();
        batch.push(&Frame::text("ab"), &mut LastTime::default());
        push_shared(&mut batch, &Frame::message_data(1, 2, Bytes::from_static(b"cd")), Some(0x0304));
        assert_eq!(batch.bytes(), b"\x81\x02ab\x82\x0f\x01\x04\x03\0\0\x02\0\0\0\0\0\0\0cd");
        assert!(!batch.is_full());
        push_shared(&mut batch, &Frame::binary(large.clone()), None);
        assert!(batch.is_full());
        assert_eq!(batch.tail().as_ptr(), large.as_ptr());
        batch.push(&Frame::text("e"), &mut LastTime::default());
        assert!(batch.tail().is_empty() && batch.bytes().ends_with(b"\x07\x07\x81\x01e"));
    }

    #[test]
    fn one_buffer_serves_the_thread() {
        let mut first = Batch::default();
        first.push(&Frame::text("one"), &mut LastTime::default());
        let address = first.bytes().as_ptr();
        first.recycle();
        assert!(first.0.is_none());
        let mut second = Batch::default();
        second.push(&Frame::text("two"), &mut LastTime::default());
        assert_eq!(second.bytes().as_ptr(), address);
    }

    /// A part of a run, as a participant gets it by the subscription with `tag`.
    fn part<'a>(
        run: &BroadcastRun<'a, Frame>,
        range: Range<usize>,
        tag: Option<SubscriptionTag>,
    ) -> BroadcastRun<'a, Frame> {
        BroadcastRun::with_ids(&run.messages()[range.clone()], run.first_id().after(range.start), tag)
    }

    /// A batch equals one made in a fresh buffer, and ends where it is full, whatever the viewers before have got.
    #[test]
    fn what_the_last_batch_left_never_shows() {
        let mut frames: Vec<Frame> = (0..6).map(shared).collect();
        // Timestamps that are due for some viewers and not for others.
        frames.extend([3, 4, 4, 1, 9, 6].map(|number| shared(number * TICK_NS / 2).live()));
        frames.extend([Frame::text("no place for a tag"), Frame::binary(vec![9; SHARED_PAYLOAD].into())]);
        frames.extend((0..9).map(|number| Frame::binary(vec![number; SHARED_PAYLOAD - 1].into())));
        let runs = [BroadcastRun::new(&frames, None), BroadcastRun::new(&frames, Some(SubscriptionTag(0)))];
        fastrand::seed(7);
        for viewer in 0..5000_u32 {
            let (mut batch, mut fresh) = (Batch::default(), Batch(Some(Box::default())));
            let own = Frame::text(viewer.to_string());
            let mut last_times = [LastTime(Some(fastrand::u64(..6) * TICK_NS / 2).filter(|_| viewer % 5 > 0)); 2];
            let before = last_times[0];
            let mut at = fastrand::usize(..3);
            while at < frames.len() {
                let end = fastrand::usize(at + 1..=frames.len());
                let kind = fastrand::usize(..20);
                let tag = (kind % 2 == 1).then_some(SubscriptionTag(viewer));
                let run = part(&runs[kind % 2], at..end, tag);
                let [ours, theirs] = &mut last_times;
                let taken = [(&mut batch, ours), (&mut fresh, theirs)].map(|(batch, last_time)| match kind {
                    0 => {
                        batch.push(&own, last_time);
                        0
                    }
                    1 => {
                        batch.push(&frames[at], last_time);
                        1
                    }
                    _ => batch.push_run(&run, last_time),
                });
                assert_eq!(taken[0], taken[1]);
                at += taken[0];
                if batch.is_full() || kind == 2 {
                    break;
                }
            }
            assert_eq!((batch.bytes(), batch.tail()), (fresh.bytes(), fresh.tail()));
            assert_eq!(batch.is_empty(), fresh.is_empty());
            assert_eq!(last_times[0].0, last_times[1].0);
            assert!(last_times[0].0 >= before.0);
            assert!(at == frames.len() || batch.len() < BATCH_BYTES + 2 * SHARED_PAYLOAD);
            batch.recycle();
        }
    }

    #[test]
    fn more_messages_than_are_cached_are_framed_anew() {
        let frames: Vec<Frame> = (0..CACHED_FRAMES as u64 + 100).map(shared).collect();
        let run = BroadcastRun::new(&frames, Some(SubscriptionTag(1)));
        for viewer in 0..3 {
            let (mut batch, mut fresh) = (Batch::default(), Batch(Some(Box::default())));
            let run = part(&run, 0..frames.len(), Some(SubscriptionTag(viewer)));
            let [taken, anew] = [&mut batch, &mut fresh].map(|batch| batch.push_run(&run, &mut LastTime::default()));
            assert_eq!((taken, anew), (frames.len(), frames.len()));
            assert_eq!(batch.bytes(), fresh.bytes());
            assert_eq!(batch.0.as_ref().map(|buffer| buffer.cached.len()), Some(CACHED_FRAMES));
            batch.recycle();
        }
    }

    #[test]
    fn the_same_messages_are_framed_once() {
        let frames: Vec<Frame> = (0..3).map(shared).collect();
        let run = BroadcastRun::new(&frames, Some(SubscriptionTag(5)));
        let mut batch = Batch::default();
        assert_eq!(batch.push_run(&run, &mut LastTime::default()), 3);
        batch.recycle();
        let part = part(&run, 0..1, Some(SubscriptionTag(6)));
        assert_eq!(batch.push_run(&part, &mut LastTime::default()), 1);
        let buffer = batch.0.as_ref().expect("it isn't empty");
        assert_eq!((buffer.in_batch, buffer.cached.len()), (1, 3));
        assert!(batch.len() < buffer.bytes.len());
        assert_eq!(batch.bytes()[3..7], 6_u32.to_le_bytes());
    }

    #[test]
    fn live_messages_are_framed_once_for_all_who_know_the_same_time() {
        let frames: Vec<Frame> = (1..4).map(|number| shared(number * TICK_NS).live()).collect();
        let run = BroadcastRun::new(&frames, Some(SubscriptionTag(5)));
        let mut batch = Batch::default();
        batch.push_run(&run, &mut LastTime::default());
        batch.recycle();
        let mut last_time = LastTime(Some(0));
        batch.push_run(&part(&run, 0..3, Some(SubscriptionTag(6))), &mut last_time);
        let buffer = batch.0.as_ref().expect("it isn't empty");
        assert_eq!((buffer.in_batch, buffer.cached.len(), last_time.0), (3, 3, Some(3 * TICK_NS)));
        // A time message, followed by its message.
        assert_eq!(batch.bytes()[..11], *b"\x82\x09\x02\x40\x42\x0f\0\0\0\0\0");
        assert_eq!(batch.bytes()[11..18], *b"\x82\x0f\x01\x06\0\0\0");
        batch.recycle();
        // A viewer that knows a later time is sent none.
        batch.push_run(&run, &mut LastTime(Some(4 * TICK_NS)));
        assert_eq!(batch.len(), 3 * 17);
    }
}
