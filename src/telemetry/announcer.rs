//! The announcer: the one task that changes the tables and tells everybody.
//!
//! Promises:
//! - Announcements stand in the log in the order in which the tables changed: an unadvertise never overtakes its
//!   advertise.
//! - A viewer is told of each channel once, and of the end of a channel only if it was told of the channel, whenever it
//!   joins.
//! - An announcement that is refused has changed nothing, and nobody is told of it.
//! - An operation that was asked for is carried out, whether or not its caller still waits.
//!
//! # Why a task
//! A channel's drop can't wait, and what it asks for must not overtake what was asked for before. The task carries out
//! one operation after the other.
//!
//! # Why the claim is made under the lock
//! The change of a table and the place of its announcement in the log are one step to everybody who looks: the place is
//! claimed under the tables' lock and recorded there, so that a joiner's snapshot, made for a position of its own, leaves
//! out what the log is still to tell it (see [`tables`](super::tables)). The claim under the lock never waits; when the
//! log is full, the task waits in turn like every publisher, without the lock, and joins go on meanwhile.
//!
//! # Forms
//! What is told stands in the log once for each [`Form`] that somebody is told in. Each form's viewers have positions of
//! their own, so it does no harm that one form learns of a change a little later. A form that nobody is told in has no
//! place in the log: everybody who joins later finds the change in its snapshot.

use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Status;
use super::channel::ChannelState;
use super::error::AnnounceError;
use super::state::{Form, State};
use super::tables::Tables;
use crate::lane::Message;
use crate::lane::log::{BroadcastLog, PublishError};
use crate::lane::topic::Audience;
use crate::protocol::server::{self, RemoveStatus, Unadvertise};
use crate::protocol::{Frame, ServerMessage};
use crate::room::Room;
use crate::session::Session;

/// Where an operation's outcome goes.
type Done = oneshot::Sender<Result<(), AnnounceError>>;

/// What the tables are asked to become.
pub(super) enum Op {
    Advertise {
        channel: Arc<ChannelState>,
        done: Done,
    },
    Unadvertise {
        channel: Arc<ChannelState>,
        /// Nobody waits when the last handle of a channel is dropped.
        done: Option<Done>,
    },
    Status {
        status: Status,
        done: Done,
    },
    RemoveStatus {
        ids: Vec<String>,
        done: Done,
    },
}

/// See the [module](self).
pub(super) struct Announcer<R: Room> {
    pub(super) session: Session<R>,
    pub(super) state: Arc<State>,
    pub(super) ops: mpsc::UnboundedReceiver<Op>,
    /// Cancelled when every handle is gone: nothing is waited for any more.
    pub(super) released: CancellationToken,
}

impl<R: Room<Message = Frame>> Announcer<R> {
    /// Runs until the session has ended, or every handle is gone and what they asked for is done.
    pub(super) async fn run(mut self) {
        loop {
            let op = tokio::select! {
                op = self.ops.recv() => op,
                _ = self.session.ended() => None,
            };
            match op {
                Some(op) => self.carry_out(op).await,
                None => break,
            }
        }
        self.state.end();
        // Who still waits learns from its dropped reply, also one whose operation is just on its way here.
        self.ops.close();
        while self.ops.recv().await.is_some() {}
    }

    async fn carry_out(&self, op: Op) {
        // Nobody waits for the outcome: the operation stands all the same.
        match op {
            Op::Advertise { channel, done } => {
                let _ = done.send(self.advertise(&channel).await);
            }
            Op::Unadvertise { channel, done } => {
                let outcome = self.unadvertise(&channel).await;
                let _ = done.map(|done| done.send(outcome));
            }
            Op::Status { status, done } => {
                let _ = done.send(self.set_status(status).await);
            }
            Op::RemoveStatus { ids, done } => {
                let _ = done.send(self.remove_statuses(ids).await);
            }
        }
    }

    async fn advertise(&self, channel: &Arc<ChannelState>) -> Result<(), AnnounceError> {
        if !channel.is_advertised() {
            // The caller has gone already; its unadvertise follows and finds nothing.
            return Ok(());
        }
        let told = self.try_advertise(channel).await;
        if told.is_err() {
            channel.unadvertise();
            self.state.tables().end_channel(channel.id());
        }
        told
    }

    async fn try_advertise(&self, channel: &Arc<ChannelState>) -> Result<(), AnnounceError> {
        let server::Channel { id, topic, .. } = &channel.described;
        let prior = self.state.tables().by_topic(topic).cloned();
        match prior {
            Some(prior) if prior.is_advertised() => {
                return Err(AnnounceError::DuplicateTopic { topic: topic.clone(), id: prior.id() });
            }
            // Its end was asked for, and stands in the queue behind this.
            Some(prior) => self.unadvertise(&prior).await?,
            None => {}
        }
        let mut frames = Vec::new();
        for form in Form::ALL {
            let frame = self.state.tables().encode(form, channel);
            self.check(&frame, || format!("the announcement of channel {topic:?}"))?;
            frames.push(frame);
        }
        self.state.tables().insert(channel);
        self.tell(|form| frames[form as usize].clone(), |tables, form, at| tables.note_advertised(*id, form, at))
            .await?;
        tracing::info!(channel = id, topic, "channel advertised");
        Ok(())
    }

    async fn unadvertise(&self, channel: &ChannelState) -> Result<(), AnnounceError> {
        let server::Channel { id, topic, .. } = &channel.described;
        if self.state.tables().channel(*id).is_none() {
            return Ok(());
        }
        let frame = ServerMessage::Unadvertise(Unadvertise { channel_ids: vec![*id] }).encode();
        let told = self.tell(|_| frame.clone(), |tables, form, at| tables.note_unadvertised(*id, form, at)).await;
        self.state.tables().end_channel(*id);
        self.state.note_removal();
        tracing::info!(channel = id, topic, "channel unadvertised");
        told
    }

    async fn set_status(&self, status: Status) -> Result<(), AnnounceError> {
        tracing::debug!(level = ?status.level, id = status.id, "status");
        let id = status.id.clone();
        let frame = ServerMessage::Status(status).encode();
        self.check(&frame, || "the status".to_owned())?;
        let Some(id) = id else { return self.tell(|_| frame.clone(), |_, _, _| {}).await };
        let key = self.state.tables().insert_status(&id, frame.clone());
        let told = self.tell(|_| frame.clone(), |tables, form, at| tables.note_status(&id, key, form, at)).await;
        self.state.tables().end_statuses(&[id], Some(key));
        told
    }

    async fn remove_statuses(&self, ids: Vec<String>) -> Result<(), AnnounceError> {
        tracing::debug!(?ids, "statuses removed");
        let frame = ServerMessage::RemoveStatus(RemoveStatus { status_ids: ids.clone() }).encode();
        self.check(&frame, || "the removal of statuses".to_owned())?;
        let told = self.tell(|_| frame.clone(), |tables, form, at| tables.note_removed(&ids, form, at)).await;
        self.state.tables().end_statuses(&ids, None);
        told
    }

    /// Refuses what is longer than anything may be that waits for a participant.
    fn check(&self, frame: &Frame, what: impl FnOnce() -> String) -> Result<(), AnnounceError> {
        let (bytes, limit) = (frame.byte_len(), self.session.largest_message());
        if bytes as u64 > limit {
            return Err(AnnounceError::TooLarge { what: what(), bytes, limit });
        }
        Ok(())
    }

    /// Tells those of each form, and has `note` record in the tables from which position on a snapshot knows it.
    async fn tell(
        &self,
        frame: impl Fn(Form) -> Frame,
        note: impl Fn(&mut Tables, Form, u64),
    ) -> Result<(), AnnounceError> {
        for form in Form::ALL {
            let told = self.session.claim(|log| self.try_tell(log, form, &frame, &note));
            tokio::select! {
                // What can be done without waiting is done.
                biased;
                told = told => told?,
                () = self.released.cancelled() => return Err(AnnounceError::Closed),
            }
        }
        Ok(())
    }

    /// Claims a place in the log under the tables' lock. Pending if the log is full.
    fn try_tell(
        &self,
        log: &BroadcastLog<Frame>,
        form: Form,
        frame: impl Fn(Form) -> Frame,
        note: impl Fn(&mut Tables, Form, u64),
    ) -> Poll<Result<(), AnnounceError>> {
        let topic = self.state.announcements(form);
        let mut tables = self.state.tables();
        if topic.subscribers() == 0 && !log.tail().is_sealed() {
            // Whoever joins from now on counts as a subscriber before it looks for its snapshot, which needs this lock.
            note(&mut tables, form, 0);
            return Poll::Ready(Ok(()));
        }
        match log.place(&Audience::Topic(topic.clone()), frame(form)) {
            Ok(position) => {
                note(&mut tables, form, position + 1);
                Poll::Ready(Ok(()))
            }
            Err(PublishError::Closed(_)) => Poll::Ready(Err(AnnounceError::Closed)),
            Err(PublishError::Full(_)) => Poll::Pending,
        }
    }
}
