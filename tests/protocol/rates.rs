//! How much data allocations and users may send and be sent.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferryd::turn::settings::DataRate;
use ferryd::turn::{Buckets, DropReason, SharedBuckets};

use crate::harness::{Client, PEER, World, peer, secs};

const CHANNEL: u16 = 0x4000;

fn packets(count: u32) -> DataRate {
    DataRate { packets_per_second: count, ..DataRate::UNLIMITED }
}

/// A client with a channel to the peer, and its relayed address.
fn call(world: &mut World, port: u16, name: &str) -> (Client, std::net::SocketAddr) {
    let user = format!("{}:{name}", world.unix() + 3600);
    let mut client = Client::new(&format!("198.51.100.1:{port}")).time_limited(&user);
    let relay = client.allocate(world).relay();
    assert_eq!(client.bind(world, CHANNEL, PEER).result(), Ok(()));
    (client, relay)
}

/// Sends so many datagrams up; returns how many went on.
fn up(world: &mut World, client: &Client, count: usize, len: usize) -> usize {
    (0..count).for_each(|_| client.channel_data(world, CHANNEL, &vec![0; len]));
    world.sent().len()
}

/// Sends so many datagrams down; returns how many arrived.
fn down(world: &mut World, client: &Client, relay: std::net::SocketAddr, count: usize, len: usize) -> usize {
    (0..count).for_each(|_| _ = world.peer_sends(PEER, relay, &vec![0; len]));
    client.received(world).len()
}

#[test]
fn an_allocation_carries_its_rate_in_each_direction_and_the_excess_is_counted() {
    let mut world = World::with(|setup| setup.turn.limits.allocation_rate = packets(50));
    let (client, relay) = call(&mut world, 1000, "alice");
    assert_eq!(up(&mut world, &client, 200, 10), 50);
    assert_eq!(down(&mut world, &client, relay, 200, 10), 50);
    assert_eq!(world.dropped(DropReason::DataRate), 300);
    let (other, _) = call(&mut world, 1001, "alice");
    assert_eq!(up(&mut world, &other, 20, 10), 20, "another allocation");
    world.advance(secs(1));
    assert_eq!(up(&mut world, &client, 200, 10), 50);
}

#[test]
fn bytes_are_those_of_the_payload() {
    let rate = DataRate { bytes_per_second: 10_000, packets_per_second: 0 };
    let mut world = World::with(|setup| setup.turn.limits.allocation_rate = rate);
    let (client, relay) = call(&mut world, 1000, "alice");
    assert_eq!(up(&mut world, &client, 100, 1000), 10);
    assert_eq!(down(&mut world, &client, relay, 100, 500), 20);
}

#[test]
fn the_allocations_of_a_named_user_share_the_users_rate() {
    let mut world = World::with(|setup| {
        setup.workers = 2;
        setup.turn.limits.user_rate = packets(50);
    });
    let (first, _) = call(&mut world, 1000, "alice");
    let (second, relay) = call(&mut world, 1001, "alice");
    let (other, _) = call(&mut world, 1002, "bob");
    assert_eq!(up(&mut world, &first, 40, 10), 40);
    assert_eq!(up(&mut world, &second, 40, 10), 10);
    assert_eq!(down(&mut world, &second, relay, 40, 10), 40, "the other direction");
    assert_eq!(up(&mut world, &other, 40, 10), 40, "another user");
}

#[test]
fn a_name_that_many_may_share_has_no_rate_and_a_reload_sets_one() {
    let mut world = World::with(|setup| setup.turn.limits.user_rate = packets(1));
    let mut client = Client::new("198.51.100.1:1000");
    assert_eq!(client.allocate(&mut world).result(), Ok(()));
    assert_eq!(client.bind(&mut world, CHANNEL, PEER).result(), Ok(()));
    assert_eq!(up(&mut world, &client, 100, 10), 100);
    world.reload(|setup| setup.turn.limits.allocation_rate = packets(10));
    assert_eq!(up(&mut world, &client, 100, 10), 10);
    assert_eq!(client.refresh(&mut world, None).result(), Ok(()), "requests are no data");
}

#[test]
fn the_kernel_is_told_of_an_allocations_rate_and_not_given_what_a_user_shares() {
    let path = |name: &str, allocation_rate: DataRate, user_rate: DataRate| {
        let mut world = World::with(|setup| {
            (setup.turn.limits.allocation_rate, setup.turn.limits.user_rate) = (allocation_rate, user_rate);
        });
        let (_client, relay) = call(&mut world, 1000, name);
        let (worker, id) = world.sockets[&ferryd::address::RelayedAddr::new(relay)];
        world.workers[worker].channel_path(id, peer(PEER)).map(|path| path.rate)
    };
    let unlimited = DataRate::UNLIMITED;
    assert_eq!(path("alice", unlimited, unlimited), Some(unlimited));
    assert_eq!(path("alice", packets(50), unlimited), Some(packets(50)));
    assert_eq!(path("alice", packets(50), packets(50)), None);
}

/// What another data path takes from the same buckets counts, and what was taken before it came.
#[test]
fn another_data_path_takes_from_the_same_buckets() {
    #[derive(Debug)]
    struct Elsewhere(Arc<Buckets>);
    impl SharedBuckets for Elsewhere {
        fn buckets(&self) -> &Buckets {
            &self.0
        }
    }
    let mut world = World::with(|setup| setup.turn.limits.allocation_rate = packets(50));
    let (client, relay) = call(&mut world, 1000, "alice");
    assert_eq!(up(&mut world, &client, 20, 10), 20);
    let (worker, id) = world.sockets[&ferryd::address::RelayedAddr::new(relay)];
    let (buckets, epoch) = (Arc::<Buckets>::default(), world.now().instant);
    world.workers[worker].share_meter(id.allocation(), Box::new(Elsewhere(Arc::clone(&buckets))), epoch);
    buckets[0][0].fetch_add(200_000_000, Ordering::Relaxed);
    assert_eq!(up(&mut world, &client, 40, 10), 20, "20 of 50 were taken before, and 10 elsewhere");
    assert_eq!(down(&mut world, &client, relay, 60, 10), 50);
    assert_eq!(buckets[1][0].load(Ordering::Relaxed), 1_000_000_000);
    world.advance(secs(1));
    assert_eq!(up(&mut world, &client, 200, 10), 50);
}
