//! Allocate (RFC 8656 section 7.2), step by step.

use std::time::Duration;

use ferryd::address::{ServerAddr, Transport};
use ferryd::stun::{AttributeType, Method};
use ferryd::turn::DropReason;

use crate::harness::{BOB, Client, PEER, Reply, Signed, World, addr, assert_no_leak, secs};

#[test]
fn allocate_answers_relayed_address_lifetime_and_mapped_address() {
    // RFC 8656 section 7.2: "The success response contains: An XOR-RELAYED-ADDRESS attribute containing the relayed
    // transport address [..]; A LIFETIME attribute containing the current value of the time-to-expiry timer; [..] An
    // XOR-MAPPED-ADDRESS attribute containing the client's IP address and port (from the 5-tuple)."
    let mut world = World::new();
    for (address, transport) in [
        ("198.51.100.1:1000", Transport::Udp),
        ("[2001:db8:7::1]:1000", Transport::Udp),
        ("198.51.100.1:1000", Transport::Tcp),
        ("198.51.100.1:1000", Transport::Tls),
        ("198.51.100.1:1000", Transport::Dtls),
    ] {
        let mut client = Client::over(address, transport);
        let reply = client.allocate(&mut world);
        let relay = reply.relay();
        // "the server MUST allocate an IPv4 relayed transport address for the TURN client": no family was named.
        assert_eq!(relay.ip(), addr("192.0.2.1:0").ip());
        // "the server SHOULD only allocate ports from the range 49152 - 65535".
        assert!(relay.port() >= 49152);
        assert_eq!(reply.lifetime(), 600);
        assert_eq!(reply.mapped(), addr(address));
        assert!(!reply.has(AttributeType::RESERVATION_TOKEN) && !reply.has(AttributeType::ADDRESS_ERROR_CODE));
        assert!(world.sockets.contains_key(&ferryd::address::RelayedAddr::new(relay)));
    }
    assert_eq!(world.workers[0].allocations(), 5);
}

#[test]
fn relayed_addresses_are_unique_and_cannot_be_foreseen() {
    // RFC 8656 section 6: "The relayed transport address MUST be unique across all allocations". Section 7.2: "It is
    // RECOMMENDED that a TURN server implement a randomized port assignment algorithm from [RFC6056]."
    let mut world = World::with(|setup| setup.turn.limits.allocations_per_prefix = 0);
    let mut ports: Vec<u16> = Vec::new();
    for port in 1000..1200 {
        ports.push(Client::new(&format!("198.51.100.1:{port}")).allocate(&mut world).relay().port());
    }
    let successors = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 16).count();
    assert!(successors < 10, "{successors} of 199 beside their predecessor");
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 200);
}

#[test]
fn software_is_in_every_answer_to_whoever_has_authenticated() {
    // RFC 8489 section 6.3.1.1: "the server SHOULD add a SOFTWARE attribute to the message." RFC 8656 section 5: "The
    // server SHOULD include the SOFTWARE attribute in all Allocate and Refresh responses (either success or failure)".
    let mut world = World::with(|setup| setup.turn.software = Some("ferryd 1.2.3".to_owned()));
    let mut client = Client::new("198.51.100.1:1000");
    let told = |reply: Reply| (reply.result(), reply.value(AttributeType::SOFTWARE).unwrap());
    let software = b"ferryd 1.2.3".to_vec();
    assert_eq!(told(client.refresh(&mut world, None)), (Err(437), software.clone()));
    assert_eq!(told(client.allocate(&mut world)), (Ok(()), software.clone()));
    assert_eq!(told(client.allocate(&mut world)), (Err(437), software.clone()));
    assert_eq!(told(client.refresh(&mut world, None)), (Ok(()), software.clone()));
    assert_eq!(told(client.permit(&mut world, &[PEER])), (Ok(()), software.clone()));
    assert_eq!(told(client.bind(&mut world, 0x4FFF, "10.0.0.1:1")), (Err(403), software));
    let mut world = World::with(|setup| setup.turn.software = None);
    let mut client = Client::new("198.51.100.1:1000");
    assert!(!client.allocate(&mut world).has(AttributeType::SOFTWARE), "the operator wants none");
}

#[test]
fn allocate_on_a_used_five_tuple_is_rejected_with_437() {
    // RFC 8656 section 7.2, step 2: "The server checks if the 5-tuple is currently in use by an existing allocation. If
    // yes, the server rejects the request with a 437 (Allocation Mismatch) error."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    let reply = client.allocate(&mut world);
    assert_eq!((reply.result(), reply.signed()), (Err(437), Signed::Sha1));
    assert_eq!(client.clone().user("bob", BOB).allocate(&mut world).result(), Err(437));
    let malformed = client.request(&mut world, Method::Allocate, |_| {});
    assert_eq!(malformed.result(), Err(437), "step 2 comes before step 3");
    assert_eq!(world.workers[0].allocations(), 1);
}

#[test]
fn five_tuples_that_differ_in_one_part_are_different() {
    // RFC 8656 section 2: the 5-tuple is "the client IP address, client port, server IP address, server port and
    // transport protocol".
    let mut world = World::new();
    let first = Client::new("198.51.100.1:1000");
    let mut others = [
        Client::new("198.51.100.1:1001"),
        Client::new("198.51.100.2:1000"),
        Client::over("198.51.100.1:1000", Transport::Tcp),
        Client::over("198.51.100.1:1000", Transport::Tls),
        Client::over("198.51.100.1:1000", Transport::Dtls),
        first.clone(),
        first.clone(),
        first,
    ];
    others[5].at.server = ServerAddr::new(addr("192.0.2.11:3478"));
    others[6].at.server = ServerAddr::new(addr("192.0.2.10:443"));
    let relays: Vec<_> = others.iter_mut().map(|client| client.allocate(&mut world).relay()).collect();
    assert_eq!(world.workers[0].allocations(), 8);
    others[4].refresh(&mut world, Some(0));
    assert!(!world.peer_sends(PEER, relays[4], b""), "closed");
    for index in [0, 1, 2, 3, 5, 6, 7] {
        assert_eq!(others[index].refresh(&mut world, None).result(), Ok(()), "{index} lives on");
    }
}

#[test]
fn a_retransmitted_allocate_gets_the_same_answer() {
    // RFC 8656 section 7.2: "retransmissions [must] not cause multiple allocations to be created. [..] the server can
    // store the transaction id that created the request with the allocation data".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let request = client
        .signed(Method::Allocate, |builder| _ = builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]));
    let first = client.exchange(&mut world, &request).unwrap();
    world.advance(Duration::from_millis(250));
    let second = client.exchange(&mut world, &request).unwrap();
    assert_eq!(first.bytes, second.bytes);
    world.advance(Duration::from_millis(750));
    let third = client.exchange(&mut world, &request).unwrap();
    assert_eq!(third.lifetime(), 599);
    world.advance(secs(29));
    // "the value of the LIFETIME attribute can be taken from the time-to-expiry field in the allocate state data".
    let late = client.exchange(&mut world, &request).unwrap();
    assert_eq!((late.relay(), late.lifetime()), (first.relay(), 570));
    assert_eq!(world.attempts.len(), 1);
}

#[test]
fn allocate_without_requested_transport_is_rejected_with_400() {
    // Step 3: "If the REQUESTED-TRANSPORT attribute is not included or is malformed, the server rejects the request
    // with a 400 (Bad Request) error."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    assert_eq!(client.request(&mut world, Method::Allocate, |_| {}).result(), Err(400));
    for malformed in [&[][..], &[17], &[17, 0, 0], &[17, 0, 0, 0, 0]] {
        let reply = client.request(&mut world, Method::Allocate, |builder| {
            builder.attribute(AttributeType::REQUESTED_TRANSPORT, malformed);
        });
        assert_eq!((reply.result(), reply.signed()), (Err(400), Signed::Sha1), "{malformed:?}");
    }
}

#[test]
fn allocate_for_another_protocol_is_rejected_with_442() {
    // Step 3: "Otherwise, if the attribute is included but specifies a protocol that is not supported by the server,
    // the server rejects the request with a 442 (Unsupported Transport Protocol) error."
    let mut world = World::new();
    let mut client = Client::over("198.51.100.1:1000", Transport::Tcp);
    for protocol in [0, 1, 6, 16, 18, 132, 255] {
        let reply = client.request(&mut world, Method::Allocate, |builder| {
            builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[protocol, 0, 0, 0]);
        });
        assert_eq!(reply.result(), Err(442), "{protocol}");
    }
    // RFC 8656 section 18.8: "The RFFU field [..] MUST be ignored on reception."
    let reply = client.request(&mut world, Method::Allocate, |builder| {
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 1, 2, 3]);
    });
    assert_eq!(reply.result(), Ok(()));
}

#[test]
fn dont_fragment_is_supported() {
    // Step 4: a server that does not support it "treats the DONT-FRAGMENT attribute in the Allocate request as an
    // unknown comprehension-required attribute".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let reply = client.allocate_with(&mut world, |builder| _ = builder.attribute(AttributeType::DONT_FRAGMENT, b""));
    assert_eq!(reply.result(), Ok(()));
}

#[test]
fn the_requested_family_is_allocated() {
    // Section 3: "the REQUESTED-ADDRESS-FAMILY attribute is used to explicitly request the address type".
    let mut world = World::new();
    for (port, family, ip) in [(1000, 1, "192.0.2.1"), (1001, 2, "2001:db8::1")] {
        let mut client = Client::new(&format!("198.51.100.1:{port}"));
        let reply = client.allocate_with(&mut world, |builder| {
            // Section 18.6: "the 24 bits in the Reserved field [..] MUST be ignored by the server".
            builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[family, 9, 9, 9]);
        });
        assert_eq!(reply.relay().ip().to_string(), ip);
    }
}

#[test]
fn an_unsupported_family_is_rejected_with_440() {
    // Step 7: "If the server does not support the address family requested by the client in REQUESTED-ADDRESS-FAMILY,
    // [..] it MUST generate an Allocate error response, and it MUST include an ERROR-CODE attribute with the 440
    // (Address Family not Supported) response code."
    let family = |world: &mut World, client: &mut Client, family: u8| {
        let value = [family, 0, 0, 0];
        let reply = client.allocate_with(world, |builder| {
            builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &value);
        });
        reply.result()
    };
    let mut client = Client::new("198.51.100.1:1000");
    let mut dual = World::new();
    for unknown in [0, 3, 255] {
        assert_eq!(family(&mut dual, &mut client, unknown), Err(440));
    }
    let mut v4 = World::with(|setup| _ = setup.turn.relay_addresses.pop());
    assert_eq!(family(&mut v4, &mut client, 2), Err(440));
    assert_eq!(family(&mut v4, &mut client, 1), Ok(()));
    let mut v6 = World::with(|setup| _ = setup.turn.relay_addresses.remove(0));
    assert_eq!(family(&mut v6, &mut client, 1), Err(440));
    // "If the REQUESTED-ADDRESS-FAMILY attribute is absent and the server does not support the IPv4 address family, the
    // server MUST include an ERROR-CODE attribute with the 440 (Address Family not Supported) response code."
    assert_eq!(client.allocate(&mut v6).result(), Err(440));
    let both = client.allocate_with(&mut v6, |builder| {
        builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    assert_eq!(both.result(), Err(440), "step 7 comes before step 9");
    assert_eq!(family(&mut v6, &mut client, 2), Ok(()));
}

#[test]
fn malformed_attributes_of_allocate_are_rejected_with_400() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    for (kind, value) in [
        (AttributeType::LIFETIME, &[0, 0, 1][..]),
        (AttributeType::EVEN_PORT, &[]),
        (AttributeType::EVEN_PORT, &[0x80, 0]),
        (AttributeType::REQUESTED_ADDRESS_FAMILY, &[1]),
        (AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0]),
        (AttributeType::RESERVATION_TOKEN, &[0; 7]),
        (AttributeType::RESERVATION_TOKEN, &[0; 9]),
    ] {
        let reply = client.allocate_with(&mut world, |builder| _ = builder.attribute(kind, value));
        assert_eq!((reply.result(), reply.signed()), (Err(400), Signed::Sha1), "{kind:?} {value:?}");
    }
    assert_no_leak(&world);
}

#[test]
fn families_requested_and_additional_together_are_rejected_with_400() {
    // Step 6: "The server checks if the request contains both REQUESTED-ADDRESS-FAMILY and ADDITIONAL-ADDRESS-FAMILY
    // attributes. If yes, then the server rejects the request with a 400 (Bad Request) error."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    for family in [1, 2, 3] {
        let reply = client.allocate_with(&mut world, |builder| {
            builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]);
            builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
        });
        assert_eq!(reply.result(), Err(400), "step 6 comes before step 7");
    }
}

#[test]
fn the_lifetime_is_at_least_the_default_and_at_most_the_maximum() {
    // RFC 8656 section 7.2: "the server computes the minimum of the client's proposed lifetime and the server's maximum
    // allowed lifetime. If this computed value is greater than the default lifetime, then the server uses the computed
    // lifetime [..]. Otherwise, the server uses the default lifetime."
    let mut world = World::new();
    for (port, requested, granted) in [
        (1000, None, 600),
        (1001, Some(0), 600),
        (1002, Some(1), 600),
        (1003, Some(600), 600),
        (1004, Some(601), 601),
        (1005, Some(3600), 3600),
        (1006, Some(3601), 3600),
        (1007, Some(u32::MAX), 3600),
    ] {
        let mut client = Client::new(&format!("198.51.100.1:{port}"));
        let reply = client.allocate_with(&mut world, |builder| {
            if let Some(requested) = requested {
                builder.u32(AttributeType::LIFETIME, requested);
            }
        });
        assert_eq!(reply.lifetime(), granted, "{requested:?}");
    }
}

#[test]
fn an_allocation_is_there_after_its_socket_is_open_and_not_before() {
    // Conventions 3: the client hears "allocated" after the relay socket is bound.
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    world.opens_wait = true;
    let request = client
        .signed(Method::Allocate, |builder| _ = builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]));
    assert!(client.exchange(&mut world, &request).is_none());
    // Field notes, section 1: duplicates after 100 ms are coalesced.
    assert!(client.exchange(&mut world, &request).is_none());
    assert_eq!(world.dropped(DropReason::InProgress), 1);
    assert_eq!(client.refresh(&mut world, None).result(), Err(437));
    assert_eq!(client.permit(&mut world, &[PEER]).result(), Err(437));
    assert_eq!(client.bind(&mut world, 0x4000, PEER).result(), Err(437));
    assert_eq!(client.allocate(&mut world).result(), Err(437));
    client.indicate(&mut world, PEER, b"early");
    client.channel_data(&mut world, 0x4000, b"early");
    // The time-to-expiry begins when the allocation does.
    world.advance(secs(2));
    world.open_pending();
    let reply = client.reply_to(&mut world, &request).unwrap();
    assert_eq!((reply.result(), reply.lifetime()), (Ok(()), 600));
    assert_eq!(world.attempts.len(), 1);
    assert!(world.sent().is_empty());
    assert_eq!(client.exchange(&mut world, &request).unwrap().bytes, reply.bytes);
}

#[test]
fn tunnelled_clients_are_refused_with_403() {
    // RFC 8656 section 21.4: "It is RECOMMENDED that TURN servers not accept allocation or channel-binding requests
    // from addresses known to be tunneled [..]. In particular, a TURN server MUST NOT accept Teredo or 6to4 addresses
    // in these requests."
    let mut world = World::new();
    for address in ["[2001:0:102:304::1]:1000", "[2002:102:304::1]:1000"] {
        let mut client = Client::new(address);
        let reply = client.allocate(&mut world);
        assert_eq!((reply.result(), reply.signed()), (Err(403), Signed::Sha1), "{address}");
        assert_eq!(client.bind(&mut world, 0x4000, PEER).result(), Err(437));
    }
    assert_no_leak(&world);
}
