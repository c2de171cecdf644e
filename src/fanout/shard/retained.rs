//! The broadcasts that busy or joining members of one shard still need after their turn, each kept once.
//!
//! Keys rise from one free place to the next and wrap around, and at least half of the places are free. So messages
//! that are kept one after another usually have consecutive keys. A backlog names such a run in eight bytes, and
//! releasing the run is one pass over adjacent counters.

use crate::contract::Message;
use crate::contract::run::BroadcastId;
use crate::fanout::clock::SessionMs;
use crate::fanout::shard::batch::ReadBatch;

/// Broadcasts by key, each with a count of how many still need it.
#[derive(Debug)]
pub(in crate::fanout) struct Retained<M> {
    /// For each key, how many need the message there; zero if the place is free.
    needed_by: Vec<u32>,
    /// For each key, the message that is kept there.
    places: Vec<Option<Kept<M>>>,
    /// Where the search for the next free place begins.
    cursor: usize,
    taken: usize,
}

#[derive(Debug)]
struct Kept<M> {
    message: M,
    id: BroadcastId,
    bytes: usize,
    since: SessionMs,
}

/// A message on its way from the backlog to the sink.
pub(super) enum Handed<'a, M> {
    /// No other member needs the message.
    Own(M),
    /// Others need the message as well.
    Shared(&'a M, BroadcastId),
}

/// Places at first: a few kilobytes, which most shards never exceed.
const FEWEST: usize = 64;

/// Places that stay allocated while nothing is kept: a few hundred kilobytes.
const MOST_IDLE: usize = 4096;

const THERE: &str = "what is needed is there";

impl<M: Message> Retained<M> {
    pub(in crate::fanout) fn new() -> Self {
        Self { needed_by: Vec::new(), places: Vec::new(), cursor: 0, taken: 0 }
    }

    /// Keeps the message `at` for one more member, and returns its key.
    pub(super) fn keep(&mut self, batch: &mut ReadBatch<M>, at: usize, now: SessionMs) -> usize {
        let (entry, message) = (&mut batch.entries[at], &batch.messages[at]);
        let key = *entry.retained.get_or_insert_with(|| {
            let id = batch.first_id.after(at);
            self.put(Kept { message: message.clone(), id, bytes: entry.bytes, since: now })
        });
        self.needed_by[key] += 1;
        key
    }

    /// Puts a message into a free place, counted as needed by the turn: until the turn ends, another member may need
    /// it.
    fn put(&mut self, kept: Kept<M>) -> usize {
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
        self.places[key] = Some(kept);
        self.taken += 1;
        self.cursor = (key + 1) % self.places.len();
        key
    }

    /// Gives a member the message at `key`, with its length. The last member takes the message away.
    pub(super) fn take(&mut self, key: usize) -> (Handed<'_, M>, usize) {
        self.needed_by[key] -= 1;
        if self.needed_by[key] == 0 {
            self.taken -= 1;
            let kept = self.places[key].take().expect(THERE);
            return (Handed::Own(kept.message), kept.bytes);
        }
        let kept = self.places[key].as_ref().expect(THERE);
        (Handed::Shared(&kept.message, kept.id), kept.bytes)
    }

    /// The length of the message at `key`.
    pub(super) fn bytes(&self, key: usize) -> usize {
        self.places[key].as_ref().expect(THERE).bytes
    }

    pub(super) fn since(&self, key: usize) -> SessionMs {
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
    pub(in crate::fanout) fn end_turn(&mut self, batch: &mut ReadBatch<M>) {
        batch.entries.iter().filter_map(|entry| entry.retained).for_each(|key| self.release(key, 1));
        batch.clear();
        // After a peak nothing is kept and no backlog names a place, so all places can be freed.
        if self.taken == 0 && self.places.len() > MOST_IDLE {
            *self = Self::new();
        }
    }
}
