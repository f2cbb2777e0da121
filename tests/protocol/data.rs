//! Application data: Send and Data indications, ChannelData (RFC 8656 sections 11, 12.4 to 12.7).

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Builder, Class, Method, TransactionId};
use ferryd::turn::DropReason;

use crate::harness::{Client, PEER, PEER_V6, Received, World, addr, peer};

const TRANSPORTS: [Transport; 4] = [Transport::Udp, Transport::Tcp, Transport::Tls, Transport::Dtls];

/// A client with an allocation, a permission and, where wanted, a channel.
fn connected(world: &mut World, transport: Transport, channel: bool) -> (Client, std::net::SocketAddr) {
    let mut client = Client::over("198.51.100.1:1000", transport);
    let relay = client.allocate(world).relay();
    if channel {
        client.bind(world, 0x4000, PEER);
    } else {
        client.permit(world, &[PEER]);
    }
    (client, relay)
}

#[test]
fn a_send_indication_becomes_a_datagram_from_the_relayed_address() {
    // RFC 8656 section 11.2: "the source transport address is the relayed transport address of the allocation [..]; the
    // destination transport address is taken from the XOR-PEER-ADDRESS attribute; the data following the UDP header is
    // the contents of the value field of the DATA attribute."
    for transport in TRANSPORTS {
        let mut world = World::new();
        let (mut client, relay) = connected(&mut world, transport, false);
        for data in [&b""[..], b"a", b"ab", b"abc", b"abcd", &[0x5A; 1200]] {
            client.indicate(&mut world, PEER, data);
            let sent = world.sent();
            assert_eq!(sent.len(), 1);
            assert_eq!((sent[0].from, sent[0].to, &sent[0].bytes[..]), (relay, peer(PEER), data));
            assert!(!sent[0].dont_fragment);
        }
        assert!(world.inbox(&client.at).is_empty(), "nothing answers an indication");
    }
}

#[test]
fn dont_fragment_goes_with_its_datagram() {
    // RFC 8656 section 14: "When the server sends a packet to a peer in response to a Send indication containing the
    // DONT-FRAGMENT attribute, then set the outgoing UDP packet to not fragment."
    let mut world = World::new();
    let (mut client, _) = connected(&mut world, Transport::Udp, false);
    for first in [true, false] {
        client.indicate_with(&mut world, |builder| {
            if first {
                builder.attribute(AttributeType::DONT_FRAGMENT, b"");
            }
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(PEER)).attribute(AttributeType::DATA, b"data");
            if !first {
                builder.attribute(AttributeType::DONT_FRAGMENT, b"");
            }
        });
        assert!(world.sent()[0].dont_fragment);
    }
}

#[test]
fn dont_fragment_is_ignored_where_packets_are_translated() {
    // RFC 8656 section 13: "For both preferred and alternate behavior, the DONT-FRAGMENT attribute MUST be ignored by the
    // server", and: "ignoring the DONT-FRAGMENT attribute is only applicable for UDP-to-UDP relay and not for TCP-to-UDP
    // relay".
    let both = |builder: &mut Builder<'_>| {
        builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    };
    for (address, transport, to, holds) in [
        ("198.51.100.1:1000", Transport::Udp, PEER, true),
        ("198.51.100.1:1000", Transport::Udp, PEER_V6, false),
        ("[2001:470::1]:1000", Transport::Udp, PEER, false),
        ("[2001:470::1]:1000", Transport::Udp, PEER_V6, false),
        ("198.51.100.1:1000", Transport::Dtls, PEER_V6, false),
        ("198.51.100.1:1000", Transport::Tcp, PEER_V6, true),
        ("[2001:470::1]:1000", Transport::Tls, PEER_V6, true),
    ] {
        let mut world = World::new();
        let mut client = Client::over(address, transport);
        client.allocate_with(&mut world, both);
        client.permit(&mut world, &[PEER, PEER_V6]);
        client.indicate_with(&mut world, |builder| {
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(to)).attribute(AttributeType::DATA, b"data");
            builder.attribute(AttributeType::DONT_FRAGMENT, b"");
        });
        let sent = world.sent();
        assert_eq!(
            sent.iter().map(|sent| sent.dont_fragment).collect::<Vec<_>>(),
            [holds],
            "{address} {transport:?} {to}"
        );
    }
}

#[test]
fn incomplete_send_indications_are_dropped() {
    // "The Send indication MUST contain both an XOR-PEER-ADDRESS attribute and a DATA attribute. If one of these
    // attributes is missing or invalid, then the message is discarded."
    let mut world = World::new();
    let (mut client, _) = connected(&mut world, Transport::Udp, false);
    client.indicate_with(&mut world, |_| {});
    client.indicate_with(&mut world, |builder| _ = builder.attribute(AttributeType::DATA, b"data"));
    client.indicate_with(&mut world, |builder| {
        builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(PEER));
    });
    for bad in [&[][..], &[0, 1, 0, 0], &[0, 7, 0, 0, 1, 2, 3, 4], &[0; 20]] {
        client.indicate_with(&mut world, |builder| {
            builder.attribute(AttributeType::XOR_PEER_ADDRESS, bad).attribute(AttributeType::DATA, b"data");
        });
    }
    assert_eq!(world.dropped(DropReason::IncompleteSend), 7);
    assert!(world.sent().is_empty() && world.inbox(&client.at).is_empty());
    client.indicate(&mut world, PEER, b"unharmed");
    assert_eq!(world.sent().len(), 1);
}

#[test]
fn send_indications_with_unknown_required_attributes_are_dropped() {
    // RFC 8489 section 6.3.2: "If the indication contains unknown comprehension-required attributes, the indication is
    // discarded and processing ceases."
    let mut world = World::new();
    let (mut client, _) = connected(&mut world, Transport::Udp, false);
    for (unknown, expected) in [(0x7FFE, 0), (0x0010, 0), (0x8055, 1)] {
        client.indicate_with(&mut world, |builder| {
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(PEER)).attribute(AttributeType::DATA, b"data");
            builder.attribute(AttributeType(unknown), b"");
        });
        assert_eq!(world.sent().len(), expected, "{unknown:#06x}");
    }
    assert_eq!(world.dropped(DropReason::UnknownAttribute), 2);
}

#[test]
fn sends_to_port_zero_are_dropped() {
    let mut world = World::new();
    let (mut client, _) = connected(&mut world, Transport::Udp, false);
    client.indicate(&mut world, "9.9.9.9:0", b"data");
    assert!(world.sent().is_empty());
    assert_eq!(world.dropped(DropReason::ForbiddenPort), 1);
}

#[test]
fn sends_to_a_family_without_relayed_address_are_dropped() {
    let mut world = World::new();
    let (mut client, _) = connected(&mut world, Transport::Udp, false);
    client.indicate(&mut world, PEER_V6, b"data");
    assert!(world.sent().is_empty());
}

#[test]
fn data_before_any_allocation_is_dropped() {
    // RFC 8656 section 5: "silently ignored (if it is an indication or a ChannelData message)".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.indicate(&mut world, PEER, b"data");
    client.channel_data(&mut world, 0x4000, b"data");
    assert!(world.sent().is_empty() && world.inbox(&client.at).is_empty());
    assert_eq!(world.dropped(DropReason::NoAllocation), 2);
}

#[test]
fn peer_data_becomes_a_data_indication() {
    // RFC 8656 section 11.3: "The Data indication MUST contain both an XOR-PEER-ADDRESS and a DATA attribute. The DATA
    // attribute is set to the value of the "data octets" field from the datagram, and the XOR-PEER-ADDRESS attribute is
    // set to the source transport address of the received UDP datagram."
    for transport in TRANSPORTS {
        let mut world = World::new();
        let (client, relay) = connected(&mut world, transport, false);
        for data in [&b""[..], b"a", b"ab", b"abc", b"abcd", &[0x5A; 1200]] {
            world.peer_sends("9.9.9.9:53", relay, data);
            let expected = Received::Data { from: addr("9.9.9.9:53"), data: data.to_vec() };
            assert_eq!(client.received(&mut world), [expected]);
        }
    }
}

#[test]
fn data_indications_have_transaction_ids_of_their_own() {
    // RFC 8489 section 5: "the transaction ID MUST be uniformly and randomly chosen".
    let mut world = World::new();
    let (client, relay) = connected(&mut world, Transport::Udp, false);
    let mut ids = Vec::new();
    for _ in 0..100 {
        world.peer_sends(PEER, relay, b"data");
        ids.push(world.inbox(&client.at)[0][8..20].to_vec());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 100);
}

#[test]
fn channel_data_carries_every_length_both_ways() {
    // Section 12.6: "if the Length field in the ChannelData message is 0, then there will be no data in the UDP
    // datagram, but the UDP datagram is still formed and sent". Section 12.5: "Over TCP and TLS-over-TCP, the
    // ChannelData message MUST be padded to a multiple of four bytes".
    for transport in TRANSPORTS {
        let mut world = World::new();
        let (client, relay) = connected(&mut world, transport, true);
        for data in [&b""[..], b"a", b"ab", b"abc", b"abcd", &[0x5A; 1200]] {
            client.channel_data(&mut world, 0x4000, data);
            assert_eq!(world.sent()[0].bytes, data);
            world.peer_sends(PEER, relay, data);
            let expected = Received::Channel { number: 0x4000, data: data.to_vec() };
            assert_eq!(client.received(&mut world), [expected]);
        }
    }
}

#[test]
fn channel_data_over_udp_may_be_padded() {
    // "Over UDP, the padding is not required but MAY be included."
    let mut world = World::new();
    let (client, _) = connected(&mut world, Transport::Udp, true);
    client.send(&mut world, b"\x40\x00\x00\x05hello\xEE\xEE\xEE");
    assert_eq!(world.sent()[0].bytes, b"hello");
}

#[test]
fn channel_data_that_is_too_short_or_not_bound_is_dropped() {
    // Section 12.6: "if the UDP datagram is too short to contain the claimed length of the ChannelData message [..],
    // then the message is silently discarded." "If the ChannelData message is received on a channel that is not bound
    // to any peer, then the message is silently discarded." "If the message uses a value in the reserved range (0x5000
    // through 0xFFFF), then the message is silently discarded."
    let mut world = World::new();
    let (client, _) = connected(&mut world, Transport::Udp, true);
    for short in [&b"\x40"[..], b"\x40\x00", b"\x40\x00\x00", b"\x40\x00\x00\x01", b"\x40\x00\xff\xffdata"] {
        client.send(&mut world, short);
    }
    assert_eq!(world.dropped(DropReason::MalformedChannelData), 5);
    for unbound in [0x4001, 0x4FFF, 0x5000, 0x7FFF] {
        client.channel_data(&mut world, unbound, b"data");
    }
    assert_eq!(world.dropped(DropReason::NoChannel), 4);
    for reserved in [b"\x80\x00\x00\x00", b"\xff\xff\x00\x00"] {
        client.send(&mut world, reserved);
    }
    assert!(world.sent().is_empty() && world.inbox(&client.at).is_empty());
}

/// Whether a payload of this length arrives, whole, at the peer and at the client.
fn passes(transport: Transport, channel: bool, len: usize) -> (bool, bool) {
    let mut world = World::new();
    let (mut client, relay) = connected(&mut world, transport, channel);
    let data = vec![0xA5; len];
    if channel {
        client.channel_data(&mut world, 0x4000, &data);
    } else if len < 65_500 {
        client.indicate(&mut world, PEER, &data);
    }
    let out = world.sent().iter().map(|sent| assert_eq!(sent.bytes, data, "never truncated")).count() == 1;
    world.peer_sends(PEER, relay, &data);
    let arrived = client.received(&mut world);
    let back = arrived.len() == 1;
    for received in arrived {
        let (Received::Channel { data: whole, .. } | Received::Data { data: whole, .. }) = received else { panic!() };
        assert_eq!(whole, data, "never truncated");
    }
    (out, back)
}

#[test]
fn payloads_up_to_what_the_encapsulation_can_carry_pass_and_longer_ones_are_dropped_whole() {
    // Issue 2: 65,503 by channel over UDP, 65,507 over streams, less by indication.
    assert_eq!(passes(Transport::Udp, true, 65_503), (true, true));
    assert_eq!(passes(Transport::Udp, true, 65_504), (true, false), "the header does not fit into the datagram");
    for stream in [Transport::Tcp, Transport::Tls] {
        assert_eq!(passes(stream, true, 65_507), (true, true));
        assert!(!passes(stream, true, 65_508).0, "no UDP datagram is that long");
        assert!(!passes(stream, true, 65_535).0);
        assert!(passes(stream, false, 65_507).1);
    }
    // Over UDP an indication has 20 bytes of header, 12 of XOR-PEER-ADDRESS and 4 of DATA, and pads.
    assert_eq!(passes(Transport::Udp, false, 65_468), (true, true));
    assert!(!passes(Transport::Udp, false, 65_469).1);
}

#[test]
fn too_long_payloads_are_counted() {
    let mut world = World::new();
    let (client, relay) = connected(&mut world, Transport::Udp, true);
    world.peer_sends(PEER, relay, &[0; 65_507]);
    assert_eq!(world.dropped(DropReason::TooLong), 1);
    assert!(client.received(&mut world).is_empty());
}

#[test]
fn data_of_an_ipv6_peer_fits_an_indication_up_to_its_length_field() {
    let mut world = World::new();
    let mut client = Client::over("198.51.100.1:1000", Transport::Tcp);
    let reply = client.allocate_with(&mut world, |builder| {
        builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    client.permit(&mut world, &[PEER_V6]);
    for (len, fits) in [(65_504, true), (65_505, false), (65_527, false)] {
        world.peer_sends(PEER_V6, reply.relay(), &vec![1; len]);
        assert_eq!(client.received(&mut world).len() == 1, fits, "{len}");
    }
}

#[test]
fn fingerprinted_and_signed_looking_indications_are_relayed() {
    // RFC 8656 section 5: "indications in TURN are never authenticated".
    let mut world = World::new();
    let (client, _) = connected(&mut world, Transport::Udp, false);
    let mut bytes = Vec::new();
    Builder::new(&mut bytes, Method::Send, Class::Indication, TransactionId([3; 12]))
        .attribute(AttributeType::SOFTWARE, b"browser")
        .xor_address(AttributeType::XOR_PEER_ADDRESS, addr(PEER))
        .attribute(AttributeType::DATA, b"data")
        .fingerprint();
    client.send(&mut world, &bytes);
    assert_eq!(world.sent()[0].bytes, b"data");
}

#[test]
fn traffic_is_counted_by_payload() {
    let mut world = World::new();
    let (mut client, relay) = connected(&mut world, Transport::Udp, true);
    client.channel_data(&mut world, 0x4000, b"12345");
    client.indicate(&mut world, PEER, b"123");
    client.indicate(&mut world, "8.8.8.8:1", b"dropped");
    world.peer_sends(PEER, relay, b"1234567");
    world.peer_sends("8.8.8.8:1", relay, b"dropped");
    assert_eq!(client.received(&mut world).len(), 1);
    client.refresh(&mut world, Some(0));
    let traffic = world.ended()[0].traffic;
    assert_eq!((traffic.packets_to_peers, traffic.bytes_to_peers), (2, 8));
    assert_eq!((traffic.packets_to_client, traffic.bytes_to_client), (1, 7));
}
