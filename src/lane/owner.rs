//! The layer above, as far as the lane has to know it.

use std::fmt;
use std::pin::Pin;

use futures_sink::Sink;

use super::Message;
use super::account::EndReason;
use super::outbox::Outbox;
use super::progress::Progress;
use super::run::BroadcastRun;

/// Whom a member belongs to.
pub(crate) trait Owner<M: Message>: Send + 'static {
    /// Where the participant's bytes go.
    type Sink: Sink<M, Error: fmt::Debug> + Unpin + Send + 'static;

    /// Hands broadcasts to a sink that is ready for one. Says how many of the first it has taken.
    fn start_send_run(sink: Pin<&mut Self::Sink>, run: &BroadcastRun<'_, M>) -> Result<usize, SinkError<Self, M>>;

    /// Whether the sink's error says that its peer is gone, rather than that something went wrong.
    fn has_vanished(error: &SinkError<Self, M>) -> bool;

    /// Its sending side.
    fn outbox(&self) -> &Outbox<M>;

    /// What tells it from the one that had its slot before.
    fn key(&self) -> u64;

    /// The shard has ended it for a fault, or as its peer has vanished; `detail` is what the sink said.
    fn faulted(&self, reason: EndReason, detail: Option<&dyn fmt::Debug>);

    /// It has ended and nothing more goes into its sink, which is handed back.
    fn retire(self, sink: Self::Sink, reason: EndReason);
}

/// What a sink says when it fails.
pub(crate) type SinkError<O, M> = <<O as Owner<M>>::Sink as Sink<M>>::Error;

/// What a shard is told of a newcomer.
pub(crate) struct Newcomer<O: Owner<M>, M: Message> {
    pub(crate) owner: O,
    pub(crate) sink: O::Sink,
    pub(crate) progress: Progress,
}
