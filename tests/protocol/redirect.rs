//! Clients that are sent to another server (RFC 8489 section 10, RFC 8656 section 7.2 step 11).

use std::net::{IpAddr, SocketAddr};

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, ErrorCode, Method};
use ferryd::turn::redirect::Alternates;
use ferryd::turn::{Drain, Redirect};

use crate::harness::{Client, PEER, Reply, Setup, Signed, World, addr, assert_no_leak, secs};

const V4: &str = "203.0.113.7:3478";
const V6: &str = "[2001:db8::7]:3478";

fn to(v4: Option<&str>, v6: Option<&str>) -> Alternates {
    Alternates { v4: v4.map(|it| it.parse().unwrap()), v6: v6.map(|it| it.parse().unwrap()) }
}

fn redirecting(alternates: Alternates, domain: Option<&str>) -> World {
    World::with(|setup: &mut Setup| {
        setup.turn.redirect = Some(Redirect::to(alternates, domain.map(str::to_owned)));
    })
}

/// The values of ALTERNATE-SERVER, in their order: "encoded in the same way as MAPPED-ADDRESS" (RFC 8489 section
/// 14.15).
fn alternates(reply: &Reply) -> Vec<SocketAddr> {
    let message = reply.message();
    let attributes = message.attributes().filter(|it| it.kind == AttributeType::ALTERNATE_SERVER);
    let address = |value: &[u8]| {
        let ip: IpAddr = match value[1] {
            0x01 => <[u8; 4]>::try_from(&value[4..]).unwrap().into(),
            0x02 => <[u8; 16]>::try_from(&value[4..]).unwrap().into(),
            family => panic!("address family {family}"),
        };
        SocketAddr::new(ip, u16::from_be_bytes([value[2], value[3]]))
    };
    attributes.map(|it| address(it.value)).collect()
}

#[test]
fn a_new_allocation_is_redirected_to_an_address_of_the_clients_family_first() {
    // RFC 8489 section 10: "The server MUST include at least one ALTERNATE-SERVER attribute in the error response,
    // which MUST contain an IP address of the same address family as the source IP address of the request message. The
    // server SHOULD include an additional ALTERNATE-SERVER attribute, after the mandatory one, that contains an IP
    // address of the address family other than the source IP address of the request message."
    let mut world = redirecting(to(Some(V4), Some(V6)), None);
    for (client, expected) in
        [("198.51.100.1:1000", [addr(V4), addr(V6)]), ("[2001:db8:1::1]:1000", [addr(V6), addr(V4)])]
    {
        let reply = Client::new(client).allocate(&mut world);
        assert_eq!((reply.result(), reply.signed()), (Err(300), Signed::Sha1));
        assert_eq!(alternates(&reply), expected);
        assert_eq!(reply.reason(), "Try Alternate");
    }
    assert_eq!(world.counters().refused(Method::Allocate, ErrorCode::TryAlternate), 2);
    assert_no_leak(&world);
}

#[test]
fn without_a_server_of_the_clients_family_the_client_is_refused_with_508() {
    // "which MUST contain an IP address of the same address family": there is none to be told.
    let mut world = redirecting(to(Some(V4), None), None);
    let reply = Client::new("198.51.100.1:1000").allocate(&mut world);
    assert_eq!((reply.result(), alternates(&reply)), (Err(300), vec![addr(V4)]));
    let reply = Client::new("[2001:db8:1::1]:1000").allocate(&mut world);
    assert_eq!((reply.result(), alternates(&reply)), (Err(508), Vec::new()));
}

#[test]
fn each_transport_has_a_server_of_its_own() {
    // "reattempts the request with the server specified in the attribute, using the same transport protocol used for
    // the previous request."
    let mut world = World::with(|setup| {
        let of = |port: u16| to(Some(&format!("203.0.113.7:{port}")), None);
        setup.turn.redirect = Some(Redirect { udp: of(1), tcp: of(2), tls: of(3), dtls: of(4), domain: None });
    });
    for (transport, port) in [(Transport::Udp, 1), (Transport::Tcp, 2), (Transport::Tls, 3), (Transport::Dtls, 4)] {
        let reply = Client::over("198.51.100.1:1000", transport).allocate(&mut world);
        assert_eq!(alternates(&reply), [SocketAddr::new(addr(V4).ip(), port)], "{transport:?}");
    }
}

#[test]
fn the_domain_is_told_over_tls_alone() {
    // "If the transaction uses TLS or DTLS, if the transaction is authenticated by a MESSAGE-INTEGRITY-SHA256
    // attribute, and if the server wants to redirect to a server that uses a different certificate, then it MUST
    // include an ALTERNATE-DOMAIN attribute containing the name inside the subjectAltName of that certificate."
    let mut world = redirecting(to(Some(V4), Some(V6)), Some("turn2.example.org"));
    let domain = |world: &mut World, client: Client| {
        let reply = { client }.allocate(world);
        assert_eq!(reply.result(), Err(300));
        reply.value(AttributeType::ALTERNATE_DOMAIN)
    };
    let over = |transport| Client::over("198.51.100.1:1000", transport);
    let expected = Some(b"turn2.example.org".to_vec());
    assert_eq!(domain(&mut world, over(Transport::Tls).sha256()), expected);
    assert_eq!(domain(&mut world, over(Transport::Dtls)), expected);
    assert_eq!(domain(&mut world, over(Transport::Tls)), expected);
    assert_eq!(domain(&mut world, over(Transport::Tcp).sha256()), None);
    assert_eq!(domain(&mut world, over(Transport::Udp).sha256()), None);
    let mut world = redirecting(to(Some(V4), Some(V6)), None);
    assert_eq!(domain(&mut world, over(Transport::Tls).sha256()), None, "the same certificate");
}

#[test]
fn only_authenticated_clients_are_redirected() {
    let mut world = redirecting(to(Some(V4), Some(V6)), None);
    let mut client = Client::new("198.51.100.1:1000").user("alice", "wrong");
    assert_eq!(client.challenge(&mut world).result(), Err(401));
    assert_eq!(client.allocate(&mut world).result(), Err(401));
}

#[test]
fn allocations_that_there_are_go_on() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let request = client.signed(Method::Allocate, |builder| {
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    });
    let first = client.exchange(&mut world, &request).unwrap();
    world.reload(|setup| setup.turn.redirect = Some(Redirect::to(to(Some(V4), Some(V6)), None)));
    assert_eq!(client.exchange(&mut world, &request).unwrap().bytes, first.bytes, "a retransmission");
    assert_eq!(client.allocate(&mut world).result(), Err(437));
    assert_eq!(client.refresh(&mut world, None).result(), Ok(()));
    assert_eq!(client.permit(&mut world, &[PEER]).result(), Ok(()));
    assert!(world.peer_sends(PEER, first.relay(), b"data"));
    assert_eq!(client.received(&mut world).len(), 1);
    assert_eq!(client.refresh(&mut world, Some(0)).result(), Ok(()));
    assert_eq!(client.allocate(&mut world).result(), Err(300), "a new one is made elsewhere");
    world.advance(secs(60));
    assert_no_leak(&world);
}

#[test]
fn a_reserved_port_is_redeemed_where_it_is() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let token = client.allocate_with(&mut world, |builder| {
        builder.attribute(AttributeType::EVEN_PORT, &[0x80]);
    });
    world.reload(|setup| setup.turn.redirect = Some(Redirect::to(to(Some(V4), Some(V6)), None)));
    let mut second = Client::new("198.51.100.1:1001");
    let reply = second.allocate_with(&mut world, |builder| {
        builder.attribute(AttributeType::RESERVATION_TOKEN, &token.token());
    });
    assert_eq!(reply.relay().port(), token.relay().port() + 1);
}

#[test]
fn a_drain_sends_new_allocations_away_or_refuses_them_and_leaves_those_that_there_are() {
    let mut world = World::new();
    let mut live = Client::new("198.51.100.1:1000");
    live.allocate(&mut world).relay();
    let redirect = Redirect::to(to(Some(V4), None), None);
    world.reload(|setup| setup.drain = Some(Drain { redirect }));
    let reply = Client::new("198.51.100.2:1000").allocate(&mut world);
    assert_eq!((reply.result(), alternates(&reply)), (Err(300), vec![addr(V4)]));
    let reply = Client::new("[2001:db8:1::1]:1000").allocate(&mut world);
    assert_eq!(reply.result(), Err(508), "nothing is named for IPv6");
    assert_eq!(live.permit(&mut world, &[PEER]).result(), Ok(()));
    assert_eq!(live.refresh(&mut world, None).result(), Ok(()));
    world.reload(|_| {});
    assert_eq!(Client::new("198.51.100.2:1001").allocate(&mut world).result(), Ok(()));
}

#[test]
fn a_drain_goes_before_the_redirection_that_is_configured() {
    let configured = Redirect::to(to(Some("203.0.113.9:1"), None), None);
    let mut world = World::with(|setup| {
        setup.turn.redirect = Some(configured);
        setup.drain = Some(Drain { redirect: Redirect::to(to(Some(V4), None), None) });
    });
    assert_eq!(alternates(&Client::new("198.51.100.1:1000").allocate(&mut world)), [addr(V4)]);
}
