//! From a TCP connection to a WebSocket: the HTTP request, who the viewer is, the answer.
//!
//! httparse reads the request, tungstenite answers it. What stands between is here: tungstenite looks at the first
//! `Connection` and `Upgrade` header alone, and doesn't take them for the lists that they are (RFC 9110, 5.6.1).

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response, create_response, write_response};
use tokio_tungstenite::tungstenite::http::header::{
    ACCEPT, CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use tokio_tungstenite::tungstenite::http::{self, Method, StatusCode, Version};

use super::origin::Policy;
use super::{page, socket};
use crate::ids::ParticipantIdentity;
use crate::participant::{Attributes, no_attributes};
use crate::protocol::{SUBPROTOCOLS, Subprotocol, negotiate};

/// The longest request; servers commonly take 8 to 16 KiB, cookies included.
const MAX_REQUEST: usize = 16 << 10;

/// The most header lines of a request; browsers and proxies send some twenty.
const MAX_HEADERS: usize = 100;

/// A viewer's request to become a WebSocket, as the hook given to
/// [`on_upgrade`](super::WebSocketRoomBuilder::on_upgrade) sees it.
#[derive(Debug)]
pub struct UpgradeRequest {
    request: Request,
    peer: SocketAddr,
    subprotocol: Subprotocol,
    refusal: Option<Rejection>,
}

impl UpgradeRequest {
    /// The path, as sent: not decoded.
    #[must_use]
    pub fn path(&self) -> &str {
        self.request.uri().path()
    }

    /// What follows the question mark, as sent: not decoded.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.request.uri().query()
    }

    /// The first header of this name, whatever its case; `None` if there is none or it isn't visible ASCII.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name)?.to_str().ok()
    }

    /// All headers: lower-case name and value. A name may occur more than once.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
    }

    /// Where it comes from: the TCP connection's other end, which may be a proxy.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What will be spoken: the best subprotocol of those offered.
    #[must_use]
    pub fn subprotocol(&self) -> Subprotocol {
        self.subprotocol
    }

    /// Why the room turns this viewer away, by its `Origin` or `Host`, unless the hook
    /// [lets it in all the same](Admission::from_any_origin); `None` if the room has nothing against it.
    #[must_use]
    pub fn refusal(&self) -> Option<&Rejection> {
        self.refusal.as_ref()
    }
}

/// Lets a viewer in: says who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admission {
    /// Who it is. A viewer that comes back with the same identity takes the place of its older connection.
    pub identity: ParticipantIdentity,
    /// What the room tells of it.
    pub attributes: Attributes,
    /// Whether it is let in whatever its `Origin` and `Host`.
    from_any_origin: bool,
}

impl Admission {
    /// A viewer without attributes.
    #[must_use]
    pub fn new(identity: ParticipantIdentity) -> Self {
        Self { identity, attributes: no_attributes(), from_any_origin: false }
    }

    /// The same for a viewer that is let in whatever web page it comes from, and under whatever name it reached this
    /// server: see [`refusal`](UpgradeRequest::refusal).
    ///
    /// Only for viewers that have shown something which a foreign page can't know, such as a token in the query. A
    /// cookie is no such thing: the browser sends it along with whatever page asks.
    #[must_use]
    pub fn from_any_origin(mut self) -> Self {
        self.from_any_origin = true;
        self
    }

    /// The same with an attribute more.
    #[must_use]
    pub fn with_attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        std::sync::Arc::make_mut(&mut self.attributes).insert(key.into(), value.into());
        self
    }
}

/// Turns a viewer away with an HTTP status and a line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    status: StatusCode,
    message: String,
    /// A header that belongs to the status.
    header: Option<(&'static str, &'static str)>,
    body: Body,
}

/// What follows the head of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Body {
    /// The message as text.
    #[default]
    Message,
    /// A page for a person with a browser.
    Page(String),
    /// Nothing, though the head is as if the message followed: the answer to `HEAD`.
    Missing,
}

impl Rejection {
    /// With this status, 400 to 599; any other number becomes 403 (Forbidden), since it would not turn anybody away.
    #[must_use]
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        let known = StatusCode::from_u16(status).ok();
        let status = known.filter(|status| status.is_client_error() || status.is_server_error());
        Self {
            status: status.unwrap_or(StatusCode::FORBIDDEN),
            message: message.into(),
            header: None,
            body: Body::Message,
        }
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status.as_u16()
    }

    /// The text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    pub(super) fn timed_out() -> Self {
        Self::new(408, "the upgrade request took too long")
    }

    pub(super) fn full() -> Self {
        Self::new(503, "the server has as many connections as it is allowed to have").with_header("Retry-After", "5")
    }

    pub(super) fn too_many_of_one_address(peer: IpAddr) -> Self {
        let message = format!(
            "the server is nearly full, and the places that are left are for other addresses than {peer}: come back \
             later (if that is a proxy of this server's, start it with --trusted-proxy {peer}; in a program: \
             trusted_proxy)"
        );
        Self::new(503, message).with_header("Retry-After", "5")
    }

    fn with_header(self, name: &'static str, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    fn upgrade_required(message: impl Into<String>) -> Self {
        Self::new(426, message).with_header("Upgrade", "websocket")
    }

    /// Writes it as the answer, and waits until the viewer has gone: what is closed with bytes unread is reset, and the
    /// answer with it. The caller sets the time-out.
    pub(super) async fn answer(&self, stream: &TcpStream) {
        let Self { status, message, header, body } = self;
        let message = format!("{message}\n");
        let (content, kind) = match body {
            Body::Page(page) => (page, page::HEADERS),
            Body::Message | Body::Missing => (&message, "Content-Type: text/plain; charset=utf-8\r\n"),
        };
        // What is named in `Upgrade` has to be named as one of this connection's options (RFC 9110, 7.8).
        let connection = if header.is_some_and(|(name, _)| name == "Upgrade") { "close, Upgrade" } else { "close" };
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nConnection: {connection}\r\n{kind}X-Content-Type-Options: nosniff\r\n\
             Cache-Control: no-store\r\nContent-Length: {}\r\n",
            content.len()
        );
        if let Some((name, value)) = header {
            answer += &format!("{name}: {value}\r\n");
        }
        answer += "\r\n";
        if *body != Body::Missing {
            answer += content;
        }
        if socket::write_all(stream, answer.as_bytes()).await.is_ok() {
            socket::finish(stream);
            socket::drain(stream).await;
        }
    }
}

/// Why a connection didn't become a WebSocket.
#[derive(Debug)]
pub(super) enum Refusal {
    /// To be answered.
    Rejected(Rejection),
    /// There is nobody to answer to.
    Gone,
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// Where a connection comes from, and to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visit {
    pub(super) peer: SocketAddr,
    /// It came to a listener that can be reached from this machine alone.
    pub(super) on_loopback: bool,
}

/// Reads the request, asks `hook` who it is, and answers. What is spoken from then on comes with who it is.
pub(super) async fn upgrade(
    stream: &TcpStream,
    visit: Visit,
    policy: &Policy,
    hook: impl FnOnce(&UpgradeRequest) -> Result<Admission, Rejection>,
) -> Result<(Admission, Subprotocol), Refusal> {
    let request = read_request(stream).await?;
    let mut response = accept(&request, policy)?;
    let refusal = policy.check(request.headers(), visit.on_loopback)?.err();
    let subprotocol = match (choose(&request), &refusal) {
        (Err(_), Some(refusal)) => return Err(refuse(refusal.clone(), policy)),
        (chosen, _) => chosen?,
    };
    let chosen = HeaderValue::from_static(subprotocol.as_str());
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, chosen);
    let request = UpgradeRequest { request, peer: visit.peer, subprotocol, refusal };
    let admission = hook(&request)?;
    if let Some(refusal) = request.refusal.filter(|_| !admission.from_any_origin) {
        return Err(refuse(refusal, policy));
    }
    let mut answer = Vec::new();
    write_response(&mut answer, &response).map_err(|error| Rejection::new(500, error.to_string()))?;
    socket::write_all(stream, &answer).await.map_err(|_| Refusal::Gone)?;
    Ok((admission, subprotocol))
}

fn refuse(refusal: Rejection, policy: &Policy) -> Refusal {
    policy.log(&refusal);
    refusal.into()
}

/// The answer that makes a WebSocket of the connection, or why the request isn't one for that.
fn accept(request: &Request, policy: &Policy) -> Result<Response, Rejection> {
    let headers = request.headers();
    if request.method() != Method::GET {
        let mut refusal = Rejection::new(405, "this server speaks WebSocket, which begins with GET");
        if request.method() == Method::HEAD {
            refusal.body = Body::Missing;
        }
        return Err(refusal.with_header("Allow", "GET"));
    }
    let wanted = lists(headers, &UPGRADE, "websocket");
    if !wanted && !headers.contains_key(SEC_WEBSOCKET_KEY) {
        return Err(no_upgrade(request, policy));
    }
    if request.version() < Version::HTTP_11 {
        return Err(Rejection::bad_request(
            "the request is HTTP/1.0, which has no WebSocket: have the proxy in between speak HTTP/1.1 (nginx: \
             proxy_http_version 1.1)",
        ));
    }
    if !wanted || !lists(headers, &CONNECTION, "upgrade") {
        return Err(Rejection::upgrade_required(
            "the request lacks Upgrade: websocket or Connection: Upgrade: have the proxy in between pass both on \
             (nginx: proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade)",
        ));
    }
    // The rest is tungstenite's to check, of a request whose lists have one element.
    let mut plain = Request::default();
    plain.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    plain.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    for name in [SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_KEY] {
        if let Some(value) = headers.get(&name) {
            plain.headers_mut().insert(name, value.clone());
        }
    }
    create_response(&plain).map_err(|error| match error {
        Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader) => {
            Rejection::new(426, "the request is no version of WebSocket that is known here: send version 13")
                .with_header("Sec-WebSocket-Version", "13")
        }
        error => Rejection::bad_request(error.to_string()),
    })
}

/// Whether a header that is a list, in however many lines, has this element. A space in place of a comma is forgiven:
/// the elements asked for here have none.
fn lists(headers: &HeaderMap, name: &HeaderName, element: &str) -> bool {
    elements(headers, name).flat_map(str::split_ascii_whitespace).any(|listed| listed.eq_ignore_ascii_case(element))
}

/// The elements of a header that is a list: lines are as good as commas (RFC 9110, 5.3).
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|element| element.trim_matches([' ', '\t']))
}

/// Tells somebody who asked for a page, or a program that did, what this is and what to open.
fn no_upgrade(request: &Request, policy: &Policy) -> Rejection {
    let urls = page::urls(request, policy);
    let refusal = Rejection::upgrade_required(page::text(&urls));
    // Each element may have parameters.
    let kinds = elements(request.headers(), &ACCEPT).filter_map(|kind| kind.split(';').next());
    let is_browser = kinds.map(str::trim_end).any(|kind| kind.eq_ignore_ascii_case("text/html"));
    if is_browser { Rejection { body: Body::Page(page::html(&urls)), ..refusal } } else { refusal }
}

/// The best of the subprotocols that are offered, in however many headers.
fn choose(request: &Request) -> Result<Subprotocol, Rejection> {
    negotiate(elements(request.headers(), &SEC_WEBSOCKET_PROTOCOL)).ok_or_else(|| {
        let known = SUBPROTOCOLS.join(", ");
        Rejection::bad_request(format!("no known WebSocket subprotocol is offered: offer one of {known}"))
    })
}

async fn read_request(stream: &TcpStream) -> Result<Request, Refusal> {
    let mut received = Vec::new();
    let mut chunk = [0; 1024];
    // Garbage is found before its end, and yet no byte is parsed more often than a few times.
    let mut parse_at = 1;
    while received.len() <= MAX_REQUEST {
        stream.readable().await.map_err(|_| Refusal::Gone)?;
        let had = received.len();
        match socket::read(stream, &mut chunk) {
            Ok(None) => continue,
            Ok(Some(0)) | Err(_) => return Err(Refusal::Gone),
            Ok(Some(count)) => received.extend_from_slice(&chunk[..count]),
        }
        let ended = received[had.saturating_sub(3)..].windows(4).any(|end| end == b"\r\n\r\n");
        if received.len() < parse_at && !ended {
            continue;
        }
        parse_at = received.len() * 2;
        match parse(&received)? {
            Some((length, request)) if length == received.len() => return Ok(request),
            // What comes behind another request is its body, and isn't read.
            Some((_, request)) if request.method() != Method::GET => return Ok(request),
            Some(_) => return Err(Rejection::bad_request("data after the request: wait for the answer").into()),
            None => {}
        }
    }
    Err(Rejection::new(431, "the request is too long").into())
}

/// The request at the front of `received` and its length; `None` if more has to come.
fn parse(received: &[u8]) -> Result<Option<(usize, Request)>, Rejection> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut lines);
    let length = match parsed.parse(received) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Rejection::new(431, format!("the request has more than {MAX_HEADERS} headers")));
        }
        Err(error) => return Err(Rejection::bad_request(format!("this is no HTTP request: {error}"))),
    };
    // A request that is complete has all three.
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut request = http::Request::builder().method(method).uri(target).version(version);
    for line in parsed.headers.iter() {
        request = request.header(line.name, line.value);
    }
    let request =
        request.body(()).map_err(|error| Rejection::bad_request(format!("this is no HTTP request: {error}")))?;
    Ok(Some((length, request)))
}
