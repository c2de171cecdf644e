//! The tables that joining viewers are told of and requests are looked up in.
//!
//! Only the [announcer](super::announcer) changes them. The lock is held for a change, a look-up, or the encoding of
//! what changed since the last join; never across an await, and never by who publishes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::Status;
use super::assets::AssetHandler;
use super::channel::{Channel, ChannelState};
use crate::lane::{SubscriptionTag, Topic};
use crate::participant::{Participant, Protocol};
use crate::protocol::server::{Advertise, ServerInfo};
use crate::protocol::{Frame, SchemaTable, ServerMessage, Subprotocol, WireFormat};
use crate::room::PeerLimits;

/// See the [module](self).
pub(super) struct State {
    info: Frame,
    next_channel: AtomicU64,
    tables: Mutex<Tables>,
    /// Per form, the participants that get advertisements in it.
    advertisements: [Topic; Form::COUNT],
    /// Rises with every channel that went away.
    removals: watch::Sender<u64>,
    pub(super) assets: Option<AssetHandler>,
    /// How long a viewer that pings may say nothing.
    pub(super) silence_timeout: Duration,
    pub(super) limits: PeerLimits,
}

/// Which format who speaks `protocol` is spoken to in: what a WebSocket negotiates is v1.
pub(super) fn format_of(protocol: &Protocol) -> WireFormat {
    match protocol {
        Protocol::Negotiated(_) => WireFormat::V1,
        Protocol::Version(_) => WireFormat::V2,
    }
}

/// In which form a participant is told of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Each channel with its schema.
    Plain,
    /// Each schema once, channels refer to it.
    SchemaTable,
}

impl Form {
    pub(super) const ALL: [Self; 2] = [Self::Plain, Self::SchemaTable];
    const COUNT: usize = Self::ALL.len();

    /// The form for who speaks `protocol`.
    fn of(protocol: &Protocol) -> Self {
        let table = match protocol {
            Protocol::Negotiated(name) => **name == *Subprotocol::SdkV1_1.as_str(),
            Protocol::Version(version) => *version >= semver::Version::new(2, 3, 0),
        };
        if table { Self::SchemaTable } else { Self::Plain }
    }
}

#[derive(Default)]
struct Tables {
    channels: BTreeMap<u64, Arc<ChannelState>>,
    /// Numbers for the schema-table form; one table for all, for as long as the server runs.
    schemas: SchemaTable,
    /// Per form, the advertisement of all channels, if it was encoded since they last changed.
    advertised: [Option<Frame>; Form::COUNT],
    /// What holds, in the order of first being told.
    statuses: Vec<(String, Frame)>,
}

impl State {
    pub(super) fn new(
        info: ServerInfo,
        assets: Option<AssetHandler>,
        silence_timeout: Duration,
        limits: PeerLimits,
    ) -> Self {
        Self {
            info: ServerMessage::ServerInfo(info).encode(),
            next_channel: AtomicU64::new(1),
            tables: Mutex::default(),
            advertisements: Default::default(),
            removals: watch::Sender::new(0),
            assets,
            silence_timeout,
            limits,
        }
    }

    /// Gives `channel` its number. It isn't in the table yet.
    pub(super) fn number(&self, channel: Channel) -> Arc<ChannelState> {
        // Relaxed: only the value has to be unique.
        Arc::new(channel.numbered(self.next_channel.fetch_add(1, Ordering::Relaxed)))
    }

    /// What a participant is told first of all.
    ///
    /// It subscribes to the advertisements of its form before the tables are looked at: what is advertised in between
    /// is told twice, never not at all.
    pub(super) async fn initial(&self, participant: &Participant<Frame>) -> Vec<Frame> {
        let form = Form::of(participant.protocol());
        participant.subscribe(self.advertisements(form), SubscriptionTag::default()).await;
        let mut tables = self.tables();
        let mut messages = vec![self.info.clone()];
        if !tables.channels.is_empty() {
            messages.push(tables.advertisement(form));
        }
        messages.extend(tables.statuses.iter().map(|(_, frame)| frame.clone()));
        messages
    }

    /// The topic whose subscribers get advertisements in `form`.
    pub(super) fn advertisements(&self, form: Form) -> &Topic {
        &self.advertisements[form as usize]
    }

    /// The channel with this number, if viewers may subscribe to it.
    pub(super) fn channel(&self, id: u64) -> Option<Arc<ChannelState>> {
        self.tables().channels.get(&id).filter(|channel| channel.is_advertised()).cloned()
    }

    /// How a viewer learns that channels went away.
    pub(super) fn removals(&self) -> watch::Receiver<u64> {
        self.removals.subscribe()
    }

    // The rest is the announcer's.

    /// Enters a channel, and gives its advertisement in each form.
    pub(super) fn insert(&self, channel: &Arc<ChannelState>) -> [Frame; Form::COUNT] {
        let mut tables = self.tables();
        tables.channels.insert(channel.id(), Arc::clone(channel));
        tables.advertised = Default::default();
        let advertise = Advertise { channels: vec![channel.described.clone()] };
        Form::ALL.map(|form| tables.encode(form, advertise.clone()))
    }

    /// Takes a channel out. False if it wasn't there.
    pub(super) fn remove(&self, channel: &ChannelState) -> bool {
        let mut tables = self.tables();
        tables.advertised = Default::default();
        tables.channels.remove(&channel.id()).is_some()
    }

    /// Has every viewer forget its subscriptions to channels that went away.
    pub(super) fn note_removal(&self) {
        self.removals.send_modify(|count| *count += 1);
    }

    /// Keeps a status if it has an id, and gives its frame, and that of the one it took the place of.
    pub(super) fn set_status(&self, status: Status) -> (Frame, Option<Frame>) {
        let id = status.id.clone();
        let frame = ServerMessage::Status(status).encode();
        let Some(id) = id else { return (frame, None) };
        let mut tables = self.tables();
        let replaced = match tables.statuses.iter_mut().find(|(held, _)| *held == id) {
            Some((_, held)) => Some(std::mem::replace(held, frame.clone())),
            None => {
                tables.statuses.push((id, frame.clone()));
                None
            }
        };
        (frame, replaced)
    }

    /// Puts back what a status took the place of.
    pub(super) fn restore_status(&self, id: String, replaced: Option<Frame>) {
        let Some(frame) = replaced else { return self.remove_statuses(&[id]) };
        if let Some((_, held)) = self.tables().statuses.iter_mut().find(|(held, _)| *held == id) {
            *held = frame;
        }
    }

    pub(super) fn remove_statuses(&self, ids: &[String]) {
        self.tables().statuses.retain(|(held, _)| !ids.contains(held));
    }

    /// The session has ended: publishing fails from now on.
    pub(super) fn end(&self) {
        let channels = std::mem::take(&mut self.tables().channels);
        channels.values().for_each(|channel| channel.end());
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Encoding doesn't panic, and every change is whole before anything else is called.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    /// All channels, encoded once for all who join until they change.
    fn advertisement(&mut self, form: Form) -> Frame {
        if let Some(frame) = &self.advertised[form as usize] {
            return frame.clone();
        }
        let channels = self.channels.values().map(|channel| channel.described.clone()).collect();
        let frame = self.encode(form, Advertise { channels });
        self.advertised[form as usize] = Some(frame.clone());
        frame
    }

    fn encode(&mut self, form: Form, advertise: Advertise) -> Frame {
        match form {
            Form::Plain => ServerMessage::Advertise(advertise).encode(),
            Form::SchemaTable => advertise.encode_with_table(&mut self.schemas),
        }
    }
}
