//! A room whose participants only count: what is measured is the runtime.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use futures_util::{Sink, Stream, stream};
use lanecast::room::{OpenError, Presence, Room, RoomEvent};
use lanecast::{ParticipantIdentity, ParticipantSid, Progress, Session, SessionEvent};

/// A room with a fixed number of participants, always there.
pub(crate) struct CountingRoom {
    present: Vec<Presence>,
    delivered: Arc<Delivered>,
}

/// How much has been delivered to all sinks together, and who waits for it to reach a number.
#[derive(Default)]
pub(crate) struct Delivered {
    messages: AtomicU64,
    awaited: AtomicU64,
    waker: AtomicWaker,
}

impl Delivered {
    /// Waits until `messages` have been delivered in total.
    pub(crate) async fn reach(&self, messages: u64) {
        std::future::poll_fn(|cx| {
            self.awaited.store(messages, Ordering::SeqCst);
            self.waker.register(cx.waker());
            if self.messages.load(Ordering::SeqCst) >= messages { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The same without giving up the thread.
    pub(crate) fn spin_until(&self, messages: u64) {
        while self.messages.load(Ordering::SeqCst) < messages {
            std::hint::spin_loop();
        }
    }

    fn add(&self, messages: u64) {
        let now = self.messages.fetch_add(messages, Ordering::SeqCst) + messages;
        if now >= self.awaited.load(Ordering::Relaxed) {
            self.waker.wake();
        }
    }
}

impl CountingRoom {
    pub(crate) fn new(participants: usize) -> Self {
        let presence = |n: usize| {
            let identity = ParticipantIdentity::new(format!("viewer-{n}")).expect("short");
            let sid = ParticipantSid::new(format!("PA_{n}")).expect("short");
            Presence::new(identity, sid, n as u64)
        };
        Self { present: (0..participants).map(presence).collect(), delivered: Arc::default() }
    }

    pub(crate) fn delivered(&self) -> Arc<Delivered> {
        Arc::clone(&self.delivered)
    }

    /// A session in which all participants are registered.
    pub(crate) async fn into_session(self) -> Session<Self> {
        let participants = self.present.len();
        let session = Session::builder(self).event_capacity(2 * participants + 16).build().expect("inside a runtime");
        let mut events = session.events();
        let mut joined = session.participants().len();
        while joined < participants {
            match events.next().await {
                Some(SessionEvent::Joined(_)) => joined = session.participants().len(),
                Some(_) => {}
                None => panic!("the session ended"),
            }
        }
        session
    }
}

impl Room for CountingRoom {
    type Message = Bytes;
    type Sink = CountingSink;
    type Incoming = ();

    fn events(&self) -> impl Stream<Item = RoomEvent<()>> + Send + 'static {
        stream::pending()
    }

    fn participants(&self) -> Vec<Presence> {
        self.present.clone()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        let number: usize = identity.as_str().strip_prefix("viewer-")?.parse().ok()?;
        self.present.get(number).cloned()
    }

    async fn open(&self, _to: &Presence, _progress: Progress) -> Result<CountingSink, OpenError> {
        Ok(CountingSink { delivered: Arc::clone(&self.delivered), unflushed: 0, bytes: 0 })
    }
}

/// Takes everything at once and counts it at the flush.
pub(crate) struct CountingSink {
    delivered: Arc<Delivered>,
    unflushed: u64,
    bytes: u64,
}

impl Sink<Bytes> for CountingSink {
    type Error = Infallible;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn start_send(mut self: Pin<&mut Self>, message: Bytes) -> Result<(), Infallible> {
        self.unflushed += 1;
        self.bytes += message.len() as u64;
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        let messages = std::mem::take(&mut self.unflushed);
        if messages > 0 {
            self.delivered.add(messages);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.poll_flush(cx)
    }
}
