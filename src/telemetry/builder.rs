//! How telemetry is set up.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::announcer::Announcer;
use super::assets::{AssetHandler, AssetRequest};
use super::channel::now_ns;
use super::inbox::Inbox;
use super::state::State;
use super::{Handle, Status, StatusLevel, Telemetry, viewer};
use crate::protocol::server::{Capability, ServerInfo};
use crate::protocol::{Frame, ServerMessage};
use crate::room::{PeerLimits, Room};
use crate::session::{BuildError, Events, Session, SessionBuilder};

/// Sets up [`Telemetry`]. What viewers are told they may ask for is exactly what was switched on here.
#[must_use = "a builder does nothing until it builds"]
pub struct TelemetryBuilder<R: Room> {
    session: SessionBuilder<R>,
    info: ServerInfo,
    assets: Option<AssetHandler>,
    time: bool,
    silence_timeout: Duration,
    limits: PeerLimits,
}

impl<R: Room<Message = Frame>> TelemetryBuilder<R> {
    pub(super) fn new(room: R) -> Self {
        let info = ServerInfo { name: "lanecast".to_owned(), ..ServerInfo::default() };
        Self {
            session: Session::builder(room),
            info,
            assets: None,
            time: false,
            silence_timeout: Duration::from_secs(15),
            limits: PeerLimits::default(),
        }
    }

    /// What the server is called. Default: `lanecast`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.info.name = name.into();
        self
    }

    /// Encodings understood in what viewers send. Default: none.
    pub fn supported_encodings<I>(mut self, encodings: I) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.info.supported_encodings = encodings.into_iter().map(Into::into).collect();
        self
    }

    /// Whatever else is worth telling viewers about the server.
    pub fn metadata<K: Into<String>, V: Into<String>>(mut self, metadata: impl IntoIterator<Item = (K, V)>) -> Self {
        let metadata = metadata.into_iter().map(|(key, value)| (key.into(), value.into()));
        self.info.metadata = metadata.collect::<BTreeMap<_, _>>();
        self
    }

    /// What tells viewers one run of the server from the next. Default: the time of the start and a random number.
    pub fn session_id(mut self, id: impl Into<String>) -> Self {
        self.info.session_id = Some(id.into());
        self
    }

    /// Offers assets: `handler` fetches what viewers ask for, or says why not, which the viewer is told.
    ///
    /// It runs beside the viewer's other requests, on the task that handles them: what blocks belongs into
    /// `spawn_blocking`. It is dropped when the viewer's instance ends, so it must be safe to cancel.
    pub fn assets<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(AssetRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, String>> + Send + 'static,
    {
        self.assets = Some(Arc::new(move |request| Box::pin(handler(request))));
        self
    }

    /// Whether viewers of v1 are told the time of the server, by the capability `time`. Off by default; a viewer without
    /// it stamps messages with its own clock, Lichtblick for one, and shows when they arrived and not when they were
    /// logged.
    ///
    /// The time of the server is that of its messages: a viewer is told the log time of a live message right before the
    /// message, if it is at least a millisecond later than what it was told before. So a viewer's clock never steps back,
    /// which it would take for a jump and clear its plots, however the log times of messages jitter; a message that is
    /// stamped far ahead has it stand still until the others have caught up. A viewer that gets no messages is told
    /// nothing. The eleven bytes of it count against no limit.
    ///
    /// [`WebSocketRoom`](crate::room::websocket::WebSocketRoom) tells it. A room of your own whose viewers speak v1 does
    /// so by [`Frame::live_time_ns`], or this stays off.
    pub fn time(mut self, told: bool) -> Self {
        self.time = told;
        self
    }

    /// How long a viewer that has pinged may say nothing at all before it is reported as
    /// [unresponsive](crate::SessionEvent::Unresponsive). It isn't reset for it. Default 15 s: a viewer that pings every
    /// few seconds has then missed several, and a network that lost something has sent it again.
    ///
    /// Only v2 has pings: viewers of v1 are never reported.
    pub fn silence_timeout(mut self, timeout: Duration) -> Self {
        self.silence_timeout = timeout;
        self
    }

    /// In what turns viewers' long requests are decoded: one at a time of all who share `limits`, each followed by a rest
    /// of three times what it took. Give what the [room](crate::room::websocket::WebSocketRoomBuilder::peer_limits) has,
    /// or what other telemetry of this process has, to share it.
    ///
    /// By default these turns are this telemetry's own.
    pub fn peer_limits(mut self, limits: PeerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Settings of the session: capacities, time-outs, shards. Its initial messages, stream handler and refusal are
    /// telemetry's own, whatever is set here.
    pub fn configure(mut self, configure: impl FnOnce(SessionBuilder<R>) -> SessionBuilder<R>) -> Self {
        self.session = configure(self.session);
        self
    }

    /// A listener that is told of everything from the start: see [`SessionBuilder::events`].
    #[must_use]
    pub fn events(&mut self) -> Events {
        self.session.events()
    }

    /// Starts the session.
    ///
    /// # Errors
    /// As [`SessionBuilder::build`], or the silence time-out is zero. Nothing has been started then.
    pub fn build(self) -> Result<Telemetry<R>, BuildError>
    where
        R::Incoming: Inbox,
    {
        let Self { session, mut info, assets, time, silence_timeout, limits } = self;
        if silence_timeout.is_zero() {
            let value = format!("{silence_timeout:?}");
            return Err(BuildError::InvalidSetting { setting: "silence_timeout", value, must: "longer than zero" });
        }
        let offered = [(time, Capability::Time), (assets.is_some(), Capability::Assets)];
        info.capabilities = offered.into_iter().filter(|(is_on, _)| *is_on).map(|(_, capability)| capability).collect();
        info.session_id.get_or_insert_with(|| format!("{:x}-{:08x}", now_ns() / 1_000_000, fastrand::u32(..)));
        let state = Arc::new(State::new(info, assets, silence_timeout, limits));
        let (told, asked) = (Arc::clone(&state), Arc::clone(&state));
        let session = session
            .initial(move |participant| {
                let state = Arc::clone(&told);
                async move { state.initial(&participant).await }
            })
            .on_stream(move |stream| viewer::serve(Arc::clone(&asked), stream))
            .refusal(|_, incompatible| {
                let status = Status { level: StatusLevel::Error, message: incompatible.to_string(), id: None };
                Some(ServerMessage::Status(status).encode())
            })
            .build()?;
        let (ops, operations) = mpsc::unbounded_channel();
        let released = CancellationToken::new();
        let announcer = Announcer {
            session: session.clone(),
            state: Arc::clone(&state),
            ops: operations,
            released: released.clone(),
        };
        tokio::spawn(announcer.run());
        Ok(Telemetry(Arc::new(Handle { session, state, ops, _released: released.drop_guard() })))
    }
}

impl<R: Room> fmt::Debug for TelemetryBuilder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryBuilder")
            .field("session", &self.session)
            .field("info", &self.info)
            .field("assets", &self.assets.is_some())
            .field("time", &self.time)
            .field("silence_timeout", &self.silence_timeout)
            .field("limits", &self.limits)
            .finish()
    }
}
