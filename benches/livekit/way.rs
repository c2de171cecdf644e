//! The ways to bring frames to all viewers that are compared.

use futures_util::future::join_all;
use lanecast::Session;
use lanecast::protocol::Frame;
use lanecast::room::Room;
use livekit_data_stream::api::{ByteStreamWriter, StreamWriter};

/// One way to bring frames to all viewers, with its streams or its session.
pub(crate) enum Way<R: Room<Message = Frame>> {
    /// The plain loop: the write to one viewer is awaited before the write to the next begins.
    Loop(Vec<ByteStreamWriter>),
    /// The writes of a frame to all viewers are awaited together.
    Joined(Vec<ByteStreamWriter>),
    /// This crate.
    Lanecast(Session<R>),
}

impl<R: Room<Message = Frame>> Way<R> {
    pub(crate) async fn publish(&self, frame: &Frame) {
        match self {
            Self::Loop(writers) => {
                let bytes = encoded(frame);
                for writer in writers {
                    writer.write(&bytes).await.expect("the connection stands");
                }
            }
            Self::Joined(writers) => {
                let bytes = encoded(frame);
                for written in join_all(writers.iter().map(|writer| writer.write(&bytes))).await {
                    written.expect("the connection stands");
                }
            }
            Self::Lanecast(session) => session.broadcast(frame.clone()).await.expect("the session is open"),
        }
    }

    /// Waits until the session, if this way is one, has this many participants.
    pub(crate) async fn joined(&self, viewers: usize) {
        if let Self::Lanecast(session) = self {
            let mut events = session.events();
            while session.participants().len() != viewers {
                events.next().await.expect("the session is open");
            }
        }
    }

    /// Ends the session, if this way is one. Asserts that no viewer was reset, which would make the measurement
    /// invalid.
    pub(crate) async fn end(&self) {
        if let Self::Lanecast(session) = self {
            assert_eq!(session.stats().resets.total(), 0, "nobody is reset");
            session.cancel();
            session.ended().await.expect("nothing is stuck");
        }
    }
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.append_to_stream(&mut bytes);
    bytes
}
