//! Clients with credentials and whatever they, their peers, the network, the clock and the operator do: data flows by
//! permission alone, and nothing is left at the end.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use ferryd::address::{PeerAddr, RelayedAddr, Transport};
use ferryd::stun::{AttributeType, Builder, Message, Method};
use ferryd::turn::{IcmpError, OpenError, PeerConnectionId};

use crate::harness::{BOB, Client, Received, Reply, World, addr, assert_no_leak};

const CLIENTS: [(&str, Transport); 4] = [
    ("198.51.100.1:1000", Transport::Udp),
    ("198.51.100.2:1000", Transport::Udp),
    ("198.51.100.3:1000", Transport::Tcp),
    ("[2001:db8:7::1]:1000", Transport::Tls),
];
const PEERS: [&str; 8] = [
    "9.9.9.9:7000",
    "9.9.9.9:7001",
    "8.8.8.8:1",
    "[2620:fe::fe]:7000",
    "10.0.0.1:1",
    "127.0.0.1:3478",
    "192.0.2.1:22",
    "[2001:db8::1]:53",
];
/// The peers that a policy without exceptions lets through.
const OPEN: usize = 4;

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    Request {
        client: u8,
        worker: bool,
        bob: bool,
        method: u8,
        attributes: Vec<Value<'a>>,
        changes: &'a [u8],
    },
    /// The last request once more.
    Again {
        worker: bool,
    },
    Send {
        client: u8,
        peer: Peer,
        data: &'a [u8],
    },
    Channel {
        client: u8,
        number: u16,
        data: &'a [u8],
    },
    Bytes {
        client: u8,
        bytes: &'a [u8],
    },
    /// Where a client's relayed address speaks TCP, the peer connects.
    PeerData {
        peer: u8,
        client: u8,
        len: u16,
    },
    /// Where a client's relayed address speaks TCP, one of the connections with peers goes on: made, refused or ended.
    Icmp {
        peer: u8,
        client: u8,
        kind: u8,
        code: u8,
    },
    Close {
        client: u8,
    },
    Wait {
        ms: u32,
        late: bool,
    },
    OpenFails {
        exhausted: bool,
    },
    OpensWait(bool),
    Reload(u8),
    WorkerFails(bool),
    Stop,
}

#[derive(Debug, Arbitrary)]
enum Value<'a> {
    Udp,
    Tcp,
    Lifetime(u32),
    Family(bool),
    Additional,
    EvenPort(bool),
    Token,
    Peer(Peer),
    Channel(u16),
    Data(&'a [u8]),
    DontFragment,
    Ticket,
    Raw(u16, &'a [u8]),
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum Peer {
    Outside(u8),
    /// The relayed address of a client.
    Relay(u8),
}

struct Run {
    world: World,
    clients: Vec<Client>,
    relays: Vec<Option<SocketAddr>>,
    /// When each client was last granted each peer address.
    granted: HashMap<(usize, IpAddr), Duration>,
    token: Option<Vec<u8>>,
    elapsed: Duration,
    last: Option<(usize, Vec<u8>)>,
}

pub fn run(bytes: &[u8]) {
    let mut world = World::with(|setup| {
        setup.workers = 2;
        (setup.turn.port_min, setup.turn.port_max) = (50_000, 50_015);
        setup.turn.peers.own_addresses = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().expect("an address")).into();
        setup.turn.peers.listener_ports = vec![3478];
        setup.turn.limits.allocations_per_prefix = 3;
        (setup.turn.mobility, setup.turn.tcp_allocations) = (true, true);
    });
    let mut clients: Vec<_> = CLIENTS.iter().map(|(address, transport)| Client::over(address, *transport)).collect();
    clients.iter_mut().for_each(|client| _ = client.challenge(&mut world));
    let mut run = Run {
        world,
        clients,
        relays: vec![None; CLIENTS.len()],
        granted: HashMap::new(),
        token: None,
        elapsed: Duration::ZERO,
        last: None,
    };
    let mut input = Unstructured::new(bytes);
    let steps: Vec<Step<'_>> = input.arbitrary_iter().into_iter().flatten().flatten().take(48).collect();
    steps.iter().for_each(|step| run.step(step));
    run.world.open_pending();
    run.world.advance(Duration::from_secs(5000));
    assert_no_leak(&run.world);
}

impl Run {
    fn step(&mut self, step: &Step<'_>) {
        match step {
            Step::Request { client, worker, bob, method, attributes, changes } => {
                let index = of(*client);
                let mut bytes = self.request(index, *bob, *method, attributes);
                let at = bytes.len() - changes.len().min(bytes.len());
                bytes[at..].iter_mut().zip(*changes).for_each(|(byte, change)| *byte ^= change);
                self.send(index, *worker, &bytes);
                self.last = Some((index, bytes));
            }
            Step::Again { worker } => {
                if let Some((index, bytes)) = self.last.clone() {
                    self.send(index, *worker, &bytes);
                }
            }
            Step::Send { client, peer, data } => {
                let (index, peer) = (of(*client), self.peer(*peer));
                if self.bound_to(index).is_none() {
                    self.clients[index].indicate(&mut self.world, &peer.to_string(), data);
                }
            }
            Step::Channel { client, number, data } => {
                let data = &data[..data.len().min(1400)];
                if self.bound_to(of(*client)).is_some() {
                    return;
                }
                self.clients[of(*client)].channel_data(&mut self.world, 0x4000 | number & 0x3FFF, data);
            }
            Step::Bytes { client, bytes } => {
                if self.bound_to(of(*client)).is_none() {
                    self.clients[of(*client)].send(&mut self.world, bytes);
                }
            }
            Step::PeerData { peer, client, len } => {
                let peer = PEERS[usize::from(*peer) % OPEN];
                match self.relays[of(*client)] {
                    None => {}
                    Some(relay) if self.world.listens(relay) && relay.is_ipv4() == addr(peer).is_ipv4() => {
                        self.world.peer_connects(peer, relay);
                    }
                    Some(relay) => _ = self.world.peer_sends(peer, relay, &vec![7; usize::from(*len)]),
                }
            }
            Step::Icmp { client, kind, code, .. }
                if self.relays[of(*client)].is_some_and(|relay| self.world.listens(relay)) =>
            {
                self.go_on_with_a_connection(usize::from(*kind), *code);
            }
            Step::Icmp { peer, client, kind, code } => {
                let about =
                    self.relays[of(*client)].filter(|it| self.world.sockets.contains_key(&RelayedAddr::new(*it)));
                if let Some(about) = about {
                    let peer = PeerAddr::new(addr(PEERS[usize::from(*peer) % OPEN]));
                    self.world.icmp(about, IcmpError { peer, kind: *kind, code: *code, mtu: 1400 });
                }
            }
            Step::Close { client } => {
                let bound = self.bound_to(of(*client));
                let client = &self.clients[of(*client)];
                if let Some(connection) = bound {
                    self.world.peer_closes(connection);
                } else if client.at.transport.is_stream() {
                    self.world.client_closes(client.worker, &client.at);
                }
            }
            Step::Wait { ms, late } => {
                let by = Duration::from_millis(u64::from(ms % 1_000_000));
                self.elapsed += by;
                if *late { self.world.jump(by) } else { self.world.advance(by) }
            }
            Step::OpenFails { exhausted } => {
                let error = if *exhausted { OpenError::Exhausted } else { OpenError::AddressInUse };
                self.world.open_failures.push_back(error);
            }
            Step::OpensWait(wait) => {
                self.world.open_pending();
                self.world.opens_wait = *wait;
            }
            Step::Reload(what) => self.world.reload(|setup| {
                setup.turn.mobility = what & 1 == 0;
                setup.turn.peers.own_addresses = vec!["192.0.2.1".parse().expect("an address")];
                setup.turn.limits.permissions_per_allocation = if what & 2 == 0 { 2 } else { 1024 };
                setup.turn.limits.allocations_total = u32::from(what >> 4);
                if what & 4 != 0 {
                    setup.turn.peers.deny = vec!["9.0.0.0/8".parse().expect("a prefix")];
                }
                if what & 8 != 0 {
                    setup.auth.users.clear();
                }
            }),
            Step::WorkerFails(which) => self.world.fail(usize::from(*which)),
            Step::Stop => self.world.stop(),
        }
        self.look();
    }

    fn request(&mut self, index: usize, bob: bool, method: u8, attributes: &[Value<'_>]) -> Vec<u8> {
        let method = Method::ALL[usize::from(method) % Method::ALL.len()];
        let peers: Vec<_> = attributes
            .iter()
            .map(|value| if let Value::Peer(peer) = value { self.peer(*peer) } else { addr(PEERS[0]) })
            .collect();
        let token = self.token.clone().unwrap_or_default();
        let mut client = self.clients[index].clone();
        if bob {
            client = client.user("bob", BOB);
        }
        // One of the connections that there are.
        let ids: Vec<_> = self.world.connections.keys().map(|id| id.0).collect();
        client.signed(method, |builder| {
            if method == Method::ConnectionBind && !ids.is_empty() {
                builder.u32(AttributeType::CONNECTION_ID, ids[attributes.len() % ids.len()]);
            }
            for (value, peer) in attributes.iter().zip(peers) {
                write(builder, value, peer, &token);
            }
        })
    }

    /// The connection that a client's stream is bound to: what comes over it are no messages.
    fn bound_to(&self, index: usize) -> Option<PeerConnectionId> {
        let at = Some(self.clients[index].at);
        self.world.connections.iter().find(|(_, connection)| connection.bound == at).map(|(id, _)| *id)
    }

    fn go_on_with_a_connection(&mut self, number: usize, how: u8) {
        let count = self.world.connections.len().max(1);
        let Some((id, connection)) = self.world.connections.iter().nth(number % count) else { return };
        match connection.to.filter(|_| connection.bound.is_none() && how < 0x80) {
            Some(to) => _ = self.world.peer_answers(&to.to_string(), how & 1 == 0),
            None => self.world.peer_closes(*id),
        }
    }

    fn peer(&self, peer: Peer) -> SocketAddr {
        match peer {
            Peer::Outside(index) => addr(PEERS[usize::from(index) % PEERS.len()]),
            Peer::Relay(client) => self.relays[of(client)].unwrap_or_else(|| addr("192.0.2.1:1")),
        }
    }

    /// Sends a request and learns from its answer.
    fn send(&mut self, index: usize, worker: bool, bytes: &[u8]) {
        if self.bound_to(index).is_some() {
            return;
        }
        let client = &mut self.clients[index];
        client.worker = usize::from(worker && client.at.transport.is_stream());
        self.look();
        let client = &mut self.clients[index];
        client.send(&mut self.world, bytes);
        let request = Message::parse(bytes);
        for answer in self.world.inbox(&client.at) {
            let reply = Reply { bytes: answer };
            if reply.message().has(AttributeType::NONCE) {
                client.learn(&reply);
            }
            if let Some(token) = reply.value(AttributeType::RESERVATION_TOKEN) {
                self.token = Some(token);
            }
            let Ok(request) = &request else { continue };
            if reply.result().is_err() {
                continue;
            }
            match reply.method() {
                Method::Allocate => self.relays[index] = reply.relayed().first().copied(),
                Method::CreatePermission | Method::ChannelBind => {
                    let peers = request.attributes().filter(|it| it.kind == AttributeType::XOR_PEER_ADDRESS);
                    for peer in peers.filter_map(|it| it.as_xor_address(request.transaction_id())) {
                        self.granted.insert((index, peer.ip()), self.elapsed);
                    }
                }
                _ => {}
            }
        }
    }

    /// Whatever has arrived anywhere has been granted within the last five minutes.
    fn look(&mut self) {
        for sent in self.world.sent() {
            let open = PEERS[..OPEN].iter().any(|peer| addr(peer).ip() == sent.to.ip());
            assert!(open, "{} is nobody's business", sent.to.ip());
            let somebody = (0..CLIENTS.len()).any(|index| self.is_granted(index, sent.to.ip()));
            assert!(somebody, "nobody has permitted {}", sent.to.ip());
        }
        for connection in self.world.connections.values() {
            let Some(to) = connection.to else { continue };
            let open = PEERS[..OPEN].iter().any(|peer| addr(peer).ip() == to.ip());
            // Its listener may be closed by now.
            let own_relay = self.relays.contains(&Some(to.socket_addr()));
            assert!(open || own_relay, "{to} is nobody's business");
        }
        for index in 0..CLIENTS.len() {
            let padded = self.clients[index].at.transport.is_stream();
            for bytes in self.world.inbox(&self.clients[index].at) {
                if Message::parse(&bytes).is_ok_and(|message| message.method() != Method::Data) {
                    continue;
                }
                if let Received::Data { from, .. } | Received::Icmp { about: from, .. } =
                    Received::parse(&bytes, padded)
                {
                    assert!(self.is_granted(index, from.ip()), "client {index} has not permitted {from}");
                }
            }
        }
    }

    fn is_granted(&self, index: usize, ip: IpAddr) -> bool {
        let granted = self.granted.get(&(index, ip));
        granted.is_some_and(|at| self.elapsed < *at + Duration::from_secs(300))
    }
}

fn of(client: u8) -> usize {
    usize::from(client) % CLIENTS.len()
}

fn write(builder: &mut Builder<'_>, value: &Value<'_>, peer: SocketAddr, token: &[u8]) {
    match value {
        Value::Udp => builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]),
        Value::Tcp => builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[6, 0, 0, 0]),
        Value::Lifetime(seconds) => builder.u32(AttributeType::LIFETIME, *seconds),
        Value::Family(v6) => builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[1 + u8::from(*v6), 0, 0, 0]),
        Value::Additional => builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]),
        Value::EvenPort(next) => builder.attribute(AttributeType::EVEN_PORT, &[u8::from(*next) << 7]),
        Value::Token => builder.attribute(AttributeType::RESERVATION_TOKEN, token),
        Value::Peer(_) => builder.xor_address(AttributeType::XOR_PEER_ADDRESS, peer),
        Value::Channel(number) => builder.u32(AttributeType::CHANNEL_NUMBER, u32::from(*number) << 16),
        Value::Data(data) => builder.attribute(AttributeType::DATA, &data[..data.len().min(1400)]),
        Value::DontFragment => builder.attribute(AttributeType::DONT_FRAGMENT, &[]),
        Value::Ticket => builder.attribute(AttributeType::MOBILITY_TICKET, &[]),
        Value::Raw(kind, value) => builder.attribute(AttributeType(*kind), &value[..value.len().min(200)]),
    };
}
