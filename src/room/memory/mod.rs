//! A room in process, for embedding, tests and benches.
//!
//! Participants join and leave by method calls, and the room records what each of them received. It is an ordinary
//! implementation of [`Room`]: the session treats it like any other.
//!
//! # For tests of embedders
//! With the feature `test-util` a participant can also be slow, fail or panic: `Recorder::set_behavior` and
//! `Recorder::set_open_behavior` say how its streams behave from then on. `MemoryRoom::insert_silently` and
//! `MemoryRoom::remove_silently` change who is present without the event. Enable the feature where only tests see it:
//! ```toml
//! [dev-dependencies]
//! lanecast = { version = "0.1", features = ["test-util"] }
//! ```

#[cfg(feature = "test-util")]
mod control;
mod failure;
#[cfg(feature = "test-util")]
mod script;
#[cfg(not(feature = "test-util"))]
mod unscripted;

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_sink::Sink;
use tokio::sync::{Notify, mpsc};

use super::{OpenError, Presence, Room, RoomEvent};
use crate::caught::lock;
use crate::contract::{Message, Progress, RunSink};
use crate::ids::{ParticipantIdentity, ParticipantSid};

pub use self::failure::ScriptedFailure;
#[cfg(feature = "test-util")]
use self::script::Script;
#[cfg(feature = "test-util")]
pub use self::script::{Behavior, OpenBehavior};
#[cfg(not(feature = "test-util"))]
use self::unscripted::Script;

/// Capacity of the event channel, and of each incoming stream; further senders wait. A thousand participants can join
/// before the session is built that takes the events. The channels allocate their memory as it is used.
const EVENT_CAPACITY: usize = 1024;

/// A room in process, driven by method calls. Clones are handles to the same room.
#[derive(Debug)]
pub struct MemoryRoom<M> {
    inner: Arc<Inner<M>>,
}

#[derive(Debug)]
struct Inner<M> {
    events: mpsc::Sender<RoomEvent<mpsc::Receiver<M>>>,
    listener: Mutex<Option<mpsc::Receiver<RoomEvent<mpsc::Receiver<M>>>>>,
    present: Mutex<HashMap<ParticipantIdentity, Presence>>,
    recorders: Mutex<HashMap<ParticipantIdentity, Recorder<M>>>,
}

/// The session of the room has ended, so no one reads its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session of this room has ended")]
pub struct RoomEnded;

impl<M: Message> MemoryRoom<M> {
    /// Creates an empty room.
    #[must_use]
    pub fn new() -> Self {
        let (events, listener) = mpsc::channel(EVENT_CAPACITY);
        let inner = Inner {
            events,
            listener: Mutex::new(Some(listener)),
            present: Mutex::default(),
            recorders: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Adds a connection, in place of any that its identity had, and reports it active. The disconnect of a replaced
    /// connection is left to [`leave`](Self::leave), which may report it at once or late.
    ///
    /// # Errors
    /// [`RoomEnded`] if the session of the room has ended.
    pub async fn join(&self, presence: Presence) -> Result<(), RoomEnded> {
        self.insert(presence.clone());
        self.emit(RoomEvent::Active(presence)).await
    }

    fn insert(&self, presence: Presence) {
        lock(&self.inner.present).insert(presence.identity.clone(), presence);
    }

    /// Removes a connection, if its identity still has it, and reports it disconnected whether or not it was removed. A
    /// late disconnect of an old connection leaves the new one present.
    ///
    /// # Errors
    /// [`RoomEnded`] if the session of the room has ended.
    pub async fn leave(&self, identity: &ParticipantIdentity, sid: &ParticipantSid) -> Result<(), RoomEnded> {
        self.remove(identity, sid);
        self.emit(RoomEvent::Disconnected { identity: identity.clone(), sid: sid.clone() }).await
    }

    fn remove(&self, identity: &ParticipantIdentity, sid: &ParticipantSid) {
        let mut present = lock(&self.inner.present);
        if present.get(identity).is_some_and(|now| now.sid == *sid) {
            present.remove(identity);
        }
    }

    /// Reports `event` to the session unchanged.
    ///
    /// # Errors
    /// [`RoomEnded`] if the session of the room has ended.
    pub async fn emit(&self, event: RoomEvent<mpsc::Receiver<M>>) -> Result<(), RoomEnded> {
        self.inner.events.send(event).await.map_err(|_| RoomEnded)
    }

    /// Opens a stream from a participant: messages sent into the returned sender reach the session's stream handler.
    ///
    /// # Errors
    /// [`RoomEnded`] if the session of the room has ended.
    pub async fn open_incoming(
        &self,
        identity: &ParticipantIdentity,
        sid: &ParticipantSid,
    ) -> Result<mpsc::Sender<M>, RoomEnded> {
        let (sender, stream) = mpsc::channel(EVENT_CAPACITY);
        self.emit(RoomEvent::StreamOpened { identity: identity.clone(), sid: sid.clone(), stream }).await?;
        Ok(sender)
    }

    /// Returns the recorder of `identity`, which has what its streams received. The first call creates the recorder; it
    /// outlasts connections and resets.
    #[must_use]
    pub fn recorder(&self, identity: &ParticipantIdentity) -> Recorder<M> {
        lock(&self.inner.recorders).entry(identity.clone()).or_insert_with(Recorder::new).clone()
    }

    /// Discards the recorder of `identity`, and with it the record, which otherwise grows with every message.
    pub fn forget_recorder(&self, identity: &ParticipantIdentity) {
        lock(&self.inner.recorders).remove(identity);
    }
}

impl<M: Message> Default for MemoryRoom<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> Clone for MemoryRoom<M> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<M: Message> Room for MemoryRoom<M> {
    type Message = M;
    type Sink = MemorySink<M>;
    type Incoming = mpsc::Receiver<M>;

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<Self::Incoming>> + Send + 'static> {
        let listener = lock(&self.inner.listener).take()?;
        Some(futures_util::stream::unfold(listener, |mut listener| async {
            let event = listener.recv().await?;
            Some((event, listener))
        }))
    }

    fn participants(&self) -> Vec<Presence> {
        lock(&self.inner.present).values().cloned().collect()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        lock(&self.inner.present).get(identity).cloned()
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<MemorySink<M>, OpenError> {
        let recorder = self.recorder(&to.identity);
        recorder.until(|| lock(&recorder.shared.state).script.poll_open()).await.map_err(OpenError::transport)?;
        Ok(recorder.new_stream(to.sid.clone(), progress))
    }
}

/// The record of what the streams to one identity received. Clones are handles to the same record.
#[derive(Debug)]
pub struct Recorder<M> {
    shared: Arc<Shared<M>>,
}

#[derive(Debug)]
struct Shared<M> {
    state: Mutex<State<M>>,
    /// Notified when the record or the script has changed.
    changed: Notify,
}

#[derive(Debug)]
struct State<M> {
    streams: Vec<StreamState<M>>,
    script: Script,
}

/// One stream that was opened to a participant, and what it received.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received<M> {
    /// The connection that the stream was opened on.
    pub sid: ParticipantSid,
    /// The messages that were flushed, in order.
    pub messages: Vec<M>,
    /// Whether the session has dropped the stream.
    pub closed: bool,
}

#[derive(Debug)]
struct StreamState<M> {
    sid: ParticipantSid,
    buffered: VecDeque<M>,
    flushed: Vec<M>,
    closed: bool,
}

impl<M: Message> Recorder<M> {
    fn new() -> Self {
        let state = State { streams: Vec::new(), script: Script::default() };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// Returns every stream that was opened, oldest first, with what it received.
    #[must_use]
    pub fn received(&self) -> Vec<Received<M>> {
        let state = lock(&self.shared.state);
        let received = |stream: &StreamState<M>| Received {
            sid: stream.sid.clone(),
            messages: stream.flushed.clone(),
            closed: stream.closed,
        };
        state.streams.iter().map(received).collect()
    }

    /// Waits until the record satisfies `condition`, and returns it.
    pub async fn wait_for(&self, mut condition: impl FnMut(&[Received<M>]) -> bool) -> Vec<Received<M>> {
        let look = || {
            let received = self.received();
            if condition(&received) { Poll::Ready(received) } else { Poll::Pending }
        };
        self.until(look).await
    }

    /// Calls `look` now and after each change, until it is ready.
    async fn until<T>(&self, mut look: impl FnMut() -> Poll<T>) -> T {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Poll::Ready(found) = look() {
                return found;
            }
            changed.await;
        }
    }

    fn new_stream(&self, sid: ParticipantSid, progress: Progress) -> MemorySink<M> {
        let mut state = lock(&self.shared.state);
        let index = state.streams.len();
        state.streams.push(StreamState { sid, buffered: VecDeque::new(), flushed: Vec::new(), closed: false });
        drop(state);
        self.shared.changed.notify_waiters();
        MemorySink { recorder: self.clone(), index, progress }
    }
}

impl<M> Clone for Recorder<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// The stream to a participant of a [`MemoryRoom`].
#[derive(Debug)]
pub struct MemorySink<M> {
    recorder: Recorder<M>,
    index: usize,
    progress: Progress,
}

impl<M: Message> RunSink<M> for MemorySink<M> {}

impl<M: Message> Sink<M> for MemorySink<M> {
    type Error = ScriptedFailure;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ScriptedFailure>> {
        let State { streams, script } = &mut *lock(&self.recorder.shared.state);
        script.poll_ready(self.index, streams[self.index].buffered.len(), cx)
    }

    fn start_send(self: Pin<&mut Self>, message: M) -> Result<(), ScriptedFailure> {
        let State { streams, script } = &mut *lock(&self.recorder.shared.state);
        script.start_send()?;
        streams[self.index].buffered.push_back(message);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ScriptedFailure>> {
        let mut state = lock(&self.recorder.shared.state);
        ready!(state.script.poll_flush(self.index, cx))?;
        let stream = &mut state.streams[self.index];
        let bytes = stream.buffered.iter().map(Message::byte_len).sum();
        let buffered = std::mem::take(&mut stream.buffered);
        stream.flushed.extend(buffered);
        drop(state);
        self.progress.report(bytes);
        self.recorder.shared.changed.notify_waiters();
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ScriptedFailure>> {
        self.poll_flush(cx)
    }
}

impl<M> Drop for MemorySink<M> {
    fn drop(&mut self) {
        let mut state = lock(&self.recorder.shared.state);
        state.streams[self.index].closed = true;
        state.script.closed(self.index);
        drop(state);
        self.recorder.shared.changed.notify_waiters();
    }
}
