//! One participant: its channel and the task that writes to its sink.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flume::{Receiver, Sender, TrySendError};
use futures_util::{Sink, SinkExt};
use lanecast::room::Presence;
use lanecast::{ParticipantIdentity, ParticipantSid};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::PendingResets;
use super::topic::Topic;

/// One connection instance. Clones are handles to the same instance.
#[derive(Clone)]
pub struct Participant(Arc<Inner>);

struct Inner {
    identity: ParticipantIdentity,
    sid: ParticipantSid,
    joined_at: u64,
    id: u64,
    queue: Sender<Bytes>,
    cancel: CancellationToken,
    pending: Arc<PendingResets>,
    topics: Mutex<Vec<Topic>>,
}

/// Why a message was not sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The participant's queue is full. The message comes back.
    Full(Bytes),
    /// The participant has ended.
    Closed,
}

impl Participant {
    /// Creates a participant, and the end of its queue that its task reads.
    pub(super) fn new(
        presence: &Presence,
        queue_capacity: usize,
        pending: Arc<PendingResets>,
    ) -> (Self, Receiver<Bytes>) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (queue, taken) = flume::bounded(queue_capacity);
        let inner = Inner {
            identity: presence.identity.clone(),
            sid: presence.sid.clone(),
            joined_at: presence.joined_at,
            // Relaxed: only the value has to be unique.
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            queue,
            cancel: CancellationToken::new(),
            pending,
            topics: Mutex::default(),
        };
        (Self(Arc::new(inner)), taken)
    }

    pub fn identity(&self) -> &ParticipantIdentity {
        &self.0.identity
    }

    pub fn sid(&self) -> &ParticipantSid {
        &self.0.sid
    }

    pub fn joined_at(&self) -> u64 {
        self.0.joined_at
    }

    /// Distinguishes this instance from all others.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Sends to this participant alone. Gives the message back if the queue is full.
    #[inline]
    pub fn try_send(&self, message: Bytes) -> Result<(), Refused> {
        self.0.queue.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) => Refused::Full(message),
            TrySendError::Disconnected(_) => Refused::Closed,
        })
    }

    /// Sends to this participant alone. If the queue is full, the participant is reset.
    #[inline]
    pub fn send(&self, message: Bytes) -> Result<(), Refused> {
        let sent = self.try_send(message);
        if let Err(Refused::Full(_)) = &sent {
            self.reset();
        }
        sent
    }

    /// Ends the participant, and asks the event loop to bring it back.
    fn reset(&self) {
        self.0.cancel.cancel();
        self.0.pending.insert(self.0.sid.clone());
    }

    /// Ends the participant and all its subscriptions.
    pub(super) fn end(&self) {
        self.0.cancel.cancel();
        let topics = std::mem::take(&mut *self.0.topics.lock());
        topics.iter().for_each(|topic| topic.remove(self));
    }

    pub(super) fn cancellation(&self) -> &CancellationToken {
        &self.0.cancel
    }

    pub(super) fn topics(&self) -> &Mutex<Vec<Topic>> {
        &self.0.topics
    }
}

/// The state of a participant's task. It has no handle to the participant, which would keep the task's own queue open,
/// but only what it needs to ask for a reset.
pub(super) struct Writer<S> {
    pub(super) sink: S,
    pub(super) queue: Receiver<Bytes>,
    pub(super) cancel: CancellationToken,
    pub(super) sid: ParticipantSid,
    pub(super) pending: Arc<PendingResets>,
}

impl<S: Sink<Bytes> + Unpin> Writer<S> {
    /// Writes the initial messages, then those from the queue, until the participant is cancelled, a write fails, or no
    /// sender is left.
    pub(super) async fn run(mut self, initial: Vec<Bytes>) {
        for message in initial {
            if !self.write(message).await {
                return;
            }
        }
        loop {
            let received = tokio::select! {
                biased;
                () = self.cancel.cancelled() => break,
                received = self.queue.recv_async() => received,
            };
            let Ok(message) = received else { break };
            if !self.write(message).await {
                break;
            }
        }
    }

    async fn write(&mut self, message: Bytes) -> bool {
        let written = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return false,
            written = self.sink.send(message) => written,
        };
        if written.is_err() {
            self.fail();
        }
        written.is_ok()
    }
}

impl<S> Writer<S> {
    fn fail(&self) {
        self.cancel.cancel();
        self.pending.insert(self.sid.clone());
    }
}

impl<S> Drop for Writer<S> {
    fn drop(&mut self) {
        // The sink has panicked, which counts as a failed write.
        if std::thread::panicking() {
            self.fail();
        }
    }
}
