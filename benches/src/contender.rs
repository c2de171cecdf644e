//! The runtimes that are compared, behind one trait.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use lanecast::{Participant, ParticipantIdentity, ParticipantSid, Session, SubscriptionTag, TrySendError};

use crate::baseline::{self, Baseline};
use crate::room::BenchRoom;
use crate::sink::{INITIAL, Sinks};

/// A runtime under test, on a room whose sinks are `S`. Clones are handles to the same session.
pub trait Contender<S: Sinks>: Clone + Send + Sync + 'static {
    type Participant: Clone + Send + Sync + 'static;
    type Topic: Clone + Send + Sync + 'static;

    /// Starts a session that sends [`INITIAL`] to each participant first.
    fn start(room: BenchRoom<S>) -> impl Future<Output = Self> + Send;

    /// Ends the session, with all its tasks.
    fn end(self) -> impl Future<Output = ()> + Send;

    fn broadcast(&self, message: Bytes) -> impl Future<Output = ()> + Send;

    fn topic() -> Self::Topic;
    fn subscribe(
        participant: &Self::Participant,
        topic: &Self::Topic,
        tag: SubscriptionTag,
    ) -> impl Future<Output = ()> + Send;
    fn broadcast_to(&self, topic: &Self::Topic, message: Bytes) -> impl Future<Output = ()> + Send;

    fn by_identity(&self, identity: &ParticipantIdentity) -> Option<Self::Participant>;
    fn by_sid(&self, sid: &ParticipantSid) -> Option<Self::Participant>;
    fn everybody(&self) -> Vec<Self::Participant>;

    /// Gives the message back if the participant's queue is full.
    fn try_send(participant: &Self::Participant, message: Bytes) -> Result<(), Bytes>;

    /// Whether [`FILL`](Self::FILL) messages wait for each participant.
    fn is_full(&self) -> bool;

    /// The number of broadcasts that fill a stalled participant up to its bound.
    const FILL: usize;
}

/// This crate.
pub struct Lanecast<S: Sinks>(Session<BenchRoom<S>>);

impl<S: Sinks> Clone for Lanecast<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Sinks> Contender<S> for Lanecast<S> {
    /// All waiting messages count, also one in the sink.
    const FILL: usize = baseline::QUEUE_CAPACITY;

    type Participant = Participant<Bytes>;
    type Topic = lanecast::Topic;

    async fn start(room: BenchRoom<S>) -> Self {
        // The same capacity as the baseline's; the default is larger.
        let builder = Session::builder(room).queue_capacity(baseline::QUEUE_CAPACITY as u32);
        Self(builder.initial(async |_| vec![INITIAL]).build().expect("inside a runtime"))
    }

    async fn end(self) {
        self.0.cancel();
        self.0.ended().await.expect("nothing is stuck");
    }

    async fn broadcast(&self, message: Bytes) {
        self.0.broadcast(message).await.expect("the session is open");
    }

    fn topic() -> Self::Topic {
        lanecast::Topic::new()
    }

    async fn subscribe(participant: &Self::Participant, topic: &Self::Topic, tag: SubscriptionTag) {
        participant.subscribe(topic, tag).await;
    }

    async fn broadcast_to(&self, topic: &Self::Topic, message: Bytes) {
        self.0.broadcast_to(topic, message).await.expect("the session is open");
    }

    fn is_full(&self) -> bool {
        self.0.participants().iter().all(|participant| participant.stats().account.waiting() == Self::FILL as u64)
    }

    fn by_identity(&self, identity: &ParticipantIdentity) -> Option<Self::Participant> {
        self.0.participant(identity)
    }

    fn by_sid(&self, sid: &ParticipantSid) -> Option<Self::Participant> {
        self.0.participant_by_sid(sid)
    }

    fn everybody(&self) -> Vec<Self::Participant> {
        self.0.participants()
    }

    fn try_send(participant: &Self::Participant, message: Bytes) -> Result<(), Bytes> {
        match participant.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => Err(message),
            Err(error) => panic!("{error}"),
        }
    }
}

/// This crate without its log: a broadcast is a direct send to each participant's own queue. The queues are lock-free,
/// and the same shards deliver as in [`Lanecast`].
pub struct DirectQueues<S: Sinks>(Lanecast<S>);

impl<S: Sinks> Clone for DirectQueues<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Sinks> Contender<S> for DirectQueues<S> {
    const FILL: usize = baseline::QUEUE_CAPACITY;

    type Participant = Participant<Bytes>;
    type Topic = lanecast::Topic;

    async fn start(room: BenchRoom<S>) -> Self {
        Self(Lanecast::start(room).await)
    }

    async fn end(self) {
        self.0.end().await;
    }

    async fn broadcast(&self, message: Bytes) {
        for participant in self.everybody() {
            Self::try_send(&participant, message.clone()).expect("the queues are drained between bursts");
        }
    }

    fn topic() -> Self::Topic {
        <Lanecast<S> as Contender<S>>::topic()
    }

    async fn subscribe(participant: &Self::Participant, topic: &Self::Topic, tag: SubscriptionTag) {
        <Lanecast<S> as Contender<S>>::subscribe(participant, topic, tag).await;
    }

    async fn broadcast_to(&self, topic: &Self::Topic, message: Bytes) {
        self.0.broadcast_to(topic, message).await;
    }

    fn is_full(&self) -> bool {
        self.0.is_full()
    }

    fn by_identity(&self, identity: &ParticipantIdentity) -> Option<Self::Participant> {
        self.0.by_identity(identity)
    }

    fn by_sid(&self, sid: &ParticipantSid) -> Option<Self::Participant> {
        self.0.by_sid(sid)
    }

    fn everybody(&self) -> Vec<Self::Participant> {
        self.0.everybody()
    }

    fn try_send(participant: &Self::Participant, message: Bytes) -> Result<(), Bytes> {
        <Lanecast<S> as Contender<S>>::try_send(participant, message)
    }
}

impl<S: Sinks> Contender<S> for Baseline<BenchRoom<S>> {
    /// One message is in the sink, outside the queue.
    const FILL: usize = baseline::QUEUE_CAPACITY + 1;

    type Participant = baseline::Participant;
    type Topic = baseline::Topic;

    async fn start(room: BenchRoom<S>) -> Self {
        Self::start(room, baseline::QUEUE_CAPACITY, Box::new(|_| Box::pin(async { vec![INITIAL] })))
    }

    async fn end(self) {
        self.close(Duration::ZERO).await;
    }

    async fn broadcast(&self, message: Bytes) {
        Self::broadcast(self, &message);
    }

    fn topic() -> Self::Topic {
        baseline::Topic::default()
    }

    async fn subscribe(participant: &Self::Participant, topic: &Self::Topic, tag: SubscriptionTag) {
        topic.subscribe(participant, tag);
    }

    async fn broadcast_to(&self, topic: &Self::Topic, message: Bytes) {
        topic.broadcast(&message);
    }

    /// A broadcast returns when it is in every queue, so there is nothing to check.
    fn is_full(&self) -> bool {
        true
    }

    fn by_identity(&self, identity: &ParticipantIdentity) -> Option<Self::Participant> {
        self.participant(identity)
    }

    fn by_sid(&self, sid: &ParticipantSid) -> Option<Self::Participant> {
        self.participant_by_sid(sid)
    }

    fn everybody(&self) -> Vec<Self::Participant> {
        self.participants()
    }

    fn try_send(participant: &Self::Participant, message: Bytes) -> Result<(), Bytes> {
        match participant.try_send(message) {
            Ok(()) => Ok(()),
            Err(baseline::Refused::Full(message)) => Err(message),
            Err(baseline::Refused::Closed) => panic!("it has ended"),
        }
    }
}
