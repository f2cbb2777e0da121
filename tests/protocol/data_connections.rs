//! Connections with the peers of TCP allocations (RFC 6062): peers that connect, ConnectionBind, and how they end.

use std::net::SocketAddr;

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Class, Method};
use ferryd::turn::effect::EndReason;
use ferryd::turn::{DropReason, PeerConnectionId};

use crate::harness::{Client, PEER, PEER_V6, Reply, TICK, World, assert_no_leak, secs};
use crate::tcp_allocations::{DATA, HOME, allocate, allocated, begin, connect, connection_id, refused, world};

/// A ConnectionBind.
pub(crate) fn bind(world: &mut World, data: &mut Client, id: u32) -> Reply {
    data.request(world, Method::ConnectionBind, |builder| _ = builder.u32(AttributeType::CONNECTION_ID, id))
}

fn data(worker: usize) -> Client {
    Client::over(DATA, Transport::Tcp).on_worker(worker)
}

impl Client {
    /// The ConnectionAttempt that has come: the peer and the CONNECTION-ID.
    pub(crate) fn attempt(&self, world: &mut World) -> (SocketAddr, u32) {
        let [bytes] = &world.inbox(&self.at)[..] else { panic!("one indication") };
        let reply = Reply { bytes: bytes.clone() };
        let message = reply.message();
        assert_eq!((message.method(), message.class()), (Method::ConnectionAttempt, Class::Indication));
        let peer = message.attribute(AttributeType::XOR_PEER_ADDRESS).expect("XOR-PEER-ADDRESS");
        (peer.as_xor_address(message.transaction_id()).unwrap(), connection_id(&message))
    }
}

/// A peer connects, and the client hears of it.
fn accepted(world: &mut World, client: &mut Client, relay: SocketAddr, peer: &str) -> PeerConnectionId {
    let id = world.peer_connects(peer, relay).expect("a connection that is kept");
    assert_eq!(client.attempt(world), (peer.parse().unwrap(), id.0));
    id
}

#[test]
fn a_permitted_peer_that_connects_is_announced() {
    // RFC 6062 section 5.3: "Otherwise, the server sends a ConnectionAttempt indication to the client over the control
    // connection. The indication MUST include an XOR-PEER-ADDRESS attribute containing the peer's transport address, as
    // well as a CONNECTION-ID attribute uniquely identifying the peer data connection."
    let mut world = world();
    let mut client = Client::over(HOME, Transport::Tls);
    let relay = allocate(&mut world, &mut client);
    client.permit(&mut world, &[PEER]);
    let ids = ["9.9.9.9:1", "9.9.9.9:2", "9.9.9.9:65535"].map(|peer| accepted(&mut world, &mut client, relay, peer));
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    assert_eq!(world.counters().accepted, 3);
    assert_eq!(refused(&mut world, &mut client, "9.9.9.9:2"), 446, "one connection with one peer");
}

#[test]
fn a_peer_without_permission_is_closed() {
    // RFC 6062 section 5.3: "If no permission for this peer has been installed for this allocation, the server MUST
    // close the connection with the peer immediately after it has been accepted."
    let mut world = world();
    let (mut client, relay) = allocated(&mut world);
    assert!(world.peer_connects(PEER, relay).is_none());
    client.permit(&mut world, &["9.9.9.8:7000"]);
    assert!(world.peer_connects(PEER, relay).is_none());
    client.permit(&mut world, &[PEER]);
    world.advance(secs(300) - TICK);
    accepted(&mut world, &mut client, relay, PEER);
    world.advance(TICK);
    assert!(world.peer_connects("9.9.9.9:7001", relay).is_none(), "the permission has expired");
    assert_eq!(world.dropped(DropReason::NoPermission), 3);
    assert!(client.received(&mut world).is_empty());
    assert_eq!(world.shared.connections.usage(), 1);
}

#[test]
fn a_connect_permits_nobody_to_connect() {
    let mut world = world();
    let (mut client, relay) = allocated(&mut world);
    connect(&mut world, &mut client, PEER);
    assert!(world.peer_connects("9.9.9.9:7001", relay).is_none());
}

#[test]
fn a_stream_is_bound_wherever_it_arrives() {
    // RFC 6062 section 4.3: "This connection MUST be made using a different local transport address. Authentication of
    // the client by the server MUST use the same method and credentials as for the control connection."
    for worker in 0..3 {
        for transport in [Transport::Tcp, Transport::Tls] {
            let mut world = world();
            let (mut client, relay) = allocated(&mut world);
            client.permit(&mut world, &[PEER]);
            let ids =
                [accepted(&mut world, &mut client, relay, PEER).0, connect(&mut world, &mut client, "8.8.8.8:80")];
            for (id, port) in ids.into_iter().zip(2000..) {
                let mut data = Client::over(&format!("198.51.100.1:{port}"), transport).on_worker(worker);
                assert_eq!(bind(&mut world, &mut data, id).result(), Ok(()));
                assert_eq!(world.connections[&PeerConnectionId(id)].bound, Some(data.at));
            }
            world.advance(secs(300));
            assert_eq!(world.connections.len(), 2, "what is bound stays");
            client.refresh(&mut world, Some(0));
            world.advance(secs(60));
            assert_no_leak(&world);
        }
    }
}

#[test]
fn a_connection_that_nobody_binds_is_closed_after_30_seconds() {
    // RFC 6062 sections 5.2 and 5.3: "If no ConnectionBind request associated with this peer data connection is received
    // after 30 seconds, the peer data connection MUST be closed."
    for worker in [0, 1] {
        for passive in [true, false] {
            let mut world = world();
            let (mut client, relay) = allocated(&mut world);
            client.permit(&mut world, &[PEER]);
            let connection = |world: &mut World, client: &mut Client, peer: &str| match passive {
                true => accepted(world, client, relay, peer).0,
                false => connect(world, client, peer),
            };
            let (in_time, late) =
                (connection(&mut world, &mut client, PEER), connection(&mut world, &mut client, "9.9.9.9:7001"));
            world.advance(secs(30) - TICK);
            assert_eq!(bind(&mut world, &mut data(worker), in_time).result(), Ok(()));
            // The shell is late with its timer.
            world.jump(TICK);
            let mut too_late = Client::over("198.51.100.1:1002", Transport::Tcp).on_worker(worker);
            assert_eq!(bind(&mut world, &mut too_late, late).result(), Err(400));
            world.advance(secs(1));
            assert_eq!(world.connections.keys().copied().collect::<Vec<_>>(), [PeerConnectionId(in_time)]);
            assert_eq!(bind(&mut world, &mut too_late, late).result(), Err(400));
        }
    }
}

#[test]
fn a_bind_that_names_no_pending_connection_is_answered_400() {
    // RFC 6062 section 5.4: "If the request does not contain the CONNECTION-ID attribute, or if this attribute does not
    // refer to an existing pending connection, the server MUST return a 400 (Bad Request) error."
    let mut world = world();
    let (mut client, _) = allocated(&mut world);
    let id = connect(&mut world, &mut client, PEER);
    for worker in [0, 1] {
        let mut stream = data(worker);
        assert_eq!(stream.request(&mut world, Method::ConnectionBind, |_| {}).result(), Err(400));
        for value in [&[][..], &[0; 3], &[0; 8]] {
            let reply = stream.request(&mut world, Method::ConnectionBind, |builder| {
                builder.attribute(AttributeType::CONNECTION_ID, value);
            });
            assert_eq!(reply.result(), Err(400));
        }
        assert_eq!(bind(&mut world, &mut stream, !id).result(), Err(400), "unknown");
    }
    begin(&mut world, &mut client, "9.9.9.9:7001");
    let connecting = world.connecting("9.9.9.9:7001").unwrap();
    assert_eq!(bind(&mut world, &mut data(1), connecting.0).result(), Err(400), "not connected yet");
    // After all that the stream may still be bound.
    assert_eq!(bind(&mut world, &mut data(1), id).result(), Ok(()));
    let mut second = Client::over("198.51.100.1:1002", Transport::Tcp);
    assert_eq!(bind(&mut world, &mut second, id).result(), Err(400), "bound already");
    world.peer_closes(PeerConnectionId(id));
    assert_eq!(bind(&mut world, &mut second, id).result(), Err(400), "gone");
}

#[test]
fn a_bind_over_udp_is_rejected_with_400() {
    // RFC 6062 section 5.4: "If the client connection transport is not TCP or TLS, the server MUST return a 400 (Bad
    // Request) error."
    let mut world = world();
    let (mut client, _) = allocated(&mut world);
    let id = connect(&mut world, &mut client, PEER);
    for worker in [0, 1] {
        assert_eq!(bind(&mut world, &mut Client::new(DATA).on_worker(worker), id).result(), Err(400));
    }
    assert_eq!(bind(&mut world, &mut data(0), id).result(), Ok(()));
}

#[test]
fn a_control_connection_becomes_no_data_connection() {
    let mut world = world();
    let (mut client, _) = allocated(&mut world);
    let id = connect(&mut world, &mut client, PEER);
    assert_eq!(bind(&mut world, &mut client, id).result(), Err(400));
    let mut other = Client::over(DATA, Transport::Tcp).on_worker(1);
    other.allocate(&mut world);
    assert_eq!(bind(&mut world, &mut other, id).result(), Err(400));
    assert!(!world.streams.contains_key(&other.at), "it stays with its allocation");
    assert_eq!(client.refresh(&mut world, None).result(), Ok(()));
}

#[test]
fn another_users_bind_is_rejected_with_441_and_a_strangers_with_401() {
    let mut world = world();
    let (mut client, _) = allocated(&mut world);
    let id = connect(&mut world, &mut client, PEER);
    for worker in [0, 1] {
        let mut bob =
            Client::over("198.51.100.3:3000", Transport::Tcp).on_worker(worker).user("bob", crate::harness::BOB);
        assert_eq!(bind(&mut world, &mut bob, id).result(), Err(441));
        let mut stranger = Client::over("198.51.100.4:4000", Transport::Tcp).on_worker(worker).user("alice", "guess");
        assert_eq!(bind(&mut world, &mut stranger, id).result(), Err(401));
        assert_eq!(world.connections[&PeerConnectionId(id)].bound, None);
    }
    assert_eq!(bind(&mut world, &mut data(2), id).result(), Ok(()));
}

#[test]
fn an_expired_credential_still_connects_and_binds() {
    let mut world = world();
    let name = format!("{}:carol", world.unix() + 60);
    let mut client = Client::over(HOME, Transport::Tcp).time_limited(&name);
    allocate(&mut world, &mut client);
    world.advance(secs(120));
    let id = connect(&mut world, &mut client, PEER);
    assert_eq!(bind(&mut world, &mut data(1).time_limited(&name), id).result(), Ok(()));
    // It is good for connections of its allocation alone.
    world.peer_closes(PeerConnectionId(id));
    let mut late = Client::over("198.51.100.1:1002", Transport::Tcp).time_limited(&name);
    assert_eq!(bind(&mut world, &mut late, id).result(), Err(401));
}

#[test]
fn connections_end_with_their_allocation() {
    // RFC 6062 section 5.5: "If the allocation associated with a data connection expires, the data connection MUST be
    // closed."
    let release = |world: &mut World, client: &mut Client| {
        let release = client.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0));
        client.send(world, &release);
    };
    type End = fn(&mut World, &mut Client);
    let ends: [(EndReason, End); 5] = [
        (EndReason::Expired, |world, _| world.advance(secs(20))),
        (EndReason::Released, release),
        (EndReason::ClientClosed, |world, client| world.client_closes(0, &client.at)),
        (EndReason::Stopped, |world, _| world.stop()),
        (EndReason::WorkerFailed, |world, _| {
            world.workers[0].handle_failure();
            world.drain(0);
        }),
    ];
    for (end, end_by) in ends {
        let mut world = world();
        let (mut client, relay) = allocated(&mut world);
        client.permit(&mut world, &[PEER]);
        world.advance(secs(290));
        let bound = accepted(&mut world, &mut client, relay, PEER);
        assert_eq!(bind(&mut world, &mut data(1), bound.0).result(), Ok(()));
        world.advance(secs(290));
        connect(&mut world, &mut client, "9.9.9.9:7001");
        begin(&mut world, &mut client, "9.9.9.9:7002");
        assert_eq!(world.connections.len(), 3);
        end_by(&mut world, &mut client);
        assert!(world.connections.is_empty(), "{end:?}");
        assert_eq!(world.ended()[0].reason, end);
        world.advance(secs(60));
        assert_no_leak(&world);
    }
}

#[test]
fn an_allocation_lives_on_when_a_connection_ends() {
    let mut world = world();
    let (mut client, relay) = allocated(&mut world);
    client.permit(&mut world, &[PEER]);
    let id = accepted(&mut world, &mut client, relay, PEER);
    let mut stream = data(1);
    assert_eq!(bind(&mut world, &mut stream, id.0).result(), Ok(()));
    world.peer_closes(id);
    assert_eq!(world.shared.connections.usage(), 0);
    let again = accepted(&mut world, &mut client, relay, PEER);
    assert_ne!(id, again);
    assert_eq!(client.refresh(&mut world, None).result(), Ok(()));
}

#[test]
fn a_peer_that_connects_again_from_the_same_port_replaces_what_was_there() {
    let mut world = world();
    let (mut client, relay) = allocated(&mut world);
    client.permit(&mut world, &[PEER]);
    let before = accepted(&mut world, &mut client, relay, PEER);
    let after = accepted(&mut world, &mut client, relay, PEER);
    assert_eq!(world.connections.keys().copied().collect::<Vec<_>>(), [after]);
    assert_eq!(bind(&mut world, &mut data(0), before.0).result(), Err(400));
    assert_eq!(bind(&mut world, &mut data(0), after.0).result(), Ok(()));
}

#[test]
fn bytes_of_data_connections_are_counted() {
    let mut world = world();
    let (mut client, _) = allocated(&mut world);
    for (peer, port) in [(PEER, 2000), ("9.9.9.9:7001", 2001)] {
        let id = connect(&mut world, &mut client, peer);
        let mut data = Client::over(&format!("198.51.100.1:{port}"), Transport::Tcp).on_worker(1);
        bind(&mut world, &mut data, id);
        world.bytes_pass(PeerConnectionId(id), 1000, 50);
    }
    client.refresh(&mut world, Some(0));
    let traffic = world.ended()[0].traffic;
    assert_eq!((traffic.bytes_to_peers, traffic.bytes_to_client), (2000, 100));
    let counters = world.counters();
    assert_eq!((counters.connection_bytes_to_peers, counters.connection_bytes_to_clients), (2000, 100));
}

#[test]
fn ipv6_peers_connect_and_are_connected_to() {
    let mut world = world();
    let mut client = Client::over("[2001:db8:9::9]:2000", Transport::Tcp);
    let reply = crate::tcp_allocations::allocate_with(&mut world, &mut client, |builder| {
        builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    client.permit(&mut world, &[PEER_V6]);
    accepted(&mut world, &mut client, reply.relay(), "[2620:fe::fe]:9");
    let id = connect(&mut world, &mut client, PEER_V6);
    assert_eq!(bind(&mut world, &mut data(1), id).result(), Ok(()));
}

#[test]
fn the_nonce_of_the_control_connection_is_good_for_its_data_connections() {
    // So that a client may send its ConnectionBind, and data behind it, without a challenge first.
    for worker in [0, 1] {
        let mut world = world();
        let (mut client, _) = allocated(&mut world);
        let ids = [connect(&mut world, &mut client, PEER), connect(&mut world, &mut client, "9.9.9.9:7001")];
        let mut stream = Client { nonce: client.nonce.clone(), ..data(worker) };
        assert_eq!(bind(&mut world, &mut stream, ids[0]).result(), Ok(()));
        // Of any other client's it is stale, as everywhere.
        let mut other = Client::over("198.51.100.1:5000", Transport::Tcp);
        other.challenge(&mut world);
        let mut stream = Client::over("198.51.100.1:1002", Transport::Tcp).on_worker(worker);
        stream.nonce.clone_from(&other.nonce);
        assert_eq!(bind(&mut world, &mut stream, ids[1]).result(), Err(438));
        // And nothing but a ConnectionBind goes with it.
        let mut stream = Client { nonce: client.nonce.clone(), ..Client::over("198.51.100.1:1003", Transport::Tcp) };
        assert_eq!(stream.allocate(&mut world).result(), Err(438));
        let mut stranger = Client { nonce: client.nonce.clone(), ..Client::over("198.51.100.1:1004", Transport::Tcp) };
        stranger.password = "guess".to_owned();
        assert_eq!(bind(&mut world, &mut stranger, ids[1]).result(), Err(401));
    }
}

#[test]
fn a_worker_that_fails_leaves_no_number_behind() {
    let mut world = world();
    let (mut client, relay) = allocated(&mut world);
    client.permit(&mut world, &[PEER]);
    let ids = [connect(&mut world, &mut client, "8.8.8.8:80"), accepted(&mut world, &mut client, relay, PEER).0];
    begin(&mut world, &mut client, "8.8.8.8:81");
    let mut other = Client::over("198.51.100.2:1000", Transport::Tcp).on_worker(1);
    allocate(&mut world, &mut other);
    let kept = connect(&mut world, &mut other, PEER);
    world.fail(0);
    assert_eq!(world.shared.connections.usage(), 1, "that of the other worker");
    for (id, port) in ids.into_iter().zip(2000..) {
        let mut data = Client::over(&format!("198.51.100.1:{port}"), Transport::Tcp).on_worker(2);
        assert_eq!(bind(&mut world, &mut data, id).result(), Err(400));
    }
    assert_eq!(bind(&mut world, &mut data(2), kept).result(), Ok(()));
    other.refresh(&mut world, Some(0));
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn a_reload_that_switches_them_off_leaves_what_there_is() {
    let mut world = world();
    let (mut client, relay) = allocated(&mut world);
    client.permit(&mut world, &[PEER]);
    let id = connect(&mut world, &mut client, PEER);
    assert_eq!(bind(&mut world, &mut data(1), id).result(), Ok(()));
    world.reload(|setup| setup.turn.tcp_allocations = false);
    let mut other = Client::over("198.51.100.2:1000", Transport::Tcp);
    assert_eq!(crate::tcp_allocations::allocate_with(&mut world, &mut other, |_| {}).result(), Err(442));
    world.bytes_pass(PeerConnectionId(id), 1000, 50);
    assert_eq!(client.refresh(&mut world, None).result(), Ok(()));
    assert!(world.listens(relay) && world.connections.len() == 1);
    client.refresh(&mut world, Some(0));
    assert_eq!(world.ended()[0].traffic.bytes_to_peers, 1000);
    world.advance(secs(60));
    assert_no_leak(&world);
}
