//! Clients whose datagrams come another way than before, as when the proxy that announces them takes another port.

use ferryd::turn::{Effect, Forward, Route};

use crate::harness::{Client, PEER, World, peer};
use crate::mobility::{AWAY, HOME, allocate, come_back, reaches_peer};

/// No client of the harness has it.
const OTHER_WAY: Route = Route(u64::MAX);

/// The way that data of a peer takes to the only client.
fn way(world: &mut World) -> Route {
    let (worker, relay) = *world.sockets.values().next().expect("a relay");
    let now = world.now();
    match world.workers[worker].handle_peer(now, relay, peer(PEER), 100) {
        Some(Forward::ToClient { route, .. }) => route,
        other => panic!("the client is reached: {other:?}"),
    }
}

#[test]
fn data_takes_the_way_that_the_last_datagram_came() {
    let mut world = World::new();
    let mut client = Client::new(HOME);
    client.allocate(&mut world).relay();
    client.permit(&mut world, &[PEER]);
    let before = way(&mut world);
    assert_ne!(before, OTHER_WAY);
    world.workers[0].handle_rerouted(&client.at, OTHER_WAY);
    assert_eq!(way(&mut world), OTHER_WAY);
    world.workers[0].handle_rerouted(&Client::new(AWAY).at, before);
    assert_eq!(way(&mut world), OTHER_WAY, "nobody else's way is taken");
    world.workers[0].handle_rerouted(&client.at, before);
    assert_eq!(way(&mut world), before);
}

#[test]
fn a_client_that_moves_is_reached_by_the_way_that_its_new_five_tuple_came_last() {
    let mut world = crate::mobility::world();
    let mut client = Client::new(HOME);
    let ticket = allocate(&mut world, &mut client);
    client.permit(&mut world, &[PEER]);
    let before = way(&mut world);
    let mut moved = Client::new(AWAY);
    assert_eq!(come_back(&mut world, &mut moved, &ticket).result(), Ok(()));
    assert_eq!(way(&mut world), before, "it is reached where it was until it speaks");
    world.workers[0].handle_rerouted(&moved.at, OTHER_WAY);
    assert_eq!(way(&mut world), before);
    assert!(reaches_peer(&mut world, &moved));
    let told = world
        .events
        .iter()
        .find_map(|event| if let Effect::ClientMoved { route, .. } = event { Some(*route) } else { None });
    assert_eq!((told, way(&mut world)), (Some(OTHER_WAY), OTHER_WAY));
}
