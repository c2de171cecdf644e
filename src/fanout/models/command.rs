//! Models of commands: a command takes effect after everything that was published before it was given.

use std::sync::Arc;

use loom::thread;

use super::{Note, port, position};
use crate::contract::topic::Audience;
use crate::fanout::log::{BroadcastLog, Position};
use crate::fanout::shard::reader::take_command;
use crate::sync::kit::{Weaken, holds, must_fail};
use crate::sync::{ArrayQueue, AtomicU64, Ordering};

/// Takes a command from a shard's queue and returns its position. The production code and the broken one have this
/// type.
type Take = fn(&BroadcastLog<Note>, &ArrayQueue<()>) -> Option<Position>;

fn right(log: &BroadcastLog<Note>, commands: &ArrayQueue<()>) -> Option<Position> {
    take_command(log, || commands.pop()).map(|(position, ())| position)
}

/// Broken: reads the tail before it takes the command.
fn tail_first(log: &BroadcastLog<Note>, commands: &ArrayQueue<()>) -> Option<Position> {
    let position = log.tail().position();
    commands.pop().map(|()| position)
}

const ABOVE: &str = "a message published before the command was given isn't below the command's position";

fn publish(log: &BroadcastLog<Note>) {
    log.publish(&Audience::All, Note("before")).expect("the log has capacity");
}

/// One thread publishes, then gives the shard a command.
fn publish_then_command(take: Take) {
    let (port, commands) = (port(1), Arc::new(ArrayQueue::new(1)));
    let shard = thread::spawn({
        let (port, commands) = (Arc::clone(&port), Arc::clone(&commands));
        move || take(&port.log, &commands)
    });
    publish(&port.log);
    assert_eq!(commands.push(()), Ok(()));
    let taken = shard.join().expect("the shard doesn't panic");
    assert!(taken.is_none_or(|taken| taken == position(1)), "{ABOVE}");
}

/// One thread publishes and tells another, which then gives the command.
fn handed_over(take: Take) {
    let (port, commands) = (port(1), Arc::new(ArrayQueue::new(1)));
    let told = Arc::new(AtomicU64::new(0));
    let shard = thread::spawn({
        let (port, commands) = (Arc::clone(&port), Arc::clone(&commands));
        move || take(&port.log, &commands)
    });
    let second = thread::spawn({
        let (commands, told) = (Arc::clone(&commands), Arc::clone(&told));
        move || told.load(Ordering::Acquire) == 1 && commands.push(()).is_ok()
    });
    publish(&port.log);
    told.store(1, Ordering::Release);
    second.join().expect("the thread that was told doesn't panic");
    let taken = shard.join().expect("the shard doesn't panic");
    assert!(taken.is_none_or(|taken| taken == position(1)), "{ABOVE}");
}

#[test]
fn a_command_takes_effect_behind_what_was_published_before() {
    holds(|| publish_then_command(right));
}

#[test]
fn a_command_takes_effect_behind_what_its_giver_was_told_of() {
    holds(|| handed_over(right));
}

#[test]
fn broken_a_tail_read_before_the_command_is_too_low() {
    must_fail(Weaken::Nothing, ABOVE, || publish_then_command(tail_first));
    must_fail(Weaken::Nothing, ABOVE, || handed_over(tail_first));
}
