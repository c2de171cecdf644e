//! What a viewer has sent and nobody has taken, bounded in bytes.
//!
//! A message in an inbox takes part of what its connection has of its own. One that is longer than
//! [`SMALL_MESSAGE`] takes all of that, and its whole length of what [all peers share](PeerLimits) besides. So a
//! connection has one long message at most under way, or some short ones; what it sends meanwhile isn't read.
//!
//! What a message takes is given back when the next one is asked for: a reader that asks for messages one by one has
//! decoded the one before by then. What it shares with others may be given back before. Only then is the next long message
//! claimed for: a peer whose answers wait, as it doesn't read them, has no claim that others wait for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_channel::mpsc;
use futures_core::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::protocol::Frame;
use crate::room::limits::{Claim, PeerLimits, SMALL_MESSAGE};

/// What the messages in one inbox may take before nothing more is read, in bytes.
const OWN_BYTES: u32 = 4 << 10;

/// What a message takes besides its bytes: it isn't less than that, however short it is. Sixteen of them fill an inbox.
const OVERHEAD: u32 = 256;

const MOST_MESSAGES: usize = (OWN_BYTES / OVERHEAD) as usize;

/// What a viewer sends, message by message. It ends with the connection.
///
/// A message counts against the connection's bound, and a long one against what
/// [all peers share](crate::room::PeerLimits), until the next one is asked for or this is dropped. While the bound is
/// reached, the viewer isn't read.
#[derive(Debug)]
pub struct WebSocketInbox {
    parcels: mpsc::Receiver<Parcel>,
    /// What the message takes that was handed out last.
    taken: Option<Hold>,
}

/// A message, and what it takes.
#[derive(Debug)]
struct Parcel {
    frame: Frame,
    hold: Hold,
}

/// What one message takes; dropped, it is given back. Boxed: as long as an idle viewer is connected, there is a place for it.
#[derive(Debug)]
pub(super) struct Hold(Box<Taken>);

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
pub(super) struct Intake {
    parcels: mpsc::Sender<Parcel>,
    own: Arc<Semaphore>,
}

impl Intake {
    pub(super) fn new() -> (Self, WebSocketInbox) {
        // Never full: what a message takes of the connection's own is had before it is sent.
        let (sender, parcels) = mpsc::channel(MOST_MESSAGES);
        let own = Arc::new(Semaphore::new(OWN_BYTES as usize));
        (Self { parcels: sender, own }, WebSocketInbox { parcels, taken: None })
    }

    /// What a message of `bytes` takes, if it is there. All of a long message's is claimed before its bytes are read.
    pub(super) fn try_hold(&self, bytes: usize, limits: &PeerLimits) -> Option<Hold> {
        let own = Arc::clone(&self.own).try_acquire_many_owned(own_part(bytes)).ok()?;
        let shared = if bytes > SMALL_MESSAGE { Some(limits.try_claim(bytes)?) } else { None };
        Some(Hold(Box::new(Taken { _own: own, shared })))
    }

    /// Waits for it. First for the connection's own part: nothing is held that others need while the embedder is waited
    /// for.
    pub(super) fn hold(
        &self,
        bytes: usize,
        limits: PeerLimits,
        has_allowance: bool,
    ) -> impl Future<Output = Hold> + Send + 'static {
        let own = Arc::clone(&self.own);
        async move {
            let own = own.acquire_many_owned(own_part(bytes)).await.expect("the semaphore is never closed");
            let shared = if bytes > SMALL_MESSAGE { Some(limits.claim(bytes, has_allowance).await) } else { None };
            Hold(Box::new(Taken { _own: own, shared }))
        }
    }

    pub(super) fn deliver(&mut self, frame: Frame, hold: Hold) -> Result<(), Dropped> {
        self.parcels.try_send(Parcel { frame, hold }).map_err(|_| Dropped)
    }
}

fn own_part(bytes: usize) -> u32 {
    if bytes > SMALL_MESSAGE { OWN_BYTES } else { (bytes as u32).max(OVERHEAD) }
}

impl WebSocketInbox {
    /// The message that was handed out last isn't needed any more: gives back what it takes of what all share.
    pub(crate) fn release(&mut self) {
        if let Some(Hold(taken)) = &mut self.taken {
            taken.shared = None;
        }
    }
}

impl Stream for WebSocketInbox {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.taken = None;
        let Some(Parcel { frame, hold }) = ready!(Pin::new(&mut self.parcels).poll_next(cx)) else {
            return Poll::Ready(None);
        };
        self.taken = Some(hold);
        Poll::Ready(Some(frame))
    }
}
