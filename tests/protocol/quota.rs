//! Quotas: 486 (Allocation Quota Reached), and what they count.

use std::net::SocketAddr;

use ferryd::address::ClientAddr;
use ferryd::turn::settings::Limits;

use crate::harness::{Client, Signed, World, assert_no_leak, secs};

fn named(world: &World, port: u16, name: &str) -> Client {
    Client::new(&format!("198.51.100.1:{port}")).time_limited(&format!("{}{name}", world.unix() + 3600))
}

#[test]
fn more_allocations_of_a_user_than_the_limit_are_rejected_with_486() {
    // RFC 8656 section 7.2, step 10: "The server is free to define this allocation quota any way it wishes, but it
    // SHOULD define it based on the username used to authenticate the request and not on the client's transport
    // address."
    let mut world = World::with(|setup| setup.turn.limits.allocations_per_user = 2);
    let mut first = named(&world, 1000, ":alice");
    assert_eq!(first.allocate(&mut world).result(), Ok(()));
    assert_eq!(named(&world, 1001, ":alice").allocate(&mut world).result(), Ok(()));
    let reply = named(&world, 1002, ":alice").allocate(&mut world);
    assert_eq!((reply.result(), reply.signed()), (Err(486), Signed::Sha1));
    assert_eq!(named(&world, 1003, ":bob").allocate(&mut world).result(), Ok(()), "somebody else");
    world.advance(secs(1));
    assert_eq!(
        named(&world, 1004, ":alice").allocate(&mut world).result(),
        Err(486),
        "the name counts, not the expiry"
    );
    first.refresh(&mut world, Some(0));
    assert_eq!(named(&world, 1005, ":alice").allocate(&mut world).result(), Ok(()), "a place has come back");
    world.advance(secs(700));
    assert_no_leak(&world);
}

#[test]
fn names_that_many_may_share_are_counted_where_a_limit_is_set() {
    // Field notes, section 4: caps per user are off for nameless and shared users; an operator who sets one means them.
    let mut world = World::new();
    let two = |world: &mut World, client: Client| {
        [1, 2].map(|port: u16| {
            let mut client = client.clone();
            client.at.client = ClientAddr::new(SocketAddr::new(client.at.client.ip(), port));
            client.allocate(world).result()
        })
    };
    let limit = Limits::DEFAULT.allocations_per_user;
    for port in 1000..=1000 + limit as u16 {
        assert_eq!(named(&world, port, "").allocate(&mut world).result(), Ok(()));
        assert_eq!(Client::new(&format!("198.51.100.2:{port}")).allocate(&mut world).result(), Ok(()));
    }
    let mut world = World::with(|setup| setup.turn.limits.allocations_per_user = 1);
    assert_eq!(two(&mut world, Client::new("198.51.100.2:1")), [Ok(()), Err(486)]);
    let nameless = named(&world, 1, "");
    assert_eq!(two(&mut world, nameless), [Ok(()), Err(486)]);
}

#[test]
fn a_retransmission_and_a_mismatch_are_no_further_allocation() {
    let mut world = World::with(|setup| setup.turn.limits.allocations_per_user = 1);
    let mut client = named(&world, 1000, ":alice");
    assert_eq!(client.allocate(&mut world).result(), Ok(()));
    assert_eq!(client.allocate(&mut world).result(), Err(437), "and not 486");
}

#[test]
fn the_limits_of_all_and_of_a_source_prefix_hold_across_workers() {
    let mut world = World::with(|setup| {
        setup.workers = 2;
        setup.turn.limits.allocations_total = 3;
        setup.turn.limits.allocations_per_prefix = 2;
    });
    let mut at = |address: &str, worker| Client::new(address).on_worker(worker).allocate(&mut world).result();
    assert_eq!(at("[2001:db8:7::1]:1", 0), Ok(()));
    assert_eq!(at("[2001:db8:7::2]:1", 1), Ok(()));
    assert_eq!(at("[2001:db8:7:0:ffff::3]:1", 0), Err(486), "a /64 is one subscriber");
    assert_eq!(at("[2001:db8:7:1::1]:1", 0), Ok(()));
    assert_eq!(at("198.51.100.1:1", 1), Err(486), "four are too many for all");
}

#[test]
fn places_come_back_however_an_allocation_ends() {
    let mut world = World::with(|setup| setup.turn.limits.allocations_per_user = 1);
    let mut client = named(&world, 1000, ":alice");
    for end in 0..4 {
        match end {
            0 => _ = client.refresh(&mut world, Some(0)),
            1 => world.advance(secs(600)),
            2 => world.client_closes(0, &client.at),
            _ => {
                world.open_failures.push_back(ferryd::turn::OpenError::Exhausted);
                assert_eq!(client.allocate(&mut world).result(), Err(508));
            }
        }
        assert_eq!(client.allocate(&mut world).result(), Ok(()), "after end {end}");
        if end == 2 {
            world.client_closes(0, &client.at);
        }
    }
}
