//! The connection to a server over a WebSocket.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use lanecast::protocol::{ClientMessage, FrameKind, Subprotocol, WireFormat};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::{Request, Response};
use tokio_tungstenite::tungstenite::http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::{End, PATIENCE, Wire};
use crate::secrets;
use crate::text;

/// How long the close handshake may take, and reading the rest of a refusal.
const FAREWELL: Duration = Duration::from_secs(1);

/// After so long without a packet from the server, the kernel asks whether its host is still there, so often and at this
/// interval. Without an answer the connection breaks, after 35 s in all: `watch` itself sends nothing that would show
/// it. A link that is only slow answers. A long message isn't interrupted, as a time-out of the next message would do.
const SILENCE: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum size of a message, in one frame or in several: as large as a viewer's whole backlog may be in a server of
/// this crate.
const LARGEST: usize = 64 << 20;

/// How many bytes are read of the body of a refusal, and how many characters of it are shown.
const REFUSAL_READ: usize = 8 << 10;
const REFUSAL_SHOWN: usize = 300;

/// The address of a server, and the request to it.
pub(super) struct Server {
    /// The URL without its secrets.
    shown: String,
    request: Request,
    /// Host and port.
    address: String,
}

impl Server {
    /// Parses a URL.
    pub(super) fn of(url: &str) -> Result<Self, End> {
        let shown = secrets::public(url);
        if url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("wss://")) {
            return Err(End::failed(format!("{shown}: TLS isn't supported, only ws://")));
        }
        let request = url.into_client_request().ok().filter(|request| request.uri().scheme_str() == Some("ws"));
        let Some(mut request) = request else {
            let meant = meant(url).map_or_else(String::new, |meant| format!(" (did you mean {meant}?)"));
            return Err(End::failed(format!("{shown:?} is no server's address: give ws://HOST:PORT{meant}")));
        };
        let uri = request.uri();
        // An invalid port would be taken for none, which means port 80.
        if uri.port_u16().is_none() && uri.authority().is_some_and(|authority| has_port(authority.as_str())) {
            return Err(End::failed(format!("{shown:?} has an invalid port: give a number up to 65535")));
        }
        let address = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
        // The subprotocol with a schema table is not offered: a viewer that needs no schemas gains nothing from it.
        let offered = [Subprotocol::SdkV1, Subprotocol::WebsocketV1].map(Subprotocol::as_str).join(", ");
        let offered = offered.parse().expect("subprotocol names are made of letters and dots");
        request.headers_mut().insert("sec-websocket-protocol", offered);
        Ok(Self { shown, request, address })
    }

    pub(super) async fn connect(&self) -> Result<WebSocket, End> {
        match timeout(PATIENCE, self.shake_hands()).await {
            Ok(Ok(socket)) => Ok(WebSocket { shown: self.shown.clone(), socket }),
            Ok(Err(end)) => Err(end),
            Err(_) => Err(End::lost(format!("{} didn't answer for {} s", self.shown, PATIENCE.as_secs()))),
        }
    }

    async fn shake_hands(&self) -> Result<WebSocketStream<TcpStream>, End> {
        let stream = TcpStream::connect(&self.address).await.map_err(|error| self.unreachable(&error))?;
        let probes = TcpKeepalive::new().with_time(SILENCE).with_interval(PROBE_INTERVAL).with_retries(PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&probes).map_err(|error| self.unreachable(&error))?;
        // The rest of a refusal is read from a second descriptor, because the handshake keeps the first one.
        let (stream, rest) = two(stream).map_err(|error| self.unreachable(&error))?;
        let config = WebSocketConfig::default().max_message_size(Some(LARGEST)).max_frame_size(Some(LARGEST));
        match client_async_with_config(self.request.clone(), stream, Some(config)).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => Err(self.refused(*response, rest).await),
            Err(Error::Io(error)) => Err(self.unreachable(&error)),
            Err(Error::Protocol(ProtocolError::HandshakeIncomplete)) => {
                Err(End::lost(format!("{} closed the connection before it answered", self.shown)))
            }
            Err(error) => Err(End::failed(format!("{} is no telemetry server for this viewer: {error}", self.shown))),
        }
    }

    fn unreachable(&self, error: &io::Error) -> End {
        let shown = &self.shown;
        match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                End::lost(format!("nobody listens at {shown}: start `lanecast serve` first"))
            }
            _ => End::lost(format!("can't connect to {shown}: {error}")),
        }
    }

    /// The end after a refusal, with the server's answer.
    async fn refused(&self, response: Response, rest: std::net::TcpStream) -> End {
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let mut message = format!("{} refused this viewer: HTTP {status}", self.shown);
        if let Some(location) = header(LOCATION).filter(|_| status.is_redirection()) {
            message += &format!(", it refers to {}", secrets::public(location));
        }
        let is_text = header(CONTENT_TYPE).is_none_or(|kind| !kind.starts_with("text/html"));
        let length = header(CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let wait = header(RETRY_AFTER).and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        let body =
            if is_text { read_body(response.into_body().unwrap_or_default(), length, rest).await } else { vec![] };
        let body = String::from_utf8_lossy(&body);
        // Secrets are removed before the text is cut: half a secret would not be found any more.
        let body = secrets::hide(&body);
        let said = text::beginning(body.trim(), REFUSAL_SHOWN);
        if !said.is_empty() {
            message += &format!(": {said}");
        }
        // 408 (too slow) and 429 (too often) are temporary. Any other request that a server refuses is refused again.
        match status.as_u16() {
            408 | 429 | 500.. => End::lost_for(message, wait),
            _ => End::failed(message),
        }
    }
}

/// Two descriptors of the same connection.
fn two(stream: TcpStream) -> io::Result<(TcpStream, std::net::TcpStream)> {
    let stream = stream.into_std()?;
    let other = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, other))
}

/// Reads the body of an answer: what came with its head, and the rest of `length`, or everything until the connection
/// ends. Reads at most [`REFUSAL_READ`] bytes.
async fn read_body(mut body: Vec<u8>, length: Option<usize>, rest: std::net::TcpStream) -> Vec<u8> {
    let wanted = length.unwrap_or(REFUSAL_READ).min(REFUSAL_READ);
    if let (Some(missing @ 1..), Ok(rest)) = (wanted.checked_sub(body.len()), TcpStream::from_std(rest)) {
        // The part that doesn't arrive in time is left out.
        let _ = timeout(FAREWELL, rest.take(missing as u64).read_to_end(&mut body)).await;
    }
    body
}

pub(super) struct WebSocket {
    /// The URL without its secrets.
    shown: String,
    socket: WebSocketStream<TcpStream>,
}

impl WebSocket {
    fn broken(&self, error: &Error) -> End {
        let shown = &self.shown;
        match error {
            Error::Io(error) => End::lost(format!("the connection to {shown} broke: {error}")),
            Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => self.ended(),
            Error::Capacity(CapacityError::MessageTooLong { size, .. }) => End::failed(format!(
                "{shown} sends a message of {}: `lanecast watch` takes up to {} MiB",
                text::bytes(*size as u64),
                LARGEST >> 20
            )),
            error => End::failed(format!("the connection to {shown} broke: {error}")),
        }
    }

    fn ended(&self) -> End {
        End::lost(format!("the connection to {} ended without a close frame", self.shown))
    }
}

impl Wire for WebSocket {
    const FORMAT: WireFormat = WireFormat::V1;

    async fn next(&mut self) -> Result<(FrameKind, Bytes), End> {
        loop {
            return match self.socket.next().await {
                Some(Ok(Message::Text(text))) => Ok((FrameKind::Text, Bytes::from(text))),
                Some(Ok(Message::Binary(data))) => Ok((FrameKind::Binary, data)),
                Some(Ok(Message::Close(frame))) => Err(closed(frame)),
                Some(Ok(_)) => continue,
                Some(Err(error)) => Err(self.broken(&error)),
                None => Err(self.ended()),
            };
        }
    }

    async fn send(&mut self, message: &ClientMessage) -> Result<(), End> {
        let frame = message.encode();
        let message = match frame.kind() {
            FrameKind::Text => {
                Message::text(String::from_utf8(frame.to_bytes().to_vec()).expect("a text frame is UTF-8"))
            }
            FrameKind::Binary => Message::binary(frame.to_bytes()),
        };
        self.socket.send(message).await.map_err(|error| self.broken(&error))
    }

    async fn close(mut self) {
        // The connection ends even if this fails.
        let _ = timeout(FAREWELL, self.socket.close(None)).await;
    }
}

/// The valid URL that was probably meant by an invalid one.
fn meant(url: &str) -> Option<String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let schemes = ["https", "http", "wss", "ws"].into_iter();
    let named = schemes.filter_map(|scheme| rest.strip_prefix(scheme)).find(|rest| rest.starts_with([':', '/']));
    let rest = named.unwrap_or(rest).trim_start_matches([':', '/']);
    let meant: Request = format!("ws://{rest}").into_client_request().ok()?;
    let authority = meant.uri().authority()?.as_str();
    let port = if has_port(authority) { "" } else { ":8765" };
    let path = rest.strip_prefix(authority)?;
    Some(secrets::public(&format!("ws://{authority}{port}{path}")))
}

/// Whether `authority` names a port. The port stands after the user, if there is one, and after the brackets of an IPv6
/// address.
fn has_port(authority: &str) -> bool {
    let host = authority.rsplit(['@', ']']).next().unwrap_or(authority);
    host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty())
}

/// The end that a close frame stands for. Its code decides whether connecting again is worthwhile.
fn closed(frame: Option<CloseFrame>) -> End {
    let Some(CloseFrame { code, reason }) = frame else {
        return End::lost("the server closed the connection without saying why");
    };
    let code = u16::from(code);
    let message = match &*reason {
        "" => format!("the server closed the connection: {code}"),
        reason => format!("the server closed the connection: {code} ({reason})"),
    };
    match code {
        // The server refuses this viewer or what it sent, and would do so again. The codes of the application belong
        // here, too: 4000 says that another connection has taken this viewer's place.
        1002 | 1003 | 1007..=1010 | 4000.. => End::failed(message),
        _ => End::lost(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_was_meant_is_found() {
        for (url, wanted) in [
            ("http://127.0.0.1", Some("ws://127.0.0.1:8765")),
            ("w://h:1/live", Some("ws://h:1/live")),
            ("ws:/h:1", Some("ws://h:1")),
            ("ws//h", Some("ws://h:8765")),
            ("localhost", Some("ws://localhost:8765")),
            ("[::1]", Some("ws://[::1]:8765")),
            ("http://me:secret@h?token=s3cret", Some("ws://(hidden)@h:8765?(hidden)")),
            ("ws://", None),
            ("http://a b", None),
        ] {
            assert_eq!(meant(url).as_deref(), wanted, "{url}");
        }
    }
}
