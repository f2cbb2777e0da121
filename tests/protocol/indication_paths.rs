//! What the server tells of peers without a channel, for a data path beside the sockets: that indications reach them, and
//! until when.

use std::time::Duration;

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Method};
use ferryd::turn::{Effect, RelayId};

use crate::dual::dual;
use crate::harness::{Client, PEER, PEER_V6, TICK, World, peer, route, secs};

const OTHER_PORT: &str = "9.9.9.9:7001";

/// A client with an allocation, whose worker tells of indications.
fn start() -> (World, Client) {
    let mut world = World::new();
    world.workers[0].tell_of_paths();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    (world, client)
}

/// What was told of relayed indications since this was asked last: the relay, the peer, and for how long from now.
fn told(world: &mut World) -> Vec<(RelayId, String, Duration)> {
    let now = world.now().instant;
    let told = std::mem::take(&mut world.events).into_iter().filter_map(|event| {
        let Effect::IndicationRelayed { relay, peer, until } = event else { return None };
        Some((relay, peer.to_string(), until.saturating_duration_since(now)))
    });
    told.collect()
}

/// How often it was told since this was asked last that what is known of an allocation's peers is to be asked for.
fn changes(world: &mut World) -> usize {
    let is_change = |event: &Effect| matches!(event, Effect::PermissionsChanged { .. });
    std::mem::take(&mut world.events).iter().filter(|event| is_change(event)).count()
}

/// For how long indications are relayed from now on.
fn left(world: &World, relay: RelayId, to: &str) -> Option<Duration> {
    let until = world.workers[0].indications_until(relay, peer(to))?;
    Some(until.saturating_duration_since(world.now().instant))
}

#[test]
fn each_relayed_indication_tells_until_when_more_are_relayed() {
    let (mut world, mut client) = start();
    client.indicate(&mut world, PEER, b"before there is a permission");
    assert_eq!(told(&mut world), []);
    client.permit(&mut world, &[PEER]);
    for to in [PEER, OTHER_PORT, PEER] {
        client.indicate(&mut world, to, b"data");
        let [(relay, reached, left)] = &told(&mut world)[..] else { panic!("told once") };
        assert_eq!((&reached[..], *left), (to, secs(300)));
        assert_eq!(self::left(&world, *relay, to), Some(*left));
    }
    world.advance(secs(250));
    client.permit(&mut world, &[PEER]);
    world.advance(secs(250));
    client.permit(&mut world, &[PEER]);
    client.indicate(&mut world, PEER, b"data");
    let (relay, _, left) = told(&mut world).remove(0);
    assert_eq!(left, secs(100), "the allocation is the first to expire");
    world.sent().clear();
    world.advance(left - TICK);
    client.indicate(&mut world, PEER, b"in time");
    world.advance(TICK);
    client.indicate(&mut world, PEER, b"too late");
    assert_eq!(world.sent().iter().map(|sent| &sent.bytes[..]).collect::<Vec<_>>(), [b"in time"]);
    assert_eq!(self::left(&world, relay, PEER), None);
}

#[test]
fn nobody_is_told_who_has_not_asked() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.permit(&mut world, &[PEER]);
    client.indicate(&mut world, PEER, b"data");
    client.refresh(&mut world, None);
    world.advance(secs(301));
    client.refresh(&mut world, Some(0));
    assert_eq!((told(&mut world), changes(&mut world)), (vec![], 0));
}

#[test]
fn whatever_moves_or_ends_a_permission_is_told() {
    let (mut world, mut client) = start();
    client.permit(&mut world, &[PEER, "9.9.9.8:7000"]);
    client.indicate(&mut world, PEER, b"data");
    let relay = told(&mut world)[0].0;
    assert_eq!(left(&world, relay, "9.9.9.8:7001"), Some(secs(300)), "for every port");
    assert_eq!(left(&world, relay, "9.9.9.7:7000"), None);
    world.advance(secs(100));
    client.permit(&mut world, &[OTHER_PORT]);
    assert_eq!((changes(&mut world), left(&world, relay, PEER)), (1, Some(secs(300))));
    client.bind(&mut world, 0x4000, OTHER_PORT);
    assert_eq!((changes(&mut world), left(&world, relay, PEER)), (1, Some(secs(300))), "of another port");
    world.advance(secs(200));
    assert_eq!((changes(&mut world), left(&world, relay, "9.9.9.8:7000")), (1, None), "one has expired");
    world.advance(secs(1));
    client.refresh(&mut world, None);
    assert_eq!((changes(&mut world), left(&world, relay, PEER)), (1, Some(secs(99))));
    client.refresh(&mut world, Some(1000));
    assert_eq!((changes(&mut world), left(&world, relay, PEER)), (0, Some(secs(99))), "it ends before in any case");
    client.refresh(&mut world, Some(0));
    assert_eq!((changes(&mut world), left(&world, relay, PEER)), (1, None));
}

#[test]
fn half_of_an_allocation_takes_its_peers_with_it() {
    let mut world = World::new();
    world.workers[0].tell_of_paths();
    let mut client = Client::new("198.51.100.1:1000");
    dual(&mut world, &mut client);
    client.permit(&mut world, &[PEER, PEER_V6]);
    for to in [PEER, PEER_V6] {
        client.indicate(&mut world, to, b"data");
    }
    let told = told(&mut world);
    let [(v4, ..), (v6, ..)] = told[..] else { panic!("both") };
    client.request(&mut world, Method::Refresh, |builder| {
        builder.u32(AttributeType::LIFETIME, 0).u32(AttributeType::REQUESTED_ADDRESS_FAMILY, 2 << 24);
    });
    assert!(changes(&mut world) > 0);
    assert_eq!((left(&world, v4, PEER), left(&world, v6, PEER_V6)), (Some(secs(300)), None));
}

/// RFC 8656 section 12.5: "MUST use the ChannelData message if a channel has been bound".
#[test]
fn a_channel_ends_indications_before_its_client_is_told() {
    let (mut world, mut client) = start();
    client.permit(&mut world, &[PEER]);
    client.indicate(&mut world, PEER, b"data");
    let relay = told(&mut world)[0].0;
    let request = client.signed(Method::ChannelBind, |builder| {
        builder
            .u32(AttributeType::CHANNEL_NUMBER, 0x4000 << 16)
            .xor_address(AttributeType::XOR_PEER_ADDRESS, PEER.parse().unwrap());
    });
    let (now, server) = (world.now(), &mut world.workers[0]);
    assert_eq!(server.handle_client(now, &client.at, route(&client.at), &request), None);
    let effects: Vec<_> = std::iter::from_fn(|| server.poll_effect()).collect();
    let is_in_order = matches!(
        &effects[..],
        [Effect::PermissionsChanged { allocation }, Effect::Reply { .. }, Effect::ChannelOpened { .. }]
            if *allocation == relay.allocation()
    );
    assert!(is_in_order, "{effects:?}");
    assert_eq!(left(&world, relay, PEER), None);
    client.indicate(&mut world, PEER, b"where there is a channel");
    assert_eq!(told(&mut world), []);
    // The channel ends, the permission is renewed.
    world.advance(secs(299));
    client.permit(&mut world, &[PEER]);
    client.refresh(&mut world, Some(3600));
    world.advance(secs(299));
    client.permit(&mut world, &[PEER]);
    world.advance(secs(3));
    client.indicate(&mut world, PEER, b"where there is none");
    assert_eq!(told(&mut world).len(), 1);
}

#[test]
fn streams_are_told_of_as_well_and_paths_say_what_they_are() {
    let mut world = World::new();
    world.workers[0].tell_of_paths();
    let mut client = Client::over("198.51.100.1:1000", Transport::Tcp);
    client.allocate(&mut world).relay();
    client.permit(&mut world, &[PEER]);
    client.indicate(&mut world, PEER, b"data");
    let relay = told(&mut world)[0].0;
    let path = world.workers[0].channel_path(relay, peer(PEER)).unwrap();
    assert_eq!(path.client.transport, Transport::Tcp);
}
