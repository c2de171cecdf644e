//! A session with all participants joined, ready to be measured.

use std::sync::Arc;

use bytes::Bytes;
use lanecast_benches::contender::Contender;
use lanecast_benches::room::BenchRoom;
use lanecast_benches::sink::{Counts, Sinks};
use tokio::runtime::Runtime;

/// A session, its room and its tokio runtime. Ends the session when it is dropped.
pub(crate) struct Stage<C: Contender<S>, S: Sinks> {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) session: C,
    pub(crate) room: BenchRoom<S>,
    pub(crate) participants: usize,
}

impl<C: Contender<S>, S: Sinks> Stage<C, S> {
    /// Starts a session in a room with `places` places, where the first `participants` participants are present.
    /// Returns when they have joined.
    pub(crate) fn new(runtime: &Arc<Runtime>, sinks: S, participants: usize, places: usize) -> Self {
        let room = BenchRoom::new(sinks, participants, places);
        let session = runtime.block_on(async {
            let session = C::start(room.clone()).await;
            room.sinks().counts().initial.reach(participants as u64).await;
            session
        });
        Self { runtime: Arc::clone(runtime), session, room, participants }
    }

    pub(crate) fn counts(&self) -> &Arc<Counts> {
        self.room.sinks().counts()
    }
}

impl<C: Contender<S>, S: Sinks> Drop for Stage<C, S> {
    fn drop(&mut self) {
        self.runtime.block_on(self.session.clone().end());
    }
}

/// `count` messages. Each has a payload of its own, as in real use, because the references to a payload are counted.
pub(crate) fn messages(count: u64, bytes: usize) -> Vec<Bytes> {
    (0..count).map(|_| Bytes::from(vec![7; bytes])).collect()
}
