//! The connections of TCP allocations with their peers (RFC 6062), as the model has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ferryd::address::FiveTuple;

use super::{Allocation, Model, TIMER, TO_CLIENT, TO_PEERS, secs_const};

/// A connection that is being made, or that nobody binds, ends after this.
const WAIT: Duration = secs_const(30);

/// The connections of an allocation by their numbers.
pub(super) type Connections = BTreeMap<u32, Connection>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Connecting,
    Pending,
    Bound,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    pub(crate) stage: Stage,
    expires_at: Duration,
}

impl Connection {
    fn waits(peer: SocketAddr, stage: Stage, now: Duration) -> Self {
        Self { peer, stage, expires_at: now + WAIT }
    }

    /// Its time is over, and the server's timer may have seen that or not.
    fn is_over(&self, now: Duration) -> bool {
        self.stage != Stage::Bound && now >= self.expires_at
    }
}

impl Model {
    /// What a Connect may be answered with; success is that the connection is being made.
    pub(crate) fn connects(&self, now: Duration, client: &FiveTuple, peer: SocketAddr) -> Vec<Result<(), u16>> {
        let connections = self.live(now, client).and_then(|it| it.connections.as_ref());
        let Some(connections) = connections else { return vec![Err(437)] };
        let unless_there = if self.is_forbidden(peer) { Err(403) } else { Ok(()) };
        match connections.values().find(|it| it.peer == peer) {
            Some(it) if it.is_over(now) => vec![Err(446), unless_there],
            Some(_) => vec![Err(446)],
            None => vec![unless_there],
        }
    }

    /// A connection is being made.
    pub(crate) fn connecting(&mut self, now: Duration, client: &FiveTuple, id: u32, peer: SocketAddr) {
        self.insert(now, client, id, Connection::waits(peer, Stage::Connecting, now));
    }

    /// A peer has taken or refused a connection that was being made.
    pub(crate) fn answered(&mut self, now: Duration, id: u32, accepts: bool) {
        let connections = self.connections_with(id);
        let peer = connections.remove(&id).expect("it has it").peer;
        if accepts {
            connections.insert(id, Connection::waits(peer, Stage::Pending, now));
        }
    }

    /// Whether a peer's connection to a relayed address is kept.
    pub(crate) fn accepts(&self, now: Duration, peer: SocketAddr, relay: SocketAddr) -> bool {
        self.owners(now, relay).any(|it| it.permits(now, peer.ip()))
    }

    /// A peer has connected, and any connection with it that there was before has ended.
    pub(crate) fn accepted(&mut self, now: Duration, client: &FiveTuple, id: u32, peer: SocketAddr) {
        self.insert(now, client, id, Connection::waits(peer, Stage::Pending, now));
    }

    fn insert(&mut self, now: Duration, client: &FiveTuple, id: u32, connection: Connection) {
        let live = self.live_mut(now, client).expect("an allocation");
        let connections = live.connections.as_mut().expect("an allocation for TCP");
        connections.retain(|_, it| it.peer != connection.peer);
        assert!(connections.insert(id, connection).is_none(), "two connections with one number");
    }

    /// What a ConnectionBind may be answered with.
    pub(crate) fn binds(&self, now: Duration, id: u32, user: &str) -> Vec<Result<(), u16>> {
        let has = |it: &&Allocation| it.connections.as_ref().is_some_and(|connections| connections.contains_key(&id));
        let Some(allocation) = self.allocations.iter().find(has) else { return vec![Err(400)] };
        let connection = allocation.connections.as_ref().map(|connections| connections[&id]).expect("found above");
        let is_over = connection.is_over(now) || now >= allocation.expires_at;
        match (allocation.user == user, is_over) {
            (false, true) => vec![Err(441), Err(400)],
            (false, false) => vec![Err(441)],
            (true, false) if connection.stage == Stage::Pending => vec![Ok(())],
            (true, _) => vec![Err(400)],
        }
    }

    /// A client's stream is bound to a connection.
    pub(crate) fn bound(&mut self, id: u32) {
        self.connections_with(id).get_mut(&id).expect("it has it").stage = Stage::Bound;
    }

    /// Bytes have passed over a connection.
    pub(crate) fn passed(&mut self, id: u32, to_peer: u64, to_client: u64) {
        let has = |it: &&mut Allocation| it.connections.as_ref().is_some_and(|it| it.contains_key(&id));
        let allocation = self.allocations.iter_mut().find(has).expect("an allocation");
        allocation.traffic[TO_PEERS + 1] += to_peer;
        allocation.traffic[TO_CLIENT + 1] += to_client;
    }

    /// A connection has ended.
    pub(crate) fn closed(&mut self, id: u32) {
        self.connections_with(id).remove(&id);
    }

    /// The connections of everybody, and whether the server may have ended each already.
    pub(crate) fn connections(&mut self, now: Duration) -> BTreeMap<u32, (Connection, bool)> {
        let mut all = BTreeMap::new();
        for allocation in &mut self.allocations {
            let is_dying = now >= allocation.expires_at;
            let Some(connections) = &mut allocation.connections else { continue };
            connections.retain(|_, it| !it.is_over(now) || now < it.expires_at + TIMER);
            all.extend(connections.iter().map(|(id, it)| (*id, (*it, is_dying || it.is_over(now)))));
        }
        all
    }

    /// The connections of the allocation that has this one.
    fn connections_with(&mut self, id: u32) -> &mut Connections {
        let mut all = self.allocations.iter_mut().filter_map(|it| it.connections.as_mut());
        all.find(|it| it.contains_key(&id)).expect("a connection")
    }
}
