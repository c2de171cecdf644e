//! What was measured, as a table.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;

use crate::Error;
use crate::peer::Kind;

/// A window at a fixed rate.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// Microseconds per delivery, which is seconds per million.
    pub server_cpu: f64,
    pub load_cpu: f64,
    /// Milliseconds: 50 %, 99 %, 99.9 %.
    pub latency: [f64; 3],
    pub missing: u64,
    pub expected: u64,
    /// Kilobytes per idle client.
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

/// Windows without and with stalled clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stalled {
    /// Of those who read, in milliseconds.
    pub p99: [f64; 2],
    pub missing: [u64; 2],
    /// Stalled clients that were closed with a close frame, reset, or that are still there.
    pub told: u32,
    pub reset: u32,
    pub alive: u32,
    /// The most messages that one of them still reads when it goes on.
    pub stale: u64,
    /// Messages they miss without having been told.
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
    rates: BTreeMap<usize, f64>,
    fixed: BTreeMap<(usize, &'static str), Vec<Fixed>>,
    clean: BTreeMap<(usize, &'static str), f64>,
    connect: BTreeMap<&'static str, Vec<(f64, f64)>>,
    join: BTreeMap<&'static str, Vec<f64>>,
    stall: BTreeMap<&'static str, Stalled>,
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
        self.fixed.entry((clients, kind.name())).or_default().push(fixed);
    }

    pub fn clean(&mut self, clients: usize, kind: Kind, rate: f64) {
        self.clean.insert((clients, kind.name()), rate);
    }

    pub fn connect(&mut self, kind: Kind, time: f64, cpu: f64) {
        self.connect.entry(kind.name()).or_default().push((time, cpu));
    }

    pub fn join(&mut self, kind: Kind, time: f64) {
        self.join.entry(kind.name()).or_default().push(time);
    }

    pub fn stall(&mut self, kind: Kind, stalled: Stalled) {
        self.stall.insert(kind.name(), stalled);
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
            "Written by `perf/peers/run.sh`. Servers and load client share {cores} cores; TCP's congestion"
        )?;
        writeln!(text, "control is {}. Medians of {} rounds, in each of which", self.congestion, self.rounds)?;
        writeln!(text, "every server has its turn. Latency is from when a message was due to when a client read it.")?;
        for (clients, rate) in &self.rates {
            self.put_rates(text, *clients, *rate)?;
        }
        self.put_connects(text)?;
        self.put_stalls(text)
    }

    fn put_rates(&self, text: &mut String, clients: usize, rate: f64) -> fmt::Result {
        writeln!(text, "\n## {clients} clients, messages of 128 B\n")?;
        writeln!(
            text,
            "At {rate:.0} messages a second, 40 % of what the single-write floor can do, but for the first column."
        )?;
        writeln!(
            text,
            "\n| server | clean rate, msg/s | CPU, µs per delivery | of the floor's | p50, ms | p99, ms | p99.9, ms \
             | missing | idle client, kB | load client's CPU |\n|---|---|---|---|---|---|---|---|---|---|"
        )?;
        let cpu = |name| self.fixed.get(&(clients, name)).map(|all| median(all.iter().map(|one| one.server_cpu)));
        for kind in Kind::ALL {
            let name = kind.name();
            let clean = self.clean.get(&(clients, name)).map_or("-".into(), |clean| format!("{clean:.0}"));
            let Some(all) = self.fixed.get(&(clients, name)) else {
                if clean != "-" {
                    writeln!(text, "| {name} | {clean} | | | | | | | | |")?;
                }
                continue;
            };
            let of = |part: fn(&Fixed) -> f64| median(all.iter().map(part));
            let own = of(|one| one.server_cpu);
            let [least, most] = spread(all.iter().map(|one| one.server_cpu));
            let ratio = cpu("floor-single").map_or("-".into(), |floor| format!("{:.2}", own / floor));
            let missing = of(|one| one.missing as f64 / one.expected as f64 * 100.0);
            writeln!(
                text,
                "| {name} | {clean} | {own:.2} ({least:.2}-{most:.2}) | {ratio} | {:.2} | {:.2} | {:.2} | {missing:.1} % | {:.1} | {:.2} |",
                of(|one| one.latency[0]),
                of(|one| one.latency[1]),
                of(|one| one.latency[2]),
                of(|one| one.idle),
                of(|one| one.load_cpu),
            )?;
        }
        Ok(())
    }

    fn put_connects(&self, text: &mut String) -> fmt::Result {
        if self.connect.is_empty() && self.join.is_empty() {
            return Ok(());
        }
        writeln!(
            text,
            "\n## Connecting\n\nFrom the first connection to the last subscription. In the last column 100 \
            clients are there and\nget 1,000 messages a second, as do those who come.\n"
        )?;
        writeln!(
            text,
            "| server | 4,000: seconds | of the floor's | CPU seconds | 1,000 more: seconds |\n|---|---|---|---|---|"
        )?;
        let time = |name| self.connect.get(name).map(|all| median(all.iter().map(|one| one.0)));
        for kind in Kind::ALL {
            let name = kind.name();
            if time(name).is_none() && !self.join.contains_key(name) {
                continue;
            }
            let ratio = time(name).zip(time("floor-single")).map(|(own, floor)| own / floor);
            let cpu = self.connect.get(name).map(|all| median(all.iter().map(|one| one.1)));
            let join = self.join.get(name).map(|all| median(all.iter().copied()));
            let show = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
            let join = if join == Some(f64::INFINITY) { "over 4".into() } else { show(join) };
            writeln!(text, "| {name} | {} | {} | {} | {join} |", show(time(name)), show(ratio), show(cpu))?;
        }
        Ok(())
    }

    fn put_stalls(&self, text: &mut String) -> fmt::Result {
        if self.stall.is_empty() {
            return Ok(());
        }
        writeln!(
            text,
            "\n## 10 of 1,000 clients don't read\n\n25 messages of 4 KiB a second, in windows of equal \
            length; receive buffers of 64 KiB. What became of the 10 is looked at when they\ngo on reading.\n"
        )?;
        writeln!(
            text,
            "| server | p99, ms, none stalled | p99 of the 990, ms | ratio | the 990 miss | of the 10: told, reset, \
             still there | stale messages one reads | gaps |\n|---|---|---|---|---|---|---|---|"
        )?;
        for kind in Kind::ALL {
            let name = kind.name();
            let Some(Stalled { p99: [none, some], missing, told, reset, alive, stale, gaps }) = self.stall.get(name)
            else {
                continue;
            };
            let (ratio, missing) = (some / none, missing[1]);
            writeln!(
                text,
                "| {name} | {none:.2} | {some:.2} | {ratio:.2} | {missing} | {told}, {reset}, {alive} | {stale} | {gaps} |"
            )?;
        }
        Ok(())
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: impl Iterator<Item = f64>) -> [f64; 2] {
    values.fold([f64::INFINITY, 0.0], |[least, most], value| [value.min(least), value.max(most)])
}
