//! Text of peers, made safe for a terminal and formatted in one line; and numbers for people.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use serde::de::IgnoredAny;

/// Number of bytes of a binary message that are shown.
const HEX_BYTES: usize = 16;

/// Replaces every character that could control a terminal, break a line, or hide or reorder text with `\uXXXX`, as JSON
/// writes it.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// The first `most` characters of `text`, followed by ` ...` if there are more.
pub(crate) fn beginning(text: &str, most: usize) -> Cow<'_, str> {
    text.char_indices().nth(most).map_or(Cow::Borrowed(text), |(end, _)| Cow::Owned(format!("{} ...", &text[..end])))
}

/// Whether `c` is a control character (C0 or C1), a line or paragraph separator, a directional mark, a character
/// without width, or a tag.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A message in one line: JSON without the spaces between its parts, anything else as its length and first bytes.
pub(crate) fn message(encoding: &str, payload: &[u8]) -> String {
    if let Some(json) = json(encoding, payload) {
        return json;
    }
    let mut shown = format!("{} bytes", payload.len());
    for (n, byte) in payload.iter().take(HEX_BYTES).enumerate() {
        let _ = write!(shown, "{}{byte:02x}", if n == 0 { ": " } else { " " });
    }
    if payload.len() > HEX_BYTES {
        shown.push_str(" ...");
    }
    shown
}

/// A message in one line, if its encoding is `json` and it is valid JSON.
pub(crate) fn json(encoding: &str, payload: &[u8]) -> Option<String> {
    let json = std::str::from_utf8(payload).ok().filter(|_| encoding == "json")?;
    serde_json::from_str::<IgnoredAny>(json).ok().map(|_| escape(&compact(json)).into_owned())
}

/// Removes the white space between the parts of valid JSON, and keeps everything else as it was written.
fn compact(json: &str) -> String {
    let mut compact = String::with_capacity(json.len());
    let mut in_string = false;
    let mut escaped = false;
    for c in json.chars() {
        if in_string {
            compact.push(c);
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
        } else if !matches!(c, ' ' | '\t' | '\n' | '\r') {
            compact.push(c);
            in_string = c == '"';
        }
    }
    compact
}

/// Formats a time in nanoseconds since the epoch, in UTC to the millisecond.
pub(crate) fn time(ns: u64) -> String {
    format!("{}.{:03}Z", seconds(ns), ns / 1_000_000 % 1000)
}

/// Like [`time`], but to the nanosecond.
pub(crate) fn exact_time(ns: u64) -> String {
    format!("{}.{:09}Z", seconds(ns), ns % 1_000_000_000)
}

fn seconds(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// The year, month and day that are `days` after 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut day = days;
    let mut year = 1970;
    // Nanoseconds in 64 bits span at most 584 years.
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

/// Formats a number of bytes for people, in decimal units.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut amount = count as f64 / 1000.0;
    let mut unit = 0;
    while amount >= 999.95 && unit + 1 < UNITS.len() {
        amount /= 1000.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// Formats a duration for people.
pub(crate) fn span(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_peer_sends_steers_the_terminal() {
        assert_eq!(escape("größe 速度 🚀"), "größe 速度 🚀");
        assert_eq!(escape("\u{1b}[2J\r\n\u{9b}x\u{202e}y\u{7f}"), "\\u001b[2J\\u000d\\u000a\\u009bx\\u202ey\\u007f");
        assert_eq!(escape("\u{e0041}"), "\\udb40\\udc41");
        // JSON stays JSON, with the same meaning.
        let hostile = "{\"a\":\"\u{9b}31m\u{2028}\"}";
        let shown = message("json", hostile.as_bytes());
        assert!(!shown.chars().any(steers));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
            serde_json::from_str::<serde_json::Value>(hostile).unwrap()
        );
    }

    #[test]
    fn a_message_takes_one_line() {
        assert_eq!(
            message("json", b" { \"b\" : [ 1 , 2.50 ] ,\n\"a\" : \"x \\\" y \\\\\" } "),
            r#"{"b":[1,2.50],"a":"x \" y \\"}"#
        );
        assert_eq!(message("json", b"{"), "1 bytes: 7b");
        assert_eq!(message("cdr", b""), "0 bytes");
        assert_eq!(message("cdr", &[0xab; 17]), format!("17 bytes: {}...", "ab ".repeat(16)));
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400_000_000_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(1_735_689_599_999_999_999), "2024-12-31T23:59:59.999Z");
        assert_eq!(time(u64::MAX), "2554-07-21T23:34:33.709Z");
        assert_eq!(exact_time(1_735_689_599_000_000_001), "2024-12-31T23:59:59.000000001Z");
    }

    #[test]
    fn amounts_are_short() {
        assert_eq!(
            [bytes(0), bytes(999), bytes(1000), bytes(999_999), bytes(u64::MAX)],
            ["0 B".to_owned(), "999 B".to_owned(), "1.0 kB".to_owned(), "1.0 MB".to_owned(), "18446.7 PB".to_owned()]
        );
        assert_eq!(span(Duration::from_millis(12)), "12 ms");
        assert_eq!(span(Duration::from_millis(1250)), "1.2 s");
    }
}
