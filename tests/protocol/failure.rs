//! A worker that is gone in the middle of something: what was its own ends, and nothing else.

use ferryd::address::Family;
use ferryd::stun::{AttributeType, Method};
use ferryd::turn::DropReason;

use crate::harness::{Client, PEER, Received, World, addr, assert_no_leak, peer, secs};

fn world() -> World {
    World::with(|setup| {
        setup.workers = 2;
        setup.turn.mobility = true;
        setup.turn.peers.own_addresses = vec!["192.0.2.1".parse().unwrap()];
    })
}

#[test]
fn ports_quotas_reservations_and_tickets_of_a_worker_that_fails_come_back() {
    let mut world = world();
    let mut clients: Vec<_> = (1..=4).map(|index| Client::new(&format!("198.51.100.{index}:1000"))).collect();
    clients[0].allocate_with(&mut world, |builder| _ = builder.attribute(AttributeType::EVEN_PORT, &[0x80])).relay();
    let reply = clients[1].allocate_with(&mut world, |builder| {
        builder.attribute(AttributeType::MOBILITY_TICKET, &[]);
        builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    let ticket = reply.value(AttributeType::MOBILITY_TICKET).unwrap();
    clients[2].request(&mut world, Method::Refresh, |builder| {
        builder.attribute(AttributeType::MOBILITY_TICKET, &ticket);
    });
    assert_eq!(world.shared.mobility.usage(), (2, 1), "the client is about to move");
    // Its socket is being opened.
    clients[3].challenge(&mut world);
    world.opens_wait = true;
    let allocate = clients[3].signed(Method::Allocate, |builder| {
        builder
            .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
            .attribute(AttributeType::EVEN_PORT, &[0x80]);
    });
    clients[3].send(&mut world, &allocate);
    world.fail(0);
    assert_no_leak(&world);
    world.opens_wait = false;
    assert!(clients[3].allocate(&mut world).relay().is_ipv4(), "the worker that takes over serves its clients");
    assert_eq!(clients[0].refresh(&mut world, None).result(), Err(437));
    clients[3].refresh(&mut world, Some(0));
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn a_reservation_that_another_worker_has_redeemed_outlives_the_one_that_made_it() {
    let mut world = world();
    let (mut first, mut second) = (Client::new("198.51.100.1:1000"), Client::new("198.51.100.2:1000").on_worker(1));
    let reply = first.allocate_with(&mut world, |builder| _ = builder.attribute(AttributeType::EVEN_PORT, &[0x80]));
    let token = reply.value(AttributeType::RESERVATION_TOKEN).unwrap();
    second.challenge(&mut world);
    world.opens_wait = true;
    let redeem = second.signed(Method::Allocate, |builder| {
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        builder.attribute(AttributeType::RESERVATION_TOKEN, &token);
    });
    second.send(&mut world, &redeem);
    // The port is the second worker's before its socket is.
    let held = world.held.clone();
    world.fail(0);
    world.held = held;
    assert_eq!(world.shared.ports.usage(Family::V4).0, 1, "nobody else gets it meanwhile");
    world.open_pending();
    let relay = second.reply_to(&mut world, &redeem).unwrap().relay();
    assert_eq!(relay.port(), reply.relay().port() + 1);
    second.permit(&mut world, &[PEER]);
    world.peer_sends(PEER, relay, b"data");
    assert_eq!(second.received(&mut world), [Received::Data { from: addr(PEER), data: b"data".to_vec() }]);
    second.refresh(&mut world, Some(0));
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn nothing_late_reaches_the_allocations_of_the_worker_that_takes_over() {
    let mut world = world();
    let (mut lost, mut kept) = (Client::new("198.51.100.1:1000"), Client::new("198.51.100.2:1000").on_worker(1));
    let (of_lost, of_kept) = (lost.allocate(&mut world).relay(), kept.allocate(&mut world).relay());
    kept.permit(&mut world, &[&of_lost.to_string()]);
    let (_, relay) = world.sockets.values().copied().find(|(worker, _)| *worker == 0).unwrap();
    world.fail(0);
    kept.indicate(&mut world, &of_lost.to_string(), b"nobody there");
    assert_eq!(world.dropped(DropReason::ForbiddenPort), 1);
    // The same slot has a new owner, who permits the sender.
    let mut heir = Client::new("198.51.100.3:1000");
    let of_heir = heir.allocate(&mut world).relay();
    heir.permit(&mut world, &[&of_kept.to_string()]);
    let now = world.now();
    assert_eq!(world.workers[0].handle_neighbour(now, relay, peer(&of_kept.to_string()), 4), None);
    assert_eq!(world.workers[0].handle_peer(now, relay, peer(&of_kept.to_string()), 4), None);
    kept.permit(&mut world, &[&of_heir.to_string()]);
    kept.indicate(&mut world, &of_heir.to_string(), b"for the heir");
    assert_eq!(heir.received(&mut world), [Received::Data { from: of_kept, data: b"for the heir".to_vec() }]);
}
