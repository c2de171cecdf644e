//! The scripts of tests: how the streams to a participant behave, and who is present without the session being told.

use std::collections::HashMap;
use std::task::{Context, Poll, Waker};

use super::{MemoryRoom, Presence, Recorder, ScriptedFailure, lock};
use crate::contract::Message;
use crate::ids::{ParticipantIdentity, ParticipantSid};

/// How the streams to an identity treat what is written to them. Needs the feature `test-util`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Behavior {
    /// Take every message at once.
    #[default]
    Flow,
    /// Take up to `capacity` messages and don't finish flushing them, like a write that is under way.
    Stall {
        /// The number of messages that fit into the stream.
        capacity: usize,
    },
    /// Fail every write.
    Fail,
    /// Panic in every write.
    Panic,
}

/// How opening a stream to an identity goes. Needs the feature `test-util`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenBehavior {
    /// The stream opens at once.
    #[default]
    Ready,
    /// The stream opens or fails once this is set to another value.
    Held,
    /// Opening the stream fails.
    Fails,
}

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
        let mut state = lock(&self.shared.state);
        state.script.behavior = behavior;
        let wakers = std::mem::take(&mut state.script.wakers);
        drop(state);
        wakers.into_values().for_each(Waker::wake);
    }

    /// Sets how opening a stream goes from now on, including a stream that is being opened. Needs the feature
    /// `test-util`.
    pub fn set_open_behavior(&self, behavior: OpenBehavior) {
        lock(&self.shared.state).script.open_behavior = behavior;
        self.shared.changed.notify_waiters();
    }
}

/// The script of an identity, and the writers that wait for another one.
#[derive(Debug, Default)]
pub(super) struct Script {
    behavior: Behavior,
    open_behavior: OpenBehavior,
    /// By the index of the stream: wakes its writer.
    wakers: HashMap<usize, Waker>,
}

impl Script {
    pub(super) fn poll_open(&self) -> Poll<Result<(), ScriptedFailure>> {
        match self.open_behavior {
            OpenBehavior::Ready => Poll::Ready(Ok(())),
            OpenBehavior::Fails => Poll::Ready(Err(ScriptedFailure)),
            OpenBehavior::Held => Poll::Pending,
        }
    }

    pub(super) fn poll_ready(
        &mut self,
        stream: usize,
        buffered: usize,
        cx: &Context<'_>,
    ) -> Poll<Result<(), ScriptedFailure>> {
        match self.behavior {
            Behavior::Stall { capacity } if buffered >= capacity => self.wait(stream, cx),
            _ => Poll::Ready(self.start_send()),
        }
    }

    pub(super) fn start_send(&self) -> Result<(), ScriptedFailure> {
        match self.behavior {
            Behavior::Flow | Behavior::Stall { .. } => Ok(()),
            Behavior::Fail => Err(ScriptedFailure),
            Behavior::Panic => panic!("the stream's script says that it panics"),
        }
    }

    pub(super) fn poll_flush(&mut self, stream: usize, cx: &Context<'_>) -> Poll<Result<(), ScriptedFailure>> {
        match self.behavior {
            Behavior::Stall { .. } => self.wait(stream, cx),
            _ => Poll::Ready(self.start_send()),
        }
    }

    /// Forgets the writer of a stream that has been dropped.
    pub(super) fn closed(&mut self, stream: usize) {
        self.wakers.remove(&stream);
    }

    fn wait<T>(&mut self, stream: usize, cx: &Context<'_>) -> Poll<T> {
        self.wakers.insert(stream, cx.waker().clone());
        Poll::Pending
    }
}
