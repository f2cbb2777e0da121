//! Binding (RFC 8489 sections 6.3.1 and 12).

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Method};

use crate::harness::{Client, Signed, World, addr};

#[test]
fn binding_answers_the_source_address_and_over_udp_nothing_else() {
    // RFC 8489 section 6.3.1.1: "the server adds an XOR-MAPPED-ADDRESS attribute to the response; this attribute
    // contains the source transport address of the request message."
    let mut world = World::new();
    for (address, transport) in [
        ("198.51.100.1:1000", Transport::Udp),
        ("[2001:db8:7::1]:1000", Transport::Udp),
        ("198.51.100.1:1000", Transport::Tcp),
        ("198.51.100.1:1000", Transport::Tls),
        ("198.51.100.1:1000", Transport::Dtls),
    ] {
        let mut client = Client::over(address, transport);
        let request = client.unsigned(Method::Binding, |_| {});
        let reply = client.exchange(&mut world, &request).unwrap();
        assert_eq!(reply.result(), Ok(()));
        assert_eq!(reply.mapped(), addr(address));
        let kinds = [AttributeType::XOR_MAPPED_ADDRESS, AttributeType::SOFTWARE];
        assert_eq!(reply.kinds(), kinds[..if transport.is_connected() { 2 } else { 1 }]);
        assert_eq!(reply.signed(), Signed::No);
    }
}

#[test]
fn binding_needs_no_fingerprint_and_mirrors_one() {
    // RFC 8489 section 12: "It MAY utilize the FINGERPRINT mechanism but MUST NOT require it."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    for fingerprint in [false, true] {
        client.fingerprint = fingerprint;
        let request = client.unsigned(Method::Binding, |_| {});
        let reply = client.exchange(&mut world, &request).unwrap();
        assert_eq!(reply.message().has_fingerprint(), fingerprint);
    }
}

#[test]
fn binding_is_never_authenticated() {
    // RFC 8489 section 12: "It SHOULD NOT utilize the short-term or long-term credential mechanism."
    let mut world = World::new();
    let mut stranger = Client::new("198.51.100.1:1000").user("nobody", "wrong");
    stranger.nonce = Some(b"not a nonce".to_vec());
    let request = stranger.signed(Method::Binding, |_| {});
    let reply = stranger.exchange(&mut world, &request).unwrap();
    assert_eq!((reply.result(), reply.signed()), (Ok(()), Signed::No));
}

#[test]
fn binding_on_the_five_tuple_of_an_allocation_is_answered_whoever_asks() {
    // Field notes, section 1: STUN Binding and TURN share one UDP socket and one 5-tuple.
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    let mut other = client.clone().user("bob", crate::harness::BOB);
    for client in [&mut client, &mut other] {
        let request = client.signed(Method::Binding, |_| {});
        assert_eq!(client.exchange(&mut world, &request).unwrap().result(), Ok(()));
    }
}

#[test]
fn binding_retransmissions_are_answered_alike() {
    // RFC 8489 section 6.3.1: "The Binding method is considered to be idempotent."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let request = client.unsigned(Method::Binding, |_| {});
    let first = client.exchange(&mut world, &request).unwrap();
    let second = client.exchange(&mut world, &request).unwrap();
    assert_eq!(first.bytes, second.bytes);
}

#[test]
fn binding_answers_amplify_by_a_quarter_on_ipv4_and_by_a_third_on_ipv6() {
    // Field notes, section 4: 48 -> 60 bytes with IP and UDP headers, 1.25x; 1.36x on IPv6. FINGERPRINT only if asked.
    let mut world = World::new();
    for (address, headers, expected) in [("198.51.100.1:1000", 28, 1.25), ("[2001:db8:7::1]:1000", 48, 1.36)] {
        let mut client = Client::new(address);
        let request = client.unsigned(Method::Binding, |_| {});
        assert_eq!(request.len(), 20);
        let reply = client.exchange(&mut world, &request).unwrap();
        let factor = (headers + reply.bytes.len()) as f64 / (headers + request.len()) as f64;
        assert!(factor < expected + 0.005, "{address}: {factor}");
    }
}

#[test]
fn binding_with_an_unknown_required_attribute_is_rejected_with_420() {
    // RFC 8489 section 6.3.1: "the server replies with an error response with an error code of 420 (Unknown Attribute)
    // and includes an UNKNOWN-ATTRIBUTES attribute in the response that lists the unknown comprehension-required
    // attributes."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let request = client.unsigned(Method::Binding, |builder| {
        builder.attribute(AttributeType(0x7F01), b"").attribute(AttributeType(0xFF01), b"optional");
        builder.attribute(AttributeType(0x0003), &[0, 0, 0, 6]).attribute(AttributeType(0x7F01), b"again");
    });
    let reply = client.exchange(&mut world, &request).unwrap();
    assert_eq!(reply.result(), Err(420));
    assert_eq!(reply.unknown(), [0x7F01, 0x0003]);
}

#[test]
fn binding_with_known_but_unexpected_attributes_succeeds() {
    // RFC 8489 section 6.3: "Known-but-unexpected attributes SHOULD be ignored by the agent."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let request = client.unsigned(Method::Binding, |builder| {
        builder.u32(AttributeType::LIFETIME, 600).attribute(AttributeType::DATA, b"data");
        builder
            .attribute(AttributeType::ERROR_CODE, &[0, 0, 4, 1])
            .attribute(AttributeType::REQUESTED_TRANSPORT, &[17]);
    });
    assert_eq!(client.exchange(&mut world, &request).unwrap().result(), Ok(()));
}
