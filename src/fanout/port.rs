//! The state that a shard shares with the senders to its members and with their sinks: they reach it and wake it here.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::contract::Message;
use crate::fanout::clock::Clock;
use crate::fanout::command::{Begin, Command};
use crate::fanout::counters::SessionCounters;
use crate::fanout::log::{BroadcastLog, Cursor, Position};
use crate::fanout::slot::Slot;
use crate::sync::AtomicBool;
use crate::sync::bits::Bits;
use crate::sync::signal::Signal;

/// The side of a shard that others see.
#[derive(Debug)]
pub(in crate::fanout) struct Port<M> {
    pub(in crate::fanout) log: Arc<BroadcastLog<M>>,
    pub(in crate::fanout) signal: Arc<Signal>,
    pub(in crate::fanout) mail: Mail,
    /// Members that their sinks have woken.
    pub(in crate::fanout) ready: Bits,
    /// True while the shard doesn't read the log because of a shared uplink, and until it has caught up afterwards.
    pub(in crate::fanout) behind: AtomicBool,
    pub(in crate::fanout) counters: Arc<SessionCounters>,
    pub(in crate::fanout) clock: Clock,
    pub(in crate::fanout) commands: mpsc::Sender<Command<M>>,
    pub(in crate::fanout) begins: mpsc::Sender<Begin<M>>,
}

/// The state of a shard that is about to sleep.
#[derive(Clone, Copy, Debug)]
pub(in crate::fanout) struct SleepCheck {
    /// No member has a slot at or above this one.
    pub(in crate::fanout) extent: usize,
    /// The shard reads no further, whatever the log has for it.
    pub(in crate::fanout) holds_back: bool,
    /// The shard has taken note of the seal.
    pub(in crate::fanout) is_draining: bool,
    /// The shard lets the log's entries gather until the one at this position is filled: see
    /// [`linger`](crate::fanout::shard::linger).
    pub(in crate::fanout) gathers_until: Option<Position>,
}

impl<M: Message> Port<M> {
    /// Whether there is work for a shard that has read everything below `position`, apart from its commands. The shard
    /// checks this once more before it sleeps. It checks the slot and not the tail, because the tail would make it spin
    /// behind a slot that is claimed and empty.
    pub(in crate::fanout) fn has_work(&self, cursor: &Cursor, position: Position, shard: SleepCheck) -> bool {
        let may_read = match shard.gathers_until {
            None => self.log.is_filled(cursor, position) && !shard.holds_back,
            Some(until) => self.log.ends_gathering(cursor, position, until),
        };
        may_read
            || self.mail.any(shard.extent)
            || self.ready.any(shard.extent)
            || (!shard.is_draining && self.log.tail().is_sealed() && self.log.tail().position() == position)
    }
}

/// Members with direct messages, or with an end to handle. Any thread sets a bit; only
/// [`Look::take_mail`](crate::fanout::shard::reader::Look::take_mail) takes bits.
#[derive(Debug)]
pub(in crate::fanout) struct Mail(Bits);

impl Mail {
    /// Creates the set for the slots below `capacity`.
    pub(in crate::fanout) fn new(capacity: usize) -> Self {
        Self(Bits::new(capacity))
    }

    /// Has the shard look at the member in `slot`.
    pub(in crate::fanout) fn set(&self, slot: Slot) {
        self.0.set(slot.index());
    }

    /// Whether a member below `extent` has mail.
    pub(in crate::fanout) fn any(&self, extent: usize) -> bool {
        self.0.any(extent)
    }

    /// Takes the bits below `extent`, and calls `each` for every slot.
    pub(in crate::fanout) fn take(&self, extent: usize, mut each: impl FnMut(Slot)) {
        self.0.take(extent, |index| each(Slot::new(index)));
    }
}
