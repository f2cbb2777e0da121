//! RFC 5780 and RFC 3489 through real sockets: the binary on two loopback addresses, asked by coturn's
//! `turnutils_natdiscovery` and by sockets that look at where an answer comes from.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ferryd::address::Family;
use ferryd::stun::{AttributeType, Builder, Class, Message, Method, TransactionId};

/// Long enough for a busy machine; an answer that does not come is asked for again.
const PATIENCE: Duration = Duration::from_secs(3);
const ATTEMPTS: usize = 5;

/// A ferryd that is killed when it is dropped.
struct Ferryd {
    child: Child,
    addresses: [Ipv4Addr; 2],
    ports: [u16; 2],
    _directory: tempfile::TempDir,
}

/// What a listener is bound to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    Address,
    Wildcard,
}

impl Ferryd {
    /// Two loopback addresses of this process alone, three workers, UDP and TCP on the primary endpoint.
    fn start(bound: Bound, backend: &str) -> Self {
        for _ in 0..ATTEMPTS {
            if let Some(ferryd) = Self::try_start(bound, backend) {
                return ferryd;
            }
        }
        panic!("in {ATTEMPTS} attempts another process had the port each time");
    }

    fn try_start(bound: Bound, backend: &str) -> Option<Self> {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let addresses = [1, 2].map(|host| Ipv4Addr::new(127, 64 + host, high, low));
        let ports = addresses.map(|address| UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap().port());
        let [[a1, a2], [p1, p2]] = [addresses.map(|address| address.to_string()), ports.map(|port| port.to_string())];
        let host = if bound == Bound::Wildcard { "0.0.0.0" } else { &a1 };
        let listener = |transport| format!("{{ address = \"{host}:{p1}\", transport = \"{transport}\" }}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ferryd.toml");
        let text = format!(
            "listener = [{}, {}]\nworkers = 3\n[relay]\naddresses = [\"{a1}\"]\n[data-path]\nbackend = \"{backend}\"\n\
             [extensions.nat-behavior]\naddresses = [\"{a1}\", \"{a2}\"]\nalternate-port = {p2}\n\
             [compatibility]\nrfc3489 = true\n",
            listener("udp"),
            listener("tcp")
        );
        fs::write(&path, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ferryd"))
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        while log.read_line(&mut seen).unwrap() > 0 {
            if seen.contains("ferryd is ready") {
                // Read on, so that the log never blocks it.
                std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
                return Some(Self { child, addresses, ports, _directory: directory });
            }
        }
        child.wait().unwrap();
        assert!(seen.contains("in use"), "ferryd does not start:\n{seen}");
        None
    }

    fn endpoint(&self, address: usize, port: usize) -> SocketAddr {
        SocketAddr::from((self.addresses[address], self.ports[port]))
    }

    /// Runs coturn's client against the primary endpoint.
    fn natdiscovery(&self, arguments: &[&str]) -> String {
        let [local, port] = [self.addresses[0].to_string(), self.ports[0].to_string()];
        let output = Command::new("turnutils_natdiscovery")
            .args(arguments)
            .args(["-p", &port, "-L", &local, &local])
            .output()
            .unwrap_or_else(|error| {
                panic!("turnutils_natdiscovery cannot be run ({error}): install the Debian package coturn")
            });
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Ferryd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ID: TransactionId = TransactionId(*b"nat_behavior");

fn binding(write: impl FnOnce(&mut Builder<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Builder::new(&mut bytes, Method::Binding, Class::Request, ID));
    bytes
}

/// Asks until there is an answer: the answer and where it came from.
fn ask(socket: &UdpSocket, server: SocketAddr, request: &[u8]) -> (Vec<u8>, SocketAddr) {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 4096];
    for _ in 0..ATTEMPTS {
        socket.send_to(request, server).unwrap();
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => return (buffer[..len].to_vec(), from),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no answer from {server}");
}

fn plain(message: &Message<'_>, kind: AttributeType) -> SocketAddr {
    let value = message.attribute(kind).unwrap().value;
    assert_eq!((value.len(), value[1]), (8, 0x01));
    SocketAddr::from(([value[4], value[5], value[6], value[7]], u16::from_be_bytes([value[2], value[3]])))
}

/// Every endpoint and every pair of flags, from several sources, so that every worker is asked.
fn assert_table_1(ferryd: &Ferryd) {
    for client in 0..6 {
        let socket = UdpSocket::bind((ferryd.addresses[0], 0)).unwrap();
        let asked = [(0, 0), (1, 0), (0, 1), (1, 1)];
        for (address, port) in asked {
            for (flags, to_ip, to_port) in [(0, 0, 0), (4, 1, 0), (2, 0, 1), (6, 1, 1)] {
                let request = binding(|builder| _ = builder.u32(AttributeType::CHANGE_REQUEST, flags));
                let (answer, from) = ask(&socket, ferryd.endpoint(address, port), &request);
                let message = Message::parse(&answer).unwrap();
                assert_eq!(message.class(), Class::Success);
                assert_eq!(from, ferryd.endpoint(address ^ to_ip, port ^ to_port), "client {client}, flags {flags}");
                assert_eq!(plain(&message, AttributeType::RESPONSE_ORIGIN), from);
                assert_eq!(plain(&message, AttributeType::OTHER_ADDRESS), ferryd.endpoint(1 - address, 1 - port));
            }
        }
    }
}

#[test]
fn answers_leave_from_the_address_and_port_that_were_asked_for() {
    // RFC 5780 section 6.1, table 1.
    for (bound, backend) in [(Bound::Address, "auto"), (Bound::Wildcard, "auto"), (Bound::Wildcard, "epoll")] {
        assert_table_1(&Ferryd::start(bound, backend));
    }
}

#[test]
fn answers_go_to_the_response_port() {
    // RFC 5780 section 7.5.
    let ferryd = Ferryd::start(Bound::Address, "auto");
    let [asking, waiting] = [0, 0].map(|port| UdpSocket::bind((ferryd.addresses[0], port)).unwrap());
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = waiting.local_addr().unwrap().port().to_be_bytes();
    let request = binding(|builder| _ = builder.attribute(AttributeType::RESPONSE_PORT, &port));
    asking.send_to(&request, ferryd.endpoint(0, 0)).unwrap();
    let mut buffer = [0; 4096];
    let (len, from) = waiting.recv_from(&mut buffer).unwrap();
    let message = Message::parse(&buffer[..len]).unwrap();
    assert_eq!((message.transaction_id(), from), (ID, ferryd.endpoint(0, 0)));
    let mapped = message.attribute(AttributeType::XOR_MAPPED_ADDRESS).unwrap().as_xor_address(ID);
    assert_eq!(mapped, Some(asking.local_addr().unwrap()));
}

#[test]
fn every_endpoint_answers_over_tcp() {
    // RFC 5780 section 6: "the server SHOULD allocate a pair of ports for each of the UDP, TCP, and TCP/TLS transport
    // protocols".
    let ferryd = Ferryd::start(Bound::Address, "auto");
    for (address, port) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let mut stream = TcpStream::connect(ferryd.endpoint(address, port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&binding(|_| {})).unwrap();
        let mut header = [0; 20];
        stream.read_exact(&mut header).unwrap();
        let mut answer = header.to_vec();
        answer.resize(20 + usize::from(u16::from_be_bytes([header[2], header[3]])), 0);
        stream.read_exact(&mut answer[20..]).unwrap();
        let message = Message::parse(&answer).unwrap();
        assert_eq!(plain(&message, AttributeType::RESPONSE_ORIGIN), ferryd.endpoint(address, port));
        assert_eq!(plain(&message, AttributeType::OTHER_ADDRESS), ferryd.endpoint(1 - address, 1 - port));
    }
}

#[test]
fn classic_clients_are_answered_from_the_changed_address() {
    // RFC 3489 section 8.1.
    let ferryd = Ferryd::start(Bound::Address, "auto");
    let socket = UdpSocket::bind((ferryd.addresses[0], 0)).unwrap();
    let request = [&[0, 1, 0, 8][..], &[0xC1; 16], &[0, 3, 0, 4, 0, 0, 0, 6]].concat();
    let (answer, from) = ask(&socket, ferryd.endpoint(0, 0), &request);
    assert_eq!(from, ferryd.endpoint(1, 1));
    assert_eq!(answer[..2], [0x01, 0x01]);
    assert_eq!(answer[4..20], [0xC1; 16]);
    assert_eq!(answer[20..24], [0, 1, 0, 8], "MAPPED-ADDRESS is the first attribute");
    let mapped =
        SocketAddr::from((<[u8; 4]>::try_from(&answer[28..32]).unwrap(), u16::from_be_bytes([answer[26], answer[27]])));
    assert_eq!(mapped, socket.local_addr().unwrap());
    assert_eq!(Family::of(mapped.ip()), Family::V4);
}

#[test]
fn the_natdiscovery_tool_of_coturn_finds_mapping_and_filtering() {
    let ferryd = Ferryd::start(Bound::Address, "auto");
    for padding in [&[][..], &["-P"]] {
        let words = ferryd.natdiscovery(&[&["-m", "-f"], padding].concat());
        for verdict in ["NAT with Endpoint Independent Mapping!", "NAT with Endpoint Independent Filtering!"] {
            assert!(words.contains(verdict), "{verdict}\n{words}");
        }
        assert_eq!(words.matches("No ALG: Mapped == XOR-Mapped").count(), 4, "{words}");
        let [alternate, both] = [ferryd.endpoint(1, 0), ferryd.endpoint(1, 1)];
        for origin in [alternate, both] {
            assert!(words.contains(&format!("Response origin: : {origin}")), "{origin}\n{words}");
        }
        assert!(!words.contains("timeout") && !words.contains("error"), "{words}");
    }
}

#[test]
fn the_natdiscovery_tool_of_coturn_finds_the_lifetime_of_a_binding() {
    let ferryd = Ferryd::start(Bound::Address, "auto");
    let words = ferryd.natdiscovery(&["-t", "-T", "1"]);
    assert!(words.contains("RFC 5780 response 2"), "{words}");
    assert!(!words.contains("timeout") && !words.contains("error"), "{words}");
}
