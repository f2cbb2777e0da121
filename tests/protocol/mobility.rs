//! Mobility (RFC 8016): clients that come back on another 5-tuple, on the same worker and on another one.

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Builder, Method};
use ferryd::turn::effect::EndReason;
use ferryd::turn::{DropReason, Effect};

use crate::harness::{Client, PEER, PEER_V6, Received, Reply, Setup, Signed, TICK, World, assert_no_leak, peer, secs};

pub(crate) const HOME: &str = "198.51.100.1:1000";
pub(crate) const AWAY: &str = "203.0.113.9:2000";
pub(crate) const THIRD: &str = "203.0.113.77:3000";

pub(crate) fn mobile(setup: &mut Setup) {
    (setup.turn.mobility, setup.workers) = (true, 3);
}

pub(crate) fn world() -> World {
    World::with(mobile)
}

pub(crate) fn ticket(reply: &Reply) -> Vec<u8> {
    assert_eq!(reply.result(), Ok(()));
    reply.value(AttributeType::MOBILITY_TICKET).expect("MOBILITY-TICKET")
}

pub(crate) fn write_ticket(builder: &mut Builder<'_>, ticket: &[u8]) {
    builder.attribute(AttributeType::MOBILITY_TICKET, ticket);
}

/// Allocates with a ticket and binds channel 0x4000 to the peer.
pub(crate) fn allocate(world: &mut World, client: &mut Client) -> Vec<u8> {
    let reply = client.allocate_with(world, |builder| write_ticket(builder, &[]));
    assert_eq!(client.bind(world, 0x4000, PEER).result(), Ok(()));
    ticket(&reply)
}

/// A Refresh with a ticket.
pub(crate) fn come_back(world: &mut World, client: &mut Client, ticket: &[u8]) -> Reply {
    client.request(world, Method::Refresh, |builder| write_ticket(builder, ticket))
}

/// Whether data of the client reaches the peer.
pub(crate) fn reaches_peer(world: &mut World, client: &Client) -> bool {
    client.channel_data(world, 0x4000, b"to peer");
    match &world.sent()[..] {
        [] => false,
        [sent] => (sent.to, &sent.bytes[..]) == (peer(PEER), b"to peer"),
        more => panic!("{more:?}"),
    }
}

/// Whether data of the peer reaches the client, and no one else's of `others`.
fn is_reached(world: &mut World, relay: std::net::SocketAddr, client: &Client, others: &[&Client]) -> bool {
    assert!(world.peer_sends(PEER, relay, b"to client"), "the relayed address stays");
    for other in others {
        assert!(other.received(world).is_empty());
    }
    match &client.received(world)[..] {
        [] => false,
        [received] => *received == Received::Channel { number: 0x4000, data: b"to client".to_vec() },
        more => panic!("{more:?}"),
    }
}

fn relay(world: &World) -> std::net::SocketAddr {
    let [address] = world.sockets.keys().collect::<Vec<_>>()[..] else { panic!("one relay") };
    address.socket_addr()
}

#[test]
fn a_client_moves_between_transports_and_workers() {
    // RFC 8016 section 3: "If the ticket is found to be valid, the TURN server will retain the same relayed
    // address/port for the new IP address/port allowing the client to continue using previous channel bindings".
    let transports = [Transport::Udp, Transport::Tcp, Transport::Tls];
    for from in transports {
        for to in transports {
            for worker in [0, 1] {
                let mut world = world();
                let mut before = Client::over(HOME, from);
                let old = allocate(&mut world, &mut before);
                let relay = relay(&world);
                let mut after = Client::over(AWAY, to).on_worker(worker);
                let reply = come_back(&mut world, &mut after, &old);
                assert_eq!((reply.result(), reply.lifetime(), reply.signed()), (Ok(()), 600, Signed::Sha1));
                assert_ne!(ticket(&reply), old, "\"The new ticket sent in the refresh response MUST be different\"");
                assert!(reaches_peer(&mut world, &after), "{from:?} to {to:?} on worker {worker}");
                assert!(is_reached(&mut world, relay, &after, &[&before]));
                assert_eq!(world.workers[0].allocations(), 1, "the allocation stays where it is");
                assert_eq!(after.permit(&mut world, &[PEER]).result(), Ok(()));
                assert_eq!(after.refresh(&mut world, Some(0)).result(), Ok(()));
                assert_eq!(world.ended()[0].client, after.at);
                world.advance(secs(60));
                assert_no_leak(&world);
            }
        }
    }
}

#[test]
fn the_old_five_tuple_works_until_data_comes_on_the_new_one() {
    // RFC 8016 section 3.2.2: "The TURN server MUST continue receiving and processing data on the old 5-tuple and MUST
    // continue transmitting data on the old-5 tuple until it receives a Send Indication or ChannelData message from the
    // client on the new 5-tuple [..]. After receiving any of those messages, a TURN server discards the old ticket and
    // the old 5-tuple associated with the old ticket from its state data."
    for worker in [0, 2] {
        for by_indication in [false, true] {
            let mut world = world();
            let mut before = Client::new(HOME);
            let old = allocate(&mut world, &mut before);
            let relay = relay(&world);
            let mut after = Client::new(AWAY).on_worker(worker);
            come_back(&mut world, &mut after, &old);
            for _ in 0..2 {
                assert!(is_reached(&mut world, relay, &before, &[&after]));
                assert!(reaches_peer(&mut world, &before));
                assert_eq!(before.refresh(&mut world, None).result(), Ok(()));
                // A Refresh may keep the new one open beside the old one.
                assert_eq!(after.refresh(&mut world, None).result(), Ok(()));
            }
            if by_indication {
                after.indicate(&mut world, PEER, b"data");
            } else {
                after.channel_data(&mut world, 0x4000, b"data");
            }
            assert_eq!(world.sent()[0].bytes, b"data");
            let moved = |effect: &Effect| {
                if let Effect::ClientMoved { from, to, .. } = effect { Some((*from, *to)) } else { None }
            };
            let moves: Vec<_> = world.events.iter().filter_map(moved).collect();
            assert_eq!(moves, [(before.at, after.at)]);
            assert!(is_reached(&mut world, relay, &after, &[&before]));
            assert!(!reaches_peer(&mut world, &before));
            assert_eq!(before.refresh(&mut world, None).result(), Err(437));
            assert!(reaches_peer(&mut world, &after));
        }
    }
}

#[test]
fn a_client_that_prepares_for_data_on_the_new_five_tuple_gets_it_there() {
    for worker in [0, 2] {
        for by_channel in [false, true] {
            let mut world = world();
            let mut before = Client::new(HOME);
            let old = allocate(&mut world, &mut before);
            let relay = relay(&world);
            let mut after = Client::new(AWAY).on_worker(worker);
            come_back(&mut world, &mut after, &old);
            // What is refused prepares for nothing.
            assert_eq!(after.permit(&mut world, &["127.0.0.1:1"]).result(), Err(403));
            assert_eq!(after.bind(&mut world, 0x4000, "127.0.0.1:1").result(), Err(400));
            assert!(is_reached(&mut world, relay, &before, &[&after]));
            let reply =
                if by_channel { after.bind(&mut world, 0x4000, PEER) } else { after.permit(&mut world, &[PEER]) };
            assert_eq!(reply.result(), Ok(()));
            assert!(is_reached(&mut world, relay, &after, &[&before]));
            assert!(!reaches_peer(&mut world, &before));
        }
    }
}

#[test]
fn a_retransmission_of_the_refresh_gets_the_same_answer() {
    // "a server must retain the old STUN MOBILITY-TICKET attribute for a period of at least 30 seconds to be able to
    // recognize a retransmission of the Refresh request with the old STUN MOBILITY-TICKET attribute from the client."
    let mut world = world();
    let mut before = Client::new(HOME);
    let old = allocate(&mut world, &mut before);
    let mut after = Client::new(AWAY).on_worker(1);
    after.challenge(&mut world);
    let request = after.signed(Method::Refresh, |builder| write_ticket(builder, &old));
    let first = after.exchange(&mut world, &request).unwrap();
    assert_eq!(first.result(), Ok(()));
    for _ in 0..3 {
        world.advance(secs(10));
        assert_eq!(after.exchange(&mut world, &request).unwrap().bytes, first.bytes);
        assert!(reaches_peer(&mut world, &after));
    }
    world.advance(secs(10));
    assert_eq!(after.exchange(&mut world, &request).unwrap().result(), Err(437), "forgotten");
    assert!(reaches_peer(&mut world, &after));
}

#[test]
fn a_client_that_changes_its_mind_announces_another_five_tuple() {
    let mut world = world();
    let mut before = Client::new(HOME);
    let first = allocate(&mut world, &mut before);
    let relay = relay(&world);
    let mut abandoned = Client::new(AWAY).on_worker(1);
    let second = ticket(&come_back(&mut world, &mut abandoned, &first));
    let mut after = Client::over(THIRD, Transport::Tcp).on_worker(2);
    assert_eq!(come_back(&mut world, &mut after, &second).result(), Ok(()));
    assert!(!reaches_peer(&mut world, &abandoned));
    assert!(is_reached(&mut world, relay, &before, &[&abandoned, &after]));
    assert!(reaches_peer(&mut world, &after));
    assert!(is_reached(&mut world, relay, &after, &[&abandoned, &before]));
    assert_eq!(abandoned.allocate(&mut world).result(), Ok(()), "its 5-tuple is free");
}

#[test]
fn a_five_tuple_that_has_an_allocation_takes_no_other() {
    for worker in [0, 1] {
        let mut world = world();
        let first = allocate(&mut world, &mut Client::new(HOME));
        let mut busy = Client::new(AWAY).on_worker(worker);
        allocate(&mut world, &mut busy);
        assert_eq!(come_back(&mut world, &mut busy, &first).result(), Err(437));
        // One that another allocation has moved to.
        let mut moved = Client::new(THIRD).on_worker(2);
        let other = allocate(&mut world, &mut Client::new("198.51.100.1:1001").on_worker(1));
        assert_eq!(come_back(&mut world, &mut moved, &other).result(), Ok(()));
        assert_eq!(come_back(&mut world, &mut moved, &first).result(), Err(437));
        assert_eq!(moved.allocate(&mut world).result(), Err(437));
        assert_eq!(world.dropped(DropReason::NoAllocation), 0);
    }
}

#[test]
fn an_expired_credential_goes_on_after_a_move() {
    let mut world = world();
    let mut before = Client::new(HOME).time_limited(&format!("{}:carol", world.unix() + 60));
    let first = allocate(&mut world, &mut before);
    world.advance(secs(120));
    let mut after = Client { nonce: None, at: Client::new(AWAY).at, ..before.clone() }.on_worker(1);
    assert_eq!(come_back(&mut world, &mut after, &first).result(), Ok(()));
    assert_eq!(after.refresh(&mut world, None).result(), Ok(()));
}

#[test]
fn an_allocation_outlives_the_connection_of_its_client() {
    // RFC 8016 section 2: "Break Before Make: The old communication path is broken ("break") before new communication
    // can be created ("make")."
    for transport in [Transport::Tcp, Transport::Tls] {
        let mut world = world();
        let mut before = Client::over(HOME, transport);
        let first = allocate(&mut world, &mut before);
        let relay = relay(&world);
        world.client_closes(0, &before.at);
        assert!(world.peer_sends(PEER, relay, b"nobody there"));
        assert_eq!(world.dropped(DropReason::ClientAway), 1);
        let mut after = Client::new(AWAY).on_worker(1);
        let second = ticket(&come_back(&mut world, &mut after, &first));
        assert!(is_reached(&mut world, relay, &after, &[]), "there is no old 5-tuple to go on with");
        // The same 5-tuple by another connection is a new one.
        let mut again = Client::over(HOME, transport);
        assert_eq!(come_back(&mut world, &mut again, &second).result(), Ok(()));
        assert!(reaches_peer(&mut world, &again));
        world.client_closes(0, &again.at);
        assert_eq!(again.allocate(&mut world).result(), Ok(()), "a client may start afresh");
        again.refresh(&mut world, Some(0));
        world.advance(secs(600));
        assert_eq!(world.ended().last().unwrap().reason, EndReason::Expired);
        assert_no_leak(&world);
    }
}

#[test]
fn without_a_ticket_an_allocation_ends_with_its_connection() {
    let mut world = world();
    let mut client = Client::over(HOME, Transport::Tcp);
    client.allocate(&mut world).relay();
    world.client_closes(0, &client.at);
    assert_eq!(world.ended()[0].reason, EndReason::ClientClosed);
    let mut world = self::world();
    let mut client = Client::over(HOME, Transport::Tcp);
    allocate(&mut world, &mut client);
    world.reload(|setup| setup.turn.mobility = false);
    world.client_closes(0, &client.at);
    assert_eq!(world.ended()[0].reason, EndReason::ClientClosed, "mobility is off by now");
    assert_no_leak(&world);
}

#[test]
fn closing_either_connection_leaves_the_other() {
    // "or a message from the client to close the old connection (e.g., a TLS fatal alert or TCP RST)."
    let mut world = world();
    let mut before = Client::over(HOME, Transport::Tls);
    let first = allocate(&mut world, &mut before);
    let relay = relay(&world);
    let mut dropped = Client::over(AWAY, Transport::Tcp).on_worker(1);
    let second = ticket(&come_back(&mut world, &mut dropped, &first));
    assert_eq!(world.streams[&dropped.at], 0, "the stream is where the allocation is");
    world.client_closes(1, &dropped.at);
    assert!(is_reached(&mut world, relay, &before, &[&dropped]));
    let mut after = Client::over(THIRD, Transport::Tcp).on_worker(2);
    assert_eq!(come_back(&mut world, &mut after, &second).result(), Ok(()));
    assert!(is_reached(&mut world, relay, &before, &[&after]));
    world.client_closes(0, &before.at);
    assert!(is_reached(&mut world, relay, &after, &[&before]));
    assert!(reaches_peer(&mut world, &after));
    after.refresh(&mut world, Some(0));
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn a_client_may_release_its_allocation_from_where_it_has_come_to() {
    for worker in [0, 1] {
        let mut world = world();
        let mut before = Client::new(HOME);
        let first = allocate(&mut world, &mut before);
        let mut after = Client::new(AWAY).on_worker(worker);
        let reply = after.request(&mut world, Method::Refresh, |builder| {
            builder.u32(AttributeType::LIFETIME, 0);
            write_ticket(builder, &first);
        });
        assert_eq!((reply.result(), reply.lifetime()), (Ok(()), 0));
        assert!(!reply.has(AttributeType::MOBILITY_TICKET));
        world.advance(secs(60));
        assert_no_leak(&world);
    }
}

#[test]
fn halves_of_a_dual_allocation_move_together() {
    let mut world = world();
    let mut before = Client::new(HOME);
    let reply = before.allocate_with(&mut world, |builder| {
        builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
        write_ticket(builder, &[]);
    });
    before.permit(&mut world, &[PEER, PEER_V6]);
    let mut after = Client::new("[2001:db8:9::9]:2000").on_worker(1);
    come_back(&mut world, &mut after, &ticket(&reply));
    after.indicate(&mut world, PEER, b"data");
    for (from, relay) in [PEER, PEER_V6].into_iter().zip(reply.relayed()) {
        assert!(world.peer_sends(from, relay, b"data"));
        assert_eq!(after.received(&mut world).len(), 1, "{from}");
    }
}

#[test]
fn a_malformed_refresh_moves_nothing() {
    // "If the refresh request containing the MOBILITY-TICKET attribute does not succeed [..], then the client can
    // continue to exchange data on the old 5-tuple".
    let mut world = world();
    let mut before = Client::new(HOME);
    let first = allocate(&mut world, &mut before);
    let mut after = Client::new(AWAY).on_worker(1);
    let reply = after.request(&mut world, Method::Refresh, |builder| {
        builder.attribute(AttributeType::LIFETIME, &[0; 3]);
        write_ticket(builder, &first);
    });
    assert_eq!(reply.result(), Err(400));
    let reply = after.request(&mut world, Method::Refresh, |builder| {
        builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
        write_ticket(builder, &first);
    });
    assert_eq!(reply.result(), Err(443));
    assert!(!reaches_peer(&mut world, &after) && reaches_peer(&mut world, &before));
    assert_eq!(world.shared.mobility.usage(), (1, 0));
    assert_eq!(come_back(&mut world, &mut after, &first).result(), Ok(()), "the ticket is still good");
}

#[test]
fn tunnelled_clients_do_not_move_here() {
    // RFC 8656 section 21.4: "a TURN server MUST NOT accept Teredo or 6to4 addresses in these requests."
    let mut world = world();
    let first = allocate(&mut world, &mut Client::new(HOME));
    assert_eq!(come_back(&mut world, &mut Client::new("[2002:c000:204::1]:2000"), &first).result(), Err(403));
}

#[test]
fn allocations_that_have_moved_expire_and_stop_like_others() {
    for stopped in [false, true] {
        let mut world = world();
        let mut before = Client::new(HOME);
        let first = allocate(&mut world, &mut before);
        let mut after = Client::new(AWAY).on_worker(1);
        come_back(&mut world, &mut after, &first);
        let mut lost = Client::over(THIRD, Transport::Tcp);
        allocate(&mut world, &mut lost);
        world.client_closes(0, &lost.at);
        if stopped {
            world.stop();
        }
        world.advance(secs(600) - TICK);
        assert_eq!(world.workers[0].allocations(), if stopped { 0 } else { 2 });
        world.advance(secs(60));
        assert_no_leak(&world);
    }
}
