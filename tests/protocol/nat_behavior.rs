//! NAT Behavior Discovery (RFC 5780).

use std::net::{IpAddr, SocketAddr};

use ferryd::address::{ClientAddr, FiveTuple, ServerAddr, Transport};
use ferryd::stun::{AttributeType, Builder, Method};
use ferryd::turn::nat_behavior::{Endpoints, NatBehavior};

use crate::harness::{Client, Reply, Setup, Signed, World, addr};

const CLIENT: &str = "198.51.100.1:1000";
const CHANGE_IP: u32 = 4;
const CHANGE_PORT: u32 = 2;

pub(crate) fn offer(setup: &mut Setup) {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    setup.turn.nat_behavior = Some(NatBehavior {
        v4: Endpoints::new([ip("192.0.2.10"), ip("192.0.2.11")], [3478, 3479]),
        v6: Endpoints::new([ip("2001:db8::10"), ip("2001:db8::11")], [3478, 3479]),
        mtu: 1500,
    });
}

/// A client that asks at this address of the server.
pub(crate) fn asking(server: &str) -> Client {
    let mut client = Client::new(if addr(server).is_ipv4() { CLIENT } else { "[2001:db8:7::1]:1000" });
    client.at.server = ServerAddr::new(addr(server));
    client
}

/// The 5-tuple of an answer to the same client from another address of the server.
pub(crate) fn from(client: &Client, server: &str) -> FiveTuple {
    FiveTuple { server: ServerAddr::new(addr(server)), ..client.at }
}

/// A transport address that is not XOR-ed.
pub(crate) fn plain(value: &[u8]) -> SocketAddr {
    let port = u16::from_be_bytes([value[2], value[3]]);
    match (value[0], value[1], value.len()) {
        (0, 1, 8) => SocketAddr::new(<[u8; 4]>::try_from(&value[4..]).unwrap().into(), port),
        (0, 2, 20) => SocketAddr::new(<[u8; 16]>::try_from(&value[4..]).unwrap().into(), port),
        other => panic!("no address: {other:?}"),
    }
}

fn address(reply: &Reply, kind: AttributeType) -> Option<SocketAddr> {
    reply.value(kind).map(|value| plain(&value))
}

/// Sends a Binding request; the answer has to arrive on `answer`, and nothing anywhere else.
fn discover(world: &mut World, client: &mut Client, answer: FiveTuple, write: impl FnOnce(&mut Builder<'_>)) -> Reply {
    let request = client.unsigned(Method::Binding, write);
    client.send(world, &request);
    let mut arrived = world.inbox(&answer);
    assert_eq!(arrived.len(), 1, "one answer to {:?} from {:?}", answer.client, answer.server);
    if answer != client.at {
        assert_eq!(world.inbox(&client.at), Vec::<Vec<u8>>::new());
    }
    Reply { bytes: arrived.remove(0) }
}

#[test]
fn binding_has_both_mapped_addresses_the_origin_and_the_other_address() {
    // RFC 5780 section 6.1: "The server MUST include both MAPPED-ADDRESS and XOR-MAPPED-ADDRESS in its Response." "If the
    // Binding Request does not contain any attributes from this document, OTHER-ADDRESS and RESPONSE-ORIGIN are still
    // included in the Binding Response."
    let mut world = World::with(offer);
    for server in ["192.0.2.10:3478", "[2001:db8::10]:3478"] {
        let mut client = asking(server);
        let at = client.at;
        let reply = discover(&mut world, &mut client, at, |_| {});
        assert_eq!((reply.result(), reply.signed()), (Ok(()), Signed::No));
        assert_eq!(
            reply.kinds(),
            [
                AttributeType::XOR_MAPPED_ADDRESS,
                AttributeType::MAPPED_ADDRESS,
                AttributeType::RESPONSE_ORIGIN,
                AttributeType::OTHER_ADDRESS
            ]
        );
        assert_eq!(reply.mapped(), client.at.client.socket_addr());
        assert_eq!(address(&reply, AttributeType::MAPPED_ADDRESS), Some(client.at.client.socket_addr()));
    }
}

#[test]
fn the_source_of_the_answer_is_the_one_of_table_1_at_every_endpoint() {
    // RFC 5780 section 6.1: "If the 'change port' flag was set [...] the source IP address of the Binding Response MUST be
    // Da and the source port of the Binding Response MUST be Cp", and so on; "The server MUST add a RESPONSE-ORIGIN
    // attribute to the Binding Response, containing the source address and port used to send the Binding Response"; the
    // server MUST add OTHER-ADDRESS, "Ca and Cp, respectively, regardless of the value of the CHANGE-REQUEST flags".
    let mut world = World::with(offer);
    for [a1, a2] in [["192.0.2.10", "192.0.2.11"], ["[2001:db8::10]", "[2001:db8::11]"]] {
        for (da, ca) in [(a1, a2), (a2, a1)] {
            for (dp, cp) in [(3478, 3479), (3479, 3478)] {
                for (flags, ip, port) in
                    [(0, da, dp), (CHANGE_IP, ca, dp), (CHANGE_PORT, da, cp), (CHANGE_IP | CHANGE_PORT, ca, cp)]
                {
                    let mut client = asking(&format!("{da}:{dp}"));
                    let source = format!("{ip}:{port}");
                    let answer = from(&client, &source);
                    let reply = discover(&mut world, &mut client, answer, |builder| {
                        builder.u32(AttributeType::CHANGE_REQUEST, flags);
                    });
                    assert_eq!(reply.result(), Ok(()));
                    assert_eq!(address(&reply, AttributeType::RESPONSE_ORIGIN), Some(addr(&source)));
                    let other = format!("{ca}:{cp}");
                    assert_eq!(address(&reply, AttributeType::OTHER_ADDRESS), Some(addr(&other)));
                }
            }
        }
    }
}

#[test]
fn change_request_is_unknown_while_the_extension_is_off() {
    // RFC 5780 section 5: clients "MUST be prepared to receive a 420 for requests that include CHANGE-REQUEST when
    // OTHER-ADDRESS was not received".
    let mut world = World::new();
    let mut client = asking("192.0.2.10:3478");
    for (kind, value) in [
        (AttributeType::CHANGE_REQUEST, &[0, 0, 0, 6][..]),
        (AttributeType::CHANGE_REQUEST, &[0, 0, 0, 0]),
        (AttributeType::PADDING, &[0; 64]),
        (AttributeType::RESPONSE_PORT, &[4, 0]),
    ] {
        let request = client.unsigned(Method::Binding, |builder| _ = builder.attribute(kind, value));
        let reply = client.exchange(&mut world, &request).unwrap();
        assert_eq!((reply.result(), reply.unknown()), (Err(420), vec![kind.0]));
    }
}

#[test]
fn a_server_address_without_an_alternate_one_does_not_claim_one() {
    // RFC 5780 section 6.1: "If the Request contains the CHANGE-REQUEST attribute and the server does not have an
    // alternate address and port as described above, the server MUST generate an error response of type 420." Section
    // 7.4: "OTHER-ADDRESS MUST NOT be inserted into a Binding Response unless the server has a second IP address."
    let mut world = World::with(offer);
    for server in ["192.0.2.10:443", "192.0.2.12:3478"] {
        let mut client = asking(server);
        let at = client.at;
        let reply = discover(&mut world, &mut client, at, |_| {});
        assert_eq!(address(&reply, AttributeType::RESPONSE_ORIGIN), Some(addr(server)));
        assert!(!reply.has(AttributeType::OTHER_ADDRESS));
        for flags in [0, CHANGE_IP, CHANGE_PORT] {
            let reply = discover(&mut world, &mut client, at, |builder| {
                builder.u32(AttributeType::CHANGE_REQUEST, flags);
            });
            assert_eq!((reply.result(), reply.unknown()), (Err(420), vec![AttributeType::CHANGE_REQUEST.0]));
        }
        // Section 5: "to allow the use of PADDING and RESPONSE-PORT in applications where servers do not have multiple IP
        // addresses".
        let reply = discover(&mut world, &mut client, at, |builder| {
            builder.attribute(AttributeType::PADDING, &[0; 8]);
        });
        assert_eq!(reply.value(AttributeType::PADDING), Some(vec![0; 8]));
    }
    let mut world = World::with(|setup| {
        offer(setup);
        setup.turn.nat_behavior.as_mut().unwrap().v6 = None;
    });
    let mut client = asking("[2001:db8::10]:3478");
    let at = client.at;
    assert!(!discover(&mut world, &mut client, at, |_| {}).has(AttributeType::OTHER_ADDRESS));
}

#[test]
fn the_answer_goes_to_the_response_port_of_the_same_address() {
    // RFC 5780 section 7.5: "the Binding Response MUST be transmitted to the source IP address of the Binding Request and
    // the port contained in RESPONSE-PORT."
    let mut world = World::with(offer);
    let mut client = asking("192.0.2.10:3478");
    let elsewhere = ClientAddr::new(addr("198.51.100.1:40000"));
    for value in [&[0x9C, 0x40][..], &[0x9C, 0x40, 0, 0]] {
        let answer = FiveTuple { client: elsewhere, ..client.at };
        let reply = discover(&mut world, &mut client, answer, |builder| {
            builder.attribute(AttributeType::RESPONSE_PORT, value);
        });
        assert_eq!((reply.result(), reply.mapped()), (Ok(()), addr(CLIENT)), "the source, not the destination");
    }
    let answer = FiveTuple { client: elsewhere, ..from(&client, "192.0.2.11:3479") };
    let reply = discover(&mut world, &mut client, answer, |builder| {
        builder.u32(AttributeType::CHANGE_REQUEST, CHANGE_IP | CHANGE_PORT);
        builder.attribute(AttributeType::RESPONSE_PORT, &[0x9C, 0x40]);
    });
    assert_eq!(address(&reply, AttributeType::RESPONSE_ORIGIN), Some(addr("192.0.2.11:3479")));
}

#[test]
fn padding_is_answered_with_padding_up_to_the_mtu() {
    // RFC 5780 section 6.1: "If the Request contained a PADDING attribute, PADDING MUST be included in the Binding
    // Response. The server SHOULD use a length of PADDING equal to the MTU on the outgoing interface, rounded up to an
    // even multiple of four bytes."
    let mut world = World::with(offer);
    let mut client = asking("192.0.2.10:3478");
    let at = client.at;
    for (asked, expected) in [(0, 0), (1, 4), (64, 64), (1499, 1500), (1500, 1500), (9000, 1500), (60_000, 1500)] {
        let reply = discover(&mut world, &mut client, at, |builder| {
            builder.attribute(AttributeType::PADDING, &vec![0xEE; asked]);
        });
        assert_eq!(reply.value(AttributeType::PADDING), Some(vec![0; expected]), "{asked} bytes");
    }
    let mut world = World::with(|setup| {
        offer(setup);
        setup.turn.nat_behavior.as_mut().unwrap().mtu = NatBehavior::MTU_MAX;
    });
    let reply = discover(&mut world, &mut client, at, |builder| {
        builder.attribute(AttributeType::PADDING, &vec![0xEE; 60_000]);
    });
    assert_eq!(reply.value(AttributeType::PADDING).unwrap().len(), 9216);
}

#[test]
fn padding_and_response_port_together_are_rejected_with_400() {
    // RFC 5780 section 6.1: "If the Request also contains the RESPONSE-PORT attribute the server MUST return an error
    // response of type 400." Section 7.5: "The server MUST NOT process a request containing a RESPONSE-PORT and a PADDING
    // attribute."
    let mut world = World::with(offer);
    let mut client = asking("192.0.2.10:3478");
    let at = client.at;
    let reply = discover(&mut world, &mut client, at, |builder| {
        builder.attribute(AttributeType::RESPONSE_PORT, &[0x9C, 0x40]).attribute(AttributeType::PADDING, &[0; 1500]);
    });
    assert_eq!(reply.result(), Err(400));
}

#[test]
fn malformed_attributes_are_rejected_with_400_from_the_address_that_was_asked() {
    let mut world = World::with(offer);
    let mut client = asking("192.0.2.11:3479");
    let at = client.at;
    for (kind, value) in [
        (AttributeType::CHANGE_REQUEST, &[][..]),
        (AttributeType::CHANGE_REQUEST, &[6]),
        (AttributeType::CHANGE_REQUEST, &[0, 0, 0, 6, 0]),
        (AttributeType::RESPONSE_PORT, &[]),
        (AttributeType::RESPONSE_PORT, &[1]),
        (AttributeType::RESPONSE_PORT, &[0, 0]),
    ] {
        let reply = discover(&mut world, &mut client, at, |builder| _ = builder.attribute(kind, value));
        assert_eq!(reply.result(), Err(400), "{kind:?} {value:?}");
    }
}

#[test]
fn errors_come_from_the_address_that_was_asked_whatever_was_to_change() {
    // RFC 8489 section 6.3.1.2: "the response MUST be sent from the same transport address that the request was received
    // on"; the change is that of the Binding Response, which an error is not.
    let mut world = World::with(offer);
    let mut client = asking("192.0.2.10:3478");
    let at = client.at;
    let reply = discover(&mut world, &mut client, at, |builder| {
        builder.u32(AttributeType::CHANGE_REQUEST, CHANGE_IP | CHANGE_PORT).attribute(AttributeType(0x7F01), &[]);
        builder.attribute(AttributeType::RESPONSE_PORT, &[0x9C, 0x40]);
    });
    assert_eq!((reply.result(), reply.unknown()), (Err(420), vec![0x7F01]));
}

#[test]
fn an_answer_has_at_most_48_bytes_more_than_its_request_on_ipv4_and_96_on_ipv6() {
    // RFC 5780 section 10: "servers should not allocate more memory than the size of the received datagram"; what is
    // spoofed here must not grow.
    let mut world = World::with(offer);
    for (server, more) in [("192.0.2.10:3478", 48), ("[2001:db8::10]:3478", 96)] {
        let mut client = asking(server);
        for padding in [None, Some(0), Some(4), Some(1500), Some(65_000)] {
            let request = client.unsigned(Method::Binding, |builder| {
                if let Some(len) = padding {
                    builder.attribute(AttributeType::PADDING, &vec![0; len]);
                }
            });
            let reply = client.exchange(&mut world, &request).unwrap();
            assert!(reply.bytes.len() <= request.len() + more, "{padding:?}: {}", reply.bytes.len());
        }
    }
}

#[test]
fn a_connection_has_no_other_address_to_answer_from() {
    // RFC 5780 section 3: "Because STUN forbids a server from creating a new TCP or TCP/TLS connection to the client, many
    // tests apply only to UDP." The mapping test of section 4.3 needs OTHER-ADDRESS over TCP as well.
    let mut world = World::with(offer);
    for transport in [Transport::Tcp, Transport::Tls, Transport::Dtls] {
        let mut client = asking("192.0.2.10:3478");
        client.at.transport = transport;
        let at = client.at;
        for flags in [None, Some(0)] {
            let reply = discover(&mut world, &mut client, at, |builder| {
                if let Some(flags) = flags {
                    builder.u32(AttributeType::CHANGE_REQUEST, flags);
                }
            });
            assert_eq!(address(&reply, AttributeType::RESPONSE_ORIGIN), Some(addr("192.0.2.10:3478")));
            assert_eq!(address(&reply, AttributeType::OTHER_ADDRESS), Some(addr("192.0.2.11:3479")));
        }
        for (kind, value) in
            [(AttributeType::CHANGE_REQUEST, &[0, 0, 0, 2][..]), (AttributeType::RESPONSE_PORT, &[0x9C, 0x40])]
        {
            let reply = discover(&mut world, &mut client, at, |builder| _ = builder.attribute(kind, value));
            assert_eq!((reply.result(), reply.unknown()), (Err(420), vec![kind.0]));
        }
    }
}

#[test]
fn fingerprint_is_mirrored_from_the_other_address_too() {
    // RFC 5780 section 6.1: "A FINGERPRINT attribute is only required if the STUN messages are being multiplexed with
    // application traffic".
    let mut world = World::with(offer);
    let mut client = asking("192.0.2.10:3478");
    for fingerprint in [false, true] {
        client.fingerprint = fingerprint;
        let answer = from(&client, "192.0.2.11:3479");
        let reply = discover(&mut world, &mut client, answer, |builder| {
            builder.u32(AttributeType::CHANGE_REQUEST, CHANGE_IP | CHANGE_PORT);
        });
        assert_eq!(reply.message().has_fingerprint(), fingerprint);
    }
}

#[test]
fn other_methods_ignore_the_attributes_where_the_extension_is_on() {
    // RFC 8489 section 6.3: "Known-but-unexpected attributes SHOULD be ignored by the agent." RFC 5780 section 7.2: "The
    // CHANGE-REQUEST attribute is allowed only in the Binding Request."
    for (on, expected) in [(true, Ok(())), (false, Err(420))] {
        let mut world = World::with(|setup| {
            if on {
                offer(setup);
            }
        });
        let mut client = asking("192.0.2.10:3478");
        let reply = client.allocate_with(&mut world, |builder| {
            builder.u32(AttributeType::CHANGE_REQUEST, CHANGE_IP | CHANGE_PORT);
        });
        assert_eq!(reply.result(), expected);
    }
}

#[test]
fn an_allocation_at_an_alternate_address_is_one_like_any_other() {
    // RFC 8656 section 2.2: 5-tuples that differ by the server address alone are different.
    let mut world = World::with(offer);
    let mut relays = Vec::new();
    for server in ["192.0.2.10:3478", "192.0.2.11:3478", "192.0.2.10:3479", "192.0.2.11:3479"] {
        relays.push(asking(server).allocate(&mut world).relay());
    }
    relays.dedup();
    assert_eq!(relays.len(), 4);
}
