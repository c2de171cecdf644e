//! The viewers' instances, and the settings that hold for all of them.
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
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::assets::AssetHandler;
use super::in_flight::InFlightLimits;
use super::instance::Viewer;
use crate::ids::ClientId;
use crate::participant::Participant;
use crate::protocol::Frame;
use crate::room::PeerLimits;
use crate::telemetry::catalog::Catalog;
use crate::telemetry::version::Protocol;

/// The settings of one [`Telemetry`](crate::telemetry::Telemetry) that its viewers are not told.
pub(in crate::telemetry) struct Settings {
    pub(in crate::telemetry) assets: Option<AssetHandler>,
    /// How long a viewer that pings may be silent before it is reported as unresponsive.
    pub(in crate::telemetry) silence_timeout: Duration,
    pub(in crate::telemetry) peer_limits: PeerLimits,
    pub(in crate::telemetry) in_flight: InFlightLimits,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("assets", &self.assets.is_some())
            .field("silence_timeout", &self.silence_timeout)
            .field("peer_limits", &self.peer_limits)
            .field("in_flight", &self.in_flight)
            .finish()
    }
}

/// The viewers' instances, from their joins until they are retired. See the [orderings](self#orderings).
pub(in crate::telemetry) struct Viewers {
    instances: DashMap<ClientId, Viewer, RandomState>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) settings: Settings,
}

impl Viewers {
    pub(in crate::telemetry) fn new(catalog: Arc<Catalog>, settings: Settings) -> Self {
        Self { instances: DashMap::default(), catalog, settings }
    }

    /// Enters a participant that joins, and returns its first messages.
    pub(in crate::telemetry) async fn initial(&self, participant: &Participant<Frame>) -> Vec<Frame> {
        let protocol = Protocol::of(participant.presence()).expect("a presence without a protocol is not accepted");
        participant.log(|| tracing::debug!(%protocol, "viewer joins"));
        self.enter(participant, protocol.clone());
        self.catalog.join(participant, &protocol).await
    }

    /// Enters an instance that joins.
    pub(in crate::telemetry) fn enter(&self, participant: &Participant<Frame>, protocol: Protocol) {
        let viewer = Viewer::new(participant, protocol, self.settings.in_flight);
        self.instances.insert(participant.client_id(), viewer);
        if participant.is_retired() {
            self.remove(participant.client_id());
        }
    }

    /// Removes an instance that is retired, if it was entered.
    pub(in crate::telemetry) fn remove(&self, client_id: ClientId) {
        // Dropped after the lock is released.
        let _viewer = self.instances.remove(&client_id);
    }

    pub(in crate::telemetry) fn get(&self, client_id: ClientId) -> Option<Viewer> {
        self.instances.get(&client_id).map(|viewer| viewer.clone())
    }

    #[cfg(test)]
    pub(in crate::telemetry) fn len(&self) -> usize {
        self.instances.len()
    }
}
