//! Stand-in for `dashmap::DashMap`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use loom::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::hidden::Hidden;

/// The number of locks of a map. The first keys get one lock each, so that no two of them are ordered by sharing a
/// lock.
const LOCKS: usize = 4;

type Shard<K, V> = RwLock<BTreeMap<K, V>>;
type ReadGuard<'a, K, V> = RwLockReadGuard<'a, BTreeMap<K, V>>;
type WriteGuard<'a, K, V> = RwLockWriteGuard<'a, BTreeMap<K, V>>;

/// A map in parts, each under a reader-writer lock.
pub(crate) struct DashMap<K, V> {
    shards: [Shard<K, V>; LOCKS],
    /// The keys, in the order in which they were first used. A key's index determines its lock.
    places: Hidden<Vec<K>>,
}

/// Creates an empty map.
pub(crate) fn new_map<K: Ord + Clone, V>() -> DashMap<K, V> {
    DashMap::default()
}

impl<K: Ord + Clone, V> Default for DashMap<K, V> {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| RwLock::new(BTreeMap::new())), places: Hidden::new(Vec::new()) }
    }
}

impl<K: Ord + Clone, V> DashMap<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<Ref<'_, K, V>> {
        let guard = read(self.shard(key));
        guard.contains_key(key).then(|| Ref { guard: Rc::new(guard), key: key.clone() })
    }

    pub(crate) fn entry(&self, key: K) -> Entry<'_, K, V> {
        let guard = write(self.shard(&key));
        if guard.contains_key(&key) {
            Entry::Occupied(OccupiedEntry(RefMut { guard, key }))
        } else {
            Entry::Vacant(VacantEntry { guard, key })
        }
    }

    pub(crate) fn remove_if(&self, key: &K, condition: impl FnOnce(&K, &V) -> bool) -> Option<(K, V)> {
        let mut guard = write(self.shard(key));
        let remove = guard.get(key).is_some_and(|value| condition(key, value));
        if remove { guard.remove_entry(key) } else { None }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Ref<'_, K, V>> {
        self.shards.iter().flat_map(|shard| {
            let guard = Rc::new(read(shard));
            let keys: Vec<K> = guard.keys().cloned().collect();
            keys.into_iter().map(move |key| Ref { guard: Rc::clone(&guard), key })
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| read(shard).len()).sum()
    }

    pub(crate) fn clear(&self) {
        self.shards.iter().for_each(|shard| write(shard).clear());
    }

    fn shard(&self, key: &K) -> &Shard<K, V> {
        let mut places = self.places.get();
        let place = places.iter().position(|known| known == key).unwrap_or_else(|| {
            places.push(key.clone());
            places.len() - 1
        });
        &self.shards[place % LOCKS]
    }
}

fn read<K, V>(shard: &Shard<K, V>) -> ReadGuard<'_, K, V> {
    shard.read().expect("loom's lock isn't poisoned")
}

fn write<K, V>(shard: &Shard<K, V>) -> WriteGuard<'_, K, V> {
    shard.write().expect("loom's lock isn't poisoned")
}

/// Shared access to a value, and to nothing else.
pub(crate) struct Ref<'a, K, V> {
    guard: Rc<ReadGuard<'a, K, V>>,
    key: K,
}

impl<K: Ord, V> Ref<'_, K, V> {
    pub(crate) fn value(&self) -> &V {
        &self.guard[&self.key]
    }
}

impl<K: Ord, V> Deref for Ref<'_, K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        self.value()
    }
}

/// Exclusive access to a value.
pub(crate) struct RefMut<'a, K, V> {
    guard: WriteGuard<'a, K, V>,
    key: K,
}

impl<K: Ord, V> Deref for RefMut<'_, K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.guard[&self.key]
    }
}

impl<K: Ord, V> DerefMut for RefMut<'_, K, V> {
    fn deref_mut(&mut self) -> &mut V {
        self.guard.get_mut(&self.key).expect("the entry exists while the guard lives")
    }
}

/// The entry of a key, under the key's lock.
pub(crate) enum Entry<'a, K, V> {
    Vacant(VacantEntry<'a, K, V>),
    Occupied(OccupiedEntry<'a, K, V>),
}

pub(crate) struct VacantEntry<'a, K, V> {
    guard: WriteGuard<'a, K, V>,
    key: K,
}

pub(crate) struct OccupiedEntry<'a, K, V>(RefMut<'a, K, V>);

impl<'a, K: Ord + Clone, V> VacantEntry<'a, K, V> {
    pub(crate) fn insert(mut self, value: V) -> RefMut<'a, K, V> {
        self.guard.insert(self.key.clone(), value);
        RefMut { guard: self.guard, key: self.key }
    }
}

impl<K: Ord, V> OccupiedEntry<'_, K, V> {
    pub(crate) fn get(&self) -> &V {
        &self.0
    }
}

impl<K, V> fmt::Debug for DashMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DashMap").finish_non_exhaustive()
    }
}
