//! What tests do to a room and to its streams, beside what a transport does.

use std::task::Waker;

use super::script::{Behavior, OpenBehavior};
use super::{MemoryRoom, Presence, Recorder, lock};
use crate::contract::Message;
use crate::ids::{ParticipantIdentity, ParticipantSid};

impl<M: Message> MemoryRoom<M> {
    /// Adds a connection as [`join`](Self::join) does, without the event: a session finds it when it asks for the
    /// participants. Needs the feature `test-util`.
    pub fn insert_silently(&self, presence: Presence) {
        self.insert(presence);
    }

    /// Removes a connection as [`leave`](Self::leave) does, without the event. Needs the feature `test-util`.
    pub fn remove_silently(&self, identity: &ParticipantIdentity, sid: &ParticipantSid) {
        self.remove(identity, sid);
    }
}

impl<M: Message> Recorder<M> {
    /// Sets how the streams behave from now on. Needs the feature `test-util`.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use lanecast::room::{Presence, memory::{Behavior, MemoryRoom}};
    /// use lanecast::{EndReason, Session, SessionEvent};
    ///
    /// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let room = MemoryRoom::new();
    /// let session = Session::builder(room.clone()).build()?;
    /// let mut events = session.events();
    /// room.join(Presence::new("ada".parse()?, "PA_1".parse()?, 1)).await?;
    /// assert!(matches!(events.next().await, Some(SessionEvent::Joined(_))));
    ///
    /// room.recorder(&"ada".parse()?).set_behavior(Behavior::Fail);
    /// session.broadcast(Bytes::from_static(b"42 km/h")).await?;
    /// let Some(SessionEvent::Reset { reason, .. }) = events.next().await else { panic!("ada is reset") };
    /// assert_eq!(reason, EndReason::WriteFailed);
    /// # Ok(()) }
    /// ```
    pub fn set_behavior(&self, behavior: Behavior) {
        let wakers = lock(&self.shared.state).script.set_behavior(behavior);
        wakers.for_each(Waker::wake);
    }

    /// Sets how opening a stream goes from now on, including a stream that is being opened. Needs the feature
    /// `test-util`.
    pub fn set_open_behavior(&self, behavior: OpenBehavior) {
        lock(&self.shared.state).script.open_behavior = behavior;
        self.shared.changed.notify_waiters();
    }
}
