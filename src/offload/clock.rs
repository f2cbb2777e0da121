//! The programs' clock.

use std::io;
use std::time::{Duration, Instant};

/// The programs' clock counts ticks of at least 100 Hz. A deadline that is early by two of them is never late.
const MARGIN: Duration = Duration::from_millis(20);
/// How often two clocks are read until they are read at the same time.
const CLOCK_READINGS: usize = 16;

/// Instants in the programs' clock, which is CLOCK_MONOTONIC, as `Instant`'s is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    instant: Instant,
    nanos: u64,
}

impl Clock {
    pub(super) fn new() -> io::Result<Self> {
        let mut attempts = 0;
        loop {
            let before = Instant::now();
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: `time` outlives the call and has the layout that it fills.
            if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } != 0 {
                return Err(io::Error::last_os_error());
            }
            // Read in this order, so that no deadline is late; again when something has come in between.
            let instant = Instant::now();
            attempts += 1;
            if attempts == CLOCK_READINGS || instant.saturating_duration_since(before) < Duration::from_micros(10) {
                return Ok(Self { instant, nanos: time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64 });
            }
        }
    }

    /// The deadline for a flow that is open until then.
    pub(super) fn nanos(&self, until: Instant) -> u64 {
        let after = until.checked_duration_since(self.instant + MARGIN).unwrap_or_default();
        self.nanos.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
    }

    /// When the programs' clock was zero.
    pub(super) fn epoch(&self) -> Option<Instant> {
        self.instant.checked_sub(Duration::from_nanos(self.nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_early_by_the_margin_and_never_before_the_start() {
        let clock = Clock::new().unwrap();
        let then = clock.instant + Duration::from_secs(300);
        assert_eq!(clock.nanos(then), clock.nanos + 300_000_000_000 - 20_000_000);
        assert_eq!(clock.nanos(clock.instant), clock.nanos);
        assert_eq!(clock.instant - clock.epoch().unwrap(), Duration::from_nanos(clock.nanos));
    }
}
