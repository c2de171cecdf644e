//! A room that the test controls step by step: which connections are present, how streams open, how sinks answer and
//! how they are retired.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::{Sink, Stream, stream};
use lanecast::room::{Goodbye, OpenError, Presence, Room, RoomEvent};
use lanecast::{BroadcastRun, EndReason, Message, ParticipantIdentity, Progress, RunSink, Session, SessionBuilder};
use tokio::sync::{Semaphore, mpsc};

type Opened<M> = Pin<Box<dyn Future<Output = Result<StageSink<M>, OpenError>> + Send>>;
type OnOpen<M> = Arc<dyn Fn(Presence, Progress) -> Opened<M> + Send + Sync>;
type OnRetire<M> = Arc<dyn Fn(StageSink<M>, EndReason) -> Option<Goodbye> + Send + Sync>;

/// A room that the test controls step by step. Clones are the same room.
pub(crate) struct Stage<M>(Arc<Inner<M>>);

struct Inner<M> {
    events: mpsc::UnboundedSender<RoomEvent<()>>,
    listener: Mutex<Option<mpsc::UnboundedReceiver<RoomEvent<()>>>>,
    present: Mutex<HashMap<ParticipantIdentity, Presence>>,
    on_open: OnOpen<M>,
    on_retire: OnRetire<M>,
}

impl<M: Message> Stage<M> {
    /// A room whose streams `open` opens.
    pub(crate) fn new<F, Fut>(open: F) -> Self
    where
        F: Fn(Presence, Progress) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<StageSink<M>, OpenError>> + Send + 'static,
    {
        Self::with_retire(open, |sink, _| {
            drop(sink);
            None
        })
    }

    /// The same, with `retire` for [`Room::retire`].
    pub(crate) fn with_retire<F, Fut, G>(open: F, retire: G) -> Self
    where
        F: Fn(Presence, Progress) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<StageSink<M>, OpenError>> + Send + 'static,
        G: Fn(StageSink<M>, EndReason) -> Option<Goodbye> + Send + Sync + 'static,
    {
        let (events, listener) = mpsc::unbounded_channel();
        Self(Arc::new(Inner {
            events,
            listener: Mutex::new(Some(listener)),
            present: Mutex::default(),
            on_open: Arc::new(move |presence, progress| Box::pin(open(presence, progress))),
            on_retire: Arc::new(retire),
        }))
    }

    /// Builds a session on this room.
    pub(crate) fn session(&self, set: impl FnOnce(SessionBuilder<Self>) -> SessionBuilder<Self>) -> Session<Self> {
        set(Session::builder(self.clone())).build().expect("a test's settings make sense")
    }

    /// Adds a connection, in place of the one its identity may have had, and reports it as active.
    pub(crate) fn join(&self, presence: Presence) {
        self.insert_silently(presence.clone());
        self.emit(RoomEvent::Active(presence));
    }

    /// Adds a connection without an event.
    pub(crate) fn insert_silently(&self, presence: Presence) {
        self.present_map().insert(presence.identity.clone(), presence);
    }

    /// Removes a connection, if it is still its identity's, and reports it as gone.
    pub(crate) fn leave(&self, identity: &str, connection: &str) {
        let (identity, sid) = (super::id(identity), super::sid(connection));
        let mut present = self.present_map();
        if present.get(&identity).is_some_and(|now| now.sid == sid) {
            present.remove(&identity);
        }
        drop(present);
        self.emit(RoomEvent::Disconnected { identity, sid });
    }

    /// Removes whatever connection the identity has, without an event.
    pub(crate) fn remove_silently(&self, identity: &str) {
        self.present_map().remove(&super::id(identity));
    }

    pub(crate) fn emit(&self, event: RoomEvent<()>) {
        // It is not an error that the session has ended and nobody listens.
        let _ = self.0.events.send(event);
    }

    /// Whether the session has dropped the event stream.
    pub(crate) fn is_deserted(&self) -> bool {
        self.0.events.is_closed()
    }

    fn present_map(&self) -> std::sync::MutexGuard<'_, HashMap<ParticipantIdentity, Presence>> {
        self.0.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M> Clone for Stage<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Message> Room for Stage<M> {
    type Message = M;
    type Sink = StageSink<M>;
    type Incoming = ();

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<()>> + Send + 'static> {
        let listener = self.0.listener.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(stream::unfold(listener, |mut listener| async { Some((listener.recv().await?, listener)) }))
    }

    fn participants(&self) -> Vec<Presence> {
        self.present_map().values().cloned().collect()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        self.present_map().get(identity).cloned()
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<StageSink<M>, OpenError> {
        let mut sink = (self.0.on_open)(to.clone(), progress).await?;
        sink.of = Some(to.identity.clone());
        Ok(sink)
    }

    /// Whether the sink's error says that the viewer is gone.
    fn has_vanished(error: &String) -> bool {
        error == GONE
    }

    fn retire(&self, sink: StageSink<M>, reason: EndReason) -> Option<Goodbye> {
        (self.0.on_retire)(sink, reason)
    }
}

/// The error of a sink whose viewer is gone; any other error is a failure.
pub(crate) const GONE: &str = "gone";

/// Holds streams while they are being opened, until the test lets them through.
#[derive(Clone)]
pub(crate) struct Gate {
    opening: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { opening: Arc::default(), permits: Arc::new(Semaphore::new(0)) }
    }

    /// How many streams are being opened now. An opening that was dropped doesn't count.
    pub(crate) fn opening(&self) -> usize {
        self.opening.load(Ordering::SeqCst)
    }

    /// Lets this many streams open.
    pub(crate) fn let_open(&self, streams: usize) {
        self.permits.add_permits(streams);
    }

    /// Waits until the test lets the caller through.
    pub(crate) async fn pass(&self) {
        struct Opening(Arc<AtomicUsize>);
        impl Drop for Opening {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.opening.fetch_add(1, Ordering::SeqCst);
        let _opening = Opening(Arc::clone(&self.opening));
        self.permits.acquire().await.expect("it is never closed").forget();
    }
}

/// A call that the lane makes to a sink.
#[derive(Debug)]
pub(crate) enum Call<M> {
    Ready,
    Send(M),
    Flush,
    Close,
    Drop,
}

type Answer<M> = dyn FnMut(Call<M>, Option<&mut Context<'_>>) -> Poll<Result<(), String>> + Send;

/// A sink whose answers come from a closure. `Send` and `Drop` come without a context and must not be answered
/// `Pending`.
pub(crate) struct StageSink<M> {
    answer: Box<Answer<M>>,
    /// Set by the [`Stage`] that opens it.
    of: Option<ParticipantIdentity>,
}

impl<M> StageSink<M> {
    pub(crate) fn new(
        answer: impl FnMut(Call<M>, Option<&mut Context<'_>>) -> Poll<Result<(), String>> + Send + 'static,
    ) -> Self {
        Self { answer: Box::new(answer), of: None }
    }

    /// Whose sink it is.
    pub(crate) fn identity(&self) -> &ParticipantIdentity {
        self.of.as_ref().expect("a stage opened it")
    }
}

impl<M: Message> RunSink<M> for StageSink<M> {
    /// Takes as many messages as the sink is ready for.
    fn start_send_run(mut self: Pin<&mut Self>, run: &BroadcastRun<'_, M>) -> Result<usize, String> {
        let mut cx = Context::from_waker(Waker::noop());
        for (taken, message) in run.messages().iter().enumerate() {
            if taken > 0 && !matches!(self.as_mut().poll_ready(&mut cx), Poll::Ready(Ok(()))) {
                return Ok(taken);
            }
            let mut copy = message.clone();
            if let Some(tag) = run.tag() {
                copy.address(tag);
            }
            self.as_mut().start_send(copy)?;
        }
        Ok(run.messages().len())
    }
}

impl<M> Sink<M> for StageSink<M> {
    type Error = String;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        (self.answer)(Call::Ready, Some(cx))
    }

    fn start_send(mut self: Pin<&mut Self>, message: M) -> Result<(), String> {
        match (self.answer)(Call::Send(message), None) {
            Poll::Ready(answer) => answer,
            Poll::Pending => unreachable!("start_send can't be pending"),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        (self.answer)(Call::Flush, Some(cx))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        (self.answer)(Call::Close, Some(cx))
    }
}

impl<M> Drop for StageSink<M> {
    fn drop(&mut self) {
        let _ = (self.answer)(Call::Drop, None);
    }
}
