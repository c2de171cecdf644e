//! A participant's own stream to us, as a sequence of frames.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::mpsc;

use crate::protocol::Frame;
#[cfg(feature = "byte-stream")]
use crate::room::byte_stream::ByteStreamInbox;
#[cfg(feature = "websocket")]
use crate::room::websocket::WebSocketInbox;

/// What a room's [`Incoming`](crate::room::Room::Incoming) has to be for telemetry: the frames of one viewer, in order.
///
/// Implemented for tokio's channel receiver and for any boxed stream; a room with a type of its own implements it by
/// handing on to what it wraps.
pub trait Inbox: Send + 'static {
    /// The next frame; `None` when there won't be any more.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>>;

    /// The frame that was given last has been decoded, and is gone: what it takes of a bound may be given back. It is by the
    /// next call of [`poll_frame`](Self::poll_frame) at the latest; in between the viewer's answers may have to wait.
    ///
    /// By default nothing happens.
    fn release(&mut self) {}

    /// What the viewer did wrong for there to be no more frames, if it did; asked once there are none. The viewer is
    /// told, in a status, that its stream has ended and that it may open another.
    ///
    /// By default the stream has just ended.
    fn failure(&self) -> Option<String> {
        None
    }
}

impl Inbox for mpsc::Receiver<Frame> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.poll_recv(cx)
    }
}

impl<S: Stream<Item = Frame> + Send + ?Sized + 'static> Inbox for Pin<Box<S>> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.as_mut().poll_next(cx)
    }
}

#[cfg(feature = "byte-stream")]
impl Inbox for ByteStreamInbox {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        Pin::new(self).poll_next(cx)
    }

    fn release(&mut self) {
        self.release();
    }

    fn failure(&self) -> Option<String> {
        self.failure().map(str::to_owned)
    }
}

#[cfg(feature = "websocket")]
impl Inbox for futures_channel::mpsc::Receiver<Frame> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        Pin::new(self).poll_next(cx)
    }
}

#[cfg(feature = "websocket")]
impl Inbox for WebSocketInbox {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        Pin::new(self).poll_next(cx)
    }

    fn release(&mut self) {
        self.release();
    }
}
