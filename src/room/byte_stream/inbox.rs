//! Reads the frames of a byte stream that a participant has opened to this host.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use livekit_data_stream::api::{ByteStreamReader, StreamError as ReadError};

use crate::protocol::Frame;
use crate::protocol::stream::StreamDecoder;
use crate::room::limits::{Claim, Deadline, SMALL_MESSAGE};
use crate::room::{Inbound, PeerLimits};

/// A participant's own stream to this host, as a sequence of frames. It ends with the participant's stream, or with the
/// first bytes in it that are no frame; [`failure`](Self::failure) then says what was wrong.
///
/// The inbox holds one frame at most. A frame of more than 2 KiB needs a claim on the [limits](Self::with_limits),
/// which is given back when the next frame is asked for. Data that the inbox hasn't read yet is held by
/// the SDK.
pub struct ByteStreamInbox {
    reader: ByteStreamReader,
    decoder: StreamDecoder,
    limits: PeerLimits,
    claim: Claiming,
    failure: Option<String>,
    ended: bool,
}

/// The claim on the limits of the frame that is being read.
#[derive(Default)]
enum Claiming {
    /// No claim: the frame hasn't begun, or is short.
    #[default]
    Nothing,
    Waiting(Pin<Box<dyn Future<Output = Claim> + Send>>),
    Granted(Claim, Deadline),
    /// The frame was handed out, and its claim is still held.
    HandedOut(#[expect(dead_code, reason = "held for its drop")] Claim),
}

/// Whether a frame may be gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameClaim {
    /// The frame is short, or has its claim.
    Granted,
    /// The frame has been in progress for too long.
    Late,
}

impl ByteStreamInbox {
    /// Creates an inbox that reads frames from `reader`.
    #[must_use]
    pub fn new(reader: ByteStreamReader) -> Self {
        Self {
            reader,
            decoder: StreamDecoder::default(),
            limits: PeerLimits::default(),
            claim: Claiming::Nothing,
            failure: None,
            ended: false,
        }
    }

    /// Sets limits that the inbox shares with others. While they are used up, a frame of more than 2 KiB waits. A frame
    /// that isn't complete within the limits' patience while others wait is a [failure](Self::failure).
    #[must_use]
    pub fn with_limits(mut self, limits: PeerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// What was wrong with the participant's data, if the stream ended because of that.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    fn end(&mut self) -> Poll<Option<Frame>> {
        self.ended = true;
        self.claim = Claiming::Nothing;
        // Nobody can use the rest, and the SDK needn't gather it.
        self.reader.closer().close();
        Poll::Ready(None)
    }

    /// Waits until a long frame has its claim.
    fn poll_claim(&mut self, cx: &mut Context<'_>) -> Poll<FrameClaim> {
        if let Claiming::Nothing = self.claim {
            let Some(bytes) = self.decoder.announced().filter(|bytes| *bytes > SMALL_MESSAGE) else {
                return Poll::Ready(FrameClaim::Granted);
            };
            let limits = self.limits.clone();
            self.claim = Claiming::Waiting(Box::pin(async move { limits.claim(bytes, true).await }));
        }
        if let Claiming::Waiting(claim) = &mut self.claim {
            let claim = ready!(claim.as_mut().poll(cx));
            self.claim = Claiming::Granted(claim, Deadline::new(&self.limits));
        }
        if let Claiming::Granted(_, deadline) = &mut self.claim
            && deadline.poll_late(cx).is_ready()
        {
            return Poll::Ready(FrameClaim::Late);
        }
        Poll::Ready(FrameClaim::Granted)
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ReadError>>> {
        Pin::new(&mut self.reader).poll_next(cx)
    }
}

impl Stream for ByteStreamInbox {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.release();
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => {
                    if let Claiming::Granted(claim, _) = std::mem::take(&mut self.claim) {
                        self.claim = Claiming::HandedOut(claim);
                    }
                    return Poll::Ready(Some(frame));
                }
                Ok(None) => {}
                Err(error) => {
                    self.failure = Some(error.to_string());
                    return self.end();
                }
            }
            if ready!(self.poll_claim(cx)) == FrameClaim::Late {
                self.failure = Some("a long frame took too long while others waited for the memory".to_owned());
                return self.end();
            }
            match ready!(self.poll_chunk(cx)) {
                Some(Ok(chunk)) => {
                    if let Claiming::Granted(_, deadline) = &mut self.claim {
                        deadline.heard();
                    }
                    self.decoder.push(chunk);
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a participant's stream to us broke off");
                    return self.end();
                }
                None => return self.end(),
            }
        }
    }
}

impl Inbound for ByteStreamInbox {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        Pin::new(self).poll_next(cx)
    }

    /// Gives back the claim of the frame that was handed out last.
    fn release(&mut self) {
        if let Claiming::HandedOut(_) = self.claim {
            self.claim = Claiming::Nothing;
        }
    }

    fn failure(&self) -> Option<String> {
        self.failure.clone()
    }
}

impl fmt::Debug for ByteStreamInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteStreamInbox")
            .field("decoder", &self.decoder)
            .field("limits", &self.limits)
            .field("failure", &self.failure)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
