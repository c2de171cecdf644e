//! A server on a WebSocket.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use lanecast::protocol::{ClientMessage, FrameKind, Subprotocol, WireFormat};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{End, PATIENCE, Wire};

/// How long the server may take to answer a goodbye.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) struct WebSocket {
    url: String,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl WebSocket {
    pub(super) async fn connect(url: &str) -> Result<Self, End> {
        if url.starts_with("wss://") {
            return Err(End::failed(format!("{url}: TLS isn't supported, only ws://")));
        }
        let request = url.into_client_request().ok().filter(|request| request.uri().scheme_str() == Some("ws"));
        let Some(mut request) = request else {
            return Err(End::failed(format!("{url:?} is no server's address: give ws://HOST:PORT")));
        };
        // A port that is no port would be taken for none, which means 80.
        let uri = request.uri();
        if uri.port_u16().is_none() && uri.authority().is_some_and(|authority| has_port(authority.as_str())) {
            return Err(End::failed(format!("{url:?} has no such port: give a number up to 65535")));
        }
        // Not the schema-table dialect: a viewer that needs no schemas has nothing to gain from it.
        let offered = [Subprotocol::SdkV1, Subprotocol::WebsocketV1].map(Subprotocol::as_str).join(", ");
        let offered = offered.parse().expect("subprotocol names are made of letters and dots");
        request.headers_mut().insert("sec-websocket-protocol", offered);
        match timeout(PATIENCE, connect_async(request)).await {
            Ok(Ok((socket, _))) => Ok(Self { url: url.to_owned(), socket }),
            Ok(Err(error)) => Err(End::failed(unconnected(url, &error))),
            Err(_) => Err(End::failed(format!("{url} didn't answer for {} s", PATIENCE.as_secs()))),
        }
    }

    fn broken(&self, error: &Error) -> End {
        End::failed(format!("the connection to {} broke: {error}", self.url))
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
                None => Err(End::failed(format!("the connection to {} ended without a goodbye", self.url))),
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

/// Whether a port is named: behind the user, if there is one, and the brackets of an IPv6 address, if it is one.
fn has_port(authority: &str) -> bool {
    let host = authority.rsplit(['@', ']']).next().unwrap_or(authority);
    host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty())
}

fn unconnected(url: &str, error: &Error) -> String {
    match error {
        Error::Io(io) if io.kind() == io::ErrorKind::ConnectionRefused => {
            format!("nobody listens at {url}: start `lanecast serve` first")
        }
        Error::Io(io) => format!("can't connect to {url}: {io}"),
        Error::Http(response) => format!("{url} is no telemetry server for this viewer: HTTP {}", response.status()),
        error => format!("{url} is no telemetry server for this viewer: {error}"),
    }
}

fn closed(frame: Option<CloseFrame>) -> End {
    End::failed(match frame {
        Some(frame) if frame.reason.is_empty() => {
            format!("the server closed the connection: {}", u16::from(frame.code))
        }
        Some(frame) => format!("the server closed the connection: {} ({})", u16::from(frame.code), frame.reason),
        None => "the server closed the connection without saying why".to_owned(),
    })
}
