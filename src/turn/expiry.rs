//! A timing wheel: one timer per allocation, O(1) to set, to cancel and to find the next.

use std::time::{Duration, Instant};

/// Resolution. What expires is judged by its own instant; the wheel only wakes the server to clear it away.
const TICK: Duration = Duration::from_millis(250);
/// 2^14 ticks are 68 minutes: longer than any usual lifetime. A later deadline wakes early and is set again.
const SLOTS: usize = 1 << 14;
const WORDS: usize = SLOTS / 64;
const NONE: u32 = u32::MAX;

/// Timers by a small integer key, which is the slot of an allocation.
#[derive(Debug)]
pub(super) struct Expiry {
    origin: Instant,
    /// Every tick before this one has been served.
    tick: u64,
    heads: Vec<u32>,
    timers: Vec<Timer>,
    /// One bit per slot with timers, and one bit per word of those.
    occupied: [u64; WORDS],
    summary: [u64; WORDS / 64],
}

/// A node of a slot's list.
#[derive(Clone, Copy, Debug)]
struct Timer {
    previous: u32,
    next: u32,
    slot: u32,
}

const IDLE: Timer = Timer { previous: NONE, next: NONE, slot: NONE };

impl Expiry {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            origin: now,
            tick: 0,
            heads: vec![NONE; SLOTS],
            timers: Vec::new(),
            occupied: [0; WORDS],
            summary: [0; WORDS / 64],
        }
    }

    /// Sets or moves the timer of `key`.
    pub(super) fn arm(&mut self, key: u32, deadline: Instant) {
        self.disarm(key);
        let index = key as usize;
        if index >= self.timers.len() {
            self.timers.resize(index + 1, IDLE);
        }
        let tick = self.ticks(deadline, true).clamp(self.tick, self.tick + SLOTS as u64 - 1);
        let slot = tick as usize % SLOTS;
        let next = self.heads[slot];
        self.timers[index] = Timer { previous: NONE, next, slot: slot as u32 };
        if let Some(next) = self.timers.get_mut(next as usize) {
            next.previous = key;
        }
        self.heads[slot] = key;
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.summary[slot / 4096] |= 1 << (slot / 64 % 64);
    }

    /// Cancels the timer of `key`, if it is set.
    pub(super) fn disarm(&mut self, key: u32) {
        let Some(timer) = self.timers.get_mut(key as usize) else { return };
        let Timer { previous, next, slot } = std::mem::replace(timer, IDLE);
        if slot == NONE {
            return;
        }
        let slot = slot as usize;
        match self.timers.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => self.heads[slot] = next,
        }
        if let Some(next) = self.timers.get_mut(next as usize) {
            next.previous = previous;
        }
        if self.heads[slot] == NONE {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
            if self.occupied[slot / 64] == 0 {
                self.summary[slot / 4096] &= !(1 << (slot / 64 % 64));
            }
        }
    }

    /// Takes out one key whose time has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let now_tick = self.ticks(now, false);
        match self.next_tick() {
            Some(tick) if tick <= now_tick => {
                self.tick = tick;
                let key = self.heads[tick as usize % SLOTS];
                self.disarm(key);
                Some(key)
            }
            Some(_) | None => {
                self.tick = self.tick.max(now_tick);
                None
            }
        }
    }

    /// When the next timer is due.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let tick = self.next_tick()?;
        Some(self.origin + TICK * u32::try_from(tick).unwrap_or(u32::MAX))
    }

    fn next_tick(&self) -> Option<u64> {
        let here = self.tick as usize % SLOTS;
        let slot = self.occupied_from(here).or_else(|| self.occupied_from(0))?;
        Some(self.tick + ((slot + SLOTS - here) % SLOTS) as u64)
    }

    /// The first occupied slot at or behind `from`, without wrapping.
    fn occupied_from(&self, from: usize) -> Option<usize> {
        let word = from / 64;
        let rest = self.occupied[word] & (u64::MAX << (from % 64));
        if rest != 0 {
            return Some(word * 64 + rest.trailing_zeros() as usize);
        }
        let next = word + 1;
        let word = (next / 64..self.summary.len()).find_map(|group| {
            let mask = if group == next / 64 { u64::MAX << (next % 64) } else { u64::MAX };
            let rest = self.summary[group] & mask;
            (rest != 0).then(|| group * 64 + rest.trailing_zeros() as usize)
        })?;
        Some(word * 64 + self.occupied[word].trailing_zeros() as usize)
    }

    fn ticks(&self, instant: Instant, up: bool) -> u64 {
        let nanos = instant.saturating_duration_since(self.origin).as_nanos();
        let ticks = if up { nanos.div_ceil(TICK.as_nanos()) } else { nanos / TICK.as_nanos() };
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_timer_is_due_at_its_deadline_and_not_before() {
        let start = Instant::now();
        let mut expiry = Expiry::new(start);
        expiry.arm(3, start + Duration::from_secs(600));
        assert_eq!(expiry.next_deadline(), Some(start + Duration::from_secs(600)));
        assert_eq!(expiry.pop_due(start + Duration::from_millis(599_999)), None);
        assert_eq!(expiry.pop_due(start + Duration::from_secs(600)), Some(3));
        assert_eq!(expiry.next_deadline(), None);
    }

    #[test]
    fn a_deadline_beyond_the_wheel_is_due_early_and_can_be_set_again() {
        let start = Instant::now();
        let deadline = start + Duration::from_secs(10_000);
        let mut expiry = Expiry::new(start);
        expiry.arm(0, deadline);
        let early = expiry.next_deadline().unwrap();
        assert!(early < deadline);
        assert_eq!(expiry.pop_due(early), Some(0));
        expiry.arm(0, deadline);
        assert!(expiry.next_deadline().unwrap() > early);
    }

    proptest! {
        #[test]
        fn the_wheel_agrees_with_a_sorted_map(
            steps in proptest::collection::vec((0u32..20, 0u64..4_000_000, any::<bool>()), 1..200),
        ) {
            let start = Instant::now();
            let (mut expiry, mut model, mut now) = (Expiry::new(start), BTreeMap::new(), start);
            for (key, millis, advance) in steps {
                if advance {
                    now += Duration::from_millis(millis / 10);
                    while let Some(key) = expiry.pop_due(now) {
                        let deadline: Instant = model.remove(&key).expect("popped once");
                        prop_assert!(deadline <= now);
                    }
                    let late = model.values().any(|deadline| *deadline + TICK <= now);
                    prop_assert!(!late);
                } else if millis % 5 == 0 {
                    expiry.disarm(key);
                    model.remove(&key);
                } else {
                    let deadline = now + Duration::from_millis(millis);
                    expiry.arm(key, deadline);
                    model.insert(key, deadline);
                }
                let earliest = model.values().min().copied();
                let next = expiry.next_deadline();
                prop_assert_eq!(earliest.is_some(), next.is_some());
                if let (Some(earliest), Some(next)) = (earliest, next) {
                    prop_assert!(next + TICK >= earliest && next <= earliest + TICK);
                }
            }
        }
    }
}
