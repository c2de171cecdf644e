//! How the streams to a participant behave, as tests script it.

use std::collections::HashMap;
use std::task::{Context, Poll, Waker};

use super::failure::ScriptedFailure;

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

/// The script of an identity, and the writers that wait for another one.
#[derive(Debug, Default)]
pub(super) struct Script {
    behavior: Behavior,
    pub(super) open_behavior: OpenBehavior,
    /// By the index of the stream: wakes its writer.
    wakers: HashMap<usize, Waker>,
}

impl Script {
    /// Sets how the streams behave, and returns the writers that have to try again.
    pub(super) fn set_behavior(&mut self, behavior: Behavior) -> impl Iterator<Item = Waker> + use<> {
        self.behavior = behavior;
        std::mem::take(&mut self.wakers).into_values()
    }

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
