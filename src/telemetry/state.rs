//! State that the announcer, joins and requests share: the [tables](super::tables), and the subscribers to their
//! changes.
//!
//! Only the [announcer](super::announcer) changes the entries of the tables. Their lock is held for a change and the
//! claim of its position in the log, for a look-up, or for the encoding of a snapshot. It is never held across an
//! await, and publishers never take it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::assets::AssetHandler;
use super::channel::{Channel, ChannelState};
use super::tables::{Joining, Tables};
use super::version::Protocol;
use super::viewer::{InFlightLimits, Viewers};
use crate::contract::{Subscribed, SubscriptionTag, Topic};
use crate::participant::Participant;
use crate::protocol::server::{Capability, ServerInfo};
use crate::protocol::{Frame, ServerMessage};
use crate::room::PeerLimits;

/// The shared state of one [`Telemetry`](super::Telemetry).
pub(super) struct State {
    /// The server info, by wire format.
    info: [Frame; 2],
    next_channel: AtomicU64,
    tells_time: bool,
    tables: Mutex<Tables>,
    /// By form, the topic of the participants that are told of changes in it.
    announcements: [Topic; Form::COUNT],
    /// Incremented whenever a channel is unadvertised.
    removals: watch::Sender<u64>,
    pub(super) viewers: Viewers,
    pub(super) settings: Settings,
}

/// The settings of one [`Telemetry`](super::Telemetry) that its viewers are not told.
pub(super) struct Settings {
    pub(super) assets: Option<AssetHandler>,
    /// How long a viewer that pings may be silent before it is reported as unresponsive.
    pub(super) silence_timeout: Duration,
    pub(super) peer_limits: PeerLimits,
    pub(super) in_flight: InFlightLimits,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("assets", &self.assets.is_some())
            .field("silence_timeout", &self.silence_timeout)
            .field("peer_limits", &self.peer_limits)
            .field("in_flight", &self.in_flight)
            .finish()
    }
}

/// The lowest channel number. Numbers are never reused.
const FIRST_CHANNEL: u64 = 1;

/// The form in which channels are announced to a participant. Statuses look the same in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Each channel carries its schema.
    Plain,
    /// Each schema is sent once, and channels refer to it.
    SchemaTable,
}

impl Form {
    pub(super) const ALL: [Self; 2] = [Self::Plain, Self::SchemaTable];
    pub(super) const COUNT: usize = Self::ALL.len();

    /// The form for a participant that speaks `protocol`.
    fn of(protocol: &Protocol) -> Self {
        if protocol.has_schema_table() { Self::SchemaTable } else { Self::Plain }
    }
}

impl State {
    pub(super) fn new(info: ServerInfo, settings: Settings) -> Self {
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
            removals: watch::Sender::new(0),
            viewers: Viewers::new(settings.in_flight),
            settings,
        }
    }

    /// Gives `channel` its number. The channel isn't in the tables yet.
    pub(super) fn number(&self, channel: Channel) -> Arc<ChannelState> {
        // Relaxed: only the value has to be unique.
        let id = self.next_channel.fetch_add(1, Ordering::Relaxed);
        Arc::new(channel.numbered(id, self.tells_time))
    }

    /// Whether there is, or was, a channel with this number.
    pub(super) fn has_numbered(&self, id: u64) -> bool {
        // Relaxed: a viewer that was told a number learned it from a message.
        (FIRST_CHANNEL..self.next_channel.load(Ordering::Relaxed)).contains(&id)
    }

    /// Enters a participant that joins among the viewers, and returns its first messages: the server info, and a
    /// snapshot for the position at which the participant's subscription to announcements took effect.
    pub(super) async fn initial(&self, participant: &Participant<Frame>) -> Vec<Frame> {
        let protocol = Protocol::of(participant.presence()).expect("a presence without a protocol is not accepted");
        participant.log(|| tracing::debug!(%protocol, "viewer joins"));
        let (form, format) = (Form::of(&protocol), protocol.format());
        self.viewers.enter(participant, protocol);
        let join = Join { state: self, joining: self.tables().begin_join() };
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
    pub(super) fn announcements(&self, form: Form) -> &Topic {
        &self.announcements[form as usize]
    }

    /// The channel with this number, if viewers may subscribe to it.
    pub(super) fn channel(&self, id: u64) -> Option<Arc<ChannelState>> {
        self.tables().channel(id).filter(|channel| channel.is_advertised()).cloned()
    }

    /// A receiver that changes when channels are unadvertised.
    pub(super) fn removals(&self) -> watch::Receiver<u64> {
        self.removals.subscribe()
    }

    /// Has every viewer's task forget its subscriptions to unadvertised channels.
    pub(super) fn note_removal(&self) {
        self.removals.send_modify(|count| *count += 1);
    }

    /// Ends all channels with the session: publishing fails from now on.
    pub(super) fn end(&self) {
        let channels = self.tables().take_channels();
        channels.for_each(|channel| channel.end());
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        // Encoding doesn't panic, and every change is complete before other code is called.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A join in progress. Its future may be dropped at any time, so dropping this ends the join.
struct Join<'a> {
    state: &'a State,
    joining: Joining,
}

impl Drop for Join<'_> {
    fn drop(&mut self) {
        self.state.tables().end_join(&self.joining);
    }
}
