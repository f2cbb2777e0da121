//! Clients whose datagrams come through a proxy, each behind a header that names them (PROXY protocol, version 2).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::{Client, Data, binding_request};
use crate::ferryd::{Config, Ferryd};
use crate::metrics::metric;
use crate::relaying::there_and_back;
use crate::wait_until;

/// Moves of a proxy to other ports: with two workers the kernel gives all of them to one once in 128 runs.
const MOVES: usize = 8;

/// A listener whose datagrams come from proxies on the server's own address, while clients are on 127.0.0.1.
fn behind_proxies(config: &mut Config) {
    let (address, ip) = (config.address(), config.ip);
    config
        .set("listener", format!("[{{ address = \"{address}\", transport = \"udp\", proxy-protocol = [\"{ip}\"] }}]"));
}

fn with_metrics(config: &mut Config) {
    config.text("metrics.address", format!("{}:{}", config.ip, crate::place::free_port()));
}

/// The header of a client, with further values behind the addresses.
fn header(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let octets = |ip| if let IpAddr::V4(ip) = ip { ip.octets() } else { panic!("an IPv4 address") };
    let ports = [client.port().to_be_bytes(), server.port().to_be_bytes()].concat();
    let ends = [&octets(client.ip())[..], &octets(server.ip()), &ports].concat();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x12", &[0, 19][..], &ends, &[0xea, 0, 4, 1, 2, 3, 4]].concat()
}

/// A proxy of datagrams: each client has a port of its own towards the server.
struct Proxy {
    front: SocketAddr,
    moves: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    /// The sockets that clients had before a move.
    left: Arc<Mutex<Vec<UdpSocket>>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn before(ferryd: &Ferryd) -> Self {
        let (server, ip) = (ferryd.address(), ferryd.config.ip);
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let front = socket.local_addr().unwrap();
        let (moves, ends, left) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default(), Arc::default());
        let mut proxy =
            Self { front, moves: Arc::clone(&moves), ends: Arc::clone(&ends), left: Arc::clone(&left), thread: None };
        let thread = std::thread::spawn(move || {
            let mut ways: HashMap<SocketAddr, UdpSocket> = HashMap::new();
            let (mut moved, mut buffer) = (0, vec![0; 65_536]);
            while !ends.load(Ordering::Relaxed) {
                if moves.load(Ordering::Acquire) > moved {
                    left.lock().unwrap().extend(ways.drain().map(|(_, socket)| socket));
                    moved += 1;
                }
                if let Ok((len, client)) = socket.recv_from(&mut buffer) {
                    let way = ways.entry(client).or_insert_with(|| {
                        let way = UdpSocket::bind((ip, 0)).unwrap();
                        way.set_nonblocking(true).unwrap();
                        way
                    });
                    way.send_to(&[&header(client, front), &buffer[..len]].concat(), server).unwrap();
                }
                for (client, way) in &ways {
                    while let Ok((len, from)) = way.recv_from(&mut buffer) {
                        assert_eq!(from, server);
                        socket.send_to(&buffer[..len], client).unwrap();
                    }
                }
            }
        });
        proxy.thread = Some(thread);
        proxy
    }

    /// Has every client come from another port, from its next datagram on.
    fn move_clients(&self) {
        let left = self.left.lock().unwrap().len();
        self.moves.fetch_add(1, Ordering::Release);
        wait_until("the proxy has moved", || self.left.lock().unwrap().len() > left);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            assert!(std::thread::panicking(), "the proxy has failed");
        }
    }
}

/// A client that does not know of the proxy that it talks to.
fn call(proxy: &Proxy, mut client: Client) -> (Client, SocketAddr, UdpSocket) {
    let (own, front) = (client.wire.local_port(), proxy.front);
    assert_eq!(client.bind().port(), own, "the client behind {front} is the one that is served");
    let (relayed, peer) = (client.allocate(), UdpSocket::bind("127.0.0.1:0").unwrap());
    there_and_back(&mut client, relayed, &peer, b"by indications");
    client.bind_channel(0x4001, peer.local_addr().unwrap()).unwrap();
    (client, relayed, peer)
}

/// Sends one payload each way by the channel of [`call`].
fn passes((client, relayed, peer): &mut (Client, SocketAddr, UdpSocket), payload: &[u8]) {
    client.send_by_channel(0x4001, payload);
    let mut buffer = [0; 2000];
    let (len, from) = peer.recv_from(&mut buffer).expect("the peer hears the client");
    assert_eq!((&buffer[..len], from), (payload, *relayed));
    peer.send_to(payload, *relayed).unwrap();
    assert_eq!(client.receive(), Data::Channel(0x4001, payload.to_vec()));
}

#[test]
fn every_client_of_a_proxy_is_served_under_its_own_address() {
    let ferryd = Ferryd::start(|config| {
        behind_proxies(config);
        config.text("log.format", "json");
    });
    let proxy = Proxy::before(&ferryd);
    let mut calls: Vec<_> = (0..4).map(|_| call(&proxy, Client::udp(proxy.front))).collect();
    let clients: Vec<_> = calls.iter().map(|(client, ..)| client.wire.local_port()).collect();
    for length in [0, 1, 160, 1200] {
        calls.iter_mut().for_each(|call| passes(call, &vec![7; length]));
    }
    calls.iter_mut().for_each(|(client, ..)| assert_eq!(client.refresh(0), Ok(0)));
    let ended = ferryd.stop();
    for client in clients {
        let is_its = |line: &&str| {
            let named = [format!("\"client\":\"127.0.0.1:{client}\""), format!("\"server\":\"{}\"", proxy.front)];
            line.contains("ferryd::session") && named.iter().all(|named| line.contains(named))
        };
        assert_eq!(ended.stderr.lines().filter(is_its).count(), 1, "{client}: {}", ended.stderr);
    }
}

#[test]
fn a_client_is_answered_where_its_last_datagram_came_from() {
    let ferryd = Ferryd::start(behind_proxies);
    let proxy = Proxy::before(&ferryd);
    let mut calls: Vec<_> = (0..2).map(|_| call(&proxy, Client::udp(proxy.front))).collect();
    for number in 0..MOVES {
        proxy.move_clients();
        calls.iter_mut().for_each(|call| passes(call, &[number as u8; 200]));
    }
    for left in &*proxy.left.lock().unwrap() {
        assert!(left.recv(&mut [0; 2000]).is_err(), "nothing is sent where the client was before");
    }
}

#[test]
fn nobody_is_heard_but_proxies_that_name_their_clients() {
    let ferryd = Ferryd::start(|config| {
        behind_proxies(config);
        with_metrics(config);
    });
    let (server, ip) = (ferryd.address(), ferryd.config.ip);
    let count = |reason| metric(&ferryd, &format!("ferryd_queue_drops_total{{reason=\"{reason}\"}}"));
    let (stranger, proxy) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind((ip, 0)).unwrap());
    let client: SocketAddr = "192.0.2.7:40000".parse().unwrap();
    let (header, request) = (header(client, server), binding_request());
    let forged = [&header[..], &request].concat();
    for bytes in [&request, &forged] {
        stranger.send_to(bytes, server).unwrap();
    }
    wait_until("the stranger to be counted", || count("proxy_stranger") == 2);
    let mut of_stream = forged.clone();
    of_stream[13] = 0x11;
    let line = format!("PROXY UDP4 {} {ip} {} {}\r\n", client.ip(), client.port(), server.port());
    let bad = [&request[..], &header[..20], &[line.as_bytes(), &request].concat(), &of_stream, b""];
    for bytes in bad {
        proxy.send_to(bytes, server).unwrap();
    }
    wait_until("bad headers to be counted", || count("proxy_header") == bad.len() as u64);
    for socket in [&stranger, &proxy] {
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 100]).is_err(), "no answer");
        socket.set_nonblocking(false).unwrap();
    }
    // The proxy's own check.
    let (mut buffer, own) = ([0; 100], proxy.local_addr().unwrap());
    proxy.send_to(&[&b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"[..], &request].concat(), server).unwrap();
    proxy.set_read_timeout(Some(crate::PATIENCE)).unwrap();
    let len = proxy.recv(&mut buffer).expect("an answer");
    let answer = ferryd::stun::Message::parse(&buffer[..len]).unwrap();
    let mapped = answer.attribute(ferryd::stun::AttributeType::XOR_MAPPED_ADDRESS).unwrap();
    assert_eq!(mapped.as_xor_address(answer.transaction_id()), Some(own));
}

#[cfg(feature = "dtls")]
#[test]
fn an_association_of_dtls_goes_on_when_its_proxy_moves_it() {
    let ferryd = Ferryd::start(|config| {
        crate::certificate::Certificate::configured(config);
        behind_proxies(config);
    });
    let certificate = crate::certificate::Certificate::of(&ferryd.config);
    let proxy = Proxy::before(&ferryd);
    let mut call = call(&proxy, Client::dtls(proxy.front, &certificate));
    for number in 0..MOVES {
        proxy.move_clients();
        passes(&mut call, &[number as u8; 200]);
    }
}

#[test]
fn proxies_are_named_and_their_listener_removed_by_a_reload() {
    let mut ferryd = Ferryd::start(|config| {
        let address = config.address().to_string();
        config.listen(&[(&address, "udp")]);
        with_metrics(config);
    });
    Client::udp(ferryd.address()).allocate();
    ferryd.reload(behind_proxies);
    let direct = UdpSocket::bind("127.0.0.1:0").unwrap();
    let strangers = |ferryd: &Ferryd| metric(ferryd, "ferryd_queue_drops_total{reason=\"proxy_stranger\"}");
    wait_until("clients that come directly to be refused", || {
        direct.send_to(&binding_request(), ferryd.address()).unwrap();
        strangers(&ferryd) > 0
    });
    let proxy = Proxy::before(&ferryd);
    let mut call = call(&proxy, Client::udp(proxy.front));
    passes(&mut call, b"to be kept");
    let other = SocketAddr::from((ferryd.config.ip, crate::place::free_port())).to_string();
    ferryd.reload(|config| _ = config.listen(&[(&other, "udp")]));
    for number in 0..3 {
        proxy.move_clients();
        passes(&mut call, &[number; 100]);
    }
}
