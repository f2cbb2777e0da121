//! Whatever comes from whoever has no credentials: nothing is kept, and answers are no gift to who forges sources.

use arbitrary::{Arbitrary, Unstructured};
use ferryd::address::{ClientAddr, FiveTuple, ServerAddr, Transport};
use ferryd::auth::aead::AeadAlgorithm;
use ferryd::auth::settings::{Secret, ThirdParty, TokenKey};
use std::time::Duration;

use crate::harness::{World, addr, assert_no_leak};

const SOURCES: [&str; 6] = [
    "198.51.100.1:1000",
    "198.51.100.2:0",
    "127.0.0.1:1000",
    "[2001:db8:7::1]:1000",
    "[2001:0:1234::1]:1000",
    "[2002:c000:201::1]:1000",
];

#[derive(Debug, Arbitrary)]
struct Datagram<'a> {
    source: u8,
    transport: u8,
    worker: bool,
    mended: bool,
    wait_ms: u16,
    bytes: &'a [u8],
}

pub fn run(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let extended = bool::arbitrary(&mut input).unwrap_or_default();
    let mut world = World::with(|setup| {
        setup.workers = 2;
        (setup.turn.port_min, setup.turn.port_max) = (50_000, 50_063);
        if extended {
            setup.turn.mobility = true;
            setup.turn.rfc3489 = true;
            setup.turn.channels_above_4fff = true;
            let (id, key) = ("kid".to_owned(), Secret::new([5; 32]));
            let key = TokenKey { id, algorithm: AeadAlgorithm::A256Gcm, key, not_before: 0, lifetime: None };
            setup.auth.third_party = Some(ThirdParty { server_name: "turn.example.org".to_owned(), keys: vec![key] });
        }
    });
    let datagrams: Vec<Datagram<'_>> = input.arbitrary_iter().into_iter().flatten().flatten().take(32).collect();
    for datagram in datagrams {
        world.advance(Duration::from_millis(datagram.wait_ms.into()));
        let transport = [Transport::Udp, Transport::Tcp, Transport::Tls][usize::from(datagram.transport) % 3];
        let source = addr(SOURCES[usize::from(datagram.source) % SOURCES.len()]);
        let server = if source.is_ipv4() { "192.0.2.10:3478" } else { "[2001:db8::10]:3478" };
        let client = FiveTuple { transport, client: ClientAddr::new(source), server: ServerAddr::new(addr(server)) };
        let mut bytes = datagram.bytes.to_vec();
        if datagram.mended {
            crate::mend(&mut bytes);
            bytes.truncate(bytes.len().max(20) & !3);
        }
        world.client_sends(usize::from(datagram.worker), &client, &bytes);
        let replies = world.inbox(&client);
        assert!(replies.len() <= 1, "one datagram, one answer");
        for reply in replies {
            assert_ne!(source.port(), 0);
            // Both headers count; the extensions cost their attributes.
            let headers = if source.is_ipv4() { 28 } else { 48 };
            let (asked, answered) = (headers + bytes.len(), headers + reply.len());
            let bound = if extended { 2 * asked + 64 } else { 2 * asked };
            assert!(transport.is_stream() || answered <= bound, "{answered} bytes for {asked}");
        }
    }
    assert!(world.sent().is_empty() && world.events.is_empty() && world.attempts.is_empty());
    assert_no_leak(&world);
}
