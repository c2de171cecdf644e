//! The search for the word that a mistyped one was meant to be.

/// Returns the word of `known` that `word` was most likely meant to be. It differs from `word` by at most a third of
/// the letters of `word`, and by at most four, but one letter may always differ. Or it begins with `word`, which has at
/// least two letters then. Case and slashes at either end don't count.
pub(super) fn similar<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |word: &str| word.trim_matches('/').to_lowercase();
    let wanted = plain(word);
    let length = wanted.chars().count();
    let farthest = (length / 3).clamp(1, 4);
    let near = known.into_iter().filter_map(|known| {
        let candidate = plain(known);
        let begins = length >= 2 && candidate.starts_with(&wanted);
        let difference = candidate.chars().count().abs_diff(length);
        // The lengths are compared first: comparing the letters takes time and memory that grow with both lengths.
        if difference > farthest {
            return begins.then_some((farthest + 1, difference, known));
        }
        let distance = strsim::osa_distance(&wanted, &candidate);
        if distance <= farthest {
            Some((distance, difference, known))
        } else {
            begins.then_some((farthest + 1, difference, known))
        }
    });
    near.min_by_key(|(distance, difference, _)| (*distance, *difference)).map(|(.., known)| known)
}

#[cfg(test)]
mod tests {
    use super::similar;

    #[test]
    fn the_closest_word_is_found() {
        let topics = ["/cpu", "/memory", "/network", "/disks", "/load", "/session"];
        for (word, meant) in [
            ("load", Some("/load")),
            ("/laod", Some("/load")),
            ("/Load/", Some("/load")),
            ("/memroy", Some("/memory")),
            ("/mem", Some("/memory")),
            ("/sesion", Some("/session")),
            ("/gps", None),
            ("/image", None),
            ("/", None),
        ] {
            assert_eq!(similar(word, topics), meant, "{word}");
        }
    }
}
