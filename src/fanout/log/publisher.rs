//! Publishing, with or without waiting for capacity in the log.
//!
//! Waiting publishers are served in the order they came, and neither `try_publish` nor a newcomer overtakes them: while
//! any publisher waits, all others find the log full. A publish that is dropped while it waits has sent nothing.
//!
//! # Orderings
//! The count of waiting publishers is relaxed. A caller that has learned that another publisher waits, through anything
//! that orders the two, reads a count that includes that publisher. A caller that reads the count after its fall claims
//! its position behind the publisher that has waited: that publisher claims before it leaves the count, and all claims
//! have one order (see [`log`](crate::fanout::log)). If the caller's claim came first in that order, it would happen
//! before the fall that the caller has read.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::Semaphore;

use crate::contract::Message;
use crate::contract::topic::Audience;
use crate::fanout::log::{BroadcastLog, PublishError};
use crate::sync::{AtomicUsize, Ordering};

/// Publishes into the log, and queues the publishers that have to wait.
#[derive(Debug)]
pub(crate) struct Publisher<M> {
    log: Arc<BroadcastLog<M>>,
    waiting: AtomicUsize,
    /// One permit: its holder is the first of the waiting publishers. Tokio's semaphore is fair.
    turnstile: Semaphore,
}

impl<M: Message> Publisher<M> {
    pub(crate) fn new(log: Arc<BroadcastLog<M>>) -> Self {
        Self { log, waiting: AtomicUsize::new(0), turnstile: Semaphore::new(1) }
    }

    /// Publishes now, or gives the message back.
    pub(crate) fn try_publish(&self, audience: &Audience, message: M) -> Result<(), PublishError<M>> {
        if self.waiting.load(Ordering::Relaxed) > 0 && !self.log.tail().is_sealed() {
            return Err(PublishError::Full(message));
        }
        self.log.publish(audience, message)
    }

    /// Publishes as soon as the log has capacity. `Err` gives the message back if the log is sealed.
    pub(crate) async fn publish(&self, audience: &Audience, message: M) -> Result<(), M> {
        match self.try_publish(audience, message) {
            Ok(()) => Ok(()),
            Err(PublishError::Closed(message)) => Err(message),
            Err(PublishError::Full(message)) => self.publish_in_turn(audience, message).await,
        }
    }

    async fn publish_in_turn(&self, audience: &Audience, message: M) -> Result<(), M> {
        let mut message = Some(message);
        self.in_turn(|log| match log.publish(audience, message.take().expect("taken once, put back below")) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(PublishError::Closed(back)) => Poll::Ready(Err(back)),
            Err(PublishError::Full(back)) => {
                message = Some(back);
                Poll::Pending
            }
        })
        .await
    }

    /// Calls `attempt` until it is ready: at once if no publisher waits, and otherwise in line with the waiting
    /// publishers, each time the log has capacity. `attempt` may lock what has to change together with its claim,
    /// because nothing is held while this method waits.
    #[cfg(feature = "telemetry")]
    pub(crate) async fn claim<T>(&self, mut attempt: impl FnMut(&BroadcastLog<M>) -> Poll<T>) -> T {
        // Relaxed: as in `try_publish`.
        if (self.waiting.load(Ordering::Relaxed) == 0 || self.log.tail().is_sealed())
            && let Poll::Ready(claimed) = attempt(&self.log)
        {
            return claimed;
        }
        self.in_turn(attempt).await
    }

    async fn in_turn<T>(&self, mut attempt: impl FnMut(&BroadcastLog<M>) -> Poll<T>) -> T {
        let _waits = Waits::new(&self.waiting);
        let _turn = self.turnstile.acquire().await.expect("the turnstile is never closed");
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(claimed) = attempt(&self.log) {
                    return Poll::Ready(claimed);
                }
                let may_go_on = || {
                    let tail = self.log.tail();
                    tail.is_sealed() || self.log.has_room(tail)
                };
                if self.log.room.sleeps_unless(cx.waker(), may_go_on) {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

/// Counts a waiting publisher for as long as it waits.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
