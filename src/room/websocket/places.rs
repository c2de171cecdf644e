//! How many connections there may be, and how many of them from one address.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The part of all places that no address gets that has as many already.
const KEPT: usize = 10;

/// The places for connections. All operations take constant time; what is stored is at most an entry per place that is
/// taken.
///
/// The last tenth of all places is kept: an address that has a tenth or more gets none of it. So one address, however
/// many connections it opens, leaves a tenth for others; it takes ten addresses to take all. Fewer than ten places
/// have no such part.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    exempt: HashSet<IpAddr>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// By how many places each address has; those that have none aren't listed. Hashed with a secret of the process:
    /// who connects chooses the addresses.
    by_address: HashMap<Address, usize>,
}

/// Those who count as one: an address of IPv4, or a network of IPv6 as each customer has one (the first 64 bits).
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

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All are taken.
    All,
    /// Those that are left are for other addresses.
    Address,
}

impl Places {
    /// `exempt` are addresses of proxies, whose connections come from many others.
    pub(super) fn new(max: usize, exempt: impl IntoIterator<Item = IpAddr>) -> Arc<Self> {
        let exempt = exempt.into_iter().map(|ip| ip.to_canonical()).collect();
        Arc::new(Self { max, exempt, state: Mutex::default() })
    }

    /// Takes a place for a connection from `peer`, until what is returned is dropped.
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

    /// This machine's own programs and the proxies aren't counted by address.
    fn is_exempt(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        peer.is_loopback() || self.exempt.contains(&peer)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place for one connection.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    /// `None` if it isn't counted by address.
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

    /// Takes places for `peer` until there is none.
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
        // Another one gets a tenth at most of what is left, and so does one of IPv6, whatever its last 64 bits.
        let others: Vec<_> = (0..4).map(|_| places.take(ip("203.0.113.2")).unwrap()).collect();
        let (six, full) = take_all(&places, "2001:db8:0:1::1");
        assert_eq!((six.len(), full), (6, Full::All));
        // A place that is given back can be taken by those who have few.
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

    // 1. Threads of few addresses take and give back at the same time. 2. No address ever has more than nine tenths, and
    // all together never more than there are. 3. At the end all places are free and nothing is remembered.
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
