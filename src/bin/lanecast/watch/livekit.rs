//! A device in a LiveKit room.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lanecast::protocol::{ClientMessage, FrameKind, WireFormat};
use lanecast::room::byte_stream::ByteStreamInbox;
use livekit::data_stream::api::{ByteStreamWriter, StreamByteOptions, StreamError, StreamWriter};
use livekit::id::ParticipantIdentity;
use livekit::rtc_engine::EngineError;
use livekit::{DisconnectReason, Room, RoomError, RoomEvent, RoomOptions};
use livekit_signaling::SignalError;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{End, PATIENCE, Wire};
use crate::livekit::Access;
use crate::secrets;

/// The topic of the streams in either direction.
const CONTROL: &str = "control";

/// How long leaving the room may take.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) struct LiveKit {
    room: Room,
    events: mpsc::UnboundedReceiver<RoomEvent>,
    /// The latest stream that was opened to us: a fresh one follows when we have been reset.
    inbox: Option<ByteStreamInbox>,
    device: Option<ParticipantIdentity>,
    control: Option<ByteStreamWriter>,
}

impl LiveKit {
    pub(super) async fn connect(url: &str) -> Result<Self, End> {
        let identity = format!("watch-{:08x}", fastrand::u32(..));
        let access = Access::of_environment(&identity).map_err(End::Failed)?;
        let token = access.token().map_err(End::failed)?;
        let mut options = RoomOptions::default();
        options.auto_subscribe = false;
        let shown = secrets::public(url);
        match timeout(PATIENCE, Room::connect(url, &token, options)).await {
            Ok(Ok((room, events))) => Ok(Self { room, events, inbox: None, device: None, control: None }),
            Ok(Err(error)) => {
                // A server repeats the token when it refuses it.
                let said = error.to_string().replace(&token, "(the token)");
                let said = format!("--livekit: can't connect to {shown}: {said}");
                Err(if is_refusal(&error) { End::failed(said) } else { End::lost(said) })
            }
            Err(_) => Err(End::lost(format!("--livekit: {shown} didn't answer for {} s", PATIENCE.as_secs()))),
        }
    }

    fn on_event(&mut self, event: Option<RoomEvent>) -> Result<(), End> {
        match event {
            Some(RoomEvent::ByteStreamOpened { reader, topic, participant_identity }) if topic == CONTROL => {
                if let Some(reader) = reader.take() {
                    self.inbox = Some(ByteStreamInbox::new(reader));
                    self.device = Some(participant_identity);
                }
                Ok(())
            }
            Some(RoomEvent::ParticipantDisconnected(gone)) if Some(gone.identity()) == self.device => {
                // Also when it has only connected afresh: it knows nothing of our stream then.
                (self.inbox, self.device, self.control) = (None, None, None);
                Ok(())
            }
            Some(RoomEvent::Disconnected { reason }) => {
                use DisconnectReason::{DuplicateIdentity, ParticipantRemoved, RoomDeleted};
                let said = format!("disconnected from the room: {}", reason.as_str_name());
                Err(match reason {
                    // Coming back would drive another out, or defy the one who sent us away.
                    DuplicateIdentity | ParticipantRemoved | RoomDeleted => End::failed(said),
                    _ => End::lost(said),
                })
            }
            Some(_) => Ok(()),
            None => Err(End::lost("the connection to the room ended")),
        }
    }

    /// Our own stream to the device. It lasts through resets.
    async fn control(&mut self) -> Result<&ByteStreamWriter, StreamError> {
        if self.control.is_none() {
            let device = self.device.clone().ok_or(StreamError::AlreadyClosed)?;
            let options = StreamByteOptions::new_with_topic(CONTROL).with_destination_identity(device);
            self.control = Some(self.room.local_participant().stream_bytes(options).await?);
        }
        Ok(self.control.as_ref().expect("it was just opened"))
    }
}

/// Whether the server would say the same again: it refused the request, and not because there are too many just now.
fn is_refusal(error: &RoomError) -> bool {
    let RoomError::Engine(EngineError::Signal(error)) = error else { return false };
    match error {
        SignalError::Client(status, _) | SignalError::Handshake { status } => {
            matches!(status.as_u16(), 400..=407 | 409..=428 | 430..=499)
        }
        SignalError::TokenFormat => true,
        _ => false,
    }
}

impl Wire for LiveKit {
    const FORMAT: WireFormat = WireFormat::V2;

    async fn next(&mut self) -> Result<(FrameKind, Bytes), End> {
        loop {
            tokio::select! {
                // A fresh stream first: what is left of the old one is void.
                biased;
                event = self.events.recv() => self.on_event(event)?,
                Some(frame) = async { Some(self.inbox.as_mut()?.next().await) } => match frame {
                    Some(frame) => return Ok((frame.kind(), frame.to_bytes())),
                    None => self.inbox = None,
                },
            }
        }
    }

    async fn send(&mut self, message: &ClientMessage) -> Result<(), End> {
        let mut bytes = Vec::new();
        message.encode().append_to_stream(&mut bytes);
        let sent = async { self.control().await?.write(&bytes).await };
        sent.await.map_err(|error| End::lost(format!("the device can't be asked: {error}")))
    }

    async fn close(self) {
        // It is over either way.
        let _ = timeout(FAREWELL, self.room.close()).await;
    }
}
