//! The targets for lanecast, and whether they are reached.

use std::fmt::{self, Write};

use crate::peer::Kind;
use crate::report::{Ratio, Report, median};
use crate::runner::STALL_COUNT;

pub fn put(report: &Report, text: &mut String) -> fmt::Result {
    let mut table = Table { text: String::new() };
    cpu(report, &mut table)?;
    uwebsockets(report, &mut table)?;
    rates(report, &mut table)?;
    latency(report, &mut table)?;
    idle(report, &mut table)?;
    joins(report, &mut table)?;
    stalls(report, &mut table)?;
    if !table.text.is_empty() {
        writeln!(text, "\n| lanecast | to reach | measured | |\n|---|---|---|---|")?;
        text.push_str(&table.text);
    }
    Ok(())
}

struct Table {
    text: String,
}

impl Table {
    fn row(&mut self, what: &str, wanted: &str, measured: &str, reached: bool) -> fmt::Result {
        writeln!(self.text, "| {what} | {wanted} | {measured} | {} |", if reached { "reached" } else { "**missed**" })
    }

    fn at_most(&mut self, what: &str, limit: f64, measured: Option<Ratio>) -> fmt::Result {
        let Some(measured) = measured else { return Ok(()) };
        self.row(what, &format!("at most {limit}"), &measured.to_string(), measured.median <= limit)
    }

    fn at_least(&mut self, what: &str, limit: f64, measured: Option<Ratio>) -> fmt::Result {
        let Some(measured) = measured else { return Ok(()) };
        self.row(what, &format!("at least {limit}"), &measured.to_string(), measured.median >= limit)
    }
}

/// Through `Telemetry`, at rates that uWebSockets' timers can follow.
fn uwebsockets(report: &Report, table: &mut Table) -> fmt::Result {
    for &clients in report.rates.keys() {
        let what = format!("CPU per delivery through `Telemetry` at {clients} clients, of uWebSockets'");
        table.at_most(&what, 1.0, report.paired(clients, Kind::Telemetry, Kind::UWebSockets, |one| one.server_cpu))?;
    }
    Ok(())
}

fn cpu(report: &Report, table: &mut Table) -> fmt::Result {
    let by = |other| report.paired(1000, Kind::Lanecast, other, |one| one.server_cpu);
    table.at_most("CPU per delivery at 1,000 clients, of the single-write floor's", 1.1, by(Kind::FloorSingle))?;
    table.at_most("the same, of the tuned peer's", 1.0, by(Kind::AxumTuned))?;
    let all = |kind| report.fixed.get(&(1000, kind));
    let (Some(own), Some(floor), Some(foxglove)) = (all(Kind::Lanecast), all(Kind::FloorSingle), all(Kind::Foxglove))
    else {
        return Ok(());
    };
    let above = own.iter().zip(floor).zip(foxglove).map(|((own, floor), foxglove)| {
        (own.server_cpu - floor.server_cpu).max(0.0) / (foxglove.server_cpu - floor.server_cpu)
    });
    table.at_most("the same, what is above the floor, of foxglove's", 0.2, Some(Ratio::of(above)))
}

fn rates(report: &Report, table: &mut Table) -> fmt::Result {
    let by = |clients, other| report.paired_clean(clients, Kind::Lanecast, other);
    table.at_least("clean rate at 100 clients, of the gathering floor's", 0.8, by(100, Kind::FloorGather))?;
    table.at_least("clean rate at 1,000 clients, of the gathering floor's", 0.8, by(1000, Kind::FloorGather))?;
    table.at_least("the same, of foxglove's", 10.0, by(1000, Kind::Foxglove))
}

fn latency(report: &Report, table: &mut Table) -> fmt::Result {
    let by = |clients, other| report.paired(clients, Kind::Lanecast, other, |one| one.latency[1]);
    table.at_most("p99 at 1,000 clients, of the tuned peer's", 1.1, by(1000, Kind::AxumTuned))?;
    table.at_most("p99 at 4,000 clients, of the gathering floor's", 1.1, by(4000, Kind::FloorGather))?;
    table.at_most("p99 at 9,000 clients, of the gathering floor's", 1.1, by(9000, Kind::FloorGather))
}

fn idle(report: &Report, table: &mut Table) -> fmt::Result {
    for ((clients, kind), all) in &report.fixed {
        // With 100 clients, the growth of the process itself would show in the figure.
        if matches!(kind, Kind::Lanecast | Kind::Telemetry) && *clients >= 1000 {
            let what = format!("memory per idle client of {kind}, kB, of {clients}");
            table.at_most(&what, 4.0, Some(Ratio::of(all.iter().map(|one| one.idle))))?;
        }
    }
    Ok(())
}

fn joins(report: &Report, table: &mut Table) -> fmt::Result {
    table.at_most("connecting 4,000, of the floor's time", 1.5, report.paired_connect(Kind::Lanecast))?;
    let join = report.join.get(&Kind::Lanecast).map(|all| Ratio::of(all.iter().copied()));
    table.at_most("connecting 1,000 during 1,000 msg/s, seconds", 0.35, join)
}

fn stalls(report: &Report, table: &mut Table) -> fmt::Result {
    let Some(all) = report.stall.get(&Kind::Lanecast) else { return Ok(()) };
    let ratio = Ratio::of(all.iter().map(|one| one.p99[1] / one.p99[0]));
    table.at_most("p99 of the healthy 990, 10 stalled, of none stalled", 1.1, Some(ratio))?;
    let missing = median(all.iter().map(|one| one.missing[1] as f64));
    table.row("what the healthy miss", "0", &format!("{missing:.0}"), missing == 0.0)?;
    let ended = median(all.iter().map(|one| f64::from(one.told + one.reset)));
    table.row("of the stalled, how many are reset", &STALL_COUNT.to_string(), &format!("{ended:.0}"), {
        ended == STALL_COUNT as f64
    })
}
