//! What a shard has to do in a turn: which entries of the log it has read, and whom it visits.

use super::Message;
use super::member::{Member, Owner, Sum};
use super::shelf::TurnEntry;

/// See the [module](self).
pub(super) struct Turn<M> {
    pub(super) number: u64,
    pub(super) open: bool,
    pub(super) sealed: bool,
    pub(super) entries: Vec<TurnEntry<M>>,
    pub(super) to_all: Vec<u32>,
    pub(super) noted: Vec<usize>,
    pub(super) cursor: usize,
    pub(super) now: u64,
    pub(super) sum: Sum,
}

impl<M: Message> Turn<M> {
    pub(super) fn new() -> Self {
        Self {
            number: 0,
            open: false,
            sealed: false,
            entries: Vec::new(),
            to_all: Vec::new(),
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
