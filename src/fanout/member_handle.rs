//! The session's side of a member, as the member's shard uses it.

use std::fmt;

use futures_sink::Sink;

use crate::contract::{EndReason, Message, RunSink};
use crate::fanout::outbox::Outbox;

/// The session's side of a member: where its bytes go, and who is told when it ends.
pub(crate) trait MemberHandle: Send + 'static {
    type Message: Message;
    /// The sink that the participant's messages go into.
    type Sink: RunSink<Self::Message, Error: fmt::Debug> + Unpin + Send + 'static;

    /// Whether the sink's error means that its peer is gone, rather than that something went wrong.
    fn has_vanished(error: &SinkError<Self>) -> bool;

    /// The participant's sending side.
    fn outbox(&self) -> &Outbox<Self::Message>;

    /// Tells the session that the shard has ended the member for a fault, or because its peer has vanished. `detail` is
    /// the sink's error.
    fn faulted(&self, reason: EndReason, detail: Option<&dyn fmt::Debug>);

    /// Tells the session that the member has ended and nothing more goes into its sink, which is handed back.
    fn retire(self, sink: Self::Sink, reason: EndReason);
}

/// The error of a member's sink.
pub(in crate::fanout) type SinkError<O> = <<O as MemberHandle>::Sink as Sink<<O as MemberHandle>::Message>>::Error;
