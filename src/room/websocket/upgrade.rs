//! From a TCP connection to a WebSocket: the HTTP request, who the viewer is, the answer.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::machine::TryParse;
use tokio_tungstenite::tungstenite::handshake::server::{Request, create_response, write_response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};

use super::socket;
use crate::ids::ParticipantIdentity;
use crate::participant::{Attributes, no_attributes};
use crate::protocol::{SUBPROTOCOLS, Subprotocol, negotiate};

/// The longest request; servers commonly take 8 to 16 KiB, cookies included.
const MAX_REQUEST: usize = 16 << 10;

/// A viewer's request to become a WebSocket, as the hook given to
/// [`on_upgrade`](super::WebSocketRoomBuilder::on_upgrade) sees it.
#[derive(Debug)]
pub struct UpgradeRequest {
    request: Request,
    peer: SocketAddr,
    subprotocol: Subprotocol,
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
}

/// Lets a viewer in: says who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admission {
    /// Who it is. A viewer that comes back with the same identity takes the place of its older connection.
    pub identity: ParticipantIdentity,
    /// What the room tells of it.
    pub attributes: Attributes,
}

impl Admission {
    /// A viewer without attributes.
    #[must_use]
    pub fn new(identity: ParticipantIdentity) -> Self {
        Self { identity, attributes: no_attributes() }
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
}

impl Rejection {
    /// With this status, 400 to 599; any other number becomes 403 (Forbidden), since it would not turn anybody away.
    #[must_use]
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        let known = StatusCode::from_u16(status).ok();
        let status = known.filter(|status| status.is_client_error() || status.is_server_error());
        Self { status: status.unwrap_or(StatusCode::FORBIDDEN), message: message.into(), header: None }
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
        let header = Some(("Retry-After", "5"));
        Self { header, ..Self::new(503, "the server has as many connections as it is allowed to have") }
    }

    /// Of a request that was read and is no upgrade to a WebSocket.
    fn of(error: &Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Protocol(ProtocolError::WrongHttpMethod) => {
                Self { header: Some(("Allow", "GET")), ..Self::new(405, message) }
            }
            Error::Protocol(
                ProtocolError::MissingConnectionUpgradeHeader | ProtocolError::MissingUpgradeWebSocketHeader,
            ) => Self { header: Some(("Upgrade", "websocket")), ..Self::new(426, message) },
            Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader) => {
                Self { header: Some(("Sec-WebSocket-Version", "13")), ..Self::new(426, message) }
            }
            Error::Capacity(CapacityError::TooManyHeaders) => Self::new(431, message),
            _ => Self::bad_request(message),
        }
    }

    /// Writes it as the answer, and waits until the viewer has gone: what is closed with bytes unread is reset, and the
    /// answer with it. The caller sets the time-out.
    pub(super) async fn answer(&self, stream: &TcpStream) {
        let Self { status, message, header } = self;
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\n",
            message.len() + 1
        );
        if let Some((name, value)) = header {
            answer += &format!("{name}: {value}\r\n");
        }
        answer += &format!("\r\n{message}\n");
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

/// Reads the request, asks `hook` who it is, and answers. What is spoken from then on comes with who it is.
pub(super) async fn upgrade(
    stream: &TcpStream,
    peer: SocketAddr,
    hook: impl FnOnce(&UpgradeRequest) -> Result<Admission, Rejection>,
) -> Result<(Admission, Subprotocol), Refusal> {
    let request = read_request(stream).await?;
    let mut response = create_response(&request).map_err(|error| Rejection::of(&error))?;
    let subprotocol = choose(&request)?;
    let chosen = HeaderValue::from_static(subprotocol.as_str());
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, chosen);
    let admission = hook(&UpgradeRequest { request, peer, subprotocol })?;
    let mut answer = Vec::new();
    write_response(&mut answer, &response).map_err(|error| Rejection::new(500, error.to_string()))?;
    socket::write_all(stream, &answer).await.map_err(|_| Refusal::Gone)?;
    Ok((admission, subprotocol))
}

/// The best of the subprotocols that are offered, in however many headers.
fn choose(request: &Request) -> Result<Subprotocol, Rejection> {
    let headers = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).into_iter();
    let offered = headers.filter_map(|header| header.to_str().ok()).flat_map(|header| header.split(','));
    negotiate(offered.map(str::trim)).ok_or_else(|| {
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
        match Request::try_parse(&received).map_err(|error| Rejection::of(&error))? {
            Some((length, request)) if length == received.len() => return Ok(request),
            Some(_) => return Err(Rejection::bad_request("data after the request: wait for the answer").into()),
            None => {}
        }
    }
    Err(Rejection::new(431, "the request is too long").into())
}
