//! Sockets of reserved ports, until the Allocate that redeems them, on whatever worker it arrives.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::address::RelayedAddr;

/// Shared by all workers.
#[derive(Clone, Debug, Default)]
pub struct HeldSockets {
    by_address: Arc<Mutex<HashMap<RelayedAddr, UdpSocket>>>,
}

impl HeldSockets {
    pub(super) fn hold(&self, address: RelayedAddr, socket: UdpSocket) {
        self.lock().insert(address, socket);
    }

    pub(super) fn take(&self, address: RelayedAddr) -> Option<UdpSocket> {
        self.lock().remove(&address)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RelayedAddr, UdpSocket>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
