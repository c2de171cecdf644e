//! The policy on which web pages may connect, and on the names under which this server is reached.
//!
//! A browser lets every page open a WebSocket to every address, the user's own machine included. Only the server can
//! refuse the connection, by two headers that a page can't forge. `Origin` names the page; programs other than browsers
//! send none. `Host` names the server as the page sees it. A page whose own name is made to resolve to this server's
//! address (DNS rebinding) looks like the server's own page by `Origin`. It is recognized by a `Host` that isn't one of
//! the server's.
//!
//! Origins are compared as RFC 6454 says, by scheme, host and port; a missing port is the scheme's default. Headers
//! that a proxy adds, such as `X-Forwarded-Host`, are not read: any client can write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_tungstenite::tungstenite::http::header::{HOST, HeaderMap, HeaderValue, ORIGIN};
use tokio_tungstenite::tungstenite::http::uri::{Authority, Uri};

use super::rejection::Rejection;

/// The most bytes of a header that an answer repeats.
const LONGEST_QUOTE: usize = 200;

/// The number of refusals by `Origin` or `Host` that are logged as warnings. Browsers don't show the answer to their
/// user, so the log has to; but any page can cause an unlimited number of refusals.
const WARNINGS: u32 = 8;

/// The settings by which a request's `Origin` and `Host` are checked.
#[derive(Debug, Default)]
pub(super) struct Policy {
    any: bool,
    loopback_pages: bool,
    allowed: Vec<Origin>,
    public: Vec<PublicUrl>,
    warned: AtomicU32,
}

/// A URL under which viewers reach the server.
#[derive(Debug)]
struct PublicUrl {
    origin: Origin,
    /// The form in which viewers write it: `wss://robot.example.com/telemetry`.
    shown: String,
}

impl Policy {
    pub(super) fn allow_any_origin(&mut self) {
        self.any = true;
    }

    pub(super) fn allow_loopback_origins(&mut self) {
        self.loopback_pages = true;
    }

    /// Allows `origin`. The error says what to give instead.
    pub(super) fn allow_origin(&mut self, origin: &str) -> Result<(), &'static str> {
        if origin.eq_ignore_ascii_case("null") {
            return Err("null is the origin of every sandboxed page, whoever wrote it: allow any origin instead");
        }
        // An origin that is copied from an address bar ends with a slash.
        let is_whole = |bare: &&str| !bare.ends_with('/') || bare.eq_ignore_ascii_case("file://");
        let bare = origin.strip_suffix('/').filter(is_whole).unwrap_or(origin);
        let origin = Origin::parse(bare).ok_or("give scheme, host and port, such as https://app.example.com")?;
        self.allowed.push(origin);
        Ok(())
    }

    /// Adds `url` to this server's own. The error says what to give instead.
    pub(super) fn add_public_url(&mut self, url: &str) -> Result<(), &'static str> {
        const EXAMPLE: &str = "give a URL, such as https://robot.example.com";
        let uri: Uri = url.parse().map_err(|_| EXAMPLE)?;
        let (page, socket) = match uri.scheme_str() {
            Some("http" | "ws") => ("http", "ws"),
            Some("https" | "wss") => ("https", "wss"),
            _ => return Err(EXAMPLE),
        };
        let authority = uri.authority().ok_or(EXAMPLE)?.as_str();
        let origin = Origin::parse(&format!("{page}://{authority}")).ok_or(EXAMPLE)?;
        let shown = format!("{socket}://{authority}{}", uri.path().trim_end_matches('/'));
        self.public.push(PublicUrl { origin, shown });
        Ok(())
    }

    /// The public URLs, in the form in which viewers write them.
    pub(super) fn public_urls(&self) -> impl Iterator<Item = &str> {
        self.public.iter().map(|url| url.shown.as_str())
    }

    /// Checks the `Origin` and the `Host` of a request. `on_loopback`: the request came to a listener that can be
    /// reached from this machine only.
    ///
    /// # Errors
    /// 400 if the request doesn't name exactly one host: such a request is malformed, whatever the policy.
    pub(super) fn check(&self, headers: &HeaderMap, on_loopback: bool) -> Result<Verdict, Rejection> {
        let (host, seen) = requested_host(headers)?;
        if self.any {
            return Ok(Ok(()));
        }
        if on_loopback && !host.name.is_loopback() && !self.public.iter().any(|url| url.origin.is_at(&host.name)) {
            return Ok(Err(foreign_host(seen)));
        }
        let mut origins = headers.get_all(ORIGIN).iter();
        let Some(seen) = origins.next() else { return Ok(Ok(())) };
        if origins.next().is_some() {
            return Ok(Err(Rejection::new(403, "the request has several Origin headers: send one")));
        }
        Ok(match seen.to_str().ok().and_then(Origin::parse) {
            Some(origin) if self.admits(&origin, &host) => Ok(()),
            Some(_) => Err(foreign_origin(seen)),
            None => Err(no_origin(seen)),
        })
    }

    fn admits(&self, origin: &Origin, host: &HostAndPort) -> bool {
        origin.is_of(host)
            || self.public.iter().any(|url| url.origin == *origin)
            || self.allowed.contains(origin)
            || (self.loopback_pages && origin.is_loopback())
    }

    /// Logs that a viewer was refused by `Origin` or `Host`.
    pub(super) fn log(&self, refusal: &Rejection) {
        // Relaxed: a mere count.
        let count = self
            .warned
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < WARNINGS).then_some(count + 1));
        match count {
            Ok(before) if before + 1 == WARNINGS => {
                tracing::warn!("a viewer is refused: {} (further ones are logged as debug)", refusal.message());
            }
            Ok(_) => tracing::warn!("a viewer is refused: {}", refusal.message()),
            Err(_) => {}
        }
    }
}

/// Whether the headers of a request let the viewer connect, or else the answer that refuses it.
pub(super) type Verdict = Result<(), Rejection>;

/// The host that a request names, and the header as received.
fn requested_host(headers: &HeaderMap) -> Result<(HostAndPort, &HeaderValue), Rejection> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(seen), None) = (hosts.next(), hosts.next()) else {
        return Err(Rejection::bad_request("the request has no Host header, or several: send one"));
    };
    let host = seen.to_str().ok().and_then(HostAndPort::parse);
    let host = host.ok_or_else(|| Rejection::bad_request(format!("Host: {} is no host and port", quote(seen))))?;
    Ok((host, seen))
}

/// The host and port that a request names, in its own spelling; `None` if the header is invalid.
pub(super) fn host_shown(headers: &HeaderMap) -> Option<&str> {
    requested_host(headers).ok()?.1.to_str().ok()
}

fn foreign_host(seen: &HeaderValue) -> Rejection {
    let host = quote(seen);
    Rejection::new(
        403,
        format!(
            "Host: {host} is no name of this server, which listens on its own machine only. If viewers reach it under \
             that name, through a proxy for example, start it with --public-url http://{host} (in a program: \
             public_url)"
        ),
    )
}

fn foreign_origin(seen: &HeaderValue) -> Rejection {
    let origin = quote(seen);
    Rejection::new(
        403,
        format!(
            "Origin: {origin} may not connect to this server. If that page may see this server's data, start the \
             server with --allow-origin {origin}; if that is the server itself, behind a proxy, with --public-url \
             {origin} (in a program: allow_origin, public_url)"
        ),
    )
}

/// A page has no origin in a sandbox, or as a local file in some browsers. All such pages look the same,
/// regardless of their author.
fn no_origin(seen: &HeaderValue) -> Rejection {
    let origin = quote(seen);
    Rejection::new(
        403,
        format!(
            "Origin: {origin} may not connect to this server, as it names no page. Serve the page from a web server, \
             and start this server with --allow-origin and the web server's origin (in a program: allow_origin)"
        ),
    )
}

/// A header in a form that is harmless to show.
fn quote(value: &HeaderValue) -> String {
    let bytes = value.as_bytes();
    let mut quoted = bytes[..bytes.len().min(LONGEST_QUOTE)].escape_ascii().to_string();
    if bytes.len() > LONGEST_QUOTE {
        quoted += "...";
    }
    quoted
}

/// The origin of a page.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    /// In lower case.
    scheme: String,
    /// `None` for local files.
    host: Option<Host>,
    /// `None` if it is the scheme's default.
    port: Option<u16>,
}

impl Origin {
    /// Parses the form that browsers send, with nothing before or after it.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
        if !is_scheme {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        if scheme == "file" && rest.is_empty() {
            return Some(Self { scheme, host: None, port: None });
        }
        let HostAndPort { name, port } = HostAndPort::parse(rest)?;
        let port = port.filter(|port| Some(*port) != own_port(&scheme));
        Some(Self { scheme, host: Some(name), port })
    }

    /// Whether this is the origin of the server that a request names, by `http` or `https`: a proxy may add TLS.
    fn is_of(&self, server: &HostAndPort) -> bool {
        let own = own_port(&self.scheme);
        own.is_some() && self.is_at(&server.name) && self.port == server.port.filter(|port| Some(*port) != own)
    }

    fn is_at(&self, name: &Host) -> bool {
        self.host.as_ref() == Some(name)
    }

    fn is_loopback(&self) -> bool {
        own_port(&self.scheme).is_some() && self.host.as_ref().is_some_and(Host::is_loopback)
    }
}

/// The default port of a scheme by which pages are fetched.
fn own_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[derive(Debug)]
struct HostAndPort {
    name: Host,
    port: Option<u16>,
}

impl HostAndPort {
    fn parse(text: &str) -> Option<Self> {
        let authority: Authority = text.parse().ok()?;
        let host = authority.host();
        // With a user and a password before it, the host isn't the prefix.
        let port = match authority.as_str().strip_prefix(host)? {
            "" | ":" => None,
            port => Some(port.strip_prefix(':').filter(|port| port.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?),
        };
        Some(Self { name: Host::parse(host)?, port })
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Host {
    /// In lower case, without a final dot.
    Name(String),
    /// An IPv4 address in IPv6 notation is stored as IPv4.
    Address(IpAddr),
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        if let Some(literal) = text.strip_prefix('[') {
            let address: Ipv6Addr = literal.strip_suffix(']')?.parse().ok()?;
            return Some(Self::Address(address.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.is_empty() {
            return None;
        }
        Some(name.parse::<Ipv4Addr>().map_or(Self::Name(name), |address| Self::Address(address.into())))
    }

    /// Whether the host can only be this machine: `localhost` and names that end with `.localhost` are never looked up
    /// (RFC 6761).
    fn is_loopback(&self) -> bool {
        match self {
            Self::Name(name) => name == "localhost" || name.ends_with(".localhost"),
            Self::Address(address) => address.is_loopback(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let value = |value: &str| HeaderValue::from_bytes(value.as_bytes()).unwrap();
        lines.iter().map(|(name, text)| (name.parse().unwrap(), value(text))).collect()
    }

    /// The status of the answer to a request to `host` from `origin`, or 101.
    fn status(policy: &Policy, host: &str, origin: &str, on_loopback: bool) -> u16 {
        match policy.check(&headers(&[("host", host), ("origin", origin)]), on_loopback) {
            Ok(Ok(())) => 101,
            Ok(Err(refusal)) | Err(refusal) => refusal.status(),
        }
    }

    #[test]
    fn the_servers_own_pages_may_connect() {
        let policy = Policy::default();
        for (host, origin) in [
            ("robot:8765", "http://robot:8765"),
            ("robot", "http://robot"),
            ("robot:80", "http://robot"),
            ("robot:", "http://robot"),
            ("robot", "https://robot"),
            ("robot:443", "https://robot"),
            ("robot", "https://robot:443"),
            ("ROBOT.example.", "http://robot.Example"),
            ("robot.example", "http://robot.example."),
            ("10.0.0.7:8765", "http://10.0.0.7:8765"),
            ("[fd00::1]:8765", "http://[fd00:0::1]:8765"),
            ("[::ffff:10.0.0.7]", "http://10.0.0.7"),
        ] {
            assert_eq!(status(&policy, host, origin, false), 101, "{host} {origin}");
        }
    }

    #[test]
    fn other_pages_may_not() {
        let policy = Policy::default();
        for (host, origin) in [
            ("robot:8765", "http://robot"),
            ("robot:8765", "http://robot:8766"),
            ("robot", "http://robot:8765"),
            ("robot:80", "https://robot"),
            ("robot", "http://xrobot"),
            ("robot", "http://robot.evil.example"),
            ("robot", "http://robot@evil.example"),
            ("robot", "http://evil@robot"),
            ("robot", "http://robot/"),
            ("robot", "http://robot/path"),
            ("robot", "http://robot http://robot"),
            ("robot", "http://robot:80:80"),
            ("robot", "http://robot:+80"),
            ("robot", "http://robot:99999"),
            ("robot", "http://robot.."),
            ("robot", "ftp://robot"),
            ("robot", "file://robot"),
            ("robot", "file://"),
            ("robot", "robot"),
            ("robot", "null"),
            ("robot", "NULL"),
            ("robot", "*"),
            ("robot", ""),
            ("robot", "r\u{f6}bot"),
            ("localhost:8765", "http://localhost:3000"),
            ("localhost:8765", "http://127.0.0.1:8765"),
        ] {
            assert_eq!(status(&policy, host, origin, false), 403, "{host} {origin}");
        }
    }

    #[test]
    fn a_request_has_to_name_one_host() {
        let mut policy = Policy::default();
        for _ in ["the default", "any origin"] {
            for host in ["", "user@robot", "robot:port", "robot:99999", "[::1", "[robot]", "a b", "a/b", ".", "r\u{f6}"]
            {
                assert_eq!(status(&policy, host, "http://robot", false), 400, "{host}");
            }
            for lines in [&[][..], &[("host", "a"), ("host", "a")]] {
                assert_eq!(policy.check(&headers(lines), false).unwrap_err().status(), 400, "{lines:?}");
            }
            policy.allow_any_origin();
        }
    }

    #[test]
    fn a_server_on_loopback_has_no_other_name() {
        let mut policy = Policy::default();
        let check = |policy: &Policy, host: &str| policy.check(&headers(&[("host", host)]), true).unwrap();
        for host in
            ["localhost", "LOCALHOST:8765", "localhost.", "a.localhost:1", "127.0.0.1", "127.9.9.9:8", "[::1]:8"]
        {
            assert_eq!(check(&policy, host), Ok(()), "{host}");
        }
        for host in ["evil.example:8765", "localhost.evil.example", "xlocalhost", "10.0.0.7", "0.0.0.0", "[fd00::1]"] {
            let refusal = check(&policy, host).unwrap_err();
            assert_eq!(refusal.status(), 403);
            let named = [format!("Host: {host} "), format!("--public-url http://{host} ")];
            assert!(named.iter().all(|part| refusal.message().contains(part)), "{}", refusal.message());
            // This holds even if the page seems to be the server's own.
            assert_eq!(status(&policy, host, &format!("http://{host}"), true), 403);
        }
        // A proxy may leave the port out, or send its own.
        policy.add_public_url("https://evil.example").unwrap();
        assert_eq!(check(&policy, "evil.example:8765"), Ok(()));
        assert!(check(&policy, "x.evil.example").is_err());
        policy.allow_any_origin();
        assert_eq!(check(&policy, "x.evil.example"), Ok(()));
    }

    #[test]
    fn a_public_url_names_a_host_that_is_the_servers_own() {
        let mut policy = Policy::default();
        policy.add_public_url("wss://Robot.example/telemetry/").unwrap();
        policy.add_public_url("http://[::1]:8080").unwrap();
        let shown: Vec<_> = policy.public_urls().collect();
        assert_eq!(shown, ["wss://Robot.example/telemetry", "ws://[::1]:8080"]);
        for host in ["127.0.0.1:8765", "robot.example"] {
            assert_eq!(status(&policy, host, "https://robot.example", true), 101);
            assert_eq!(status(&policy, host, "http://[::1]:8080", true), 101);
            assert_eq!(status(&policy, host, "https://robot.example:8443", true), 403);
            assert_eq!(status(&policy, "127.0.0.1:8765", "http://robot.example", true), 403);
        }
        for bad in ["", "robot", "robot:80", "/x", "ftp://robot", "http://", "http://u@robot", "http://robot:x", "null"]
        {
            assert!(policy.add_public_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_allowed_origin_may_connect() {
        let mut policy = Policy::default();
        for origin in ["https://App.example/", "file://", "app://viewer", "http://dev:3000"] {
            policy.allow_origin(origin).unwrap();
        }
        policy.allow_origin("file:///").unwrap();
        for origin in ["https://app.example", "https://app.example:443", "file://", "app://viewer", "http://dev:3000"] {
            assert_eq!(status(&policy, "localhost:1", origin, true), 101, "{origin}");
        }
        for origin in ["http://app.example", "https://x.app.example", "file://x", "app://other", "http://dev", "null"] {
            assert_eq!(status(&policy, "localhost:1", origin, true), 403, "{origin}");
        }
        for bad in ["", "null", "*", "app.example", "https://app.example/x", "https://app.example//", "https://"] {
            assert!(policy.allow_origin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_of_this_machine_may_connect_where_that_is_allowed() {
        let mut policy = Policy::default();
        policy.allow_loopback_origins();
        for origin in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080", "http://dev.localhost"] {
            assert_eq!(status(&policy, "localhost:8765", origin, true), 101, "{origin}");
        }
        for origin in ["ftp://localhost", "http://localhost.example", "http://10.0.0.7", "null", "file://"] {
            assert_eq!(status(&policy, "localhost:8765", origin, true), 403, "{origin}");
        }
    }

    #[test]
    fn a_refusal_names_the_header_and_the_flag() {
        let policy = Policy::default();
        let refused = |origin: &str| {
            let verdict = policy.check(&headers(&[("host", "robot"), ("origin", origin)]), false);
            verdict.unwrap().unwrap_err().message().to_owned()
        };
        let message = refused("https://evil.example");
        for part in
            ["Origin: https://evil.example ", "--allow-origin https://evil.example", "--public-url https://evil"]
        {
            assert!(message.contains(part), "{message}");
        }
        let message = refused("null");
        assert!(message.starts_with("Origin: null ") && message.contains("--allow-origin "), "{message}");
        let harmless = refused(&"\u{fc}\t".repeat(200));
        assert!(harmless.len() < 1500 && harmless.is_ascii() && !harmless.contains(char::is_control), "{harmless}");
        let twice = headers(&[("host", "robot"), ("origin", "http://robot"), ("origin", "http://robot")]);
        assert!(policy.check(&twice, false).unwrap().unwrap_err().message().contains("several Origin"));
    }
}
