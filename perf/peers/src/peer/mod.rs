//! The servers that are compared. Each speaks the same part of the same protocol and has one channel.

mod axum;
mod floor;
mod foxglove;
mod lanecast;
mod telemetry;
mod uring;

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use ::lanecast::{Lossy, Profile};
use bytes::Bytes;

use crate::serve::{Next, Task};
use crate::{Error, wire};

/// Where `run.sh` installs the program that carries uWebSockets.
pub const BUN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/node_modules/bun/bin/bun.exe");

/// The servers, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A session over the WebSocket room.
    Lanecast,
    /// Like `Lanecast`, with a lossy topic.
    LanecastLossy,
    /// The same through `Telemetry`, as an embedder uses it.
    Telemetry,
    /// uWebSockets, in `bun`. Not a process of this program.
    UWebSockets,
    Foxglove,
    /// Axum and `tokio::sync::broadcast` with a task per client, as people write it.
    Axum,
    /// Like `Axum`, with `TCP_NODELAY` and a read buffer of 4 KiB.
    AxumTuned,
    /// One write of pre-framed bytes per client per message.
    FloorSingle,
    /// All messages in the queue are written at once per client.
    FloorGather,
    /// One write of pre-framed bytes per client per message; the writes to all clients share one system call.
    FloorUring,
}

impl Kind {
    pub const ALL: [Self; 10] = [
        Self::FloorSingle,
        Self::FloorGather,
        Self::FloorUring,
        Self::Lanecast,
        Self::LanecastLossy,
        Self::Telemetry,
        Self::UWebSockets,
        Self::AxumTuned,
        Self::Axum,
        Self::Foxglove,
    ];

    /// The servers that are compared unless others are requested.
    pub fn usual() -> Vec<Self> {
        let named = |kind: &Self| matches!(kind, Self::FloorUring | Self::LanecastLossy);
        Self::ALL.into_iter().filter(|kind| !named(kind) && kind.is_available()).collect()
    }

    /// Whether the server can be started here.
    pub fn is_available(self) -> bool {
        self != Self::UWebSockets || Path::new(BUN).exists()
    }

    /// Whether the load's clients subscribe with one id, so that one frame serves all of them.
    pub fn has_equal_ids(self) -> bool {
        self == Self::UWebSockets
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Lanecast => "lanecast",
            Self::LanecastLossy => "lanecast-lossy",
            Self::Telemetry => "telemetry",
            Self::UWebSockets => "uwebsockets",
            Self::Foxglove => "foxglove",
            Self::Axum => "axum",
            Self::AxumTuned => "axum-tuned",
            Self::FloorSingle => "floor-single",
            Self::FloorGather => "floor-gather",
            Self::FloorUring => "floor-uring",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("unknown server {name}"))
    }
}

/// A server that listens.
pub trait Peer: Send + Sync {
    fn address(&self) -> SocketAddr;

    /// Sends a message to all subscribers. May wait while the server is behind.
    fn publish(&self, payload: Bytes, log_time: u64);

    /// Publishes the messages of `task`, the first with the number `first`. Returns how many.
    fn publish_all(&self, task: &Task, first: u64) -> u64 {
        let (start, mut sent) = (wire::now(), 0);
        loop {
            match task.next(start, sent) {
                Next::Due(due) => {
                    self.publish(Bytes::from(wire::payload(first + sent, due, task.size)), due);
                    sent += 1;
                }
                Next::Wait(time) => std::thread::sleep(time),
                Next::Done => return sent,
            }
        }
    }

    /// Number of clients whose subscription has taken effect.
    fn subscribers(&self) -> usize;
}

pub fn start(kind: Kind) -> Result<Box<dyn Peer>, Error> {
    Ok(match kind {
        Kind::Lanecast => Box::new(lanecast::Lanecast::start(Profile::reliable())?),
        Kind::LanecastLossy => Box::new(lanecast::Lanecast::start(Profile::lossy(Lossy::default()))?),
        Kind::Telemetry => Box::new(telemetry::Telemetry::start()?),
        Kind::UWebSockets => return Err("uwebsockets is not a server of this program".into()),
        Kind::Foxglove => Box::new(foxglove::Foxglove::start()?),
        Kind::Axum => Box::new(axum::Axum::start(false)?),
        Kind::AxumTuned => Box::new(axum::Axum::start(true)?),
        Kind::FloorSingle => Box::new(floor::Floor::start::<floor::Calls>(1)?),
        Kind::FloorGather => Box::new(floor::Floor::start::<floor::Calls>(floor::QUEUE)?),
        Kind::FloorUring => Box::new(floor::Floor::start::<uring::Ring>(1)?),
    })
}
