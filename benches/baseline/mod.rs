//! The runtime this crate is compared with: a queue and a task per participant, and locks.
//!
//! Per participant a bounded flume channel and a tokio task that receives and writes, each under a biased select with
//! its cancellation; a full channel cancels the participant and enters it into a mutex-guarded set that the event loop
//! is notified of; one lock over plain hash maps is the registry; a broadcast collects the participants under the read
//! lock and sends a clone to each; a topic keeps the list of its subscribers. Written as one would write it: what the
//! runtime of the crate has learned from measurements isn't in here, and nothing is in here to slow it down. It keeps
//! no accounts and no back-off, which is to its advantage.
//!
//! It runs on any [`Room`] of [`Bytes`], joins one instance per identity at a time, refuses older ones, resets what
//! overflows or fails, and delivers what has been taken when it is closed. The differential test holds it to that.

mod event_loop;
mod participant;
mod registry;
mod topic;

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lanecast::room::Room;
use lanecast::{ParticipantIdentity, ParticipantSid};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use self::participant::{Participant, Refused};
pub(crate) use self::topic::Topic;

use self::event_loop::EventLoop;
use self::registry::Registry;

/// How many messages wait for one participant before it is reset, in what is measured.
pub(crate) const QUEUE_CAPACITY: usize = 1024;

/// How many participants may be joining or being reset at once; as the crate's default.
const CONCURRENT_JOINS: usize = 64;

/// Computes what a participant gets first of all.
pub(crate) type Initial = dyn Fn(Participant) -> Pin<Box<dyn Future<Output = Vec<Bytes>> + Send>> + Send + Sync;

/// A session of this design. Clones are the same session.
pub(crate) struct Baseline<R: Room<Message = Bytes>>(Arc<Shared<R>>);

struct Shared<R> {
    room: R,
    queue_capacity: usize,
    initial: Box<Initial>,
    registry: RwLock<Registry>,
    pending: Arc<PendingResets>,
    permits: Semaphore,
    closing: AtomicBool,
    /// Ends the event loop and the joins.
    stop: CancellationToken,
    event_loop: Mutex<Option<JoinHandle<()>>>,
}

/// The sids that wait to be reset, and how the event loop hears of them.
#[derive(Default)]
struct PendingResets {
    sids: Arc<Mutex<HashSet<ParticipantSid>>>,
    notify: Notify,
}

impl PendingResets {
    fn insert(&self, sid: ParticipantSid) {
        self.sids.lock().insert(sid);
        self.notify.notify_one();
    }
}

impl<R: Room<Message = Bytes>> Baseline<R> {
    /// Starts a session. Must be called inside a tokio runtime.
    pub(crate) fn start(room: R, queue_capacity: usize, initial: Box<Initial>) -> Self {
        let shared = Arc::new(Shared {
            room,
            queue_capacity,
            initial,
            registry: RwLock::default(),
            pending: Arc::default(),
            permits: Semaphore::new(CONCURRENT_JOINS),
            closing: AtomicBool::new(false),
            stop: CancellationToken::new(),
            event_loop: Mutex::new(None),
        });
        let event_loop = tokio::spawn(EventLoop::new(Arc::clone(&shared)).run());
        *shared.event_loop.lock() = Some(event_loop);
        Self(shared)
    }

    /// Sends `message` to everybody; who has no room for it is reset.
    pub(crate) fn broadcast(&self, message: &Bytes) {
        for participant in self.participants() {
            // Whoever overflows is reset, whoever has ended is leaving: nothing left to do here.
            let _ = participant.send(message.clone());
        }
    }

    pub(crate) fn participant(&self, identity: &ParticipantIdentity) -> Option<Participant> {
        self.0.registry.read().by_identity(identity)
    }

    pub(crate) fn participant_by_sid(&self, sid: &ParticipantSid) -> Option<Participant> {
        self.0.registry.read().by_sid(sid)
    }

    pub(crate) fn participants(&self) -> Vec<Participant> {
        self.0.registry.read().all()
    }

    /// Takes nothing more, delivers what has been taken until `deadline` from now, then cancels the rest. A participant
    /// ends by itself once the last handle to it is dropped.
    pub(crate) async fn close(&self, deadline: Duration) {
        if self.0.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.0.stop.cancel();
        let event_loop = self.0.event_loop.lock().take();
        if let Some(event_loop) = event_loop {
            event_loop.await.expect("the event loop doesn't panic");
        }
        let (cancels, mut tasks) = self.0.registry.write().clear();
        let ended = async {
            for task in &mut tasks {
                // Ended by itself, or by a panic of its sink: ended.
                let _ = task.await;
            }
        };
        if tokio::time::timeout(deadline, ended).await.is_err() {
            cancels.iter().for_each(CancellationToken::cancel);
            for task in tasks.into_iter().filter(|task| !task.is_finished()) {
                let _ = task.await;
            }
        }
    }
}

impl<R: Room<Message = Bytes>> Clone for Baseline<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
