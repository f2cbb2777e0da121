//! Clients of one server reach each other in memory (field notes, section 4), within a worker and across two.

use std::net::SocketAddr;

use ferryd::address::Transport;
use ferryd::stun::AttributeType;
use ferryd::turn::DropReason;

use crate::harness::{Client, Received, World, addr, assert_no_leak, secs};

struct Pair {
    world: World,
    alice: Client,
    bob: Client,
    /// Relayed addresses as the clients know them.
    of_alice: SocketAddr,
    of_bob: SocketAddr,
}

fn pair(workers: u8, advertised: bool) -> Pair {
    let mut world = World::with(|setup| {
        setup.workers = workers;
        setup.turn.relay_addresses.clear();
        setup.relay("10.0.0.5", advertised.then_some("203.0.113.5"));
        let own = ["10.0.0.5", "203.0.113.5", "10.0.0.6"].map(|ip| ip.parse().unwrap());
        setup.turn.peers.own_addresses = own.to_vec();
        setup.turn.peers.listener_ports = vec![3478];
    });
    let mut alice = Client::new("198.51.100.1:1000");
    let mut bob = Client::over("198.51.100.2:1000", Transport::Tcp).on_worker(usize::from(workers) - 1);
    let of_alice = alice.allocate(&mut world).relay();
    let of_bob = bob.allocate(&mut world).relay();
    Pair { world, alice, bob, of_alice, of_bob }
}

#[test]
fn two_clients_reach_each_other_without_a_packet_on_the_network() {
    for workers in [1, 2] {
        for advertised in [false, true] {
            let Pair { mut world, mut alice, mut bob, of_alice, of_bob } = pair(workers, advertised);
            assert_eq!(alice.permit(&mut world, &[&of_bob.to_string()]).result(), Ok(()));
            assert_eq!(bob.bind(&mut world, 0x4000, &of_alice.to_string()).result(), Ok(()));
            alice.indicate(&mut world, &of_bob.to_string(), b"hello bob");
            assert_eq!(bob.received(&mut world), [Received::Channel { number: 0x4000, data: b"hello bob".to_vec() }]);
            bob.channel_data(&mut world, 0x4000, b"hello alice");
            let expected = Received::Data { from: of_bob, data: b"hello alice".to_vec() };
            assert_eq!(alice.received(&mut world), [expected], "{workers} workers, advertised: {advertised}");
            alice.indicate(&mut world, &of_bob.to_string(), b"");
            assert_eq!(bob.received(&mut world), [Received::Channel { number: 0x4000, data: Vec::new() }]);
            assert!(world.sent().is_empty());
            alice.refresh(&mut world, Some(0));
            bob.refresh(&mut world, Some(0));
            for ended in world.ended() {
                let traffic = ended.traffic;
                assert!(traffic.packets_to_peers > 0 && traffic.packets_to_client > 0, "both count");
            }
            world.advance(secs(60));
            assert_no_leak(&world);
        }
    }
}

#[test]
fn both_permissions_are_checked() {
    for workers in [1, 2] {
        let Pair { mut world, mut alice, mut bob, of_alice, of_bob } = pair(workers, true);
        alice.indicate(&mut world, &of_bob.to_string(), b"neither");
        alice.permit(&mut world, &[&of_bob.to_string()]);
        alice.indicate(&mut world, &of_bob.to_string(), b"only the sender's");
        assert!(bob.received(&mut world).is_empty());
        bob.permit(&mut world, &[&of_alice.to_string()]);
        alice.indicate(&mut world, &of_bob.to_string(), b"both");
        assert_eq!(bob.received(&mut world), [Received::Data { from: of_alice, data: b"both".to_vec() }]);
        assert_eq!(world.dropped(DropReason::NoPermission), 2);
        assert!(world.sent().is_empty());
        alice.refresh(&mut world, Some(0));
        let sent = world.ended()[0].traffic.packets_to_peers;
        assert_eq!(
            sent, 2,
            "{workers} workers: what was sent counts, let in or not, and what was not permitted does not"
        );
    }
}

#[test]
fn the_source_is_the_address_by_which_the_peer_was_named() {
    let Pair { mut world, mut alice, mut bob, of_alice, of_bob } = pair(1, true);
    let bound = |advertised: SocketAddr| SocketAddr::new("10.0.0.5".parse().unwrap(), advertised.port());
    alice.permit(&mut world, &["10.0.0.5:1", "203.0.113.5:1"]);
    bob.permit(&mut world, &["10.0.0.5:1", "203.0.113.5:1"]);
    for (to, from) in [(of_bob, of_alice), (bound(of_bob), bound(of_alice))] {
        alice.indicate(&mut world, &to.to_string(), b"data");
        assert_eq!(bob.received(&mut world), [Received::Data { from, data: b"data".to_vec() }]);
    }
}

#[test]
fn nothing_else_on_the_own_addresses_is_reachable() {
    // Field notes, section 4: "on the server's own addresses nothing is reachable except live relayed transport
    // addresses of this server [..]. CreatePermission succeeds for configured relay and advertised addresses, the port
    // is checked per packet; every other own address, and loopback unless it is the relay address, is 403; ChannelBind
    // to an own address without a live relay on that port is 403".
    let Pair { mut world, mut alice, of_bob, .. } = pair(1, true);
    assert_eq!(alice.permit(&mut world, &["10.0.0.5:1", "203.0.113.5:1"]).result(), Ok(()));
    assert_eq!(alice.permit(&mut world, &["10.0.0.6:1"]).result(), Err(403));
    assert_eq!(alice.permit(&mut world, &["127.0.0.1:1"]).result(), Err(403));
    let dead = if of_bob.port() == 65_535 { 65_534 } else { of_bob.port() + 1 };
    for port in [1, 22, 3478, 49_151, dead] {
        for ip in ["10.0.0.5", "203.0.113.5"] {
            let to = format!("{ip}:{port}");
            alice.indicate(&mut world, &to, b"data");
            assert_eq!(alice.bind(&mut world, 0x4000, &to).result(), Err(403), "{to}");
        }
    }
    assert_eq!(world.dropped(DropReason::ForbiddenPort), 10);
    assert!(world.sent().is_empty());
    assert_eq!(alice.bind(&mut world, 0x4000, &of_bob.to_string()).result(), Ok(()));
}

#[test]
fn an_allocation_that_is_gone_is_not_reached() {
    for workers in [1, 2] {
        let Pair { mut world, mut alice, mut bob, of_alice, of_bob } = pair(workers, true);
        alice.bind(&mut world, 0x4000, &of_bob.to_string());
        bob.permit(&mut world, &[&of_alice.to_string()]);
        bob.refresh(&mut world, Some(0));
        alice.channel_data(&mut world, 0x4000, b"nobody there");
        assert!(bob.received(&mut world).is_empty() && world.sent().is_empty());
        assert_eq!(world.dropped(DropReason::ForbiddenPort), 1);
    }
}

#[test]
fn a_message_that_was_on_its_way_to_a_neighbour_finds_its_allocation_gone() {
    let Pair { mut world, mut alice, mut bob, of_alice, of_bob } = pair(2, true);
    alice.permit(&mut world, &[&of_bob.to_string()]);
    bob.permit(&mut world, &[&of_alice.to_string()]);
    let (_, relay) = world.sockets.values().copied().find(|(worker, _)| *worker == 1).unwrap();
    bob.refresh(&mut world, Some(0));
    // The slot has a new owner.
    let mut carol = Client::new("198.51.100.3:1000").on_worker(1);
    carol.allocate(&mut world).relay();
    carol.permit(&mut world, &[&of_alice.to_string()]);
    let now = world.now();
    let from = ferryd::address::PeerAddr::new(of_alice);
    assert_eq!(world.workers[1].handle_neighbour(now, relay, from, 4), None);
    assert_eq!(world.dropped(DropReason::NoRelay), 1);
    assert_eq!(world.workers[1].handle_peer(now, relay, from, 4), None, "nor does a late datagram of the old socket");
}

#[test]
fn a_client_reaches_itself_and_nothing_loops() {
    let Pair { mut world, mut alice, of_alice, .. } = pair(1, true);
    alice.bind(&mut world, 0x4000, &of_alice.to_string());
    alice.channel_data(&mut world, 0x4000, b"echo");
    assert_eq!(alice.received(&mut world), [Received::Channel { number: 0x4000, data: b"echo".to_vec() }]);
    assert_eq!(world.forwards, 1);
}

#[test]
fn payloads_that_outgrow_the_other_client_are_dropped_whole() {
    let Pair { mut world, mut alice, mut bob, of_alice, of_bob } = pair(1, false);
    alice.bind(&mut world, 0x4000, &of_bob.to_string());
    bob.bind(&mut world, 0x4000, &of_alice.to_string());
    // Bob is on a stream, which carries more than Alice's datagrams do.
    bob.channel_data(&mut world, 0x4000, &[1; 65_507]);
    assert!(alice.received(&mut world).is_empty());
    assert_eq!(world.dropped(DropReason::TooLong), 1);
    bob.channel_data(&mut world, 0x4000, &[1; 65_503]);
    assert_eq!(alice.received(&mut world).len(), 1);
}

#[test]
fn an_own_address_that_the_operator_allows_is_reached_through_the_network_but_for_listeners_and_relays() {
    let mut world = World::with(|setup| {
        setup.turn.peers.allow = vec!["192.0.2.0/24".parse().unwrap(), "127.0.0.0/8".parse().unwrap()];
        setup.turn.peers.own_addresses = vec!["192.0.2.1".parse().unwrap()];
        setup.turn.peers.listener_ports = vec![3478, 5349];
    });
    let mut alice = Client::new("198.51.100.1:1000");
    let mut bob = Client::new("198.51.100.1:1001");
    let (of_alice, of_bob) = (alice.allocate(&mut world).relay(), bob.allocate(&mut world).relay());
    alice.permit(&mut world, &["192.0.2.1:1", "127.0.0.1:1"]);
    bob.permit(&mut world, &[&of_alice.to_string()]);
    for (to, reached) in [
        ("192.0.2.1:9", true),
        ("127.0.0.1:9", true),
        ("192.0.2.1:3478", false),
        ("127.0.0.1:3478", false),
        ("192.0.2.1:5349", false),
        (&of_bob.to_string(), false),
    ] {
        alice.indicate(&mut world, to, b"data");
        assert_eq!(world.sent().len(), usize::from(reached), "{to}");
    }
    assert_eq!(bob.received(&mut world), [Received::Data { from: of_alice, data: b"data".to_vec() }]);
    assert_eq!(alice.bind(&mut world, 0x4000, "127.0.0.1:3478").result(), Err(403));
    assert_eq!(alice.bind(&mut world, 0x4000, "127.0.0.1:9").result(), Ok(()));
}

#[test]
fn ipv6_clients_reach_each_other_as_well() {
    let mut world = World::new();
    let mut clients = [Client::new("[2001:db8:7::1]:1000"), Client::new("198.51.100.1:1000")];
    let relays = clients.each_mut().map(|client| {
        let reply = client.allocate_with(&mut world, |builder| {
            builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
        });
        reply.relay()
    });
    let [first, second] = &mut clients;
    first.permit(&mut world, &[&relays[1].to_string()]);
    second.permit(&mut world, &[&relays[0].to_string()]);
    first.indicate(&mut world, &relays[1].to_string(), b"six");
    assert_eq!(second.received(&mut world), [Received::Data { from: relays[0], data: b"six".to_vec() }]);
    assert_ne!(addr("[::1]:1").ip(), relays[0].ip());
}
