//! The task that serves one connection: reads it, keeps it alive, says goodbye.
//!
//! It has one place where it waits, and no buffer while it does: bytes are read into one buffer per thread and decoded
//! from there. If the embedder hasn't taken the messages before, the one that doesn't fit and the bytes behind it are
//! kept, and the socket isn't read until it does; that holds up this client alone.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_channel::mpsc;
use tokio::net::TcpStream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, Sleep, sleep};

use super::connection::Connection;
use super::decode::{Decoder, Item};
use super::farewell::Farewell;
use super::listen::{Event, Shared};
use super::places::Place;
use super::socket;
use super::writer::{ControlFrame, Writer};
use crate::lane::EndReason;
use crate::protocol::Frame;
use crate::room::{Presence, RoomEvent};

/// What is read at once.
const READ_BYTES: usize = 16 << 10;

thread_local! {
    /// One buffer per thread, used by whichever connection is being read.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// See the [module](self).
pub(super) struct Reader {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    decoder: Decoder,
    /// `None` once the embedder has dropped the other end: what comes is read and discarded.
    incoming: Option<mpsc::Sender<Frame>>,
    /// A message that `incoming` had no room for, and the bytes read behind it.
    held: Option<Box<Held>>,
    /// Waits for the socket to take what the writer holds. The stream's own slot is the sink's.
    writable: Option<Waiting<()>>,
    last_heard: Instant,
    drained_seen: u64,
}

struct Held {
    message: Frame,
    behind: Vec<u8>,
}

/// What the task wakes up for.
#[derive(Clone, Copy, Debug)]
enum Step {
    Ending(Farewell),
    Readable,
    Writable,
    /// The embedder has room for what is held.
    Room,
    Tick,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, connection: Arc<Connection>) -> Self {
        Self {
            decoder: Decoder::new(shared.config.max_message_bytes),
            shared,
            connection,
            incoming: None,
            held: None,
            writable: None,
            last_heard: Instant::now(),
            drained_seen: 0,
        }
    }

    /// Serves the connection until it has ended; `place` is its own among those that are allowed.
    #[expect(clippy::manual_async_fn, reason = "an async fn keeps what it is called with twice, as it came and in use")]
    pub(super) fn run(mut self, place: Place) -> impl Future<Output = ()> + Send {
        async move {
            // Boxed, beginning and end: they pass, and the task lasts.
            Box::pin(self.introduce()).await;
            let mut timer = std::pin::pin!(sleep(self.shared.config.ping_interval));
            let farewell = loop {
                let step = poll_fn(|cx| self.poll_step(cx, timer.as_mut())).await;
                if let Err(farewell) = self.take_step(step, timer.as_mut()) {
                    break farewell;
                }
            };
            Box::pin(self.leave(farewell, timer)).await;
            drop(place);
        }
    }

    /// Tells the session of it.
    async fn introduce(&mut self) {
        if let Some(slow) = self.announce() {
            until_ending(&self.connection, slow).await;
        }
        if let Some(slow) = self.open_stream() {
            until_ending(&self.connection, slow).await;
        }
        self.last_heard = Instant::now();
    }

    /// Tells everybody that it is gone, and says goodbye.
    async fn leave(mut self, farewell: Farewell, timer: Pin<&mut Sleep>) {
        let farewell = self.in_truth(farewell);
        // The list is up to date before anybody is told, and the session is told before the sink fails.
        self.shared.directory.leave(&self.connection);
        self.incoming = None;
        let presence = &self.connection.presence;
        tracing::info!(
            identity = %presence.identity, sid = %presence.sid, peer = %self.connection.peer, reason = ?farewell,
            "connection ends"
        );
        let gone = RoomEvent::Disconnected { identity: presence.identity.clone(), sid: presence.sid.clone() };
        let late = self.emit(gone);
        self.part(farewell, timer).await;
        drop(self);
        if let Some(late) = late {
            late.await;
        }
    }

    /// A session that joins a connection while a newer one comes may find that the room has another by now, and take
    /// this one for disconnected. Its client, which isn't, is told what happened.
    fn in_truth(&self, farewell: Farewell) -> Farewell {
        let Presence { identity, joined_at, .. } = &self.connection.presence;
        let newer = |newest: Presence| newest.joined_at > *joined_at;
        match farewell {
            Farewell::Ended(EndReason::Disconnected) if self.shared.directory.newest(identity).is_some_and(newer) => {
                Farewell::Ended(EndReason::Replaced)
            }
            farewell => farewell,
        }
    }

    /// Tells the session that it can write. What is returned has to be waited for.
    fn announce(&self) -> Option<Waiting<()>> {
        self.emit(RoomEvent::Active(self.connection.presence.clone()))
    }

    /// Gives the session the client's own stream.
    fn open_stream(&mut self) -> Option<Waiting<()>> {
        let (sender, stream) = mpsc::channel(super::INCOMING_MESSAGES);
        self.incoming = Some(sender);
        let presence = &self.connection.presence;
        let (identity, sid) = (presence.identity.clone(), presence.sid.clone());
        self.emit(RoomEvent::StreamOpened { identity, sid, stream })
    }

    fn emit(&self, event: Event) -> Option<Waiting<()>> {
        // If nobody listens any more, the room is about to close.
        let Err(TrySendError::Full(event)) = self.shared.events.try_send(event) else { return None };
        let events = self.shared.events.clone();
        Some(Box::pin(async move {
            let _ = events.send(event).await;
        }))
    }

    fn poll_step(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>) -> Poll<Step> {
        self.connection.reader.register(cx.waker());
        if let Some(farewell) = self.connection.request() {
            return Poll::Ready(Step::Ending(farewell));
        }
        if self.poll_writable(cx).is_ready() {
            return Poll::Ready(Step::Writable);
        }
        if self.held.is_none() {
            if self.connection.stream.poll_read_ready(cx).is_ready() {
                return Poll::Ready(Step::Readable);
            }
        } else if self.incoming.as_mut().is_none_or(|incoming| incoming.poll_ready(cx).is_ready()) {
            return Poll::Ready(Step::Room);
        }
        timer.poll(cx).map(|()| Step::Tick)
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(writable) = &mut self.writable else { return Poll::Pending };
        std::task::ready!(writable.as_mut().poll(cx));
        self.writable = None;
        Poll::Ready(())
    }

    fn take_step(&mut self, step: Step, timer: Pin<&mut Sleep>) -> Result<(), Farewell> {
        match step {
            Step::Ending(farewell) => Err(farewell),
            Step::Readable => self.read(),
            Step::Writable => self.write(Writer::carry_on),
            Step::Room => self.release(),
            Step::Tick => self.keep_alive(timer),
        }
    }

    /// Reads once, and hands on what that completes.
    fn read(&mut self) -> Result<(), Farewell> {
        with_scratch(|buffer| match socket::read(&self.connection.stream, buffer) {
            Ok(None) => Ok(()),
            Ok(Some(0)) => Err(Farewell::PeerGone),
            Ok(Some(count)) => {
                self.last_heard = Instant::now();
                self.take_in(&buffer[..count])
            }
            Err(error) => Err(self.lost(&error)),
        })
    }

    /// Hands on what `input` completes. Of several pings in it the last one is answered (RFC 6455, 5.5.3), so that a
    /// flood of them costs no more writes than reads.
    fn take_in(&mut self, mut input: &[u8]) -> Result<(), Farewell> {
        let mut ping = None;
        while let Some(item) = self.decoder.next(&mut input).map_err(Farewell::Violation)? {
            match item {
                Item::Message(message) => {
                    if let Some(message) = self.deliver(message) {
                        self.held = Some(Box::new(Held { message, behind: input.to_vec() }));
                        break;
                    }
                }
                Item::Ping(payload) => ping = Some(payload),
                Item::Pong => {}
                Item::Close(code) => return Err(Farewell::PeerClosed(code)),
            }
        }
        ping.map_or(Ok(()), |payload| self.write_control(ControlFrame::Pong(payload)))
    }

    /// Gives a message to the embedder, or gives it back if there is no room.
    fn deliver(&mut self, message: Frame) -> Option<Frame> {
        let refused = self.incoming.as_mut()?.try_send(message).err()?;
        if refused.is_disconnected() {
            self.incoming = None;
            return None;
        }
        Some(refused.into_inner())
    }

    /// Goes on with what was held back.
    fn release(&mut self) -> Result<(), Farewell> {
        // It wasn't listened to meanwhile.
        self.last_heard = Instant::now();
        let Some(held) = self.held.take() else { return Ok(()) };
        let Held { message, behind } = *held;
        if let Some(message) = self.deliver(message) {
            self.held = Some(Box::new(Held { message, behind }));
            return Ok(());
        }
        self.take_in(&behind)
    }

    /// Pings a client that has been silent, and gives up one that stays it.
    fn keep_alive(&mut self, mut timer: Pin<&mut Sleep>) -> Result<(), Farewell> {
        let now = Instant::now();
        // While this process stood still, nobody could be heard: what the timer is late doesn't count as silence.
        let late = now - timer.deadline();
        self.last_heard = now.min(self.last_heard + late);
        let drained = self.connection.writer().drained();
        // A client that takes what the socket had refused is alive, though an answer of it may be behind megabytes.
        if self.held.is_some() || drained != self.drained_seen {
            self.drained_seen = drained;
            self.last_heard = now;
        }
        let config = &self.shared.config;
        let (ping_interval, idle_timeout) = (config.ping_interval, config.idle_timeout);
        let silent = now - self.last_heard;
        if silent >= idle_timeout {
            return Err(Farewell::Silent);
        }
        let due = if silent >= ping_interval {
            self.write_control(ControlFrame::Ping)?;
            now + ping_interval
        } else {
            self.last_heard + ping_interval
        };
        timer.as_mut().reset(due.min(self.last_heard + idle_timeout));
        Ok(())
    }

    fn write_control(&mut self, frame: ControlFrame) -> Result<(), Farewell> {
        self.write(|writer, stream| writer.write_control(stream, frame))
    }

    /// Writes with the lock in hand. Afterwards the sink is told, which may have missed the lock, and what the socket
    /// hasn't taken is waited for.
    fn write(&mut self, f: impl FnOnce(&mut Writer, &TcpStream) -> io::Result<()>) -> Result<(), Farewell> {
        let connection = &self.connection;
        let mut writer = connection.writer();
        let written = f(&mut writer, &connection.stream);
        let idle = writer.is_idle();
        drop(writer);
        connection.sink.wake();
        written.map_err(|error| self.lost(&error))?;
        if !idle && self.writable.is_none() {
            let connection = Arc::clone(connection);
            self.writable = Some(Box::pin(async move {
                // An error shows in the write that follows.
                let _ = connection.stream.writable().await;
            }));
        }
        Ok(())
    }

    fn lost(&self, error: &io::Error) -> Farewell {
        let presence = &self.connection.presence;
        tracing::debug!(identity = %presence.identity, sid = %presence.sid, %error, "connection lost");
        Farewell::PeerGone
    }

    /// Says goodbye: the frame that was begun, the close frame, the end of our side; then waits for the client's close
    /// frame or end. All this takes no longer than the close time-out; a client that hasn't read it by then loses the
    /// connection, and with it whatever is still on the way.
    async fn part(&mut self, farewell: Farewell, mut timer: Pin<&mut Sleep>) {
        let Some((code, reason)) = farewell.frame() else { return socket::shut(&self.connection.stream) };
        timer.as_mut().reset(Instant::now() + self.shared.config.close_timeout);
        let begun = self.write(|writer, stream| writer.close(stream, code, reason));
        let mut parting = Parting {
            finished: false,
            answered: matches!(farewell, Farewell::PeerClosed(_)),
            listening: !matches!(farewell, Farewell::Violation(_)),
        };
        if let Some(held) = self.held.take() {
            self.listen_for_close(&held.behind, &mut parting);
        }
        if begun.is_err() || poll_fn(|cx| self.poll_part(cx, timer.as_mut(), &mut parting)).await {
            return socket::shut(&self.connection.stream);
        }
        let presence = &self.connection.presence;
        tracing::info!(
            identity = %presence.identity, sid = %presence.sid,
            "client didn't take leave in time, connection is reset"
        );
        // What fails here fails on a socket that is closed already.
        let _ = self.connection.stream.set_zero_linger();
    }

    /// True when the client has taken its leave (or is gone), false when the time is up.
    fn poll_part(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>, parting: &mut Parting) -> Poll<bool> {
        if timer.poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        while self.poll_writable(cx).is_ready() {
            if self.write(Writer::carry_on).is_err() {
                return Poll::Ready(true);
            }
        }
        if self.writable.is_none() && !parting.finished {
            parting.finished = true;
            socket::finish(&self.connection.stream);
        }
        while !(parting.finished && parting.answered) {
            if self.connection.stream.poll_read_ready(cx).is_pending() {
                return Poll::Pending;
            }
            let ended = with_scratch(|buffer| match socket::read(&self.connection.stream, buffer) {
                Ok(None) => false,
                Ok(Some(0)) | Err(_) => true,
                Ok(Some(count)) => {
                    self.listen_for_close(&buffer[..count], parting);
                    false
                }
            });
            if ended {
                break;
            }
        }
        Poll::Ready(true)
    }

    /// Discards what a client still sends, but for its close frame.
    fn listen_for_close(&mut self, mut input: &[u8], parting: &mut Parting) {
        while parting.listening && !parting.answered {
            match self.decoder.next(&mut input) {
                Ok(Some(item)) => parting.answered = matches!(item, Item::Close(_)),
                Ok(None) => return,
                Err(_) => parting.listening = false,
            }
        }
    }
}

/// How far a goodbye has got.
#[derive(Debug)]
struct Parting {
    /// The close frame is written, and nothing comes after it.
    finished: bool,
    /// The client has sent its close frame.
    answered: bool,
    /// What the client sends still makes sense.
    listening: bool,
}

/// Waits for what is slow, or until the connection is to end.
fn until_ending(connection: &Connection, mut slow: Waiting<()>) -> impl Future<Output = ()> {
    poll_fn(move |cx| {
        connection.reader.register(cx.waker());
        if connection.is_ending() { Poll::Ready(()) } else { slow.as_mut().poll(cx) }
    })
}

/// Lends this thread's buffer out.
fn with_scratch<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    // A thread that is being torn down has none any more; whoever is called from `f` finds an empty one.
    let mut buffer = SCRATCH.try_with(Cell::take).unwrap_or_default();
    buffer.resize(READ_BYTES, 0);
    let result = f(&mut buffer);
    let _ = SCRATCH.try_with(|scratch| scratch.set(buffer));
    result
}
