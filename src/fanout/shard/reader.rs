//! The order in which a shard looks for work, and when it may sleep. There is no I/O here: the reader hands what it
//! finds to a [`Shard`], which is the delivery in production and a few counters in a model. The loom models run this
//! very code.
//!
//! A turn reads the tail first, takes the commands and the mail second, and then reads the log below that tail. The
//! order across the lanes requires these steps in this order (see [`shard`](crate::fanout::shard)), so they are types:
//! a [`Look`] has read the tail, taking the mail consumes it and returns a [`Horizon`], and only a horizon gives
//! entries of the log to deliver.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::contract::Message;
use crate::fanout::log::{BroadcastLog, Cursor, Entry, Position, Tail};
use crate::fanout::port::{Port, SleepCheck};
use crate::fanout::slot::Slot;

/// A shard's place in the log, and the commands that wait for it.
pub(in crate::fanout) struct Reader<M, C> {
    port: Arc<Port<M>>,
    /// The shard's place among the log's readers.
    cursor: Cursor,
    /// The first position that the shard hasn't read.
    position: Position,
    /// False while the shard of this reader isn't among the log's readers: it was made later.
    has_begun: bool,
    /// The entry at `position`, if it was taken and has to wait until the reactor has run.
    put_back: Option<Entry<M>>,
    /// Commands, each with the position at which it takes effect.
    deferred: VecDeque<(Position, C)>,
    /// The most commands that are taken and not carried out.
    most_deferred: usize,
}

/// The shard that a reader reads for.
pub(in crate::fanout) trait Shard<M, C> {
    /// Takes a turn with [`Reader::turn`].
    fn take_turn(&mut self, reader: &mut Reader<M, C>, cx: &mut Context<'_>) -> Found;

    /// The next command that waits in the shard's channels, if there is one.
    fn next_command(&mut self, cx: &mut Context<'_>) -> Option<C>;

    /// Fixes the position of a command that was just taken. `None` for the tail that was read after it was taken.
    fn fix_position(&mut self, _: &mut C) -> Option<Position> {
        None
    }

    /// No member has a slot at or above this one.
    fn extent(&self) -> usize;

    /// The member in `slot` has direct messages, or has ended.
    fn on_mail(&mut self, slot: Slot);

    /// The member in `slot` was woken by its sink.
    fn on_ready(&mut self, slot: Slot);

    /// Begins to read at `position`, as far as the shard is concerned up to, and not including, the position that this
    /// returns. The log's tail was `tail` when the turn began.
    fn begin_reading(&mut self, position: Position, tail: Tail) -> Position;

    /// Whether the shard reads nothing in this turn, because it lets entries gather. Called after
    /// [`begin_reading`](Self::begin_reading).
    fn lingers(&mut self, _: &mut Context<'_>, _: Unread<'_>) -> bool {
        false
    }

    /// Gets the entry at `position`.
    fn on_entry(&mut self, position: Position, entry: Entry<M>) -> Reading<M>;

    /// The state in which the shard is about to sleep.
    fn sleep_check(&self) -> SleepCheck;

    /// Whether something else than the log, mail and sinks has work for the shard.
    fn is_called(&self) -> bool {
        false
    }
}

/// What a turn could read, if its shard didn't linger.
#[derive(Clone, Copy, Debug)]
pub(in crate::fanout) struct Unread<'a> {
    pub(in crate::fanout) cursor: &'a Cursor,
    /// The first position that the shard hasn't read.
    pub(in crate::fanout) from: Position,
    /// A command waits for the shard to read up to a position.
    pub(in crate::fanout) has_command: bool,
}

/// What a shard makes of an entry.
pub(in crate::fanout) enum Reading<M> {
    /// It has the entry, and takes another one in this turn.
    More,
    /// It has the entry, and takes no more in this turn.
    Enough,
    /// It gets the entry, and all behind it, in a later turn.
    Later(Entry<M>),
}

/// Whether a turn found work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fanout) enum Found {
    Work,
    Nothing,
    /// There will be no more work.
    End,
}

/// What a turn has read.
pub(in crate::fanout) struct TurnInput {
    /// The tail as it stood when the turn began.
    pub(in crate::fanout) tail: Tail,
    /// A command waited for a position that the reader had reached when the turn began.
    pub(in crate::fanout) has_due_command: bool,
    pub(in crate::fanout) has_read: bool,
}

impl<M: Message, C> Reader<M, C> {
    pub(in crate::fanout) fn new(port: Arc<Port<M>>, index: usize, most_deferred: usize) -> Self {
        let cursor = Cursor::new(index);
        let (position, deferred) = (Position::default(), VecDeque::new());
        Self { port, cursor, position, has_begun: true, put_back: None, deferred, most_deferred }
    }

    /// Creates the reader of a shard that is made later: it [begins](Self::begin_at) when it is told where.
    pub(super) fn added(port: Arc<Port<M>>, index: usize, most_deferred: usize) -> Self {
        Self { has_begun: false, ..Self::new(port, index, most_deferred) }
    }

    /// Begins to read at `position`, at which the shard was added to the log's readers.
    pub(in crate::fanout) fn begin_at(&mut self, position: Position) {
        self.position = position;
        self.has_begun = true;
    }

    pub(in crate::fanout) fn position(&self) -> Position {
        self.position
    }

    /// The shard's place among the log's readers, for broken variants.
    #[cfg(all(test, lanecast_loom))]
    pub(in crate::fanout) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Takes turns until one finds work, or says that there will be none. Sleeps in between. The caller has noted by
    /// [`rise`](crate::sync::signal::Signal::rise) that the shard is awake.
    pub(in crate::fanout) fn poll_work(&mut self, cx: &mut Context<'_>, shard: &mut impl Shard<M, C>) -> Poll<Found> {
        loop {
            match shard.take_turn(self, cx) {
                Found::Nothing if self.sleeps(cx, shard) => return Poll::Pending,
                Found::Nothing => {}
                found => return Poll::Ready(found),
            }
        }
    }

    /// Announces that the shard sleeps, then checks once more for work. Whether it may sleep.
    fn sleeps(&self, cx: &Context<'_>, shard: &impl Shard<M, C>) -> bool {
        let check = shard.sleep_check();
        let has_work = || self.port.has_work(&self.cursor, self.position, check) || shard.is_called();
        match check.gathers_until {
            None => self.port.signal.sleeps_unless(cx.waker(), has_work),
            Some(until) => self.port.signal.gathers_unless(cx.waker(), until.number(), has_work),
        }
    }

    /// Hands the shard what there is, in the order that the module promises.
    pub(in crate::fanout) fn turn(&mut self, cx: &mut Context<'_>, shard: &mut impl Shard<M, C>) -> TurnInput {
        let port = Arc::clone(&self.port);
        let look = Look::new(&port);
        let tail = look.tail();
        self.take_commands(cx, shard);
        let has_due_command = self.deferred.front().is_some_and(|(due, _)| *due <= self.position);
        let horizon = look.take_mail(shard.extent(), |slot| shard.on_mail(slot));
        port.ready.take(shard.extent(), |index| shard.on_ready(Slot::new(index)));
        let begun = self.position;
        let mut until = shard.begin_reading(begun, tail);
        if shard.lingers(cx, Unread { cursor: &self.cursor, from: begun, has_command: !self.deferred.is_empty() }) {
            until = begun;
        }
        self.read(&horizon, until, shard);
        TurnInput { tail, has_due_command, has_read: self.position > begun }
    }

    fn take_commands(&mut self, cx: &mut Context<'_>, shard: &mut impl Shard<M, C>) {
        while self.deferred.len() < self.most_deferred {
            let taken = take_command(&self.port.log, || shard.next_command(cx));
            let Some((tail, mut command)) = taken else { break };
            self.deferred.push_back((shard.fix_position(&mut command).unwrap_or(tail), command));
        }
    }

    /// Reads the filled entries below the horizon, `until`, and the first command that waits, and frees their slots.
    pub(in crate::fanout) fn read(&mut self, horizon: &Horizon<'_, M>, until: Position, shard: &mut impl Shard<M, C>) {
        let until = self.deferred.front().map_or(until, |(due, _)| until.min(*due));
        let begun = self.position;
        while self.position < until {
            let at = self.position;
            let Some(entry) = self.put_back.take().or_else(|| horizon.take(&mut self.cursor, at)) else { break };
            // Before the call, which may panic where it drops the message: no position is taken twice.
            self.position = at.after(1);
            match shard.on_entry(at, entry) {
                Reading::More => {}
                Reading::Enough => break,
                Reading::Later(entry) => {
                    self.put_back = Some(entry);
                    self.position = at;
                    // The log's bytes that the entry took are free already.
                    self.port.log.space_freed.wake();
                    break;
                }
            }
        }
        if self.position > begun {
            self.port.log.advance(&self.cursor, self.position);
        }
    }

    /// Takes out the next command whose position is reached.
    pub(super) fn next_due(&mut self) -> Option<C> {
        let due = self.deferred.pop_front_if(|(due, _)| *due <= self.position)?;
        Some(due.1)
    }

    /// Takes out the next command, whether its position is reached or not: for a shard that ends.
    pub(super) fn next_deferred(&mut self) -> Option<C> {
        self.deferred.pop_front().map(|(_, command)| command)
    }

    /// Reads every filled entry, wherever the tail was: for a shard that ends, and delivers none of them.
    pub(super) fn read_to_the_end(&mut self, mut each: impl FnMut(Entry<M>)) {
        if !self.has_begun {
            return;
        }
        while let Some(entry) = self.put_back.take().or_else(|| self.port.log.take(&mut self.cursor, self.position)) {
            self.position = self.position.after(1);
            each(entry);
        }
        self.port.log.advance(&self.cursor, self.position);
    }
}

/// The first step of a turn: the tail as it stood when the turn began.
pub(in crate::fanout) struct Look<'a, M> {
    port: &'a Port<M>,
    tail: Tail,
}

impl<'a, M: Message> Look<'a, M> {
    pub(in crate::fanout) fn new(port: &'a Port<M>) -> Self {
        Self { port, tail: port.log.tail() }
    }

    pub(in crate::fanout) fn tail(&self) -> Tail {
        self.tail
    }

    /// The second step: hands every slot below `extent` that has mail to `each`.
    pub(in crate::fanout) fn take_mail(self, extent: usize, each: impl FnMut(Slot)) -> Horizon<'a, M> {
        self.port.mail.take(extent, each);
        Horizon { log: &self.port.log, end: self.tail.position() }
    }
}

/// The last step: this turn delivers the entries of the log below the horizon.
pub(in crate::fanout) struct Horizon<'a, M> {
    log: &'a BroadcastLog<M>,
    end: Position,
}

impl<'a, M: Message> Horizon<'a, M> {
    /// A horizon that doesn't come from a turn, for broken variants and for models without mail.
    #[cfg(all(test, lanecast_loom))]
    pub(in crate::fanout) fn at(log: &'a BroadcastLog<M>, end: Position) -> Self {
        Self { log, end }
    }

    /// Takes the entry at `position`, if it is filled and below the horizon. A shard takes each position once.
    fn take(&self, cursor: &mut Cursor, position: Position) -> Option<Entry<M>> {
        if position < self.end { self.log.take(cursor, position) } else { None }
    }
}

/// Takes a command with `take`, and returns it with the position at which it takes effect.
///
/// The tail is read after the command was taken, so that everything published before the command was given lies below
/// that position. In the other order, a message could be published, and the command given, between the two steps. A new
/// subscriber would then get a message that was published before its subscription, and a subscriber that leaves would
/// miss one.
pub(in crate::fanout) fn take_command<M: Message, C>(
    log: &BroadcastLog<M>,
    take: impl FnOnce() -> Option<C>,
) -> Option<(Position, C)> {
    let command = take()?;
    Some((log.tail().position(), command))
}
