//! The capability `time`, for a viewer that takes an earlier time for a seek and then clears its plots.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use lanecast::protocol::server::Capability;
use lanecast::protocol::{Frame, FrameKind, ServerMessage, WireFormat};
use lanecast::room::websocket::WebSocketRoom;
use lanecast::telemetry::{AdvertisedChannel, Channel, Telemetry};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

const PATIENCE: Duration = Duration::from_secs(60);
const MS: u64 = 1_000_000;
/// When the messages are logged: some time in 2026.
const BEGIN: u64 = 1_780_000_000_000 * MS;
/// The payload of each channel's last message.
const LAST: &[u8] = b"last";

async fn server(told: bool) -> (WebSocketRoom, Telemetry) {
    let room = WebSocketRoom::builder().bind("127.0.0.1:0").await.unwrap();
    let telemetry = Telemetry::builder(room.clone()).time(told).build().unwrap();
    (room, telemetry)
}

/// A viewer that stamps each message with the latest time it was told.
struct Viewer {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    offers_time: bool,
    clock: Option<u64>,
    seeks: usize,
    times: usize,
    /// Log time and stamp of each message.
    messages: Vec<(u64, Option<u64>)>,
}

impl Viewer {
    async fn connect(room: &WebSocketRoom) -> Self {
        let mut request = format!("ws://{}", room.local_addr()).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "foxglove.websocket.v1".parse().unwrap());
        let (socket, _) = connect_async(request).await.unwrap();
        let mut viewer = Self { socket, offers_time: false, clock: None, seeks: 0, times: 0, messages: Vec::new() };
        let ServerMessage::ServerInfo(info) = viewer.next().await else { panic!("not a serverInfo") };
        viewer.offers_time = info.capabilities.contains(&Capability::Time);
        viewer
    }

    async fn next(&mut self) -> ServerMessage {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("nothing comes");
            let (kind, data) = match message.unwrap().unwrap() {
                Message::Text(text) => (FrameKind::Text, Bytes::from(text)),
                Message::Binary(data) => (FrameKind::Binary, data),
                _ => continue,
            };
            return ServerMessage::decode(WireFormat::V1, kind, &data).unwrap();
        }
    }

    /// Subscribes to a channel under its own id, and reads until the subscription has taken effect.
    async fn subscribe(&mut self, channel: &AdvertisedChannel) {
        let id = channel.id();
        let subscribe = format!(r#"{{"op":"subscribe","subscriptions":[{{"id":{id},"channelId":{id}}}]}}"#);
        self.socket.send(Message::text(subscribe)).await.unwrap();
        self.settle().await;
    }

    /// Asks a question, and reads until the answer.
    async fn settle(&mut self) {
        self.socket.send(Message::text(r#"{"op":"getParameters","parameterNames":[]}"#)).await.unwrap();
        self.read_until(|message| matches!(message, ServerMessage::Status(_))).await;
    }

    async fn read_until(&mut self, is_last: impl Fn(&ServerMessage) -> bool) {
        loop {
            let message = self.next().await;
            match &message {
                ServerMessage::Time(time) => {
                    self.times += 1;
                    self.seeks += usize::from(self.clock.is_some_and(|clock| time.timestamp_ns < clock));
                    self.clock = Some(time.timestamp_ns);
                }
                ServerMessage::MessageData(data) => self.messages.push((data.log_time_ns, self.clock)),
                _ => {}
            }
            if is_last(&message) {
                return;
            }
        }
    }

    async fn read_to_last(&mut self) {
        self.read_until(|message| matches!(message, ServerMessage::MessageData(data) if data.payload == LAST)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_goes_with_live_messages_and_never_steps_back() {
    let (room, telemetry) = server(true).await;
    let one = telemetry.advertise(Channel::new("/one", "json")).await.unwrap();
    let two = telemetry.advertise(Channel::new("/two", "json")).await.unwrap();
    // 1. One viewer subscribes to both channels, one to the second alone, one to nothing.
    let mut both = Viewer::connect(&room).await;
    both.subscribe(&one).await;
    both.subscribe(&two).await;
    let mut second = Viewer::connect(&room).await;
    second.subscribe(&two).await;
    let mut idle = Viewer::connect(&room).await;
    idle.settle().await;
    assert!(both.offers_time && second.offers_time && idle.offers_time);
    // 2. The log times advance by 3 ms and jitter by 200; one is an hour old; some come faster than a viewer is told
    // the time; large messages come between them, which are written in another way.
    let mut random = fastrand::Rng::with_seed(17);
    for n in 0..2000 {
        let stamp = match n {
            1000 => BEGIN - 3_600_000 * MS,
            1500..1600 => BEGIN + 3 * 1500 * MS + n * 1000,
            _ => BEGIN + 3 * n * MS + random.u64(..400 * MS) - 200 * MS,
        };
        let channel = if random.bool() { &one } else { &two };
        channel.publish_at(stamp, vec![7; if n % 97 == 0 { 20_000 } else { 20 }]).await.unwrap();
        // No viewer is to fall behind.
        if n % 100 == 99 {
            both.settle().await;
            second.settle().await;
        }
    }
    for channel in [&one, &two] {
        channel.publish_at(BEGIN + 3 * 3000 * MS, LAST).await.unwrap();
    }
    // 3. No clock steps back; each message is stamped with the latest log time so far, to a millisecond.
    both.read_to_last().await;
    both.read_to_last().await;
    second.read_to_last().await;
    assert_eq!(both.messages.len(), 2002);
    for viewer in [&both, &second] {
        assert_eq!(viewer.seeks, 0);
        let mut latest = 0;
        for (log_time, stamp) in &viewer.messages {
            latest = latest.max(*log_time);
            let stamp = stamp.expect("a time comes before the first message");
            assert!(stamp <= latest && latest - stamp < MS, "{stamp} {latest}");
        }
        assert!(viewer.times > 20 && viewer.times < viewer.messages.len() / 2, "{}", viewer.times);
    }
    // 4. The idle viewer was told nothing.
    idle.settle().await;
    assert_eq!((idle.times, idle.messages.len()), (0, 0));
    // 5. A message sent directly to one viewer isn't live, and comes without the time.
    let stamp = BEGIN + 3 * 4000 * MS;
    for participant in telemetry.session().participants() {
        participant.send(Frame::message_data(one.id(), stamp, Bytes::from_static(LAST))).unwrap();
    }
    idle.read_to_last().await;
    assert_eq!((idle.times, idle.messages.len()), (0, 1));
}

#[tokio::test]
async fn a_viewer_that_falls_behind_is_told_the_time_as_it_reads() {
    let (room, telemetry) = server(true).await;
    let one = telemetry.advertise(Channel::new("/one", "json")).await.unwrap();
    let mut viewer = Viewer::connect(&room).await;
    viewer.subscribe(&one).await;
    // 1. More is published than the kernel takes, before the viewer reads: most of it waits in the backlog.
    let count = 600;
    for n in 0..count {
        one.publish_at(BEGIN + n * 10 * MS, vec![7; 15_000]).await.unwrap();
    }
    one.publish_at(BEGIN + count * 10 * MS, LAST).await.unwrap();
    // 2. Each message comes right behind its own time.
    viewer.read_to_last().await;
    assert_eq!((viewer.seeks, viewer.times), (0, viewer.messages.len()));
    assert!(viewer.messages.iter().all(|(log_time, stamp)| *stamp == Some(*log_time)));
}

#[tokio::test]
async fn a_server_without_the_capability_tells_no_time() {
    let (room, telemetry) = server(false).await;
    let one = telemetry.advertise(Channel::new("/one", "json")).await.unwrap();
    let mut viewer = Viewer::connect(&room).await;
    viewer.subscribe(&one).await;
    one.publish_at(BEGIN, LAST).await.unwrap();
    viewer.read_to_last().await;
    assert_eq!((viewer.offers_time, viewer.times), (false, 0));
}
