//! Clocks that the standard library doesn't read.

use std::time::Duration;

use rustix::time::clock_gettime;

pub use rustix::time::ClockId;

pub fn clock(id: ClockId) -> Duration {
    clock_gettime(id).try_into().expect("no clock of these goes below zero")
}
