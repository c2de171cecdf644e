//! The crate as a runtime under test: a session over a [`MemoryRoom`].

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::{FutureExt, Sink, Stream as Events_};
use lanecast::room::memory::{MemoryRoom, MemorySink, OpenBehavior};
use lanecast::room::{Goodbye, OpenError, Presence, Room, RoomEvent};
use lanecast::{
    Account, BroadcastError, BroadcastRun, EndReason, Events, Hold, InstanceId, JoinError, Losses, Message,
    OverloadPolicy, Participant, ParticipantIdentity, Progress, RunSink, SendError, Session, SessionEvent, Subscribed,
    SubscriptionTag, Topic, TryBroadcastError, TrySendError, Unsubscribed,
};
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};

use crate::hold;
use crate::plan::{Pace, Plan};
use crate::subject::{Event, Figures, Gate, Inst, Lane, Msg, Published, Refusal, Sent, Setup, Subject, Totals, View};
use crate::viewers::{Viewers, sid, sid_of, who_is};

/// Longer than any run takes on its clock; a test that lets time pass moves the clock by hours.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl Message for Msg {
    fn byte_len(&self) -> usize {
        self.size
    }

    fn address(&mut self, tag: SubscriptionTag) {
        *self = self.addressed(tag.0);
    }
}

/// A session of this crate as a runtime under test.
#[derive(Clone)]
pub(crate) struct Lanecast(Arc<Inner>);

struct Inner {
    session: Session<Halving>,
    viewers: Viewers<Msg>,
    topics: Vec<Topic>,
    gates: Vec<watch::Sender<Gate>>,
    book: Arc<Book>,
    events: AsyncMutex<Events>,
    seen: Mutex<Vec<Event>>,
    /// What the events tell of losses, in all.
    told_lost: Mutex<Losses>,
}

/// Every instance so far: it is entered when its initial messages are asked for, or when it has ended before that.
#[derive(Default)]
struct Book(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    instances: HashMap<usize, Vec<Participant<Msg>>>,
    by_client: HashMap<u64, Inst>,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, participant: &Participant<Msg>) -> Inst {
        let mut pages = self.pages();
        let client = participant.client_id().get();
        if let Some(known) = pages.by_client.get(&client) {
            return *known;
        }
        let who = who_is(participant.identity());
        let all = pages.instances.entry(who).or_default();
        let inst = Inst { who, nth: all.len() };
        all.push(participant.clone());
        pages.by_client.insert(client, inst);
        inst
    }

    fn inst(&self, client: u64) -> Inst {
        self.pages().by_client[&client]
    }

    fn participant(&self, inst: Inst) -> Participant<Msg> {
        self.pages().instances[&inst.who][inst.nth].clone()
    }
}

/// A sink that takes half of each run, as far as it is ready.
struct HalfOfEachRun(MemorySink<Msg>);

impl RunSink<Msg> for HalfOfEachRun {
    fn start_send_run(mut self: Pin<&mut Self>, run: &BroadcastRun<'_, Msg>) -> Result<usize, Self::Error> {
        let half = run.messages().len().div_ceil(2);
        let mut cx = Context::from_waker(Waker::noop());
        for (taken, message) in run.messages()[..half].iter().enumerate() {
            if taken > 0 && !matches!(self.as_mut().poll_ready(&mut cx), Poll::Ready(Ok(()))) {
                return Ok(taken);
            }
            let mut copy = *message;
            if let Some(tag) = run.tag() {
                copy.address(tag);
            }
            self.as_mut().start_send(copy)?;
        }
        Ok(half)
    }
}

impl Sink<Msg> for HalfOfEachRun {
    type Error = <MemorySink<Msg> as Sink<Msg>>::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Msg) -> Result<(), Self::Error> {
        Pin::new(&mut self.0).start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// A memory room whose sinks take half of each run, and take this long to open.
struct Halving {
    room: MemoryRoom<Msg>,
    opening: Duration,
}

impl Room for Halving {
    type Message = Msg;
    type Sink = HalfOfEachRun;
    type Incoming = mpsc::Receiver<Msg>;

    fn events(&self) -> Option<impl Events_<Item = RoomEvent<Self::Incoming>> + Send + 'static> {
        self.room.events()
    }

    fn participants(&self) -> Vec<Presence> {
        self.room.participants()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        self.room.present(identity)
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<HalfOfEachRun, OpenError> {
        // A transport that takes its time, on the paused clock. There is no event to wait for.
        if !self.opening.is_zero() {
            tokio::time::sleep(self.opening).await;
        }
        self.room.open(to, progress).await.map(HalfOfEachRun)
    }

    fn retire(&self, sink: Self::Sink, reason: EndReason) -> Option<Goodbye> {
        self.room.retire(sink.0, reason)
    }
}

impl Lanecast {
    fn event(&self, event: &SessionEvent) -> Option<Event> {
        let inst = |who: &InstanceId| {
            let inst = self.0.book.inst(who.client_id.get());
            assert_eq!(inst.who, who_is(&who.identity), "an event names an instance and another one's identity");
            inst
        };
        Some(match event {
            SessionEvent::Lost { lost } => {
                let mut sum = self.0.told_lost.lock().unwrap_or_else(PoisonError::into_inner);
                assert_ne!(*lost, Losses::default(), "an event tells of nothing");
                sum.overflowed += lost.overflowed;
                sum.expired += lost.expired;
                sum.conflated += lost.conflated;
                sum.rate_limited += lost.rate_limited;
                return None;
            }
            SessionEvent::Joined(who) => Event::Joined(inst(who), sid_of(&who.sid)),
            SessionEvent::Replaced { who, prior, .. } => {
                Event::Replaced { now: inst(who), sid: sid_of(&who.sid), prior: inst(prior) }
            }
            SessionEvent::Left { who, .. } => Event::Left(inst(who), sid_of(&who.sid)),
            SessionEvent::Reset { who, reason, .. } => Event::Reset(inst(who), sid_of(&who.sid), *reason),
            SessionEvent::Refused { identity, sid, error } => {
                Event::Refused { who: who_is(identity), sid: sid_of(sid), why: refusal(error) }
            }
            SessionEvent::JoinFailed { identity, sid, error } => {
                Event::JoinFailed { who: who_is(identity), sid: sid_of(sid), why: refusal(error) }
            }
            SessionEvent::PublishersHeld => Event::Held,
            SessionEvent::PublishersReleased => Event::Released,
            SessionEvent::Closed => Event::Closed,
            other => panic!("unexpected {other:?}"),
        })
    }

    fn note(&self, event: &SessionEvent) -> Option<Event> {
        let event = self.event(event)?;
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        Some(event)
    }
}

fn overload(policy: Option<hold::Policy>) -> OverloadPolicy {
    policy.map_or(OverloadPolicy::Reset, |hold::Policy { at_least, share_percent, patience }| {
        let hold = Hold::default().at_least(at_least).share_percent(share_percent);
        hold.patience(Duration::from_millis(patience)).into()
    })
}

fn refusal(error: &JoinError) -> Refusal {
    match error {
        JoinError::Stale => Refusal::Stale,
        JoinError::Duplicate { .. } => Refusal::Duplicate,
        JoinError::Open(_) => Refusal::OpenFailed,
        JoinError::Panicked => Refusal::Panicked,
        JoinError::Ended(reason) => Refusal::Ended(*reason),
        _ => Refusal::Other,
    }
}

/// The outcome of a direct message, after checking that the message returned is the message sent.
fn given_back(back: Msg, msg: Msg, sent: Sent) -> Sent {
    assert_eq!(back, msg, "another message came back");
    sent
}

impl Subject for Lanecast {
    type Wire = Msg;

    const LONG_BURSTS: bool = true;
    const ACCOUNTS: bool = true;
    /// All waits are of one tick of the clock, which is when the model joins a viewer again.
    const LONGEST_BACKOFF: Duration = Duration::from_millis(1);

    fn start(setup: &Setup) -> Self {
        let viewers = Viewers::new(setup.identities);
        let book = Arc::new(Book::default());
        let gates: Vec<_> = (0..setup.identities).map(|_| watch::Sender::new(Gate::Ready)).collect();
        let (initial, entered, handles) = (Arc::clone(&setup.initial), Arc::clone(&book), gates.clone());
        let retired = Arc::clone(&book);
        let opening = Duration::from_millis(setup.opening());
        let session = Session::builder(Halving { room: viewers.room().clone(), opening })
            .queue_capacity(setup.queue_capacity)
            .queue_bytes(setup.queue_bytes)
            .lossy_bytes(setup.lossy_bytes)
            .log_capacity(setup.log_capacity)
            .shards(setup.shards)
            .linger(setup.linger)
            .overload(overload(setup.hold))
            .write_timeout(setup.write_timeout)
            .open_timeout(NEVER)
            .reset_backoff(Self::LONGEST_BACKOFF, Self::LONGEST_BACKOFF)
            .event_capacity(1 << 14)
            .initial(move |participant| {
                let inst = entered.enter(&participant);
                let (gate, initial) = (handles[inst.who].clone(), Arc::clone(&initial));
                async move {
                    let opened = gate.subscribe().wait_for(|gate| *gate != Gate::Held).await.map(|gate| *gate);
                    if matches!(opened, Ok(Gate::PanicsOnce)) {
                        gate.send_replace(Gate::Ready);
                        panic!("{}", crate::ON_COMMAND);
                    }
                    initial(inst)
                }
            })
            .on_retired(move |participant, _| {
                retired.enter(participant);
            })
            .build()
            .expect("the settings make sense");
        let topics = setup.topics.iter().map(|plan| Topic::with(plan.profile())).collect();
        let events = AsyncMutex::new(session.events());
        Self(Arc::new(Inner {
            session,
            viewers,
            topics,
            gates,
            book,
            events,
            seen: Mutex::default(),
            told_lost: Mutex::default(),
        }))
    }

    fn viewers(&self) -> &Viewers<Msg> {
        &self.0.viewers
    }

    /// Also lets everything happen that is due at the time at which this returns.
    async fn settle(&self) {
        tokio::time::sleep(Self::LONGEST_BACKOFF * 16).await;
        crate::take_turns().await;
    }

    async fn fail_one_opening(&self, who: usize, then: OpenBehavior) {
        let mut events = self.0.events.lock().await;
        while let Some(event) = tokio::task::unconstrained(events.next()).now_or_never().flatten() {
            self.note(&event);
        }
        self.0.viewers.recorder(who).set_open_behavior(OpenBehavior::Fails);
        loop {
            let event = events.next().await.expect("the session runs");
            if matches!(self.note(&event), Some(Event::JoinFailed { who: failed, .. }) if failed == who) {
                break;
            }
        }
        self.0.viewers.recorder(who).set_open_behavior(then);
    }

    fn gate(&self, who: usize, gate: Gate) {
        self.0.gates[who].send_replace(gate);
    }

    async fn subscribe(&self, to: Inst, topic: usize, tag: u32, wish: Option<Pace>) -> Subscribed {
        let (participant, topic, tag) = (self.0.book.participant(to), &self.0.topics[topic], SubscriptionTag(tag));
        match wish {
            Some(pace) => participant.subscribe_at(topic, tag, pace.rate()).await,
            None => participant.subscribe(topic, tag).await,
        }
    }

    async fn unsubscribe(&self, to: Inst, topic: usize) -> Unsubscribed {
        self.0.book.participant(to).unsubscribe(&self.0.topics[topic]).await
    }

    fn set_rate(&self, to: Inst, rate: Option<u64>) {
        self.0.book.participant(to).set_rate(rate.and_then(NonZeroU64::new));
    }

    fn set_profile(&self, topic: usize, plan: &Plan) {
        self.0.topics[topic].set_profile(plan.profile());
        assert_eq!(self.0.topics[topic].profile(), plan.profile());
    }

    async fn end_topic(&self, topic: usize) {
        self.0.session.end_topic(&self.0.topics[topic]).await;
    }

    async fn send(&self, to: Inst, msg: Msg) -> Sent {
        match self.0.book.participant(to).send(msg) {
            Ok(()) => Sent::Queued,
            Err(SendError::Overflow) => Sent::Overflow,
            Err(SendError::TooLarge(back)) => given_back(back, msg, Sent::TooLarge),
            Err(_) => Sent::Closed,
        }
    }

    async fn try_send(&self, to: Inst, msg: Msg) -> Sent {
        match self.0.book.participant(to).try_send(msg) {
            Ok(()) => Sent::Queued,
            Err(TrySendError::Full(back)) => given_back(back, msg, Sent::Full),
            Err(TrySendError::TooLarge(back)) => given_back(back, msg, Sent::TooLarge),
            Err(error) => given_back(error.into_message(), msg, Sent::Closed),
        }
    }

    async fn broadcast(&self, msg: Msg) -> Published {
        let sent = match msg.lane {
            Lane::Topic(topic) => self.0.session.broadcast_to(&self.0.topics[topic], msg).await,
            _ => self.0.session.broadcast(msg).await,
        };
        let outcome = match &sent {
            Ok(()) => Published::Taken,
            Err(BroadcastError::TooLarge(_)) => Published::TooLarge,
            Err(_) => Published::Closed,
        };
        assert!(sent.err().is_none_or(|error| error.into_message() == msg), "another message came back");
        outcome
    }

    async fn try_broadcast(&self, msg: Msg) -> Published {
        let sent = match msg.lane {
            Lane::Topic(topic) => self.0.session.try_broadcast_to(&self.0.topics[topic], msg),
            _ => self.0.session.try_broadcast(msg),
        };
        let outcome = match &sent {
            Ok(()) => Published::Taken,
            Err(TryBroadcastError::Full(_)) => Published::Full,
            Err(TryBroadcastError::TooLarge(_)) => Published::TooLarge,
            Err(_) => Published::Closed,
        };
        assert!(sent.err().is_none_or(|error| error.into_message() == msg), "another message came back");
        outcome
    }

    async fn close(&self, deadline: Duration) -> Option<Account> {
        let report = self.0.session.close(deadline).await.expect("it closes without an error");
        assert_eq!(report.room_closed, None);
        assert_eq!(self.0.session.close(Duration::ZERO).await.as_ref(), Ok(&report), "a second close says the same");
        Some(report.account)
    }

    fn registered(&self, who: usize) -> Option<Inst> {
        let found = self.0.session.participant(self.0.viewers.name(who))?;
        Some(self.0.book.inst(found.client_id().get()))
    }

    fn view(&self, who: usize, sids: &[u32], first: usize) -> View {
        let session = &self.0.session;
        let registered = self.registered(who);
        assert!(registered.is_none_or(|inst| inst.who == who), "a look-up by identity finds somebody else");
        let by_sid = sids.iter().map(|&asked| {
            let found = session.participant_by_sid(&sid(asked));
            (asked, found.map(|found| self.0.book.inst(found.client_id().get())))
        });
        let figures = |participant: &Participant<Msg>| {
            let stats = participant.stats();
            Figures {
                sid: sid_of(participant.sid()),
                ended: participant.end_reason(),
                account: stats.account,
                has_oldest: stats.oldest_waiting.is_some(),
                losses: self.0.topics.iter().map(|topic| participant.losses(topic)).collect(),
            }
        };
        let pages = self.0.book.pages();
        let all = pages.instances.get(&who).map_or(&[][..], Vec::as_slice);
        let instances: Vec<Participant<Msg>> = all.get(first..).unwrap_or_default().to_vec();
        drop(pages);
        View {
            registered: registered.map(|inst| inst.nth),
            by_sid: by_sid.collect(),
            instances: instances.iter().map(figures).collect(),
            streams: self.0.viewers.streams(who, |msg| *msg),
        }
    }

    fn totals(&self) -> Totals {
        let stats = self.0.session.stats();
        let resets = stats.resets;
        Totals {
            participants: stats.participants,
            live: self.0.session.participants().len(),
            joins: stats.joins,
            replacements: stats.replacements,
            stale_joins: stats.stale_joins,
            refused: stats.refused,
            failed_joins: stats.failed_joins,
            resets: [resets.overflow, resets.write_failed, resets.write_panicked, resets.write_timed_out],
            account: stats.account,
            lag: stats.shard_lag,
            hold: hold::HoldStats { is_held: stats.publishers_held, holds: stats.publisher_holds },
            topics: self.0.topics.iter().map(Topic::subscribers).collect(),
            topic_stats: self.0.topics.iter().map(Topic::stats).collect(),
        }
    }

    async fn events(&self) -> Vec<Event> {
        let mut events = self.0.events.lock().await;
        // Without the limit that tokio puts on one poll of a task, after which a stream seems to be empty.
        while let Some(event) = tokio::task::unconstrained(events.next()).now_or_never().flatten() {
            self.note(&event);
        }
        assert_eq!(events.missed(), 0, "the test looks often enough");
        let told = self.0.told_lost.lock().unwrap_or_else(PoisonError::into_inner).total();
        let lost = self.0.session.stats().account.dropped.lossy.total();
        assert!(told <= lost, "{told} losses were told of, and there were {lost}");
        std::mem::take(&mut *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
