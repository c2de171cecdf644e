//! The room of a runtime under test, whose viewers the test controls.

use lanecast::room::memory::{Behavior, MemoryRoom, OpenBehavior, Recorder};
use lanecast::room::{Presence, RoomEvent};
use lanecast::{Message, ParticipantIdentity, ParticipantSid};

use crate::subject::{Conn, Msg, Stream};

/// A memory room and the names of its viewers.
pub(crate) struct Viewers<M> {
    room: MemoryRoom<M>,
    names: Vec<ParticipantIdentity>,
}

impl<M: Message> Viewers<M> {
    pub(crate) fn new(identities: usize) -> Self {
        let names = (0..identities).map(|n| format!("viewer-{n}").parse().expect("short")).collect();
        Self { room: MemoryRoom::new(), names }
    }

    pub(crate) fn room(&self) -> &MemoryRoom<M> {
        &self.room
    }

    pub(crate) fn name(&self, who: usize) -> &ParticipantIdentity {
        &self.names[who]
    }

    pub(crate) fn recorder(&self, who: usize) -> Recorder<M> {
        self.room.recorder(self.name(who))
    }

    fn presence(&self, who: usize, conn: Conn) -> Presence {
        Presence::new(self.name(who).clone(), sid(conn.sid), conn.joined_at)
    }

    /// A connection arrives, in place of the one its identity may have had: a join, or a reconnect. The room lists it
    /// and reports it.
    pub(crate) async fn join(&self, who: usize, conn: Conn) {
        self.room.join(self.presence(who, conn)).await.expect("the session listens");
    }

    /// The room reports an arrival, late or repeated; its list stays as it is.
    pub(crate) async fn announce(&self, who: usize, conn: Conn) {
        self.room.emit(RoomEvent::Active(self.presence(who, conn))).await.expect("the session listens");
    }

    /// The room reports that a connection is gone, and no longer lists it if it did.
    pub(crate) async fn leave(&self, who: usize, gone: u32) {
        self.room.leave(self.name(who), &sid(gone)).await.expect("the session listens");
    }

    /// Stalls, resumes or fails the streams to a viewer.
    pub(crate) fn set_behavior(&self, who: usize, behavior: Behavior) {
        self.recorder(who).set_behavior(behavior);
    }

    /// Sets what opening a stream to a viewer does from now on.
    pub(crate) fn set_open_behavior(&self, who: usize, behavior: OpenBehavior) {
        self.recorder(who).set_open_behavior(behavior);
    }

    /// Lets one stream to a viewer open, and holds the next.
    pub(crate) async fn let_one_open(&self, who: usize) {
        let recorder = self.recorder(who);
        let before = recorder.received().len();
        recorder.set_open_behavior(OpenBehavior::Ready);
        recorder.wait_for(|streams| streams.len() > before).await;
        recorder.set_open_behavior(OpenBehavior::Held);
    }

    /// Forgets what an absent viewer received, and how its streams behave.
    pub(crate) fn forget(&self, who: usize) {
        self.room.forget_recorder(self.name(who));
    }

    /// Every stream to a viewer; `read` decodes a received message.
    pub(crate) fn streams(&self, who: usize, read: impl Fn(&M) -> Msg) -> Vec<Stream> {
        let streams = self.recorder(who).received().into_iter();
        let stream = streams.map(|stream| Stream {
            sid: sid_of(&stream.sid),
            messages: stream.messages.iter().map(&read).collect(),
            closed: stream.closed,
        });
        stream.collect()
    }
}

pub(crate) fn who_is(identity: &ParticipantIdentity) -> usize {
    identity.as_str().strip_prefix("viewer-").and_then(|n| n.parse().ok()).expect("the test names its viewers")
}

pub(crate) fn sid_of(sid: &ParticipantSid) -> u32 {
    sid.as_str().strip_prefix("PA_").and_then(|n| n.parse().ok()).expect("the test names its connections")
}

pub(crate) fn sid(sid: u32) -> ParticipantSid {
    ParticipantSid::new(format!("PA_{sid}")).expect("short")
}
