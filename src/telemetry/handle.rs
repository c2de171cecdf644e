//! The handle to telemetry.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;

use super::catalog::Catalog;
use super::catalog::op::Op;
use super::error::AnnounceError;
use super::viewer::instance::Viewer;
use super::viewer::viewers::Viewers;
use crate::ids::ClientId;
use crate::protocol::Frame;
use crate::protocol::server::{Status, StatusLevel};
#[cfg(doc)]
use crate::session::Session;
use crate::session::{CloseError, CloseReport, SessionHandle};

/// A session that speaks the wire formats of telemetry viewers. Clones are handles to the same session.
///
/// Dropping the last clone and the last channel drops the session, which cancels it unless the embedder holds the
/// session too.
pub struct Telemetry(pub(super) Arc<Handle>);

/// What [`Telemetry`] and its channels share. The closures inside the session hold only the [`Viewers`], so there is no
/// reference cycle.
pub(super) struct Handle {
    pub(super) session: SessionHandle<Frame>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) viewers: Arc<Viewers>,
    /// Operations for the announcer. Unbounded: every caller awaits its operation, except the drop of a channel, which
    /// can't wait.
    pub(super) ops: mpsc::UnboundedSender<Op>,
    /// Dropped with the last handle. The announcer then stops waiting for capacity in the log.
    pub(super) _released: DropGuard,
}

impl Telemetry {
    /// Shows a status to all viewers. A status with an id holds until it is replaced by one with the same id or
    /// [removed](Self::remove_status), and viewers that join meanwhile are shown it too. A status without an id is
    /// shown once.
    ///
    /// # Errors
    /// [`AnnounceError`] if the session is closed or the status exceeds its byte limit.
    ///
    /// # Cancel safety
    /// If this future is dropped after its first poll, the status is sent all the same.
    pub async fn status(
        &self,
        level: StatusLevel,
        message: impl Into<String>,
        id: Option<&str>,
    ) -> Result<(), AnnounceError> {
        let status = Status { level, message: message.into(), id: id.map(str::to_owned) };
        self.0.announce(|done| Op::Status { status, done }).await
    }

    /// Tells all viewers that statuses no longer hold. Ids without a current status are passed on all the same.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    ///
    /// # Cancel safety
    /// As [`status`](Self::status).
    pub async fn remove_status<I>(&self, ids: I) -> Result<(), AnnounceError>
    where
        I: IntoIterator<Item: Into<String>>,
    {
        let ids: Vec<String> = ids.into_iter().map(Into::into).collect();
        self.0.announce(|done| Op::RemoveStatus { ids, done }).await
    }

    /// Returns the viewer's instance with this [`client_id`](crate::Participant::client_id). `None` if no such instance
    /// is registered or joining. An instance that has ended is found until its sink is back with the room.
    #[must_use]
    pub fn viewer(&self, client_id: ClientId) -> Option<Viewer> {
        self.0.viewers.get(client_id)
    }

    /// The underlying session: its participants, statistics and events.
    #[must_use]
    pub fn session(&self) -> &SessionHandle<Frame> {
        &self.0.session
    }

    /// Closes the session as [`Session::close`] does, and waits until the announcer accepts no more operations.
    ///
    /// # Errors
    /// As [`Session::close`].
    pub async fn close(&self, deadline: Duration) -> Result<CloseReport, CloseError> {
        let report = self.0.session.close(deadline).await;
        if !matches!(report, Err(CloseError::FromCallback)) {
            self.0.ops.closed().await;
        }
        report
    }
}

impl Handle {
    /// Sends an operation to the announcer, and waits for the outcome.
    pub(super) async fn announce(
        &self,
        op: impl FnOnce(oneshot::Sender<Result<(), AnnounceError>>) -> Op,
    ) -> Result<(), AnnounceError> {
        let (done, outcome) = oneshot::channel();
        if self.ops.send(op(done)).is_err() {
            return Err(AnnounceError::Closed);
        }
        outcome.await.unwrap_or(Err(AnnounceError::Closed))
    }
}

impl Clone for Telemetry {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("session", &self.0.session).finish_non_exhaustive()
    }
}
