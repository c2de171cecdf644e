//! The HTTP request: which requests are upgrades, in whatever form, and how other requests are answered.

use super::*;

/// The answer to a request of these lines, and the close of the connection unless it has become a WebSocket.
async fn head_of_answer(server: &Server, lines: &[&str]) -> String {
    let mut stream = server.tcp().await;
    stream.write_all((lines.join("\r\n") + "\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(soon("the answer", stream.read_u8()).await.unwrap());
    }
    String::from_utf8(answer).unwrap()
}

/// All headers but `Connection` and `Upgrade`.
const REST: [&str; 5] = [
    "GET / HTTP/1.1",
    "Host: 127.0.0.1",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol: foxglove.sdk.v1",
];

#[tokio::test]
async fn list_headers_may_be_written_in_any_form() {
    let server = Server::start(WebSocketRoom::builder()).await;
    for lines in [
        &["Connection: Upgrade", "Upgrade: websocket"][..],
        &["Connection: keep-alive", "Connection: Upgrade", "Upgrade: websocket"],
        &["Connection: Upgrade", "Connection: close", "Upgrade: websocket"],
        &["Connection: keep-alive,\tUpgrade", "Upgrade: websocket"],
        &["Connection:\tUPGRADE\t,\tx", "Upgrade: WebSocket"],
        &["Connection: ,, upgrade ,", "Upgrade: websocket"],
        &["Connection: keep-alive Upgrade", "Upgrade: websocket"],
        &["Connection: Upgrade", "Upgrade: h2c, websocket"],
        &["Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"],
        &["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c,\twebsocket", "Connection: \u{fc}"],
    ] {
        let answer = head_of_answer(&server, &[&REST[..], lines].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{lines:?}: {answer}");
        let has = |line: &str| answer.to_ascii_lowercase().lines().any(|had| had == line);
        assert!(has("connection: upgrade") && has("upgrade: websocket"), "{answer}");
        assert!(has("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
    }
    for lines in [
        &["Connection: Upgrade"][..],
        &["Upgrade: websocket"],
        &["Connection: Upgraded", "Upgrade: websocket"],
        &["Connection: Upgrade", "Upgrade: websocket/14"],
        &["Connection: Upgrade", "Upgrade: h2c"],
    ] {
        let answer = head_of_answer(&server, &[&REST[..], lines].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 426 "), "{lines:?}: {answer}");
        assert!(answer.contains("\r\nConnection: close, Upgrade\r\n"), "{answer}");
        assert!(answer.contains("\r\nUpgrade: websocket\r\n"), "{answer}");
    }
}

/// A proxy doesn't pass the upgrade on: the answer says what to set.
#[tokio::test]
async fn a_dropped_upgrade_is_answered_with_the_proxy_setting() {
    let server = Server::start(WebSocketRoom::builder()).await;
    let answer = answer_to(&server, (REST.join("\r\n") + "\r\nConnection: close\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 426 ") && answer.contains("proxy_set_header Upgrade"), "{answer}");
    let old = request("GET / HTTP/1.0", "");
    let answer = answer_to(&server, old.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("proxy_http_version 1.1"), "{answer}");
}

#[tokio::test]
async fn a_close_with_any_registered_code_is_answered_with_it() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    for code in [1000, 1012, 1013, 1014, 3000, 4999_u16] {
        let mut stream = server.raw().await;
        let (presence, _incoming) = server.joined().await;
        stream.write_all(&masked(0x88, &code.to_be_bytes())).await.unwrap();
        assert_eq!(read_close(&mut stream).await.0, code);
        server.left(&presence).await;
    }
}

/// Head and body of an answer, whose `Content-Length` is checked.
fn parts(answer: &str) -> (&str, &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    assert_eq!(length.parse::<usize>().unwrap(), body.len(), "{answer}");
    (head, body)
}

#[tokio::test]
async fn a_browser_is_shown_a_page() {
    let server = Server::start(WebSocketRoom::builder()).await;
    let accept = "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8";
    for version in ["1.1", "1.0"] {
        let get = format!("GET /cars HTTP/{version}\r\nHost: robot:8765\r\nConnection: keep-alive\r\n{accept}\r\n\r\n");
        // The room listens on loopback, and answers a plain GET whatever its `Host`.
        let answer = answer_to(&server, get.as_bytes()).await;
        let (head, body) = parts(&answer);
        assert!(head.starts_with("HTTP/1.1 426 "), "{head}");
        assert!(head.contains("\r\nContent-Type: text/html; charset=utf-8\r\n"), "{head}");
        assert!(head.contains("\r\nContent-Security-Policy: default-src 'none';"), "{head}");
        assert!(body.starts_with("<!doctype html>") && body.ends_with("</html>\n"), "{body}");
        for part in ["<pre>ws://robot:8765/cars</pre>", "lanecast watch ws://robot:8765/cars", "Foxglove", SDK] {
            assert!(body.contains(part), "{body}");
        }
    }
}

#[tokio::test]
async fn a_program_that_fetches_a_page_gets_one_line() {
    let server = Server::start(WebSocketRoom::builder().public_url("https://robot.example/x")).await;
    for accept in ["Accept: */*\r\n", "", "Accept: application/json, text/htmlx\r\n"] {
        let get = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{accept}\r\n");
        let answer = answer_to(&server, get.as_bytes()).await;
        let (head, body) = parts(&answer);
        assert!(head.starts_with("HTTP/1.1 426 "), "{head}");
        assert!(head.contains("\r\nContent-Type: text/plain; charset=utf-8\r\n"), "{head}");
        assert!(body.contains("wss://robot.example/x") && body.lines().count() == 1, "{body}");
    }
}

#[tokio::test]
async fn other_methods_are_not_allowed() {
    let server = Server::start(WebSocketRoom::builder()).await;
    for method in ["POST", "PUT", "OPTIONS", "HEAD", "BREW"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi");
        let answer = answer_to(&server, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("\r\nAllow: GET\r\n"), "{answer}");
        assert_eq!(answer.ends_with("\r\n\r\n"), method == "HEAD", "only the head is sent: {answer}");
    }
}
