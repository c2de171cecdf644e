//! How many bytes the kernel may hold unsent for one viewer.
//!
//! What the kernel holds unsent is older than all that waits behind it, and nothing can be taken out of it. So for a
//! viewer whose link has proved slow, the window shrinks to what the link carries in some 50 to 100 ms, but not below
//! [`LEAST`]. It doesn't limit the rate: the link has what is sent and not acknowledged, and the writer has these 50 ms
//! to write more. `perf/slow-links.md` has the throughput for each window.

use super::socket::Coalescing;

/// The smallest window, in bytes: nearly three segments of an ordinary link.
const LEAST: u32 = 4 << 10;

/// The window is at least what the link carries in a second divided by this: in 50 ms. A busy server takes some
/// milliseconds to write after the kernel has said that it takes more, which it says when half of the window is sent.
const PER_SECOND: u64 = 20;

/// The kernel fills a segment of this length before it looks at the window, unless it is told otherwise.
const SEGMENT: u32 = 64 << 10;

/// The window of one socket: the most that the room allows, halved some times.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnsentWindow {
    most: u32,
    halved: u8,
}

impl UnsentWindow {
    /// The window of a new connection.
    pub(super) fn new(most: u32) -> Self {
        Self { most, halved: 0 }
    }

    /// Follows the link's rate, in bytes per second. Returns the new size of the window if the rate has changed so
    /// much that another one is due: one that holds at least 50 ms and less than 100 ms. A rate that changes to and fro
    /// by less than a third doesn't take the window with it.
    pub(super) fn follow(&mut self, rate: u64) -> Option<u32> {
        let wanted = (rate / PER_SECOND).clamp(LEAST.into(), u32::MAX.into());
        let now = u64::from(self.bytes());
        if 4 * now >= 3 * wanted && now < 2 * wanted {
            return None;
        }
        let before = self.halved;
        let fits = |halved: &u8| u64::from(self.most >> halved) >= wanted;
        self.halved = (1..u32::BITS as u8).take_while(fits).last().unwrap_or(0);
        (self.halved != before).then(|| self.bytes())
    }

    /// How the kernel has to gather what is written, for the window to hold.
    pub(super) fn coalescing(self) -> Coalescing {
        if self.bytes() < SEGMENT { Coalescing::Strict } else { Coalescing::Free }
    }

    fn bytes(self) -> u32 {
        self.most >> self.halved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_holds_50_to_100_ms_of_the_link() {
        for most in [64 << 10, 100_000, 1 << 20, u32::MAX] {
            for rate in (0..40).map(|power| 1_u64 << power) {
                let mut window = UnsentWindow::new(most);
                window.follow(rate);
                let (bytes, wanted) = (u64::from(window.bytes()), (rate / 20).max(LEAST.into()));
                assert!(bytes >= wanted.min(most.into()) && bytes < 2 * wanted, "{bytes} for {rate}, at most {most}");
            }
        }
    }

    #[test]
    fn the_window_is_set_when_the_rate_has_clearly_changed() {
        let mut window = UnsentWindow::new(64 << 10);
        assert_eq!(window.follow(12_500_000), None);
        assert_eq!(window.follow(125_000), Some(8 << 10));
        for rate in [130_000, 100_000, 160_000, 200_000, 100_000] {
            assert_eq!(window.follow(rate), None, "{rate}");
        }
        assert_eq!(window.follow(32_000), Some(4 << 10));
        assert_eq!(window.follow(1000), None);
        assert_eq!(window.follow(12_500_000), Some(64 << 10));
    }

    #[test]
    fn a_small_window_of_the_embedder_stays() {
        let mut window = UnsentWindow::new(1000);
        assert_eq!(window.follow(1000), None);
        assert_eq!(window.follow(12_500_000), None);
    }
}
