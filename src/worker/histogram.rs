//! How long turns of the packet loop take, in buckets of powers of two.

use std::ops::AddAssign;
use std::time::Duration;

/// From 16 microseconds to 32 milliseconds, and what is longer.
pub const BUCKETS: usize = 13;
/// The first bucket's upper bound in microseconds is two to the power of this.
const FIRST_BITS: u32 = 4;

/// Durations since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    micros: u64,
}

impl Histogram {
    pub(super) fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        // The smallest power of two that is not less.
        let bits = u64::BITS - micros.saturating_sub(1).leading_zeros();
        let bucket = (bits.saturating_sub(FIRST_BITS) as usize).min(BUCKETS - 1);
        self.counts[bucket] += 1;
        self.micros = self.micros.saturating_add(micros);
    }

    /// Each bucket's upper bound in seconds, the last being infinite, with its own count.
    pub fn buckets(&self) -> [(f64, u64); BUCKETS] {
        std::array::from_fn(|index| {
            let bound = if index == BUCKETS - 1 {
                f64::INFINITY
            } else {
                f64::from(1_u32 << (FIRST_BITS + index as u32)) / 1e6
            };
            (bound, self.counts[index])
        })
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All durations together, in seconds.
    pub fn seconds(&self) -> f64 {
        self.micros as f64 / 1e6
    }
}

impl AddAssign for Histogram {
    fn add_assign(&mut self, more: Self) {
        self.counts.iter_mut().zip(more.counts).for_each(|(sum, more)| *sum += more);
        self.micros = self.micros.saturating_add(more.micros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_that_holds_it() {
        for (micros, bucket) in
            [(0, 0), (1, 0), (16, 0), (17, 1), (32, 1), (33, 2), (32_768, 11), (32_769, 12), (u64::MAX, 12)]
        {
            let mut histogram = Histogram::default();
            histogram.record(Duration::from_micros(micros));
            let (bound, count) = histogram.buckets()[bucket];
            assert_eq!(count, 1, "{micros}");
            assert!(micros as f64 / 1e6 <= bound, "{micros}");
        }
        let mut histogram = Histogram::default();
        (0..3).for_each(|_| histogram.record(Duration::from_millis(1)));
        let mut sum = histogram;
        sum += histogram;
        assert_eq!((sum.count(), sum.seconds()), (6, 0.006));
    }
}
