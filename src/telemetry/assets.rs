//! Assets: files that viewers ask for by URI.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;

use super::answer::answer_or;
use crate::lane::Message;
use crate::participant::{Participant, SendError};
use crate::protocol::server::FetchAssetResponse;
use crate::protocol::{Frame, ServerMessage};
use crate::semaphore::Permit;

type Fetched = Pin<Box<dyn Future<Output = Result<Bytes, String>> + Send>>;

/// What the embedder does for a request.
pub(super) type AssetHandler = Arc<dyn Fn(AssetRequest) -> Fetched + Send + Sync>;

/// A viewer asks for an asset.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AssetRequest {
    /// Who asks.
    pub participant: Participant<Frame>,
    /// Which asset, in the viewer's own words, for example `package://robot/base.stl`. Don't take it for a path that
    /// may be opened.
    pub uri: String,
}

/// What goes to one viewer in answer to a request.
impl Participant<Frame> {
    /// Answers a request for an asset with the asset. Never blocks; the payload is shared.
    ///
    /// # Errors
    /// As [`send`](Self::send): an answer that doesn't fit any more resets the participant.
    pub fn send_asset_response(&self, request_id: u32, asset: impl Into<Bytes>) -> Result<(), SendError<Frame>> {
        self.send(encode(request_id, Ok(asset.into())))
    }

    /// Answers a request for an asset with the reason why there is none. Never blocks.
    ///
    /// # Errors
    /// As [`send`](Self::send): an answer that doesn't fit any more resets the participant.
    pub fn send_asset_error(&self, request_id: u32, error: impl fmt::Display) -> Result<(), SendError<Frame>> {
        self.send(encode(request_id, Err(error.to_string())))
    }
}

/// It looks the same in every format.
pub(super) fn encode(request_id: u32, result: Result<Bytes, String>) -> Frame {
    ServerMessage::FetchAssetResponse(FetchAssetResponse { request_id, result }).encode()
}

/// Has `handler` fetch, and answers. Dropped, it answers nothing and gives its place back.
pub(super) async fn fetch(handler: AssetHandler, request: AssetRequest, request_id: u32, permit: Permit) {
    let participant = request.participant.clone();
    let fetched = AssertUnwindSafe(async { handler(request).await }).catch_unwind().await;
    let failed = |reason: &str| encode(request_id, Err(reason.to_owned()));
    let frame = match fetched {
        Ok(Ok(asset)) => encode(request_id, Ok(asset)),
        Ok(Err(error)) => failed(&error),
        Err(panic) => {
            tracing::warn!(%participant, panic = panic_text(&*panic), "the asset handler panicked");
            failed("the server failed to fetch the asset")
        }
    };
    // In flight until there is room for the answer, which takes memory; and not any longer, as who has it may ask for
    // the next at once.
    participant.room_for(frame.byte_len()).await;
    drop(permit);
    answer_or(&participant, frame, || failed("the asset is too large")).await;
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}
