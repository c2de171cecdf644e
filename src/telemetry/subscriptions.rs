//! What one viewer has subscribed to.
//!
//! A viewer of v1 has a number of its own for each subscription, one of v2 names the channel. Apart from that the rules
//! are the same: a channel is subscribed to once, and what is wrong with a request is said and changes nothing. A request
//! that crosses the end of its channel on the way isn't wrong, and nothing is said: a viewer keeps a warning listed.
//!
//! # Who is in an audience
//! stands in this table, from before it enters until after it has left. Should the task go that waits for either, then
//! [`forget_removed`](Subscriptions::forget_removed) completes the leaving, before anything else is asked for.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use futures_util::future::join_all;

use super::channel::ChannelState;
use super::state::State;
use super::warnings::Warnings;
use crate::lane::SubscriptionTag;
use crate::participant::Participant;
use crate::protocol::Frame;
use crate::protocol::client::{ChannelRequest, Subscription};

/// See the [module](self).
#[derive(Default)]
pub(super) struct Subscriptions {
    /// By the channel's number.
    held: HashMap<u64, Held>,
    /// The channel's number, by the viewer's own.
    by_id: HashMap<u32, u64>,
    /// Out of the tables, perhaps not yet out of the audience.
    leaving: Vec<Arc<ChannelState>>,
    ended: Ended,
}

/// The viewer's numbers of subscriptions that ended with their channel, or came too late for it, and that it may still
/// end itself.
///
/// A viewer learns of an unadvertise after it has happened, and many answer it with an unsubscribe: neither is a mistake.
/// The latest are remembered, at least [`REMEMBERED`] of them.
#[derive(Default)]
struct Ended {
    recent: HashSet<u32>,
    older: HashSet<u32>,
}

/// More than the channels of a large robot, all of which may go at once. Some 200 kB at most, in two sets, for a viewer
/// that never unsubscribes from what has gone.
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

struct Held {
    channel: Arc<ChannelState>,
    /// The viewer's own number for it, if it speaks v1.
    id: Option<u32>,
}

/// One channel that a viewer asks for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    channel: u64,
    id: Option<u32>,
}

/// Why a subscription isn't made.
#[derive(Clone, Copy, Debug)]
enum Unmet {
    /// It was there when the viewer asked, as far as the viewer knew.
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
    /// Subscribes to what is wanted, and says what is wrong with it.
    ///
    /// All of them are asked for at once, so that they cost one turn of the shard together. A channel that is unadvertised meanwhile is told of afterwards, by [`State::removals`].
    pub(super) async fn subscribe(
        &mut self,
        participant: &Participant<Frame>,
        state: &State,
        wanted: impl Iterator<Item = Wanted>,
    ) -> Warnings {
        let (mut new, mut warnings) = (Vec::new(), Warnings::default());
        for wanted in wanted {
            match self.check(state, wanted) {
                Ok(channel) => {
                    self.insert(Arc::clone(&channel), wanted.id);
                    new.push((wanted.id, channel));
                }
                Err(unmet @ Unmet::JustEnded { id, .. }) => {
                    tracing::debug!(%participant, %unmet, "subscribed too late");
                    id.into_iter().for_each(|id| self.ended.insert(id));
                }
                Err(unmet) => warnings.push(|| unmet.to_string()),
            }
        }
        self.leave(participant).await;
        // One that has ended is closed to all of them; the caller ends with it.
        let tag = |id: Option<u32>| id.map(SubscriptionTag).unwrap_or_default();
        join_all(new.iter().map(|(id, channel)| participant.subscribe(&channel.audience, tag(*id)))).await;
        for (id, channel) in &new {
            let topic = &channel.described.topic;
            tracing::debug!(%participant, id, channel = channel.id(), topic, "subscribed");
        }
        warnings
    }

    /// The channel of a subscription that may be made, or why it may not.
    fn check(&mut self, state: &State, Wanted { channel: number, id }: Wanted) -> Result<Arc<ChannelState>, Unmet> {
        let Some(channel) = state.channel(number) else {
            let other = id.and_then(|id| self.by_id.get(&id)).and_then(|other| self.held.get(other));
            let is_in_use = other.is_some_and(|held| held.channel.is_advertised());
            return Err(match state.has_numbered(number) {
                true if !is_in_use => Unmet::JustEnded { number, id },
                _ => Unmet::NoChannel { number, id },
            });
        };
        if let Some(held) = self.held.get(&number) {
            return Err(Unmet::Subscribed { number, id: held.id });
        }
        if let Some(id) = id
            && let Some(other) = self.by_id.get(&id).copied()
        {
            if self.held.get(&other).is_some_and(|held| held.channel.is_advertised()) {
                return Err(Unmet::IdInUse { id, other });
            }
            // Of a channel that is gone: its end was only not yet taken note of.
            self.remove(other);
        }
        Ok(channel)
    }

    /// Ends subscriptions by the viewer's own numbers, and says what is wrong with them.
    pub(super) async fn unsubscribe_ids(&mut self, participant: &Participant<Frame>, ids: &[u32]) -> Warnings {
        let mut warnings = Warnings::default();
        for id in ids {
            match self.by_id.get(id).copied() {
                Some(channel) => self.remove(channel),
                None if self.ended.take(*id) => {}
                None => warnings.push(|| format!("there is no subscription {id}")),
            }
        }
        self.leave(participant).await;
        warnings
    }

    /// Ends subscriptions by the channels' numbers, and says what is wrong with them. One that ended with its channel
    /// isn't worth a word.
    pub(super) async fn unsubscribe_channels(
        &mut self,
        participant: &Participant<Frame>,
        state: &State,
        ids: &[u64],
    ) -> Warnings {
        let mut warnings = Warnings::default();
        for id in ids {
            if self.held.contains_key(id) {
                self.remove(*id);
            } else if state.channel(*id).is_some() || !state.has_numbered(*id) {
                warnings.push(|| format!("channel {id} is not subscribed to"));
            }
        }
        self.leave(participant).await;
        warnings
    }

    /// Ends the subscriptions to channels that were unadvertised.
    pub(super) async fn forget_removed(&mut self, participant: &Participant<Frame>) {
        let removed = self.held.values().map(|held| &held.channel).filter(|channel| !channel.is_advertised());
        let removed: Vec<_> = removed.map(|channel| channel.id()).collect();
        for channel in removed {
            let id = self.held.get(&channel).and_then(|held| held.id);
            self.remove(channel);
            id.into_iter().for_each(|id| self.ended.insert(id));
        }
        self.leave(participant).await;
    }

    fn insert(&mut self, channel: Arc<ChannelState>, id: Option<u32>) {
        if let Some(id) = id {
            self.by_id.insert(id, channel.id());
            self.ended.take(id);
        }
        self.held.insert(channel.id(), Held { channel, id });
    }

    fn remove(&mut self, channel: u64) {
        let Some(held) = self.held.remove(&channel) else { return };
        if let Some(id) = held.id {
            self.by_id.remove(&id);
        }
        self.leaving.push(held.channel);
    }

    async fn leave(&mut self, participant: &Participant<Frame>) {
        join_all(self.leaving.iter().map(|channel| participant.unsubscribe(&channel.audience))).await;
        for channel in self.leaving.drain(..) {
            let topic = &channel.described.topic;
            tracing::debug!(%participant, channel = channel.id(), topic, "unsubscribed");
        }
    }
}
