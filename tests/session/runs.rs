//! Broadcasts that are shown to a room's sinks in runs: which broadcasts form a run, and how a sink answers.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::{Sink, Stream, stream};
use lanecast::room::{OpenError, Presence, Room, RoomEvent};
use lanecast::{
    BroadcastId, BroadcastRun, EndReason, Lossy, ParticipantIdentity, Profile, Progress, RunSink, Session,
    SubscriptionTag, Topic,
};

use crate::common::{Call, Stage, StageSink, assert_settled, close_settled, live, msg, presence, reset, until, within};

/// The messages that a sink was shown at once.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    texts: Vec<Bytes>,
    first: BroadcastId,
    tag: Option<u32>,
}

/// How many messages of a run a sink says it has taken, given the length of the run.
type Answer = fn(usize) -> Result<usize, &'static str>;

/// A room with two participants, whose sinks record what they are shown, and answer as the test says.
struct Show {
    present: Vec<Presence>,
    seen: [Arc<Mutex<Vec<Shown>>>; 2],
    answers: [Answer; 2],
}

struct ShowSink {
    seen: Arc<Mutex<Vec<Shown>>>,
    answer: Answer,
}

impl Show {
    fn session(answers: [Answer; 2]) -> Session<Self> {
        let present = ["ada", "bob"].map(|name| presence(name, &format!("PA_{name}"), 1)).into();
        let room = Self { present, seen: Default::default(), answers };
        Session::builder(room).shards(1).build().expect("a test's settings make sense")
    }

    fn seen(&self, number: usize) -> Vec<Shown> {
        self.seen[number].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Room for Show {
    type Message = Bytes;
    type Sink = ShowSink;
    type Incoming = ();

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<()>> + Send + 'static> {
        Some(stream::pending())
    }

    fn participants(&self) -> Vec<Presence> {
        self.present.clone()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        self.present.iter().find(|presence| presence.identity == *identity).cloned()
    }

    async fn open(&self, to: &Presence, _progress: Progress) -> Result<ShowSink, OpenError> {
        let number = usize::from(to.identity.as_str() == "bob");
        Ok(ShowSink { seen: Arc::clone(&self.seen[number]), answer: self.answers[number] })
    }
}

impl RunSink<Bytes> for ShowSink {
    fn start_send_run(self: Pin<&mut Self>, run: &BroadcastRun<'_, Bytes>) -> Result<usize, Self::Error> {
        let taken = (self.answer)(run.messages().len())?;
        let texts = run.messages().iter().take(taken).cloned().collect();
        let shown = Shown { texts, first: run.first_id(), tag: run.tag().map(|tag| tag.0) };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(shown);
        Ok(taken)
    }
}

impl Sink<Bytes> for ShowSink {
    type Error = &'static str;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    /// Takes direct messages.
    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Self::Error> {
        let shown = Shown { texts: vec![message], first: BroadcastRun::new(&[()], None).first_id(), tag: None };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(shown);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }
}

fn texts(shown: &[Shown]) -> Vec<(String, Option<u32>)> {
    let joined = |shown: &Shown| (String::from_utf8_lossy(&shown.texts.join(&b' ')).into_owned(), shown.tag);
    shown.iter().map(joined).collect()
}

fn all(session: &Session<Show>, text: &'static str) {
    session.try_broadcast(msg(text)).expect("there is capacity");
}

/// As long as one thread publishes and nothing else runs, everything it publishes is read in one turn. 1. Ada
/// subscribes to two topics, Bob to one of them. 2. Broadcasts go to all and to either topic, and a message to Ada
/// alone in between. 3. Consecutive broadcasts with one audience are shown at once.
#[tokio::test]
async fn consecutive_broadcasts_with_one_audience_are_shown_at_once() {
    let session = Show::session([Ok, Ok]);
    let (ada, bob) = (live(&session, "ada").await, live(&session, "bob").await);
    let (both, hers) = (Topic::new(), Topic::new());
    ada.subscribe(&both, SubscriptionTag(1)).await;
    bob.subscribe(&both, SubscriptionTag(2)).await;
    ada.subscribe(&hers, SubscriptionTag(3)).await;

    all(&session, "a");
    all(&session, "b");
    for text in ["c", "d", "e"] {
        session.try_broadcast_to(&both, msg(text)).expect("there is capacity");
    }
    session.try_broadcast_to(&hers, msg("f")).expect("there is capacity");
    session.try_broadcast_to(&both, msg("g")).expect("there is capacity");
    all(&session, "h");
    ada.send(msg("direct")).expect("there is capacity");
    all(&session, "i");
    all(&session, "j");
    until(|| bob.stats().account.delivered == 9 && ada.stats().account.delivered == 11).await;

    let seen = [session.room().seen(0), session.room().seen(1)];
    let expected_of_ada = [
        ("a b", None),
        ("c d e", Some(1)),
        ("f", Some(3)),
        ("g", Some(1)),
        ("h", None),
        ("direct", None),
        ("i j", None),
    ];
    assert_eq!(texts(&seen[0]), expected_of_ada.map(|(text, tag)| (text.to_owned(), tag)));
    let expected_of_bob = [("a b", None), ("c d e", Some(2)), ("g", Some(2)), ("h i j", None)];
    assert_eq!(texts(&seen[1]), expected_of_bob.map(|(text, tag)| (text.to_owned(), tag)));

    // The same broadcast has the same id at both participants, and no two broadcasts share an id.
    let ids = |seen: &[Shown]| -> Vec<(Bytes, BroadcastId)> {
        let each = |shown: &Shown| {
            let first = shown.first;
            shown.texts.clone().into_iter().enumerate().map(move |(at, text)| (text, first.after(at))).collect()
        };
        seen.iter().flat_map::<Vec<_>, _>(each).collect()
    };
    let (of_ada, of_bob) = (ids(&seen[0]), ids(&seen[1]));
    assert!(of_bob.iter().all(|known| of_ada.contains(known)));
    assert!(of_ada.iter().enumerate().all(|(at, (_, id))| of_ada[..at].iter().all(|(_, other)| other != id)));
    close_settled(&session).await;
}

/// Bob's sink takes two messages at a time, Ada's all: both get everything, once and in order.
#[tokio::test]
async fn a_sink_may_take_part_of_a_run() {
    let session = Show::session([Ok, |count| Ok(count.min(2))]);
    let (ada, bob) = (live(&session, "ada").await, live(&session, "bob").await);
    for text in ["a", "b", "c", "d", "e"] {
        all(&session, text);
    }
    until(|| ada.stats().account.delivered == 5 && bob.stats().account.delivered == 5).await;
    assert_eq!(texts(&session.room().seen(0)), [("a b c d e".to_owned(), None)]);
    assert_eq!(texts(&session.room().seen(1)), ["a b", "c d", "e"].map(|text| (text.to_owned(), None)));
    close_settled(&session).await;
}

/// A sink that fails, or gives an impossible answer, harms only its participant. The messages it was shown count as
/// dropped.
#[tokio::test]
async fn an_impossible_answer_harms_its_participant_alone() {
    let cases: [(Answer, EndReason); 3] = [
        (|_| Err("broken"), EndReason::WriteFailed),
        (|_| Ok(0), EndReason::WritePanicked),
        (|count| Ok(count + 1), EndReason::WritePanicked),
    ];
    for (answer, reason) in cases {
        let session = Show::session([Ok, answer]);
        let (ada, bob) = (live(&session, "ada").await, live(&session, "bob").await);
        let mut events = session.events();
        for text in ["a", "b", "c"] {
            all(&session, text);
        }
        assert_eq!(reset(&mut events).await, reason);
        assert_eq!(within(bob.closed()).await, reason);
        let account = bob.stats().account;
        assert_settled(&account);
        assert_eq!((account.offered, account.dropped.total()), (3, 3));
        until(|| ada.stats().account.delivered == 3).await;
        assert_eq!(texts(&session.room().seen(0)), [("a b c".to_owned(), None)]);
        close_settled(&session).await;
    }
}

/// What a sink of [`who_is_behind_is_served_last`] sees, and whether Ada's is ready.
#[derive(Default)]
struct Served {
    order: Vec<String>,
    is_shut: bool,
    wakers: Vec<Waker>,
}

/// What a sink has encoded for the last participant, it can use for the next one only if that one gets the same. So a
/// participant that is behind comes after all that keep up. 1. Ada, who is visited first of three, is behind. 2. Her
/// sink is ready again, and in the same turn there is a new broadcast. 3. The others are handed it one after the other;
/// then Ada is handed what has waited.
#[tokio::test]
async fn who_is_behind_is_served_last() {
    for topic in [None, Some(Topic::new()), Some(Topic::with(Profile::lossy(Lossy::default())))] {
        let served: Arc<Mutex<Served>> = Arc::default();
        let inside = Arc::clone(&served);
        let stage = Stage::<Bytes>::new(move |presence, _| {
            let served = Arc::clone(&inside);
            let name = presence.identity.to_string();
            let sink = StageSink::<Bytes>::new(move |call, cx| {
                let mut served = served.lock().unwrap_or_else(PoisonError::into_inner);
                match call {
                    Call::Ready if served.is_shut && name == "ada" => {
                        served.wakers.extend(cx.map(|cx| cx.waker().clone()));
                        return Poll::Pending;
                    }
                    Call::Send(message) => served.order.push(format!("{name} {}", String::from_utf8_lossy(&message))),
                    _ => {}
                }
                Poll::Ready(Ok(()))
            });
            async move { Ok(sink) }
        });
        let session = stage.session(|builder| builder.shards(1));
        for name in ["ada", "bob", "cy"] {
            stage.join(presence(name, &format!("PA_{name}"), 1));
            let participant = live(&session, name).await;
            if let Some(topic) = &topic {
                participant.subscribe(topic, SubscriptionTag(1)).await;
            }
        }
        let publish = |text: &str| match &topic {
            None => session.try_broadcast(msg(text)).expect("there is capacity"),
            Some(topic) => session.try_broadcast_to(topic, msg(text)).expect("there is capacity"),
        };
        let now = || served.lock().unwrap_or_else(PoisonError::into_inner);
        now().is_shut = true;
        publish("a");
        until(|| now().order.len() == 2 && !now().wakers.is_empty()).await;
        publish("b");
        let wakers = {
            let mut served = now();
            served.is_shut = false;
            std::mem::take(&mut served.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        until(|| now().order.len() == 6).await;
        assert_eq!(now().order, ["bob a", "cy a", "bob b", "cy b", "ada a", "ada b"]);
        close_settled(&session).await;
    }
}
