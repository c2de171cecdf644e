//! The subscriptions of one viewer.
//!
//! A v1 viewer gives each subscription a number of its own, a v2 viewer names the channel. Otherwise the rules are the
//! same: a channel is subscribed to once, and a wrong request changes nothing and is answered with a warning. A request
//! that crosses the end of its channel on the network isn't wrong and causes no warning, as viewers keep warnings
//! listed.
//!
//! # Audiences
//! A viewer in a channel's audience is listed in this table, from before it enters the audience until after it has
//! left. If the task that waits for either is dropped, [`forget_removed`](Subscriptions::forget_removed) completes the
//! leaving before the next request is handled.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use futures_util::future::join_all;

use super::held::{Held, HeldTable};
use super::warnings::Warnings;
use crate::contract::SubscriptionTag;
use crate::participant::Participant;
use crate::protocol::Frame;
use crate::protocol::client::{ChannelRequest, Subscription};
use crate::telemetry::catalog::Catalog;
use crate::telemetry::catalog::entry::ChannelEntry;

/// The subscriptions of one viewer's instance.
#[derive(Default)]
pub(super) struct Subscriptions {
    held: HeldTable,
    /// Channels that are out of the table above, but whose audience the viewer may not have left yet.
    leaving: Vec<Arc<ChannelEntry>>,
    /// Boxed, because few viewers have any.
    ended: Option<Box<Ended>>,
}

/// The viewer's numbers of subscriptions that ended with their channel, or came too late for it, and that the viewer
/// may still end.
///
/// A viewer learns of an unadvertise after it has happened, and many viewers answer it with an unsubscribe: neither is
/// a mistake. At least the latest [`REMEMBERED`] numbers are remembered.
#[derive(Default)]
struct Ended {
    recent: HashSet<u32>,
    older: HashSet<u32>,
}

/// More than the channels of a large robot, all of which may be unadvertised at once. A viewer that never unsubscribes
/// from ended channels costs some 200 kB at most, in two sets.
const REMEMBERED: usize = 10_000;

impl Ended {
    fn insert(&mut self, id: u32) {
        self.recent.insert(id);
        if self.recent.len() >= REMEMBERED {
            self.older = std::mem::take(&mut self.recent);
        }
    }

    /// Forgets `id`; true if it was remembered.
    fn take(&mut self, id: u32) -> bool {
        let is_recent = self.recent.remove(&id);
        self.older.remove(&id) || is_recent
    }
}

/// One channel that a viewer asks for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    channel: u64,
    id: Option<u32>,
}

/// Why a subscription is not made.
#[derive(Clone, Copy, Debug)]
enum Unmet {
    /// The channel has ended, but existed when the viewer asked, as far as the viewer knew.
    JustEnded {
        number: u64,
        id: Option<u32>,
    },
    NoChannel {
        number: u64,
        id: Option<u32>,
    },
    Subscribed {
        number: u64,
        id: Option<u32>,
    },
    IdInUse {
        id: u32,
        other: u64,
    },
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::JustEnded { number, .. } => write!(f, "channel {number} has ended"),
            Self::NoChannel { number, id: Some(id) } => write!(f, "subscription {id}: there is no channel {number}"),
            Self::NoChannel { number, id: None } => write!(f, "there is no channel {number}"),
            Self::Subscribed { number, id: Some(id) } => {
                write!(f, "channel {number} is subscribed to already, as subscription {id}")
            }
            Self::Subscribed { number, id: None } => write!(f, "channel {number} is subscribed to already"),
            Self::IdInUse { id, other } => write!(f, "subscription id {id} is in use already, for channel {other}"),
        }
    }
}

impl From<Subscription> for Wanted {
    fn from(wanted: Subscription) -> Self {
        Self { channel: wanted.channel_id, id: Some(wanted.id) }
    }
}

impl From<ChannelRequest> for Wanted {
    fn from(wanted: ChannelRequest) -> Self {
        Self { channel: wanted.id, id: None }
    }
}

impl Subscriptions {
    /// Subscribes to the wanted channels, and returns what is wrong with the request.
    ///
    /// All subscriptions are requested at once, so that they cost one turn of the shard together. If a channel is
    /// unadvertised meanwhile, [`Catalog::removed_since`] reports it afterwards.
    pub(super) async fn subscribe(
        &mut self,
        participant: &Participant<Frame>,
        catalog: &Catalog,
        wanted: impl Iterator<Item = Wanted>,
    ) -> Warnings {
        let (mut new, mut warnings) = (Vec::new(), Warnings::default());
        for wanted in wanted {
            match self.check(catalog, wanted) {
                Ok(channel) => {
                    self.insert(Arc::clone(&channel), wanted.id);
                    new.push((wanted.id, channel));
                }
                Err(unmet @ Unmet::JustEnded { id, .. }) => {
                    participant.log(|| tracing::debug!(%unmet, "subscribed too late"));
                    self.note_ended(id);
                }
                Err(unmet) => warnings.push(|| unmet.to_string()),
            }
        }
        self.leave(participant).await;
        // The outcomes are ignored: a participant that has ended answers `Closed` to each, and its subscriptions end
        // with it.
        let tag = |id: Option<u32>| id.map(SubscriptionTag).unwrap_or_default();
        join_all(new.iter().map(|(id, channel)| participant.subscribe(&channel.audience, tag(*id)))).await;
        for (id, channel) in &new {
            let topic = &channel.described.topic;
            participant.log(|| tracing::debug!(id, channel = channel.id(), topic, "subscribed"));
        }
        warnings
    }

    /// The channel to subscribe to, or why the subscription is refused.
    fn check(&mut self, catalog: &Catalog, Wanted { channel: number, id }: Wanted) -> Result<Arc<ChannelEntry>, Unmet> {
        let Some(channel) = catalog.channel(number) else {
            let other = id.and_then(|id| self.held.by_id(id));
            let is_in_use = other.is_some_and(|held| held.channel.is_advertised());
            return Err(match catalog.has_numbered(number) {
                true if !is_in_use => Unmet::JustEnded { number, id },
                _ => Unmet::NoChannel { number, id },
            });
        };
        if let Some(held) = self.held.get(number) {
            return Err(Unmet::Subscribed { number, id: held.id });
        }
        if let Some(id) = id
            && let Some(Held { channel: other, .. }) = self.held.by_id(id)
        {
            if other.is_advertised() {
                return Err(Unmet::IdInUse { id, other: other.id() });
            }
            // The other channel has ended, and this table hasn't noted its end yet.
            self.remove(other.id());
        }
        Ok(channel)
    }

    /// Ends subscriptions by the viewer's own numbers, and returns what is wrong with the request.
    pub(super) async fn unsubscribe_ids(&mut self, participant: &Participant<Frame>, ids: &[u32]) -> Warnings {
        let mut warnings = Warnings::default();
        for id in ids {
            match self.held.by_id(*id).map(|held| held.channel.id()) {
                Some(channel) => self.remove(channel),
                None if self.take_ended(*id) => {}
                None => warnings.push(|| format!("there is no subscription {id}")),
            }
        }
        self.leave(participant).await;
        warnings
    }

    /// Ends subscriptions by the channels' numbers, and returns what is wrong with the request. A subscription that
    /// ended with its channel causes no warning.
    pub(super) async fn unsubscribe_channels(
        &mut self,
        participant: &Participant<Frame>,
        catalog: &Catalog,
        ids: &[u64],
    ) -> Warnings {
        let mut warnings = Warnings::default();
        for id in ids {
            if self.held.get(*id).is_some() {
                self.remove(*id);
            } else if catalog.channel(*id).is_some() || !catalog.has_numbered(*id) {
                warnings.push(|| format!("channel {id} is not subscribed to"));
            }
        }
        self.leave(participant).await;
        warnings
    }

    /// Ends the subscriptions to channels that were unadvertised.
    pub(super) async fn forget_removed(&mut self, participant: &Participant<Frame>) {
        let removed = self.held.iter().filter(|held| !held.channel.is_advertised());
        let removed: Vec<_> = removed.map(|held| (held.channel.id(), held.id)).collect();
        for (channel, id) in removed {
            self.remove(channel);
            self.note_ended(id);
        }
        self.leave(participant).await;
    }

    fn insert(&mut self, channel: Arc<ChannelEntry>, id: Option<u32>) {
        if let Some(id) = id {
            self.take_ended(id);
        }
        self.held.insert(Held { channel, id });
    }

    fn remove(&mut self, channel: u64) {
        let Some(held) = self.held.remove(channel) else { return };
        self.leaving.push(held.channel);
    }

    /// Remembers the viewer's number of a subscription that has ended with its channel.
    fn note_ended(&mut self, id: Option<u32>) {
        if let Some(id) = id {
            self.ended.get_or_insert_default().insert(id);
        }
    }

    /// Forgets `id`; true if it was remembered.
    fn take_ended(&mut self, id: u32) -> bool {
        self.ended.as_mut().is_some_and(|ended| ended.take(id))
    }

    async fn leave(&mut self, participant: &Participant<Frame>) {
        join_all(self.leaving.iter().map(|channel| participant.unsubscribe(&channel.audience))).await;
        for channel in self.leaving.drain(..) {
            let topic = &channel.described.topic;
            participant.log(|| tracing::debug!(channel = channel.id(), topic, "unsubscribed"));
        }
    }
}
