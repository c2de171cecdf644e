//! The writing side of a connection, shared by the sink and the task that reads.
//!
//! The sink writes data frames, the reading task control frames. Each is written at once if it can be, and nothing is
//! stored. What the kernel doesn't take goes into a [`Backlog`], which whoever comes next with the lock in hand carries
//! on:
//! 1. the rest of a control frame that was begun,
//! 2. the rest of the data frame that was begun,
//! 3. control frames that wait for such a boundary: at most one pong (the latest), one ping, one close,
//! 4. the data frames behind it.
//!
//! The backlog holds one batch of data at most: the sink isn't ready while there is one. So it is bounded, and control
//! frames stand between data frames only.
//!
//! # Who may wait for whom
//! The writer is behind a mutex that is held for one system call at a time and never across an await. The reading task
//! locks it. The sink lives on a flush shard and only tries to: see [`Connection::try_writer`].
//!
//! Whoever leaves a backlog behind waits for the socket: the sink in the stream's own write slot, the reading task with
//! a waiter of its own. Both may; the one that finds nothing left has no work. When the reading task has been at the
//! backlog it wakes the sink, which registers before it lets go of the lock.
//!
//! [`Connection::try_writer`]: super::connection::Connection::try_writer

use std::io;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::batch::{self, Batch};
use super::socket;
use crate::lane::Progress;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// What the kernel hasn't taken yet. Boxed: a connection that keeps up has none.
    backlog: Option<Box<Backlog>>,
    /// The goodbye has begun: no more data.
    closing: bool,
    /// When the kernel last took bytes after it had refused some, which it does because the client has acknowledged
    /// others.
    drained: Option<Instant>,
    progress: Progress,
}

/// What waits, in the order given in the [module](self).
#[derive(Debug, Default)]
struct Backlog {
    /// Control frames at a boundary, the first perhaps in part.
    control: Vec<u8>,
    /// Data frames, of which the first `at` bytes are written; `tail` is the end of the last frame's payload.
    bytes: Vec<u8>,
    tail: Bytes,
    at: usize,
    /// Where the frame that is being written ends; at most `at` if none is.
    frame_end: usize,
    pong: Option<Vec<u8>>,
    ping: bool,
    close: Option<(u16, &'static str)>,
    /// When the kernel first refused bytes of this backlog, if it has.
    refused: Option<Instant>,
}

/// A frame the reading task wants to send.
#[derive(Debug)]
pub(super) enum ControlFrame {
    Pong(Vec<u8>),
    Ping,
}

impl Writer {
    /// Whether the goodbye has begun.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// When the client was last seen to take what it is sent, if it was ever behind.
    pub(super) fn drained(&self) -> Option<Instant> {
        self.drained
    }

    /// When the client began not to take what waits now, if anything does.
    pub(super) fn refused(&self) -> Option<Instant> {
        self.backlog.as_ref()?.refused
    }

    pub(super) fn report_to(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// Whether anything waits for the socket.
    pub(super) fn is_idle(&self) -> bool {
        self.backlog.is_none()
    }

    /// Whether data frames wait.
    pub(super) fn holds_data(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.data_len() > 0)
    }

    /// Writes `batch` behind everything that waits, and takes over what the kernel doesn't. The batch stays as it is if
    /// another one waits already.
    pub(super) fn write_batch(&mut self, stream: &TcpStream, batch: &mut Batch) -> io::Result<()> {
        if self.backlog.is_none() {
            let written = socket::write_eagerly(stream, batch.bytes(), batch.tail())?;
            if written < batch.len() {
                // Of a batch that goes at once the end of the flush is report enough.
                self.progress.report(written);
                self.backlog = Some(Box::new(Backlog::of(batch, written)));
            }
            batch.recycle();
            return Ok(());
        }
        self.carry_on(stream)?;
        match &mut self.backlog {
            None => self.write_batch(stream, batch),
            Some(backlog) if backlog.data_len() == 0 => {
                backlog.take_over(batch);
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    /// Writes a control frame as soon as a boundary is reached.
    pub(super) fn write_control(&mut self, stream: &TcpStream, frame: ControlFrame) -> io::Result<()> {
        let backlog = self.backlog.get_or_insert_default();
        match frame {
            ControlFrame::Pong(payload) => backlog.pong = Some(payload),
            ControlFrame::Ping => backlog.ping = true,
        }
        self.carry_on(stream)
    }

    /// Begins the goodbye: drops what hasn't been begun, and says why as soon as the frame that has is finished.
    pub(super) fn close(&mut self, stream: &TcpStream, code: u16, reason: &'static str) -> io::Result<()> {
        self.closing = true;
        let backlog = self.backlog.get_or_insert_default();
        backlog.truncate();
        backlog.close = Some((code, reason));
        self.carry_on(stream)
    }

    /// Drops everything: there is no goodbye.
    pub(super) fn give_up(&mut self) {
        self.closing = true;
        self.backlog = None;
    }

    /// Writes what waits, as far as the kernel takes it.
    pub(super) fn carry_on(&mut self, stream: &TcpStream) -> io::Result<()> {
        let Some(backlog) = &mut self.backlog else { return Ok(()) };
        let had_been_refused = backlog.refused.is_some();
        let written = backlog.write(stream)?;
        self.progress.report(written);
        if had_been_refused && written > 0 {
            self.drained = Some(Instant::now());
        }
        if backlog.is_empty() {
            self.backlog = None;
        }
        Ok(())
    }
}

impl Backlog {
    /// What is left of `batch` when its first `written` bytes have gone.
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

    /// Drops what hasn't been begun.
    fn truncate(&mut self) {
        self.pong = None;
        self.ping = false;
        let end = self.at.max(self.frame_end);
        let own = self.bytes.len();
        self.bytes.truncate(end);
        self.tail.truncate(end.saturating_sub(own));
    }

    /// Writes as far as the kernel takes it; says how many bytes that was.
    fn write(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let before = self.control.len() + self.data_len();
        let mut encoded = 0;
        loop {
            if !self.control.is_empty() {
                let written = socket::write(stream, &self.control, &[])?;
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
            self.write_data(stream, limit)?;
            if self.at < limit {
                break;
            }
        }
        self.refused.get_or_insert_with(Instant::now);
        Ok(before + encoded - self.control.len() - self.data_len())
    }

    fn write_data(&mut self, stream: &TcpStream, limit: usize) -> io::Result<()> {
        let own = self.bytes.len();
        let first = &self.bytes[self.at.min(own)..limit.min(own)];
        let second = &self.tail[self.at.saturating_sub(own)..limit.saturating_sub(own)];
        self.at += socket::write(stream, first, second)?;
        while self.frame_end < self.at {
            self.frame_end += batch::frame_len(&self.bytes[self.frame_end..]);
        }
        Ok(())
    }

    /// Puts the control frames that wait on the wire's side of everything else. Says how many bytes they are.
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
