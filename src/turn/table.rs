//! The allocations of one worker, by slot and by 5-tuple. Hot.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::allocation::Allocation;
use super::ids::{AllocationId, GENERATION_MASK};
use crate::address::FiveTuple;

/// A slab of allocations and an index of their 5-tuples.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_client: HashMap<FiveTuple, AllocationId, FixedState>,
    /// Of slots that are used for the first time.
    first_generation: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    allocation: Option<Box<Allocation>>,
}

impl Table {
    /// Slots begin at a generation that is taken from `first_generation`.
    pub(super) fn new(hasher: FixedState, first_generation: u32) -> Self {
        let first_generation = first_generation & GENERATION_MASK;
        Self { slots: Vec::new(), free: Vec::new(), by_client: HashMap::with_hasher(hasher), first_generation }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn find(&self, client: &FiveTuple) -> Option<AllocationId> {
        self.by_client.get(client).copied()
    }

    pub(super) fn get(&self, id: AllocationId) -> Option<&Allocation> {
        self.slots.get(id.slot as usize).filter(|slot| slot.generation == id.generation)?.allocation.as_deref()
    }

    pub(super) fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        slot.allocation.as_deref_mut()
    }

    /// The allocation that a timer's key names.
    pub(super) fn by_slot(&self, slot: u32) -> Option<AllocationId> {
        let entry = self.slots.get(slot as usize).filter(|entry| entry.allocation.is_some())?;
        Some(AllocationId { slot, generation: entry.generation })
    }

    /// How many slots there are, free ones included.
    pub(super) fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Adds an allocation whose 5-tuple is not in use.
    pub(super) fn insert(&mut self, allocation: Allocation) -> AllocationId {
        let client = allocation.client;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: self.first_generation, allocation: None });
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.allocation = Some(Box::new(allocation));
        let id = AllocationId { slot, generation: entry.generation };
        self.by_client.insert(client, id);
        id
    }

    pub(super) fn remove(&mut self, id: AllocationId) -> Option<Allocation> {
        let entry = self.slots.get_mut(id.slot as usize).filter(|entry| entry.generation == id.generation)?;
        let allocation = entry.allocation.take()?;
        entry.generation = (entry.generation + 1) & GENERATION_MASK;
        self.free.push(id.slot);
        self.unalias(&allocation.client, id);
        Some(*allocation)
    }

    /// Makes an allocation be found by one more 5-tuple, which is not in use.
    pub(super) fn alias(&mut self, client: FiveTuple, id: AllocationId) {
        self.by_client.insert(client, id);
    }

    /// Makes an allocation be found by a 5-tuple no more.
    pub(super) fn unalias(&mut self, client: &FiveTuple, id: AllocationId) {
        if self.by_client.get(client) == Some(&id) {
            self.by_client.remove(client);
        }
    }

    /// Every allocation, by slot.
    pub(super) fn ids(&self) -> Vec<AllocationId> {
        (0..self.slots.len() as u32).filter_map(|slot| self.by_slot(slot)).collect()
    }
}
