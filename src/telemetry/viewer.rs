//! One viewer's requests, handled in order.
//!
//! A request has taken effect before the next is looked at; only asset fetches go on beside, at most as many as the
//! participant may have in flight. What a viewer asked for belongs to one instance: when a request finds another
//! instance in its place, everything starts afresh. A request that comes while the viewer is being reset is dropped:
//! it was meant for the instance that is gone.
//!
//! Nothing a viewer sends ends its connection. What is wrong is answered with a status, to it alone; a viewer that
//! sends nonsense and doesn't read the answers overflows like any other.

use std::collections::HashMap;
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;

use super::assets::{self, AssetRequest};
use super::channel::ChannelState;
use super::inbox::Inbox;
use super::state::State;
use super::{Status, StatusLevel};
use crate::lane::SubscriptionTag;
use crate::participant::Participant;
use crate::protocol::client::{FetchAsset, ServiceCall, Subscription};
use crate::protocol::server::ServiceCallFailure;
use crate::protocol::{ClientMessage, Frame, ServerMessage, WireFormat};
use crate::room::Room;
use crate::session::ControlStream;

/// Most warnings one request is answered with; what is above is summed up in one more. A request may name any number
/// of channels, and an honest viewer that names many that are just gone shall not overflow by the answers.
const WARNINGS_PER_REQUEST: usize = 16;

type Fetches = FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>;

/// Handles what comes on a participant's stream until the connection is gone, when the session drops this.
pub(super) async fn serve<R>(state: Arc<State>, mut stream: ControlStream<R>)
where
    R: Room<Message = Frame, Incoming: Inbox>,
{
    let mut removals = state.removals();
    let mut viewer: Option<Viewer> = None;
    let mut fetches = Fetches::new();
    let mut open = true;
    loop {
        tokio::select! {
            frame = poll_fn(|cx| stream.stream.poll_frame(cx)), if open => {
                let Some(frame) = frame else {
                    // Nothing more to ask for; subscriptions and fetches go on.
                    open = false;
                    continue;
                };
                let Some(participant) = stream.participant() else {
                    tracing::debug!(identity = %stream.identity, sid = %stream.sid, "request during a reset dropped");
                    continue;
                };
                let viewer = match &mut viewer {
                    Some(viewer) if viewer.participant == participant => viewer,
                    other => {
                        fetches.clear();
                        other.insert(Viewer::new(participant))
                    }
                };
                viewer.handle(&state, &mut fetches, &frame).await;
            }
            Ok(()) = removals.changed() => {
                if let Some(viewer) = &mut viewer {
                    viewer.forget_removed().await;
                }
            }
            Some(()) = fetches.next(), if !fetches.is_empty() => {}
            () = ended(viewer.as_ref()) => {
                viewer = None;
                fetches.clear();
            }
        }
    }
}

/// Waits until the viewer's instance has ended.
async fn ended(viewer: Option<&Viewer>) {
    match viewer {
        Some(viewer) => {
            viewer.participant.closed().await;
        }
        None => pending().await,
    }
}

/// One instance, and what it has asked for.
struct Viewer {
    participant: Participant<Frame>,
    /// By the viewer's own number.
    subscriptions: HashMap<u32, Arc<ChannelState>>,
    /// The viewer's number for a channel's number.
    by_channel: HashMap<u64, u32>,
    warnings: Vec<String>,
}

impl Viewer {
    fn new(participant: Participant<Frame>) -> Self {
        Self { participant, subscriptions: HashMap::new(), by_channel: HashMap::new(), warnings: Vec::new() }
    }

    async fn handle(&mut self, state: &State, fetches: &mut Fetches, frame: &Frame) {
        match ClientMessage::decode(WireFormat::V1, frame.kind(), &frame.to_bytes()) {
            Err(error) => self.tell(StatusLevel::Error, error.to_string()),
            Ok(ClientMessage::Subscribe(subscribe)) => self.subscribe(state, &subscribe.subscriptions).await,
            Ok(ClientMessage::Unsubscribe(unsubscribe)) => self.unsubscribe(&unsubscribe.subscription_ids).await,
            Ok(ClientMessage::FetchAsset(fetch)) => self.fetch(state, fetches, fetch),
            Ok(ClientMessage::ServiceCallRequest(call)) => self.fail_call(&call),
            Ok(ClientMessage::Advertise(_) | ClientMessage::Unadvertise(_) | ClientMessage::MessageData(_)) => {
                self.tell(StatusLevel::Error, "this server takes no messages from viewers");
            }
            Ok(
                ClientMessage::GetParameters(_)
                | ClientMessage::SetParameters(_)
                | ClientMessage::SubscribeParameterUpdates(_)
                | ClientMessage::UnsubscribeParameterUpdates(_),
            ) => self.tell(StatusLevel::Error, "this server has no parameters"),
            Ok(ClientMessage::SubscribeConnectionGraph | ClientMessage::UnsubscribeConnectionGraph) => {
                self.tell(StatusLevel::Error, "this server shows no connection graph");
            }
            Ok(
                ClientMessage::SubscribeChannels(_)
                | ClientMessage::UnsubscribeChannels(_)
                | ClientMessage::Ping(_)
                | ClientMessage::PingAck(_),
            ) => unreachable!("v1 has none of these"),
        }
        self.send_warnings();
    }

    /// All of a request's subscriptions are asked for at once, so that a long list costs one turn of the shard.
    ///
    /// A channel that is unadvertised meanwhile is told of afterwards, by [`State::removals`].
    async fn subscribe(&mut self, state: &State, wanted: &[Subscription]) {
        let (mut new, mut gone) = (Vec::new(), Vec::new());
        for wanted in wanted {
            if let Some(channel) = self.check(state, *wanted, &mut gone) {
                self.subscriptions.insert(wanted.id, Arc::clone(&channel));
                self.by_channel.insert(channel.id(), wanted.id);
                new.push((wanted.id, channel));
            }
        }
        self.leave(&gone).await;
        // One that has ended is closed to all of them; this ends with it.
        join_all(new.iter().map(|(id, channel)| self.participant.subscribe(&channel.audience, SubscriptionTag(*id))))
            .await;
        for (id, channel) in &new {
            let topic = &channel.described.topic;
            tracing::debug!(participant = %self.participant, id, channel = channel.id(), topic, "subscribed");
        }
    }

    /// The channel of a subscription that may be made; else a warning is noted. What its id stood for before, if that
    /// is `gone`, has to be left.
    fn check(
        &mut self,
        state: &State,
        wanted: Subscription,
        gone: &mut Vec<Arc<ChannelState>>,
    ) -> Option<Arc<ChannelState>> {
        let Subscription { id, channel_id } = wanted;
        let Some(channel) = state.channel(channel_id) else {
            self.warnings.push(format!("subscription {id}: there is no channel {channel_id}"));
            return None;
        };
        if let Some(other) = self.by_channel.get(&channel_id) {
            let warning = format!("channel {channel_id} is subscribed to already, as subscription {other}");
            self.warnings.push(warning);
            return None;
        }
        match self.subscriptions.get(&id).cloned() {
            None => Some(channel),
            Some(other) if other.is_advertised() => {
                let warning = format!("subscription id {id} is in use already, for channel {}", other.id());
                self.warnings.push(warning);
                None
            }
            // Of a channel that is gone: its end was only not yet taken note of.
            Some(other) => {
                self.by_channel.remove(&other.id());
                gone.push(other);
                Some(channel)
            }
        }
    }

    async fn unsubscribe(&mut self, ids: &[u32]) {
        let mut gone = Vec::new();
        for id in ids {
            match self.subscriptions.remove(id) {
                Some(channel) => {
                    self.by_channel.remove(&channel.id());
                    gone.push(channel);
                }
                None => self.warnings.push(format!("there is no subscription {id}")),
            }
        }
        self.leave(&gone).await;
    }

    /// Ends the subscriptions to channels that were unadvertised.
    async fn forget_removed(&mut self) {
        let removed = self.subscriptions.extract_if(|_, channel| !channel.is_advertised());
        let gone: Vec<_> = removed.map(|(_, channel)| channel).collect();
        for channel in &gone {
            self.by_channel.remove(&channel.id());
        }
        self.leave(&gone).await;
    }

    async fn leave(&self, channels: &[Arc<ChannelState>]) {
        join_all(channels.iter().map(|channel| self.participant.unsubscribe(&channel.audience))).await;
        for channel in channels {
            let topic = &channel.described.topic;
            tracing::debug!(participant = %self.participant, channel = channel.id(), topic, "unsubscribed");
        }
    }

    fn fetch(&self, state: &State, fetches: &Fetches, fetch: FetchAsset) {
        let FetchAsset { request_id, uri } = fetch;
        let refused = match (&state.assets, self.participant.admit_asset_fetch()) {
            (Some(handler), Ok(permit)) => {
                let request = AssetRequest { participant: self.participant.clone(), uri };
                fetches.push(Box::pin(assets::fetch(Arc::clone(handler), request, request_id, permit)));
                return;
            }
            (Some(_), Err(error)) => self.participant.send_asset_error(request_id, error),
            (None, _) => self.participant.send_asset_error(request_id, "this server has no assets"),
        };
        self.note_unsent(refused.err());
    }

    fn fail_call(&self, call: &ServiceCall) {
        let failure = ServiceCallFailure {
            service_id: call.service_id,
            call_id: call.call_id,
            message: "this server has no services".to_owned(),
        };
        self.note_unsent(self.participant.send(ServerMessage::ServiceCallFailure(failure).encode()).err());
    }

    fn send_warnings(&mut self) {
        let count = self.warnings.len();
        let warnings = std::mem::take(&mut self.warnings);
        for warning in warnings.into_iter().take(WARNINGS_PER_REQUEST) {
            self.tell(StatusLevel::Warning, warning);
        }
        if let Some(more) = count.checked_sub(WARNINGS_PER_REQUEST).filter(|more| *more > 0) {
            self.tell(StatusLevel::Warning, format!("{more} more warnings of this kind"));
        }
    }

    fn tell(&self, level: StatusLevel, message: impl Into<String>) {
        let status = Status { level, message: message.into(), id: None };
        tracing::debug!(participant = %self.participant, ?level, status.message, "answered with a status");
        self.note_unsent(self.participant.send(ServerMessage::Status(status).encode()).err());
    }

    /// An answer that couldn't be sent: the participant has ended, or is being reset for it.
    fn note_unsent(&self, error: Option<crate::participant::SendError<Frame>>) {
        if let Some(error) = error {
            tracing::debug!(participant = %self.participant, %error, "answer not sent");
        }
    }
}
