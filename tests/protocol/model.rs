//! A small model of allocations: after any sequence of requests, data and time, data flows if and only if it says so.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Method};
use proptest::prelude::*;

use crate::harness::{BOB, Client, Received, Reply, Setup, World, addr, assert_no_leak, peer, secs};

const CLIENTS: usize = 4;
const EXTERNAL: [&str; 4] = ["9.9.9.9:1", "9.9.9.9:2", "8.8.8.8:1", "8.8.4.4:0"];
const FORBIDDEN: &str = "10.0.0.1:1";
const NUMBERS: [u16; 4] = [0x4000, 0x4001, 0x4FFF, 0x5000];
const RELAY: &str = "192.0.2.1";

#[derive(Clone, Copy, Debug)]
enum Peer {
    External(usize),
    /// The relayed address that a client has or had.
    Relay(usize),
    Forbidden,
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize, Option<u32>),
    Refresh(usize, Option<u32>),
    Hijack(usize),
    Permit(usize, Vec<Peer>),
    Bind(usize, usize, Peer),
    Indicate(usize, Peer),
    ChannelData(usize, usize),
    PeerData(usize, usize),
    Close(usize),
    /// Seconds, and whether the shell's timers keep up.
    Pass(u64, bool),
}

#[derive(Clone, Debug, Default)]
struct Allocation {
    expires_at: u64,
    permissions: BTreeMap<IpAddr, u64>,
    channels: BTreeMap<u16, (SocketAddr, u64)>,
}

struct Run {
    world: World,
    clients: Vec<Client>,
    model: Vec<Option<Allocation>>,
    relays: Vec<SocketAddr>,
    now: u64,
    payload: u32,
}

impl Run {
    fn new() -> Self {
        let world = World::with(|setup: &mut Setup| {
            setup.workers = 2;
            setup.turn.peers.own_addresses = vec![RELAY.parse().unwrap()];
        });
        let client = |index: usize| {
            let transport = if index == 2 { Transport::Tcp } else { Transport::Udp };
            Client::over(&format!("198.51.100.{index}:1000"), transport).on_worker(index % 2)
        };
        let dead = SocketAddr::new(RELAY.parse().unwrap(), 1);
        Self {
            world,
            clients: (0..CLIENTS).map(client).collect(),
            model: vec![None; CLIENTS],
            relays: vec![dead; CLIENTS],
            now: 0,
            payload: 0,
        }
    }

    fn address(&self, peer: Peer) -> SocketAddr {
        match peer {
            Peer::External(index) => addr(EXTERNAL[index]),
            Peer::Relay(client) => self.relays[client],
            Peer::Forbidden => addr(FORBIDDEN),
        }
    }

    fn live(&self, client: usize) -> Option<&Allocation> {
        self.model[client].as_ref().filter(|allocation| self.now < allocation.expires_at)
    }

    fn live_mut(&mut self, client: usize) -> Option<&mut Allocation> {
        let now = self.now;
        self.model[client].as_mut().filter(|allocation| now < allocation.expires_at)
    }

    fn permits(&self, client: usize, ip: IpAddr) -> bool {
        self.live(client).and_then(|it| it.permissions.get(&ip)).is_some_and(|expires_at| self.now < *expires_at)
    }

    fn channel_to(&self, client: usize, peer: SocketAddr) -> Option<u16> {
        let channels = &self.live(client)?.channels;
        channels.iter().find(|(_, (to, expires_at))| *to == peer && self.now < *expires_at).map(|(number, _)| *number)
    }

    fn peer_of(&self, client: usize, number: u16) -> Option<SocketAddr> {
        let (peer, expires_at) = self.live(client)?.channels.get(&number)?;
        (self.now < *expires_at).then_some(*peer)
    }

    /// The live client behind a relayed address.
    fn owner(&self, address: SocketAddr) -> Option<usize> {
        (0..CLIENTS).find(|client| self.relays[*client] == address && self.live(*client).is_some())
    }

    /// A request; the nonce is renewed where it has to be.
    fn call(&mut self, client: usize, call: impl Fn(&mut Client, &mut World) -> Reply) -> Reply {
        let (client, world) = (&mut self.clients[client], &mut self.world);
        let reply = call(client, world);
        if reply.result() != Err(438) {
            return reply;
        }
        client.learn(&reply);
        call(client, world)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Allocate(client, lifetime) => self.allocate(*client, *lifetime),
            Step::Refresh(client, lifetime) => self.refresh(*client, *lifetime),
            Step::Hijack(client) => self.hijack(*client),
            Step::Permit(client, peers) => self.permit(*client, peers),
            Step::Bind(client, number, peer) => self.bind(*client, NUMBERS[*number], *peer),
            Step::Indicate(client, to) => self.indicate(*client, *to),
            Step::ChannelData(client, number) => self.channel_data(*client, NUMBERS[*number]),
            Step::PeerData(from, to) => self.peer_data(EXTERNAL[*from], *to),
            Step::Close(client) => {
                let closing = &self.clients[*client];
                self.world.client_closes(closing.worker, &closing.at);
                self.model[*client] = None;
            }
            Step::Pass(seconds, timers) => {
                self.now += seconds;
                if *timers {
                    self.world.advance(secs(*seconds))
                } else {
                    self.world.jump(secs(*seconds))
                }
                self.probe();
            }
        }
    }

    /// Data on every way that there could be.
    fn probe(&mut self) {
        for client in 0..CLIENTS {
            NUMBERS.into_iter().for_each(|number| self.channel_data(client, number));
            (0..EXTERNAL.len()).for_each(|index| self.indicate(client, Peer::External(index)));
            (0..CLIENTS).for_each(|other| self.indicate(client, Peer::Relay(other)));
            EXTERNAL.into_iter().for_each(|from| self.peer_data(from, client));
        }
    }

    fn indicate(&mut self, client: usize, to: Peer) {
        let to = self.address(to);
        let expected = self.live(client).is_some().then_some(to);
        self.data(client, expected, |client, world, data| client.indicate(world, &to.to_string(), data));
    }

    fn channel_data(&mut self, client: usize, number: u16) {
        let expected = self.peer_of(client, number);
        self.data(client, expected, |client, world, data| client.channel_data(world, number, data));
    }

    fn allocate(&mut self, client: usize, lifetime: Option<u32>) {
        let reply = self.call(client, |client, world| {
            client.allocate_with(world, |builder| {
                if let Some(lifetime) = lifetime {
                    builder.u32(AttributeType::LIFETIME, lifetime);
                }
            })
        });
        if self.live(client).is_some() {
            assert_eq!(reply.result(), Err(437));
            return;
        }
        assert_eq!(reply.lifetime(), granted(lifetime));
        self.relays[client] = reply.relay();
        let expires_at = self.now + u64::from(granted(lifetime));
        self.model[client] = Some(Allocation { expires_at, ..Allocation::default() });
    }

    fn refresh(&mut self, client: usize, lifetime: Option<u32>) {
        let reply = self.call(client, |client, world| client.refresh(world, lifetime));
        let now = self.now;
        let Some(allocation) = self.live_mut(client) else {
            assert_eq!(reply.result(), Err(437));
            return;
        };
        if lifetime == Some(0) {
            assert_eq!(reply.lifetime(), 0);
            self.model[client] = None;
        } else {
            assert_eq!(reply.lifetime(), granted(lifetime));
            allocation.expires_at = now + u64::from(granted(lifetime));
        }
    }

    fn hijack(&mut self, client: usize) {
        let reply = self.call(client, |client, world| {
            let mut bob = client.clone().user("bob", BOB);
            bob.request(world, Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0))
        });
        assert_eq!(reply.result(), Err(if self.live(client).is_some() { 441 } else { 437 }));
    }

    fn permit(&mut self, client: usize, peers: &[Peer]) {
        let peers: Vec<_> = peers.iter().map(|peer| self.address(*peer)).collect();
        let texts: Vec<_> = peers.iter().map(SocketAddr::to_string).collect();
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        let reply = self.call(client, |client, world| client.permit(world, &texts));
        let now = self.now;
        let expected = match self.live_mut(client) {
            None => Err(437),
            Some(_) if peers.is_empty() => Err(400),
            Some(_) if peers.contains(&addr(FORBIDDEN)) => Err(403),
            Some(allocation) => {
                allocation.permissions.extend(peers.iter().map(|peer| (peer.ip(), now + 300)));
                Ok(())
            }
        };
        assert_eq!(reply.result(), expected);
    }

    fn bind(&mut self, client: usize, number: u16, peer: Peer) {
        if matches!(peer, Peer::Relay(_)) {
            // Whether an own address has a live relay is a matter of timers that have run.
            self.world.run_timers();
        }
        let peer = self.address(peer);
        let reply = self.call(client, |client, world| client.bind(world, number, &peer.to_string()));
        let dead = peer.ip() == addr(&format!("{RELAY}:1")).ip() && self.owner(peer).is_none();
        let bound_otherwise = self.peer_of(client, number).is_some_and(|bound| bound != peer)
            || self.channel_to(client, peer).is_some_and(|bound| bound != number);
        let now = self.now;
        let expected = match self.live_mut(client) {
            None => Err(437),
            Some(_) if number > 0x4FFF || bound_otherwise => Err(400),
            Some(_) if dead || peer == addr(FORBIDDEN) || peer.port() == 0 => Err(403),
            Some(allocation) => {
                allocation.channels.retain(|_, (to, _)| *to != peer);
                allocation.channels.insert(number, (peer, now + 600));
                allocation.permissions.insert(peer.ip(), now + 300);
                Ok(())
            }
        };
        assert_eq!(reply.result(), expected);
    }

    fn next_payload(&mut self) -> Vec<u8> {
        self.payload += 1;
        self.payload.to_be_bytes()[..4 - (self.payload % 4) as usize].to_vec()
    }

    /// Data from a client to `expected`, should that be permitted.
    fn data(&mut self, client: usize, to: Option<SocketAddr>, send: impl Fn(&mut Client, &mut World, &[u8])) {
        let data = self.next_payload();
        send(&mut self.clients[client], &mut self.world, &data);
        let to = to.filter(|to| to.port() != 0 && self.permits(client, to.ip()));
        let external = to.filter(|to| to.ip() != addr(&format!("{RELAY}:1")).ip());
        let sent: Vec<_> = self.world.sent().into_iter().map(|sent| (sent.from, sent.to, sent.bytes)).collect();
        let expected = external.map(|to| (self.relays[client], peer(&to.to_string()), data.clone()));
        assert_eq!(sent, Vec::from_iter(expected));
        let source = self.relays[client];
        let target = to.and_then(|to| self.owner(to)).filter(|target| self.permits(*target, source.ip()));
        self.assert_received(target, source, &data);
    }

    fn peer_data(&mut self, from: &str, client: usize) {
        let data = self.next_payload();
        self.world.peer_sends(from, self.relays[client], &data);
        let target = Some(client).filter(|client| self.permits(*client, addr(from).ip()));
        self.assert_received(target, addr(from), &data);
    }

    /// One message at `target`, by channel where one is bound, and nothing anywhere else.
    fn assert_received(&mut self, target: Option<usize>, from: SocketAddr, data: &[u8]) {
        for client in 0..CLIENTS {
            let data = data.to_vec();
            let expected = (target == Some(client)).then(|| match self.channel_to(client, from) {
                Some(number) => Received::Channel { number, data },
                None => Received::Data { from, data },
            });
            let received = self.clients[client].received(&mut self.world);
            assert_eq!(received, Vec::from_iter(expected), "client {client}");
        }
    }
}

fn granted(lifetime: Option<u32>) -> u32 {
    lifetime.unwrap_or(600).clamp(600, 3600)
}

fn a_peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        5 => (0..EXTERNAL.len()).prop_map(Peer::External),
        4 => (0..CLIENTS).prop_map(Peer::Relay),
        1 => Just(Peer::Forbidden),
    ]
}

fn a_step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    let number = 0..NUMBERS.len();
    let lifetime = prop_oneof![
        2 => Just(None),
        1 => Just(Some(0)),
        2 => Just(Some(3600)),
        1 => (1..5000u32).prop_map(Some),
    ];
    // Sums of these meet the lifetimes of permissions, channels and allocations exactly, and miss them by one.
    let seconds = prop::sample::select(vec![0, 1, 7, 299, 300, 300, 300, 301, 600]);
    prop_oneof![
        4 => (client.clone(), lifetime.clone()).prop_map(|(client, lifetime)| Step::Allocate(client, lifetime)),
        2 => (client.clone(), lifetime).prop_map(|(client, lifetime)| Step::Refresh(client, lifetime)),
        1 => client.clone().prop_map(Step::Hijack),
        4 => (client.clone(), prop::collection::vec(a_peer(), 0..4)).prop_map(|(client, peers)| Step::Permit(client, peers)),
        5 => (client.clone(), number.clone(), a_peer()).prop_map(|(client, number, peer)| Step::Bind(client, number, peer)),
        6 => (client.clone(), a_peer()).prop_map(|(client, peer)| Step::Indicate(client, peer)),
        6 => (client.clone(), number).prop_map(|(client, number)| Step::ChannelData(client, number)),
        5 => (0..EXTERNAL.len(), client).prop_map(|(from, to)| Step::PeerData(from, to)),
        1 => Just(Step::Close(2)),
        4 => (seconds, any::<bool>()).prop_map(|(seconds, timers)| Step::Pass(seconds, timers)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn data_flows_if_and_only_if_the_model_says_so(steps in prop::collection::vec(a_step(), 1..150)) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
        run.probe();
        run.world.advance(secs(4000));
        assert_no_leak(&run.world);
    }
}
