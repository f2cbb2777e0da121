//! The run of one seed: who there is, what the network does, and what happens next.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ferryd::address::{ClientAddr, FiveTuple, ServerAddr, Transport};
use ferryd::stun::{AttributeType, Class, Message, Method};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::caller::{Act, Browser, Caller, Party, Peer, Phase, Timer};
use crate::dialler::{Dialler, HOST};
use crate::harness::{BOB, Client, Received, Reply, World, addr, assert_no_leak, secs};
use crate::model::{Flow, Model, Rules};
use crate::network::Weather;
use crate::operator::{Operation, configure};
use crate::totals::Totals;

/// Twice as often by UDP as by either kind of stream.
const TRANSPORTS: [Transport; 4] = [Transport::Udp, Transport::Udp, Transport::Tcp, Transport::Tls];
const RELAY: &str = "192.0.2.1";
/// Peers on the open network.
pub(crate) const OPEN: [&str; 6] =
    ["9.9.9.9:7000", "9.9.9.9:7001", "8.8.8.8:1", "8.8.4.4:40000", "1.1.1.1:5000", "203.0.114.9:65535"];
pub(crate) const FORBIDDEN: [&str; 2] = ["10.0.0.1:80", "169.254.169.254:80"];

/// What happens at a moment.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    AtServer {
        from: FiveTuple,
        bytes: Vec<u8>,
    },
    AtClient {
        caller: usize,
        to: FiveTuple,
        bytes: Vec<u8>,
    },
    AtRelay {
        from: SocketAddr,
        relay: SocketAddr,
        bytes: Vec<u8>,
    },
    AtPeer {
        peer: SocketAddr,
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    Timer {
        caller: usize,
        generation: u32,
        timer: Timer,
    },
    /// The NAT of a caller forgets it, and the next packet has another address.
    Rebind {
        caller: usize,
    },
    HangUp {
        caller: usize,
    },
    Operation(Operation),
    /// The client of TCP to peers does something.
    Dial,
    /// Somebody with other credentials on a caller's 5-tuple.
    Intruder {
        caller: usize,
    },
    /// Anybody's bytes.
    Stranger,
    /// A peer that nobody talks to sends to a relayed address.
    Knock {
        caller: usize,
    },
}

pub(crate) struct Sim {
    pub(crate) rng: StdRng,
    pub(crate) world: World,
    pub(crate) model: Model,
    queue: BTreeMap<(Duration, u64), Event>,
    order: u64,
    pub(crate) now: Duration,
    pub(crate) end: Duration,
    pub(crate) weather: Weather,
    /// Nothing goes wrong, so that every call must go well.
    calm: bool,
    pub(crate) callers: Vec<Caller>,
    pub(crate) workers: usize,
    ports: u16,
    /// When each stream delivers its next bytes at the earliest: a stream keeps its order.
    pub(crate) streams: BTreeMap<(SocketAddr, bool), Duration>,
    pub(crate) without_users: bool,
    pub(crate) dialler: Option<Dialler>,
    pub(crate) totals: Totals,
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let calm = seed.is_multiple_of(5);
        let workers = rng.random_range(1..=3u8);
        // Now and then a crowd.
        let count = if seed % 250 == 1 { 150 } else { rng.random_range(2..=6) };
        let rules = Rules {
            relay: RELAY.parse().unwrap(),
            forbidden: FORBIDDEN.map(|peer| addr(peer).ip()).to_vec(),
            total: if !calm && rng.random_bool(0.2) { rng.random_range(1..=count as u32) } else { 0 },
            draining: false,
        };
        let world = World::with(|setup| {
            setup.workers = workers;
            configure(setup, &rules, false);
        });
        let weather = if calm {
            Weather { loss: 0.0, duplication: 0.0, latency: Duration::from_millis(30), jitter: Duration::ZERO }
        } else {
            Weather {
                loss: [0.0, 0.01, 0.1, 0.3][rng.random_range(0..4)],
                duplication: [0.0, 0.02, 0.2][rng.random_range(0..3)],
                latency: Duration::from_millis(rng.random_range(1..200)),
                jitter: Duration::from_millis([0, 10, 700][rng.random_range(0..3)]),
            }
        };
        let mut sim = Self {
            world,
            model: Model::new(rules),
            queue: BTreeMap::new(),
            order: 0,
            now: Duration::ZERO,
            end: secs(rng.random_range(600..4500)),
            weather,
            calm,
            callers: Vec::new(),
            workers: workers.into(),
            ports: 1000,
            streams: BTreeMap::new(),
            without_users: false,
            dialler: None,
            totals: Totals::default(),
            rng,
        };
        (0..count).for_each(|index| sim.add_caller(index, count));
        sim.introduce();
        sim.plan();
        if !calm && sim.rng.random_bool(0.5) {
            sim.add_dialler();
        }
        sim
    }

    fn add_caller(&mut self, index: usize, count: usize) {
        let browser = if self.rng.random_bool(0.5) { Browser::Chrome } else { Browser::Firefox };
        let transport = TRANSPORTS[self.rng.random_range(0..4)];
        let mut peers: Vec<_> = (0..self.rng.random_range(1..=2))
            .map(|_| Peer::new(Party::At(addr(OPEN[self.rng.random_range(0..OPEN.len())]))))
            .collect();
        if self.rng.random_bool(0.5) {
            peers.push(Peer::new(Party::Caller(self.rng.random_range(0..count))));
        }
        if !self.calm && self.rng.random_bool(0.2) {
            peers.push(Peer::new(Party::At(addr(FORBIDDEN[self.rng.random_range(0..FORBIDDEN.len())]))));
        }
        peers.dedup_by_key(|peer| peer.party);
        let mut client = Client::over("198.51.100.1:1", transport);
        client.at = self.new_five_tuple(index, transport);
        if self.rng.random_bool(0.3) {
            client = client.time_limited(&format!("{}:caller-{index}", crate::harness::UNIX_START + 60));
        }
        let media_every = Duration::from_millis(self.rng.random_range(15_000..120_000));
        let mut caller = Caller::new(browser, client, peers, media_every);
        caller.careless = !self.calm && self.rng.random_bool(0.2);
        caller.mobile = self.rng.random_bool(0.5);
        // Who can move is on the way.
        let moves = if caller.mobile && !self.calm { self.rng.random_range(0..5) } else { 0 };
        for _ in 0..moves {
            let at = secs(self.rng.random_range(40..self.end.as_secs()));
            self.at(at, Event::Rebind { caller: index });
        }
        self.callers.push(caller);
        let start = Duration::from_millis(self.rng.random_range(0..30_000));
        self.at(start, Event::Timer { caller: index, generation: 0, timer: Timer::Start });
        if self.calm || self.rng.random_bool(0.5) {
            let hang_up = if self.calm { self.end } else { secs(self.rng.random_range(60..5400)) };
            self.at(hang_up, Event::HangUp { caller: index });
        }
    }

    /// Who calls somebody is called back.
    fn introduce(&mut self) {
        for caller in 0..self.callers.len() {
            for party in self.callers[caller].peers.iter().map(|peer| peer.party).collect::<Vec<_>>() {
                let Party::Caller(other) = party else { continue };
                let back = Party::Caller(caller);
                if self.callers[other].peers.iter().all(|peer| peer.party != back) {
                    self.callers[other].peers.push(Peer::new(back));
                }
            }
        }
    }

    /// What befalls everybody.
    fn plan(&mut self) {
        if self.calm {
            return;
        }
        let end = self.end.as_secs();
        for _ in 0..self.rng.random_range(0..6) {
            let at = secs(self.rng.random_range(0..end));
            let caller = self.rng.random_range(0..self.callers.len());
            let event = match self.rng.random_range(0..10) {
                0 | 1 => Event::Rebind { caller },
                2 => Event::Operation(Operation::Reload),
                3 if self.rng.random_bool(0.8) => Event::Operation(Operation::Evict),
                3 => Event::Operation(Operation::Drain),
                4 => Event::Operation(Operation::Fail),
                5 | 6 => Event::Intruder { caller },
                7 => Event::Stranger,
                _ => Event::Knock { caller },
            };
            self.at(at, event);
        }
        if self.rng.random_bool(0.1) {
            let at = secs(self.rng.random_range(0..end));
            self.at(at, Event::Operation(Operation::Stop));
        }
    }

    pub(crate) fn run(mut self) -> Totals {
        let mut refused = 0;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > self.end + secs(60) {
                break;
            }
            self.world.advance(at - self.now);
            self.now = at;
            self.model.pass(at);
            self.totals.events += 1;
            self.handle(event);
            // Whoever has hung up may be sent to still.
            if at < self.end {
                refused = self.model.refused;
            }
        }
        if self.calm {
            assert_eq!(refused, 0, "all that was sent was permitted");
            assert_eq!((self.totals.given_up, self.totals.lost), (0, 0), "nothing went wrong, and a call ended");
        }
        self.world.advance(secs(8000));
        self.model.pass(self.now + secs(8000));
        assert_no_leak(&self.world);
        self.compare_records();
        self.totals.relayed = self.model.relayed;
        self.totals.refused = self.model.refused;
        self.totals
    }

    /// Every allocation that did not go down with its worker has a record, with its traffic.
    fn compare_records(&self) {
        let mut records: Vec<_> = self.world.ended().iter().map(|ended| (ended.relayed[0], traffic(ended))).collect();
        let mut expected = self.model.ended.clone();
        records.sort_unstable();
        expected.sort_unstable();
        assert_eq!(records.len(), expected.len(), "records");
        for ((relay, mut traffic), expected) in records.into_iter().zip(expected) {
            if expected.unsure {
                traffic[2..].copy_from_slice(&expected.traffic[2..]);
            }
            assert_eq!((relay, traffic), (expected.relay, expected.traffic));
        }
    }

    pub(crate) fn at(&mut self, at: Duration, event: Event) {
        self.order += 1;
        self.queue.insert((at, self.order), event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::AtServer { from, bytes } => self.at_server(from, &bytes),
            Event::AtRelay { from, relay, bytes } => self.at_relay(from, relay, &bytes),
            Event::AtClient { caller, to, bytes } => {
                if self.callers[caller].client.at == to {
                    let mut acts = Vec::new();
                    self.callers[caller].handle_message(&bytes, &mut acts);
                    self.act(caller, acts);
                }
            }
            Event::AtPeer { peer, from, bytes } => {
                if self.rng.random_bool(0.6) {
                    self.fly(Event::AtRelay { from: peer, relay: from, bytes }, None);
                }
            }
            Event::Timer { caller, generation, timer } => {
                if self.callers[caller].generation == generation {
                    self.meet(caller);
                    let mut acts = Vec::new();
                    self.callers[caller].handle_timer(timer, &mut acts);
                    self.act(caller, acts);
                }
            }
            Event::Rebind { caller } => {
                let (transport, may_move) = (self.callers[caller].client.at.transport, self.callers[caller].may_move());
                self.close(caller);
                if transport.is_stream() && !may_move {
                    return self.restart(caller);
                }
                self.totals.rebound += 1;
                // Another network may let other transports through.
                let transport = if may_move { TRANSPORTS[self.rng.random_range(0..4)] } else { transport };
                self.callers[caller].client.at = self.new_five_tuple(caller, transport);
                if may_move {
                    self.totals.moves += 1;
                    self.totals.stream_moves += u64::from(transport.is_stream());
                    let mut acts = Vec::new();
                    self.callers[caller].come_back(&mut acts);
                    self.act(caller, acts);
                }
            }
            Event::HangUp { caller } => {
                let mut acts = Vec::new();
                self.callers[caller].hang_up(&mut acts);
                self.act(caller, acts);
            }
            Event::Operation(operation) => self.operate(operation),
            Event::Dial => self.dial(),
            Event::Intruder { caller } => {
                let mut bob = self.callers[caller].client.clone().user("bob", BOB);
                let bytes = bob.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0));
                let from = bob.at;
                self.at_server(from, &bytes);
            }
            Event::Stranger => {
                let from = self.new_five_tuple(250, Transport::Udp);
                let len = self.rng.random_range(0..80);
                let bytes: Vec<u8> = (0..len).map(|_| self.rng.random()).collect();
                self.at_server(from, &bytes);
            }
            Event::Knock { caller } => {
                if let Some(relay) = self.callers[caller].relay {
                    let from = addr(OPEN[self.rng.random_range(0..OPEN.len())]);
                    self.at_relay(from, relay, b"knock");
                }
            }
        }
    }

    /// Callers learn each other's relayed addresses, as by signalling.
    fn meet(&mut self, caller: usize) {
        for index in 0..self.callers[caller].peers.len() {
            if let Party::Caller(other) = self.callers[caller].peers[index].party {
                let address = self.callers[other].relay.filter(|_| self.callers[other].phase == Phase::Live);
                let peer = &mut self.callers[caller].peers[index];
                if address.is_some() && peer.address != address {
                    *peer = Peer::new(peer.party);
                    peer.address = address;
                }
            }
        }
    }

    fn act(&mut self, caller: usize, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Send(bytes) => {
                    let from = self.callers[caller].client.at;
                    self.fly(Event::AtServer { from, bytes }, Some((from, true)));
                }
                Act::After(delay, timer) => {
                    let generation = self.callers[caller].generation;
                    self.at(self.now + delay, Event::Timer { caller, generation, timer });
                }
                Act::Rebind => self.restart(caller),
            }
        }
        if self.callers[caller].phase == Phase::Over && self.now < self.end && !self.callers[caller].gone {
            // A page that has lost its call makes another one.
            self.totals.given_up += 1;
            self.close(caller);
            if self.rng.random_bool(0.7) {
                self.restart(caller);
            } else {
                self.callers[caller].gone = true;
            }
        }
    }

    /// Begins anew from another port.
    pub(crate) fn restart(&mut self, caller: usize) {
        let transport = self.callers[caller].client.at.transport;
        self.callers[caller].reset();
        self.callers[caller].client.at = self.new_five_tuple(caller, transport);
        let (generation, delay) = (self.callers[caller].generation, secs(self.rng.random_range(0..20)));
        self.at(self.now + delay, Event::Timer { caller, generation, timer: Timer::Start });
    }

    /// The connection of a stream closes; nobody sees a datagram client go.
    fn close(&mut self, caller: usize) {
        let at = self.callers[caller].client.at;
        if at.transport.is_stream() {
            let worker = self.worker_of(&at);
            self.world.client_closes(worker, &at);
            self.model.depart(&at);
        }
    }

    fn at_server(&mut self, from: FiveTuple, bytes: &[u8]) {
        self.world.client_sends(self.worker_of(&from), &from, bytes);
        let worker = self.home_of(&from);
        let arrived = arrived(&mut self.world);
        let request = Message::parse(bytes).ok().filter(|message| message.class() == Class::Request);
        if let Some(request) = request {
            assert!(self.world.sent().is_empty());
            let [(to, reply)] = &arrived[..] else { panic!("one request, one answer: {arrived:?}") };
            assert_eq!(*to, from);
            let reply = Reply { bytes: reply.clone() };
            self.model.request(self.now, &from, worker, &request, &reply);
            self.totals.allocations += u64::from(request.method() == Method::Allocate && reply.result().is_ok());
        } else {
            let expected = self.model.client_sends(self.now, &from, bytes);
            self.compare(expected, &arrived);
        }
        self.deliver(arrived);
    }

    fn at_relay(&mut self, from: SocketAddr, relay: SocketAddr, bytes: &[u8]) {
        self.world.peer_sends(&from.to_string(), relay, bytes);
        let arrived = arrived(&mut self.world);
        let expected = self.model.peer_sends(self.now, from, relay, bytes);
        self.compare(expected, &arrived);
        self.deliver(arrived);
    }

    /// Data flows as the model says, and nothing else does.
    fn compare(&mut self, expected: Option<Flow>, arrived: &[(FiveTuple, Vec<u8>)]) {
        let mut flows: Vec<_> = arrived
            .iter()
            .map(|(client, bytes)| Flow::Client {
                client: *client,
                received: Received::parse(bytes, client.transport.is_stream()),
            })
            .collect();
        for sent in self.world.sent() {
            let (from, to, data) = (sent.from, sent.to.socket_addr(), sent.bytes);
            flows.push(Flow::Peer { from, to, data: data.clone() });
            self.fly(Event::AtPeer { peer: to, from, bytes: data }, None);
        }
        assert_eq!(flows, Vec::from_iter(expected), "at {:?}", self.now);
    }

    /// What the server has sent goes to whoever has that address now.
    fn deliver(&mut self, arrived: Vec<(FiveTuple, Vec<u8>)>) {
        for (to, bytes) in arrived {
            if let Some(caller) = self.callers.iter().position(|caller| caller.client.at == to) {
                self.fly(Event::AtClient { caller, to, bytes }, Some((to, false)));
            }
        }
    }

    /// As the kernel spreads 5-tuples.
    pub(crate) fn worker_of(&self, at: &FiveTuple) -> usize {
        usize::from(at.client.port()).wrapping_mul(31) % self.workers
    }

    /// The worker that has a client's stream by now.
    pub(crate) fn home_of(&self, at: &FiveTuple) -> usize {
        self.world.streams.get(at).copied().unwrap_or_else(|| self.worker_of(at))
    }

    pub(crate) fn new_five_tuple(&mut self, host: usize, transport: Transport) -> FiveTuple {
        self.ports += 1;
        let ip = IpAddr::V4(Ipv4Addr::new(198, 51, 100, host as u8));
        let client = ClientAddr::new(SocketAddr::new(ip, self.ports));
        FiveTuple { transport, client, server: ServerAddr::new(addr("192.0.2.10:3478")) }
    }
}

/// Everything that has arrived at any client since the last time, in the order of the clients.
fn arrived(world: &mut World) -> Vec<(FiveTuple, Vec<u8>)> {
    let is_dialler = |client: &FiveTuple| matches!(client.client.ip(), IpAddr::V4(ip) if ip.octets()[3] == HOST);
    let inboxes = world.inboxes.iter_mut().filter(|(client, inbox)| !inbox.is_empty() && !is_dialler(client));
    let mut arrived: Vec<_> =
        inboxes.flat_map(|(client, inbox)| inbox.drain(..).map(move |bytes| (*client, bytes))).collect();
    arrived.sort_by_key(|(client, _)| (client.client.ip(), client.client.port()));
    arrived
}

fn traffic(ended: &ferryd::turn::effect::Ended) -> [u64; 4] {
    let traffic = ended.traffic;
    [traffic.packets_to_client, traffic.bytes_to_client, traffic.packets_to_peers, traffic.bytes_to_peers]
}
