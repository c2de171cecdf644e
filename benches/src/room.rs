//! A room of numbered participants that the bench connects and disconnects.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use lanecast::room::{OpenError, Presence, Room, RoomEvent};
use lanecast::{ParticipantIdentity, ParticipantSid, Progress};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::sink::Sinks;

/// A room of the participants 0, 1, 2, … Clones are handles to the same room.
pub struct BenchRoom<S>(Arc<Inner<S>>);

struct Inner<S> {
    sinks: S,
    present: Box<[Mutex<Option<Presence>>]>,
    events: mpsc::UnboundedSender<RoomEvent<()>>,
    events_taken: Mutex<Option<mpsc::UnboundedReceiver<RoomEvent<()>>>>,
}

pub fn identity(number: usize) -> ParticipantIdentity {
    ParticipantIdentity::new(format!("viewer-{number}")).expect("short")
}

pub fn sid(number: usize, generation: u64) -> ParticipantSid {
    ParticipantSid::new(format!("PA_{number}_{generation}")).expect("short")
}

fn presence(number: usize, generation: u64) -> Presence {
    Presence::new(identity(number), sid(number, generation), generation)
}

impl<S: Sinks> BenchRoom<S> {
    /// A room in which the first `present` of `places` participants are present, in generation 0.
    pub fn new(sinks: S, present: usize, places: usize) -> Self {
        let place = |number| Mutex::new((number < present).then(|| presence(number, 0)));
        let (events, taken) = mpsc::unbounded_channel();
        Self(Arc::new(Inner {
            sinks,
            present: (0..places).map(place).collect(),
            events,
            events_taken: Mutex::new(Some(taken)),
        }))
    }

    pub fn sinks(&self) -> &S {
        &self.0.sinks
    }

    /// Connects participant `number`. A higher generation is a later connection.
    pub fn connect(&self, number: usize, generation: u64) {
        let now = presence(number, generation);
        *self.0.present[number].lock() = Some(now.clone());
        self.emit(RoomEvent::Active(now));
    }

    /// Disconnects participant `number`.
    pub fn disconnect(&self, number: usize) {
        let gone = self.0.present[number].lock().take();
        if let Some(Presence { identity, sid, .. }) = gone {
            self.emit(RoomEvent::Disconnected { identity, sid });
        }
    }

    fn emit(&self, event: RoomEvent<()>) {
        // Fails if the session has ended, which needs no events.
        let _ = self.0.events.send(event);
    }
}

impl<S: Sinks> Room for BenchRoom<S> {
    type Message = Bytes;
    type Sink = S::Sink;
    type Incoming = ();

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<()>> + Send + 'static> {
        let taken = self.0.events_taken.lock().take()?;
        Some(stream::unfold(taken, async |mut taken| Some((taken.recv().await?, taken))))
    }

    fn participants(&self) -> Vec<Presence> {
        self.0.present.iter().filter_map(|place| place.lock().clone()).collect()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        let number: usize = identity.as_str().strip_prefix("viewer-")?.parse().ok()?;
        self.0.present.get(number)?.lock().clone()
    }

    async fn open(&self, to: &Presence, _progress: Progress) -> Result<S::Sink, OpenError> {
        let number = to.identity.as_str().strip_prefix("viewer-").and_then(|number| number.parse().ok());
        number.map(|number| self.0.sinks.open(number)).ok_or(OpenError::NotPresent)
    }
}

impl<S> Clone for BenchRoom<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
