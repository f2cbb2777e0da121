//! Data between a client and its peers, whatever its size and way.

use std::net::{SocketAddr, UdpSocket};

use ferryd::stun::{AttributeType, Builder, Method};

use crate::certificate::Certificate;
use crate::client::{Client, Data, udp_transport};
use crate::ferryd::Ferryd;
use crate::{kernel_path, place};

/// The longest UDP payload over IPv4.
const DATAGRAM_MAX: usize = 65_507;

fn peer() -> UdpSocket {
    let socket = place::peer();
    socket.set_read_timeout(Some(crate::PATIENCE)).unwrap();
    socket
}

fn received(peer: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (length, from) = peer.recv_from(&mut buffer).expect("the peer hears the client");
    buffer.truncate(length);
    (buffer, from)
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// Permits the peer and sends one payload each way by indications.
pub(crate) fn there_and_back(client: &mut Client, relayed: SocketAddr, peer: &UdpSocket, payload: &[u8]) {
    let address = peer.local_addr().unwrap();
    peer.set_read_timeout(Some(crate::PATIENCE)).unwrap();
    client.permit(address).unwrap();
    client.send_by_indication(address, payload);
    assert_eq!(received(peer), (payload.to_vec(), relayed));
    peer.send_to(payload, relayed).unwrap();
    assert_eq!(client.receive(), Data::Indication(address, payload.to_vec()));
}

/// One client over each transport, with the longest payload that fits a channel and an indication.
fn clients(ferryd: &Ferryd) -> [(Client, usize, usize); 3] {
    let certificate = Certificate::of(&ferryd.config);
    // UDP carries the message's own header as well.
    [
        (Client::udp(ferryd.address()), DATAGRAM_MAX - 4, DATAGRAM_MAX - 20 - 12 - 4 - 3),
        (Client::tcp(ferryd.address()), DATAGRAM_MAX, DATAGRAM_MAX),
        (Client::tls(ferryd.address(), &certificate), DATAGRAM_MAX, DATAGRAM_MAX),
    ]
}

#[test]
fn payloads_from_nothing_to_the_longest_pass_both_ways() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    for (mut client, channel_max, indication_max) in clients(&ferryd) {
        let relayed = client.allocate();
        let (by_indication, by_channel) = (peer(), peer());
        for length in [0, 1, 2, 3, 4, 1200, 1472, 9000, indication_max] {
            there_and_back(&mut client, relayed, &by_indication, &payload(length));
        }
        let address = by_channel.local_addr().unwrap();
        client.bind_channel(0x4FFF, address).unwrap();
        for length in [0, 1, 2, 3, 4, 1200, 1472, 9000, channel_max] {
            client.send_by_channel(0x4FFF, &payload(length));
            assert_eq!(received(&by_channel), (payload(length), relayed), "{length} bytes");
            by_channel.send_to(&payload(length), relayed).unwrap();
            assert_eq!(client.receive(), Data::Channel(0x4FFF, payload(length)), "{length} bytes");
        }
    }
}

#[test]
fn a_channel_carries_what_the_client_sends_by_indication_as_well() {
    let ferryd = Ferryd::start(|_| {});
    let mut client = Client::udp(ferryd.address());
    let (relayed, peer) = (client.allocate(), peer());
    let address = peer.local_addr().unwrap();
    client.bind_channel(0x4001, address).unwrap();
    client.send_by_indication(address, b"indicated");
    assert_eq!(received(&peer), (b"indicated".to_vec(), relayed));
    // RFC 8656 section 12.5: from then on the server "MUST use the ChannelData message".
    peer.send_to(b"answer", relayed).unwrap();
    assert_eq!(client.receive(), Data::Channel(0x4001, b"answer".to_vec()));
}

#[test]
fn a_peer_without_a_permission_is_not_heard_and_not_reached() {
    let ferryd = Ferryd::start(|_| {});
    let mut client = Client::udp(ferryd.address());
    let (relayed, permitted) = (client.allocate(), peer());
    let stranger = UdpSocket::bind((place::elsewhere(), 0)).unwrap();
    stranger.set_nonblocking(true).unwrap();
    client.permit(permitted.local_addr().unwrap()).unwrap();
    client.send_by_indication(stranger.local_addr().unwrap(), b"unasked");
    stranger.send_to(b"unasked", relayed).unwrap();
    // One datagram after the other passes the relay, so these come after those.
    there_and_back(&mut client, relayed, &permitted, b"permitted");
    assert_eq!(stranger.recv(&mut [0; 64]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn the_broadcast_address_of_a_network_is_not_reached() {
    // Such an address is told from a host's by the routes alone.
    let ferryd = Ferryd::start(|_| {});
    let mut client = Client::udp(ferryd.address());
    let relayed = client.allocate();
    let everybody = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = everybody.local_addr().unwrap().port();
    let broadcast = SocketAddr::from(([127, 255, 255, 255], port));
    everybody.set_broadcast(true).unwrap();
    everybody.set_read_timeout(Some(crate::PATIENCE)).unwrap();
    everybody.send_to(b"this host has it", broadcast).unwrap();
    assert_eq!(received(&everybody).0, b"this host has it");
    client.bind_channel(0x4001, broadcast).unwrap();
    client.send_by_channel(0x4001, b"to everybody");
    client.send_by_indication(broadcast, b"to everybody");
    // What is sent after it arrives alone.
    let host = SocketAddr::from(([127, 0, 0, 1], port));
    client.bind_channel(0x4002, host).unwrap();
    client.send_by_channel(0x4002, b"to one");
    assert_eq!(received(&everybody), (b"to one".to_vec(), relayed));
}

#[test]
fn a_closed_port_of_a_peer_is_told_as_an_icmp_error() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    for (mut client, _, _) in clients(&ferryd) {
        let relayed = client.allocate();
        // The discard service, which nobody runs.
        let closed = "127.0.0.4:9".parse().unwrap();
        client.permit(closed).unwrap();
        client.send_by_indication(closed, b"anybody?");
        // Destination unreachable, port unreachable.
        assert_eq!(client.receive(), Data::Icmp(closed, 3, 3));
        // The relay goes on.
        there_and_back(&mut client, relayed, &peer(), b"somebody");
    }
}

#[test]
fn dont_fragment_holds_for_its_own_datagram_alone() {
    let ferryd = Ferryd::start(|config| _ = config.set("relay.addresses", "[\"::1\"]"));
    let mut client = Client::tcp(ferryd.address());
    let (relayed, peer) = (client.allocate_v6(), UdpSocket::bind("[::1]:0").unwrap());
    let address = peer.local_addr().unwrap();
    there_and_back(&mut client, relayed, &peer, b"opens");
    let dont_fragment = |builder: &mut Builder<'_>| _ = builder.attribute(AttributeType::DONT_FRAGMENT, &[]);
    client.send_indication(address, b"whole", dont_fragment);
    assert_eq!(received(&peer), (b"whole".to_vec(), relayed));
    // With its headers longer than 65,536 bytes, the MTU of loopback.
    let long = payload(65_500);
    client.send_indication(address, &long, dont_fragment);
    client.send_by_indication(address, &long[1..]);
    assert_eq!(received(&peer), (long[1..].to_vec(), relayed));
}

#[test]
fn special_purpose_peers_are_refused_unless_they_are_allowed() {
    let ferryd = Ferryd::start(|config| _ = config.unset("peers.allow"));
    let mut client = Client::udp(ferryd.address());
    let relayed = client.allocate();
    for refused in [
        "127.0.0.1:80",
        "127.0.0.2:53",
        "0.0.0.0:1",
        "10.0.0.1:1",
        "192.168.1.1:1",
        "169.254.169.254:80",
        "224.0.0.1:1",
    ] {
        let refused = refused.parse().unwrap();
        assert_eq!(client.permit(refused), Err(403), "{refused}");
        assert_eq!(client.bind_channel(0x4000, refused), Err(403), "{refused}");
    }
    // A permission for the relay's own address has no port; a channel for nobody there is refused.
    client.permit(relayed).unwrap();
    assert_eq!(client.bind_channel(0x4000, ferryd.address()), Err(403));
    // What is sent to the server itself by way of its relay goes nowhere.
    client.send_by_indication(ferryd.address(), &crate::client::binding_request());
    client.bind();
    assert_eq!(client.wire.receive(std::time::Duration::from_millis(50)), None);
}

#[test]
fn no_relay_reaches_the_listeners_even_where_its_address_is_allowed() {
    let ferryd = Ferryd::start(|_| {});
    let mut client = Client::udp(ferryd.address());
    client.allocate();
    client.permit(ferryd.address()).unwrap();
    client.send_by_indication(ferryd.address(), &crate::client::binding_request());
    client.bind();
    assert_eq!(client.wire.receive(std::time::Duration::from_millis(50)), None);
}

#[test]
fn both_families_come_with_one_allocation() {
    let ferryd = Ferryd::start(|config| {
        let addresses = format!("[\"{}\", \"::1\"]", config.ip);
        config.set("relay.addresses", addresses);
    });
    let mut client = Client::udp(ferryd.address());
    let answer = client.request(Method::Allocate, |builder| {
        udp_transport(builder);
        builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    let message = answer.message();
    let relayed: Vec<SocketAddr> = message
        .attributes()
        .filter(|attribute| attribute.kind == AttributeType::XOR_RELAYED_ADDRESS)
        .map(|attribute| attribute.as_xor_address(message.transaction_id()).unwrap())
        .collect();
    let [v4, v6] = relayed[..] else { panic!("{relayed:?}") };
    assert!(v4.is_ipv4() && v6.is_ipv6());
    there_and_back(&mut client, v4, &peer(), b"four");
    there_and_back(&mut client, v6, &UdpSocket::bind("[::1]:0").unwrap(), b"six");
}

#[test]
fn many_packets_at_once_all_arrive_in_order() {
    let ferryd = Ferryd::start(|_| {});
    for mut client in [Client::udp(ferryd.address()), Client::tcp(ferryd.address())] {
        let (relayed, peer) = (client.allocate(), peer());
        client.bind_channel(0x4000, peer.local_addr().unwrap()).unwrap();
        kernel_path::settle(&ferryd, relayed, || {
            client.send_by_channel(0x4000, b"settling");
            received(&peer);
            peer.send_to(b"settled", relayed).unwrap();
            client.receive();
        });
        // What the buffers of the kernel hold without loss.
        for burst in 0..20_u8 {
            for number in 0..50_u8 {
                client.send_by_channel(0x4000, &[burst, number]);
            }
            for number in 0..50_u8 {
                assert_eq!(received(&peer), (vec![burst, number], relayed));
                peer.send_to(&[burst, number], relayed).unwrap();
            }
            for number in 0..50_u8 {
                assert_eq!(client.receive(), Data::Channel(0x4000, vec![burst, number]));
            }
        }
    }
}
