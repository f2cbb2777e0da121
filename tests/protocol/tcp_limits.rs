//! How many connections with peers a TCP allocation has, how fast peers may connect, and how much data may pass.

use std::net::SocketAddr;

use ferryd::address::Transport;
use ferryd::turn::settings::DataRate;
use ferryd::turn::{DropReason, PeerConnectionId};

use crate::data_connections::bind;
use crate::harness::{Client, PEER, Setup, World, secs};
use crate::tcp_allocations::{HOME, allocate, allocated, connect, offered, refused};

const RATE: DataRate = DataRate { bytes_per_second: 10_000, packets_per_second: 5 };
const WITHOUT_LIMIT: (u64, u64) = (u64::MAX, u64::MAX);

/// Binds a connection to a stream of the client's host.
fn bound(world: &mut World, id: u32, port: u16) -> PeerConnectionId {
    let mut data = Client::over(&format!("198.51.100.1:{port}"), Transport::Tcp);
    assert_eq!(bind(world, &mut data, id).result(), Ok(()));
    PeerConnectionId(id)
}

/// How many bytes may pass over a connection now, to the peer and to the client.
fn room(world: &mut World, id: PeerConnectionId) -> (u64, u64) {
    let (worker, relay, now) = (world.connections[&id].worker, world.connections[&id].relay, world.now());
    let room = world.workers[worker].connection_room(now, relay);
    (room.to_peer, room.to_client)
}

fn limited(change: impl FnOnce(&mut Setup)) -> World {
    World::with(|setup| {
        offered(setup);
        change(setup);
    })
}

/// A client of a named user, whose time-limited username is nobody else's.
fn named(world: &mut World, at: &str, name: &str) -> Client {
    let user = format!("{}:{name}", world.unix() + 3600);
    let mut client = Client::over(at, Transport::Tcp).time_limited(&user);
    allocate(world, &mut client);
    client
}

/// The named user's connection with a peer, bound.
fn named_bound(world: &mut World, client: &mut Client, peer: &str, port: u16) -> PeerConnectionId {
    let id = connect(world, client, peer);
    let at = Client::over(&format!("198.51.100.1:{port}"), Transport::Tcp).at;
    let mut data = Client { at, ..client.clone() };
    assert_eq!(bind(world, &mut data, id).result(), Ok(()));
    PeerConnectionId(id)
}

#[test]
fn connections_and_those_that_wait_are_bounded_and_more_are_rejected_with_403() {
    let mut world = World::with(|setup| {
        offered(setup);
        setup.turn.limits.peer_connections_per_allocation = 20;
    });
    let (mut client, relay) = allocated(&mut world);
    client.permit(&mut world, &["8.8.8.8:1"]);
    let waiting: Vec<_> =
        (0..16).map(|port| connect(&mut world, &mut client, &format!("9.9.9.9:{}", 7000 + port))).collect();
    assert_eq!(refused(&mut world, &mut client, "9.9.9.9:8000"), 403, "16 wait for their ConnectionBind");
    assert!(world.peer_connects("8.8.8.8:1", relay).is_none());
    for (id, port) in waiting.into_iter().zip(2000..) {
        bound(&mut world, id, port);
    }
    for port in 8000..8004 {
        connect(&mut world, &mut client, &format!("9.9.9.9:{port}"));
    }
    assert_eq!(refused(&mut world, &mut client, "9.9.9.9:8004"), 403, "20 in all");
    assert!(world.peer_connects("8.8.8.8:2", relay).is_none());
    assert_eq!(world.dropped(DropReason::TooManyConnections), 2);
    assert!(client.received(&mut world).is_empty(), "the client hears nothing of them");
    world.advance(secs(31));
    assert_eq!(world.connections.len(), 16, "those that waited are closed");
    connect(&mut world, &mut client, "9.9.9.9:8004");
}

#[test]
fn a_peer_that_connects_in_a_loop_is_announced_50_times_a_second() {
    let mut world = limited(|_| {});
    let (mut client, relay) = allocated(&mut world);
    client.permit(&mut world, &["8.8.8.8:1", "8.8.4.4:1"]);
    let storm = |world: &mut World, relay: SocketAddr, from: &str| {
        (0..500_u16).filter(|port| attempt(world, relay, &format!("{from}:{}", 1000 + port))).count()
    };
    assert_eq!(storm(&mut world, relay, "8.8.8.8"), 50);
    assert_eq!(world.inbox(&client.at).len(), 50, "one indication for each");
    assert_eq!(storm(&mut world, relay, "8.8.4.4"), 0, "another peer of the same allocation");
    assert_eq!(world.dropped(DropReason::ConnectionRate), 950);
    // Peers without permission use up nothing, and another allocation has its own.
    assert_eq!(storm(&mut world, relay, "1.1.1.1"), 0);
    assert_eq!(world.dropped(DropReason::NoPermission), 500);
    let mut other = Client::over("198.51.100.2:1000", Transport::Tcp);
    let other_relay = allocate(&mut world, &mut other);
    other.permit(&mut world, &["8.8.8.8:1"]);
    assert!(attempt(&mut world, other_relay, "8.8.8.8:1"));
    // Connections of the client itself go on.
    connect(&mut world, &mut client, PEER);
    world.advance(secs(1));
    assert_eq!(storm(&mut world, relay, "8.8.8.8"), 50);
    world.advance(secs(60));
    assert_eq!(storm(&mut world, relay, "8.8.8.8"), 50, "what was not used is not saved");
}

/// A peer connects and resets; whether its connection was kept.
fn attempt(world: &mut World, relay: SocketAddr, from: &str) -> bool {
    let kept = world.peer_connects(from, relay);
    if let Some(id) = kept {
        world.peer_closes(id);
    }
    kept.is_some()
}

#[test]
fn data_connections_share_the_rate_of_their_allocation() {
    let mut world = limited(|setup| setup.turn.limits.allocation_rate = RATE);
    let (mut client, _) = allocated(&mut world);
    let [one, two] = [(PEER, 2000), ("9.9.9.9:7001", 2001)].map(|(peer, port)| {
        let id = connect(&mut world, &mut client, peer);
        bound(&mut world, id, port)
    });
    assert_eq!(room(&mut world, one), (10_000, 10_000), "in each direction, and packets are not counted");
    world.bytes_pass(one, 8000, 100);
    assert_eq!(room(&mut world, two), (2000, 9900));
    // A round that was begun is passed to its end, and owed.
    world.bytes_pass(two, 4000, 0);
    assert_eq!(room(&mut world, one), (0, 9900));
    world.advance(secs(1));
    assert_eq!(room(&mut world, one), (8000, 10_000));
    let mut other = Client::over("198.51.100.2:1000", Transport::Tcp);
    allocate(&mut world, &mut other);
    let id = connect(&mut world, &mut other, PEER);
    let other = bound(&mut world, id, 2002);
    assert_eq!(room(&mut world, other), (10_000, 10_000), "another allocation");
    world.reload(|setup| setup.turn.limits.allocation_rate = DataRate::UNLIMITED);
    assert_eq!(room(&mut world, one), WITHOUT_LIMIT);
}

#[test]
fn data_connections_and_datagrams_share_the_rate_of_their_user() {
    let mut world = limited(|setup| setup.turn.limits.user_rate = DataRate { packets_per_second: 0, ..RATE });
    let mut alice = named(&mut world, HOME, "alice");
    let by_tcp = named_bound(&mut world, &mut alice, PEER, 2000);
    let user = format!("{}:alice", world.unix() + 3600);
    let mut by_udp = Client::new("198.51.100.3:1000").time_limited(&user);
    by_udp.allocate(&mut world).relay();
    assert_eq!(by_udp.bind(&mut world, 0x4000, PEER).result(), Ok(()));
    world.bytes_pass(by_tcp, 7000, 0);
    (0..10).for_each(|_| by_udp.channel_data(&mut world, 0x4000, &[0; 1000]));
    assert_eq!((world.sent().len(), world.dropped(DropReason::DataRate)), (3, 7));
    assert_eq!(room(&mut world, by_tcp), (0, 10_000));
    let mut bob = named(&mut world, "198.51.100.2:1000", "bob");
    let of_bob = named_bound(&mut world, &mut bob, PEER, 2001);
    assert_eq!(room(&mut world, of_bob), (10_000, 10_000), "another user");
    // A name that many may share has no rate of its own.
    let mut shared = Client::over("198.51.100.4:1000", Transport::Tcp);
    allocate(&mut world, &mut shared);
    let id = connect(&mut world, &mut shared, PEER);
    let of_many = bound(&mut world, id, 2002);
    assert_eq!(room(&mut world, of_many), WITHOUT_LIMIT);
}
