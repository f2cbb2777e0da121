//! Sockets of reserved ports, until the Allocate that redeems them, on whatever worker it arrives.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::address::RelayedAddr;
use crate::turn::WorkerId;

/// Shared by all workers.
#[derive(Clone, Debug, Default)]
pub struct HeldSockets {
    by_address: Arc<Mutex<HashMap<RelayedAddr, Held>>>,
}

#[derive(Debug)]
struct Held {
    socket: UdpSocket,
    /// The worker that lets the reservation expire.
    worker: WorkerId,
}

impl HeldSockets {
    pub(super) fn hold(&self, worker: WorkerId, address: RelayedAddr, socket: UdpSocket) {
        self.lock().insert(address, Held { socket, worker });
    }

    pub(super) fn take(&self, address: RelayedAddr) -> Option<UdpSocket> {
        self.lock().remove(&address).map(|held| held.socket)
    }

    /// Closes what a worker has held that has failed.
    pub(super) fn forget_worker(&self, worker: WorkerId) {
        self.lock().retain(|_, held| held.worker != worker);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RelayedAddr, Held>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
