//! Workers, sockets that are only entries in tables, and the clock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferryd::address::{FiveTuple, PeerAddr, RelayedAddr};
use ferryd::stun::{Message, Method};
use ferryd::turn::authorization::{Application, Verdict};
use ferryd::turn::effect::{Ended, RelaySource};
use ferryd::turn::{
    Counters, DropReason, Effect, Forward, IcmpError, Now, OpenError, PeerConnectionId, Policy, RelayId, Route, Server,
    Shared, WorkerId,
};

use super::Setup;
use super::check::counted_once;

/// Seconds since the Unix epoch when a test begins; a multiple of the resolution of nonces.
pub(crate) const UNIX_START: u64 = 1_800_000_000;

/// A datagram that left a relay socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The relayed address as it is bound.
    pub(crate) from: SocketAddr,
    pub(crate) to: PeerAddr,
    pub(crate) bytes: Vec<u8>,
    pub(crate) dont_fragment: bool,
}

/// A TCP connection with a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) worker: usize,
    pub(crate) relay: RelayId,
    /// The relayed address as it is bound.
    pub(crate) from: SocketAddr,
    /// The address that is connected to; `None` when the peer has connected.
    pub(crate) to: Option<PeerAddr>,
    /// The stream that it is bound to.
    pub(crate) bound: Option<FiveTuple>,
}

/// The workers of one daemon with everything around them.
pub(crate) struct World {
    origin: Instant,
    elapsed: Duration,
    /// How far somebody has moved the wall clock, in seconds.
    wall_clock: i64,
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: Vec<Server>,
    policy: Policy,
    /// How the next attempts to open a relay socket fail; after them they succeed.
    pub(crate) open_failures: VecDeque<OpenError>,
    /// Leaves relay sockets to be opened later, by [`Self::open_pending`].
    pub(crate) opens_wait: bool,
    pending: VecDeque<(usize, Effect)>,
    pub(crate) attempts: Vec<RelayedAddr>,
    pub(crate) sockets: BTreeMap<RelayedAddr, (usize, RelayId)>,
    /// Held sockets, by the worker that reserved their ports.
    pub(crate) held: BTreeMap<RelayedAddr, usize>,
    /// The listeners of TCP allocations.
    pub(crate) listening: BTreeMap<RelayedAddr, (usize, RelayId)>,
    /// TCP connections with peers, those that are being made among them.
    pub(crate) connections: BTreeMap<PeerConnectionId, Connection>,
    /// Streams that have moved to another worker.
    pub(crate) streams: HashMap<FiveTuple, usize>,
    pub(crate) inboxes: HashMap<FiveTuple, VecDeque<Vec<u8>>>,
    pub(crate) sent: VecDeque<Sent>,
    /// What waits for [`Self::decide`].
    applications: Vec<Application>,
    /// Channels and ends, in their order.
    pub(crate) events: Vec<Effect>,
    pub(crate) forwards: usize,
    /// The way that the last datagram of a client came: an answer takes it back, whatever addresses it is to have.
    asked: Option<Route>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::standard();
        change(&mut setup);
        let origin = Instant::now();
        let shared = Arc::new(Shared::new(&setup.turn));
        let workers = setup.workers;
        let policy = setup.policy();
        let worker = |id| Server::new(policy.clone(), Arc::clone(&shared), WorkerId(id), [id + 1; 32], origin);
        Self {
            origin,
            elapsed: Duration::ZERO,
            wall_clock: 0,
            workers: (0..workers).map(worker).collect(),
            policy,
            shared,
            open_failures: VecDeque::new(),
            opens_wait: false,
            pending: VecDeque::new(),
            attempts: Vec::new(),
            sockets: BTreeMap::new(),
            held: BTreeMap::new(),
            listening: BTreeMap::new(),
            connections: BTreeMap::new(),
            streams: HashMap::new(),
            inboxes: HashMap::new(),
            sent: VecDeque::new(),
            applications: Vec::new(),
            events: Vec::new(),
            forwards: 0,
            asked: None,
        }
    }

    /// Reloads the standard setup with other changes than before.
    pub(crate) fn reload(&mut self, change: impl FnOnce(&mut Setup)) {
        let mut setup = Setup::standard();
        change(&mut setup);
        let policy = setup.policy();
        self.policy = policy.clone();
        self.workers.iter_mut().for_each(|worker| worker.replace_policy(policy.clone()));
    }

    pub(crate) fn now(&self) -> Now {
        let unix_seconds = (UNIX_START + self.elapsed.as_secs()).saturating_add_signed(self.wall_clock);
        Now { instant: self.origin + self.elapsed, unix_seconds }
    }

    pub(crate) fn unix(&self) -> u64 {
        self.now().unix_seconds
    }

    /// Sets the wall clock forwards or back by seconds, and no other.
    pub(crate) fn set_wall_clock(&mut self, by: i64) {
        self.wall_clock += by;
    }

    /// Moves the clock and nothing else: a shell that is late with its timers.
    pub(crate) fn jump(&mut self, by: Duration) {
        self.elapsed += by;
    }

    /// Moves the clock as a shell does: every timer is served when it is due.
    pub(crate) fn advance(&mut self, by: Duration) {
        let target = self.origin + self.elapsed + by;
        for _ in 0..1_000_000 {
            let due = self.workers.iter().filter_map(Server::poll_timeout).min();
            let Some(due) = due.filter(|due| *due <= target) else { break };
            self.elapsed = self.elapsed.max(due.saturating_duration_since(self.origin));
            self.run_timers();
        }
        self.elapsed = target - self.origin;
        let overdue = self.workers.iter().filter_map(Server::poll_timeout).min();
        assert!(overdue.is_none_or(|due| due > target), "timers never come to rest");
    }

    pub(crate) fn run_timers(&mut self) {
        let now = self.now();
        for worker in 0..self.workers.len() {
            self.workers[worker].handle_timeout(now);
            self.drain(worker);
        }
    }

    /// Bytes from a client to a worker, as they come from its listener.
    pub(crate) fn client_sends(&mut self, worker: usize, client: &FiveTuple, bytes: &[u8]) {
        let worker = self.streams.get(client).copied().unwrap_or(worker);
        let now = self.now();
        self.asked = Some(route(client));
        let handle = |server: &mut Server| server.handle_client(now, client, route(client), bytes);
        let server = &mut self.workers[worker];
        let is_connect = Message::parse(bytes).is_ok_and(|message| message.method() == Method::Connect);
        let forward = if is_connect { handle(server) } else { counted_once(server, handle) };
        if let Some(Forward::Elsewhere { worker: other, client: whose, route: way, message }) = &forward {
            assert_ne!(usize::from(other.0), worker, "a worker hands nothing over to itself");
            assert_eq!((whose, *way, message), (client, route(client), &(0..bytes.len())));
            assert!(self.workers[worker].poll_effect().is_none(), "what is handed over has no effect here");
            if client.transport.is_stream() {
                self.streams.insert(*client, usize::from(other.0));
            }
            return self.client_sends(usize::from(other.0), client, bytes);
        }
        self.forward(worker, forward, bytes);
        self.drain(worker);
    }

    /// A datagram of a peer to a relayed address as clients know it. `false` when no socket is there.
    pub(crate) fn peer_sends(&mut self, from: &str, to: SocketAddr, bytes: &[u8]) -> bool {
        let socket = self.sockets.iter().find(|(bound, _)| self.shared.ports.public(**bound) == to);
        let Some((worker, relay)) = socket.map(|(_, socket)| *socket) else { return false };
        let now = self.now();
        let from = super::peer(from);
        let forward =
            counted_once(&mut self.workers[worker], |server| server.handle_peer(now, relay, from, bytes.len()));
        self.forward(worker, forward, bytes);
        self.drain(worker);
        true
    }

    /// A peer connects to a relayed address as clients know it; `None` when the connection is closed at once.
    pub(crate) fn peer_connects(&mut self, from: &str, to: SocketAddr) -> Option<PeerConnectionId> {
        let (bound, (worker, relay)) = self.listener(to).expect("a listener");
        let now = self.now();
        let accepted = self.workers[worker].handle_peer_accepted(now, relay, super::peer(from));
        self.drain(worker);
        let accepted = accepted?;
        let connection = Connection { worker, relay, from: bound.socket_addr(), to: None, bound: None };
        assert!(self.connections.insert(accepted, connection).is_none(), "two connections with one number");
        Some(accepted)
    }

    /// Whether something listens at a relayed address as clients know it.
    pub(crate) fn listens(&self, at: SocketAddr) -> bool {
        self.listener(at).is_some()
    }

    fn listener(&self, at: SocketAddr) -> Option<(RelayedAddr, (usize, RelayId))> {
        let found = self.listening.iter().find(|(bound, _)| self.shared.ports.public(**bound) == at);
        found.map(|(bound, owner)| (*bound, *owner))
    }

    /// The connection that is being made to an address.
    pub(crate) fn connecting(&self, to: &str) -> Option<PeerConnectionId> {
        let is_it = |connection: &&Connection| connection.to == Some(super::peer(to)) && connection.bound.is_none();
        self.connections.iter().find(|(_, connection)| is_it(connection)).map(|(id, _)| *id)
    }

    /// A peer takes or refuses the connection that is made to it.
    pub(crate) fn peer_answers(&mut self, to: &str, accepts: bool) -> PeerConnectionId {
        let id = self.connecting(to).expect("a connection that is being made");
        let Connection { worker, relay, .. } = self.connections[&id];
        if !accepts {
            self.connections.remove(&id);
        }
        let now = self.now();
        self.workers[worker].handle_peer_connected(now, relay, id, accepts);
        self.drain(worker);
        id
    }

    /// A peer's connection ends.
    pub(crate) fn peer_closes(&mut self, id: PeerConnectionId) {
        let Connection { worker, relay, .. } = self.connections.remove(&id).expect("a connection");
        self.workers[worker].handle_peer_closed(relay, id);
        self.drain(worker);
    }

    /// Bytes pass over a connection that is bound.
    pub(crate) fn bytes_pass(&mut self, id: PeerConnectionId, to_peer: u64, to_client: u64) {
        let Connection { worker, relay, ref bound, .. } = self.connections[&id];
        assert!(bound.is_some(), "only over connections that are bound");
        let now = self.now();
        self.workers[worker].handle_connection_data(now, relay, to_peer, to_client);
    }

    /// An ICMP error about a datagram from the relayed address `about`.
    pub(crate) fn icmp(&mut self, about: SocketAddr, error: IcmpError) {
        let (worker, relay) = self.sockets[&RelayedAddr::new(about)];
        let now = self.now();
        self.workers[worker].handle_peer_error(now, relay, error);
        self.drain(worker);
    }

    pub(crate) fn client_closes(&mut self, worker: usize, client: &FiveTuple) {
        let worker = self.streams.remove(client).unwrap_or(worker);
        self.workers[worker].handle_client_closed(client);
        self.drain(worker);
    }

    /// Decides about everybody who waits for a verdict, for so long; returns about whom.
    pub(crate) fn decide(&mut self, worker: usize, verdict: Verdict, holds: Duration) -> Vec<Application> {
        let applications = std::mem::take(&mut self.applications);
        let now = self.now();
        for Application { applicant, .. } in &applications {
            self.workers[worker].handle_verdict(now, applicant, verdict, now.instant + holds);
            self.drain(worker);
        }
        applications
    }

    pub(crate) fn stop(&mut self) {
        for worker in 0..self.workers.len() {
            self.workers[worker].handle_stop();
            self.drain(worker);
        }
    }

    /// A worker is gone in the middle of something, its sockets with it, and another takes over.
    pub(crate) fn fail(&mut self, worker: usize) {
        let (id, now) = (WorkerId(worker as u8), self.now().instant);
        let seed = [0xF0 | id.0; 32];
        self.workers[worker] = Server::new(self.policy.clone(), Arc::clone(&self.shared), id, seed, now);
        self.pending.retain(|(of, _)| *of != worker);
        self.sockets.retain(|_, (of, _)| *of != worker);
        self.held.retain(|_, of| *of != worker);
        self.listening.retain(|_, (of, _)| *of != worker);
        self.connections.retain(|_, connection| connection.worker != worker);
        self.streams.retain(|_, of| *of != worker);
        self.shared.forget_worker(id);
    }

    /// Opens the relay sockets that [`Self::opens_wait`] has held back.
    pub(crate) fn open_pending(&mut self) {
        self.opens_wait = false;
        while let Some((worker, effect)) = self.pending.pop_front() {
            self.carry_out(worker, effect);
            self.drain(worker);
        }
    }

    /// Everything that has arrived at a client since the last time.
    pub(crate) fn inbox(&mut self, client: &FiveTuple) -> Vec<Vec<u8>> {
        self.inboxes.get_mut(client).map(|inbox| inbox.drain(..).collect()).unwrap_or_default()
    }

    /// What has left relay sockets since the last time.
    pub(crate) fn sent(&mut self) -> Vec<Sent> {
        self.sent.drain(..).collect()
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.workers.iter().map(|worker| worker.counters().dropped(reason)).sum()
    }

    pub(crate) fn counters(&self) -> &Counters {
        self.workers[0].counters()
    }

    pub(crate) fn ended(&self) -> Vec<Ended> {
        let ended =
            |effect: &Effect| if let Effect::AllocationEnded(ended) = effect { Some((**ended).clone()) } else { None };
        self.events.iter().filter_map(ended).collect()
    }

    fn forward(&mut self, worker: usize, forward: Option<Forward>, bytes: &[u8]) {
        let Some(forward) = forward else { return };
        self.forwards += 1;
        match forward {
            Forward::ToPeer { relay, peer, payload, dont_fragment } => {
                let from = self.workers[worker].relayed_address(relay).expect("a live relay");
                assert!(self.sockets.contains_key(&from), "sent through {from}, which is not open");
                self.sent.push_back(Sent {
                    from: from.socket_addr(),
                    to: peer,
                    bytes: bytes[payload].to_vec(),
                    dont_fragment,
                });
            }
            Forward::ToClient { route: way, client, prefix, payload, padding } => {
                assert_eq!(way, route(&client));
                let message = [prefix.as_bytes(), &bytes[payload], &[0; 3][..usize::from(padding)]].concat();
                self.inboxes.entry(client).or_default().push_back(message);
            }
            Forward::ToWorker { worker: other, relay, from, payload } => {
                assert_ne!(usize::from(other.0), worker, "a worker is no neighbour of itself");
                let payload = bytes[payload].to_vec();
                let (now, other) = (self.now(), usize::from(other.0));
                let forward = counted_once(&mut self.workers[other], |server| {
                    server.handle_neighbour(now, relay, from, payload.len())
                });
                assert!(!matches!(forward, Some(Forward::ToWorker { .. })), "a neighbour delivers or drops");
                self.forward(other, forward, &payload);
                self.drain(other);
            }
            Forward::Elsewhere { .. } => panic!("only messages of clients are handed over"),
        }
    }

    pub(crate) fn drain(&mut self, worker: usize) {
        while let Some(effect) = self.workers[worker].poll_effect() {
            let waits = match effect {
                Effect::OpenRelay { .. } | Effect::OpenTcpRelay { .. } => self.opens_wait,
                // Effects on sockets are carried out in their order.
                Effect::CloseRelay { .. } | Effect::CloseTcpRelay { .. } | Effect::CloseHeld { .. } => {
                    !self.pending.is_empty()
                }
                Effect::Reply { .. }
                | Effect::ConnectPeer { .. }
                | Effect::BindPeer { .. }
                | Effect::ClosePeer { .. }
                | Effect::ChannelOpened { .. }
                | Effect::ChannelExtended { .. }
                | Effect::IndicationRelayed { .. }
                | Effect::PermissionsChanged { .. }
                | Effect::ChannelClosed { .. }
                | Effect::ClientMoved { .. }
                | Effect::AllocationStarted(_)
                | Effect::AllocationEnded(_)
                | Effect::Authorize(_)
                | Effect::UserAttacked { .. } => false,
            };
            if waits {
                self.pending.push_back((worker, effect));
            } else {
                self.carry_out(worker, effect);
            }
        }
    }

    fn carry_out(&mut self, worker: usize, effect: Effect) {
        match effect {
            Effect::Reply { route: way, client, bytes } => {
                assert!(way == route(&client) || Some(way) == self.asked, "{client:?} is not reached by {way:?}");
                let bytes = self.workers[worker].reply_bytes(bytes).to_vec();
                self.inboxes.entry(client).or_default().push_back(bytes);
            }
            Effect::OpenRelay { relay, address, source, hold_next } => {
                let result = self.open(worker, relay, address, source, hold_next);
                let now = self.now();
                self.workers[worker].handle_relay_opened(now, relay, result);
            }
            Effect::CloseRelay { address, .. } => {
                self.sockets.remove(&address);
                self.workers[worker].handle_port_closed(address);
            }
            Effect::CloseHeld { address } => {
                self.held.remove(&address);
                self.workers[worker].handle_port_closed(address);
            }
            Effect::OpenTcpRelay { relay, address } => {
                self.attempts.push(address);
                let result = self.open_failures.pop_front().map_or(Ok(()), Err);
                if result.is_ok() {
                    assert!(self.listening.insert(address, (worker, relay)).is_none(), "{address} is bound twice");
                }
                let now = self.now();
                self.workers[worker].handle_relay_opened(now, relay, result);
            }
            Effect::CloseTcpRelay { address, .. } => {
                self.listening.remove(&address);
                self.workers[worker].handle_port_closed(address);
            }
            Effect::ConnectPeer { relay, connection, from, to } => {
                assert_eq!(self.listening[&from], (worker, relay), "from the relayed address");
                let made = Connection { worker, relay, from: from.socket_addr(), to: Some(to), bound: None };
                assert!(self.connections.insert(connection, made).is_none(), "two connections with one number");
            }
            Effect::BindPeer { connection, route: way, client } => {
                assert_eq!(way, route(&client));
                let found = self.connections.get_mut(&connection).expect("a connection that is there");
                assert_eq!((found.worker, &found.bound), (worker, &None), "bound once, where it lives");
                found.bound = Some(client);
            }
            Effect::ClosePeer { connection } => {
                self.connections.remove(&connection);
            }
            Effect::AllocationStarted(id) => {
                assert!(self.workers[worker].session(self.now(), id).is_some(), "a session that has begun is there");
            }
            event @ (Effect::ChannelOpened { .. }
            | Effect::ChannelExtended { .. }
            | Effect::IndicationRelayed { .. }
            | Effect::PermissionsChanged { .. }
            | Effect::ChannelClosed { .. }
            | Effect::ClientMoved { .. }
            | Effect::AllocationEnded(_)
            | Effect::UserAttacked { .. }) => self.events.push(event),
            Effect::Authorize(application) => self.applications.push(*application),
        }
    }

    fn open(
        &mut self,
        worker: usize,
        relay: RelayId,
        address: RelayedAddr,
        source: RelaySource,
        hold_next: bool,
    ) -> Result<(), OpenError> {
        self.attempts.push(address);
        if let Some(error) = self.open_failures.pop_front() {
            self.held.remove(&address);
            return Err(error);
        }
        match source {
            RelaySource::Held => assert!(self.held.remove(&address).is_some(), "{address} is not held"),
            RelaySource::Fresh => assert!(!self.held.contains_key(&address), "{address} is held"),
        }
        assert!(self.sockets.insert(address, (worker, relay)).is_none(), "{address} is bound twice");
        if hold_next {
            let next = RelayedAddr::new(SocketAddr::new(address.ip(), address.port() + 1));
            assert!(self.held.insert(next, worker).is_none(), "{next} is held twice");
            assert!(!self.sockets.contains_key(&next), "{next} is bound already");
        }
        Ok(())
    }
}

/// Every client has a route of its own, so that an answer on a wrong one is found.
pub(crate) fn route(client: &FiveTuple) -> Route {
    Route(u64::from(client.client.port()) << 16 | u64::from(client.server.port()))
}
