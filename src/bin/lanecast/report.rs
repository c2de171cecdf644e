//! The final report of a session, for people.

use std::fmt::Write as _;

use lanecast::{CloseReport, Resets, SessionStats};

use crate::text;

/// Formats the report in several lines: viewers, resets, and the messages that were delivered, dropped or abandoned,
/// with the reasons.
pub(crate) fn lines(report: &CloseReport, stats: &SessionStats) -> String {
    let account = &report.account;
    let mut lines = format!("closed in {}\n", text::span(report.took));
    line(
        &mut lines,
        "viewers",
        stats.joins,
        &[
            ("came back or were replaced", stats.replacements),
            ("refused", stats.refused + stats.stale_joins),
            ("failed attempts", stats.failed_joins),
            ("vanished", stats.vanished),
        ],
    );
    let Resets { overflow, write_failed, write_panicked, write_timed_out, .. } = stats.resets;
    line(
        &mut lines,
        "resets",
        stats.resets.total(),
        &[
            ("too slow", overflow),
            ("write failed", write_failed),
            ("write panicked", write_panicked),
            ("write timed out", write_timed_out),
        ],
    );
    let _ = writeln!(lines, "  delivered  {} messages, {}", account.delivered, text::bytes(account.delivered_bytes));
    let dropped = &account.dropped;
    line(
        &mut lines,
        "dropped",
        dropped.total(),
        &[
            ("too slow", dropped.overflow),
            ("write failed", dropped.write_failed),
            ("write panicked", dropped.write_panicked),
            ("write timed out", dropped.write_timed_out),
            ("sent after the end", dropped.closed),
        ],
    );
    let abandoned = &account.abandoned;
    line(
        &mut lines,
        "abandoned",
        abandoned.total(),
        &[
            ("replaced", abandoned.replaced),
            ("disconnected", abandoned.disconnected),
            ("vanished", abandoned.vanished),
            ("not admitted", abandoned.refused + abandoned.join_failed),
            ("deadline passed", abandoned.session_closed),
        ],
    );
    lines
}

/// Appends a line with a total and, in brackets, the parts that are not zero.
fn line(lines: &mut String, name: &str, total: u64, parts: &[(&str, u64)]) {
    let parts: Vec<_> =
        parts.iter().filter(|(_, count)| *count > 0).map(|(part, count)| format!("{part} {count}")).collect();
    let of = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
    let _ = writeln!(lines, "  {name:<9}  {total}{of}");
}
