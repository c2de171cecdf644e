//! The telemetry of this host: one source per channel, each with its schema next to its sample.
//!
//! A source is sampled on a thread that may block, one sample at a time. It is sampled only while its channel has
//! subscribers, or while viewers are shown that it can't be read. Rates are computed from what changed since the sample
//! before. If a figure can't be read, there is no sample: nothing stands in for it.

use std::time::Instant;

use lanecast::protocol::Frame;
use lanecast::{SessionHandle, SessionStats};
use serde_json::{Value, json};
use sysinfo::{CpuRefreshKind, DiskRefreshKind, Disks, MemoryRefreshKind, Networks, System};

/// The topic, the schema and the samples of one channel.
pub(crate) struct Source {
    pub(crate) topic: &'static str,
    /// Name of the schema.
    pub(crate) name: &'static str,
    pub(crate) schema: Value,
    /// Takes a sample, or returns the reason why there is none.
    pub(crate) sample: Box<dyn FnMut() -> Result<Value, String> + Send>,
}

/// Checks that these files can be open at the same time.
///
/// The `sysinfo` crate reads these files and doesn't report it if it can't: it keeps the old value, or takes zero for
/// the value. So the files are opened once before and once after the crate reads them.
#[cfg(target_os = "linux")]
fn readable(files: &[&str]) -> Result<(), String> {
    let open = |file: &&str| std::fs::File::open(file).map_err(|error| format!("{file}: {error}"));
    let opened: Result<Vec<_>, _> = files.iter().map(open).collect();
    opened.map(drop)
}

/// On other systems, the figures are read without these files.
#[cfg(not(target_os = "linux"))]
fn readable(_files: &[&str]) -> Result<(), String> {
    Ok(())
}

/// All sources. A source whose figures the system doesn't provide is left out, and the reason is returned.
pub(crate) fn sources(session: &SessionHandle<Frame>) -> (Vec<Source>, Vec<String>) {
    let mut missing = Vec::new();
    let found =
        [("/cpu", cpu()), ("/memory", memory()), ("/network", network()), ("/disks", disks()), ("/load", load())];
    let mut sources = Vec::new();
    for (topic, source) in found {
        match source {
            Ok(source) => sources.push(source),
            Err(error) => missing.push(format!("{topic} is left out: {error}")),
        }
    }
    sources.push(session_figures(session.clone()));
    (sources, missing)
}

fn cpu() -> Result<Source, String> {
    const FILES: &[&str] = &["/proc/stat"];
    readable(FILES)?;
    let mut system = System::new().map_err(|error| error.to_string())?;
    let kind = CpuRefreshKind::nothing().with_usage().with_frequency();
    // Usage is computed from what changed since the last refresh. This is the first one.
    system.refresh_cpu_specifics(kind);
    Ok(Source {
        topic: "/cpu",
        name: "lanecast.Cpu",
        schema: object(&[
            ("usage_percent", number("of all cores together")),
            (
                "cores",
                list(&[
                    ("name", text("as the system calls it")),
                    ("usage_percent", number("since the sample before")),
                    ("frequency_mhz", integer("now")),
                ]),
            ),
        ]),
        sample: Box::new(move || {
            readable(FILES)?;
            system.refresh_cpu_specifics(kind);
            readable(FILES)?;
            let core = |cpu: &sysinfo::Cpu| {
                json!({
                    "name": cpu.name(),
                    "usage_percent": round(f64::from(cpu.usage())),
                    "frequency_mhz": cpu.frequency(),
                })
            };
            Ok(json!({
                "usage_percent": round(f64::from(system.global_cpu_usage())),
                "cores": system.cpus().iter().map(core).collect::<Value>(),
            }))
        }),
    })
}

fn memory() -> Result<Source, String> {
    memory_now()?;
    Ok(Source {
        topic: "/memory",
        name: "lanecast.Memory",
        schema: object(&[
            ("total_bytes", integer("of memory")),
            ("used_bytes", integer("of memory")),
            ("available_bytes", integer("for new programs")),
            ("used_percent", number("of memory")),
            ("swap_total_bytes", integer("of swap space")),
            ("swap_used_bytes", integer("of swap space")),
        ]),
        sample: Box::new(|| {
            let system = memory_now()?;
            Ok(json!({
                "total_bytes": system.total_memory(),
                "used_bytes": system.used_memory(),
                "available_bytes": system.available_memory(),
                "used_percent": percent(system.used_memory(), system.total_memory()),
                "swap_total_bytes": system.total_swap(),
                "swap_used_bytes": system.used_swap(),
            }))
        }),
    })
}

/// Reads the figures into a new `System` each time: a figure that the system doesn't provide is zero then, not an old
/// value.
fn memory_now() -> Result<System, String> {
    let mut system = System::new().map_err(|error| error.to_string())?;
    system.refresh_memory_specifics(MemoryRefreshKind::everything());
    if system.total_memory() == 0 {
        readable(&["/proc/meminfo"])?;
        return Err("the system reports no size of memory".to_owned());
    }
    Ok(system)
}

fn network() -> Result<Source, String> {
    // The figures that the next sample is compared with. `None` after a sample that failed, because that may have left
    // zeros.
    let mut before = Some(networks_now()?);
    let one_way = |what: &str| number(&format!("{what} since the sample before"));
    Ok(Source {
        topic: "/network",
        name: "lanecast.Network",
        schema: object(&[(
            "interfaces",
            list(&[
                ("name", text("as the system calls it")),
                ("received_bytes_per_s", one_way("received")),
                ("sent_bytes_per_s", one_way("sent")),
                ("received_bytes", integer("since the interface came up")),
                ("sent_bytes", integer("since the interface came up")),
                ("received_packets", integer("since the interface came up")),
                ("sent_packets", integer("since the interface came up")),
                ("errors", integer("in either direction, since the interface came up")),
            ]),
        )]),
        sample: Box::new(move || {
            let Some((mut networks, since)) = before.take() else {
                before = Some(networks_now()?);
                return Err("there are no figures yet to compare with".to_owned());
            };
            readable(NETWORK_FILES)?;
            networks.refresh(true);
            readable(NETWORK_FILES)?;
            let now = Instant::now();
            let seconds = (now - since).as_secs_f64().max(0.001);
            let mut interfaces: Vec<_> = networks.iter().collect();
            interfaces.sort_by_key(|(name, _)| *name);
            let interface = |(name, data): (&std::ffi::OsString, &sysinfo::NetworkData)| {
                json!({
                    "name": name.to_string_lossy(),
                    "received_bytes_per_s": round(data.received() as f64 / seconds),
                    "sent_bytes_per_s": round(data.transmitted() as f64 / seconds),
                    "received_bytes": data.total_received(),
                    "sent_bytes": data.total_transmitted(),
                    "received_packets": data.total_packets_received(),
                    "sent_packets": data.total_packets_transmitted(),
                    "errors": data.total_errors_on_received() + data.total_errors_on_transmitted(),
                })
            };
            let sample = json!({ "interfaces": interfaces.into_iter().map(interface).collect::<Value>() });
            before = Some((networks, now));
            Ok(sample)
        }),
    })
}

/// The directory is named twice because the list of interfaces stays open while the figures of each are read.
const NETWORK_FILES: &[&str] = &["/sys/class/net", "/sys/class/net"];

/// The current figures of all interfaces, and the time at which they were read.
fn networks_now() -> Result<(Networks, Instant), String> {
    readable(NETWORK_FILES)?;
    let networks = Networks::new_with_refreshed_list().map_err(|error| error.to_string())?;
    readable(NETWORK_FILES)?;
    Ok((networks, Instant::now()))
}

fn disks() -> Result<Source, String> {
    const FILES: &[&str] = &["/proc/mounts"];
    let kind = DiskRefreshKind::nothing().with_storage().with_io_usage();
    readable(FILES)?;
    Ok(Source {
        topic: "/disks",
        name: "lanecast.Disks",
        schema: object(&[(
            "disks",
            list(&[
                ("name", text("as the system calls it")),
                ("mount", text("where it is mounted")),
                ("file_system", text("its type")),
                ("total_bytes", integer("of space")),
                ("available_bytes", integer("of space")),
                ("used_percent", number("of space")),
                ("read_bytes", integer("since the system came up")),
                ("written_bytes", integer("since the system came up")),
            ]),
        )]),
        sample: Box::new(move || {
            // The disks are listed by the sample, because a dead network disk may block for long. Each sample makes a
            // new list: the space of a disk that doesn't report it is zero then, not an old value.
            readable(FILES)?;
            let mut disks = Disks::new().map_err(|error| error.to_string())?;
            disks.refresh_specifics(true, kind);
            readable(FILES)?;
            let disk = |disk: &sysinfo::Disk| {
                let (total, available) = (disk.total_space(), disk.available_space());
                let usage = disk.usage();
                json!({
                    "name": disk.name().to_string_lossy(),
                    "mount": disk.mount_point().to_string_lossy(),
                    "file_system": disk.file_system().to_string_lossy(),
                    "total_bytes": total,
                    "available_bytes": available,
                    "used_percent": percent(total.saturating_sub(available), total),
                    "read_bytes": usage.total_read_bytes,
                    "written_bytes": usage.total_written_bytes,
                })
            };
            let telling = disks.iter().filter(|disk| disk.total_space() > 0);
            Ok(json!({ "disks": telling.map(disk).collect::<Value>() }))
        }),
    })
}

fn load() -> Result<Source, String> {
    System::load_average().map_err(|error| error.to_string())?;
    Ok(Source {
        topic: "/load",
        name: "lanecast.Load",
        schema: object(&[
            ("one", number("tasks that run or want to, mean of a minute")),
            ("five", number("of five minutes")),
            ("fifteen", number("of fifteen minutes")),
            ("uptime_s", integer("since the system came up")),
        ]),
        sample: Box::new(|| {
            let load = System::load_average().map_err(|error| error.to_string())?;
            let uptime = System::uptime().map_err(|error| error.to_string())?;
            Ok(json!({
                "one": round(load.one),
                "five": round(load.five),
                "fifteen": round(load.fifteen),
                "uptime_s": uptime,
            }))
        }),
    })
}

fn session_figures(session: SessionHandle<Frame>) -> Source {
    Source {
        topic: "/session",
        name: "lanecast.Session",
        schema: object(&[
            ("participants", integer("viewers that are here")),
            ("joins", integer("so far")),
            ("replacements", integer("of those, in place of an older connection")),
            ("refused", integer("connections that were not let in")),
            ("failed_joins", integer("attempts that were repeated")),
            ("resets", integer("viewers that failed or were too slow")),
            ("resets_overflow", integer("of those, too slow")),
            ("delivered", integer("messages")),
            ("delivered_bytes", integer("of messages")),
            ("dropped", integer("messages lost with a reset")),
            ("abandoned", integer("messages lost with an ordinary end")),
            ("backlog", integer("messages that wait")),
            ("oldest_ms", integer("how long the oldest of them has waited")),
            ("shard_lag", integer("broadcasts the slowest shard has yet to read")),
        ]),
        sample: Box::new(move || Ok(figures(&session.stats()))),
    }
}

fn figures(stats: &SessionStats) -> Value {
    json!({
        "participants": stats.participants,
        "joins": stats.joins,
        "replacements": stats.replacements,
        "refused": stats.refused + stats.stale_joins,
        "failed_joins": stats.failed_joins,
        "resets": stats.resets.total(),
        "resets_overflow": stats.resets.overflow,
        "delivered": stats.account.delivered,
        "delivered_bytes": stats.account.delivered_bytes,
        "dropped": stats.account.dropped.total(),
        "abandoned": stats.account.abandoned.total(),
        "backlog": stats.account.waiting(),
        "oldest_ms": stats.oldest_waiting.map_or(0, |oldest| u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX)),
        "shard_lag": stats.shard_lag,
    })
}

/// A schema for an object that has all of `fields`.
fn object(fields: &[(&str, Value)]) -> Value {
    let properties: serde_json::Map<_, _> =
        fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    let required: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

/// A schema for a list of objects that have all of `fields`.
fn list(fields: &[(&str, Value)]) -> Value {
    json!({ "type": "array", "items": object(fields) })
}

fn number(what: &str) -> Value {
    json!({ "type": "number", "description": what })
}

fn integer(what: &str) -> Value {
    json!({ "type": "integer", "description": what })
}

fn text(what: &str) -> Value {
    json!({ "type": "string", "description": what })
}

fn percent(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { round(part as f64 / of as f64 * 100.0) }
}

/// Rounds to two decimals: more would be noise.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
