//! What the announcer, joins and requests share: the [tables](super::tables) and whom to tell of their changes.
//!
//! Only the [announcer](super::announcer) changes the tables. Their lock is held for a change and the claim of its place
//! in the log, a look-up, or the encoding of a snapshot; never across an await, and never by who publishes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::assets::AssetHandler;
use super::channel::{Channel, ChannelState};
use super::tables::{Joining, Tables};
use crate::lane::{Subscribed, SubscriptionTag, Topic};
use crate::participant::{Participant, Protocol};
use crate::protocol::server::{Capability, ServerInfo};
use crate::protocol::{Frame, ServerMessage, Subprotocol, WireFormat};
use crate::room::PeerLimits;

/// See the [module](self).
pub(super) struct State {
    /// By wire format.
    info: [Frame; 2],
    next_channel: AtomicU64,
    tells_time: bool,
    tables: Mutex<Tables>,
    /// By form, the participants that are told of changes in it.
    announcements: [Topic; Form::COUNT],
    /// Rises with every channel that went away.
    removals: watch::Sender<u64>,
    pub(super) assets: Option<AssetHandler>,
    /// How long a viewer that pings may say nothing.
    pub(super) silence_timeout: Duration,
    pub(super) limits: PeerLimits,
}

/// The lowest number of a channel. Numbers are never used again.
const FIRST_CHANNEL: u64 = 1;

/// Which format who speaks `protocol` is spoken to in: what a WebSocket negotiates is v1.
pub(super) fn format_of(protocol: &Protocol) -> WireFormat {
    match protocol {
        Protocol::Negotiated(_) => WireFormat::V1,
        Protocol::Version(_) => WireFormat::V2,
    }
}

/// In which form a participant is told of channels. Statuses look the same in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Each channel with its schema.
    Plain,
    /// Each schema once, channels refer to it.
    SchemaTable,
}

impl Form {
    pub(super) const ALL: [Self; 2] = [Self::Plain, Self::SchemaTable];
    pub(super) const COUNT: usize = Self::ALL.len();

    /// The form for who speaks `protocol`.
    fn of(protocol: &Protocol) -> Self {
        let table = match protocol {
            Protocol::Negotiated(name) => **name == *Subprotocol::SdkV1_1.as_str(),
            Protocol::Version(version) => *version >= semver::Version::new(2, 3, 0),
        };
        if table { Self::SchemaTable } else { Self::Plain }
    }
}

impl State {
    pub(super) fn new(
        info: ServerInfo,
        assets: Option<AssetHandler>,
        silence_timeout: Duration,
        limits: PeerLimits,
    ) -> Self {
        let tells_time = info.capabilities.contains(&Capability::Time);
        // Only v1 has a message for it.
        let capabilities = info.capabilities.iter().copied().filter(|each| *each != Capability::Time).collect();
        let v2 = ServerInfo { capabilities, ..info.clone() };
        Self {
            info: [info, v2].map(|info| ServerMessage::ServerInfo(info).encode()),
            tells_time,
            next_channel: AtomicU64::new(FIRST_CHANNEL),
            tables: Mutex::default(),
            announcements: Default::default(),
            removals: watch::Sender::new(0),
            assets,
            silence_timeout,
            limits,
        }
    }

    /// Gives `channel` its number. It isn't in the table yet.
    pub(super) fn number(&self, channel: Channel) -> Arc<ChannelState> {
        // Relaxed: only the value has to be unique.
        let id = self.next_channel.fetch_add(1, Ordering::Relaxed);
        Arc::new(channel.numbered(id, self.tells_time))
    }

    /// Whether there is, or was, a channel of this number.
    pub(super) fn has_numbered(&self, id: u64) -> bool {
        // Relaxed: who was told of a number learned of it by a message.
        (FIRST_CHANNEL..self.next_channel.load(Ordering::Relaxed)).contains(&id)
    }

    /// What a participant is told first of all: as it is at the position at which it subscribes to announcements.
    pub(super) async fn initial(&self, participant: &Participant<Frame>) -> Vec<Frame> {
        let form = Form::of(participant.protocol());
        let join = Join { state: self, joining: self.tables().begin_join() };
        let announcements = self.announcements(form);
        let (subscribed, position) = participant.subscribe_from(announcements, SubscriptionTag::default()).await;
        let mut messages = vec![self.info[format_of(participant.protocol()) as usize].clone()];
        // One that has ended is told nothing any more.
        if subscribed != Subscribed::Closed {
            messages.extend(self.tables().snapshot(form, position));
        }
        drop(join);
        messages
    }

    /// The topic whose subscribers are told of every change, of channels in `form`.
    pub(super) fn announcements(&self, form: Form) -> &Topic {
        &self.announcements[form as usize]
    }

    /// The channel with this number, if viewers may subscribe to it.
    pub(super) fn channel(&self, id: u64) -> Option<Arc<ChannelState>> {
        self.tables().channel(id).filter(|channel| channel.is_advertised()).cloned()
    }

    /// How a viewer learns that channels went away.
    pub(super) fn removals(&self) -> watch::Receiver<u64> {
        self.removals.subscribe()
    }

    /// Has every viewer forget its subscriptions to channels that went away.
    pub(super) fn note_removal(&self) {
        self.removals.send_modify(|count| *count += 1);
    }

    /// The session has ended: publishing fails from now on.
    pub(super) fn end(&self) {
        let channels = self.tables().take_channels();
        channels.for_each(|channel| channel.end());
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        // Encoding doesn't panic, and every change is whole before anything else is called.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A join under way, which may be given up at any time.
struct Join<'a> {
    state: &'a State,
    joining: Joining,
}

impl Drop for Join<'_> {
    fn drop(&mut self) {
        self.state.tables().end_join(&self.joining);
    }
}
