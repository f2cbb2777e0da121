//! Whether an interface fails at what the programs have it do.

use std::time::{Duration, Instant};

/// Failures are weighed against packets within this time.
const WINDOW: Duration = Duration::from_secs(10);
/// One packet in this many may fail.
const SHARE: u64 = 16;
/// Fewer are no proof; a third of a second of one call.
const FAILURES_MIN: u64 = 16;

/// Counters of an interface and of the programs, since a window began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    began: Instant,
    failures: u64,
    carried: u64,
}

impl Watch {
    /// Of counters whose values are told later.
    pub(super) fn begin(now: Instant) -> Self {
        Self::new(now, u64::MAX, u64::MAX)
    }

    fn new(now: Instant, failures: u64, carried: u64) -> Self {
        Self { began: now, failures, carried }
    }

    /// Whether more has failed than can be put up with, by how far the counters have gone by now: of what failed, and of
    /// the packets that the programs have sent. What fails while they send nothing is not theirs.
    pub(super) fn has_failed(&mut self, now: Instant, failures: u64, carried: u64) -> bool {
        let failed = failures.saturating_sub(self.failures);
        let sent = carried.saturating_sub(self.carried);
        if failed >= FAILURES_MIN && sent > 0 && failed >= sent / SHARE {
            return true;
        }
        // A driver may begin to count anew.
        if now.saturating_duration_since(self.began) >= WINDOW || failures < self.failures || sent == 0 {
            *self = Self::new(now, failures, carried);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(500);

    #[test]
    fn a_call_that_loses_everything_is_noticed() {
        let start = Instant::now();
        let mut watch = Watch::new(start, 7, 100);
        assert!(!watch.has_failed(start + STEP, 7 + 10, 110));
        assert!(watch.has_failed(start + STEP * 2, 7 + 20, 120));
    }

    #[test]
    fn a_few_losses_among_many_packets_are_put_up_with() {
        let start = Instant::now();
        let mut watch = Watch::new(start, 0, 0);
        for step in 1..1000 {
            assert!(!watch.has_failed(start + STEP * step, u64::from(step) * 20, u64::from(step) * 1000));
        }
        assert!(watch.has_failed(start + STEP * 1001, 25_000, 1_001_000));
    }

    #[test]
    fn what_fails_while_nothing_is_carried_or_is_counted_anew_is_no_failure() {
        let start = Instant::now();
        let mut watch = Watch::new(start, 0, 50);
        assert!(!watch.has_failed(start + STEP, 10_000, 50));
        assert!(!watch.has_failed(start + STEP * 2, 10_001, 60));
        assert!(!watch.has_failed(start + STEP * 3, 0, 70));
        assert!(watch.has_failed(start + STEP * 4, 20, 90));
    }
}
