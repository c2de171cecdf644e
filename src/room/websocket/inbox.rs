//! The messages of a viewer that the embedder hasn't taken yet, bounded in bytes.
//!
//! Each connection has some bytes of its own, of which a message in its inbox takes a part. A message longer than
//! [`SMALL_MESSAGE`] takes all of them, and its whole length from the budget that [all peers share](PeerLimits) as
//! well. So a connection has at most one long message under way, or some short ones; what the viewer sends meanwhile
//! isn't read.
//!
//! A message gives back what it takes when the next one is asked for: a reader that asks for messages one by one has
//! decoded the one before by then. The shared part may be given back earlier. The next long message is claimed for only
//! once the one before has given back everything. So a peer whose answers wait, because it doesn't read them, holds no
//! claim that others wait for.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_util::task::AtomicWaker;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::caught::lock;
use crate::protocol::Frame;
use crate::room::Inbound;
use crate::room::limits::{Claim, PeerLimits, SMALL_MESSAGE};

/// The bytes that the messages in one inbox may take before nothing more is read.
const OWN_BYTES: u32 = 4 << 10;

/// The least that a message takes, in bytes, however short it is: it costs memory besides its payload. Sixteen such
/// messages fill an inbox.
const OVERHEAD: u32 = 256;

/// The messages that a viewer sends, as a stream. It ends with the connection.
///
/// A message counts against the connection's bound, and a long one against what [all peers
/// share](crate::room::PeerLimits), until the next one is asked for or the inbox is dropped. While the bound is
/// reached, the viewer isn't read.
#[derive(Debug)]
pub struct WebSocketInbox {
    queue: Arc<Queue>,
    /// The permits of the message that was handed out last.
    taken: Option<Permits>,
}

/// The messages between the connection and its inbox. Bounded by the connection's own bytes.
///
/// This is not a channel of one of the libraries, because each idle viewer has one, and theirs take three times as
/// much. The lock is held for a few instructions.
#[derive(Debug, Default)]
struct Queue {
    messages: Mutex<Messages>,
    /// Wakes the task that reads the inbox.
    reader: AtomicWaker,
}

#[derive(Debug, Default)]
struct Messages {
    waiting: VecDeque<QueuedMessage>,
    /// One of the two ends is gone.
    ended: bool,
}

/// A message, and the permits it takes.
#[derive(Debug)]
struct QueuedMessage {
    frame: Frame,
    permits: Permits,
}

/// The permits that one message has; dropping them gives them back. Boxed, because each idle viewer has an empty
/// place for one as well.
#[derive(Debug)]
pub(super) struct Permits(Box<Taken>);

#[derive(Debug)]
struct Taken {
    _own: OwnedSemaphorePermit,
    shared: Option<Claim>,
}

/// The embedder has dropped its end.
#[derive(Debug)]
pub(super) struct Dropped;

/// The connection's end of an inbox.
#[derive(Debug)]
pub(super) struct InboxSender {
    queue: Arc<Queue>,
    own: Arc<Semaphore>,
}

impl InboxSender {
    pub(super) fn new() -> (Self, WebSocketInbox) {
        let queue = Arc::<Queue>::default();
        let own = Arc::new(Semaphore::new(OWN_BYTES as usize));
        (Self { queue: Arc::clone(&queue), own }, WebSocketInbox { queue, taken: None })
    }

    /// Takes the permits for a message of `bytes` if they are free. A long message's are all claimed before its bytes
    /// are read.
    pub(super) fn try_reserve(&self, bytes: usize, limits: &PeerLimits) -> Option<Permits> {
        let own = Arc::clone(&self.own).try_acquire_many_owned(own_part(bytes)).ok()?;
        let shared = if bytes > SMALL_MESSAGE { Some(limits.try_claim(bytes)?) } else { None };
        Some(Permits(Box::new(Taken { _own: own, shared })))
    }

    /// Waits for the permits, first for the connection's own: while it waits for the embedder, it holds nothing that
    /// others need.
    pub(super) fn reserve(
        &self,
        bytes: usize,
        limits: PeerLimits,
        has_allowance: bool,
    ) -> impl Future<Output = Permits> + Send + 'static {
        let own = Arc::clone(&self.own);
        async move {
            let own = own.acquire_many_owned(own_part(bytes)).await.expect("the semaphore is never closed");
            let shared = if bytes > SMALL_MESSAGE { Some(limits.claim(bytes, has_allowance).await) } else { None };
            Permits(Box::new(Taken { _own: own, shared }))
        }
    }

    pub(super) fn deliver(&mut self, frame: Frame, permits: Permits) -> Result<(), Dropped> {
        let mut messages = lock(&self.queue.messages);
        if messages.ended {
            return Err(Dropped);
        }
        messages.waiting.push_back(QueuedMessage { frame, permits });
        drop(messages);
        self.queue.reader.wake();
        Ok(())
    }
}

impl Drop for InboxSender {
    fn drop(&mut self) {
        lock(&self.queue.messages).ended = true;
        self.queue.reader.wake();
    }
}

impl Drop for WebSocketInbox {
    fn drop(&mut self) {
        let mut messages = lock(&self.queue.messages);
        messages.ended = true;
        let waiting = std::mem::take(&mut messages.waiting);
        // Dropped after the lock is released, because permits that are given back wake other tasks.
        drop(messages);
        drop(waiting);
    }
}

fn own_part(bytes: usize) -> u32 {
    if bytes > SMALL_MESSAGE { OWN_BYTES } else { (bytes as u32).max(OVERHEAD) }
}

impl Stream for WebSocketInbox {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.taken = None;
        // Registered first: a message that comes after the look below finds the waker.
        self.queue.reader.register(cx.waker());
        let mut messages = lock(&self.queue.messages);
        let next = messages.waiting.pop_front();
        if messages.waiting.is_empty() {
            // An idle viewer keeps no memory for messages.
            messages.waiting = VecDeque::new();
        }
        let ended = messages.ended;
        drop(messages);
        match next {
            Some(QueuedMessage { frame, permits }) => {
                self.taken = Some(permits);
                Poll::Ready(Some(frame))
            }
            None if ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl Inbound for WebSocketInbox {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        Pin::new(self).poll_next(cx)
    }

    /// Gives back the shared part of the message that was handed out last.
    fn release(&mut self) {
        if let Some(Permits(taken)) = &mut self.taken {
            taken.shared = None;
        }
    }
}
