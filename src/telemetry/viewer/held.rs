//! The subscriptions that one instance holds, by channel and by the viewer's own number.

use std::collections::HashMap;
use std::sync::Arc;

use crate::telemetry::catalog::entry::ChannelEntry;

/// Up to this many subscriptions are searched one by one: thousands of viewers hold a few each, and a small table takes
/// several times the memory of what is in it.
const FEW: usize = 8;

/// One subscription.
pub(super) struct Held {
    pub(super) channel: Arc<ChannelEntry>,
    /// The viewer's own number of the subscription, if the viewer speaks v1.
    pub(super) id: Option<u32>,
}

/// A table of subscriptions, with at most one for each channel and for each of the viewer's own numbers.
pub(super) enum HeldTable {
    /// At most [`FEW`], in no particular order.
    Few(Vec<Held>),
    Many(Box<Many>),
}

#[derive(Default)]
pub(super) struct Many {
    by_channel: HashMap<u64, Held>,
    /// The channel's number, by the viewer's own number of the subscription.
    by_id: HashMap<u32, u64>,
}

impl Default for HeldTable {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl HeldTable {
    /// The subscription to the channel with this number.
    pub(super) fn get(&self, channel: u64) -> Option<&Held> {
        match self {
            Self::Few(few) => few.iter().find(|held| held.channel.id() == channel),
            Self::Many(many) => many.by_channel.get(&channel),
        }
    }

    /// The subscription with this number of the viewer's own.
    pub(super) fn by_id(&self, id: u32) -> Option<&Held> {
        match self {
            Self::Few(few) => few.iter().find(|held| held.id == Some(id)),
            Self::Many(many) => many.by_channel.get(many.by_id.get(&id)?),
        }
    }

    /// Adds a subscription. Neither its channel nor its number has one yet.
    pub(super) fn insert(&mut self, held: Held) {
        match self {
            Self::Few(few) if few.len() < FEW => {
                if few.len() == few.capacity() {
                    few.reserve_exact(few.len().max(1));
                }
                few.push(held);
            }
            Self::Few(few) => {
                let mut many = Many::default();
                few.drain(..).chain([held]).for_each(|held| many.insert(held));
                *self = Self::Many(Box::new(many));
            }
            Self::Many(many) => many.insert(held),
        }
    }

    pub(super) fn remove(&mut self, channel: u64) -> Option<Held> {
        match self {
            Self::Few(few) => {
                let at = few.iter().position(|held| held.channel.id() == channel)?;
                Some(few.swap_remove(at))
            }
            Self::Many(many) => many.remove(channel),
        }
    }

    /// All subscriptions, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Held> {
        let (few, many) = match self {
            Self::Few(few) => (few.as_slice(), None),
            Self::Many(many) => (&[][..], Some(many.by_channel.values())),
        };
        few.iter().chain(many.into_iter().flatten())
    }
}

impl Many {
    fn insert(&mut self, held: Held) {
        if let Some(id) = held.id {
            self.by_id.insert(id, held.channel.id());
        }
        self.by_channel.insert(held.channel.id(), held);
    }

    fn remove(&mut self, channel: u64) -> Option<Held> {
        let held = self.by_channel.remove(&channel)?;
        if let Some(id) = held.id {
            self.by_id.remove(&id);
        }
        Some(held)
    }
}
