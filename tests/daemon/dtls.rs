//! DTLS (RFC 7350): from the stateless first flight to the end of the association.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::association::{Association, socket, trusting};
use crate::certificate::Certificate;
use crate::client::{Client, Data, binding_request};
use crate::ferryd::{Config, Ferryd};
use crate::metrics::{metric, with_metrics};
use crate::wire::Wire;
use crate::{PATIENCE, wait_until};

/// One worker, so that two clients cannot have two of them.
fn start(change: impl Fn(&mut Config)) -> (Ferryd, Certificate) {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        with_metrics(config);
        config.set("workers", 1);
        change(config);
    });
    let certificate = Certificate::of(&ferryd.config);
    (ferryd, certificate)
}

fn peer() -> UdpSocket {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer
}

fn handshakes(ferryd: &Ferryd, outcome: &str) -> u64 {
    metric(ferryd, &format!("ferryd_dtls_handshakes_total{{outcome=\"{outcome}\"}}"))
}

/// A ClientHello for the cipher suites of RFC 7350, as a client sends it first or with its cookie.
fn client_hello(random: u8, sequence: u8, cookie: &[u8]) -> Vec<u8> {
    let mut body = vec![0xFE, 0xFD];
    body.extend([random; 32]);
    body.extend([0, cookie.len() as u8]);
    body.extend(cookie);
    body.extend([0, 4, 0xC0, 0x2B, 0xC0, 0x2F, 1, 0]);
    let extensions: &[u8] = &[0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 6, 0, 4, 4, 3, 8, 4];
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let mut record = vec![22, 0xFE, 0xFF, 0, 0, 0, 0, 0, 0, 0, sequence, 0, body.len() as u8 + 12];
    record.extend([1, 0, 0, body.len() as u8, 0, sequence, 0, 0, 0, 0, 0, body.len() as u8]);
    record.extend(body);
    record
}

/// The cookie of a HelloVerifyRequest, which is the only answer.
fn cookie(socket: &UdpSocket, hello: &[u8]) -> Vec<u8> {
    socket.send(hello).unwrap();
    let answer = receive(socket);
    assert_eq!((answer[0], answer[13]), (22, 3), "a HelloVerifyRequest");
    assert!(answer.len() < hello.len(), "{} bytes for {}", answer.len(), hello.len());
    answer[28..].to_vec()
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 2048];
    let len = socket.recv(&mut buffer).unwrap();
    buffer[..len].to_vec()
}

#[test]
fn data_goes_both_ways_by_channels_and_indications() {
    let (ferryd, certificate) = start(|_| {});
    let peer = peer();
    let address = peer.local_addr().unwrap();
    let mut client = Client::dtls(ferryd.address(), &certificate);
    assert_eq!(client.bind().port(), client.wire.local_port());
    let relay = client.allocate();
    client.permit(address).unwrap();
    let mut buffer = [0; 65_536];
    for bound in [false, true] {
        if bound {
            client.bind_channel(0x4000, address).unwrap();
        }
        for len in [0, 1, 3, 1200, 16_000] {
            let data = vec![0x5A; len];
            if bound {
                client.send_by_channel(0x4000, &data)
            } else {
                client.send_by_indication(address, &data)
            }
            assert_eq!(peer.recv_from(&mut buffer).unwrap(), (len, relay));
            peer.send_to(&data, relay).unwrap();
            let expected = if bound { Data::Channel(0x4000, data) } else { Data::Indication(address, data) };
            assert_eq!(client.receive(), expected);
        }
    }
}

#[test]
fn what_fits_into_no_record_is_dropped_whole_and_counted() {
    let (ferryd, certificate) = start(|_| {});
    let peer = peer();
    let mut client = Client::dtls(ferryd.address(), &certificate);
    let relay = client.allocate();
    client.bind_channel(0x4000, peer.local_addr().unwrap()).unwrap();
    // 16,384 bytes less the header of ChannelData.
    for len in [16_381, 20_000, 65_507, 16_380] {
        peer.send_to(&vec![len as u8; len], relay).unwrap();
    }
    assert_eq!(client.receive(), Data::Channel(0x4000, vec![16_380_u32 as u8; 16_380]));
    assert_eq!(metric(&ferryd, "ferryd_dropped_total{reason=\"too_long\"}"), 3);
}

#[test]
fn a_dtls_listener_answers_nothing_to_plain_stun_and_a_plain_one_nothing_to_dtls() {
    let listen = |config: &mut Config, kind: &str| {
        let address = config.address().to_string();
        config.listen(&[(&address, kind)]);
    };
    let (ferryd, certificate) = start(|config| listen(config, "udp dtls"));
    let plain = socket(ferryd.address());
    plain.send(&binding_request()).unwrap();
    plain.send(&[0x40, 0, 0, 0]).unwrap();
    // The loop takes the datagrams in their order.
    Client::dtls(ferryd.address(), &certificate).bind();
    wait_until("the drops", || metric(&ferryd, "ferryd_dtls_dropped_total{reason=\"not_dtls\"}") == 2);
    plain.set_nonblocking(true).unwrap();
    assert!(plain.recv(&mut [0; 100]).is_err());

    let (ferryd, _) = start(|config| listen(config, "udp plain"));
    let hello = socket(ferryd.address());
    hello.send(&client_hello(1, 0, b"")).unwrap();
    let mut udp = Client::over(Wire::Udp(hello));
    udp.bind();
    assert_eq!(metric(&ferryd, "ferryd_dtls_hello_verify_requests_total"), 0);
}

#[test]
fn a_flood_of_client_hellos_leaves_no_trace() {
    let (ferryd, certificate) = start(|_| {});
    const SOURCES: u64 = 200;
    for source in 0..SOURCES {
        let socket = socket(ferryd.address());
        let found = cookie(&socket, &client_hello(source as u8, 0, b""));
        // Another random, another cookie, and one that was never given.
        socket.send(&client_hello(source as u8 + 1, 1, &found)).unwrap();
        socket.send(&client_hello(source as u8, 1, &[7; 16])).unwrap();
        for _ in 0..2 {
            assert_eq!(receive(&socket)[13], 3);
        }
    }
    assert_eq!(metric(&ferryd, "ferryd_dtls_hello_verify_requests_total"), 3 * SOURCES);
    assert_eq!(metric(&ferryd, "ferryd_dtls_associations"), 0);
    // Records of nobody are not answered either.
    let stray = socket(ferryd.address());
    stray.send(&[23, 0xFE, 0xFD, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0]).unwrap();
    stray.send(&[0x14; 40]).unwrap();
    Client::dtls(ferryd.address(), &certificate).bind();
    let dropped = |reason| metric(&ferryd, &format!("ferryd_dtls_dropped_total{{reason=\"{reason}\"}}"));
    assert_eq!((dropped("no_association"), dropped("unrecognised")), (1, 1));
    stray.set_nonblocking(true).unwrap();
    assert!(stray.recv(&mut [0; 100]).is_err());
}

#[test]
fn the_end_of_an_association_ends_its_allocation() {
    let (ferryd, certificate) = start(|_| {});
    let mut client = Client::dtls(ferryd.address(), &certificate);
    client.allocate();
    let Wire::Dtls(association) = client.wire else { unreachable!() };
    association.close();
    wait_until("the allocation to end", || metric(&ferryd, "ferryd_allocations") == 0);
    assert_eq!(metric(&ferryd, "ferryd_dtls_associations"), 0);
    wait_until("the record", || ferryd.log().contains("transport=\"dtls\""));
}

#[test]
fn clients_are_told_when_the_daemon_stops() {
    let (ferryd, certificate) = start(|_| {});
    let mut association = Association::open(ferryd.address(), &certificate);
    ferryd.stop();
    association.await_close();
}

#[test]
fn a_client_hello_destroys_no_association_until_its_handshake_is_done() {
    // RFC 6347 section 4.2.8: "it SHOULD proceed with a new handshake but MUST NOT destroy the existing association until
    // the client has demonstrated reachability".
    let (ferryd, certificate) = start(|_| {});
    let mut client = Client::dtls(ferryd.address(), &certificate);
    client.allocate();
    let Wire::Dtls(association) = &client.wire else { unreachable!() };
    // Somebody who hears and sends, and cannot finish a handshake.
    let spoofed = association.socket().try_clone().unwrap();
    let found = cookie(&spoofed, &client_hello(1, 0, b""));
    spoofed.send(&client_hello(1, 1, &found)).unwrap();
    wait_until("the second handshake", || metric(&ferryd, "ferryd_dtls_associations") == 2);
    assert_eq!(client.refresh(600), Ok(600), "the first one goes on");
    // The client itself, started again on its old port.
    let context = trusting(&certificate).build();
    // What is still under way for the other handshake may spoil an attempt.
    let attempt = |_| Association::over(spoofed.try_clone().unwrap(), &context, "localhost").ok();
    let again = (0..5).find_map(attempt).expect("a handshake");
    let mut client = Client::over(Wire::Dtls(again));
    assert_eq!(metric(&ferryd, "ferryd_dtls_ended_total{reason=\"replaced\"}"), 1);
    assert_eq!(metric(&ferryd, "ferryd_allocations"), 0, "the old association's allocation has ended with it");
    client.allocate();
    assert_eq!(metric(&ferryd, "ferryd_dtls_associations"), 1);
}

#[test]
fn a_lost_flight_is_sent_again_and_a_handshake_ends_at_its_deadline() {
    let (ferryd, _) = start(|_| {});
    let socket = socket(ferryd.address());
    let found = cookie(&socket, &client_hello(1, 0, b""));
    socket.send(&client_hello(1, 1, &found)).unwrap();
    let first = receive(&socket);
    assert_eq!((first[0], first[13]), (22, 2), "a ServerHello");
    // What follows is the rest of the flight, then its retransmissions: the same message with the same random in another
    // record.
    let is_same = |datagram: &[u8]| datagram[13..59] == first[13..59];
    wait_until("the same flight", || is_same(&receive(&socket)));
    assert_eq!(handshakes(&ferryd, "handshake_deadline"), 0);
    wait_until("the deadline", || handshakes(&ferryd, "handshake_deadline") == 1);
    assert_eq!(metric(&ferryd, "ferryd_dtls_associations"), 0);
}

/// A message in advance, of which one byte is here.
fn beginning(len: u32) -> Vec<u8> {
    let [_, len @ ..] = len.to_be_bytes();
    let record = [22, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 2, 0, 13];
    [&record[..], &[16], &len, &[0, 3, 0, 0, 0, 0, 0, 1, 0]].concat()
}

/// Memory is set aside for what the first fragment of a message says, whatever comes after it.
#[test]
fn a_handshake_message_that_nobody_sends_is_not_waited_for() {
    let (ferryd, _) = start(|_| {});
    let sockets = [16_000, 20_000].map(|len| (socket(ferryd.address()), len));
    for (socket, len) in &sockets {
        let found = cookie(socket, &client_hello(1, 0, b""));
        socket.send(&client_hello(1, 1, &found)).unwrap();
        receive(socket);
        socket.send(&beginning(*len)).unwrap();
    }
    wait_until("the longer one to end", || handshakes(&ferryd, "handshake_protocol") == 1);
    assert_eq!(metric(&ferryd, "ferryd_dtls_associations"), 1);
}

#[test]
fn a_client_that_dislikes_the_certificate_is_counted() {
    let (ferryd, _) = start(|_| {});
    let other = Certificate::new(&ferryd.config.directory, "other");
    let context = trusting(&other).build();
    assert!(Association::over(socket(ferryd.address()), &context, "localhost").is_err());
    wait_until("the alert", || handshakes(&ferryd, "handshake_alert") == 1);
    let mut old = trusting(&other);
    old.set_cipher_list("AES128-SHA").unwrap();
    assert!(Association::over(socket(ferryd.address()), &old.build(), "localhost").is_err());
    wait_until("the other one", || handshakes(&ferryd, "handshake_protocol") == 1);
    wait_until("both to be gone", || metric(&ferryd, "ferryd_dtls_associations") == 0);
}

#[test]
fn one_source_does_not_have_all_handshakes() {
    let (ferryd, _) = start(|_| {});
    let sockets: Vec<_> = (0..70).map(|_| socket(ferryd.address())).collect();
    for socket in &sockets {
        let found = cookie(socket, &client_hello(1, 0, b""));
        socket.send(&client_hello(1, 1, &found)).unwrap();
    }
    wait_until("the refusals", || handshakes(&ferryd, "refused_handshakes") == 6);
    assert_eq!(metric(&ferryd, "ferryd_dtls_associations"), 64);
}

#[test]
fn associations_that_own_nothing_make_room_for_others_of_their_source() {
    let (ferryd, certificate) = start(|_| {});
    let mut caller = Client::dtls(ferryd.address(), &certificate);
    caller.allocate();
    let mut abandoned: Vec<_> = (0..128).map(|_| Association::open(ferryd.address(), &certificate)).collect();
    let ended = || metric(&ferryd, "ferryd_dtls_ended_total{reason=\"crowded_out\"}");
    assert_eq!((metric(&ferryd, "ferryd_dtls_associations"), ended()), (129, 0));
    let mut last = Client::dtls(ferryd.address(), &certificate);
    wait_until("the oldest to be gone", || ended() == 1);
    abandoned[0].await_close();
    // Who allocates counts no more, and a call is not touched.
    last.allocate();
    abandoned[0] = Association::open(ferryd.address(), &certificate);
    assert_eq!((metric(&ferryd, "ferryd_dtls_associations"), ended()), (130, 1));
    caller.refresh(600).unwrap();
    last.refresh(600).unwrap();
}

#[test]
fn associations_count_among_the_connections_of_a_source() {
    let (ferryd, certificate) = start(|config| _ = config.set("limits.connections-per-source", 2));
    let first = Association::open(ferryd.address(), &certificate);
    let _second = Association::open(ferryd.address(), &certificate);
    let third = socket(ferryd.address());
    let found = cookie(&third, &client_hello(1, 0, b""));
    third.send(&client_hello(1, 1, &found)).unwrap();
    wait_until("the refusal", || handshakes(&ferryd, "refused_source_limit") == 1);
    first.close();
    Association::open(ferryd.address(), &certificate);
}

#[test]
fn the_protocols_of_rfc_7443_are_accepted_and_never_required() {
    let (ferryd, certificate) = start(|_| {});
    for (offered, expected) in [
        (&b"\x09stun.turn"[..], Some(&b"stun.turn"[..])),
        (b"\x12stun.nat-discovery", Some(b"stun.nat-discovery")),
        (b"\x02h2\x09stun.turn", Some(b"stun.turn")),
        (b"\x02h2", None),
        (b"", None),
    ] {
        let mut context = trusting(&certificate);
        if !offered.is_empty() {
            context.set_alpn_protos(offered).unwrap();
        }
        let association = Association::over(socket(ferryd.address()), &context.build(), "localhost").unwrap();
        assert_eq!(association.ssl().selected_alpn_protocol(), expected);
        association.close();
    }
}

#[test]
fn the_cipher_suites_of_rfc_7350_are_spoken() {
    // RFC 7350 section 3: "MUST support TLS_DHE_RSA_WITH_AES_128_GCM_SHA256 and TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".
    let (ferryd, certificate) = start(|config| Certificate::rsa(&config.directory.clone(), "ferryd").set(config));
    for name in ["ECDHE-RSA-AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256"] {
        let mut context = trusting(&certificate);
        context.set_cipher_list(name).unwrap();
        let association = Association::over(socket(ferryd.address()), &context.build(), "localhost").unwrap();
        assert_eq!(association.ssl().current_cipher().unwrap().name(), name);
        assert_eq!(association.ssl().version_str(), "DTLSv1.2");
        association.close();
    }
}

#[test]
fn a_reload_changes_the_certificate_of_handshakes_to_come() {
    let (mut ferryd, first) = start(|_| {});
    let mut early = Client::dtls(ferryd.address(), &first);
    early.allocate();
    let second = Certificate::new(&ferryd.config.directory, "second");
    ferryd.reload(|config| second.set(config));
    let mut late = Client::dtls(ferryd.address(), &second);
    late.allocate();
    assert_eq!(early.refresh(600), Ok(600), "what is established goes on");
}

#[test]
fn the_certificate_is_chosen_by_name_also_in_fragments() {
    let (ferryd, _) = start(|config| {
        let directory = config.directory.clone();
        let other = Certificate::named(&directory, "other", "other.example");
        let table = format!("[{{ certificate = {:?}, key = {:?} }}]", other.certificate, other.key);
        config.set("tls.certificates", table);
    });
    let directory = &ferryd.config.directory;
    for mtu in [256, 1400] {
        for (name, file) in [("localhost", "ferryd"), ("other.example", "other")] {
            let mut context = trusting(&Certificate::at(directory, file));
            // So many that the name is behind the first 256 bytes.
            context.set_cipher_list("ALL:COMPLEMENTOFALL:@SECLEVEL=0").unwrap();
            let socket = socket(ferryd.address());
            let association = Association::with_mtu(socket, &context.build(), name, mtu);
            let association = association.unwrap_or_else(|error| panic!("{name} with an MTU of {mtu}: {error}"));
            assert_eq!(association.fragments() > 0, mtu < 1400);
            association.close();
        }
    }
}

#[test]
fn a_client_is_answered_from_the_address_that_it_asked() {
    let (ferryd, certificate) = start(|config| {
        let address = format!("0.0.0.0:{}", config.port);
        config.listen(&[(&address, "udp")]);
    });
    for ip in ["127.0.0.1", "127.0.0.3"] {
        let server = SocketAddr::new(ip.parse().unwrap(), ferryd.address().port());
        // The socket is connected: what comes from elsewhere is not heard.
        Client::dtls(server, &certificate).allocate();
    }
}

#[test]
fn several_records_may_share_a_datagram() {
    let (ferryd, certificate) = start(|_| {});
    let mut client = Client::dtls(ferryd.address(), &certificate);
    let Wire::Dtls(association) = &mut client.wire else { unreachable!() };
    association.send_together(&[binding_request(), binding_request(), binding_request()]);
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..3 {
        assert_eq!(association.receive(deadline).unwrap()[..2], [1, 1]);
    }
    assert_eq!(association.receive(Instant::now() + Duration::from_millis(1)), None);
}

#[test]
fn of_a_datagram_no_more_records_are_heard_than_fit_into_one() {
    const HEARD: usize = 40;
    let (ferryd, certificate) = start(|_| {});
    let mut association = Association::open(ferryd.address(), &certificate);
    let mut requests: Vec<_> = (0..=200).map(|_| binding_request()).collect();
    association.send_together(&requests[..200]);
    association.send(&requests[200]);
    requests.drain(HEARD..200);
    for request in requests {
        let answer = association.receive(Instant::now() + PATIENCE).expect("an answer");
        assert_eq!(answer[8..20], request[8..20]);
    }
    assert_eq!(metric(&ferryd, "ferryd_dtls_dropped_total{reason=\"unrecognised\"}"), 1);
}
