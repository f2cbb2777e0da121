//! TCP allocations (RFC 6062): Allocate, Connect, and what is refused on them.

use std::net::SocketAddr;

use ferryd::address::{Family, Transport};
use ferryd::stun::{AttributeType, Builder, Class, Message, Method};
use ferryd::turn::effect::EndReason;
use ferryd::turn::{DropReason, OpenError};

use crate::harness::{Client, PEER, PEER_V6, Reply, Setup, Signed, World, addr, assert_no_leak, secs};

pub(crate) const HOME: &str = "198.51.100.1:1000";
pub(crate) const DATA: &str = "198.51.100.1:1001";

pub(crate) fn offered(setup: &mut Setup) {
    (setup.turn.tcp_allocations, setup.workers) = (true, 3);
}

pub(crate) fn world() -> World {
    World::with(offered)
}

pub(crate) fn write_tcp(builder: &mut Builder<'_>) {
    builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[6, 0, 0, 0]);
}

pub(crate) fn allocate_with(world: &mut World, client: &mut Client, write: impl FnOnce(&mut Builder<'_>)) -> Reply {
    client.request(world, Method::Allocate, |builder| {
        write_tcp(builder);
        write(builder);
    })
}

/// Allocates for TCP; the relayed address.
pub(crate) fn allocate(world: &mut World, client: &mut Client) -> SocketAddr {
    allocate_with(world, client, |_| {}).relay()
}

/// A client over TCP with a TCP allocation.
pub(crate) fn allocated(world: &mut World) -> (Client, SocketAddr) {
    let mut client = Client::over(HOME, Transport::Tcp);
    let relay = allocate(world, &mut client);
    (client, relay)
}

/// A Connect that is refused at once.
pub(crate) fn refused(world: &mut World, client: &mut Client, peer: &str) -> u16 {
    let reply = client.request(world, Method::Connect, |builder| write_peer(builder, peer));
    reply.result().expect_err("an error")
}

/// A Connect whose connection is being made; its bytes.
pub(crate) fn begin(world: &mut World, client: &mut Client, peer: &str) -> Vec<u8> {
    let request = client.signed(Method::Connect, |builder| write_peer(builder, peer));
    let reply = client.exchange(world, &request);
    assert!(reply.is_none(), "the answer waits for the peer: {reply:?}");
    request
}

/// Connects to a peer that accepts; the CONNECTION-ID.
pub(crate) fn connect(world: &mut World, client: &mut Client, peer: &str) -> u32 {
    let request = begin(world, client, peer);
    let made = world.peer_answers(peer, true);
    let reply = client.reply_to(world, &request).expect("an answer");
    assert_eq!((reply.result(), reply.signed()), (Ok(()), Signed::Sha1));
    assert_eq!(connection_id(&reply.message()), made.0);
    made.0
}

pub(crate) fn connection_id(message: &Message<'_>) -> u32 {
    message.attribute(AttributeType::CONNECTION_ID).and_then(|it| it.as_u32()).expect("CONNECTION-ID")
}

pub(crate) fn write_peer(builder: &mut Builder<'_>, peer: &str) {
    builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(peer));
}

#[test]
fn a_tcp_allocation_listens_on_its_relayed_address() {
    // RFC 6062 section 5.1: "A TCP relayed transport address MUST be allocated instead of a UDP one." "The
    // RESERVATION-TOKEN attribute MUST NOT be present in the success response." "If all checks pass, the server MUST
    // start accepting incoming TCP connections on the relayed transport address."
    for transport in [Transport::Tcp, Transport::Tls] {
        let mut world = world();
        let mut client = Client::over(HOME, transport);
        let reply = allocate_with(&mut world, &mut client, |builder| _ = builder.u32(AttributeType::LIFETIME, 1200));
        let relay = reply.relay();
        assert!(world.listens(relay) && world.sockets.is_empty(), "TCP instead of UDP");
        assert_eq!((reply.lifetime(), reply.mapped(), reply.signed()), (1200, addr(HOME), Signed::Sha1));
        assert!(!reply.has(AttributeType::RESERVATION_TOKEN));
        assert_eq!(client.refresh(&mut world, None).result(), Ok(()));
        assert_eq!(client.refresh(&mut world, Some(0)).result(), Ok(()));
        assert!(!world.listens(relay));
        assert_eq!(world.ended()[0].reason, EndReason::Released);
        world.advance(secs(60));
        assert_no_leak(&world);
    }
}

#[test]
fn the_success_waits_for_the_listener_and_tries_other_ports() {
    let mut world = world();
    world.opens_wait = true;
    let mut client = Client::over(HOME, Transport::Tcp);
    client.challenge(&mut world);
    let request = client.signed(Method::Allocate, write_tcp);
    assert!(client.exchange(&mut world, &request).is_none());
    world.open_failures.extend([OpenError::AddressInUse; 3]);
    world.open_pending();
    let reply = client.reply_to(&mut world, &request).unwrap();
    assert!(world.listens(reply.relay()));
    assert_eq!(world.attempts.len(), 4);
    assert_eq!(client.exchange(&mut world, &request).unwrap().relay(), reply.relay(), "a repeated request");
    world.open_failures.push_back(OpenError::Exhausted);
    let mut other = Client::over("198.51.100.2:1000", Transport::Tcp);
    assert_eq!(allocate_with(&mut world, &mut other, |_| {}).result(), Err(508));
    client.refresh(&mut world, Some(0));
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn where_tcp_allocations_are_off_they_are_no_supported_transport_and_their_methods_unknown() {
    let mut world = World::new();
    let mut client = Client::over(HOME, Transport::Tcp);
    assert_eq!(allocate_with(&mut world, &mut client, |_| {}).result(), Err(442));
    client.allocate(&mut world).relay();
    for method in [Method::Connect, Method::ConnectionBind] {
        let request = client.signed(method, |builder| write_peer(builder, PEER));
        assert!(client.exchange(&mut world, &request).is_none());
    }
    assert_eq!(world.dropped(DropReason::MethodOff), 2);
    let reply = client.request(&mut world, Method::Refresh, |builder| _ = builder.u32(AttributeType::CONNECTION_ID, 1));
    assert_eq!((reply.result(), reply.unknown()), (Err(420), vec![0x2A]));
}

#[test]
fn transports_other_than_udp_and_tcp_are_rejected_with_442() {
    // RFC 6062 section 5.1: "If the REQUESTED-TRANSPORT attribute is included and specifies a protocol other than UDP or
    // TCP, the server MUST reject the request with a 442 (Unsupported Transport Protocol) error. If the value is UDP,
    // [..] the server MUST continue with the procedures of [RFC5766] instead of this document."
    let mut world = world();
    let mut client = Client::over(HOME, Transport::Tcp);
    for protocol in [0, 1, 5, 7, 132, 255] {
        let reply = client.request(&mut world, Method::Allocate, |builder| {
            builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[protocol, 0, 0, 0]);
        });
        assert_eq!(reply.result(), Err(442), "{protocol}");
    }
    let reply = client.request(&mut world, Method::Allocate, |builder| {
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[6, 0]);
    });
    assert_eq!(reply.result(), Err(400));
    let relay = client.allocate(&mut world).relay();
    assert!(!world.listens(relay) && world.sockets.len() == 1);
}

#[test]
fn a_tcp_allocation_over_udp_or_dtls_is_rejected_with_400() {
    // RFC 6062 section 5.1: "If the client connection transport is not TCP or TLS, the server MUST reject the request
    // with a 400 (Bad Request) error." RFC 7350 section 4.6: "TCP allocations MUST NOT be obtained using a DTLS
    // association between client and server".
    for transport in [Transport::Udp, Transport::Dtls] {
        let mut world = world();
        let mut client = Client::over(HOME, transport);
        assert_eq!(allocate_with(&mut world, &mut client, |_| {}).result(), Err(400));
        assert_no_leak(&world);
    }
}

#[test]
fn attributes_of_datagrams_are_rejected_with_400() {
    // RFC 6062 section 5.1: "If the request contains the DONT-FRAGMENT, EVEN-PORT, or RESERVATION-TOKEN attribute, the
    // server MUST reject the request with a 400 (Bad Request) error."
    let mut world = world();
    let mut client = Client::over(HOME, Transport::Tls);
    for (kind, value) in [
        (AttributeType::DONT_FRAGMENT, &[][..]),
        (AttributeType::EVEN_PORT, &[0]),
        (AttributeType::EVEN_PORT, &[0x80]),
        (AttributeType::RESERVATION_TOKEN, &[0; 8]),
    ] {
        let reply = allocate_with(&mut world, &mut client, |builder| _ = builder.attribute(kind, value));
        assert_eq!(reply.result(), Err(400), "{kind:?}");
    }
    assert_no_leak(&world);
    allocate(&mut world, &mut client);
}

#[test]
fn a_tcp_allocation_may_have_both_families() {
    let mut world = world();
    let mut client = Client::over(HOME, Transport::Tcp);
    let reply = allocate_with(&mut world, &mut client, |builder| {
        builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    for (family, peer) in [(Family::V4, PEER), (Family::V6, PEER_V6)] {
        assert!(world.listens(reply.relay_of(family)));
        connect(&mut world, &mut client, peer);
    }
    // RFC 8656 section 8.1: "Deleting a single allocation destroys any permissions or channels associated with that
    // particular allocation; it MUST NOT affect any permissions or channels associated with allocations for the other
    // address family." So do connections.
    let reply = client.request(&mut world, Method::Refresh, |builder| {
        builder.u32(AttributeType::LIFETIME, 0).attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    assert_eq!((reply.result(), world.listening.len()), (Ok(()), 1));
    let left: Vec<_> = world.connections.values().filter_map(|connection| connection.to).collect();
    assert_eq!(left.iter().map(ToString::to_string).collect::<Vec<_>>(), [PEER]);
    assert_eq!(refused(&mut world, &mut client, PEER_V6), 443);
}

#[test]
fn a_connect_goes_out_from_the_relayed_address_and_is_answered_when_the_peer_has() {
    // RFC 6062 section 5.2: "Otherwise, the server MUST initiate an outgoing TCP connection. The local endpoint is the
    // relayed transport address associated with the allocation. The remote endpoint is the one indicated by the
    // XOR-PEER-ADDRESS attribute." "The server MUST include the CONNECTION-ID attribute in the Connect success
    // response. The attribute's value MUST uniquely identify the peer data connection."
    let mut world = world();
    let (mut client, relay) = allocated(&mut world);
    let mut seen = std::collections::BTreeSet::new();
    for port in 7000..7010 {
        let peer = format!("9.9.9.9:{port}");
        assert!(seen.insert(connect(&mut world, &mut client, &peer)));
    }
    assert!(world.connections.values().all(|connection| connection.from == relay));
    assert_eq!(world.counters().succeeded(Method::Connect), 10);
}

#[test]
fn a_connect_without_a_tcp_allocation_is_rejected_with_437() {
    // RFC 6062 section 5.2: "If the request is received on a TCP connection for which no allocation exists, the server
    // MUST return a 437 (Allocation Mismatch) error."
    let mut world = world();
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        let mut client = Client::over(HOME, transport);
        assert_eq!(refused(&mut world, &mut client, PEER), 437);
        client.allocate(&mut world).relay();
        assert_eq!(refused(&mut world, &mut client, PEER), 437, "an allocation of datagrams");
    }
    assert!(world.connections.is_empty());
}

#[test]
fn a_connect_to_a_peer_that_is_connected_is_rejected_with_446() {
    // RFC 6062 section 5.2: "If the server is currently processing a Connect request for this allocation with the same
    // XOR-PEER-ADDRESS, it MUST return a 446 (Connection Already Exists) error." And: "If the server has already
    // successfully processed a Connect request for this allocation with the same XOR-PEER-ADDRESS, and the resulting
    // client and peer data connections are either pending or active, it MUST return a 446".
    let mut world = world();
    let (mut client, _) = allocated(&mut world);
    let request = begin(&mut world, &mut client, PEER);
    assert_eq!(refused(&mut world, &mut client, PEER), 446, "in progress");
    let id = world.peer_answers(PEER, true);
    assert_eq!(client.reply_to(&mut world, &request).unwrap().result(), Ok(()));
    assert_eq!(refused(&mut world, &mut client, PEER), 446, "pending");
    let mut data = Client::over(DATA, Transport::Tcp);
    let reply = crate::data_connections::bind(&mut world, &mut data, id.0);
    assert_eq!(reply.result(), Ok(()));
    assert_eq!(refused(&mut world, &mut client, PEER), 446, "active");
    connect(&mut world, &mut client, "9.9.9.9:7001");
    world.peer_closes(id);
    connect(&mut world, &mut client, PEER);
}

#[test]
fn a_connect_without_a_peer_address_is_rejected_with_400() {
    // RFC 6062 section 5.2: "If the request does not contain an XOR-PEER-ADDRESS attribute, or if such attribute is
    // invalid, the server MUST return a 400 (Bad Request) error."
    let mut world = world();
    let (mut client, _) = allocated(&mut world);
    assert_eq!(client.request(&mut world, Method::Connect, |_| {}).result(), Err(400));
    for value in [&[0, 1, 0, 0][..], &[0, 3, 0, 80, 1, 2, 3, 4], &[]] {
        let reply = client.request(&mut world, Method::Connect, |builder| {
            builder.attribute(AttributeType::XOR_PEER_ADDRESS, value);
        });
        assert_eq!(reply.result(), Err(400));
    }
}

#[test]
fn a_connect_to_a_forbidden_peer_is_rejected_with_403() {
    // RFC 6062 section 5.2: "If the new connection is forbidden by local policy, the server MUST reject the request with
    // a 403 (Forbidden) error."
    let mut world = World::with(|setup| {
        offered(setup);
        setup.turn.peers.own_addresses = vec!["192.0.2.10".parse().unwrap(), "192.0.2.1".parse().unwrap()];
    });
    let (mut client, relay) = allocated(&mut world);
    for peer in [
        "127.0.0.1:80",
        "10.0.0.1:22",
        "169.254.169.254:80",
        "0.0.0.0:80",
        "192.0.2.10:3478",
        "9.9.9.9:0",
        // Own relayed addresses: a port without a live relay, and the allocation's own.
        "192.0.2.1:22",
        &relay.to_string(),
    ] {
        assert_eq!(refused(&mut world, &mut client, peer), 403, "{peer}");
    }
    // A live relay of datagrams is none of TCP.
    let datagrams = Client::new("198.51.100.2:1000").allocate(&mut world).relay();
    assert_eq!(refused(&mut world, &mut client, &datagrams.to_string()), 403);
    assert_eq!(refused(&mut world, &mut client, PEER_V6), 443);
    assert!(world.connections.is_empty());
}

#[test]
fn allow_opens_ports_of_own_addresses_but_not_the_services_of_this_server() {
    let mut world = World::with(|setup| {
        offered(setup);
        setup.turn.peers.allow = vec!["127.0.0.0/8".parse().unwrap()];
        setup.turn.peers.service_ports = vec![3478, 9641];
    });
    let (mut client, _) = allocated(&mut world);
    for service in ["127.0.0.1:3478", "127.0.0.1:9641"] {
        assert_eq!(refused(&mut world, &mut client, service), 403, "{service}");
    }
    connect(&mut world, &mut client, "127.0.0.1:8080");
}

#[test]
fn a_relay_of_this_server_is_reached_where_it_is_bound_and_known_by_its_public_address() {
    let mut world = World::with(|setup| {
        offered(setup);
        setup.turn.relay_addresses.clear();
        setup.relay("10.0.0.5", Some("198.51.100.7"));
    });
    let (mut caller, own) = allocated(&mut world);
    let mut callee = Client::over("198.51.100.2:2000", Transport::Tls).on_worker(1);
    let called = allocate(&mut world, &mut callee);
    assert_eq!((own.ip(), called.ip()), (addr("198.51.100.7:1").ip(), addr("198.51.100.7:1").ip()));
    callee.permit(&mut world, &[&own.to_string()]);
    let bound = SocketAddr::new(addr("10.0.0.5:1").ip(), called.port()).to_string();
    let request = caller.signed(Method::Connect, |builder| write_peer(builder, &called.to_string()));
    assert!(caller.exchange(&mut world, &request).is_none());
    // The callee hears of the caller's relayed address, through whatever address the kernel shows it.
    let seen = SocketAddr::new(addr("10.0.0.5:1").ip(), own.port()).to_string();
    world.peer_connects(&seen, called).expect("a permission");
    let attempt = callee.attempt(&mut world);
    assert_eq!(attempt.0, own);
    world.peer_answers(&bound, true);
    assert_eq!(caller.reply_to(&mut world, &request).unwrap().result(), Ok(()));
    assert_eq!(refused(&mut world, &mut callee, &own.to_string()), 446, "one connection between two addresses");
    // Other ports of the own address are no peers, whoever connects from there.
    assert!(world.peer_connects("10.0.0.5:22", called).is_none());
    assert!(world.peer_connects("198.51.100.7:22", called).is_none());
    assert_eq!(world.dropped(DropReason::NoPermission) + world.dropped(DropReason::ForbiddenPort), 2);
}

#[test]
fn a_connect_that_fails_is_answered_447_and_may_be_repeated() {
    // RFC 6062 section 5.2: "If the connection attempt fails or times out, the server MUST return a 447 (Connection
    // Timeout or Failure) error."
    let mut world = world();
    let (mut client, _) = allocated(&mut world);
    for _ in 0..2 {
        let request = begin(&mut world, &mut client, PEER);
        world.peer_answers(PEER, false);
        let reply = client.reply_to(&mut world, &request).unwrap();
        assert_eq!((reply.result(), reply.signed()), (Err(447), Signed::Sha1));
        assert_eq!(reply.reason(), "Connection Timeout or Failure");
        assert_eq!(world.shared.connections.usage(), 0);
    }
    connect(&mut world, &mut client, PEER);
}

#[test]
fn a_connect_times_out_after_30_seconds() {
    // RFC 6062 section 5.2: "The timeout value MUST be at least 30 seconds."
    let mut world = world();
    let (mut client, _) = allocated(&mut world);
    let request = begin(&mut world, &mut client, PEER);
    world.advance(secs(30) - crate::harness::TICK);
    assert!(client.reply_to(&mut world, &request).is_none() && world.connections.len() == 1);
    world.advance(secs(1));
    assert_eq!(client.reply_to(&mut world, &request).unwrap().result(), Err(447));
    assert!(world.connections.is_empty() && world.shared.connections.usage() == 0);
}

#[test]
fn a_connect_that_is_under_way_when_the_allocation_ends_is_answered() {
    let release = |world: &mut World, client: &mut Client| {
        let release = client.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0));
        client.send(world, &release);
    };
    type End = fn(&mut World, &mut Client);
    type Answers = &'static [Result<(), u16>];
    let ends: [(EndReason, End, Answers); 3] = [
        (EndReason::Released, release, &[Err(447), Ok(())]),
        (EndReason::Expired, |world, _| world.advance(secs(11)), &[Err(447)]),
        (EndReason::ClientClosed, |world, client| world.client_closes(0, &client.at), &[]),
    ];
    for (end, end_by, expected) in ends {
        let mut world = world();
        let mut client = Client::over(HOME, Transport::Tcp);
        allocate(&mut world, &mut client);
        world.advance(secs(590));
        begin(&mut world, &mut client, PEER);
        end_by(&mut world, &mut client);
        let codes: Vec<_> = world.inbox(&client.at).into_iter().map(|bytes| Reply { bytes }.result()).collect();
        assert_eq!(codes, expected, "{end:?}");
        assert_eq!(world.ended()[0].reason, end);
        world.advance(secs(60));
        assert_no_leak(&world);
    }
}

#[test]
fn another_users_connect_is_rejected_with_441_and_a_strangers_with_401() {
    let mut world = world();
    let (client, _) = allocated(&mut world);
    let mut bob = Client { nonce: None, ..client.clone() }.user("bob", crate::harness::BOB);
    assert_eq!(refused(&mut world, &mut bob, PEER), 441);
    let mut stranger = Client { nonce: None, ..client }.user("mallory", "guess");
    assert_eq!(refused(&mut world, &mut stranger, PEER), 401);
    assert!(world.connections.is_empty());
}

#[test]
fn a_tcp_allocation_takes_and_delivers_no_datagrams() {
    // RFC 6062 section 3: "This is in contrast to the control connection, which only allows TURN messages and not
    // application data."
    let mut world = world();
    let (mut client, relay) = allocated(&mut world);
    assert_eq!(client.permit(&mut world, &[PEER]).result(), Ok(()));
    client.indicate(&mut world, PEER, b"data");
    assert_eq!(world.dropped(DropReason::TcpAllocation), 1);
    assert_eq!(client.bind(&mut world, 0x4000, PEER).result(), Err(403));
    client.channel_data(&mut world, 0x4000, b"data");
    assert_eq!((world.sent().len(), world.dropped(DropReason::NoChannel)), (0, 1));
    // Datagrams of another client do not get there in memory either.
    let mut other = Client::new("198.51.100.2:1000");
    other.allocate(&mut world);
    other.permit(&mut world, &[&relay.to_string()]);
    other.indicate(&mut world, &relay.to_string(), b"data");
    assert_eq!((world.dropped(DropReason::ForbiddenPort), world.sent().len()), (1, 0));
    assert!(client.received(&mut world).is_empty());
}

#[test]
fn a_tcp_allocation_has_no_ticket() {
    let mut world = World::with(|setup| {
        offered(setup);
        setup.turn.mobility = true;
    });
    let mut client = Client::over(HOME, Transport::Tcp);
    let ticket = |builder: &mut Builder<'_>| _ = builder.attribute(AttributeType::MOBILITY_TICKET, &[]);
    assert_eq!(allocate_with(&mut world, &mut client, ticket).result(), Err(405));
    allocate(&mut world, &mut client);
    world.client_closes(0, &client.at);
    assert_eq!(world.ended()[0].reason, EndReason::ClientClosed);
    assert_no_leak(&world);
}

#[test]
fn classes_that_the_methods_do_not_have_are_dropped() {
    let mut world = world();
    let (mut client, _) = allocated(&mut world);
    for (method, class) in [
        (Method::Connect, Class::Indication),
        (Method::ConnectionBind, Class::Indication),
        (Method::ConnectionAttempt, Class::Request),
        (Method::ConnectionAttempt, Class::Indication),
        (Method::Connect, Class::Success),
        (Method::ConnectionBind, Class::Error),
    ] {
        let id = client.transaction();
        let mut bytes = Vec::new();
        Builder::new(&mut bytes, method, class, id);
        client.send(&mut world, &bytes);
    }
    assert_eq!(world.dropped(DropReason::UnexpectedClass), 6);
    assert!(world.inbox(&client.at).is_empty());
}
