//! A room over WebSockets: a server on one or more TCP addresses.
//!
//! Each viewer has one connection, and on it one stream in either direction: a [`Frame`] is a message, text or binary.
//! Which dialect it speaks is negotiated as a WebSocket subprotocol, the best of those it offers; who it is, an
//! embedder's [hook](WebSocketRoomBuilder::on_upgrade) says.
//!
//! # How connections end
//! | what happened | close code |
//! |---|---|
//! | the viewer couldn't keep up, or a write failed (a reset): come back and start afresh | 1013 |
//! | a newer connection of the same identity took its place | 4000 |
//! | the session didn't admit it | 1008 |
//! | the session, the room or the stream was closed | 1001 |
//! | a message took too long [while others waited](super::PeerLimits) for memory: try again | 1013 |
//! | nothing was heard for the [idle time-out](WebSocketRoomBuilder::idle_timeout) | 1011 |
//! | it took nothing for the [stall time-out](WebSocketRoomBuilder::stall_timeout) | none: it wouldn't reach the viewer |
//! | the viewer broke the WebSocket protocol; text that isn't UTF-8; a message over the size limit | 1002; 1007; 1009 |
//! | the viewer closed | its own code |
//!
//! A viewer that is gone without a word, or ends its side without a close frame, gets none.
//!
//! Every close frame has a reason in words. Before it comes the rest of the frame that was being written, and nothing
//! else: what waited is discarded. A viewer that doesn't take its leave in time is
//! [reset](WebSocketRoomBuilder::close_timeout).
//!
//! # Slow is not dead
//! A viewer on a slow link keeps its connection for as long as its link drains: while bytes wait for it, it has to take
//! some within the [stall time-out](WebSocketRoomBuilder::stall_timeout) of 34 s. The session's write time-out doesn't
//! apply. A viewer that takes everything has to be heard of within the
//! [idle time-out](WebSocketRoomBuilder::idle_timeout) of 40 s, which it is because it answers pings; to take bytes
//! that had to wait counts as well. So a viewer that is stuck is let go 40 s after the last that was seen of it at most.
//!
//! What a proxy takes in place of the viewer counts as taken: how slow the viewer behind it is can't be seen from here.
//! A proxy that buffers more than 40 s of the viewer's link can make it look silent; let it buffer less, or raise the
//! idle time-out.
//!
//! # What a connection costs
//! An idle one has no buffers: what is read and written goes through one buffer per thread. A viewer that doesn't take
//! what it is sent has at most one batch waiting here (64 KiB and a message; large payloads are shared by all), and what
//! the kernel has sent or holds [unsent](WebSocketRoomBuilder::unsent_bytes) (64 KiB); the rest waits in the session,
//! which bounds it. What a viewer sends takes 10 KiB at most while it isn't taken, of no more than 16 messages; then its
//! socket isn't read any more. A message of more than 2 KiB takes its length besides, of a
//! [budget](WebSocketRoomBuilder::peer_limits) of 64 MiB for all, and each viewer has one such message at a time.
//!
//! # Viewers that send without pause
//! A viewer that has used up its allowance (1 ms of work, refilled at 0.5 ms per second) is read in turns with other such
//! viewers. A pause of a millisecond at least follows each turn: reading them all takes at most a quarter of a core, and
//! decoding their long requests at most another quarter. Every other viewer is read at once.
//!
//! # Web pages
//! A browser lets any page that its user visits open a WebSocket to any address, this machine's own included. So a
//! connection is let in, with the default settings,
//! - if it has no `Origin` header: it comes from a program that isn't a browser;
//! - or if its `Origin` is the server itself: the host and port that its `Host` header names, or a
//!   [public URL](WebSocketRoomBuilder::public_url), since behind a proxy `Host` may be the proxy's own name for us;
//! - or if its `Origin` is [allowed](WebSocketRoomBuilder::allow_origin).
//!
//! Anything else, `null` included, gets 403, which names the header and what to set. Where all can be reached from this
//! machine alone, on a loopback address, `Host` has to be a loopback name or a public URL's too: else a page could
//! have its own name point to 127.0.0.1 and pass for the server's own (DNS rebinding). On other addresses that isn't
//! checked, as their names aren't known. No header that a proxy adds is trusted. The
//! [hook](WebSocketRoomBuilder::on_upgrade) has the last word.
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
use crate::ids::ParticipantIdentity;
use crate::lane::{BroadcastRun, EndReason, Progress};
use crate::participant::Participant;
use crate::protocol::Frame;

pub use self::builder::{BindError, WebSocketRoomBuilder};
pub use self::inbox::WebSocketInbox;
pub use self::sink::{WebSocketSink, WebSocketSinkError};
pub use self::upgrade::{Admission, Rejection, UpgradeRequest};

/// See the [module](self). Clones are the same room.
///
/// It closes when the last clone is dropped, or by [`shutdown`](Self::shutdown): nobody is let in any more, and every
/// connection is closed with 1001. When the session drops its [events](Room::events), which is how it begins to end,
/// nobody is let in any more either, and connections that it hasn't opened are closed; the others get what the session
/// still has for them, and are closed when it lets go of them.
#[derive(Clone, Debug)]
pub struct WebSocketRoom(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    local_addrs: Box<[SocketAddr]>,
    _stop: DropGuard,
}

impl WebSocketRoom {
    /// Sets one up; what isn't set has a default.
    pub fn builder() -> WebSocketRoomBuilder {
        WebSocketRoomBuilder::new()
    }

    /// A room that listens on one address at least.
    fn new(shared: Arc<Shared>, local_addrs: Box<[SocketAddr]>) -> Self {
        let stop = shared.stop.clone().drop_guard();
        Self(Arc::new(Handle { shared, local_addrs, _stop: stop }))
    }

    /// Where it listens, with the port that was picked if it was to be any; the first address if there are several.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addrs[0]
    }

    /// All addresses on which it listens, at least one. Their ports are the same, unless
    /// [`bind_all`](WebSocketRoomBuilder::bind_all) was given different ones.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.0.local_addrs
    }

    /// How many viewers are connected, those the session hasn't admitted yet included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.shared.directory.len()
    }

    /// Closes the room and waits until every connection has ended; that takes the
    /// [close time-out](WebSocketRoomBuilder::close_timeout) at most, unless the session has stopped taking events. The
    /// stream of events ends, and with it the session.
    ///
    /// # Cancel safety
    /// The room closes once this has been polled, whether it is waited for or not. Further calls wait for the same.
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
        // The guard is dropped with the stream: nobody is let into a room without a session.
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

    fn retire(&self, sink: WebSocketSink, _participant: &Participant<Frame>, reason: EndReason) -> Option<Goodbye> {
        Some(sink.part(reason))
    }
}
