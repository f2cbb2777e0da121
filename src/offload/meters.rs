//! What allocations may carry: token buckets that programs and sockets take from alike.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::mapped::{Mapped, Shared};

/// Which of an allocation's buckets the packets of a flow take from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeterId(u32);

impl MeterId {
    /// `meter` of a flow.
    pub(super) fn number(self) -> u32 {
        self.0 + 1
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Meters {
    places: Mapped<Place>,
    free: Mutex<Vec<u32>>,
}

/// `struct meter`.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Place {
    full_at: [[AtomicU64; 2]; 2],
    packets_per_second: AtomicU32,
    bytes_per_second: AtomicU32,
}

// SAFETY: `struct meter`, of atomics alone.
unsafe impl Shared for Place {}

impl Meters {
    pub(super) fn new(places: Mapped<Place>) -> Arc<Self> {
        let free = Mutex::new((0..places.len()).rev().collect());
        Arc::new(Self { places, free })
    }

    /// Full buckets without a limit; `None` when there are none left.
    pub(super) fn open(self: &Arc<Self>) -> Option<Meter> {
        let index = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        let meter = Meter { meters: Arc::clone(self), index };
        meter.set_rate(0, 0);
        meter.full_at().iter().flatten().for_each(|full_at| full_at.store(0, Ordering::Relaxed));
        Some(meter)
    }
}

/// An allocation's buckets; others may have them afterwards.
#[derive(Debug)]
pub struct Meter {
    meters: Arc<Meters>,
    index: u32,
}

impl Meter {
    pub fn id(&self) -> MeterId {
        MeterId(self.index)
    }

    /// The instants at which buckets are full again, in nanoseconds of CLOCK_MONOTONIC: packets and bytes to peers, packets
    /// and bytes to the client.
    pub fn full_at(&self) -> &[[AtomicU64; 2]; 2] {
        &self.meters.places.of(self.index).full_at
    }

    /// Has the programs let through so much from now on; 0 is no limit.
    pub fn set_rate(&self, packets_per_second: u32, bytes_per_second: u32) {
        let place = self.meters.places.of(self.index);
        place.packets_per_second.store(packets_per_second, Ordering::Relaxed);
        place.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.meters.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_programs() {
        assert_eq!(size_of::<Place>(), 64);
        assert_eq!(std::mem::offset_of!(Place, packets_per_second), 32);
    }
}
