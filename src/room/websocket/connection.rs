//! One connection: the state that its sink and its reading task share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, TryLockError};
use std::task::Context;

use futures_util::task::AtomicWaker;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::close_reason::CloseReason;
use super::writer::Writer;
use crate::caught::lock;
use crate::room::Presence;

/// A connection to one client.
///
/// A connection is *open* until [`request_close`](Self::request_close) is called, which counts once and comes from
/// outside, or until the reading task finds a reason to close it. It is *closing* while the reading task performs the
/// close handshake. Then it is dropped, which closes the socket.
///
/// The order of the fields is their order in memory: the fields that a write touches are adjacent, because a walk over
/// thousands of connections is bound by the cache lines that it loads.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Connection {
    /// The [`CloseReason`] that was requested, or zero.
    request: AtomicU8,
    opened: AtomicBool,
    writer: Mutex<Writer>,
    pub(super) stream: TcpStream,
    pub(super) presence: Presence,
    pub(super) peer: SocketAddr,
    /// Wakes the sink that waits for the writer.
    pub(super) sink: AtomicWaker,
    /// Wakes the reading task.
    pub(super) reader: AtomicWaker,
    /// Dropped after the stream, as the fields are dropped in order: the holder of the other end then knows that the
    /// socket is closed.
    closed: OnceLock<oneshot::Sender<()>>,
}

/// The writing side of a connection belongs to another sink.
#[derive(Debug)]
pub(super) struct TakenBefore;

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, presence: Presence) -> Self {
        Self {
            stream,
            presence,
            peer,
            writer: Mutex::default(),
            sink: AtomicWaker::new(),
            reader: AtomicWaker::new(),
            request: AtomicU8::new(0),
            opened: AtomicBool::new(false),
            closed: OnceLock::new(),
        }
    }

    /// Takes the writing side, once.
    ///
    /// Relaxed: the flag guards no data, and the caller holds the lock of the directory.
    pub(super) fn take(&self) -> Result<(), TakenBefore> {
        if self.opened.swap(true, Ordering::Relaxed) { Err(TakenBefore) } else { Ok(()) }
    }

    pub(super) fn is_taken(&self) -> bool {
        self.opened.load(Ordering::Relaxed)
    }

    /// Asks the reading task to close the connection. The first reason counts. Never blocks.
    ///
    /// # Orderings
    /// The release here and the acquire in [`requested`](Self::requested) pair up. The request carries no data, but a
    /// thread that sees a participant as absent must not see it as present in anything that happened before. The waker
    /// does its own ordering: the reading task registers before it looks at the request, and this method stores the
    /// request before it wakes.
    pub(super) fn request_close(&self, reason: CloseReason) {
        let Some(request) = reason.to_request() else { return };
        if self.request.compare_exchange(0, request, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.reader.wake();
        }
    }

    /// The reason of the first [request to close](Self::request_close).
    pub(super) fn requested(&self) -> Option<CloseReason> {
        CloseReason::from_request(self.request.load(Ordering::Acquire))
    }

    pub(super) fn close_is_requested(&self) -> bool {
        self.request.load(Ordering::Acquire) != 0
    }

    /// Locks the writer, for the reading task and for opening. Waits for the one system call that the holder may be in.
    pub(super) fn writer(&self) -> MutexGuard<'_, Writer> {
        lock(&self.writer)
    }

    /// Locks the writer for the sink, which never waits. If the reading task is writing at the moment, `cx` is woken
    /// when it has finished.
    ///
    /// # Orderings
    /// The waker is registered before the second try. If that try fails, the reading task holds the lock and wakes the
    /// sink after it has released it. The wake-up can't come before the registration while the lock still looks taken:
    /// both are read-modify-writes of the waker's state, so the registration, coming second, acquires what the wake-up
    /// released, and with it the unlocking before.
    pub(super) fn try_writer(&self, cx: &Context<'_>) -> Option<MutexGuard<'_, Writer>> {
        self.try_lock().or_else(|| {
            self.sink.register(cx.waker());
            self.try_lock()
        })
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Writer>> {
        match self.writer.try_lock() {
            Ok(writer) => Some(writer),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Resolves, with an error, when the last handle of the connection is gone and its socket closed. Called once.
    pub(super) fn closed(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        // The receiver of a second call would resolve at once.
        let _ = self.closed.set(sender);
        receiver
    }
}
