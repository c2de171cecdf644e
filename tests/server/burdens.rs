//! External conditions that `serve` and `watch` have to bear: output streams that nobody reads, too few descriptors,
//! signals.

use super::*;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use lanecast::protocol::server::{Status, StatusLevel};

/// A stream that accepts no more bytes. Nobody reads it as long as the other end is held.
fn stuck() -> (Stdio, UnixStream) {
    let (mut writer, reader) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    while writer.write(b".").is_ok() {}
    writer.set_nonblocking(false).unwrap();
    (OwnedFd::from(writer).into(), reader)
}

fn wait(mut child: Child) -> ExitStatus {
    let (ended, end) = mpsc::channel();
    let id = child.id().to_string();
    std::thread::spawn(move || ended.send(child.wait().unwrap()));
    end.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let _ = Command::new("kill").args(["-KILL", &id]).status();
        panic!("the program doesn't end")
    })
}

async fn subscribe_to_all(client: &mut Client) -> BTreeMap<u32, String> {
    let mut topics = BTreeMap::new();
    // `serve` advertises its channels one after the other, `/session` last, while viewers may connect already.
    while !topics.values().any(|topic| topic == "/session") {
        let ServerMessage::Advertise(Advertise { channels }) = next(client).await else { continue };
        for channel in channels {
            topics.insert(u32::try_from(channel.id).unwrap(), channel.topic);
        }
    }
    for id in topics.keys() {
        let request = format!(r#"{{"op":"subscribe","subscriptions":[{{"id":{id},"channelId":{id}}}]}}"#);
        client.send(Message::text(request)).await.unwrap();
    }
    topics
}

/// Waits until every channel has delivered `count` more messages; no other message may come.
async fn see_all(client: &mut Client, topics: &BTreeMap<u32, String>, count: u32) {
    let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
    while seen.len() < topics.len() || seen.values().any(|seen| *seen < count) {
        match next(client).await {
            ServerMessage::MessageData(data) => *seen.entry(data.subscription_id).or_default() += 1,
            // The server's time goes ahead of data.
            ServerMessage::Time(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Neither the log nor standard output is read, and both are full: the server still serves, and ends.
#[tokio::test]
async fn unread_output_streams_stop_no_viewer() {
    let ((out, _out), (err, _err)) = (stuck(), stuck());
    // The test can't read the address from standard output, so it chooses one.
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let args = ["serve", "-vvv", "--rate", "20", "--addr", &addr];
    let child = lanecast(&args).stdout(out).stderr(err).spawn().unwrap();
    let connect = async || loop {
        let mut request = format!("ws://{addr}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
        match connect_async(request).await {
            Ok((client, _)) => break client,
            // The server isn't listening yet.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    // Every step of every viewer is logged.
    for _ in 0..4 {
        let mut client = soon(connect()).await;
        let topics = subscribe_to_all(&mut client).await;
        see_all(&mut client, &topics, 3).await;
    }
    signal_to(&child, "-TERM");
    assert_eq!(tokio::task::spawn_blocking(|| wait(child)).await.unwrap().code(), Some(0));
}

#[test]
fn unread_notes_hold_up_no_data() {
    let server = Server::start(&[]);
    // 1. Messages come although no note can be written.
    let (err, _err) = stuck();
    let child = lanecast(&["watch", "-vvv", &server.addr, "--count", "20"]).stderr(err).spawn().unwrap();
    let mut watch = Run::of(child);
    for _ in 0..20 {
        watch.line(|line| line.starts_with('/'));
    }
    assert_eq!(watch.child.wait().unwrap().code(), Some(0));
    // 2. The program doesn't wait to write a complaint.
    for args in [&["watch", "nonsense://"][..], &["watch", "--nonsense"], &["serve", "--addr", "x"]] {
        let (err, _err) = stuck();
        let status = wait(lanecast(args).stderr(err).spawn().unwrap());
        assert!(matches!(status.code(), Some(1 | 2)), "{args:?}: {status}");
    }
}

/// Starts a server under a limit of open files, set by `ulimit` with these arguments.
fn with_limit(words: &str, more: &[&str]) -> Child {
    let script = format!("ulimit {words} && exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_lanecast"), "serve", "--addr", "127.0.0.1:0", "--rate", "20"]);
    command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Connections that never send anything.
async fn idle_peers(server: &Server, count: usize) -> Vec<TcpStream> {
    let mut peers = Vec::new();
    for _ in 0..count {
        peers.push(soon(TcpStream::connect(&server.addr)).await.unwrap());
    }
    peers
}

/// Raises the limit of this process, which holds the other ends; says whether `files` may be open.
fn may_open(files: u64) -> bool {
    let allowed = rlimit::increase_nofile_limit(files).is_ok_and(|limit| limit >= files);
    if !allowed {
        eprintln!("fewer than {files} files may be opened here: left out");
    }
    allowed
}

#[tokio::test]
async fn more_viewers_than_a_low_soft_limit_allows_are_served() {
    if !may_open(2000) {
        return;
    }
    let server = Server::of(Run::of(with_limit("-S -n 1024", &[])));
    let mut client = server.connect().await;
    let topics = subscribe_to_all(&mut client).await;
    see_all(&mut client, &topics, 1).await;
    let mut viewers = Vec::new();
    for _ in 0..1200 {
        viewers.push(server.connect().await);
    }
    // All of them are connected at once, and the host is still sampled.
    let all_are_here = async {
        loop {
            if let ServerMessage::MessageData(data) = next(&mut client).await
                && topics[&data.subscription_id] == "/session"
                && serde_json::from_slice::<Value>(&data.payload).unwrap()["participants"].as_u64() > Some(1200)
            {
                break;
            }
        }
    };
    soon(all_are_here).await;
    see_all(&mut client, &topics, 5).await;
    drop(viewers);
}

#[tokio::test]
async fn peers_leave_the_descriptors_that_sampling_needs() {
    if !may_open(2000) {
        return;
    }
    let run = Run::of(with_limit("-n 1024", &[]));
    let line = run.line(|line| line.starts_with("listening on "));
    let addr = line["listening on ".len()..].split(": ").next().unwrap().to_owned();
    run.line(|line| line.contains("at most 896 viewers at once: the process may open 1024 files"));
    let server = Server { run, addr };
    let mut client = server.connect().await;
    let topics = subscribe_to_all(&mut client).await;
    see_all(&mut client, &topics, 1).await;
    // More connections than there are places: those beyond are told so, or closed.
    let peers = idle_peers(&server, 1100).await;
    see_all(&mut client, &topics, 5).await;
    drop(peers);
    server.run.interrupt();
    while let Some(Ok(_)) = soon(client.next()).await {}
    let (status, _, stderr) = server.run.end();
    assert!(status.success() && stderr.is_empty(), "{stderr}");
}

/// Sets the limit of open files of a running process, and returns its former limit.
#[cfg(target_os = "linux")]
fn set_limit(child: &Child, limit: u64) -> u64 {
    let id = i32::try_from(child.id()).unwrap();
    let (mut soft, mut hard) = (0, 0);
    rlimit::prlimit(id, rlimit::Resource::NOFILE, None, Some((&mut soft, &mut hard))).unwrap();
    rlimit::prlimit(id, rlimit::Resource::NOFILE, Some((limit, hard)), None).unwrap();
    soft
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn unreadable_sources_are_left_out_and_reported() {
    const HOST: [&str; 5] = ["/cpu", "/memory", "/network", "/disks", "/load"];
    let server = Server::start(&[]);
    let mut client = server.connect().await;
    let topics = subscribe_to_all(&mut client).await;
    see_all(&mut client, &topics, 2).await;
    // 1. No file can be opened any more: every source reports it.
    let before = set_limit(&server.run.child, 3);
    let mut troubled = BTreeMap::new();
    let all_are_told = async {
        while troubled.len() < HOST.len() {
            if let ServerMessage::Status(Status { level, message, id }) = next(&mut client).await {
                assert_eq!(level, StatusLevel::Warning);
                let (topic, why) = message.split_once(" can't be read: ").unwrap();
                assert!(HOST.contains(&topic) && why.contains("Too many open files"), "{message}");
                troubled.insert(id.unwrap(), topic.to_owned());
            }
        }
    };
    soon(all_are_told).await;
    // 2. A viewer that comes now has to wait.
    let waiting = TcpStream::connect(&server.addr).await.unwrap();
    let mut request = "ws://localhost".into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
    let late = tokio::spawn(tokio_tungstenite::client_async(request, waiting));
    // 3. No message replaces what can't be read, and no status comes twice.
    let mut others = 0;
    while others < 20 {
        match next(&mut client).await {
            ServerMessage::MessageData(data) => {
                assert_eq!(topics[&data.subscription_id], "/session");
                others += 1;
            }
            ServerMessage::Time(_) => {}
            other => panic!("{other:?}"),
        }
    }
    // 4. Files can be opened again: the statuses are removed, the messages come, and the waiting viewer is let in.
    assert!(!late.is_finished());
    set_limit(&server.run.child, before);
    let all_are_over = async {
        while !troubled.is_empty() {
            if let ServerMessage::RemoveStatus(over) = next(&mut client).await {
                troubled.retain(|id, _| !over.status_ids.contains(id));
            }
        }
    };
    soon(all_are_over).await;
    see_all(&mut client, &topics, 2).await;
    drop(soon(late).await.unwrap().unwrap());
    // 5. That no connection could be accepted was logged once, however often it was tried.
    server.run.interrupt();
    while let Some(Ok(_)) = soon(client.next()).await {}
    let (status, _, stderr) = soon(tokio::task::spawn_blocking(|| server.run.end())).await.unwrap();
    assert!(status.success(), "{stderr}");
    assert_eq!(stderr.matches("no connection can be accepted").count(), 1, "{stderr}");
}

/// Started with the hang-up signal ignored, as by `nohup`, the server survives it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_ignored_hangup_stays_ignored() {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_lanecast")]);
    command.args(["serve", "--addr", "127.0.0.1:0", "--rate", "20"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let server = Server::of(Run::of(command.spawn().unwrap()));
    let mut client = server.connect().await;
    let topics = subscribe_to_all(&mut client).await;
    see_all(&mut client, &topics, 1).await;
    server.run.signal("-HUP");
    see_all(&mut client, &topics, 5).await;
}
