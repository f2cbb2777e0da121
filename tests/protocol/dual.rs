//! Dual allocations: ADDITIONAL-ADDRESS-FAMILY and ADDRESS-ERROR-CODE (RFC 8656 sections 7.2, 8.2 and 18.11).

use ferryd::address::Family;
use ferryd::stun::{AttributeType, Method};
use ferryd::turn::{Effect, OpenError};

use crate::harness::{Client, PEER, PEER_V6, Received, Reply, TICK, World, assert_no_leak, secs};

pub(crate) fn dual(world: &mut World, client: &mut Client) -> Reply {
    client.allocate_with(world, |builder| {
        builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 9, 9, 9]);
    })
}

fn refresh(world: &mut World, client: &mut Client, family: u8, lifetime: u32) -> Reply {
    client.request(world, Method::Refresh, |builder| {
        builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]);
        builder.u32(AttributeType::LIFETIME, lifetime);
    })
}

#[test]
fn a_dual_allocation_has_one_address_of_each_family() {
    // RFC 8656 section 7.2, step 9: "If the server can fully meet the request, then the server allocates one IPv4 and
    // one IPv6 relay address and returns an Allocate success response containing the relayed transport addresses
    // assigned to the dual allocation in two XOR-RELAYED-ADDRESS attributes."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let reply = dual(&mut world, &mut client);
    let families: Vec<_> = reply.relayed().iter().map(|relay| Family::of(relay.ip())).collect();
    assert_eq!(families, [Family::V4, Family::V6]);
    assert!(!reply.has(AttributeType::ADDRESS_ERROR_CODE));
    assert_eq!((world.workers[0].allocations(), world.sockets.len()), (1, 2));
    // Section 10.1: "For dual allocations [..], the client MAY include XOR-PEER-ADDRESS attributes with addresses of
    // IPv4 and IPv6 address families."
    assert_eq!(client.permit(&mut world, &[PEER, PEER_V6]).result(), Ok(()));
    assert_eq!(client.bind(&mut world, 0x4000, PEER_V6).result(), Ok(()));
    client.indicate(&mut world, PEER, b"four");
    client.channel_data(&mut world, 0x4000, b"six");
    let sent: Vec<_> = world.sent().into_iter().map(|sent| (sent.from, sent.bytes)).collect();
    let (v4, v6) = (reply.relay_of(Family::V4), reply.relay_of(Family::V6));
    assert_eq!(sent, [(v4, b"four".to_vec()), (v6, b"six".to_vec())]);
    world.peer_sends(PEER, v4, b"4");
    world.peer_sends(PEER_V6, v6, b"6");
    let expected = [
        Received::Data { from: PEER.parse().unwrap(), data: b"4".to_vec() },
        Received::Channel { number: 0x4000, data: b"6".to_vec() },
    ];
    assert_eq!(client.received(&mut world), expected);
    client.refresh(&mut world, Some(0));
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn additional_ipv4_is_rejected_with_400() {
    // Step 9: "If yes, and the attribute value is 0x01 (IPv4 address family), then the server rejects the request with
    // a 400 (Bad Request) error." Section 18.11: "The attribute value of 0x02 (IPv6 address) is the only valid value".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    for family in [0, 1, 3] {
        let reply = client.allocate_with(&mut world, |builder| {
            builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[family, 0, 0, 0]);
        });
        assert_eq!(reply.result(), Err(400), "{family}");
    }
}

#[test]
fn a_reservation_with_an_additional_family_is_rejected_with_400() {
    // Step 8: "The server checks if the request contains an EVEN-PORT attribute with the R bit set to 1. If yes, and
    // the request also contains an ADDITIONAL-ADDRESS-FAMILY attribute, the server rejects the request with a 400 (Bad
    // Request) error."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let mut even = |flags: u8| {
        client.allocate_with(&mut world, |builder| {
            builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
            builder.attribute(AttributeType::EVEN_PORT, &[flags]);
        })
    };
    assert_eq!(even(0x80).result(), Err(400));
    assert!(even(0x00).relayed().iter().all(|relay| relay.port() % 2 == 0));
}

fn assert_half(reply: &Reply, missing: u8, code: u16) {
    assert_eq!(reply.result(), Ok(()));
    assert_eq!(reply.relayed().len(), 1);
    let value = reply.value(AttributeType::ADDRESS_ERROR_CODE).unwrap();
    // Section 18.12: "the 13 bits in the Reserved field MUST be set to zero by the server".
    assert_eq!(value[..2], [missing, 0]);
    assert_eq!(u16::from(value[2]) * 100 + u16::from(value[3]), code);
    assert!(std::str::from_utf8(&value[4..]).unwrap().len() < 128, "a reason phrase of fewer than 128 characters");
}

#[test]
fn what_a_server_without_ipv6_can_meet_it_meets_with_440() {
    // Step 9: "if it can only allocate one relayed transport address of a specific address type, then it includes
    // ADDRESS-ERROR-CODE attribute in the success response [..]. The error code value signaled in the
    // ADDRESS-ERROR-CODE attribute could be 440 (Address Family not Supported) or 508 (Insufficient Capacity)."
    let mut world = World::with(|setup| _ = setup.turn.relay_addresses.pop());
    let mut client = Client::new("198.51.100.1:1000");
    assert_half(&dual(&mut world, &mut client), 2, 440);
}

#[test]
fn what_a_server_short_of_ports_can_meet_it_meets_with_508() {
    let one_port = || World::with(|setup| (setup.turn.port_min, setup.turn.port_max) = (50_000, 50_000));
    for (taken, missing) in [(1, 1), (2, 2)] {
        let mut world = one_port();
        Client::new("198.51.100.1:1000").allocate_with(&mut world, |builder| {
            builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[taken, 0, 0, 0]);
        });
        let mut client = Client::new("198.51.100.1:1001");
        assert_half(&dual(&mut world, &mut client), missing, 508);
        let other = dual(&mut world, &mut Client::new("198.51.100.1:1002"));
        assert_eq!(other.result(), Err(508), "no family has a port left");
        world.advance(secs(700));
        assert_no_leak(&world);
    }
}

#[test]
fn a_half_whose_socket_cannot_be_opened_is_missing_with_508() {
    let mut world = World::new();
    world.open_failures.push_back(OpenError::Exhausted);
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let request = client.signed(Method::Allocate, |builder| {
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    let reply = client.exchange(&mut world, &request).unwrap();
    assert_half(&reply, 1, 508);
    assert_eq!(client.exchange(&mut world, &request).unwrap().bytes, reply.bytes, "a retransmission says the same");
    assert_eq!(client.permit(&mut world, &[PEER]).result(), Err(443), "there is no IPv4 half");
    world.open_failures.extend([OpenError::Exhausted, OpenError::Exhausted]);
    assert_eq!(dual(&mut world, &mut Client::new("198.51.100.1:1001")).result(), Err(508));
    world.advance(secs(700));
    assert_no_leak(&world);
}

#[test]
fn halves_are_refreshed_and_expire_apart() {
    // Section 8.1: "Deleting a single allocation destroys any permissions or channels associated with that particular
    // allocation; it MUST NOT affect any permissions or channels associated with allocations for the other address
    // family."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let reply = dual(&mut world, &mut client);
    let (v4, v6) = (reply.relay_of(Family::V4), reply.relay_of(Family::V6));
    assert_eq!(refresh(&mut world, &mut client, 2, 1200).lifetime(), 1200);
    world.advance(secs(590));
    client.bind(&mut world, 0x4000, PEER);
    client.bind(&mut world, 0x4001, PEER_V6);
    world.advance(secs(10) - TICK);
    assert!(world.peer_sends(PEER, v4, b"last"));
    assert_eq!(client.received(&mut world).len(), 1);
    world.jump(TICK);
    client.channel_data(&mut world, 0x4000, b"too late");
    client.channel_data(&mut world, 0x4001, b"in time");
    world.peer_sends(PEER, v4, b"too late");
    world.peer_sends(PEER_V6, v6, b"in time");
    assert_eq!(world.sent().len(), 1);
    assert_eq!(client.received(&mut world), [Received::Channel { number: 0x4001, data: b"in time".to_vec() }]);
    assert_eq!(client.permit(&mut world, &[PEER]).result(), Err(443), "the half is gone though no timer has run");
    assert_eq!(client.bind(&mut world, 0x4000, PEER).result(), Err(443));
    assert_eq!(refresh(&mut world, &mut client, 1, 600).result(), Err(443));
    assert_eq!(client.refresh(&mut world, Some(1200)).result(), Ok(()));
    world.peer_sends(PEER, v4, b"no revival");
    assert!(client.received(&mut world).is_empty());
    world.advance(secs(1));
    assert_eq!(world.sockets.len(), 1);
    let closed = world.events.iter().filter(|event| matches!(event, Effect::ChannelClosed { .. })).count();
    assert_eq!(closed, 1, "the other half's channel stays");
    assert!(world.ended().is_empty());
}

#[test]
fn one_half_is_released_alone() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let reply = dual(&mut world, &mut client);
    client.bind(&mut world, 0x4000, PEER);
    client.bind(&mut world, 0x4001, PEER_V6);
    let request = client.signed(Method::Refresh, |builder| {
        builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[1, 0, 0, 0]).u32(AttributeType::LIFETIME, 0);
    });
    for attempt in ["first", "retransmission"] {
        let reply = client.exchange(&mut world, &request).unwrap();
        assert_eq!((reply.result(), reply.lifetime()), (Ok(()), 0), "{attempt}");
    }
    assert_eq!(world.sockets.len(), 1);
    assert_eq!(refresh(&mut world, &mut client, 1, 600).result(), Err(443));
    assert!(world.peer_sends(PEER_V6, reply.relay_of(Family::V6), b"six"));
    assert_eq!(client.received(&mut world), [Received::Channel { number: 0x4001, data: b"six".to_vec() }]);
    assert_eq!(refresh(&mut world, &mut client, 2, 0).result(), Ok(()));
    assert_eq!(world.ended().len(), 1);
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn permissions_of_a_released_half_make_room() {
    let mut world = World::with(|setup| setup.turn.limits.permissions_per_allocation = 2);
    let mut client = Client::new("198.51.100.1:1000");
    dual(&mut world, &mut client);
    assert_eq!(client.permit(&mut world, &["9.9.9.1:1", "9.9.9.2:1"]).result(), Ok(()));
    assert_eq!(client.permit(&mut world, &[PEER_V6]).result(), Err(403));
    refresh(&mut world, &mut client, 1, 0);
    assert_eq!(client.permit(&mut world, &[PEER_V6, "[2620:fe::9]:1"]).result(), Ok(()));
}

#[test]
fn a_refresh_without_family_refreshes_and_releases_both() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    dual(&mut world, &mut client);
    world.advance(secs(599));
    assert_eq!(client.refresh(&mut world, None).lifetime(), 600);
    world.advance(secs(599));
    assert_eq!(world.sockets.len(), 2);
    assert_eq!(client.refresh(&mut world, Some(0)).lifetime(), 0);
    assert_eq!(world.sockets.len(), 0);
    world.advance(secs(60));
    assert_no_leak(&world);
}
