//! The announcer: the one task that changes the tables and announces each change to the viewers.
//!
//! Promises:
//! - Announcements stand in the log in the order in which the tables changed: an unadvertise never overtakes its
//!   advertise.
//! - A viewer is told of each channel once, and of the end of a channel only if it was told of the channel, whenever it
//!   joins.
//! - A refused announcement changes nothing, and no viewer is told of it.
//! - An operation that reached the announcer before the end of the session is carried out, whether or not its caller
//!   still waits.
//!
//! # Why a task
//! Dropping a channel can't wait, and the operation that the drop sends must not overtake earlier operations. The task
//! carries out one operation after the other.
//!
//! # Why the claim is made under the lock
//! To every observer, the change of a table and the position of its announcement in the log are one step. The position
//! is claimed under the tables' lock and recorded in the tables. A snapshot for a joining viewer, made for a position
//! of its own, therefore leaves out what the log has yet to tell that viewer (see [`tables`](super::tables)). The claim
//! under the lock never waits. When the log is full, the task releases the lock and waits in line like every publisher,
//! and joins go on meanwhile.
//!
//! # Forms
//! An announcement stands in the log once for each [`Form`] that has subscribers. The viewers of each form have
//! positions of their own, so it does no harm that one form learns of a change a little later. A form without
//! subscribers gets no entry in the log: every viewer that joins later finds the change in its snapshot.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Catalog;
use super::entry::ChannelEntry;
use super::form::Form;
use super::op::Op;
use super::tables::Tables;
use crate::contract::Message;
use crate::contract::topic::Audience;
use crate::fanout::{Position, Refused};
use crate::protocol::server::{self, RemoveStatus, Status, Unadvertise};
use crate::protocol::{Frame, ServerMessage};
use crate::session::SessionHandle;
use crate::telemetry::error::AnnounceError;

/// Writes a frame into the log at once, and returns its position.
type Place<'a> = dyn FnMut(&Audience, Frame) -> Result<Position, Refused<Frame>> + 'a;

/// The announcer's state; [`run`](Self::run) is its task.
pub(in crate::telemetry) struct Announcer {
    pub(in crate::telemetry) session: SessionHandle<Frame>,
    pub(in crate::telemetry) catalog: Arc<Catalog>,
    pub(in crate::telemetry) ops: mpsc::UnboundedReceiver<Op>,
    /// Cancelled when every handle is gone: the announcer then no longer waits for capacity in the log.
    pub(in crate::telemetry) released: CancellationToken,
}

impl Announcer {
    /// Runs until the session has ended, or until every handle is gone and the operations sent before that are done.
    pub(in crate::telemetry) async fn run(mut self) {
        let session = self.session.clone();
        let mut ended = pin!(session.ended());
        loop {
            let op = tokio::select! {
                op = self.ops.recv() => op,
                _ = &mut ended => None,
            };
            match op {
                Some(op) => self.carry_out(op).await,
                None => break,
            }
        }
        self.catalog.end();
        // Callers that still wait learn of the end when their replies are dropped, also those whose operation is still
        // in transit.
        self.ops.close();
        while self.ops.recv().await.is_some() {}
    }

    async fn carry_out(&self, op: Op) {
        // A reply that can't be sent means that no caller waits for the outcome: the operation stands all the same.
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

    async fn advertise(&self, channel: &Arc<ChannelEntry>) -> Result<(), AnnounceError> {
        if !channel.is_advertised() {
            // The caller has dropped the channel already. Its unadvertise follows and finds no entry.
            return Ok(());
        }
        let told = self.try_advertise(channel).await;
        if told.is_err() {
            channel.unadvertise();
            self.catalog.tables().end_channel(channel.id());
        }
        told
    }

    async fn try_advertise(&self, channel: &Arc<ChannelEntry>) -> Result<(), AnnounceError> {
        let server::Channel { id, topic, .. } = &channel.described;
        let prior = self.catalog.tables().by_topic(topic).cloned();
        match prior {
            Some(prior) if prior.is_advertised() => {
                return Err(AnnounceError::DuplicateTopic { topic: topic.clone(), id: prior.id() });
            }
            // The prior channel's unadvertise was requested, and waits in the queue behind this operation.
            Some(prior) => self.unadvertise(&prior).await?,
            None => {}
        }
        let mut frames = Vec::new();
        for form in Form::ALL {
            let frame = self.catalog.tables().encode(form, channel);
            self.check(&frame, || format!("the announcement of channel {topic:?}"))?;
            frames.push(frame);
        }
        self.catalog.tables().insert(channel);
        self.tell(|form| frames[form as usize].clone(), |tables, form, at| tables.note_advertised(*id, form, at))
            .await?;
        tracing::info!(channel = id, topic, "channel advertised");
        Ok(())
    }

    async fn unadvertise(&self, channel: &ChannelEntry) -> Result<(), AnnounceError> {
        let server::Channel { id, topic, .. } = &channel.described;
        if self.catalog.tables().channel(*id).is_none() {
            return Ok(());
        }
        let frame = ServerMessage::Unadvertise(Unadvertise { channel_ids: vec![*id] }).encode();
        let told = self.tell(|_| frame.clone(), |tables, form, at| tables.note_unadvertised(*id, form, at)).await;
        self.catalog.tables().end_channel(*id);
        self.catalog.note_removal();
        tracing::info!(channel = id, topic, "channel unadvertised");
        told
    }

    async fn set_status(&self, status: Status) -> Result<(), AnnounceError> {
        tracing::debug!(level = ?status.level, id = status.id, "status");
        let id = status.id.clone();
        let frame = ServerMessage::Status(status).encode();
        self.check(&frame, || "the status".to_owned())?;
        let Some(id) = id else { return self.tell(|_| frame.clone(), |_, _, _| {}).await };
        let key = self.catalog.tables().insert_status(&id, frame.clone());
        let told = self.tell(|_| frame.clone(), |tables, form, at| tables.note_status(&id, key, form, at)).await;
        self.catalog.tables().end_statuses(&[id], Some(key));
        told
    }

    async fn remove_statuses(&self, ids: Vec<String>) -> Result<(), AnnounceError> {
        tracing::debug!(?ids, "statuses removed");
        let frame = ServerMessage::RemoveStatus(RemoveStatus { status_ids: ids.clone() }).encode();
        self.check(&frame, || "the removal of statuses".to_owned())?;
        let told = self.tell(|_| frame.clone(), |tables, form, at| tables.note_removed(&ids, form, at)).await;
        self.catalog.tables().end_statuses(&ids, None);
        told
    }

    /// Refuses a frame that is longer than the longest message of the session.
    fn check(&self, frame: &Frame, what: impl FnOnce() -> String) -> Result<(), AnnounceError> {
        let (bytes, limit) = (frame.byte_len(), self.session.publisher().largest_message());
        if bytes as u64 > limit {
            return Err(AnnounceError::TooLarge { what: what(), bytes, limit });
        }
        Ok(())
    }

    /// Announces a change to the viewers of each form. `note` records in the tables from which position on a snapshot
    /// includes the change.
    async fn tell(
        &self,
        frame: impl Fn(Form) -> Frame,
        note: impl Fn(&mut Tables, Form, Position),
    ) -> Result<(), AnnounceError> {
        for form in Form::ALL {
            let told = self.session.publisher().claim(|place| self.try_tell(place, form, &frame, &note));
            tokio::select! {
                // Biased: what can be done without waiting is done, even after the release.
                biased;
                told = told => told?,
                () = self.released.cancelled() => return Err(AnnounceError::Closed),
            }
        }
        Ok(())
    }

    /// Claims a position in the log under the tables' lock. Pending if the log is full.
    fn try_tell(
        &self,
        place: &mut Place<'_>,
        form: Form,
        frame: impl Fn(Form) -> Frame,
        note: impl Fn(&mut Tables, Form, Position),
    ) -> Poll<Result<(), AnnounceError>> {
        let topic = self.catalog.announcements(form);
        let mut tables = self.catalog.tables();
        if self.session.publisher().reaches_nobody(topic) {
            // A viewer that joins from now on counts as a subscriber before it asks for its snapshot, which needs this
            // lock.
            note(&mut tables, form, Position::default());
            return Poll::Ready(Ok(()));
        }
        match place(&Audience::Topic(topic.clone()), frame(form)) {
            Ok(position) => {
                note(&mut tables, form, position.after(1));
                Poll::Ready(Ok(()))
            }
            Err(Refused::Full(_)) => Poll::Pending,
            // `place` refuses no message for its length.
            Err(Refused::Closed(_) | Refused::TooLarge(_)) => Poll::Ready(Err(AnnounceError::Closed)),
        }
    }
}
