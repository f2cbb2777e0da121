//! Allocations that a client has just released: a retransmission of that Refresh gets the same success.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::address::FiveTuple;
use crate::stun::TransactionId;

/// RFC 8489 section 6.3.1: transactions are remembered "in the last 40 seconds".
const MEMORY: Duration = Duration::from_secs(40);
/// Releases remembered at most; at 72 bytes each, 300 KiB a worker. What is forgotten early is answered 437, which means
/// the same to the client (RFC 8656 section 8.2).
const MEMORY_MAX: usize = 4096;

/// The last releases of a worker.
#[derive(Debug)]
pub(super) struct Released {
    transactions: HashMap<FiveTuple, TransactionId, FixedState>,
    order: VecDeque<(Instant, FiveTuple)>,
}

impl Released {
    pub(super) fn new(hasher: FixedState) -> Self {
        Self { transactions: HashMap::with_hasher(hasher), order: VecDeque::new() }
    }

    /// Remembers the Refresh that released an allocation.
    pub(super) fn remember(&mut self, client: FiveTuple, transaction: TransactionId, now: Instant) {
        if self.order.len() >= MEMORY_MAX
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.transactions.remove(&oldest);
        }
        self.transactions.insert(client, transaction);
        self.order.push_back((now + MEMORY, client));
    }

    /// Whether this transaction has just released the allocation of this 5-tuple.
    pub(super) fn knows(&self, client: &FiveTuple, transaction: TransactionId) -> bool {
        self.transactions.get(client) == Some(&transaction)
    }

    /// Forgets what is old.
    pub(super) fn forget(&mut self, now: Instant) {
        while let Some((expires_at, client)) = self.order.front()
            && *expires_at <= now
        {
            self.transactions.remove(client);
            self.order.pop_front();
        }
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.order.front().map(|(expires_at, _)| *expires_at)
    }
}
