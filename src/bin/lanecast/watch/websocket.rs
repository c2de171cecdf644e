//! A server on a WebSocket.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use lanecast::protocol::{ClientMessage, FrameKind, Subprotocol, WireFormat};
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

/// How long the server may take to answer a goodbye.
const FAREWELL: Duration = Duration::from_secs(1);

/// The largest message, whole or in frames: as large as all that may wait for a viewer in a server of this crate.
const LARGEST: usize = 64 << 20;

/// How much is read of what a server says when it refuses, and how many characters of that are shown.
const REFUSAL_READ: usize = 8 << 10;
const REFUSAL_SHOWN: usize = 300;

/// Where a server is.
pub(super) struct Server {
    /// Without what isn't to be shown.
    shown: String,
    request: Request,
    /// Host and port.
    address: String,
}

impl Server {
    /// Reads a URL.
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
        // A port that is no port would be taken for none, which means 80.
        if uri.port_u16().is_none() && uri.authority().is_some_and(|authority| has_port(authority.as_str())) {
            return Err(End::failed(format!("{shown:?} has no such port: give a number up to 65535")));
        }
        let address = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
        // Not the schema-table dialect: a viewer that needs no schemas has nothing to gain from it.
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
        // What is left of a refusal is read from a descriptor of its own, as the hand-shake keeps the first.
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

    /// Says what the server answered instead of letting us in.
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
        // Before it is cut: of half a secret nobody knows any more that it is one.
        let body = secrets::hide(&body);
        let said = text::beginning(body.trim(), REFUSAL_SHOWN);
        if !said.is_empty() {
            message += &format!(": {said}");
        }
        // 408: too slow this time; 429: too often just now. Any other request that a server won't serve stays one.
        match status.as_u16() {
            408 | 429 | 500.. => End::lost_for(message, wait),
            _ => End::failed(message),
        }
    }
}

/// The same connection twice.
fn two(stream: TcpStream) -> io::Result<(TcpStream, std::net::TcpStream)> {
    let stream = stream.into_std()?;
    let other = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, other))
}

/// The body of an answer: what came with its head, and the rest of `length`, or of all until the connection ends.
async fn read_body(mut body: Vec<u8>, length: Option<usize>, rest: std::net::TcpStream) -> Vec<u8> {
    let wanted = length.unwrap_or(REFUSAL_READ).min(REFUSAL_READ);
    if let (Some(missing @ 1..), Ok(rest)) = (wanted.checked_sub(body.len()), TcpStream::from_std(rest)) {
        // What doesn't come within a moment is done without.
        let _ = timeout(FAREWELL, rest.take(missing as u64).read_to_end(&mut body)).await;
    }
    body
}

pub(super) struct WebSocket {
    /// The URL without what isn't to be shown.
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
        End::lost(format!("the connection to {} ended without a goodbye", self.shown))
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
        // It is over either way.
        let _ = timeout(FAREWELL, self.socket.close(None)).await;
    }
}

/// The URL that another one may have been meant to be.
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

/// Whether a port is named: behind the user, if there is one, and the brackets of an IPv6 address, if it is one.
fn has_port(authority: &str) -> bool {
    let host = authority.rsplit(['@', ']']).next().unwrap_or(authority);
    host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty())
}

/// What a close frame means: whether it is worth coming back depends on its code.
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
        // Something we did, or are: it would be the same again. The application's own codes belong here too: 4000 says
        // that another connection has our place.
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
