//! The broadcasts that busy members of one shard still need, each kept once.
//!
//! Keys rise from place to free place, round and round, and half of the places are free: what is kept in a row mostly
//! has keys in a row. A backlog names such a run in eight bytes, and letting go of it is one pass over counters that
//! stand side by side.

use super::Message;
use super::intake::Intake;
use super::run::BroadcastId;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Shelf<M> {
    /// By key, how many need what is there; zero if the place is free.
    needed_by: Vec<u32>,
    /// By key.
    places: Vec<Option<Shelved<M>>>,
    /// Where the next free place is looked for.
    cursor: usize,
    taken: usize,
}

#[derive(Debug)]
struct Shelved<M> {
    message: M,
    id: BroadcastId,
    bytes: usize,
    since: u64,
}

/// A message on its way from the backlog to the sink.
pub(super) enum Taken<'a, M> {
    /// Nobody else needs it.
    Own(M),
    /// Others need it as well.
    Shared(&'a M, BroadcastId),
}

/// Places of the first shelf that is needed.
const FEWEST: usize = 64;

/// Places that stay when nothing is kept: some hundred kilobytes.
const MOST_IDLE: usize = 4096;

const THERE: &str = "what is needed is there";

impl<M: Message> Shelf<M> {
    pub(crate) fn new() -> Self {
        Self { needed_by: Vec::new(), places: Vec::new(), cursor: 0, taken: 0 }
    }

    /// Keeps the message `at` for one member more.
    pub(super) fn keep(&mut self, intake: &mut Intake<M>, at: usize, now: u64) -> usize {
        let (mark, message) = (&mut intake.marks[at], &intake.messages[at]);
        let key = *mark.shelved.get_or_insert_with(|| {
            let id = intake.first_id.after(at);
            self.put(Shelved { message: message.clone(), id, bytes: mark.bytes, since: now })
        });
        self.needed_by[key] += 1;
        key
    }

    /// Puts it into a free place, needed by the turn: as long as that lasts, another member may need it.
    fn put(&mut self, shelved: Shelved<M>) -> usize {
        let places = self.places.len();
        if self.taken * 2 >= places {
            let more = (places * 2).max(FEWEST);
            self.places.resize_with(more, || None);
            self.needed_by.resize(more, 0);
            self.cursor = places;
        }
        while self.needed_by[self.cursor] > 0 {
            self.cursor = (self.cursor + 1) % self.places.len();
        }
        let key = self.cursor;
        self.needed_by[key] = 1;
        self.places[key] = Some(shelved);
        self.taken += 1;
        self.cursor = (key + 1) % self.places.len();
        key
    }

    /// What one member needed of it; the last one takes it away.
    pub(super) fn take(&mut self, key: usize) -> (Taken<'_, M>, usize) {
        self.needed_by[key] -= 1;
        if self.needed_by[key] == 0 {
            self.taken -= 1;
            let shelved = self.places[key].take().expect(THERE);
            return (Taken::Own(shelved.message), shelved.bytes);
        }
        let shelved = self.places[key].as_ref().expect(THERE);
        (Taken::Shared(&shelved.message, shelved.id), shelved.bytes)
    }

    pub(super) fn since(&self, key: usize) -> u64 {
        self.places[key].as_ref().expect(THERE).since
    }

    /// A member that needed `count` of them from `first` on has gone.
    pub(super) fn release(&mut self, first: usize, count: usize) {
        let run = first..first + count;
        let mut fewest = u32::MAX;
        for needed_by in &mut self.needed_by[run.clone()] {
            *needed_by -= 1;
            fewest = fewest.min(*needed_by);
        }
        if fewest > 0 {
            return;
        }
        for key in run {
            if self.needed_by[key] == 0 {
                self.taken -= 1;
                self.places[key] = None;
            }
        }
    }

    /// Ends a turn: what it has read stays only for the members that need it.
    pub(crate) fn end_turn(&mut self, intake: &mut Intake<M>) {
        intake.marks.iter().filter_map(|mark| mark.shelved).for_each(|key| self.release(key, 1));
        intake.clear();
        // After a peak nothing is kept, so no backlog names a place: all can go.
        if self.taken == 0 && self.places.len() > MOST_IDLE {
            *self = Self::new();
        }
    }
}
