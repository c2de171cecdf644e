//! Sends telemetry's answers to a viewer's requests. No other code sends them.

use crate::contract::Message;
use crate::participant::{Participant, SendError};
use crate::protocol::Frame;

/// Sends `frame` to `participant` in answer to a request, once there is [capacity](Participant::wait_for_capacity) for
/// it. Such answers alone don't overflow a participant that reads, however much it asks for. A failure is logged: the
/// participant has ended, or is being reset.
pub(super) async fn answer(participant: &Participant<Frame>, frame: Frame) {
    participant.wait_for_capacity(frame.byte_len()).await;
    note(participant, participant.send_waiting(frame).await);
}

/// As [`answer`], but sends `instead` if `frame` is longer than the longest message of the session.
pub(super) async fn answer_or(participant: &Participant<Frame>, frame: Frame, instead: impl FnOnce() -> Frame) {
    participant.wait_for_capacity(frame.byte_len()).await;
    match participant.send_waiting(frame).await {
        Err(SendError::TooLarge(_)) => answer(participant, instead()).await,
        sent => note(participant, sent),
    }
}

fn note(participant: &Participant<Frame>, sent: Result<(), SendError<Frame>>) {
    if let Err(error) = sent {
        participant.log(|| tracing::debug!(%error, "answer not sent"));
    }
}
