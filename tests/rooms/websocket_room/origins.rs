//! Which web pages may connect, and how the hook can decide otherwise.

use super::*;

/// The status and the answer of an upgrade with these additional lines.
async fn ask(server: &Server, more: &[&str]) -> (u16, String) {
    let request = request("GET /viewer HTTP/1.1", "").replace("Host: localhost\r\n", "");
    let request = request.trim_end().to_owned() + "\r\n" + &more.join("\r\n") + "\r\n\r\n";
    let mut stream = server.tcp().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(soon("the answer", stream.read_u8()).await.unwrap());
    }
    let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
    if status != 101 {
        soon("the rest", stream.read_to_end(&mut answer)).await.unwrap();
    }
    (status, String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn only_the_servers_own_pages_may_connect() {
    let server = Server::start(WebSocketRoom::builder()).await;
    for (lines, status) in [
        (&["Host: localhost:8765"][..], 101),
        (&["Host: localhost:8765", "Origin: http://localhost:8765"], 101),
        (&["Host: localhost:8765", "Origin: http://localhost"], 403),
        (&["Host: localhost:8765", "Origin: http://evil.example"], 403),
        (&["Host: localhost:8765", "Origin: null"], 403),
        (&["Host: localhost:8765", "Origin: "], 403),
        (&["Host: localhost:8765", "Origin: file://"], 403),
        (&["Host: localhost:8765", "Origin: http://localhost:8765", "Origin: http://localhost:8765"], 403),
        // A page whose name points to this machine.
        (&["Host: evil.example:8765", "Origin: http://evil.example:8765"], 403),
        (&["Host: evil.example:8765"], 403),
        // Headers that any client can write.
        (&["Host: localhost", "X-Forwarded-Host: evil.example", "Origin: http://evil.example"], 403),
        (&["Host: evil.example", "X-Forwarded-Host: localhost"], 403),
        (&["Host: localhost", "Forwarded: host=evil.example;proto=https", "Origin: https://evil.example"], 403),
        (&["X-Forwarded-Host: localhost"], 400),
        (&["Host: localhost", "Host: localhost"], 400),
    ] {
        let (got, answer) = ask(&server, lines).await;
        assert_eq!(got, status, "{lines:?}: {answer}");
    }
    let (_, answer) = ask(&server, &["Host: localhost", "Origin: http://evil.example"]).await;
    for part in ["Origin: http://evil.example ", "--allow-origin http://evil.example", "public_url"] {
        assert!(answer.contains(part), "{answer}");
    }
    assert!(answer.contains("\r\nX-Content-Type-Options: nosniff\r\n"), "{answer}");
}

#[tokio::test]
async fn a_foreign_page_is_refused_whatever_else_is_wrong() {
    let server = Server::start(WebSocketRoom::builder()).await;
    let request = request("GET / HTTP/1.1", "Origin: http://evil.example\r\n").replace(SDK, "mqtt");
    let answer = answer_to(&server, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

/// On other addresses than loopback the server's names aren't known: a page of the same host counts as the server's
/// own.
#[tokio::test]
async fn a_room_on_other_addresses_compares_the_origin_with_the_host() {
    let Some(own) = own_address() else { return };
    let room = WebSocketRoom::builder().bind(std::net::SocketAddr::new(own, 0)).await.unwrap();
    let server = Server { events: Box::pin(room.events().expect("it is asked for once")), room };
    for (host, origin, status) in [
        ("robot:8765", "http://robot:8765", 101),
        ("robot:8765", "http://robot", 403),
        ("robot", "https://robot", 101),
        ("robot", "http://evil.example", 403),
    ] {
        let lines = [&*format!("Host: {host}"), &*format!("Origin: {origin}")];
        assert_eq!(ask(&server, &lines).await.0, status, "{lines:?}");
    }
}

/// A hook that knows its viewers by a token; a viewer with the right token needs no origin check.
fn by_token(request: &UpgradeRequest) -> Result<Admission, Rejection> {
    let admission = Admission::new("ada".parse().unwrap());
    match request.header("x-token") {
        Some("right") => Ok(admission.from_any_origin()),
        // The hook admits the viewer, and the room's own origin check still applies.
        Some("none needed") => Ok(admission),
        Some("page") => match request.refusal() {
            Some(refusal) => Err(Rejection::new(451, format!("not from there: {}", refusal.message()))),
            None => Ok(admission),
        },
        _ => Err(Rejection::new(401, "say who you are")),
    }
}

#[tokio::test]
async fn the_hook_can_override_the_origin_check() {
    let server = Server::start(WebSocketRoom::builder().on_upgrade(by_token)).await;
    let foreign = "Origin: http://evil.example";
    for (lines, status) in [
        (&["Host: localhost", "X-Token: none needed"][..], 101),
        (&["Host: localhost", "X-Token: none needed", foreign], 403),
        (&["Host: evil.example", "X-Token: none needed"], 403),
        (&["Host: localhost", "X-Token: right", foreign], 101),
        (&["Host: evil.example", "X-Token: right", "Origin: null"], 101),
        (&["Host: localhost", "X-Token: page"], 101),
        (&["Host: localhost", "X-Token: page", foreign], 451),
        (&["Host: localhost", "X-Token: wrong", foreign], 401),
        (&["Host: localhost", "X-Token: wrong"], 401),
    ] {
        let (got, answer) = ask(&server, lines).await;
        assert_eq!(got, status, "{lines:?}: {answer}");
    }
}

#[tokio::test]
async fn settings_let_in_further_origins() {
    let (own, foreign) = (["Host: a.example", "Origin: https://a.example"], ["Host: b.example", "Origin: null"]);
    let page = ["Host: localhost", "Origin: http://localhost:3000"];
    let builder = WebSocketRoom::builder;
    for (builder, statuses) in [
        (builder(), [403, 403, 403]),
        (builder().public_url("wss://a.example/telemetry"), [101, 403, 403]),
        (builder().allow_origin("https://a.example"), [403, 403, 403]),
        (builder().allow_origin("http://localhost:3000"), [403, 403, 101]),
        (builder().allow_loopback_origins(), [403, 403, 101]),
        (builder().allow_any_origin(), [101, 101, 101]),
    ] {
        let shown = format!("{builder:?}");
        let server = Server::start(builder).await;
        let got = [ask(&server, &own).await.0, ask(&server, &foreign).await.0, ask(&server, &page).await.0];
        assert_eq!(got, statuses, "{shown}");
    }
}

#[tokio::test]
async fn invalid_settings_are_named() {
    let error = WebSocketRoom::builder().public_url("robot").public_url("x").bind("127.0.0.1:0").await.unwrap_err();
    assert!(matches!(&error, BindError::InvalidPublicUrl { url, .. } if url == "robot"), "{error}");
    let error = WebSocketRoom::builder().allow_origin("null").bind("127.0.0.1:0").await.unwrap_err();
    assert!(matches!(&error, BindError::InvalidOrigin { origin, .. } if origin == "null"), "{error}");
    assert!(error.to_string().contains("sandboxed"), "{error}");
}
