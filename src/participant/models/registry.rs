//! Models of the registry: the newest instance wins, each loser is ended once, both indexes agree, and no entry stays
//! behind.

use std::sync::Arc;

use loom::thread;

use crate::contract::{EndReason, Ending};
use crate::ids::{ClientId, ParticipantIdentity, ParticipantSid};
use crate::participant::registry::{Instance, Registration, Registry};
use crate::sync::kit::{Weaken, holds, must_fail};
use crate::sync::{ArcSwap, AtomicU8, DashMap, Entry, Ordering};

/// An instance that has nothing but the data that the registry needs.
#[derive(Clone, Debug)]
struct Visitor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    identity: ParticipantIdentity,
    sid: ParticipantSid,
    joined_at: u64,
    client_id: ClientId,
    state: AtomicU8,
}

const NEW: u8 = 0;
const LIVE: u8 = 1;
const GONE: u8 = 2;

impl Visitor {
    /// An instance of the one identity that all models use.
    fn new(sid: &str, joined_at: u64) -> Self {
        Self(Arc::new(Inner {
            identity: ParticipantIdentity::new("viewer").expect("a short text"),
            sid: ParticipantSid::new(sid).expect("a short text"),
            joined_at,
            client_id: ClientId::next(),
            state: AtomicU8::new(NEW),
        }))
    }

    fn is_gone(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == GONE
    }
}

impl PartialEq for Visitor {
    fn eq(&self, other: &Self) -> bool {
        self.0.client_id == other.0.client_id
    }
}

impl Instance for Visitor {
    type Shared = Inner;

    fn shared(&self) -> &Arc<Inner> {
        &self.0
    }

    fn from_shared(shared: Arc<Inner>) -> Self {
        Self(shared)
    }

    fn identity(&self) -> &ParticipantIdentity {
        &self.0.identity
    }

    fn sid(&self) -> &ParticipantSid {
        &self.0.sid
    }

    fn joined_at(&self) -> u64 {
        self.0.joined_at
    }

    fn client_id(&self) -> ClientId {
        self.0.client_id
    }

    fn is_live(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == LIVE
    }

    fn go_live(&self) -> Result<(), EndReason> {
        let changed = self.0.state.compare_exchange(NEW, LIVE, Ordering::AcqRel, Ordering::Acquire);
        // A visitor keeps no reason. The registry doesn't look at it.
        changed.map(drop).map_err(|_| EndReason::Disconnected)
    }

    fn end(&self, _: EndReason) -> Ending {
        if self.0.state.swap(GONE, Ordering::AcqRel) == GONE { Ending::Before } else { Ending::ByThis }
    }
}

/// Registers `new` as the session does, which ends an instance that is refused. True if `new` was registered, even if
/// another instance replaced it afterwards.
fn join(registry: &Registry<Visitor>, new: &Visitor) -> bool {
    match registry.register(new) {
        Registration::Inserted => true,
        Registration::Replaced(prior) => {
            assert!(prior.is_gone(), "a replaced instance is ended");
            true
        }
        Registration::Ended(prior) => {
            assert!(new.is_gone() && prior.is_none_or(|prior| prior.is_gone()));
            false
        }
        Registration::Stale(_) | Registration::Duplicate(_) => {
            new.end(EndReason::Refused);
            false
        }
    }
}

/// Ends an instance and removes it, as the session does on a disconnect and on a reset.
fn leave(registry: &Registry<Visitor>, instance: &Visitor) {
    instance.end(EndReason::Disconnected);
    registry.remove(instance);
}

/// Asserts that both indexes hold `winner` and nothing else, and that no entry stays behind when it leaves.
fn assert_only(registry: &Registry<Visitor>, winner: &Visitor) {
    assert_eq!(registry.stored(winner.identity()).as_ref(), Some(winner));
    assert_eq!(registry.stored_by_sid(winner.sid()).as_ref(), Some(winner));
    assert_eq!(live(registry), std::slice::from_ref(winner));
    assert_eq!(registry.by_identity(winner.identity()).as_ref(), Some(winner));
    assert_eq!(registry.by_sid(winner.sid()).as_ref(), Some(winner));
    leave(registry, winner);
    assert_empty(registry);
}

fn assert_empty(registry: &Registry<Visitor>) {
    assert_eq!(registry.len(), 0);
    assert_eq!(live(registry), []);
}

fn live(registry: &Registry<Visitor>) -> Vec<Visitor> {
    let mut live = Vec::new();
    registry.for_each_live(|instance| live.push(instance.clone()));
    live
}

#[test]
fn the_newer_of_two_wins() {
    holds(|| {
        let registry = Arc::new(Registry::new());
        let (old, new) = (Visitor::new("PA_old", 1), Visitor::new("PA_new", 2));
        let other = thread::spawn({
            let (registry, old) = (Arc::clone(&registry), old.clone());
            move || join(&registry, &old)
        });
        assert!(join(&registry, &new));
        other.join().expect("the registering thread doesn't panic");
        assert!(old.is_gone());
        assert_eq!(registry.stored_by_sid(old.sid()), None);
        assert_only(&registry, &new);
    });
}

#[test]
fn a_late_removal_does_not_hit_the_successor() {
    holds(|| {
        let registry = Arc::new(Registry::new());
        let (late, new) = (Visitor::new("PA_late", 1), Visitor::new("PA_new", 2));
        assert!(join(&registry, &late));
        let other = thread::spawn({
            let (registry, late) = (Arc::clone(&registry), late.clone());
            move || leave(&registry, &late)
        });
        assert!(join(&registry, &new));
        other.join().expect("the removing thread doesn't panic");
        assert!(late.is_gone());
        assert_eq!(registry.stored_by_sid(late.sid()), None);
        assert_only(&registry, &new);
    });
}

#[test]
fn two_joins_and_a_late_removal_agree() {
    holds(|| {
        let registry = Arc::new(Registry::new());
        let late = Visitor::new("PA_late", 1);
        let (old, new) = (Visitor::new("PA_old", 2), Visitor::new("PA_new", 3));
        assert!(join(&registry, &late));
        let joining = thread::spawn({
            let (registry, old) = (Arc::clone(&registry), old.clone());
            move || join(&registry, &old)
        });
        let leaving = thread::spawn({
            let (registry, late) = (Arc::clone(&registry), late.clone());
            move || leave(&registry, &late)
        });
        assert!(join(&registry, &new));
        joining.join().expect("the registering thread doesn't panic");
        leaving.join().expect("the removing thread doesn't panic");
        assert!(old.is_gone() && late.is_gone());
        assert_only(&registry, &new);
    });
}

/// A reset keeps the sid and the join time. The old instance fails late, while the new one registers.
#[test]
fn a_reset_under_the_same_sid_survives_a_late_failure() {
    holds(|| {
        let registry = Arc::new(Registry::new());
        let (old, fresh) = (Visitor::new("PA_1", 1), Visitor::new("PA_1", 1));
        assert!(join(&registry, &old));
        let other = thread::spawn({
            let (registry, old) = (Arc::clone(&registry), old.clone());
            move || leave(&registry, &old)
        });
        leave(&registry, &old);
        assert!(join(&registry, &fresh));
        other.join().expect("the removing thread doesn't panic");
        assert_only(&registry, &fresh);
    });
}

#[test]
fn of_two_with_one_sid_one_is_registered() {
    holds(|| {
        let registry = Arc::new(Registry::new());
        let both = [Visitor::new("PA_1", 1), Visitor::new("PA_1", 1)];
        let other = thread::spawn({
            let (registry, first) = (Arc::clone(&registry), both[0].clone());
            move || join(&registry, &first)
        });
        let mine = join(&registry, &both[1]);
        let theirs = other.join().expect("the registering thread doesn't panic");
        assert!(mine != theirs);
        assert_only(&registry, &both[usize::from(mine)]);
    });
}

#[test]
fn two_departures_leave_nothing_behind() {
    holds(|| {
        let registry = Arc::new(Registry::new());
        let (old, new) = (Visitor::new("PA_old", 1), Visitor::new("PA_new", 2));
        let other = thread::spawn({
            let (registry, old) = (Arc::clone(&registry), old.clone());
            move || {
                join(&registry, &old);
                leave(&registry, &old);
            }
        });
        assert!(join(&registry, &new));
        leave(&registry, &new);
        other.join().expect("the registering thread doesn't panic");
        assert_empty(&registry);
    });
}

/// The instance fails while it registers. If the registration isn't successful, both indexes have dropped the instance.
#[test]
fn an_instance_that_ends_before_it_is_live_does_not_stay() {
    holds(|| {
        let registry = Arc::new(Registry::new());
        let new = Visitor::new("PA_1", 1);
        let other = thread::spawn({
            let new = new.clone();
            move || new.end(EndReason::WriteFailed)
        });
        if join(&registry, &new) {
            leave(&registry, &new);
        }
        assert_empty(&registry);
        assert_eq!(registry.stored_by_sid(new.sid()), None);
        other.join().expect("the ending thread doesn't panic");
    });
}

const HALF_IN: &str = "the instance is found live by its sid, and its identity has another instance or none";

/// Registers the connection that joined at 2, while another thread looks it up by its sid. `register` registers the
/// connection. `find` first checks whether the sid has a live instance, and then returns when the identity's instance
/// joined.
fn look_up_while_registering(register: impl FnOnce() + 'static, find: impl FnOnce() -> (bool, Option<u64>)) {
    let registering = thread::spawn(register);
    let (is_live, joined_at) = find();
    assert!(!is_live || joined_at == Some(2), "{HALF_IN}");
    registering.join().expect("the registering thread doesn't panic");
}

#[test]
fn an_instance_found_live_is_in_both_indexes() {
    for is_first in [true, false] {
        holds(move || {
            let registry = Arc::new(Registry::new());
            let (old, new) = (Visitor::new("PA_old", 1), Visitor::new("PA_new", 2));
            if !is_first {
                assert!(join(&registry, &old));
            }
            let register = {
                let (registry, new) = (Arc::clone(&registry), new.clone());
                move || assert!(join(&registry, &new))
            };
            look_up_while_registering(register, || {
                let is_live = registry.by_sid(new.sid()).is_some();
                (is_live, registry.by_identity(new.identity()).map(|found| found.joined_at()))
            });
        });
    }
}

/// An instance that is refused as stale was never live, so no look-up finds it.
#[test]
fn a_stale_instance_is_never_found() {
    holds(|| {
        let registry = Arc::new(Registry::new());
        let (late, new) = (Visitor::new("PA_late", 2), Visitor::new("PA_new", 3));
        assert!(join(&registry, &new));
        let register = {
            let (registry, late) = (Arc::clone(&registry), late.clone());
            move || assert!(!join(&registry, &late))
        };
        look_up_while_registering(register, || {
            let is_live = registry.by_sid(late.sid()).is_some();
            (is_live, registry.by_identity(late.identity()).map(|found| found.joined_at()))
        });
        assert_only(&registry, &new);
    });
}

/// Both indexes, reduced to one identity and one new connection.
struct Indexes {
    by_sid: DashMap<&'static str, ()>,
    slots: DashMap<&'static str, u64>,
    live: AtomicU8,
}

/// Registers a connection in the sketch and looks it up. Broken unless `goes_live_last`: then the connection goes live
/// before it has its slot, which another instance may have. `slot_of` is when the instance that has the slot joined.
fn look_up_in_sketch(goes_live_last: bool, slot_of: Option<u64>) {
    let live = AtomicU8::new(NEW);
    let indexes = Arc::new(Indexes { by_sid: DashMap::default(), slots: DashMap::default(), live });
    if let (Some(later), Entry::Vacant(vacant)) = (slot_of, indexes.slots.entry(IDENTITY)) {
        vacant.insert(later);
    }
    let register = {
        let indexes = Arc::clone(&indexes);
        move || {
            let go_live = || indexes.live.store(LIVE, Ordering::Release);
            if let Entry::Vacant(vacant) = indexes.by_sid.entry("PA_new") {
                vacant.insert(());
            }
            if !goes_live_last {
                go_live();
            }
            match indexes.slots.entry(IDENTITY) {
                Entry::Vacant(vacant) => {
                    vacant.insert(2);
                    go_live();
                }
                Entry::Occupied(_) => {
                    indexes.by_sid.remove_if(&"PA_new", |_, ()| true);
                }
            }
        }
    };
    look_up_while_registering(register, || {
        let is_live = indexes.by_sid.get(&"PA_new").is_some() && indexes.live.load(Ordering::Acquire) == LIVE;
        (is_live, indexes.slots.get(&IDENTITY).map(|slot| *slot))
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breakage {
    /// Keeps the slot but not the guard, and swaps the slot when it may have left the map.
    SwapsUnguarded,
    /// Loads the slot, then stores unconditionally, even if another instance came in between.
    LoadsThenStores,
    /// Nothing is broken. Shows that the sketch fails only because of its breakage.
    None,
}

/// The index by identity, reduced to the parts that can break.
struct Sketch {
    slots: DashMap<&'static str, Arc<ArcSwap<u64>>>,
    breakage: Breakage,
}

const IDENTITY: &str = "viewer";

impl Sketch {
    fn new(breakage: Breakage) -> Self {
        Self { slots: DashMap::default(), breakage }
    }

    /// Puts `joined_at` into the slot, unless the slot has a later one.
    fn register(&self, joined_at: u64) {
        if let Some(slot) = self.slots.get(&IDENTITY) {
            if self.breakage != Breakage::SwapsUnguarded {
                return self.claim(&slot, joined_at);
            }
            let unguarded = Arc::clone(&slot);
            drop(slot);
            return self.claim(&unguarded, joined_at);
        }
        match self.slots.entry(IDENTITY) {
            Entry::Vacant(vacant) => drop(vacant.insert(Arc::new(ArcSwap::new(Arc::new(joined_at))))),
            Entry::Occupied(occupied) => self.claim(occupied.get(), joined_at),
        }
    }

    fn claim(&self, slot: &ArcSwap<u64>, joined_at: u64) {
        let value = Arc::new(joined_at);
        loop {
            let current = slot.load_full();
            if *current > joined_at {
                return;
            }
            if self.breakage == Breakage::LoadsThenStores {
                slot.swap(value);
                return;
            }
            let seen = slot.compare_and_swap(&current, Arc::clone(&value));
            if Arc::ptr_eq(&seen, &current) {
                return;
            }
        }
    }

    fn remove(&self, joined_at: u64) {
        self.slots.remove_if(&IDENTITY, |_, slot| **slot.load() == joined_at);
    }

    fn stored(&self) -> Option<u64> {
        Some(*self.slots.get(&IDENTITY)?.load_full())
    }
}

const ORPHANED: &str = "the instance is registered in a slot that no look-up finds";
const OLDER_WON: &str = "an older instance replaced a newer one";

fn register_and_remove(breakage: Breakage) {
    let sketch = Arc::new(Sketch::new(breakage));
    sketch.register(1);
    let other = thread::spawn({
        let sketch = Arc::clone(&sketch);
        move || sketch.remove(1)
    });
    sketch.register(2);
    other.join().expect("the removing thread doesn't panic");
    assert_eq!(sketch.stored(), Some(2), "{ORPHANED}");
}

fn register_two(breakage: Breakage) {
    let sketch = Arc::new(Sketch::new(breakage));
    sketch.register(0);
    let other = thread::spawn({
        let sketch = Arc::clone(&sketch);
        move || sketch.register(1)
    });
    sketch.register(2);
    other.join().expect("the registering thread doesn't panic");
    assert_eq!(sketch.stored(), Some(2), "{OLDER_WON}");
}

#[test]
fn the_sketch_holds_unbroken() {
    holds(|| register_and_remove(Breakage::None));
    holds(|| register_two(Breakage::None));
    holds(|| look_up_in_sketch(true, None));
    holds(|| look_up_in_sketch(true, Some(3)));
}

#[test]
fn broken_without_its_guard_a_registration_lands_in_an_orphaned_slot() {
    must_fail(Weaken::Nothing, ORPHANED, || register_and_remove(Breakage::SwapsUnguarded));
}

#[test]
fn broken_a_load_and_a_store_let_an_older_instance_win() {
    must_fail(Weaken::Nothing, OLDER_WON, || register_two(Breakage::LoadsThenStores));
}

#[test]
fn broken_going_live_before_the_slot_is_claimed_shows_half_of_it() {
    must_fail(Weaken::Nothing, HALF_IN, || look_up_in_sketch(false, None));
    must_fail(Weaken::Nothing, HALF_IN, || look_up_in_sketch(false, Some(3)));
}
