//! Broadcasts over the WebSocket room: framed from one shared message, with each viewer's own tag.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, Stream, StreamExt};
use lanecast::protocol::Frame;
use lanecast::room::websocket::{WebSocketRoom, WebSocketSink};
use lanecast::room::{Room, RoomEvent};
use lanecast::{BroadcastRun, Participant, Progress, RunSink, Session, SubscriptionTag, Topic};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, future).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

async fn room() -> WebSocketRoom {
    WebSocketRoom::builder().send_buffer_bytes(8 << 10).bind("127.0.0.1:0").await.unwrap()
}

/// A client with a small receive buffer.
async fn connect(room: &WebSocketRoom) -> WebSocketStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 << 10).unwrap();
    let stream = socket.connect(room.local_addr()).await.unwrap();
    let mut request = format!("ws://{}/", room.local_addr()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse().unwrap());
    soon("the hand-shake", client_async(request, stream)).await.unwrap().0
}

/// A room is open as long as its events are kept.
type Open = (WebSocketRoom, Pin<Box<dyn Stream<Item = RoomEvent<<WebSocketRoom as Room>::Incoming>> + Send>>);

/// A room without a session, the sink to one client, and that client.
async fn pair() -> (Open, WebSocketSink, WebSocketStream<TcpStream>) {
    let room = room().await;
    let mut open: Open = (room.clone(), Box::pin(room.events().unwrap()));
    let client = connect(&room).await;
    let Some(RoomEvent::Active(presence)) = soon("the viewer", open.1.next()).await else { panic!("nobody came") };
    let sink = room.open(&presence, Progress::default()).await.unwrap();
    (open, sink, client)
}

async fn next(client: &mut WebSocketStream<TcpStream>) -> Message {
    soon("a message", client.next()).await.unwrap().unwrap()
}

/// The next data frame; pongs before it are counted.
async fn data(client: &mut WebSocketStream<TcpStream>, pongs: &mut usize) -> Message {
    loop {
        match next(client).await {
            Message::Pong(_) => *pongs += 1,
            message => return message,
        }
    }
}

fn share(sink: &mut WebSocketSink, frame: &Frame, tag: Option<u32>) {
    let run = BroadcastRun::new(std::slice::from_ref(frame), tag.map(SubscriptionTag));
    assert_eq!(Pin::new(sink).start_send_run(&run).unwrap(), 1);
}

/// A numbered message of one of four sizes: some are copied, some are shared with the kernel.
fn numbered(number: u64) -> Frame {
    let mut payload = vec![number as u8; [8, 900, 20_000, 70_000][(number % 4) as usize]];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    Frame::message_data(0, number, payload.into())
}

fn tagged(mut frame: Frame, tag: u32) -> Message {
    frame.set_subscription_id(tag);
    Message::Binary(frame.to_bytes())
}

#[tokio::test]
async fn shared_and_own_messages_go_out_in_the_order_of_the_calls() {
    let (_open, mut sink, mut client) = pair().await;
    let (shared, given) = (numbered(1), numbered(4));
    sink.feed(Frame::text("first")).await.unwrap();
    share(&mut sink, &shared, Some(7));
    sink.feed(given.clone()).await.unwrap();
    share(&mut sink, &shared, None);
    share(&mut sink, &Frame::text("to all"), Some(7));
    sink.feed(Frame::text("last")).await.unwrap();
    sink.flush().await.unwrap();
    assert_eq!(next(&mut client).await, Message::text("first"));
    assert_eq!(next(&mut client).await, tagged(shared.clone(), 7));
    assert_eq!(next(&mut client).await, tagged(given, 0));
    assert_eq!(next(&mut client).await, tagged(shared.clone(), 0), "the shared message is unchanged");
    assert_eq!(next(&mut client).await, Message::text("to all"), "a text message has no place for a tag");
    assert_eq!(next(&mut client).await, Message::text("last"));
}

/// 1. The client reads nothing until the socket is full in the middle of a shared message.
/// 2. It pings, and reads on.
/// 3. Everything arrives whole, in order and with its tag, and pongs come only between frames.
#[tokio::test]
async fn the_rest_of_a_shared_message_is_kept_while_the_viewer_stalls() {
    let (_open, mut sink, mut client) = pair().await;
    let mut sent = 0;
    loop {
        while sink.feed(Frame::text("own")).now_or_never().is_some() && sent % 5 != 4 {
            share(&mut sink, &numbered(sent), Some(sent as u32));
            sent += 1;
        }
        share(&mut sink, &numbered(sent), Some(sent as u32));
        sent += 1;
        if sink.flush().now_or_never().is_none() {
            break;
        }
    }
    client.send(Message::Ping(Bytes::from_static(b"are you there"))).await.unwrap();
    let flushed = tokio::spawn(async move {
        sink.flush().await.unwrap();
        share(&mut sink, &numbered(sent), Some(sent as u32));
        sink.flush().await.unwrap();
        sink
    });
    let (mut expected, mut pongs) = (0, 0);
    while expected <= sent {
        match data(&mut client, &mut pongs).await {
            Message::Text(text) => assert_eq!(text.as_str(), "own"),
            message => {
                assert_eq!(message, tagged(numbered(expected), expected as u32));
                expected += 1;
            }
        }
    }
    drop(soon("the flush", flushed).await.unwrap());
    while pongs == 0 {
        assert!(matches!(next(&mut client).await, Message::Pong(_)));
        pongs += 1;
    }
}

/// Viewers subscribe under ids of their own. Broadcasts to a topic, to all, and direct messages arrive in the order in
/// which they were sent, though no viewer reads meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_viewer_gets_the_topic_under_its_own_id() {
    let room = room().await;
    let session = Session::builder(room.clone()).build().unwrap();
    let topic = Topic::new();
    let mut clients = Vec::new();
    for tag in [11, 12, 13] {
        let client = connect(&room).await;
        let present = async {
            while session.participants().len() <= clients.len() {
                tokio::task::yield_now().await;
            }
            session.participants()
        };
        let present = soon("the join", present).await;
        let new = present.into_iter().max_by_key(Participant::joined_at).expect("somebody is present");
        new.subscribe(&topic, SubscriptionTag(tag)).await;
        clients.push((tag, client, new));
    }
    for number in 0..40 {
        session.broadcast_to(&topic, numbered(number)).await.unwrap();
        session.broadcast(Frame::text(number.to_string())).await.unwrap();
        for (tag, _, participant) in &clients {
            participant.send(Frame::text(format!("{tag}: {number}"))).unwrap();
        }
    }
    for (tag, client, _) in &mut clients {
        for number in 0..40 {
            assert_eq!(next(client).await, tagged(numbered(number), *tag));
            assert_eq!(next(client).await, Message::text(number.to_string()));
            assert_eq!(next(client).await, Message::text(format!("{tag}: {number}")));
        }
    }
}
