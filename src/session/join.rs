//! The join of one connection: open a stream, admit it to a shard, compute its initial messages, register it.
//!
//! The shard fixes the newcomer's position in the log before the initial messages are computed, and gathers the
//! broadcasts from that position on, so that no broadcast is lost between the two (see [`fanout`](crate::fanout)).
//! Registration is the last step that can refuse the newcomer. The initial messages go to the shard immediately after
//! it, so a sender that finds the participant in the registry sends behind them.

use std::future::poll_fn;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::accept::Refusal;
use super::backoff::{Streak, wait_after};
use super::core::{Core, Member};
use super::error::JoinError;
use super::member::SessionMember;
use super::report::Registered;
use crate::contract::{EndReason, Message, Progress};
use crate::fanout::{NotAdmitted, Seat};
use crate::ids::{ClientId, ParticipantIdentity, ParticipantSid};
use crate::participant::registry::{Instance, Registration};
use crate::participant::{Home, Participant};
use crate::room::{Presence, Room};

/// One join, from the first attempt to the last.
pub(crate) struct Join<R: Room> {
    pub(crate) session: Arc<Core<R>>,
    pub(crate) identity: ParticipantIdentity,
    /// The connection to join. Its disconnect cancels the join.
    pub(crate) sid: ParticipantSid,
    /// The prior instance, whose sink has to be back with the room first.
    pub(crate) after: Option<Participant<R::Message>>,
    /// The consecutive resets that led to this join.
    pub(crate) streak: Option<Streak>,
    /// How many consecutive joins before this one were abandoned because the room's answer had changed.
    pub(crate) stale_retries: u32,
}

impl<R: Room> Join<R> {
    /// Tries with back-off until the participant is registered, or another attempt would be pointless.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, nothing has changed: an admitted participant ends as refused, and
    /// nothing is registered.
    pub(crate) fn run(self) -> impl Future<Output = Result<Registered<R::Message>, Declined>> + Send {
        Arc::clone(&self.session).inside(self.attempt_all())
    }

    async fn attempt_all(mut self) -> Result<Registered<R::Message>, Declined> {
        let streak = self.streak_after_prior().await.or(self.streak);
        let mut failures = streak.map_or(0, |streak| streak.failures);
        let mut until = Instant::now() + wait_after(self.session.config.backoff, self.stale_retries);
        until = streak.map_or(until, |streak| until.max(streak.until));
        loop {
            if let Some(prior) = self.after.take() {
                prior.retired().await;
            }
            // Even an empty sleep takes until the timer's next tick.
            if until > Instant::now() {
                sleep_until(until).await;
            }
            let Some(presence) = self.session.room.present(&self.identity) else {
                return Err(JoinError::NotPresent.into());
            };
            if presence.sid != self.sid {
                // Another connection has arrived, which has to be joined under its own name.
                return Err(JoinError::Superseded.into());
            }
            let attempt = AssertUnwindSafe(self.attempt(&presence, failures)).catch_unwind().await;
            match attempt.unwrap_or(Err(JoinError::Panicked)) {
                Err(error) if error.may_pass() => {
                    self.session.note_join_failed(presence, error);
                    failures = failures.saturating_add(1);
                    until = self.session.streaks().note_failure(&self.identity, failures);
                }
                Err(error) => {
                    self.session.refuse(&presence, &error);
                    return Err(Declined { error, sid: Some(presence.sid) });
                }
                Ok(registered) => return Ok(registered),
            }
        }
    }

    /// Waits until the sink of the prior instance is back with the room. If the connection of that instance had
    /// vanished, and the room still has it, that counts as a reset for the back-off: it may happen again and again.
    async fn streak_after_prior(&mut self) -> Option<Streak> {
        let prior = self.after.take()?;
        prior.retired().await;
        let is_there = || self.session.room.present(&self.identity).is_some_and(|now| now.sid == *prior.sid());
        if prior.end_reason() != Some(EndReason::Vanished) || !is_there() {
            return None;
        }
        Some(self.session.streaks().note_reset(&self.identity, prior.attempt(), prior.age()))
    }

    async fn attempt(&mut self, presence: &Presence, failures: u32) -> Result<Registered<R::Message>, JoinError> {
        let session = &Arc::clone(&self.session);
        check_place(session, presence)?;
        if let Err(Refusal { reason, message }) = (session.hooks.accept)(presence) {
            if let Some(message) = message {
                self.send_refusal(presence, message).await;
            }
            return Err(JoinError::NotAccepted { reason });
        }
        let permit = session.permits.acquire().await.map_err(|_| JoinError::SessionClosed)?;
        let progress = Progress::default();
        let sink = open(session, presence, progress.clone()).await?;
        session.grow();
        let seat = session.fanout.seat();
        let participant = &self.participant(presence, failures, &seat, &progress);
        let provisional = Provisional { session, participant };
        self.admit(participant, seat, sink, progress).await?;
        // If this attempt fails, the next one waits for its sink to be handed back.
        self.after = Some(participant.clone());
        let initial = self.initial_messages(participant).await.inspect_err(|error| provisional.end(error))?;
        let begin = participant.outbox().ready_to_begin().await.ok_or(JoinError::SessionClosed)?;
        drop(permit);
        let prior = register(session, participant)?;
        begin(initial);
        provisional.keep();
        Ok(Registered { participant: participant.clone(), prior })
    }

    fn participant(
        &self,
        presence: &Presence,
        failures: u32,
        seat: &Seat<'_, Member<R>>,
        progress: &Progress,
    ) -> Participant<R::Message> {
        let session = &self.session;
        let home =
            Home { outbox: seat.outbox(ClientId::next(), progress), pending: Arc::clone(&session.pending_resets) };
        Participant::new(presence.clone(), failures, home)
    }

    /// Has the shard take the participant in; returns once the participant's position is fixed.
    async fn admit(
        &self,
        participant: &Participant<R::Message>,
        seat: Seat<'_, Member<R>>,
        sink: R::Sink,
        progress: Progress,
    ) -> Result<(), JoinError> {
        let member = SessionMember::new(participant.clone(), Arc::downgrade(&self.session));
        match seat.admit(member, sink, progress).await {
            Ok(position) => {
                participant.log(|| tracing::debug!(%position, "admitted"));
                Ok(())
            }
            Err(NotAdmitted::Closed) => Err(JoinError::SessionClosed),
            Err(NotAdmitted::Ended) => Err(ended(&self.session, participant)),
        }
    }

    /// Computes the initial messages and their lengths. The lengths are computed here, where a panic fails only this
    /// join. The computation stops if the participant ends.
    async fn initial_messages(
        &self,
        participant: &Participant<R::Message>,
    ) -> Result<Vec<(R::Message, usize)>, JoinError> {
        let limit = self.session.config.open_timeout;
        let computed = (self.session.hooks.initial)(participant.clone());
        let messages = tokio::select! {
            biased;
            messages = within(limit, computed) => messages.ok_or(JoinError::InitialTimedOut(limit))?,
            () = participant.retired() => return Err(ended(&self.session, participant)),
        };
        let largest = self.session.config.largest_carried;
        let measured = messages.into_iter().map(|message| match message.byte_len() {
            bytes if bytes > largest => Err(JoinError::InitialTooLarge { bytes, largest }),
            bytes => Ok((message, bytes)),
        });
        measured.collect()
    }

    /// Opens a stream for the message of a refusal, and closes it. A failure there changes nothing.
    async fn send_refusal(&self, presence: &Presence, message: R::Message) {
        let session = &self.session;
        let Ok(_permit) = session.permits.acquire().await else { return };
        let sent = async {
            let mut sink = session.room.open(presence, Progress::default()).await.ok()?;
            sink.send(message).await.ok()?;
            sink.close().await.ok()
        };
        let sent = AssertUnwindSafe(within(session.config.open_timeout, sent)).catch_unwind().await;
        if sent.ok().flatten().flatten().is_none() {
            tracing::debug!(identity = %presence.identity, sid = %presence.sid, "could not say why it is refused");
        }
    }
}

/// A join that failed.
pub(crate) struct Declined {
    pub(crate) error: JoinError,
    /// The connection that was refused, if one was.
    pub(crate) sid: Option<ParticipantSid>,
}

impl From<JoinError> for Declined {
    fn from(error: JoinError) -> Self {
        Self { error, sid: None }
    }
}

/// Decides whether the registry has a place for the connection, before anything is opened.
fn check_place<R: Room>(session: &Core<R>, presence: &Presence) -> Result<(), JoinError> {
    if let Some(present) = session.registry.stored_by_sid(&presence.sid) {
        return Err(JoinError::Duplicate { by: present.client_id() });
    }
    match session.registry.stored(&presence.identity) {
        Some(stored) if stored.joined_at() > presence.joined_at => Err(JoinError::Stale),
        _ => Ok(()),
    }
}

async fn open<R: Room>(session: &Core<R>, presence: &Presence, progress: Progress) -> Result<R::Sink, JoinError> {
    let limit = session.config.open_timeout;
    match within(limit, session.room.open(presence, progress)).await {
        Some(Ok(sink)) => Ok(sink),
        Some(Err(error)) => Err(JoinError::Open(Arc::new(error))),
        None => Err(JoinError::OpenTimedOut(limit)),
    }
}

/// Returns the output of `future` if it completes within `limit`. A future that is ready at once costs no timer and no
/// clock reading.
async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(output) => Some(output),
        Poll::Pending => timeout(limit, future).await.ok(),
    }
}

/// Registers the participant, which makes it findable and live. Returns the instance whose place it took, if there was
/// one.
fn register<R: Room>(
    session: &Core<R>,
    participant: &Participant<R::Message>,
) -> Result<Option<Participant<R::Message>>, JoinError> {
    // Checked before it takes the place of another instance: a failed attempt changes nothing.
    if participant.end_reason().is_some() {
        return Err(ended(session, participant));
    }
    let prior = match session.registry.register(participant) {
        Registration::Inserted => None,
        Registration::Replaced(prior) => Some(prior),
        Registration::Stale(_) => return Err(JoinError::Stale),
        Registration::Duplicate(present) => return Err(JoinError::Duplicate { by: present.client_id() }),
        Registration::Ended(prior) => {
            let Some(reason) = participant.end_reason() else { return Err(JoinError::SessionClosed) };
            if let Some(prior) = prior {
                session.note_short_lived(participant, prior, reason);
            }
            return Err(ended(session, participant));
        }
    };
    if session.fanout.is_sealed() {
        session.registry.remove(participant);
        if let Some(prior) = prior {
            session.note_end(&prior);
        }
        return Err(JoinError::SessionClosed);
    }
    Ok(prior)
}

/// Returns why a participant that has ended can't be registered.
fn ended<R: Room>(session: &Core<R>, participant: &Participant<R::Message>) -> JoinError {
    match participant.end_reason() {
        None | Some(EndReason::SessionClosed) => JoinError::SessionClosed,
        Some(_) if participant.outbox().is_outpaced() => {
            JoinError::Outpaced { bytes: session.config.joining_bytes, age: session.config.joining_age() }
        }
        Some(reason) => JoinError::Ended(reason),
    }
}

/// A participant that isn't registered yet. If this is dropped before its registration, the participant ends.
struct Provisional<'a, R: Room> {
    session: &'a Core<R>,
    participant: &'a Participant<R::Message>,
}

impl<R: Room> Provisional<'_, R> {
    fn keep(self) {
        mem::forget(self);
    }

    /// Ends the participant because its join has failed.
    fn end(&self, error: &JoinError) {
        self.participant.end(if error.may_pass() { EndReason::JoinFailed } else { EndReason::Refused });
    }
}

impl<R: Room> Drop for Provisional<'_, R> {
    fn drop(&mut self) {
        let reason = if self.session.closing.is_sealed() || self.session.fanout.is_sealed() {
            EndReason::SessionClosed
        } else if thread::panicking() {
            // A closure of the embedder that panics once may not panic the next time.
            EndReason::JoinFailed
        } else {
            EndReason::Refused
        };
        self.participant.end(reason);
    }
}
