//! Round trips to one viewer.
//!
//! A viewer sends a ping, the server answers with a pong, and the viewer acknowledges the pong. The time from the pong
//! to its acknowledgement is a round trip, measured by the server's clock. An acknowledgement only says which pong it
//! means, and counts only if that pong is still open. So a viewer can claim to be slower than it is, by a minute at
//! most, but can't cause absurd values.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::client::{Ping, PingAck};
use crate::protocol::server::Pong;
use crate::telemetry::clock::now_ns;

/// How many pongs may be open at once: more than a viewer that pings each second has open on a line with seconds of
/// delay.
const OPEN_PONGS: usize = 16;

/// The longest time that counts as a round trip. Most of the time that a viewer may have to wait is caused by its own
/// backlog.
const LONGEST: Duration = Duration::from_secs(60);

/// The pongs that one viewer hasn't acknowledged. There is one of these once the viewer has pinged.
#[derive(Debug, Default)]
pub(super) struct Pings {
    /// Oldest first: the time stamp in each pong, and when the pong was sent.
    open: VecDeque<(u64, Instant)>,
}

impl Pings {
    /// Makes the answer to a ping, to be sent at once.
    pub(super) fn pong(&mut self, ping: Ping) -> Pong {
        let device_timestamp_ms = now_ns() / 1_000_000;
        if self.open.len() == OPEN_PONGS {
            self.open.pop_front();
        }
        self.open.push_back((device_timestamp_ms, Instant::now()));
        Pong { app_timestamp: ping.app_timestamp, device_timestamp_ms }
    }

    /// The round trip that `ack` completes, if `ack` means an open pong.
    ///
    /// Acknowledgements come in the order of the pongs. So if two pongs have the same millisecond, the older one is
    /// meant, and the pongs before it will never be acknowledged.
    pub(super) fn acknowledged(&mut self, ack: PingAck) -> Option<Duration> {
        let meant = self.open.iter().position(|(stamp, _)| *stamp == ack.device_timestamp_ms)?;
        let (_, sent) = self.open.drain(..=meant).next_back()?;
        Some(sent.elapsed()).filter(|round_trip| *round_trip <= LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(pong: Pong) -> PingAck {
        PingAck { device_timestamp_ms: pong.device_timestamp_ms }
    }

    const PING: Ping = Ping { app_timestamp: 7 };

    #[tokio::test(start_paused = true)]
    async fn a_round_trip_lies_between_a_pong_and_its_acknowledgement() {
        let mut pings = Pings::default();
        let pong = pings.pong(PING);
        assert_eq!(pong.app_timestamp, 7);
        assert!(pong.device_timestamp_ms > 1_600_000_000_000);
        tokio::time::advance(Duration::from_millis(40)).await;
        assert_eq!(pings.acknowledged(ack(pong)), Some(Duration::from_millis(40)));
        // An acknowledgement counts once.
        assert_eq!(pings.acknowledged(ack(pong)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn of_pongs_with_one_stamp_the_oldest_is_meant() {
        let mut pings = Pings::default();
        let stamp = pings.pong(PING);
        let sent = Instant::now();
        // All three with the same millisecond, whatever the clock of the machine says.
        pings.open = [0, 1, 2].map(|n| (stamp.device_timestamp_ms, sent + Duration::from_millis(n))).into();
        tokio::time::advance(Duration::from_millis(10)).await;
        for round_trip in [10, 9, 8] {
            assert_eq!(pings.acknowledged(ack(stamp)), Some(Duration::from_millis(round_trip)));
        }
        assert_eq!(pings.acknowledged(ack(stamp)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_sent_lately_is_no_round_trip() {
        let mut pings = Pings::default();
        // 1. No pong was sent, then one with another stamp.
        assert_eq!(pings.acknowledged(PingAck { device_timestamp_ms: 0 }), None);
        let first = pings.pong(PING);
        for stamp in [0, first.device_timestamp_ms - 1, u64::MAX] {
            assert_eq!(pings.acknowledged(PingAck { device_timestamp_ms: stamp }), None);
        }
        // 2. Pongs that are never acknowledged are dropped, oldest first.
        for n in 0..1000 {
            pings.pong(PING);
            assert!(pings.open.len() <= OPEN_PONGS, "{n}");
        }
        // 3. An acknowledgement after more than a minute completes no round trip.
        pings.open.clear();
        let late = pings.pong(PING);
        tokio::time::advance(LONGEST + Duration::from_millis(1)).await;
        assert_eq!(pings.acknowledged(ack(late)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_skipped_stays_unacknowledged() {
        let mut pings = Pings::default();
        let sent = Instant::now();
        pings.open = [1, 2, 3].map(|stamp| (stamp, sent)).into();
        assert_eq!(pings.acknowledged(PingAck { device_timestamp_ms: 2 }), Some(Duration::ZERO));
        assert_eq!(pings.acknowledged(PingAck { device_timestamp_ms: 1 }), None);
        assert_eq!(pings.acknowledged(PingAck { device_timestamp_ms: 3 }), Some(Duration::ZERO));
    }
}
