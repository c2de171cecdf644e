//! The room: a handle to the connection, and how a session uses it.

use std::sync::Arc;

use futures_core::Stream;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

use super::driver::Driver;
use super::link::{self, Link};
use super::shared::{Config, Connection, Shared};
use super::supervise::{self, Tokens};
use crate::contract::{EndReason, Progress, Uplink};
use crate::ids::ParticipantIdentity;
use crate::protocol::Frame;
use crate::protocol::stream::MAX_STREAM_FRAME;
use crate::room::byte_stream::{ByteStreamInbox, ByteStreamSink, StreamLimits};
use crate::room::{Goodbye, OpenError, Presence, Room, RoomEvent};

/// A LiveKit room as a [`Room`], of which this process is one participant. Clones are handles to the same room.
///
/// The room is left when the last handle is dropped, or by [`close`](Self::close).
#[derive(Clone)]
pub struct LiveKitRoom(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl LiveKitRoom {
    /// A room on a connection that has just been established. Without `tokens`, it isn't supervised.
    pub(super) fn start(link: Link, config: Config, tokens: Option<Tokens>) -> Self {
        let (shared, events) = Shared::new(config);
        let shared = Arc::new(shared);
        let stop = shared.stop.clone().drop_guard();
        let mut driver = Driver::new(Arc::clone(&shared), events);
        // Before anything can ask for the participants.
        driver.take_over(&link);
        tokio::spawn(supervise::run(driver, link, tokens));
        Self(Arc::new(Handle { shared, _stop: stop }))
    }

    /// The official SDK's room, for functions that this crate doesn't offer; `None` while there is no connection. The
    /// value changes when a [supervised](super::LiveKitRoomBuilder::connect_supervised) room connects again.
    #[must_use]
    pub fn sdk(&self) -> Option<Arc<livekit::Room>> {
        self.0.shared.link.load_full()
    }

    /// The state of the connection, and its changes.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.0.shared.connection.subscribe()
    }

    /// Leaves the room. The stream of events ends, and the session with it. Returns once the room is left, or after the
    /// [close time-out](super::LiveKitRoomBuilder::close_timeout) even if the SDK hangs.
    ///
    /// # Cancel safety
    /// The room is left once this future has been polled, even if it is dropped then. Further calls wait for the same
    /// end.
    pub async fn close(&self) {
        self.0.shared.stop.cancel();
        self.0.shared.stopped.cancelled().await;
    }
}

impl Room for LiveKitRoom {
    type Message = Frame;
    type Sink = ByteStreamSink;
    type Incoming = ByteStreamInbox;

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<ByteStreamInbox>> + Send + 'static> {
        let listener = self.0.shared.take_listener()?;
        Some(futures_util::stream::unfold(listener, |mut listener| async {
            let event = listener.recv().await?;
            Some((event, listener))
        }))
    }

    fn participants(&self) -> Vec<Presence> {
        self.0.shared.present().values().cloned().collect()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        self.0.shared.present().get(identity).cloned()
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<ByteStreamSink, OpenError> {
        let shared = &self.0.shared;
        // A request to open a stream waits in the SDK without bound: none is made while the uplink is stalled.
        let flowing = shared.stalled.subscribe().wait_for(|stalled| !stalled).await.is_ok();
        let link = shared.link.load_full().filter(|_| flowing).ok_or(OpenError::NotPresent)?;
        if !shared.is_present(to) {
            return Err(OpenError::NotPresent);
        }
        let limits = StreamLimits { bytes: shared.config.stream_bytes };
        let uplink = shared.uplink.clone();
        let sink = move |writer| ByteStreamSink::new(writer, uplink, progress, limits);
        let opening = link::open_control(link, &to.identity, sink, shared.uplink.clone());
        let sink = opening.await.map_err(OpenError::transport)?;
        // A stream goes to an identity, not to a connection: it may have reached a newer connection.
        if !shared.is_present(to) {
            sink.abandon("superseded").await;
            return Err(OpenError::NotPresent);
        }
        Ok(sink)
    }

    fn uplink(&self) -> Option<Uplink> {
        Some(self.0.shared.uplink.clone())
    }

    fn largest_message(&self) -> usize {
        MAX_STREAM_FRAME
    }

    fn retire(&self, mut sink: ByteStreamSink, reason: EndReason) -> Option<Goodbye> {
        Some(Box::pin(async move {
            if reason == EndReason::SessionClosed && sink.is_idle() {
                if let Err(error) = futures_util::SinkExt::close(&mut sink).await {
                    tracing::debug!(%error, "the end of a stream could not be sent");
                }
            } else {
                sink.abandon(&reason.to_string()).await;
            }
        }))
    }
}

impl std::fmt::Debug for LiveKitRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shared = &self.0.shared;
        f.debug_struct("LiveKitRoom")
            .field("connection", &*shared.connection.borrow())
            .field("present", &shared.present().len())
            .finish_non_exhaustive()
    }
}
