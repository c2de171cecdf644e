//! Turns the SDK's events into the session's room events.

use std::collections::HashMap;
use std::sync::Arc;

use livekit::data_stream::api::ByteStreamReader;
use livekit::participant::{ParticipantKind, ParticipantState};
use livekit::prelude::{Participant, RemoteParticipant};
use livekit::{DisconnectReason, RoomEvent as SdkEvent};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::error::LiveKitError;
use super::link::{self, CONTROL, Link};
use super::shared::{Connection, Event, Shared};
use super::uplink_probe::UplinkProbe;
use crate::contract::{Attributes, UplinkState};
use crate::ids::{ParticipantIdentity, ParticipantSid};
use crate::room::byte_stream::ByteStreamInbox;
use crate::room::{Presence, RoomClosed, RoomEvent};

/// Serves a room's connections, one at a time.
pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    /// Streams of participants that the server hasn't reported as active yet: a stream may overtake that report.
    early: HashMap<ParticipantSid, ByteStreamReader>,
    /// Whether the SDK is reconnecting.
    resuming: bool,
    /// Since when the probe has reported that nothing moves.
    quiet: Option<Instant>,
}

/// Why the driver no longer serves a connection.
pub(super) enum Ended {
    /// The room was closed, or its last handle was dropped.
    Stopped,
    Lost(LiveKitError),
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, events: mpsc::Sender<Event>) -> Self {
        Self { shared, events, early: HashMap::new(), resuming: false, quiet: None }
    }

    /// Makes a fresh connection the room's current one. Returns the participants that are there already, for which no
    /// event comes.
    pub(super) fn take_over(&mut self, link: &Link) -> Vec<Presence> {
        let here: Vec<_> = link.room.remote_participants().values().filter_map(active).collect();
        self.shared.present().extend(here.iter().map(|presence| (presence.identity.clone(), presence.clone())));
        self.shared.link.store(Some(Arc::clone(&link.room)));
        self.shared.connection.send_replace(Connection::Up);
        here
    }

    /// Announces the participants that were there before the connection.
    pub(super) async fn announce(&self, here: Vec<Presence>) {
        for presence in here {
            self.emit(RoomEvent::Active(presence)).await;
        }
    }

    /// Serves a connection until it has ended.
    pub(super) async fn serve(&mut self, link: &mut Link) -> Ended {
        let mut probe = UplinkProbe::start(Arc::clone(&self.shared), Arc::clone(&link.room));
        let stop = self.shared.stop.clone();
        let lost_after = self.shared.config.lost_after;
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return Ended::Stopped,
                uplink = probe.changed() => {
                    self.quiet = (uplink == UplinkState::Stalled).then(Instant::now);
                    self.tell_uplink().await;
                    continue;
                }
                // While the SDK reconnects, it watches the connection itself.
                () = sleep_until(self.quiet.unwrap_or_else(Instant::now) + lost_after),
                    if self.quiet.is_some() && !self.resuming => return Ended::Lost(LiveKitError::Stalled(lost_after)),
                event = link.events.recv() => event.unwrap_or(SdkEvent::Disconnected { reason: DisconnectReason::UnknownReason }),
            };
            match event {
                SdkEvent::Disconnected { reason } => return Ended::Lost(LiveKitError::Disconnected { reason }),
                SdkEvent::Reconnecting => {
                    tracing::info!("the SDK reconnects");
                    self.resuming = true;
                    self.shared.connection.send_replace(Connection::Resuming);
                    self.tell_uplink().await;
                }
                SdkEvent::Reconnected => {
                    tracing::info!("the SDK has reconnected");
                    // The bytes that the old probe wrote may have been lost with the connection.
                    probe = UplinkProbe::start(Arc::clone(&self.shared), Arc::clone(&link.room));
                    (self.resuming, self.quiet) = (false, None);
                    self.shared.connection.send_replace(Connection::Up);
                    self.tell_uplink().await;
                }
                event => self.on_event(event, &link.room).await,
            }
        }
    }

    async fn on_event(&mut self, event: SdkEvent, room: &livekit::Room) {
        match event {
            SdkEvent::ParticipantActive(participant) => {
                if let Some(presence) = active(&participant) {
                    self.on_active(presence).await;
                }
            }
            SdkEvent::ParticipantDisconnected(participant) => self.on_disconnected(&participant).await,
            SdkEvent::ParticipantAttributesChanged { participant: Participant::Remote(participant), .. } => {
                let Some((identity, sid)) = ids(&participant) else { return };
                let attributes = attributes(&participant);
                if let Some(presence) = self.shared.present().get_mut(&identity).filter(|presence| presence.sid == sid)
                {
                    presence.attributes = attributes;
                }
            }
            SdkEvent::ByteStreamOpened { reader, topic, participant_identity } => match reader.take() {
                Some(reader) if topic == CONTROL => {
                    let sender = room.remote_participants().remove(&participant_identity);
                    self.on_stream(reader, sender.as_ref()).await;
                }
                _ => tracing::debug!(topic, from = %participant_identity, "byte stream ignored"),
            },
            SdkEvent::TextStreamOpened { topic, participant_identity, .. } => {
                tracing::debug!(topic, from = %participant_identity, "text stream ignored");
            }
            _ => {}
        }
    }

    async fn on_active(&mut self, presence: Presence) {
        self.shared.present().insert(presence.identity.clone(), presence.clone());
        let (identity, sid) = (presence.identity.clone(), presence.sid.clone());
        self.emit(RoomEvent::Active(presence)).await;
        if let Some(reader) = self.early.remove(&sid) {
            self.emit(RoomEvent::StreamOpened { identity, sid, stream: self.inbox(reader) }).await;
        }
    }

    async fn on_disconnected(&mut self, participant: &RemoteParticipant) {
        let Some((identity, sid)) = ids(participant) else { return };
        self.early.remove(&sid);
        {
            let mut present = self.shared.present();
            if present.get(&identity).is_some_and(|now| now.sid == sid) {
                present.remove(&identity);
            }
        }
        self.emit(RoomEvent::Disconnected { identity, sid }).await;
    }

    async fn on_stream(&mut self, reader: ByteStreamReader, sender: Option<&RemoteParticipant>) {
        let Some((identity, sid)) = sender.and_then(ids) else {
            return tracing::debug!("stream of a participant that isn't in the room ignored");
        };
        let presence = self.shared.present().get(&identity).cloned();
        if presence.is_some_and(|presence| presence.sid == sid) {
            self.emit(RoomEvent::StreamOpened { identity, sid, stream: self.inbox(reader) }).await;
        } else {
            // At most one for each participant of the room; a later stream replaces it, as it would in the session.
            self.early.insert(sid, reader);
        }
    }

    /// Removes all participants, because the connection is gone.
    pub(super) async fn remove_all(&mut self, loss: Loss) {
        self.shared.link.store(None);
        self.early.clear();
        let present = std::mem::take(&mut *self.shared.present());
        for (identity, presence) in present {
            self.emit(RoomEvent::Disconnected { identity, sid: presence.sid }).await;
        }
        (self.resuming, self.quiet) = (false, None);
        self.tell_uplink().await;
        if let Loss::Final(closed) = loss {
            self.emit(RoomEvent::Closed(closed)).await;
        }
    }

    async fn tell_uplink(&mut self) {
        let stalled = self.resuming || self.quiet.is_some();
        if self.shared.stalled.send_replace(stalled) != stalled {
            self.emit(if stalled { RoomEvent::UplinkStalled } else { RoomEvent::UplinkFlowing }).await;
        }
    }

    /// Wraps a participant's stream in an inbox with the room's limits.
    fn inbox(&self, reader: ByteStreamReader) -> ByteStreamInbox {
        ByteStreamInbox::new(reader).with_limits(self.shared.config.limits.clone())
    }

    /// Emits an event. Waits while the session is behind, but not for a session that has ended.
    async fn emit(&self, event: Event) {
        let sent = self.shared.stop.run_until_cancelled(self.events.send(event)).await;
        if !matches!(sent, Some(Ok(()))) {
            tracing::debug!("nobody listens to the room any more");
        }
    }

    /// Leaves the room, within the close time-out.
    pub(super) async fn leave(&self, link: &Link) {
        link::leave(Arc::clone(&link.room), &self.shared.config).await;
    }
}

/// Whether the room goes on after a lost connection.
pub(super) enum Loss {
    /// Another connection will follow.
    Temporary,
    /// The session ends with this.
    Final(RoomClosed),
}

/// The presence of a viewer that can receive.
fn active(participant: &RemoteParticipant) -> Option<Presence> {
    if participant.state() != ParticipantState::Active {
        return None;
    }
    // Participants of other kinds carry media between LiveKit and other systems, and read no streams.
    if !matches!(participant.kind(), ParticipantKind::Standard | ParticipantKind::Agent) {
        return None;
    }
    let (identity, sid) = ids(participant)?;
    let joined_at = u64::try_from(participant.joined_at()).unwrap_or(0);
    let mut presence = Presence::new(identity, sid, joined_at);
    presence.attributes = attributes(participant);
    Some(presence)
}

fn attributes(participant: &RemoteParticipant) -> Attributes {
    Arc::new(participant.attributes().into_iter().collect())
}

fn ids(participant: &RemoteParticipant) -> Option<(ParticipantIdentity, ParticipantSid)> {
    let identity = ParticipantIdentity::try_from(participant.identity());
    match (identity, ParticipantSid::try_from(participant.sid())) {
        (Ok(identity), Ok(sid)) => Some((identity, sid)),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "participant ignored");
            None
        }
    }
}
