//! Two hundred viewers on real sockets, with a WebSocket library of another author: most keep up, some stall, some are
//! killed and come back.
//!
//! The publisher goes on only when every viewer that reads, killed ones included, has received everything published
//! before. So the machine's speed doesn't decide which viewers keep up; the stalled ones are left behind all the same.
#![cfg(feature = "websocket")]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use lanecast::protocol::server::{MessageData, Status};
use lanecast::protocol::{FrameKind, ServerMessage, WireFormat};
use lanecast::room::websocket::{Admission, Rejection, UpgradeRequest, WebSocketRoom};
use lanecast::telemetry::{AdvertisedChannel, Channel, PublishError, Published, Telemetry};
use lanecast::{EndReason, Events, ParticipantIdentity, SessionEvent};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

const KEEPING_UP: usize = 180;
const STALLED: usize = 10;
const KILLED: usize = 10;
/// Connections that each of these viewers makes; each ends without a close frame.
const LIVES: u64 = 4;
const MESSAGES: u64 = 640;
const MESSAGE_BYTES: usize = 4096;
const QUEUE: u32 = 64;
/// Messages published in one go: a burst that fits the queue of a viewer that keeps up.
const BURST: u64 = 16;
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

/// Takes a viewer's identity from a header.
fn who(request: &UpgradeRequest) -> Result<Admission, Rejection> {
    let name = request.header("x-viewer").ok_or_else(|| Rejection::new(401, "say who you are"))?;
    let identity = ParticipantIdentity::new(name).map_err(|error| Rejection::new(400, error.to_string()))?;
    Ok(Admission::new(identity))
}

/// A room whose kernel buffers are small, and telemetry with a small queue: a stalled viewer overflows soon.
async fn server() -> (WebSocketRoom, Telemetry, AdvertisedChannel) {
    let room = WebSocketRoom::builder().send_buffer_bytes(16 << 10).on_upgrade(who).bind("127.0.0.1:0").await.unwrap();
    let telemetry = Telemetry::builder(room.clone())
        // A stalled viewer shall overflow, not time out.
        .configure(|session| session.queue_capacity(QUEUE).write_timeout(PATIENCE))
        .build()
        .unwrap();
    let channel = telemetry.advertise(Channel::new("/data", "bytes")).await.unwrap();
    (room, telemetry, channel)
}

async fn publish(channel: &AdvertisedChannel, number: u64) {
    let mut payload = BytesMut::zeroed(MESSAGE_BYTES);
    (&mut payload[..8]).put_u64_le(number);
    assert_eq!(channel.publish_at(number, payload).await.unwrap(), Published::Sent);
}

/// A viewer with a small receive buffer.
struct Viewer(WebSocketStream<TcpStream>);

/// What a connection brings next.
enum Next {
    Said(ServerMessage),
    Closed(Option<CloseFrame>),
}

/// What a subscribed viewer gets next.
enum Heard {
    Number(u64),
    /// The answer to a question: it comes behind everything published before the question.
    Answer,
    Closed(Option<CloseFrame>),
}

impl Viewer {
    async fn connect(room: &WebSocketRoom, name: &str) -> Result<Self, Error> {
        let address = room.local_addr();
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(16 << 10)?;
        let stream = socket.connect(address).await?;
        let mut request = format!("ws://{address}").into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse()?);
        request.headers_mut().insert("x-viewer", name.parse()?);
        Ok(Self(client_async(request, stream).await?.0))
    }

    async fn next(&mut self) -> Result<Next, Error> {
        loop {
            let message = soon("a message", self.0.next()).await.ok_or(Error::ConnectionClosed)??;
            let (kind, data) = match message {
                Message::Text(text) => (FrameKind::Text, Bytes::from(text)),
                Message::Binary(data) => (FrameKind::Binary, data),
                Message::Close(frame) => return Ok(Next::Closed(frame)),
                _ => continue,
            };
            return Ok(Next::Said(ServerMessage::decode(WireFormat::V1, kind, &data).unwrap()));
        }
    }

    async fn expect(&mut self, what: &str, wanted: impl Fn(&ServerMessage) -> bool) {
        loop {
            match self.next().await.unwrap_or_else(|error| panic!("{what}: {error}")) {
                Next::Said(message) if wanted(&message) => return,
                Next::Said(_) => {}
                Next::Closed(frame) => panic!("closed before {what}: {frame:?}"),
            }
        }
    }

    /// Connects and subscribes; every message published after this returns reaches the viewer.
    async fn subscribed(room: &WebSocketRoom, name: &str, id: u32, channel: u64) -> Self {
        let mut viewer = Self::connect(room, name).await.unwrap();
        viewer.expect("serverInfo", |message| matches!(message, ServerMessage::ServerInfo(_))).await;
        viewer.expect("advertise", |message| matches!(message, ServerMessage::Advertise(_))).await;
        let subscribe = format!(r#"{{"op":"subscribe","subscriptions":[{{"id":{id},"channelId":{channel}}}]}}"#);
        viewer.0.send(Message::text(subscribe)).await.unwrap();
        // The answer to this comes when the subscription has taken effect.
        viewer.ask().await;
        viewer
    }

    async fn ask(&mut self) {
        self.0.send(Message::text(r#"{"op":"getParameters","parameterNames":[]}"#)).await.unwrap();
    }

    async fn confirmed(&mut self) {
        self.expect("the answer", is_answer).await;
    }

    /// The number of the next message, whose subscription id and content are checked; or what comes instead of a
    /// message.
    async fn hear(&mut self, id: u32) -> Result<Heard, Error> {
        match self.next().await? {
            Next::Said(ServerMessage::MessageData(MessageData { subscription_id, log_time_ns, payload })) => {
                assert_eq!(subscription_id, id);
                assert_eq!(payload.len(), MESSAGE_BYTES);
                assert_eq!(payload[..8], log_time_ns.to_le_bytes());
                Ok(Heard::Number(log_time_ns))
            }
            Next::Said(message) if is_answer(&message) => Ok(Heard::Answer),
            Next::Said(message) => panic!("{message:?}"),
            Next::Closed(frame) => Ok(Heard::Closed(frame)),
        }
    }

    /// The number of the next message, or the close frame.
    async fn number(&mut self, id: u32) -> Result<Result<u64, Option<CloseFrame>>, Error> {
        loop {
            match self.hear(id).await? {
                Heard::Number(number) => return Ok(Ok(number)),
                Heard::Answer => {}
                Heard::Closed(frame) => return Ok(Err(frame)),
            }
        }
    }
}

fn is_answer(message: &ServerMessage) -> bool {
    matches!(message, ServerMessage::Status(Status { message, .. }) if message == "this server has no parameters")
}

/// A viewer that keeps up:
/// 1. It has subscribed before anything is published.
/// 2. It gets everything, in order.
/// 3. It closes the connection.
async fn keep_up(mut viewer: Viewer, id: u32, got: Arc<Semaphore>) {
    for expected in 0..MESSAGES {
        let number = viewer.number(id).await.unwrap();
        assert_eq!(number, Ok(expected), "viewer {id}");
        if expected % BURST == BURST - 1 {
            got.add_permits(1);
        }
    }
    viewer.0.close(None).await.unwrap();
    while let Some(Ok(_)) = soon("the end", viewer.0.next()).await {}
}

/// A viewer that stalls:
/// 1. It reads nothing.
/// 2. It is reset.
/// 3. It reads what the kernel had: the beginning of everything, then 1013 with the reason.
/// 4. It comes back, and gets the initial messages afresh.
async fn stall(room: WebSocketRoom, mut viewer: Viewer, name: String, id: u32, mut events: Events) {
    loop {
        match soon("the reset", events.next()).await {
            Some(SessionEvent::Reset { who, reason, .. }) if who.identity.as_str() == name => {
                assert_eq!(reason, EndReason::Overflow);
                break;
            }
            Some(_) => {}
            None => panic!("the session has ended"),
        }
    }
    assert_eq!(events.missed(), 0);
    let mut expected = 0;
    let goodbye = loop {
        match viewer.number(id).await.unwrap() {
            Ok(number) => assert_eq!(number, expected, "{name}"),
            Err(goodbye) => break goodbye.expect("a code and a reason"),
        }
        expected += 1;
    };
    assert!(expected < MESSAGES);
    assert_eq!(u16::from(goodbye.code), 1013, "{goodbye:?}");
    assert!(goodbye.reason.contains("slow"), "{goodbye:?}");
    while let Some(Ok(_)) = soon("the end", viewer.0.next()).await {}
    let mut again = Viewer::connect(&room, &name).await.unwrap();
    again.expect("serverInfo", |message| matches!(message, ServerMessage::ServerInfo(_))).await;
    again.0.close(None).await.unwrap();
    while let Some(Ok(_)) = soon("the end", again.0.next()).await {}
}

/// A viewer that is killed:
/// 1. It reads some messages, without a gap.
/// 2. It is killed in the middle of a burst: its socket goes without a close frame.
/// 3. It comes back at once, under the same name, while the old connection is still ending and the burst may go on.
/// 4. Its last connection gets everything to the end.
///
/// At the end of each burst it asks a question. The answer comes behind what the burst had for the viewer: all of it,
/// the rest, or nothing because it came back too late. So the publisher can wait for the answer without knowing which.
async fn die_and_come_back(
    room: WebSocketRoom,
    name: String,
    id: u32,
    channel: u64,
    mut published: watch::Receiver<u64>,
    got: Arc<Semaphore>,
) {
    let (mut next_burst, mut killed_at) = (BURST, 0_u64);
    for life in 1..=LIVES {
        // Subscribing asks a question, too.
        let mut asked = Some(*published.borrow());
        let mut viewer = Viewer::subscribed(&room, &name, id, channel).await;
        let until = if life == LIVES { MESSAGES } else { life * MESSAGES / (LIVES + 1) + BURST / 2 };
        let mut expected = None;
        while expected < Some(until) || (life == LIVES && next_burst <= MESSAGES) {
            let heard = tokio::select! {
                heard = viewer.hear(id) => heard.unwrap(),
                true = async { published.wait_for(|now| *now >= next_burst).await.is_ok() }, if asked.is_none() => {
                    asked = Some(next_burst);
                    viewer.ask().await;
                    continue;
                }
            };
            match heard {
                Heard::Number(number) => {
                    // The burst in which it comes back may have no more messages for it; the next burst has all.
                    let first = killed_at..=(killed_at + 1).next_multiple_of(BURST);
                    let follows = expected.map_or(first.contains(&number), |expected| number == expected);
                    assert!(follows, "{name}: {number}");
                    expected = Some(number + 1);
                }
                Heard::Answer => {
                    if asked.take().expect("it has asked") >= next_burst {
                        assert!(expected.is_none_or(|expected| expected == next_burst), "{name}: {expected:?}");
                        got.add_permits(1);
                        next_burst += BURST;
                    }
                }
                Heard::Closed(frame) => panic!("{name}: {frame:?}"),
            }
        }
        killed_at = until;
    }
}

/// The participants with a backlog.
fn waiting(telemetry: &Telemetry) -> String {
    let participants = telemetry.session().participants();
    let waiting = participants.iter().filter(|participant| participant.stats().account.waiting() > 0);
    let waiting: Vec<_> = waiting.map(|participant| format!("{participant}: {:?}", participant.stats())).collect();
    format!("{:?}\nwaiting: {waiting:#?}", telemetry.session().stats())
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Held by each test while it runs: both count what the process has open.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone(test: impl Future<Output = ()>) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let metrics = tokio::runtime::Handle::current().metrics();
        let before = (open_files(), metrics.num_alive_tasks());
        test.await;
        // Tasks that end a moment later close what was dropped last.
        let now = || (open_files(), metrics.num_alive_tasks());
        let quiet = async {
            while now() > before {
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(PATIENCE, quiet).await.is_err() {
            panic!("open files and tasks were {before:?} and are {:?}", now());
        }
    });
}

#[test]
fn stalled_and_killed_viewers_harm_none_of_two_hundred() {
    alone(async {
        let (room, telemetry, channel) = server().await;
        let mut tasks = JoinSet::new();
        let got = Arc::new(Semaphore::new(0));
        let (told, published) = watch::channel(0);
        // 1. The viewers that keep up, and those that stall, subscribe.
        for n in 0..KEEPING_UP + STALLED {
            let id = 7 + u32::try_from(n).unwrap();
            let name = format!("v{n}");
            let mut viewer = Viewer::subscribed(&room, &name, id, channel.id()).await;
            viewer.confirmed().await;
            if n < KEEPING_UP {
                tasks.spawn(keep_up(viewer, id, Arc::clone(&got)));
            } else {
                tasks.spawn(stall(room.clone(), viewer, name, id, telemetry.session().events()));
            }
        }
        assert_eq!(channel.subscribers(), KEEPING_UP + STALLED);
        // 2. Other viewers come and are killed while messages are published.
        for n in 0..KILLED {
            let id = 1_000_000 + u32::try_from(n).unwrap();
            tasks.spawn(die_and_come_back(
                room.clone(),
                format!("k{n}"),
                id,
                channel.id(),
                published.clone(),
                Arc::clone(&got),
            ));
        }
        for number in 0..MESSAGES {
            publish(&channel, number).await;
            told.send_replace(number + 1);
            if number % BURST == BURST - 1 {
                let all = got.acquire_many(u32::try_from(KEEPING_UP + KILLED).unwrap());
                tokio::select! {
                    all = all => all.unwrap().forget(),
                    () = tokio::time::sleep(PATIENCE) => panic!("{number}: {} are there; {}", got.available_permits(), waiting(&telemetry)),
                    // Only viewers that fail end before the end.
                    Some(Err(error)) = tasks.join_next() => panic!("{error}"),
                }
            }
        }
        // 3. Every viewer has completed its schedule.
        while let Some(done) = soon("everybody", tasks.join_next()).await {
            done.unwrap();
        }
        // 4. No viewer is left, and only the stalled ones were reset.
        soon("the last to leave", async {
            // A failed connection isn't listed, and is registered until the session has noticed.
            while telemetry.session().stats().participants > 0 || room.connections() > 0 || channel.has_subscribers() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let stats = telemetry.session().stats();
        assert_eq!(stats.resets.overflow, STALLED as u64, "{stats:?}");
        assert_eq!(stats.resets.write_timed_out + stats.resets.write_panicked, 0, "{stats:?}");
        // 5. Every message has its outcome.
        let report = soon("the end", telemetry.close(Duration::from_secs(5))).await.unwrap();
        assert_eq!(report.account.waiting(), 0);
        assert!(report.account.delivered >= KEEPING_UP as u64 * MESSAGES);
        assert!(report.account.dropped.overflow > 0);
        soon("the room", room.shutdown()).await;
    });
}

#[test]
fn close_delivers_the_backlog_to_a_viewer_that_still_reads() {
    const WAITING: u64 = 60;
    alone(async {
        let (room, telemetry, channel) = server().await;
        // 1. A viewer reads nothing yet, and as many messages wait for it as may.
        let mut viewer = Viewer::subscribed(&room, "late", 7, channel.id()).await;
        viewer.confirmed().await;
        for number in 0..WAITING {
            publish(&channel, number).await;
        }
        // 2. The session is closed with a deadline that leaves time; it accepts no message from here on.
        let mut closing = Box::pin(telemetry.close(PATIENCE));
        assert!(futures_util::poll!(&mut closing).is_pending());
        assert_eq!(channel.publish("late").await, Err(PublishError::Closed));
        // 3. Now the viewer reads: everything, then a close frame.
        for expected in 0..WAITING {
            let number = viewer.number(7).await.unwrap();
            assert_eq!(number, Ok(expected));
        }
        let Err(Some(goodbye)) = viewer.number(7).await.unwrap() else { panic!("no goodbye") };
        assert_eq!(u16::from(goodbye.code), 1001, "{goodbye:?}");
        while let Some(Ok(_)) = soon("the end", viewer.0.next()).await {}
        let report = soon("the report", closing).await.unwrap();
        assert_eq!(report.account.abandoned.total() + report.account.dropped.total(), 0, "{report:?}");
        soon("the room", room.shutdown()).await;
    });
}
