//! Standard output and standard error, for threads that must not wait for a reader.
//!
//! A pipe that nobody reads, or a terminal that is stopped, blocks the thread that writes to it. So each stream has a
//! writer thread, and all other threads put their texts into a buffer for it. The buffer is bounded: a text that
//! doesn't fit is dropped and counted, and the count is written as soon as the stream accepts text again.
//!
//! `tracing-appender` does nearly the same. But it bounds lines instead of bytes and reports no loss. When it ends
//! while its queue is full, it prints to standard output with a write that blocks.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::secrets;

/// Capacity of a stream's buffer in bytes: about ten thousand lines of a log, or many times the longest report.
const CAPACITY: usize = 1 << 20;

/// How long the program waits at its end for the buffers to be written. A reader that is active needs less.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a [note](Outlet::note) waits to be written, so that lines of both streams appear in their order.
const IN_ORDER: Duration = Duration::from_millis(100);

/// Standard output or standard error.
pub(crate) struct Outlet {
    /// `None` if the writer thread could not be started. Then each caller writes to the stream itself, and waits for
    /// the reader.
    shared: Option<Arc<Shared>>,
    direct: fn() -> Box<dyn Write>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Whether the writer thread is writing what it took from `waiting`.
    writing: bool,
    /// Texts dropped since a loss was last reported.
    dropped: u64,
}

/// Standard output.
pub(crate) fn stdout() -> &'static Outlet {
    static STDOUT: LazyLock<Outlet> = LazyLock::new(|| Outlet::new("stdout", || Box::new(io::stdout())));
    &STDOUT
}

/// Standard error. [Secrets](secrets::hide) are removed from everything that is written to an [`Outlet`].
pub(crate) fn stderr() -> &'static Outlet {
    static STDERR: LazyLock<Outlet> = LazyLock::new(|| Outlet::new("stderr", || Box::new(io::stderr())));
    &STDERR
}

/// Writes the message of a panic like any other text: a worker whose panic is caught must not wait for a reader.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let mut report = format!("{panic}\n");
        if backtrace.status() == BacktraceStatus::Captured {
            report += &format!("{backtrace}");
        }
        stderr().write(&report);
        // The program ends with its main thread, so the message is written first.
        if thread::current().name() == Some("main") {
            stderr().flush(FAREWELL);
        }
    }));
}

/// Waits until both streams have taken everything that was written to them, for at most [`FAREWELL`].
pub(crate) fn finish() {
    let deadline = Instant::now() + FAREWELL;
    for outlet in [stdout(), stderr()] {
        outlet.flush(deadline.saturating_duration_since(Instant::now()));
    }
}

impl Outlet {
    fn new(name: &str, stream: fn() -> Box<dyn Write>) -> Self {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || for_thread.write_all_to(&mut stream()));
        Self { shared: thread.is_ok().then_some(shared), direct: stream }
    }

    /// Puts a text into the buffer, or drops and counts it if the buffer is full. Blocks only if there is no writer
    /// thread.
    pub(crate) fn write(&self, text: &str) {
        let text = secrets::hide(text);
        let Some(shared) = &self.shared else {
            let mut stream = (self.direct)();
            // An error means that the reader is gone, so nobody is left to report it to.
            let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
            return;
        };
        let mut state = shared.lock();
        // A text longer than the capacity is accepted when the buffer is empty.
        if !state.waiting.is_empty() && state.waiting.len() + text.len() > CAPACITY {
            state.dropped += 1;
            return;
        }
        state.waiting.extend_from_slice(text.as_bytes());
        drop(state);
        shared.changed.notify_all();
    }

    /// Writes a line, and waits for at most [`IN_ORDER`] until it is written, unless the stream is behind already.
    pub(crate) fn note(&self, line: &str) {
        let keeps_up = self.flush(Duration::ZERO);
        self.write(&format!("{line}\n"));
        if keeps_up {
            self.flush(IN_ORDER);
        }
    }

    /// Waits for at most `patience` until the stream has taken everything. Returns whether it has.
    fn flush(&self, patience: Duration) -> bool {
        let Some(shared) = &self.shared else { return true };
        let behind = |state: &mut State| state.writing || !state.waiting.is_empty();
        let waited = shared.changed.wait_timeout_while(shared.lock(), patience, behind);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop of the writer thread: writes the buffer whenever there is something in it.
    fn write_all_to(&self, stream: &mut dyn Write) {
        loop {
            let mut state = self.lock();
            state.writing = false;
            self.changed.notify_all();
            let idle = |state: &mut State| state.waiting.is_empty() && state.dropped == 0;
            let mut state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            let mut text = std::mem::take(&mut state.waiting);
            let dropped = std::mem::take(&mut state.dropped);
            state.writing = true;
            drop(state);
            if dropped > 0 {
                text.extend_from_slice(
                    format!("lanecast: {dropped} texts were dropped here: nobody read them in time\n").as_bytes(),
                );
            }
            // An error means that the reader is gone, so nobody is left to report it to.
            let _ = stream.write_all(&text).and_then(|()| stream.flush());
        }
    }
}

/// For the log, which writes a whole line with each call.
impl Write for &Outlet {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        Outlet::write(self, &String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A stream that takes one text for each signal.
    struct Gate {
        open: mpsc::Receiver<()>,
        taken: mpsc::Sender<String>,
    }

    impl Write for Gate {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let _ = self.open.recv();
            let _ = self.taken.send(String::from_utf8_lossy(text).into_owned());
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_stuck_stream_has_no_space_for_is_dropped_and_reported() {
        let (opener, open) = mpsc::channel();
        let (taker, taken) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || for_thread.write_all_to(&mut Gate { open, taken: taker }));
        let outlet = Outlet { shared: Some(shared), direct: || unreachable!("there is a thread") };
        // 1. The stream takes nothing: texts that fit wait, the others are dropped, and no caller waits.
        let line = "x".repeat(CAPACITY / 8);
        for _ in 0..100 {
            outlet.write(&line);
        }
        assert!(!outlet.flush(Duration::ZERO));
        // 2. The stream continues: the texts that waited are written, and then the number of dropped ones.
        let mut written = String::new();
        while !written.contains("lanecast: ") {
            opener.send(()).unwrap();
            written += &taken.recv().unwrap();
        }
        let (lines, report) = written.split_once("lanecast: ").unwrap();
        let kept = lines.len() / line.len();
        assert!((8..=16).contains(&kept), "{kept}");
        assert_eq!(report, format!("{} texts were dropped here: nobody read them in time\n", 100 - kept));
        assert!(outlet.flush(Duration::from_secs(60)));
    }
}
