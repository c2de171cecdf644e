//! The sink over a byte stream's writer. What that does, and what follows from it, stands in the
//! [module](super) above.
//!
//! # One write at a time
//! The future of a write stays between polls, in an allocation that is used again, and owns the batch until it is done.
//! Each chunk is reported to the [uplink](crate::Uplink) as a write of its own.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_sink::Sink;
use livekit_data_stream::api::{ByteStreamWriter, StreamError, StreamWriter};
use tokio_util::sync::ReusableBoxFuture;

use super::batch::Batch;
use crate::lane::{Progress, Uplink};
use crate::protocol::Frame;
use crate::protocol::stream::MAX_STREAM_FRAME;

/// What a stream may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamLimits {
    /// How many bytes. Default 4 GB: readers of the official SDK give a stream up at 5 GB.
    pub bytes: u64,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self { bytes: 4_000_000_000 }
    }
}

/// Writes frames to one participant, as a sequence of bytes. See the [module](super) for what holds.
pub struct ByteStreamSink {
    writer: Option<ByteStreamWriter>,
    /// What was handed over; empty while the write has it.
    batch: Batch,
    /// What was put into writes.
    written: u64,
    write: Option<ReusableBoxFuture<'static, Written>>,
    stage: Stage,
    limits: StreamLimits,
    uplink: Uplink,
    progress: Progress,
}

/// `Idle → Writing → Idle`, from either to `Failed` or, by closing, to `Closed`, and from `Idle` to `Spent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// The future in `write` is to be polled.
    Writing,
    /// The same, and it is the end of the stream.
    Closing,
    /// A write has failed: not even the end can be told.
    Failed,
    /// A frame was refused: nothing more is written but the end.
    Spent,
    Closed,
}

/// What a write came to.
struct Written {
    batch: Batch,
    result: Result<(), StreamError>,
}

/// Why a frame didn't go out. The stream is finished.
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
    #[error("a frame of {bytes} bytes: at most {MAX_STREAM_FRAME} are allowed")]
    FrameTooLarge {
        /// How long its payload is.
        bytes: usize,
    },
    /// The stream has carried what it may: a fresh one has to follow.
    #[error("the stream has carried {bytes} bytes, the most it may")]
    Exhausted {
        /// How many are allowed.
        bytes: u64,
    },
}

impl ByteStreamSink {
    /// A sink on a stream that was just opened. Its writes are reported to `progress` and to `uplink`.
    #[must_use]
    pub fn new(writer: ByteStreamWriter, uplink: Uplink, progress: Progress, limits: StreamLimits) -> Self {
        Self {
            writer: Some(writer),
            batch: Batch::default(),
            written: 0,
            write: None,
            stage: Stage::Idle,
            limits,
            uplink,
            progress,
        }
    }

    /// Takes over frames that go to others as well, in their order: the first, and more as long as it is ready. Says
    /// how many.
    ///
    /// # Errors
    /// As [`Sink::start_send`].
    pub fn start_send_frames(&mut self, frames: &[Frame]) -> Result<usize, ByteStreamSinkError> {
        let mut taken = 0;
        for frame in frames {
            if taken > 0 && self.batch.is_full() {
                break;
            }
            self.append(frame)?;
            taken += 1;
        }
        Ok(taken)
    }

    fn append(&mut self, frame: &Frame) -> Result<(), ByteStreamSinkError> {
        if self.stage != Stage::Idle {
            return Err(ByteStreamSinkError::Ended);
        }
        let len = frame.stream_len();
        if len > MAX_STREAM_FRAME + PREFIX {
            return Err(self.fail(ByteStreamSinkError::FrameTooLarge { bytes: len - PREFIX }));
        }
        if self.written + (self.batch.len() + len) as u64 > self.limits.bytes {
            return Err(self.fail(ByteStreamSinkError::Exhausted { bytes: self.limits.bytes }));
        }
        self.batch.push(frame);
        Ok(())
    }

    /// Whether everything that was handed over has been written.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle && self.batch.is_empty()
    }

    /// Ends the stream so that its reader gets an error that says `reason`, whatever is under way; frames that weren't
    /// written are lost.
    ///
    /// A stream on which a write has failed can't be told any more: its reader gets nothing further.
    pub async fn abandon(mut self, reason: &str) {
        if let Some(writer) = self.take_writer() {
            let closed = writer.close_with_reason(reason).await;
            note_close(closed);
        }
    }

    /// Lets go of a write that is under way, which frees the writer for the one thing that may follow.
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

    /// Begins to write what is in hand.
    fn begin(&mut self) {
        let Some(writer) = self.writer.clone() else { return };
        let batch = std::mem::take(&mut self.batch);
        self.written += batch.len() as u64;
        self.set(write(writer, batch, self.uplink.clone(), self.progress.clone()));
        self.stage = Stage::Writing;
    }

    fn set(&mut self, future: impl Future<Output = Written> + Send + 'static) {
        match &mut self.write {
            Some(write) => write.set(future),
            None => self.write = Some(ReusableBoxFuture::new(future)),
        }
    }

    /// Polls what is under way.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ByteStreamSinkError>> {
        match self.stage {
            Stage::Idle => return Poll::Ready(Ok(())),
            Stage::Failed | Stage::Spent | Stage::Closed => return Poll::Ready(Err(ByteStreamSinkError::Ended)),
            Stage::Writing | Stage::Closing => {}
        }
        let write = self.write.as_mut().expect("a write is under way");
        let Written { batch, result } = ready!(write.poll(cx));
        if let Err(error) = result {
            return Poll::Ready(Err(self.fail(ByteStreamSinkError::Write(error))));
        }
        if self.stage == Stage::Closing {
            self.stage = Stage::Closed;
            self.writer = None;
            return Poll::Ready(Ok(()));
        }
        self.stage = Stage::Idle;
        self.batch = batch;
        Poll::Ready(Ok(()))
    }
}

/// What stands before each frame.
const PREFIX: usize = 5;

/// Writes everything, a chunk at a time.
async fn write(writer: ByteStreamWriter, mut batch: Batch, uplink: Uplink, progress: Progress) -> Written {
    let result = write_chunks(&writer, &batch, &uplink, &progress).await;
    batch.clear();
    Written { batch, result }
}

async fn write_chunks(
    writer: &ByteStreamWriter,
    batch: &Batch,
    uplink: &Uplink,
    progress: &Progress,
) -> Result<(), StreamError> {
    for chunk in batch.chunks() {
        let write = uplink.begin(progress);
        writer.write(chunk).await?;
        write.done();
        progress.report(chunk.len());
    }
    Ok(())
}

async fn close(writer: ByteStreamWriter) -> Written {
    Written { batch: Batch::default(), result: writer.close().await }
}

fn note_close(closed: Result<(), StreamError>) {
    if let Err(error) = closed {
        tracing::debug!(%error, "the end of a stream could not be told");
    }
}

impl Sink<Frame> for ByteStreamSink {
    type Error = ByteStreamSinkError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ByteStreamSinkError>> {
        ready!(self.poll_write(cx))?;
        if self.batch.is_full() {
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
            if self.batch.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.begin();
        }
    }

    /// Flushes, and ends the stream in good order. Further calls answer as the first.
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
        // Without a runtime the connection is going away anyway, and the reader with it.
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
