//! The connections of a room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use super::close_reason::CloseReason;
use super::connection::Connection;
use crate::caught::lock;
use crate::contract::EndReason;
use crate::ids::ParticipantIdentity;
use crate::room::Presence;

/// The connections of a room, by identity and time of joining. Locked for short look-ups only.
#[derive(Debug, Default)]
pub(super) struct Directory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    connections: BTreeMap<(ParticipantIdentity, u64), Arc<Connection>>,
    last_joined: u64,
    stopped_admitting: bool,
}

impl Directory {
    /// Gives `make` a time of joining and enters the connection it returns. `None` if no viewer is admitted any more.
    pub(super) fn enter(&self, make: impl FnOnce(u64) -> Connection) -> Option<Arc<Connection>> {
        let mut state = self.lock();
        if state.stopped_admitting {
            return None;
        }
        state.last_joined = joined_at(state.last_joined, now_ms());
        let connection = Arc::new(make(state.last_joined));
        state.connections.insert(key(&connection.presence), Arc::clone(&connection));
        Some(connection)
    }

    /// Removes exactly this connection.
    pub(super) fn remove(&self, connection: &Connection) {
        self.lock().connections.remove(&key(&connection.presence));
    }

    /// The newest connection of `identity` that isn't about to be closed.
    pub(super) fn newest(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        let state = self.lock();
        let mut of_identity = state.connections.range((identity.clone(), 0)..=(identity.clone(), u64::MAX));
        let newest = of_identity.rfind(|(_, connection)| !connection.close_is_requested());
        newest.map(|(_, connection)| connection.presence.clone())
    }

    /// The newest connection of each identity, without those about to be closed.
    pub(super) fn all(&self) -> Vec<Presence> {
        let state = self.lock();
        let mut all: Vec<Presence> = Vec::with_capacity(state.connections.len());
        for connection in state.connections.values().filter(|connection| !connection.close_is_requested()) {
            // The time of joining ascends within an identity.
            all.pop_if(|before| before.identity == connection.presence.identity);
            all.push(connection.presence.clone());
        }
        all
    }

    /// Takes the writing side of `presence`, once.
    ///
    /// Older connections of the same identity that no session has opened can't be opened any more, so this closes them.
    pub(super) fn take(&self, presence: &Presence) -> Option<Arc<Connection>> {
        let state = self.lock();
        let connection = state.connections.get(&key(presence))?;
        if connection.presence.sid != presence.sid || connection.close_is_requested() || connection.take().is_err() {
            return None;
        }
        let older = state.connections.range((presence.identity.clone(), 0)..key(presence));
        for (_, connection) in older.filter(|(_, connection)| !connection.is_taken()) {
            connection.request_close(CloseReason::Ended(EndReason::Replaced));
        }
        Some(Arc::clone(connection))
    }

    /// The number of connections.
    pub(super) fn len(&self) -> usize {
        self.lock().connections.len()
    }

    /// Admits no more viewers, and closes the connections that no session has opened.
    pub(super) fn stop_admitting(&self) {
        let mut state = self.lock();
        state.stopped_admitting = true;
        for connection in state.connections.values().filter(|connection| !connection.is_taken()) {
            connection.request_close(CloseReason::RoomClosed);
        }
    }

    /// Closes every connection.
    pub(super) fn close_all(&self) {
        for connection in self.lock().connections.values() {
            connection.request_close(CloseReason::RoomClosed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

fn key(presence: &Presence) -> (ParticipantIdentity, u64) {
    (presence.identity.clone(), presence.joined_at)
}

/// A time of joining later than every earlier one, whatever the clock does: no viewer is refused because a clock was
/// set back.
fn joined_at(last: u64, now: u64) -> u64 {
    now.max(last + 1)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::joined_at;

    #[test]
    fn a_clock_set_back_makes_nobody_older() {
        assert_eq!(joined_at(0, 1000), 1000);
        assert_eq!(joined_at(1000, 1000), 1001);
        assert_eq!(joined_at(1001, 3), 1002);
        assert_eq!(joined_at(1002, 5000), 5000);
    }
}
