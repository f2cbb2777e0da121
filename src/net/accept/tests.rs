use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream as StdTcpStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};

use super::*;
use crate::net::admission::AcceptLimits;
use crate::net::buffers::Buffers;
use crate::net::stream::{Connection, QueueLimits};
use crate::net::test_tls::{TestCertificate, client, client_config, wait_until};
use crate::net::tls::{TlsSettings, load};

/// A listener that is served on a thread of its own until dropped.
struct Server {
    address: SocketAddr,
    admission: Arc<Admission>,
    established: mpsc::Receiver<Established>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(accept: Accept, tls: Option<TlsAcceptConfig>) -> Self {
        Self::with_limits(accept, tls, AcceptLimits::default())
    }

    fn with_limits(accept: Accept, tls: Option<TlsAcceptConfig>, limits: AcceptLimits) -> Self {
        Self::behind(Vec::new(), accept, tls, limits)
    }

    fn behind(proxies: Vec<IpNet>, accept: Accept, tls: Option<TlsAcceptConfig>, limits: AcceptLimits) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let admission = Admission::new(limits);
        let (sink, established) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let shared = admission.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let serving = serve(listener, accept, proxies, tls, shared, move |established| {
                    let _ = sink.send(established);
                });
                tokio::select! {
                    ended = serving => panic!("{ended:?}"),
                    _ = stopped => {}
                }
            });
        });
        Self { address, admission, established, stop: Some(stop), thread: Some(thread) }
    }

    fn connect(&self) -> StdTcpStream {
        let stream = StdTcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn say(&self, bytes: &[u8]) -> StdTcpStream {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        stream
    }

    fn next(&self) -> Established {
        self.established.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    fn wait_for(&self, counter: fn(&AcceptCounters) -> &AtomicU64, value: u64) {
        wait_until("a counter", || counter(&self.admission.counters).load(Ordering::Relaxed) == value);
    }

    /// Finishes a TLS handshake and hears one byte, so that tickets have come too.
    fn tls(&self, config: &Arc<ClientConfig>, name: &str) -> (ClientConnection, Box<ServerConnection>) {
        let mut stream = StreamOwned::new(client(config, name), self.connect());
        stream.conn.complete_io(&mut stream.sock).unwrap();
        let mut established = self.next();
        let mut server = established.tls.take().unwrap();
        server.writer().write_all(b"!").unwrap();
        server.write_tls(&mut established.stream).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        (stream.conn, server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// That the server closes without having said a byte.
fn assert_closed_in_silence(mut stream: StdTcpStream) {
    match stream.read(&mut [0; 100]) {
        Ok(n) => assert_eq!(n, 0, "a byte was said"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

fn certificate() -> TestCertificate {
    TestCertificate::new(&["turn.example"])
}

#[test]
fn a_plain_stream_is_handed_over_with_all_its_bytes() {
    let server = Server::start(Accept::Both, None);
    for first in [0x00, 0x01, 0x40, 0x4f] {
        let client = server.say(&[first, 1, 2, 3]);
        let established = server.next();
        assert!(established.tls.is_none());
        assert_eq!(established.client, client.local_addr().unwrap());
        assert_eq!(established.server, server.address);
        let socket = SockRef::from(&established.stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        let mut bytes = [0; 10];
        assert_eq!((&established.stream).read(&mut bytes).unwrap(), 4);
        assert_eq!(bytes[..4], [first, 1, 2, 3]);
        assert_eq!((&established.stream).read(&mut bytes).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    server.wait_for(|c| &c.established_plain, 4);
}

/// A server that believes loopback.
fn behind_proxies(accept: Accept, tls: Option<TlsAcceptConfig>, limits: AcceptLimits) -> Server {
    Server::behind(vec!["192.0.2.0/24".parse().unwrap(), "127.0.0.0/8".parse().unwrap()], accept, tls, limits)
}

const PREAMBLE: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";
/// LOCAL, of version 2.
const HEALTH_CHECK: &[u8] = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00";

#[test]
fn a_proxy_names_its_client_and_the_clients_bytes_follow() {
    let server = behind_proxies(Accept::Both, None, AcceptLimits::default());
    let mut client = server.say(&[PREAMBLE, b"\x00\x01"].concat());
    let established = server.next();
    assert_eq!(established.client, "192.0.2.7:40000".parse().unwrap());
    assert_eq!(established.server, server.address);
    let mut bytes = [0; 10];
    assert_eq!((&established.stream).read(&mut bytes).unwrap(), 2);
    client.write_all(b"more").unwrap();
    // Cut anywhere, and with the proxy's own address for its own connections.
    let mut slow = server.connect();
    for byte in [HEALTH_CHECK, b"\x00"].concat() {
        slow.write_all(&[byte]).unwrap();
    }
    assert_eq!(server.next().client, slow.local_addr().unwrap());
}

#[test]
fn tls_begins_behind_the_preamble() {
    let certificate = certificate();
    let server = behind_proxies(Accept::Tls, Some(certificate.load()), AcceptLimits::default());
    let mut socket = server.say(PREAMBLE);
    let mut session = client(&client_config(&[&certificate], &TLS13, &[]), "turn.example");
    session.complete_io(&mut socket).unwrap();
    let established = server.next();
    assert!(established.tls.is_some());
    assert_eq!(established.client, "192.0.2.7:40000".parse().unwrap());
}

#[test]
fn a_proxy_without_a_preamble_and_a_stranger_with_one_are_closed() {
    let server = behind_proxies(Accept::Both, None, AcceptLimits::default());
    assert_closed_in_silence(server.say(b"\x00\x01\x00\x00"));
    assert_closed_in_silence(server.say(b"PROXY TCP4 192.0.2.7 198.51.100.1 40000\r\n\x00\x01"));
    server.wait_for(|c| &c.closed_preamble, 2);
    for stranger in [Server::start(Accept::Both, None), {
        let others = vec!["192.0.2.0/24".parse().unwrap()];
        Server::behind(others, Accept::Both, None, AcceptLimits::default())
    }] {
        assert_closed_in_silence(stranger.say(PREAMBLE));
        assert_closed_in_silence(stranger.say(HEALTH_CHECK));
        stranger.wait_for(|c| &c.closed_unrecognised, 2);
        let plain = stranger.say(b"\x00\x01");
        assert_eq!(stranger.next().client, plain.local_addr().unwrap());
    }
}

#[test]
fn the_announced_client_counts_as_the_source() {
    let limits = AcceptLimits { connections_per_source_max: 1, connections_max: 3, ..AcceptLimits::default() };
    let server = behind_proxies(Accept::Both, None, limits);
    let say =
        |client: u8| server.say(format!("PROXY TCP4 192.0.2.{client} 198.51.100.1 40000 443\r\n\0\x01").as_bytes());
    let _streams = (say(7), say(8));
    let first = server.next();
    let _second = server.next();
    assert_closed_in_silence(say(7));
    server.wait_for(|c| &c.refused_source_limit, 1);
    let _unnamed = server.connect();
    wait_until("the third to be inside", || server.admission.connections() == 3);
    assert_closed_in_silence(server.connect());
    server.wait_for(|c| &c.refused_total_limit, 1);
    // A place that was given back is taken again.
    let freed = first.client.ip().to_string();
    drop((first, _unnamed));
    wait_until("two places to be free", || server.admission.connections() == 1);
    let _again = say(freed.rsplit('.').next().unwrap().parse().unwrap());
    server.next();
}

#[test]
fn a_preamble_without_an_end_meets_the_deadline() {
    let limits = AcceptLimits { first_byte_deadline: Duration::from_millis(50), ..AcceptLimits::default() };
    let server = behind_proxies(Accept::Both, None, limits);
    assert_closed_in_silence(server.say(&PREAMBLE[..20]));
    assert_closed_in_silence(server.say(PREAMBLE));
    server.wait_for(|c| &c.closed_deadline, 2);
}

#[test]
fn what_is_not_answered_is_closed_without_a_byte() {
    let hello = [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0];
    let tls = || Some(certificate().load());
    type Case<'a> = (Accept, Option<TlsAcceptConfig>, &'a [&'a [u8]]);
    let cases: [Case<'_>; 5] = [
        (Accept::Both, tls(), &[b"\x02", b"\x3f", b"\x50OST / HTTP/1.1", b"\x80", b"\xff", b"\x15\x03", b"\x16\x02aa"]),
        (Accept::Both, None, &[&hello]),
        (Accept::Plain, tls(), &[&hello]),
        (Accept::Tls, None, &[&hello, b"\x00\x01"]),
        (Accept::Tls, tls(), &[b"\x00\x01\x00\x00", b"\x40\x00\x00\x00", b"\x16\x01"]),
    ];
    for (accept, tls, openings) in cases {
        let server = Server::start(accept, tls);
        for opening in openings {
            assert_closed_in_silence(server.say(opening));
        }
        server.wait_for(|c| &c.closed_unrecognised, openings.len() as u64);
        assert!(server.established.try_recv().is_err());
    }
}

#[test]
fn a_hello_that_comes_byte_by_byte_is_answered() {
    let certificate = certificate();
    let server = Server::start(Accept::Both, Some(certificate.load()));
    let config = client_config(&[&certificate], &TLS13, &[]);
    let mut tls = client(&config, "turn.example");
    let mut stream = server.connect();
    let mut wire = Vec::new();
    tls.write_tls(&mut wire).unwrap();
    for byte in wire {
        stream.write_all(&[byte]).unwrap();
    }
    tls.complete_io(&mut stream).unwrap();
    assert!(server.next().tls.is_some());
    server.wait_for(|c| &c.established_tls, 1);
}

#[test]
fn what_follows_the_handshake_at_once_is_received_first() {
    let certificate = certificate();
    let server = Server::start(Accept::Tls, Some(certificate.load()));
    for version in [&TLS13, &TLS12] {
        let config = client_config(&[&certificate], version, &[]);
        let mut tls = client(&config, "turn.example");
        let mut stream = server.connect();
        // Waits in rustls until the client's last flight, and leaves with it in one segment, cut in the last record.
        let message: Vec<u8> = (0..3000u32).map(|i| i as u8).collect();
        tls.writer().write_all(&message[..1500]).unwrap();
        while tls.is_handshaking() {
            let mut wire = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut wire).unwrap();
            }
            stream.write_all(&wire).unwrap();
            tls.read_tls(&mut stream).unwrap();
            tls.process_new_packets().unwrap();
        }
        tls.writer().write_all(&message[1500..]).unwrap();
        let mut wire = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut wire).unwrap();
        }
        let cut = wire.len() - 700;
        stream.write_all(&wire[..cut]).unwrap();
        let mut connection = Connection::new(server.next(), QueueLimits::default());
        let mut buffers = Buffers::default();
        let mut receive = |bytes: usize| {
            wait_until("bytes", || {
                connection.fill(&mut buffers, usize::MAX, true).unwrap();
                connection.received().len() >= bytes
            });
            connection.received().to_vec()
        };
        assert_eq!(receive(1500), message[..1500], "{version:?}");
        stream.write_all(&wire[cut..]).unwrap();
        assert_eq!(receive(3000), message, "{version:?}");
    }
}

#[test]
fn alpn_is_accepted_and_never_required() {
    let certificate = certificate();
    let server = Server::start(Accept::Both, Some(certificate.load()));
    let cases: [(&[&str], Option<&[u8]>); 6] = [
        (&[], None),
        (&["stun.turn"], Some(b"stun.turn")),
        (&["stun.nat-discovery"], Some(b"stun.nat-discovery")),
        (&["h2", "stun.turn"], Some(b"stun.turn")),
        (&["h2"], None),
        (&["h2", "http/1.1"], None),
    ];
    for version in [&TLS13, &TLS12] {
        for (offered, chosen) in cases {
            let config = client_config(&[&certificate], version, offered);
            let (client, server) = server.tls(&config, "turn.example");
            assert_eq!(client.alpn_protocol(), chosen, "{version:?} {offered:?}");
            assert_eq!(server.alpn_protocol(), chosen);
            assert_eq!(client.protocol_version(), Some(version.version));
        }
    }
}

#[test]
fn the_certificate_is_chosen_by_name_and_the_first_is_the_default() {
    let certificates = [certificate(), TestCertificate::new(&["*.other.example", "127.0.0.1"])];
    let settings = TlsSettings { certificates: certificates.iter().map(|c| c.files.clone()).collect() };
    let server = Server::start(Accept::Both, Some(load(&settings).unwrap()));
    let config = client_config(&[&certificates[0], &certificates[1]], &TLS13, &[]);
    for (name, index) in [("turn.example", 0), ("a.other.example", 1)] {
        let (client, server) = server.tls(&config, name);
        assert_eq!(client.peer_certificates().unwrap()[0], certificates[index].der);
        assert_eq!(server.server_name(), Some(name));
    }
    // A client that knows an address alone sends no name: it gets the first certificate, and dislikes it here.
    let mut stream = StreamOwned::new(client(&config, "127.0.0.1"), server.connect());
    stream.conn.complete_io(&mut stream.sock).unwrap_err();
    server.wait_for(|c| &c.handshake_failed_alert, 1);
}

#[test]
fn sessions_are_resumed_also_after_a_reload_and_with_other_alpn() {
    let certificate = certificate();
    let tls = certificate.load();
    let server = Server::start(Accept::Both, Some(tls.clone()));
    for version in [&TLS13, &TLS12] {
        let config = client_config(&[&certificate], version, &["stun.turn"]);
        let (first, _) = server.tls(&config, "turn.example");
        assert_ne!(first.handshake_kind(), Some(HandshakeKind::Resumed));
        let (second, _) = server.tls(&config, "turn.example");
        assert_eq!(second.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
        tls.reload(&certificate.settings()).unwrap();
        let mut without_alpn = (*config).clone();
        without_alpn.alpn_protocols = vec![b"h2".to_vec()];
        let (third, _) = server.tls(&Arc::new(without_alpn), "turn.example");
        assert_eq!(third.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
    }
}

#[test]
fn silence_is_closed_at_the_first_byte_deadline() {
    let limits = AcceptLimits { first_byte_deadline: Duration::from_millis(50), ..AcceptLimits::default() };
    let server = Server::with_limits(Accept::Both, None, limits);
    assert_closed_in_silence(server.connect());
    server.wait_for(|c| &c.closed_deadline, 1);
    drop(server.connect());
    server.wait_for(|c| &c.closed_by_client, 1);
    wait_until("the places to be given back", || server.admission.connections() == 0);
}

#[test]
fn stalled_handshakes_end_at_their_deadline_and_do_not_block_for_longer() {
    let certificate = certificate();
    let limits =
        AcceptLimits { handshake_deadline: Duration::from_millis(100), handshakes_max: 1, ..AcceptLimits::default() };
    let server = Server::with_limits(Accept::Both, Some(certificate.load()), limits);
    assert_closed_in_silence(server.say(&[0x16]));
    assert_closed_in_silence(server.say(&[0x16, 3, 1, 2]));
    server.wait_for(|c| &c.handshake_failed_deadline, 2);
    server.tls(&client_config(&[&certificate], &TLS13, &[]), "turn.example");
}

#[test]
fn failed_handshakes_are_counted_by_cause() {
    let certificate = certificate();
    let server = Server::start(Accept::Tls, Some(certificate.load()));
    let mut stream = server.say(&[0x16, 3, 1, 0, 6, 1, 0, 0, 2, 3, 3]);
    let mut alert = Vec::new();
    let _ = stream.read_to_end(&mut alert);
    assert_eq!(alert[..2], [21, 3], "the client hears an alert");
    server.wait_for(|c| &c.handshake_failed_protocol, 1);
    drop(server.say(&[0x16, 3, 1, 0, 200, 1]));
    server.wait_for(|c| &c.handshake_failed_eof, 1);
    let stranger = client_config(&[&TestCertificate::new(&["turn.example"])], &TLS13, &[]);
    let mut stream = StreamOwned::new(client(&stranger, "turn.example"), server.connect());
    stream.conn.complete_io(&mut stream.sock).unwrap_err();
    server.wait_for(|c| &c.handshake_failed_alert, 1);
    let counters = &server.admission.counters;
    assert_eq!(counters.accepted.load(Ordering::Relaxed), 3, "each ends in one counter");
}

#[test]
fn a_source_beyond_its_limit_is_closed_until_one_of_its_connections_ends() {
    let limits = AcceptLimits { connections_per_source_max: 2, ..AcceptLimits::default() };
    let server = Server::with_limits(Accept::Plain, None, limits);
    let _clients = [server.say(&[0]), server.say(&[0])];
    let (one, _two) = (server.next(), server.next());
    assert_closed_in_silence(server.say(&[0]));
    server.wait_for(|c| &c.refused_source_limit, 1);
    drop(one);
    let _third = server.say(&[0]);
    server.next();
}

/// Runs with few descriptors in a process of its own, see below.
#[test]
#[ignore = "run by a_lack_of_descriptors_is_survived in a process of its own"]
fn run_out_of_descriptors() {
    let server = Server::start(Accept::Plain, None);
    let _first = server.say(&[0]);
    server.next();
    let mut clients = Vec::new();
    while let Ok(client) = StdTcpStream::connect(server.address) {
        clients.push(client);
    }
    let begin = Instant::now();
    wait_until("three failures", || server.admission.counters.accept_failed.load(Ordering::Relaxed) >= 3);
    assert!(begin.elapsed() >= ACCEPT_PAUSE, "no spinning");
    drop(clients);
    wait_until("descriptors", || StdTcpStream::connect(server.address).is_ok());
    let _client = server.say(&[0]);
    server.next();
    println!("survived");
}

#[test]
fn a_lack_of_descriptors_is_survived() {
    let test = format!("{}::run_out_of_descriptors", module_path!().split_once("::").unwrap().1);
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 48 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([&test, "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("survived"), "{text} {}", String::from_utf8_lossy(&output.stderr));
}
