//! A topic: the list of its subscribers, under a lock of its own.

use std::sync::Arc;

use bytes::Bytes;
use lanecast::{Message, SubscriptionTag};
use parking_lot::RwLock;

use super::participant::Participant;

/// A set of subscribers. Clones are handles to the same set.
#[derive(Clone, Default)]
pub struct Topic(Arc<RwLock<Vec<Seat>>>);

#[derive(Clone)]
struct Seat {
    participant: Participant,
    tag: SubscriptionTag,
}

impl Topic {
    /// Subscribes `participant`, or changes the tag it subscribed with.
    pub fn subscribe(&self, participant: &Participant, tag: SubscriptionTag) {
        let mut topics = participant.topics().lock();
        if participant.cancellation().is_cancelled() {
            return;
        }
        let mut seats = self.0.write();
        if let Some(seat) = seats.iter_mut().find(|seat| seat.participant.id() == participant.id()) {
            seat.tag = tag;
            return;
        }
        seats.push(Seat { participant: participant.clone(), tag });
        topics.push(self.clone());
    }

    /// Ends the subscription of `participant`.
    pub(super) fn remove(&self, participant: &Participant) {
        self.0.write().retain(|seat| seat.participant.id() != participant.id());
    }

    /// Sends `message` to the subscribers. A subscriber whose queue is full is reset.
    pub fn broadcast(&self, message: &Bytes) {
        let seats: Vec<Seat> = self.0.read().clone();
        for Seat { participant, tag } in seats {
            let mut copy = message.clone();
            copy.address(tag);
            // The errors are ignored for the same reasons as in a broadcast to all participants.
            let _ = participant.send(copy);
        }
    }
}
