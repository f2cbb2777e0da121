//! How many relayed addresses there are, for the metrics: counted as they come and go, so that nobody has to look.

use super::allocation::Allocation;
use crate::address::{Family, Transport};

/// Live relayed addresses of one worker, by the client's transport and their own family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live([[u64; 2]; Transport::ALL.len()]);

impl Live {
    pub fn get(&self, transport: Transport, family: Family) -> u64 {
        self.0[transport as usize][family as usize]
    }

    pub(super) fn enter(&mut self, transport: Transport, family: Family) {
        self.0[transport as usize][family as usize] += 1;
    }

    pub(super) fn leave(&mut self, transport: Transport, family: Family) {
        let count = &mut self.0[transport as usize][family as usize];
        *count = count.saturating_sub(1);
    }

    /// All of an allocation that is past its opening.
    pub(super) fn enter_all(&mut self, allocation: &Allocation) {
        for relay in allocation.relays().iter() {
            self.enter(allocation.client.transport, relay.address.family());
        }
    }

    /// All of an allocation that ends; one that was never told to its client was never counted.
    pub(super) fn leave_all(&mut self, allocation: &Allocation, transport: Transport) {
        for relay in allocation.relays().iter().filter(|_| allocation.opening.is_none()) {
            self.leave(transport, relay.address.family());
        }
    }
}
