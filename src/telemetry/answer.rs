//! How an answer to one viewer's request is sent: here, and nowhere else.

use crate::participant::{Participant, SendError};
use crate::protocol::Frame;

/// Sends `frame` to `participant` in answer to what it sent. That it couldn't be sent is logged: the participant has
/// ended, or is being reset for it.
pub(super) async fn answer(participant: &Participant<Frame>, frame: Frame) {
    note(participant, send(participant, frame).await);
}

/// As [`answer`], but if `frame` is larger than anything may be that waits for a participant, sends `instead`.
pub(super) async fn answer_or(participant: &Participant<Frame>, frame: Frame, instead: impl FnOnce() -> Frame) {
    match send(participant, frame).await {
        Err(SendError::TooLarge(_)) => answer(participant, instead()).await,
        sent => note(participant, sent),
    }
}

/// Doesn't wait: a participant that doesn't read its answers overflows by them.
#[expect(clippy::unused_async, reason = "who answers is ready to wait")]
async fn send(participant: &Participant<Frame>, frame: Frame) -> Result<(), SendError<Frame>> {
    participant.send(frame)
}

fn note(participant: &Participant<Frame>, sent: Result<(), SendError<Frame>>) {
    if let Err(error) = sent {
        tracing::debug!(%participant, %error, "answer not sent");
    }
}
