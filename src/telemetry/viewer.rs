//! What telemetry keeps of each instance of a viewer, and the handle to it.
//!
//! An instance is entered in [`Viewers`] by its join, in the closure for its initial messages: what looks an instance
//! up learned of it later. It is removed by the flush shard that hands its sink back to the room. Handles outlive the
//! entry.
//!
//! # Orderings
//! An instance may end while it joins. The join then inserts its entry while a shard removes it:
//! - The shard sets the instance's flag [`is_retired`](Participant::is_retired), then removes the entry.
//! - The join inserts the entry, then reads the flag, and removes the entry again if the flag is set.
//!
//! Both hold the map's lock for the entry. If the insertion comes first, the shard finds the entry and removes it. If
//! the removal comes first, the lock makes the flag that was set before it visible to the join, which removes the
//! entry. So no entry stays behind.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use foldhash::fast::RandomState;
use tokio::sync::Mutex;

use super::in_flight::{InFlightLimit, Kind, Permit, TooManyInFlight};
use super::pulse::Pulse;
use super::requests::Asked;
use super::version::Protocol;
use crate::ids::ClientId;
use crate::participant::Participant;
use crate::protocol::Frame;

/// A handle to what telemetry keeps of one instance of a viewer: its protocol, its requests in flight, its round trip.
/// Clones are handles to the same instance.
///
/// [`Telemetry::viewer`](super::Telemetry::viewer) returns it. The handle can be kept and used after the instance has
/// ended. After a reset the viewer has a new instance, with limits and figures of its own.
#[derive(Clone)]
pub struct Viewer(Arc<Inner>);

/// Kept for each instance that is there, also for a viewer that only watches: what few viewers need is allocated when
/// they need it.
struct Inner {
    participant: Participant<Frame>,
    protocol: Protocol,
    service_calls: InFlightLimit,
    asset_fetches: InFlightLimit,
    pulse: Pulse,
    /// What the instance has asked for: belongs to the instance, not to its stream. Empty before its first request.
    asked: OnceLock<Box<Mutex<Asked>>>,
}

/// Statistics of one viewer, read without blocking any other task.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ViewerStats {
    /// The number of service calls in flight.
    pub service_calls: u32,
    /// The number of asset fetches in flight.
    pub asset_fetches: u32,
    /// The last measured round trip to the viewer and back; `None` before the first. Only viewers that ping have one.
    /// The viewer ends the measurement, so treat it as self-reported.
    pub round_trip: Option<Duration>,
    /// Whether the viewer used to ping and has fallen silent. See
    /// [`SessionEvent::Unresponsive`](crate::SessionEvent::Unresponsive).
    pub unresponsive: bool,
}

impl Viewer {
    /// The participant that the viewer is in the session.
    #[must_use]
    pub fn participant(&self) -> &Participant<Frame> {
        &self.0.participant
    }

    /// The protocol that the viewer speaks.
    #[must_use]
    pub fn protocol(&self) -> &Protocol {
        &self.0.protocol
    }

    /// The viewer's statistics, read without blocking any other task.
    #[must_use]
    pub fn stats(&self) -> ViewerStats {
        ViewerStats {
            service_calls: self.0.service_calls.in_flight(),
            asset_fetches: self.0.asset_fetches.in_flight(),
            round_trip: self.0.pulse.round_trip(),
            unresponsive: self.0.pulse.is_unresponsive(),
        }
    }

    /// Takes one of the viewer's permits for service calls. Dropping the permit releases it. Never blocks.
    ///
    /// # Errors
    /// [`TooManyInFlight`] if all permits are taken.
    pub fn admit_service_call(&self) -> Result<Permit, TooManyInFlight> {
        Permit::try_acquire(self, Kind::ServiceCall)
    }

    /// Takes one of the viewer's permits for asset fetches. Dropping the permit releases it. Never blocks.
    ///
    /// # Errors
    /// [`TooManyInFlight`] if all permits are taken.
    pub fn admit_asset_fetch(&self) -> Result<Permit, TooManyInFlight> {
        Permit::try_acquire(self, Kind::AssetFetch)
    }

    pub(super) fn in_flight(&self, kind: Kind) -> &InFlightLimit {
        match kind {
            Kind::ServiceCall => &self.0.service_calls,
            Kind::AssetFetch => &self.0.asset_fetches,
        }
    }

    /// What the instance has asked for. Locked while a request takes effect; only a stream that replaces another one
    /// ever waits for the lock.
    pub(super) fn asked(&self) -> &Mutex<Asked> {
        self.0.asked.get_or_init(Box::default)
    }

    pub(super) fn note_round_trip(&self, round_trip: Duration) {
        self.0.pulse.set_round_trip(round_trip);
    }

    /// Notes that something was heard of the viewer. True if the viewer was unresponsive.
    pub(super) fn note_heard(&self) -> bool {
        self.0.pulse.set_unresponsive(false)
    }

    /// Notes that nothing was heard of the viewer for too long. True if the viewer becomes unresponsive by this; false
    /// if it was unresponsive already or the instance has ended.
    pub(super) fn note_silent(&self) -> bool {
        self.participant().end_reason().is_none() && self.0.pulse.set_unresponsive(true)
    }
}

impl fmt::Debug for Viewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Viewer")
            .field("participant", self.participant())
            .field("protocol", self.protocol())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// How many requests of each kind one viewer may have in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlightLimits {
    pub(super) service_calls: u32,
    pub(super) asset_fetches: u32,
}

/// The viewers' instances, from their joins until they are retired. See the [orderings](self#orderings).
pub(super) struct Viewers {
    instances: DashMap<ClientId, Viewer, RandomState>,
    limits: InFlightLimits,
}

impl Viewers {
    pub(super) fn new(limits: InFlightLimits) -> Self {
        Self { instances: DashMap::default(), limits }
    }

    /// Enters an instance that joins.
    pub(super) fn enter(&self, participant: &Participant<Frame>, protocol: Protocol) {
        let viewer = Viewer(Arc::new(Inner {
            participant: participant.clone(),
            protocol,
            service_calls: InFlightLimit::new(self.limits.service_calls),
            asset_fetches: InFlightLimit::new(self.limits.asset_fetches),
            pulse: Pulse::new(),
            asked: OnceLock::new(),
        }));
        self.instances.insert(participant.client_id(), viewer);
        if participant.is_retired() {
            self.remove(participant.client_id());
        }
    }

    /// Removes an instance that is retired, if it was entered.
    pub(super) fn remove(&self, client_id: ClientId) {
        // Dropped after the lock is released.
        let _viewer = self.instances.remove(&client_id);
    }

    pub(super) fn get(&self, client_id: ClientId) -> Option<Viewer> {
        self.instances.get(&client_id).map(|viewer| viewer.clone())
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.instances.len()
    }
}
