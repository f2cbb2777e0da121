//! Which worker has a connection to a peer, for all workers: the client's connection for it may arrive at any of them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::RngExt;
use rand::rngs::StdRng;

use super::super::ids::{AllocationId, PeerConnectionId, WorkerId};

/// One entry for each connection to a peer, from its Connect or its arrival to its end: as many as allocations may have.
#[derive(Debug, Default)]
pub struct Directory {
    homes: Mutex<HashMap<PeerConnectionId, Home>>,
}

/// Where a connection lives: with its allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Home {
    pub(in super::super) worker: WorkerId,
    pub(in super::super) allocation: AllocationId,
}

impl Directory {
    /// Takes a number that no connection has.
    pub(super) fn claim(&self, home: Home, rng: &mut StdRng) -> PeerConnectionId {
        let mut homes = self.homes();
        loop {
            let connection = PeerConnectionId(rng.random());
            if let std::collections::hash_map::Entry::Vacant(vacant) = homes.entry(connection) {
                vacant.insert(home);
                return connection;
            }
        }
    }

    pub(in super::super) fn home(&self, connection: PeerConnectionId) -> Option<Home> {
        self.homes().get(&connection).copied()
    }

    pub(super) fn leave(&self, connection: PeerConnectionId) {
        self.homes().remove(&connection);
    }

    /// Forgets the connections of a worker.
    pub(in super::super) fn forget_worker(&self, worker: WorkerId) {
        self.homes().retain(|_, home| home.worker != worker);
    }

    /// How many connections there are.
    pub fn usage(&self) -> usize {
        self.homes().len()
    }

    fn homes(&self) -> MutexGuard<'_, HashMap<PeerConnectionId, Home>> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
