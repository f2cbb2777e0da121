//! Token buckets in one table of fixed size: what is remembered of sources that have proved nothing.
//!
//! A bucket is an instant: when it will be full again (the generic cell rate algorithm). Each key has two slots, one in
//! each row, by a keyed hash that nobody outside knows. A token is taken when either slot has one, and both are then set
//! to what the emptier of the two debts says (a count-min sketch with conservative update). So no source gets more than
//! its rate, nothing is ever evicted, and who shares one slot with a flood still has the other: with 1000 sources that
//! flood at a time, one other source in some 4,300 shares both of its slots with them, and gets less than its rate.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Slots of each of the two rows: 2 x 65,536 x 8 bytes are 1 MiB for the daemon.
const ROW: usize = 1 << 16;

/// How many tokens a bucket gets, and how many it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// Nanoseconds for one token.
    interval: u64,
    /// Nanoseconds in which an empty bucket fills.
    depth: u64,
}

impl Rate {
    /// `per_second` tokens a second, held for as long as `depth`; `None` for 0, which is no limit.
    pub(super) fn new(per_second: u32, depth: Duration) -> Option<Self> {
        let interval = 1_000_000_000_u64.checked_div(per_second.into())?.max(1);
        Some(Self { interval, depth: (depth.as_nanos() as u64).max(interval) })
    }

    /// The same depth at several times the rate.
    pub(super) fn times(self, factor: u64) -> Self {
        Self { interval: (self.interval / factor).max(1), ..self }
    }
}

/// The table; shared by all workers without a lock. A source beyond its rate is only read.
#[derive(Debug)]
pub(super) struct Buckets {
    rows: [Box<[AtomicU64]>; 2],
    hasher: RandomState,
    /// Slots count nanoseconds from here; the first bucket that is asked for sets it.
    epoch: OnceLock<Instant>,
}

impl Default for Buckets {
    fn default() -> Self {
        let row = || (0..ROW).map(|_| AtomicU64::new(0)).collect();
        Self { rows: [row(), row()], hasher: RandomState::new(), epoch: OnceLock::new() }
    }
}

impl Buckets {
    /// Takes a token from the bucket of a key; false when there is none.
    pub(super) fn take(&self, now: Instant, key: impl Hash, rate: Rate) -> bool {
        let now = self.nanoseconds(now);
        let [first, second] = self.slots(key);
        loop {
            let (one, other) = (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
            let (slot, full_at, beside) = if one <= other { (first, one, second) } else { (second, other, first) };
            let next = full_at.max(now).saturating_add(rate.interval);
            if next > now.saturating_add(rate.depth) {
                return false;
            }
            if slot.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                beside.fetch_max(next, Ordering::Relaxed);
                return true;
            }
        }
    }

    /// Gives a token back that was taken.
    pub(super) fn give_back(&self, now: Instant, key: impl Hash, rate: Rate) {
        let now = self.nanoseconds(now);
        for slot in self.slots(key) {
            let less = |full_at: u64| (full_at > now).then(|| full_at.saturating_sub(rate.interval));
            // A bucket that is full stays so.
            let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(*self.epoch.get_or_init(|| now)).as_nanos() as u64
    }

    fn slots(&self, key: impl Hash) -> [&AtomicU64; 2] {
        let hash = self.hasher.hash_one(key);
        [&self.rows[0][hash as usize % ROW], &self.rows[1][(hash >> 32) as usize % ROW]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 100;

    fn rate() -> Rate {
        Rate::new(RATE, Duration::from_millis(500)).unwrap()
    }

    /// Tokens that a key gets at `now`.
    fn drain(buckets: &Buckets, now: Instant, key: u32) -> usize {
        (0..10_000).take_while(|_| buckets.take(now, key, rate())).count()
    }

    #[test]
    fn a_bucket_holds_its_depth_and_fills_at_its_rate() {
        let (buckets, begin) = (Buckets::default(), Instant::now());
        assert_eq!(drain(&buckets, begin, 1), 50);
        assert_eq!(drain(&buckets, begin + Duration::from_millis(9), 1), 0);
        assert_eq!(drain(&buckets, begin + Duration::from_millis(101), 1), 10);
        assert_eq!(drain(&buckets, begin + Duration::from_secs(3600), 1), 50, "never more than its depth");
        assert_eq!(drain(&buckets, begin, 2), 50, "another key");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let (buckets, begin) = (Buckets::default(), Instant::now());
        for _ in 0..1000 {
            assert!(buckets.take(begin, 1, rate()));
            buckets.give_back(begin, 1, rate());
        }
        assert_eq!(drain(&buckets, begin, 1), 50, "and a full bucket does not overflow");
        buckets.give_back(begin, 1, rate());
        assert_eq!(drain(&buckets, begin, 1), 1);
    }

    #[test]
    fn a_thousand_floods_leave_the_others_their_tokens() {
        let (buckets, now) = (Buckets::default(), Instant::now());
        for key in 0..1000 {
            drain(&buckets, now, key);
        }
        // 2 x 1000 slots of 131,072 are empty: (1000 / 65,536)^2 of 10,000 others are 2.3.
        let starved = (1000..11_000).filter(|key| !buckets.take(now, *key, rate())).count();
        assert!(starved < 30, "{starved}");
    }

    #[test]
    fn workers_together_get_what_one_gets() {
        let (buckets, now) = (Buckets::default(), Instant::now());
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| drain(&buckets, now, 1))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        // Between the two stores of one worker another one may get a token of the second slot.
        assert!((50..=100).contains(&taken), "{taken}");
        assert!(!buckets.take(now, 1, rate()));
    }

    #[test]
    fn rates_are_never_nothing() {
        assert_eq!(Rate::new(0, Duration::from_secs(1)), None);
        let fastest = Rate::new(u32::MAX, Duration::ZERO).unwrap();
        assert_eq!((fastest.interval, fastest.depth), (1, 1));
        assert_eq!(fastest.times(4), fastest);
        assert_eq!(Rate::new(1, Duration::ZERO).unwrap().depth, 1_000_000_000, "at least one token");
    }
}
