//! The writing side of a connection, shared by the sink and the task that reads.
//!
//! The sink writes data frames, the reading task control frames. Each is written at once if possible, and nothing is
//! stored. What the kernel doesn't take goes into [`UnsentBytes`]. The next task that holds the lock goes on writing
//! them, in this order:
//! 1. the rest of a control frame that was begun,
//! 2. the rest of the data frame that was begun,
//! 3. control frames that wait for such a boundary: at most one pong (the latest), one ping, one close,
//! 4. the data frames after it.
//!
//! The unsent bytes hold at most one batch of data, because the sink isn't ready while there is one. So they are
//! bounded, and control frames come between data frames only.
//!
//! # Locking and waiting
//! The writer is behind a mutex that is held for one system call at a time and never across an await. The reading task
//! locks it. The sink lives on a flush shard and only tries to lock it: see [`Connection::try_writer`].
//!
//! A task that leaves unsent bytes behind waits for the socket: the sink in the stream's own write slot, the reading
//! task with a waiter of its own. Both may wait; the one that finds nothing left has no work. After the reading task
//! has written some of them, it wakes the sink, which registers its waker before it releases the lock.
//!
//! [`Connection::try_writer`]: super::connection::Connection::try_writer

use std::io;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::batch::{self, Batch};
use super::socket::{self, Coalescing};
use crate::contract::Progress;

/// The writing side of a connection: what waits for the socket, and how it drains.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// The bytes that the kernel hasn't taken yet. Boxed, because a connection that keeps up has none.
    unsent: Option<Box<UnsentBytes>>,
    /// The close handshake has begun: no more data.
    closing: bool,
    coalescing: Coalescing,
    /// When the kernel last took bytes after it had refused some, which it does because the client has acknowledged
    /// others.
    drained: Option<Instant>,
    progress: Progress,
}

/// The frames that wait because the kernel has refused bytes, written in the order that the beginning of this file
/// gives.
#[derive(Debug, Default)]
struct UnsentBytes {
    /// Encoded control frames that are written next; the first may be written in part.
    control: Vec<u8>,
    /// Data frames, of which the first `at` bytes are written; `tail` is the end of the last frame's payload.
    bytes: Vec<u8>,
    tail: Bytes,
    at: usize,
    /// The end of the frame that is being written; at most `at` if none is.
    frame_end: usize,
    pong: Option<Vec<u8>>,
    ping: bool,
    close: Option<(u16, &'static str)>,
    /// When the kernel first refused any of these bytes, if it has.
    refused: Option<Instant>,
}

/// A frame that the reading task wants to send.
#[derive(Debug)]
pub(super) enum ControlFrame {
    Pong(Vec<u8>),
    Ping,
}

impl Writer {
    /// Whether the close handshake has begun.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// When the client was last seen to take what it is sent, if it was ever behind.
    pub(super) fn drained(&self) -> Option<Instant> {
        self.drained
    }

    /// When the kernel first refused any of the bytes that wait, if it has.
    pub(super) fn refused(&self) -> Option<Instant> {
        self.unsent.as_ref()?.refused
    }

    pub(super) fn report_to(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// Has later writes be gathered by the kernel like this.
    pub(super) fn set_coalescing(&mut self, coalescing: Coalescing) {
        self.coalescing = coalescing;
    }

    /// What the client's link carries, in bytes per second, if that is known.
    pub(super) fn link_rate(&self) -> Option<u64> {
        self.progress.link_rate()
    }

    /// Whether nothing waits for the socket.
    pub(super) fn is_idle(&self) -> bool {
        self.unsent.is_none()
    }

    /// Whether data frames wait.
    pub(super) fn holds_data(&self) -> bool {
        self.unsent.as_ref().is_some_and(|unsent| unsent.data_len() > 0)
    }

    /// Writes `batch` after everything that waits, and takes over what the kernel doesn't take. The batch stays as it
    /// is if another one still waits.
    pub(super) fn write_batch(&mut self, stream: &TcpStream, batch: &mut Batch) -> io::Result<()> {
        if self.unsent.is_none() {
            let written = match self.coalescing {
                Coalescing::Free => socket::write_eagerly(stream, batch.bytes(), batch.tail())?,
                Coalescing::Strict => socket::write(stream, batch.bytes(), batch.tail(), self.coalescing)?,
            };
            if written < batch.len() {
                // A batch that goes at once needs no report: the end of the flush is enough.
                self.progress.report(written);
                self.unsent = Some(Box::new(UnsentBytes::of(batch, written)));
            }
            batch.recycle();
            return Ok(());
        }
        self.write_unsent(stream)?;
        match &mut self.unsent {
            None => self.write_batch(stream, batch),
            Some(unsent) if unsent.data_len() == 0 => {
                unsent.take_over(batch);
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    /// Writes a control frame as soon as a frame boundary is reached.
    pub(super) fn write_control(&mut self, stream: &TcpStream, frame: ControlFrame) -> io::Result<()> {
        let unsent = self.unsent.get_or_insert_default();
        match frame {
            ControlFrame::Pong(payload) => unsent.pong = Some(payload),
            ControlFrame::Ping => unsent.ping = true,
        }
        self.write_unsent(stream)
    }

    /// Begins the close handshake: drops the frames that haven't been begun, and writes the close frame as soon as the
    /// one that has been is finished.
    pub(super) fn begin_close(&mut self, stream: &TcpStream, code: u16, reason: &'static str) -> io::Result<()> {
        self.closing = true;
        let unsent = self.unsent.get_or_insert_default();
        unsent.truncate();
        unsent.close = Some((code, reason));
        self.write_unsent(stream)
    }

    /// Drops everything: there is no close handshake.
    pub(super) fn discard_all(&mut self) {
        self.closing = true;
        self.unsent = None;
    }

    /// Writes as much of the unsent bytes as the kernel takes.
    pub(super) fn write_unsent(&mut self, stream: &TcpStream) -> io::Result<()> {
        let Some(unsent) = &mut self.unsent else { return Ok(()) };
        let had_been_refused = unsent.refused.is_some();
        let written = unsent.write(stream, self.coalescing)?;
        self.progress.report(written);
        if had_been_refused && written > 0 {
            self.drained = Some(Instant::now());
        }
        if unsent.is_empty() {
            self.unsent = None;
        }
        Ok(())
    }
}

impl UnsentBytes {
    /// The rest of `batch` after its first `written` bytes.
    fn of(batch: &Batch, written: usize) -> Self {
        let (bytes, tail) = (batch.bytes(), batch.tail());
        let own = bytes.len().min(written);
        let mut frame_end = 0;
        while frame_end < written {
            frame_end += batch::frame_len(&bytes[frame_end..]);
        }
        Self {
            bytes: bytes[own..].to_vec(),
            tail: tail.slice(written - own..),
            frame_end: frame_end - written,
            refused: Some(Instant::now()),
            ..Self::default()
        }
    }

    fn take_over(&mut self, batch: &mut Batch) {
        self.bytes = batch.bytes().into();
        self.tail = batch.tail().clone();
        (self.at, self.frame_end) = (0, 0);
        batch.recycle();
    }

    fn data_len(&self) -> usize {
        self.bytes.len() + self.tail.len() - self.at
    }

    fn has_control(&self) -> bool {
        self.pong.is_some() || self.ping || self.close.is_some()
    }

    fn is_empty(&self) -> bool {
        self.control.is_empty() && self.data_len() == 0 && !self.has_control()
    }

    /// Drops the frames that haven't been begun.
    fn truncate(&mut self) {
        self.pong = None;
        self.ping = false;
        let end = self.at.max(self.frame_end);
        let own = self.bytes.len();
        self.bytes.truncate(end);
        self.tail.truncate(end.saturating_sub(own));
    }

    /// Writes as much as the kernel takes. Returns how many bytes that was.
    fn write(&mut self, stream: &TcpStream, coalescing: Coalescing) -> io::Result<usize> {
        let before = self.control.len() + self.data_len();
        let mut encoded = 0;
        loop {
            if !self.control.is_empty() {
                let written = socket::write(stream, &self.control, &[], coalescing)?;
                self.control.drain(..written);
                if !self.control.is_empty() {
                    break;
                }
            }
            let begun = self.at < self.frame_end;
            if self.has_control() && !begun {
                encoded += self.encode_control();
                continue;
            }
            let total = self.bytes.len() + self.tail.len();
            let limit = if self.has_control() { self.frame_end } else { total };
            if self.at == limit {
                return Ok(before + encoded);
            }
            self.write_data(stream, limit, coalescing)?;
            if self.at < limit {
                break;
            }
        }
        self.refused.get_or_insert_with(Instant::now);
        Ok(before + encoded - self.control.len() - self.data_len())
    }

    fn write_data(&mut self, stream: &TcpStream, limit: usize, coalescing: Coalescing) -> io::Result<()> {
        let own = self.bytes.len();
        let first = &self.bytes[self.at.min(own)..limit.min(own)];
        let second = &self.tail[self.at.saturating_sub(own)..limit.saturating_sub(own)];
        self.at += socket::write(stream, first, second, coalescing)?;
        while self.frame_end < self.at {
            self.frame_end += batch::frame_len(&self.bytes[self.frame_end..]);
        }
        Ok(())
    }

    /// Encodes the waiting control frames into `control`, which goes out before everything else. Returns their length
    /// in bytes.
    fn encode_control(&mut self) -> usize {
        if let Some(pong) = self.pong.take() {
            batch::put_header(&mut self.control, batch::PONG, pong.len());
            self.control.extend_from_slice(&pong);
        }
        if std::mem::take(&mut self.ping) {
            batch::put_header(&mut self.control, batch::PING, 0);
        }
        if let Some((code, reason)) = self.close.take() {
            batch::put_header(&mut self.control, batch::CLOSE, 2 + reason.len());
            self.control.extend_from_slice(&code.to_be_bytes());
            self.control.extend_from_slice(reason.as_bytes());
        }
        self.control.len()
    }
}
