//! Tickets (RFC 8016 section 3): who gets one, and which are good.

use ferryd::address::Transport;
use ferryd::auth::settings::Secret;
use ferryd::stun::{AttributeType, Method};

use crate::harness::{BOB, Client, Signed, World, assert_no_leak, secs};
use crate::mobility::{AWAY, HOME, THIRD, allocate, come_back, mobile, reaches_peer, ticket, world, write_ticket};

#[test]
fn a_ticket_is_asked_for_with_a_ticket_of_no_length() {
    // RFC 8016 section 3.1.2: "If the server can successfully process the request and create an allocation, the server
    // replies with a success response that includes a STUN MOBILITY-TICKET attribute."
    let mut world = world();
    let mut client = Client::new(HOME);
    client.challenge(&mut world);
    let request = client.signed(Method::Allocate, |builder| {
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        write_ticket(builder, &[]);
    });
    let reply = client.exchange(&mut world, &request).unwrap();
    let characters = ticket(&reply);
    assert!(characters.len() == 32 && characters.iter().all(u8::is_ascii_graphic), "what coturn's client has room for");
    assert!(reply.bytes.len() < 548, "section 3.1.2: the path MTU is unknown");
    assert_eq!(client.exchange(&mut world, &request).unwrap().bytes, reply.bytes, "a retransmission");
    let mut plain = Client::new("198.51.100.1:1001");
    assert!(!plain.allocate(&mut world).has(AttributeType::MOBILITY_TICKET), "only who asks gets one");
    let mut other = Client::new("198.51.100.1:1002");
    assert_ne!(allocate(&mut world, &mut other), ticket(&reply));
}

#[test]
fn a_ticket_in_an_allocate_is_rejected_with_400() {
    // "If the MOBILITY-TICKET attribute is included and has a non-zero length, then the server will generate an error
    // response with an error code of 400 (Bad Request)."
    let mut world = world();
    let mut client = Client::new(HOME);
    for value in [&[0][..], &[0; 40]] {
        let reply = client.allocate_with(&mut world, |builder| write_ticket(builder, value));
        assert_eq!((reply.result(), reply.signed()), (Err(400), Signed::Sha1));
    }
    assert_eq!(world.workers[0].allocations(), 0);
}

#[test]
fn where_mobility_is_off_tickets_are_rejected_with_405() {
    // "If the MOBILITY-TICKET attribute is included, and has a length of zero, but TURN session mobility is forbidden
    // by local policy, the server will reject the request with the new error code 405 (Mobility Forbidden)." Section
    // 3.2.2: "the server configuration changed to forbid mobility [..], then the server rejects the Refresh request
    // with a 405 (Mobility Forbidden) error".
    let mut world = World::new();
    let mut client = Client::new(HOME);
    let reply = client.allocate_with(&mut world, |builder| write_ticket(builder, &[]));
    assert_eq!((reply.result(), reply.signed()), (Err(405), Signed::Sha1));
    assert_eq!(reply.reason(), "Mobility Forbidden");
    assert_eq!(client.allocate(&mut world).result(), Ok(()));

    let mut world = crate::mobility::world();
    let mut client = Client::new(HOME);
    let ticket = allocate(&mut world, &mut client);
    world.reload(|setup| setup.turn.mobility = false);
    let mut moved = Client::new(AWAY);
    assert_eq!(come_back(&mut world, &mut moved, &ticket).result(), Err(405));
    assert_eq!(client.refresh(&mut world, None).result(), Ok(()), "the allocation goes on");
}

#[test]
fn an_old_ticket_is_good_for_nothing_but_a_retransmission() {
    // "The old ticket can only be used for the purposes of retransmission. If the client wants to refresh its
    // allocation with a new server-reflexive transport address, it MUST use the new ticket."
    let mut world = world();
    let mut before = Client::new(HOME);
    let first = allocate(&mut world, &mut before);
    let mut after = Client::new(AWAY).on_worker(1);
    let second = ticket(&come_back(&mut world, &mut after, &first));
    let mut third = Client::new(THIRD).on_worker(2);
    assert_eq!(come_back(&mut world, &mut third, &first).result(), Err(437));
    assert_eq!(come_back(&mut world, &mut after, &first).result(), Err(437), "another transaction");
    assert!(reaches_peer(&mut world, &after));
    let newest = ticket(&come_back(&mut world, &mut third, &second));
    assert!(newest != first && newest != second);
    assert!(reaches_peer(&mut world, &third) && !reaches_peer(&mut world, &after));
    assert_eq!(come_back(&mut world, &mut before, &newest).result(), Ok(()), "and back home");
    assert!(reaches_peer(&mut world, &before) && !reaches_peer(&mut world, &third));
    before.refresh(&mut world, Some(0));
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn tickets_that_are_not_ours_are_rejected_with_400() {
    // "If the ticket is invalid, then the server MUST reject the request with a 400 (Bad Request) error."
    let mut world = world();
    let mut before = Client::new(HOME);
    let ticket = allocate(&mut world, &mut before);
    let mut foreign = World::with(|setup| {
        mobile(setup);
        setup.auth.nonce_key = Secret::new([1; 32]);
    });
    let foreign_ticket = allocate(&mut foreign, &mut Client::new(HOME));
    let mut after = Client::new(AWAY);
    let mut changed = ticket.clone();
    changed[15] ^= 1;
    for value in [&[][..], &[b'A'; 32], &ticket[..31], &changed, &foreign_ticket] {
        let reply = come_back(&mut world, &mut after, value);
        assert_eq!((reply.result(), reply.signed()), (Err(400), Signed::Sha1), "{value:?}");
    }
    assert_eq!(come_back(&mut world, &mut after, &ticket).result(), Ok(()));
}

#[test]
fn a_ticket_from_the_five_tuple_of_the_allocation_is_rejected_with_400() {
    // "If the source IP address and port of the Refresh request with the STUN MOBILITY-TICKET attribute is the same as
    // the stored 5-tuple allocation, then the TURN server rejects the request with a 400 (Bad Request) error."
    let mut world = world();
    let mut before = Client::new(HOME);
    let first = allocate(&mut world, &mut before);
    assert_eq!(come_back(&mut world, &mut before, &first).result(), Err(400));
    let mut after = Client::new(AWAY).on_worker(1);
    let second = ticket(&come_back(&mut world, &mut after, &first));
    assert_eq!(come_back(&mut world, &mut after, &second).result(), Err(400));
    assert_eq!(come_back(&mut world, &mut before, &second).result(), Err(400), "stored as well");
    assert_eq!(before.refresh(&mut world, None).result(), Ok(()));
}

#[test]
fn a_ticket_of_an_allocation_that_is_gone_is_rejected_with_437() {
    // "If this 5-tuple obtained does not identify an existing allocation, then the server MUST reject the request with
    // a 437 (Allocation Mismatch) error."
    let mut world = world();
    let mut before = Client::new(HOME);
    let ticket = allocate(&mut world, &mut before);
    let mut after = Client::new(AWAY).on_worker(1);
    after.challenge(&mut world);
    world.jump(secs(600));
    assert_eq!(come_back(&mut world, &mut after, &ticket).result(), Err(437), "expired and not yet cleared away");
    world.run_timers();
    assert_eq!(come_back(&mut world, &mut after, &ticket).result(), Err(437), "cleared away");
    let ticket = allocate(&mut world, &mut before);
    before.refresh(&mut world, Some(0));
    assert_eq!(come_back(&mut world, &mut after, &ticket).result(), Err(437), "released");
    allocate(&mut world, &mut before);
    assert_eq!(come_back(&mut world, &mut after, &ticket).result(), Err(437), "another one has its slot");
}

#[test]
fn another_user_with_the_ticket_is_rejected_with_441() {
    // "identify that it is the same user that had previously created the TURN allocation. If the above check is not
    // successful, then the server MUST reject the request with a 441 (Wrong Credentials) error."
    for worker in [0, 1] {
        let mut world = world();
        let mut before = Client::new(HOME);
        let first = allocate(&mut world, &mut before);
        let mut bob = Client::new(AWAY).user("bob", BOB).on_worker(worker);
        let reply = come_back(&mut world, &mut bob, &first);
        assert_eq!((reply.result(), reply.signed()), (Err(441), Signed::Sha1));
        let mut stranger = Client::new(THIRD).user("alice", "guessed").on_worker(worker);
        assert_eq!(come_back(&mut world, &mut stranger, &first).result(), Err(401));
        assert_eq!(bob.allocate(&mut world).result(), Ok(()), "its 5-tuple is free");
        assert!(reaches_peer(&mut world, &before));
        assert_eq!(come_back(&mut world, &mut Client::new(THIRD), &first).result(), Ok(()), "the ticket is still good");
    }
}

#[test]
fn strangers_cannot_find_a_worker_by_guessing_and_leave_nothing() {
    let mut world = world();
    let mut before = Client::new(HOME);
    let first = allocate(&mut world, &mut before);
    let mut stranger = Client::over(AWAY, Transport::Tcp).on_worker(1);
    for value in [&[b'A'; 32][..], &first[..20]] {
        let bytes = stranger.unsigned(Method::Refresh, |builder| write_ticket(builder, value));
        assert_eq!(stranger.exchange(&mut world, &bytes).unwrap().result(), Err(401));
    }
    assert!(world.streams.is_empty());
    assert_eq!(world.shared.mobility.usage(), (1, 0));
}
