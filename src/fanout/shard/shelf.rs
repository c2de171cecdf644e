//! The shelf: the broadcasts that busy members of one shard still need, each kept once.
//!
//! Keys rise from one free place to the next and wrap around, and at least half of the places are free. So messages
//! that are kept one after another usually have consecutive keys. A backlog names such a run in eight bytes, and
//! releasing the run is one pass over adjacent counters.

use crate::contract::Message;
use crate::contract::run::BroadcastId;
use crate::fanout::shard::intake::Intake;

/// Broadcasts by key, each with a count of how many still need it.
#[derive(Debug)]
pub(crate) struct Shelf<M> {
    /// For each key, how many need the message there; zero if the place is free.
    needed_by: Vec<u32>,
    /// For each key, the message that is kept there.
    places: Vec<Option<Shelved<M>>>,
    /// Where the search for the next free place begins.
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
    /// No other member needs the message.
    Own(M),
    /// Others need the message as well.
    Shared(&'a M, BroadcastId),
}

/// Places of a shelf that has just come into use.
const FEWEST: usize = 64;

/// Places that stay allocated while nothing is kept: a few hundred kilobytes.
const MOST_IDLE: usize = 4096;

const THERE: &str = "what is needed is there";

impl<M: Message> Shelf<M> {
    pub(crate) fn new() -> Self {
        Self { needed_by: Vec::new(), places: Vec::new(), cursor: 0, taken: 0 }
    }

    /// Keeps the message `at` for one more member, and returns its key.
    pub(super) fn keep(&mut self, intake: &mut Intake<M>, at: usize, now: u64) -> usize {
        let (mark, message) = (&mut intake.marks[at], &intake.messages[at]);
        let key = *mark.shelved.get_or_insert_with(|| {
            let id = intake.first_id.after(at);
            self.put(Shelved { message: message.clone(), id, bytes: mark.bytes, since: now })
        });
        self.needed_by[key] += 1;
        key
    }

    /// Puts a message into a free place, counted as needed by the turn: until the turn ends, another member may need
    /// it.
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

    /// Gives a member the message at `key`, with its length. The last member takes the message away.
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

    /// Releases `count` messages from `first` on, which one member, or the turn, no longer needs.
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
        // After a peak nothing is kept and no backlog names a place, so all places can be freed.
        if self.taken == 0 && self.places.len() > MOST_IDLE {
            *self = Self::new();
        }
    }
}
