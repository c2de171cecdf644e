//! A viewer's own stream to this host, as a sequence of frames.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::mpsc;

use crate::protocol::Frame;

/// The frames of one viewer, in order: what [telemetry](crate::telemetry) requires of a room's
/// [`Incoming`](super::Room::Incoming).
///
/// Implemented for tokio's channel receiver and for any boxed stream. A room with a type of its own implements it by
/// forwarding to the stream that the type wraps.
pub trait Inbound: Send + 'static {
    /// Polls for the next frame; `None` when the stream has ended.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>>;

    /// Notes that the last frame has been decoded and dropped, so its share of a memory budget may be given back. The
    /// share is given back by the next call of [`poll_frame`](Self::poll_frame) at the latest; until that call, answers
    /// to the viewer may have to wait.
    ///
    /// The default does nothing.
    fn release(&mut self) {}

    /// What the viewer did wrong, if that ended its stream. Telemetry asks for this once the stream has ended, and
    /// tells the viewer in a status that its stream has ended and that it may open another.
    ///
    /// The default is `None`: the viewer did nothing wrong.
    fn failure(&self) -> Option<String> {
        None
    }
}

impl Inbound for mpsc::Receiver<Frame> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.poll_recv(cx)
    }
}

impl<S: Stream<Item = Frame> + Send + ?Sized + 'static> Inbound for Pin<Box<S>> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.as_mut().poll_next(cx)
    }
}
