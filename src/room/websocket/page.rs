//! The answer for visitors that open the server's address without asking for a WebSocket: a browser tab, or a program
//! that fetches pages.

use tokio_tungstenite::tungstenite::handshake::server::Request;

use super::origin::{self, Policy};
use crate::protocol::SUBPROTOCOLS;

/// The URLs under which viewers reach the server: its public URLs, or else the one that this request was sent to.
pub(super) fn urls(request: &Request, policy: &Policy) -> Vec<String> {
    let public: Vec<_> = policy.public_urls().map(str::to_owned).collect();
    if !public.is_empty() {
        return public;
    }
    let host = origin::host_shown(request.headers()).unwrap_or("HOST:PORT");
    vec![format!("ws://{host}{}", request.uri().path().trim_end_matches('/'))]
}

pub(super) fn text(urls: &[String]) -> String {
    format!(
        "this is a telemetry server, and it speaks WebSocket: open {} in Foxglove or Lichtblick (Open connection > \
         Foxglove WebSocket)",
        urls.join(" or ")
    )
}

pub(super) fn html(urls: &[String]) -> String {
    let urls: Vec<_> = urls.iter().map(|url| escape(url)).collect();
    let addresses: String = urls.iter().map(|url| format!("<pre>{url}</pre>\n")).collect();
    // `lanecast watch` has no TLS.
    let watched = urls.iter().find(|url| url.starts_with("ws://"));
    let watch = watched.map(|url| format!("<dt>A terminal</dt>\n<dd><code>lanecast watch {url}</code></dd>\n"));
    let watch = watch.unwrap_or_default();
    let [subprotocols @ .., last] = SUBPROTOCOLS.map(|name| format!("<code>{name}</code>"));
    let subprotocols = subprotocols.join(", ");
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Telemetry server</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 17px/1.5 system-ui, sans-serif; max-width: 38em; margin: 4em auto; padding: 0 1.5em }}
pre, code {{ font: 0.95em ui-monospace, monospace }}
pre {{ padding: 0.8em 1em; border: 1px solid #8888; border-radius: 6px; overflow-x: auto; user-select: all }}
dt {{ font-weight: 600; margin-top: 1em }}
dd {{ margin: 0 }}
footer {{ margin-top: 3em; opacity: 0.7 }}
</style>
</head>
<body>
<h1>This is a telemetry server</h1>
<p>It works. A browser tab has nothing to show, because the server speaks WebSocket. Open this address in a viewer:</p>
{addresses}<dl>
<dt>Foxglove or Lichtblick</dt>
<dd>Open connection &rsaquo; Foxglove WebSocket &rsaquo; the address above</dd>
{watch}<dt>A program</dt>
<dd>A WebSocket that offers one of the subprotocols {subprotocols} and {last}</dd>
</dl>
<footer>lanecast</footer>
</body>
</html>
"#
    )
}

/// Escapes `text` for HTML.
fn escape(text: &str) -> String {
    let escaped = |c| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        '\'' => "&#39;".to_owned(),
        c => char::to_string(&c),
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_one_that_was_asked_or_a_public_one() {
        let mut request = Request::default();
        let mut policy = Policy::default();
        assert_eq!(urls(&request, &policy), ["ws://HOST:PORT"]);
        request.headers_mut().insert("host", "robot:8765".parse().unwrap());
        assert_eq!(urls(&request, &policy), ["ws://robot:8765"]);
        *request.uri_mut() = "/telemetry/?x=1".parse().unwrap();
        assert_eq!(urls(&request, &policy), ["ws://robot:8765/telemetry"]);
        policy.add_public_url("https://a.example/").unwrap();
        policy.add_public_url("http://b.example:81").unwrap();
        assert_eq!(urls(&request, &policy), ["wss://a.example", "ws://b.example:81"]);
    }

    #[test]
    fn what_a_request_says_stays_text() {
        let page = html(&["ws://x/<script>alert('&\"1\"')</script>".to_owned()]);
        assert!(!page.contains("<script"));
        assert!(page.contains("ws://x/&lt;script&gt;alert(&#39;&amp;&quot;1&quot;&#39;)&lt;/script&gt;"));
    }
}
