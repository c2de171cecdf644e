//! The limit of open files, and the number of viewers that it allows.

/// Descriptors that viewers do not get. The standard streams, the listening sockets and the runtime take about 20. Up
/// to 64 connections are answered that the server is full. Samples of the host open a few files each. The rest is for
/// libraries that look up names or read certificates.
const RESERVE: u64 = 128;

/// Raises the limit of open files as far as `wanted` connections need it and the system allows it. Returns how many
/// connections are possible, and the limit if it allows fewer than `wanted`.
#[cfg(unix)]
pub(crate) fn connections(wanted: usize) -> (usize, Option<u64>) {
    let needed = u64::try_from(wanted).unwrap_or(u64::MAX).saturating_add(RESERVE);
    let limit = match rlimit::increase_nofile_limit(needed) {
        Ok(limit) => limit,
        // The limit stays unchanged. If it can't be read either, connections aren't capped.
        Err(error) => {
            tracing::warn!(%error, "the limit of open files can't be raised");
            rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX)
        }
    };
    let allowed = allowed(limit);
    if allowed >= wanted { (wanted, None) } else { (allowed, Some(limit)) }
}

/// Other systems have no such limit.
#[cfg(not(unix))]
pub(crate) fn connections(wanted: usize) -> (usize, Option<u64>) {
    (wanted, None)
}

/// How many connections `limit` allows, at least one. If the limit is too low for the whole [`RESERVE`], half of the
/// limit is reserved.
#[cfg(unix)]
fn allowed(limit: u64) -> usize {
    usize::try_from(limit - RESERVE.min(limit / 2)).unwrap_or(usize::MAX).max(1)
}

#[cfg(all(test, unix))]
mod tests {
    use super::allowed;

    #[test]
    fn a_reserve_is_kept() {
        assert_eq!([0, 1, 64, 256, 1024, u64::MAX].map(allowed)[..5], [1, 1, 32, 128, 896]);
        assert!(allowed(u64::MAX) > 1 << 30);
    }
}
