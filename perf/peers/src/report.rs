//! The measurements, as tables in Markdown.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;

use crate::peer::Kind;
use crate::runner::{STALL_BUFFER, STALL_RATE, STALL_SIZE};
use crate::{Error, targets};

/// The figures of a window at a fixed rate.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// Microseconds per delivery, which is seconds per million.
    pub server_cpu: f64,
    pub load_cpu: f64,
    /// The 50th, 99th and 99.9th percentile, in milliseconds.
    pub latency: [f64; 3],
    pub missing: u64,
    pub expected: u64,
    /// Memory of the server per idle client, in kilobytes.
    pub idle: f64,
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, p999] = self.latency;
        let Self { server_cpu, load_cpu, missing, idle, .. } = self;
        write!(f, "cpu={server_cpu:.3} load_cpu={load_cpu:.3} p50={p50:.2} p99={p99:.2} p999={p999:.2} ")?;
        write!(f, "missing={missing} idle_kb={idle:.1}")
    }
}

/// The figures of two windows, without and with stalled clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stalled {
    /// The 99th percentile of the clients that read, in milliseconds.
    pub p99: [f64; 2],
    pub missing: [u64; 2],
    /// Stalled clients that were closed with a close frame, were reset, or are still connected.
    pub told: u32,
    pub reset: u32,
    pub alive: u32,
    /// The largest number of messages that one of them still reads when it reads again.
    pub stale: u64,
    /// Gaps in the numbers of the messages that they read then.
    pub gaps: u64,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p99: [none, some], missing: [before, with], told, reset, alive, stale, gaps } = self;
        write!(f, "p99={none:.2} p99_stalled={some:.2} missing={before}/{with} ")?;
        write!(f, "told={told} reset={reset} alive={alive} stale={stale} gaps={gaps}")
    }
}

pub struct Report {
    congestion: String,
    rounds: usize,
    pub(crate) rates: BTreeMap<usize, f64>,
    pub(crate) fixed: BTreeMap<(usize, Kind), Vec<Fixed>>,
    pub(crate) clean: BTreeMap<(usize, Kind), Vec<f64>>,
    /// Seconds and CPU seconds, per round.
    pub(crate) connect: BTreeMap<Kind, Vec<(f64, f64)>>,
    pub(crate) join: BTreeMap<Kind, Vec<f64>>,
    pub(crate) stall: BTreeMap<Kind, Vec<Stalled>>,
}

impl Report {
    pub fn new(congestion: String, rounds: usize) -> Self {
        Self {
            congestion,
            rounds,
            rates: BTreeMap::new(),
            fixed: BTreeMap::new(),
            clean: BTreeMap::new(),
            connect: BTreeMap::new(),
            join: BTreeMap::new(),
            stall: BTreeMap::new(),
        }
    }

    pub fn rate(&mut self, clients: usize, rate: f64) {
        self.rates.insert(clients, rate);
    }

    pub fn fixed(&mut self, clients: usize, kind: Kind, fixed: Fixed) {
        self.fixed.entry((clients, kind)).or_default().push(fixed);
    }

    pub fn clean(&mut self, clients: usize, kind: Kind, rate: f64) {
        self.clean.entry((clients, kind)).or_default().push(rate);
    }

    /// The median of the rounds so far.
    pub fn clean_so_far(&self, clients: usize, kind: Kind) -> Option<f64> {
        self.clean.get(&(clients, kind)).map(|all| median(all.iter().copied()))
    }

    pub fn connect(&mut self, kind: Kind, time: f64, cpu: f64) {
        self.connect.entry(kind).or_default().push((time, cpu));
    }

    pub fn join(&mut self, kind: Kind, time: f64) {
        self.join.entry(kind).or_default().push(time);
    }

    pub fn stall(&mut self, kind: Kind, stalled: Stalled) {
        self.stall.entry(kind).or_default().push(stalled);
    }

    pub fn write(&self, out: Option<&Path>) -> Result<(), Error> {
        if let Some(out) = out {
            std::fs::write(out, self.markdown())?;
        }
        Ok(())
    }

    pub fn markdown(&self) -> String {
        let mut text = String::from("# On real sockets\n\n");
        self.put(&mut text).expect("a string takes everything");
        text
    }

    fn put(&self, text: &mut String) -> fmt::Result {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        writeln!(
            text,
            "Written by `perf/peers/run.sh`. Servers and load client share {cores} cores; TCP's congestion control is {}.\n\
            Medians of {} rounds, in each of which every server has its turn; ratios are those within a round. Latency is\n\
            from when a message was due to when a client read it.",
            self.congestion, self.rounds
        )?;
        targets::put(self, text)?;
        for (clients, rate) in &self.rates {
            self.put_rates(text, *clients, *rate)?;
        }
        self.put_connects(text)?;
        self.put_stalls(text)
    }

    fn put_rates(&self, text: &mut String, clients: usize, rate: f64) -> fmt::Result {
        writeln!(text, "\n## {clients} clients, messages of 128 B\n")?;
        writeln!(text, "At {rate:.0} messages a second, but for the first two columns.\n")?;
        writeln!(
            text,
            "| server | clean rate, msg/s | of the gathering floor's | CPU, µs per delivery | of the single-write floor's \
             | p50, ms | p99, ms | p99.9, ms | missing | idle client, kB | load client's CPU |\n\
             |---|---|---|---|---|---|---|---|---|---|---|"
        )?;
        for kind in Kind::ALL {
            let (clean, fixed) = (self.clean.get(&(clients, kind)), self.fixed.get(&(clients, kind)));
            if clean.is_none() && fixed.is_none() {
                continue;
            }
            let clean = clean.map_or("-".into(), |all| with_spread(all.iter().copied(), 0));
            let ratio = self.paired_clean(clients, kind, Kind::FloorGather);
            let ratio = ratio.map_or("-".into(), |ratio| ratio.to_string());
            write!(text, "| {kind} | {clean} | {ratio} | ")?;
            self.put_fixed(text, clients, kind, fixed.map_or(&[], Vec::as_slice))?;
        }
        Ok(())
    }

    fn put_fixed(&self, text: &mut String, clients: usize, kind: Kind, all: &[Fixed]) -> fmt::Result {
        if all.is_empty() {
            return writeln!(text, "- | - | - | - | - | - | - | - |");
        }
        let of = |part: fn(&Fixed) -> f64| median(all.iter().map(part));
        let own = with_spread(all.iter().map(|one| one.server_cpu), 2);
        let ratio = self.paired(clients, kind, Kind::FloorSingle, |one| one.server_cpu);
        let ratio = ratio.map_or("-".into(), |ratio| ratio.to_string());
        let missing = of(|one| one.missing as f64 / one.expected as f64 * 100.0);
        writeln!(
            text,
            "{own} | {ratio} | {:.2} | {:.2} | {:.2} | {missing:.1} % | {:.1} | {:.2} |",
            of(|one| one.latency[0]),
            of(|one| one.latency[1]),
            of(|one| one.latency[2]),
            of(|one| one.idle),
            of(|one| one.load_cpu),
        )
    }

    /// The ratio of the clean rate of `kind` to that of `other`, within each round.
    pub(crate) fn paired_clean(&self, clients: usize, kind: Kind, other: Kind) -> Option<Ratio> {
        let (own, others) = (self.clean.get(&(clients, kind))?, self.clean.get(&(clients, other))?);
        Some(Ratio::of(own.iter().zip(others).map(|(own, other)| own / other)))
    }

    /// The ratio of a figure of `kind` to that of `other`, within each round.
    pub(crate) fn paired(&self, clients: usize, kind: Kind, other: Kind, part: fn(&Fixed) -> f64) -> Option<Ratio> {
        let (own, others) = (self.fixed.get(&(clients, kind))?, self.fixed.get(&(clients, other))?);
        Some(Ratio::of(own.iter().zip(others).map(|(own, other)| part(own) / part(other))))
    }

    fn put_connects(&self, text: &mut String) -> fmt::Result {
        if self.connect.is_empty() && self.join.is_empty() {
            return Ok(());
        }
        writeln!(
            text,
            "\n## Connecting\n\nFrom the first connection to the last subscription. In the last column 100 clients are \
            there and get\n1,000 messages a second, as do those who come.\n"
        )?;
        writeln!(
            text,
            "| server | 4,000: seconds | of the floor's | CPU seconds | 1,000 more: seconds |\n|---|---|---|---|---|"
        )?;
        for kind in Kind::ALL {
            let (connect, join) = (self.connect.get(&kind), self.join.get(&kind));
            if connect.is_none() && join.is_none() {
                continue;
            }
            let ratio = self.paired_connect(kind).map_or("-".into(), |ratio| ratio.to_string());
            let [time, cpu] = [|one: &(f64, f64)| one.0, |one: &(f64, f64)| one.1]
                .map(|part| connect.map_or("-".into(), |all| format!("{:.3}", median(all.iter().map(part)))));
            let join = join.map_or("-".into(), |all| {
                let ratio = Ratio::of(all.iter().copied());
                if ratio.median.is_finite() { ratio.to_string() } else { "over 4".to_owned() }
            });
            writeln!(text, "| {kind} | {time} | {ratio} | {cpu} | {join} |")?;
        }
        Ok(())
    }

    pub(crate) fn paired_connect(&self, kind: Kind) -> Option<Ratio> {
        let (own, floor) = (self.connect.get(&kind)?, self.connect.get(&Kind::FloorSingle)?);
        Some(Ratio::of(own.iter().zip(floor).map(|(own, floor)| own.0 / floor.0)))
    }

    fn put_stalls(&self, text: &mut String) -> fmt::Result {
        if self.stall.is_empty() {
            return Ok(());
        }
        writeln!(
            text,
            "\n## 10 of 1,000 clients don't read\n\n{STALL_RATE} messages of {} KiB a second, in windows of equal \
            length; the 10 have receive buffers of {} KiB. What became of\nthem is looked at when they go on reading.\n",
            STALL_SIZE >> 10,
            STALL_BUFFER >> 10,
        )?;
        writeln!(
            text,
            "| server | p99, ms, none stalled | p99 of the 990, ms | ratio | the 990 miss | of the 10: told, reset, \
             still there | stale messages one reads | gaps |\n|---|---|---|---|---|---|---|---|"
        )?;
        for (kind, all) in &self.stall {
            let [none, some] = [0, 1].map(|index| median(all.iter().map(|one| one.p99[index])));
            let ratio = Ratio::of(all.iter().map(|one| one.p99[1] / one.p99[0]));
            for (index, Stalled { missing, told, reset, alive, stale, gaps, .. }) in all.iter().enumerate() {
                let (name, figures) = match index {
                    0 => (kind.name(), format!("{none:.2} | {some:.2} | {ratio}")),
                    _ => ("", " | | ".to_owned()),
                };
                let missing = missing[1];
                writeln!(text, "| {name} | {figures} | {missing} | {told}, {reset}, {alive} | {stale} | {gaps} |")?;
            }
        }
        Ok(())
    }
}

/// The median, the minimum and the maximum of several rounds.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    pub median: f64,
    least: f64,
    most: f64,
}

impl Ratio {
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let [least, most] = spread(values.clone());
        Self { median: median(values), least, most }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, least, most } = self;
        write!(f, "{median:.2} ({least:.2}-{most:.2})")
    }
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median, with the minimum and the maximum in brackets.
fn with_spread(values: impl Iterator<Item = f64> + Clone, digits: usize) -> String {
    let [least, most] = spread(values.clone());
    format!("{:.digits$} ({least:.digits$}-{most:.digits$})", median(values))
}

fn spread(values: impl Iterator<Item = f64>) -> [f64; 2] {
    values.fold([f64::INFINITY, 0.0], |[least, most], value| [value.min(least), value.max(most)])
}
