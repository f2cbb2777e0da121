//! Clients that come back from elsewhere (RFC 8016): whatever worker their datagrams and connections reach.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Instant;

use ferryd::stun::channel_data::{ChannelData, ChannelNumber};
use ferryd::stun::{AttributeType, Builder, Class, Method, TransactionId};

use crate::certificate::Certificate;
use crate::client::{Answer, Client, Data, udp_transport};
use crate::ferryd::{ALICE, Config, Ferryd, PASSWORD};
use crate::wire::Wire;
use crate::{PATIENCE, place, wait_until};

/// With so many workers a new 5-tuple is another worker's three times of four.
const WORKERS: u32 = 4;

fn start() -> Ferryd {
    Ferryd::start(|config: &mut Config| {
        Certificate::configured(config);
        config.set("extensions.mobility", true).set("workers", WORKERS);
    })
}

pub(crate) fn ticket(answer: &Answer) -> Vec<u8> {
    assert_eq!(answer.code(), None);
    answer.message().attribute(AttributeType::MOBILITY_TICKET).expect("a ticket").value.to_vec()
}

/// Allocates with a ticket, and binds a channel to the peer.
fn allocate(client: &mut Client, peer: &UdpSocket) -> Vec<u8> {
    let answer = client.request(Method::Allocate, |builder| {
        udp_transport(builder);
        builder.attribute(AttributeType::MOBILITY_TICKET, &[]);
    });
    client.bind_channel(0x4000, peer.local_addr().unwrap()).unwrap();
    ticket(&answer)
}

pub(crate) fn come_back(client: &mut Client, ticket: &[u8]) -> Answer {
    client.request(Method::Refresh, |builder| _ = builder.attribute(AttributeType::MOBILITY_TICKET, ticket))
}

fn peer() -> UdpSocket {
    let peer = place::peer();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer
}

/// Data goes to the peer and comes back to this client.
fn converse(client: &mut Client, peer: &UdpSocket, words: &[u8]) {
    client.send_by_channel(0x4000, words);
    let mut buffer = [0; 100];
    let (len, relay) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], words);
    peer.send_to(words, relay).unwrap();
    assert_eq!(client.receive(), Data::Channel(0x4000, words.to_vec()));
}

#[test]
fn a_client_goes_on_from_another_address_and_over_another_transport() {
    let ferryd = start();
    let certificate = Certificate::of(&ferryd.config);
    let connect = |transport| match transport {
        0 => Client::udp(ferryd.address()),
        1 => Client::tcp(ferryd.address()),
        #[cfg(feature = "dtls")]
        3 => Client::dtls(ferryd.address(), &certificate),
        _ => Client::tls(ferryd.address(), &certificate),
    };
    let peer = peer();
    let mut client = connect(0);
    let mut good = allocate(&mut client, &peer);
    converse(&mut client, &peer, b"at home");
    // Every pair of transports, twice.
    for transport in [0, 1, 1, 2, 2, 0, 2, 1, 0, 3, 3, 0, 1, 3, 2, 3, 1, 0, 0, 1, 1, 3, 0, 3, 2, 2, 0, 2, 1, 0] {
        let mut next = connect(transport);
        good = ticket(&come_back(&mut next, &good));
        converse(&mut client, &peer, b"not yet");
        converse(&mut next, &peer, b"from here");
        client = next;
        assert_eq!(client.refresh(600), Ok(600));
        client.permit(peer.local_addr().unwrap()).unwrap();
    }
    assert_eq!(client.refresh(0), Ok(0));
    let ended = ferryd.stop();
    assert_eq!(ended.expect_success().stderr.matches("allocation ended").count(), 1, "{}", ended.stderr);
}

#[test]
fn an_allocation_waits_for_its_client_when_the_connection_is_lost() {
    let ferryd = start();
    let peer = peer();
    for _ in 0..WORKERS {
        let mut client = Client::tcp(ferryd.address());
        let good = allocate(&mut client, &peer);
        drop(client);
        let mut next = Client::tcp(ferryd.address());
        come_back(&mut next, &good);
        converse(&mut next, &peer, b"again");
        next.refresh(0).unwrap();
    }
}

#[test]
fn what_is_pipelined_behind_the_ticket_moves_along() {
    let ferryd = start();
    let peer = peer();
    for _ in 0..WORKERS {
        let mut client = Client::udp(ferryd.address());
        let good = allocate(&mut client, &peer);
        let mut next = Client::tcp(ferryd.address());
        let challenge = next.ask(Method::Refresh, |_| {}).challenge();
        let key = Client::key_of(&next.user.name, &challenge.realm, &next.user.password);
        let mut bytes = Vec::new();
        Builder::new(&mut bytes, Method::Refresh, Class::Request, TransactionId([5; 12]))
            .attribute(AttributeType::MOBILITY_TICKET, &good)
            .attribute(AttributeType::USERNAME, next.user.name.as_bytes())
            .attribute(AttributeType::REALM, challenge.realm.as_bytes())
            .attribute(AttributeType::NONCE, &challenge.nonce)
            .integrity(&key);
        for number in 0..100_u32 {
            bytes.extend(ChannelData::header(ChannelNumber::new(0x4000).unwrap(), 4));
            bytes.extend(number.to_be_bytes());
        }
        let Wire::Stream(stream) = &mut next.wire else { panic!("a stream") };
        stream.write(&bytes);
        let mut buffer = [0; 100];
        for number in 0..100_u32 {
            let len = peer.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..len], number.to_be_bytes(), "in order");
        }
        let answer = stream.receive(Instant::now() + PATIENCE).expect("an answer");
        assert_eq!(ferryd::stun::Message::parse(&answer).unwrap().class(), Class::Success);
        next.refresh(0).unwrap();
    }
}

#[test]
fn the_client_of_coturn_moves() {
    let ferryd = Ferryd::start(|config| {
        config.set("extensions.mobility", true).set("workers", WORKERS).text("log.level", "debug");
        config.set("compatibility.channels-above-4fff", true);
    });
    let echo = place::peer();
    let peer = echo.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..len], from);
        }
    });
    let server = ferryd.address();
    let (port, ip, peer_port) = (server.port().to_string(), server.ip().to_string(), peer.port().to_string());
    for transport in [&[][..], &["-t"]] {
        // -M moves each of the -m clients once, after its Allocate.
        let output = Command::new("turnutils_uclient")
            .args(transport)
            .args(["-M", "-c", "-n", "5", "-m", "4", "-u", ALICE, "-w", PASSWORD])
            .args(["-e", &place::here().to_string(), "-r", &peer_port, "-p", &port, &ip])
            .output()
            .unwrap_or_else(|error| {
                panic!("turnutils_uclient cannot be run ({error}): install the Debian package coturn")
            });
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("tot_send_msgs=20, tot_recv_msgs=20"), "{said}");
        assert!(said.contains("Total lost packets 0"), "{said}");
    }
    wait_until("eight moves", || ferryd.log().matches("client moved").count() >= 8);
}

#[test]
fn where_mobility_is_off_a_lost_connection_ends_its_allocation() {
    let ferryd = Ferryd::start(|_| {});
    let mut client = Client::tcp(ferryd.address());
    let answer = client.request(Method::Allocate, |builder| {
        udp_transport(builder);
        builder.attribute(AttributeType::MOBILITY_TICKET, &[]);
    });
    assert_eq!(answer.code(), Some(405));
    client.allocate();
    drop(client);
    wait_until("the end of the allocation", || ferryd.log().contains("client_closed"));
}
