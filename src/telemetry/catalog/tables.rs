//! The channels and statuses that viewers are told of, each with the log positions of its announcements.
//!
//! A viewer that joins gets a snapshot, followed by the announcements in the log from the position at which its
//! subscription to announcements took effect. The snapshot is made for exactly that position, so that the two fit: no
//! channel is announced twice, and no channel ends that was never announced. For that the tables record from which
//! position on a snapshot includes an entry, and from which position on it no longer does. Both positions differ
//! between the [`Form`]s, each of which has an announcement of its own in the log.
//!
//! | change | a viewer subscribed at or below its position | a viewer subscribed above its position |
//! |---|---|---|
//! | entry added | learns of it from the log | finds the entry in its snapshot |
//! | entry ended | learns of it from the log, after learning of the entry from the log or its snapshot | doesn't find the entry in its snapshot |
//!
//! An entry that ends is kept while a join is in progress that began before the end: the position of that join may lie
//! below the end.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::entry::ChannelEntry;
use super::form::Form;
use crate::fanout::Position;
use crate::protocol::server::Advertise;
use crate::protocol::{Frame, SchemaTable};

/// The entries, and the positions from which on snapshots include them.
#[derive(Default)]
pub(super) struct Tables {
    channels: BTreeMap<u64, (Arc<ChannelEntry>, Span)>,
    /// Channel numbers, by topic.
    topics: HashMap<String, u64>,
    /// In the order of their first announcements.
    statuses: Vec<Held>,
    next_status: u64,
    /// Ended entries, oldest first, kept while a join is in progress that may need them for its snapshot.
    ended: VecDeque<Ended>,
    /// How many entries ended and were forgotten before those in `ended`.
    forgotten: u64,
    /// The number of joins in progress, by how many entries had ended when they began.
    joins: BTreeMap<u64, usize>,
    /// Schema numbers of the schema-table form: one table for all viewers, for as long as the server runs.
    schemas: SchemaTable,
    /// By form, the position from which on a snapshot shows the current channels.
    settled: [Position; Form::COUNT],
    /// By form, the advertisements of the current channels, if they were encoded since the channels last changed.
    advertised: [Option<Vec<Frame>>; Form::COUNT],
}

/// By form, the position from which on a snapshot includes an entry, and the position from which on it no longer does.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    from: [Option<Position>; Form::COUNT],
    until: [Option<Position>; Form::COUNT],
}

impl Span {
    fn holds(&self, form: Form, position: Position) -> bool {
        let reached = |bound: [Option<Position>; Form::COUNT]| bound[form as usize].is_some_and(|at| at <= position);
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

/// Distinguishes a status from its predecessor with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StatusKey(u64);

enum Ended {
    Channel(Arc<ChannelEntry>, Span),
    Status(Held),
}

/// A join in progress: see [`Tables::begin_join`].
#[derive(Debug)]
pub(super) struct Joining(u64);

impl Tables {
    /// The channel with this number.
    pub(super) fn channel(&self, id: u64) -> Option<&Arc<ChannelEntry>> {
        self.channels.get(&id).map(|(channel, _)| channel)
    }

    /// The channel on this topic.
    pub(super) fn by_topic(&self, topic: &str) -> Option<&Arc<ChannelEntry>> {
        self.topics.get(topic).and_then(|id| self.channel(*id))
    }

    /// The advertisement of this one channel in `form`.
    pub(super) fn encode(&mut self, form: Form, channel: &ChannelEntry) -> Frame {
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

    /// Adds a channel that was not announced yet.
    pub(super) fn insert(&mut self, channel: &Arc<ChannelEntry>) {
        self.topics.insert(channel.described.topic.clone(), channel.id());
        self.channels.insert(channel.id(), (Arc::clone(channel), Span::default()));
    }

    /// Notes that a channel was announced: snapshots for `position` and above include it.
    pub(super) fn note_advertised(&mut self, id: u64, form: Form, position: Position) {
        self.change(id, form, position, |span| &mut span.from);
    }

    /// Notes that a channel's end was announced: snapshots for `position` and above leave it out.
    pub(super) fn note_unadvertised(&mut self, id: u64, form: Form, position: Position) {
        self.change(id, form, position, |span| &mut span.until);
    }

    fn change(
        &mut self,
        id: u64,
        form: Form,
        position: Position,
        bound: impl FnOnce(&mut Span) -> &mut [Option<Position>; Form::COUNT],
    ) {
        let Some((_, span)) = self.channels.get_mut(&id) else { return };
        bound(span)[form as usize] = Some(position);
        self.settled[form as usize] = self.settled[form as usize].max(position);
        self.advertised[form as usize] = None;
    }

    /// Removes a channel once its end has been announced in each form.
    pub(super) fn end_channel(&mut self, id: u64) {
        let Some((channel, span)) = self.channels.remove(&id) else { return };
        let topic = &channel.described.topic;
        if self.topics.get(topic) == Some(&id) {
            self.topics.remove(topic);
        }
        self.advertised = Default::default();
        self.keep(Ended::Channel(channel, span));
    }

    /// Adds a status that was not announced yet, right behind its predecessor with the same id.
    pub(super) fn insert_status(&mut self, id: &str, frame: Frame) -> StatusKey {
        let key = StatusKey(self.next_status);
        self.next_status += 1;
        let held = Held { key, id: id.to_owned(), frame, span: Span::default() };
        let at = self.statuses.iter().rposition(|held| held.id == id).map_or(self.statuses.len(), |at| at + 1);
        self.statuses.insert(at, held);
        key
    }

    /// Notes that a status was announced, which is also the end of its predecessor with the same id.
    pub(super) fn note_status(&mut self, id: &str, key: StatusKey, form: Form, position: Position) {
        for held in self.statuses.iter_mut().filter(|held| held.id == id) {
            let bound = if held.key == key { &mut held.span.from } else { &mut held.span.until };
            bound[form as usize] = Some(position);
        }
    }

    /// Notes that the end of statuses was announced.
    pub(super) fn note_removed(&mut self, ids: &[String], form: Form, position: Position) {
        for held in self.statuses.iter_mut().filter(|held| ids.contains(&held.id)) {
            held.span.until[form as usize] = Some(position);
        }
    }

    /// Removes the statuses with these ids, except `kept`, once their end has been announced in each form.
    pub(super) fn end_statuses(&mut self, ids: &[String], kept: Option<StatusKey>) {
        let ends = |held: &mut Held| ids.contains(&held.id) && Some(held.key) != kept;
        let ended: Vec<_> = self.statuses.extract_if(.., ends).collect();
        ended.into_iter().for_each(|held| self.keep(Ended::Status(held)));
    }

    /// Keeps an ended entry for the joins in progress.
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

    /// Begins a join: entries that end from now on are kept for its snapshot. [`end_join`](Self::end_join) follows.
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

    /// The snapshot for a viewer whose subscription to the announcements in `form` took effect at `position`: channels
    /// in the order of their numbers, then statuses.
    pub(super) fn snapshot(&mut self, form: Form, position: Position) -> Vec<Frame> {
        let mut frames = self.advertisements(form, position);
        let ended = self.ended.iter().filter_map(|ended| match ended {
            Ended::Status(held) => Some(held),
            Ended::Channel(..) => None,
        });
        let statuses = self.statuses.iter().chain(ended).filter(|held| held.span.holds(form, position));
        frames.extend(statuses.map(|held| held.frame.clone()));
        frames
    }

    /// The advertisements of a snapshot. Those of the current channels are encoded once for all viewers that join until
    /// the channels change.
    fn advertisements(&mut self, form: Form, position: Position) -> Vec<Frame> {
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

    /// Removes all channels, and returns them.
    pub(super) fn take_channels(&mut self) -> impl Iterator<Item = Arc<ChannelEntry>> + use<> {
        self.topics.clear();
        self.advertised = Default::default();
        std::mem::take(&mut self.channels).into_values().map(|(channel, _)| channel)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::protocol::{ServerMessage, WireFormat};
    use crate::telemetry::channel::Channel;

    /// The position of the entry with this index in a world's log.
    fn at_index(index: usize) -> Position {
        Position::default().after(index as u64)
    }

    /// An entry of the log.
    enum Entry {
        Came(u64),
        Went(u64),
    }

    struct Viewer {
        form: Form,
        joining: Joining,
        position: Option<usize>,
        /// The channels that the viewer knows, from its snapshot on.
        known: Option<BTreeSet<u64>>,
    }

    /// A change in progress, with the number of forms in which it has been announced.
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
                    let position = self.log.len();
                    if let Some(viewer) = self.viewers.get_mut(at) {
                        viewer.position.get_or_insert(position);
                    }
                }
                _ => {
                    let at = random.usize(..=self.viewers.len());
                    let now = self.log.len();
                    let Some(viewer) = self.viewers.get_mut(at).filter(|viewer| viewer.known.is_none()) else { return };
                    let Some(position) = viewer.position else { return };
                    let shown = self.tables.snapshot(viewer.form, at_index(if is_exact { position } else { now }));
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

        /// Makes the next step of the change in progress, or the first step of another.
        fn announce(&mut self, random: &mut fastrand::Rng) {
            self.change = match self.change.take() {
                None if self.present.is_empty() || random.bool() => {
                    self.next += 1;
                    let channel = Channel::new(format!("/{}", self.next), "json");
                    let channel = ChannelEntry::new(channel, self.next, false);
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
                    self.tables.note_advertised(id, Form::ALL[form], at_index(self.log.len()));
                    Some(Change::Came(id, form + 1))
                }
                Some(Change::Went(id, form)) => {
                    self.log.push((Form::ALL[form], Entry::Went(id)));
                    self.tables.note_unadvertised(id, Form::ALL[form], at_index(self.log.len()));
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
                for (form, entry) in &self.log[position..] {
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
            // No ended entry is kept once all joins have ended.
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

    /// The snapshot shows the tables at the time of the look-up, which is what looks right.
    #[test]
    fn a_snapshot_for_another_position_does() {
        assert!(contradictions(false) > 100);
    }
}
