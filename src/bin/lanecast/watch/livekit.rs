//! The connection to a device in a LiveKit room.

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

/// Topic of the byte streams in either direction.
const CONTROL: &str = "control";

/// How long leaving the room may take.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) struct LiveKit {
    room: Room,
    events: mpsc::UnboundedReceiver<RoomEvent>,
    /// The latest stream that the device has opened to this viewer. After a reset of this viewer, the device opens a
    /// new one.
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
                // A server that refuses the token repeats it.
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
                // This also holds for a device that has only reconnected: it doesn't know this viewer's stream any
                // more.
                (self.inbox, self.device, self.control) = (None, None, None);
                Ok(())
            }
            Some(RoomEvent::Disconnected { reason }) => {
                use DisconnectReason::{DuplicateIdentity, ParticipantRemoved, RoomDeleted};
                let said = format!("disconnected from the room: {}", reason.as_str_name());
                Err(match reason {
                    // Connecting again would displace another participant, or undo a deliberate removal.
                    DuplicateIdentity | ParticipantRemoved | RoomDeleted => End::failed(said),
                    _ => End::lost(said),
                })
            }
            Some(_) => Ok(()),
            None => Err(End::lost("the connection to the room ended")),
        }
    }

    /// This viewer's stream to the device. It outlives resets.
    async fn control(&mut self) -> Result<&ByteStreamWriter, StreamError> {
        if self.control.is_none() {
            let device = self.device.clone().ok_or(StreamError::AlreadyClosed)?;
            let options = StreamByteOptions::new_with_topic(CONTROL).with_destination_identity(device);
            self.control = Some(self.room.local_participant().stream_bytes(options).await?);
        }
        Ok(self.control.as_ref().expect("it was just opened"))
    }
}

/// Whether the server would refuse again: it refused the request, and not because there are too many requests just now.
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
                // Events come first: a new stream makes the rest of the old one void.
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
        sent.await.map_err(|error| End::lost(format!("can't send to the device: {error}")))
    }

    async fn close(self) {
        // The connection ends even if this fails.
        let _ = timeout(FAREWELL, self.room.close()).await;
    }
}
