//! Secrets that must not be printed: tokens and passwords that were given to the program.
//!
//! A server may repeat them in its answer, and an error message may repeat a mistyped command line. So they are
//! collected once, before anything is printed, and removed from everything that goes to standard error.

use std::borrow::Cow;
use std::sync::OnceLock;

use percent_encoding::percent_decode_str;

/// Replacement for a secret.
const HIDDEN: &str = "(hidden)";

/// Minimum length of a secret, in bytes. Removing anything shorter would only make other text unreadable.
const SHORTEST: usize = 5;

static SECRETS: OnceLock<Vec<String>> = OnceLock::new();

/// Collects the secrets from the command line and from the environment.
pub(crate) fn collect() {
    let mut secrets: Vec<_> = std::env::args_os().skip(1).flat_map(|word| of_word(&word.to_string_lossy())).collect();
    for name in ["LIVEKIT_TOKEN", "LIVEKIT_API_SECRET"] {
        secrets
            .extend(std::env::var(name).ok().map(|secret| secret.trim().to_owned()).filter(|secret| is_long(secret)));
    }
    longest_first(&mut secrets);
    SECRETS.get_or_init(|| secrets);
}

/// Sorts the longest secret first, because a secret may be part of another one.
fn longest_first(secrets: &mut [String]) {
    secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
}

/// Replaces all secrets in `text`.
pub(crate) fn hide(text: &str) -> Cow<'_, str> {
    hide_all(SECRETS.get().map_or(&[], Vec::as_slice), text)
}

fn hide_all<'a>(secrets: &[String], text: &'a str) -> Cow<'a, str> {
    secrets.iter().fold(Cow::Borrowed(text), |text, secret| {
        if text.contains(secret) { Cow::Owned(text.replace(secret, HIDDEN)) } else { text }
    })
}

/// A URL as it may be shown: without user, password, query and fragment.
pub(crate) fn public(url: &str) -> String {
    let Parts { scheme, user, place, secret } = Parts::of(url);
    let user = if user.is_empty() { String::new() } else { format!("{HIDDEN}@") };
    let secret = if secret.is_empty() { String::new() } else { format!("{}{HIDDEN}", &secret[..1]) };
    format!("{scheme}{user}{place}{secret}")
}

/// The secrets in an argument, which may be a URL or an attempt at one: each as written and percent-decoded.
fn of_word(word: &str) -> Vec<String> {
    let Parts { user, secret, .. } = Parts::of(word);
    // Only the first separator counts: a further one is part of the password or of the value. User and password
    // together are a secret, too.
    let credentials = std::iter::once(user).chain(user.split_once(':').map(|(_, password)| password));
    let pairs = secret.split(['?', '&', ';', '#']);
    let values = pairs.map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
    let written: Vec<_> = credentials.chain(values).map(str::to_owned).collect();
    let decoded = written.iter().map(|secret| percent_decode_str(secret).decode_utf8_lossy().into_owned());
    let mut secrets: Vec<_> = decoded.chain(written.iter().cloned()).filter(|secret| is_long(secret)).collect();
    secrets.dedup();
    secrets
}

fn is_long(secret: &str) -> bool {
    secret.len() >= SHORTEST
}

/// The parts of a URL. `scheme` and `place` are public, `user` and `secret` are not.
struct Parts<'a> {
    /// The scheme with its `://`.
    scheme: &'a str,
    /// User and password, without the `@`.
    user: &'a str,
    /// Host, port and path.
    place: &'a str,
    /// Query and fragment: everything from the first `?` or `#` on.
    secret: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Self {
        let start = url.find("://").map_or(0, |at| at + 3);
        let (scheme, rest) = url.split_at(start);
        let (rest, secret) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        let authority = &rest[..rest.find('/').unwrap_or(rest.len())];
        let (user, place) = authority.rfind('@').map_or(("", rest), |at| (&rest[..at], &rest[at + 1..]));
        Self { scheme, user, place, secret }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        for (url, shown) in [
            ("ws://h:1/live", "ws://h:1/live"),
            ("ws://h:1/live?token=abcdef", "ws://h:1/live?(hidden)"),
            ("ws://me:pass@h:1", "ws://(hidden)@h:1"),
            ("ws://p@ss@[::1]:1#abc", "ws://(hidden)@[::1]:1#(hidden)"),
            ("h:1/a@b?c@d", "h:1/a@b?(hidden)"),
            ("", ""),
        ] {
            assert_eq!(public(url), shown);
        }
    }

    #[test]
    fn secrets_are_taken_out_of_text() {
        let mut secrets = of_word("ws://someone:p%40ssword@h:1/live?token=s3cret%21&n=1&x=s3cret");
        longest_first(&mut secrets);
        let hidden = |text| hide_all(&secrets, text).into_owned();
        assert_eq!(hidden("401: s3cret! isn't s3cret%21"), "401: (hidden) isn't (hidden)");
        assert_eq!(hidden("p@ssword of someone:p%40ssword"), "(hidden) of (hidden)");
        assert_eq!(hidden("live, n=1"), "live, n=1");
        assert_eq!(of_word("/a/topic@host"), Vec::<String>::new());
    }
}
