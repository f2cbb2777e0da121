//! A client that does what it is told, right or wrong.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ferryd::auth::long_term::PasswordAlgorithm;
use ferryd::auth::settings::SharedSecret;
use ferryd::stun::channel_data::ChannelNumber;
use ferryd::stun::integrity::IntegrityKey;
use ferryd::stun::{AttributeType, Builder, ChannelData, Class, Message, Method, TransactionId};

use crate::PATIENCE;
use crate::certificate::Certificate;
use crate::ferryd::alice;
use crate::wire::{Stream, Wire};

/// A datagram that is not answered by then is sent again: beside floods, which take some, many times in the patience of a
/// test.
const RETRANSMISSION: Duration = Duration::from_millis(500);

/// A username and its password.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) password: String,
}

impl User {
    pub(crate) fn new(name: &str, password: &str) -> Self {
        Self { name: name.to_owned(), password: password.to_owned() }
    }

    /// A time-limited user whose time ends in so many seconds, or has ended.
    pub(crate) fn minted(secret: &SharedSecret, seconds: i64, name: Option<&str>) -> Self {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let expiry = now.checked_add_signed(seconds).unwrap();
        let name = name.map_or_else(|| expiry.to_string(), |name| format!("{expiry}:{name}"));
        let password = ferryd::auth::credentials::time_limited_password(secret, &name);
        Self::new(&name, &password)
    }
}

/// What a server has said of itself in a challenge.
#[derive(Clone, Debug)]
pub(crate) struct Challenge {
    pub(crate) realm: String,
    pub(crate) nonce: Vec<u8>,
}

pub(crate) struct Client {
    pub(crate) wire: Wire,
    pub(crate) user: User,
    pub(crate) challenge: Option<Challenge>,
    /// What came while something else was waited for.
    early: VecDeque<Vec<u8>>,
}

/// A socket on a port that none of this process's last clients has had: an allocation outlives its client, and its 5-tuple is
/// taken. There are some 28,000 ports to choose from, and a soak has millions of clients.
fn fresh_socket(ip: IpAddr) -> UdpSocket {
    const REMEMBERED: usize = 20_000;
    static HAD: Mutex<(BTreeSet<u16>, VecDeque<u16>)> = Mutex::new((BTreeSet::new(), VecDeque::new()));
    loop {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let (had, order) = &mut *HAD.lock().unwrap();
        if had.insert(port) {
            order.push_back(port);
            if order.len() > REMEMBERED {
                had.remove(&order.pop_front().unwrap());
            }
            return socket;
        }
    }
}

impl Client {
    /// Alice, over UDP.
    pub(crate) fn udp(server: SocketAddr) -> Self {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = fresh_socket(any);
        // Answers from any other address are not seen.
        socket.connect(server).unwrap();
        Self::over(Wire::Udp(socket))
    }

    /// Alice, over TCP.
    pub(crate) fn tcp(server: SocketAddr) -> Self {
        Self::over(Wire::Stream(Stream::plain(server)))
    }

    /// Alice, over TLS.
    pub(crate) fn tls(server: SocketAddr, certificate: &Certificate) -> Self {
        Self::over(Wire::Stream(Stream::tls(server, certificate).unwrap()))
    }

    /// Alice, over DTLS.
    #[cfg(feature = "dtls")]
    pub(crate) fn dtls(server: SocketAddr, certificate: &Certificate) -> Self {
        Self::over(Wire::Dtls(crate::association::Association::open(server, certificate)))
    }

    pub(crate) fn over(wire: Wire) -> Self {
        Self { wire, user: alice(), challenge: None, early: VecDeque::new() }
    }

    pub(crate) fn with(mut self, user: User) -> Self {
        self.user = user;
        self
    }

    /// Sends a request without credentials and returns the answer.
    pub(crate) fn ask(&mut self, method: Method, write: impl Fn(&mut Builder<'_>)) -> Answer {
        let id = random_id();
        self.transact(&request(method, id, write), id)
    }

    /// Sends a request as the user, answering one challenge, and checks the integrity of a success.
    pub(crate) fn request(&mut self, method: Method, write: impl Fn(&mut Builder<'_>)) -> Answer {
        if self.challenge.is_none() {
            let answer = self.ask(method, &write);
            assert_eq!(answer.code(), Some(401), "a request without credentials is challenged");
            self.challenge = Some(answer.challenge());
        }
        let answer = self.request_once(method, &write);
        if answer.code() != Some(438) {
            return answer;
        }
        self.challenge = Some(answer.challenge());
        self.request_once(method, &write)
    }

    /// Sends a request with the challenge at hand.
    pub(crate) fn request_once(&mut self, method: Method, write: impl Fn(&mut Builder<'_>)) -> Answer {
        let (bytes, id) = self.signed(method, write);
        let answer = self.transact(&bytes, id);
        if answer.code().is_none() {
            let key = self.key(&self.challenge.as_ref().unwrap().realm);
            let covered = answer.message().integrity().expect("a success is signed");
            assert!(key.verifies_sha1(&covered), "a success is signed with the user's key");
        }
        answer
    }

    fn key(&self, realm: &str) -> IntegrityKey {
        Self::key_of(&self.user.name, realm, &self.user.password)
    }

    /// MD5(name:realm:password).
    pub(crate) fn key_of(name: &str, realm: &str, password: &str) -> IntegrityKey {
        PasswordAlgorithm::Md5.key(name.as_bytes(), realm, password.as_bytes())
    }

    /// Sends a request until it is answered.
    fn transact(&mut self, request: &[u8], id: TransactionId) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        let pause = if self.wire.loses_messages() { RETRANSMISSION } else { PATIENCE };
        while Instant::now() < deadline {
            self.wire.send(request);
            let next = Instant::now() + pause;
            while let Some(bytes) = self.wire.receive(next.saturating_duration_since(Instant::now())) {
                if is_answer(&bytes, id) {
                    return Answer(bytes);
                }
                self.early.push_back(bytes);
            }
        }
        panic!("no answer");
    }

    /// The address that the server sees.
    pub(crate) fn bind(&mut self) -> SocketAddr {
        self.ask(Method::Binding, |_| {}).address(AttributeType::XOR_MAPPED_ADDRESS)
    }

    pub(crate) fn try_allocate(&mut self) -> Result<SocketAddr, u16> {
        let answer = self.request(Method::Allocate, udp_transport);
        answer.result().map(|answer| answer.address(AttributeType::XOR_RELAYED_ADDRESS))
    }

    /// Allocates an IPv4 relayed transport address.
    pub(crate) fn allocate(&mut self) -> SocketAddr {
        self.try_allocate().unwrap()
    }

    /// Allocates an IPv6 relayed transport address.
    pub(crate) fn allocate_v6(&mut self) -> SocketAddr {
        let answer = self.request(Method::Allocate, |builder| {
            udp_transport(builder);
            builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
        });
        answer.result().map(|answer| answer.address(AttributeType::XOR_RELAYED_ADDRESS)).unwrap()
    }

    pub(crate) fn permit(&mut self, peer: SocketAddr) -> Result<(), u16> {
        let write = |builder: &mut Builder<'_>| _ = builder.xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
        self.request(Method::CreatePermission, write).result().map(drop)
    }

    pub(crate) fn bind_channel(&mut self, number: u16, peer: SocketAddr) -> Result<(), u16> {
        let write = |builder: &mut Builder<'_>| {
            builder.u32(AttributeType::CHANNEL_NUMBER, u32::from(number) << 16);
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
        };
        self.request(Method::ChannelBind, write).result().map(drop)
    }

    pub(crate) fn refresh(&mut self, lifetime: u32) -> Result<u32, u16> {
        let answer = self.request(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, lifetime));
        answer.result().map(|answer| answer.number(AttributeType::LIFETIME))
    }

    pub(crate) fn send_by_channel(&mut self, number: u16, payload: &[u8]) {
        let header = ChannelData::header(ChannelNumber::new(number).unwrap(), payload.len() as u16);
        self.wire.send(&[&header, payload].concat());
    }

    pub(crate) fn send_by_indication(&mut self, peer: SocketAddr, payload: &[u8]) {
        self.send_indication(peer, payload, |_| {});
    }

    /// A Send indication with further attributes.
    pub(crate) fn send_indication(&mut self, peer: SocketAddr, payload: &[u8], write: impl Fn(&mut Builder<'_>)) {
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes, Method::Send, Class::Indication, random_id());
        builder.xor_address(AttributeType::XOR_PEER_ADDRESS, peer).attribute(AttributeType::DATA, payload);
        write(&mut builder);
        self.wire.send(&bytes);
    }

    /// The answer to a request that has been sent, on a stream.
    pub(crate) fn answer_to(&mut self, id: TransactionId) -> Answer {
        if let Some(index) = self.early.iter().position(|bytes| is_answer(bytes, id)) {
            return Answer(self.early.remove(index).unwrap());
        }
        loop {
            let bytes = self.wire.receive(PATIENCE).expect("an answer");
            if is_answer(&bytes, id) {
                return Answer(bytes);
            }
            self.early.push_back(bytes);
        }
    }

    /// The bytes of a request with the challenge at hand.
    pub(crate) fn signed(&self, method: Method, write: impl Fn(&mut Builder<'_>)) -> (Vec<u8>, TransactionId) {
        let Challenge { realm, nonce } = self.challenge.clone().unwrap();
        let key = self.key(&realm);
        let id = random_id();
        let bytes = request(method, id, |builder| {
            write(builder);
            builder.attribute(AttributeType::USERNAME, self.user.name.as_bytes());
            builder.attribute(AttributeType::REALM, realm.as_bytes());
            builder.attribute(AttributeType::NONCE, &nonce).integrity(&key);
        });
        (bytes, id)
    }

    /// Whether nothing but answers has come while answers were waited for.
    pub(crate) fn has_nothing_early(&self) -> bool {
        self.early.is_empty()
    }

    /// The next message that is no answer.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let early = self.early.pop_front();
        early.or_else(|| self.wire.receive(PATIENCE)).expect("a message")
    }

    /// The next data from a peer.
    pub(crate) fn receive(&mut self) -> Data {
        Data::parse(&self.next())
    }
}

/// What a peer has sent, or what became of what was sent to it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Data {
    Channel(u16, Vec<u8>),
    Indication(SocketAddr, Vec<u8>),
    /// Peer, type and code.
    Icmp(SocketAddr, u8, u8),
}

impl Data {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        if let Some(data) = ChannelData::parse(bytes) {
            return Self::Channel(data.channel.get(), bytes[data.data()].to_vec());
        }
        let message = Message::parse(bytes).unwrap();
        assert_eq!((message.method(), message.class()), (Method::Data, Class::Indication));
        let peer = message.attribute(AttributeType::XOR_PEER_ADDRESS).unwrap();
        let peer = peer.as_xor_address(message.transaction_id()).unwrap();
        match (message.attribute(AttributeType::DATA), message.attribute(AttributeType::ICMP)) {
            (Some(data), None) => Self::Indication(peer, data.value.to_vec()),
            (None, Some(icmp)) => Self::Icmp(peer, icmp.value[2], icmp.value[3]),
            other => panic!("a Data indication has one of both: {other:?}"),
        }
    }
}

/// A response.
#[derive(Debug)]
pub(crate) struct Answer(Vec<u8>);

impl Answer {
    pub(crate) fn message(&self) -> Message<'_> {
        Message::parse(&self.0).unwrap()
    }

    /// The error code; `None` for a success.
    pub(crate) fn code(&self) -> Option<u16> {
        let value = self.message().attribute(AttributeType::ERROR_CODE)?.value;
        Some(u16::from(value[2]) * 100 + u16::from(value[3]))
    }

    pub(crate) fn result(self) -> Result<Self, u16> {
        match self.code() {
            None => Ok(self),
            Some(code) => Err(code),
        }
    }

    pub(crate) fn address(&self, kind: AttributeType) -> SocketAddr {
        let message = self.message();
        message.attribute(kind).unwrap().as_xor_address(message.transaction_id()).unwrap()
    }

    pub(crate) fn number(&self, kind: AttributeType) -> u32 {
        self.message().attribute(kind).unwrap().as_u32().unwrap()
    }

    pub(crate) fn challenge(&self) -> Challenge {
        let value = |kind| self.message().attribute(kind).unwrap().value.to_vec();
        let realm = String::from_utf8(value(AttributeType::REALM)).unwrap();
        Challenge { realm, nonce: value(AttributeType::NONCE) }
    }
}

/// REQUESTED-TRANSPORT, as every Allocate needs it.
pub(crate) fn udp_transport(builder: &mut Builder<'_>) {
    builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
}

/// A Binding request.
pub(crate) fn binding_request() -> Vec<u8> {
    request(Method::Binding, random_id(), |_| {})
}

fn request(method: Method, id: TransactionId, write: impl Fn(&mut Builder<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Builder::new(&mut bytes, method, Class::Request, id));
    bytes
}

fn random_id() -> TransactionId {
    let mut id = [0; 12];
    getrandom::fill(&mut id).unwrap();
    TransactionId(id)
}

fn is_answer(bytes: &[u8], id: TransactionId) -> bool {
    Message::parse(bytes)
        .is_ok_and(|message| message.transaction_id() == id && matches!(message.class(), Class::Success | Class::Error))
}
