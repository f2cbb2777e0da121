//! An allocation: its relayed addresses, permissions and channels (RFC 8656 section 6).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::effect::{RelaySource, Traffic};
use super::ids::{RelayTransport, Route};
use super::meter::{Direction, Meter, SharedBuckets};
use super::mobility::Mobility;
use super::peer_connections::PeerConnections;
use super::peer_policy::{PermittedPeer, Reach};
use super::quota::QuotaGuard;
use super::reply::Envelope;
use super::reservation::Token;
use super::settings::Limits;
use crate::address::{Family, FiveTuple, PeerAddr, RelayedAddr};
use crate::auth::Credentials;
use crate::stun::channel_data::ChannelNumber;
use crate::stun::{ErrorCode, TransactionId};

/// RFC 8656 section 9: "The Permission Lifetime MUST be 300 seconds (= 5 minutes)."
pub(super) const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// RFC 8656 section 12: "A channel binding lasts for 10 minutes unless refreshed."
pub(super) const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);
/// A permission that ends later by less than this is not told of again, so that a client which refreshes the permission of
/// many channels all the time costs what another does.
const TELLING_INTERVAL: Duration = Duration::from_secs(1);
/// Peers of a session record: calls have a few, and an allocation stays small.
const RECORDED_PEERS_MAX: usize = 16;

/// The state data of RFC 8656 section 6. What a packet touches is in front, in a few cache lines.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Allocation {
    pub(super) client: FiveTuple,
    pub(super) route: Route,
    /// Set when the client has a ticket.
    pub(super) mobility: Option<Box<Mobility>>,
    /// The flow that the last packet belonged to; nobody asks the tables until something changes.
    recent: Option<Flow>,
    pub(super) traffic: Traffic,
    /// Set until every relay socket is open; there is no allocation for anybody before.
    pub(super) opening: Option<Box<Opening>>,
    relays: Relays,
    pub(super) credentials: Credentials,
    permissions: HashMap<IpAddr, Permission, FixedState>,
    channels: HashMap<ChannelNumber, Channel, FixedState>,
    channels_by_peer: HashMap<PeerAddr, ChannelNumber, FixedState>,
    /// Seconds since the Unix epoch.
    pub(super) started: u64,
    /// The first peers that were ever permitted, for the session record.
    peers: Vec<IpAddr>,
    /// Permissions that were installed when the list was full.
    peers_more: u64,
    /// What a retransmission of the Allocate is answered from.
    pub(super) created: Created,
    /// Set for a TCP allocation.
    pub(super) connections: Option<Box<PeerConnections>>,
    /// What it has carried of late, where that is limited.
    meter: Option<Box<Meter>>,
    quota: QuotaGuard,
}

/// The Allocate that made it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Created {
    pub(super) transaction: TransactionId,
    pub(super) reservation: Option<Token>,
    pub(super) address_error: Option<(Family, ErrorCode)>,
}

/// An Allocate whose sockets are being opened.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) envelope: Envelope,
    /// Relay sockets not yet reported.
    pub(super) waiting: u8,
    /// Ports that something else on the host turned out to have.
    pub(super) attempts: u8,
    pub(super) even_port: Option<bool>,
    /// The client has asked for a ticket.
    pub(super) mobile: bool,
    /// The time-to-expiry, which begins when the allocation does.
    pub(super) lifetime: Duration,
    pub(super) source: RelaySource,
    /// The place that the reservation of an EVEN-PORT is to have.
    pub(super) reservation_quota: Option<QuotaGuard>,
}

/// At most one relayed address of each family.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Relays([Option<Relay>; 2]);

/// A relayed address with its own time-to-expiry: the halves of a dual allocation are refreshed apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relay {
    pub(super) address: RelayedAddr,
    pub(super) expires_at: Instant,
}

impl Relays {
    pub(super) fn get(&self, family: Family) -> Option<&Relay> {
        self.0[family as usize].as_ref()
    }

    pub(super) fn get_mut(&mut self, family: Family) -> Option<&mut Relay> {
        self.0[family as usize].as_mut()
    }

    pub(super) fn insert(&mut self, relay: Relay) {
        self.0[relay.address.family() as usize] = Some(relay);
    }

    pub(super) fn remove(&mut self, family: Family) -> Option<Relay> {
        self.0[family as usize].take()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Relay> {
        self.0.iter().flatten()
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Permission {
    pub(super) expires_at: Instant,
    /// What was told of `expires_at` last, to whoever carries the data of its channels besides.
    told: Instant,
    pub(super) reach: Reach,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Channel {
    pub(super) peer: PeerAddr,
    pub(super) expires_at: Instant,
}

/// A permitted peer, with the channel that is bound to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) peer: PeerAddr,
    pub(super) channel: Option<ChannelNumber>,
    pub(super) reach: Reach,
    /// The end of the relayed address, the permission or the channel, whichever is first.
    pub(super) until: Instant,
}

/// What a flow lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoFlow {
    Relay,
    Channel,
    Permission,
    /// A TCP allocation has no datagrams.
    Tcp,
}

/// Why a channel cannot be bound: 400 (Bad Request).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BindConflict;

impl Allocation {
    pub(super) fn new(
        client: FiveTuple,
        credentials: Credentials,
        created: Created,
        opening: Box<Opening>,
        quota: QuotaGuard,
        hasher: FixedState,
        started: u64,
    ) -> Self {
        Self {
            client,
            route: opening.envelope.route,
            mobility: None,
            recent: None,
            traffic: Traffic::default(),
            opening: Some(opening),
            relays: Relays::default(),
            credentials,
            permissions: HashMap::with_hasher(hasher.clone()),
            channels: HashMap::with_hasher(hasher.clone()),
            channels_by_peer: HashMap::with_hasher(hasher),
            started,
            peers: Vec::new(),
            peers_more: 0,
            created,
            connections: None,
            meter: None,
            quota,
        }
    }

    /// Whether data is within the limits of the allocation and of its user.
    pub(super) fn may_carry(&mut self, now: Instant, limits: &Limits, way: Direction, len: usize) -> bool {
        let (own, user) = (limits.allocation_rate, limits.user_rate);
        (!own.is_limited() || self.meter.get_or_insert_default().take(now, own, way, len))
            && (!user.is_limited() || self.quota.meter.as_ref().is_none_or(|meter| meter.take(now, user, way, len)))
    }

    /// Whether its user's limit on data concerns it.
    pub(super) fn is_metered_by_user(&self, limits: &Limits) -> bool {
        limits.user_rate.is_limited() && self.quota.meter.is_some()
    }

    /// Has it take from buckets that another data path takes from too.
    pub(super) fn share_meter(&mut self, buckets: Box<dyn SharedBuckets>, epoch: Instant) {
        self.meter.get_or_insert_default().share(buckets, epoch);
    }

    /// How many bytes of its data connections may pass now, by the limits of the allocation and of its user.
    pub(super) fn room(&mut self, now: Instant, limits: &Limits, way: Direction) -> u64 {
        let (own, user) = (limits.allocation_rate, limits.user_rate);
        let own = if own.is_limited() { self.meter.get_or_insert_default().room(now, own, way) } else { u64::MAX };
        own.min(self.quota.meter.as_ref().map_or(u64::MAX, |meter| meter.room(now, user, way)))
    }

    /// Has bytes of its data connections count against those limits.
    pub(super) fn charge(&mut self, now: Instant, limits: &Limits, way: Direction, bytes: u64) {
        if limits.allocation_rate.is_limited() {
            self.meter.get_or_insert_default().charge(now, limits.allocation_rate, way, bytes);
        }
        if let Some(meter) = &self.quota.meter {
            meter.charge(now, limits.user_rate, way, bytes);
        }
    }

    pub(super) fn relays(&self) -> &Relays {
        &self.relays
    }

    pub(super) fn relays_mut(&mut self) -> &mut Relays {
        self.recent = None;
        &mut self.relays
    }

    /// The flow of a channel.
    pub(super) fn flow_of(&mut self, channel: ChannelNumber, now: Instant) -> Result<Flow, NoFlow> {
        match self.recent {
            Some(flow) if flow.channel == Some(channel) && now < flow.until => Ok(flow),
            _ => {
                let peer = self.channel(channel, now).ok_or(NoFlow::Channel)?.peer;
                self.flow_to(peer, now)
            }
        }
    }

    /// The flow to and from a peer.
    pub(super) fn flow_to(&mut self, peer: PeerAddr, now: Instant) -> Result<Flow, NoFlow> {
        match self.recent {
            Some(flow) if flow.peer == peer && now < flow.until => Ok(flow),
            _ => {
                let flow = self.find_flow(peer, now)?;
                self.recent = Some(flow);
                Ok(flow)
            }
        }
    }

    fn find_flow(&self, peer: PeerAddr, now: Instant) -> Result<Flow, NoFlow> {
        // RFC 6062 section 3: the control connection "only allows TURN messages and not application data".
        if self.transport() == RelayTransport::Tcp {
            return Err(NoFlow::Tcp);
        }
        let relay = self.relays.get(peer.family()).filter(|relay| self.opening.is_none() && now < relay.expires_at);
        let relay = relay.ok_or(NoFlow::Relay)?;
        let permission = self.permission(peer.ip(), now).ok_or(NoFlow::Permission)?;
        let number = self.channels_by_peer.get(&peer);
        let channel = number.and_then(|number| Some((*number, self.channel(*number, now)?.expires_at)));
        let until = relay.expires_at.min(permission.expires_at);
        Ok(Flow {
            peer,
            channel: channel.map(|(number, _)| number),
            reach: permission.reach,
            until: channel.map_or(until, |(_, expires_at)| until.min(expires_at)),
        })
    }

    /// What it speaks to its peers.
    pub(super) fn transport(&self) -> RelayTransport {
        if self.connections.is_some() { RelayTransport::Tcp } else { RelayTransport::Udp }
    }

    /// Whether the relayed address of a family has not expired.
    pub(super) fn relays_at(&self, family: Family, now: Instant) -> bool {
        self.relays.get(family).is_some_and(|relay| now < relay.expires_at)
    }

    /// Sets the time-to-expiry of all relayed addresses.
    pub(super) fn set_expiry(&mut self, expires_at: Instant) {
        self.recent = None;
        self.relays.0.iter_mut().flatten().for_each(|relay| relay.expires_at = expires_at);
    }

    /// Whether any relayed address has not expired: what has waits for its timer to be cleared away.
    pub(super) fn lives(&self, now: Instant) -> bool {
        self.expires_at().is_some_and(|expires_at| now < expires_at)
    }

    /// The time left until the allocation expires, by the relayed address that lives longest.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.relays.iter().map(|relay| relay.expires_at).max()
    }

    /// The permission for an address (RFC 8656 section 9: "only addresses are compared and port numbers are not
    /// considered"), while it has not expired.
    pub(super) fn permission(&self, ip: IpAddr, now: Instant) -> Option<&Permission> {
        self.permissions.get(&ip).filter(|permission| now < permission.expires_at)
    }

    /// Whether installing permissions for `peers`, which are all different, stays within `max`; refreshes are not
    /// counted.
    pub(super) fn has_room_for(&mut self, peers: &[PermittedPeer], max: u16, now: Instant) -> bool {
        let new = |permissions: &HashMap<IpAddr, Permission, FixedState>| {
            peers.iter().filter(|peer| !permissions.contains_key(&peer.ip())).count()
        };
        if self.permissions.len() + new(&self.permissions) > usize::from(max) {
            self.permissions.retain(|_, permission| now < permission.expires_at);
        }
        let added = new(&self.permissions);
        added == 0 || self.permissions.len() + added <= usize::from(max)
    }

    /// Installs or refreshes a permission (RFC 8656 section 9); true when that is to be told of the channels to its
    /// address.
    pub(super) fn permit(&mut self, peer: PermittedPeer, now: Instant) -> bool {
        self.recent = None;
        let expires_at = now + PERMISSION_LIFETIME;
        let old = self.permissions.get(&peer.ip());
        let told = old.map(|old| old.told).filter(|told| expires_at < *told + TELLING_INTERVAL);
        let permission = Permission { expires_at, told: told.unwrap_or(expires_at), reach: peer.reach() };
        if self.permissions.insert(peer.ip(), permission).is_none() && !self.peers.contains(&peer.ip()) {
            if self.peers.len() < RECORDED_PEERS_MAX {
                self.peers.push(peer.ip());
            } else {
                self.peers_more += 1;
            }
        }
        told.is_none()
    }

    /// Has what is permitted reach no more than another policy lets it.
    pub(super) fn judge_anew(&mut self, reach_now: impl Fn(IpAddr, Reach) -> Reach) {
        self.recent = None;
        for (ip, permission) in &mut self.permissions {
            permission.reach = reach_now(*ip, permission.reach);
        }
    }

    /// The first peers that were ever permitted, and how many permissions were installed for others.
    pub(super) fn take_peers(&mut self) -> (Vec<IpAddr>, u64) {
        (std::mem::take(&mut self.peers), self.peers_more)
    }

    /// Permitted addresses with what is left of each permission.
    pub(super) fn permissions(&self, now: Instant) -> impl Iterator<Item = (IpAddr, Duration)> {
        let left =
            move |(ip, permission): (&IpAddr, &Permission)| (*ip, permission.expires_at.saturating_duration_since(now));
        self.permissions.iter().filter(move |(_, permission)| now < permission.expires_at).map(left)
    }

    /// Channels with their peers and what is left of each binding.
    pub(super) fn channels(&self, now: Instant) -> impl Iterator<Item = (ChannelNumber, PeerAddr, Duration)> {
        let live = self.channels.iter().filter(move |(_, channel)| now < channel.expires_at);
        live.map(move |(number, channel)| (*number, channel.peer, channel.expires_at.saturating_duration_since(now)))
    }

    /// The peer of a bound channel.
    pub(super) fn channel(&self, number: ChannelNumber, now: Instant) -> Option<&Channel> {
        self.channels.get(&number).filter(|channel| now < channel.expires_at)
    }

    /// The channel that is bound to a peer.
    pub(super) fn channel_to(&self, peer: PeerAddr, now: Instant) -> Option<ChannelNumber> {
        let number = *self.channels_by_peer.get(&peer)?;
        self.channel(number, now).map(|_| number)
    }

    /// RFC 8656 section 12.2: "The channel number is not currently bound to a different transport address" and "The
    /// transport address is not currently bound to a different channel number."
    pub(super) fn check_binding(
        &self,
        number: ChannelNumber,
        peer: PeerAddr,
        now: Instant,
    ) -> Result<(), BindConflict> {
        let other_peer = self.channel(number, now).is_some_and(|channel| channel.peer != peer);
        let other_number = self.channel_to(peer, now).is_some_and(|bound| bound != number);
        if other_peer || other_number { Err(BindConflict) } else { Ok(()) }
    }

    /// Whether one more channel stays within `max`; a refresh is not counted.
    pub(super) fn has_room_for_channel(&mut self, number: ChannelNumber, max: u16, now: Instant) -> bool {
        let is_bound = self.channel(number, now).is_some();
        is_bound || self.channels.values().filter(|channel| now < channel.expires_at).count() < usize::from(max)
    }

    /// Binds or refreshes a channel that [`Self::check_binding`] has passed; returns bindings that it takes the place
    /// of, which have expired.
    pub(super) fn bind(
        &mut self,
        number: ChannelNumber,
        peer: PeerAddr,
        now: Instant,
    ) -> Vec<(ChannelNumber, PeerAddr)> {
        self.recent = None;
        let channel = Channel { peer, expires_at: now + CHANNEL_LIFETIME };
        let mut replaced = Vec::new();
        if let Some(old) = self.channels.insert(number, channel).filter(|old| old.peer != peer) {
            self.channels_by_peer.remove(&old.peer);
            replaced.push((number, old.peer));
        }
        if let Some(old) = self.channels_by_peer.insert(peer, number).filter(|old| *old != number) {
            self.channels.remove(&old);
            replaced.push((old, peer));
        }
        replaced
    }

    /// What the permission for an address reaches, expired or not.
    pub(super) fn reach(&self, ip: IpAddr) -> Option<Reach> {
        Some(self.permissions.get(&ip)?.reach)
    }

    /// Until when a channel to a peer is open, which may be in the past: the earliest of allocation, permission and
    /// channel.
    pub(super) fn open_until(&self, peer: PeerAddr) -> Option<Instant> {
        let channel = self.channels.get(self.channels_by_peer.get(&peer)?)?.expires_at;
        let permission = self.permissions.get(&peer.ip())?.expires_at;
        let relay = self.relays.get(peer.family())?.expires_at;
        Some(channel.min(permission).min(relay))
    }

    /// Until when indications to and from a peer are relayed, which may be in the past; `None` when there is no permission
    /// or a channel is bound.
    pub(super) fn indications_until(&self, peer: PeerAddr) -> Option<Instant> {
        let permission = self.permissions.get(&peer.ip())?.expires_at;
        let relay = self.relays.get(peer.family())?.expires_at;
        (!self.channels_by_peer.contains_key(&peer)).then(|| permission.min(relay))
    }

    /// Every bound channel to a peer that is `concerned` and permitted, and until when it is open.
    pub(super) fn channels_until(
        &self,
        concerned: impl Fn(PeerAddr) -> bool,
    ) -> impl Iterator<Item = (ChannelNumber, PeerAddr, Instant)> {
        let of_concerned = self.channels.iter().filter(move |(_, channel)| concerned(channel.peer));
        of_concerned.filter_map(|(number, channel)| Some((*number, channel.peer, self.open_until(channel.peer)?)))
    }

    /// Whether another time-to-expiry of a family can be felt by channels and permissions, which are never open for longer
    /// than a permission lasts.
    pub(super) fn is_felt(&self, family: Family, expires_at: Instant, now: Instant) -> bool {
        let old = self.relays.get(family).map_or(now, |relay| relay.expires_at);
        old.min(expires_at) < now + PERMISSION_LIFETIME
    }

    /// Takes out the channels that are `gone`; sorted, so that a run can be repeated.
    pub(super) fn unbind(&mut self, gone: impl Fn(&Channel) -> bool) -> Vec<(ChannelNumber, PeerAddr)> {
        self.recent = None;
        let mut unbound: Vec<_> = self
            .channels
            .extract_if(|_, channel| gone(channel))
            .map(|(number, channel)| (number, channel.peer))
            .collect();
        unbound.sort_unstable();
        for (number, peer) in &unbound {
            if self.channels_by_peer.get(peer) == Some(number) {
                self.channels_by_peer.remove(peer);
            }
        }
        unbound
    }

    /// Takes out permissions that have expired, and those of a family that is gone.
    pub(super) fn forget_permissions(&mut self, now: Instant, gone: Option<Family>) {
        self.recent = None;
        self.permissions.retain(|ip, permission| now < permission.expires_at && Some(Family::of(*ip)) != gone);
    }

    /// When something of it expires next.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let relays = self.relays.iter().map(|relay| relay.expires_at);
        let permissions = self.permissions.values().map(|permission| permission.expires_at);
        let channels = self.channels.values().map(|channel| channel.expires_at);
        let connections = self.connections.iter().flat_map(|connections| connections.deadlines());
        relays.chain(permissions).chain(channels).chain(connections).min()
    }
}
