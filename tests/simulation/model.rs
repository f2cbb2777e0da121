//! What the server should do, in few words: allocations, permissions and channels by their instants. It shares nothing
//! with the server but the codec.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ferryd::address::FiveTuple;
use ferryd::stun::{AttributeType, ChannelData, Class, Message, Method, TransactionId};

use crate::harness::{Received, Reply, secs};

mod connections;

use connections::Connections;
pub(crate) use connections::Stage;

const PERMISSION: Duration = secs_const(300);
const CHANNEL: Duration = secs_const(600);
const NONCE: Duration = secs_const(3600);
/// Nonces count time in steps.
const NONCE_STEP: Duration = secs_const(64);
/// A release is answered alike for so long.
const RELEASE_MEMORY: Duration = secs_const(40);
/// What has expired is cleared away within this.
const TIMER: Duration = secs_const(1);

/// Where packets, and behind them bytes, are counted in a record.
const TO_CLIENT: usize = 0;
const TO_PEERS: usize = 2;

const fn secs_const(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What decides of a peer.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// The relay's own address.
    pub(crate) relay: IpAddr,
    pub(crate) forbidden: Vec<IpAddr>,
    /// Allocations in total; 0 is no limit.
    pub(crate) total: u32,
    /// Nobody gets a new allocation.
    pub(crate) draining: bool,
}

#[derive(Clone, Debug)]
struct Allocation {
    client: FiveTuple,
    mobility: Mobility,
    worker: usize,
    user: String,
    made_by: TransactionId,
    relay: SocketAddr,
    expires_at: Duration,
    permissions: BTreeMap<IpAddr, Duration>,
    channels: BTreeMap<u16, (SocketAddr, Duration)>,
    /// Of an allocation for TCP.
    connections: Option<Connections>,
    traffic: [u64; 4],
    unsure: bool,
}

/// The tickets of an allocation (RFC 8016), and where its client has announced that it goes.
#[derive(Clone, Debug, Default)]
struct Mobility {
    ticket: Option<Vec<u8>>,
    next: Option<FiveTuple>,
    /// Its connection is gone: only its ticket leads to it.
    away: bool,
    last: Option<Move>,
}

/// The Refresh that was the last to announce a 5-tuple.
#[derive(Clone, Debug)]
struct Move {
    with: Vec<u8>,
    client: FiveTuple,
    by: TransactionId,
    at: Duration,
}

/// What the record of an allocation must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) relay: SocketAddr,
    /// Packets and bytes to the client, then to peers.
    pub(crate) traffic: [u64; 4],
    /// It has sent to an allocation in the moments between its end and its timer, which may count or not.
    pub(crate) unsure: bool,
}

/// One message of application data that must arrive, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// A datagram of this relayed address.
    Peer {
        from: SocketAddr,
        to: SocketAddr,
        data: Vec<u8>,
    },
    Client {
        client: FiveTuple,
        received: Received,
    },
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) rules: Rules,
    allocations: Vec<Allocation>,
    /// The last says that the 5-tuple was another worker's before its allocation came there by a ticket: who is asked then
    /// may not know.
    released: Vec<(FiveTuple, TransactionId, Duration, bool)>,
    nonces: BTreeMap<Vec<u8>, (FiveTuple, Duration)>,
    /// Of allocations that have ended with a record.
    pub(crate) ended: Vec<Record>,
    /// Data that was not permitted.
    pub(crate) refused: u64,
    pub(crate) relayed: u64,
    /// Data that another caller did not let in, or not any more.
    between: u64,
}

impl Model {
    pub(crate) fn new(rules: Rules) -> Self {
        let (allocations, released, nonces, ended) = Default::default();
        Self { rules, allocations, released, nonces, ended, refused: 0, relayed: 0, between: 0 }
    }

    /// Lets go of what has expired.
    pub(crate) fn pass(&mut self, now: Duration) {
        let gone = self.allocations.extract_if(.., |it| now >= it.expires_at + TIMER);
        self.ended.extend(gone.map(|it| it.record()));
    }

    fn live(&self, now: Duration, client: &FiveTuple) -> Option<&Allocation> {
        self.allocations.iter().find(|it| it.is_of(client) && now < it.expires_at)
    }

    fn live_mut(&mut self, now: Duration, client: &FiveTuple) -> Option<&mut Allocation> {
        self.allocations.iter_mut().find(|it| it.is_of(client) && now < it.expires_at)
    }

    /// Of datagrams.
    fn owner(&self, now: Duration, relay: SocketAddr) -> Option<&Allocation> {
        self.owners(now, relay).find(|it| it.connections.is_none())
    }

    /// Of datagrams or of TCP.
    fn owners(&self, now: Duration, relay: SocketAddr) -> impl Iterator<Item = &Allocation> {
        self.allocations.iter().filter(move |it| it.relay == relay && now < it.expires_at)
    }

    /// An allocation has ended by something other than time.
    pub(crate) fn end(&mut self, client: &FiveTuple) {
        let gone = self.allocations.extract_if(.., |it| it.client == *client || it.is_of(client));
        self.ended.extend(gone.map(|it| it.record()));
    }

    /// The connection of a client has closed. Whoever has a ticket may come back.
    pub(crate) fn depart(&mut self, client: &FiveTuple) {
        let Some(left) = self.allocations.iter_mut().find(|it| it.is_of(client)) else { return };
        let Mobility { ticket, next, away, .. } = &mut left.mobility;
        if ticket.is_none() {
            return self.end(client);
        }
        match next.take() {
            Some(next) if next == *client => {}
            Some(next) => left.client = next,
            None => *away = true,
        }
    }

    pub(crate) fn end_all(&mut self) {
        self.ended.extend(self.allocations.drain(..).map(|it| it.record()));
    }

    /// A worker is gone, without a word.
    pub(crate) fn lose(&mut self, worker: usize) {
        self.allocations.retain(|it| it.worker != worker);
        self.released.clear();
    }

    /// Judges the answer to a request, and keeps what follows from it.
    pub(crate) fn request(
        &mut self,
        now: Duration,
        client: &FiveTuple,
        worker: usize,
        request: &Message<'_>,
        reply: &Reply,
    ) {
        assert_eq!((reply.id(), reply.method()), (request.transaction_id(), request.method()));
        let (result, method) = (reply.result(), request.method());
        if let Some(nonce) = reply.value(AttributeType::NONCE) {
            self.nonces.entry(nonce).or_insert((*client, now));
        }
        if method == Method::Binding {
            return assert_eq!(result, Ok(()));
        }
        let user = request.attribute(AttributeType::USERNAME).map(|it| String::from_utf8_lossy(it.value).into_owned());
        let signed = request.integrity().is_some();
        let issued = request.attribute(AttributeType::NONCE).and_then(|it| self.nonces.get(it.value)).copied();
        let age = issued.filter(|(to, _)| to == client).map(|(_, at)| now - at);
        let of_owner = self.live(now, client).is_some_and(|it| Some(&it.user) == user.as_ref());
        match result {
            Err(401) => return assert!(!signed || !of_owner, "the key of an allocation proves its user"),
            Err(438) => return assert!(age.is_none_or(|age| age + NONCE_STEP >= NONCE), "a nonce of {age:?} is good"),
            _ => assert!(signed && age.is_some_and(|age| age <= NONCE + NONCE_STEP), "nonce: {age:?}"),
        }
        match method {
            Method::Allocate => self.allocate(now, client, worker, request, reply, user.unwrap_or_default()),
            _ if self.live(now, client).is_some() && !of_owner => assert_eq!(result, Err(441)),
            Method::Refresh => self.refresh(now, client, request, reply),
            Method::CreatePermission => self.permit(now, client, request, result),
            Method::ChannelBind => self.bind(now, client, request, result),
            Method::Connect | Method::ConnectionBind => {} // Who asks for these looks at the answer.
            Method::Binding | Method::Send | Method::Data | Method::ConnectionAttempt => {
                panic!("nobody sends {method:?} here")
            }
        }
    }

    fn allocate(
        &mut self,
        now: Duration,
        client: &FiveTuple,
        worker: usize,
        request: &Message<'_>,
        reply: &Reply,
        user: String,
    ) {
        let made_by = request.transaction_id();
        let live = self.live(now, client);
        let count = |extra: Duration| self.allocations.iter().filter(|it| now < it.expires_at + extra).count() as u32;
        let total = self.rules.total;
        match (reply.result(), live) {
            (Ok(()), Some(live)) => {
                assert_eq!(
                    (live.made_by, live.relay),
                    (made_by, reply.relay()),
                    "only a retransmission succeeds again"
                );
            }
            (result, None) if self.rules.draining => assert_eq!(result, Err(508)),
            (Ok(()), None) => {
                assert!(total == 0 || count(Duration::ZERO) < total, "beyond the quota");
                let relay = reply.relay();
                assert!(self.owners(now, relay).next().is_none(), "{relay} has two owners");
                self.end(client);
                let expires_at = now + secs(reply.lifetime().into());
                let (client, permissions, channels) = (*client, BTreeMap::new(), BTreeMap::new());
                let (traffic, unsure) = ([0; 4], false);
                let ticket = reply.value(AttributeType::MOBILITY_TICKET);
                assert_eq!(ticket.is_some(), request.has(AttributeType::MOBILITY_TICKET));
                let mobility = Mobility { ticket, ..Mobility::default() };
                let transport = request.attribute(AttributeType::REQUESTED_TRANSPORT).expect("REQUESTED-TRANSPORT");
                let connections = (transport.value[0] == 6).then(Connections::default);
                let made = Allocation {
                    client,
                    mobility,
                    worker,
                    user,
                    made_by,
                    relay,
                    expires_at,
                    permissions,
                    channels,
                    connections,
                    traffic,
                    unsure,
                };
                self.allocations.push(made);
            }
            (Err(437), Some(live)) => assert_ne!(live.made_by, made_by),
            (Err(486), None) => assert!(total != 0 && count(TIMER) >= total, "{} of {total}", count(TIMER)),
            (other, live) => panic!("{other:?} to an Allocate, allocation: {live:?}"),
        }
    }

    fn refresh(&mut self, now: Duration, client: &FiveTuple, request: &Message<'_>, reply: &Reply) {
        let id = request.transaction_id();
        let repeats = |it: &&(_, _, Duration, _)| (&it.0, it.1) == (client, id) && now < it.2 + RELEASE_MEMORY;
        let repeated = self.released.iter().find(repeats).map(|it| it.3);
        if let Some(ticket) = request.attribute(AttributeType::MOBILITY_TICKET) {
            return self.come_back(now, client, ticket.value, request, reply);
        }
        let Some(live) = self.live_mut(now, client) else {
            return match repeated {
                Some(true) => assert!(matches!(reply.result(), Ok(()) | Err(437))),
                Some(false) => assert_eq!(reply.result(), Ok(())),
                None => assert_eq!(reply.result(), Err(437)),
            };
        };
        assert_eq!(reply.result(), Ok(()));
        let asked = request.attribute(AttributeType::LIFETIME).and_then(|it| it.as_u32());
        if asked == Some(0) {
            let moved = live.mobility.last.is_some();
            self.released.push((*client, id, now, moved));
            return self.end(client);
        }
        assert_eq!(reply.lifetime(), asked.unwrap_or(600).clamp(600, 3600));
        live.expires_at = now + secs(reply.lifetime().into());
    }

    /// A client is back on another 5-tuple, with a ticket.
    fn come_back(&mut self, now: Duration, client: &FiveTuple, ticket: &[u8], request: &Message<'_>, reply: &Reply) {
        let (by, new) = (request.transaction_id(), reply.value(AttributeType::MOBILITY_TICKET));
        let taken = self.live(now, client).is_some();
        let mut lives = self.allocations.iter_mut().filter(|it| now < it.expires_at);
        let Some(live) = lives.find(|it| it.knows(ticket)) else {
            return assert_eq!(reply.result(), Err(437), "a ticket of nobody");
        };
        let last = live.mobility.last.clone();
        if live.mobility.ticket.as_deref() != Some(ticket) {
            let is_repeated = |last: &Move| (&last.client, last.by) == (client, by) && now < last.at + RELEASE_MEMORY;
            let expected = if last.is_some_and(|last| is_repeated(&last)) { Ok(()) } else { Err(437) };
            assert_eq!(reply.result(), expected);
            return assert!(
                new.is_none() || new == live.mobility.ticket,
                "a repeated answer has the ticket that is good"
            );
        }
        if taken {
            let own = if live.is_of(client) { 400 } else { 437 };
            return assert_eq!(reply.result(), Err(own));
        }
        assert_eq!(reply.result(), Ok(()));
        assert!(new.is_some() && new != live.mobility.ticket, "another ticket");
        let last = Some(Move { with: ticket.to_vec(), client: *client, by, at: now });
        // Who is away is heard nowhere else, and has moved at once.
        let (now_at, next) = if live.mobility.away { (*client, None) } else { (live.client, Some(*client)) };
        live.client = now_at;
        live.mobility = Mobility { ticket: new, next, away: false, last };
        live.expires_at = now + secs(reply.lifetime().into());
    }

    /// Data, or what prepares for it, has come: from the announced 5-tuple the client has moved.
    fn speaks(&mut self, now: Duration, client: &FiveTuple) {
        let Some(live) = self.live_mut(now, client) else { return };
        if live.mobility.next == Some(*client) {
            live.mobility.next = None;
            live.client = *client;
        }
    }

    fn is_forbidden(&self, peer: SocketAddr) -> bool {
        self.rules.forbidden.contains(&peer.ip()) || peer.port() == 0
    }

    fn permit(&mut self, now: Duration, client: &FiveTuple, request: &Message<'_>, result: Result<(), u16>) {
        let peers = peers(request);
        let forbidden = peers.iter().any(|peer| self.rules.forbidden.contains(&peer.ip()));
        let Some(live) = self.live_mut(now, client) else { return assert_eq!(result, Err(437)) };
        assert_eq!(result, if forbidden { Err(403) } else { Ok(()) });
        if !forbidden {
            live.permissions.extend(peers.iter().map(|peer| (peer.ip(), now + PERMISSION)));
            self.speaks(now, client);
        }
    }

    fn bind(&mut self, now: Duration, client: &FiveTuple, request: &Message<'_>, result: Result<(), u16>) {
        let peer = peers(request)[0];
        let number = request.attribute(AttributeType::CHANNEL_NUMBER).and_then(|it| it.as_channel_number());
        let number = number.expect("CHANNEL-NUMBER");
        let dying = self.allocations.iter().any(|it| it.relay == peer);
        let dead = peer.ip() == self.rules.relay && self.owner(now, peer).is_none();
        let forbidden = self.is_forbidden(peer) || dead;
        let Some(live) = self.live_mut(now, client) else { return assert_eq!(result, Err(437)) };
        live.channels.retain(|_, (_, expires_at)| now < *expires_at);
        let clashes = live.channels.iter().any(|(bound, (to, _))| (*bound == number) != (*to == peer));
        let expected = match (clashes, forbidden) {
            (true, _) => Err(400),
            (false, true) => Err(403),
            (false, false) => Ok(()),
        };
        // The last moments of a peer's own allocation are its timer's.
        assert!(result == expected || (dead && dying && result == Ok(())), "{result:?} for {expected:?}");
        if result == Ok(()) {
            live.channels.insert(number, (peer, now + CHANNEL));
            live.permissions.insert(peer.ip(), now + PERMISSION);
            self.speaks(now, client);
        }
    }

    /// What must come of data of a client.
    pub(crate) fn client_sends(&mut self, now: Duration, client: &FiveTuple, bytes: &[u8]) -> Option<Flow> {
        if is_data(bytes) {
            self.speaks(now, client);
        }
        let between = self.between;
        let flow = self.client_flow(now, client, bytes);
        if between == self.between {
            self.count(flow.is_some());
        }
        flow
    }

    fn client_flow(&mut self, now: Duration, client: &FiveTuple, bytes: &[u8]) -> Option<Flow> {
        let live = self.live(now, client)?;
        let (peer, data) = if let Some(data) = ChannelData::parse(bytes) {
            let (peer, expires_at) = live.channels.get(&data.channel.get())?;
            (*peer, (now < *expires_at).then(|| bytes[data.data()].to_vec())?)
        } else {
            let message = Message::parse(bytes).ok()?;
            if (message.method(), message.class()) != (Method::Send, Class::Indication) {
                return None;
            }
            (peers(&message)[0], message.attribute(AttributeType::DATA)?.value.to_vec())
        };
        if !live.permits(now, peer.ip()) || peer.port() == 0 {
            return None;
        }
        let from = live.relay;
        if peer.ip() != self.rules.relay {
            self.live_mut(now, client)?.count(TO_PEERS, data.len());
            return Some(Flow::Peer { from, to: peer, data });
        }
        let is_dying = self.allocations.iter().any(|it| it.relay == peer && now >= it.expires_at);
        let Some(owner) = self.owner(now, peer).map(|it| it.client) else {
            self.live_mut(now, client)?.unsure |= is_dying;
            self.between += 1;
            return None;
        };
        // It has left the sender, whether or not the other lets it in.
        self.live_mut(now, client)?.count(TO_PEERS, data.len());
        let flow = self.deliver(now, &owner, from, data);
        self.between += u64::from(flow.is_none());
        flow
    }

    /// What must come of a peer's datagram to a relayed address.
    pub(crate) fn peer_sends(
        &mut self,
        now: Duration,
        from: SocketAddr,
        relay: SocketAddr,
        data: &[u8],
    ) -> Option<Flow> {
        let owner = self.owner(now, relay).map(|it| it.client);
        let flow = owner.and_then(|owner| self.deliver(now, &owner, from, data.to_vec()));
        self.count(flow.is_some());
        flow
    }

    fn deliver(&mut self, now: Duration, client: &FiveTuple, from: SocketAddr, data: Vec<u8>) -> Option<Flow> {
        let owner = self.live_mut(now, client)?;
        if !owner.permits(now, from.ip()) {
            return None;
        }
        owner.count(TO_CLIENT, data.len());
        let channel = owner.channels.iter().find(|(_, (to, expires_at))| *to == from && now < *expires_at);
        let received = match channel {
            Some((number, _)) => Received::Channel { number: *number, data },
            None => Received::Data { from, data },
        };
        Some(Flow::Client { client: *client, received })
    }

    fn count(&mut self, flows: bool) {
        *if flows { &mut self.relayed } else { &mut self.refused } += 1;
    }
}

fn is_data(bytes: &[u8]) -> bool {
    let is_send = |message: Message<'_>| (message.method(), message.class()) == (Method::Send, Class::Indication);
    ChannelData::parse(bytes).is_some() || Message::parse(bytes).is_ok_and(is_send)
}

impl Allocation {
    /// Whether it is reached from a 5-tuple.
    fn is_of(&self, client: &FiveTuple) -> bool {
        (self.client == *client && !self.mobility.away) || self.mobility.next == Some(*client)
    }

    fn knows(&self, ticket: &[u8]) -> bool {
        let Mobility { ticket: good, last, .. } = &self.mobility;
        good.as_deref() == Some(ticket) || last.as_ref().is_some_and(|last| last.with == ticket)
    }

    fn permits(&self, now: Duration, ip: IpAddr) -> bool {
        self.permissions.get(&ip).is_some_and(|expires_at| now < *expires_at)
    }

    fn record(&self) -> Record {
        Record { relay: self.relay, traffic: self.traffic, unsure: self.unsure }
    }

    fn count(&mut self, first: usize, len: usize) {
        self.traffic[first] += 1;
        self.traffic[first + 1] += len as u64;
    }
}

fn peers(message: &Message<'_>) -> Vec<SocketAddr> {
    let peers = message.attributes().filter(|it| it.kind == AttributeType::XOR_PEER_ADDRESS);
    peers.map(|it| it.as_xor_address(message.transaction_id()).expect("an address")).collect()
}
