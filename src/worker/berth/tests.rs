//! Two workers on loopback, one of which fails wherever it can.

use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use super::*;
use crate::address::Family;
use crate::auth::long_term::PasswordAlgorithm;
use crate::auth::settings::{Secret, User, UserCredential};
use crate::net::datagrams::{Arrival, Destination, EpollDatagrams, Role, SocketKey};
use crate::net::poll::{Events, Poll, Token};
use crate::net::socket::{UdpOptions, open_udp_listeners};
use crate::net::steering::Queues;
use crate::net::udp::SendReport;
use crate::stun::{AttributeType, Builder, Class, Message, Method, TransactionId};
use crate::turn::settings::{RelayAddress, Settings as TurnSettings};
use crate::worker::neighbours::Neighbours;
use crate::worker::settings::Accept;
use crate::worker::test_support::policy;
use crate::worker::{Command, Past, Report, Stand, Terms, WorkerHandle};

const PATIENCE: Duration = Duration::from_secs(30);
const PASSWORD: &str = "wonderland-7391";

/// Where a worker fails, next time that it gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Fault {
    Nowhere,
    /// At the head of a turn.
    Next,
    /// In the middle of effects: an answer is written.
    Answer,
    /// In the middle of effects: a relay socket is opened.
    Open,
    /// In the middle of effects: a relay socket is closed.
    Close,
    /// In a turn that has seen the wake and not the mailbox.
    Woken,
    /// At the head of a turn, and again while its allocations are ended.
    Ruin,
    /// The kernel refuses to wait.
    Wait,
    /// Each worker, wherever the one before did.
    Always,
}

/// A fault that another thread switches on.
#[derive(Debug)]
struct Switch(AtomicU8);

impl Switch {
    fn set(&self, fault: Fault) {
        self.0.store(fault as u8, Ordering::Release);
    }

    fn trips(&self, here: Fault) -> bool {
        let now = self.0.load(Ordering::Acquire);
        if now == here as u8 {
            self.set(Fault::Nowhere);
        }
        now == here as u8 || now == Fault::Always as u8
    }

    fn panic_at(&self, here: Fault) {
        assert!(!self.trips(here), "a fault for the test: {here:?}");
    }
}

/// A back end with a fault.
struct Failing {
    inner: EpollDatagrams,
    switch: Arc<Switch>,
    /// How often the turn has asked what has arrived.
    asked: usize,
}

impl Datagrams for Failing {
    fn start(&mut self) -> io::Result<()> {
        self.inner.start()
    }

    fn add(&mut self, token: Token, role: Role, socket: UdpSocket) -> io::Result<SocketKey> {
        if role == Role::Relay {
            self.switch.panic_at(Fault::Open);
        }
        self.inner.add(token, role, socket)
    }

    fn remove(&mut self, key: SocketKey) {
        self.switch.panic_at(Fault::Close);
        self.inner.remove(key);
    }

    fn socket(&self, key: SocketKey) -> Option<&UdpSocket> {
        self.inner.socket(key)
    }

    fn merge_nothing(&mut self) {
        self.inner.merge_nothing();
    }

    fn poll(&self) -> &Poll {
        self.inner.poll()
    }

    fn wait(&mut self, events: &mut Events, patience: Option<Duration>, rest: Option<Duration>) -> io::Result<()> {
        self.inner.wait(events, patience, rest)?;
        self.asked = 0;
        if self.switch.trips(Fault::Wait) { Err(io::Error::other("a refusal for the test")) } else { Ok(()) }
    }

    fn next(&mut self) -> Option<Arrival> {
        if self.switch.trips(Fault::Ruin) {
            self.switch.set(Fault::Close);
            panic!("a fault for the test: the first of two");
        }
        self.switch.panic_at(Fault::Next);
        self.asked += 1;
        if self.asked > 1 {
            self.switch.panic_at(Fault::Woken);
        }
        self.inner.next()
    }

    fn has_more(&self) -> bool {
        self.inner.has_more()
    }

    fn datagram(&self, slot: usize) -> &[u8] {
        self.inner.datagram(slot)
    }

    fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        self.inner.slot_mut(slot)
    }

    fn send_slot(&mut self, destination: Destination, slot: usize, start: usize, len: usize) {
        self.inner.send_slot(destination, slot, start, len);
    }

    fn send_framed(&mut self, destination: Destination, prefix: &[u8], slot: usize, range: Range<usize>, padding: u8) {
        self.inner.send_framed(destination, prefix, slot, range, padding);
    }

    fn send_copy(&mut self, destination: Destination, bytes: &[u8]) {
        self.switch.panic_at(Fault::Answer);
        self.inner.send_copy(destination, bytes);
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn sent(&self) -> SendReport {
        self.inner.sent()
    }
}

/// Workers, each with a listener of its own, so that a client chooses its worker.
struct Crew {
    shared: Arc<Shared>,
    switches: Vec<Arc<Switch>>,
    addresses: Vec<SocketAddr>,
    handles: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Crew {
    fn start() -> Self {
        let relay = RelayAddress { bind: "127.0.0.1".parse().unwrap(), advertised: None };
        let mut settings = TurnSettings { mobility: true, ..TurnSettings::relaying_on(vec![relay]) };
        settings.peers.allow = vec!["127.0.0.0/8".parse().unwrap()];
        let password = UserCredential::Password(Secret::new(PASSWORD));
        let policy = policy(&settings, vec![User { name: "alice".to_owned(), credential: password }]);
        let (shared, held) = (Arc::new(Shared::new(&settings)), HeldSockets::default());
        let mailboxes: Vec<_> = (0..2).map(|_| WorkerHandle::new().unwrap()).collect();
        let handles: Vec<_> = mailboxes.iter().map(|(handle, ..)| handle.clone()).collect();
        let rings = Neighbours::mesh(&handles);
        let mut crew = Self { shared, switches: Vec::new(), addresses: Vec::new(), handles, threads: Vec::new() };
        for (index, ((_, commands, wake), neighbours)) in mailboxes.into_iter().zip(rings).enumerate() {
            let many = open_udp_listeners("127.0.0.1:0".parse().unwrap(), 1, &UdpOptions::LISTENER).unwrap();
            crew.addresses.push(many[0].local_addr().unwrap());
            let queues = Queues { many, few: None, rest: None };
            let listeners = vec![Some(Stand { queues, terms: Terms::open(Accept::Plain) })];
            let (id, shared, held) = (WorkerId(index as u8), Arc::clone(&crew.shared), held.clone());
            let (settings, records) = (Settings::default(), Records::new(Default::default()).0);
            let (offload, authorizer, dtls, proxies) = (None, None, None, ProxyHosts::default());
            let berth = Berth { id, settings, shared, held, proxies, offload, records, authorizer, dtls };
            let (policy, past) = (policy.clone(), Past::default());
            let legacy = Legacy { policy, commands, wake, neighbours, listeners, past };
            let switch = Arc::new(Switch(AtomicU8::new(Fault::Nowhere as u8)));
            crew.switches.push(Arc::clone(&switch));
            let open = move || Ok(Failing { inner: EpollDatagrams::new()?, switch: Arc::clone(&switch), asked: 0 });
            crew.threads.push(std::thread::spawn(move || berth.serve(berth.start(legacy, open()?)?, open)));
        }
        crew
    }

    /// Has a worker fail, and waits until another has taken over.
    fn fail(&self, worker: usize, fault: Fault, provoke: impl FnOnce()) {
        let before = self.report(worker).unwrap().statistics.restarts;
        self.switches[worker].set(fault);
        provoke();
        wait_until(|| self.report(worker).is_some_and(|report| report.statistics.restarts == before + 1));
    }

    fn report(&self, worker: usize) -> Option<Report> {
        let (to, from) = sync_channel(1);
        self.handles[worker].tell(Command::Report(to)).then(|| from.recv_timeout(PATIENCE).ok())?
    }

    fn stop(self) {
        self.handles.iter().for_each(|handle| _ = handle.tell(Command::Stop));
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
        assert_eq!((self.shared.quotas.total(), self.shared.mobility.usage()), (0, (0, 0)));
    }
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "nothing happened in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Client {
    socket: UdpSocket,
    nonce: Vec<u8>,
}

impl Client {
    fn of(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, nonce: Vec::new() }
    }

    /// Sends a request with what the client knows.
    fn send(&self, method: Method, write: impl Fn(&mut Builder<'_>)) {
        let (mut bytes, mut id) = (Vec::new(), [0; 12]);
        getrandom::fill(&mut id).unwrap();
        let mut builder = Builder::new(&mut bytes, method, Class::Request, TransactionId(id));
        write(&mut builder);
        if !self.nonce.is_empty() {
            builder.attribute(AttributeType::USERNAME, b"alice").attribute(AttributeType::REALM, b"ferryd");
            let key = PasswordAlgorithm::Md5.key(b"alice", "ferryd", PASSWORD.as_bytes());
            builder.attribute(AttributeType::NONCE, &self.nonce).integrity(&key);
        }
        self.socket.send(&bytes).unwrap();
    }

    fn ask(&self, method: Method, write: impl Fn(&mut Builder<'_>)) -> Vec<u8> {
        self.send(method, write);
        self.receive()
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let len = self.socket.recv(&mut buffer).unwrap();
        buffer[..len].to_vec()
    }

    fn allocate(&mut self, write: impl Fn(&mut Builder<'_>)) -> SocketAddr {
        let write = |builder: &mut Builder<'_>| {
            builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            write(builder);
        };
        if self.nonce.is_empty() {
            self.learn_nonce();
        }
        let answer = self.ask(Method::Allocate, write);
        let message = Message::parse(&answer).unwrap();
        let relayed = message.attribute(AttributeType::XOR_RELAYED_ADDRESS).unwrap();
        relayed.as_xor_address(message.transaction_id()).unwrap()
    }

    fn learn_nonce(&mut self) {
        self.nonce = attribute(&self.ask(Method::Allocate, |_| {}), AttributeType::NONCE).unwrap();
    }

    fn permit(&self, peer: SocketAddr) {
        let answer = self
            .ask(Method::CreatePermission, |builder| _ = builder.xor_address(AttributeType::XOR_PEER_ADDRESS, peer));
        assert_eq!(code(&answer), None);
    }
}

fn attribute(bytes: &[u8], kind: AttributeType) -> Option<Vec<u8>> {
    Message::parse(bytes).unwrap().attribute(kind).map(|attribute| attribute.value.to_vec())
}

fn code(bytes: &[u8]) -> Option<u16> {
    attribute(bytes, AttributeType::ERROR_CODE).map(|value| u16::from(value[2]) * 100 + u16::from(value[3]))
}

/// With a port reserved, and a ticket.
fn everything(builder: &mut Builder<'_>) {
    builder.attribute(AttributeType::EVEN_PORT, &[0x80]).attribute(AttributeType::MOBILITY_TICKET, &[]);
}

#[test]
fn a_worker_that_fails_ends_its_allocations_and_no_others_and_another_takes_over() {
    for fault in [Fault::Next, Fault::Woken, Fault::Ruin, Fault::Answer, Fault::Open, Fault::Close, Fault::Wait] {
        let crew = Crew::start();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut lost, mut kept) = (Client::of(crew.addresses[0]), Client::of(crew.addresses[1]));
        lost.allocate(everything);
        let relayed = kept.allocate(everything);
        kept.permit(peer.local_addr().unwrap());
        assert_eq!((crew.shared.ports.usage(Family::V4).0, crew.shared.quotas.total()), (4, 4));
        let refused =
            |report: &Report| report.counters.refused(Method::Allocate, crate::stun::ErrorCode::Unauthenticated);
        let before = refused(&crew.report(0).unwrap());

        crew.fail(0, fault, || match fault {
            // The report wakes it.
            Fault::Nowhere | Fault::Next | Fault::Woken | Fault::Ruin | Fault::Wait | Fault::Always => {}
            Fault::Answer => lost.send(Method::Binding, |_| {}),
            Fault::Open => {
                let mut another = Client::of(crew.addresses[0]);
                another.learn_nonce();
                another.send(Method::Allocate, |builder| {
                    builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
                    everything(builder);
                });
            }
            Fault::Close => lost.send(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0)),
        });

        let report = crew.report(0).unwrap();
        assert_eq!(report.allocations, 0, "{fault:?}");
        assert!(refused(&report) >= before, "{fault:?}: what was counted goes on being counted");
        // The other's allocation and reservation, with a ticket, and nothing of the one that failed.
        assert_eq!((crew.shared.ports.usage(Family::V4).0, crew.shared.quotas.total()), (2, 2), "{fault:?}");
        assert_eq!(crew.shared.mobility.usage(), (1, 0), "{fault:?}");
        peer.send_to(b"still there", relayed).unwrap();
        assert_eq!(attribute(&kept.receive(), AttributeType::DATA).unwrap(), b"still there", "{fault:?}");
        assert_eq!(crew.report(1).unwrap().statistics.restarts, 0);

        // The client of the one that failed hears so, and begins anew on the same listener.
        let gone = lost.ask(Method::Refresh, |_| {});
        assert_eq!(code(&gone), Some(437), "{fault:?}");
        let relayed = lost.allocate(everything);
        lost.permit(peer.local_addr().unwrap());
        peer.send_to(b"again", relayed).unwrap();
        assert_eq!(attribute(&lost.receive(), AttributeType::DATA).unwrap(), b"again", "{fault:?}");
        crew.stop();
    }
}

#[test]
fn a_worker_that_fails_again_and_again_ends_and_the_others_go_on() {
    let crew = Crew::start();
    let mut other = Client::of(crew.addresses[1]);
    for _ in 0..RESTARTS_MAX {
        crew.fail(0, Fault::Next, || {});
    }
    crew.switches[0].set(Fault::Always);
    wait_until(|| crew.report(0).is_none());
    wait_until(|| crew.threads[0].is_finished());
    other.allocate(everything);
    let Crew { threads, handles, .. } = crew;
    handles[1].tell(Command::Stop);
    let [failed, stopped] = <[_; 2]>::try_from(threads).unwrap().map(|thread| thread.join().unwrap());
    assert_eq!(failed.unwrap_err().to_string(), "it has failed 6 times within 60 s");
    stopped.unwrap();
}

#[test]
fn failures_are_forgotten_after_a_while() {
    let (mut failures, begin) = (Failures::default(), Instant::now());
    for minute in 0..10 {
        for _ in 0..RESTARTS_MAX {
            failures.count(begin + minute * RESTART_WINDOW).unwrap();
        }
    }
    assert!(failures.count(begin + 9 * RESTART_WINDOW).is_err());
}
