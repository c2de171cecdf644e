//! The upgrade of a TCP connection to a WebSocket: the HTTP request, the viewer's identity, the answer.
//!
//! httparse parses the request, and tungstenite makes the answer. The checks between them are here, because tungstenite
//! looks only at the first `Connection` and `Upgrade` header, and doesn't treat them as the lists that they are (RFC
//! 9110, 5.6.1).

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response, create_response, write_response};
use tokio_tungstenite::tungstenite::http::header::{
    ACCEPT, CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use tokio_tungstenite::tungstenite::http::{self, Method, Version};

use super::origin::Policy;
use super::rejection::Rejection;
use super::{page, socket};
use crate::contract::Attributes;
use crate::contract::presence::no_attributes;
use crate::ids::ParticipantIdentity;
use crate::protocol::{SUBPROTOCOLS, Subprotocol, negotiate};

/// The longest request, in bytes; servers commonly take 8 to 16 KiB, cookies included.
const MAX_REQUEST: usize = 16 << 10;

/// The most header lines of a request; browsers and proxies send some twenty.
const MAX_HEADERS: usize = 100;

/// A viewer's request to become a WebSocket, as passed to the hook that
/// [`on_upgrade`](super::WebSocketRoomBuilder::on_upgrade) sets.
#[derive(Debug)]
pub struct UpgradeRequest {
    request: Request,
    peer: SocketAddr,
    subprotocol: Subprotocol,
    refusal: Option<Rejection>,
}

impl UpgradeRequest {
    /// The path as sent, not decoded.
    #[must_use]
    pub fn path(&self) -> &str {
        self.request.uri().path()
    }

    /// The part after the question mark as sent, not decoded.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.request.uri().query()
    }

    /// The first header of this name, whatever its case; `None` if there is none or it isn't visible ASCII.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name)?.to_str().ok()
    }

    /// All headers, each as its lower-case name and its value. A name may occur more than once.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
    }

    /// The address of the TCP connection's other end, which may be a proxy.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The subprotocol to be spoken: the best of those offered.
    #[must_use]
    pub fn subprotocol(&self) -> Subprotocol {
        self.subprotocol
    }

    /// The reason why the room turns this viewer away, by its `Origin` or `Host`, unless the hook [admits it
    /// regardless](Admission::from_any_origin); `None` if the room has no objection.
    #[must_use]
    pub fn refusal(&self) -> Option<&Rejection> {
        self.refusal.as_ref()
    }
}

/// Admits a viewer and gives it its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admission {
    /// The viewer's identity. A viewer that reconnects with the same identity replaces its older connection.
    pub identity: ParticipantIdentity,
    /// The attributes that the room reports for the viewer.
    pub attributes: Attributes,
    /// Whether the viewer is admitted whatever its `Origin` and `Host` are.
    from_any_origin: bool,
}

impl Admission {
    /// A viewer without attributes.
    #[must_use]
    pub fn new(identity: ParticipantIdentity) -> Self {
        Self { identity, attributes: no_attributes(), from_any_origin: false }
    }

    /// Admits the viewer whatever web page it comes from, and under whatever name it reached this server: see
    /// [`refusal`](UpgradeRequest::refusal).
    ///
    /// Only for viewers that have shown something which a foreign page can't know, such as a token in the query. A
    /// cookie is no such thing: the browser sends it along with the request of any page.
    #[must_use]
    pub fn from_any_origin(mut self) -> Self {
        self.from_any_origin = true;
        self
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with_attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        std::sync::Arc::make_mut(&mut self.attributes).insert(key.into(), value.into());
        self
    }
}

/// The reason why a connection didn't become a WebSocket.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The request is answered with this.
    Rejected(Rejection),
    /// The peer is gone: there is nothing to answer.
    Gone,
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// The two ends of a connection: the peer, and the kind of listener that it came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visit {
    pub(super) peer: SocketAddr,
    /// The connection came to a listener that can be reached from this machine only.
    pub(super) on_loopback: bool,
}

/// Reads the request, asks `hook` for the viewer's identity, and answers. Returns the admission and the subprotocol to
/// be spoken.
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

/// The answer that upgrades the connection to a WebSocket, or the reason why the request can't be upgraded.
fn accept(request: &Request, policy: &Policy) -> Result<Response, Rejection> {
    let headers = request.headers();
    if request.method() != Method::GET {
        let refusal = Rejection::new(405, "this server speaks WebSocket, which begins with GET");
        let refusal = refusal.with_header("Allow", "GET");
        return Err(if request.method() == Method::HEAD { refusal.without_body() } else { refusal });
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
    // Tungstenite checks the rest, on a request whose lists have one element.
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
            Rejection::new(426, "the WebSocket version of the request is not supported: send version 13")
                .with_header("Sec-WebSocket-Version", "13")
        }
        error => Rejection::bad_request(error.to_string()),
    })
}

/// Whether a header that is a list, in any number of lines, has this element. A space instead of a comma is accepted:
/// the elements that are looked up here contain none.
fn lists(headers: &HeaderMap, name: &HeaderName, element: &str) -> bool {
    elements(headers, name).flat_map(str::split_ascii_whitespace).any(|listed| listed.eq_ignore_ascii_case(element))
}

/// The elements of a header that is a list: a new line is equivalent to a comma (RFC 9110, 5.3).
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|element| element.trim_matches([' ', '\t']))
}

/// The answer to a request for a page: it says what this server is and which URL to open in which program.
fn no_upgrade(request: &Request, policy: &Policy) -> Rejection {
    let urls = page::urls(request, policy);
    let refusal = Rejection::upgrade_required(page::text(&urls));
    // Each element may have parameters.
    let kinds = elements(request.headers(), &ACCEPT).filter_map(|kind| kind.split(';').next());
    let is_browser = kinds.map(str::trim_end).any(|kind| kind.eq_ignore_ascii_case("text/html"));
    if is_browser { refusal.with_page(page::html(&urls)) } else { refusal }
}

/// The best of the offered subprotocols, in any number of headers.
fn choose(request: &Request) -> Result<Subprotocol, Rejection> {
    negotiate(elements(request.headers(), &SEC_WEBSOCKET_PROTOCOL)).ok_or_else(|| {
        let known = SUBPROTOCOLS.join(", ");
        Rejection::bad_request(format!("no known WebSocket subprotocol is offered: offer one of {known}"))
    })
}

async fn read_request(stream: &TcpStream) -> Result<Request, Refusal> {
    let mut received = Vec::new();
    let mut chunk = [0; 1024];
    // Each parse waits for twice the bytes: garbage is found before its end, and no byte is parsed more than a few
    // times.
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
            // What follows a request with another method is its body, which isn't read.
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
    // A complete request has a method, a target and a version.
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
