//! Which messages `watch` takes, what it prints and keeps secret, and when it reconnects.

use super::*;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

const INFO: &str = r#"{"op":"serverInfo","name":"x","capabilities":[]}"#;
const CHANNELS: &str = r#"{"op":"advertise","channels":[
    {"id":1,"topic":"/a","encoding":"json","schemaName":"","schema":""},
    {"id":2,"topic":"/b","encoding":"cdr","schemaName":"","schema":""}]}"#;

/// What a server does with a connection.
enum Step {
    /// Accepts it and sends these messages; then closes it with this code and reason, or not at all.
    Serve(Vec<Message>, Option<(u16, &'static str)>),
    /// Answers with these parts, each in a packet of its own; with none it hangs up.
    Refuse(Vec<String>),
}

fn refuse(status: &str, body: &str) -> Step {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
    Step::Refuse(vec![head, body.to_owned()])
}

fn data(subscription: u8, payload: &[u8]) -> Message {
    Message::binary([&[1, subscription, 0, 0, 0][..], &1_500_000_001_u64.to_le_bytes(), payload].concat())
}

/// Serves one connection after the other as `steps` say, then none. The task ends when the last connection has ended.
async fn scripted(steps: Vec<Step>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        for step in steps {
            let (mut stream, _) = listener.accept().await.unwrap();
            match step {
                Step::Serve(messages, close) => serve(stream, messages, close).await,
                Step::Refuse(parts) => {
                    let mut request = [0; 4096];
                    assert!(stream.read(&mut request).await.unwrap() > 0);
                    if parts.is_empty() {
                        continue;
                    }
                    stream.set_nodelay(true).unwrap();
                    for part in parts {
                        stream.write_all(part.as_bytes()).await.unwrap();
                        stream.flush().await.unwrap();
                    }
                    // The other side closes when it has what was announced.
                    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {}
                }
            }
        }
    });
    (addr, task)
}

async fn serve(stream: TcpStream, messages: Vec<Message>, close: Option<(u16, &'static str)>) {
    #[expect(clippy::result_large_err, reason = "the library's type")]
    let choose = |_: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        response.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, choose).await.unwrap();
    for message in messages {
        // `watch` may have received enough and closed.
        if socket.send(message).await.is_err() {
            return;
        }
    }
    if let Some((code, reason)) = close {
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        let _ = socket.close(Some(frame)).await;
    }
    while let Some(Ok(_)) = socket.next().await {}
}

/// Runs `watch` to its end.
async fn watch(args: &[&str]) -> (Option<i32>, Vec<String>, String) {
    let args: Vec<String> = std::iter::once("watch").chain(args.iter().copied()).map(str::to_owned).collect();
    let run = move || {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let (status, lines, notes) = Run::start(&args).end();
        (status.code(), lines, notes)
    };
    soon(tokio::task::spawn_blocking(run)).await.unwrap()
}

fn text(message: &str) -> Message {
    Message::text(message)
}

#[tokio::test]
async fn watch_takes_messages_up_to_the_servers_limit() {
    const LARGEST: usize = 64 << 20;
    // The head of the message takes 13 bytes.
    let large = |bytes: usize| Step::Serve(vec![text(INFO), text(CHANNELS), data(2, &vec![7; bytes - 13])], None);
    let (addr, task) = scripted(vec![large(LARGEST), large(LARGEST + 1)]).await;
    let (code, lines, notes) = watch(&[&addr, "--count", "1"]).await;
    assert_eq!((code, lines.len()), (Some(0), 1), "{notes}");
    assert!(lines[0].contains(&format!(" {} bytes: 07 07", LARGEST - 13)), "{}", lines[0]);
    // One byte more is refused with the reason, and not requested again.
    let (code, lines, notes) = watch(&[&addr, "--count", "1"]).await;
    assert_eq!((code, lines.len()), (Some(1), 0), "{notes}");
    assert!(notes.lines().last().unwrap().ends_with("takes up to 64 MiB"), "{notes}");
    soon(task).await.unwrap();
}

#[tokio::test]
async fn lines_of_json_carry_every_message_whole() {
    let hostile = r#"{ "n": 12345678901234567890, "s" : "\u001b\n" }"#;
    let say = vec![text(INFO), text(CHANNELS), data(1, hostile.as_bytes()), data(1, b"{"), data(2, &[0xff, 0])];
    let (addr, task) = scripted(vec![Step::Serve(say, None)]).await;
    let (code, lines, notes) = watch(&[&addr, "--json", "--count", "3"]).await;
    assert_eq!(code, Some(0), "{notes}");
    let head = |topic, encoding| {
        let time = r#""time":"1970-01-01T00:00:01.500000001Z","log_time_ns":1500000001"#;
        format!(r#"{{"topic":"{topic}",{time},"encoding":"{encoding}","#)
    };
    let message = r#""message":{"n":12345678901234567890,"s":"\u001b\n"}}"#;
    assert_eq!(lines[0], head("/a", "json") + message);
    assert_eq!(lines[1], head("/a", "json") + r#""payload_base64":"ew=="}"#);
    assert_eq!(lines[2], head("/b", "cdr") + r#""payload_base64":"/wA="}"#);
    soon(task).await.unwrap();
}

#[test]
fn json_can_be_piped_into_jq() {
    let server = Server::start(&[]);
    let mut watch = lanecast(&["watch", &server.addr, "--json", "/load", "/session"]).spawn().unwrap();
    let filter = ["-n", "-c", "--unbuffered", "[limit(6; inputs)] | map(.topic, .message | type) | unique"];
    let piped = watch.stdout.take().unwrap();
    let jq = Command::new("jq").args(filter).stdin(piped).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(jq) = jq else {
        eprintln!("jq isn't installed here: left out");
        watch.kill().unwrap();
        watch.wait().unwrap();
        return;
    };
    // 1. Every line is valid JSON for another program.
    let Output { status, stdout, stderr } = jq.wait_with_output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    assert_eq!(String::from_utf8(stdout).unwrap(), "[\"object\",\"string\"]\n");
    // 2. The other program has read enough: `watch` ends without a complaint.
    let Output { status, stderr, .. } = watch.wait_with_output().unwrap();
    let notes = String::from_utf8(stderr).unwrap();
    assert!(status.success() && notes.lines().all(|note| note.starts_with(['!', '+'])), "{notes}");
}

/// Nothing is printed that could fail, and no server is left, and yet `watch` notices that nobody reads.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_noticed_without_printing() {
    let ends_quietly = |watch: Child, notes: &mut dyn Iterator<Item = String>| {
        for note in notes {
            assert!(note.starts_with(['!', '+']), "{note}");
        }
        assert!(watch.wait_with_output().unwrap().status.success());
    };
    let server = Server::start(&[]);
    let start = || {
        let mut watch = lanecast(&["watch", &server.addr, "/nothing"]).spawn().unwrap();
        let mut notes = BufReader::new(watch.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(notes.any(|note| note.starts_with("! nothing is called /nothing")));
        (watch, notes)
    };
    let (mut first, mut first_notes) = start();
    let (mut second, mut second_notes) = start();
    drop(first.stdout.take());
    ends_quietly(first, &mut first_notes);
    drop(server);
    assert!(second_notes.any(|note| note.contains("nobody listens")));
    drop(second.stdout.take());
    ends_quietly(second, &mut second_notes);
}

/// A WebSocket server of another kind, which never sends a serverInfo.
#[tokio::test]
async fn a_server_without_a_server_info_is_given_up() {
    let (addr, _server) = scripted(vec![Step::Serve(vec![], None)]).await;
    let (code, lines, notes) = watch(&["--list", &addr]).await;
    assert_eq!((code, lines.len()), (Some(1), 0), "{notes}");
    assert!(notes.contains("no serverInfo within 10s"), "{notes}");
}

#[tokio::test]
async fn the_list_can_be_json() {
    let (addr, task) = scripted(vec![Step::Serve(vec![text(INFO), text(CHANNELS)], None)]).await;
    let (code, lines, notes) = watch(&[&addr, "--json", "--list"]).await;
    assert_eq!((code, lines.len()), (Some(0), 2), "{notes}");
    let first: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!((&first["topic"], &first["encoding"]), (&Value::from("/a"), &Value::from("json")));
    soon(task).await.unwrap();
}

#[tokio::test]
async fn watch_reconnects_and_reports_the_gap() {
    // Subscription ids count on over all connections, and there are two channels.
    let serve = |id, close| Step::Serve(vec![text(INFO), text(CHANNELS), data(id, b"1")], close);
    let scripts = [
        vec![
            serve(1, Some((1013, "too slow"))),
            refuse("503 Service Unavailable", "not yet"),
            refuse("429 Too Many Requests", "wait"),
            serve(3, None),
        ],
        vec![serve(1, Some((1001, ""))), refuse("408 Request Timeout", ""), Step::Refuse(vec![]), serve(3, None)],
    ];
    let notes_of = [
        ["1013 (too slow); connecting again in", "503 Service Unavailable: not yet;", "429 Too Many Requests: wait;"],
        ["1001; connecting again in", "HTTP 408 Request Timeout;", "connecting again in"],
    ];
    let runs =
        scripts.into_iter().zip(notes_of).zip(["1013 (too slow)", "1001"]).map(async |((steps, said), reason)| {
            let (addr, task) = scripted(steps).await;
            let (code, lines, notes) = watch(&[&addr, "--json", "--count", "2"]).await;
            assert_eq!(code, Some(0), "{notes}");
            let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
            // The note of the gap stands between the messages before and after it.
            assert_eq!(
                (lines.len(), &lines[0]["message"], &lines[2]["message"]),
                (3, &1.into(), &1.into()),
                "{lines:?}"
            );
            let gap = &lines[1]["gap"];
            assert_eq!(gap["reason"], format!("the server closed the connection: {reason}"));
            assert!(gap["from"].as_str().unwrap() < gap["to"].as_str().unwrap(), "{gap}");
            assert!(said.iter().all(|said| notes.contains(said)), "{notes}");
            soon(task).await.unwrap();
        });
    futures_util::future::join_all(runs).await;
}

/// Each case ends where its script does: nobody would answer a further connection, and `watch` would wait forever.
#[tokio::test]
async fn only_temporary_failures_are_retried() {
    let serve = |code, reason| Step::Serve(vec![text(INFO)], Some((code, reason)));
    let cases: Vec<(Vec<Step>, &[&str], &str)> = vec![
        // `watch` has never been connected.
        (vec![refuse("503 Service Unavailable", "full")], &[], "HTTP 503 Service Unavailable: full"),
        (vec![refuse("403 Forbidden", "not you\nreally")], &[], "HTTP 403 Forbidden: not you\\u000areally"),
        // It was connected, and then it is refused for a lasting reason.
        (vec![serve(1008, "go away")], &[], "1008 (go away)"),
        (vec![serve(4000, "another has your place")], &[], "4000 (another has your place)"),
        (vec![serve(1013, ""), refuse("401 Unauthorized", "who?")], &[], "HTTP 401 Unauthorized: who?"),
        (vec![serve(1013, ""), refuse("404 Not Found", "")], &[], "HTTP 404 Not Found"),
        (vec![serve(1001, ""), serve(1012, ""), serve(1008, "x")], &[], "1008 (x)"),
        // It isn't to reconnect.
        (vec![serve(1013, "too slow")], &["--no-reconnect"], "1013 (too slow)"),
        (vec![serve(1013, "too slow")], &["--list"], "1013 (too slow)"),
    ];
    let runs = cases.into_iter().map(async |(steps, args, says)| {
        let (addr, task) = scripted(steps).await;
        let (code, _, notes) = watch(&[&[&*addr], args].concat()).await;
        let complaint = notes.lines().last().unwrap();
        assert!(complaint.starts_with("lanecast: ") && complaint.ends_with(says), "{notes}");
        assert_eq!(code, Some(1), "{notes}");
        soon(task).await.unwrap();
    });
    futures_util::future::join_all(runs).await;
}

#[cfg(unix)]
#[test]
fn watch_survives_a_restart_of_the_server() {
    let first = Server::start(&[]);
    let addr = first.addr.clone();
    let watch = Run::start(&["watch", &addr, "--json", "/load"]);
    watch.line(|line| line.starts_with(r#"{"topic":"/load""#));
    // The server's terminal is closed: the server closes its connections as it does when it is asked to end.
    first.run.signal("-HUP");
    let (status, report, _) = first.run.end();
    assert!(status.success() && report.iter().any(|line| line.starts_with("closed in ")), "{report:?}");
    let second = Run::start(&["serve", "--addr", &addr, "--rate", "20"]);
    let gap = watch.line(|line| line.contains("gap"));
    assert!(gap.contains("1001"), "{gap}");
    watch.line(|line| line.starts_with(r#"{"topic":"/load""#));
    drop(second);
}

// 1. A link is cut without a word: no packet passes, and neither side is told. 2. The viewer says so, though it sends
// nothing itself.
#[cfg(target_os = "linux")]
#[test]
fn a_link_that_is_cut_is_noticed() {
    const SCRIPT: &str = r#"
        ip link set lo up || exit 77
        "$0" serve --addr 127.0.0.1:8765 --rate 20 >/dev/null 2>&1 &
        serve=$!
        until "$0" watch --list >/dev/null 2>&1; do kill -0 $serve || exit 1; done
        timeout 55 "$0" watch --no-reconnect /load | { read -r line && ip link set lo down; cat >/dev/null; }
        kill -KILL $serve
    "#;
    let cut = |way: &&[&str]| {
        let mut command = Command::new("unshare");
        command.args(*way).args(["bash", "-c", SCRIPT, env!("CARGO_BIN_EXE_lanecast")]);
        let cut = command.output().ok()?;
        (cut.status.code() != Some(77) && !cut.stderr.starts_with(b"unshare")).then_some(cut)
    };
    let ways: [&[&str]; 2] = [&["--net"], &["--net", "--map-root-user"]];
    let Some(cut) = ways.iter().find_map(cut) else {
        return eprintln!("left out: no network namespace can be made here (unshare, ip)");
    };
    let said = String::from_utf8_lossy(&cut.stderr);
    assert!(said.contains("broke: "), "{said}");
}

#[tokio::test]
async fn no_secret_is_printed() {
    const SECRET: &str = "hunter2-Zm9v";
    // 1. Servers repeat what they were sent, in various places.
    let told = format!(r#"{{"op":"status","level":1,"message":"hello {SECRET}"}}"#);
    let steps = vec![
        Step::Serve(vec![text(INFO), text(&told)], Some((1013, "hunter2-Zm9v is too slow"))),
        refuse("429 Too Many Requests", &format!("token {SECRET}")),
        Step::Refuse(vec![format!("HTTP/1.1 302 Found\r\nLocation: ws://h/?x={SECRET}\r\n\r\n{SECRET}")]),
    ];
    let (addr, task) = scripted(steps).await;
    for url in [format!("ws://{SECRET}@{addr}/live?token={SECRET}#{SECRET}"), format!("{addr}?token={SECRET}")] {
        let (_, lines, notes) = watch(&[&url, "--json", "-vvv"]).await;
        assert!(!notes.contains(SECRET) && !lines.concat().contains(SECRET), "{notes}{lines:?}");
        assert!(notes.lines().last().unwrap().starts_with("lanecast: "), "{notes}");
        if notes.contains("429") {
            assert!(notes.contains("! warning: hello (hidden)") && notes.contains("(hidden) is too slow"), "{notes}");
        }
    }
    soon(task).await.unwrap();
    // 2. The command line itself is in error.
    let url = format!("ws://me:{SECRET}@127.0.0.1:99999/?{SECRET}");
    let word = format!("me:{SECRET}@127.0.0.1:x");
    let unreachable = format!("ws://host.invalid:1/?token={SECRET}");
    let cases: [&[&str]; 6] = [
        &["watch", &url],
        &["watch", &word, "--lsit"],
        &["watch", "--count", &url],
        &["watch", &url.replace("ws:", "http:")],
        &["watch", &unreachable],
        &["serve", "--addr", &word],
    ];
    for args in cases {
        let Output { status, stdout, stderr } = lanecast(args).output().unwrap();
        let said = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(!status.success() && !said.contains(SECRET) && said.lines().count() == 1, "{args:?}: {said}");
    }
}
