//! The sink that writes to one viewer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_sink::Sink;

use super::batch::{Batch, LastTime};
use super::close_reason::CloseReason;
use super::connection::Connection;
use super::socket;
use super::unsent::UnsentWindow;
use crate::contract::{BroadcastRun, EndReason, RunSink};
use crate::protocol::Frame;
use crate::room::{Goodbye, is_disconnect};

/// The stream to one viewer of a [`WebSocketRoom`](super::WebSocketRoom); each message is one WebSocket frame.
///
/// A [live](Frame::live) message is preceded by a time message with its log time, if that is at least a millisecond
/// later than the last time that the viewer was sent. The time message doesn't count as a message of its own.
///
/// A flush is one write of everything sent since the last one. While the client takes nothing, the sink keeps the rest
/// of that write, isn't ready, and is woken when the socket takes bytes again; otherwise it owns no buffer. It never
/// blocks. Dropping it closes the connection with code 1001 and discards what isn't written yet, except the rest of a
/// frame that was begun.
#[derive(Debug)]
pub struct WebSocketSink {
    connection: Arc<Connection>,
    batch: Batch,
    last_time: LastTime,
    /// Data of this sink may wait in the writer.
    stalled: bool,
    window: UnsentWindow,
}

/// The reason why a [`WebSocketSink`] takes nothing any more. The error is permanent: drop the sink.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebSocketSinkError {
    /// The connection is being closed, by either side.
    #[error("the connection is closing")]
    Closed,
    /// Writing to the socket failed, usually because the client is gone.
    #[error("writing to the socket failed: {0}")]
    Io(#[from] io::Error),
}

impl WebSocketSinkError {
    /// Whether the client is gone, which the session counts as vanished and not as reset.
    #[must_use]
    pub fn is_disconnect(&self) -> bool {
        match self {
            // The task that closes the connection has told the session before, or is about to.
            Self::Closed => true,
            Self::Io(error) => is_disconnect(error),
        }
    }
}

impl WebSocketSink {
    /// A sink of a connection that has this window.
    pub(super) fn new(connection: Arc<Connection>, window: UnsentWindow) -> Self {
        Self { connection, batch: Batch::default(), last_time: LastTime::default(), stalled: false, window }
    }

    /// Has the connection's task close it with `reason`. Resolves when the socket is closed.
    pub(super) fn close_with(self, reason: EndReason) -> Goodbye {
        let connection = &self.connection;
        let presence = &connection.presence;
        tracing::debug!(identity = %presence.identity, sid = %presence.sid, %reason, "closing a connection");
        connection.request_close(CloseReason::Ended(reason));
        let closed = connection.closed();
        drop(self);
        Box::pin(async {
            // Nothing is ever sent: the receiver resolves when the connection drops the sender.
            let _ = closed.await;
        })
    }

    fn check(&self) -> Result<(), WebSocketSinkError> {
        if self.connection.close_is_requested() { Err(WebSocketSinkError::Closed) } else { Ok(()) }
    }
}

impl RunSink<Frame> for WebSocketSink {
    /// Takes as many messages as one write should carry.
    fn start_send_run(self: Pin<&mut Self>, run: &BroadcastRun<'_, Frame>) -> Result<usize, WebSocketSinkError> {
        let Self { batch, last_time, .. } = self.get_mut();
        Ok(batch.push_run(run, last_time))
    }
}

impl Sink<Frame> for WebSocketSink {
    type Error = WebSocketSinkError;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), WebSocketSinkError>> {
        self.check()?;
        if self.stalled || self.batch.is_full() { self.poll_flush(cx) } else { Poll::Ready(Ok(())) }
    }

    fn start_send(self: Pin<&mut Self>, frame: Frame) -> Result<(), WebSocketSinkError> {
        let Self { batch, last_time, .. } = self.get_mut();
        batch.push(&frame, last_time);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), WebSocketSinkError>> {
        let Self { connection, batch, stalled, window, .. } = self.get_mut();
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
            // Registered before the lock is released: the reading task may write the rest and then wakes this one.
            connection.sink.register(cx.waker());
            if let Some(bytes) = writer.link_rate().and_then(|rate| window.follow(rate)) {
                socket::limit_unsent(&connection.stream, bytes);
                writer.set_coalescing(window.coalescing());
            }
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
            self.connection.request_close(CloseReason::SinkDropped);
        }
        flushed
    }
}

impl Drop for WebSocketSink {
    fn drop(&mut self) {
        self.connection.request_close(CloseReason::SinkDropped);
        self.batch.recycle();
    }
}
