//! `lanecast serve` and what connects to it: programs, web pages in a real browser, a real proxy.
#![cfg(feature = "server")]

mod chromium;
mod nginx;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A test that waits longer than this fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

/// An external program that the environment names. Without it the tests that need it are left out, with a note.
fn program(variable: &str) -> Option<String> {
    let named = std::env::var(variable).ok();
    if named.is_none() {
        eprintln!("left out: {variable} names no program (.ci/browser installs one)");
    }
    named
}

/// A directory of its own for each caller, empty.
fn directory(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{count}", std::process::id()));
    // Removes what an earlier run with the same process id left.
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn serve(more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lanecast"));
    command.arg("serve").args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// A server that is killed when the test ends, whether or not the test passes.
struct Server {
    child: Child,
    addrs: Vec<SocketAddr>,
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    fn start(more: &[&str]) -> Self {
        let mut child = serve(more).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let addrs = line.strip_prefix("listening on ").and_then(|rest| rest.split(": ").next());
        let addrs = addrs.unwrap_or_else(|| panic!("it didn't start: {line}")).split(" and ");
        Self { addrs: addrs.map(|addr| addr.parse().unwrap()).collect(), child, _stdout: stdout }
    }

    fn on_loopback(more: &[&str]) -> Self {
        Self::start(&[&["--addr", "127.0.0.1:0"], more].concat())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is not an error that the server has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The status and the whole answer to an upgrade with these headers.
async fn ask(to: SocketAddr, headers: &[&str]) -> (u16, String) {
    let rest = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: foxglove.sdk.v1";
    let mut stream = TcpStream::connect(to).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\n{rest}\r\n{}\r\n\r\n", headers.join("\r\n"));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(soon("the answer", stream.read_u8()).await.unwrap());
    }
    let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
    if status != 101 {
        // A proxy may keep the connection open for further requests.
        let length = String::from_utf8_lossy(&answer).lines().find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length: ").and_then(|length| length.parse().ok())
        });
        let mut body = vec![0; length.expect("every refusal has a body")];
        soon("the rest", stream.read_exact(&mut body)).await.unwrap();
        answer.extend(body);
    }
    (status, String::from_utf8(answer).unwrap())
}

async fn expect(server: SocketAddr, cases: &[(&[&str], u16)]) {
    for (headers, status) in cases {
        let (got, answer) = ask(server, headers).await;
        assert_eq!(got, *status, "{headers:?}: {answer}");
    }
}

#[tokio::test]
async fn a_loopback_server_lets_in_local_pages_and_the_foxglove_app_only() {
    let server = Server::on_loopback(&[]);
    let own = format!("Host: {}", server.addrs[0]);
    expect(
        server.addrs[0],
        &[
            (&[&own], 101),
            (&[&own, "Origin: http://localhost:3000"], 101),
            (&[&own, "Origin: http://127.0.0.1:8080"], 101),
            (&[&own, "Origin: http://[::1]"], 101),
            (&[&own, "Origin: file://"], 101),
            (&[&own, "Origin: https://app.foxglove.dev"], 101),
            (&[&own, "Origin: https://embed.foxglove.dev"], 101),
            (&[&own, "Origin: http://app.foxglove.dev"], 403),
            (&[&own, "Origin: https://foxglove.dev"], 403),
            (&[&own, "Origin: https://app.foxglove.dev.evil.example"], 403),
            (&[&own, "Origin: https://app.foxglove.dev@evil.example"], 403),
            (&[&own, "Origin: http://evil.example"], 403),
            (&[&own, "Origin: null"], 403),
            (&["Host: evil.example:8765", "Origin: http://evil.example:8765"], 403),
            (&["Host: evil.example:8765"], 403),
            (&[&own, "X-Forwarded-Host: evil.example", "Origin: http://evil.example"], 403),
        ],
    )
    .await;
    let (_, answer) = ask(server.addrs[0], &[&own, "Origin: http://evil.example"]).await;
    assert!(answer.contains("--allow-origin http://evil.example"), "{answer}");
    let (_, answer) = ask(server.addrs[0], &["Host: robot.example"]).await;
    assert!(answer.contains("--public-url http://robot.example"), "{answer}");
}

#[tokio::test]
async fn flags_let_in_further_origins() {
    let server = Server::on_loopback(&[
        "--public-url",
        "https://robot.example",
        "--public-url",
        "ws://10.0.0.7:8080",
        "--allow-origin",
        "https://viewer.example",
    ]);
    expect(
        server.addrs[0],
        &[
            (&["Host: robot.example", "Origin: https://robot.example"], 101),
            (&["Host: localhost", "Origin: https://robot.example"], 101),
            (&["Host: 10.0.0.7:8080", "Origin: http://10.0.0.7:8080"], 101),
            (&["Host: robot.example", "Origin: https://viewer.example"], 101),
            (&["Host: viewer.example", "Origin: https://viewer.example"], 403),
            (&["Host: localhost", "Origin: http://robot.example"], 403),
        ],
    )
    .await;
}

/// A server that other machines can reach refuses the pages of viewers by default, and lets its own pages in.
#[tokio::test]
async fn a_server_on_all_addresses_lets_in_its_own_pages_only() {
    let server = Server::start(&["--addr", "0.0.0.0:0", "--insecure"]);
    let to = SocketAddr::from(([127, 0, 0, 1], server.addrs[0].port()));
    expect(
        to,
        &[
            (&["Host: robot"], 101),
            (&["Host: robot", "Origin: http://robot"], 101),
            (&["Host: robot", "Origin: http://localhost"], 403),
            (&["Host: robot", "Origin: https://app.foxglove.dev"], 403),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_name_is_served_at_all_its_addresses() {
    let server = Server::start(&["--addr", "localhost:0"]);
    let port = server.addrs[0].port();
    for ip in ["127.0.0.1", "::1"] {
        let addr = SocketAddr::new(ip.parse().unwrap(), port);
        let resolved: Vec<_> = tokio::net::lookup_host("localhost:0").await.unwrap().map(|addr| addr.ip()).collect();
        if !resolved.contains(&addr.ip()) || TcpListener::bind((addr.ip(), 0)).is_err() {
            eprintln!("left out in part: {ip} is no address of localhost here");
            continue;
        }
        assert!(server.addrs.contains(&addr), "{:?}", server.addrs);
        assert_eq!(ask(addr, &[&format!("Host: localhost:{port}")]).await.0, 101);
    }
}

#[test]
fn an_error_names_the_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (args, parts) in [
        (["--addr", &taken], &["--addr", &*taken][..]),
        (["--addr", "nonsense"], &["--addr \"nonsense\"", "HOST:PORT"]),
        (["--addr", "0.0.0.0:0"], &["--addr 0.0.0.0:0", "--insecure"]),
        (["--public-url", "robot"], &["--public-url: \"robot\"", "https://"]),
        (["--allow-origin", "https://x/y"], &["--allow-origin: \"https://x/y\"", "https://"]),
        (["--allow-origin", "null"], &["--allow-origin: \"null\"", "sandboxed"]),
        (["--trusted-proxy", "proxy"], &["--trusted-proxy"]),
    ] {
        let Output { status, stderr, .. } = serve(&args).stderr(Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(!status.success() && stderr.lines().count() == 1, "{args:?}: {stderr}");
        assert!(parts.iter().all(|part| stderr.contains(part)), "{args:?}: {stderr}");
    }
}
