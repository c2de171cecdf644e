//! A custom transport: lines of text over TCP. Each connection is a participant; its first line is the participant's
//! name.
//!
//! ```sh
//! cargo run --example custom_room
//! nc 127.0.0.1 8766                               # in a second terminal; then type a name
//! ```
//!
//! A participant that connects again under its name takes the place of its older connection. A participant that doesn't
//! read gets messages until its queue is full. Then it is reset, which here closes its connection. Other participants
//! are not affected.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use lanecast::room::{OpenError, Presence, Room, RoomEvent};
use lanecast::{ParticipantIdentity, ParticipantSid, Progress, Session};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::codec::{BytesCodec, FramedRead, FramedWrite, LinesCodec};

/// How long a connection may take to send its name.
const NAMED_WITHIN: Duration = Duration::from_secs(10);
/// Maximum length of a name, in bytes.
const LONGEST_NAME: usize = 64;
/// Capacity of the channel of events to the session; beyond it, senders wait.
const EVENTS: usize = 256;

/// The room: the connected participants, and the events for the session.
#[derive(Clone)]
struct LineRoom {
    connections: Arc<Mutex<HashMap<ParticipantIdentity, Connection>>>,
    listener: Arc<Mutex<Option<mpsc::Receiver<RoomEvent<Infallible>>>>>,
}

/// A participant's connection. The session takes the writing half when it opens the stream.
struct Connection {
    presence: Presence,
    writer: Option<OwnedWriteHalf>,
}

impl LineRoom {
    /// Accepts connections from now on.
    fn listen(listener: TcpListener) -> Self {
        let (events, taken_by_the_session) = mpsc::channel(EVENTS);
        let room = Self { connections: Arc::default(), listener: Arc::new(Mutex::new(Some(taken_by_the_session))) };
        let accepting = room.clone();
        tokio::spawn(async move {
            // Each number is used once, so it distinguishes the connections of one participant.
            for number in 1.. {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(accepting.clone().serve(stream, number, events.clone()))),
                    Err(error) => {
                        eprintln!("no connection can be accepted any more: {error}");
                        break;
                    }
                }
            }
        });
        room
    }

    /// Serves one connection, from its name to its end.
    async fn serve(self, stream: TcpStream, number: u64, events: mpsc::Sender<RoomEvent<Infallible>>) {
        let (reader, writer) = stream.into_split();
        let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(LONGEST_NAME));
        let Ok(Some(Ok(name))) = timeout(NAMED_WITHIN, lines.next()).await else { return };
        let Ok(identity) = name.parse::<ParticipantIdentity>() else { return };
        let Ok(sid) = format!("PA_{number}").parse() else { return };
        let presence = Presence::new(identity.clone(), sid, now_ms());
        let sid = presence.sid.clone();

        // The list is updated before the event is sent: the session may look at the list at once.
        let connection = Connection { presence: presence.clone(), writer: Some(writer) };
        self.connections().insert(identity.clone(), connection);
        if events.send(RoomEvent::Active(presence)).await.is_err() {
            return;
        }
        until_closed(lines).await;
        self.forget(&identity, &sid);
        // It is not an error if the session has ended.
        let _ = events.send(RoomEvent::Disconnected { identity, sid }).await;
    }

    /// Removes a connection from the list, unless a newer connection has its name.
    fn forget(&self, identity: &ParticipantIdentity, sid: &ParticipantSid) {
        let mut connections = self.connections();
        if connections.get(identity).is_some_and(|now| now.presence.sid == *sid) {
            connections.remove(identity);
        }
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<ParticipantIdentity, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads and discards everything that the participant sends, and returns when it has closed its side.
async fn until_closed(mut lines: FramedRead<OwnedReadHalf, LinesCodec>) {
    while let Some(Ok(_)) = lines.next().await {}
}

impl Room for LineRoom {
    type Message = Bytes;
    /// Boxed, as the type isn't this crate's: see `RunSink`.
    type Sink = Pin<Box<FramedWrite<OwnedWriteHalf, BytesCodec>>>;
    type Incoming = Infallible;

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<Infallible>> + Send + 'static> {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(stream::unfold(listener, |mut listener| async { Some((listener.recv().await?, listener)) }))
    }

    fn participants(&self) -> Vec<Presence> {
        self.connections().values().map(|connection| connection.presence.clone()).collect()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        self.connections().get(identity).map(|connection| connection.presence.clone())
    }

    /// Opens a stream, once for each connection: after a reset, the participant has to connect again.
    async fn open(&self, to: &Presence, _progress: Progress) -> Result<Self::Sink, OpenError> {
        let mut connections = self.connections();
        let connection = connections.get_mut(&to.identity).filter(|now| now.presence.sid == to.sid);
        let writer = connection.and_then(|connection| connection.writer.take()).ok_or(OpenError::NotPresent)?;
        Ok(Box::pin(FramedWrite::new(writer, BytesCodec::new())))
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8766".to_owned());
    let listener = TcpListener::bind(&address).await.map_err(|error| format!("cannot listen on {address}: {error}"))?;
    println!("listening on {}", listener.local_addr()?);
    let session = Session::builder(LineRoom::listen(listener))
        .initial(|participant| async move { vec![Bytes::from(format!("welcome, {}\n", participant.identity()))] })
        .build()?;

    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    for number in 1_u64.. {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => break,
        }
        session.broadcast(Bytes::from(format!("tick {number}\n"))).await?;
    }
    session.close(Duration::from_secs(1)).await?;
    Ok(())
}
