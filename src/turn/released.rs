//! Relayed addresses that a client has just released: a retransmission of that Refresh gets the same success.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::address::FiveTuple;
use crate::auth::Credentials;
use crate::stun::TransactionId;

/// RFC 8489 section 6.3.1: transactions are remembered "in the last 40 seconds".
const MEMORY: Duration = Duration::from_secs(40);
/// Releases remembered at most; at 380 bytes each, 1.5 MiB a worker. What is forgotten early is answered 437, which means
/// the same to the client (RFC 8656 section 8.2).
const MEMORY_MAX: usize = 4096;

/// The last releases of a worker.
#[derive(Debug)]
pub(super) struct Released {
    transactions: HashMap<(FiveTuple, TransactionId), Credentials, FixedState>,
    /// The Allocates that had made what was released last, and until when they are remembered.
    allocates: HashMap<FiveTuple, (TransactionId, Instant), FixedState>,
    order: VecDeque<(Instant, FiveTuple, TransactionId)>,
}

impl Released {
    pub(super) fn new(hasher: FixedState) -> Self {
        let (transactions, allocates) = (HashMap::with_hasher(hasher.clone()), HashMap::with_hasher(hasher));
        Self { transactions, allocates, order: VecDeque::new() }
    }

    /// Remembers the Refresh that released an allocation, or the half of a dual one.
    pub(super) fn remember(
        &mut self,
        client: FiveTuple,
        transaction: TransactionId,
        credentials: Credentials,
        now: Instant,
    ) {
        if self.order.len() >= MEMORY_MAX {
            self.forget_first();
        }
        if self.transactions.insert((client, transaction), credentials).is_none() {
            self.order.push_back((now + MEMORY, client, transaction));
        }
    }

    /// Remembers the Allocate that had made what the Refresh has released, the last of it.
    pub(super) fn remember_allocate(&mut self, client: FiveTuple, transaction: TransactionId, now: Instant) {
        self.allocates.insert(client, (transaction, now + MEMORY));
    }

    /// Whether this Allocate is a late duplicate of one whose allocation has just been released.
    pub(super) fn has_been(&self, client: &FiveTuple, transaction: TransactionId, now: Instant) -> bool {
        self.allocates.get(client).is_some_and(|(allocate, until)| *allocate == transaction && now < *until)
    }

    /// Whether this transaction has just released something on this 5-tuple.
    pub(super) fn knows(&self, client: &FiveTuple, transaction: TransactionId) -> bool {
        self.transactions.contains_key(&(*client, transaction))
    }

    /// The credentials of that release, with which its retransmission proves itself though they may have expired.
    pub(super) fn credentials(&self, client: &FiveTuple, transaction: TransactionId) -> Option<&Credentials> {
        self.transactions.get(&(*client, transaction))
    }

    /// Forgets what is old.
    pub(super) fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(expires_at, ..)| *expires_at <= now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some((expires_at, client, transaction)) = self.order.pop_front() else { return };
        self.transactions.remove(&(client, transaction));
        if self.allocates.get(&client).is_some_and(|(_, until)| *until <= expires_at) {
            self.allocates.remove(&client);
        }
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.order.front().map(|(expires_at, ..)| *expires_at)
    }
}
