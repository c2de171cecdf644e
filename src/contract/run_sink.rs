//! Sinks that a shard can show a run of broadcasts.

use std::pin::Pin;

use futures_sink::Sink;

use crate::contract::message::Message;
use crate::contract::run::BroadcastRun;

/// The stream to one participant: a sink that a shard can show several broadcasts at once.
///
/// A sink of your own implements this with an empty `impl`, and then gets a clone of each broadcast. A sink that copies
/// a message's bytes anyway, as most transports do, overrides [`start_send_run`](Self::start_send_run). A boxed sink,
/// `Pin<Box<S>>` for any sink `S`, gets clones: box a foreign sink to use it as
/// [`Room::Sink`](crate::room::Room::Sink), and put one of your own that takes runs behind a type that isn't boxed.
pub trait RunSink<M: Message>: Sink<M> {
    /// Takes broadcasts of a run; the sink is ready for a message. Each broadcast goes to many participants; their
    /// copies differ only in the tag of the subscription.
    ///
    /// The sink takes one or more broadcasts from the start of the run and returns how many it took. For the rest, the
    /// shard polls the sink for readiness again. By default the sink gets a clone of the first broadcast,
    /// [addressed](Message::address) with the tag. A sink that copies a message's bytes anyway copies them here, for as
    /// many broadcasts as it has capacity for. This saves a clone and a drop per participant, which for a
    /// reference-counted message are most of the cost of a delivery. The [ids] of the run tell what has been encoded
    /// for another participant already. A message to one participant arrives through [`Sink::start_send`], and so does
    /// a broadcast from the backlog that no other participant needs any more. The order of messages is the order of the
    /// calls to both methods.
    ///
    /// # Errors
    /// The errors of [`Sink::start_send`]: the participant is reset, and all messages of the run count as dropped. A
    /// sink that claims to have taken none, or more than there are, is treated as if it had panicked: its participant
    /// is reset, too.
    ///
    /// [ids]: BroadcastRun::first_id
    fn start_send_run(self: Pin<&mut Self>, run: &BroadcastRun<'_, M>) -> Result<usize, Self::Error> {
        let mut copy = run.messages()[0].clone();
        if let Some(tag) = run.tag() {
            copy.address(tag);
        }
        self.start_send(copy).map(|()| 1)
    }
}

impl<M: Message, S: Sink<M> + ?Sized> RunSink<M> for Pin<Box<S>> {}
