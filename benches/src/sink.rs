//! Sinks that count or stall. They are the same for every runtime that is compared.

use std::convert::Infallible;
use std::pin::Pin;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Sink;
use lanecast::{BroadcastRun, RunSink};

use crate::counter::Counter;

/// The initial message of every participant. Its length distinguishes it from all other messages.
pub const INITIAL: Bytes = Bytes::from_static(b"hello");

/// The source of a room's sinks.
pub trait Sinks: Send + Sync + 'static {
    type Sink: TakeRun + RunSink<Bytes> + Unpin + Send + 'static;

    /// Opens a sink for participant `number`.
    fn open(&self, number: usize) -> Self::Sink;

    fn counts(&self) -> &Arc<Counts>;
}

/// A sink that can be shown messages instead of being given one. The baseline's task owns the messages that it has
/// taken out of its queue; a shard doesn't own those of the log.
pub trait TakeRun: Sink<Bytes, Error = Infallible> {
    /// Looks at as many of the first messages as the sink takes, and returns how many.
    fn take_run(self: Pin<&mut Self>, messages: &[Bytes]) -> Result<usize, Infallible>;
}

/// Counts over all sinks of a room together.
#[derive(Default)]
pub struct Counts {
    /// Messages flushed, initial ones included.
    pub delivered: Counter,
    /// Initial messages flushed, which is the number of instances that were brought in.
    pub initial: Counter,
    /// Sinks dropped, which is the number of instances that are gone.
    pub closed: Counter,
    /// Sinks that have stalled: each has taken a message that it never flushes.
    pub stalled: Counter,
}

/// Sinks that take every message at once and count it at the flush.
#[derive(Default)]
pub struct Counting(Arc<Counts>);

impl Sinks for Counting {
    type Sink = CountingSink;

    fn open(&self, _number: usize) -> CountingSink {
        CountingSink { counts: Arc::clone(&self.0), unflushed: 0, initial: 0 }
    }

    fn counts(&self) -> &Arc<Counts> {
        &self.0
    }
}

pub struct CountingSink {
    counts: Arc<Counts>,
    unflushed: u32,
    initial: u32,
}

impl Sink<Bytes> for CountingSink {
    type Error = Infallible;

    #[inline]
    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Infallible> {
        self.take_run(slice::from_ref(&message)).map(drop)
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        let messages = std::mem::take(&mut self.unflushed);
        if messages > 0 {
            let initial = std::mem::take(&mut self.initial);
            if initial > 0 {
                self.counts.initial.add(u64::from(initial));
            }
            self.counts.delivered.add(u64::from(messages));
        }
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.poll_flush(cx)
    }
}

impl TakeRun for CountingSink {
    #[inline]
    fn take_run(mut self: Pin<&mut Self>, messages: &[Bytes]) -> Result<usize, Infallible> {
        self.unflushed += messages.len() as u32;
        self.initial += messages.iter().filter(|message| message.len() == INITIAL.len()).count() as u32;
        Ok(messages.len())
    }
}

impl RunSink<Bytes> for CountingSink {
    #[inline]
    fn start_send_run(self: Pin<&mut Self>, run: &BroadcastRun<'_, Bytes>) -> Result<usize, Infallible> {
        self.take_run(run.messages())
    }
}

impl Drop for CountingSink {
    fn drop(&mut self) {
        self.counts.closed.add(1);
    }
}

/// Sinks that count. A sink that is opened while the gate is shut stalls at its first message after the initial one.
#[derive(Default)]
pub struct Gated {
    counting: Counting,
    shut: AtomicBool,
}

impl Gated {
    pub fn shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::SeqCst);
    }
}

impl Sinks for Gated {
    type Sink = GatedSink<CountingSink>;

    fn open(&self, number: usize) -> Self::Sink {
        let stalls = self.shut.load(Ordering::SeqCst);
        GatedSink { stalls, reported: false, counts: Arc::clone(self.counts()), inner: self.counting.open(number) }
    }

    fn counts(&self) -> &Arc<Counts> {
        self.counting.counts()
    }
}

/// Sinks that count, some of which stall at their first message after the initial one, for good.
pub struct Behind {
    counting: Counting,
    one_in: Option<usize>,
}

impl Behind {
    /// One in `one_in` participants stalls.
    pub fn new(one_in: Option<usize>) -> Self {
        Self { counting: Counting::default(), one_in }
    }
}

impl Sinks for Behind {
    type Sink = GatedSink<CountingSink>;

    fn open(&self, number: usize) -> Self::Sink {
        let stalls = self.one_in.is_some_and(|one_in| number % one_in == one_in - 1);
        GatedSink { stalls, reported: false, counts: Arc::clone(self.counts()), inner: self.counting.open(number) }
    }

    fn counts(&self) -> &Arc<Counts> {
        self.counting.counts()
    }
}

/// A sink that stalls if `stalls` is set: it takes one message besides the initial one, and never flushes it.
pub struct GatedSink<S> {
    pub stalls: bool,
    pub reported: bool,
    pub counts: Arc<Counts>,
    pub inner: S,
}

impl<S: TakeRun + Unpin> Sink<Bytes> for GatedSink<S> {
    type Error = Infallible;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.reported {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_ready(cx)
    }

    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Infallible> {
        self.take_run(slice::from_ref(&message)).map(drop)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.reported {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.poll_flush(cx)
    }
}

impl<S: TakeRun + Unpin> TakeRun for GatedSink<S> {
    fn take_run(mut self: Pin<&mut Self>, messages: &[Bytes]) -> Result<usize, Infallible> {
        // The initial message gets through, so that the participant counts as brought in.
        if !self.stalls || messages[0].len() == INITIAL.len() {
            return Pin::new(&mut self.inner).take_run(messages);
        }
        if !self.reported {
            self.reported = true;
            self.counts.stalled.add(1);
        }
        Ok(1)
    }
}

impl<S: TakeRun + Unpin> RunSink<Bytes> for GatedSink<S> {
    fn start_send_run(self: Pin<&mut Self>, run: &BroadcastRun<'_, Bytes>) -> Result<usize, Infallible> {
        self.take_run(run.messages())
    }
}

/// The sinks of `S`, but given a clone of each message, like any other [`Sink`].
#[derive(Default)]
pub struct Cloned<S>(S);

impl<S: Sinks> Sinks for Cloned<S> {
    type Sink = ClonedSink<S::Sink>;

    fn open(&self, number: usize) -> Self::Sink {
        ClonedSink(self.0.open(number))
    }

    fn counts(&self) -> &Arc<Counts> {
        self.0.counts()
    }
}

pub struct ClonedSink<S>(S);

impl<S: TakeRun + Unpin> Sink<Bytes> for ClonedSink<S> {
    type Error = Infallible;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Pin::new(&mut self.0).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Bytes) -> Result<(), Infallible> {
        Pin::new(&mut self.0).start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

impl<S: TakeRun + Unpin> RunSink<Bytes> for ClonedSink<S> {}

impl<S: TakeRun + Unpin> TakeRun for ClonedSink<S> {
    fn take_run(self: Pin<&mut Self>, messages: &[Bytes]) -> Result<usize, Infallible> {
        self.start_send(messages[0].clone()).map(|()| 1)
    }
}
