//! The channels and statuses that viewers are told of, each with the positions of the log at which that is said.
//!
//! A viewer that joins gets a snapshot, and after it what the log says from the position at which its subscription to
//! announcements took effect. The snapshot is made for that very position, so that the two fit: no channel is told
//! twice, and none ends that was never told. For that the tables know of each entry from which position on a snapshot
//! has it, and from which on it no longer does; both differ between the [`Form`]s, each of which is announced in a
//! place of its own.
//!
//! | change | a viewer subscribed at or below its position | a viewer subscribed above |
//! |---|---|---|
//! | entered | is told by the log | finds it in its snapshot |
//! | ended | is told by the log, having been told of it by log or snapshot | doesn't find it |
//!
//! An entry that ends is kept for as long as a join is under way that began before: its position may lie below the end.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::channel::ChannelState;
use super::state::Form;
use crate::protocol::server::Advertise;
use crate::protocol::{Frame, SchemaTable};

/// See the [module](self).
#[derive(Default)]
pub(super) struct Tables {
    channels: BTreeMap<u64, (Arc<ChannelState>, Span)>,
    /// The channels' numbers by their topics.
    topics: HashMap<String, u64>,
    /// In the order of first being told.
    statuses: Vec<Held>,
    next_status: u64,
    /// Entries that have ended, oldest first, while a join is under way that may have to be told of them.
    ended: VecDeque<Ended>,
    /// Entries that were ended before those.
    forgotten: u64,
    /// How many joins are under way that began after so many ends.
    joins: BTreeMap<u64, usize>,
    /// Numbers for the schema-table form; one table for all, for as long as the server runs.
    schemas: SchemaTable,
    /// By form, from which position on a snapshot shows the channels as they are.
    settled: [u64; Form::COUNT],
    /// By form, the advertisements of the channels as they are, if they were encoded since they last changed.
    advertised: [Option<Vec<Frame>>; Form::COUNT],
}

/// From which position on a snapshot has an entry, and from which on it no longer does, by form.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    from: [Option<u64>; Form::COUNT],
    until: [Option<u64>; Form::COUNT],
}

impl Span {
    fn holds(&self, form: Form, position: u64) -> bool {
        let reached = |bound: [Option<u64>; Form::COUNT]| bound[form as usize].is_some_and(|at| at <= position);
        reached(self.from) && !reached(self.until)
    }
}

/// A status with an id.
struct Held {
    key: StatusKey,
    id: String,
    frame: Frame,
    span: Span,
}

/// Tells a status from the one of the same id whose place it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StatusKey(u64);

enum Ended {
    Channel(Arc<ChannelState>, Span),
    Status(Held),
}

/// A join that is under way: see [`Tables::begin_join`].
#[derive(Debug)]
pub(super) struct Joining(u64);

impl Tables {
    /// The channel with this number.
    pub(super) fn channel(&self, id: u64) -> Option<&Arc<ChannelState>> {
        self.channels.get(&id).map(|(channel, _)| channel)
    }

    /// The channel of this topic.
    pub(super) fn by_topic(&self, topic: &str) -> Option<&Arc<ChannelState>> {
        self.topics.get(topic).and_then(|id| self.channel(*id))
    }

    /// A channel's advertisement in `form`, that of a single channel.
    pub(super) fn encode(&mut self, form: Form, channel: &ChannelState) -> Frame {
        let advertise = Advertise { channels: vec![channel.described.clone()] };
        let mut frames = self.encode_all(form, &advertise);
        frames.pop().expect("one channel makes one piece")
    }

    fn encode_all(&mut self, form: Form, advertise: &Advertise) -> Vec<Frame> {
        advertise.encode_in_pieces(match form {
            Form::Plain => None,
            Form::SchemaTable => Some(&mut self.schemas),
        })
    }

    /// Enters a channel that nobody has been told of.
    pub(super) fn insert(&mut self, channel: &Arc<ChannelState>) {
        self.topics.insert(channel.described.topic.clone(), channel.id());
        self.channels.insert(channel.id(), (Arc::clone(channel), Span::default()));
    }

    /// A channel was announced: snapshots for `position` and above have it.
    pub(super) fn note_advertised(&mut self, id: u64, form: Form, position: u64) {
        self.change(id, form, position, |span| &mut span.from);
    }

    /// A channel's end was announced: snapshots for `position` and above don't have it.
    pub(super) fn note_unadvertised(&mut self, id: u64, form: Form, position: u64) {
        self.change(id, form, position, |span| &mut span.until);
    }

    fn change(
        &mut self,
        id: u64,
        form: Form,
        position: u64,
        bound: impl FnOnce(&mut Span) -> &mut [Option<u64>; Form::COUNT],
    ) {
        let Some((_, span)) = self.channels.get_mut(&id) else { return };
        bound(span)[form as usize] = Some(position);
        self.settled[form as usize] = self.settled[form as usize].max(position);
        self.advertised[form as usize] = None;
    }

    /// Takes a channel out, when its end has been announced in each form.
    pub(super) fn end_channel(&mut self, id: u64) {
        let Some((channel, span)) = self.channels.remove(&id) else { return };
        let topic = &channel.described.topic;
        if self.topics.get(topic) == Some(&id) {
            self.topics.remove(topic);
        }
        self.advertised = Default::default();
        self.keep(Ended::Channel(channel, span));
    }

    /// Enters a status that nobody has been told of, behind the one of the same id.
    pub(super) fn insert_status(&mut self, id: &str, frame: Frame) -> StatusKey {
        let key = StatusKey(self.next_status);
        self.next_status += 1;
        let held = Held { key, id: id.to_owned(), frame, span: Span::default() };
        let at = self.statuses.iter().rposition(|held| held.id == id).map_or(self.statuses.len(), |at| at + 1);
        self.statuses.insert(at, held);
        key
    }

    /// A status was announced, and with it the end of the one whose place it takes.
    pub(super) fn note_status(&mut self, id: &str, key: StatusKey, form: Form, position: u64) {
        for held in self.statuses.iter_mut().filter(|held| held.id == id) {
            let bound = if held.key == key { &mut held.span.from } else { &mut held.span.until };
            bound[form as usize] = Some(position);
        }
    }

    /// The end of statuses was announced.
    pub(super) fn note_removed(&mut self, ids: &[String], form: Form, position: u64) {
        for held in self.statuses.iter_mut().filter(|held| ids.contains(&held.id)) {
            held.span.until[form as usize] = Some(position);
        }
    }

    /// Takes the statuses of these ids out, but for `kept`, when their end has been announced in each form.
    pub(super) fn end_statuses(&mut self, ids: &[String], kept: Option<StatusKey>) {
        let ends = |held: &mut Held| ids.contains(&held.id) && Some(held.key) != kept;
        let ended: Vec<_> = self.statuses.extract_if(.., ends).collect();
        ended.into_iter().for_each(|held| self.keep(Ended::Status(held)));
    }

    /// Keeps what has ended for the joins that are under way.
    fn keep(&mut self, ended: Ended) {
        self.ended.push_back(ended);
        self.forget();
    }

    fn forget(&mut self) {
        let needed = self.joins.keys().next().copied().unwrap_or(u64::MAX);
        while self.forgotten < needed && self.ended.pop_front().is_some() {
            self.forgotten += 1;
        }
    }

    /// A join begins: what ends from now on is kept for its snapshot. [`end_join`](Self::end_join) follows.
    pub(super) fn begin_join(&mut self) -> Joining {
        let ends = self.forgotten + self.ended.len() as u64;
        *self.joins.entry(ends).or_default() += 1;
        Joining(ends)
    }

    pub(super) fn end_join(&mut self, joining: &Joining) {
        if let Some(count) = self.joins.get_mut(&joining.0) {
            *count -= 1;
            if *count == 0 {
                self.joins.remove(&joining.0);
                self.forget();
            }
        }
    }

    /// What a viewer is told whose subscription to the announcements in `form` took effect at `position`: channels in
    /// the order of their numbers, then statuses.
    pub(super) fn snapshot(&mut self, form: Form, position: u64) -> Vec<Frame> {
        let mut frames = self.advertisements(form, position);
        let ended = self.ended.iter().filter_map(|ended| match ended {
            Ended::Status(held) => Some(held),
            Ended::Channel(..) => None,
        });
        let statuses = self.statuses.iter().chain(ended).filter(|held| held.span.holds(form, position));
        frames.extend(statuses.map(|held| held.frame.clone()));
        frames
    }

    /// The advertisements as they are are encoded once for all who join until they change.
    fn advertisements(&mut self, form: Form, position: u64) -> Vec<Frame> {
        let is_settled = self.settled[form as usize] <= position;
        if is_settled && let Some(frames) = &self.advertised[form as usize] {
            return frames.clone();
        }
        let ended = self.ended.iter().filter_map(|ended| match ended {
            Ended::Channel(channel, span) => Some((channel, span)),
            Ended::Status(_) => None,
        });
        let present = self.channels.values().map(|(channel, span)| (channel, span)).chain(ended);
        let shown = present.filter(|(_, span)| span.holds(form, position));
        let mut channels: Vec<_> = shown.map(|(channel, _)| channel.described.clone()).collect();
        channels.sort_unstable_by_key(|channel| channel.id);
        let frames = self.encode_all(form, &Advertise { channels });
        if is_settled {
            self.advertised[form as usize] = Some(frames.clone());
        }
        frames
    }

    /// Empties the tables, and gives the channels.
    pub(super) fn take_channels(&mut self) -> impl Iterator<Item = Arc<ChannelState>> + use<> {
        self.topics.clear();
        self.advertised = Default::default();
        std::mem::take(&mut self.channels).into_values().map(|(channel, _)| channel)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::channel::Channel;
    use super::*;
    use crate::protocol::{ServerMessage, WireFormat};

    /// What stands in the log.
    enum Entry {
        Came(u64),
        Went(u64),
    }

    struct Viewer {
        form: Form,
        joining: Joining,
        position: Option<u64>,
        /// What it knows, and what contradicted it.
        known: Option<BTreeSet<u64>>,
    }

    /// A change that has been announced in so many forms.
    enum Change {
        Came(u64, usize),
        Went(u64, usize),
    }

    #[derive(Default)]
    struct World {
        tables: Tables,
        log: Vec<(Form, Entry)>,
        next: u64,
        present: Vec<u64>,
        change: Option<Change>,
        viewers: Vec<Viewer>,
        contradictions: usize,
    }

    impl World {
        fn step(&mut self, random: &mut fastrand::Rng, is_exact: bool) {
            match random.usize(..8) {
                0..3 => self.announce(random),
                3 => {
                    let joining = self.tables.begin_join();
                    let form = Form::ALL[random.usize(..2)];
                    self.viewers.push(Viewer { form, joining, position: None, known: None });
                }
                4..6 => {
                    let at = random.usize(..=self.viewers.len());
                    let position = self.log.len() as u64;
                    if let Some(viewer) = self.viewers.get_mut(at) {
                        viewer.position.get_or_insert(position);
                    }
                }
                _ => {
                    let at = random.usize(..=self.viewers.len());
                    let now = self.log.len() as u64;
                    let Some(viewer) = self.viewers.get_mut(at).filter(|viewer| viewer.known.is_none()) else { return };
                    let Some(position) = viewer.position else { return };
                    let shown = self.tables.snapshot(viewer.form, if is_exact { position } else { now });
                    let mut known = BTreeSet::new();
                    for frame in shown {
                        let decoded = ServerMessage::decode(WireFormat::V1, frame.kind(), &frame.to_bytes());
                        let Ok(ServerMessage::Advertise(advertise)) = decoded else { panic!("{decoded:?}") };
                        known.extend(advertise.channels.iter().map(|channel| channel.id));
                    }
                    self.tables.end_join(&viewer.joining);
                    viewer.known = Some(known);
                }
            }
        }

        /// The next step of the change that is under way, or the first of another.
        fn announce(&mut self, random: &mut fastrand::Rng) {
            self.change = match self.change.take() {
                None if self.present.is_empty() || random.bool() => {
                    self.next += 1;
                    let channel = Channel::new(format!("/{}", self.next), "json").numbered(self.next, false);
                    self.tables.insert(&Arc::new(channel));
                    Some(Change::Came(self.next, 0))
                }
                None => Some(Change::Went(self.present.swap_remove(random.usize(..self.present.len())), 0)),
                Some(Change::Came(id, Form::COUNT)) => {
                    self.present.push(id);
                    None
                }
                Some(Change::Went(id, Form::COUNT)) => {
                    self.tables.end_channel(id);
                    None
                }
                Some(Change::Came(id, form)) => {
                    self.log.push((Form::ALL[form], Entry::Came(id)));
                    self.tables.note_advertised(id, Form::ALL[form], self.log.len() as u64);
                    Some(Change::Came(id, form + 1))
                }
                Some(Change::Went(id, form)) => {
                    self.log.push((Form::ALL[form], Entry::Went(id)));
                    self.tables.note_unadvertised(id, Form::ALL[form], self.log.len() as u64);
                    Some(Change::Went(id, form + 1))
                }
            };
        }

        /// Has every viewer read the log to its end.
        fn read(&mut self) {
            while self.change.is_some() {
                self.announce(&mut fastrand::Rng::with_seed(0));
            }
            let present: BTreeSet<u64> = self.present.iter().copied().collect();
            for viewer in &mut self.viewers {
                let (Some(position), Some(known)) = (viewer.position, &mut viewer.known) else { continue };
                let mut wrong = 0;
                for (form, entry) in &self.log[position as usize..] {
                    let is_news = *form != viewer.form
                        || match entry {
                            Entry::Came(id) => known.insert(*id),
                            Entry::Went(id) => known.remove(id),
                        };
                    wrong += usize::from(!is_news);
                }
                self.contradictions += wrong;
                assert_eq!(*known, present);
            }
        }
    }

    fn contradictions(is_exact: bool) -> usize {
        let mut sum = 0;
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut world = World::default();
            (0..400).for_each(|_| world.step(&mut random, is_exact));
            world.read();
            sum += world.contradictions;
            // Nothing is kept once all have joined.
            let World { mut tables, viewers, .. } = world;
            viewers.iter().filter(|viewer| viewer.known.is_none()).for_each(|viewer| tables.end_join(&viewer.joining));
            assert!(tables.ended.is_empty() && tables.joins.is_empty());
        }
        sum
    }

    #[test]
    fn a_snapshot_and_the_log_behind_it_never_contradict() {
        assert_eq!(contradictions(true), 0);
    }

    /// The tables as they are at the time of the look, which is what looks right.
    #[test]
    fn a_snapshot_for_another_position_does() {
        assert!(contradictions(false) > 100);
    }
}
