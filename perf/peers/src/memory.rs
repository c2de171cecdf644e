//! Figures from `/proc`.

use crate::Error;

/// The resident memory that a process has allocated, in bytes: without the pages of its executable, which it loads as it
/// first runs them.
pub fn resident(process: u32) -> Result<u64, Error> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// The congestion control of TCP on this host, unless a socket sets another one.
pub fn congestion_control() -> String {
    let name = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    name.trim().to_owned()
}
