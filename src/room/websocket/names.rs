//! The names of connections, of which sids and the identities of anonymous viewers are made.

use std::sync::atomic::{AtomicU64, Ordering};

/// A source of names. The names look random, and each is given out once.
#[derive(Debug)]
pub(super) struct Names {
    start: u64,
    count: AtomicU64,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { start: fastrand::u64(..), count: AtomicU64::new(0) }
    }

    pub(super) fn next(&self) -> String {
        // Relaxed: only the value has to be unique. Each step below is a bijection, so different counts give different
        // names: a step of the golden ratio, then a shift and a multiplication by an odd number, twice.
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let mut name = self.start.wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        name = (name ^ (name >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        name = (name ^ (name >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        format!("{:016x}", name ^ (name >> 32))
    }
}

#[cfg(test)]
mod tests {
    use super::Names;

    #[test]
    fn no_name_comes_twice() {
        let names = Names::new();
        let many: std::collections::HashSet<String> = (0..10_000).map(|_| names.next()).collect();
        assert_eq!(many.len(), 10_000);
        assert!(many.iter().all(|name| name.len() == 16));
    }
}
