//! The frames of a byte stream that a participant has opened to us.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use livekit_data_stream::api::{ByteStreamReader, StreamError as ReadError};

use crate::protocol::Frame;
use crate::protocol::stream::StreamDecoder;

/// A participant's own stream to us, as a sequence of frames. It ends with the participant's stream, or with the first
/// thing in it that is no frame; then [`failure`](Self::failure) says what.
///
/// Holds at most what is missing of a frame; what the SDK holds before it is the SDK's.
#[derive(Debug)]
pub struct ByteStreamInbox {
    reader: ByteStreamReader,
    decoder: StreamDecoder,
    failure: Option<String>,
    ended: bool,
}

impl ByteStreamInbox {
    /// Reads frames from `reader`.
    #[must_use]
    pub fn new(reader: ByteStreamReader) -> Self {
        Self { reader, decoder: StreamDecoder::default(), failure: None, ended: false }
    }

    /// What was wrong with what the participant sent, if the stream ended because of that.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    fn end(&mut self) -> Poll<Option<Frame>> {
        self.ended = true;
        // The rest is of no use to anybody, and the SDK needn't gather it.
        self.reader.closer().close();
        Poll::Ready(None)
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
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Poll::Ready(Some(frame)),
                Ok(None) => {}
                Err(error) => {
                    self.failure = Some(error.to_string());
                    return self.end();
                }
            }
            match std::task::ready!(self.poll_chunk(cx)) {
                Some(Ok(chunk)) => self.decoder.push(chunk),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a participant's stream to us broke off");
                    return self.end();
                }
                None => return self.end(),
            }
        }
    }
}
