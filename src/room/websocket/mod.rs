//! A room over WebSockets: a server on one or more TCP addresses.
//!
//! Each viewer has one connection, with one stream in each direction: a [`Frame`] is a message, text or binary. The
//! viewer offers dialects as WebSocket subprotocols, and the server chooses the best of them. The embedder's
//! [hook](WebSocketRoomBuilder::on_upgrade) determines the viewer's identity.
//!
//! # How connections end
//! | what happened | close code |
//! |---|---|
//! | the viewer couldn't keep up, or a write failed (a reset), or its join failed: reconnect and start afresh | 1013 |
//! | a newer connection of the same identity took its place | 4000 |
//! | the session didn't admit it | 1008 |
//! | the session, the room or the stream was closed | 1001 |
//! | a message took too long [while others waited](super::PeerLimits) for memory: try again | 1013 |
//! | nothing was heard for the [idle time-out](WebSocketRoomBuilder::idle_timeout) | 1011 |
//! | the viewer took nothing for the [stall time-out](WebSocketRoomBuilder::stall_timeout) | none: it couldn't arrive |
//! | the viewer broke the WebSocket protocol; text that isn't UTF-8; a message over the size limit | 1002; 1007; 1009 |
//! | the viewer closed | its own code |
//!
//! A viewer that disappears, or that ends its side of the TCP connection without a close frame, is sent no close frame.
//!
//! Every close frame has a reason in words. Only the rest of the frame that was being written is sent before it; the
//! remaining backlog is discarded. A viewer that doesn't complete the close handshake in time is
//! [reset](WebSocketRoomBuilder::close_timeout).
//!
//! # Slow is not dead
//! A viewer on a slow link keeps its connection as long as its link drains: while bytes wait for the viewer, it has to
//! take some within the [stall time-out](WebSocketRoomBuilder::stall_timeout) of 34 s. The session's write time-out
//! doesn't apply. A viewer that takes everything has to be heard of within the [idle
//! time-out](WebSocketRoomBuilder::idle_timeout) of 40 s; it is, because it answers pings. Taking bytes that had to
//! wait counts as well. So a stuck viewer is closed at most 40 s after its last sign of life.
//!
//! Bytes that a proxy takes on behalf of the viewer count as taken: the server can't see how slow the viewer behind the
//! proxy is. A proxy that buffers more than 40 s of the viewer's link can make the viewer look silent; let it buffer
//! less, or raise the idle time-out.
//!
//! # What a connection costs
//! An idle connection has no buffers: reads and writes go through one buffer per thread. For a viewer that doesn't take
//! what it is sent, at most one batch waits here (64 KiB and a message; large payloads are shared by all viewers),
//! besides what the kernel has sent or holds [unsent](WebSocketRoomBuilder::unsent_bytes) (64 KiB). The rest waits in
//! the session, which bounds it. What a viewer sends occupies at most 10 KiB, in at most 16 messages, until it is
//! taken; beyond that the viewer's socket isn't read. A message of more than 2 KiB also takes its length from a
//! [budget](WebSocketRoomBuilder::peer_limits) of 64 MiB for all viewers, and each viewer has one such message at a
//! time.
//!
//! # Viewers that send without pause
//! A viewer that has used up its allowance (1 ms of work, refilled at 0.5 ms per second) takes turns with other such
//! viewers at being read. Each turn is followed by a pause of at least a millisecond. Reading all of them takes at most
//! a quarter of a core, and decoding their long requests at most another quarter. Every other viewer is read at once.
//!
//! # Web pages
//! A browser lets any page that its user visits open a WebSocket to any address, this machine's own included. So with
//! the default settings, a connection is accepted
//! - if it has no `Origin` header: it comes from a program that isn't a browser;
//! - or if its `Origin` is the server itself: the host and port that its `Host` header names, or a [public
//!   URL](WebSocketRoomBuilder::public_url), since behind a proxy `Host` may be the proxy's own name for the server;
//! - or if its `Origin` is [allowed](WebSocketRoomBuilder::allow_origin).
//!
//! Any other connection, with the origin `null` included, gets 403 with a text that names the header and the setting to
//! change. On a loopback address, which can be reached from this machine only, `Host` also has to be a loopback name or
//! that of a public URL. Otherwise a page could make its own name resolve to 127.0.0.1 and pass for the server's own
//! page (DNS rebinding). On other addresses `Host` isn't checked, as their names aren't known. No header that a proxy
//! adds is trusted. The [hook](WebSocketRoomBuilder::on_upgrade) has the last word.
//!
//! # Limits
//! There is no TLS: put a proxy in front. No compression is negotiated: it would cost each viewer its own copy of each
//! payload.

mod batch;
mod bind;
mod builder;
mod connection;
mod decode;
mod directory;
mod farewell;
mod inbox;
mod listen;
mod origin;
mod page;
mod places;
mod reader;
mod sink;
mod socket;
#[cfg(test)]
mod tests;
mod upgrade;
mod writer;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use tokio_util::sync::DropGuard;

use self::batch::SEGMENT_BYTES;
use self::listen::Shared;
use super::{Goodbye, OpenError, Presence, Room, RoomEvent};
use crate::contract::{BroadcastRun, EndReason, Progress};
use crate::ids::ParticipantIdentity;
use crate::protocol::Frame;

pub use self::builder::{BindError, WebSocketRoomBuilder};
pub use self::inbox::WebSocketInbox;
pub use self::sink::{WebSocketSink, WebSocketSinkError};
pub use self::upgrade::{Admission, Rejection, UpgradeRequest};

/// A WebSocket server as a [`Room`]; see the [module](self) for what it does. Clones are handles to the same room.
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
    /// A builder for a room; each setting has a default.
    pub fn builder() -> WebSocketRoomBuilder {
        WebSocketRoomBuilder::new()
    }

    /// A room with the addresses on which it listens, at least one.
    fn new(shared: Arc<Shared>, local_addrs: Box<[SocketAddr]>) -> Self {
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
    /// [`bind_all`](WebSocketRoomBuilder::bind_all) was given different ones.
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
    /// time-out](WebSocketRoomBuilder::close_timeout), unless the session has stopped taking events. The stream of
    /// events ends, and with it the session.
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
        let listener = (events, shared.stopped.clone(), shared.shut.clone().drop_guard());
        Some(futures_util::stream::unfold(listener, |(mut events, stopped, shut)| async {
            let event = match stopped.run_until_cancelled(events.recv()).await {
                Some(event) => event?,
                None => events.try_recv().ok()?,
            };
            Some((event, (events, stopped, shut)))
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
        progress.set_write_timeout(self.0.shared.config.stall_timeout);
        connection.writer().report_to(progress);
        Ok(WebSocketSink::new(connection))
    }

    fn batch_bytes(&self) -> usize {
        SEGMENT_BYTES
    }

    fn start_send_run(
        sink: Pin<&mut WebSocketSink>,
        run: &BroadcastRun<'_, Frame>,
    ) -> Result<usize, WebSocketSinkError> {
        Ok(sink.get_mut().start_send_run(run))
    }

    fn has_vanished(error: &WebSocketSinkError) -> bool {
        error.is_disconnect()
    }

    fn retire(&self, sink: WebSocketSink, reason: EndReason) -> Option<Goodbye> {
        Some(sink.part(reason))
    }
}
