//! The settings of a room, and connecting it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::error::LiveKitError;
use super::link::Link;
use super::room::LiveKitRoom;
use super::shared::Config;
use super::supervise::Tokens;
use crate::room::PeerLimits;

/// Sets up a [`LiveKitRoom`].
#[derive(Clone)]
#[must_use = "no room is joined before connect"]
pub struct LiveKitRoomBuilder {
    url: String,
    config: Config,
}

impl LiveKitRoom {
    /// A builder for a room on the server at `url`, such as `wss://livekit.example.com`; each setting has a default.
    pub fn builder(url: impl Into<String>) -> LiveKitRoomBuilder {
        LiveKitRoomBuilder { url: url.into(), config: Config::default() }
    }
}

impl LiveKitRoomBuilder {
    /// How long an attempt to connect may take in total. Default 15 s: three of the SDK's own tries at 5 s each.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.connect_timeout = timeout;
        self
    }

    /// How long the SDK may take to leave the room. Default 5 s: anything it says later is of no use.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.config.close_timeout = timeout;
        self
    }

    /// How long no write may end before the uplink counts as stalled. Default 1 s: longer than a chunk takes on a bad
    /// mobile network, short enough to be reported while the stall lasts. At least half a second.
    pub fn stall_after(mut self, quiet: Duration) -> Self {
        self.config.stall_after = quiet.max(Duration::from_millis(500));
        self
    }

    /// How long the uplink may be stalled before the connection counts as lost. Default 30 s, as long as a session has
    /// [patience](crate::SessionBuilder::uplink_patience). The SDK detects a dead connection, but not while more data
    /// waits in its data channel than the channel takes: then it waits for ever.
    pub fn lost_after(mut self, stalled: Duration) -> Self {
        self.config.lost_after = stalled;
        self
    }

    /// How many bytes a stream carries before its participant is reset and gets a fresh stream. Default 4 GB: readers
    /// of the official SDK give up a stream above 5 GB.
    pub fn stream_bytes(mut self, bytes: u64) -> Self {
        self.config.stream_bytes = bytes;
        self
    }

    /// Limits for what all participants together may have in flight towards this process. Default: 64 MiB, for this
    /// room alone. Data that the SDK has received and this room hasn't read yet doesn't count.
    pub fn peer_limits(mut self, limits: PeerLimits) -> Self {
        self.config.limits = limits;
        self
    }

    /// Changes settings of the SDK, such as encryption and ICE servers. Applied at each connect, after this room's own
    /// settings, which subscribe to no media.
    pub fn configure(mut self, configure: impl Fn(&mut livekit::RoomOptions) + Send + Sync + 'static) -> Self {
        self.config.configure = Some(Arc::new(configure));
        self
    }

    /// Joins the room that `token` is for. If the connection is lost permanently, the session ends with
    /// [`LiveKitError::Disconnected`]; after a stall that lasts [too long](Self::lost_after), with
    /// [`LiveKitError::Stalled`].
    ///
    /// # Errors
    /// [`LiveKitError`] if the token was refused, or no connection was established.
    ///
    /// # Cancel safety
    /// If this future is dropped before it is done, the room is left again.
    pub async fn connect(self, token: &str) -> Result<LiveKitRoom, LiveKitError> {
        let link = Link::connect(&self.url, token, &self.config).await?;
        Ok(LiveKitRoom::start(link, self.config, None))
    }

    /// Joins a room as [`connect`](Self::connect) does, and connects again when the connection is lost permanently,
    /// each time with a fresh token from `tokens`, until it succeeds. It waits half a second before the first attempt,
    /// doubled up to 30 s, less up to half at random. The session stays with all its channels and handlers;
    /// participants leave and come back.
    ///
    /// # Errors
    /// [`LiveKitError`] if the first attempt fails, so that a wrong address or key shows at once. To wait for a server,
    /// call this again, on a clone of the builder.
    ///
    /// # Cancel safety
    /// If this future is dropped before it is done, the room is left again.
    pub async fn connect_supervised<F, Fut, E>(self, tokens: F) -> Result<LiveKitRoom, LiveKitError>
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let tokens = Tokens::new(self.url, tokens);
        let link = tokens.connect(&self.config).await?;
        Ok(LiveKitRoom::start(link, self.config, Some(tokens)))
    }
}

/// Shows the settings, not the URL, which may hold a password.
impl fmt::Debug for LiveKitRoomBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveKitRoomBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
