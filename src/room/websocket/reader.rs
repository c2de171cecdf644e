//! The task that serves one connection: it reads from the client, keeps the connection alive, and ends it with a close
//! handshake.
//!
//! The task waits in one place, and has no buffer while it waits: bytes are read into one buffer per thread and decoded
//! from there. A message has to wait if the embedder hasn't taken the ones before it, or if other clients have the
//! memory for long ones. Then the message and the bytes behind it are kept, and the socket isn't read until the message
//! can go on. This holds up only this client.
//!
//! # What one client may take of a worker's time
//! Each poll reads once, and lets other tasks run before the next read. A client that has used up its
//! [allowance](Allowance) is read in [turns](Ration::turn) only. The cost of its messages behind the reader is charged
//! by their number; long messages have a ration of their own where they are decoded.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep};

use super::close_reason::CloseReason;
use super::connection::Connection;
use super::decode::{Decoder, Item};
use super::inbox::{InboxSender, Permits};
use super::places::Place;
use super::shared::{Event, Shared};
use super::socket;
use super::writer::{ControlFrame, Writer};
use crate::contract::EndReason;
use crate::protocol::Frame;
#[cfg(doc)]
use crate::room::limits::Ration;
use crate::room::limits::{Allowance, Deadline, Turn};
use crate::room::{Presence, RoomEvent};

/// The longest close handshake, however steadily a slow client takes the bytes before its close frame: half a megabyte
/// at 64 kbit/s.
const LONGEST_CLOSE_HANDSHAKE: Duration = Duration::from_secs(60);

/// The most bytes of one read; the second for a long message, as its memory is claimed already.
const READ_BYTES: usize = 4 << 10;
const MOST_READ_BYTES: usize = 64 << 10;

/// The approximate cost of a message behind this task: handing it over, decoding it, answering it.
const COST_OF_MESSAGE: Duration = Duration::from_micros(20);

thread_local! {
    /// One buffer per thread, used by the connection that is being read.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The state of the task that serves one connection.
pub(super) struct Reader {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    decoder: Decoder,
    /// `None` once the embedder has dropped the other end: what the client sends is then read and discarded.
    incoming: Option<InboxSender>,
    allowance: Allowance,
    last_heard: Instant,
    /// State that only a busy or slow client has. Boxed, because most clients are neither.
    busy: Option<Box<Busy>>,
}

#[derive(Default)]
struct Busy {
    /// A message that waits for its permits, and the bytes read behind it.
    pending: Option<PendingMessage>,
    /// The long message that is being read, if there is one.
    long: Option<LongMessage>,
    /// Work that was done outside of turns since the allowance was used up.
    debt: Duration,
    /// The turn that the client waits for, or has.
    turn: Option<ReadTurn>,
    /// Waits until the socket takes what the writer holds. The stream's own waker slot belongs to the sink.
    writable: Option<BoxFuture<'static, ()>>,
}

impl Busy {
    fn is_over(&self) -> bool {
        let Self { pending, long, debt, turn, writable } = self;
        pending.is_none() && long.is_none() && debt.is_zero() && turn.is_none() && writable.is_none()
    }
}

/// A message that the embedder's inbox, or the memory of all peers, has no capacity for yet.
struct PendingMessage {
    /// The complete message; `None` if a long one begins.
    message: Option<Frame>,
    waits: BoxFuture<'static, Permits>,
    permits: Option<Permits>,
    /// What was read behind the message.
    behind: Vec<u8>,
}

/// A long message that is being read.
struct LongMessage {
    permits: Permits,
    deadline: Deadline,
}

enum ReadTurn {
    Waiting(BoxFuture<'static, Turn>),
    Begun(Turn),
}

/// The event that the task wakes up for.
#[derive(Clone, Copy, Debug)]
enum Step {
    Close(CloseReason),
    Readable,
    Writable,
    /// The pending message has its permits.
    InboundReady,
    Tick,
}

impl Step {
    /// Whether the step takes in input, after which the task yields to others.
    fn reads(self) -> bool {
        matches!(self, Self::Readable | Self::InboundReady)
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, connection: Arc<Connection>) -> Self {
        Self {
            decoder: Decoder::new(shared.config.max_message_bytes),
            shared,
            connection,
            incoming: None,
            allowance: Allowance::new(),
            last_heard: Instant::now(),
            busy: None,
        }
    }

    fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// Frees the state of a busy client once the client isn't busy any more.
    fn rest(&mut self) {
        self.busy.take_if(|busy| busy.is_over());
    }

    /// Serves the connection until it has ended. `place` is its place among the connections that are allowed.
    #[expect(clippy::manual_async_fn, reason = "an async fn stores its arguments twice, as received and in use")]
    pub(super) fn run(mut self, place: Place) -> impl Future<Output = ()> + Send {
        async move {
            // The beginning and the end are boxed: they are short, and the task's future is kept for the whole
            // connection.
            Box::pin(self.introduce()).await;
            let mut timer = std::pin::pin!(sleep(self.shared.config.ping_interval));
            let reason = loop {
                let step = poll_fn(|cx| self.poll_step(cx, timer.as_mut())).await;
                if let Err(reason) = self.take_step(step, timer.as_mut()) {
                    break reason;
                }
                if step.reads() {
                    yield_now().await;
                }
            };
            Box::pin(self.close(reason, timer)).await;
            drop(place);
        }
    }

    /// Tells the session about the connection.
    async fn introduce(&mut self) {
        if let Some(slow) = self.announce() {
            until_close_is_requested(&self.connection, slow).await;
        }
        if let Some(slow) = self.open_stream() {
            until_close_is_requested(&self.connection, slow).await;
        }
        self.last_heard = Instant::now();
    }

    /// Announces that the connection is gone, and performs the close handshake.
    async fn close(mut self, reason: CloseReason, timer: Pin<&mut Sleep>) {
        let reason = self.actual_reason(reason);
        // The directory is up to date before the session is told, and the session is told before the sink fails.
        self.shared.directory.remove(&self.connection);
        self.discard_inbound();
        let presence = &self.connection.presence;
        tracing::info!(
            identity = %presence.identity, sid = %presence.sid, peer = %self.connection.peer, ?reason,
            "connection ends"
        );
        let gone = RoomEvent::Disconnected { identity: presence.identity.clone(), sid: presence.sid.clone() };
        let late = self.emit(gone);
        self.close_handshake(reason, timer).await;
        drop(self);
        if let Some(late) = late {
            late.await;
        }
    }

    /// Corrects the reason of a connection that was replaced. A session that joins a connection while a newer one
    /// arrives may find the newer one in the room and take this one for disconnected. The client is still connected and
    /// is told the actual reason.
    fn actual_reason(&self, reason: CloseReason) -> CloseReason {
        let Presence { identity, joined_at, .. } = &self.connection.presence;
        let newer = |newest: Presence| newest.joined_at > *joined_at;
        match reason {
            CloseReason::Ended(EndReason::Disconnected)
                if self.shared.directory.newest(identity).is_some_and(newer) =>
            {
                CloseReason::Ended(EndReason::Replaced)
            }
            reason => reason,
        }
    }

    /// Tells the session that it can write. The caller has to wait for the returned future.
    fn announce(&self) -> Option<BoxFuture<'static, ()>> {
        self.emit(RoomEvent::Active(self.connection.presence.clone()))
    }

    /// Gives the session the client's own stream. The caller has to wait for the returned future.
    fn open_stream(&mut self) -> Option<BoxFuture<'static, ()>> {
        let (sender, stream) = InboxSender::new();
        self.incoming = Some(sender);
        let presence = &self.connection.presence;
        let (identity, sid) = (presence.identity.clone(), presence.sid.clone());
        self.emit(RoomEvent::StreamOpened { identity, sid, stream })
    }

    fn emit(&self, event: Event) -> Option<BoxFuture<'static, ()>> {
        // If the session doesn't listen any more, the room is about to close.
        let Err(TrySendError::Full(event)) = self.shared.events.try_send(event) else { return None };
        let events = self.shared.events.clone();
        Some(Box::pin(async move {
            let _ = events.send(event).await;
        }))
    }

    fn poll_step(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>) -> Poll<Step> {
        self.connection.reader.register(cx.waker());
        if let Some(reason) = self.connection.requested() {
            return Poll::Ready(Step::Close(reason));
        }
        if self.poll_writable(cx).is_ready() {
            return Poll::Ready(Step::Writable);
        }
        if let Some(pending) = self.busy.as_mut().and_then(|busy| busy.pending.as_mut()) {
            if let Poll::Ready(permits) = pending.waits.as_mut().poll(cx) {
                pending.permits = Some(permits);
                return Poll::Ready(Step::InboundReady);
            }
        } else if self.poll_readable(cx).is_ready() {
            return Poll::Ready(Step::Readable);
        }
        if self.poll_dawdled(cx).is_ready() {
            return Poll::Ready(Step::Close(CloseReason::Dawdled));
        }
        timer.poll(cx).map(|()| Step::Tick)
    }

    /// Ready when there is something to read and the client may be read, by its allowance or its turn.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // An error shows in the read that follows.
        let _ = ready!(self.connection.stream.poll_read_ready(cx));
        if self.allowance.is_left() && self.busy.as_ref().is_none_or(|busy| busy.turn.is_none()) {
            return Poll::Ready(());
        }
        let busy = self.busy.get_or_insert_default();
        let queued = busy.turn.get_or_insert_with(|| {
            let limits = self.shared.config.limits.clone();
            ReadTurn::Waiting(Box::pin(async move { limits.reading().turn(false).await }))
        });
        if let ReadTurn::Waiting(turn) = queued {
            *queued = ReadTurn::Begun(ready!(turn.as_mut().poll(cx)));
            // The client wasn't read while it waited.
            self.note_heard();
        }
        Poll::Ready(())
    }

    fn note_heard(&mut self) {
        self.last_heard = Instant::now();
        if let Some(long) = self.busy.as_mut().and_then(|busy| busy.long.as_mut()) {
            long.deadline.heard();
        }
    }

    /// Ready when a long message has taken too long while others wait for memory.
    fn poll_dawdled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let long = self.busy.as_mut().and_then(|busy| busy.long.as_mut());
        long.map_or(Poll::Pending, |long| long.deadline.poll_late(cx))
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(busy) = &mut self.busy else { return Poll::Pending };
        let Some(writable) = &mut busy.writable else { return Poll::Pending };
        ready!(writable.as_mut().poll(cx));
        busy.writable = None;
        Poll::Ready(())
    }

    fn take_step(&mut self, step: Step, timer: Pin<&mut Sleep>) -> Result<(), CloseReason> {
        let taken = match step {
            Step::Close(reason) => Err(reason),
            Step::Readable => self.read(),
            Step::Writable => self.write(Writer::write_unsent),
            Step::InboundReady => self.accept_pending(),
            Step::Tick => self.keep_alive(timer),
        };
        self.rest();
        taken
    }

    /// Reads once, and handles the items that this completes.
    fn read(&mut self) -> Result<(), CloseReason> {
        let most = self.decoder.missing().clamp(READ_BYTES, MOST_READ_BYTES);
        let begun = std::time::Instant::now();
        let taken = with_scratch(most, |buffer| match socket::read(&self.connection.stream, buffer) {
            Ok(None) => Ok(0),
            Ok(Some(0)) => Err(CloseReason::PeerGone),
            Ok(Some(count)) => {
                self.note_heard();
                self.take_in(&buffer[..count])
            }
            Err(error) => Err(self.lost(&error)),
        });
        self.charge(begun.elapsed() + COST_OF_MESSAGE * *taken.as_ref().unwrap_or(&0));
        taken.map(|_messages| ())
    }

    /// Handles the items that `input` completes, and returns how many messages they contain. If `input` has several
    /// pings, only the last one is answered (RFC 6455, 5.5.3), so that a flood of pings costs no more writes than
    /// reads.
    fn take_in(&mut self, mut input: &[u8]) -> Result<u32, CloseReason> {
        let (mut ping, mut messages) = (None, 0);
        while let Some(item) = self.decoder.next(&mut input).map_err(CloseReason::Violation)? {
            let taken = match item {
                Item::Message(message) => {
                    messages += 1;
                    self.pass_on(message)
                }
                Item::Long(bytes) => self.begin_long(bytes),
                Item::Ping(payload) => {
                    ping = Some(payload);
                    Ok(())
                }
                Item::Pong => Ok(()),
                Item::Close(code) => return Err(CloseReason::PeerClosed(code)),
            };
            if let Err(mut pending) = taken {
                pending.behind = input.to_vec();
                self.busy().pending = Some(pending);
                break;
            }
        }
        if let Some(payload) = ping {
            self.write_control(ControlFrame::Pong(payload))?;
        }
        Ok(messages)
    }

    /// Gives a message to the embedder. The error is the message if it has to wait.
    fn pass_on(&mut self, message: Frame) -> Result<(), PendingMessage> {
        let Some(inbox) = &self.incoming else { return Ok(()) };
        let claimed = self.busy.as_mut().and_then(|busy| busy.long.take()).map(|long| long.permits);
        match claimed.or_else(|| inbox.try_reserve(message.len(), &self.shared.config.limits)) {
            Some(permits) => self.deliver(message, permits),
            None => return Err(self.wait_for(message.len(), Some(message))),
        }
        Ok(())
    }

    /// Claims the memory for a long message of up to `bytes` that begins. An error means that the message has to wait.
    fn begin_long(&mut self, bytes: usize) -> Result<(), PendingMessage> {
        let Some(inbox) = &self.incoming else { return Ok(()) };
        match inbox.try_reserve(bytes, &self.shared.config.limits) {
            Some(permits) => self.go_on_with_long(permits),
            None => return Err(self.wait_for(bytes, None)),
        }
        Ok(())
    }

    fn wait_for(&self, bytes: usize, message: Option<Frame>) -> PendingMessage {
        let inbox = self.incoming.as_ref().expect("called only while there is an inbox");
        let waits = inbox.reserve(bytes, self.shared.config.limits.clone(), self.allowance.is_left());
        PendingMessage { message, waits: Box::pin(waits), permits: None, behind: Vec::new() }
    }

    fn go_on_with_long(&mut self, permits: Permits) {
        let deadline = Deadline::new(&self.shared.config.limits);
        self.busy().long = Some(LongMessage { permits, deadline });
    }

    fn deliver(&mut self, message: Frame, permits: Permits) {
        let Some(inbox) = &mut self.incoming else { return };
        if inbox.deliver(message, permits).is_err() {
            self.discard_inbound();
        }
    }

    /// From now on, what the client sends is read and discarded, and takes no memory.
    fn discard_inbound(&mut self) {
        self.incoming = None;
        if let Some(busy) = &mut self.busy {
            busy.long = None;
        }
        self.decoder.discard();
    }

    /// Goes on with the pending message, which has its permits.
    fn accept_pending(&mut self) -> Result<(), CloseReason> {
        // The client wasn't read while its message was pending.
        self.last_heard = Instant::now();
        let Some(mut pending) = self.take_pending() else { return Ok(()) };
        let begun = std::time::Instant::now();
        match (pending.message.take(), pending.permits.take()) {
            (Some(message), Some(permits)) => self.deliver(message, permits),
            (None, Some(permits)) => self.go_on_with_long(permits),
            (_, None) => {}
        }
        let messages = self.take_in(&pending.behind)?;
        self.charge(begun.elapsed() + COST_OF_MESSAGE * messages);
        Ok(())
    }

    fn take_pending(&mut self) -> Option<PendingMessage> {
        self.busy.as_mut()?.pending.take()
    }

    /// Charges `work` to the turn in which it was done, together with the debt from outside of turns. Without a turn,
    /// charges it to the allowance while one is left, and then to the debt.
    fn charge(&mut self, work: Duration) {
        match &mut self.busy {
            Some(busy) if matches!(busy.turn, Some(ReadTurn::Begun(_))) => {
                if let Some(ReadTurn::Begun(turn)) = busy.turn.take() {
                    turn.end(std::mem::take(&mut busy.debt) + work);
                }
            }
            _ if self.allowance.is_left() => self.allowance.spend(work),
            _ => self.busy().debt += work,
        }
    }

    /// Pings a silent client and ends the connection if it stays silent.
    fn keep_alive(&mut self, mut timer: Pin<&mut Sleep>) -> Result<(), CloseReason> {
        let now = Instant::now();
        // While this process doesn't run, it can't hear any client: the time by which the timer is late isn't silence.
        let late = now - timer.deadline();
        let drained = self.connection.writer().drained();
        // A client that takes what the socket had refused is alive, though its answer to a ping may be behind
        // megabytes.
        let is_blocked = self.busy.as_ref().is_some_and(|busy| busy.pending.is_some() || busy.turn.is_some());
        let alive = if is_blocked { now } else { drained.map_or(self.last_heard, |at| at.max(self.last_heard)) };
        self.last_heard = now.min(alive + late);
        let config = &self.shared.config;
        let (ping_interval, idle_timeout) = (config.ping_interval, config.idle_timeout);
        // A client that is behind may take nothing for up to the stall time-out.
        let patience = drained.map(|at| at + config.stall_timeout);
        let given_up = patience.unwrap_or(now).max(self.last_heard + idle_timeout);
        if given_up <= now {
            return Err(CloseReason::Silent);
        }
        let silent = now - self.last_heard;
        let due = if silent >= ping_interval {
            self.write_control(ControlFrame::Ping)?;
            now + ping_interval
        } else {
            self.last_heard + ping_interval
        };
        timer.as_mut().reset(due.min(given_up));
        Ok(())
    }

    fn write_control(&mut self, frame: ControlFrame) -> Result<(), CloseReason> {
        self.write(|writer, stream| writer.write_control(stream, frame))
    }

    /// Calls `f` with the writer locked. Then wakes the sink, which may have missed the lock, and sees to it that this
    /// task is woken when the socket takes what is left.
    fn write(&mut self, f: impl FnOnce(&mut Writer, &TcpStream) -> io::Result<()>) -> Result<(), CloseReason> {
        let connection = &self.connection;
        let mut writer = connection.writer();
        let written = f(&mut writer, &connection.stream);
        let idle = writer.is_idle();
        drop(writer);
        connection.sink.wake();
        written.map_err(|error| self.lost(&error))?;
        if !idle && !self.awaits_writable() {
            let connection = Arc::clone(&self.connection);
            self.busy().writable = Some(Box::pin(async move {
                // An error shows in the write that follows.
                let _ = connection.stream.writable().await;
            }));
        }
        Ok(())
    }

    fn awaits_writable(&self) -> bool {
        self.busy.as_ref().is_some_and(|busy| busy.writable.is_some())
    }

    fn lost(&self, error: &io::Error) -> CloseReason {
        let presence = &self.connection.presence;
        tracing::debug!(identity = %presence.identity, sid = %presence.sid, %error, "connection lost");
        CloseReason::PeerGone
    }

    /// Performs the close handshake: sends the rest of the frame that was begun, the close frame and the end of this
    /// side, then waits for the client's close frame or end. If the [time](CloseHandshake::due) is up before, the
    /// connection is reset, and what is still on the way is lost.
    async fn close_handshake(&mut self, close_reason: CloseReason, mut timer: Pin<&mut Sleep>) {
        let Some((code, reason)) = close_reason.close_frame() else {
            return socket::shut_down(&self.connection.stream);
        };
        let now = Instant::now();
        let close_timeout = self.shared.config.close_timeout;
        // A client that was ended because it takes nothing won't complete a close handshake.
        let is_stuck = matches!(close_reason, CloseReason::Silent | CloseReason::Ended(EndReason::WriteTimedOut));
        if is_stuck && self.connection.writer().refused().is_some() {
            self.connection.writer().discard_all();
            self.connection.sink.wake();
            return self.reset_connection();
        }
        timer.as_mut().reset(now + close_timeout);
        let begun = self.write(|writer, stream| writer.begin_close(stream, code, reason));
        let mut handshake = CloseHandshake {
            due: now + close_timeout,
            latest: now + close_timeout.max(LONGEST_CLOSE_HANDSHAKE),
            room_is_closing: false,
            finished: false,
            answered: matches!(close_reason, CloseReason::PeerClosed(_)),
            listening: !matches!(close_reason, CloseReason::Violation(_)),
        };
        if let Some(pending) = self.take_pending() {
            self.listen_for_close(&pending.behind, &mut handshake);
        }
        if let Some(busy) = &mut self.busy {
            busy.turn = None;
        }
        let stop = self.shared.stop.clone();
        let mut stopped = std::pin::pin!(stop.cancelled());
        let ended = poll_fn(|cx| {
            if !handshake.room_is_closing && stopped.as_mut().poll(cx).is_ready() {
                handshake.shorten(Instant::now() + close_timeout);
                let due = timer.deadline().min(handshake.latest);
                timer.as_mut().reset(due);
            }
            self.poll_close_handshake(cx, timer.as_mut(), &mut handshake)
        });
        if begun.is_err() || ended.await == HandshakeEnd::Completed {
            return socket::shut_down(&self.connection.stream);
        }
        self.reset_connection();
    }

    /// Has the connection reset when it is dropped, so that the kernel keeps nothing of it.
    fn reset_connection(&self) {
        let presence = &self.connection.presence;
        tracing::info!(
            identity = %presence.identity, sid = %presence.sid,
            "the client didn't complete the close handshake in time, its connection is reset"
        );
        // This can only fail on a socket that is closed already.
        let _ = self.connection.stream.set_zero_linger();
    }

    /// The deadline for the close handshake of a client that is behind: as long as it could be behind without being
    /// ended.
    fn patience(&self) -> Option<Instant> {
        let config = &self.shared.config;
        let writer = self.connection.writer();
        let drains = writer.drained().map(|at| at + config.stall_timeout);
        // A client that has taken nothing since it fell behind has been silent since it was last heard.
        let refused = writer.refused().map(|at| (at + config.stall_timeout).min(self.last_heard + config.idle_timeout));
        drains.max(refused)
    }

    /// Ready at the end of the close handshake.
    fn poll_close_handshake(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Sleep>,
        handshake: &mut CloseHandshake,
    ) -> Poll<HandshakeEnd> {
        // The timer comes first: a client that sends without pause uses up the task's budget below.
        while timer.as_mut().poll(cx).is_ready() {
            let due = handshake.due(self.patience());
            if due <= Instant::now() {
                return Poll::Ready(HandshakeEnd::TimeIsUp);
            }
            timer.as_mut().reset(due);
        }
        while self.poll_writable(cx).is_ready() {
            if self.write(Writer::write_unsent).is_err() {
                return Poll::Ready(HandshakeEnd::Completed);
            }
        }
        if !self.awaits_writable() && !handshake.finished {
            handshake.finished = true;
            socket::shut_down_write(&self.connection.stream);
        }
        if !(handshake.finished && handshake.answered) {
            // One read per poll, in turns once the allowance is used up: a client may flood during the close handshake
            // too.
            ready!(self.poll_readable(cx));
            let begun = std::time::Instant::now();
            let ended = with_scratch(READ_BYTES, |buffer| match socket::read(&self.connection.stream, buffer) {
                Ok(None) => false,
                Ok(Some(0)) | Err(_) => true,
                Ok(Some(count)) => {
                    self.listen_for_close(&buffer[..count], handshake);
                    false
                }
            });
            self.charge(begun.elapsed());
            let over = ended || (handshake.finished && handshake.answered);
            if !over {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(HandshakeEnd::Completed)
    }

    /// Discards what the client still sends, except for its close frame.
    fn listen_for_close(&mut self, mut input: &[u8], handshake: &mut CloseHandshake) {
        while handshake.listening && !handshake.answered {
            match self.decoder.next(&mut input) {
                Ok(Some(item)) => handshake.answered = matches!(item, Item::Close(_)),
                Ok(None) => return,
                Err(_) => handshake.listening = false,
            }
        }
    }
}

/// How a close handshake has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HandshakeEnd {
    /// The client has answered, or is gone.
    Completed,
    TimeIsUp,
}

/// The progress of a close handshake.
#[derive(Debug)]
struct CloseHandshake {
    /// The deadline for a client that keeps up.
    due: Instant,
    /// The deadline for any client.
    latest: Instant,
    /// The room is closing.
    room_is_closing: bool,
    /// The close frame is written, and nothing comes after it.
    finished: bool,
    /// The client has sent its close frame.
    answered: bool,
    /// The client's bytes can still be decoded.
    listening: bool,
}

impl CloseHandshake {
    /// The deadline. A client that was behind has until `patience`, which moves on with what it takes: the bytes before
    /// the close frame may take longer than the close frame may.
    fn due(&self, patience: Option<Instant>) -> Instant {
        patience.map_or(self.due, |patience| patience.max(self.due)).min(self.latest)
    }

    /// The room waits for its connections to end: from now on even a slow client has no more than the close
    /// time-out.
    fn shorten(&mut self, latest: Instant) {
        self.room_is_closing = true;
        self.latest = self.latest.min(latest);
    }
}

/// Waits for `slow`, or until the connection is to be closed.
fn until_close_is_requested(connection: &Connection, mut slow: BoxFuture<'static, ()>) -> impl Future<Output = ()> {
    poll_fn(move |cx| {
        connection.reader.register(cx.waker());
        if connection.close_is_requested() { Poll::Ready(()) } else { slow.as_mut().poll(cx) }
    })
}

/// Lends `len` bytes of this thread's buffer to `f`. The buffer grows as needed: few threads ever read a long message.
fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
    // A thread that is being torn down has no buffer; a nested call within `f` finds an empty one.
    let mut buffer = SCRATCH.try_with(Cell::take).unwrap_or_default();
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let result = f(&mut buffer[..len]);
    let _ = SCRATCH.try_with(|scratch| scratch.set(buffer));
    result
}
