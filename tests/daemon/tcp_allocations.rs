//! TCP allocations (RFC 6062): connections with peers, through plain and TLS clients, on whatever worker they arrive.

mod ends;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use ferryd::stun::{AttributeType, Builder, Class, Message, Method};

use crate::certificate::Certificate;
use crate::client::Client;
use crate::ferryd::{ALICE, Config, Ferryd, PASSWORD};
use crate::wire::{Stream, Wire};
use crate::{PATIENCE, wait_until};

const WORKERS: u32 = 2;

fn start() -> Ferryd {
    start_with(|_| {})
}

fn start_with(change: impl Fn(&mut Config)) -> Ferryd {
    Ferryd::start(|config| {
        Certificate::configured(config);
        config.set("extensions.tcp-allocations", true).set("workers", WORKERS);
        change(config);
    })
}

/// A client over plain TCP, or over TLS.
fn client(ferryd: &Ferryd, tls: bool) -> Client {
    if tls { Client::tls(ferryd.address(), &Certificate::of(&ferryd.config)) } else { Client::tcp(ferryd.address()) }
}

fn tcp_transport(builder: &mut Builder<'_>) {
    builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[6, 0, 0, 0]);
}

pub(crate) fn allocate(client: &mut Client) -> SocketAddr {
    client.request(Method::Allocate, tcp_transport).result().unwrap().address(AttributeType::XOR_RELAYED_ADDRESS)
}

pub(crate) fn connect(client: &mut Client, peer: SocketAddr) -> Result<u32, u16> {
    let answer =
        client.request(Method::Connect, |builder| _ = builder.xor_address(AttributeType::XOR_PEER_ADDRESS, peer));
    answer.result().map(|answer| answer.number(AttributeType::CONNECTION_ID))
}

/// The ConnectionAttempt that comes next.
fn attempt(client: &mut Client) -> (SocketAddr, u32) {
    let bytes = client.next();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.method(), message.class()), (Method::ConnectionAttempt, Class::Indication));
    let value = |kind| message.attribute(kind).unwrap();
    let peer = value(AttributeType::XOR_PEER_ADDRESS).as_xor_address(message.transaction_id()).unwrap();
    (peer, value(AttributeType::CONNECTION_ID).as_u32().unwrap())
}

fn write_id(id: u32) -> impl Fn(&mut Builder<'_>) {
    move |builder| _ = builder.u32(AttributeType::CONNECTION_ID, id)
}

/// A client's stream that is bound to a connection.
fn bind(mut data: Client, id: u32) -> Stream {
    assert_eq!(data.request(Method::ConnectionBind, write_id(id)).code(), None);
    stream(data)
}

fn stream(client: Client) -> Stream {
    let Wire::Stream(stream) = client.wire else { panic!("a stream") };
    stream
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn accept(listener: &TcpListener) -> TcpStream {
    patient(listener.accept().unwrap().0)
}

pub(crate) fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn read_exactly(mut stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Waits for the other side's end of a connection; what it said before.
pub(crate) fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("the connection does not end: {error}"),
    }
}

/// Words go both ways.
fn converse(stream: &mut Stream, mut peer: &TcpStream) {
    for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x00", &[0x40; 70_000]] {
        stream.write(words);
        assert_eq!(read_exactly(peer, words.len()), words);
        peer.write_all(words).unwrap();
        assert_eq!(stream.read_exactly(words.len()), words);
    }
}

#[test]
fn a_client_connects_to_peers_and_passes_data_both_ways() {
    let ferryd = start();
    for (tls, data_tls) in [(false, false), (true, true), (false, true), (true, false)] {
        let mut control = client(&ferryd, tls);
        let relayed = allocate(&mut control);
        // As many as put streams on every worker.
        for _ in 0..2 * WORKERS {
            let (listener, address) = listener();
            let id = connect(&mut control, address).unwrap();
            let (peer, from) = listener.accept().unwrap();
            let peer = patient(peer);
            assert_eq!(from, relayed, "the peer sees the relayed address");
            assert_eq!(connect(&mut control, address), Err(446));
            let mut data = bind(client(&ferryd, data_tls), id);
            converse(&mut data, &peer);
            drop(data);
            assert_eq!(rest(&peer), b"");
        }
        assert_eq!(control.refresh(0), Ok(0));
        wait_until("the listener to close", || TcpStream::connect(relayed).is_err());
    }
}

#[test]
fn peers_with_a_permission_connect_and_others_are_closed() {
    let ferryd = start();
    for tls in [false, true] {
        let mut control = client(&ferryd, tls);
        let relayed = allocate(&mut control);
        let stranger = patient(TcpStream::connect(relayed).unwrap());
        assert_eq!(rest(&stranger), b"", "closed at once");
        control.permit("127.0.0.1:1".parse().unwrap()).unwrap();
        for _ in 0..2 * WORKERS {
            let peer = patient(TcpStream::connect(relayed).unwrap());
            let (from, id) = attempt(&mut control);
            assert_eq!(from, peer.local_addr().unwrap());
            let mut data = bind(client(&ferryd, tls), id);
            converse(&mut data, &peer);
            drop(peer);
            assert_eq!(data.rest(), b"");
        }
    }
}

#[test]
fn what_is_sent_before_the_bind_arrives_after_its_answer() {
    // RFC 6062 section 5.4: "Data received on the associated peer data connection MUST be sent as-is on this client data
    // connection. This includes data that was received after the associated Connect or request was successfully
    // processed and before this ConnectionBind request was received."
    let ferryd = start();
    let mut control = client(&ferryd, false);
    let relayed = allocate(&mut control);
    control.permit("127.0.0.1:1".parse().unwrap()).unwrap();
    for (round, tls) in [false, true, false, true].into_iter().enumerate() {
        let mut peer = patient(TcpStream::connect(relayed).unwrap());
        let words: Vec<u8> = (0..40_000_u32).map(|index| (index * 7 + round as u32) as u8).collect();
        peer.write_all(&words).unwrap();
        // It may have said all it has to say.
        if round > 1 {
            peer.shutdown(Shutdown::Write).unwrap();
        }
        let (_, id) = attempt(&mut control);
        let mut data = bind(client(&ferryd, tls), id);
        assert_eq!(data.read_exactly(words.len()), words);
        data.write(b"heard");
        assert_eq!(read_exactly(&peer, 5), b"heard");
        if round > 1 {
            assert_eq!(data.read(), b"", "the end of the peer's half");
        }
    }
}

#[test]
fn what_is_pipelined_behind_the_bind_reaches_the_peer() {
    // RFC 6062 section 5.4: "Otherwise, the client connection is now called a client data connection. Data received on it
    // MUST be sent as-is to the associated peer data connection."
    let ferryd = start();
    let mut control = client(&ferryd, false);
    allocate(&mut control);
    for tls in [false, true, false, true] {
        let (listener, address) = listener();
        let id = connect(&mut control, address).unwrap();
        let peer = accept(&listener);
        let mut data = client(&ferryd, tls);
        data.challenge = Some(data.ask(Method::ConnectionBind, write_id(id)).challenge());
        let (request, transaction) = data.signed(Method::ConnectionBind, write_id(id));
        // What looks like messages is none any more.
        let words = [&request[..], b"\x00\x01\x00\x00", &[0xFF; 30_000]].concat();
        let Wire::Stream(wire) = &mut data.wire else { panic!("a stream") };
        wire.write(&[&request[..], &words].concat());
        assert_eq!(read_exactly(&peer, words.len()), words);
        assert_eq!(data.answer_to(transaction).code(), None);
        drop(data);
        assert_eq!(rest(&peer), b"");
    }
}

/// The most memory that a process has had, in KiB.
fn memory_peak(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// So many bytes that each place is known.
fn pattern(count: usize, seed: u32) -> Vec<u8> {
    (0..count as u32).map(|index| (index.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

#[test]
fn nobody_is_sent_more_than_is_taken() {
    // RFC 6062 section 3: "if the relay process is no longer able to write data to the destination of the relayed data,
    // the relay process stops reading data from the source."
    const BYTES: usize = 32 << 20;
    let ferryd = start_with(|config| _ = config.set("workers", 1));
    let mut control = client(&ferryd, false);
    allocate(&mut control);
    let (listener, address) = listener();
    let mut quick = {
        let id = connect(&mut control, address).unwrap();
        (accept(&listener), bind(client(&ferryd, true), id))
    };
    converse(&mut quick.1, &quick.0);
    for tls in [false, true] {
        let (listener, address) = self::listener();
        let id = connect(&mut control, address).unwrap();
        let peer = accept(&listener);
        let mut data = bind(client(&ferryd, tls), id);
        let before = memory_peak(ferryd.id());
        // Neither reads while both write, until neither gets rid of any more.
        let mut writer = peer.try_clone().unwrap();
        let down = std::thread::spawn(move || writer.write_all(&pattern(BYTES, 1)).unwrap());
        let (to_write, written) = (pattern(BYTES, 2), std::sync::mpsc::channel());
        let reader = peer.try_clone().unwrap();
        let up = std::thread::spawn(move || {
            written.1.recv().unwrap();
            assert!(read_exactly(&reader, BYTES) == pattern(BYTES, 2), "what the client wrote, as it was");
        });
        // Others are served meanwhile.
        for _ in 0..10 {
            converse(&mut quick.1, &quick.0);
        }
        assert!(!down.is_finished(), "the peer waits for the client");
        written.0.send(()).unwrap();
        data.write(&to_write);
        up.join().unwrap();
        assert!(data.read_exactly(BYTES) == pattern(BYTES, 1), "what the peer wrote, as it was");
        down.join().unwrap();
        let grown = memory_peak(ferryd.id()) - before;
        assert!(grown < 2048, "{grown} KiB for what waited");
    }
}

#[test]
fn data_waits_for_the_rate_of_its_allocation_and_none_is_lost() {
    // What is beyond the first second's share takes more than another second, in each direction.
    const BYTES: usize = 125_000;
    let ferryd = start_with(|config| _ = config.set("limits.allocation-bytes-per-second", 100_000));
    let mut control = client(&ferryd, false);
    allocate(&mut control);
    let begun = Instant::now();
    let conversations = [false, true].map(|tls| {
        let (listener, address) = listener();
        let id = connect(&mut control, address).unwrap();
        let peer = accept(&listener);
        let mut data = bind(client(&ferryd, tls), id);
        std::thread::spawn(move || {
            let mut writer = peer.try_clone().unwrap();
            let down = std::thread::spawn(move || writer.write_all(&pattern(BYTES, 1)).unwrap());
            let up = std::thread::spawn(move || assert!(read_exactly(&peer, BYTES) == pattern(BYTES, 2)));
            data.write(&pattern(BYTES, 2));
            assert!(data.read_exactly(BYTES) == pattern(BYTES, 1));
            [down, up].into_iter().for_each(|side| side.join().unwrap());
        })
    });
    conversations.into_iter().for_each(|conversation| conversation.join().unwrap());
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn errors_are_answered_and_the_stream_can_go_on() {
    let ferryd = start();
    let mut control = client(&ferryd, false);
    allocate(&mut control);
    let (closed, address) = listener();
    drop(closed);
    assert_eq!(connect(&mut control, address), Err(447), "refused by the peer");
    let (listener, address) = listener();
    let id = connect(&mut control, address).unwrap();
    let peer = accept(&listener);
    for tls in [false, true] {
        let mut data = client(&ferryd, tls);
        assert_eq!(data.request(Method::ConnectionBind, |_| {}).code(), Some(400));
        assert_eq!(data.request(Method::ConnectionBind, write_id(!id)).code(), Some(400));
        assert_eq!(data.ask(Method::ConnectionBind, write_id(id)).code(), Some(401));
        assert!(data.bind().port() != 0, "it still speaks STUN");
    }
    let mut udp = Client::udp(ferryd.address());
    assert_eq!(udp.request(Method::ConnectionBind, write_id(id)).code(), Some(400));
    assert_eq!(udp.request(Method::Allocate, tcp_transport).code(), Some(400));
    assert_eq!(udp.request(Method::Connect, |_| {}).code(), Some(437));
    let mut data = client(&ferryd, false);
    assert_eq!(data.request(Method::ConnectionBind, write_id(!id)).code(), Some(400));
    converse(&mut bind(data, id), &peer);
    assert_eq!(control.bind_channel(0x4000, address), Err(403));
}

#[test]
fn the_nonce_of_the_control_connection_saves_a_challenge() {
    let ferryd = start();
    let mut control = client(&ferryd, false);
    allocate(&mut control);
    for tls in [false, true, false, true] {
        let (listener, address) = listener();
        let id = connect(&mut control, address).unwrap();
        let mut data = client(&ferryd, tls);
        data.challenge.clone_from(&control.challenge);
        assert_eq!(data.request_once(Method::ConnectionBind, write_id(id)).code(), None);
        converse(&mut stream(data), &accept(&listener));
    }
}

#[test]
fn the_server_itself_is_no_peer() {
    let metrics = SocketAddr::from(([127, 0, 0, 1], crate::place::free_port()));
    let ferryd = start_with(|config| _ = config.text("metrics.address", metrics));
    let mut control = client(&ferryd, false);
    let relayed = allocate(&mut control);
    let of_all = |address: SocketAddr| SocketAddr::from(([127, 0, 0, 1], address.port()));
    for service in [ferryd.address(), of_all(ferryd.address()), metrics, relayed] {
        assert_eq!(connect(&mut control, service), Err(403), "{service}");
    }
    // Where nothing is allowed, neither is any other port of this host.
    let ferryd = start_with(|config| _ = config.unset("peers.allow"));
    let mut control = client(&ferryd, false);
    allocate(&mut control);
    let (_listener, address) = listener();
    assert_eq!(connect(&mut control, address), Err(403));
    let on_relay = TcpListener::bind((ferryd.config.ip, 0)).unwrap().local_addr().unwrap();
    assert_eq!(connect(&mut control, on_relay), Err(403));
}

#[test]
fn two_clients_connect_through_their_relayed_addresses() {
    let ferryd = start_with(|config| _ = config.unset("peers.allow"));
    for _ in 0..WORKERS {
        let (mut caller, mut callee) = (client(&ferryd, false), client(&ferryd, true));
        let (from, to) = (allocate(&mut caller), allocate(&mut callee));
        callee.permit(from).unwrap();
        let connected = connect(&mut caller, to).unwrap();
        let (peer, attempted) = attempt(&mut callee);
        assert_eq!(peer, from);
        let mut one = bind(client(&ferryd, false), connected);
        let mut other = bind(client(&ferryd, true), attempted);
        let words = pattern(1 << 20, 3);
        // In pieces, as both ends are this thread.
        for piece in words.chunks(50_000) {
            one.write(piece);
            assert!(other.read_exactly(piece.len()) == piece);
            other.write(piece);
            assert!(one.read_exactly(piece.len()) == piece);
        }
        drop(other);
        assert_eq!(one.rest(), b"");
    }
}

#[test]
fn peers_of_ipv6_connect_and_are_connected_to() {
    let ferryd = start_with(|config| _ = config.set("relay.addresses", "[\"127.0.0.1\", \"::1\"]"));
    let mut control = client(&ferryd, false);
    let answer = control.request(Method::Allocate, |builder| {
        tcp_transport(builder);
        builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    assert_eq!(answer.code(), None);
    for ip in ["127.0.0.1", "::1"] {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let id = connect(&mut control, listener.local_addr().unwrap()).unwrap();
        let (peer, relayed) = listener.accept().unwrap();
        converse(&mut bind(client(&ferryd, true), id), &patient(peer));
        control.permit(SocketAddr::new(ip.parse().unwrap(), 1)).unwrap();
        let peer = patient(TcpStream::connect(relayed).unwrap());
        let (_, id) = attempt(&mut control);
        converse(&mut bind(client(&ferryd, false), id), &peer);
    }
}

#[test]
fn where_tcp_allocations_are_off_nothing_listens() {
    let ferryd = Ferryd::start(|_| {});
    let mut control = Client::tcp(ferryd.address());
    assert_eq!(control.request(Method::Allocate, tcp_transport).code(), Some(442));
    let relayed = control.allocate();
    assert!(TcpStream::connect(relayed).is_err());
}

#[test]
fn the_client_of_coturn_connects() {
    let ferryd = start();
    let server = ferryd.address();
    // -T connects its own relayed addresses with each other.
    let output = Command::new("turnutils_uclient")
        .args(["-T", "-n", "5", "-m", "4", "-u", ALICE, "-w", PASSWORD])
        .args(["-p", &server.port().to_string(), &server.ip().to_string()])
        .output()
        .unwrap_or_else(|error| panic!("turnutils_uclient cannot be run ({error}): install the Debian package coturn"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("tot_send_msgs=20, tot_recv_msgs=20"), "{said}");
    assert!(said.contains("Total lost packets 0"), "{said}");
}
