//! A session over the WebSocket room: what a viewer sees of resets, replacements and the end.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use lanecast::protocol::Frame;
use lanecast::room::PeerLimits;
use lanecast::room::websocket::{Admission, BindError, UpgradeRequest, WebSocketRoom};
use lanecast::telemetry::{Channel, Telemetry};
use lanecast::{BuildError, EndReason, Events, Participant, Session, SessionEvent};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, future).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

/// A session whose viewers take their identity from the path that they request.
async fn start() -> (Session<WebSocketRoom>, WebSocketRoom) {
    let room = WebSocketRoom::builder()
        .on_upgrade(|request: &UpgradeRequest| Ok(Admission::new(request.path().parse().unwrap())))
        .send_buffer_bytes(8 << 10)
        .bind("127.0.0.1:0")
        .await
        .unwrap();
    let session = Session::builder(room.clone())
        .initial(|_| async { vec![Frame::text("hello")] })
        .queue_capacity(64)
        .build()
        .unwrap();
    (session, room)
}

async fn connect(room: &WebSocketRoom) -> Client {
    let mut request = format!("ws://{}/ada", room.local_addr()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
    let (mut client, _) = soon("the hand-shake", connect_async(request)).await.unwrap();
    assert_eq!(next(&mut client).await, Message::text("hello"));
    client
}

async fn next(client: &mut Client) -> Message {
    soon("a message", client.next()).await.unwrap().unwrap()
}

/// Reads to the close frame and on to the end; returns the number of messages before it, its code and its reason.
async fn close_of(client: &mut Client) -> (usize, u16, String) {
    let mut before = 0;
    loop {
        match next(client).await {
            Message::Close(Some(frame)) => {
                assert!(soon("the end", client.next()).await.is_none());
                return (before, frame.code.into(), frame.reason.to_string());
            }
            Message::Binary(_) => before += 1,
            other => panic!("{other:?}"),
        }
    }
}

async fn joined(events: &mut Events, session: &Session<WebSocketRoom>) -> Participant<Frame> {
    loop {
        match soon("a join", events.next()).await {
            Some(SessionEvent::Joined(_)) => return session.participants().remove(0),
            Some(_) => {}
            None => panic!("the session has ended"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_viewer_is_closed_with_the_reason_and_comes_back() {
    let (session, room) = start().await;
    let mut events = session.events();
    let mut client = connect(&room).await;
    let slow = joined(&mut events, &session).await;
    // The client reads nothing while more is sent than its queue and all buffers hold.
    let payload = Bytes::from(vec![0; 256 << 10]);
    let mut sent = 0;
    while slow.end_reason().is_none() {
        session.broadcast(Frame::binary(payload.clone())).await.unwrap();
        sent += 1;
    }
    assert_eq!(slow.end_reason(), Some(EndReason::Overflow));
    let (before, code, reason) = close_of(&mut client).await;
    assert_eq!((code, reason.as_str()), (1013, EndReason::Overflow.as_str()));
    assert!(before < sent);
    assert_eq!(soon("the goodbye", slow.closed()).await, EndReason::Overflow);

    let mut again = connect(&room).await;
    let fresh = joined(&mut events, &session).await;
    assert!(fresh.sid() != slow.sid() && fresh.joined_at() > slow.joined_at());
    session.broadcast(Frame::binary(Bytes::from_static(b"42"))).await.unwrap();
    assert_eq!(next(&mut again).await, Message::binary(&b"42"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_connection_replaces_the_older_and_a_close_reaches_all() {
    let (session, room) = start().await;
    let mut events = session.events();
    let mut old = connect(&room).await;
    let first = joined(&mut events, &session).await;
    let mut new = connect(&room).await;
    assert_eq!(close_of(&mut old).await, (0, 4000, EndReason::Replaced.as_str().to_owned()));
    // If the session is still joining the older connection when the newer one comes, it ends it as disconnected.
    let reason = soon("the goodbye", first.closed()).await;
    assert!(matches!(reason, EndReason::Replaced | EndReason::Disconnected), "{reason}");

    session.broadcast(Frame::binary(Bytes::from_static(b"last"))).await.unwrap();
    let (report, seen) = tokio::join!(soon("the close", session.close(Duration::from_secs(5))), close_of(&mut new));
    assert_eq!(seen, (1, 1001, EndReason::SessionClosed.as_str().to_owned()));
    assert_eq!(report.unwrap().account.waiting(), 0);
    soon("the room", room.shutdown()).await;
    assert_eq!(room.connections(), 0);
}

// A failed join on the server's side gives the viewer no reason to stay away.
#[tokio::test]
async fn a_viewer_whose_join_fails_is_asked_to_come_back() {
    let room = WebSocketRoom::builder().bind("127.0.0.1:0").await.unwrap();
    let attempts = Arc::new(AtomicUsize::new(0));
    let initial = {
        let attempts = Arc::clone(&attempts);
        move |_| {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            async move {
                match attempt {
                    0 => panic!("once"),
                    1 => pending().await,
                    _ => vec![Frame::text("hello")],
                }
            }
        }
    };
    let session = Session::builder(room.clone()).initial(initial).open_timeout(Duration::from_millis(50));
    let session = session.reset_backoff(Duration::from_millis(1), Duration::from_millis(1)).build().unwrap();
    let viewer = || async {
        let mut request = format!("ws://{}", room.local_addr()).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
        soon("the hand-shake", connect_async(request)).await.unwrap().0
    };
    for _ in 0..2 {
        let (_, code, reason) = close_of(&mut viewer().await).await;
        assert_eq!((code, reason.as_str()), (1013, EndReason::JoinFailed.as_str()));
    }
    let mut client = viewer().await;
    assert_eq!(next(&mut client).await, Message::text("hello"));
    assert_eq!(session.stats().failed_joins, 2);
}

/// A room that shuts down ends its session without an error.
// A session that closes while somebody joins says so: a viewer that is refused wouldn't come back to the next one.
#[tokio::test]
async fn a_viewer_that_joins_while_the_session_closes_is_told_of_the_end() {
    let room = WebSocketRoom::builder().bind("127.0.0.1:0").await.unwrap();
    let begun = Arc::new(Semaphore::new(0));
    let initial = {
        let begun = Arc::clone(&begun);
        move |_| {
            begun.add_permits(1);
            pending()
        }
    };
    let session = Session::builder(room.clone()).initial(initial).build().unwrap();
    let mut request = format!("ws://{}", room.local_addr()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
    let (mut client, _) = soon("the hand-shake", connect_async(request)).await.unwrap();
    soon("the join", begun.acquire()).await.unwrap().forget();
    let closing = tokio::spawn(async move { session.close(Duration::from_secs(1)).await });
    let (_, code, reason) = close_of(&mut client).await;
    assert_eq!((code, reason.as_str()), (1001, EndReason::SessionClosed.as_str()));
    soon("the end", closing).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_session_ends_with_its_room() {
    let (session, room) = start().await;
    let mut client = connect(&room).await;
    let goodbye = tokio::spawn(async move { while let Some(Ok(_)) = client.next().await {} });
    soon("the room", room.shutdown()).await;
    soon("the goodbye", goodbye).await.unwrap();
    let report = soon("the end", session.ended()).await.expect("it ends without an error");
    assert!(report.room_closed.is_some());
}

// 1. A viewer's connection is reset. 2. At once something is broadcast, so that sometimes the reader is the first to
// notice and sometimes the sink. 3. Either way the viewer has left: that is no fault, and no reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_cut_off_during_a_broadcast_is_not_reset() {
    let rounds = match std::env::var("LANECAST_TEST_SIZE").as_deref() {
        Ok("full") => 2_000,
        _ => 100,
    };
    let (session, room) = start().await;
    let mut events = session.events();
    for round in 0..rounds {
        let mut client = connect(&room).await;
        let MaybeTlsStream::Plain(socket) = client.get_mut() else { panic!("the connection isn't plain TCP") };
        socket.set_zero_linger().unwrap();
        drop(client);
        for _ in 0..3 {
            session.broadcast(Frame::text("news")).await.unwrap();
        }
        loop {
            match soon("the end", events.next()).await {
                Some(SessionEvent::Joined(_)) => {}
                Some(SessionEvent::Left { reason: EndReason::Vanished | EndReason::Disconnected, .. }) => break,
                other => panic!("round {round}: {other:?}"),
            }
        }
    }
    let stats = session.stats();
    assert_eq!((stats.resets.total(), stats.failed_joins), (0, 0), "{} vanished", stats.vanished);
    session.close(Duration::from_secs(5)).await.unwrap();
}

// 1. A viewer sends a request, and its answers wait behind a message that it doesn't read. 2. It sends a long request,
// which takes the whole budget for viewers' messages. 3. Another viewer's long request is answered all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_that_reads_no_answers_delays_no_other() {
    const LONG: usize = 60_000;
    let limits = PeerLimits::new(LONG);
    let room = WebSocketRoom::builder().peer_limits(limits.clone()).bind("127.0.0.1:0").await.unwrap();
    let telemetry = Telemetry::builder(room.clone())
        .peer_limits(limits.clone())
        .configure(|session| session.queue_capacity(4))
        .build()
        .unwrap();
    let channel = telemetry.advertise(Channel::new("/long", "bytes")).await.unwrap();
    let url = format!("ws://{}", room.local_addr());
    let viewer = || async {
        let mut request = url.as_str().into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
        soon("the hand-shake", connect_async(request)).await.unwrap().0
    };
    let (mut stuck, mut other) = (viewer().await, viewer().await);
    let subscribe = format!(r#"{{"op":"subscribe","subscriptions":[{{"id":1,"channelId":{}}}]}}"#, channel.id());
    stuck.send(Message::text(subscribe)).await.unwrap();
    soon("the subscription", async {
        while channel.subscribers() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The message is larger than the kernel's buffers.
    channel.publish(vec![0; 16 << 20]).await.unwrap();
    let long = Message::text(format!(r#"{{"op":"unsubscribe","subscriptionIds":[9{}]}}"#, " ".repeat(LONG)));
    // Each id is answered with a warning: a few of them take what may wait for the viewer.
    stuck.send(Message::text(r#"{"op":"unsubscribe","subscriptionIds":[9,9,9,9,9,9,9,9]}"#)).await.unwrap();
    soon("what it sends to be taken", stuck.send(long.clone())).await.unwrap();
    // The other viewer sends many in turn, so the stuck viewer's message has had its chance in between.
    for _ in 0..20 {
        let begun = Instant::now();
        other.send(long.clone()).await.unwrap();
        while !matches!(next(&mut other).await, Message::Text(text) if text.contains("there is no subscription 9")) {}
        assert!(begun.elapsed() < Duration::from_secs(10), "it waited {:?}", begun.elapsed());
    }
    assert_eq!(telemetry.session().stats().participants, 2, "the other is still there, and still stuck");
}

#[tokio::test]
async fn a_room_serves_one_session() {
    let (session, room) = start().await;
    assert_eq!(Session::builder(room.clone()).build().err(), Some(BuildError::RoomTaken));
    let mut client = connect(&room).await;
    session.broadcast(Frame::text("news")).await.unwrap();
    assert_eq!(next(&mut client).await, Message::text("news"));
    drop(client);
    session.close(Duration::from_secs(5)).await.unwrap();
}

/// Where tokio would panic, the room returns an error that says what is missing.
#[test]
fn bind_fails_without_a_runtime_or_its_timers() {
    let bind = || WebSocketRoom::builder().bind("127.0.0.1:0");
    let without = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    assert!(matches!(without.block_on(bind()), Err(BindError::NoTimers)));
    let outside = bind().now_or_never().expect("it doesn't wait");
    assert!(matches!(outside, Err(BindError::NoRuntime)));
}

#[tokio::test]
async fn settings_that_would_admit_no_viewer_are_refused() {
    let builder = || WebSocketRoom::builder();
    let wrong = [
        (builder().handshake_timeout(Duration::ZERO), "handshake_timeout"),
        (builder().send_buffer_bytes(0), "send_buffer_bytes"),
        (builder().send_buffer_bytes(1 << 31), "send_buffer_bytes"),
    ];
    for (builder, setting) in wrong {
        match soon("the refusal", builder.bind("127.0.0.1:0")).await {
            Err(BindError::InvalidConfig(why)) => assert!(why.starts_with(setting), "{why}"),
            other => panic!("{setting}: {other:?}"),
        }
    }
}
