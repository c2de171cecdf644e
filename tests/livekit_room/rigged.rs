//! A LiveKit room whose streams and events the test can interfere with.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::{Sink, Stream, StreamExt, stream};
use lanecast::protocol::Frame;
use lanecast::room::byte_stream::{ByteStreamInbox, ByteStreamSink, ByteStreamSinkError};
use lanecast::room::livekit::LiveKitRoom;
use lanecast::room::{Goodbye, OpenError, Presence, Room, RoomEvent};
use lanecast::{BroadcastRun, EndReason, ParticipantIdentity, Progress, RunSink, Uplink};
use tokio::sync::mpsc;

pub(crate) type Event = RoomEvent<ByteStreamInbox>;

type Which = fn(&Event) -> bool;

type Polled<E> = Poll<Result<(), E>>;

/// What a participant's stream does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Behavior {
    #[default]
    Flow,
    /// Takes nothing until the test changes it.
    Stall,
    /// Fails the next write.
    Fail,
}

/// A LiveKit room whose streams and events the test can interfere with. Clones are the same room.
#[derive(Clone)]
pub(crate) struct Rigged {
    pub(crate) inner: LiveKitRoom,
    hands: Arc<Hands>,
}

#[derive(Default)]
struct Hands {
    behaviors: Mutex<HashMap<ParticipantIdentity, (Behavior, Option<Waker>)>>,
    /// Which events are held back; `held` has those that were.
    holds: Mutex<Option<Which>>,
    held: Mutex<Vec<Event>>,
    emit: Mutex<Option<mpsc::UnboundedSender<Event>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rigged {
    pub(crate) fn new(inner: LiveKitRoom) -> Self {
        Self { inner, hands: Arc::default() }
    }

    /// Sets what the streams of `identity` do from now on.
    pub(crate) fn set_behavior(&self, identity: &str, behavior: Behavior) {
        let identity = identity.parse().expect("a test's identity is well-formed");
        let waker = {
            let mut behaviors = lock(&self.hands.behaviors);
            let entry = behaviors.entry(identity).or_default();
            entry.0 = behavior;
            entry.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Holds back the events for which `which` returns true.
    pub(crate) fn hold(&self, which: Which) {
        *lock(&self.hands.holds) = Some(which);
    }

    /// How many events are held back.
    pub(crate) fn held(&self) -> usize {
        lock(&self.hands.held).len()
    }

    /// Releases the events that were held back, and stops holding back.
    pub(crate) fn release(&self) {
        *lock(&self.hands.holds) = None;
        let held = std::mem::take(&mut *lock(&self.hands.held));
        held.into_iter().for_each(|event| self.emit(event));
    }

    /// Sends the session an event.
    pub(crate) fn emit(&self, event: Event) {
        let emit = lock(&self.hands.emit);
        emit.as_ref().expect("the session listens").send(event).expect("the session listens");
    }
}

impl Room for Rigged {
    type Message = Frame;
    type Sink = RiggedSink;
    type Incoming = ByteStreamInbox;

    fn events(&self) -> Option<impl Stream<Item = Event> + Send + 'static> {
        let (emit, emitted) = mpsc::unbounded_channel();
        *lock(&self.hands.emit) = Some(emit);
        let emitted = stream::unfold(emitted, |mut emitted| async { Some((emitted.recv().await?, emitted)) });
        let hands = Arc::clone(&self.hands);
        let real = self.inner.events()?.filter_map(move |event| {
            let holds = lock(&hands.holds).is_some_and(|which| which(&event));
            let passed = if holds {
                lock(&hands.held).push(event);
                None
            } else {
                Some(event)
            };
            std::future::ready(passed)
        });
        Some(stream::select(real, emitted))
    }

    fn participants(&self) -> Vec<Presence> {
        self.inner.participants()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        self.inner.present(identity)
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<RiggedSink, OpenError> {
        let inner = self.inner.open(to, progress).await?;
        Ok(RiggedSink { inner, of: to.identity.clone(), hands: Arc::clone(&self.hands) })
    }

    fn uplink(&self) -> Option<Uplink> {
        self.inner.uplink()
    }

    fn largest_message(&self) -> usize {
        self.inner.largest_message()
    }

    fn retire(&self, sink: RiggedSink, reason: EndReason) -> Option<Goodbye> {
        self.inner.retire(sink.inner, reason)
    }
}

pub(crate) struct RiggedSink {
    inner: ByteStreamSink,
    of: ParticipantIdentity,
    hands: Arc<Hands>,
}

impl RiggedSink {
    fn poll_hands(&self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        let mut behaviors = lock(&self.hands.behaviors);
        let (behavior, waker) = behaviors.entry(self.of.clone()).or_default();
        match behavior {
            Behavior::Flow => Poll::Ready(Ok(())),
            Behavior::Stall => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Behavior::Fail => {
                *behavior = Behavior::Flow;
                Poll::Ready(Err("it was told to fail".to_owned()))
            }
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        poll: fn(Pin<&mut ByteStreamSink>, &mut Context<'_>) -> Polled<ByteStreamSinkError>,
    ) -> Poll<Result<(), String>> {
        std::task::ready!(self.poll_hands(cx))?;
        poll(Pin::new(&mut self.inner), cx).map_err(|error| error.to_string())
    }
}

impl RunSink<Frame> for RiggedSink {
    fn start_send_run(mut self: Pin<&mut Self>, run: &BroadcastRun<'_, Frame>) -> Result<usize, String> {
        Pin::new(&mut self.inner).start_send_run(run).map_err(|error| error.to_string())
    }
}

impl Sink<Frame> for RiggedSink {
    type Error = String;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        self.poll(cx, ByteStreamSink::poll_ready)
    }

    fn start_send(mut self: Pin<&mut Self>, frame: Frame) -> Result<(), String> {
        Pin::new(&mut self.inner).start_send(frame).map_err(|error| error.to_string())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        self.poll(cx, ByteStreamSink::poll_flush)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        self.poll(cx, ByteStreamSink::poll_close)
    }
}
