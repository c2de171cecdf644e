//! The sink and the inbox over the official SDK's byte streams, looped back in process: no server, no native library.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Sink, SinkExt, StreamExt};
use lanecast::protocol::Frame;
use lanecast::protocol::stream::MAX_STREAM_FRAME;
use lanecast::room::PeerLimits;
use lanecast::room::byte_stream::{ByteStreamInbox, ByteStreamSink, ByteStreamSinkError, StreamLimits};
use lanecast::{Progress, Uplink};
use livekit_data_stream::api::{
    AnyStreamReader, ByteStreamReader, ByteStreamWriter, SendError, StreamByteOptions, StreamError, StreamWriter,
};
use livekit_data_stream::backend::Packet;
use livekit_data_stream::backend::incoming::{self, InputEvent, OutputEvent, PacketReceived};
use livekit_data_stream::backend::outgoing;
use livekit_protocol::data_packet::Value;
use tokio::sync::{Semaphore, mpsc};

use crate::common::{settle, within};

/// Does in process what the SDK's room does with packets: each packet goes to the reader when the test lets it through.
struct Loop {
    outgoing: outgoing::Manager,
    readers: mpsc::UnboundedReceiver<OutputEvent>,
    way: Arc<Way>,
}

struct Way {
    permits: Semaphore,
    refuses: AtomicBool,
    /// Number of chunks that went through.
    chunks: AtomicUsize,
}

impl Way {
    fn unpack(&self, value: Value) -> Packet {
        let encryption_type = Default::default();
        match value {
            Value::StreamHeader(header) => Packet::Header { header: header.into(), encryption_type },
            Value::StreamChunk(chunk) => {
                self.chunks.fetch_add(1, Ordering::SeqCst);
                Packet::Chunk { chunk: chunk.into(), encryption_type }
            }
            Value::StreamTrailer(trailer) => Packet::Trailer { trailer: trailer.into(), encryption_type },
            other => panic!("not a packet of a stream: {other:?}"),
        }
    }
}

impl Loop {
    /// Lets everything through.
    fn open() -> Self {
        let this = Self::shut();
        this.way.permits.add_permits(Semaphore::MAX_PERMITS / 2);
        this
    }

    /// Lets nothing through yet.
    fn shut() -> Self {
        let (outgoing, mut packets) = outgoing::Manager::new();
        let (manager, input, readers) = incoming::Manager::new(None);
        tokio::spawn(manager.run());
        let way =
            Arc::new(Way { permits: Semaphore::new(0), refuses: AtomicBool::new(false), chunks: AtomicUsize::new(0) });
        let watched = Arc::clone(&way);
        tokio::spawn(async move {
            while let Ok((batch, responder)) = packets.recv().await {
                // A refused batch is refused whole, before any of its packets has gone.
                watched.permits.acquire_many(batch.len() as u32).await.expect("it is never closed").forget();
                if watched.refuses.load(Ordering::SeqCst) {
                    let _ = responder.respond(Err(SendError));
                    continue;
                }
                for packet in batch {
                    let packet = watched.unpack(packet.value.expect("every packet has a value"));
                    let received = PacketReceived::new(packet, "device".into());
                    let _ = input.send(InputEvent::PacketReceived(received));
                }
                let _ = responder.respond(Ok(()));
            }
        });
        Self { outgoing, readers, way }
    }

    fn let_through(&self, packets: usize) {
        self.way.permits.add_permits(packets);
    }

    fn refuse(&self, refuses: bool) {
        self.way.refuses.store(refuses, Ordering::SeqCst);
    }

    fn chunks(&self) -> usize {
        self.way.chunks.load(Ordering::SeqCst)
    }

    /// Opens a stream; returns its writer and its reader.
    async fn stream(&mut self) -> (ByteStreamWriter, ByteStreamReader) {
        self.let_through(1);
        let writer = self.outgoing.stream_bytes(StreamByteOptions::new_with_topic("control"));
        let writer = within(writer).await.expect("the link is open");
        loop {
            if let Some(OutputEvent::StreamOpened(opened)) = within(self.readers.recv()).await
                && let AnyStreamReader::Byte(reader) = opened.stream_reader
            {
                return (writer, reader);
            }
        }
    }

    async fn sink(&mut self) -> (ByteStreamSink, ByteStreamReader) {
        let (writer, reader) = self.stream().await;
        (ByteStreamSink::new(writer, Uplink::new(), Progress::default(), StreamLimits::default()), reader)
    }
}

/// Reads to the end of the stream; returns the bytes and how the stream ended.
async fn read(mut reader: ByteStreamReader) -> (Vec<u8>, Result<(), StreamError>) {
    let mut bytes = Vec::new();
    loop {
        match within(reader.next()).await {
            Some(Ok(chunk)) => bytes.extend_from_slice(&chunk),
            Some(Err(error)) => return (bytes, Err(error)),
            None => return (bytes, Ok(())),
        }
    }
}

fn wire<'a>(frames: impl IntoIterator<Item = &'a Frame>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.into_iter().for_each(|frame| frame.append_to_stream(&mut bytes));
    bytes
}

fn frame(number: usize, len: usize) -> Frame {
    Frame::message_data(number as u64, 7, Bytes::from(vec![number as u8; len]))
}

fn poll_flush(sink: &mut ByteStreamSink) -> Poll<Result<(), ByteStreamSinkError>> {
    Pin::new(sink).poll_flush(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn every_byte_arrives_in_order_whatever_the_sizes() {
    let mut way = Loop::open();
    let (mut sink, reader) = way.sink().await;
    fastrand::seed(11);
    let sizes = [0, 1, 14_978, 14_979, 15_000, 29_978, 59_999, 60_000, 200_000];
    let frames: Vec<_> = (0..400)
        .map(|number| {
            frame(number, if number % 8 == 0 { sizes[fastrand::usize(..9)] } else { fastrand::usize(..2000) })
        })
        .collect();
    let expected = wire(&frames);
    let mut inbox = ByteStreamInbox::new(reader);
    let reading = tokio::spawn(async move {
        let mut received = Vec::new();
        while let Some(frame) = inbox.next().await {
            received.push(frame);
        }
        received
    });
    for frame in frames {
        sink.feed(frame).await.expect("the link is open");
        if fastrand::u8(..4) == 0 {
            sink.flush().await.expect("the link is open");
        }
    }
    sink.close().await.expect("the link is open");
    let received = within(reading).await.expect("it doesn't panic");
    assert_eq!(received.len(), 400);
    assert!(wire(&received) == expected);
}

/// Frames that are handed over together share chunks.
#[tokio::test]
async fn a_batch_is_written_together() {
    let mut way = Loop::open();
    let (mut sink, reader) = way.sink().await;
    let frames: Vec<_> = (0..300).map(|number| frame(number, 128)).collect();
    for frame in frames.clone() {
        sink.feed(frame).await.expect("the link is open");
    }
    sink.close().await.expect("the link is open");
    let (bytes, end) = read(reader).await;
    assert!(bytes == wire(&frames) && end.is_ok());
    assert_eq!(way.chunks(), bytes.len().div_ceil(15_000));
}

#[tokio::test]
async fn the_largest_frame_is_sent_and_one_byte_more_is_refused() {
    let mut way = Loop::open();
    let (mut sink, reader) = way.sink().await;
    let reading = tokio::spawn(read(reader));
    let largest = Frame::binary(vec![3; MAX_STREAM_FRAME].into());
    sink.send(largest.clone()).await.expect("it is no larger than allowed");
    let larger = Frame::binary(vec![3; MAX_STREAM_FRAME + 1].into());
    let refused = sink.send(larger).await;
    assert!(matches!(refused, Err(ByteStreamSinkError::FrameTooLarge { bytes }) if bytes == MAX_STREAM_FRAME + 1));
    sink.abandon("a frame was too large").await;
    let (bytes, end) = within(reading).await.expect("it doesn't panic");
    assert!(bytes == wire([&largest]));
    assert!(matches!(end, Err(StreamError::AbnormalEnd(reason)) if reason == "a frame was too large"));
}

// 1. A write waits. 2. Its future is dropped. 3. The next write reports success, and the reader never learns that bytes
// are missing. This is how the SDK's writer behaves, and what the sink has to avoid.
#[tokio::test]
async fn trap_a_dropped_write_loses_its_bytes_silently() {
    let mut way = Loop::shut();
    let (writer, reader) = way.stream().await;
    let mut write = Box::pin(writer.write(b"lost"));
    assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(write);
    way.let_through(9);
    settle().await;
    writer.write(b"later").await.expect("the SDK reports success");
    writer.close().await.expect("the SDK reports success");
    let (bytes, end) = read(reader).await;
    assert!(end.is_ok() && bytes != b"lostlater", "the SDK has mended it: {bytes:?}");
}

// How the sink avoids it: a waiting write is never given up while the stream goes on. 1. A write waits. 2. The sink
// takes nothing more until the write is done. 3. If the sink is given up, the stream ends with an error.
#[tokio::test]
async fn a_waiting_write_completes_or_the_stream_ends() {
    let mut way = Loop::shut();
    let (mut sink, reader) = way.sink().await;
    let frames: Vec<_> = (0..3).map(|number| frame(number, 20_000)).collect();
    sink.feed(frames[0].clone()).await.expect("there is capacity");
    assert!(poll_flush(&mut sink).is_pending());
    assert!(Pin::new(&mut sink).poll_ready(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(matches!(Pin::new(&mut sink).start_send(frames[1].clone()), Err(ByteStreamSinkError::Ended)));
    way.let_through(2);
    within(sink.flush()).await.expect("the link is open");
    sink.feed(frames[2].clone()).await.expect("there is capacity");
    assert!(poll_flush(&mut sink).is_pending());
    let abandoning = tokio::spawn(async move { sink.abandon("too slow").await });
    way.let_through(9);
    within(abandoning).await.expect("it doesn't panic");
    let (bytes, end) = read(reader).await;
    assert!(matches!(end, Err(StreamError::AbnormalEnd(reason)) if reason == "too slow"));
    let whole = wire([&frames[0], &frames[2]]);
    assert!(whole.starts_with(&bytes) && bytes.len() >= wire([&frames[0]]).len(), "no hole: {}", bytes.len());
}

/// After a failed write of the SDK's writer a later write succeeds, and leaves a hole that the reader can't see.
#[tokio::test]
async fn trap_a_write_after_a_failed_one_leaves_a_hole() {
    let mut way = Loop::open();
    let (writer, mut reader) = way.stream().await;
    writer.write(b"one").await.expect("the link is open");
    way.refuse(true);
    assert!(writer.write(b"two").await.is_err());
    way.refuse(false);
    writer.write(b"three").await.expect("the SDK reports success");
    assert_eq!(within(reader.next()).await.expect("a chunk").expect("a chunk"), "one");
    assert_eq!(within(reader.next()).await.expect("a chunk").expect("the SDK reports success"), "three");
}

#[tokio::test]
async fn after_the_first_error_nothing_is_written() {
    let mut way = Loop::open();
    let (mut sink, mut reader) = way.sink().await;
    sink.send(frame(1, 10)).await.expect("the link is open");
    way.refuse(true);
    assert!(matches!(sink.send(frame(2, 10)).await, Err(ByteStreamSinkError::Write(StreamError::SendFailed))));
    way.refuse(false);
    for _ in 0..3 {
        assert!(matches!(sink.send(frame(3, 10)).await, Err(ByteStreamSinkError::Ended)));
        assert!(matches!(sink.flush().await, Err(ByteStreamSinkError::Ended)));
    }
    assert!(matches!(sink.close().await, Err(ByteStreamSinkError::Ended)));
    sink.abandon("it has failed").await;
    settle().await;
    assert_eq!(way.chunks(), 1);
    assert_eq!(within(reader.next()).await.expect("a chunk").expect("a chunk"), wire([&frame(1, 10)]));
}

#[tokio::test]
async fn trap_a_dropped_writer_ends_its_stream_without_an_error() {
    let mut way = Loop::open();
    let (writer, reader) = way.stream().await;
    writer.write(b"half a frame").await.expect("the link is open");
    drop(writer);
    assert!(read(reader).await.1.is_ok());
}

#[tokio::test]
async fn a_dropped_sink_ends_its_stream_with_an_error() {
    let mut way = Loop::open();
    let (mut sink, reader) = way.sink().await;
    sink.send(frame(1, 10)).await.expect("the link is open");
    drop(sink);
    let (bytes, end) = read(reader).await;
    assert_eq!(bytes, wire([&frame(1, 10)]));
    assert!(matches!(end, Err(StreamError::AbnormalEnd(reason)) if reason == "abandoned"));
}

/// Also a sink whose write is under way, and a sink that was never written to.
#[tokio::test]
async fn a_sink_dropped_in_mid_write_ends_its_stream_with_an_error() {
    for feed in [true, false] {
        let mut way = Loop::shut();
        let (mut sink, reader) = way.sink().await;
        if feed {
            sink.feed(frame(1, 10)).await.expect("there is capacity");
            assert!(poll_flush(&mut sink).is_pending());
        }
        drop(sink);
        way.let_through(9);
        assert!(matches!(read(reader).await.1, Err(StreamError::AbnormalEnd(_))), "fed: {feed}");
    }
}

#[tokio::test]
async fn closing_flushes_and_ends_the_stream_without_an_error() {
    let mut way = Loop::shut();
    let (mut sink, reader) = way.sink().await;
    sink.feed(frame(1, 40_000)).await.expect("there is capacity");
    let closing = tokio::spawn(async move {
        sink.close().await.expect("the link is open");
        sink.close().await.expect("once more is fine");
        sink
    });
    for _ in 0..4 {
        settle().await;
        assert!(!closing.is_finished());
        way.let_through(1);
    }
    let sink = within(closing).await.expect("it doesn't panic");
    let (bytes, end) = read(reader).await;
    assert!(bytes == wire([&frame(1, 40_000)]) && end.is_ok());
    drop(sink);
}

/// Each chunk is reported: as a write of its own to the shared uplink, and as progress.
#[tokio::test]
async fn each_chunk_is_reported_as_progress() {
    let mut way = Loop::shut();
    let (writer, _reader) = way.stream().await;
    let (uplink, progress) = (Uplink::new(), Progress::default());
    let mut sink = ByteStreamSink::new(writer, uplink.clone(), progress, StreamLimits::default());
    sink.feed(frame(1, 40_000)).await.expect("there is capacity");
    assert_eq!(uplink.under_way(), 0);
    for _ in 0..3 {
        assert!(poll_flush(&mut sink).is_pending());
        assert_eq!(uplink.under_way(), 1);
        let movement = uplink.movement();
        way.let_through(1);
        settle().await;
        let _ = poll_flush(&mut sink);
        within(movement).await;
    }
    within(sink.flush()).await.expect("the link is open");
    assert_eq!(uplink.under_way(), 0);
    sink.feed(frame(2, 10)).await.expect("there is capacity");
    assert!(poll_flush(&mut sink).is_pending());
    drop(sink);
    assert_eq!(uplink.under_way(), 0, "a write that was given up isn't under way");
}

/// The SDK's readers give up a stream above five gigabytes: a fresh stream has to follow long before that.
#[tokio::test]
async fn a_stream_ends_at_its_byte_limit() {
    let mut way = Loop::open();
    let (writer, reader) = way.stream().await;
    let mut limits = StreamLimits::default();
    limits.bytes = 100;
    let mut sink = ByteStreamSink::new(writer, Uplink::new(), Progress::default(), limits);
    let one = frame(1, 28);
    assert_eq!(one.stream_len(), 50);
    sink.send(one.clone()).await.expect("it fits");
    sink.send(one.clone()).await.expect("it fits");
    let refused = sink.send(Frame::binary(Bytes::new())).await;
    assert!(matches!(refused, Err(ByteStreamSinkError::Exhausted { bytes: 100 })));
    assert!(sink.send(Frame::binary(Bytes::new())).await.is_err(), "nothing may follow a hole");
    sink.abandon("used up").await;
    let (bytes, end) = read(reader).await;
    assert_eq!(bytes, wire([&one, &one]));
    assert!(matches!(end, Err(StreamError::AbnormalEnd(_))));
}

#[tokio::test]
async fn an_inbox_ends_at_the_first_malformed_frame() {
    for (garbage, says) in [(&b"\x07\0\0\0\0"[..], "kind 7"), (b"\x02\x01\0\0\x01", "16777217")] {
        let mut way = Loop::open();
        let (writer, reader) = way.stream().await;
        let mut inbox = ByteStreamInbox::new(reader);
        let good = wire([&Frame::text("{}")]);
        writer.write(&[&good[..], garbage, &good[..]].concat()).await.expect("the link is open");
        assert_eq!(within(inbox.next()).await.expect("a frame").payload(), "{}");
        assert!(within(inbox.next()).await.is_none() && within(inbox.next()).await.is_none());
        assert!(inbox.failure().is_some_and(|failure| failure.contains(says)), "{:?}", inbox.failure());
    }
}

/// Chunks are cut anywhere. A stream that breaks off isn't counted as the participant's failure.
#[tokio::test]
async fn an_inbox_reassembles_frames() {
    let mut way = Loop::open();
    let (writer, reader) = way.stream().await;
    let mut inbox = ByteStreamInbox::new(reader);
    let frames: VecDeque<_> = (0..50).map(|number| frame(number, number * 7)).collect();
    for piece in wire(&frames).chunks(13) {
        writer.write(piece).await.expect("the link is open");
    }
    writer.close_with_reason("gone").await.expect("the link is open");
    for frame in &frames {
        assert_eq!(wire([&within(inbox.next()).await.expect("a frame")]), wire([frame]));
    }
    assert!(within(inbox.next()).await.is_none() && inbox.failure().is_none());
}

// 1. Half of a long frame arrives: it has claimed the whole budget. 2. A second stream's long frame waits, its short
// one doesn't. 3. The first frame's time is up and its stream ends; the second frame is read.
#[tokio::test]
async fn an_unfinished_frame_starves_nobody() {
    let limits = PeerLimits::with_patience(100_000, Duration::from_millis(50));
    let (mut way, mut another) = (Loop::open(), Loop::open());
    let ((writer, reader), (other_writer, other)) = (way.stream().await, another.stream().await);
    let inbox = |reader| ByteStreamInbox::new(reader).with_limits(limits.clone());
    let (mut unfinished, mut honest) = (inbox(reader), inbox(other));
    let long = wire([&Frame::binary(Bytes::from(vec![7; 100_000]))]);
    writer.write(&long[..50_000]).await.expect("the link is open");
    let mut ending = Box::pin(unfinished.next());
    within(async {
        while limits.claimed() == 0 {
            assert!((&mut ending).now_or_never().is_none());
            tokio::task::yield_now().await;
        }
    })
    .await;
    other_writer.write(&wire([&Frame::text("{}")])).await.expect("the link is open");
    assert_eq!(within(honest.next()).await.expect("a frame").payload(), "{}");
    other_writer.write(&long).await.expect("the link is open");
    let (ended, read) = within(futures_util::future::join(ending, honest.next())).await;
    assert!(ended.is_none());
    assert_eq!(read.expect("a frame").len(), 100_000);
    assert!(unfinished.failure().is_some_and(|failure| failure.contains("too long")), "{:?}", unfinished.failure());
    drop(honest);
    assert_eq!(limits.claimed(), 0);
}
