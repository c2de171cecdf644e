//! Assets: files that viewers fetch by URI.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;

use super::answer::answer_or;
use super::instance::Permit;
use crate::contract::Message;
use crate::participant::{Participant, SendError};
use crate::protocol::server::FetchAssetResponse;
use crate::protocol::{Frame, ServerMessage};

type Fetched = Pin<Box<dyn Future<Output = Result<Bytes, String>> + Send>>;

/// The embedder's handler of asset requests.
pub(in crate::telemetry) type AssetHandler = Arc<dyn Fn(AssetRequest) -> Fetched + Send + Sync>;

/// A viewer's request for an asset.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AssetRequest {
    /// The viewer that asks.
    pub participant: Participant<Frame>,
    /// The asset's URI as the viewer sent it, for example `package://robot/base.stl`. The viewer is free to send
    /// anything: don't open it as a file path.
    pub uri: String,
}

/// Answers to a viewer's asset requests.
impl Participant<Frame> {
    /// Answers an asset request with the asset. Never blocks; the payload is shared.
    ///
    /// # Errors
    /// As [`send`](Self::send): an answer that finds the participant's queue full resets the participant.
    pub fn send_asset_response(&self, request_id: u32, asset: impl Into<Bytes>) -> Result<(), SendError<Frame>> {
        self.send(encode(request_id, Ok(asset.into())))
    }

    /// Answers an asset request with the reason why there is no asset. Never blocks.
    ///
    /// # Errors
    /// As [`send`](Self::send): an answer that finds the participant's queue full resets the participant.
    pub fn send_asset_error(&self, request_id: u32, error: impl fmt::Display) -> Result<(), SendError<Frame>> {
        self.send(encode(request_id, Err(error.to_string())))
    }
}

/// Encodes an answer, which looks the same in every wire format.
pub(super) fn encode(request_id: u32, result: Result<Bytes, String>) -> Frame {
    ServerMessage::FetchAssetResponse(FetchAssetResponse { request_id, result }).encode()
}

/// Calls `handler` and answers with its result. If this future is dropped, no answer is sent and the permit is
/// returned.
pub(super) async fn fetch(handler: AssetHandler, request: AssetRequest, request_id: u32, permit: Permit) {
    let participant = request.participant.clone();
    let fetched = AssertUnwindSafe(async { handler(request).await }).catch_unwind().await;
    let failed = |reason: &str| encode(request_id, Err(reason.to_owned()));
    let frame = match fetched {
        Ok(Ok(asset)) => encode(request_id, Ok(asset)),
        Ok(Err(error)) => failed(&error),
        Err(panic) => {
            participant.log(|| tracing::warn!(panic = panic_text(&*panic), "the asset handler panicked"));
            failed("the server failed to fetch the asset")
        }
    };
    // Hold the permit until the queue has capacity for the answer, which occupies memory. Return it before sending:
    // once the viewer has the answer, it may request the next asset at once.
    participant.wait_for_capacity(frame.byte_len()).await;
    drop(permit);
    answer_or(&participant, frame, || failed("the asset is too large")).await;
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}
