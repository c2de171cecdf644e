//! Accepts connections and takes them through the handshake.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::bind::Listener;
use super::connection::Connection;
use super::places::{Full, Place};
use super::reader::Reader;
use super::rejection::Rejection;
use super::shared::{Config, Shared};
use super::socket;
use super::upgrade::{Admission, Refusal, Visit, upgrade};
use crate::ids::ParticipantSid;
use crate::protocol::Subprotocol;
use crate::room::Presence;

/// The pause after an error that may last, such as too many open files. It starts at the first value and doubles up to
/// the second.
const FIRST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// The interval between warnings about such an error.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Accepts connections until no more viewers are admitted, then waits for the connections to end. Those that no session
/// has opened are closed at once, the others when the session releases them or when the room is closed.
pub(super) async fn run(shared: Arc<Shared>, listeners: Vec<Listener>) {
    // However this task ends, the callers that wait for the room to be closed are woken.
    let _stopped = shared.stopped.clone().drop_guard();
    join_all(listeners.into_iter().map(|listener| accept(&shared, listener))).await;
    shared.directory.stop_admitting();
    shared.tasks.close();
    if shared.stop.run_until_cancelled(shared.tasks.wait()).await.is_none() {
        shared.directory.close_all();
        // Nothing may wait for events that no session will ever take.
        drop(shared.take_listener());
        shared.tasks.wait().await;
    }
    tracing::debug!("the room is closed");
}

/// Accepts connections of one listener until no more viewers are admitted.
async fn accept(shared: &Arc<Shared>, listener: Listener) {
    let on_loopback = listener.address.ip().to_canonical().is_loopback();
    let mut rest = FIRST_REST;
    let mut told: Option<Instant> = None;
    while let Some(accepted) = shared.stop_admitting.run_until_cancelled(listener.socket.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                rest = FIRST_REST;
                start_handshake(shared, stream, Visit { peer, on_loopback });
            }
            Err(error) if is_of_one_connection(&error) => tracing::debug!(%error, "a connection ended in the queue"),
            Err(error) => {
                // The error may last for hours, so it is logged once a minute.
                if told.is_none_or(|told| told.elapsed() >= WARNING_INTERVAL) {
                    tracing::warn!(%error, "no connection can be accepted; trying again within a second");
                    told = Some(Instant::now());
                }
                shared.stop_admitting.run_until_cancelled(sleep(rest)).await;
                rest = (rest * 2).min(LONGEST_REST);
            }
        }
    }
}

/// Whether `accept` failed because of the connection that it was about to return.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

fn start_handshake(shared: &Arc<Shared>, stream: TcpStream, visit: Visit) {
    let peer = visit.peer;
    let full = match shared.places.take(peer.ip()) {
        Ok(place) => {
            shared.tasks.spawn(perform_handshake(Arc::clone(shared), stream, visit, place));
            return;
        }
        Err(full) => full,
    };
    let Ok(permit) = Arc::clone(&shared.refusals).try_acquire_owned() else {
        return tracing::debug!(%peer, ?full, "too many connections, one is closed");
    };
    tracing::debug!(%peer, ?full, max = shared.config.max_connections, "too many connections, one is refused");
    let rejection = match full {
        Full::All => Rejection::full(),
        Full::Address => Rejection::too_many_of_one_address(peer.ip()),
    };
    let shared_too = Arc::clone(shared);
    shared.tasks.spawn(async move {
        refuse(&shared_too, &stream, &rejection).await;
        drop(permit);
    });
}

/// Answers with an HTTP error, within the close time-out.
async fn refuse(shared: &Shared, stream: &TcpStream, rejection: &Rejection) {
    let answer = timeout(shared.config.close_timeout, rejection.answer(stream));
    // When the time is up, the viewer keeps what it has got of the answer.
    let _ = shared.stop_admitting.run_until_cancelled(answer).await;
}

/// Takes a connection through the handshake, and spawns its reading task, whose future is a lot smaller than this one.
async fn perform_handshake(shared: Arc<Shared>, stream: TcpStream, visit: Visit, place: Place) {
    let peer = visit.peer;
    if let Err(error) = prepare(&shared.config, &stream) {
        tracing::debug!(%peer, %error, "a connection can't be prepared");
        return;
    }
    let name = shared.names.next();
    let config = &shared.config;
    let handshake = upgrade(&stream, visit, &config.policy, |request| config.admit(request, &name));
    let handshake = timeout(shared.config.handshake_timeout, handshake);
    let outcome = match shared.stop_admitting.run_until_cancelled(handshake).await {
        Some(Ok(outcome)) => outcome,
        Some(Err(_)) => Err(Rejection::timed_out().into()),
        None => return,
    };
    let (admission, subprotocol) = match outcome {
        Ok(admitted) => admitted,
        Err(Refusal::Rejected(rejection)) => {
            tracing::debug!(%peer, status = rejection.status(), reason = rejection.message(), "a viewer is refused");
            return refuse(&shared, &stream, &rejection).await;
        }
        Err(Refusal::Gone) => return tracing::debug!(%peer, "a viewer disconnected during the handshake"),
    };
    let entered = shared.directory.enter(|joined_at| {
        let presence = presence(&admission, &name, joined_at, subprotocol);
        Connection::new(stream, peer, presence)
    });
    let Some(connection) = entered else { return };
    let Presence { identity, sid, .. } = &connection.presence;
    tracing::info!(%identity, %sid, %peer, subprotocol = subprotocol.as_str(), "connected");
    let reader = Reader::new(Arc::clone(&shared), connection);
    shared.tasks.spawn(reader.run(place));
}

fn presence(admission: &Admission, name: &str, joined_at: u64, subprotocol: Subprotocol) -> Presence {
    let sid = ParticipantSid::new(format!("WS_{name}")).expect("it is short and not empty");
    let mut presence = Presence::new(admission.identity.clone(), sid, joined_at).with_dialect(subprotocol);
    presence.attributes = Arc::clone(&admission.attributes);
    presence
}

fn prepare(config: &Config, stream: &TcpStream) -> std::io::Result<()> {
    // A batch is one write: waiting for more bytes to fill a packet would only delay it.
    stream.set_nodelay(true)?;
    if let Some(bytes) = config.send_buffer_bytes {
        SockRef::from(stream).set_send_buffer_size(bytes)?;
    }
    socket::limit_unsent(stream, config.unsent_bytes);
    Ok(())
}
