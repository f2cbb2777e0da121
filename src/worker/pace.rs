//! When to rest before the next wait, so that one wake-up serves many packets.
//!
//! At the rates of calls every packet comes alone and wakes the server, and wake-ups cost more than packets do. So when
//! the recent rate says that the next packets are due within microseconds, the loop sleeps through their arrivals and
//! then finds them all. It never rests while it is busy or idle.

use std::time::{Duration, Instant};

/// Packets worth one wake-up.
const PACKETS_PER_WAKE_UP: f64 = 32.0;
/// Resting pays while the next packet is due within this time.
const GAP_MAX: Duration = Duration::from_micros(100);
/// A shorter rest costs more than it saves.
const REST_MIN: Duration = Duration::from_micros(20);
/// The weight of the last turn in the rate.
const WEIGHT: f64 = 0.25;

/// The rate of packets, and what follows from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    rest_max: Duration,
    turn_began: Instant,
    /// Packets per second, of the recent turns.
    rate: f64,
}

impl Pace {
    /// A rest adds at most `rest_max` to the way of a packet; zero is never to rest.
    pub(super) fn new(rest_max: Duration, now: Instant) -> Self {
        Self { rest_max, turn_began: now, rate: 0.0 }
    }

    /// How long to rest after a turn that handled `packets` and ran from `began` to `ended`.
    pub(super) fn rest(&mut self, packets: usize, began: Instant, ended: Instant) -> Option<Duration> {
        let interval = began.saturating_duration_since(self.turn_began).max(Duration::from_micros(1));
        self.turn_began = began;
        self.rate += WEIGHT * (packets as f64 / interval.as_secs_f64() - self.rate);
        let work = ended.saturating_duration_since(began);
        // What arrived during a long turn waits already.
        let left = self.rest_max.checked_sub(work).filter(|left| !left.is_zero())?;
        if packets == 0 || self.rate * GAP_MAX.as_secs_f64() < 1.0 {
            return None;
        }
        let rest = left.min(Duration::from_secs_f64(PACKETS_PER_WAKE_UP / self.rate));
        (rest >= REST_MIN).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(500);

    /// Turns at a steady rate, each `work` long; returns what the last one is told.
    fn steady(rest_max: Duration, packets_per_second: f64, work: Duration) -> Option<Duration> {
        let mut now = Instant::now();
        let mut pace = Pace::new(rest_max, now);
        let mut rest: Option<Duration> = None;
        for _ in 0..50 {
            let gap = rest.unwrap_or_default() + work + Duration::from_micros(20);
            now += gap;
            let packets = (packets_per_second * gap.as_secs_f64()).round().max(1.0) as usize;
            rest = pace.rest(packets, now, now + work);
        }
        rest
    }

    #[test]
    fn calls_are_rested_through_within_the_bound() {
        let rest = steady(MAX, 100_000.0, Duration::from_micros(100)).unwrap();
        assert!(rest > Duration::from_micros(150) && rest <= Duration::from_micros(400), "{rest:?}");
        let rest = steady(MAX, 20_000.0, Duration::from_micros(40)).unwrap();
        assert!(rest <= Duration::from_micros(460) && rest > Duration::from_micros(300), "{rest:?}");
    }

    #[test]
    fn an_idle_or_a_busy_loop_never_rests() {
        let began = Instant::now();
        let mut pace = Pace::new(MAX, began);
        let later = began + Duration::from_millis(20);
        assert_eq!(pace.rest(1, later, later), None, "50 packets a second");
        assert_eq!(steady(MAX, 200_000.0, Duration::from_micros(600)), None, "a turn longer than the bound");
    }

    #[test]
    fn what_a_turn_leaves_of_the_bound_is_not_rested_when_it_is_next_to_nothing() {
        assert_eq!(steady(MAX, 100_000.0, MAX - Duration::from_nanos(300)), None);
    }

    #[test]
    fn zero_is_never() {
        assert_eq!(steady(Duration::ZERO, 100_000.0, Duration::from_micros(10)), None);
    }

    #[test]
    fn a_turn_without_packets_ends_the_resting() {
        let mut now = Instant::now();
        let mut pace = Pace::new(MAX, now);
        for _ in 0..20 {
            now += Duration::from_micros(300);
            pace.rest(30, now, now + Duration::from_micros(50));
        }
        now += Duration::from_micros(300);
        assert_eq!(pace.rest(0, now, now), None);
    }
}
