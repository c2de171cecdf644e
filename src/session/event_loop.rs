//! The session's event loop. It takes room events and pending resets in turn and decides what to do. It never waits for
//! anything else.
//!
//! Work that takes time (opening a stream, computing initial messages, backing off) is a [`Join`] in a task of its own,
//! at most one per identity. The join is entered in `pending_joins` before anything is opened. A disconnect of its
//! connection cancels it, and a newer connection supersedes it. When it is done, the loop asks the room once more, so
//! that a disconnect that arrived while the stream opened doesn't leave a registered participant without a connection.
//!
//! The end of an instance is reported by whatever takes it out of the registry, which happens once. That is the loop,
//! on its reset, its disconnect, or another connection of its identity; or the join of the instance that takes its
//! place.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use foldhash::HashMap;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rustc_hash::FxHashMap;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::core::Core;
use super::error::JoinError;
use super::join::{Declined, Join};
use super::overload::HoldWatch;
use super::report::Registered;
use super::stream::{ControlStream, StreamHost};
use crate::contract::{EndReason, UplinkState};
use crate::ids::{ClientId, ParticipantIdentity, ParticipantSid};
use crate::participant::Participant;
use crate::participant::registry::{Instance, Removal};
use crate::room::{Presence, Room, RoomClosed, RoomEvent};

type Joined<R> = Result<Registered<<R as Room>::Message>, Declined>;

/// The state of the event loop.
pub(crate) struct EventLoop<R: Room> {
    session: Arc<Core<R>>,
    pending_joins: HashMap<ParticipantIdentity, PendingJoin>,
    joins: JoinSet<Joined<R>>,
    identities: FxHashMap<Id, ParticipantIdentity>,
    connections: HashMap<ParticipantSid, Connection<R::Incoming>>,
    /// Taken by [`run`](Self::run).
    events: Option<BoxStream<'static, RoomEvent<R::Incoming>>>,
}

/// What the loop keeps of a connection while it is present.
struct Connection<S> {
    identity: ParticipantIdentity,
    kept: Kept<S>,
}

enum Kept<S> {
    /// The stream of the connection, until its participant is registered. Boxed to keep the other variants small.
    Stream(Box<S>),
    /// The task that handles the stream; dropping this aborts the task. An abort handle, because a cancellation token
    /// would be three times as large.
    Handler { _task: AbortOnDropHandle<()> },
    /// The hook has refused the connection, which happens once.
    Refused,
}

/// A join that is in progress.
struct PendingJoin {
    sid: ParticipantSid,
    joined_at: u64,
    cancel: AbortHandle,
    /// The connection was gone before the loop learned that the join was done. The result of the join is then void,
    /// even if the room has a connection of the same name again.
    gone: bool,
    /// A newer connection, to be joined once this join has ended.
    next: Option<Presence>,
    /// How many consecutive joins before this one were abandoned because the room's answer had changed.
    stale_retries: u32,
}

/// The outcome of removing an instance that may have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailedRemoval {
    /// The instance had failed or vanished, and this call removed it.
    Removed,
    /// The instance had failed or vanished, and lost its place before.
    RemovedBefore,
    /// The instance has neither failed nor vanished.
    NotFailed,
}

impl<R: Room> EventLoop<R> {
    pub(crate) fn new(session: Arc<Core<R>>, events: BoxStream<'static, RoomEvent<R::Incoming>>) -> Self {
        Self {
            session,
            events: Some(events),
            pending_joins: HashMap::default(),
            joins: JoinSet::new(),
            identities: FxHashMap::default(),
            connections: HashMap::default(),
        }
    }

    pub(crate) async fn run(mut self) {
        let session = Arc::clone(&self.session);
        // The room's events were subscribed to before this asks which participants are present, so none is missed
        // between the two.
        let mut events = self.events.take().expect("it runs once").fuse();
        let mut outgoing = pin!(session.events.run());
        let mut losses = pin!(session.report_losses());
        let mut holds = HoldWatch::default();
        for presence in session.room.participants() {
            self.on_active(&presence);
        }
        loop {
            // Unbiased, so that neither events nor resets starve the others.
            tokio::select! {
                event = events.next() => match event {
                    Some(RoomEvent::Closed(reason)) => self.end(reason),
                    Some(event) => self.on_event(event),
                    None => self.end("the event stream of the room ended".into()),
                },
                // Taken out and handed to a task in the same poll.
                (client_id, sid) = poll_fn(|cx| session.pending_resets.poll_take(cx)) => self.on_reset(client_id, &sid),
                () = &mut outgoing => {}
                () = &mut losses => {}
                change = holds.next(&session.fanout) => session.note_hold(change),
                Some(done) = self.joins.join_next_with_id() => match done {
                    Ok((id, joined)) => self.on_joined(id, joined),
                    Err(error) => {
                        if error.is_panic() {
                            tracing::error!(%error, "a join panicked");
                        }
                        self.on_joined(error.id(), Err(JoinError::Superseded.into()));
                    }
                },
                () = session.closing.until_sealed() => break,
            }
        }
        self.connections.clear();
        for pending in self.pending_joins.values() {
            pending.cancel.abort();
        }
        while let Some(done) = self.joins.join_next().await {
            if let Ok(Ok(registered)) = done {
                self.session.note_joined(&registered);
                registered.participant.note_announced();
                self.remove_failed(&registered.participant);
            }
        }
        loop {
            tokio::select! {
                // A room may close when its event stream is dropped, or block when nothing reads it: read it until all
                // is delivered.
                Some(_) = events.next() => {}
                // A member that fails during the drain is counted and reported like any other, but not joined again.
                (client_id, sid) = poll_fn(|cx| session.pending_resets.poll_take(cx)) => drop(self.remove_pending_reset(client_id, &sid)),
                () = &mut outgoing => {}
                () = &mut losses => {}
                () = session.closing.until_goodbyes_said() => break,
            }
        }
        // No shard is left that could end a member.
        while let Some((client_id, sid)) = session.pending_resets.take() {
            self.remove_pending_reset(client_id, &sid);
        }
    }

    /// Ends the session because the room is gone: nothing can be delivered any more.
    fn end(&self, reason: RoomClosed) {
        self.session.start_close(Duration::ZERO, Some(reason));
    }

    fn on_event(&mut self, event: RoomEvent<R::Incoming>) {
        match event {
            RoomEvent::Active(presence) => self.on_active(&presence),
            RoomEvent::Disconnected { identity, sid } => self.on_disconnected(&identity, &sid),
            RoomEvent::StreamOpened { identity, sid, stream } => self.on_stream(identity, sid, stream),
            RoomEvent::UplinkStalled => self.session.set_uplink(UplinkState::Stalled),
            RoomEvent::UplinkFlowing => self.session.set_uplink(UplinkState::Flowing),
            RoomEvent::Closed(reason) => self.end(reason),
        }
    }

    fn on_active(&mut self, presence: &Presence) {
        let session = &self.session;
        if self.was_refused(&presence.sid) {
            return;
        }
        if let Some(pending) = self.pending_joins.get_mut(&presence.identity) {
            // A join whose connection is gone competes with no other.
            let first = Some((&pending.sid, pending.joined_at)).filter(|_| !pending.gone);
            if let Some((sid, joined_at)) = pending.next.as_ref().map(|next| (&next.sid, next.joined_at)).or(first) {
                if *sid == presence.sid {
                    return;
                }
                if presence.joined_at < joined_at {
                    return session.refuse(presence, &JoinError::Stale);
                }
            }
            tracing::debug!(
                identity = %presence.identity, sid = %pending.sid, by = %presence.sid, "join superseded"
            );
            pending.next = Some(presence.clone());
            pending.cancel.abort();
            return;
        }
        match session.registry.stored(&presence.identity) {
            // The connection was reported twice, or its reset is pending, which joins it again.
            Some(stored) if *stored.sid() == presence.sid => {}
            Some(stored) if stored.joined_at() > presence.joined_at => session.refuse(presence, &JoinError::Stale),
            _ => self.spawn_join(presence, None, 0),
        }
    }

    fn on_disconnected(&mut self, identity: &ParticipantIdentity, sid: &ParticipantSid) {
        let stored = self.session.registry.stored_by_sid(sid);
        let others = stored.as_ref().is_some_and(|stored| stored.identity() != identity)
            || self.connections.get(sid).is_some_and(|connection| connection.identity != *identity);
        if others {
            tracing::warn!(%identity, %sid, "disconnect of a connection that is another identity's");
            return;
        }
        self.connections.remove(sid);
        if let Some(pending) = self.pending_joins.get_mut(identity) {
            pending.next.take_if(|next| next.sid == *sid);
            if pending.sid == *sid {
                tracing::debug!(%identity, %sid, "left before it was registered");
                pending.gone = true;
                pending.cancel.abort();
            }
        }
        match stored {
            // Just registered: `on_joined`, which is due, asks the room.
            Some(participant) if !participant.is_announced() => {}
            Some(participant) => self.remove_left(&participant, EndReason::Disconnected),
            None => tracing::debug!(%identity, %sid, "disconnect of a connection that isn't registered"),
        }
        self.reconcile(identity, 0);
    }

    /// Removes an instance whose connection is gone, or is no longer the one that the room has for the identity.
    fn remove_left(&self, participant: &Participant<R::Message>, reason: EndReason) {
        if self.session.registry.remove(participant) == Removal::Removed {
            // The instance may have failed before. Its reset then arrives later and finds nothing.
            participant.end(reason);
            self.session.note_end(participant);
        }
    }

    fn on_reset(&mut self, client_id: ClientId, sid: &ParticipantSid) {
        if let Some(participant) = self.remove_pending_reset(client_id, sid)
            && !self.pending_joins.contains_key(participant.identity())
        {
            self.rejoin(participant);
        }
    }

    /// Removes an instance whose reset is pending. Returns `None` if the instance is gone already, because it left or
    /// was replaced; or if it has just been registered, as `on_joined`, which is due, then takes care of it.
    fn remove_pending_reset(&self, client_id: ClientId, sid: &ParticipantSid) -> Option<Participant<R::Message>> {
        let stored = self.session.registry.stored_by_sid(sid).filter(|stored| stored.client_id() == client_id);
        let participant = stored.filter(Participant::is_announced)?;
        (self.remove_failed(&participant) == FailedRemoval::Removed).then_some(participant)
    }

    /// Removes an instance if it has failed or vanished.
    fn remove_failed(&self, participant: &Participant<R::Message>) -> FailedRemoval {
        if !participant.end_reason().is_some_and(EndReason::starts_afresh) {
            return FailedRemoval::NotFailed;
        }
        match self.session.registry.remove(participant) {
            Removal::Removed => {
                self.session.note_end(participant);
                FailedRemoval::Removed
            }
            Removal::RemovedBefore => FailedRemoval::RemovedBefore,
        }
    }

    /// Joins the connection that the room has now for the identity of an instance that failed and was removed.
    fn rejoin(&mut self, participant: Participant<R::Message>) {
        let now = self.session.room.present(participant.identity());
        if let Some(now) = now.filter(|now| !self.was_refused(&now.sid)) {
            self.spawn_join(&now, Some(participant), 0);
        }
    }

    fn spawn_join(&mut self, presence: &Presence, after: Option<Participant<R::Message>>, stale_retries: u32) {
        let identity = presence.identity.clone();
        // An older instance that has failed, and whose reset hasn't arrived yet, counts for this join's back-off.
        let after = after.or_else(|| {
            self.session
                .registry
                .stored(&identity)
                .filter(|failed| self.remove_failed(failed) == FailedRemoval::Removed)
        });
        let join = Join {
            session: Arc::clone(&self.session),
            identity: identity.clone(),
            sid: presence.sid.clone(),
            after,
            streak: self.session.streaks().of(&identity),
            stale_retries,
        };
        let cancel = self.joins.spawn(join.run());
        self.identities.insert(cancel.id(), identity.clone());
        let (sid, joined_at) = (presence.sid.clone(), presence.joined_at);
        self.pending_joins
            .insert(identity, PendingJoin { sid, joined_at, cancel, gone: false, next: None, stale_retries });
    }

    fn on_joined(&mut self, id: Id, joined: Joined<R>) {
        let Some(identity) = self.identities.remove(&id) else { return };
        let Some(pending) = self.pending_joins.remove(&identity) else { return };
        let mut failed = false;
        if let Ok(registered) = &joined {
            let participant = &registered.participant;
            self.session.note_joined(registered);
            participant.note_announced();
            // The disconnect may have arrived while the stream opened, when there was nothing to remove.
            let now = self.session.room.present(&identity).filter(|_| !pending.gone);
            if now.as_ref().is_none_or(|now| now.sid != *participant.sid()) {
                let reason = if now.is_none() { EndReason::Disconnected } else { EndReason::Replaced };
                self.remove_left(participant, reason);
            } else if let Some(stream) = self.take_held(participant.sid()) {
                self.handle(identity.clone(), participant.sid().clone(), stream);
            }
            // The instance's reset may have arrived before this.
            failed = self.remove_failed(participant) == FailedRemoval::Removed;
        }
        if let Err(Declined { error: JoinError::NotAccepted { .. }, sid: Some(sid) }) = &joined
            && self.is_present(&identity, sid)
        {
            // The disconnect of the connection removes this entry later.
            self.connections.insert(sid.clone(), Connection { identity: identity.clone(), kept: Kept::Refused });
        }
        match (pending.next, joined) {
            (Some(next), _) => self.on_active(&next),
            (None, Ok(registered)) if failed => self.rejoin(registered.participant),
            (None, Ok(_) | Err(Declined { error: JoinError::Superseded | JoinError::NotPresent, .. })) => {
                self.reconcile(&identity, pending.stale_retries + 1);
            }
            // Refused: asking again would only be refused again.
            (None, Err(_)) => {
                self.take_held(&pending.sid);
            }
        }
    }

    /// Joins the connection that the room has for `identity` now, if it is neither registered nor being joined.
    /// `stale_retries`: see [`PendingJoin::stale_retries`].
    fn reconcile(&mut self, identity: &ParticipantIdentity, stale_retries: u32) {
        if self.pending_joins.contains_key(identity) {
            return;
        }
        if let Some(now) = self.session.room.present(identity) {
            let stored = self.session.registry.stored(identity);
            if self.was_refused(&now.sid) {
                return;
            }
            if stored.is_none_or(|stored| *stored.sid() != now.sid && stored.joined_at() <= now.joined_at) {
                self.spawn_join(&now, None, stale_retries);
            }
        }
    }

    fn on_stream(&mut self, identity: ParticipantIdentity, sid: ParticipantSid, stream: R::Incoming) {
        // If its registration isn't reported yet, the stream is left to `on_joined`, which asks the room whether the
        // connection is still there.
        let registered = self.session.registry.by_sid(&sid).filter(|participant| *participant.identity() == identity);
        if registered.is_some_and(|participant| participant.is_announced()) {
            return self.handle(identity, sid, stream);
        }
        if self.is_present(&identity, &sid) && !self.was_refused(&sid) {
            self.connections.insert(sid, Connection { identity, kept: Kept::Stream(Box::new(stream)) });
            return;
        }
        self.session.note_stray_stream(&identity, &sid);
    }

    fn is_present(&self, identity: &ParticipantIdentity, sid: &ParticipantSid) -> bool {
        self.session.room.present(identity).is_some_and(|now| now.sid == *sid)
    }

    fn was_refused(&self, sid: &ParticipantSid) -> bool {
        matches!(self.connections.get(sid), Some(Connection { kept: Kept::Refused, .. }))
    }

    /// Takes the stream held for a connection, if there is one. Anything else kept of the connection stays.
    fn take_held(&mut self, sid: &ParticipantSid) -> Option<R::Incoming> {
        let Connection { identity, kept } = self.connections.remove(sid)?;
        match kept {
            Kept::Stream(stream) => Some(*stream),
            kept => {
                self.connections.insert(sid.clone(), Connection { identity, kept });
                None
            }
        }
    }

    fn handle(&mut self, identity: ParticipantIdentity, sid: ParticipantSid, stream: R::Incoming) {
        let (connection, of) = (sid.clone(), identity.clone());
        let session: Weak<dyn StreamHost<R::Message>> = Arc::downgrade(&self.session) as _;
        let on_stream = Arc::clone(&self.session.hooks.on_stream);
        let control = ControlStream { identity, sid, stream, session };
        // The handler is called inside the task, so that a panic in the call ends only the task.
        let handled = self.session.inside_without_span(async move { on_stream(control).await });
        let task = AbortOnDropHandle::new(self.session.closing.spawn(handled, &self.session.runtime));
        self.connections.insert(connection, Connection { identity: of, kept: Kept::Handler { _task: task } });
    }
}
