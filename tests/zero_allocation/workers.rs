//! Two running workers on loopback: calls in every shape of packet, through the whole of their loops.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ferryd::auth::Authenticator;
use ferryd::auth::long_term::PasswordAlgorithm;
use ferryd::auth::settings::{Secret, Settings as AuthSettings, User, UserCredential};
use ferryd::net::datagrams::{Datagrams, EpollDatagrams, RingDatagrams};
use ferryd::net::socket::{UdpOptions, open_udp_listeners};
use ferryd::net::steering::Queues;
use ferryd::stun::channel_data::ChannelNumber;
use ferryd::stun::{AttributeType, Builder, ChannelData, Class, Message, Method, TransactionId};
use ferryd::turn::settings::{RelayAddress, Settings as TurnSettings};
use ferryd::turn::{PeerPolicy, Policy, Shared, WorkerId};
use ferryd::worker::neighbours::Neighbours;
use ferryd::worker::settings::{Accept, Settings};
use ferryd::worker::{Berth, Command, HeldSockets, Legacy, Past, ProxyHosts, Records, Stand, Terms, WorkerHandle};

use crate::heap::{count_this_thread, in_arena, is_in_arena, with_arena_read_only};

const PATIENCE: Duration = Duration::from_secs(30);
const PASSWORD: &str = "wonderland-7391";
const CHANNEL: u16 = 0x4001;
/// Packets of a kind that are under way at once: more than one system call takes, less than a receive buffer, and less
/// than a ring between workers has buffers for at first.
const BURST: usize = 48;
/// Datagrams of a train.
const TRAIN: usize = 16;
const WARM_UP: usize = 40;
const ROUNDS: usize = 100;

#[test]
fn no_packet_of_a_running_worker_asks_the_heap_for_anything_by_epoll() {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    assert_nothing_asked(Crew::start(EpollDatagrams::new, shared(), Some(&COUNT)), &COUNT);
}

#[test]
fn no_packet_of_a_running_worker_asks_the_heap_for_anything_by_io_uring() {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if has_io_uring() {
        assert_nothing_asked(Crew::start(RingDatagrams::new, shared(), Some(&COUNT)), &COUNT);
    }
}

#[test]
fn no_packet_writes_what_workers_share() {
    // All of it but the rings between them, what wakes them, and what allocations have of it: a name, a place in a quota.
    let common = in_arena(shared);
    assert!(is_in_arena(&*common.shared) && is_in_arena(&*common.policy.authenticator));
    let crew = Crew::start(EpollDatagrams::new, common, None);
    let calls = Calls::of(&crew);
    (0..WARM_UP).for_each(|_| calls.round(crossing_none()));
    eprintln!("a SIGSEGV from here on is a packet that has written what workers share");
    with_arena_read_only(|| (0..ROUNDS).for_each(|_| calls.round(crossing_none())));
    crew.stop();
}

fn assert_nothing_asked(crew: Crew, count: &AtomicU64) {
    let calls = Calls::of(&crew);
    let round = || {
        calls.round(Kind::ALL);
        calls.trains();
    };
    // Alone, so that sockets see enough of them to have them merged from here on.
    (0..WARM_UP).for_each(|_| calls.trains());
    (0..WARM_UP).for_each(|_| round());
    let before = count.load(Ordering::Relaxed);
    assert!(before > 0, "the workers are watched");
    (0..ROUNDS).for_each(|_| round());
    let asked = count.load(Ordering::Relaxed) - before;
    assert_eq!(asked, 0, "in {} packets", ROUNDS * Kind::ALL.len() * BURST);
    crew.stop();
}

/// Where the kernel has no such io_uring the daemon uses epoll, and so says the test; CI has one.
fn has_io_uring() -> bool {
    match RingDatagrams::new() {
        Ok(_) => true,
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("NOT TESTED: io_uring cannot be used here ({error})");
            false
        }
        Err(error) => panic!("io_uring cannot be used here: {error}"),
    }
}

/// What workers share.
struct Common {
    policy: Policy,
    shared: Arc<Shared>,
    held: HeldSockets,
    records: Records,
}

/// Workers, each with a listener of its own, so that a client chooses its worker.
struct Crew {
    addresses: Vec<SocketAddr>,
    handles: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Crew {
    fn start<D: Datagrams + 'static>(
        open: fn() -> io::Result<D>,
        common: Common,
        count: Option<&'static AtomicU64>,
    ) -> Self {
        let Common { policy, shared, held, records } = common;
        let mailboxes: Vec<_> = (0..2).map(|_| WorkerHandle::new().unwrap()).collect();
        let handles: Vec<_> = mailboxes.iter().map(|(handle, ..)| handle.clone()).collect();
        let rings = Neighbours::mesh(&handles);
        let mut crew = Self { addresses: Vec::new(), handles, threads: Vec::new() };
        for (index, ((_, commands, wake), neighbours)) in mailboxes.into_iter().zip(rings).enumerate() {
            let many = open_udp_listeners("127.0.0.1:0".parse().unwrap(), 1, &UdpOptions::LISTENER).unwrap();
            crew.addresses.push(many[0].local_addr().unwrap());
            let queues = Queues { many, few: None, rest: None };
            let listeners = vec![Some(Stand { queues, terms: Terms::open(Accept::Plain) })];
            let (id, settings) = (WorkerId(index as u8), Settings::default());
            let (shared, held, records) = (Arc::clone(&shared), held.clone(), records.clone());
            let (offload, authorizer, dtls, proxies) = (None, None, None, ProxyHosts::default());
            let berth = Berth { id, settings, shared, held, proxies, offload, records, authorizer, dtls };
            let (policy, past) = (policy.clone(), Past::default());
            let legacy = Legacy { policy, commands, wake, neighbours, listeners, past };
            crew.threads.push(std::thread::spawn(move || {
                if let Some(count) = count {
                    count_this_thread(count);
                }
                berth.serve(berth.start(legacy, open()?)?, open)
            }));
        }
        crew
    }

    fn stop(self) {
        self.handles.iter().for_each(|handle| _ = handle.tell(Command::Stop));
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
    }
}

fn shared() -> Common {
    let relay = RelayAddress { bind: "127.0.0.1".parse().unwrap(), advertised: None };
    // Extensions that look something up for packets are on.
    let (mobility, tcp_allocations) = (true, true);
    let mut settings = TurnSettings { mobility, tcp_allocations, ..TurnSettings::relaying_on(vec![relay]) };
    settings.peers.allow = vec!["127.0.0.0/8".parse().unwrap()];
    let password = UserCredential::Password(Secret::new(PASSWORD));
    let auth = AuthSettings {
        realm: "ferryd".to_owned(),
        users: vec![User { name: "alice".to_owned(), credential: password }],
        shared_secrets: Vec::new(),
        nonce_lifetime: AuthSettings::NONCE_LIFETIME,
        nonce_key: Secret::new([9; 32]),
        third_party: None,
    };
    let policy = Policy {
        drain: None,
        revocations: Arc::default(),
        peers: Arc::new(PeerPolicy::new(&settings)),
        authenticator: Arc::new(Authenticator::new(&auth)),
        settings: Arc::new(settings.clone()),
    };
    let (shared, held) = (Arc::new(Shared::new(&settings)), HeldSockets::default());
    Common { policy, shared, held, records: Records::new(Default::default()).0 }
}

/// The ways of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ChannelToPeer,
    ChannelToClient,
    SendToPeer,
    DataToClient,
    /// Between two clients of one worker.
    Within,
    /// Between clients of two workers.
    Across,
}

impl Kind {
    const ALL: &[Self] =
        &[Self::ChannelToPeer, Self::ChannelToClient, Self::SendToPeer, Self::DataToClient, Self::Within, Self::Across];
}

/// Those that stay with one worker.
fn crossing_none() -> &'static [Kind] {
    assert_eq!(Kind::ALL.last(), Some(&Kind::Across));
    &Kind::ALL[..Kind::ALL.len() - 1]
}

/// A client with a channel to one peer and permission for another and for two other clients.
struct Calls {
    caller: Client,
    relayed: SocketAddr,
    channel_peer: UdpSocket,
    other_peer: UdpSocket,
    /// On the same worker, and on the other one.
    clients: [(Client, SocketAddr); 2],
}

impl Calls {
    fn of(crew: &Crew) -> Self {
        let mut caller = Client::of(crew.addresses[0]);
        let relayed = caller.allocate();
        let [channel_peer, other_peer] = [socket(), socket()];
        caller.bind_channel(channel_peer.local_addr().unwrap());
        let clients = [0, 1].map(|worker| {
            let mut client = Client::of(crew.addresses[worker]);
            let address = client.allocate();
            client.permit(relayed);
            (client, address)
        });
        Self { caller, relayed, channel_peer, other_peer, clients }
    }

    /// A burst of each kind at once, and what arrives of it.
    fn round(&self, kinds: &[Kind]) {
        for number in 0..BURST {
            kinds.iter().for_each(|kind| self.send(*kind, &payload(*kind, number)));
        }
        for number in 0..BURST {
            kinds.iter().for_each(|kind| self.expect(*kind, &payload(*kind, number)));
        }
    }

    /// Trains of both peers and of the caller, which the kernel hands over as one once the sockets have asked for that.
    fn trains(&self) {
        let data = |kind| (0..TRAIN).flat_map(|number| payload(kind, number)).collect::<Vec<_>>();
        for (peer, kind) in [(&self.channel_peer, Kind::ChannelToClient), (&self.other_peer, Kind::DataToClient)] {
            segment(peer, payload(kind, 0).len());
            peer.send_to(&data(kind), self.relayed).unwrap();
            segment(peer, 0);
        }
        let messages = (0..TRAIN).flat_map(|number| {
            let payload = payload(Kind::ChannelToPeer, number);
            [&ChannelData::header(ChannelNumber::new(CHANNEL).unwrap(), payload.len() as u16)[..], &payload].concat()
        });
        let messages: Vec<u8> = messages.collect();
        segment(&self.caller.socket, messages.len() / TRAIN);
        self.caller.socket.send(&messages).unwrap();
        segment(&self.caller.socket, 0);
        let (mut bytes, mut numbers) = ([0; 2048], [0; 2]);
        for _ in 0..2 * TRAIN {
            let (len, _) = received(&self.caller.socket, &mut bytes);
            let (kind, data) = match ChannelData::parse(&bytes[..len]) {
                Some(data) => (Kind::ChannelToClient, &bytes[..len][data.data()]),
                None => (Kind::DataToClient, data_of(&bytes[..len]).1),
            };
            let number = &mut numbers[usize::from(kind == Kind::DataToClient)];
            assert_eq!(data, payload(kind, *number), "{kind:?}");
            *number += 1;
        }
        for number in 0..TRAIN {
            let (len, from) = received(&self.channel_peer, &mut bytes);
            assert_eq!((&bytes[..len], from), (&payload(Kind::ChannelToPeer, number)[..], self.relayed));
        }
    }

    fn send(&self, kind: Kind, payload: &[u8]) {
        let header = ChannelData::header(ChannelNumber::new(CHANNEL).unwrap(), payload.len() as u16);
        let caller = &self.caller.socket;
        match kind {
            Kind::ChannelToPeer => caller.send(&[&header, payload].concat()),
            Kind::ChannelToClient => self.channel_peer.send_to(payload, self.relayed),
            Kind::SendToPeer => caller.send(&indication(Method::Send, self.other_peer.local_addr().unwrap(), payload)),
            // From a socket of its own, so that it does not overtake what goes the other way.
            Kind::DataToClient => self.other_peer.send_to(payload, self.relayed),
            Kind::Within => caller.send(&indication(Method::Send, self.clients[0].1, payload)),
            Kind::Across => caller.send(&indication(Method::Send, self.clients[1].1, payload)),
        }
        .unwrap();
    }

    /// The next packet where one of the kind arrives; two kinds arrive at the caller, in whatever order.
    fn expect(&self, kind: Kind, payload: &[u8]) {
        let mut bytes = [0; 2048];
        match kind {
            Kind::ChannelToPeer | Kind::SendToPeer => {
                let peer = if kind == Kind::SendToPeer { &self.other_peer } else { &self.channel_peer };
                let (len, from) = received(peer, &mut bytes);
                assert_eq!((&bytes[..len], from), (payload, self.relayed), "{kind:?}");
            }
            Kind::ChannelToClient | Kind::DataToClient => {
                let (len, _) = received(&self.caller.socket, &mut bytes);
                let bytes = &bytes[..len];
                match ChannelData::parse(bytes) {
                    Some(data) => assert_eq!(bytes[data.data()][1..], self::payload(Kind::ChannelToClient, 0)[1..]),
                    None => {
                        let (from, data) = data_of(bytes);
                        assert_eq!(from, self.other_peer.local_addr().unwrap());
                        assert_eq!(data[1..], self::payload(Kind::DataToClient, 0)[1..]);
                    }
                }
            }
            Kind::Within | Kind::Across => {
                let (client, _) = &self.clients[usize::from(kind == Kind::Across)];
                let (len, _) = received(&client.socket, &mut bytes);
                assert_eq!(data_of(&bytes[..len]), (self.relayed, payload), "{kind:?}");
            }
        }
    }
}

/// Has the kernel cut what is sent into datagrams of this length; 0 is not to.
fn segment(socket: &UdpSocket, len: usize) {
    let len = len as i32;
    // SAFETY: the value is an integer of the length that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const len).cast(),
            size_of::<i32>() as u32,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Begins with its number.
fn payload(kind: Kind, number: usize) -> Vec<u8> {
    let mut payload = vec![kind as u8; 160 + kind as usize];
    payload[0] = number as u8;
    payload
}

fn indication(method: Method, peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Builder::new(&mut bytes, method, Class::Indication, TransactionId([7; 12]))
        .xor_address(AttributeType::XOR_PEER_ADDRESS, peer)
        .attribute(AttributeType::DATA, payload);
    bytes
}

/// The source and the data of a Data indication.
fn data_of(bytes: &[u8]) -> (SocketAddr, &[u8]) {
    let message = Message::parse(bytes).unwrap();
    assert_eq!((message.method(), message.class()), (Method::Data, Class::Indication));
    let peer = message.attribute(AttributeType::XOR_PEER_ADDRESS).unwrap();
    let range = message.attribute(AttributeType::DATA).map(|data| {
        let start = message.offset_of(&data);
        start..start + data.value.len()
    });
    (peer.as_xor_address(message.transaction_id()).unwrap(), &bytes[range.unwrap()])
}

/// The next datagram. The end of an io_uring instance that this thread has made interrupts what it waits for.
fn received(socket: &UdpSocket, bytes: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        match socket.recv_from(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received.unwrap(),
        }
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

struct Client {
    socket: UdpSocket,
    nonce: Vec<u8>,
    asked: u8,
}

impl Client {
    fn of(server: SocketAddr) -> Self {
        let socket = socket();
        socket.connect(server).unwrap();
        Self { socket, nonce: Vec::new(), asked: 0 }
    }

    fn ask(&mut self, method: Method, write: impl Fn(&mut Builder<'_>)) -> Vec<u8> {
        self.asked += 1;
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes, method, Class::Request, TransactionId([self.asked; 12]));
        write(&mut builder);
        if !self.nonce.is_empty() {
            builder.attribute(AttributeType::USERNAME, b"alice").attribute(AttributeType::REALM, b"ferryd");
            let key = PasswordAlgorithm::Md5.key(b"alice", "ferryd", PASSWORD.as_bytes());
            builder.attribute(AttributeType::NONCE, &self.nonce).integrity(&key);
        }
        self.socket.send(&bytes).unwrap();
        let mut answer = vec![0; 2048];
        let (len, _) = received(&self.socket, &mut answer);
        answer.truncate(len);
        let class = Message::parse(&answer).unwrap().class();
        assert_eq!(class, if self.nonce.is_empty() { Class::Error } else { Class::Success }, "{method:?}");
        answer
    }

    fn allocate(&mut self) -> SocketAddr {
        let transport =
            |builder: &mut Builder<'_>| _ = builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        let challenge = self.ask(Method::Allocate, transport);
        let challenge = Message::parse(&challenge).unwrap();
        self.nonce = challenge.attribute(AttributeType::NONCE).unwrap().value.to_vec();
        let answer = self.ask(Method::Allocate, transport);
        let message = Message::parse(&answer).unwrap();
        let relayed = message.attribute(AttributeType::XOR_RELAYED_ADDRESS).unwrap();
        relayed.as_xor_address(message.transaction_id()).unwrap()
    }

    fn permit(&mut self, peer: SocketAddr) {
        self.ask(Method::CreatePermission, |builder| _ = builder.xor_address(AttributeType::XOR_PEER_ADDRESS, peer));
    }

    fn bind_channel(&mut self, peer: SocketAddr) {
        self.ask(Method::ChannelBind, |builder| {
            builder.u32(AttributeType::CHANNEL_NUMBER, u32::from(CHANNEL) << 16);
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
        });
    }
}
