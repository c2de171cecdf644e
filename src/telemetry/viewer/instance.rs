//! What telemetry keeps of one instance of a viewer, and the handle to it.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Mutex;

use super::in_flight::{InFlightLimit, InFlightLimits, Kind, TooManyInFlight};
use super::pings::Pings;
use super::pulse::{Change, Pulse};
use super::subscriptions::Subscriptions;
use crate::participant::Participant;
use crate::protocol::Frame;
use crate::telemetry::version::Protocol;

/// A handle to what telemetry keeps of one instance of a viewer: its protocol, its requests in flight, its round trip.
/// Clones are handles to the same instance.
///
/// [`Telemetry::viewer`](crate::telemetry::Telemetry::viewer) returns it. The handle can be kept and used after the
/// instance has ended. After a reset the viewer has a new instance, with limits and figures of its own.
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

/// What an instance has asked for: its subscriptions, and the pongs to its pings.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) subscriptions: Subscriptions,
    /// Boxed, because few viewers ping: v1 has no pings.
    pub(super) pings: Option<Box<Pings>>,
}

/// Statistics of one viewer, read without blocking any other task.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ViewerStats {
    /// The number of service calls in flight.
    pub service_calls: u32,
    /// The number of asset fetches in flight.
    pub asset_fetches: u32,
    /// The last measured round trip to the viewer and back; `None` before the first. Only viewers that ping have one.
    /// The viewer ends the measurement, so treat it as self-reported.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::contract::seconds::serialize_some"))]
    pub round_trip: Option<Duration>,
    /// Whether the viewer used to ping and has fallen silent. See
    /// [`SessionEvent::Unresponsive`](crate::SessionEvent::Unresponsive).
    pub unresponsive: bool,
}

impl Viewer {
    pub(super) fn new(participant: &Participant<Frame>, protocol: Protocol, limits: InFlightLimits) -> Self {
        Self(Arc::new(Inner {
            participant: participant.clone(),
            protocol,
            service_calls: InFlightLimit::new(limits.service_calls),
            asset_fetches: InFlightLimit::new(limits.asset_fetches),
            pulse: Pulse::new(),
            asked: OnceLock::new(),
        }))
    }

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

    fn in_flight(&self, kind: Kind) -> &InFlightLimit {
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

    /// Notes that something was heard of the viewer.
    pub(super) fn note_heard(&self) -> Change {
        self.0.pulse.set_unresponsive(false)
    }

    /// Notes that nothing was heard of the viewer for too long. An instance that has ended stays as it was.
    pub(super) fn note_silent(&self) -> Change {
        match self.participant().end_reason() {
            Some(_) => Change::Nothing,
            None => self.0.pulse.set_unresponsive(true),
        }
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

/// A permit for one request in flight. Dropping the permit releases it, also while a panic unwinds. Until then, the
/// permit keeps what the session has kept of the viewer's instance, also after that has ended.
#[derive(Debug)]
#[must_use = "the permit is released when this is dropped"]
pub struct Permit {
    viewer: Viewer,
    kind: Kind,
}

impl Permit {
    /// Takes one of the viewer's permits if one is free. Never blocks.
    fn try_acquire(viewer: &Viewer, kind: Kind) -> Result<Self, TooManyInFlight> {
        viewer.in_flight(kind).try_add()?;
        Ok(Self { viewer: viewer.clone(), kind })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.viewer.in_flight(self.kind).remove();
    }
}
