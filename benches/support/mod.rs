//! A server of the sans-IO core with many allocations, for the micro-benches and the test of heap allocations.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferryd::address::{ClientAddr, FiveTuple, PeerAddr, ServerAddr, Transport};
use ferryd::auth::long_term::PasswordAlgorithm;
use ferryd::auth::settings::{Secret, Settings as AuthSettings, User, UserCredential};
use ferryd::auth::{Authenticator, settings};
use ferryd::stun::integrity::IntegrityKey;
use ferryd::stun::{AttributeType, Builder, Class, Message, Method, TransactionId};
use ferryd::turn::settings::{Limits, PeerSettings, RelayAddress, Settings};
use ferryd::turn::{Effect, Now, PeerPolicy, Policy, RelayId, Route, Server, Shared, WorkerId};

pub(crate) const USER: &str = "bench";
pub(crate) const PASSWORD: &str = "bench-password";
pub(crate) const REALM: &str = "bench.test";
/// The channel that every client has bound to its first peer.
pub(crate) const CHANNEL: u16 = 0x4001;
/// Four addresses of 64,512 ports each: room for 100,000 allocations.
const RELAYS: [&str; 4] = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"];
const PEERS: &str = "198.18.0.0/15";
const ROUTE: Route = Route(7);

/// The key of the only user.
pub(crate) fn key() -> IntegrityKey {
    PasswordAlgorithm::Md5.key(USER.as_bytes(), REALM, PASSWORD.as_bytes())
}

/// A server and what has been allocated on it.
pub(crate) struct Lab {
    pub(crate) server: Server,
    pub(crate) now: Now,
    pub(crate) clients: Vec<Client>,
}

/// A client with an allocation, a channel to one peer, and permissions for another and for all relayed addresses.
pub(crate) struct Client {
    pub(crate) five_tuple: FiveTuple,
    pub(crate) relay: RelayId,
    pub(crate) relayed: SocketAddr,
    pub(crate) channel_peer: PeerAddr,
    pub(crate) other_peer: PeerAddr,
}

impl Lab {
    /// Makes `count` allocations over a transport.
    pub(crate) fn with_allocations(count: usize, transport: Transport) -> Self {
        let now = Now { instant: Instant::now(), unix_seconds: 1_700_000_000 };
        let mut lab = Self { server: server(now), now, clients: Vec::with_capacity(count) };
        (0..count).for_each(|index| lab.add(index, transport));
        lab
    }

    fn add(&mut self, index: usize, transport: Transport) {
        let five_tuple = five_tuple(index, transport);
        let (challenge, _) = self.request(&five_tuple, Method::Allocate, None, |builder| {
            builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        });
        let challenge = Message::parse(&challenge).expect("a server answers in STUN");
        let nonce = challenge.attribute(AttributeType::NONCE).expect("a challenge has a nonce").value;
        let (success, relay) = self.request(&five_tuple, Method::Allocate, Some(nonce), |builder| {
            builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        });
        let success = Message::parse(&success).expect("a server answers in STUN");
        let relayed = success.attribute(AttributeType::XOR_RELAYED_ADDRESS).expect("an allocation has an address");
        let relayed = relayed.as_xor_address(success.transaction_id()).expect("the address is one");
        let relay = relay.expect("an allocation opens a relay");
        let peer = |offset: u32| {
            let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + (index as u32 % 60_000) + offset);
            PeerAddr::new(SocketAddr::new(IpAddr::V4(ip), 4000))
        };
        let (channel_peer, other_peer) = (peer(0), peer(65_536));
        let (bound, _) = self.request(&five_tuple, Method::ChannelBind, Some(nonce), |builder| {
            builder
                .u32(AttributeType::CHANNEL_NUMBER, u32::from(CHANNEL) << 16)
                .xor_address(AttributeType::XOR_PEER_ADDRESS, channel_peer.socket_addr());
        });
        assert_success(&bound);
        let (permitted, _) = self.request(&five_tuple, Method::CreatePermission, Some(nonce), |builder| {
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, other_peer.socket_addr());
            for relay in RELAYS {
                let relay = SocketAddr::new(relay.parse().expect("a literal address"), 0);
                builder.xor_address(AttributeType::XOR_PEER_ADDRESS, relay);
            }
        });
        assert_success(&permitted);
        self.clients.push(Client { five_tuple, relay, relayed, channel_peer, other_peer });
    }

    /// Asks, carries the effects out, and returns the answer and the relay that was opened for it.
    fn request(
        &mut self,
        five_tuple: &FiveTuple,
        method: Method,
        nonce: Option<&[u8]>,
        write: impl FnOnce(&mut Builder<'_>),
    ) -> (Vec<u8>, Option<RelayId>) {
        let mut request = Vec::new();
        let id = TransactionId([method.code() as u8; 12]);
        let mut builder = Builder::new(&mut request, method, Class::Request, id);
        write(&mut builder);
        if let Some(nonce) = nonce {
            builder
                .attribute(AttributeType::USERNAME, USER.as_bytes())
                .attribute(AttributeType::REALM, REALM.as_bytes())
                .attribute(AttributeType::NONCE, nonce)
                .integrity(&key());
        }
        assert!(self.server.handle_client(self.now, five_tuple, ROUTE, &request).is_none());
        let (mut answer, mut opened) = (Vec::new(), None);
        while let Some(effect) = self.server.poll_effect() {
            match effect {
                Effect::Reply { bytes, .. } => answer = self.server.reply_bytes(bytes).to_vec(),
                Effect::OpenRelay { relay, .. } => {
                    opened = Some(relay);
                    self.server.handle_relay_opened(self.now, relay, Ok(()));
                }
                Effect::CloseRelay { address, .. } | Effect::CloseHeld { address } => {
                    self.server.handle_port_closed(address);
                }
                Effect::ChannelOpened { .. }
                | Effect::ChannelExtended { .. }
                | Effect::IndicationRelayed { .. }
                | Effect::PermissionsChanged { .. }
                | Effect::ChannelClosed { .. }
                | Effect::ClientMoved { .. }
                | Effect::AllocationStarted(_)
                | Effect::AllocationEnded(_)
                | Effect::OpenTcpRelay { .. }
                | Effect::CloseTcpRelay { .. }
                | Effect::ConnectPeer { .. }
                | Effect::BindPeer { .. }
                | Effect::ClosePeer { .. }
                | Effect::Authorize(_)
                | Effect::UserAttacked { .. } => {}
            }
        }
        (answer, opened)
    }
}

fn assert_success(answer: &[u8]) {
    let class = Message::parse(answer).map(|message| message.class());
    assert_eq!(class, Ok(Class::Success), "a request of the lab was refused");
}

fn server(now: Now) -> Server {
    let relay = |ip: &str| RelayAddress { bind: ip.parse().expect("a literal address"), advertised: None };
    let limits =
        Limits { allocations_per_user: 0, allocations_total: 0, allocations_per_prefix: 0, ..Limits::default() };
    let settings = Settings {
        port_min: 1024,
        peers: PeerSettings { allow: vec![PEERS.parse().expect("a literal range")], ..PeerSettings::default() },
        limits,
        software: None,
        ..Settings::relaying_on(RELAYS.into_iter().map(relay).collect())
    };
    let credential = UserCredential::Password(Secret::new(PASSWORD));
    let auth = AuthSettings {
        realm: REALM.to_owned(),
        users: vec![User { name: USER.to_owned(), credential }],
        shared_secrets: Vec::new(),
        nonce_lifetime: settings::Settings::NONCE_LIFETIME,
        nonce_key: Secret::new([7; 32]),
        third_party: None,
    };
    let shared = Arc::new(Shared::new(&settings));
    let policy = Policy {
        drain: None,
        revocations: Arc::default(),
        peers: Arc::new(PeerPolicy::new(&settings)),
        settings: Arc::new(settings),
        authenticator: Arc::new(Authenticator::new(&auth)),
    };
    Server::new(policy, shared, WorkerId(0), [1; 32], now.instant - Duration::from_secs(1))
}

/// The route of all clients, whatever it leads to.
pub(crate) fn route() -> Route {
    ROUTE
}

fn five_tuple(index: usize, transport: Transport) -> FiveTuple {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 113, 0)) + index as u32);
    FiveTuple {
        transport,
        client: ClientAddr::new(SocketAddr::new(IpAddr::V4(ip), 5000)),
        server: ServerAddr::new(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 3478)),
    }
}

/// A ChannelData message with a payload of this many bytes, a multiple of four.
pub(crate) fn channel_data(payload_len: usize) -> Vec<u8> {
    let mut message = [CHANNEL.to_be_bytes(), (payload_len as u16).to_be_bytes()].concat();
    message.resize(message.len() + payload_len, 0x55);
    message
}

/// A Send indication to a peer.
pub(crate) fn send_indication(peer: SocketAddr, payload_len: usize) -> Vec<u8> {
    let mut message = Vec::new();
    Builder::new(&mut message, Method::Send, Class::Indication, TransactionId([3; 12]))
        .xor_address(AttributeType::XOR_PEER_ADDRESS, peer)
        .attribute(AttributeType::DATA, &vec![0x55; payload_len]);
    message
}
