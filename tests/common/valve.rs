//! A stream whose every write waits for the test.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use lanecast::room::Presence;
use lanecast::{Message, ParticipantIdentity};
use tokio::sync::Notify;

use super::stage::{Call, Stage, StageSink};

/// One stream: takes messages at any time (or up to a limit), and completes a flush only when the test lets it.
pub(crate) struct Valve<M>(Arc<Inner<M>>);

struct Inner<M> {
    state: Mutex<State<M>>,
    changed: Notify,
}

/// What a valve has seen so far.
pub(crate) struct State<M> {
    /// How many more flushes may complete; `None` for any number.
    credit: Option<usize>,
    /// How many messages the sink takes between two flushes.
    room: usize,
    /// Messages taken and not flushed yet.
    pub(crate) taken: VecDeque<M>,
    pub(crate) flushed: Vec<M>,
    /// How many messages each completed flush carried.
    pub(crate) batches: Vec<usize>,
    pub(crate) flushes_tried: usize,
    pub(crate) dropped: bool,
    waker: Option<Waker>,
}

impl<M: Send + 'static> Valve<M> {
    /// A stream that takes everything and flushes nothing yet.
    pub(crate) fn shut() -> Self {
        let state = State {
            credit: Some(0),
            room: usize::MAX,
            taken: VecDeque::new(),
            flushed: Vec::new(),
            batches: Vec::new(),
            flushes_tried: 0,
            dropped: false,
            waker: None,
        };
        Self(Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// A stream that keeps up.
    pub(crate) fn open() -> Self {
        let valve = Self::shut();
        valve.lock().credit = None;
        valve
    }

    /// The same, which takes `room` messages between two flushes.
    pub(crate) fn with_room(self, room: usize) -> Self {
        self.lock().room = room;
        self
    }

    /// Lets `flushes` more flushes complete.
    pub(crate) fn let_through(&self, flushes: usize) {
        let mut state = self.lock();
        if let Some(credit) = &mut state.credit {
            *credit += flushes;
        }
        Self::wake(state);
    }

    /// Lets every flush complete from now on.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        state.credit = None;
        Self::wake(state);
    }

    fn wake(mut state: MutexGuard<'_, State<M>>) {
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `condition` holds for this valve's state.
    pub(crate) async fn wait_for(&self, mut condition: impl FnMut(&State<M>) -> bool) {
        super::within(async {
            loop {
                let changed = self.0.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if condition(&self.lock()) {
                    return;
                }
                changed.await;
            }
        })
        .await;
    }

    /// The sink of this stream. Only one may exist at a time.
    pub(crate) fn sink(&self) -> StageSink<M> {
        let valve = self.clone();
        StageSink::new(move |call, cx| valve.answer(call, cx))
    }

    fn answer(&self, call: Call<M>, cx: Option<&mut Context<'_>>) -> Poll<Result<(), String>> {
        let mut state = self.lock();
        let answer = match call {
            Call::Ready if state.taken.len() >= state.room && state.credit == Some(0) => Poll::Pending,
            Call::Ready => {
                if state.taken.len() >= state.room {
                    state.flush();
                }
                Poll::Ready(Ok(()))
            }
            Call::Send(message) => {
                state.taken.push_back(message);
                Poll::Ready(Ok(()))
            }
            Call::Flush | Call::Close => {
                state.flushes_tried += 1;
                if state.credit == Some(0) {
                    Poll::Pending
                } else {
                    state.flush();
                    Poll::Ready(Ok(()))
                }
            }
            Call::Drop => {
                state.dropped = true;
                Poll::Ready(Ok(()))
            }
        };
        if answer.is_pending() {
            state.waker = cx.map(|cx| cx.waker().clone());
        }
        drop(state);
        self.0.changed.notify_waiters();
        answer
    }
}

impl<M> State<M> {
    /// Whether the sink holds a message that may not be flushed.
    pub(crate) fn is_stuck(&self) -> bool {
        !self.taken.is_empty() && self.credit == Some(0)
    }

    fn flush(&mut self) {
        if let Some(credit) = &mut self.credit {
            *credit -= 1;
        }
        self.batches.push(self.taken.len());
        self.flushed.extend(self.taken.drain(..));
    }
}

impl<M> Clone for Valve<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Every stream that a room opened, in order.
pub(crate) struct Streams<M>(Arc<Opened<M>>);

struct Opened<M> {
    valves: Mutex<Vec<(ParticipantIdentity, Valve<M>)>>,
    changed: Notify,
}

impl<M: Message> Streams<M> {
    /// A room whose streams are valves; `make` creates each one, open or shut.
    pub(crate) fn stage(make: impl Fn(&Presence) -> Valve<M> + Send + Sync + 'static) -> (Stage<M>, Self) {
        let streams = Self(Arc::new(Opened { valves: Mutex::default(), changed: Notify::new() }));
        let opened = Arc::clone(&streams.0);
        let stage = Stage::new(move |presence, _progress| {
            let valve = make(&presence);
            let sink = valve.sink();
            opened.valves.lock().unwrap_or_else(PoisonError::into_inner).push((presence.identity, valve));
            opened.changed.notify_waiters();
            async move { Ok(sink) }
        });
        (stage, streams)
    }

    /// How many streams to `identity` were opened.
    pub(crate) fn count(&self, identity: &str) -> usize {
        self.all(identity).len()
    }

    fn all(&self, identity: &str) -> Vec<Valve<M>> {
        let identity = super::id(identity);
        let valves = self.0.valves.lock().unwrap_or_else(PoisonError::into_inner);
        valves.iter().filter(|(whose, _)| *whose == identity).map(|(_, valve)| valve.clone()).collect()
    }

    /// Waits for stream number `n` (from 0) to `identity`.
    pub(crate) async fn nth(&self, identity: &str, n: usize) -> Valve<M> {
        super::within(async {
            loop {
                let changed = self.0.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(valve) = self.all(identity).get(n) {
                    return valve.clone();
                }
                changed.await;
            }
        })
        .await
    }
}

impl<M> Clone for Streams<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
