//! Where allocations that may move live, for all workers: a client that moves arrives at whatever worker the kernel
//! chooses for its new 5-tuple.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use super::super::ids::{AllocationId, WorkerId};
use super::ticket::Handle;
use crate::address::FiveTuple;

/// An allocation never changes its worker; its clients come to it.
#[derive(Debug, Default)]
pub struct Directory {
    /// One entry for each ticket: an allocation has a good one and the one before.
    homes: Mutex<HashMap<Handle, Home>>,
    /// The 5-tuples of datagrams that allocations have moved to: at most two for each of them.
    clients: RwLock<HashMap<FiveTuple, WorkerId>>,
    /// How many there are of them, so that nobody looks while there are none.
    moved: AtomicUsize,
}

/// Where an allocation lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) worker: WorkerId,
    pub(super) allocation: AllocationId,
}

impl Directory {
    pub(super) fn settle(&self, handle: Handle, home: Home) {
        self.homes().insert(handle, home);
    }

    pub(super) fn home(&self, handle: Handle) -> Option<Home> {
        self.homes().get(&handle).copied()
    }

    pub(super) fn leave(&self, handle: Handle) {
        self.homes().remove(&handle);
    }

    /// Makes a 5-tuple the worker's; false when it is another one's.
    pub(super) fn claim(&self, client: FiveTuple, worker: WorkerId) -> bool {
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        let is_ours = *clients.entry(client).or_insert(worker) == worker;
        self.moved.store(clients.len(), Ordering::Release);
        is_ours
    }

    /// Gives a 5-tuple up, if it is the worker's.
    pub(super) fn release(&self, client: &FiveTuple, worker: WorkerId) {
        if self.moved.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        if clients.get(client) == Some(&worker) {
            clients.remove(client);
        }
        self.moved.store(clients.len(), Ordering::Release);
    }

    /// Whether nobody has moved. Hot.
    pub(super) fn is_still(&self) -> bool {
        self.moved.load(Ordering::Relaxed) == 0
    }

    /// The worker that a 5-tuple has moved to.
    pub(super) fn worker_of(&self, client: &FiveTuple) -> Option<WorkerId> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).get(client).copied()
    }

    /// Forgets the tickets and 5-tuples of a worker.
    pub(in super::super) fn forget_worker(&self, worker: WorkerId) {
        self.homes().retain(|_, home| home.worker != worker);
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, of| *of != worker);
        self.moved.store(clients.len(), Ordering::Release);
    }

    /// How many tickets are known, and how many 5-tuples have moved.
    pub fn usage(&self) -> (usize, usize) {
        (self.homes().len(), self.moved.load(Ordering::Acquire))
    }

    fn homes(&self) -> MutexGuard<'_, HashMap<Handle, Home>> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddr, ServerAddr, Transport};

    #[test]
    fn a_five_tuple_is_of_one_worker_until_that_one_gives_it_up() {
        let directory = Directory::default();
        let client = FiveTuple {
            transport: Transport::Udp,
            client: ClientAddr::new("198.51.100.1:1000".parse().unwrap()),
            server: ServerAddr::new("192.0.2.1:3478".parse().unwrap()),
        };
        assert!(directory.claim(client, WorkerId(1)) && directory.claim(client, WorkerId(1)));
        assert!(!directory.claim(client, WorkerId(2)));
        directory.release(&client, WorkerId(2));
        assert_eq!(directory.worker_of(&client), Some(WorkerId(1)));
        directory.release(&client, WorkerId(1));
        assert_eq!((directory.worker_of(&client), directory.usage()), (None, (0, 0)));
    }
}
