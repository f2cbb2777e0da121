//! The programs' clock.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// The programs' clock counts ticks of at least 100 Hz. A deadline that is early by two of them is never late.
const MARGIN: Duration = Duration::from_millis(20);
/// How often two clocks are read until they are read at the same time.
const CLOCK_READINGS: usize = 16;

/// What a time namespace adds to its processes' clocks (time_namespaces(7)).
const OFFSETS: &str = "/proc/self/timens_offsets";

/// Instants in the programs' clock, which is CLOCK_MONOTONIC, as `Instant`'s is, but always the host's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    instant: Instant,
    nanos: u64,
}

impl Clock {
    pub(super) fn new() -> io::Result<Self> {
        // A kernel without time namespaces has no such file.
        let offset = fs::read_to_string(OFFSETS).map_or(0, |text| monotonic_offset(&text));
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
                let nanos = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec) - offset;
                return Ok(Self { instant, nanos: u64::try_from(nanos).unwrap_or_default() });
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

/// By how many nanoseconds CLOCK_MONOTONIC is ahead of the host's.
fn monotonic_offset(offsets: &str) -> i128 {
    let line = offsets.lines().find_map(|line| line.strip_prefix("monotonic"));
    let mut numbers = line.into_iter().flat_map(str::split_whitespace).map_while(|number| number.parse::<i64>().ok());
    let [seconds, nanos] = [numbers.next(), numbers.next()].map(|number| i128::from(number.unwrap_or_default()));
    seconds * 1_000_000_000 + nanos
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_of_a_time_namespace_is_read() {
        assert_eq!(monotonic_offset("monotonic           0         0\nboottime            0         0\n"), 0);
        assert_eq!(
            monotonic_offset("monotonic      864000       500\nboottime            7         0\n"),
            864_000_000_000_500
        );
        assert_eq!(monotonic_offset("monotonic      -20000         0\n"), -20_000_000_000_000);
        assert_eq!(monotonic_offset("boottime            7         0\n"), 0);
    }

    #[test]
    fn a_deadline_is_early_by_the_margin_and_never_before_the_start() {
        let clock = Clock::new().unwrap();
        let then = clock.instant + Duration::from_secs(300);
        assert_eq!(clock.nanos(then), clock.nanos + 300_000_000_000 - 20_000_000);
        assert_eq!(clock.nanos(clock.instant), clock.nanos);
        assert_eq!(clock.instant - clock.epoch().unwrap(), Duration::from_nanos(clock.nanos));
    }
}
