//! Models of the wake-up: no shard sleeps while it has work, and none spins.

use std::sync::Arc;

use loom::thread;

use super::{Note, Sleeping, Watch, port, reader, run, slot};
use crate::contract::topic::Audience;
use crate::sync::kit::{SLEEPS_FOR_EVER, SPINS, Weaken, holds, holds_narrowly, must_fail};

/// A publisher and a sender wake the shard. The shard ends when it has found what both left for it.
fn publisher_and_sender(sleeping: Sleeping) {
    let port = port(2);
    let shard = thread::spawn({
        let (port, mut reader, mut watch) = (Arc::clone(&port), reader(&port), Watch::default());
        move || run(&port, &mut reader, &mut watch, sleeping, |watch| watch.read.len() == 1 && watch.mail == 1)
    });
    let sender = thread::spawn({
        let port = Arc::clone(&port);
        move || {
            port.mail.set(slot());
            port.signal.wake();
        }
    });
    port.log.publish(&Audience::All, Note("b")).expect("the log has capacity");
    sender.join().expect("the sender doesn't panic");
    shard.join().expect("the shard doesn't panic");
}

/// A sink wakes its member while a publisher wakes the shard for a broadcast.
fn sink_and_publisher(sleeping: Sleeping) {
    let port = port(1);
    let shard = thread::spawn({
        let (port, mut reader, mut watch) = (Arc::clone(&port), reader(&port), Watch::default());
        move || run(&port, &mut reader, &mut watch, sleeping, |watch| watch.read.len() == 1 && watch.ready == 1)
    });
    let sink = thread::spawn({
        let port = Arc::clone(&port);
        move || {
            port.ready.set(0);
            port.signal.wake();
        }
    });
    port.log.publish(&Audience::All, Note("b")).expect("the log has capacity");
    sink.join().expect("the sink doesn't panic");
    shard.join().expect("the shard doesn't panic");
}

/// Two publishers, then the seal. The shard reads everything, and ends because it learns of the seal.
fn publishers_and_seal(sleeping: Sleeping) {
    let port = port(2);
    let shard = thread::spawn({
        let (port, mut reader, mut watch) = (Arc::clone(&port), reader(&port), Watch::default());
        move || {
            run(&port, &mut reader, &mut watch, sleeping, |_| false);
            assert_eq!(watch.read.len(), 2);
        }
    });
    let publisher = thread::spawn({
        let port = Arc::clone(&port);
        move || port.log.publish(&Audience::All, Note("a")).expect("the log has capacity")
    });
    port.log.publish(&Audience::All, Note("b")).expect("the log has capacity");
    publisher.join().expect("the publisher doesn't panic");
    port.log.seal();
    shard.join().expect("the shard doesn't panic");
}

#[test]
fn a_publisher_and_a_sender_wake_the_shard() {
    holds(|| publisher_and_sender(Sleeping::Right));
}

#[test]
fn a_sink_and_a_publisher_wake_the_shard() {
    holds(|| sink_and_publisher(Sleeping::Right));
}

#[test]
fn the_seal_wakes_the_shard() {
    holds_narrowly(|| publishers_and_seal(Sleeping::Right));
}

#[test]
fn broken_without_fences_the_shard_sleeps_on_a_filled_slot() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || publishers_and_seal(Sleeping::Right));
}

#[test]
fn broken_without_fences_the_shard_sleeps_on_mail() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || publisher_and_sender(Sleeping::Right));
}

#[test]
fn broken_a_shard_that_looks_before_it_declares_itself_asleep_is_not_woken() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || publishers_and_seal(Sleeping::LooksFirst));
}

#[test]
fn broken_a_shard_that_looks_at_the_tail_spins_behind_a_claimed_slot() {
    must_fail(Weaken::Nothing, SPINS, || publishers_and_seal(Sleeping::LooksAtTail));
}
