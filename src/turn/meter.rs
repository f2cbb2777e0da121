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

/// The instants at which buckets are full again, in nanoseconds behind an epoch: packets and bytes to peers, packets and
/// bytes to the client.
pub type Buckets = [[AtomicU64; 2]; 2];

const PACKETS: usize = 0;
const BYTES: usize = 1;

/// Buckets that another data path takes from as well.
pub trait SharedBuckets: std::fmt::Debug + Send + Sync {
    fn buckets(&self) -> &Buckets;
}

/// Token buckets of bytes and packets for each direction, as instants at which they are full again.
///
/// Nothing waits here: a datagram beyond the rate is dropped, as at any bottleneck that real-time media expects. The data
/// of a connection with a peer waits where it is, in the kernel of its sender.
#[derive(Debug, Default)]
pub(super) struct Meter {
    epoch: OnceLock<Instant>,
    own: Buckets,
    shared: Option<Box<dyn SharedBuckets>>,
}

impl Meter {
    /// Takes from these buckets from now on, which hold then what its own ones do.
    pub(super) fn share(&mut self, buckets: Box<dyn SharedBuckets>, epoch: Instant) {
        let old = *self.epoch.get_or_init(|| epoch);
        let from = self.shared.as_ref().map_or(&self.own, |shared| shared.buckets());
        for (from, to) in from.iter().flatten().zip(buckets.buckets().iter().flatten()) {
            let full_at = old + Duration::from_nanos(from.load(Ordering::Relaxed));
            to.store(full_at.saturating_duration_since(epoch).as_nanos() as u64, Ordering::Relaxed);
        }
        (self.epoch, self.shared) = (OnceLock::from(epoch), Some(buckets));
    }

    /// Takes tokens for a datagram; false when it is one too many.
    pub(super) fn take(&self, now: Instant, rate: DataRate, direction: Direction, len: usize) -> bool {
        let now = self.nanos(now);
        let buckets = self.of(direction);
        take(&buckets[PACKETS], now, 1, rate.packets_per_second)
            && take(&buckets[BYTES], now, len as u64, rate.bytes_per_second)
    }

    /// How many bytes of a connection may pass now; a connection has no packets to be counted.
    pub(super) fn room(&self, now: Instant, rate: DataRate, direction: Direction) -> u64 {
        if rate.bytes_per_second == 0 {
            return u64::MAX;
        }
        let (now, depth) = (self.nanos(now), DEPTH.as_nanos() as u64);
        let used = self.of(direction)[BYTES].load(Ordering::Relaxed).saturating_sub(now);
        let free = depth.saturating_sub(used);
        (u128::from(free) * u128::from(rate.bytes_per_second) / 1_000_000_000) as u64
    }

    /// Takes tokens for bytes of a connection that have passed, also such as are not there yet.
    pub(super) fn charge(&self, now: Instant, rate: DataRate, direction: Direction, bytes: u64) {
        let Some(cost) = bytes.saturating_mul(1_000_000_000).checked_div(rate.bytes_per_second.into()) else { return };
        let now = self.nanos(now);
        let full_at = &self.of(direction)[BYTES];
        let next = |full_at: u64| Some(full_at.max(now).saturating_add(cost));
        let _always = full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    fn of(&self, direction: Direction) -> &[AtomicU64; 2] {
        &self.shared.as_ref().map_or(&self.own, |shared| shared.buckets())[direction as usize]
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

    /// Buckets outside, as those of programs are.
    #[derive(Debug, Default)]
    struct Outside(std::sync::Arc<Buckets>);

    impl SharedBuckets for Outside {
        fn buckets(&self) -> &Buckets {
            &self.0
        }
    }

    #[test]
    fn shared_buckets_go_on_from_what_was_taken_and_both_sides_take_from_them() {
        let (mut meter, begin) = (Meter::default(), Instant::now());
        let rate = DataRate { bytes_per_second: 10_000, packets_per_second: 50 };
        assert!((0..30).all(|_| meter.take(begin, rate, Direction::ToPeers, 100)));
        let buckets = std::sync::Arc::<Buckets>::default();
        // Theirs counts from another instant.
        let epoch = begin.checked_sub(Duration::from_secs(1000)).unwrap();
        meter.share(Box::new(Outside(std::sync::Arc::clone(&buckets))), epoch);
        assert_eq!(buckets[0][PACKETS].load(Ordering::Relaxed), 1_000_600_000_000, "30 of 50 a second");
        // What is left: 20 packets, of which the other side takes 15.
        buckets[0][PACKETS].fetch_add(300_000_000, Ordering::Relaxed);
        assert_eq!(drain(&meter, begin, rate, Direction::ToPeers, 100), 5);
        assert_eq!(drain(&meter, begin, rate, Direction::ToClient, 100), 50, "the other direction");
        assert_eq!(drain(&meter, begin + Duration::from_millis(100), rate, Direction::ToPeers, 100), 5);
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
