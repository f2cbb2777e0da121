//! The connections of TCP allocations (RFC 6062): from a Connect request, or from a peer's own connection, to the
//! ConnectionBind that a client's stream is bound to it by, and to its end.
//!
//! Sockets and bytes are the shell's. A *peer data connection* belongs to its allocation and stays with that one's
//! worker; the *client data connection* comes to it: [`Forward::Elsewhere`](super::Forward::Elsewhere).

mod directory;

use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use rand::RngExt;

pub use directory::Directory;
pub(super) use directory::Home;

use super::allocation::Allocation;
use super::effect::{Effect, EndReason};
use super::ids::{AllocationId, PeerConnectionId, RelayId, WorkerId};
use super::meter::Direction;
use super::outcome::{DropReason, Outcome};
use super::peer_policy::{PermittedPeer, Reach};
use super::reply::Envelope;
use super::server::{Now, Server};
use crate::address::{Family, FiveTuple, PeerAddr};
use crate::stun::{AttributeType, Builder, Class, ErrorCode, Message, Method, TransactionId};

/// RFC 6062 section 5.2: "The timeout value MUST be at least 30 seconds."
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// RFC 6062 sections 5.2 and 5.3: "If no ConnectionBind request associated with this peer data connection is received
/// after 30 seconds, the peer data connection MUST be closed."
const BIND_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections of one allocation that are being made or wait for their ConnectionBind. A client binds within a round
/// trip or two; what waits holds a descriptor and the kernel's buffer for half a minute.
const PENDING_MAX: usize = 16;
/// The pause between peers' connections that a client is told of, whose share of one second may come at once: a peer that
/// connects and resets in a loop gets 50 indications a second out of this server, some 2 kB, and no more.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(20);
const ATTEMPTS_AT_ONCE: Duration = Duration::from_secs(1);

/// The peer data connections of one TCP allocation, at most one for each peer address and port.
#[derive(Debug)]
pub(super) struct PeerConnections {
    by_id: HashMap<PeerConnectionId, PeerConnection, FixedState>,
    by_peer: HashMap<PeerAddr, PeerConnectionId, FixedState>,
    /// When as many peers may connect at once as ever.
    attempts_full_at: Option<Instant>,
}

/// How many bytes may pass over a bound connection now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRoom {
    pub to_peer: u64,
    pub to_client: u64,
}

#[derive(Debug)]
struct PeerConnection {
    peer: PeerAddr,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The Connect request is answered when it is known how it went.
    Connecting { envelope: Box<Envelope>, expires_at: Instant },
    /// The client knows of it, and has not bound it.
    Pending { expires_at: Instant },
    /// A client data connection is bound to it.
    Bound,
}

impl PeerConnections {
    pub(super) fn new(hasher: FixedState) -> Self {
        let (by_id, by_peer) = (HashMap::with_hasher(hasher.clone()), HashMap::with_hasher(hasher));
        Self { by_id, by_peer, attempts_full_at: None }
    }

    /// Whether there is a connection with a peer, in whatever state.
    pub(super) fn has(&self, peer: PeerAddr) -> bool {
        self.by_peer.contains_key(&peer)
    }

    /// Whether one more stays within `max`, and within the bound on those that wait.
    pub(super) fn has_room(&self, max: u16) -> bool {
        self.by_id.len() < usize::from(max) && self.deadlines().count() < PENDING_MAX
    }

    /// Counts a permitted peer that connects; false when it is one too many.
    fn take_attempt(&mut self, now: Instant) -> bool {
        let next = self.attempts_full_at.map_or(now, |full_at| full_at.max(now)) + ATTEMPT_INTERVAL;
        let is_taken = next <= now + ATTEMPTS_AT_ONCE;
        if is_taken {
            self.attempts_full_at = Some(next);
        }
        is_taken
    }

    /// When connections that wait are closed.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.by_id.values().filter_map(|connection| match connection.state {
            State::Connecting { expires_at, .. } | State::Pending { expires_at } => Some(expires_at),
            State::Bound => None,
        })
    }

    fn insert(&mut self, id: PeerConnectionId, peer: PeerAddr, state: State) {
        self.by_id.insert(id, PeerConnection { peer, state });
        self.by_peer.insert(peer, id);
    }

    fn remove(&mut self, id: PeerConnectionId) -> Option<PeerConnection> {
        let connection = self.by_id.remove(&id)?;
        self.by_peer.remove(&connection.peer);
        Some(connection)
    }

    /// The connections that are `meant`; sorted, so that a run can be repeated.
    fn ids(&self, meant: impl Fn(&PeerConnection) -> bool) -> Vec<PeerConnectionId> {
        let mut ids: Vec<_> =
            self.by_id.iter().filter(|(_, connection)| meant(connection)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }
}

impl Server {
    /// Takes a TCP connection that a peer has made to a relayed address (RFC 6062 section 5.3): the client is told, and
    /// the shell keeps it unread until its [`Effect::BindPeer`]. `None`: it is to be closed at once.
    pub fn handle_peer_accepted(&mut self, now: Now, relay: RelayId, from: PeerAddr) -> Option<PeerConnectionId> {
        match self.accept(now, relay, from) {
            Ok(connection) => {
                self.count(Outcome::Accepted);
                Some(connection)
            }
            Err(reason) => {
                self.count(Outcome::Dropped(reason));
                None
            }
        }
    }

    /// Says how [`Effect::ConnectPeer`] went. What failed is closed already.
    pub fn handle_peer_connected(&mut self, now: Now, relay: RelayId, connection: PeerConnectionId, succeeded: bool) {
        let id = relay.allocation;
        if !succeeded {
            return self.fail(id, connection);
        }
        let Some(found) = self.connection_mut(id, connection) else { return };
        let State::Connecting { envelope, .. } = &mut found.state else { return };
        let envelope = envelope.clone();
        found.state = State::Pending { expires_at: now.instant + BIND_TIMEOUT };
        self.rearm(id);
        self.succeed(&envelope, |builder| _ = builder.u32(AttributeType::CONNECTION_ID, connection.0));
        self.count(Outcome::Succeeded(Method::Connect));
    }

    /// Says that a peer's connection has ended, or the client's that was bound to it: both are closed already.
    pub fn handle_peer_closed(&mut self, relay: RelayId, connection: PeerConnectionId) {
        self.fail(relay.allocation, connection);
    }

    /// How many bytes the shell may pass over a bound connection of a relay: what is beyond stays unread.
    pub fn connection_room(&mut self, now: Now, relay: RelayId) -> DataRoom {
        let limits = &self.settings.limits;
        match self.table.get_mut(relay.allocation).filter(|_| limits.meter_data()) {
            None => DataRoom { to_peer: u64::MAX, to_client: u64::MAX },
            Some(allocation) => DataRoom {
                to_peer: allocation.room(now.instant, limits, Direction::ToPeers),
                to_client: allocation.room(now.instant, limits, Direction::ToClient),
            },
        }
    }

    /// Counts bytes that the shell has passed over a bound connection.
    pub fn handle_connection_data(&mut self, now: Now, relay: RelayId, to_peer: u64, to_client: u64) {
        self.counters.connection_bytes_to_peers += to_peer;
        self.counters.connection_bytes_to_clients += to_client;
        if let Some(allocation) = self.table.get_mut(relay.allocation) {
            allocation.traffic.bytes_to_peers += to_peer;
            allocation.traffic.bytes_to_client += to_client;
            let limits = &self.settings.limits;
            if limits.meter_data() {
                allocation.charge(now.instant, limits, Direction::ToPeers, to_peer);
                allocation.charge(now.instant, limits, Direction::ToClient, to_client);
            }
        }
    }

    /// The worker of the connection that a ConnectionBind names, when that is another one: to be judged there.
    pub(super) fn connection_elsewhere(&self, client: &FiveTuple, message: &Message<'_>) -> Option<WorkerId> {
        // A stream that owns an allocation stays where that is.
        let may_move = client.transport.is_stream() && self.table.find(client).is_none();
        let home = self.named_home(message).filter(|_| may_move)?;
        (home.worker != self.worker).then_some(home.worker)
    }

    /// The allocation whose connection a ConnectionBind names, if it lives on this worker: with its credentials the
    /// client is authenticated.
    pub(super) fn bound_by(&self, message: &Message<'_>) -> Option<AllocationId> {
        self.named_home(message).filter(|home| home.worker == self.worker).map(|home| home.allocation)
    }

    fn named_home(&self, message: &Message<'_>) -> Option<Home> {
        let binds = (message.class(), message.method()) == (Class::Request, Method::ConnectionBind);
        if !binds || !self.settings.tcp_allocations {
            return None;
        }
        let connection = message.attribute(AttributeType::CONNECTION_ID)?.as_u32()?;
        self.shared.connections.home(PeerConnectionId(connection))
    }

    /// Where a connection to a permitted peer leads; `None` when its port is not permitted. A connection names a port, so
    /// it is judged here: on this host's own addresses there are live relayed addresses and nothing else, unless the
    /// operator allows it.
    pub(super) fn destination(&self, permitted: PermittedPeer, peer: PeerAddr) -> Option<PeerAddr> {
        if peer.port() == 0 {
            return None;
        }
        match permitted.reach() {
            Reach::Network => Some(peer),
            Reach::OwnRelays => self.shared.ports.live_tcp(peer),
            Reach::OwnHost => {
                let allowed = || self.peers.permits_tcp_port(peer.port()).then_some(peer);
                self.shared.ports.live_tcp(peer).or_else(allowed)
            }
        }
    }

    /// Begins the connection of a Connect request.
    pub(super) fn begin_connection(
        &mut self,
        now: Now,
        id: AllocationId,
        envelope: &Envelope,
        peer: PeerAddr,
        to: PeerAddr,
    ) {
        let connection = self.new_connection_id(id);
        let relay = RelayId { allocation: id, family: peer.family() };
        let Some(allocation) = self.table.get_mut(id) else { return };
        let Some(from) = allocation.relays().get(relay.family).map(|relay| relay.address) else { return };
        let Some(connections) = allocation.connections.as_mut() else { return };
        let (envelope, expires_at) = (Box::new(envelope.clone()), now.instant + CONNECT_TIMEOUT);
        connections.insert(connection, peer, State::Connecting { envelope, expires_at });
        self.rearm(id);
        self.effects.push_back(Effect::ConnectPeer { relay, connection, from, to });
    }

    /// Binds a connection that waits; 400 when it does not.
    pub(super) fn bind_connection(
        &mut self,
        now: Now,
        id: AllocationId,
        connection: PeerConnectionId,
    ) -> Result<(), ErrorCode> {
        let found = self.connection_mut(id, connection).ok_or(ErrorCode::BadRequest)?;
        match found.state {
            State::Pending { expires_at } if now.instant < expires_at => found.state = State::Bound,
            State::Connecting { .. } | State::Pending { .. } | State::Bound => return Err(ErrorCode::BadRequest),
        }
        self.rearm(id);
        Ok(())
    }

    fn accept(&mut self, now: Now, relay: RelayId, from: PeerAddr) -> Result<PeerConnectionId, DropReason> {
        let id = relay.allocation;
        let allocation = self.table.get(id).ok_or(DropReason::NoRelay)?;
        if allocation.opening.is_some() || !allocation.relays_at(relay.family, now.instant) {
            return Err(DropReason::NoRelay);
        }
        // A relay of this server is known to the client by its public address, as it is over UDP.
        let public = self.shared.ports.live_tcp(from).map(|bound| bound.socket_addr());
        let public =
            public.map(|bound| PeerAddr::new(self.shared.ports.public(crate::address::RelayedAddr::new(bound))));
        let known = [public, Some(from)].into_iter().flatten();
        let mut permitted = known.filter_map(|from| Some((from, allocation.permission(from.ip(), now.instant)?.reach)));
        // RFC 8656 section 9: "only addresses are compared and port numbers are not considered".
        let (from, reach) = permitted.next().ok_or(DropReason::NoPermission)?;
        // Nothing of this host but its relays is a peer.
        if reach == Reach::OwnRelays && public.is_none() {
            return Err(DropReason::ForbiddenPort);
        }
        let connections = self.table.get_mut(id).and_then(|allocation| allocation.connections.as_mut());
        let connections = connections.ok_or(DropReason::NoRelay)?;
        if !connections.take_attempt(now.instant) {
            return Err(DropReason::ConnectionRate);
        }
        // The kernel has no two connections with one peer address and port: the one before has ended.
        if let Some(before) = connections.by_peer.get(&from).copied() {
            self.fail(id, before);
            self.effects.push_back(Effect::ClosePeer { connection: before });
        }
        let max = self.settings.limits.peer_connections_per_allocation;
        let has_room = |allocation: &Allocation| allocation.connections.as_ref().is_some_and(|it| it.has_room(max));
        if !self.table.get(id).is_some_and(has_room) {
            return Err(DropReason::TooManyConnections);
        }
        let connection = self.new_connection_id(id);
        let allocation = self.table.get_mut(id).ok_or(DropReason::NoRelay)?;
        let (route, client) = (allocation.route, allocation.client);
        if let Some(connections) = allocation.connections.as_mut() {
            connections.insert(connection, from, State::Pending { expires_at: now.instant + BIND_TIMEOUT });
        }
        self.rearm(id);
        let transaction = TransactionId(self.rng.random());
        let start = self.replies.len();
        Builder::new(&mut self.replies, Method::ConnectionAttempt, Class::Indication, transaction)
            .xor_address(AttributeType::XOR_PEER_ADDRESS, from.socket_addr())
            .u32(AttributeType::CONNECTION_ID, connection.0);
        self.effects.push_back(Effect::Reply { route, client, bytes: start..self.replies.len() });
        Ok(connection)
    }

    fn new_connection_id(&mut self, allocation: AllocationId) -> PeerConnectionId {
        let home = Home { worker: self.worker, allocation };
        self.shared.connections.claim(home, &mut self.rng)
    }

    fn connection_mut(&mut self, id: AllocationId, connection: PeerConnectionId) -> Option<&mut PeerConnection> {
        self.table.get_mut(id)?.connections.as_mut()?.by_id.get_mut(&connection)
    }

    /// Closes connections whose time is over: RFC 6062 section 5.2, "If the connection attempt fails or times out, the
    /// server MUST return a 447 (Connection Timeout or Failure) error."
    pub(super) fn close_overdue_connections(&mut self, id: AllocationId, now: Instant) {
        self.close_if(id, |connection| match connection.state {
            State::Connecting { expires_at, .. } | State::Pending { expires_at } => expires_at <= now,
            State::Bound => false,
        });
    }

    /// Closes the connections with peers of a family whose relayed address ends.
    pub(super) fn close_connections_of(&mut self, id: AllocationId, family: Family) {
        self.close_if(id, |connection| connection.peer.family() == family);
    }

    fn close_if(&mut self, id: AllocationId, meant: impl Fn(&PeerConnection) -> bool) {
        let Some(connections) = self.table.get(id).and_then(|allocation| allocation.connections.as_ref()) else {
            return;
        };
        for connection in connections.ids(meant) {
            self.fail(id, connection);
            self.effects.push_back(Effect::ClosePeer { connection });
        }
    }

    /// Closes all connections of an allocation that has ended.
    ///
    /// RFC 6062 section 5.5: "If the allocation associated with a data connection expires, the data connection MUST be
    /// closed."
    pub(super) fn close_connections(&mut self, allocation: &mut Allocation, reason: EndReason) {
        let Some(connections) = allocation.connections.as_mut() else { return };
        for id in connections.ids(|_| true) {
            self.shared.connections.leave(id);
            let connecting = match connections.remove(id).map(|connection| connection.state) {
                Some(State::Connecting { envelope, .. }) => Some(envelope),
                Some(State::Pending { .. } | State::Bound) | None => None,
            };
            // Where its connection is gone, the client hears nothing.
            if let Some(envelope) = connecting.filter(|_| reason != EndReason::ClientClosed) {
                self.refuse_connect(&envelope);
            }
            self.effects.push_back(Effect::ClosePeer { connection: id });
        }
    }

    /// Forgets a connection; a Connect that waits for it is answered.
    fn fail(&mut self, id: AllocationId, connection: PeerConnectionId) {
        let connections = self.table.get_mut(id).and_then(|allocation| allocation.connections.as_mut());
        let Some(ended) = connections.and_then(|connections| connections.remove(connection)) else { return };
        self.shared.connections.leave(connection);
        match ended.state {
            State::Connecting { envelope, .. } => self.refuse_connect(&envelope),
            State::Pending { .. } | State::Bound => {}
        }
        self.rearm(id);
    }

    fn refuse_connect(&mut self, envelope: &Envelope) {
        let code = ErrorCode::ConnectionTimeoutOrFailure;
        self.refuse(envelope, code, |_| {});
        self.count(Outcome::Refused(Method::Connect, code));
    }
}
