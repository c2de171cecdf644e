//! The room: a handle to the server, and how a session uses it.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_core::Stream;
use tokio_util::sync::DropGuard;

use super::batch::SEGMENT_BYTES;
use super::inbox::WebSocketInbox;
use super::shared::Shared;
use super::sink::{WebSocketSink, WebSocketSinkError};
use super::unsent::UnsentWindow;
use crate::contract::{EndReason, Progress};
use crate::ids::ParticipantIdentity;
use crate::protocol::Frame;
use crate::room::{Goodbye, OpenError, Presence, Room, RoomEvent};

/// A WebSocket server as a [`Room`], in which each viewer has one connection. Clones are handles to the same room.
///
/// The room closes when its last clone is dropped or [`shutdown`](Self::shutdown) is called: it admits no more viewers
/// and closes every connection with 1001. A session that begins to end drops the room's [events](Room::events). Then
/// the room admits no more viewers either and closes the connections that the session hasn't opened. The others are
/// sent what the session still has for them, and are closed when the session releases them.
#[derive(Clone, Debug)]
pub struct WebSocketRoom(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    local_addrs: Box<[SocketAddr]>,
    _stop: DropGuard,
}

impl WebSocketRoom {
    /// A room with the addresses on which it listens, at least one.
    pub(super) fn new(shared: Arc<Shared>, local_addrs: Box<[SocketAddr]>) -> Self {
        let stop = shared.stop.clone().drop_guard();
        Self(Arc::new(Handle { shared, local_addrs, _stop: stop }))
    }

    /// The address on which the room listens, with the actual port if port 0 was given; the first address if there are
    /// several.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addrs[0]
    }

    /// All addresses on which the room listens, at least one. Their ports are the same, unless
    /// [`bind_all`](super::WebSocketRoomBuilder::bind_all) was given different ones.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.0.local_addrs
    }

    /// The number of connected viewers, including those that the session hasn't admitted yet.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.shared.directory.len()
    }

    /// Closes the room and waits until every connection has ended. This takes at most the [close
    /// time-out](super::WebSocketRoomBuilder::close_timeout), unless the session has stopped taking events. The stream
    /// of events ends, and with it the session.
    ///
    /// # Cancel safety
    /// The room closes once the future has been polled, even if the future is then dropped. Further calls wait for the
    /// same end.
    pub async fn shutdown(&self) {
        self.0.shared.stop.cancel();
        self.0.shared.stopped.cancelled().await;
    }
}

impl Room for WebSocketRoom {
    type Message = Frame;
    type Sink = WebSocketSink;
    type Incoming = WebSocketInbox;

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<Self::Incoming>> + Send + 'static> {
        let shared = &self.0.shared;
        let events = shared.take_listener()?;
        // The guard is dropped with the stream: a room without a session admits no viewers.
        let listener = (events, shared.stopped.clone(), shared.stop_admitting.clone().drop_guard());
        Some(futures_util::stream::unfold(listener, |(mut events, stopped, stop_admitting)| async {
            let event = match stopped.run_until_cancelled(events.recv()).await {
                Some(event) => event?,
                None => events.try_recv().ok()?,
            };
            Some((event, (events, stopped, stop_admitting)))
        }))
    }

    fn participants(&self) -> Vec<Presence> {
        self.0.shared.directory.all()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        self.0.shared.directory.newest(identity)
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<WebSocketSink, OpenError> {
        let connection = self.0.shared.directory.take(to).ok_or(OpenError::NotPresent)?;
        let config = &self.0.shared.config;
        progress.set_write_timeout(config.stall_timeout);
        let window = UnsentWindow::new(config.unsent_bytes);
        let mut writer = connection.writer();
        writer.report_to(progress);
        writer.set_coalescing(window.coalescing());
        drop(writer);
        Ok(WebSocketSink::new(connection, window))
    }

    fn batch_bytes(&self) -> usize {
        SEGMENT_BYTES
    }

    fn has_vanished(error: &WebSocketSinkError) -> bool {
        error.is_disconnect()
    }

    fn retire(&self, sink: WebSocketSink, reason: EndReason) -> Option<Goodbye> {
        Some(sink.close_with(reason))
    }
}
