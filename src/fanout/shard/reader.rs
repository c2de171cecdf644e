//! How a shard reads: the tail first, the mail second, and then the log below that tail.
//!
//! The steps of a turn are types, so that a shard can't take them in another order. A [`Look`] reads the tail. Taking
//! the mail consumes the look and returns a [`Horizon`]. Only a horizon gives entries of the log to deliver. The order
//! across the lanes requires these steps in this order (see [`shard`](crate::fanout::shard)). The loom models run this
//! very code.

use crate::contract::Message;
use crate::fanout::log::{BroadcastLog, Entry, Tail};
use crate::fanout::outbox::Port;

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
    pub(in crate::fanout) fn take_mail(self, extent: usize, each: impl FnMut(usize)) -> Horizon<'a, M> {
        self.port.mail.take(extent, each);
        Horizon { log: &self.port.log, end: self.tail.position() }
    }
}

/// The last step: this turn delivers the entries of the log below the horizon.
pub(in crate::fanout) struct Horizon<'a, M> {
    log: &'a BroadcastLog<M>,
    end: u64,
}

impl<'a, M: Message> Horizon<'a, M> {
    /// A horizon that doesn't come from a turn, for broken variants and for models without mail.
    #[cfg(all(test, lanecast_loom))]
    pub(in crate::fanout) fn at(log: &'a BroadcastLog<M>, end: u64) -> Self {
        Self { log, end }
    }

    /// Takes the entry at `position`, if it is filled and below the horizon. A shard takes each position once.
    pub(in crate::fanout) fn take(&self, position: u64) -> Option<Entry<M>> {
        if position < self.end { self.log.take(position) } else { None }
    }
}

/// Takes a command with `take`, and returns the position at which the command takes effect.
///
/// The tail is read after the command was taken, so that everything published before the command was given lies below
/// that position. In the other order, a message could be published, and the command given, between the two steps. A new
/// subscriber would then get a message that was published before its subscription, and a subscriber that leaves would
/// miss one.
pub(in crate::fanout) fn take_command<M: Message, C>(
    log: &BroadcastLog<M>,
    take: impl FnOnce() -> Option<C>,
) -> Option<(u64, C)> {
    let command = take()?;
    Some((log.tail().position(), command))
}
