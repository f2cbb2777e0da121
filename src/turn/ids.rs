//! Names of things inside the server, small enough for an epoll token or a word of the port table.

use crate::address::Family;

/// A worker: an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u8);

/// An allocation of one worker: a slot, and a generation that tells its successive users apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl AllocationId {
    /// A number for tables.
    pub fn pack(self) -> u64 {
        u64::from(self.generation) << SLOT_BITS | u64::from(self.slot)
    }
}

/// One of the two relayed addresses that an allocation can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayId {
    pub(super) allocation: AllocationId,
    pub(super) family: Family,
}

impl RelayId {
    /// Width of the packed form.
    pub const BITS: u32 = 1 + SLOT_BITS + GENERATION_BITS;

    pub(super) fn new(slot: u32, generation: u32, family: Family) -> Self {
        Self { allocation: AllocationId { slot, generation: generation & GENERATION_MASK }, family }
    }

    /// The form for tokens and tables; the bits above [`Self::BITS`] are zero.
    pub fn pack(self) -> u64 {
        let AllocationId { slot, generation } = self.allocation;
        let family = match self.family {
            Family::V4 => 0,
            Family::V6 => 1,
        };
        u64::from(generation) << (SLOT_BITS + 1) | u64::from(slot) << 1 | family
    }

    /// The allocation that it belongs to.
    pub fn allocation(self) -> AllocationId {
        self.allocation
    }

    /// The reverse of [`Self::pack`]; bits above [`Self::BITS`] are ignored.
    pub fn unpack(packed: u64) -> Self {
        let slot = (packed >> 1) as u32 & SLOT_MASK;
        let generation = (packed >> (SLOT_BITS + 1)) as u32 & GENERATION_MASK;
        Self::new(slot, generation, if packed & 1 == 0 { Family::V4 } else { Family::V6 })
    }

    /// A dense index: relay sockets of a worker can be kept in a vector.
    pub fn index(self) -> usize {
        (self.allocation.slot as usize) << 1 | usize::from(self.family == Family::V6)
    }
}

/// What a relayed address speaks to peers, as REQUESTED-TRANSPORT asks (RFC 8656 section 18.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayTransport {
    Udp,
    /// A TCP allocation (RFC 6062).
    Tcp,
}

/// CONNECTION-ID (RFC 6062 section 6.2.1): "uniquely identifies a peer data connection", on all workers, and nobody can
/// foresee it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerConnectionId(pub u32);

/// 16 million allocations of one worker.
const SLOT_BITS: u32 = 24;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
const GENERATION_BITS: u32 = 24;
pub(super) const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

/// The shell's own mark for the way back to a client, kept with the allocation and handed out with everything that goes
/// there: a listener socket or a stream, as the shell sees fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_reversible_and_within_its_bits() {
        for relay in [
            RelayId::new(0, 0, Family::V4),
            RelayId::new(1, 2, Family::V6),
            RelayId::new(SLOT_MASK, GENERATION_MASK, Family::V6),
        ] {
            assert_eq!(RelayId::unpack(relay.pack()), relay);
            assert_eq!(RelayId::unpack(relay.pack() | u64::MAX << RelayId::BITS), relay);
            assert!(relay.pack() < 1 << RelayId::BITS);
        }
    }
}
