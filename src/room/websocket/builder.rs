//! The settings of a room, and opening it.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::ToSocketAddrs;

use super::bind::Listener;
use super::origin::Policy;
use super::rejection::Rejection;
use super::room::WebSocketRoom;
use super::shared::{Config, Shared};
use super::upgrade::{Admission, UpgradeRequest};
use super::{bind, listen};
use crate::room::PeerLimits;
use crate::runtime::{self, Lacking};
use crate::time::LONGEST;

/// Sets up a [`WebSocketRoom`].
#[derive(Debug)]
#[must_use = "nothing listens before `bind` or `listen_on`"]
pub struct WebSocketRoomBuilder {
    config: Config,
    /// The error for the first invalid origin or URL that was given.
    wrong: Option<BindError>,
}

impl WebSocketRoom {
    /// A builder for a room; each setting has a default.
    pub fn builder() -> WebSocketRoomBuilder {
        WebSocketRoomBuilder::new()
    }
}

impl WebSocketRoomBuilder {
    fn new() -> Self {
        let config = Config {
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
            hook: None,
        };
        Self { config, wrong: None }
    }

    /// The longest message from a viewer, in bytes, all fragments together. A longer one closes the viewer's connection
    /// with 1009. Memory is taken as bytes arrive, whatever length a header announces. More than 4 GiB count as 4 GiB.
    ///
    /// 1 MiB by default: a request for some thirty thousand channels. All messages that are being received share one
    /// [budget](Self::peer_limits). Raise the limit where viewers publish.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.config.max_message_bytes = bytes;
        self
    }

    /// The memory that all viewers' incoming messages together may take in this process, and the processing time for
    /// viewers that send without pause. Rooms that are given clones of one value share it.
    ///
    /// 64 MiB by default, for this room alone.
    pub fn peer_limits(mut self, limits: PeerLimits) -> Self {
        self.config.limits = limits;
        self
    }

    /// The most connections at a time, those in the handshake included. Further viewers get HTTP 503.
    ///
    /// The last tenth is reserved for addresses that hold less than a tenth, so a single address can't take every
    /// place. An IPv6 address counts as its /64 network. Loopback and [proxies](Self::trusted_proxy) aren't counted by
    /// address. With fewer than ten places nothing is reserved.
    ///
    /// 10,000 by default: the size that this crate is made and measured for. The process needs one open file for each
    /// connection, 64 for viewers that are being refused, one for each address it listens on, and the program's own.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.config.max_connections = connections;
        self
    }

    /// The time that a connection has to become a WebSocket.
    ///
    /// 10 s by default: long enough for several retransmissions on a bad link, and short enough that connections which
    /// never send a request take few places.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.config.handshake_timeout = timeout;
        self
    }

    /// The time that a viewer may be silent before it is pinged.
    ///
    /// 15 s by default: half of the 30 s after which the most impatient of common proxies drop an idle connection.
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.config.ping_interval = interval;
        self
    }

    /// The time that a viewer may be silent before its connection is closed with 1011; longer than
    /// [`ping_interval`](Self::ping_interval).
    ///
    /// Anything that the viewer sends counts. Taking bytes that its socket had refused before counts too, because a
    /// slow viewer gets a ping only after the bytes that are ahead of it. Such a viewer is closed no earlier than the
    /// [stall time-out](Self::stall_timeout) after the last bytes it took. The time doesn't run while the embedder
    /// doesn't take what the viewer has sent, or while this process doesn't run.
    ///
    /// 40 s by default: two pings and 10 s for the answer to the second.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.config.idle_timeout = timeout;
        self
    }

    /// The time for a close handshake: the rest of a frame, the close frame and the viewer's own end. Then the
    /// connection is reset, so that a viewer which reads on finds no stale data. A refused viewer has the same time to
    /// read the reason.
    ///
    /// A viewer that is behind has the [stall time-out](Self::stall_timeout) instead, which starts again whenever it
    /// takes bytes, for at most one minute in all. A viewer that was ended because it takes nothing has no time at all.
    /// When the room is closed, the close time-out applies to every viewer.
    ///
    /// 5 s by default: a viewer that is there needs one round trip.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.config.close_timeout = timeout;
        self
    }

    /// The time that a viewer may take nothing while bytes wait for it; then it is reset. This replaces the session's
    /// [`write_timeout`](crate::SessionBuilder::write_timeout), which doesn't apply to this room's viewers.
    ///
    /// A viewer counts as taking bytes when this host's kernel takes some after it had refused others. A kernel takes
    /// bytes in large steps: at 64 kbit/s they are 9 to 19 s apart, and up to 33 s for a viewer that reads 8 kB/s into
    /// a buffer of 256 KiB (`perf/slow-links.md`). The session bounds what waits meanwhile.
    ///
    /// 34 s by default: such a viewer has emptied its buffer by then, and a stuck one is ended within 40 s, even if its
    /// buffers took some seconds to fill.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.config.stall_timeout = timeout;
        self
    }

    /// The most bytes per connection that the kernel may hold without having sent them yet (`TCP_NOTSENT_LOWAT`). Linux
    /// and Android only; ignored on other systems.
    ///
    /// 64 KiB by default. Bytes that the kernel holds grow stale before they are sent, delay every answer to a ping,
    /// and are what a stalled viewer costs. Bytes that are sent and not acknowledged yet aren't limited by this, so the
    /// rate of a fast link with a long delay isn't either.
    ///
    /// For a viewer whose link has [proved slow](crate::ParticipantStats::link_rate) the room halves the value as often
    /// as it can: what is left holds what the link carries in 50 to 100 ms, and at least 4 KiB. Below 64 KiB, each
    /// write begins a segment of its own, because the kernel fills a segment of up to 64 KiB before it looks at the
    /// value.
    pub fn unsent_bytes(mut self, bytes: u32) -> Self {
        self.config.unsent_bytes = bytes;
        self
    }

    /// The most bytes per connection that the kernel may hold until the viewer acknowledges them (`SO_SNDBUF`; Linux
    /// doubles the number for its own bookkeeping).
    ///
    /// Left to the kernel by default, which lets the buffer grow with the link. A fixed, small buffer bounds the memory
    /// that thousands of viewers cost, and also the rate of each viewer: that many bytes per round trip.
    pub fn send_buffer_bytes(mut self, bytes: usize) -> Self {
        self.config.send_buffer_bytes = Some(bytes);
        self
    }

    /// Names the address of a proxy of this server, from which the connections of many viewers come. This address may
    /// take all [connections](Self::max_connections). May be called several times. A proxy is trusted with nothing
    /// else: what it says of the viewers behind it (`X-Forwarded-For`) isn't read.
    ///
    /// None by default; a proxy on this machine needs no mention.
    pub fn trusted_proxy(mut self, proxy: IpAddr) -> Self {
        self.config.trusted_proxies.push(proxy);
        self
    }

    /// Names a URL under which viewers reach this server, such as `https://robot.example.com/telemetry`: pages of that
    /// host and port are its own, and requests may name that host. The scheme is one of `http`, `https`, `ws` and
    /// `wss`. May be called several times; see [web pages](super#web-pages).
    ///
    /// None by default. A server behind a proxy for browsers needs one: the proxy sends either its own name or the name
    /// that it was asked for, and the server can't know either.
    pub fn public_url(mut self, url: impl Into<String>) -> Self {
        let url = url.into();
        if let Err(reason) = self.config.policy.add_public_url(&url) {
            self.wrong.get_or_insert(BindError::InvalidPublicUrl { url, reason });
        }
        self
    }

    /// Lets pages of this origin connect, such as `https://app.example.com`: scheme, host, and port unless it is the
    /// scheme's default. `file://` is the origin of local pages and of some desktop viewers. May be called several
    /// times; see [web pages](super#web-pages).
    pub fn allow_origin(mut self, origin: impl Into<String>) -> Self {
        let origin = origin.into();
        if let Err(reason) = self.config.policy.allow_origin(&origin) {
            self.wrong.get_or_insert(BindError::InvalidOrigin { origin, reason });
        }
        self
    }

    /// Lets pages connect that were fetched from the machine they are shown on: `localhost`, `127.0.0.1` and the like,
    /// on any port, by `http` or `https`. For a page under development, and for tools.
    pub fn allow_loopback_origins(mut self) -> Self {
        self.config.policy.allow_loopback_origins();
        self
    }

    /// Lets every page of every site connect, under any name of this server. For a server whose data anybody may see,
    /// or whose [hook](Self::on_upgrade) asks each viewer for something that a foreign page can't know; a cookie is no
    /// such thing.
    pub fn allow_any_origin(mut self) -> Self {
        self.config.policy.allow_any_origin();
        self
    }

    /// Sets the hook that decides from its request who a viewer is, or turns it away. The hook runs in the connection's
    /// task, within the handshake, and must not block. If it panics, that connection is dropped.
    ///
    /// The hook has the last word: it is also called for viewers that the room turns away by their `Origin` or `Host`
    /// ([`refusal`](UpgradeRequest::refusal)), and can admit them with [`Admission::from_any_origin`].
    ///
    /// Without a hook, every connection gets a random identity of its own.
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
        self.config.hook = Some(Arc::new(hook));
        self
    }

    /// Listens on `address`, for example `"0.0.0.0:8765"`; port 0 picks one, see
    /// [`local_addr`](WebSocketRoom::local_addr). Connections are accepted from now on; they wait for the session.
    ///
    /// If a name such as `localhost:8765` has several addresses, the room listens on [all](WebSocketRoom::local_addrs)
    /// of them, because viewers may try any. If the port is 0, one port is picked for all of them. An address that this
    /// machine doesn't have, such as `::1` where IPv6 is off, is left out unless it is the only one; any other failure
    /// is an error.
    ///
    /// # Errors
    /// A [`BindError`] that names the address and the reason, or says that the caller isn't in a Tokio runtime, or in
    /// one without timers. The room's tasks run on the caller's runtime.
    ///
    /// # Panics
    /// If the runtime has no IO (`enable_io`).
    ///
    /// # Cancel safety
    /// A future that is dropped before it is done leaves nothing behind.
    pub async fn bind(mut self, address: impl ToSocketAddrs + fmt::Display) -> Result<WebSocketRoom, BindError> {
        runtime::current()?;
        self.check()?;
        let name = address.to_string();
        let addresses = tokio::net::lookup_host(address).await.map(Iterator::collect::<Vec<_>>);
        let addresses = addresses.map_err(|source| BindError::of(name.clone(), source))?;
        self.listen(&addresses, |address| if address == name { name } else { format!("{address} ({name})") })
    }

    /// Listens on all of these addresses, as [`bind`](Self::bind) does on those of a name. Addresses with port 0 all
    /// get the same port.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind).
    ///
    /// # Panics
    /// If the runtime has no IO (`enable_io`).
    pub fn bind_all(mut self, addresses: &[SocketAddr]) -> Result<WebSocketRoom, BindError> {
        runtime::current()?;
        self.check()?;
        self.listen(addresses, |address| address)
    }

    /// Accepts connections from sockets that listen already. Use it for sockets that systemd passes to a service, that a
    /// supervisor keeps open over restarts, or that a test has bound. The room closes its handles when it admits no more
    /// viewers; a socket of which another process has a handle goes on listening.
    ///
    /// The kernel's queue of connections that aren't accepted yet has the length that was given to `listen(2)` (4,096 for
    /// the addresses that a room [binds](Self::bind) itself).
    ///
    /// # Errors
    /// As for [`bind`](Self::bind). On Linux, Android and FreeBSD, also if a socket doesn't listen.
    ///
    /// # Panics
    /// If the runtime has no IO (`enable_io`).
    ///
    /// ```
    /// use std::net::TcpListener;
    ///
    /// use lanecast::room::websocket::WebSocketRoom;
    ///
    /// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let address = listener.local_addr()?;
    /// let room = WebSocketRoom::builder().listen_on([listener])?;
    /// assert_eq!(room.local_addr(), address);
    /// # Ok(()) }
    /// ```
    pub fn listen_on(mut self, listeners: impl IntoIterator<Item = TcpListener>) -> Result<WebSocketRoom, BindError> {
        runtime::current()?;
        self.check()?;
        let taken: Result<Vec<_>, _> = listeners.into_iter().map(bind::take_over).collect();
        self.accept_from(taken.map_err(|(address, source)| BindError::of(address, source))?)
    }

    /// Caps each time at [`LONGEST`].
    fn bound_times(&mut self) {
        let config = &mut self.config;
        let times = [
            &mut config.handshake_timeout,
            &mut config.ping_interval,
            &mut config.idle_timeout,
            &mut config.close_timeout,
            &mut config.stall_timeout,
        ];
        times.into_iter().for_each(|time| *time = (*time).min(LONGEST));
    }

    fn check(&mut self) -> Result<(), BindError> {
        if let Some(wrong) = self.wrong.take() {
            return Err(wrong);
        }
        let config = &self.config;
        let wrong = if config.max_message_bytes == 0 {
            "max_message_bytes is 0: no message would be accepted"
        } else if !(1..=tokio::sync::Semaphore::MAX_PERMITS).contains(&config.max_connections) {
            "max_connections is 0 or too large to be counted: give a smaller number, at least 1"
        } else if config.handshake_timeout.is_zero() {
            "handshake_timeout is 0: no viewer could connect"
        } else if config.send_buffer_bytes.is_some_and(|bytes| !(1..=i32::MAX as usize).contains(&bytes)) {
            "send_buffer_bytes is 0, or 2 GiB or more: give at least 1 byte and less than 2 GiB"
        } else if config.ping_interval.is_zero() {
            "ping_interval is 0: give the time between pings"
        } else if config.idle_timeout <= config.ping_interval {
            "idle_timeout isn't longer than ping_interval: a silent viewer could never answer in time"
        } else if config.stall_timeout.is_zero() {
            "stall_timeout is 0: give the time in which a viewer has to take something"
        } else if config.unsent_bytes == 0 {
            "unsent_bytes is 0: nothing could be written"
        } else {
            return Ok(());
        };
        Err(BindError::InvalidConfig(wrong))
    }

    /// `name` turns an address into the text by which an error names it.
    fn listen(self, addresses: &[SocketAddr], name: impl FnOnce(String) -> String) -> Result<WebSocketRoom, BindError> {
        let listeners =
            bind::listen(addresses).map_err(|(address, source)| BindError::of(name(address.to_string()), source))?;
        self.accept_from(listeners)
    }

    fn accept_from(mut self, listeners: Vec<Listener>) -> Result<WebSocketRoom, BindError> {
        if listeners.is_empty() {
            return Err(BindError::InvalidConfig("there is nothing to listen on: give an address or a socket"));
        }
        self.bound_times();
        let local_addrs: Box<[_]> = listeners.iter().map(|listener| listener.address).collect();
        let shared = Arc::new(Shared::new(self.config));
        tokio::spawn(listen::run(Arc::clone(&shared), listeners));
        tracing::info!(addresses = ?local_addrs, "listening for WebSockets");
        Ok(WebSocketRoom::new(shared, local_addrs))
    }
}

/// The reason why a room can't listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address and port are in use: choose another port, or 0 for any.
    #[error("cannot listen on {address}: the address is in use (choose another port, or 0 for any that is free)")]
    AddressInUse {
        /// The address, and its name if one was given.
        address: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The room can't listen on the address: it isn't one of this machine's, can't be resolved, or isn't allowed.
    #[error("cannot listen on {address}: {source}")]
    Unavailable {
        /// The address, and its name if one was given.
        address: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The room runs its tasks on tokio: bind it inside a runtime (with io and time enabled).
    #[error("no tokio runtime here: bind the room inside one")]
    NoRuntime,
    /// The runtime has no timers: enable them with `enable_time` or `enable_all` where it is built.
    #[error("this tokio runtime has no timers: enable them with `enable_time` where it is built")]
    NoTimers,
    /// The argument of [`public_url`](WebSocketRoomBuilder::public_url) isn't the URL of a server.
    #[error("{url:?} is no public URL: {reason}")]
    InvalidPublicUrl {
        /// The argument.
        url: String,
        /// The form to give instead.
        reason: &'static str,
    },
    /// The argument of [`allow_origin`](WebSocketRoomBuilder::allow_origin) isn't an origin that can be allowed.
    #[error("{origin:?} is no origin that can be allowed: {reason}")]
    InvalidOrigin {
        /// The argument.
        origin: String,
        /// The form to give instead.
        reason: &'static str,
    },
    /// A setting is out of range, two settings contradict each other, or there is no address to listen on.
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
