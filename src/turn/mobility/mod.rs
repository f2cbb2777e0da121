//! Mobility (RFC 8016): a client comes back on another 5-tuple and finds its allocation by a ticket.
//!
//! The allocation stays with its worker. Whatever arrives for it at another one is handed over: [`Forward::Elsewhere`].

mod directory;
mod ticket;

use std::time::{Duration, Instant};

use rand::RngExt;

pub use directory::Directory;

use self::directory::Home;
use self::ticket::{Handle, Ticket};
use super::allocation::Allocation;
use super::effect::{Effect, Forward};
use super::ids::{AllocationId, Route, WorkerId};
use super::server::Server;
use crate::address::FiveTuple;
use crate::stun::{AttributeType, Class, ErrorCode, Message, Method, TransactionId};

/// RFC 8016 section 3.2.2: "a server must retain the old STUN MOBILITY-TICKET attribute for a period of at least 30
/// seconds"; RFC 8489 section 6.3.1 has transactions remembered for 40.
const RETRANSMISSION_MEMORY: Duration = Duration::from_secs(40);

/// What an allocation with a ticket has besides.
#[derive(Debug)]
pub(super) struct Mobility {
    /// Of the ticket that is good.
    handle: Handle,
    ticket: Ticket,
    /// The 5-tuple that the client has announced, until it is used.
    next: Option<Path>,
    /// The client's connection is gone: only a ticket leads here.
    away: bool,
    last_move: Option<Move>,
}

/// A way to the client.
#[derive(Clone, Copy, Debug)]
struct Path {
    client: FiveTuple,
    route: Route,
}

/// The last Refresh that moved the allocation.
#[derive(Clone, Copy, Debug)]
struct Move {
    /// Of the ticket that it had.
    handle: Handle,
    client: FiveTuple,
    transaction: TransactionId,
    lifetime: Duration,
    forgotten_at: Instant,
}

/// What a ticket in a Refresh is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// The allocation moves.
    Moves(AllocationId),
    /// It has moved by this very request, with this lifetime.
    HasMoved(AllocationId, Duration),
}

impl Mobility {
    /// The ticket that is good.
    pub(super) fn ticket(&self) -> &Ticket {
        &self.ticket
    }
}

impl Allocation {
    /// Whether the client's connection is gone, so that nothing can be delivered.
    pub(super) fn is_away(&self) -> bool {
        self.mobility.as_ref().is_some_and(|mobility| mobility.away)
    }

    /// Whether a 5-tuple is one that the client has announced and not used yet. Hot.
    fn is_announced(&self, client: &FiveTuple) -> bool {
        let next = self.mobility.as_ref().and_then(|mobility| mobility.next);
        next.is_some_and(|next| next.client == *client)
    }
}

impl Server {
    /// The worker that everything from a 5-tuple is to be handed to.
    pub(super) fn elsewhere(&self, client: &FiveTuple) -> Option<WorkerId> {
        if self.shared.mobility.is_still() || self.table.find(client).is_some() {
            return None;
        }
        self.shared.mobility.worker_of(client).filter(|worker| *worker != self.worker)
    }

    /// Hands a Refresh over to the worker of the allocation that its ticket names, to be judged there.
    pub(super) fn ticket_elsewhere(&self, client: &FiveTuple, message: &Message<'_>) -> Option<WorkerId> {
        if !self.settings.mobility || (message.class(), message.method()) != (Class::Request, Method::Refresh) {
            return None;
        }
        let ticket = message.attribute(AttributeType::MOBILITY_TICKET)?;
        let home = self.shared.mobility.home(self.open_ticket(ticket.value)?)?;
        (home.worker != self.worker && self.table.find(client).is_none()).then_some(home.worker)
    }

    /// The allocation that a request is about, by its ticket or its 5-tuple.
    pub(super) fn subject(&self, client: &FiveTuple, message: &Message<'_>) -> Option<AllocationId> {
        let ticket = message.attribute(AttributeType::MOBILITY_TICKET);
        let ticket = ticket.filter(|_| message.method() == Method::Refresh && self.settings.mobility);
        let by_ticket = ticket.and_then(|ticket| self.at_home(self.open_ticket(ticket.value)?));
        by_ticket.or_else(|| self.table.find(client))
    }

    fn open_ticket(&self, value: &[u8]) -> Option<Handle> {
        ticket::open(value, self.authenticator.ticket_key())
    }

    /// The allocation behind a handle, if it lives on this worker.
    fn at_home(&self, handle: Handle) -> Option<AllocationId> {
        let home = self.shared.mobility.home(handle).filter(|home| home.worker == self.worker)?;
        Some(home.allocation)
    }

    /// Gives an allocation that has just been made its first ticket.
    pub(super) fn issue_ticket(&mut self, id: AllocationId) {
        let handle = self.rng.random();
        let ticket = ticket::seal(handle, self.authenticator.ticket_key());
        let Some(allocation) = self.table.get_mut(id) else { return };
        let mobility = Mobility { handle, ticket, next: None, away: false, last_move: None };
        allocation.mobility = Some(Box::new(mobility));
        self.shared.mobility.settle(handle, Home { worker: self.worker, allocation: id });
    }

    /// Judges the ticket of a Refresh, in the order of RFC 8016 section 3.2.2; whose it is remains to be judged.
    pub(super) fn admit(
        &self,
        client: &FiveTuple,
        transaction: TransactionId,
        ticket: &[u8],
        now: Instant,
    ) -> Result<Admission, ErrorCode> {
        if !self.settings.mobility {
            return Err(ErrorCode::MobilityForbidden);
        }
        // "If the ticket is invalid, then the server MUST reject the request with a 400 (Bad Request) error."
        let handle = self.open_ticket(ticket).ok_or(ErrorCode::BadRequest)?;
        // "If this 5-tuple obtained does not identify an existing allocation, then the server MUST reject the request
        // with a 437 (Allocation Mismatch) error."
        let id = self.at_home(handle).ok_or(ErrorCode::AllocationMismatch)?;
        let allocation = self.table.get(id).filter(|allocation| allocation.lives(now));
        let allocation = allocation.ok_or(ErrorCode::AllocationMismatch)?;
        let mobility = allocation.mobility.as_ref().ok_or(ErrorCode::AllocationMismatch)?;
        if handle != mobility.handle {
            // "The old ticket can only be used for the purposes of retransmission."
            let repeated = mobility.last_move.filter(|last| {
                (last.handle, last.client, last.transaction) == (handle, *client, transaction)
                    && now < last.forgotten_at
            });
            return match repeated {
                Some(last) => Ok(Admission::HasMoved(id, last.lifetime)),
                None => Err(ErrorCode::AllocationMismatch),
            };
        }
        // "If the source IP address and port of the Refresh request [..] is the same as the stored 5-tuple allocation,
        // then the TURN server rejects the request with a 400 (Bad Request) error."
        match self.table.find(client) {
            Some(other) if other == id => Err(ErrorCode::BadRequest),
            Some(_) => Err(ErrorCode::AllocationMismatch),
            None => Ok(Admission::Moves(id)),
        }
    }

    /// Takes a 5-tuple for an allocation of this worker; false when another worker's allocation has it.
    pub(super) fn claim_client(&self, client: &FiveTuple) -> bool {
        client.transport.is_connected() || self.shared.mobility.claim(*client, self.worker)
    }

    /// Adds a 5-tuple that has been claimed to an allocation, and makes a new ticket.
    ///
    /// "The server then updates its state data with the new client IP address and port but does not discard the old
    /// 5-tuple from its state data."
    pub(super) fn announce(
        &mut self,
        id: AllocationId,
        (client, route): (FiveTuple, Route),
        transaction: TransactionId,
        lifetime: Duration,
        now: Instant,
    ) {
        let new = self.rng.random();
        let mobility = self.table.get_mut(id).and_then(|allocation| allocation.mobility.as_mut());
        let Some(mobility) = mobility else {
            // The request has released the allocation.
            return self.shared.mobility.release(&client, self.worker);
        };
        mobility.ticket = ticket::seal(new, self.authenticator.ticket_key());
        let handle = std::mem::replace(&mut mobility.handle, new);
        let forgotten_at = now + RETRANSMISSION_MEMORY;
        let last = mobility.last_move.replace(Move { handle, client, transaction, lifetime, forgotten_at });
        if let Some(last) = last {
            self.shared.mobility.leave(last.handle);
        }
        self.shared.mobility.settle(new, Home { worker: self.worker, allocation: id });
        let (given_up, away) = (mobility.next.replace(Path { client, route }), mobility.away);
        if let Some(given_up) = given_up {
            self.discard_client(&given_up.client, id);
        }
        self.table.alias(client, id);
        if away {
            self.move_over(id);
        }
    }

    /// Data, or what prepares for data, has come from a 5-tuple: if it is the announced one, the allocation moves over. Hot.
    ///
    /// RFC 8016 section 3.2.2 names data alone. A client that permits a peer from its new address waits for data there,
    /// and where its old one is gone it would hear nothing before it had spoken: coturn's client goes about it so.
    pub(super) fn client_speaks(&mut self, id: AllocationId, client: &FiveTuple) {
        if self.table.get(id).is_some_and(|allocation| allocation.is_announced(client)) {
            self.move_over(id);
        }
    }

    /// Says that a client's datagrams come another way now: what goes to it takes that one.
    pub fn handle_rerouted(&mut self, client: &FiveTuple, route: Route) {
        let Some(allocation) = self.table.find(client).and_then(|id| self.table.get_mut(id)) else { return };
        if allocation.client == *client {
            allocation.route = route;
        } else if let Some(next) = allocation.mobility.as_mut().and_then(|mobility| mobility.next.as_mut())
            && next.client == *client
        {
            next.route = route;
        }
    }

    /// "After receiving any of those messages, a TURN server discards the old ticket and the old 5-tuple associated
    /// with the old ticket from its state data."
    fn move_over(&mut self, id: AllocationId) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        let Some(mobility) = allocation.mobility.as_mut() else { return };
        let Some(Path { client, route }) = mobility.next.take() else { return };
        let was_away = std::mem::take(&mut mobility.away);
        let from = std::mem::replace(&mut allocation.client, client);
        allocation.route = route;
        self.live.leave_all(allocation, from.transport);
        self.live.enter_all(allocation);
        if !was_away {
            self.discard_client(&from, id);
        }
        self.effects.push_back(Effect::ClientMoved { allocation: id, from, to: client, route });
    }

    /// A connection has closed: the allocation goes on with the other 5-tuple, or waits for its client's ticket until
    /// it expires.
    pub(super) fn client_departs(&mut self, id: AllocationId, client: &FiveTuple) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        let announced = allocation.is_announced(client);
        let Some(mobility) = allocation.mobility.as_mut() else { return };
        if announced {
            mobility.next = None;
            self.discard_client(client, id);
        } else if mobility.next.is_some() {
            self.move_over(id);
        } else {
            mobility.away = true;
            self.discard_client(client, id);
        }
    }

    fn discard_client(&mut self, client: &FiveTuple, id: AllocationId) {
        self.table.unalias(client, id);
        self.shared.mobility.release(client, self.worker);
    }

    /// Gives up what an allocation that has ended had in the tables.
    pub(super) fn end_mobility(&mut self, id: AllocationId, allocation: &Allocation) {
        let Some(mobility) = &allocation.mobility else { return };
        for handle in [Some(mobility.handle), mobility.last_move.map(|last| last.handle)].into_iter().flatten() {
            self.shared.mobility.leave(handle);
        }
        if !mobility.away {
            self.discard_client(&allocation.client, id);
        }
        if let Some(next) = mobility.next {
            self.discard_client(&next.client, id);
        }
    }

    /// What the shell does with a message that is another worker's.
    pub(super) fn hand_over(worker: WorkerId, client: &FiveTuple, route: Route, len: usize) -> Forward {
        Forward::Elsewhere { worker, client: *client, route, message: 0..len }
    }
}
