//! CreatePermission (RFC 8656 section 10.2).

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Method};

use crate::harness::{Client, PEER, PEER_V6, Received, Reply, Signed, TICK, World, addr, peer, secs};

/// A CreatePermission with raw values of XOR-PEER-ADDRESS.
fn permit_raw(world: &mut World, client: &mut Client, values: &[&[u8]]) -> Reply {
    client.request(world, Method::CreatePermission, |builder| {
        for value in values {
            builder.attribute(AttributeType::XOR_PEER_ADDRESS, value);
        }
    })
}

/// Which of these peers data gets through to and from.
fn open_to(world: &mut World, client: &mut Client, relay: std::net::SocketAddr, peers: &[&str]) -> Vec<bool> {
    let open = |to: &&str| {
        client.indicate(world, to, b"out");
        let out = world.sent().iter().any(|sent| sent.to == peer(to));
        world.peer_sends(to, relay, b"in");
        let back = !client.received(world).is_empty();
        assert_eq!(out, back, "a permission opens both ways: {to}");
        out
    };
    peers.iter().map(open).collect()
}

#[test]
fn a_permission_opens_an_address_on_every_port_both_ways() {
    // RFC 8656 section 9: "Note that only addresses are compared and port numbers are not considered." Section 10.2:
    // "The port portion of each attribute is ignored and may be any arbitrary value."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    assert_eq!(open_to(&mut world, &mut client, relay, &[PEER]), [false]);
    let reply = client.permit(&mut world, &["9.9.9.9:0"]);
    assert_eq!((reply.result(), reply.signed()), (Ok(()), Signed::Sha1));
    assert_eq!(open_to(&mut world, &mut client, relay, &[PEER, "9.9.9.9:1", "9.9.9.9:65535"]), [true; 3]);
    assert_eq!(open_to(&mut world, &mut client, relay, &["9.9.9.10:7000", "8.8.8.8:7000"]), [false; 2]);
}

#[test]
fn several_peers_are_permitted_by_one_request() {
    // "The CreatePermission request MUST contain at least one XOR-PEER-ADDRESS attribute and MAY contain multiple such
    // attributes."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    let peers = ["9.9.9.1:1", "9.9.9.2:2", "9.9.9.3:3", "9.9.9.1:4"];
    assert_eq!(client.permit(&mut world, &peers).result(), Ok(()));
    assert_eq!(open_to(&mut world, &mut client, relay, &peers), [true; 4]);
}

#[test]
fn no_peer_or_a_malformed_one_is_rejected_with_400() {
    // "If no such attribute exists, or if any of these attributes are invalid, then a 400 (Bad Request) error is
    // returned."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    let reply = permit_raw(&mut world, &mut client, &[]);
    assert_eq!((reply.result(), reply.signed()), (Err(400), Signed::Sha1));
    let good = [0, 1, 0, 0, 9 ^ 0x21, 9 ^ 0x12, 9 ^ 0xA4, 9 ^ 0x42];
    for bad in [&[][..], &[0, 1, 0, 0], &[0, 3, 0, 0, 1, 2, 3, 4], &[0, 2, 0, 0, 1, 2, 3, 4], &[0; 8], &[0; 20]] {
        assert_eq!(permit_raw(&mut world, &mut client, &[bad]).result(), Err(400), "{bad:?}");
        assert_eq!(permit_raw(&mut world, &mut client, &[&good, bad]).result(), Err(400), "{bad:?}");
        assert_eq!(permit_raw(&mut world, &mut client, &[bad, &good]).result(), Err(400), "{bad:?}");
    }
    assert_eq!(open_to(&mut world, &mut client, relay, &[PEER]), [false], "all or nothing");
    assert_eq!(permit_raw(&mut world, &mut client, &[&good]).result(), Ok(()));
    assert_eq!(open_to(&mut world, &mut client, relay, &[PEER]), [true]);
}

#[test]
fn peers_of_another_family_are_rejected_with_443() {
    // "If an XOR-PEER-ADDRESS attribute contains an address of an address family that is not the same as that of a
    // relayed transport address for the allocation, the server MUST generate an error response with the 443 (Peer
    // Address Family Mismatch) response code."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    for peers in [&[PEER_V6][..], &[PEER, PEER_V6], &[PEER_V6, PEER], &[PEER_V6, "127.0.0.1:1"]] {
        assert_eq!(client.permit(&mut world, peers).result(), Err(443), "{peers:?}");
    }
    assert_eq!(open_to(&mut world, &mut client, relay, &[PEER]), [false], "all or nothing");
}

#[test]
fn forbidden_peers_are_rejected_with_403() {
    // "The server MAY impose restrictions on the IP address allowed in the XOR-PEER-ADDRESS attribute; if a value is
    // not allowed, the server rejects the request with a 403 (Forbidden) error."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    for forbidden in ["0.0.0.0:1", "10.0.0.1:1", "127.0.0.1:3478", "169.254.169.254:80", "192.168.0.1:1", "224.0.0.1:1"]
    {
        assert_eq!(client.permit(&mut world, &[forbidden]).result(), Err(403), "{forbidden}");
        let reply = client.permit(&mut world, &[PEER, forbidden]);
        assert_eq!((reply.result(), reply.signed()), (Err(403), Signed::Sha1));
    }
    assert_eq!(open_to(&mut world, &mut client, relay, &[PEER]), [false], "all or nothing");
    let mut client = Client::new("198.51.100.1:1001");
    client.allocate_with(&mut world, |builder| {
        builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    for forbidden in
        ["[::]:1", "[::1]:1", "[::ffff:9.9.9.9]:1", "[fe80::1]:1", "[2002:909:909::1]:1", "[2001:0:1::1]:1"]
    {
        assert_eq!(client.permit(&mut world, &[forbidden]).result(), Err(403), "{forbidden}");
    }
}

#[test]
fn a_malformed_peer_comes_before_one_of_another_family_and_that_before_a_forbidden_one() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    let reply = client.request(&mut world, Method::CreatePermission, |builder| {
        builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr("127.0.0.1:1"));
        builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(PEER_V6));
        builder.attribute(AttributeType::XOR_PEER_ADDRESS, &[]);
    });
    assert_eq!(reply.result(), Err(400));
}

#[test]
fn a_permission_lasts_for_exactly_300_seconds() {
    // RFC 8656 section 9: "The Permission Lifetime MUST be 300 seconds (= 5 minutes)."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    client.permit(&mut world, &[PEER]);
    world.jump(secs(300) - TICK);
    assert_eq!(open_to(&mut world, &mut client, relay, &[PEER]), [true]);
    world.jump(TICK);
    assert_eq!(open_to(&mut world, &mut client, relay, &[PEER]), [false]);
}

#[test]
fn a_permission_is_refreshed_by_either_request() {
    // "CreatePermission and ChannelBind requests may be freely intermixed on a permission."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate_with(&mut world, |builder| _ = builder.u32(AttributeType::LIFETIME, 3600)).relay();
    client.permit(&mut world, &[PEER]);
    world.advance(secs(299));
    client.bind(&mut world, 0x4000, PEER);
    world.advance(secs(299));
    client.permit(&mut world, &["9.9.9.9:1"]);
    world.advance(secs(300) - TICK);
    assert_eq!(open_to(&mut world, &mut client, relay, &[PEER]), [true]);
    world.advance(TICK);
    assert_eq!(open_to(&mut world, &mut client, relay, &[PEER]), [false]);
}

#[test]
fn data_never_refreshes_a_permission_a_channel_or_an_allocation() {
    // RFC 8656 section 11.2: "Note that a Send indication never causes the server to refresh the permission." Section
    // 12.6: "the receipt of a ChannelData message MUST NOT refresh either the channel binding or the permission towards
    // the peer." Section 6: "sending data to a peer does not refresh an allocation."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    client.bind(&mut world, 0x4000, PEER);
    let all = |world: &mut World, client: &mut Client| {
        client.indicate(world, PEER, b"send");
        client.channel_data(world, 0x4000, b"channel");
        world.peer_sends(PEER, relay, b"peer");
        (world.sent().len(), client.received(world).len())
    };
    for _ in 0..299 {
        world.advance(secs(1));
        assert_eq!(all(&mut world, &mut client), (2, 1));
    }
    world.advance(secs(1));
    assert_eq!(all(&mut world, &mut client), (0, 0), "the permission has expired");
    world.advance(secs(299));
    client.permit(&mut world, &[PEER]);
    assert_eq!(all(&mut world, &mut client), (2, 1));
    world.advance(secs(1) - TICK);
    assert_eq!(all(&mut world, &mut client), (2, 1));
    world.advance(TICK);
    assert_eq!(all(&mut world, &mut client), (0, 0), "the allocation has expired");
}

#[test]
fn retransmissions_are_answered_alike() {
    // "Retransmitted CreatePermission requests will simply refresh the permissions."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    let request = client.signed(Method::CreatePermission, |builder| {
        builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(PEER));
    });
    let first = client.exchange(&mut world, &request).unwrap();
    assert_eq!(client.exchange(&mut world, &request).unwrap().bytes, first.bytes);
}

#[test]
fn permissions_of_one_allocation_are_not_those_of_another() {
    // RFC 8656 section 9: "The permissions for one allocation are totally unrelated to the permissions for a different
    // allocation."
    let mut world = World::new();
    let mut first = Client::new("198.51.100.1:1000");
    let mut second = Client::new("198.51.100.1:1001");
    let relays = (first.allocate(&mut world).relay(), second.allocate(&mut world).relay());
    first.permit(&mut world, &[PEER]);
    assert_eq!(open_to(&mut world, &mut first, relays.0, &[PEER]), [true]);
    assert_eq!(open_to(&mut world, &mut second, relays.1, &[PEER]), [false]);
}

#[test]
fn permissions_end_with_their_allocation() {
    // "If an allocation expires, all its permissions expire with it."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.permit(&mut world, &[PEER]);
    client.refresh(&mut world, Some(0));
    let relay = client.allocate(&mut world).relay();
    assert_eq!(open_to(&mut world, &mut client, relay, &[PEER]), [false]);
}

#[test]
fn more_permissions_than_the_limit_are_rejected_with_403_and_refreshes_are_not_counted() {
    // Field notes, section 1: 403 disables that peer only; any other final error fails Firefox's whole relay (an
    // exception to RFC 8656 section 10.2, which says 508).
    let mut world = World::with(|setup| setup.turn.limits.permissions_per_allocation = 3);
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    assert_eq!(client.permit(&mut world, &["9.9.9.1:1", "9.9.9.2:1", "9.9.9.1:2", "9.9.9.2:2"]).result(), Ok(()));
    assert_eq!(client.permit(&mut world, &["9.9.9.3:1", "9.9.9.4:1"]).result(), Err(403));
    assert_eq!(open_to(&mut world, &mut client, relay, &["9.9.9.3:1"]), [false], "all or nothing");
    assert_eq!(client.permit(&mut world, &["9.9.9.3:1"]).result(), Ok(()));
    assert_eq!(client.permit(&mut world, &["9.9.9.4:1"]).result(), Err(403));
    assert_eq!(client.bind(&mut world, 0x4000, "9.9.9.4:1").result(), Err(403));
    assert_eq!(client.permit(&mut world, &["9.9.9.1:1", "9.9.9.2:1", "9.9.9.3:1"]).result(), Ok(()), "refreshes");
    assert_eq!(client.bind(&mut world, 0x4000, "9.9.9.3:1").result(), Ok(()));
    world.jump(secs(300));
    assert_eq!(client.permit(&mut world, &["9.9.9.4:1", "9.9.9.5:1", "9.9.9.6:1"]).result(), Ok(()), "expired ones");
}

#[test]
fn a_request_full_of_peers_is_judged_in_linear_time() {
    // 5,000 different peers in one request: refused by the limit, quickly.
    let mut world = World::new();
    let mut client = Client::over("198.51.100.1:1000", Transport::Tcp);
    client.allocate(&mut world).relay();
    let reply = client.request(&mut world, Method::CreatePermission, |builder| {
        for index in 0..5_000u32 {
            let ip = std::net::Ipv4Addr::from(0x0909_0000 + index);
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, (ip, 1).into());
        }
    });
    assert_eq!(reply.result(), Err(403));
}

#[test]
fn data_of_a_peer_without_permission_is_dropped_and_does_not_disturb() {
    // "If no match is found, relaying is not permitted and the server silently discards the UDP datagram."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    client.permit(&mut world, &[PEER]);
    assert!(world.peer_sends("9.9.9.8:7000", relay, b"stranger"));
    assert!(world.peer_sends(PEER, relay, b"friend"));
    let expected = Received::Data { from: addr(PEER), data: b"friend".to_vec() };
    assert_eq!(client.received(&mut world), [expected]);
    assert_eq!(world.dropped(ferryd::turn::DropReason::NoPermission), 1);
}
