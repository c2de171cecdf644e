//! A room in process, for tests, benches and embedding.
//!
//! Participants join, leave, stall and fail on command, and the room records what each of them received. It is an
//! ordinary implementation of [`Room`]: the session treats it like any other.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use futures_sink::Sink;
use tokio::sync::{Notify, mpsc};

use super::{OpenError, Presence, Room, RoomEvent};
use crate::contract::{Message, Progress};
use crate::ids::{ParticipantIdentity, ParticipantSid};

/// Capacity of the event channel, and of each incoming stream; further senders wait.
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
    lines: Mutex<HashMap<ParticipantIdentity, MemoryLine<M>>>,
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
        let inner =
            Inner { events, listener: Mutex::new(Some(listener)), present: Mutex::default(), lines: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Adds a connection, in place of any that its identity had, and reports it active. The disconnect of a replaced
    /// connection is left to [`leave`](Self::leave), which may report it at once or late.
    ///
    /// # Errors
    /// [`RoomEnded`] if the session of the room has ended.
    pub async fn join(&self, presence: Presence) -> Result<(), RoomEnded> {
        self.place(presence.clone());
        self.emit(RoomEvent::Active(presence)).await
    }

    /// Adds a connection as [`join`](Self::join) does, without the event: a session finds it when it asks for the
    /// participants.
    pub fn place(&self, presence: Presence) {
        lock(&self.inner.present).insert(presence.identity.clone(), presence);
    }

    /// Removes a connection, if its identity still has it, and reports it disconnected whether or not it was removed. A
    /// late disconnect of an old connection leaves the new one present.
    ///
    /// # Errors
    /// [`RoomEnded`] if the session of the room has ended.
    pub async fn leave(&self, identity: &ParticipantIdentity, sid: &ParticipantSid) -> Result<(), RoomEnded> {
        self.vanish(identity, sid);
        self.emit(RoomEvent::Disconnected { identity: identity.clone(), sid: sid.clone() }).await
    }

    /// Removes a connection as [`leave`](Self::leave) does, without the event.
    pub fn vanish(&self, identity: &ParticipantIdentity, sid: &ParticipantSid) {
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

    /// Returns the line to `identity`, which sets how its streams behave and records what they received. The first call
    /// creates the line; it outlasts connections and resets.
    #[must_use]
    pub fn line(&self, identity: &ParticipantIdentity) -> MemoryLine<M> {
        lock(&self.inner.lines).entry(identity.clone()).or_insert_with(MemoryLine::new).clone()
    }

    /// Discards the line to `identity`, and with it the record.
    pub fn forget_line(&self, identity: &ParticipantIdentity) {
        lock(&self.inner.lines).remove(identity);
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
        let line = self.line(&to.identity);
        line.opening().await?;
        Ok(line.new_stream(to.sid.clone(), progress))
    }
}

/// Controls how the streams to one identity behave, and records what they received. Clones are handles to the same
/// line.
#[derive(Debug)]
pub struct MemoryLine<M> {
    shared: Arc<Shared<M>>,
}

#[derive(Debug)]
struct Shared<M> {
    state: Mutex<LineState<M>>,
    changed: Notify,
}

#[derive(Debug)]
struct LineState<M> {
    conduct: Conduct,
    opening: Opening,
    streams: Vec<StreamState<M>>,
}

/// How the streams of a [`MemoryLine`] treat what is written to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conduct {
    /// Take every message at once.
    #[default]
    Flow,
    /// Take up to `room` messages and don't finish flushing them, like a write that is under way.
    Stall {
        /// The number of messages that fit into the stream.
        room: usize,
    },
    /// Fail every write.
    Fail,
    /// Panic in every write.
    Panic,
}

/// How opening a stream on a [`MemoryLine`] goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Opening {
    /// The stream opens at once.
    #[default]
    Ready,
    /// The stream opens or fails once this is set to another value.
    Held,
    /// Opening the stream fails.
    Fails,
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
    /// Wakes the writer, which waits for another conduct.
    waker: Option<Waker>,
}

/// The error of a stream that fails, or fails to open, on command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the line was told to fail")]
pub struct LineFailed;

impl<M: Message> MemoryLine<M> {
    fn new() -> Self {
        let state = LineState { conduct: Conduct::default(), opening: Opening::default(), streams: Vec::new() };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// Sets how the streams behave from now on.
    pub fn conduct(&self, conduct: Conduct) {
        let mut state = lock(&self.shared.state);
        state.conduct = conduct;
        let wakers: Vec<_> = state.streams.iter_mut().filter_map(|stream| stream.waker.take()).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Sets how opening a stream goes from now on, including a stream that is being opened.
    pub fn opening_is(&self, opening: Opening) {
        lock(&self.shared.state).opening = opening;
        self.shared.changed.notify_waiters();
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
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let received = self.received();
            if condition(&received) {
                return received;
            }
            changed.await;
        }
    }

    async fn opening(&self) -> Result<(), OpenError> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let opening = lock(&self.shared.state).opening;
            match opening {
                Opening::Ready => return Ok(()),
                Opening::Fails => return Err(OpenError::transport(LineFailed)),
                Opening::Held => changed.await,
            }
        }
    }

    fn new_stream(&self, sid: ParticipantSid, progress: Progress) -> MemorySink<M> {
        let mut state = lock(&self.shared.state);
        let index = state.streams.len();
        let stream = StreamState { sid, buffered: VecDeque::new(), flushed: Vec::new(), closed: false, waker: None };
        state.streams.push(stream);
        drop(state);
        self.shared.changed.notify_waiters();
        MemorySink { line: self.clone(), index, progress }
    }
}

impl<M> Clone for MemoryLine<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// The stream to a participant of a [`MemoryRoom`].
#[derive(Debug)]
pub struct MemorySink<M> {
    line: MemoryLine<M>,
    index: usize,
    progress: Progress,
}

impl<M: Message> MemorySink<M> {
    fn state(&self) -> Result<MutexGuard<'_, LineState<M>>, LineFailed> {
        let state = lock(&self.line.shared.state);
        match state.conduct {
            Conduct::Flow | Conduct::Stall { .. } => Ok(state),
            Conduct::Fail => Err(LineFailed),
            Conduct::Panic => {
                drop(state);
                panic!("the line was told to panic");
            }
        }
    }
}

impl<M: Message> Sink<M> for MemorySink<M> {
    type Error = LineFailed;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), LineFailed>> {
        let mut state = self.state()?;
        if let Conduct::Stall { room } = state.conduct
            && state.streams[self.index].buffered.len() >= room
        {
            state.streams[self.index].waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn start_send(self: Pin<&mut Self>, message: M) -> Result<(), LineFailed> {
        self.state()?.streams[self.index].buffered.push_back(message);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), LineFailed>> {
        let mut state = self.state()?;
        if let Conduct::Stall { .. } = state.conduct {
            state.streams[self.index].waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let stream = &mut state.streams[self.index];
        let bytes = stream.buffered.iter().map(Message::byte_len).sum();
        let buffered = std::mem::take(&mut stream.buffered);
        stream.flushed.extend(buffered);
        drop(state);
        self.progress.report(bytes);
        self.line.shared.changed.notify_waiters();
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), LineFailed>> {
        self.poll_flush(cx)
    }
}

impl<M> Drop for MemorySink<M> {
    fn drop(&mut self) {
        let mut state = lock(&self.line.shared.state);
        let stream = &mut state.streams[self.index];
        stream.closed = true;
        stream.waker = None;
        drop(state);
        self.line.shared.changed.notify_waiters();
    }
}

/// Locks `mutex`. A panic on command may poison it; the state behind it is consistent all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
