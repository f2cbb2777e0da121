//! How much data an allocation, or all of a user's allocations together, may carry.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::settings::DataRate;

/// Data of so much time may come at once: a key frame, or what a stalled network lets go of.
const DEPTH: Duration = Duration::from_secs(1);

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    ToPeers,
    ToClient,
}

/// Token buckets of bytes and packets for each direction, as instants at which they are full again.
///
/// Nothing waits here: a datagram beyond the rate is dropped, as at any bottleneck that real-time media expects. The data
/// of a connection with a peer waits where it is, in the kernel of its sender.
#[derive(Debug, Default)]
pub(super) struct Meter {
    epoch: OnceLock<Instant>,
    bytes: [AtomicU64; 2],
    packets: [AtomicU64; 2],
}

impl Meter {
    /// Takes tokens for a datagram; false when it is one too many.
    pub(super) fn take(&self, now: Instant, rate: DataRate, direction: Direction, len: usize) -> bool {
        let now = self.nanos(now);
        let direction = direction as usize;
        take(&self.packets[direction], now, 1, rate.packets_per_second)
            && take(&self.bytes[direction], now, len as u64, rate.bytes_per_second)
    }

    /// How many bytes of a connection may pass now; a connection has no packets to be counted.
    pub(super) fn room(&self, now: Instant, rate: DataRate, direction: Direction) -> u64 {
        if rate.bytes_per_second == 0 {
            return u64::MAX;
        }
        let (now, depth) = (self.nanos(now), DEPTH.as_nanos() as u64);
        let used = self.bytes[direction as usize].load(Ordering::Relaxed).saturating_sub(now);
        let free = depth.saturating_sub(used);
        (u128::from(free) * u128::from(rate.bytes_per_second) / 1_000_000_000) as u64
    }

    /// Takes tokens for bytes of a connection that have passed, also such as are not there yet.
    pub(super) fn charge(&self, now: Instant, rate: DataRate, direction: Direction, bytes: u64) {
        let Some(cost) = bytes.saturating_mul(1_000_000_000).checked_div(rate.bytes_per_second.into()) else { return };
        let now = self.nanos(now);
        let full_at = &self.bytes[direction as usize];
        let next = |full_at: u64| Some(full_at.max(now).saturating_add(cost));
        let _always = full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    fn nanos(&self, now: Instant) -> u64 {
        now.saturating_duration_since(*self.epoch.get_or_init(|| now)).as_nanos() as u64
    }
}

/// Takes `tokens` of `per_second` (0: without limit) from a bucket.
fn take(full_at: &AtomicU64, now: u64, tokens: u64, per_second: u32) -> bool {
    let Some(cost) = (tokens * 1_000_000_000).checked_div(per_second.into()) else { return true };
    // Whatever the rate, one datagram fits into a full bucket.
    let depth = (DEPTH.as_nanos() as u64).max(cost);
    let next = |full_at: u64| Some(full_at.max(now) + cost).filter(|next| *next <= now + depth);
    full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(meter: &Meter, now: Instant, rate: DataRate, direction: Direction, len: usize) -> usize {
        (0..100_000).take_while(|_| meter.take(now, rate, direction, len)).count()
    }

    #[test]
    fn each_direction_has_its_bytes_and_packets() {
        let (meter, begin) = (Meter::default(), Instant::now());
        let rate = DataRate { bytes_per_second: 10_000, packets_per_second: 50 };
        assert_eq!(drain(&meter, begin, rate, Direction::ToPeers, 1000), 10, "bytes");
        assert_eq!(drain(&meter, begin, rate, Direction::ToClient, 10), 50, "packets, and the other direction");
        let later = begin + Duration::from_millis(500);
        assert_eq!(drain(&meter, later, rate, Direction::ToPeers, 1000), 5);
        assert_eq!(drain(&meter, later, rate, Direction::ToClient, 10), 25);
        assert_eq!(drain(&meter, begin + Duration::from_secs(60), rate, Direction::ToClient, 10), 50);
    }

    #[test]
    fn the_data_of_connections_has_the_same_bucket_and_what_is_too_much_is_owed() {
        let (meter, begin) = (Meter::default(), Instant::now());
        let rate = DataRate { bytes_per_second: 10_000, packets_per_second: 1 };
        let at = |millis| begin + Duration::from_millis(millis);
        assert_eq!(meter.room(begin, DataRate::default(), Direction::ToPeers), u64::MAX);
        assert_eq!(meter.room(begin, rate, Direction::ToPeers), 10_000);
        assert!(meter.take(begin, rate, Direction::ToPeers, 1000));
        assert_eq!(meter.room(begin, rate, Direction::ToPeers), 9000);
        meter.charge(begin, rate, Direction::ToPeers, 14_000);
        assert_eq!(meter.room(begin, rate, Direction::ToPeers), 0);
        assert_eq!(meter.room(begin, rate, Direction::ToClient), 10_000, "the other direction");
        assert_eq!(meter.room(at(500), rate, Direction::ToPeers), 0, "5000 were owed");
        assert_eq!(meter.room(at(600), rate, Direction::ToPeers), 1000);
        assert_eq!(meter.room(at(60_000), rate, Direction::ToPeers), 10_000);
    }

    #[test]
    fn zero_is_no_limit_and_the_longest_datagram_fits_into_any_rate() {
        let (meter, now) = (Meter::default(), Instant::now());
        assert_eq!(drain(&meter, now, DataRate::default(), Direction::ToPeers, 65_507), 100_000);
        let slow = DataRate { bytes_per_second: 100, packets_per_second: 0 };
        assert_eq!(drain(&meter, now, slow, Direction::ToPeers, 65_507), 1);
        assert!(!meter.take(now + Duration::from_secs(600), slow, Direction::ToPeers, 65_507));
        assert!(meter.take(now + Duration::from_secs(656), slow, Direction::ToPeers, 65_507));
    }
}
