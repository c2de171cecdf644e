//! The builder of [`Telemetry`].

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::catalog::Catalog;
use super::catalog::announcer::Announcer;
use super::clock::now_ns;
use super::handle::{Handle, Telemetry};
use super::version::{IncompatibleVersion, Protocol};
use super::viewer::assets::AssetRequest;
use super::viewer::in_flight::InFlightLimits;
use super::viewer::requests;
use super::viewer::viewers::{Settings, Viewers};
use crate::protocol::server::{Capability, ServerInfo, Status, StatusLevel};
use crate::protocol::{Frame, ServerMessage};
use crate::room::{Inbound, PeerLimits, Room};
use crate::session::{BuildError, Events, Refusal, Session, SessionBuilder};

/// Sets up [`Telemetry`]. Viewers are told exactly the capabilities that are switched on here.
#[must_use = "a builder does nothing until it builds"]
pub struct TelemetryBuilder<R: Room> {
    session: SessionBuilder<R>,
    info: ServerInfo,
    time: bool,
    settings: Settings,
}

impl Telemetry {
    /// Creates a builder of telemetry for `room`'s participants.
    pub fn builder<R: Room<Message = Frame>>(room: R) -> TelemetryBuilder<R> {
        TelemetryBuilder::new(room)
    }
}

impl<R: Room<Message = Frame>> TelemetryBuilder<R> {
    fn new(room: R) -> Self {
        let info = ServerInfo { name: "lanecast".to_owned(), ..ServerInfo::default() };
        Self {
            session: Session::builder(room),
            info,
            time: false,
            settings: Settings {
                assets: None,
                silence_timeout: Duration::from_secs(15),
                peer_limits: PeerLimits::default(),
                in_flight: InFlightLimits { service_calls: 32, asset_fetches: 32 },
            },
        }
    }

    /// Name of the server, which viewers are told. Default: `lanecast`. [`SessionBuilder::name`] is another one: it names
    /// the session in logs.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.info.name = name.into();
        self
    }

    /// Encodings that the server understands in what viewers send. Default: none.
    pub fn supported_encodings<I>(mut self, encodings: I) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.info.supported_encodings = encodings.into_iter().map(Into::into).collect();
        self
    }

    /// Further facts about the server, as keys and values. Default: none.
    pub fn metadata<K: Into<String>, V: Into<String>>(mut self, metadata: impl IntoIterator<Item = (K, V)>) -> Self {
        let metadata = metadata.into_iter().map(|(key, value)| (key.into(), value.into()));
        self.info.metadata = metadata.collect::<BTreeMap<_, _>>();
        self
    }

    /// Distinguishes this run of the server from other runs. Default: the time of [`build`](Self::build) and a random
    /// number.
    pub fn session_id(mut self, id: impl Into<String>) -> Self {
        self.info.session_id = Some(id.into());
        self
    }

    /// Offers assets: `handler` fetches the assets that viewers ask for, or returns the reason why there is none, which
    /// the viewer is told.
    ///
    /// The handler runs beside the viewer's other requests, on the task that handles them: blocking work belongs in
    /// `spawn_blocking`. Its future is dropped when the viewer's instance ends, so it must be safe to cancel. The
    /// session keeps the handler: let it hold the session [weakly](crate::SessionHandle::downgrade), or the session
    /// never ends by the drop of its last handle.
    pub fn assets<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(AssetRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, String>> + Send + 'static,
    {
        self.settings.assets = Some(Arc::new(move |request| Box::pin(handler(request))));
        self
    }

    /// Whether v1 viewers are told the time of the server, by the capability `time`. Off by default. Without it, some
    /// viewers (Lichtblick, for one) stamp messages with their own clock, and show when messages arrived instead of
    /// when they were logged.
    ///
    /// The time of the server is that of its messages: right before a live message, a viewer is told the message's log
    /// time, if that is at least a millisecond later than the last time it was told. So a viewer's clock never steps
    /// back, however the log times jitter; a viewer would take a step back for a jump and clear its plots. A message
    /// that is stamped far ahead makes the clock stand still until the other messages have caught up. A viewer that
    /// gets no messages is told no time. The eleven bytes of a time message count against no limit.
    ///
    /// [`WebSocketRoom`](crate::room::websocket::WebSocketRoom) sends these times. A room of your own whose viewers
    /// speak v1 has to send them itself, by [`Frame::live_time_ns`]; otherwise leave this off.
    pub fn time(mut self, told: bool) -> Self {
        self.time = told;
        self
    }

    /// How long a viewer that has pinged may be silent before it is reported as
    /// [unresponsive](crate::SessionEvent::Unresponsive). Such a viewer isn't reset. Default 15 s: a viewer that pings
    /// every few seconds has then skipped several pings, and a network that lost packets has sent them again.
    ///
    /// Only v2 has pings: v1 viewers are never reported.
    pub fn silence_timeout(mut self, timeout: Duration) -> Self {
        self.settings.silence_timeout = timeout;
        self
    }

    /// The limits by which long requests of viewers are decoded in turns: one request at a time among all that share
    /// `limits`, followed by a rest of three times the decoding time. To share turns, pass the limits of the
    /// [room](crate::room::websocket::WebSocketRoomBuilder::peer_limits), or those of other telemetry in this process.
    ///
    /// By default this telemetry has turns of its own.
    pub fn peer_limits(mut self, limits: PeerLimits) -> Self {
        self.settings.peer_limits = limits;
        self
    }

    /// How many service calls of one viewer may be in flight: see
    /// [`Viewer::admit_service_call`](super::Viewer::admit_service_call). Default 32: more than a person starts at
    /// once, and few enough that one viewer doesn't occupy the services.
    pub fn service_calls_in_flight(mut self, calls: u32) -> Self {
        self.settings.in_flight.service_calls = calls;
        self
    }

    /// How many asset fetches of one viewer may be in flight; further ones are answered with an error. Default 32:
    /// enough to load the meshes of a robot side by side, and few enough that one viewer doesn't occupy the handler.
    pub fn asset_fetches_in_flight(mut self, fetches: u32) -> Self {
        self.settings.in_flight.asset_fetches = fetches;
        self
    }

    /// Changes settings of the session: capacities, time-outs, shards. Telemetry replaces the session's initial
    /// messages and stream handler, whatever is set here. A hook that [accepts](SessionBuilder::accept) connections is
    /// asked about those whose protocol version is supported.
    pub fn configure(mut self, configure: impl FnOnce(SessionBuilder<R>) -> SessionBuilder<R>) -> Self {
        self.session = configure(self.session);
        self
    }

    /// Creates a listener that receives all events from the start: see [`SessionBuilder::events`].
    #[must_use]
    pub fn events(&mut self) -> Events {
        self.session.events()
    }

    /// Starts the session.
    ///
    /// # Errors
    /// As [`SessionBuilder::build`], or if the silence time-out is zero. Nothing has been started then.
    pub fn build(self) -> Result<Telemetry, BuildError>
    where
        R::Incoming: Inbound,
    {
        let Self { session, mut info, time, settings } = self;
        if settings.silence_timeout.is_zero() {
            let value = format!("{:?}", settings.silence_timeout);
            return Err(BuildError::InvalidSetting { setting: "silence_timeout", value, must: "longer than zero" });
        }
        let offered = [(time, Capability::Time), (settings.assets.is_some(), Capability::Assets)];
        info.capabilities = offered.into_iter().filter(|(is_on, _)| *is_on).map(|(_, capability)| capability).collect();
        info.session_id.get_or_insert_with(|| format!("{:x}-{:08x}", now_ns() / 1_000_000, fastrand::u32(..)));
        let catalog = Arc::new(Catalog::new(info));
        let viewers = Arc::new(Viewers::new(Arc::clone(&catalog), settings));
        let (told, asked, retired) = (Arc::clone(&viewers), Arc::clone(&viewers), Arc::clone(&viewers));
        let session = session
            .initial(move |participant| {
                let viewers = Arc::clone(&told);
                async move { viewers.initial(&participant).await }
            })
            .on_stream(move |stream| requests::serve(Arc::clone(&asked), Box::new(stream)))
            .accept_first(|presence| Protocol::of(presence).map(drop).map_err(refusal))
            .add_retired_hook(move |participant, _| retired.remove(participant.client_id()))
            .build()?;
        let (span, session) = (session.span().clone(), session.handle());
        let (ops, operations) = mpsc::unbounded_channel();
        let released = CancellationToken::new();
        let announcer = Announcer {
            session: session.clone(),
            catalog: Arc::clone(&catalog),
            ops: operations,
            released: released.clone(),
        };
        tokio::spawn(announcer.run().instrument(span));
        Ok(Telemetry(Arc::new(Handle { session, catalog, viewers, ops, _released: released.drop_guard() })))
    }
}

/// Tells a viewer that its version isn't supported.
fn refusal(incompatible: IncompatibleVersion) -> Refusal<Frame> {
    let status = Status { level: StatusLevel::Error, message: incompatible.to_string(), id: None };
    Refusal::new(incompatible).with_message(ServerMessage::Status(status).encode())
}

impl<R: Room> fmt::Debug for TelemetryBuilder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryBuilder")
            .field("session", &self.session)
            .field("info", &self.info)
            .field("time", &self.time)
            .field("settings", &self.settings)
            .finish()
    }
}
