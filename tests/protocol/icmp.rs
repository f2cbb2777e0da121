//! ICMP errors (RFC 8656 sections 11.5 and 18.13).

use ferryd::address::{Family, Transport};
use ferryd::stun::AttributeType;
use ferryd::turn::{DropReason, IcmpError};

use crate::harness::{Client, PEER, PEER_V6, Received, World, addr, peer, secs};

fn error(about: &str, kind: u8, code: u8, mtu: u32) -> IcmpError {
    IcmpError { peer: peer(about), kind, code, mtu }
}

#[test]
fn icmp_errors_are_delivered_as_data_indications() {
    // RFC 8656 section 11.5: "The Data indication MUST contain both an XOR-PEER-ADDRESS and an ICMP attribute. The ICMP
    // attribute is set to the value of the type and code fields from the ICMP packet." Section 12.5: "The server uses a
    // Data indication to signal the XOR-PEER-ADDRESS and ICMP attributes to the client even if a channel has been bound
    // to the peer."
    for transport in [Transport::Udp, Transport::Tcp] {
        for bound in [false, true] {
            let mut world = World::new();
            let mut client = Client::over("198.51.100.1:1000", transport);
            let relay = client.allocate(&mut world).relay();
            if bound {
                client.bind(&mut world, 0x4000, PEER);
            } else {
                client.permit(&mut world, &[PEER]);
            }
            world.icmp(relay, error(PEER, 3, 3, 0));
            let expected = Received::Icmp { about: addr(PEER), value: vec![0, 0, 3, 3, 0, 0, 0, 0] };
            assert_eq!(client.received(&mut world), [expected]);
        }
    }
}

#[test]
fn error_data_is_the_mtu_where_a_packet_was_too_big_and_zero_elsewhere() {
    // Section 18.13: "If the ICMPv6 type is 2 ("Packet too big" message) or ICMPv4 type is 3 (Destination Unreachable)
    // and Code is 4 (fragmentation needed and DF set), the Error Data field will be set to the Maximum Transmission
    // Unit of the next-hop link [..]. For other ICMPv6 types and ICMPv4 types and codes, the Error Data field MUST be
    // set to zero." "Reserved: This field MUST be set to 0 when sent".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let reply = client.allocate_with(&mut world, |builder| {
        builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    let (v4, v6) = (reply.relay_of(Family::V4), reply.relay_of(Family::V6));
    client.permit(&mut world, &[PEER, PEER_V6]);
    for (relay, about, kind, code, mtu) in [
        (v4, PEER, 3, 4, 1280),
        (v4, PEER, 3, 1, 0),
        (v4, PEER, 11, 0, 0),
        (v6, PEER_V6, 2, 0, 1280),
        (v6, PEER_V6, 1, 4, 0),
        (v6, PEER_V6, 3, 0, 0),
    ] {
        world.icmp(relay, error(about, kind, code, 1280));
        let value = [&[0, 0, kind, code][..], &u32::to_be_bytes(mtu)].concat();
        assert_eq!(
            client.received(&mut world),
            [Received::Icmp { about: addr(about), value }],
            "{about} {kind}/{code}"
        );
    }
}

#[test]
fn other_icmp_types_are_dropped() {
    // "the server verifies that the type is either 3 or 11 for an ICMPv4 packet or either 1, 2, or 3 for an ICMPv6
    // packet. [..] If either of these conditions fail, then the ICMP packet is silently dropped."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    client.permit(&mut world, &[PEER]);
    let others: Vec<u8> = (0..=255).filter(|kind| ![3, 11].contains(kind)).collect();
    for kind in &others {
        world.icmp(relay, error(PEER, *kind, 0, 0));
    }
    let mut six = Client::new("198.51.100.1:1001");
    let reply = six.allocate_with(&mut world, |builder| {
        builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    six.permit(&mut world, &[PEER_V6]);
    for kind in [0, 4, 11, 128, 255] {
        world.icmp(reply.relay(), error(PEER_V6, kind, 0, 0));
    }
    assert!(client.received(&mut world).is_empty() && six.received(&mut world).is_empty());
    assert_eq!(world.dropped(DropReason::IrrelevantIcmp), others.len() as u64 + 5);
}

#[test]
fn icmp_errors_about_peers_without_permission_are_dropped() {
    // "For ICMP packets, the source IP address MUST NOT be checked against the permissions list [..]. Instead, the
    // server extracts the destination IP address from the encapsulated IP header. [..] Note that only addresses are
    // compared and port numbers are not considered."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    client.permit(&mut world, &[PEER]);
    world.icmp(relay, error("9.9.9.8:7000", 3, 3, 0));
    assert!(client.received(&mut world).is_empty());
    world.icmp(relay, error("9.9.9.9:1", 3, 3, 0));
    assert_eq!(client.received(&mut world).len(), 1);
    world.advance(secs(300));
    world.icmp(relay, error(PEER, 3, 3, 0));
    assert!(client.received(&mut world).is_empty(), "the permission has expired");
}

#[test]
fn icmp_errors_about_an_expired_allocation_are_dropped() {
    // "If no such allocation exists, the packet is silently dropped."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    world.advance(secs(500));
    client.permit(&mut world, &[PEER]);
    world.jump(secs(100));
    world.icmp(relay, error(PEER, 3, 3, 0));
    assert!(client.received(&mut world).is_empty());
    assert_eq!(world.dropped(DropReason::NoRelay), 1);
}
