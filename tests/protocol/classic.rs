//! Clients of RFC 3489, "classic STUN" (RFC 8489 sections 11 and 12, RFC 5389 section 12.2).

use std::net::SocketAddr;

use ferryd::address::Transport;
use ferryd::stun::message::ParseError;
use ferryd::stun::{AttributeType, Method};
use ferryd::turn::DropReason;

use crate::harness::{Client, Setup, World, addr};
use crate::nat_behavior::{asking, from, offer, plain};

const ID: [u8; 16] = *b"\xFEclassic STUN ID";

fn serve(setup: &mut Setup) {
    setup.turn.rfc3489 = true;
}

fn serve_and_offer(setup: &mut Setup) {
    serve(setup);
    offer(setup);
}

/// A Binding request without magic cookie.
fn request(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    message(0x0001, attributes)
}

fn message(message_type: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, value) in attributes {
        body.extend_from_slice(&kind.to_be_bytes());
        body.extend_from_slice(&(value.len() as u16).to_be_bytes());
        body.extend_from_slice(value);
    }
    [&message_type.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), &ID, &body].concat()
}

/// An answer as RFC 3489 has it: its type and its attributes, lengths and transaction id checked.
fn parse(bytes: &[u8]) -> (u16, Vec<(u16, Vec<u8>)>) {
    let number = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    // RFC 3489 section 8.1: "The length in the message header MUST contain the total length of the message in bytes,
    // excluding the header."
    assert_eq!(usize::from(number(2)), bytes.len() - 20);
    // "The Binding Response MUST contain the same transaction ID contained in the Binding Request."
    assert_eq!(bytes[4..20], ID);
    let (mut at, mut attributes) = (20, Vec::new());
    while at < bytes.len() {
        let len = usize::from(number(at + 2));
        assert_eq!(len % 4, 0, "RFC 3489 knows no padding");
        attributes.push((number(at), bytes[at + 4..at + 4 + len].to_vec()));
        at += 4 + len;
    }
    (number(0), attributes)
}

/// The one answer on the 5-tuple of the client.
fn ask(world: &mut World, client: &Client, bytes: &[u8]) -> (u16, Vec<(u16, Vec<u8>)>) {
    client.send(world, bytes);
    let arrived = world.inbox(&client.at);
    assert_eq!(arrived.len(), 1, "one request, one answer");
    parse(&arrived[0])
}

fn addresses(attributes: &[(u16, Vec<u8>)]) -> Vec<(u16, SocketAddr)> {
    attributes.iter().map(|(kind, value)| (*kind, plain(value))).collect()
}

/// The number of the error and UNKNOWN-ATTRIBUTES.
fn error(answer: &(u16, Vec<(u16, Vec<u8>)>)) -> (u16, Vec<u16>) {
    assert_eq!(answer.0, 0x0111, "a Binding Error Response");
    let (kind, value) = &answer.1[0];
    assert_eq!((*kind, &value[..2]), (0x0009, &[0, 0][..]));
    let unknown = answer.1.get(1).map(|(kind, value)| {
        assert_eq!(*kind, 0x000A);
        value.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    });
    (u16::from(value[2]) * 100 + u16::from(value[3]), unknown.unwrap_or_default())
}

#[test]
fn a_classic_request_is_answered_with_its_transaction_id_and_the_mapped_address_in_the_clear() {
    // RFC 5389 section 12.2: "When the server detects an RFC 3489 client, it SHOULD copy the value seen in the magic
    // cookie field in the Binding request to the magic cookie field in the Binding response message, and insert a
    // MAPPED-ADDRESS attribute instead of an XOR-MAPPED-ADDRESS attribute."
    let mut world = World::with(serve);
    for address in ["198.51.100.1:1000", "[2001:db8:7::1]:1000"] {
        let (kind, attributes) = ask(&mut world, &Client::new(address), &request(&[]));
        assert_eq!(kind, 0x0101);
        assert_eq!(addresses(&attributes), [(0x0001, addr(address))]);
    }
    assert_eq!(world.counters().succeeded(Method::Binding), 2);
}

#[test]
fn classic_requests_are_dropped_unless_they_are_served() {
    let mut world = World::with(offer);
    let client = Client::new("198.51.100.1:1000");
    client.send(&mut world, &request(&[]));
    assert_eq!(world.inbox(&client.at), Vec::<Vec<u8>>::new());
    assert_eq!(world.dropped(DropReason::Malformed(ParseError::NotStun)), 1);
}

#[test]
fn classic_requests_are_served_over_udp_alone() {
    // RFC 5389 section 12: "UDP was the only supported transport."
    let mut world = World::with(serve_and_offer);
    for transport in [Transport::Tcp, Transport::Tls] {
        let client = Client::over("198.51.100.1:1000", transport);
        client.send(&mut world, &request(&[]));
        assert_eq!(world.inbox(&client.at), Vec::<Vec<u8>>::new());
    }
    assert_eq!(world.dropped(DropReason::Malformed(ParseError::NotStun)), 2);
}

#[test]
fn requests_without_magic_cookie_over_dtls_are_rejected_with_500() {
    // RFC 8489 section 11: "Any STUN request or indication without the magic cookie over DTLS MUST be considered invalid:
    // all requests MUST generate a 500 (Server Error) error response, and indications MUST be ignored."
    for setup in [|_: &mut Setup| {}, serve_and_offer] {
        let mut world = World::with(setup);
        let client = Client::over("198.51.100.1:1000", Transport::Dtls);
        assert_eq!(error(&ask(&mut world, &client, &request(&[]))), (500, vec![]));
        let allocate = ask(&mut world, &client, &message(0x0003, &[(0x0019, &[17, 0, 0, 0])]));
        assert_eq!((allocate.0, &allocate.1[0].1[..4]), (0x0113, &[0, 0, 5, 0][..]));
        let whole = request(&[]);
        for ignored in [&message(0x0011, &[])[..], &message(0x0101, &[]), &message(0x0002, &[]), &whole[..19]] {
            client.send(&mut world, ignored);
            assert_eq!(world.inbox(&client.at), Vec::<Vec<u8>>::new());
        }
    }
}

#[test]
fn nothing_but_binding_requests_is_classic() {
    // RFC 8489 section 12: a stand-alone server serves classic clients with Binding; Shared Secret is gone.
    let mut world = World::with(serve);
    let client = Client::new("198.51.100.1:1000");
    for message_type in [0x0002, 0x0003, 0x0011, 0x0101, 0x0111] {
        client.send(&mut world, &message(message_type, &[]));
        assert_eq!(world.inbox(&client.at), Vec::<Vec<u8>>::new(), "{message_type:#06x}");
    }
    assert_eq!(world.dropped(DropReason::Malformed(ParseError::UnknownMethod)), 5);
}

#[test]
fn classic_requests_of_a_wrong_length_are_dropped() {
    let mut world = World::with(serve);
    let client = Client::new("198.51.100.1:1000");
    let whole = request(&[(0x0003, &[0; 4])]);
    let mut overrun = whole.clone();
    overrun[23] = 8;
    for bytes in [&whole[..27], &whole[..20], &[whole.as_slice(), &[0; 4]].concat(), &overrun] {
        client.send(&mut world, bytes);
        assert_eq!(world.inbox(&client.at), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn requests_with_magic_cookie_are_answered_as_ever() {
    let mut world = World::with(serve);
    let mut client = Client::new("198.51.100.1:1000");
    let request = client.unsigned(Method::Binding, |_| {});
    let reply = client.exchange(&mut world, &request).unwrap();
    assert_eq!(reply.kinds(), [AttributeType::XOR_MAPPED_ADDRESS]);
}

#[test]
fn attributes_that_are_not_understood_are_rejected_with_420_and_an_even_list() {
    // RFC 3489 section 8.1: "The server MUST check for any attributes in the request with values less than or equal to
    // 0x7fff which it does not understand. If it encounters any, the server MUST generate a Binding Error Response, and it
    // MUST include an ERROR-CODE attribute with a 420 response code. That response MUST contain an UNKNOWN-ATTRIBUTES
    // attribute". Section 11.2.10: "If the number of unknown attributes is an odd number, one of the attributes MUST be
    // repeated in the list, so that the total length of the list is a multiple of 4 bytes."
    let mut world = World::with(serve);
    let client = Client::new("198.51.100.1:1000");
    let answer = ask(&mut world, &client, &request(&[(0x7F01, &[]), (0x8020, &[0; 8])]));
    assert_eq!(error(&answer), (420, vec![0x7F01, 0x7F01]));
    let answer = ask(&mut world, &client, &request(&[(0x7F01, &[]), (0x0020, &[]), (0x7F01, &[])]));
    assert_eq!(error(&answer), (420, vec![0x7F01, 0x0020]));
    let many: Vec<(u16, &[u8])> = (0x7000..0x7101).map(|kind| (kind, &[][..])).collect();
    assert_eq!(error(&ask(&mut world, &client, &request(&many))).1.len(), 128);
}

#[test]
fn attributes_that_have_no_place_in_a_request_are_ignored() {
    // RFC 3489 section 11.2: "Any attributes that are known, but are not supposed to be present in a message
    // (MAPPED-ADDRESS in a request, for example) MUST be ignored."
    let mut world = World::with(serve);
    let client = Client::new("198.51.100.1:1000");
    let kinds = [0x0001, 0x0004, 0x0005, 0x0006, 0x0007, 0x0009, 0x000A, 0x000B, 0x8022];
    let attributes: Vec<(u16, &[u8])> = kinds.iter().map(|kind| (*kind, &[0; 8][..])).collect();
    assert_eq!(ask(&mut world, &client, &request(&attributes)).0, 0x0101);
}

#[test]
fn nobody_is_answered_elsewhere_by_response_address() {
    // RFC 5389 section 12.2: "The client might, in rare situations, include either the RESPONSE-ADDRESS or CHANGE-REQUEST
    // attributes. In these situations, the server will view these as unknown comprehension-required attributes and reply
    // with an error response."
    let victim = [0, 1, 0x1F, 0x90, 203, 0, 113, 9];
    let mut world = World::with(serve);
    let client = Client::new("198.51.100.1:1000");
    assert_eq!(error(&ask(&mut world, &client, &request(&[(0x0002, &victim)]))), (420, vec![2, 2]));
    assert_eq!(error(&ask(&mut world, &client, &request(&[(0x0003, &[0; 4])]))), (420, vec![3, 3]));
    let mut world = World::with(serve_and_offer);
    assert_eq!(error(&ask(&mut world, &client, &request(&[(0x0002, &victim)]))), (420, vec![2, 2]));
}

#[test]
fn no_shared_secret_is_remembered() {
    // RFC 3489 section 8.1: "If the USERNAME attribute was not present, [...] response code 432. If the USERNAME is
    // present, but the server doesn't remember the shared secret for that USERNAME [...] response code 430."
    let mut world = World::with(serve);
    let client = Client::new("198.51.100.1:1000");
    let integrity = (0x0008, &[0; 20][..]);
    assert_eq!(error(&ask(&mut world, &client, &request(&[integrity]))), (432, vec![]));
    assert_eq!(error(&ask(&mut world, &client, &request(&[(0x0006, b"user"), integrity]))), (430, vec![]));
}

#[test]
fn both_addresses_are_told_where_nat_behavior_is_offered() {
    // RFC 3489 section 8.1: "The server MUST add a SOURCE-ADDRESS attribute to the Binding Response, containing the source
    // address and port used to send the Binding Response. The server MUST add a CHANGED-ADDRESS attribute to the Binding
    // Response."
    let mut world = World::with(serve_and_offer);
    for (asked, changed) in [("192.0.2.10:3478", "192.0.2.11:3479"), ("192.0.2.11:3479", "192.0.2.10:3478")] {
        let client = asking(asked);
        let (_, attributes) = ask(&mut world, &client, &request(&[]));
        let mapped = client.at.client.socket_addr();
        assert_eq!(addresses(&attributes), [(0x0001, mapped), (0x0004, addr(asked)), (0x0005, addr(changed))]);
    }
    let (_, attributes) = ask(&mut world, &asking("192.0.2.12:3478"), &request(&[]));
    assert_eq!(attributes.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [0x0001, 0x0004], "no second address");
}

#[test]
fn change_request_is_followed_where_nat_behavior_is_offered() {
    // RFC 3489 section 8.1, table 1, the same as RFC 5780's.
    let mut world = World::with(serve_and_offer);
    let client = asking("192.0.2.10:3478");
    for (flags, source) in
        [(0, "192.0.2.10:3478"), (4, "192.0.2.11:3478"), (2, "192.0.2.10:3479"), (6, "192.0.2.11:3479")]
    {
        client.send(&mut world, &request(&[(0x0003, &[0, 0, 0, flags])]));
        let arrived = world.inbox(&from(&client, source));
        assert_eq!(arrived.len(), 1, "from {source}");
        let addresses = addresses(&parse(&arrived[0]).1);
        assert_eq!(addresses[1..], [(0x0004, addr(source)), (0x0005, addr("192.0.2.11:3479"))]);
    }
    assert_eq!(error(&ask(&mut world, &client, &request(&[(0x0003, &[0; 8])]))), (400, vec![]));
    // RFC 3489 section 8.1: "The Binding Error Response is sent to the IP address and port the Binding Request came from,
    // and sent from the IP address and port the Binding Request was sent to."
    let answer = ask(&mut world, &client, &request(&[(0x0003, &[0, 0, 0, 6]), (0x7F01, &[])]));
    assert_eq!(error(&answer), (420, vec![0x7F01, 0x7F01]));
}
