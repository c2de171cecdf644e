//! Limits on the number of connections, in all and per address.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::caught::lock;

/// One part in this many of all places is kept from an address that already has as many.
const KEPT: usize = 10;

/// The places for connections. All operations take constant time. The state has at most one entry per place that is
/// taken.
///
/// The last tenth of all places is reserved: an address that has a tenth or more gets none of it. So one address,
/// however many connections it opens, leaves a tenth for others, and it takes ten addresses to take every place. With
/// fewer than ten places, nothing is reserved.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    exempt: HashSet<IpAddr>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// The number of places that each address has; an address without a place has no entry. The map hashes with a
    /// secret of the process, because clients choose the addresses.
    by_address: HashMap<Address, usize>,
}

/// Clients that count as one: an IPv4 address, or an IPv6 network of the size that each customer gets (the first 64
/// bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Address {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Address {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// The reason why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All places are taken.
    All,
    /// The places that are left are reserved for other addresses.
    Address,
}

impl Places {
    /// `exempt` are addresses of proxies, from which the connections of many clients come.
    pub(super) fn new(max: usize, exempt: impl IntoIterator<Item = IpAddr>) -> Arc<Self> {
        let exempt = exempt.into_iter().map(|ip| ip.to_canonical()).collect();
        Arc::new(Self { max, exempt, state: Mutex::default() })
    }

    /// Takes a place for a connection from `peer`. Dropping the returned value gives the place back.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Full> {
        let address = (!self.is_exempt(peer)).then(|| Address::of(peer));
        let mut state = self.lock();
        let free = self.max - state.taken;
        if free == 0 {
            return Err(Full::All);
        }
        if let Some(address) = address {
            let kept = self.max / KEPT;
            let has = state.by_address.get(&address).copied().unwrap_or(0);
            if free <= kept && has >= kept {
                return Err(Full::Address);
            }
            state.by_address.insert(address, has + 1);
        }
        state.taken += 1;
        drop(state);
        Ok(Place { places: Arc::clone(self), address })
    }

    /// Whether `peer` isn't counted by address: this machine's own programs and the proxies aren't.
    fn is_exempt(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        peer.is_loopback() || self.exempt.contains(&peer)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// A place for one connection.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    /// `None` if the place isn't counted by address.
    address: Option<Address>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.taken -= 1;
        let Some(address) = self.address else { return };
        if let Entry::Occupied(mut count) = state.by_address.entry(address) {
            match count.get() - 1 {
                0 => drop(count.remove()),
                left => *count.get_mut() = left,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Takes places for `peer` until none is left for it.
    fn take_all(places: &Arc<Places>, peer: &str) -> (Vec<Place>, Full) {
        let mut taken = Vec::new();
        loop {
            match places.take(ip(peer)) {
                Ok(place) => taken.push(place),
                Err(full) => return (taken, full),
            }
        }
    }

    #[test]
    fn one_address_leaves_a_tenth_for_others() {
        let places = Places::new(100, []);
        let (greedy, full) = take_all(&places, "203.0.113.1");
        assert_eq!((greedy.len(), full), (90, Full::Address));
        // Another address gets at most a tenth of what is left, and so does an IPv6 network, whatever the last 64 bits
        // are.
        let others: Vec<_> = (0..4).map(|_| places.take(ip("203.0.113.2")).unwrap()).collect();
        let (six, full) = take_all(&places, "2001:db8:0:1::1");
        assert_eq!((six.len(), full), (6, Full::All));
        // A place that is given back can be taken by an address that has few.
        drop(greedy);
        let again = take_all(&places, "2001:db8:0:1:ffff::2").0;
        assert_eq!(again.len() + six.len() + others.len(), 90);
        assert_eq!(places.take(ip("2001:db8:0:1::3")).unwrap_err(), Full::Address);
        assert!(places.take(ip("2001:db8:0:2::1")).is_ok());
        drop((six, others, again));
        assert_eq!(places.lock().by_address, HashMap::new());
        assert_eq!(places.lock().taken, 0);
    }

    #[test]
    fn this_machine_and_proxies_may_take_all() {
        for peer in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "203.0.113.9", "::ffff:203.0.113.9", "2001:db8::9"] {
            let places = Places::new(20, [ip("203.0.113.9"), ip("2001:db8::9")]);
            let (taken, full) = take_all(&places, peer);
            assert_eq!((taken.len(), full), (20, Full::All), "{peer}");
            assert_eq!(places.lock().by_address, HashMap::new());
        }
        let places = Places::new(20, [ip("2001:db8::9")]);
        assert_eq!(take_all(&places, "2001:db8::8").0.len(), 18, "a proxy is an address, not a network");
    }

    #[test]
    fn few_places_are_for_whoever_comes() {
        for max in 1..10 {
            let places = Places::new(max, []);
            assert_eq!(take_all(&places, "203.0.113.1").0.len(), max);
        }
        assert_eq!(take_all(&Places::new(10, []), "203.0.113.1").0.len(), 9);
    }

    // 1. Threads of few addresses take and give back at the same time. 2. No address ever has more than nine tenths,
    // and together they never have more places than there are. 3. At the end all places are free and no address has an
    // entry.
    #[test]
    fn the_count_holds_however_many_take_at_once() {
        const MAX: usize = 20;
        let places = Places::new(MAX, []);
        let begin = Barrier::new(8);
        std::thread::scope(|scope| {
            for thread in 0..8_u8 {
                let (places, begin) = (&places, &begin);
                scope.spawn(move || {
                    let peer = IpAddr::from([203, 0, 113, thread % 2]);
                    let mut held = Vec::new();
                    begin.wait();
                    for round in 0..2000 {
                        held.extend(places.take(peer));
                        let state = places.lock();
                        assert!(state.taken <= MAX);
                        assert!(state.by_address.values().all(|count| (1..=MAX * 9 / 10).contains(count)));
                        assert_eq!(state.by_address.values().sum::<usize>(), state.taken);
                        drop(state);
                        if round % 5 == 4 {
                            held.truncate(held.len() / 2);
                        }
                    }
                });
            }
        });
        assert_eq!(places.lock().taken, 0);
        assert!(places.lock().by_address.is_empty());
        assert_eq!(take_all(&places, "203.0.113.0").0.len(), MAX * 9 / 10);
    }
}
