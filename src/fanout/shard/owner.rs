//! The lane's interface to the session above it.

use std::fmt;
use std::pin::Pin;

use futures_sink::Sink;

use crate::contract::EndReason;
use crate::contract::Message;
use crate::contract::progress::Progress;
use crate::contract::run::BroadcastRun;
use crate::fanout::outbox::Outbox;

/// The session's side of a member: where its bytes go, and who is told when it ends.
pub(crate) trait Owner<M: Message>: Send + 'static {
    /// The sink that the participant's messages go into.
    type Sink: Sink<M, Error: fmt::Debug> + Unpin + Send + 'static;

    /// Hands broadcasts to a sink that is ready for one. Returns how many of the first broadcasts the sink has taken.
    fn start_send_run(sink: Pin<&mut Self::Sink>, run: &BroadcastRun<'_, M>) -> Result<usize, SinkError<Self, M>>;

    /// Whether the sink's error means that its peer is gone, rather than that something went wrong.
    fn has_vanished(error: &SinkError<Self, M>) -> bool;

    /// The participant's sending side.
    fn outbox(&self) -> &Outbox<M>;

    /// Distinguishes this member from a previous occupant of its slot.
    fn key(&self) -> u64;

    /// Tells the owner that the shard has ended the member for a fault, or because its peer has vanished. `detail` is
    /// the sink's error.
    fn faulted(&self, reason: EndReason, detail: Option<&dyn fmt::Debug>);

    /// Tells the owner that the member has ended and nothing more goes into its sink, which is handed back.
    fn retire(self, sink: Self::Sink, reason: EndReason);
}

/// The error of a member's sink.
pub(crate) type SinkError<O, M> = <<O as Owner<M>>::Sink as Sink<M>>::Error;

/// What a shard needs to know of a newcomer.
pub(crate) struct Newcomer<O: Owner<M>, M: Message> {
    pub(crate) owner: O,
    pub(crate) sink: O::Sink,
    pub(crate) progress: Progress,
}
