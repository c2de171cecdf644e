//! What a shard does in a turn: the messages it has read from the log, and the members it visits.

use crate::contract::Message;
use crate::fanout::shard::intake::Intake;
use crate::fanout::shard::member::{Member, Sum};
use crate::fanout::shard::owner::Owner;

/// The work of a shard's current turn.
pub(super) struct Turn<M> {
    pub(super) number: u64,
    pub(super) open: bool,
    pub(super) sealed: bool,
    /// The time has come to look for stuck members.
    pub(super) ticked: bool,
    pub(super) intake: Intake<M>,
    pub(super) noted: Vec<usize>,
    pub(super) cursor: usize,
    pub(super) now: u64,
    pub(super) sum: Sum,
}

impl<M: Message> Turn<M> {
    /// Creates the state for turns that read at most `most` messages each.
    pub(super) fn new(most: u32) -> Self {
        Self {
            number: 0,
            open: false,
            sealed: false,
            ticked: false,
            intake: Intake::new(most),
            noted: Vec::new(),
            cursor: 0,
            now: 0,
            sum: Sum::default(),
        }
    }

    /// Notes a member for a visit, once per turn.
    pub(super) fn note<O: Owner<M>>(&mut self, member: &mut Member<O, M>, slot: usize) {
        if member.noted != self.number {
            member.noted = self.number;
            self.noted.push(slot);
        }
    }
}
