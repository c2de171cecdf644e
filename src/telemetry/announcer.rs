//! The announcer: the one task that changes the tables and tells everybody.
//!
//! Promises:
//! - Announcements stand in the log in the order in which the tables changed: an unadvertise never overtakes its
//!   advertise.
//! - Whoever joins meanwhile is told of each channel and status that holds, perhaps twice, and keeps none that is gone.
//! - An operation that was asked for is carried out, whether or not who asked still waits.
//!
//! # Why a task
//! Changing a table and claiming a place in the log has to look like one step to everybody else who changes it. A lock
//! held across both would need a claim that doesn't wait, tried again and again while the log is full, behind
//! publishers who wait in turn; and an advertisement that exists in two forms needs two claims, of which the second may
//! fail. The task waits in turn like everybody else, once per claim, and nothing is ever taken back.
//!
//! # Why a join misses nothing
//! A table is changed first and announced second, and a joiner is subscribed to announcements before it looks at the
//! tables. If it looks after the change, it finds it there; if before, its position lies before the claim that follows.
//! It may find a change whose announcement is still to come, or has been on its way: told again, in the same order, the
//! changes lead to the same state, because a channel's number is never used again.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Status;
use super::channel::ChannelState;
use super::error::AnnounceError;
use super::state::{Form, State};
use crate::lane::Message;
use crate::protocol::server::{RemoveStatus, Unadvertise};
use crate::protocol::{Frame, ServerMessage};
use crate::room::Room;
use crate::session::{BroadcastError, Session};

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
                tracing::debug!(?ids, "statuses removed");
                self.state.remove_statuses(&ids);
                let frame = ServerMessage::RemoveStatus(RemoveStatus { status_ids: ids }).encode();
                let _ = done.send(self.tell(None, frame).await);
            }
        }
    }

    async fn advertise(&self, channel: &Arc<ChannelState>) -> Result<(), AnnounceError> {
        if !channel.is_advertised() {
            // Who asked has gone already; its unadvertise follows and finds nothing.
            return Ok(());
        }
        let frames = self.state.insert(channel);
        for (form, frame) in Form::ALL.into_iter().zip(frames) {
            if let Err(error) = self.tell(Some(form), frame).await {
                // Some may have been told: let it go the usual way.
                channel.unadvertise();
                self.unadvertise(channel).await?;
                return Err(error);
            }
        }
        tracing::info!(channel = channel.id(), topic = channel.described.topic, "channel advertised");
        Ok(())
    }

    async fn unadvertise(&self, channel: &ChannelState) -> Result<(), AnnounceError> {
        if !self.state.remove(channel) {
            return Ok(());
        }
        let frame = ServerMessage::Unadvertise(Unadvertise { channel_ids: vec![channel.id()] }).encode();
        let told = self.tell(None, frame).await;
        self.state.note_removal();
        tracing::info!(channel = channel.id(), topic = channel.described.topic, "channel unadvertised");
        told
    }

    async fn set_status(&self, status: Status) -> Result<(), AnnounceError> {
        tracing::debug!(level = ?status.level, id = status.id, "status");
        let id = status.id.clone();
        let (frame, replaced) = self.state.set_status(status);
        let told = self.tell(None, frame).await;
        if let (Err(_), Some(id)) = (told, id) {
            // Who joined in between has it, and nobody will be told again; for all others the one before holds on.
            self.state.restore_status(id, replaced);
        }
        told
    }

    /// Sends `frame` to everybody, or to those of one form.
    async fn tell(&self, form: Option<Form>, frame: Frame) -> Result<(), AnnounceError> {
        let told = async {
            match form {
                None => self.session.broadcast(frame).await,
                Some(form) => self.session.broadcast_to(self.state.advertisements(form), frame).await,
            }
        };
        tokio::select! {
            // What can be done without waiting is done.
            biased;
            told = told => told.map_err(|error| match error {
                BroadcastError::TooLarge(frame) => AnnounceError::TooLarge { bytes: frame.byte_len() },
                BroadcastError::Closed(_) => AnnounceError::Closed,
            }),
            () = self.released.cancelled() => Err(AnnounceError::Closed),
        }
    }
}
