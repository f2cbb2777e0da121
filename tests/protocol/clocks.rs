//! A wall clock that jumps: it says when credentials and nonces end, and nothing else.

use crate::harness::{Client, PEER, World, assert_no_leak, secs};

const DAY: i64 = 86_400;

/// Asks until the nonce is good: a client takes the new one of a 438 and asks once more.
fn refresh(world: &mut World, client: &mut Client) -> Result<(), u16> {
    let first = client.refresh(world, None);
    if first.result() != Err(438) {
        return first.result();
    }
    client.learn(&first);
    client.refresh(world, None).result()
}

#[test]
fn calls_go_on_whatever_happens_to_the_wall_clock() {
    let jumps = [3600, -3600, DAY, -2 * DAY, 400 * DAY, -400 * DAY, 40_000 * DAY, -60_000 * DAY];
    let mut world = World::new();
    let username = format!("{}:carol", world.unix() + 60);
    let mut client = Client::new("198.51.100.1:1000").time_limited(&username);
    let relayed = client.allocate(&mut world).relay();
    client.permit(&mut world, &[PEER]);
    client.bind(&mut world, 0x4000, PEER);
    for jump in jumps {
        world.set_wall_clock(jump);
        world.advance(secs(100));
        // The permission and the channel have been kept by refreshes alone.
        assert_eq!(
            refresh(&mut world, &mut client),
            Ok(()),
            "after {jump} s, though the credential has ended or not begun"
        );
        assert_eq!(client.permit(&mut world, &[PEER]).result(), Ok(()));
        assert_eq!(client.bind(&mut world, 0x4000, PEER).result(), Ok(()));
        assert!(world.peer_sends(PEER, relayed, b"media"));
        assert_eq!(world.inbox(&client.at).len(), 1, "after {jump} s");
        world.advance(secs(200));
    }
    // Lifetimes are the monotonic clock's: nothing is left when they are over, and nothing before.
    world.set_wall_clock(-DAY);
    world.advance(secs(299));
    assert_eq!(world.workers[0].allocations(), 1);
    world.set_wall_clock(DAY);
    world.advance(secs(102));
    assert_eq!(world.workers[0].allocations(), 0);
    assert_no_leak(&world);
}

#[test]
fn new_allocations_follow_the_wall_clock() {
    let mut world = World::new();
    let username = format!("{}:carol", world.unix() + 3600);
    let mut client = Client::new("198.51.100.1:1000").time_limited(&username);
    world.set_wall_clock(DAY);
    assert_eq!(client.allocate(&mut world).result(), Err(401), "it has ended by that clock");
    world.set_wall_clock(-DAY);
    let nonce_of_the_future = client.allocate(&mut world);
    assert_eq!(nonce_of_the_future.result(), Err(438), "a nonce of tomorrow is no good today");
    client.learn(&nonce_of_the_future);
    assert_eq!(client.allocate(&mut world).result(), Ok(()));
    world.set_wall_clock(-400 * DAY);
    let mut other = Client::new("198.51.100.1:1001").time_limited(&username);
    assert_eq!(other.allocate(&mut world).result(), Ok(()), "before its time is over");
}
