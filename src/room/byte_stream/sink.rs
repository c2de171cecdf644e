//! The sink over a byte stream's writer. The [module](super) above lists what the writer does, and what follows from
//! it.
//!
//! # One write at a time
//! The future of a write stays between polls, in an allocation that is reused, and owns the buffer until it is done.
//! Each chunk is reported to the [uplink](crate::Uplink) as a write of its own.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_sink::Sink;
use livekit_data_stream::api::{ByteStreamWriter, StreamError, StreamWriter};
use tokio_util::sync::ReusableBoxFuture;

use super::chunk_buffer::ChunkBuffer;
use crate::contract::{BroadcastRun, Progress, RunSink, Uplink};
use crate::protocol::Frame;
use crate::protocol::stream::MAX_STREAM_FRAME;

/// Limits of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamLimits {
    /// The most bytes that the stream may carry. Default 4 GB: readers of the official SDK give up a stream at 5 GB.
    pub bytes: u64,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self { bytes: 4_000_000_000 }
    }
}

/// Writes frames to one participant, as a sequence of bytes. A frame counts as delivered once the transport has taken
/// its bytes, and after the first error every call fails.
pub struct ByteStreamSink {
    writer: Option<ByteStreamWriter>,
    /// Frames that were handed over; empty while a write owns the buffer.
    buffer: ChunkBuffer,
    /// Number of bytes that were put into writes.
    written: u64,
    write: Option<ReusableBoxFuture<'static, Written>>,
    stage: Stage,
    limits: StreamLimits,
    uplink: Uplink,
    progress: Progress,
}

/// The state of the sink. A sink that is abandoned or dropped becomes `Closed` from any state.
///
/// | from | event | to |
/// |---|---|---|
/// | `Idle` | a write begins | `Writing` |
/// | `Writing` | the write succeeds | `Idle` |
/// | `Idle` | a frame is refused | `Spent` |
/// | `Idle` | the end of the stream begins to be written | `Closing` |
/// | `Closing` | the end is written | `Closed` |
/// | `Writing`, `Closing` | the write fails | `Failed` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// The future in `write` writes a buffer.
    Writing,
    /// The future in `write` writes the end of the stream.
    Closing,
    /// A write has failed: not even the end of the stream can be written.
    Failed,
    /// A frame was refused: only the end of the stream may still be written.
    Spent,
    Closed,
}

/// The outcome of a write.
struct Written {
    buffer: ChunkBuffer,
    result: Result<(), StreamError>,
}

/// Why a frame was not written. The stream is finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ByteStreamSinkError {
    /// The transport refused the bytes.
    #[error("the transport refused a write: {0}")]
    Write(#[source] StreamError),
    /// An earlier write failed, or the stream was closed.
    #[error("the stream has ended")]
    Ended,
    /// A frame is larger than the format allows.
    #[error("the frame has {bytes} bytes and exceeds the limit of {MAX_STREAM_FRAME} bytes")]
    FrameTooLarge {
        /// Length of the frame without its prefix, in bytes.
        bytes: usize,
    },
    /// The stream has carried as many bytes as it may: a fresh one has to follow.
    #[error("the stream has reached its limit of {bytes} bytes: open another")]
    Exhausted {
        /// The limit, in bytes.
        bytes: u64,
    },
}

impl ByteStreamSink {
    /// Creates a sink on a stream that was just opened. Its writes are reported to `progress` and to `uplink`.
    #[must_use]
    pub fn new(writer: ByteStreamWriter, uplink: Uplink, progress: Progress, limits: StreamLimits) -> Self {
        Self {
            writer: Some(writer),
            buffer: ChunkBuffer::default(),
            written: 0,
            write: None,
            stage: Stage::Idle,
            limits,
            uplink,
            progress,
        }
    }

    fn append(&mut self, frame: &Frame) -> Result<(), ByteStreamSinkError> {
        if self.stage != Stage::Idle {
            return Err(ByteStreamSinkError::Ended);
        }
        let len = frame.stream_len();
        if len > MAX_STREAM_FRAME + PREFIX {
            return Err(self.fail(ByteStreamSinkError::FrameTooLarge { bytes: len - PREFIX }));
        }
        if self.written + (self.buffer.len() + len) as u64 > self.limits.bytes {
            return Err(self.fail(ByteStreamSinkError::Exhausted { bytes: self.limits.bytes }));
        }
        self.buffer.push(frame);
        Ok(())
    }

    /// Whether everything that was handed over has been written.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle && self.buffer.is_empty()
    }

    /// Ends the stream so that its reader gets an error that says `reason`, even while a write is in progress. Frames
    /// that weren't written are lost.
    ///
    /// If a write on the stream has failed, the end can't be written either: the reader gets nothing further.
    pub async fn abandon(mut self, reason: &str) {
        if let Some(writer) = self.take_writer() {
            let closed = writer.close_with_reason(reason).await;
            note_close(closed);
        }
    }

    /// Drops a write in progress, and returns the writer for the end of the stream; `None` if the stream has ended or
    /// failed.
    fn take_writer(&mut self) -> Option<ByteStreamWriter> {
        self.write = None;
        let ended = matches!(self.stage, Stage::Failed | Stage::Closed);
        self.stage = Stage::Closed;
        self.writer.take().filter(|_| !ended)
    }

    fn fail(&mut self, error: ByteStreamSinkError) -> ByteStreamSinkError {
        self.stage = if matches!(error, ByteStreamSinkError::Write(_)) { Stage::Failed } else { Stage::Spent };
        error
    }

    /// Begins to write the buffer.
    fn begin(&mut self) {
        let Some(writer) = self.writer.clone() else { return };
        let buffer = std::mem::take(&mut self.buffer);
        self.written += buffer.len() as u64;
        self.set(write(writer, buffer, self.uplink.clone(), self.progress.clone()));
        self.stage = Stage::Writing;
    }

    fn set(&mut self, future: impl Future<Output = Written> + Send + 'static) {
        match &mut self.write {
            Some(write) => write.set(future),
            None => self.write = Some(ReusableBoxFuture::new(future)),
        }
    }

    /// Polls the write in progress.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ByteStreamSinkError>> {
        match self.stage {
            Stage::Idle => return Poll::Ready(Ok(())),
            Stage::Failed | Stage::Spent | Stage::Closed => return Poll::Ready(Err(ByteStreamSinkError::Ended)),
            Stage::Writing | Stage::Closing => {}
        }
        let write = self.write.as_mut().expect("a write is under way");
        let Written { buffer, result } = ready!(write.poll(cx));
        if let Err(error) = result {
            return Poll::Ready(Err(self.fail(ByteStreamSinkError::Write(error))));
        }
        if self.stage == Stage::Closing {
            self.stage = Stage::Closed;
            self.writer = None;
            return Poll::Ready(Ok(()));
        }
        self.stage = Stage::Idle;
        self.buffer = buffer;
        Poll::Ready(Ok(()))
    }
}

/// Length of the prefix of each frame, in bytes.
const PREFIX: usize = 5;

/// Writes the whole buffer, one chunk at a time.
async fn write(writer: ByteStreamWriter, mut buffer: ChunkBuffer, uplink: Uplink, progress: Progress) -> Written {
    let result = write_chunks(&writer, &buffer, &uplink, &progress).await;
    buffer.clear();
    Written { buffer, result }
}

async fn write_chunks(
    writer: &ByteStreamWriter,
    buffer: &ChunkBuffer,
    uplink: &Uplink,
    progress: &Progress,
) -> Result<(), StreamError> {
    for chunk in buffer.chunks() {
        let write = uplink.begin(progress);
        writer.write(chunk).await?;
        write.done();
        progress.report(chunk.len());
    }
    Ok(())
}

async fn close(writer: ByteStreamWriter) -> Written {
    Written { buffer: ChunkBuffer::default(), result: writer.close().await }
}

fn note_close(closed: Result<(), StreamError>) {
    if let Err(error) = closed {
        tracing::debug!(%error, "the end of a stream could not be sent");
    }
}

impl RunSink<Frame> for ByteStreamSink {
    /// Takes the first frame, and more while the buffer isn't full.
    fn start_send_run(mut self: Pin<&mut Self>, run: &BroadcastRun<'_, Frame>) -> Result<usize, ByteStreamSinkError> {
        let mut taken = 0;
        for frame in run.messages() {
            if taken > 0 && self.buffer.is_full() {
                break;
            }
            self.append(frame)?;
            taken += 1;
        }
        Ok(taken)
    }
}

impl Sink<Frame> for ByteStreamSink {
    type Error = ByteStreamSinkError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ByteStreamSinkError>> {
        ready!(self.poll_write(cx))?;
        if self.buffer.is_full() {
            self.begin();
            return self.poll_write(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn start_send(mut self: Pin<&mut Self>, frame: Frame) -> Result<(), ByteStreamSinkError> {
        self.append(&frame)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ByteStreamSinkError>> {
        loop {
            ready!(self.poll_write(cx))?;
            if self.buffer.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.begin();
        }
    }

    /// Flushes, and ends the stream normally. Further calls succeed once the stream has ended.
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ByteStreamSinkError>> {
        match self.stage {
            Stage::Closed => return Poll::Ready(Ok(())),
            Stage::Closing => return self.poll_write(cx),
            Stage::Idle | Stage::Writing | Stage::Failed | Stage::Spent => {}
        }
        ready!(self.as_mut().poll_flush(cx))?;
        if let Some(writer) = self.writer.clone() {
            Self::set(&mut self, close(writer));
            self.stage = Stage::Closing;
        }
        self.poll_write(cx)
    }
}

impl Drop for ByteStreamSink {
    fn drop(&mut self) {
        let Some(writer) = self.take_writer() else { return };
        // Without a runtime, the connection is going away, and the reader with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { note_close(writer.close_with_reason("abandoned").await) });
        }
    }
}

impl fmt::Debug for ByteStreamSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteStreamSink").field("stage", &self.stage).finish_non_exhaustive()
    }
}
