//! Publishing, with or without waiting for capacity in the log.
//!
//! Waiting publishers are served in the order they came, and neither `try_publish` nor a newcomer overtakes them: while
//! any publisher waits, all others find the log full. A publish that is dropped while it waits has sent nothing.
//!
//! # Orderings
//! The count of waiting publishers is relaxed. A caller that has learned that another publisher waits, through anything
//! that orders the two, reads a count that includes that publisher. A caller that reads the count after it has fallen
//! claims its position behind the publisher that has waited: that publisher claims before it leaves the count, and all
//! claims have one order (see [`log`](crate::fanout::log)). If the caller's claim came first in that order, it would
//! happen before the decrement that the caller has read.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::Semaphore;

use crate::contract::Message;
use crate::contract::topic::{Audience, Topic};
use crate::fanout::log::{BroadcastLog, Position, Refused};
use crate::sync::waiting::Waiting;
use crate::sync::{AtomicUsize, Ordering};

/// Publishes into the log, and queues the publishers that have to wait.
#[derive(Debug)]
pub(crate) struct Publisher<M> {
    log: Arc<BroadcastLog<M>>,
    /// The length of the longest message that isn't refused, in bytes.
    largest: u64,
    waiting: AtomicUsize,
    /// One permit: its holder is the first of the waiting publishers. Tokio's semaphore is fair.
    turnstile: Semaphore,
}

/// The log had no place for a message of so many bytes.
struct NoPlace {
    bytes: usize,
}

/// Writes a message into the log at once, and returns its position: see [`Publisher::claim`].
#[cfg(feature = "telemetry")]
type Place<'a, M> = dyn FnMut(&Audience, M) -> Result<Position, Refused<M>> + 'a;

impl<M: Message> Publisher<M> {
    pub(in crate::fanout) fn new(log: Arc<BroadcastLog<M>>, largest: u64) -> Self {
        Self { log, largest, waiting: AtomicUsize::new(0), turnstile: Semaphore::new(1) }
    }

    /// Publishes now or not at all.
    pub(crate) fn try_publish(&self, audience: &Audience, message: M) -> Result<(), Refused<M>> {
        if message.byte_len() as u64 > self.largest {
            return Err(Refused::TooLarge(message));
        }
        if self.others_wait() {
            return Err(Refused::Full(message));
        }
        self.place(audience, message).map(drop)
    }

    /// Publishes as soon as the log has capacity. Never [`Refused::Full`].
    pub(crate) async fn publish(&self, audience: &Audience, message: M) -> Result<(), Refused<M>> {
        match self.try_publish(audience, message) {
            Err(Refused::Full(message)) => self.publish_in_line(audience, message).await,
            done => done,
        }
    }

    async fn publish_in_line(&self, audience: &Audience, message: M) -> Result<(), Refused<M>> {
        let mut message = Some(message);
        self.in_line(|| match self.place(audience, message.take().expect("taken once, put back below")) {
            Err(Refused::Full(back)) => {
                let bytes = back.byte_len();
                message = Some(back);
                Err(NoPlace { bytes })
            }
            done => Ok(done.map(drop)),
        })
        .await
    }

    /// Ends a topic as soon as the log has capacity, behind every message that was published to it before. If the log
    /// is sealed, everything ends anyway.
    pub(crate) async fn end_topic(&self, topic: &Topic) {
        let attempt = || match self.log.end_topic(topic) {
            Err(Refused::Full(())) => Err(NoPlace { bytes: 0 }),
            Ok(_) | Err(Refused::Closed(()) | Refused::TooLarge(())) => Ok(()),
        };
        if self.others_wait() || attempt().is_err() {
            self.in_line(attempt).await;
        }
    }

    /// Calls `attempt` until it is ready: at once if no publisher waits, and otherwise in line with the waiting
    /// publishers, each time the log has capacity. `attempt` gets the function that writes a message into the log,
    /// and is pending if that finds the log full. It may lock what has to change together with its claim, because
    /// nothing is held while this method waits.
    #[cfg(feature = "telemetry")]
    pub(crate) async fn claim<T>(&self, mut attempt: impl FnMut(&mut Place<'_, M>) -> Poll<T>) -> T {
        let mut attempt = || {
            let mut bytes = 0;
            let attempted = attempt(&mut |audience, message| {
                bytes = message.byte_len();
                self.place(audience, message)
            });
            match attempted {
                Poll::Ready(claimed) => Ok(claimed),
                Poll::Pending => Err(NoPlace { bytes }),
            }
        };
        if !self.others_wait()
            && let Ok(claimed) = attempt()
        {
            return claimed;
        }
        self.in_line(attempt).await
    }

    /// Writes a message that isn't too large into the log and returns its position, ahead of publishers that wait. Only
    /// for the first of them, or if there is none.
    #[inline]
    fn place(&self, audience: &Audience, message: M) -> Result<Position, Refused<M>> {
        self.log.publish(audience, message)
    }

    /// Whether a message for `topic` would reach nobody, though the log is open.
    pub(crate) fn reaches_nobody(&self, topic: &Topic) -> bool {
        topic.reaches_nobody() && !self.log.tail().is_sealed()
    }

    /// The length of the longest message that isn't refused, in bytes.
    #[cfg(feature = "telemetry")]
    pub(crate) fn largest_message(&self) -> u64 {
        self.largest
    }

    /// Whether publishers wait for an open log. They are told of its seal, and then nobody has to wait behind them.
    fn others_wait(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 && !self.log.tail().is_sealed()
    }

    async fn in_line<T>(&self, mut attempt: impl FnMut() -> Result<T, NoPlace>) -> T {
        let _waits = Waiting::begin(&self.waiting);
        let _permit = self.turnstile.acquire().await.expect("the turnstile is never closed");
        poll_fn(|cx| {
            loop {
                let NoPlace { bytes } = match attempt() {
                    Ok(claimed) => return Poll::Ready(claimed),
                    Err(refused) => refused,
                };
                let may_go_on = || {
                    self.log.end_gathering();
                    let tail = self.log.tail();
                    tail.is_sealed() || (self.log.has_space(tail) && self.log.has_bytes(bytes))
                };
                if self.log.space_freed.sleeps_unless(cx.waker(), may_go_on) {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}
