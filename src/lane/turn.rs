//! What a shard has to do in a turn: what it has read of the log, and whom it visits.

use super::Message;
use super::intake::Intake;
use super::member::{Member, Sum};
use super::owner::Owner;

/// See the [module](self).
pub(super) struct Turn<M> {
    pub(super) number: u64,
    pub(super) open: bool,
    pub(super) sealed: bool,
    /// It is time to look for members that are stuck.
    pub(super) ticked: bool,
    pub(super) intake: Intake<M>,
    pub(super) noted: Vec<usize>,
    pub(super) cursor: usize,
    pub(super) now: u64,
    pub(super) sum: Sum,
}

impl<M: Message> Turn<M> {
    /// With `most` messages that a turn reads at most.
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

    /// Has a member visited, once.
    pub(super) fn note<O: Owner<M>>(&mut self, member: &mut Member<O, M>, slot: usize) {
        if member.noted != self.number {
            member.noted = self.number;
            self.noted.push(slot);
        }
    }
}
