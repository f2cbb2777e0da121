//! What the server tells of its open channels, for a data path beside the sockets: until when, and where to.

use std::time::Duration;

use ferryd::address::{PeerAddr, RelayedAddr, Transport};
use ferryd::turn::effect::ChannelPath;
use ferryd::turn::{Beyond, Effect, RelayId, Server};

use crate::harness::{Client, PEER, TICK, World, addr, peer, secs};
use crate::mobility::{allocate, come_back, mobile};

const CHANNEL: u16 = 0x4000;
const OTHER_PORT: &str = "9.9.9.9:7001";

/// Somebody carries data besides.
fn told_world() -> World {
    let mut world = World::new();
    world.workers.iter_mut().for_each(Server::tell_of_paths);
    world
}

/// How often it was told since the last time that a channel is open for longer.
fn extended(world: &mut World) -> usize {
    let is_extended = |event: &Effect| matches!(event, Effect::ChannelExtended { .. });
    world.events.drain(..).filter(is_extended).count()
}

/// The last that was told of a channel: whether it was opened just now, its relay, and until when it is open.
fn last(world: &World, channel: u16) -> (bool, RelayId, Duration) {
    let told = world.events.iter().rev().find_map(|event| {
        if let Effect::ChannelOpened { relay, channel: number, until, .. } = event {
            return (number.get() == channel).then_some((true, *relay, *until));
        }
        let Effect::ChannelExtended { relay, channel: number, until, .. } = event else { return None };
        (number.get() == channel).then_some((false, *relay, *until))
    });
    let (opened, relay, until) = told.expect("the channel was told of");
    (opened, relay, until.saturating_duration_since(world.now().instant))
}

fn until(world: &World) -> (bool, u64) {
    let (opened, _, until) = last(world, CHANNEL);
    (opened, until.as_secs())
}

fn path(world: &World, worker: usize, to: &str) -> Option<ChannelPath> {
    let (_, relay, _) = last(world, CHANNEL);
    world.workers[worker].channel_path(relay, peer(to))
}

fn relayed(text: &str) -> RelayedAddr {
    RelayedAddr::new(addr(text))
}

#[test]
fn a_channel_is_open_until_the_first_of_allocation_permission_and_channel_expires() {
    let mut world = told_world();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.bind(&mut world, CHANNEL, PEER);
    assert_eq!(until(&world), (true, 300), "the permission is the first to expire");
    world.advance(secs(250));
    client.permit(&mut world, &[PEER]);
    assert_eq!(until(&world), (false, 300));
    world.advance(secs(250));
    client.permit(&mut world, &[PEER]);
    assert_eq!(until(&world), (false, 100), "allocation and channel, both of 600 s");
    client.refresh(&mut world, None);
    assert_eq!(until(&world), (false, 100), "the channel");
    client.bind(&mut world, CHANNEL, PEER);
    assert_eq!(until(&world), (true, 300));
    client.refresh(&mut world, Some(3600));
    world.advance(secs(299));
    client.permit(&mut world, &["9.9.9.8:7000"]);
    assert_eq!(until(&world), (true, 1), "another peer's permission changes nothing");
}

#[test]
fn data_passes_until_the_instant_that_was_told_and_not_after() {
    let mut world = told_world();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.bind(&mut world, CHANNEL, PEER);
    let passes = |world: &mut World| {
        client.channel_data(world, CHANNEL, b"data");
        world.sent().len() == 1
    };
    let (.., left) = last(&world, CHANNEL);
    world.advance(left - TICK);
    assert!(passes(&mut world));
    world.advance(TICK);
    assert!(!passes(&mut world));
    // It opens again, as it is bound still.
    client.permit(&mut world, &[PEER]);
    assert_eq!(until(&world), (false, 300));
    client.channel_data(&mut world, CHANNEL, b"data");
    assert_eq!(world.sent().len(), 1);
}

#[test]
fn a_binding_refreshes_the_permission_of_the_peers_other_ports() {
    let mut world = told_world();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.bind(&mut world, CHANNEL, PEER);
    world.advance(secs(200));
    client.bind(&mut world, CHANNEL + 1, OTHER_PORT);
    assert_eq!(until(&world), (false, 300));
}

#[test]
fn the_path_leads_to_the_network() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut world = told_world();
        let mut client = Client::over("198.51.100.1:1000", transport);
        let relay = client.allocate(&mut world).relay();
        client.bind(&mut world, CHANNEL, PEER);
        let path = path(&world, 0, PEER).unwrap();
        assert_eq!((path.client, path.relayed), (client.at, RelayedAddr::new(relay)));
        assert_eq!(path.beyond, Beyond::Network);
        let (_, relay, _) = last(&world, CHANNEL);
        client.refresh(&mut world, Some(0));
        assert_eq!(world.workers[0].channel_path(relay, peer(PEER)), None);
    }
}

#[test]
fn the_path_to_another_client_names_both_relayed_addresses_as_each_is_known() {
    for workers in [1, 2] {
        for advertised in [false, true] {
            let mut world = World::with(|setup| {
                setup.workers = workers;
                setup.turn.relay_addresses.clear();
                setup.relay("10.0.0.5", advertised.then_some("203.0.113.5"));
                setup.turn.peers.own_addresses = ["10.0.0.5", "203.0.113.5"].map(|ip| ip.parse().unwrap()).to_vec();
            });
            let mut alice = Client::new("198.51.100.1:1000");
            let mut bob = Client::new("198.51.100.2:1000").on_worker(usize::from(workers) - 1);
            let of_alice = alice.allocate(&mut world).relay();
            let of_bob = bob.allocate(&mut world).relay();
            assert_eq!(alice.bind(&mut world, CHANNEL, &of_bob.to_string()).result(), Ok(()));
            let path = path(&world, 0, &of_bob.to_string()).unwrap();
            let bound = |public: std::net::SocketAddr| relayed(&format!("10.0.0.5:{}", public.port()));
            let expected = Beyond::Relay { relayed: bound(of_bob), from: PeerAddr::new(of_alice) };
            assert_eq!((path.relayed, path.beyond), (bound(of_alice), expected));
            // The other end is gone: what is at its address is none of the server's.
            bob.refresh(&mut world, Some(0));
            let (_, relay, _) = last(&world, CHANNEL);
            let path = world.workers[0].channel_path(relay, PeerAddr::new(of_bob)).unwrap();
            assert_eq!(path.beyond, Beyond::Nowhere);
        }
    }
}

#[test]
fn a_client_that_moves_takes_its_path_along() {
    let mut world = World::with(mobile);
    let mut before = Client::new("198.51.100.1:1000");
    let ticket = allocate(&mut world, &mut before);
    assert_eq!(before.bind(&mut world, CHANNEL, PEER).result(), Ok(()));
    let mut after = Client::new("198.51.100.77:2000");
    come_back(&mut world, &mut after, &ticket);
    assert_eq!(path(&world, 0, PEER).unwrap().client, before.at);
    after.channel_data(&mut world, CHANNEL, b"data");
    let (_, relay, _) = last(&world, CHANNEL);
    let moved = world
        .events
        .iter()
        .find_map(|event| if let Effect::ClientMoved { allocation, .. } = event { Some(*allocation) } else { None });
    assert_eq!(moved, Some(relay.allocation()));
    assert_eq!(path(&world, 0, PEER).unwrap().client, after.at);
}

/// What one request costs does not grow with the channels that its client has.
#[test]
fn a_permission_that_is_refreshed_all_the_time_is_told_of_once_a_second() {
    let mut world = told_world();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    for port in 0..50 {
        client.bind(&mut world, CHANNEL + port, &format!("9.9.9.9:{}", 7000 + port));
    }
    assert_eq!(extended(&mut world), 0, "each is told until when it is open as it is opened");
    for _ in 0..9 {
        world.advance(Duration::from_millis(100));
        client.permit(&mut world, &[PEER]);
        client.bind(&mut world, CHANNEL, PEER);
    }
    assert_eq!(extended(&mut world), 0);
    world.advance(Duration::from_millis(100));
    client.permit(&mut world, &["9.9.9.8:7000", PEER]);
    assert_eq!(extended(&mut world), 50);
    client.bind(&mut world, CHANNEL, PEER);
    client.permit(&mut world, &["9.9.9.8:7000"]);
    assert_eq!(extended(&mut world), 0);
}

#[test]
fn a_refresh_is_told_of_where_channels_feel_it() {
    let mut world = told_world();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.bind(&mut world, CHANNEL, PEER);
    client.refresh(&mut world, Some(3600));
    client.refresh(&mut world, Some(600));
    world.advance(secs(300));
    client.refresh(&mut world, None);
    assert_eq!(extended(&mut world), 0, "the permission ends before");
    world.advance(secs(301));
    client.bind(&mut world, CHANNEL, PEER);
    assert_eq!(until(&world), (true, 299), "the allocation ends before");
    client.refresh(&mut world, None);
    assert_eq!(until(&world), (false, 300));
}

#[test]
fn where_nobody_carries_data_besides_channels_are_told_of_as_they_are_bound() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.bind(&mut world, CHANNEL, PEER);
    world.advance(secs(200));
    client.permit(&mut world, &[PEER]);
    client.bind(&mut world, CHANNEL + 1, OTHER_PORT);
    assert_eq!(extended(&mut world), 0);
}
