//! Viewers of all delivery classes on real sockets, for a long time: some stall and go on, some reconnect. What each of
//! them gets and loses adds up to what was published, to the message.
//!
//! The publisher waits for the viewers that keep up, so the machine's speed doesn't decide which viewers those are. The
//! others fall behind all the same. With `LANECAST_TEST_SIZE=full`: 500 viewers for ten minutes.

mod common;

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{assert_settled, id, size, until, within};
use futures_util::StreamExt;
use futures_util::future::join_all;
use lanecast::protocol::server::MessageData;
use lanecast::protocol::{Frame, FrameKind, ServerMessage, WireFormat};
use lanecast::room::websocket::{Admission, UpgradeRequest, WebSocketRoom};
use lanecast::{
    Class, ClientId, EndReason, Events, Latest, Lossy, Participant, Profile, Rate, Session, SessionEvent, Subscribed,
    SubscriptionTag, Topic,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// How many messages may wait for a viewer; more than one that stalls for a second misses, fewer than in ten.
const QUEUE: u32 = 256;
/// How far the publisher runs ahead of the viewers that keep up, in messages of one topic.
const AHEAD: u64 = 48;
/// The time between two rounds of the publisher. In each, every topic gets a message, or each fourth round.
const PACE: Duration = Duration::from_millis(20);
/// How many messages of the retained topic a late subscriber gets.
const RETAINED: u64 = 3;

/// The topics, by their number, which is also the tag of all subscriptions to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Reliable,
    ReliableRetained,
    Lossy,
    /// Few messages may wait, and not for long.
    LossyNarrow,
    /// Messages that aren't copied, each fourth round.
    LossyLarge,
    Latest,
    /// At most five messages a second.
    LatestRated,
    /// A reliable topic, to which viewers subscribe with a rate of their own.
    Wished,
    /// The class changes from time to time.
    Changing,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Reliable,
        Self::ReliableRetained,
        Self::Lossy,
        Self::LossyNarrow,
        Self::LossyLarge,
        Self::Latest,
        Self::LatestRated,
        Self::Wished,
        Self::Changing,
    ];

    fn profile(self) -> Profile {
        let few = |count| NonZeroU32::new(count).expect("not zero");
        match self {
            Self::Reliable | Self::Wished => Profile::reliable(),
            Self::ReliableRetained => Profile::reliable().retain(RETAINED as u32),
            Self::Lossy | Self::Changing | Self::LossyLarge => Profile::lossy(Lossy::default()),
            Self::LossyNarrow => {
                Profile::lossy(Lossy::default().max_messages(few(8)).max_age(Duration::from_millis(300)))
            }
            Self::Latest => Profile::latest(Latest::default()),
            Self::LatestRated => Profile::latest(Latest::default().rate(Rate::messages_per_second(few(5)))),
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::LossyLarge => 20_000,
            Self::Reliable | Self::ReliableRetained => 1_200,
            Self::Lossy => 600,
            _ => 60,
        }
    }

    fn is_reliable(self) -> bool {
        matches!(self, Self::Reliable | Self::ReliableRetained)
    }

    /// Whether the last message arrives at every viewer, however far behind it was.
    fn keeps_last(self) -> bool {
        self.is_reliable() || matches!(self, Self::Latest | Self::LatestRated | Self::Wished)
    }

    /// The topics of viewer `number`.
    fn of(number: usize, role: Role) -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .enumerate()
            .filter(move |(at, kind)| {
                let chosen = !(number / 2 + at).is_multiple_of(3) || matches!(kind, Self::Changing);
                if kind.is_reliable() { role.has_reliable() && (chosen || role == Role::Steady) } else { chosen }
            })
            .map(|(_, kind)| kind)
    }
}

/// What a viewer does until the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Reads all the time.
    Steady,
    /// Reads, stalls, and goes on, with reliable topics too: sometimes it overflows.
    Stalls,
    /// The same with topics that may lose messages: it is never reset.
    StallsLossy,
    /// Drops its connection and comes back.
    Reconnects,
}

impl Role {
    /// Of forty viewers one stalls in each of the two ways, and two reconnect.
    fn of(number: usize) -> Self {
        match number % 40 {
            7 => Self::Stalls,
            27 => Self::StallsLossy,
            13 | 33 => Self::Reconnects,
            _ => Self::Steady,
        }
    }

    fn has_reliable(self) -> bool {
        self != Self::StallsLossy
    }

    /// Whether the viewer is never reset.
    fn is_safe(self) -> bool {
        matches!(self, Self::Steady | Self::StallsLossy)
    }
}

fn name(number: usize) -> String {
    format!("v{number}")
}

/// What was published, and to whom. Nothing is published while somebody subscribes, so that it is known which messages
/// each subscription gets.
struct Published {
    /// The number of the next message, by topic.
    next: [u64; Kind::ALL.len()],
    instances: HashMap<ClientId, Instance>,
}

/// The server's knowledge of one instance.
struct Instance {
    participant: Participant<Frame>,
    /// The first message that it gets of each of its topics.
    first: HashMap<Kind, u64>,
}

struct Stage {
    session: Session<WebSocketRoom>,
    room: WebSocketRoom,
    topics: [Topic; Kind::ALL.len()],
    published: tokio::sync::Mutex<Published>,
    /// The number of the last reliable message that each viewer has, plus one.
    progress: Vec<AtomicU64>,
    /// How many questions everybody was asked.
    asked: AtomicU64,
    /// The last question that each viewer has read.
    answered: Vec<AtomicU64>,
    /// A viewer has read more.
    moved: Notify,
}

impl Stage {
    async fn new(viewers: usize) -> (Arc<Self>, Events) {
        let room = WebSocketRoom::builder()
            .on_upgrade(|request: &UpgradeRequest| Ok(Admission::new(id(request.path().trim_start_matches('/')))))
            .send_buffer_bytes(16 << 10)
            .bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let mut builder = Session::builder(room.clone())
            .queue_capacity(QUEUE)
            .shards(2)
            .reset_backoff(Duration::from_millis(10), Duration::from_millis(200))
            .initial(async |participant: Participant<Frame>| vec![Frame::text(participant.sid().to_string())]);
        let events = builder.events();
        let session = builder.build().expect("the settings make sense");
        let stage = Self {
            session,
            room,
            topics: Kind::ALL.map(|kind| Topic::with(kind.profile())),
            published: tokio::sync::Mutex::new(Published { next: [0; Kind::ALL.len()], instances: HashMap::new() }),
            progress: (0..viewers).map(|_| AtomicU64::new(0)).collect(),
            asked: AtomicU64::new(0),
            answered: (0..viewers).map(|_| AtomicU64::new(0)).collect(),
            moved: Notify::new(),
        };
        (Arc::new(stage), events)
    }

    /// Subscribes a new instance to its topics.
    async fn subscribe(&self, participant: Participant<Frame>) {
        let number: usize = participant.identity().as_str()[1..].parse().expect("a viewer's name");
        let mut published = self.published.lock().await;
        if number % 10 == 4 {
            // More than its reliable messages take: those are charged and never delayed.
            participant.set_rate(NonZeroU64::new(250_000));
        }
        let subscribing = Kind::of(number, Role::of(number)).map(async |kind| {
            let (topic, tag) = (&self.topics[kind as usize], SubscriptionTag(kind as u32));
            let subscribed = match kind {
                Kind::Wished => participant.subscribe_at(topic, tag, Rate::every(Duration::from_millis(70))).await,
                _ => participant.subscribe(topic, tag).await,
            };
            // An instance that has ended isn't one of those that are asked at the end.
            assert!(matches!(subscribed, Subscribed::New | Subscribed::Closed), "{kind:?}: {subscribed:?}");
            let next = published.next[kind as usize];
            (kind, if kind == Kind::ReliableRetained { next.saturating_sub(RETAINED) } else { next })
        });
        let first = join_all(subscribing).await.into_iter().collect();
        published.instances.insert(participant.client_id(), Instance { participant, first });
    }

    /// Subscribes whoever joins. Returns the reasons of all resets, by viewer, when the session has ended.
    async fn welcome(self: Arc<Self>, mut events: Events) -> HashMap<String, Vec<EndReason>> {
        let mut resets: HashMap<String, Vec<EndReason>> = HashMap::new();
        let mut subscribing = JoinSet::new();
        while let Some(event) = events.next().await {
            match event {
                SessionEvent::Joined(who) | SessionEvent::Replaced { who, .. } => {
                    let participant = self.session.participant(&who.identity);
                    if let Some(new) = participant.filter(|participant| participant.client_id() == who.client_id) {
                        let stage = Arc::clone(&self);
                        subscribing.spawn(async move { stage.subscribe(new).await });
                    }
                }
                SessionEvent::Reset { who, reason, account } => {
                    assert_settled(&account);
                    resets.entry(who.identity.to_string()).or_default().push(reason);
                }
                SessionEvent::Left { account, .. } => assert_settled(&account),
                SessionEvent::Closed => break,
                _ => {}
            }
        }
        assert_eq!(events.missed(), 0);
        while let Some(done) = subscribing.join_next().await {
            done.expect("no subscription fails");
        }
        resets
    }

    /// Publishes a round: to each topic, and now and then to everybody.
    async fn publish(&self, round: u64) {
        let mut published = self.published.lock().await;
        if round.is_multiple_of(25) {
            let changing = &self.topics[Kind::Changing as usize];
            changing.set_profile(match round / 25 % 3 {
                0 => Profile::lossy(Lossy::default()),
                1 => Profile::latest(Latest::default()),
                _ => Profile::reliable(),
            });
            self.session.broadcast(Frame::text("to all")).await.expect("the session is open");
        }
        for kind in Kind::ALL {
            if kind == Kind::LossyLarge && !round.is_multiple_of(4) {
                continue;
            }
            let next = &mut published.next[kind as usize];
            let message = Frame::message_data(0, *next, Bytes::from(vec![*next as u8; kind.bytes()]));
            self.session.broadcast_to(&self.topics[kind as usize], message).await.expect("the session is open");
            *next += 1;
        }
    }

    /// Waits until `holds` is true, looking each time that a viewer has read more.
    async fn until_moved(&self, what: &str, holds: impl Fn() -> bool) {
        let held = async {
            loop {
                let moved = self.moved.notified();
                if holds() {
                    return;
                }
                moved.await;
            }
        };
        if tokio::time::timeout(common::PATIENCE, held).await.is_err() {
            panic!("timed out waiting for {what}: {:?}", self.session.stats());
        }
    }

    /// Waits until the viewers that keep up have nearly all of the first `published` reliable messages.
    async fn until_close_behind(&self, published: u64) {
        let steady = (0..self.progress.len()).filter(|number| Role::of(*number) == Role::Steady);
        let steady: Vec<_> = steady.collect();
        let least = published.saturating_sub(AHEAD);
        let there = |number: &usize| self.progress[*number].load(Ordering::Acquire) >= least;
        self.until_moved("those who keep up", || steady.iter().all(there)).await;
    }

    /// Waits until nothing waits for anybody, or somebody has left.
    async fn until_nothing_waits(&self) {
        let begun = Instant::now();
        let is_done = || {
            let stats = self.session.stats();
            stats.account.waiting() == 0 || stats.participants < self.progress.len()
        };
        while !is_done() {
            if begun.elapsed() > common::PATIENCE {
                let present = self.session.participants();
                let behind = present.iter().filter(|who| who.stats().account.waiting() > 0);
                let behind: Vec<_> = behind.map(|who| format!("{who}: {:?}", who.stats())).collect();
                let topics: Vec<_> = self.topics.iter().map(Topic::stats).collect();
                panic!("{:?} waits; {behind:#?}; {topics:#?}", self.session.stats());
            }
            // Nothing announces it.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until every viewer is there, subscribed, and has got everything or lost it. Nothing is published
    /// meanwhile.
    async fn come_to_rest(&self) {
        let viewers = self.progress.len();
        for round in 1.. {
            assert!(round < 20, "viewers come and go though nothing is published: {:?}", self.session.stats());
            until(|| self.session.stats().participants == viewers).await;
            let present: Vec<_> = self.session.participants().iter().map(Participant::client_id).collect();
            let is_known = || {
                let published = self.published.try_lock();
                published.is_ok_and(|published| present.iter().all(|who| published.instances.contains_key(who)))
            };
            until(|| is_known() || self.session.stats().participants < viewers).await;
            // A viewer that answers has been visited with all that was published before.
            let question = 1 + self.asked.fetch_add(1, Ordering::AcqRel);
            self.session.broadcast(Frame::text(format!("question {question}"))).await.expect("the session is open");
            let all = || self.answered.iter().all(|answered| answered.load(Ordering::Acquire) >= question);
            let answers = self.until_moved("answers", all);
            if tokio::time::timeout(Duration::from_secs(5), answers).await.is_err() {
                continue;
            }
            self.until_nothing_waits().await;
            let now: Vec<_> = self.session.participants().iter().map(Participant::client_id).collect();
            if now.len() == viewers && now.iter().all(|who| present.contains(who)) {
                return;
            }
        }
    }
}

/// What one connection of a viewer has received.
#[derive(Debug, Default)]
struct Received {
    sid: String,
    counts: HashMap<u32, Count>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    messages: u64,
    first: u64,
    last: u64,
}

impl Received {
    /// Counts a message. Of a reliable topic each number comes once and in turn, of the others they rise.
    fn count(&mut self, viewer: usize, data: &MessageData) {
        let kind = Kind::ALL[data.subscription_id as usize];
        let number = data.log_time_ns;
        assert_eq!(data.payload.len(), kind.bytes(), "{kind:?}");
        assert_eq!(data.payload[0], number as u8, "{kind:?}");
        match self.counts.get_mut(&data.subscription_id) {
            None => {
                self.counts.insert(data.subscription_id, Count { messages: 1, first: number, last: number });
            }
            Some(count) => {
                let follows = if kind.is_reliable() { number == count.last + 1 } else { number > count.last };
                assert!(follows, "v{viewer}, {kind:?}: {number} after {}", count.last);
                (count.messages, count.last) = (count.messages + 1, number);
            }
        }
    }
}

/// Whether viewers do as their [`Role`] says, or all of them read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Calm,
    Wild,
}

/// Why a connection isn't read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Everything has been received.
    AtTheEnd,
    /// The server has closed the connection, or it broke.
    Closed,
    TimeIsUp,
}

/// A viewer with a small receive buffer.
struct Viewer {
    number: usize,
    socket: WebSocketStream<TcpStream>,
    received: Received,
}

impl Viewer {
    async fn connect(stage: &Stage, number: usize) -> Result<Self, Error> {
        let address = stage.room.local_addr();
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(16 << 10)?;
        let stream = socket.connect(address).await?;
        let mut request = format!("ws://{address}/{}", name(number)).into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", "foxglove.sdk.v1".parse()?);
        let config = WebSocketConfig::default().read_buffer_size(4 << 10).write_buffer_size(0);
        let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
        Ok(Self { number, socket, received: Received::default() })
    }

    /// Reads until `deadline`, or to the end.
    async fn read(&mut self, stage: &Stage, deadline: Option<tokio::time::Instant>) -> Stop {
        let time_is_up = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(time_is_up);
        loop {
            let message = tokio::select! {
                message = self.socket.next() => message,
                () = &mut time_is_up => return Stop::TimeIsUp,
            };
            let (kind, data) = match message {
                Some(Ok(Message::Text(text))) if text.as_str() == "the end" => return Stop::AtTheEnd,
                Some(Ok(Message::Text(text))) => {
                    if self.received.sid.is_empty() {
                        self.received.sid = text.to_string();
                    } else if let Some(question) = text.strip_prefix("question ") {
                        let question = question.parse().expect("a number");
                        stage.answered[self.number].fetch_max(question, Ordering::AcqRel);
                        stage.moved.notify_waiters();
                    }
                    continue;
                }
                Some(Ok(Message::Binary(data))) => (FrameKind::Binary, data),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Stop::Closed,
                Some(Ok(_)) => continue,
            };
            match ServerMessage::decode(WireFormat::V1, kind, &data).expect("a message of the server") {
                ServerMessage::MessageData(data) => {
                    self.received.count(self.number, &data);
                    if data.subscription_id == Kind::Reliable as u32 && data.log_time_ns % 8 == 7 {
                        stage.progress[self.number].fetch_max(data.log_time_ns + 1, Ordering::AcqRel);
                        stage.moved.notify_waiters();
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Some time between these two, in milliseconds.
fn some_time(from: u64, to: u64) -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_millis(fastrand::u64(from..to))
}

/// Plays a viewer's role in the wild act, and reads to the end. Returns what its last connection has received, and how
/// many it has had.
async fn play(stage: Arc<Stage>, number: usize, mut act: watch::Receiver<Act>) -> (usize, Received, u32) {
    let role = Role::of(number);
    for connections in 1.. {
        let mut viewer = loop {
            match within(Viewer::connect(&stage, number)).await {
                Ok(viewer) => break viewer,
                // The older connection may be closing under the same name.
                Err(error) if role != Role::Steady => drop(error),
                Err(error) => panic!("v{number}: {error}"),
            }
        };
        loop {
            let plays = role != Role::Steady && *act.borrow_and_update() == Act::Wild;
            let deadline = plays.then(|| some_time(300, 3_000));
            let stop = tokio::select! {
                stop = viewer.read(&stage, deadline) => stop,
                Ok(()) = act.changed(), if role != Role::Steady => continue,
            };
            match (stop, role) {
                (Stop::AtTheEnd, _) => return (number, viewer.received, connections),
                (Stop::Closed, _) => break,
                (Stop::TimeIsUp, Role::Steady) => unreachable!("it has no deadline"),
                // The point is that nobody reads meanwhile.
                (Stop::TimeIsUp, Role::Stalls | Role::StallsLossy) => tokio::select! {
                    () = tokio::time::sleep_until(some_time(100, 6_000)) => {}
                    _ = act.wait_for(|act| *act == Act::Calm) => {}
                },
                (Stop::TimeIsUp, Role::Reconnects) => {
                    if fastrand::bool() {
                        drop(viewer.socket.close(None).await);
                    }
                    break;
                }
            }
        }
    }
    unreachable!("a viewer comes back until it has read to the end")
}

/// The bytes that the process has in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

fn median(mut of: Vec<u64>) -> u64 {
    of.sort_unstable();
    of.get(of.len() / 2).copied().unwrap_or(0)
}

const MIB: u64 = 1 << 20;

// 1. Viewers of mixed classes join; of forty, two stall now and then, and two reconnect. 2. Messages are published to
// all topics for a while. 3. Everybody reads on, until nothing waits. 4. Each viewer says what it has; together with
// what the server says it has lost, that is what was published. The accounts balance, and the memory has not grown.
#[test]
fn what_arrives_and_what_is_lost_add_up_to_what_was_published() {
    let viewers = size(60, 500);
    let span = Duration::from_secs(size(8, 600) as u64);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (stage, events) = Stage::new(viewers).await;
        let welcome = tokio::spawn(Arc::clone(&stage).welcome(events));
        let (act, acts) = watch::channel(Act::Calm);
        let mut playing = JoinSet::new();
        for number in 0..viewers {
            playing.spawn(play(Arc::clone(&stage), number, acts.clone()));
        }
        stage.come_to_rest().await;

        act.send_replace(Act::Wild);
        let memory = Mutex::new(Vec::new());
        let begun = Instant::now();
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut round = 0;
        while begun.elapsed() < span {
            pace.tick().await;
            stage.publish(round).await;
            round += 1;
            stage.until_close_behind(round).await;
            if round % 25 == 0 {
                memory.lock().expect("it isn't poisoned").push(resident());
                assert!(playing.try_join_next().is_none(), "a viewer has ended before the end");
            }
        }
        let took = begun.elapsed();

        act.send_replace(Act::Calm);
        stage.come_to_rest().await;
        stage.session.broadcast(Frame::text("the end")).await.expect("the session is open");
        let mut received = HashMap::new();
        let mut connections = vec![0; viewers];
        while let Some(done) = within(playing.join_next()).await {
            let (number, got, count) = done.expect("no viewer fails");
            connections[number] = count;
            received.insert(number, got);
        }
        let report = within(stage.session.close(Duration::from_secs(5))).await.expect("it closes without an error");
        let resets = within(welcome).await.expect("it ends with the session");
        within(stage.room.shutdown()).await;

        check(&stage, &received, &connections, &resets).await;
        assert_settled(&report.account);
        let lost: u64 = stage.topics.iter().map(|topic| topic.stats().lost.total()).sum();
        assert_eq!(report.account.dropped.lossy.total(), lost, "the session's account and the topics'");
        let memory = memory.into_inner().expect("it isn't poisoned");
        let settled = &memory[memory.len() / 5..];
        let (first, second) = settled.split_at(settled.len() / 2);
        let (first, second) = (median(first.to_vec()), median(second.to_vec()));
        println!(
            "{viewers} viewers, {round} rounds in {took:.0?}, {} connections, {} resets; {} delivered, {lost} lost of \
             {} topics; resident {} MiB in the first half, {} MiB in the second",
            connections.iter().sum::<u32>(),
            resets.values().map(Vec::len).sum::<usize>(),
            report.account.delivered,
            stage.topics.len(),
            first / MIB,
            second / MIB,
        );
        assert!(second <= first + first / 10 + 8 * MIB, "it grew from {first} to {second} bytes");
    });
}

/// Compares what each viewer's last connection has received with what was published and what the server has lost.
async fn check(
    stage: &Stage,
    received: &HashMap<usize, Received>,
    connections: &[u32],
    resets: &HashMap<String, Vec<EndReason>>,
) {
    let published = stage.published.lock().await;
    let by_sid: HashMap<_, _> =
        published.instances.values().map(|instance| (instance.participant.sid().to_string(), instance)).collect();
    for (number, got) in received {
        let role = Role::of(*number);
        let instance = by_sid[&got.sid];
        let who = &instance.participant;
        for kind in Kind::of(*number, role) {
            let topic = &stage.topics[kind as usize];
            let (first, next) = (instance.first[&kind], published.next[kind as usize]);
            let count = got.counts.get(&(kind as u32)).copied().unwrap_or_default();
            let lost = who.losses(topic);
            assert_eq!(count.messages + lost.total(), next - first, "{who}, {kind:?}: {count:?}, {lost:?}");
            if kind.keeps_last() && next > first {
                assert_eq!(count.last + 1, next, "{who}, {kind:?}: the last message arrives");
            }
            if kind.is_reliable() {
                assert_eq!(lost.total(), 0, "{who}, {kind:?}");
                assert!(count.messages == 0 || count.first == first, "{who}, {kind:?}: {count:?} begins late");
            }
        }
        let account = who.stats().account;
        assert_settled(&account);
        if role == Role::Steady {
            assert_eq!(connections[*number], 1, "{who} keeps up");
        }
        if role.is_safe() {
            assert_eq!(resets.get(&name(*number)), None, "{who} plays {role:?}");
            assert_eq!(account.dropped.total(), account.dropped.lossy.total(), "{who}");
        }
    }
    // Over all instances, those that are gone included.
    for kind in Kind::ALL {
        let topic = &stage.topics[kind as usize];
        let stats = topic.stats();
        let outcomes = stats.handed_on + stats.lost.total() + stats.ended;
        assert_eq!(stats.offered, outcomes, "{kind:?}: {stats:?}");
        let lost = published.instances.values().map(|instance| instance.participant.losses(topic).total());
        assert_eq!(lost.sum::<u64>(), stats.lost.total(), "{kind:?}: the viewers' losses and the topic's");
        if !kind.is_reliable() {
            assert!(stats.lost.total() > 0, "{kind:?}: somebody was behind, or has a rate");
            assert!(matches!(topic.profile().class, Class::Reliable) || stats.offered > 0, "{kind:?}: {stats:?}");
        }
    }
}
