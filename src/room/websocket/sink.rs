//! The stream to one viewer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_sink::Sink;

use super::batch::{Batch, Clock};
use super::connection::Connection;
use super::farewell::Farewell;
use crate::lane::{BroadcastRun, EndReason};
use crate::protocol::Frame;
use crate::room::{Goodbye, is_disconnect};

/// The stream to one viewer of a [`WebSocketRoom`](super::WebSocketRoom); each message is one WebSocket frame.
///
/// A [live](Frame::live) message goes behind a time message of its log time, which is no message of its own, if it is a
/// millisecond later than what the viewer was told last.
///
/// A flush is one write of everything sent since the last one. While the client takes nothing, the sink keeps what is
/// left of that write, isn't ready, and is woken when the socket takes bytes again; otherwise it owns no buffer.
/// Never blocks. Dropping it closes the connection with code 1001; what wasn't written by then is discarded, but for
/// the rest of a frame that was begun.
#[derive(Debug)]
pub struct WebSocketSink {
    connection: Arc<Connection>,
    batch: Batch,
    clock: Clock,
    /// Data of this sink may wait in the writer.
    stalled: bool,
}

/// Why a [`WebSocketSink`] takes nothing any more. It stays that way: drop it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebSocketSinkError {
    /// The connection is being closed, by either side.
    #[error("the connection is closing")]
    Closed,
    /// Writing to the socket failed; mostly, the client is gone.
    #[error("writing to the socket failed: {0}")]
    Io(#[from] io::Error),
}

impl WebSocketSinkError {
    /// Whether the client is gone: what the session counts as vanished, not as reset.
    #[must_use]
    pub fn is_disconnect(&self) -> bool {
        match self {
            // Whoever closes has told the session before, or is about to.
            Self::Closed => true,
            Self::Io(error) => is_disconnect(error),
        }
    }
}

impl WebSocketSink {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, batch: Batch::default(), clock: Clock::default(), stalled: false }
    }

    /// Lets go of the connection, so that its task says goodbye for `reason`; resolves when the socket is closed.
    pub(super) fn part(self, reason: EndReason) -> Goodbye {
        let connection = &self.connection;
        let presence = &connection.presence;
        tracing::debug!(identity = %presence.identity, sid = %presence.sid, %reason, "letting go of a connection");
        connection.end(Farewell::Ended(reason));
        let closed = connection.closed();
        drop(self);
        Box::pin(async {
            // Nothing is ever sent: it resolves when the connection drops the other end.
            let _ = closed.await;
        })
    }

    /// Takes messages that others get as well, as many as one write is to carry. Says how many.
    pub(super) fn start_send_run(&mut self, run: &BroadcastRun<'_, Frame>) -> usize {
        self.batch.push_run(run, &mut self.clock)
    }

    fn check(&self) -> Result<(), WebSocketSinkError> {
        if self.connection.is_ending() { Err(WebSocketSinkError::Closed) } else { Ok(()) }
    }
}

impl Sink<Frame> for WebSocketSink {
    type Error = WebSocketSinkError;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), WebSocketSinkError>> {
        self.check()?;
        if self.stalled || self.batch.is_full() { self.poll_flush(cx) } else { Poll::Ready(Ok(())) }
    }

    fn start_send(self: Pin<&mut Self>, frame: Frame) -> Result<(), WebSocketSinkError> {
        let Self { batch, clock, .. } = self.get_mut();
        batch.push(&frame, clock);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), WebSocketSinkError>> {
        let Self { connection, batch, stalled, .. } = self.get_mut();
        if batch.is_empty() && !*stalled {
            return Poll::Ready(Ok(()));
        }
        loop {
            let Some(mut writer) = connection.try_writer(cx) else { return Poll::Pending };
            if writer.is_closing() {
                return Poll::Ready(Err(WebSocketSinkError::Closed));
            }
            writer.write_batch(&connection.stream, batch)?;
            *stalled = writer.holds_data();
            if !*stalled && batch.is_empty() {
                return Poll::Ready(Ok(()));
            }
            // Before the lock is let go: the reading task may finish what waits, and then wakes this.
            connection.sink.register(cx.waker());
            drop(writer);
            match connection.stream.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), WebSocketSinkError>> {
        let flushed = self.as_mut().poll_flush(cx);
        if flushed.is_ready() {
            self.connection.end(Farewell::SinkDropped);
        }
        flushed
    }
}

impl Drop for WebSocketSink {
    fn drop(&mut self) {
        self.connection.end(Farewell::SinkDropped);
        self.batch.recycle();
    }
}
