//! Reads and writes on a shared TCP stream, one system call each.

use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Whether a short transfer means that the kernel's buffer is empty (on a read) or full (on a write), so that another
/// call would only say so. This holds for edge-triggered readiness; tokio relies on it in the same way.
const SHORT_IS_LAST: bool = cfg!(unix);

/// The flag (`MSG_NOSIGNAL`) with which a write to a closed connection returns an error instead of raising a signal, on
/// systems where its number is known.
const NO_SIGNAL: Option<i32> = if cfg!(any(target_os = "linux", target_os = "android")) { Some(0x4000) } else { None };

/// The flag (`MSG_EOR`) with which Linux appends nothing to what a write has left unsent.
const END_OF_RECORD: i32 = 0x80;

/// How the kernel may gather the bytes of several writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Coalescing {
    /// It fills its last unsent segment, of up to 64 KiB, whatever [`limit_unsent`] says: it only applies the limit
    /// before it begins another segment.
    #[default]
    Free,
    /// Each write begins a segment of its own, so that the limit holds. It costs a packet that isn't full now and then.
    Strict,
}

/// Has the kernel refuse further bytes while it holds `bytes` of unsent ones, on systems that support it.
pub(super) fn limit_unsent(stream: &TcpStream, bytes: u32) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Err(error) = SockRef::from(stream).set_tcp_notsent_lowat(bytes) {
        tracing::debug!(%error, "the kernel doesn't limit what it holds unsent");
    }
    let _ = (stream, bytes);
}

/// Reads once: `None` if nothing has arrived, `Some(0)` at the end of the stream.
pub(super) fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let wanted = buffer.len();
    once(stream, Interest::READABLE, wanted, || stream.try_read(buffer))
}

/// Writes as much of `first` and `second` as the kernel takes, in one call. Returns how many bytes that was.
pub(super) fn write(stream: &TcpStream, first: &[u8], second: &[u8], coalescing: Coalescing) -> io::Result<usize> {
    let wanted = first.len() + second.len();
    if wanted == 0 {
        return Ok(0);
    }
    let flags = NO_SIGNAL.filter(|_| coalescing == Coalescing::Strict).map(|no_signal| no_signal | END_OF_RECORD);
    let pieces = &[IoSlice::new(first), IoSlice::new(second)];
    let written = once(stream, Interest::WRITABLE, wanted, || match (first, second, flags) {
        (only, [], None) | ([], only, None) => stream.try_write(only),
        (_, _, None) => stream.try_write_vectored(pieces),
        (_, _, Some(flags)) => SockRef::from(stream).send_vectored_with_flags(pieces, flags),
    })?;
    match written {
        Some(0) => Err(ErrorKind::WriteZero.into()),
        written => Ok(written.unwrap_or(0)),
    }
}

/// Writes as [`write`] does, to a stream that usually takes everything: the reactor takes part only if the stream
/// doesn't.
///
/// Tokio's state of a stream occupies a cache line of its own. With thousands of streams, each of them idle for long
/// between two writes, loading that line is a tenth of what this process itself spends on a write. The second attempt
/// goes through the reactor, and thereby notes that the stream isn't ready, as [`once`] describes.
pub(super) fn write_eagerly(stream: &TcpStream, first: &[u8], second: &[u8]) -> io::Result<usize> {
    let Some(no_signal) = NO_SIGNAL.filter(|_| second.is_empty() && !first.is_empty()) else {
        return write(stream, first, second, Coalescing::Free);
    };
    match SockRef::from(stream).send_with_flags(first, no_signal) {
        Ok(count) if count == first.len() => Ok(count),
        Ok(count) => Ok(count + write(stream, &first[count..], &[], Coalescing::Free)?),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            write(stream, first, &[], Coalescing::Free)
        }
        Err(error) => Err(error),
    }
}

/// Makes one transfer, and records a short one as "not ready any more".
///
/// This has to be recorded inside `try_io`, which remembers the readiness as it was before the transfer and keeps
/// readiness that arrives in between. Clearing the readiness afterwards could lose a wake-up.
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
        // An interrupted call leaves the stream ready: a task that waits for readiness continues at once.
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(moved),
        Err(error) => Err(error),
    }
}

/// Ends this side of the stream; the peer's side can still be read. Errors are ignored: a peer that is gone needs no
/// end.
pub(super) fn shut_down_write(stream: &TcpStream) {
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
}

/// Ends both sides, even if other handles exist. Errors are ignored: a peer that is gone needs no end.
pub(super) fn shut_down(stream: &TcpStream) {
    let _ = SockRef::from(stream).shutdown(Shutdown::Both);
}

/// Waits until `stream` takes bytes and writes all of `bytes`; for handshakes only.
pub(super) async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        let written = write(stream, bytes, &[], Coalescing::Free)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// The most bytes that are read of a refused peer that goes on sending: eight times the longest request, and a fraction
/// of a millisecond's work.
const MOST_DRAINED: usize = 128 << 10;

/// Reads and discards what arrives until the peer has ended its side. Closing a socket with unread bytes resets the
/// connection, and the peer may never see what was written last.
///
/// Once a peer has sent more than [`MOST_DRAINED`], nothing more is read of it. It is kept waiting until the caller's
/// time-out, because a peer that is disconnected reconnects at once.
pub(super) async fn drain(stream: &TcpStream) {
    let mut discarded = [0; 2048];
    let mut drained = 0;
    while stream.readable().await.is_ok() {
        match read(stream, &mut discarded) {
            Ok(Some(0)) | Err(_) => return,
            Ok(count) => drained += count.unwrap_or(0),
        }
        if drained > MOST_DRAINED {
            return std::future::pending().await;
        }
        // `readable` uses no budget: a peer that sends without pause would keep the thread from everything else,
        // time-outs included.
        tokio::task::coop::consume_budget().await;
    }
}
