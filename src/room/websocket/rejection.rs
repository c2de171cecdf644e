//! The HTTP answer to a viewer that is turned away.

use std::net::IpAddr;

use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::http::StatusCode;

use super::socket;

/// The headers of an answer that is a page. The page loads nothing, runs nothing, and can't be put into a frame.
const PAGE_HEADERS: &str = "Content-Type: text/html; charset=utf-8\r\nContent-Security-Policy: default-src \
     'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n";

/// Turns a viewer away with an HTTP status and a line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    status: StatusCode,
    message: String,
    /// A header that belongs to the status.
    header: Option<(&'static str, &'static str)>,
    body: Body,
}

/// The part of an answer after its head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Body {
    /// The message as text.
    #[default]
    Message,
    /// A page for a person with a browser.
    Page(String),
    /// Nothing, although the head is the same as if the message followed: the answer to `HEAD`.
    Missing,
}

impl Rejection {
    /// A rejection with this status, 400 to 599. Any other number becomes 403 (Forbidden), since it wouldn't turn the
    /// viewer away.
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

    /// The HTTP status, 400 to 599.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status.as_u16()
    }

    /// The text that the viewer gets.
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
             later (if that is a proxy of this server, start the server with --trusted-proxy {peer}; in a program: \
             trusted_proxy)"
        );
        Self::new(503, message).with_header("Retry-After", "5")
    }

    pub(super) fn with_header(self, name: &'static str, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    /// Answers a person with a browser: `page` takes the place of the message.
    pub(super) fn with_page(self, page: String) -> Self {
        Self { body: Body::Page(page), ..self }
    }

    /// Answers `HEAD`: the head alone is sent.
    pub(super) fn without_body(self) -> Self {
        Self { body: Body::Missing, ..self }
    }

    pub(super) fn upgrade_required(message: impl Into<String>) -> Self {
        Self::new(426, message).with_header("Upgrade", "websocket")
    }

    /// Writes the rejection as the answer, and waits until the viewer has ended its side: a connection that is closed
    /// with unread bytes is reset, and the answer may be lost. The caller sets the time-out.
    pub(super) async fn answer(&self, stream: &TcpStream) {
        let Self { status, message, header, body } = self;
        let message = format!("{message}\n");
        let (content, kind) = match body {
            Body::Page(page) => (page, PAGE_HEADERS),
            Body::Message | Body::Missing => (&message, "Content-Type: text/plain; charset=utf-8\r\n"),
        };
        // An option named in `Upgrade` has to be named in `Connection` too (RFC 9110, 7.8).
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
            socket::shut_down_write(stream);
            socket::drain(stream).await;
        }
    }
}
