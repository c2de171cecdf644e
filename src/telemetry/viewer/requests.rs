//! Handles one viewer's requests, in order.
//!
//! A request has taken effect before the next is handled. Only asset fetches run beside other requests, at most as many
//! as the participant may have in flight. What a viewer has asked for belongs to one instance: when a request finds
//! that another instance has replaced it, everything starts afresh. A request that arrives while the viewer is being
//! reset is dropped, as it was meant for the instance that has ended.
//!
//! A viewer may open another stream on the same connection, which replaces the one it had. Its instance goes on with
//! its subscriptions. Requests that were still unread on the old stream are lost with it, and so are the fetches.
//!
//! Nothing that a viewer sends ends its connection. A wrong request is answered with a status, to that viewer alone. An
//! answer waits until the viewer's queue is less than half full, and the viewer's later requests wait behind it. So a
//! viewer that asks much and reads is slowed down, and a viewer that doesn't read is found stuck like any other.
//! Requests that need no answer don't wait for the queue: a viewer that is behind can ask for less.
//!
//! No request keeps a worker busy for long: a long one is decoded on a blocking thread, in [turns](PeerLimits) with the
//! long requests of all other viewers, and the task yields between portions of a request's items.

use std::future::{pending, poll_fn};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::task::{spawn_blocking, yield_now};

use super::answer::answer;
use super::assets::{self, AssetRequest};
use super::instance::{Asked, Viewer};
use super::pulse::Change;
use super::silence::Silence;
use super::stream::ViewerStream;
use super::subscriptions::Wanted;
use super::viewers::{Settings, Viewers};
use super::warnings::Warnings;
use crate::participant::Participant;
use crate::protocol::client::{FetchAsset, ServiceCall, Subscribe};
use crate::protocol::server::{Capability, ServiceCallFailure, Status, StatusLevel};
use crate::protocol::{ClientMessage, DecodeError, FAULTS, Frame, ServerMessage, WireFormat};
use crate::room::Inbound;
#[cfg(doc)]
use crate::room::PeerLimits;
use crate::room::limits::Allowance;
use crate::session::{InstanceId, SessionEvent};

/// The capabilities for which requests are decoded. (A service call and an asset fetch are refused by their number,
/// which has to be decoded for that.)
const OFFERED: &[Capability] = &[Capability::Services, Capability::Assets];

/// The longest request that is decoded on the viewer's own task, in bytes: that takes some 50 µs.
const DECODED_HERE: usize = 4 << 10;

/// How many items of one request are handled before the task yields.
const AT_ONCE: usize = 256;

/// The fetches under way. Few viewers have any, and even an empty set allocates.
type Fetches = Option<Box<UnderWay>>;

struct UnderWay {
    fetching: FuturesUnordered<BoxFuture<'static, ()>>,
    /// Resolves when the instance that has asked for the fetches has ended.
    ended: BoxFuture<'static, ()>,
}

/// Handles the requests on a participant's stream until the connection is gone, when the session drops this future.
///
/// An idle viewer costs the size of this future. So it holds only what it waits with: what is awaited for a moment is
/// several times larger, and has a box of its own.
pub(in crate::telemetry) async fn serve(viewers: Arc<Viewers>, stream: Box<dyn ViewerStream>) {
    let mut removals = viewers.catalog.removals();
    let mut requests = Requests {
        silence: Silence::new(viewers.settings.silence_timeout),
        viewers,
        stream,
        viewer: None,
        fetches: None,
        allowance: Allowance::new(),
        open: true,
    };
    loop {
        let Requests { viewers, stream, fetches, silence, open, .. } = &mut requests;
        let happened = tokio::select! {
            heard = hear(stream.inbound(), *open, silence) => Happened::Heard(heard),
            () = viewers.catalog.removed_since(&mut removals) => Happened::Removed,
            () = fetched(fetches) => continue,
        };
        Box::pin(requests.take(happened)).await;
    }
}

/// What the task that handles a viewer's requests has woken up for.
enum Happened {
    Heard(Heard),
    /// Channels were unadvertised.
    Removed,
}

/// The state of the task that handles a viewer's requests.
struct Requests {
    viewers: Arc<Viewers>,
    stream: Box<dyn ViewerStream>,
    /// The instance that has sent the last request. It may have ended since.
    viewer: Option<Viewer>,
    fetches: Fetches,
    silence: Silence,
    allowance: Allowance,
    /// The viewer's stream hasn't ended.
    open: bool,
}

impl Requests {
    async fn take(&mut self, happened: Happened) {
        match happened {
            Happened::Heard(Heard::Frame(frame)) => self.take_frame(frame).await,
            Happened::Heard(Heard::End) => {
                // No more requests come; subscriptions and fetches go on.
                self.open = false;
                // While the viewer is being reset, there is no instance to tell.
                if let Some((participant, failure)) = self.stream.participant().zip(self.stream.inbound().failure()) {
                    let message = format!("your stream has ended, you may open another: {failure}");
                    tell(&participant, StatusLevel::Error, message).await;
                }
            }
            Happened::Heard(Heard::Nothing) => {
                if let Some(viewer) = &self.viewer {
                    viewer.report_silent(&*self.stream);
                }
            }
            Happened::Removed => {
                if let Some(viewer) = &self.viewer {
                    viewer.forget_removed().await;
                }
            }
        }
    }

    async fn take_frame(&mut self, frame: Frame) {
        let Self { viewers, stream, viewer, fetches, silence, allowance, .. } = self;
        let Some(now) = viewer_now(viewers, &**stream, viewer.as_ref()) else {
            let (identity, sid) = (stream.identity(), stream.sid());
            return tracing::debug!(%identity, %sid, "request during a reset dropped");
        };
        let viewer = match viewer {
            Some(viewer) if viewer.participant() == now.participant() => viewer,
            other => {
                *fetches = None;
                silence.disregard();
                let viewer = other.insert(now);
                viewer.forget_removed().await;
                viewer
            }
        };
        silence.heard();
        viewer.report_heard(&**stream);
        let decoded = decode(viewer.protocol().format(), &viewers.settings, allowance, frame).await;
        stream.inbound().release();
        viewer.handle(viewers, fetches, silence, decoded).await;
        yield_now().await;
    }
}

/// The instance that the stream's connection has now: `known`, or another one. `None` while it is being reset.
fn viewer_now(viewers: &Viewers, stream: &dyn ViewerStream, known: Option<&Viewer>) -> Option<Viewer> {
    let participant = stream.participant()?;
    match known {
        Some(known) if *known.participant() == participant => Some(known.clone()),
        _ => viewers.get(participant.client_id()),
    }
}

/// What a viewer's task has heard of the viewer.
enum Heard {
    Frame(Frame),
    /// The viewer's stream has ended.
    End,
    /// Nothing was heard for the silence time-out.
    Nothing,
}

/// Waits for the next frame, the end of the stream, or the end of the silence time-out. Safe to cancel. A frame that is
/// waiting counts as heard, however late this task polls.
async fn hear(inbound: &mut dyn Inbound, open: bool, silence: &mut Silence) -> Heard {
    poll_fn(|cx| {
        if open && let Poll::Ready(frame) = inbound.poll_frame(cx) {
            return Poll::Ready(frame.map_or(Heard::End, Heard::Frame));
        }
        silence.poll_exceeded(cx).map(|()| Heard::Nothing)
    })
    .await
}

/// Waits until a fetch is done, or the instance that has asked for the fetches has ended; never returns if there is no
/// fetch. Safe to cancel.
async fn fetched(fetches: &mut Fetches) {
    poll_fn(|cx| {
        let Some(UnderWay { fetching, ended }) = fetches.as_deref_mut() else { return Poll::Pending };
        let done = match ended.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => fetching.poll_next_unpin(cx),
        };
        if fetching.is_empty() || done == Poll::Ready(None) {
            *fetches = None;
        }
        done.map(drop)
    })
    .await;
}

impl Viewer {
    async fn handle(
        &self,
        viewers: &Viewers,
        fetches: &mut Fetches,
        silence: &mut Silence,
        Decoded { message, faults }: Decoded,
    ) {
        let participant = self.participant();
        let Asked { subscriptions, pings } = &mut *self.asked().lock().await;
        let mut warnings = Warnings::default();
        match message {
            Err(error) => tell(participant, StatusLevel::Error, error.to_string()).await,
            Ok(ClientMessage::Subscribe(Subscribe { subscriptions: wanted })) => {
                for wanted in wanted.chunks(AT_ONCE) {
                    let wanted = wanted.iter().copied().map(Wanted::from);
                    warnings.append(subscriptions.subscribe(participant, &viewers.catalog, wanted).await);
                    yield_now().await;
                }
            }
            Ok(ClientMessage::SubscribeChannels(request)) => {
                for wanted in request.channels.chunks(AT_ONCE) {
                    let wanted = wanted.iter().copied().map(Wanted::from);
                    warnings.append(subscriptions.subscribe(participant, &viewers.catalog, wanted).await);
                    yield_now().await;
                }
            }
            Ok(ClientMessage::Unsubscribe(request)) => {
                for ids in request.subscription_ids.chunks(AT_ONCE) {
                    warnings.append(subscriptions.unsubscribe_ids(participant, ids).await);
                    yield_now().await;
                }
            }
            Ok(ClientMessage::UnsubscribeChannels(request)) => {
                for ids in request.channel_ids.chunks(AT_ONCE) {
                    warnings.append(subscriptions.unsubscribe_channels(participant, &viewers.catalog, ids).await);
                    yield_now().await;
                }
            }
            Ok(ClientMessage::Ping(ping)) => {
                let pong = pings.get_or_insert_default().pong(ping);
                answer(participant, ServerMessage::Pong(pong).encode()).await;
            }
            Ok(ClientMessage::PingAck(ack)) => match pings.as_mut().and_then(|pings| pings.acknowledged(ack)) {
                Some(round_trip) => self.note_round_trip(round_trip),
                None => participant.log(|| tracing::debug!(?ack, "acknowledges no pong that is open")),
            },
            Ok(ClientMessage::FetchAsset(fetch)) => fetch_asset(self, &viewers.settings, fetches, fetch).await,
            Ok(ClientMessage::ServiceCallRequest(call)) => fail_call(participant, call).await,
            // The decoder has refused what needs a capability that isn't in `OFFERED`.
            Ok(_) => tell(participant, StatusLevel::Error, "this server doesn't offer that").await,
        }
        // Last: an answer waits until the viewer has read others, and of the request nothing is held by then.
        warn(participant, StatusLevel::Error, faults).await;
        warn(participant, StatusLevel::Warning, warnings).await;
        if pings.is_some() {
            silence.watch();
        }
    }

    /// Tells the session's listeners that the viewer is responsive again, if it was unresponsive.
    fn report_heard(&self, stream: &dyn ViewerStream) {
        if self.note_heard() == Change::Heard {
            self.participant().log(|| tracing::info!("responsive"));
            stream.emit(SessionEvent::Responsive(InstanceId::of(self.participant())));
        }
    }

    /// Tells the session's listeners that the viewer is unresponsive, once.
    fn report_silent(&self, stream: &dyn ViewerStream) {
        if self.note_silent() == Change::Silent {
            self.participant().log(|| tracing::info!("unresponsive"));
            stream.emit(SessionEvent::Unresponsive(InstanceId::of(self.participant())));
        }
    }

    /// Ends the subscriptions to channels that were unadvertised.
    async fn forget_removed(&self) {
        self.asked().lock().await.subscriptions.forget_removed(self.participant()).await;
    }
}

/// A request after decoding.
struct Decoded {
    message: Result<ClientMessage, DecodeError>,
    /// What is wrong with single items of the request.
    faults: Warnings,
}

/// Decodes a request in the viewer's format. A long request is decoded on a blocking thread, in turns with
/// others. If this future is dropped before it is done, the turn lasts until that thread has done its work.
async fn decode(format: WireFormat, settings: &Settings, allowance: &mut Allowance, frame: Frame) -> Decoded {
    let (kind, data) = (frame.kind(), frame.to_bytes());
    let length = data.len();
    drop(frame);
    let decode = move || {
        let mut faults = Vec::new();
        let message = ClientMessage::decode_each(format, kind, &data, OFFERED, &mut faults);
        let mut told = Warnings::default();
        faults.iter().for_each(|fault| told.push(|| fault.to_string()));
        told.is_cut = faults.len() == FAULTS;
        Decoded { message, faults: told }
    };
    if length <= DECODED_HERE {
        return decode();
    }
    let turn = settings.peer_limits.decoding().turn(allowance.is_left()).await;
    let decoding = spawn_blocking(move || {
        let begun = Instant::now();
        let decoded = decode();
        let work = begun.elapsed();
        turn.end(work);
        (decoded, work)
    });
    match decoding.await {
        Ok((decoded, work)) => {
            allowance.spend(work);
            decoded
        }
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is shutting down, and this task with it.
            Err(_) => pending().await,
        },
    }
}

/// The longest URI of an asset that is accepted, in bytes: one URI is held for each fetch in flight.
const LONGEST_URI: usize = 4096;

async fn fetch_asset(viewer: &Viewer, settings: &Settings, fetches: &mut Fetches, fetch: FetchAsset) {
    let (FetchAsset { request_id, uri }, participant) = (fetch, viewer.participant());
    let refusal = match (&settings.assets, viewer.admit_asset_fetch()) {
        _ if uri.len() > LONGEST_URI => format!("the URI is longer than {LONGEST_URI} bytes"),
        (Some(handler), Ok(permit)) => {
            let request = AssetRequest { participant: participant.clone(), uri };
            let under_way = fetches.get_or_insert_with(|| {
                let participant = participant.clone();
                let ended = Box::pin(async move {
                    participant.closed().await;
                });
                Box::new(UnderWay { fetching: FuturesUnordered::new(), ended })
            });
            under_way.fetching.push(Box::pin(assets::fetch(Arc::clone(handler), request, request_id, permit)));
            return;
        }
        (Some(_), Err(error)) => error.to_string(),
        (None, _) => "this server has no assets".to_owned(),
    };
    // Dropped first: the answer may wait for long, and the budget for what viewers send no longer counts the request.
    drop(uri);
    answer(participant, assets::encode(request_id, Err(refusal))).await;
}

async fn fail_call(participant: &Participant<Frame>, call: ServiceCall) {
    let ServiceCall { service_id, call_id, .. } = call;
    // Dropped before the answer, which may wait: it shares the whole request.
    drop(call);
    let failure = ServiceCallFailure { service_id, call_id, message: "this server has no services".to_owned() };
    answer(participant, ServerMessage::ServiceCallFailure(failure).encode()).await;
}

async fn warn(participant: &Participant<Frame>, level: StatusLevel, warnings: Warnings) {
    for warning in warnings.into_texts() {
        tell(participant, level, warning).await;
    }
}

async fn tell(participant: &Participant<Frame>, level: StatusLevel, message: impl Into<String>) {
    let status = Status { level, message: message.into(), id: None };
    participant.log(|| tracing::debug!(?level, status.message, "answered with a status"));
    answer(participant, ServerMessage::Status(status).encode()).await;
}
