//! The contract: events in, forwards and effects out.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::FixedState;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::allocation::Allocation;
use super::authorization::Authorization;
use super::effect::{Beyond, ChannelPath, Effect, EndReason, Ended, Forward, OpenError, Traffic};
use super::expiry::Expiry;
use super::guessing::Guessing;
use super::ids::{AllocationId, RelayId, RelayTransport, Route, WorkerId};
use super::live::Live;
use super::meter::SharedBuckets;
use super::mobility::Directory;
use super::outcome::{Counters, DropReason, Outcome};
use super::peer_connections;
use super::peer_policy::{Asker, PeerPolicy, Reach};
use super::ports::Ports;
use super::quota::Quotas;
use super::redirect::Drain;
use super::released::Released;
use super::reservation::{Reservations, Token, next_port};
use super::settings::Settings;
use super::strangers::Strangers;
use super::table::Table;
use crate::address::{Family, FiveTuple, PeerAddr, RelayedAddr};
use crate::auth::{Authenticator, Revocations};

/// The time, as the shell reads it once per batch.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub instant: Instant,
    /// Seconds since the Unix epoch, for nonces and time-limited users.
    pub unix_seconds: u64,
}

/// What the workers of a daemon have in common.
#[derive(Debug)]
pub struct Shared {
    pub ports: Ports,
    pub quotas: Arc<Quotas>,
    pub reservations: Reservations,
    pub mobility: Directory,
    pub connections: peer_connections::Directory,
    pub(super) strangers: Strangers,
}

impl Shared {
    pub fn new(settings: &Settings) -> Self {
        Self {
            ports: Ports::new(settings),
            quotas: Arc::new(Quotas::default()),
            reservations: Reservations::default(),
            mobility: Directory::default(),
            strangers: Strangers::default(),
            connections: peer_connections::Directory::default(),
        }
    }

    /// Takes back whatever a worker has left that is gone, its sockets with it: ports, reservations, tickets and
    /// 5-tuples. Its places in the quotas are its allocations', and go with them.
    pub fn forget_worker(&self, worker: WorkerId) {
        self.mobility.forget_worker(worker);
        self.connections.forget_worker(worker);
        // Before the ports: a reservation that is redeemed by another worker in between has given its port to that one.
        self.reservations.expire_all(worker);
        self.ports.release_all(worker);
    }
}

/// What a reload can replace; allocations live on under the new one.
#[derive(Clone, Debug)]
pub struct Policy {
    pub settings: Arc<Settings>,
    pub authenticator: Arc<Authenticator>,
    pub peers: Arc<PeerPolicy>,
    /// Set while the server is emptied: no new allocations are made.
    pub drain: Option<Arc<Drain>>,
    /// Whose credentials make no new allocations.
    pub revocations: Arc<Revocations>,
}

/// The TURN server of one worker.
///
/// It knows no socket, no clock and no randomness but the seed. After each `handle_*` the shell drains
/// [`Self::poll_effect`] to the end, carrying every effect out in order, and then waits until [`Self::poll_timeout`]
/// for the next event.
#[derive(Debug)]
pub struct Server {
    pub(super) settings: Arc<Settings>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) peers: Arc<PeerPolicy>,
    pub(super) drain: Option<Arc<Drain>>,
    pub(super) revocations: Arc<Revocations>,
    pub(super) shared: Arc<Shared>,
    pub(super) worker: WorkerId,
    /// Tells the sessions of this run from those of another one within the same second.
    pub(super) run: u16,
    pub(super) rng: StdRng,
    pub(super) hasher: FixedState,
    pub(super) table: Table,
    pub(super) expiry: Expiry,
    pub(super) effects: VecDeque<Effect>,
    pub(super) replies: Vec<u8>,
    pub(super) released: Released,
    /// Reservations that this worker made, in the order of their expiry.
    pub(super) reserved: VecDeque<(Instant, Token)>,
    pub(super) guessing: Guessing,
    pub(super) authorization: Authorization,
    pub(super) live: Live,
    pub(super) counters: Counters,
    /// Somebody carries data besides, and wants to hear until when it may.
    pub(super) tells_of_paths: bool,
}

impl Server {
    pub fn new(policy: Policy, shared: Arc<Shared>, worker: WorkerId, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = StdRng::from_seed(seed);
        // Clients choose what the tables are keyed by, so the hash is seeded.
        let hasher = FixedState::with_seed(rng.random());
        Self {
            settings: policy.settings,
            authenticator: policy.authenticator,
            peers: policy.peers,
            drain: policy.drain,
            revocations: policy.revocations,
            shared,
            worker,
            run: rng.random(),
            // A worker that takes over after a failure shall not take late packets of the one before for its own.
            table: Table::new(hasher.clone(), rng.random()),
            released: Released::new(hasher.clone()),
            expiry: Expiry::new(now),
            effects: VecDeque::new(),
            replies: Vec::new(),
            reserved: VecDeque::new(),
            guessing: Guessing::default(),
            authorization: Authorization::new(hasher.clone()),
            live: Live::default(),
            counters: Counters::default(),
            tells_of_paths: false,
            rng,
            hasher,
        }
    }

    /// Judges by another policy from now on; allocations live on.
    pub fn replace_policy(&mut self, policy: Policy) {
        (self.settings, self.authenticator, self.peers) = (policy.settings, policy.authenticator, policy.peers);
        for id in self.table.ids() {
            if let Some(allocation) = self.table.get_mut(id) {
                let asker = Asker { credentials: &allocation.credentials, client: allocation.client.client.ip() };
                let reach_now = self.peers.reach_now(asker);
                allocation.judge_anew(reach_now);
            }
        }
        (self.drain, self.revocations) = (policy.drain, policy.revocations);
    }

    /// Takes a datagram, or one message of a stream, from a client.
    ///
    /// Bytes behind a ChannelData message's length are padding; a STUN message must fill `bytes`.
    pub fn handle_client(&mut self, now: Now, client: &FiveTuple, route: Route, bytes: &[u8]) -> Option<Forward> {
        if let Some(worker) = self.elsewhere(client) {
            return self.conclude(Ok(Self::hand_over(worker, client, route, bytes.len())));
        }
        let result = match bytes.first() {
            // Nothing can be answered to port 0, and nobody sends from there.
            _ if client.client.port() == 0 => Err(Outcome::Dropped(DropReason::NoSourcePort)),
            Some(0x00..=0x3F) => self.message(now, client, route, bytes),
            Some(0x40..=0x7F) => self.channel_data(now, client, bytes).map_err(Outcome::Dropped),
            Some(0x80..) | None => Err(Outcome::Dropped(DropReason::UnknownProtocol)),
        };
        self.conclude(result)
    }

    /// Takes `len` bytes that arrived at a relayed address.
    pub fn handle_peer(&mut self, now: Now, relay: RelayId, from: PeerAddr, len: usize) -> Option<Forward> {
        let result = self.deliver(now, relay, from, 0..len).map_err(Outcome::Dropped);
        self.conclude(result)
    }

    /// Takes `len` bytes that another worker's client sent to a relayed address of this worker.
    pub fn handle_neighbour(&mut self, now: Now, relay: RelayId, from: PeerAddr, len: usize) -> Option<Forward> {
        self.handle_peer(now, relay, from, len)
    }

    /// The next thing to do; `None` ends the bytes of replies.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.effects.pop_front();
        if effect.is_none() {
            self.replies.clear();
        }
        effect
    }

    /// The bytes of an [`Effect::Reply`], until [`Self::poll_effect`] has returned `None`.
    pub fn reply_bytes(&self, bytes: Range<usize>) -> &[u8] {
        &self.replies[bytes]
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let reserved = self.reserved.front().map(|(expires_at, _)| *expires_at);
        [self.expiry.next_deadline(), reserved, self.released.next_expiry()].into_iter().flatten().min()
    }

    /// Clears away what has expired.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(slot) = self.expiry.pop_due(now.instant) {
            if let Some(id) = self.table.by_slot(slot) {
                self.expire(id, now.instant);
            }
        }
        while let Some((expires_at, token)) = self.reserved.pop_front() {
            if now.instant < expires_at {
                self.reserved.push_front((expires_at, token));
                break;
            }
            self.close_reserved(token);
        }
        self.released.forget(now.instant);
    }

    /// Says how [`Effect::OpenRelay`] went.
    pub fn handle_relay_opened(&mut self, now: Now, relay: RelayId, result: Result<(), OpenError>) {
        self.relay_opened(now, relay, result);
    }

    /// Says that the socket of [`Effect::CloseRelay`] or [`Effect::CloseHeld`] is closed, so that its port can be used
    /// again.
    pub fn handle_port_closed(&mut self, address: RelayedAddr) {
        self.shared.ports.release(address);
    }

    /// Says that a client's connection is gone: its 5-tuple cannot come back. Its allocation ends, unless the client
    /// has a ticket to come back with.
    pub fn handle_client_closed(&mut self, client: &FiveTuple) {
        if self.authorization.forget(client) {
            self.count(Outcome::Dropped(DropReason::InProgress));
        }
        let Some(id) = self.table.find(client) else { return };
        if self.settings.mobility && self.table.get(id).is_some_and(|allocation| allocation.mobility.is_some()) {
            self.client_departs(id, client);
        } else {
            self.end(id, EndReason::ClientClosed);
        }
    }

    /// Ends every allocation and every reservation: the daemon stops.
    pub fn handle_stop(&mut self) {
        self.end_all(EndReason::Stopped);
    }

    /// Ends every allocation and every reservation: the worker has failed and another takes over. What it may have left
    /// half done is for [`Shared::forget_worker`].
    pub fn handle_failure(&mut self) {
        self.end_all(EndReason::WorkerFailed);
    }

    /// How many relayed addresses there are, by transport and family.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// How many allocations there are.
    pub fn allocations(&self) -> usize {
        self.table.len()
    }

    /// The relayed address behind a relay, while it lives.
    pub fn relayed_address(&self, relay: RelayId) -> Option<RelayedAddr> {
        Some(self.table.get(relay.allocation)?.relays().get(relay.family)?.address)
    }

    /// Where the data for a permitted peer goes, while there is an allocation for it and nothing but its end and its own
    /// rate to be watched: what a user's allocations share passes through here.
    pub fn channel_path(&self, relay: RelayId, peer: PeerAddr) -> Option<ChannelPath> {
        let limits = &self.settings.limits;
        let allocation = self.table.get(relay.allocation).filter(|it| !it.is_metered_by_user(limits))?;
        let relayed = allocation.relays().get(relay.family)?.address;
        let beyond = match allocation.reach(peer.ip())? {
            Reach::Network => Beyond::Network,
            reach @ (Reach::OwnRelays | Reach::OwnHost) => match self.shared.ports.live(peer) {
                Some(live) => {
                    Beyond::Relay { relayed: live.address, from: self.seen_from_relay(relayed, live.advertised) }
                }
                None if reach == Reach::OwnHost && self.peers.permits_port(peer.port()) => Beyond::Host,
                None => Beyond::Nowhere,
            },
        };
        let rate = limits.allocation_rate;
        Some(ChannelPath { client: allocation.client, route: allocation.route, relayed, beyond, rate })
    }

    /// Has an allocation take from buckets that another data path takes from too, and whose instants count from `epoch`.
    pub fn share_meter(&mut self, id: AllocationId, buckets: Box<dyn SharedBuckets>, epoch: Instant) {
        if let Some(allocation) = self.table.get_mut(id) {
            allocation.share_meter(buckets, epoch);
        }
    }

    /// Has [`Effect::ChannelExtended`], [`Effect::IndicationRelayed`] and [`Effect::PermissionsChanged`] come from now on.
    pub fn tell_of_paths(&mut self) {
        self.tells_of_paths = true;
    }

    /// Until when indications to and from a peer are relayed, which may be in the past: the earlier of allocation and
    /// permission. `None` when there is no permission, or a channel is bound to the peer.
    pub fn indications_until(&self, relay: RelayId, peer: PeerAddr) -> Option<Instant> {
        self.table.get(relay.allocation)?.indications_until(peer)
    }

    pub(super) fn permissions_changed(&mut self, allocation: AllocationId) {
        if self.tells_of_paths {
            self.effects.push_back(Effect::PermissionsChanged { allocation });
        }
    }

    /// How a client on a relay of this server knows a relayed address: by the way that was named, its peer's advertised
    /// address or the bound one.
    pub(super) fn seen_from_relay(&self, relayed: RelayedAddr, advertised: bool) -> PeerAddr {
        PeerAddr::new(if advertised { self.shared.ports.public(relayed) } else { relayed.socket_addr() })
    }

    /// Tells until when channels are open that a refresh of something else is about.
    pub(super) fn extend_channels(&mut self, id: AllocationId, concerned: impl Fn(PeerAddr) -> bool) {
        let Some(allocation) = self.table.get(id).filter(|_| self.tells_of_paths) else { return };
        for (channel, peer, until) in allocation.channels_until(concerned) {
            let relay = RelayId { allocation: id, family: peer.family() };
            self.effects.push_back(Effect::ChannelExtended { relay, channel, peer, until });
        }
    }

    /// Whether a client has an allocation.
    pub fn has_allocation(&self, client: &FiveTuple) -> bool {
        self.table.find(client).is_some()
    }

    /// Whether another worker has the allocation of a client that has moved.
    pub fn is_elsewhere(&self, client: &FiveTuple) -> bool {
        self.elsewhere(client).is_some()
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn count_credential_failure(&mut self) {
        self.counters.credential_failures += 1;
    }

    pub(super) fn count(&mut self, outcome: Outcome) {
        self.counters.record(outcome);
    }

    /// Counts a datagram by what became of it.
    pub(super) fn conclude(&mut self, result: Result<Forward, Outcome>) -> Option<Forward> {
        let (outcome, forward) = match result {
            Ok(forward) => {
                let outcome = match forward {
                    Forward::ToPeer { .. } => Outcome::ToPeer,
                    Forward::ToClient { .. } => Outcome::ToClient,
                    Forward::ToWorker { .. } | Forward::Elsewhere { .. } => Outcome::ToWorker,
                };
                (outcome, Some(forward))
            }
            Err(outcome) => (outcome, None),
        };
        self.count(outcome);
        forward
    }

    /// Ends what has expired of an allocation, or all of it, and sets its timer again.
    fn expire(&mut self, id: AllocationId, now: Instant) {
        let Some(allocation) = self.table.get(id) else { return };
        for family in [Family::V4, Family::V6] {
            if allocation.relays().get(family).is_some_and(|relay| relay.expires_at <= now) {
                return self.end_family(id, family, EndReason::Expired, now);
            }
        }
        self.close_channels(id, now, None);
        self.close_overdue_connections(id, now);
        if let Some(allocation) = self.table.get_mut(id) {
            allocation.forget_permissions(now, None);
        }
        self.permissions_changed(id);
        self.rearm(id);
    }

    /// Sets the timer of an allocation to what expires next.
    pub(super) fn rearm(&mut self, id: AllocationId) {
        if let Some(deadline) = self.table.get(id).and_then(Allocation::next_expiry) {
            self.expiry.arm(id.slot, deadline);
        }
    }

    /// Closes expired channels, and those to peers of a family that is gone.
    pub(super) fn close_channels(&mut self, id: AllocationId, now: Instant, gone: Option<Family>) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        for (channel, peer) in
            allocation.unbind(|channel| now >= channel.expires_at || Some(channel.peer.family()) == gone)
        {
            let relay = RelayId { allocation: id, family: peer.family() };
            self.effects.push_back(Effect::ChannelClosed { relay, channel, peer });
        }
    }

    /// Ends one relayed address with its permissions and channels, and the allocation when it was the last.
    ///
    /// RFC 8656 section 8.1: "Deleting a single allocation destroys any permissions or channels associated with that
    /// particular allocation; it MUST NOT affect any permissions or channels associated with allocations for the other
    /// address family."
    pub(super) fn end_family(&mut self, id: AllocationId, family: Family, reason: EndReason, now: Instant) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        if allocation.relays().get(family.other()).is_none() {
            return self.end(id, reason);
        }
        self.close_channels(id, now, Some(family));
        self.close_connections_of(id, family);
        self.permissions_changed(id);
        let Some(allocation) = self.table.get_mut(id) else { return };
        allocation.forget_permissions(now, Some(family));
        let (transport, client) = (allocation.transport(), allocation.client.transport);
        if let Some(relay) = allocation.relays_mut().remove(family) {
            self.live.leave(client, family);
            self.close_relay(RelayId { allocation: id, family }, transport, relay.address);
        }
        self.expire(id, now);
    }

    fn end_all(&mut self, reason: EndReason) {
        while let Some((_, token)) = self.reserved.pop_front() {
            self.close_reserved(token);
        }
        for id in self.table.ids() {
            self.end(id, reason);
        }
    }

    /// Ends an allocation with everything that belongs to it.
    pub(super) fn end(&mut self, id: AllocationId, reason: EndReason) {
        let Some(mut allocation) = self.table.remove(id) else { return };
        self.expiry.disarm(id.slot);
        self.live.leave_all(&allocation, allocation.client.transport);
        self.end_mobility(id, &allocation);
        for (channel, peer) in allocation.unbind(|_| true) {
            let relay = RelayId { allocation: id, family: peer.family() };
            self.effects.push_back(Effect::ChannelClosed { relay, channel, peer });
        }
        self.permissions_changed(id);
        self.close_connections(&mut allocation, reason);
        for relay in allocation.relays().iter() {
            let relay_id = RelayId { allocation: id, family: relay.address.family() };
            self.close_relay(relay_id, allocation.transport(), relay.address);
        }
        if let Some(opening) = &allocation.opening {
            if let (Some(true), Some(relay)) = (opening.even_port, allocation.relays().iter().next()) {
                self.effects.push_back(Effect::CloseHeld { address: next_port(relay.address) });
            }
            return;
        }
        let (peers, peers_more) = allocation.take_peers();
        self.effects.push_back(Effect::AllocationEnded(Box::new(Ended {
            id: self.session_id(id, allocation.started),
            allocation: id,
            username: Arc::clone(&allocation.credentials.username),
            client: allocation.client,
            relayed: allocation.relays().iter().map(|relay| self.shared.ports.public(relay.address)).collect(),
            peers,
            peers_more,
            traffic: allocation.traffic,
            offloaded: Traffic::default(),
            started: allocation.started,
            reason,
        })));
    }

    /// Closes the port of a reservation that nobody redeemed.
    fn close_reserved(&mut self, token: Token) {
        if let Some(address) = self.shared.reservations.expire(token) {
            self.effects.push_back(Effect::CloseHeld { address });
        }
    }

    fn close_relay(&mut self, relay: RelayId, transport: RelayTransport, address: RelayedAddr) {
        self.shared.ports.withdraw(address, self.worker);
        self.effects.push_back(match transport {
            RelayTransport::Udp => Effect::CloseRelay { relay, address },
            RelayTransport::Tcp => Effect::CloseTcpRelay { relay, address },
        });
    }
}
