//! What viewers are told of: the server info, the [tables] of channels and statuses, and the subscribers to changes of
//! the tables. The announcer, joins and requests share it.
//!
//! Only the [announcer] changes the entries of the tables. Their lock is held for a change and the claim of its
//! position in the log, for a look-up, or for the encoding of a snapshot. It is never held across an await, and
//! publishers never take it.

pub(super) mod announcer;
pub(super) mod entry;
mod form;
pub(super) mod op;
mod tables;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use self::entry::ChannelEntry;
use self::form::Form;
use self::tables::{Joining, Tables};
use super::channel::Channel;
use super::version::Protocol;
use crate::caught::lock;
use crate::contract::{Subscribed, SubscriptionTag, Topic};
use crate::participant::Participant;
use crate::protocol::server::{Capability, ServerInfo};
use crate::protocol::{Frame, ServerMessage};

/// The server info, the channels and the statuses of one [`Telemetry`](super::Telemetry).
pub(super) struct Catalog {
    /// The server info, by wire format.
    info: [Frame; 2],
    next_channel: AtomicU64,
    tells_time: bool,
    tables: Mutex<Tables>,
    /// By form, the topic of the participants that are told of changes in it.
    announcements: [Topic; Form::COUNT],
    /// Incremented whenever a channel is unadvertised; `removed` then wakes the viewers' tasks. Not a `watch` channel,
    /// with which each viewer's task would have more to keep.
    removals: AtomicU64,
    removed: Notify,
}

/// The lowest channel number. Numbers are never reused.
const FIRST_CHANNEL: u64 = 1;

impl Catalog {
    pub(super) fn new(info: ServerInfo) -> Self {
        let tells_time = info.capabilities.contains(&Capability::Time);
        // Only v1 has a message for the time.
        let capabilities = info.capabilities.iter().copied().filter(|each| *each != Capability::Time).collect();
        let v2 = ServerInfo { capabilities, ..info.clone() };
        Self {
            info: [info, v2].map(|info| ServerMessage::ServerInfo(info).encode()),
            tells_time,
            next_channel: AtomicU64::new(FIRST_CHANNEL),
            tables: Mutex::default(),
            announcements: Default::default(),
            removals: AtomicU64::new(0),
            removed: Notify::new(),
        }
    }

    /// Gives `channel` its number. The channel isn't in the tables yet.
    pub(super) fn number(&self, channel: Channel) -> Arc<ChannelEntry> {
        // Relaxed: only the value has to be unique.
        let id = self.next_channel.fetch_add(1, Ordering::Relaxed);
        Arc::new(ChannelEntry::new(channel, id, self.tells_time))
    }

    /// Whether there is, or was, a channel with this number.
    pub(super) fn has_numbered(&self, id: u64) -> bool {
        // Relaxed: a viewer learned the number from a message, which orders this read behind the increment.
        (FIRST_CHANNEL..self.next_channel.load(Ordering::Relaxed)).contains(&id)
    }

    /// The first messages for a participant that joins: the server info, and a snapshot for the position at which the
    /// participant's subscription to announcements took effect.
    pub(super) async fn join(&self, participant: &Participant<Frame>, protocol: &Protocol) -> Vec<Frame> {
        let (form, format) = (Form::of(protocol), protocol.format());
        let join = Join { catalog: self, joining: self.tables().begin_join() };
        let announcements = self.announcements(form);
        let subscribed = participant.subscribe_from(announcements, SubscriptionTag::default()).await;
        let mut messages = vec![self.info[format as usize].clone()];
        // A participant that has ended gets no snapshot.
        if let Some((Subscribed::New | Subscribed::Retagged, position)) = subscribed {
            messages.extend(self.tables().snapshot(form, position));
        }
        drop(join);
        messages
    }

    /// The topic whose subscribers are told of every change, with channels in `form`.
    fn announcements(&self, form: Form) -> &Topic {
        &self.announcements[form as usize]
    }

    /// The channel with this number, if viewers may subscribe to it.
    pub(super) fn channel(&self, id: u64) -> Option<Arc<ChannelEntry>> {
        self.tables().channel(id).filter(|channel| channel.is_advertised()).cloned()
    }

    /// How often channels were unadvertised.
    pub(super) fn removals(&self) -> u64 {
        // Acquire: pairs with the release in `note_removal`.
        self.removals.load(Ordering::Acquire)
    }

    /// Waits until channels were unadvertised more often than `seen`, and updates that. Safe to cancel.
    pub(super) async fn removed_since(&self, seen: &mut u64) {
        loop {
            // Before the look: a removal that comes after the look wakes this.
            let removed = self.removed.notified();
            let removals = self.removals();
            if removals != *seen {
                *seen = removals;
                return;
            }
            removed.await;
        }
    }

    /// Has every viewer's task forget its subscriptions to unadvertised channels.
    fn note_removal(&self) {
        // Release: a task that sees the count sees the channels' state.
        self.removals.fetch_add(1, Ordering::Release);
        self.removed.notify_waiters();
    }

    /// Ends all channels with the session: publishing fails from now on.
    fn end(&self) {
        let channels = self.tables().take_channels();
        channels.for_each(|channel| channel.end());
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Encoding doesn't panic, and every change is complete before other code is called.
        lock(&self.tables)
    }
}

/// A join in progress. Its future may be dropped at any time, so dropping this ends the join.
struct Join<'a> {
    catalog: &'a Catalog,
    joining: Joining,
}

impl Drop for Join<'_> {
    fn drop(&mut self) {
        self.catalog.tables().end_join(&self.joining);
    }
}
