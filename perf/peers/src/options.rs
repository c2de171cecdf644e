//! The command line of the runner.

use std::path::PathBuf;
use std::time::Duration;

use crate::Error;
use crate::peer::Kind;

pub const USAGE: &str = "\
usage: peers run [--quick] [--clients N,N…] [--servers NAME,NAME…] [--only PART,PART…] [--rounds N] [--rate N]
                 [--out FILE] [--any-congestion]
       peers serve NAME
       peers slow KBIT SECONDS NAME…

  --quick            100 and 1,000 clients, short windows: some minutes
  --clients          numbers of clients (100,1000,4000,9000)
  --servers          which servers (floor-single,floor-gather,lanecast,telemetry,uwebsockets,axum-tuned,axum,foxglove;
                     floor-uring if named)
  --only             which parts: rate, fixed, connect, join, stall (all)
  --rounds           how often each measurement is made; medians are shown (5; quick 3)
  --rate             messages per second at which the fixed part compares (two fifths of the single-write floor's best)
  --out              where the table goes
  --any-congestion   measure even under bbr, which pauses on loopback";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The highest clean rate.
    Rate,
    /// CPU, latency and memory at one rate.
    Fixed,
    /// The time to connect 4,000 clients.
    Connect,
    /// The time to connect 1,000 clients while 1,000 messages per second are published.
    Join,
    /// The effect of 1 % of stalled clients.
    Stall,
}

#[derive(Debug)]
pub struct Options {
    pub clients: Vec<usize>,
    pub servers: Vec<Kind>,
    pub parts: Vec<Part>,
    pub rounds: usize,
    pub rate: Option<f64>,
    pub out: Option<PathBuf>,
    pub any_congestion: bool,
    /// Length of a probe for the clean rate, of a window at a fixed rate, and of a window with stalled clients.
    pub probe: Duration,
    pub window: Duration,
    pub stall: Duration,
    /// Number of rounds of the part with stalled clients.
    pub stall_rounds: usize,
}

pub fn parse(arguments: &[&str]) -> Result<Options, Error> {
    let quick = arguments.contains(&"--quick");
    let mut options = Options {
        clients: if quick { vec![100, 1000] } else { vec![100, 1000, 4000, 9000] },
        servers: Kind::usual(),
        parts: vec![Part::Fixed, Part::Rate, Part::Connect, Part::Join, Part::Stall],
        rounds: if quick { 3 } else { 5 },
        rate: None,
        out: None,
        any_congestion: false,
        probe: Duration::from_millis(if quick { 1000 } else { 3000 }),
        window: Duration::from_millis(if quick { 1500 } else { 5000 }),
        stall: Duration::from_millis(if quick { 22_000 } else { 30_000 }),
        stall_rounds: if quick { 1 } else { 3 },
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().copied().ok_or(USAGE);
        match *argument {
            "--quick" => {}
            "--any-congestion" => options.any_congestion = true,
            "--clients" => options.clients = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--servers" => options.servers = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--only" => options.parts = value()?.split(',').map(part).collect::<Result<_, _>>()?,
            "--rounds" => options.rounds = value()?.parse::<usize>()?.max(1),
            "--rate" => options.rate = Some(value()?.parse()?),
            "--out" => options.out = Some(value()?.into()),
            _ => return Err(USAGE.into()),
        }
    }
    Ok(options)
}

fn part(name: &str) -> Result<Part, Error> {
    Ok(match name {
        "rate" => Part::Rate,
        "fixed" => Part::Fixed,
        "connect" => Part::Connect,
        "join" => Part::Join,
        "stall" => Part::Stall,
        _ => return Err(USAGE.into()),
    })
}
