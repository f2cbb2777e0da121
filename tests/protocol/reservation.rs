//! EVEN-PORT and RESERVATION-TOKEN (RFC 8656 sections 7.2, 18.7 and 18.10).

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Method};
use ferryd::turn::OpenError;

use crate::harness::{Client, Reply, TICK, World, assert_no_leak, secs};

fn even(world: &mut World, client: &mut Client, flags: u8) -> Reply {
    client.allocate_with(world, |builder| _ = builder.attribute(AttributeType::EVEN_PORT, &[flags]))
}

fn redeem(world: &mut World, client: &mut Client, token: &[u8]) -> Reply {
    client.allocate_with(world, |builder| _ = builder.attribute(AttributeType::RESERVATION_TOKEN, token))
}

#[test]
fn even_port_allocates_an_even_port() {
    // RFC 8656 section 7.2: "If the request contains an EVEN-PORT attribute with the R bit set to 0, then the server
    // allocates a relayed transport address with an even port number." Section 18.7: the RFFU field is "ignored on
    // reception".
    let mut world = World::new();
    for port in 1000..1020 {
        let mut client = Client::new(&format!("198.51.100.1:{port}"));
        let reply = even(&mut world, &mut client, 0x7F);
        assert_eq!(reply.relay().port() % 2, 0);
        assert!(!reply.has(AttributeType::RESERVATION_TOKEN));
    }
    assert_eq!(world.held.len(), 0);
}

#[test]
fn even_port_with_reservation_holds_the_next_port_for_its_token() {
    // "If the request contains an EVEN-PORT attribute with the R bit set to 1, then the server looks for a pair of port
    // numbers N and N+1 on the same IP address, where N is even. Port N is used in the current allocation, while the
    // relayed transport address with port N+1 is assigned a token and reserved for a future allocation."
    let mut world = World::new();
    let mut first = Client::new("198.51.100.1:1000");
    let reply = even(&mut world, &mut first, 0x80);
    let relay = reply.relay();
    assert_eq!(relay.port() % 2, 0);
    assert_eq!(reply.token().len(), 8);
    assert_eq!(world.held.len(), 1);
    // "it can use a different client IP address and port, a different transport protocol".
    let mut second = Client::over("[2001:db8:7::9]:5", Transport::Tls);
    let next = redeem(&mut world, &mut second, &reply.token()).relay();
    assert_eq!((next.ip(), next.port()), (relay.ip(), relay.port() + 1));
    assert_eq!(world.held.len(), 0);
    // One use.
    let mut third = Client::new("198.51.100.1:1002");
    assert_eq!(redeem(&mut world, &mut third, &reply.token()).result(), Err(508));
    first.refresh(&mut world, Some(0));
    second.refresh(&mut world, Some(0));
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn another_user_does_not_redeem_the_token() {
    let mut world = World::new();
    let mut first = Client::new("198.51.100.1:1000").time_limited("2000000000:carol");
    let reply = even(&mut world, &mut first, 0x80);
    for name in ["2000000000:mallory", "2000000000", "2000000001:mallory"] {
        let mut thief = Client::new("198.51.100.1:1001").time_limited(name);
        assert_eq!(redeem(&mut world, &mut thief, &reply.token()).result(), Err(508), "{name}");
    }
    assert_eq!(redeem(&mut world, &mut Client::new("198.51.100.1:1001"), &reply.token()).result(), Err(508));
    // Another credential of the same user, by another path.
    let mut second = Client::over("203.0.113.9:5", Transport::Tls).time_limited("2000000009:carol");
    assert_eq!(redeem(&mut world, &mut second, &reply.token()).relay().port(), reply.relay().port() + 1);
}

#[test]
fn another_worker_redeems_the_token() {
    // "Note that the reservation is a server-wide reservation".
    let mut world = World::with(|setup| setup.workers = 2);
    let reply = even(&mut world, &mut Client::new("198.51.100.1:1000"), 0x80);
    let mut other = Client::new("198.51.100.1:1001").on_worker(1);
    assert_eq!(redeem(&mut world, &mut other, &reply.token()).relay().port(), reply.relay().port() + 1);
    world.advance(secs(700));
    assert_no_leak(&world);
}

#[test]
fn a_reservation_is_held_for_thirty_seconds() {
    // "The server MUST hold this reservation for at least 30 seconds".
    let mut world = World::new();
    let mut first = Client::new("198.51.100.1:1000");
    let mut second = Client::new("198.51.100.1:1001");
    let token = even(&mut world, &mut first, 0x80).token();
    world.advance(secs(30) - TICK);
    assert_eq!(redeem(&mut world, &mut second, &token).result(), Ok(()));
    let mut third = Client::new("198.51.100.1:1002");
    let mut fourth = Client::new("198.51.100.1:1003");
    let token = even(&mut world, &mut third, 0x80).token();
    world.jump(secs(30));
    assert_eq!(redeem(&mut world, &mut fourth, &token).result(), Err(508), "expired though no timer has run");
    assert_eq!(world.held.len(), 1);
    world.advance(secs(0));
    assert_eq!(world.held.len(), 0, "closed when its time is over");
}

#[test]
fn a_reservation_outlives_the_allocation_that_made_it() {
    let mut world = World::new();
    let mut first = Client::new("198.51.100.1:1000");
    let reply = even(&mut world, &mut first, 0x80);
    first.refresh(&mut world, Some(0));
    let next = redeem(&mut world, &mut Client::new("198.51.100.1:1001"), &reply.token());
    assert_eq!(next.relay().port(), reply.relay().port() + 1);
}

#[test]
fn a_retransmission_repeats_the_token() {
    // "the server may need to store an indication of any reservation token returned in the original response so that
    // this may be returned in any retransmitted responses."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let request = client.signed(Method::Allocate, |builder| {
        builder
            .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
            .attribute(AttributeType::EVEN_PORT, &[0x80]);
    });
    let first = client.exchange(&mut world, &request).unwrap();
    assert_eq!(client.exchange(&mut world, &request).unwrap().token(), first.token());
    assert_eq!(world.held.len(), 1);
}

#[test]
fn a_retransmission_of_the_redeeming_request_repeats_its_success() {
    let mut world = World::new();
    let token = even(&mut world, &mut Client::new("198.51.100.1:1000"), 0x80).token();
    let mut client = Client::new("198.51.100.1:1001");
    client.challenge(&mut world);
    let request = client.signed(Method::Allocate, |builder| {
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        builder.attribute(AttributeType::RESERVATION_TOKEN, &token);
    });
    let first = client.exchange(&mut world, &request).unwrap();
    assert_eq!(first.bytes, client.exchange(&mut world, &request).unwrap().bytes);
}

#[test]
fn unknown_tokens_are_rejected_with_508() {
    // Step 5: "If the token is not valid for some reason, the server rejects the request with a 508 (Insufficient
    // Capacity) error."
    let mut world = World::new();
    assert_eq!(redeem(&mut world, &mut Client::new("198.51.100.1:1000"), &[7; 8]).result(), Err(508));
    assert_no_leak(&world);
}

#[test]
fn a_token_with_attributes_that_contradict_it_is_rejected_with_400() {
    // Step 5: "If yes, and the request also contains an EVEN-PORT or REQUESTED-ADDRESS-FAMILY or
    // ADDITIONAL-ADDRESS-FAMILY attribute, the server rejects the request with a 400 (Bad Request) error."
    let mut world = World::new();
    let token = even(&mut world, &mut Client::new("198.51.100.1:1000"), 0x80).token();
    let mut client = Client::new("198.51.100.1:1001");
    for (kind, value) in [
        (AttributeType::EVEN_PORT, &[0x00][..]),
        (AttributeType::EVEN_PORT, &[0x80]),
        (AttributeType::REQUESTED_ADDRESS_FAMILY, &[1, 0, 0, 0]),
        (AttributeType::REQUESTED_ADDRESS_FAMILY, &[9, 0, 0, 0]),
        (AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]),
    ] {
        let reply = client.allocate_with(&mut world, |builder| {
            builder.attribute(AttributeType::RESERVATION_TOKEN, &token).attribute(kind, value);
        });
        assert_eq!(reply.result(), Err(400), "{kind:?}");
    }
    assert_eq!(redeem(&mut world, &mut client, &token).result(), Ok(()), "the token was not used up");
}

#[test]
fn the_token_keeps_the_family_of_its_reservation() {
    let mut world = World::with(|setup| _ = setup.turn.relay_addresses.remove(0));
    let reply = Client::new("198.51.100.1:1000").allocate_with(&mut world, |builder| {
        builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
        builder.attribute(AttributeType::EVEN_PORT, &[0x80]);
    });
    let next = redeem(&mut world, &mut Client::new("198.51.100.1:1001"), &reply.token()).relay();
    assert_eq!((next.ip(), next.port()), (reply.relay().ip(), reply.relay().port() + 1));
}

#[test]
fn a_pair_that_cannot_be_had_is_rejected_with_508() {
    // Step 8: "If the server cannot satisfy the request, then the server rejects the request with a 508 (Insufficient
    // Capacity) error."
    let mut world = World::with(|setup| (setup.turn.port_min, setup.turn.port_max) = (50_001, 50_002));
    assert_eq!(even(&mut world, &mut Client::new("198.51.100.1:1000"), 0x80).result(), Err(508));
    assert_eq!(even(&mut world, &mut Client::new("198.51.100.1:1000"), 0x00).relay().port(), 50_002);
    assert_eq!(even(&mut world, &mut Client::new("198.51.100.1:1001"), 0x00).result(), Err(508));
    assert_eq!(Client::new("198.51.100.1:1001").allocate(&mut world).relay().port(), 50_001);
    assert_eq!(Client::new("198.51.100.1:1002").allocate(&mut world).result(), Err(508));
}

#[test]
fn a_pair_whose_ports_are_taken_outside_is_tried_elsewhere() {
    let mut world = World::new();
    world.open_failures.extend([OpenError::AddressInUse, OpenError::AddressInUse]);
    let mut client = Client::new("198.51.100.1:1000");
    let reply = even(&mut world, &mut client, 0x80);
    assert_eq!(reply.relay().port() % 2, 0);
    assert_eq!((world.attempts.len(), world.held.len()), (3, 1));
    client.refresh(&mut world, Some(0));
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn a_reserved_port_that_cannot_be_opened_is_rejected_with_508_and_no_other_port() {
    // Step 5: "the corresponding relayed transport address is still available".
    for error in [OpenError::AddressInUse, OpenError::Exhausted] {
        let mut world = World::new();
        let mut first = Client::new("198.51.100.1:1000");
        let token = even(&mut world, &mut first, 0x80).token();
        world.open_failures.push_back(error);
        let mut client = Client::new("198.51.100.1:1001");
        assert_eq!(redeem(&mut world, &mut client, &token).result(), Err(508), "{error:?}");
        first.refresh(&mut world, Some(0));
        world.advance(secs(60));
        assert_no_leak(&world);
    }
}

#[test]
fn a_client_that_leaves_while_its_pair_is_opened_leaves_nothing() {
    let mut world = World::new();
    let mut client = Client::over("198.51.100.1:1000", Transport::Tcp);
    client.challenge(&mut world);
    world.opens_wait = true;
    let request = client.signed(Method::Allocate, |builder| {
        builder
            .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
            .attribute(AttributeType::EVEN_PORT, &[0x80]);
    });
    client.send(&mut world, &request);
    world.client_closes(0, &client.at);
    world.open_pending();
    assert!(world.inbox(&client.at).is_empty());
    assert!(world.ended().is_empty(), "what nobody had has not ended");
    assert_no_leak(&world);
}

#[test]
fn reservations_count_towards_the_quota() {
    // A reservation holds a port as an allocation does, so it is paid for as one; redeeming it passes the place on.
    let mut world = World::with(|setup| setup.turn.limits.allocations_per_user = 2);
    let name = format!("{}:alice", world.unix() + 3600);
    let client = |port: u16| Client::new(&format!("198.51.100.1:{port}")).time_limited(&name);
    let mut first = client(1000);
    let token = even(&mut world, &mut first, 0x80).token();
    assert_eq!(client(1001).allocate(&mut world).result(), Err(486), "one allocation, one reservation");
    assert_eq!(redeem(&mut world, &mut client(1002), &token).result(), Ok(()));
    first.refresh(&mut world, Some(0));
    assert_eq!(even(&mut world, &mut client(1003), 0x80).result(), Err(486), "room for one and not for two");
    assert_eq!(client(1004).allocate(&mut world).result(), Ok(()));
    world.advance(secs(700));
    assert_no_leak(&world);
}

#[test]
fn a_token_is_not_used_up_by_a_request_that_the_quota_refuses() {
    let mut world = World::with(|setup| setup.turn.limits.allocations_per_prefix = 2);
    let token = even(&mut world, &mut Client::new("198.51.100.1:1000"), 0x80).token();
    let client = |port: u16| Client::new(&format!("198.51.100.2:{port}"));
    let (mut first, mut second) = (client(1001), client(1002));
    first.allocate(&mut world).relay();
    second.allocate(&mut world).relay();
    assert_eq!(redeem(&mut world, &mut client(1003), &token).result(), Err(486));
    first.refresh(&mut world, Some(0));
    assert_eq!(redeem(&mut world, &mut client(1003), &token).result(), Ok(()));
}
