//! The event loop. It handles room events and pending resets one at a time, and leaves all waiting to tasks, at most
//! one per identity.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use lanecast::room::{Presence, Room, RoomEvent};
use lanecast::{ParticipantIdentity, ParticipantSid, Progress};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::participant::{Participant, Writer};
use super::registry::Registration;

/// The event loop of a session of the baseline.
pub(super) struct EventLoop<R: Room<Message = Bytes>> {
    session: Arc<Shared<R>>,
    under_way: HashMap<ParticipantIdentity, UnderWay>,
    joins: JoinSet<ParticipantIdentity>,
}

/// A join that hasn't ended.
struct UnderWay {
    sid: ParticipantSid,
    joined_at: u64,
    cancel: CancellationToken,
    /// A newer connection, to be joined once this join has ended.
    next: Option<Presence>,
}

impl<R: Room<Message = Bytes>> EventLoop<R> {
    pub(super) fn new(session: Arc<Shared<R>>) -> Self {
        Self { session, under_way: HashMap::new(), joins: JoinSet::new() }
    }

    pub(super) async fn run(mut self) {
        let session = Arc::clone(&self.session);
        let mut events = pin!(session.room.events().expect("the room has no other session"));
        for presence in session.room.participants() {
            self.on_active(&presence);
        }
        loop {
            tokio::select! {
                event = events.next() => match event {
                    // The event may be outdated, so the loop joins what the room has now.
                    Some(RoomEvent::Active(presence)) => self.reconcile(&presence.identity),
                    Some(RoomEvent::Disconnected { identity, sid }) => self.on_disconnected(&identity, &sid),
                    Some(RoomEvent::Closed(_)) | None => break,
                    Some(_) => {}
                },
                () = session.pending.notify.notified() => {
                    let sids = std::mem::take(&mut *session.pending.sids.lock());
                    sids.iter().for_each(|sid| self.on_reset(sid));
                }
                Some(joined) = self.joins.join_next() => match joined {
                    Ok(identity) => self.on_joined(&identity),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                () = session.stop.cancelled() => break,
            }
        }
        self.under_way.values().for_each(|under_way| under_way.cancel.cancel());
        while self.joins.join_next().await.is_some() {}
    }

    fn on_active(&mut self, presence: &Presence) {
        if let Some(under_way) = self.under_way.get_mut(&presence.identity) {
            let newest = under_way
                .next
                .as_ref()
                .map_or((&under_way.sid, under_way.joined_at), |next| (&next.sid, next.joined_at));
            if *newest.0 != presence.sid && presence.joined_at >= newest.1 {
                under_way.next = Some(presence.clone());
                under_way.cancel.cancel();
            }
            return;
        }
        let stored = self.session.registry.read().by_identity(&presence.identity);
        let wanted =
            stored.is_none_or(|stored| *stored.sid() != presence.sid && stored.joined_at() <= presence.joined_at);
        if wanted {
            self.begin(presence, None);
        }
    }

    fn on_disconnected(&mut self, identity: &ParticipantIdentity, sid: &ParticipantSid) {
        if let Some(under_way) = self.under_way.get_mut(identity) {
            under_way.next.take_if(|next| next.sid == *sid);
            if under_way.sid == *sid {
                under_way.cancel.cancel();
            }
        }
        self.dismiss(sid);
        self.reconcile(identity);
    }

    fn dismiss(&self, sid: &ParticipantSid) {
        let removed = self.session.registry.write().remove(sid);
        if let Some((participant, _)) = removed {
            participant.end();
        }
    }

    fn on_reset(&mut self, sid: &ParticipantSid) {
        let removed = {
            let mut registry = self.session.registry.write();
            // The sid may already belong to the participant's successor.
            let failed = registry.by_sid(sid).is_some_and(|stored| stored.cancellation().is_cancelled());
            if failed { registry.remove(sid) } else { None }
        };
        let Some((participant, task)) = removed else { return };
        participant.end();
        if self.under_way.contains_key(participant.identity()) {
            return;
        }
        if let Some(now) = self.session.room.present(participant.identity()) {
            self.begin(&now, task);
        }
    }

    /// Starts a join that waits until `after` has ended.
    fn begin(&mut self, presence: &Presence, after: Option<JoinHandle<()>>) {
        let cancel = self.session.stop.child_token();
        let (session, joining, joins_until) = (Arc::clone(&self.session), presence.clone(), cancel.clone());
        self.joins.spawn(async move {
            let identity = joining.identity.clone();
            joins_until.run_until_cancelled_owned(join(session, joining, after)).await;
            identity
        });
        let under_way = UnderWay { sid: presence.sid.clone(), joined_at: presence.joined_at, cancel, next: None };
        self.under_way.insert(presence.identity.clone(), under_way);
    }

    fn on_joined(&mut self, identity: &ParticipantIdentity) {
        let Some(under_way) = self.under_way.remove(identity) else { return };
        // The disconnect may have come while the stream opened, when there was nothing to remove.
        if self.session.room.present(identity).is_none_or(|now| now.sid != under_way.sid) {
            self.dismiss(&under_way.sid);
        }
        match under_way.next {
            Some(next) => self.on_active(&next),
            None => self.reconcile(identity),
        }
    }

    /// Joins what the room has for `identity` now, unless that is registered or joining already.
    fn reconcile(&mut self, identity: &ParticipantIdentity) {
        if let Some(now) = self.session.room.present(identity) {
            self.on_active(&now);
        }
    }
}

/// Opens a stream, registers the participant, computes its initial messages and starts its task.
async fn join<R: Room<Message = Bytes>>(session: Arc<Shared<R>>, presence: Presence, after: Option<JoinHandle<()>>) {
    if let Some(task) = after {
        // If the sink panicked, the task has ended too.
        let _ = task.await;
    }
    let Ok(permit) = session.permits.acquire().await else { return };
    let Ok(sink) = session.room.open(&presence, Progress::default()).await else { return };
    let (participant, queue) = Participant::new(&presence, session.queue_capacity, Arc::clone(&session.pending));
    let replaced = match session.registry.write().register(&participant) {
        Registration::Inserted => None,
        Registration::Replaced(prior) => Some(prior),
        Registration::Stale | Registration::Duplicate => return,
    };
    if let Some(prior) = replaced {
        prior.end();
    }
    // From here on, broadcasts gather in the participant's queue, behind the initial messages.
    let initial = (session.initial)(participant.clone()).await;
    drop(permit);
    let writer = Writer {
        sink,
        queue,
        cancel: participant.cancellation().clone(),
        sid: presence.sid.clone(),
        pending: Arc::clone(&session.pending),
    };
    let task = tokio::spawn(writer.run(initial));
    session.registry.write().keep_task(&participant, task);
}
