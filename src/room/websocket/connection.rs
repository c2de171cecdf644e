//! One connection, as the sink and the task that reads share it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::task::Context;

use futures_util::task::AtomicWaker;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::farewell::Farewell;
use super::writer::Writer;
use crate::room::Presence;

/// See the [module](self).
///
/// Its life: *open* until the request to end it is made, once, by [`end`](Self::end) (from outside) or until the
/// reading task finds a reason of its own; then *closing*, while the reading task says goodbye; then dropped, which is
/// when the socket closes.
///
/// In this order in memory: what a write touches stands together, as a walk over thousands of connections is bound by
/// the cache lines it loads.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Connection {
    /// A [`Farewell`] that was asked for, or zero.
    request: AtomicU8,
    opened: AtomicBool,
    writer: Mutex<Writer>,
    pub(super) stream: TcpStream,
    pub(super) presence: Presence,
    pub(super) peer: SocketAddr,
    /// The sink, waiting for the writer.
    pub(super) sink: AtomicWaker,
    /// The reading task.
    pub(super) reader: AtomicWaker,
    /// Dropped with the rest, after the stream: whoever has the other end knows that the socket is closed.
    closed: OnceLock<oneshot::Sender<()>>,
}

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

    /// Takes the writing side: true for the first who asks.
    ///
    /// Relaxed: the flag guards no data, and the caller holds the lock of the directory.
    pub(super) fn take(&self) -> bool {
        !self.opened.swap(true, Ordering::Relaxed)
    }

    pub(super) fn is_taken(&self) -> bool {
        self.opened.load(Ordering::Relaxed)
    }

    /// Asks the reading task to say goodbye. The first reason counts. Never blocks.
    ///
    /// # Orderings
    /// Release here and Acquire in [`request`](Self::request): the request carries no data, but whoever sees a
    /// participant as absent must not see it as present in what happened before. The waker orders itself: the reading
    /// task registers before it looks, and this stores before it wakes.
    pub(super) fn end(&self, farewell: Farewell) -> bool {
        let Some(request) = farewell.to_request() else { return false };
        let first = self.request.compare_exchange(0, request, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if first {
            self.reader.wake();
        }
        first
    }

    /// What was asked for with [`end`](Self::end).
    pub(super) fn request(&self) -> Option<Farewell> {
        Farewell::from_request(self.request.load(Ordering::Acquire))
    }

    pub(super) fn is_ending(&self) -> bool {
        self.request.load(Ordering::Acquire) != 0
    }

    /// For the reading task and for opening: waits for the one system call that the holder may be in.
    pub(super) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the sink: never waits. If the reading task is writing just now, `cx` is woken when it has finished.
    ///
    /// # Orderings
    /// The waker is registered before the second try. If that fails, the reading task holds the lock and will wake
    /// after it has let go. Could its wake-up come before the registration and the lock still look taken? No: both are
    /// read-modify-writes of the waker's state, so the registration, coming second, acquires what the wake-up released,
    /// and with it the unlocking before.
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

    /// Resolves, with an error, when the last handle of the connection is gone and its socket closed. Asked for once.
    pub(super) fn closed(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        // A second one would resolve at once.
        let _ = self.closed.set(sender);
        receiver
    }
}
