//! Relay sockets: opened before success is claimed, tried elsewhere when a port is taken, closed without a trace.

use std::collections::BTreeSet;

use ferryd::address::Transport;
use ferryd::stun::Method;
use ferryd::stun::{AttributeType, ErrorCode};
use ferryd::turn::OpenError;
use ferryd::turn::effect::EndReason;

use crate::harness::{Client, PEER, World, assert_no_leak, secs};

#[test]
fn a_port_that_something_else_has_is_tried_elsewhere() {
    let mut world = World::new();
    world.open_failures.extend([OpenError::AddressInUse; 16]);
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    assert_eq!(world.attempts.len(), 17);
    assert_eq!(world.attempts.last().unwrap().socket_addr(), relay);
    client.refresh(&mut world, Some(0));
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn after_too_many_taken_ports_the_answer_is_508() {
    // RFC 8656 section 19: 508 "could be due to the server having no more relayed transport addresses available at that
    // time".
    let mut world = World::new();
    world.open_failures.extend([OpenError::AddressInUse; 17]);
    let mut client = Client::new("198.51.100.1:1000");
    assert_eq!(client.allocate(&mut world).result(), Err(508));
    assert_no_leak(&world);
    assert_eq!(client.allocate(&mut world).result(), Ok(()), "the next attempt starts afresh");
}

#[test]
fn a_server_out_of_descriptors_answers_508_at_once() {
    let mut world = World::new();
    world.open_failures.push_back(OpenError::Exhausted);
    let mut client = Client::new("198.51.100.1:1000");
    assert_eq!(client.allocate(&mut world).result(), Err(508));
    assert_eq!(world.attempts.len(), 1);
    assert!(world.ended().is_empty(), "what nobody had has not ended");
    assert_no_leak(&world);
}

#[test]
fn a_range_whose_ports_are_all_taken_outside_answers_508() {
    let mut world = World::with(|setup| (setup.turn.port_min, setup.turn.port_max) = (50_000, 50_003));
    world.open_failures.extend([OpenError::AddressInUse; 32]);
    assert_eq!(Client::new("198.51.100.1:1000").allocate(&mut world).result(), Err(508));
    world.open_failures.clear();
    assert_no_leak(&world);
}

#[test]
fn every_port_is_used_and_comes_back() {
    let mut world = World::with(|setup| (setup.turn.port_min, setup.turn.port_max) = (50_000, 50_009));
    for round in 0..3 {
        let mut ports = BTreeSet::new();
        let mut clients: Vec<_> =
            (0..10).map(|port| Client::new(&format!("198.51.100.{round}:{}", 1000 + port))).collect();
        for client in &mut clients {
            ports.insert(client.allocate(&mut world).relay().port());
        }
        assert_eq!(ports, (50_000..=50_009).collect());
        assert_eq!(Client::new("198.51.100.9:1").allocate(&mut world).result(), Err(508));
        for client in &mut clients {
            client.refresh(&mut world, Some(0));
        }
    }
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn several_relay_addresses_are_all_used() {
    let mut world = World::with(|setup| {
        (setup.turn.port_min, setup.turn.port_max) = (50_000, 50_001);
        setup.relay("192.0.2.2", Some("203.0.113.2"));
    });
    let relays: BTreeSet<_> = (1000..1004)
        .map(|port| Client::new(&format!("198.51.100.1:{port}")).allocate(&mut world).relay().ip().to_string())
        .collect();
    assert_eq!(relays.into_iter().collect::<Vec<_>>(), ["192.0.2.1", "203.0.113.2"]);
}

#[test]
fn clients_are_told_the_advertised_address() {
    let mut world = World::with(|setup| {
        setup.turn.relay_addresses.clear();
        setup.relay("10.0.0.5", Some("203.0.113.5"));
    });
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    assert_eq!(relay.ip().to_string(), "203.0.113.5");
    let bound = world.sockets.keys().next().unwrap().socket_addr();
    assert_eq!((bound.ip().to_string(), bound.port()), ("10.0.0.5".to_owned(), relay.port()));
    client.permit(&mut world, &[PEER]);
    client.indicate(&mut world, PEER, b"out");
    assert_eq!(world.sent()[0].from, bound);
    client.refresh(&mut world, Some(0));
    assert_eq!(world.ended()[0].relayed, [relay]);
}

#[test]
fn a_connection_that_closes_ends_its_allocation() {
    let mut world = World::new();
    let mut client = Client::over("198.51.100.1:1000", Transport::Tls);
    client.allocate(&mut world).relay();
    world.client_closes(0, &client.at);
    assert_eq!(world.ended()[0].reason, EndReason::ClientClosed);
    world.client_closes(0, &client.at);
    assert_eq!(world.ended().len(), 1);
    assert_no_leak(&world);
}

#[test]
fn a_connection_that_closes_while_its_socket_is_opened_leaves_nothing() {
    for failure in [None, Some(OpenError::AddressInUse), Some(OpenError::Exhausted)] {
        let mut world = World::new();
        let mut client = Client::over("198.51.100.1:1000", Transport::Tcp);
        client.challenge(&mut world);
        world.opens_wait = true;
        world.open_failures.extend(failure);
        let request = client.signed(Method::Allocate, |builder| {
            builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        });
        client.send(&mut world, &request);
        world.client_closes(0, &client.at);
        world.open_pending();
        assert!(world.inbox(&client.at).is_empty());
        assert_no_leak(&world);
    }
}

#[test]
fn a_stopped_server_closes_everything() {
    let mut world = World::new();
    for port in 1000..1010 {
        let mut client = Client::new(&format!("198.51.100.1:{port}"));
        client.allocate_with(&mut world, |builder| _ = builder.attribute(AttributeType::EVEN_PORT, &[0x80])).relay();
        client.bind(&mut world, 0x4000, PEER);
    }
    world.stop();
    assert_eq!(world.ended().len(), 10);
    assert!(world.ended().iter().all(|ended| ended.reason == EndReason::Stopped));
    assert_no_leak(&world);
}

#[test]
fn refused_allocations_are_counted_by_code() {
    let mut world = World::new();
    world.open_failures.push_back(OpenError::Exhausted);
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world);
    let counters = world.counters();
    assert_eq!(counters.refused(Method::Allocate, ErrorCode::Unauthenticated), 1);
    assert_eq!(counters.succeeded(Method::Allocate), 1, "its success was on its way");
}
