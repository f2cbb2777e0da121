//! Refresh (RFC 8656 section 8.2).

use ferryd::stun::{AttributeType, Method};
use ferryd::turn::effect::EndReason;

use crate::harness::{Client, PEER, Signed, TICK, World, assert_no_leak, secs};

#[test]
fn refresh_sets_the_time_to_expiry_and_answers_it() {
    // RFC 8656 section 8.2: "if the request contains a LIFETIME attribute and the attribute value is zero, then the
    // "desired lifetime" is zero. Otherwise, [..] the server computes the minimum of the client's requested lifetime
    // and the server's maximum allowed lifetime. If this computed value is greater than the default lifetime, then the
    // "desired lifetime" is the computed value. Otherwise, the "desired lifetime" is the default lifetime."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    for (requested, granted) in
        [(None, 600), (Some(1), 600), (Some(601), 601), (Some(3600), 3600), (Some(100_000), 3600), (Some(600), 600)]
    {
        let reply = client.refresh(&mut world, requested);
        assert_eq!((reply.result(), reply.lifetime(), reply.signed()), (Ok(()), granted, Signed::Sha1));
    }
    world.advance(secs(600) - TICK);
    assert_eq!(world.workers[0].allocations(), 1);
    world.advance(secs(1));
    assert_eq!(world.workers[0].allocations(), 0);
}

#[test]
fn refresh_with_zero_takes_effect_at_once() {
    // "If the "desired lifetime" is zero, then the request succeeds and the allocation is deleted."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    client.bind(&mut world, 0x4000, PEER);
    let reply = client.refresh(&mut world, Some(0));
    assert_eq!((reply.result(), reply.lifetime()), (Ok(()), 0));
    assert!(!world.peer_sends(PEER, relay, b"nobody there"));
    client.channel_data(&mut world, 0x4000, b"nobody there");
    client.indicate(&mut world, PEER, b"nobody there");
    assert!(world.sent().is_empty());
    assert_eq!(world.ended()[0].reason, EndReason::Released);
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn a_second_refresh_with_zero_is_rejected_with_437_unless_it_is_the_same() {
    // "A retransmitted Refresh request with a zero "desired lifetime" will cause a 437 (Allocation Mismatch) response
    // if the allocation has already been deleted, but the client will treat this as equivalent to a success response".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    let request = client.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0));
    let first = client.exchange(&mut world, &request).unwrap();
    assert_eq!(client.exchange(&mut world, &request).unwrap().bytes, first.bytes);
    assert_eq!(client.refresh(&mut world, Some(0)).result(), Err(437));
    world.advance(secs(39));
    assert_eq!(client.exchange(&mut world, &request).unwrap().bytes, first.bytes);
    world.advance(secs(1));
    assert_eq!(client.exchange(&mut world, &request).unwrap().result(), Err(437), "forgotten after 40 s");
    assert_no_leak(&world);
}

#[test]
fn a_late_duplicate_of_a_release_does_not_end_the_next_allocation() {
    // RFC 8489 section 6.3.1: "the overall state on the client and server is identical to the case where only the
    // response to the original retransmission is received".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    let request = client.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0));
    client.exchange(&mut world, &request);
    let relay = client.allocate(&mut world).relay();
    assert_eq!(client.exchange(&mut world, &request).unwrap().lifetime(), 0);
    assert!(world.peer_sends(PEER, relay, b"still there"));
}

#[test]
fn a_late_duplicate_of_an_allocate_makes_no_allocation_after_the_release() {
    // RFC 8489 section 6.3.1: the server responds to retransmissions such that "the overall state on the client and
    // server is identical". Requests of live calls overtake those of strangers, so that a release may be served before
    // a duplicate of its Allocate that came earlier.
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let allocate = client.signed(Method::Allocate, |builder| {
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    });
    assert_eq!(client.exchange(&mut world, &allocate).unwrap().result(), Ok(()));
    assert_eq!(client.refresh(&mut world, Some(0)).result(), Ok(()));
    world.advance(secs(39));
    assert_eq!(client.exchange(&mut world, &allocate).unwrap().result(), Err(437));
    assert_eq!(world.workers[0].allocations(), 0);
    // Another Allocate is none of it, and what comes after it neither.
    assert_eq!(client.allocate(&mut world).result(), Ok(()));
    assert_eq!(client.refresh(&mut world, Some(0)).result(), Ok(()));
    world.advance(secs(41));
    assert_eq!(client.exchange(&mut world, &allocate).unwrap().result(), Ok(()), "forgotten");
}

#[test]
fn a_retransmitted_release_gets_its_success_though_the_credential_has_expired() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000").time_limited(&format!("{}:alice", world.unix() + 60));
    client.allocate(&mut world).relay();
    world.advance(secs(120));
    let request = client.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0));
    let first = client.exchange(&mut world, &request).unwrap();
    assert_eq!(client.exchange(&mut world, &request).unwrap().bytes, first.bytes);
    assert_eq!(client.refresh(&mut world, Some(0)).result(), Err(401), "another request is not excused");
    assert_eq!(client.allocate(&mut world).result(), Err(401));
}

#[test]
fn each_of_several_releases_is_remembered_for_its_own_forty_seconds() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let mut release = |world: &mut World| {
        client.allocate(world).relay();
        let request = client.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0));
        client.exchange(world, &request);
        request
    };
    let first = release(&mut world);
    world.advance(secs(30));
    let second = release(&mut world);
    world.advance(secs(15));
    assert_eq!(client.exchange(&mut world, &first).unwrap().result(), Err(437));
    assert_eq!(client.exchange(&mut world, &second).unwrap().result(), Ok(()));
}

#[test]
fn refresh_of_another_family_is_rejected_with_443() {
    // "If the server receives a Refresh Request with a REQUESTED-ADDRESS-FAMILY attribute and the attribute value does
    // not match the address family of the allocation, the server MUST reply with a 443 (Peer Address Family Mismatch)
    // Refresh error response."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    let mut refresh = |value: &[u8]| {
        let reply = client.request(&mut world, Method::Refresh, |builder| {
            builder.u32(AttributeType::LIFETIME, 0).attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, value);
        });
        reply.result()
    };
    assert_eq!(refresh(&[2, 0, 0, 0]), Err(443));
    assert_eq!(refresh(&[3, 0, 0, 0]), Err(443));
    assert_eq!(refresh(&[1]), Err(400));
    assert_eq!(refresh(&[1, 0, 0, 0]), Ok(()));
}

#[test]
fn malformed_lifetimes_are_rejected_with_400() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    for value in [&[][..], &[0], &[0; 3], &[0; 5], &[0; 8]] {
        let reply = client
            .request(&mut world, Method::Refresh, |builder| _ = builder.attribute(AttributeType::LIFETIME, value));
        assert_eq!((reply.result(), reply.signed()), (Err(400), Signed::Sha1), "{value:?}");
    }
    assert_eq!(world.workers[0].allocations(), 1);
}

#[test]
fn refresh_ignores_attributes_that_are_not_its_own() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    let reply = client.request(&mut world, Method::Refresh, |builder| {
        builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[1]).attribute(AttributeType::EVEN_PORT, &[]);
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[6]).attribute(AttributeType::RESERVATION_TOKEN, &[]);
    });
    assert_eq!(reply.result(), Ok(()));
}

#[test]
fn a_refresh_leaves_permissions_and_channels_as_they_are() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.permit(&mut world, &[PEER]);
    world.advance(secs(299));
    client.refresh(&mut world, Some(3600));
    world.advance(secs(1));
    client.indicate(&mut world, PEER, b"expired");
    assert!(world.sent().is_empty());
}
