//! How an answer to one viewer's request is sent: here, and nowhere else.

use crate::lane::Message;
use crate::participant::{Participant, SendError};
use crate::protocol::Frame;

/// Sends `frame` to `participant` in answer to what it sent, once there is [room](Participant::room_for) for it: by
/// what it asks for, one that reads doesn't overflow. That it couldn't be sent is logged: the participant has ended, or
/// is being reset.
pub(super) async fn answer(participant: &Participant<Frame>, frame: Frame) {
    participant.room_for(frame.byte_len()).await;
    note(participant, participant.send_waiting(frame).await);
}

/// As [`answer`], but if `frame` is larger than anything may be that waits for a participant, sends `instead`.
pub(super) async fn answer_or(participant: &Participant<Frame>, frame: Frame, instead: impl FnOnce() -> Frame) {
    participant.room_for(frame.byte_len()).await;
    match participant.send_waiting(frame).await {
        Err(SendError::TooLarge(_)) => answer(participant, instead()).await,
        sent => note(participant, sent),
    }
}

fn note(participant: &Participant<Frame>, sent: Result<(), SendError<Frame>>) {
    if let Err(error) = sent {
        tracing::debug!(%participant, %error, "answer not sent");
    }
}
