//! Reads and writes on a shared TCP stream, each one system call.

use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Whether less than was asked for means that the kernel's buffer is empty (full), so that the next call would only
/// say so. True of edge-triggered readiness; tokio relies on it in the same way.
const SHORT_IS_LAST: bool = cfg!(unix);

/// The flag (`MSG_NOSIGNAL`) that makes writing to a connection that is gone an error and not a signal, where it is
/// known.
const NO_SIGNAL: Option<i32> = if cfg!(any(target_os = "linux", target_os = "android")) { Some(0x4000) } else { None };

/// Has the kernel take no more while `bytes` of what it has taken aren't sent, where it can.
pub(super) fn limit_unsent(stream: &TcpStream, bytes: u32) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Err(error) = SockRef::from(stream).set_tcp_notsent_lowat(bytes) {
        tracing::debug!(%error, "the kernel doesn't limit what it holds unsent");
    }
    let _ = (stream, bytes);
}

/// Reads once: `None` if nothing is there, `Some(0)` at the end of the stream.
pub(super) fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let wanted = buffer.len();
    once(stream, Interest::READABLE, wanted, || stream.try_read(buffer))
}

/// Writes `first` and `second` as far as the kernel takes them, in one call; says how many bytes that was.
pub(super) fn write(stream: &TcpStream, first: &[u8], second: &[u8]) -> io::Result<usize> {
    let wanted = first.len() + second.len();
    if wanted == 0 {
        return Ok(0);
    }
    let written = once(stream, Interest::WRITABLE, wanted, || match (first, second) {
        (only, []) | ([], only) => stream.try_write(only),
        (first, second) => stream.try_write_vectored(&[IoSlice::new(first), IoSlice::new(second)]),
    })?;
    match written {
        Some(0) => Err(ErrorKind::WriteZero.into()),
        written => Ok(written.unwrap_or(0)),
    }
}

/// Writes as [`write`] does, to a stream that mostly takes everything: the reactor is asked, and told, only if it
/// doesn't.
///
/// What tokio knows of a stream stands on a memory line of its own; with thousands of streams, each of them idle for
/// long between two writes, loading it is a tenth of what this process itself spends on a write. The second attempt
/// goes through the reactor, and so notes that the stream isn't ready, in the way that [`once`] says.
pub(super) fn write_eagerly(stream: &TcpStream, first: &[u8], second: &[u8]) -> io::Result<usize> {
    let Some(no_signal) = NO_SIGNAL.filter(|_| second.is_empty() && !first.is_empty()) else {
        return write(stream, first, second);
    };
    match SockRef::from(stream).send_with_flags(first, no_signal) {
        Ok(count) if count == first.len() => Ok(count),
        Ok(count) => Ok(count + write(stream, &first[count..], &[])?),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            write(stream, first, &[])
        }
        Err(error) => Err(error),
    }
}

/// Does one transfer, and notes a short one as "not ready any more".
///
/// That note has to be made inside `try_io`, which remembers the readiness as it was before the transfer: readiness
/// that arrives in between is kept. Clearing it afterwards could lose a wake-up.
fn once(
    stream: &TcpStream,
    interest: Interest,
    wanted: usize,
    transfer: impl FnOnce() -> io::Result<usize>,
) -> io::Result<Option<usize>> {
    let mut moved = None;
    let outcome = stream.try_io(interest, || {
        let count = transfer()?;
        moved = Some(count);
        if SHORT_IS_LAST && count > 0 && count < wanted { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match outcome {
        Ok(()) => Ok(moved),
        // An interrupted call stays ready: whoever waits for readiness is let through at once.
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(moved),
        Err(error) => Err(error),
    }
}

/// Sends the end of our side; the peer's side can still be read. A peer that has gone already needs none.
pub(super) fn finish(stream: &TcpStream) {
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
}

/// Ends both sides, whoever still holds a handle. A peer that has gone already needs none.
pub(super) fn shut(stream: &TcpStream) {
    let _ = SockRef::from(stream).shutdown(Shutdown::Both);
}

/// Waits until `stream` takes bytes and writes all of `bytes`; for hand-shakes only.
pub(super) async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        let written = write(stream, bytes, &[])?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// How much is read of a peer that has been refused and goes on sending. Ten times what a viewer may send before it has
/// seen the answer, and a fraction of a millisecond's work.
const MOST_DRAINED: usize = 128 << 10;

/// Reads what comes and drops it until the peer has ended its side. A socket that is closed with bytes unread resets
/// the connection, and the peer may never see what was written last.
///
/// Of a peer that sends more than [`MOST_DRAINED`] nothing more is read: it is kept waiting until the caller's time-out,
/// since one that is thrown out comes back at once.
pub(super) async fn drain(stream: &TcpStream) {
    let mut scrap = [0; 2048];
    let mut drained = 0;
    while stream.readable().await.is_ok() {
        match read(stream, &mut scrap) {
            Ok(Some(0)) | Err(_) => return,
            Ok(count) => drained += count.unwrap_or(0),
        }
        if drained > MOST_DRAINED {
            return std::future::pending().await;
        }
        // Waiting to read costs no budget: a peer that sends without pause would keep the thread, time-outs included.
        tokio::task::coop::consume_budget().await;
    }
}
