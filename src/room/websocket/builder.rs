//! How a room is set up.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::ToSocketAddrs;

use super::WebSocketRoom;
use super::bind;
use super::listen::{self, Shared};
use super::origin::Policy;
use super::upgrade::{Admission, Rejection, UpgradeRequest};
use crate::room::PeerLimits;
use crate::runtime::{self, Lacking};

type Hook = Arc<dyn Fn(&UpgradeRequest) -> Result<Admission, Rejection> + Send + Sync>;

/// As good as never: times are added to a clock, which overflows otherwise.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Sets up a [`WebSocketRoom`].
#[derive(Debug)]
#[must_use = "nothing listens before bind"]
pub struct WebSocketRoomBuilder(Config);

pub(super) struct Config {
    pub(super) max_message_bytes: usize,
    pub(super) max_connections: usize,
    pub(super) handshake_timeout: Duration,
    pub(super) ping_interval: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) close_timeout: Duration,
    pub(super) send_buffer_bytes: Option<usize>,
    pub(super) unsent_bytes: u32,
    pub(super) stall_timeout: Duration,
    pub(super) limits: PeerLimits,
    pub(super) trusted_proxies: Vec<IpAddr>,
    pub(super) policy: Policy,
    /// The first origin or URL that was given and makes no sense.
    wrong: Option<BindError>,
    hook: Option<Hook>,
}

impl Config {
    /// Says who a viewer is: what the hook says, or else somebody called after `name`.
    pub(super) fn admit(&self, request: &UpgradeRequest, name: &str) -> Result<Admission, Rejection> {
        self.hook.as_ref().map_or_else(|| Ok(listen::anonymous(request, name)), |hook| hook(request))
    }

    /// Keeps times to what is as good as never.
    fn bound_times(&mut self) {
        let times =
            [&mut self.handshake_timeout, &mut self.ping_interval, &mut self.idle_timeout, &mut self.close_timeout];
        times.into_iter().chain([&mut self.stall_timeout]).for_each(|time| *time = (*time).min(LONGEST));
    }

    fn check(&mut self) -> Result<(), BindError> {
        if let Some(wrong) = self.wrong.take() {
            return Err(wrong);
        }
        let wrong = if self.max_message_bytes == 0 {
            "max_message_bytes is 0: no message would be accepted"
        } else if !(1..=tokio::sync::Semaphore::MAX_PERMITS).contains(&self.max_connections) {
            "max_connections is 0 or more than can be counted"
        } else if self.handshake_timeout.is_zero() {
            "handshake_timeout is 0: nobody could be let in"
        } else if self.send_buffer_bytes.is_some_and(|bytes| !(1..=i32::MAX as usize).contains(&bytes)) {
            "send_buffer_bytes is 0, or 2 GiB or more: the kernel takes neither for what it says"
        } else if self.ping_interval.is_zero() {
            "ping_interval is 0: give the time between pings"
        } else if self.idle_timeout <= self.ping_interval {
            "idle_timeout isn't longer than ping_interval: a silent viewer could never answer in time"
        } else if self.stall_timeout.is_zero() {
            "stall_timeout is 0: give the time in which a viewer has to take something"
        } else if self.unsent_bytes == 0 {
            "unsent_bytes is 0: nothing could be written"
        } else {
            return Ok(());
        };
        Err(BindError::InvalidConfig(wrong))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("max_message_bytes", &self.max_message_bytes)
            .field("max_connections", &self.max_connections)
            .field("handshake_timeout", &self.handshake_timeout)
            .field("ping_interval", &self.ping_interval)
            .field("idle_timeout", &self.idle_timeout)
            .field("close_timeout", &self.close_timeout)
            .field("send_buffer_bytes", &self.send_buffer_bytes)
            .field("unsent_bytes", &self.unsent_bytes)
            .field("stall_timeout", &self.stall_timeout)
            .field("limits", &self.limits)
            .field("trusted_proxies", &self.trusted_proxies)
            .field("policy", &self.policy)
            .field("wrong", &self.wrong)
            .field("hook", &self.hook.is_some())
            .finish()
    }
}

impl WebSocketRoomBuilder {
    pub(super) fn new() -> Self {
        Self(Config {
            max_message_bytes: 1 << 20,
            max_connections: 10_000,
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(40),
            close_timeout: Duration::from_secs(5),
            send_buffer_bytes: None,
            unsent_bytes: 64 << 10,
            stall_timeout: Duration::from_secs(34),
            limits: PeerLimits::default(),
            trusted_proxies: Vec::new(),
            policy: Policy::default(),
            wrong: None,
            hook: None,
        })
    }

    /// The longest message from a viewer, in bytes, fragments put together; a longer one closes its connection with
    /// 1009. Memory is taken as bytes arrive, whatever a header announces. More than 4 GiB count as 4 GiB.
    ///
    /// 1 MiB by default: a request for some thirty thousand channels. All messages on their way take from one
    /// [budget](Self::peer_limits). Raise it where viewers publish.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.0.max_message_bytes = bytes;
        self
    }

    /// What all viewers together may have under way towards this process, and the time that those who send without pause
    /// may take of it. Rooms that are given clones of one value share it.
    ///
    /// 64 MiB by default, for this room alone.
    pub fn peer_limits(mut self, limits: PeerLimits) -> Self {
        self.0.limits = limits;
        self
    }

    /// How many connections there may be, those in the hand-shake included; beyond, a viewer gets HTTP 503.
    ///
    /// The last tenth is reserved for addresses that hold less than a tenth, so a single address can't take every place.
    /// An IPv6 address counts as its /64 network. Loopback and [proxies](Self::trusted_proxy) aren't counted by address.
    /// With fewer than ten places nothing is reserved.
    ///
    /// 10,000 by default: the size this crate is made and measured for. The process needs as many open files, and 64
    /// for viewers that are being refused, one for each address it listens on, and the program's own.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.0.max_connections = connections;
        self
    }

    /// How long a connection may take until it is a WebSocket.
    ///
    /// 10 s by default: several retransmissions on a bad link, and few enough places taken by those who never ask.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.0.handshake_timeout = timeout;
        self
    }

    /// How long a viewer may be silent before it is pinged.
    ///
    /// 15 s by default: half of the 30 s after which the most impatient of common proxies drop an idle connection.
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.0.ping_interval = interval;
        self
    }

    /// How long a viewer may be silent before its connection is closed with 1011; longer than
    /// [`ping_interval`](Self::ping_interval).
    ///
    /// Anything it sends counts, and so does taking bytes that its socket had refused before: the answer of a slow viewer
    /// stands behind what it is sent. Such a viewer is closed no earlier than the
    /// [stall time-out](Self::stall_timeout) after the last bytes it took. While the embedder doesn't take what the viewer
    /// has sent, and while this process doesn't run, time stands still.
    ///
    /// 40 s by default: two pings and 10 s for the answer to the second.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.0.idle_timeout = timeout;
        self
    }

    /// How long a goodbye may take: the rest of a frame, the close frame and the viewer's own end. Then the connection
    /// is reset, and a viewer that reads on finds no stale data. A viewer that is refused has as long to read why.
    ///
    /// A viewer that is behind has the [stall time-out](Self::stall_timeout) instead, and again with whatever it takes,
    /// for one minute in all; one that was ended because it takes nothing has no time at all. When the room is closed,
    /// the close time-out holds for everybody.
    ///
    /// 5 s by default: a viewer that is there takes one round trip.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.0.close_timeout = timeout;
        self
    }

    /// How long a viewer may take nothing while bytes wait for it; then it is reset. This replaces the session's
    /// [`write_timeout`](crate::SessionBuilder::write_timeout), which doesn't apply to this room's viewers.
    ///
    /// A viewer takes bytes when our kernel does, after it had refused some. A kernel takes bytes in large steps: at
    /// 64 kbit/s they are 9 to 19 s apart, and up to 33 s for a viewer that reads 8 kB/s into a buffer of 256 KiB
    /// (`perf/slow-links.md`). What waits meanwhile is bounded by the session.
    ///
    /// 34 s by default: such a viewer has emptied its buffer by then, and a stuck one is ended within 40 s, even if its
    /// buffers took some seconds to fill.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.0.stall_timeout = timeout;
        self
    }

    /// How many bytes the kernel may hold per connection that it hasn't sent yet (`TCP_NOTSENT_LOWAT`). Linux and Android
    /// only; elsewhere it is ignored.
    ///
    /// 64 KiB by default. What the kernel holds is stale before it is sent, it stands before every answer to a ping, and
    /// a stalled viewer costs so much; of less than that the kernel takes bytes in longer steps from a slow viewer. What
    /// is on its way and not acknowledged isn't limited by this, so that the rate of a fast link with a long delay isn't
    /// either.
    pub fn unsent_bytes(mut self, bytes: u32) -> Self {
        self.0.unsent_bytes = bytes;
        self
    }

    /// How much the kernel may hold per connection of what its viewer hasn't acknowledged, in bytes (`SO_SNDBUF`; Linux
    /// doubles the number for its own bookkeeping).
    ///
    /// Left to the kernel by default, which lets it grow with the link. A fixed, small buffer bounds what thousands of
    /// viewers cost, and the rate of each: so many bytes in a round trip.
    pub fn send_buffer_bytes(mut self, bytes: usize) -> Self {
        self.0.send_buffer_bytes = Some(bytes);
        self
    }

    /// Names an address that connections of many viewers come from, because a proxy of this server's has it. It may take
    /// all [connections](Self::max_connections). May be called several times; nothing else is believed of it: what a
    /// proxy says of the viewers behind it (`X-Forwarded-For`) isn't read.
    ///
    /// None by default; a proxy on this machine needs no mention.
    pub fn trusted_proxy(mut self, proxy: IpAddr) -> Self {
        self.0.trusted_proxies.push(proxy);
        self
    }

    /// Names a URL under which viewers reach this server, such as `https://robot.example.com/telemetry`: pages of that
    /// host and port are its own, and requests may name that host. The scheme is one of `http`, `https`, `ws` and
    /// `wss`. May be called several times; see [web pages](super#web-pages).
    ///
    /// None by default. Behind a proxy for browsers it is needed: a proxy names itself, or whom it was asked for, and
    /// neither can be known here.
    pub fn public_url(mut self, url: impl Into<String>) -> Self {
        let url = url.into();
        if let Err(reason) = self.0.policy.add_public_url(&url) {
            self.0.wrong.get_or_insert(BindError::InvalidPublicUrl { url, reason });
        }
        self
    }

    /// Lets pages of this origin connect, such as `https://app.example.com`: scheme, host, and port unless it is the
    /// scheme's own. `file://` is that of local pages and of some desktop viewers. May be called several times; see
    /// [web pages](super#web-pages).
    pub fn allow_origin(mut self, origin: impl Into<String>) -> Self {
        let origin = origin.into();
        if let Err(reason) = self.0.policy.allow_origin(&origin) {
            self.0.wrong.get_or_insert(BindError::InvalidOrigin { origin, reason });
        }
        self
    }

    /// Lets pages connect that were fetched from the machine they are shown on: `localhost`, `127.0.0.1` and the like,
    /// on any port, by `http` or `https`. For a page under development, and for tools.
    pub fn allow_loopback_origins(mut self) -> Self {
        self.0.policy.allow_loopback_origins();
        self
    }

    /// Lets every page of every site connect, by whatever name. For what everybody may see, or where the
    /// [hook](Self::on_upgrade) asks each viewer for something that a foreign page can't know; a cookie isn't.
    pub fn allow_any_origin(mut self) -> Self {
        self.0.policy.allow_any_origin();
        self
    }

    /// Says who a viewer is, by its request, or turns it away. Runs in the connection's task, within the hand-shake:
    /// it must not block. If it panics, that connection is dropped.
    ///
    /// It has the last word: it is asked about viewers that the room turns away by their `Origin` or `Host` as well
    /// ([`refusal`](UpgradeRequest::refusal)), and can let them in by [`Admission::from_any_origin`].
    ///
    /// Without it, every connection is somebody else: an identity of its own, at random.
    ///
    /// ```
    /// use lanecast::ParticipantIdentity;
    /// use lanecast::room::websocket::{Admission, Rejection, UpgradeRequest, WebSocketRoom};
    ///
    /// fn who(request: &UpgradeRequest) -> Result<Admission, Rejection> {
    ///     let name = request.header("x-viewer").ok_or_else(|| Rejection::new(401, "say who you are"))?;
    ///     let identity = ParticipantIdentity::new(name).map_err(|error| Rejection::new(400, error.to_string()))?;
    ///     Ok(Admission::new(identity).with_attribute("address", request.peer().to_string()))
    /// }
    ///
    /// let builder = WebSocketRoom::builder().on_upgrade(who);
    /// # let _ = builder;
    /// ```
    pub fn on_upgrade<F>(mut self, hook: F) -> Self
    where
        F: Fn(&UpgradeRequest) -> Result<Admission, Rejection> + Send + Sync + 'static,
    {
        self.0.hook = Some(Arc::new(hook));
        self
    }

    /// Listens on `address`, for example `"0.0.0.0:8765"`; port 0 picks one, see
    /// [`local_addr`](WebSocketRoom::local_addr). Connections are let in from now on; they wait for the session.
    ///
    /// If a name such as `localhost:8765` has several addresses, the room listens on [all](WebSocketRoom::local_addrs):
    /// viewers may try any. One port is picked for all of them if it is 0. An address that this machine doesn't have,
    /// as `::1` where IPv6 is off, is left out unless it is the only one; any other failure is an error.
    ///
    /// # Errors
    /// [`BindError`], which says on which address and why; or that there is no Tokio runtime here, or one without
    /// timers. The room lives in the runtime it is called in.
    ///
    /// # Panics
    /// If the runtime has no IO (`enable_io`).
    ///
    /// # Cancel safety
    /// A future dropped before it is done has left nothing behind.
    pub async fn bind(mut self, address: impl ToSocketAddrs + fmt::Display) -> Result<WebSocketRoom, BindError> {
        runtime::current()?;
        self.0.check()?;
        let name = address.to_string();
        let addresses = tokio::net::lookup_host(address).await.map(Iterator::collect::<Vec<_>>);
        let addresses = addresses.map_err(|source| BindError::of(name.clone(), source))?;
        self.listen(&addresses, |address| if address == name { name } else { format!("{address} ({name})") })
    }

    /// Listens on all of these addresses, as [`bind`](Self::bind) does on those of a name. Those whose port is 0 get
    /// one port, the same for all.
    ///
    /// # Errors
    /// As those of [`bind`](Self::bind).
    ///
    /// # Panics
    /// If the runtime has no IO (`enable_io`).
    pub fn bind_all(mut self, addresses: &[SocketAddr]) -> Result<WebSocketRoom, BindError> {
        runtime::current()?;
        self.0.check()?;
        self.listen(addresses, |address| address)
    }

    /// `name` says how an address is to be called in an error.
    fn listen(
        mut self,
        addresses: &[SocketAddr],
        name: impl FnOnce(String) -> String,
    ) -> Result<WebSocketRoom, BindError> {
        if addresses.is_empty() {
            return Err(BindError::InvalidConfig("there is no address to listen on: give one"));
        }
        self.0.bound_times();
        let listeners =
            bind::listen(addresses).map_err(|(address, source)| BindError::of(name(address.to_string()), source))?;
        let local_addrs: Box<[_]> = listeners.iter().map(|listener| listener.address).collect();
        let shared = Arc::new(Shared::new(self.0));
        tokio::spawn(listen::run(Arc::clone(&shared), listeners));
        tracing::info!(addresses = ?local_addrs, "listening for WebSockets");
        Ok(WebSocketRoom::new(shared, local_addrs))
    }
}

/// Why a room can't listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody listens there already: choose another port, or 0 for any.
    #[error("cannot listen on {address}: somebody does already (choose another port, or 0 for any that is free)")]
    AddressInUse {
        /// Where it was to listen.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The address can't be listened on: it isn't one of this machine, can't be resolved, or isn't allowed.
    #[error("cannot listen on {address}: {source}")]
    Unavailable {
        /// Where it was to listen.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The room runs its tasks on tokio: bind it inside a runtime (with io and time enabled).
    #[error("no tokio runtime here: bind the room inside one")]
    NoRuntime,
    /// The runtime has no timers: enable them with `enable_time` or `enable_all` where it is built.
    #[error("this tokio runtime has no timers: enable them with `enable_time` where it is built")]
    NoTimers,
    /// What was given to [`public_url`](WebSocketRoomBuilder::public_url) is no URL of a server.
    #[error("{url:?} is no public URL: {reason}")]
    InvalidPublicUrl {
        /// What was given.
        url: String,
        /// What to give instead.
        reason: &'static str,
    },
    /// What was given to [`allow_origin`](WebSocketRoomBuilder::allow_origin) is no origin that can be allowed.
    #[error("{origin:?} is no origin that can be allowed: {reason}")]
    InvalidOrigin {
        /// What was given.
        origin: String,
        /// What to give instead.
        reason: &'static str,
    },
    /// The settings contradict each other.
    #[error("cannot listen with these settings: {0}")]
    InvalidConfig(&'static str),
}

impl From<Lacking> for BindError {
    fn from(lacking: Lacking) -> Self {
        match lacking {
            Lacking::Runtime => Self::NoRuntime,
            Lacking::Timers => Self::NoTimers,
        }
    }
}

impl BindError {
    fn of(address: String, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::AddressInUse { address, source },
            _ => Self::Unavailable { address, source },
        }
    }
}
