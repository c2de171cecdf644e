//! Pages in a real browser: `LANECAST_TEST_CHROMIUM` names it.

use tokio::sync::mpsc;

use super::nginx::Nginx;
use super::*;

/// A web server for pages that open a WebSocket to the address behind `?`, and report the outcome to this server.
struct Pages {
    addr: SocketAddr,
    said: mpsc::UnboundedReceiver<String>,
}

impl Pages {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, said) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, addr, sender.clone()));
            }
        });
        Self { addr, said }
    }

    /// The outcome of the WebSocket of the page at `url`: `told` if the server's data arrived, or `refused`.
    async fn outcome(&mut self, chromium: &str, url: &str) -> String {
        let directory = directory("chromium");
        let mut browser = tokio::process::Command::new(chromium)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg("--host-resolver-rules=MAP *.example 127.0.0.1")
            .arg(format!("--user-data-dir={}", directory.display()))
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let outcome = soon("the page", self.said.recv()).await.unwrap();
        browser.kill().await.unwrap();
        // Some megabytes. Files that the browser's helpers still hold stay until the next `cargo clean`.
        let _ = std::fs::remove_dir_all(&directory);
        outcome
    }
}

async fn answer(mut stream: TcpStream, pages: SocketAddr, said: mpsc::UnboundedSender<String>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        // A browser opens connections that it doesn't use.
        let Ok(byte) = stream.read_u8().await else { return };
        request.push(byte);
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let target = request.split(' ').nth(1).unwrap_or_default();
    let body = if let Some(outcome) = target.strip_prefix("/said?") {
        // The test may have stopped listening, which isn't an error.
        let _ = said.send(outcome.to_owned());
        String::new()
    } else if let Some(framed) = target.strip_prefix("/sandbox") {
        format!("<!doctype html><iframe sandbox='allow-scripts' src='/page{framed}'></iframe>")
    } else if target.starts_with("/page") {
        format!(
            "<!doctype html><script>
            const say = what => fetch('http://{pages}/said?' + what, {{ mode: 'no-cors' }});
            const socket = new WebSocket(location.search.slice(1), ['foxglove.sdk.v1']);
            socket.onmessage = first => {{
                socket.onmessage = socket.onerror = null;
                say(JSON.parse(first.data).op === 'serverInfo' ? 'told' : 'odd');
            }};
            socket.onerror = () => say('refused');
            </script>"
        )
    } else {
        String::new()
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // The browser may be gone, which isn't an error.
    let _ = stream.write_all((head + &body).as_bytes()).await;
}

#[tokio::test]
async fn pages_in_a_browser() {
    let Some(chromium) = program("LANECAST_TEST_CHROMIUM") else { return };
    let mut pages = Pages::start().await;
    let port = pages.addr.port();
    let by_default = Server::on_loopback(&[]);
    let allowing = Server::on_loopback(&["--allow-origin", &format!("http://evil.example:{port}")]);
    let (closed, open) = (by_default.addrs[0].port(), allowing.addrs[0].port());
    for (page, socket, outcome) in [
        // A page from this machine.
        (format!("http://localhost:{port}/page"), format!("ws://127.0.0.1:{closed}"), "told"),
        // A page from elsewhere; and the same page where it is allowed, to show that this server refused it before.
        (format!("http://evil.example:{port}/page"), format!("ws://127.0.0.1:{closed}"), "refused"),
        (format!("http://evil.example:{port}/page"), format!("ws://127.0.0.1:{open}"), "told"),
        // A page whose name points to this machine.
        (format!("http://evil.example:{port}/page"), format!("ws://evil.example:{closed}"), "refused"),
        // A page without an origin, from this machine.
        (format!("http://localhost:{port}/sandbox"), format!("ws://127.0.0.1:{closed}"), "refused"),
    ] {
        let got = pages.outcome(&chromium, &format!("{page}?{socket}")).await;
        assert_eq!(got, outcome, "{page} to {socket}");
    }
}

#[tokio::test]
async fn pages_in_a_browser_behind_nginx() {
    let (Some(chromium), Some(nginx)) = (program("LANECAST_TEST_CHROMIUM"), program("LANECAST_TEST_NGINX")) else {
        return;
    };
    let mut pages = Pages::start().await;
    // The proxy's ports are known once it runs, and the public URL has to name them. So the page goes through a server
    // without a public URL first, and then through one with it.
    let without = Server::on_loopback(&[]);
    let proxy = Nginx::start(&nginx, "browser-without", without.addrs[0], pages.addr).await;
    for port in [proxy.plain.port(), proxy.forwarding.port()] {
        let url = format!("http://robot.example:{port}/page?ws://robot.example:{port}");
        assert_eq!(pages.outcome(&chromium, &url).await, "refused", "{url}");
    }
    let [plain, forwarding] =
        [proxy.plain, proxy.forwarding].map(|addr| format!("http://robot.example:{}", addr.port()));
    let addr = without.addrs[0].to_string();
    drop(without);
    let with = Server::start(&["--addr", &addr, "--public-url", &plain, "--public-url", &forwarding]);
    for origin in [plain, forwarding] {
        let url = format!("{origin}/page?{}", origin.replace("http", "ws"));
        assert_eq!(pages.outcome(&chromium, &url).await, "told", "{url}");
    }
    drop(with);
}
