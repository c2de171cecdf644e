//! The task that serves one connection: reads it, keeps it alive, says goodbye.
//!
//! It has one place where it waits, and no buffer while it does: bytes are read into one buffer per thread and decoded
//! from there. If a message can't be admitted yet, because the embedder hasn't taken those before or because other
//! clients have the memory for long ones, then it and the bytes behind it are kept, and the socket isn't read until it
//! can; that holds up this client alone.
//!
//! # What one client may take of a worker's time
//! Each poll reads once, and lets everybody else run before the next. A client that has used up its
//! [allowance](Allowance) is read in [turns](Ration::turn) only. What its messages cost behind the reader is charged by
//! their number; long ones have a ration of their own, where they are decoded.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep};

use super::connection::Connection;
use super::decode::{Decoder, Item};
use super::farewell::Farewell;
use super::inbox::{Hold, Intake};
use super::listen::{Event, Shared};
use super::places::Place;
use super::socket;
use super::writer::{ControlFrame, Writer};
use crate::lane::EndReason;
use crate::protocol::Frame;
#[cfg(doc)]
use crate::room::limits::Ration;
use crate::room::limits::{Allowance, Deadline, Turn};
use crate::room::{Presence, RoomEvent};

/// How long a goodbye may take, however steadily a slow client takes what stands before its close frame: at 64 kbit/s
/// that is half a megabyte.
const LONGEST_PARTING: Duration = Duration::from_secs(60);

/// What is read at once; of a long message the second, as its memory is claimed already.
const READ_BYTES: usize = 4 << 10;
const MOST_READ_BYTES: usize = 64 << 10;

/// What a message costs behind this task, about: to hand it over, to decode it, to answer it.
const COST_OF_MESSAGE: Duration = Duration::from_micros(20);

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
    incoming: Option<Intake>,
    allowance: Allowance,
    last_heard: Instant,
    /// What only a client has that is busy or slow. Boxed, as most are neither.
    busy: Option<Box<Busy>>,
}

#[derive(Default)]
struct Busy {
    /// What waits to be admitted, and the bytes read behind it.
    held: Option<Held>,
    /// What the message takes that is being read, if it is a long one.
    long: Option<Long>,
    /// Work that was done since the allowance was used up, and outside of turns.
    debt: Duration,
    /// Waits for a turn, or has it.
    turn: Option<Queued>,
    /// Waits for the socket to take what the writer holds. The stream's own slot is the sink's.
    writable: Option<Waiting<()>>,
}

impl Busy {
    fn is_over(&self) -> bool {
        let Self { held, long, debt, turn, writable } = self;
        held.is_none() && long.is_none() && debt.is_zero() && turn.is_none() && writable.is_none()
    }
}

struct Held {
    /// A message that is complete; `None` if a long one begins.
    message: Option<Frame>,
    admission: Waiting<Hold>,
    admitted: Option<Hold>,
    behind: Vec<u8>,
}

/// A long message that is being read.
struct Long {
    hold: Hold,
    deadline: Deadline,
}

enum Queued {
    Waiting(Waiting<Turn>),
    Begun(Turn),
}

/// What the task wakes up for.
#[derive(Clone, Copy, Debug)]
enum Step {
    Ending(Farewell),
    Readable,
    Writable,
    /// What is held is admitted.
    Admitted,
    Tick,
}

impl Step {
    /// Whether others run before more is read.
    fn reads(self) -> bool {
        matches!(self, Self::Readable | Self::Admitted)
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

    /// Lets go of what a client that isn't busy any more doesn't need.
    fn rest(&mut self) {
        self.busy.take_if(|busy| busy.is_over());
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
                if step.reads() {
                    yield_now().await;
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
        self.stop_listening();
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
        let (intake, stream) = Intake::new();
        self.incoming = Some(intake);
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
        if let Some(held) = self.busy.as_mut().and_then(|busy| busy.held.as_mut()) {
            if let Poll::Ready(hold) = held.admission.as_mut().poll(cx) {
                held.admitted = Some(hold);
                return Poll::Ready(Step::Admitted);
            }
        } else if self.poll_readable(cx).is_ready() {
            return Poll::Ready(Step::Readable);
        }
        if self.poll_dawdled(cx).is_ready() {
            return Poll::Ready(Step::Ending(Farewell::Dawdled));
        }
        timer.poll(cx).map(|()| Step::Tick)
    }

    /// Ready when there is something to read and it is this client's turn.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // An error shows in the read that follows.
        let _ = ready!(self.connection.stream.poll_read_ready(cx));
        if self.allowance.is_left() && self.busy.as_ref().is_none_or(|busy| busy.turn.is_none()) {
            return Poll::Ready(());
        }
        let busy = self.busy.get_or_insert_default();
        let queued = busy.turn.get_or_insert_with(|| {
            let limits = self.shared.config.limits.clone();
            Queued::Waiting(Box::pin(async move { limits.reading().turn(false).await }))
        });
        if let Queued::Waiting(turn) = queued {
            *queued = Queued::Begun(ready!(turn.as_mut().poll(cx)));
            // It wasn't listened to meanwhile.
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

    fn take_step(&mut self, step: Step, timer: Pin<&mut Sleep>) -> Result<(), Farewell> {
        let taken = match step {
            Step::Ending(farewell) => Err(farewell),
            Step::Readable => self.read(),
            Step::Writable => self.write(Writer::carry_on),
            Step::Admitted => self.release(),
            Step::Tick => self.keep_alive(timer),
        };
        self.rest();
        taken
    }

    /// Reads once, and hands on what that completes.
    fn read(&mut self) -> Result<(), Farewell> {
        let most = self.decoder.missing().clamp(READ_BYTES, MOST_READ_BYTES);
        let begun = std::time::Instant::now();
        let taken = with_scratch(|buffer| match socket::read(&self.connection.stream, &mut buffer[..most]) {
            Ok(None) => Ok(0),
            Ok(Some(0)) => Err(Farewell::PeerGone),
            Ok(Some(count)) => {
                self.note_heard();
                self.take_in(&buffer[..count])
            }
            Err(error) => Err(self.lost(&error)),
        });
        self.charge(begun.elapsed() + COST_OF_MESSAGE * *taken.as_ref().unwrap_or(&0));
        taken.map(|_messages| ())
    }

    /// Hands on what `input` completes, and says how many messages that was. Of several pings in it the last one is
    /// answered (RFC 6455, 5.5.3), so that a flood of them costs no more writes than reads.
    fn take_in(&mut self, mut input: &[u8]) -> Result<u32, Farewell> {
        let (mut ping, mut messages) = (None, 0);
        while let Some(item) = self.decoder.next(&mut input).map_err(Farewell::Violation)? {
            let admitted = match item {
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
                Item::Close(code) => return Err(Farewell::PeerClosed(code)),
            };
            if let Err(mut held) = admitted {
                held.behind = input.to_vec();
                self.busy().held = Some(held);
                break;
            }
        }
        if let Some(payload) = ping {
            self.write_control(ControlFrame::Pong(payload))?;
        }
        Ok(messages)
    }

    /// Gives a message to the embedder, or says that it has to wait.
    fn pass_on(&mut self, message: Frame) -> Result<(), Held> {
        let Some(intake) = &self.incoming else { return Ok(()) };
        let claimed = self.busy.as_mut().and_then(|busy| busy.long.take()).map(|long| long.hold);
        match claimed.or_else(|| intake.try_hold(message.len(), &self.shared.config.limits)) {
            Some(hold) => self.deliver(message, hold),
            None => return Err(self.wait_for(message.len(), Some(message))),
        }
        Ok(())
    }

    /// Claims what a message of `bytes` takes that begins, or says that it has to wait.
    fn begin_long(&mut self, bytes: usize) -> Result<(), Held> {
        let Some(intake) = &self.incoming else { return Ok(()) };
        match intake.try_hold(bytes, &self.shared.config.limits) {
            Some(hold) => self.go_on_with_long(hold),
            None => return Err(self.wait_for(bytes, None)),
        }
        Ok(())
    }

    fn wait_for(&self, bytes: usize, message: Option<Frame>) -> Held {
        let intake = self.incoming.as_ref().expect("asked for while there is one");
        let admission = intake.hold(bytes, self.shared.config.limits.clone(), self.allowance.is_left());
        Held { message, admission: Box::pin(admission), admitted: None, behind: Vec::new() }
    }

    fn go_on_with_long(&mut self, hold: Hold) {
        let deadline = Deadline::new(&self.shared.config.limits);
        self.busy().long = Some(Long { hold, deadline });
    }

    fn deliver(&mut self, message: Frame, hold: Hold) {
        let Some(intake) = &mut self.incoming else { return };
        if intake.deliver(message, hold).is_err() {
            self.stop_listening();
        }
    }

    /// What comes from now on is read and discarded, and takes no memory.
    fn stop_listening(&mut self) {
        self.incoming = None;
        if let Some(busy) = &mut self.busy {
            busy.long = None;
        }
        self.decoder.discard();
    }

    /// Goes on with what was held back.
    fn release(&mut self) -> Result<(), Farewell> {
        // It wasn't listened to meanwhile.
        self.last_heard = Instant::now();
        let Some(mut held) = self.take_held() else { return Ok(()) };
        let begun = std::time::Instant::now();
        match (held.message.take(), held.admitted.take()) {
            (Some(message), Some(hold)) => self.deliver(message, hold),
            (None, Some(hold)) => self.go_on_with_long(hold),
            (_, None) => {}
        }
        let messages = self.take_in(&held.behind)?;
        self.charge(begun.elapsed() + COST_OF_MESSAGE * messages);
        Ok(())
    }

    fn take_held(&mut self) -> Option<Held> {
        self.busy.as_mut()?.held.take()
    }

    /// Counts `work` against the turn in which it was done, with what has gathered outside of turns; without a turn
    /// against the allowance, as long as there is one.
    fn charge(&mut self, work: Duration) {
        match &mut self.busy {
            Some(busy) if matches!(busy.turn, Some(Queued::Begun(_))) => {
                if let Some(Queued::Begun(turn)) = busy.turn.take() {
                    turn.end(std::mem::take(&mut busy.debt) + work);
                }
            }
            _ if self.allowance.is_left() => self.allowance.spend(work),
            _ => self.busy().debt += work,
        }
    }

    /// Pings a client that has been silent, and gives up one that stays it.
    fn keep_alive(&mut self, mut timer: Pin<&mut Sleep>) -> Result<(), Farewell> {
        let now = Instant::now();
        // While this process stood still, nobody could be heard: what the timer is late doesn't count as silence.
        let late = now - timer.deadline();
        let drained = self.connection.writer().drained();
        // A client that takes what the socket had refused is alive, though an answer of it may be behind megabytes.
        let is_held_up = self.busy.as_ref().is_some_and(|busy| busy.held.is_some() || busy.turn.is_some());
        let alive = if is_held_up { now } else { drained.map_or(self.last_heard, |at| at.max(self.last_heard)) };
        self.last_heard = now.min(alive + late);
        let config = &self.shared.config;
        let (ping_interval, idle_timeout) = (config.ping_interval, config.idle_timeout);
        // One that is behind may take nothing for as long as a stall may last.
        let patience = drained.map(|at| at + config.stall_timeout);
        let given_up = patience.unwrap_or(now).max(self.last_heard + idle_timeout);
        if given_up <= now {
            return Err(Farewell::Silent);
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

    fn lost(&self, error: &io::Error) -> Farewell {
        let presence = &self.connection.presence;
        tracing::debug!(identity = %presence.identity, sid = %presence.sid, %error, "connection lost");
        Farewell::PeerGone
    }

    /// Says goodbye: the frame that was begun, the close frame, the end of our side; then waits for the client's close
    /// frame or end. A client that hasn't read it when the [time](Parting::due) is up loses the connection, and with
    /// it whatever is still on the way.
    async fn part(&mut self, farewell: Farewell, mut timer: Pin<&mut Sleep>) {
        let Some((code, reason)) = farewell.frame() else { return socket::shut(&self.connection.stream) };
        let now = Instant::now();
        let close_timeout = self.shared.config.close_timeout;
        // One that is given up because it takes nothing won't take its leave.
        let is_stuck = matches!(farewell, Farewell::Silent | Farewell::Ended(EndReason::WriteTimedOut));
        if is_stuck && self.connection.writer().refused().is_some() {
            self.connection.writer().give_up();
            self.connection.sink.wake();
            return self.cut_off();
        }
        timer.as_mut().reset(now + close_timeout);
        let begun = self.write(|writer, stream| writer.close(stream, code, reason));
        let mut parting = Parting {
            due: now + close_timeout,
            latest: now + close_timeout.max(LONGEST_PARTING),
            hurried: false,
            finished: false,
            answered: matches!(farewell, Farewell::PeerClosed(_)),
            listening: !matches!(farewell, Farewell::Violation(_)),
        };
        if let Some(held) = self.take_held() {
            self.listen_for_close(&held.behind, &mut parting);
        }
        if let Some(busy) = &mut self.busy {
            busy.turn = None;
        }
        let stop = self.shared.stop.clone();
        let mut stopped = std::pin::pin!(stop.cancelled());
        let ended = poll_fn(|cx| {
            if !parting.hurried && stopped.as_mut().poll(cx).is_ready() {
                parting.hurry(Instant::now() + close_timeout);
                let due = timer.deadline().min(parting.latest);
                timer.as_mut().reset(due);
            }
            self.poll_part(cx, timer.as_mut(), &mut parting)
        });
        if begun.is_err() || ended.await {
            return socket::shut(&self.connection.stream);
        }
        self.cut_off();
    }

    /// Has the connection reset when it is dropped, so that nothing of it stays in the kernel.
    fn cut_off(&self) {
        let presence = &self.connection.presence;
        tracing::info!(
            identity = %presence.identity, sid = %presence.sid,
            "client didn't take leave in time, connection is reset"
        );
        // What fails here fails on a socket that is closed already.
        let _ = self.connection.stream.set_zero_linger();
    }

    /// Until when the goodbye of a client that is behind may take: as long as it could be behind without being ended.
    fn patience(&self) -> Option<Instant> {
        let config = &self.shared.config;
        let writer = self.connection.writer();
        let drains = writer.drained().map(|at| at + config.stall_timeout);
        // One that has taken nothing since it is behind is as silent as before.
        let refused = writer.refused().map(|at| (at + config.stall_timeout).min(self.last_heard + config.idle_timeout));
        drains.max(refused)
    }

    /// True when the client has taken its leave (or is gone), false when the time is up.
    fn poll_part(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>, parting: &mut Parting) -> Poll<bool> {
        // First: a client that sends without pause uses up the task's budget below.
        while timer.as_mut().poll(cx).is_ready() {
            let due = parting.due(self.patience());
            if due <= Instant::now() {
                return Poll::Ready(false);
            }
            timer.as_mut().reset(due);
        }
        while self.poll_writable(cx).is_ready() {
            if self.write(Writer::carry_on).is_err() {
                return Poll::Ready(true);
            }
        }
        if !self.awaits_writable() && !parting.finished {
            parting.finished = true;
            socket::finish(&self.connection.stream);
        }
        if !(parting.finished && parting.answered) {
            // One read in a poll, and in turns if there are many: whoever takes leave may be flooding still.
            ready!(self.poll_readable(cx));
            let begun = std::time::Instant::now();
            let ended = with_scratch(|buffer| match socket::read(&self.connection.stream, &mut buffer[..READ_BYTES]) {
                Ok(None) => false,
                Ok(Some(0)) | Err(_) => true,
                Ok(Some(count)) => {
                    self.listen_for_close(&buffer[..count], parting);
                    false
                }
            });
            self.charge(begun.elapsed());
            let over = ended || (parting.finished && parting.answered);
            if !over {
                cx.waker().wake_by_ref();
                return Poll::Pending;
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
    /// Until when a client that keeps up has time.
    due: Instant,
    /// Until when any client has time.
    latest: Instant,
    /// The room is closing.
    hurried: bool,
    /// The close frame is written, and nothing comes after it.
    finished: bool,
    /// The client has sent its close frame.
    answered: bool,
    /// What the client sends still makes sense.
    listening: bool,
}

impl Parting {
    /// When the time is up. A client that was behind has until `patience`, which moves on with what it takes: what stands
    /// before the close frame may take longer than the close frame may.
    fn due(&self, patience: Option<Instant>) -> Instant {
        patience.map_or(self.due, |patience| patience.max(self.due)).min(self.latest)
    }

    /// The room waits for its connections to end: from now on even a slow client has no more than the close time-out.
    fn hurry(&mut self, latest: Instant) {
        self.hurried = true;
        self.latest = self.latest.min(latest);
    }
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
    buffer.resize(MOST_READ_BYTES, 0);
    let result = f(&mut buffer);
    let _ = SCRATCH.try_with(|scratch| scratch.set(buffer));
    result
}
