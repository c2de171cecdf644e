//! The runtime that this crate is compared with: a queue and a task per participant, and locks.
//!
//! Each participant has a bounded flume channel and a tokio task that receives and writes, each under a biased select
//! with the participant's cancellation. A full channel cancels the participant, enters it into a mutex-guarded set, and
//! notifies the event loop. The registry is plain hash maps under one lock. A broadcast collects the participants under
//! the read lock and sends a clone to each. A topic keeps the list of its subscribers. The code is written the obvious
//! way: it has none of what measurements have taught the crate's own runtime, and nothing that slows it down on
//! purpose. It keeps no accounts and has no back-off, which is to its advantage.
//!
//! The baseline runs on any [`Room`] of [`Bytes`]. It joins one instance per identity at a time, refuses older ones,
//! resets participants that overflow or fail, and on close delivers the messages that it has taken. The differential
//! test checks this.

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

pub use self::participant::{Participant, Refused};
pub use self::topic::Topic;

use self::event_loop::EventLoop;
use self::registry::Registry;

/// The queue capacity of a participant in the benches, in messages. A participant that exceeds it is reset.
pub const QUEUE_CAPACITY: usize = 1024;

/// The most participants that may be joining or being reset at once. It is the crate's default.
const CONCURRENT_JOINS: usize = 64;

/// Computes the initial messages of a participant.
pub type Initial = dyn Fn(Participant) -> Pin<Box<dyn Future<Output = Vec<Bytes>> + Send>> + Send + Sync;

/// A session of the baseline. Clones are handles to the same session.
pub struct Baseline<R: Room<Message = Bytes>>(Arc<Shared<R>>);

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

/// The sids that wait to be reset, and the wake-up of the event loop.
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
    pub fn start(room: R, queue_capacity: usize, initial: Box<Initial>) -> Self {
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

    /// Sends `message` to all participants. A participant whose queue is full is reset.
    pub fn broadcast(&self, message: &Bytes) {
        for participant in self.participants() {
            // A participant that overflows is reset, and one that has ended is leaving: nothing is left to do here.
            let _ = participant.send(message.clone());
        }
    }

    pub fn participant(&self, identity: &ParticipantIdentity) -> Option<Participant> {
        self.0.registry.read().by_identity(identity)
    }

    pub fn participant_by_sid(&self, sid: &ParticipantSid) -> Option<Participant> {
        self.0.registry.read().by_sid(sid)
    }

    pub fn participants(&self) -> Vec<Participant> {
        self.0.registry.read().all()
    }

    /// Stops all joins and broadcasts, delivers the queued messages for at most `deadline`, then cancels the tasks that
    /// are left. The task of a participant ends without being cancelled once the last handle to the participant is
    /// dropped and its queue is empty.
    pub async fn close(&self, deadline: Duration) {
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
                // A task that ended by a panic of its sink has ended too.
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
