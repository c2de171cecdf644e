//! Settings of a LiveKit room.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::room::PeerLimits;

type Configure = Arc<dyn Fn(&mut livekit::RoomOptions) + Send + Sync>;

/// Settings of a [`LiveKitRoom`](super::LiveKitRoom), each with a default.
#[derive(Clone)]
pub struct LiveKitOptions {
    pub(super) connect_timeout: Duration,
    pub(super) close_timeout: Duration,
    pub(super) stall_after: Duration,
    pub(super) lost_after: Duration,
    pub(super) stream_bytes: u64,
    pub(super) limits: PeerLimits,
    pub(super) configure: Option<Configure>,
}

impl Default for LiveKitOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            close_timeout: Duration::from_secs(5),
            stall_after: Duration::from_secs(1),
            lost_after: Duration::from_secs(30),
            stream_bytes: 4_000_000_000,
            limits: PeerLimits::default(),
            configure: None,
        }
    }
}

impl LiveKitOptions {
    /// How long an attempt to connect may take in total. Default 15 s: three of the SDK's own tries at 5 s each.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long the SDK may take to leave the room. Default 5 s: anything it says later is of no use.
    #[must_use]
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }

    /// How long no write may end before the uplink counts as stalled. Default 1 s: longer than a chunk takes on a bad
    /// mobile network, short enough to be reported while the stall lasts. At least half a second.
    #[must_use]
    pub fn stall_after(mut self, quiet: Duration) -> Self {
        self.stall_after = quiet.max(Duration::from_millis(500));
        self
    }

    /// How long the uplink may be stalled before the connection counts as lost. Default 30 s, as long as a session has
    /// [patience](crate::SessionBuilder::uplink_patience). The SDK detects a dead connection, but not while more data
    /// waits in its data channel than the channel takes: then it waits for ever.
    #[must_use]
    pub fn lost_after(mut self, stalled: Duration) -> Self {
        self.lost_after = stalled;
        self
    }

    /// How many bytes a stream carries before its participant is reset and gets a fresh stream. Default 4 GB: readers
    /// of the official SDK give up a stream above 5 GB.
    #[must_use]
    pub fn stream_bytes(mut self, bytes: u64) -> Self {
        self.stream_bytes = bytes;
        self
    }

    /// Limits for what all participants together may have in flight towards this process. Default: 64 MiB, for this
    /// room alone. Data that the SDK has received and this room hasn't read yet doesn't count.
    #[must_use]
    pub fn peer_limits(mut self, limits: PeerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Changes settings of the SDK, such as encryption and ICE servers. Applied at each connect, after this room's own
    /// settings, which subscribe to no media.
    #[must_use]
    pub fn configure(mut self, configure: impl Fn(&mut livekit::RoomOptions) + Send + Sync + 'static) -> Self {
        self.configure = Some(Arc::new(configure));
        self
    }
}

impl fmt::Debug for LiveKitOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveKitOptions")
            .field("connect_timeout", &self.connect_timeout)
            .field("close_timeout", &self.close_timeout)
            .field("stall_after", &self.stall_after)
            .field("lost_after", &self.lost_after)
            .field("stream_bytes", &self.stream_bytes)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
