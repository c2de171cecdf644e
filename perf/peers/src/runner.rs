//! Runs every server against the same load, in turns, and collects the measurements.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::load::{Load, State};
use crate::options::{Options, Part};
use crate::peer::Kind;
use crate::report::{Fixed, Report, Stalled};
use crate::server::Server;
use crate::{Error, memory, wire};

/// Size of a message, in bytes.
const SIZE: usize = 128;

/// The part with stalled clients. With its usual buffers, the kernel takes several megabytes for a stalled client
/// before the server notices anything, and then the server waits for its own time-out. With messages of several
/// kilobytes and small receive buffers, all of that fits into one window, at a rate that leaves the machine some
/// reserve.
const STALL_CLIENTS: usize = 1000;
pub const STALL_COUNT: usize = STALL_CLIENTS / 100;
pub const STALL_RATE: f64 = 40.0;
pub const STALL_SIZE: usize = 8 << 10;
pub const STALL_BUFFER: usize = 64 << 10;

/// The servers of that part. The floors have no time-outs, and the untuned axum differs from the tuned one in nothing
/// that this part shows.
const STALL_SERVERS: [Kind; 3] = [Kind::Lanecast, Kind::AxumTuned, Kind::Foxglove];

/// A rate is clean if nothing is missing and the 99th percentile is below this.
const CLEAN: Duration = Duration::from_millis(100);

/// A rate that isn't clean is tried again, because on a shared machine some windows contain a pause longer than
/// [`CLEAN`]. A 99th percentile above this is not explained by such a pause.
const HOPELESS: Duration = Duration::from_millis(300);
const TRIES: usize = 3;

/// Factors of the search for a clean rate. The first two raise or lower the rate: when nothing is known, and around the
/// result of earlier rounds. The search ends when the ratio of a rate that isn't clean to a clean one is at most the
/// third.
const FIRST_STEP: f64 = 4.0;
const STEP: f64 = std::f64::consts::SQRT_2;
const CONTENT: f64 = 1.1;

/// The search looks at no rate beyond this many messages per second, and at none below this many deliveries per second.
const MOST: f64 = 2e6;
const FEWEST: f64 = 100.0;

/// With more clients than this, the servers' clean rates are not compared.
const CLEAN_UP_TO: usize = 1000;

/// The fraction of the single-write floor's highest clean rate at which all servers are compared.
const FIXED: f64 = 0.4;

/// How long a probe waits for the last message after its window, and how long a window whose figures count does.
const GRACE: Duration = Duration::from_millis(500);
const LONG_GRACE: Duration = Duration::from_secs(3);

/// Clients that connect before memory is read, so that the costs of the first clients are not counted.
const FIRST: usize = 20;

const CONNECT_CLIENTS: usize = 4000;
const PRESENT: usize = 100;
const JOINERS: usize = 1000;
const JOIN_RATE: f64 = 1000.0;
const PATIENCE: Duration = Duration::from_secs(60);

/// Descriptors that a process needs besides those of its clients.
const SPARE_FILES: u64 = 100;

pub fn run(options: &Options) -> Result<(), Error> {
    let congestion = memory::congestion_control();
    if congestion == "bbr" && !options.any_congestion {
        return Err("bbr pauses for 35-45 ms on loopback: set cubic or reno, or pass --any-congestion".into());
    }
    raise_files(options)?;
    let mut report = Report::new(congestion, options.rounds);
    for &clients in &options.clients {
        measure_rates(options, clients, &mut report)?;
        report.write(options.out.as_deref())?;
    }
    for round in 0..options.rounds {
        for kind in turn(&options.servers, round) {
            if options.parts.contains(&Part::Connect) {
                let (time, cpu) = connect(kind)?;
                report.connect(kind, time, cpu);
            }
            if options.parts.contains(&Part::Join) {
                report.join(kind, join(kind)?);
            }
        }
    }
    report.write(options.out.as_deref())?;
    if options.parts.contains(&Part::Stall) {
        for round in 0..options.stall_rounds {
            for kind in turn(&options.servers, round).filter(|kind| STALL_SERVERS.contains(kind)) {
                report.stall(kind, stall(kind, options.stall)?);
            }
        }
    }
    report.write(options.out.as_deref())?;
    println!("\n{}", report.markdown());
    Ok(())
}

/// Lets this process, and the servers it starts, open as many files as the load needs.
fn raise_files(options: &Options) -> Result<(), Error> {
    let mut needed = options.clients.iter().copied().max().unwrap_or_default();
    if options.parts.contains(&Part::Connect) {
        needed = needed.max(CONNECT_CLIENTS);
    }
    let needed = needed as u64 + SPARE_FILES;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(needed));
    let raised = [Rlimit { current: Some(needed), maximum: limit.maximum }, Rlimit { current: Some(needed), maximum }]
        .into_iter()
        .any(|limit| setrlimit(Resource::Nofile, limit).is_ok());
    if raised {
        return Ok(());
    }
    Err(format!("{needed} open files are needed, the limit is {:?}: raise it with `ulimit -n`", limit.current).into())
}

/// The servers, beginning with a different one in each round.
fn turn(servers: &[Kind], round: usize) -> impl Iterator<Item = Kind> {
    let first = round % servers.len().max(1);
    servers[first..].iter().chain(&servers[..first]).copied().collect::<Vec<_>>().into_iter()
}

fn measure_rates(options: &Options, clients: usize, report: &mut Report) -> Result<(), Error> {
    let wants = |part| options.parts.contains(&part);
    if !wants(Part::Rate) && !wants(Part::Fixed) {
        return Ok(());
    }
    let rate = match options.rate {
        Some(rate) => rate,
        None => FIXED * clean_rate(options, Kind::FloorSingle, clients, 20_000.0 / clients as f64, FIRST_STEP)?,
    };
    report.rate(clients, rate);
    if wants(Part::Fixed) {
        for round in 0..options.rounds {
            for kind in turn(&options.servers, round) {
                let fixed = fixed(kind, clients, rate, options.window)?;
                println!("clients={clients} rate={rate:.0} server={kind} {fixed}");
                report.fixed(clients, kind, fixed);
            }
        }
    }
    if wants(Part::Rate) && clients <= CLEAN_UP_TO {
        for round in 0..options.rounds {
            for kind in turn(&options.servers, round) {
                let known = report.clean_so_far(clients, kind).filter(|rate| *rate > 0.0);
                let (start, step) = known.map_or((rate, FIRST_STEP), |known| (known, STEP));
                let clean = clean_rate(options, kind, clients, start, step)?;
                println!("clients={clients} server={kind} clean={clean:.0}");
                report.clean(clients, kind, clean);
            }
        }
    }
    Ok(())
}

/// A server and its clients.
struct Setup {
    server: Server,
    load: Load,
}

/// The result of publishing for a while.
struct Outcome {
    clean: bool,
    /// Whether the rate is so far from clean that it isn't chance.
    hopeless: bool,
    /// Number of deliveries that were expected.
    expected: u64,
    /// CPU time, in nanoseconds.
    server_cpu: u64,
    load_cpu: u64,
}

impl Setup {
    fn new(kind: Kind, clients: usize) -> Result<Self, Error> {
        let load = Load::new()?.with_equal_ids(kind.has_equal_ids());
        let mut setup = Self { server: Server::start(kind)?, load };
        setup.connect(clients)?;
        Ok(setup)
    }

    fn connect(&mut self, clients: usize) -> Result<(), Error> {
        let Self { server, load } = self;
        load.connect(server.address, clients, PATIENCE)?;
        let until = Instant::now() + PATIENCE;
        while server.subscribers()? < clients as u64 {
            if Instant::now() > until {
                return Err(format!("only {} of {clients} subscriptions took effect", server.subscribers()?).into());
            }
            load.drive(Duration::from_millis(1), |_| false)?;
        }
        Ok(())
    }

    /// Publishes `rate` messages per second for `time`, and reads until all of them have arrived, or until `grace`
    /// after that time.
    fn publish(
        &mut self,
        rate: f64,
        time: Duration,
        size: usize,
        grace: Duration,
        stalled: usize,
    ) -> Result<Outcome, Error> {
        let Self { server, load } = self;
        let clients = load.subscribed() as u64;
        load.begin();
        let (server_before, load_before) = (server.cpu()?, wire::thread_cpu());
        server.publish(rate, time, size)?;
        let wanted = (rate * time.as_secs_f64()).round().max(1.0) as u64;
        let expected = wanted * (clients - stalled as u64);
        // Waiting ends early only when everything has arrived, so that duplicate and missing messages are seen.
        load.drive(time + grace, |load| load.window.received >= expected && server.published().is_some())?;
        let complete = load
            .each()
            .skip(stalled)
            .all(|(state, received, gaps)| state == State::Subscribed && received == wanted && gaps == 0);
        let p99 = Duration::from_nanos(load.window.latency.value_at_quantile(0.99));
        Ok(Outcome {
            clean: complete && load.window.misaddressed == 0 && p99 < CLEAN,
            hopeless: load.window.received < expected * 3 / 4 || p99 > HOPELESS,
            expected,
            server_cpu: server.cpu()? - server_before,
            load_cpu: wire::thread_cpu() - load_before,
        })
    }

    /// Publishes for a moment, so that costs that arise only once are not measured.
    fn warm_up(&mut self, rate: f64, size: usize) -> Result<(), Error> {
        self.publish(rate, Duration::from_millis(300), size, GRACE, 0).map(drop)
    }
}

/// Returns the highest rate at which nothing is missing and the 99th percentile is below [`CLEAN`], searched for around
/// `start`; zero if there is none.
fn clean_rate(options: &Options, kind: Kind, clients: usize, start: f64, step: f64) -> Result<f64, Error> {
    let mut setup = None;
    let mut is_clean = |rate: f64| -> Result<bool, Error> {
        for _ in 0..TRIES {
            let mut fresh = match setup.take() {
                Some(setup) => setup,
                None => {
                    let mut fresh = Setup::new(kind, clients)?;
                    fresh.warm_up(rate.min(start), SIZE)?;
                    fresh
                }
            };
            let outcome = fresh.publish(rate, options.probe, SIZE, GRACE, 0)?;
            if outcome.clean {
                setup = Some(fresh);
                return Ok(true);
            }
            if outcome.hopeless {
                break;
            }
        }
        Ok(false)
    };
    let (mut low, mut high) = (start, start);
    if is_clean(start)? {
        while high < MOST {
            high *= step;
            if !is_clean(high)? {
                break;
            }
            low = high;
        }
    } else {
        loop {
            low /= step;
            if low * clients as f64 <= FEWEST {
                return Ok(0.0);
            }
            if is_clean(low)? {
                break;
            }
            high = low;
        }
    }
    while high > low * CONTENT {
        let middle = (low * high).sqrt();
        *if is_clean(middle)? { &mut low } else { &mut high } = middle;
    }
    Ok(low)
}

fn fixed(kind: Kind, clients: usize, rate: f64, time: Duration) -> Result<Fixed, Error> {
    let mut setup = Setup::new(kind, FIRST.min(clients / 2))?;
    let first = setup.load.subscribed();
    setup.load.drive(Duration::from_millis(100), |_| false)?;
    let before = setup.server.resident()?;
    setup.connect(clients)?;
    setup.load.drive(Duration::from_millis(300), |_| false)?;
    let grown = setup.server.resident()?.saturating_sub(before);
    setup.warm_up(rate, SIZE)?;
    let outcome = setup.publish(rate, time, SIZE, LONG_GRACE, 0)?;
    let window = &setup.load.window;
    let received = window.received.max(1);
    Ok(Fixed {
        server_cpu: outcome.server_cpu as f64 / 1e3 / received as f64,
        load_cpu: outcome.load_cpu as f64 / 1e3 / received as f64,
        latency: [0.5, 0.99, 0.999].map(|quantile| window.latency.value_at_quantile(quantile) as f64 / 1e6),
        missing: outcome.expected.saturating_sub(window.received),
        expected: outcome.expected,
        idle: grown as f64 / 1e3 / (clients - first) as f64,
    })
}

/// Returns the seconds and the CPU seconds until 4,000 clients have connected and subscribed.
fn connect(kind: Kind) -> Result<(f64, f64), Error> {
    let mut setup = Setup::new(kind, FIRST)?;
    let before = setup.server.cpu()?;
    let start = Instant::now();
    setup.connect(FIRST + CONNECT_CLIENTS)?;
    let time = start.elapsed().as_secs_f64();
    let cpu = (setup.server.cpu()? - before) as f64 / 1e9;
    println!("connect={CONNECT_CLIENTS} server={kind} seconds={time:.3} cpu={cpu:.3}");
    Ok((time, cpu))
}

/// Returns the seconds until 1,000 more clients have connected while 1,000 messages per second are published; infinity
/// if they take more than 4 seconds.
fn join(kind: Kind) -> Result<f64, Error> {
    let mut setup = Setup::new(kind, PRESENT)?;
    setup.server.publish(JOIN_RATE, Duration::from_secs(5), SIZE)?;
    setup.load.drive(Duration::from_millis(300), |_| false)?;
    let start = Instant::now();
    let all_in = setup.load.connect(setup.server.address, PRESENT + JOINERS, Duration::from_secs(4));
    let time = if all_in.is_ok() { start.elapsed().as_secs_f64() } else { f64::INFINITY };
    println!("join={JOINERS} server={kind} seconds={time:.3}");
    Ok(time)
}

/// Measures windows of equal length, without and with 1 % of the clients not reading.
fn stall(kind: Kind, time: Duration) -> Result<Stalled, Error> {
    let mut p99 = [0.0; 2];
    let mut missing = [0; 2];
    let mut stalled = Stalled::default();
    for (index, stall) in [0, STALL_COUNT].into_iter().enumerate() {
        let mut setup = Setup { server: Server::start(kind)?, load: Load::new()?.with_small_buffers(STALL_COUNT) };
        setup.connect(STALL_CLIENTS)?;
        setup.warm_up(STALL_RATE, STALL_SIZE)?;
        setup.load.stall(stall, true)?;
        let outcome = setup.publish(STALL_RATE, time, STALL_SIZE, LONG_GRACE, stall)?;
        p99[index] = setup.load.window.latency.value_at_quantile(0.99) as f64 / 1e6;
        missing[index] = outcome.expected.saturating_sub(setup.load.window.received);
        if stall == 0 {
            continue;
        }
        setup.load.begin();
        setup.load.stall(stall, false)?;
        setup.load.drive(Duration::from_secs(2), |_| false)?;
        for (state, received, gaps) in setup.load.each().take(stall) {
            match state {
                State::Closed(Some(_)) => stalled.told += 1,
                State::Closed(None) => stalled.reset += 1,
                _ => stalled.alive += 1,
            }
            stalled.stale = stalled.stale.max(received);
            stalled.gaps += gaps;
        }
    }
    (stalled.p99, stalled.missing) = (p99, missing);
    println!("stall={STALL_COUNT} server={kind} {stalled}");
    Ok(stalled)
}
