//! A server process: starts a peer and executes the commands on its standard input, one per line, until the input ends.
//!
//! | command | answer |
//! |---|---|
//! | | `listening ADDRESS`, at the start |
//! | `subscribers` | `subscribers COUNT` |
//! | `cpu` | `cpu NANOSECONDS`, of the process |
//! | `publish RATE MILLISECONDS SIZE NOW` | `published FIRST COUNT`, when done; `NOW` is for servers with a clock of their own |

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::peer::{self, Kind, Peer};
use crate::{Error, wire};

pub fn serve(kind: Kind) -> Result<(), Error> {
    let peer: Arc<dyn Peer> = peer::start(kind)?.into();
    let number = Arc::new(AtomicU64::new(0));
    println!("listening {}", peer.address());
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["subscribers"] => println!("subscribers {}", peer.subscribers()),
            ["cpu"] => println!("cpu {}", wire::process_cpu()),
            ["publish", rate, millis, size, _] => {
                let task = Task { rate: rate.parse()?, millis: millis.parse()?, size: size.parse()? };
                let (peer, number) = (Arc::clone(&peer), Arc::clone(&number));
                std::thread::spawn(move || {
                    let first = number.fetch_add(task.count(), Ordering::Relaxed);
                    let sent = peer.publish_all(&task, first);
                    println!("published {first} {sent}");
                });
            }
            _ => return Err(format!("unknown command {line}").into()),
        }
    }
    // No connection is closed first: the runner has everything it needs.
    std::process::exit(0);
}

/// Publishes `rate` messages per second for `millis` milliseconds. A publisher that was held up catches up: each
/// message is stamped with the time at which it was due.
#[derive(Clone, Copy)]
pub struct Task {
    pub rate: f64,
    pub millis: u64,
    pub size: usize,
}

/// Where a publisher stands.
pub enum Next {
    /// The next message is due, and was due at this time.
    Due(u64),
    Wait(Duration),
    /// Everything is published, or publishing is too far behind.
    Done,
}

impl Task {
    fn count(&self) -> u64 {
        (self.rate * self.millis as f64 / 1000.0).round().max(1.0) as u64
    }

    /// What to do after `sent` messages. `start` is when publishing began.
    pub fn next(&self, start: u64, sent: u64) -> Next {
        // Publishing stops after twice the time, however far behind it is.
        let last = start + self.millis * 1_000_000 * 2;
        let due = start + (sent as f64 * 1e9 / self.rate) as u64;
        match wire::now() {
            now if sent == self.count() || now > last => Next::Done,
            now if now < due => Next::Wait(Duration::from_nanos(due - now)),
            _ => Next::Due(due),
        }
    }
}
