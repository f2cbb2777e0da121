//! Clients behind proxies that announce them (PROXY protocol).

use std::net::SocketAddr;

use crate::certificate::Certificate;
use crate::client::{Client, binding_request};
use crate::ferryd::{Config, Ferryd};
use crate::wire::{Stream, Wire};

fn trusting(proxies: &str) -> impl Fn(&mut Config) + use<'_> {
    move |config| {
        Certificate::configured(config);
        let address = config.address();
        config.set(
            "listener",
            format!("[{{ address = \"{address}\", transport = \"tcp\", proxy-protocol = [\"{proxies}\"] }}]"),
        );
        config.text("log.format", "json");
    }
}

/// The preamble of version 2 for a client, with a value behind the addresses.
fn version_2(client: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(client) = client else { panic!("an IPv4 client") };
    let ends = [&client.ip().octets()[..], &[198, 51, 100, 1], &client.port().to_be_bytes(), &[1, 187]].concat();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11", &[0, 19][..], &ends, &[0xea, 0, 4, 1, 2, 3, 4]].concat()
}

#[test]
fn the_client_that_a_proxy_announces_is_the_one_that_is_served() {
    let ferryd = Ferryd::start(trusting("127.0.0.0/8"));
    let announced: SocketAddr = "192.0.2.7:40000".parse().unwrap();
    let line = format!("PROXY TCP4 {} 198.51.100.1 {} 443\r\n", announced.ip(), announced.port());
    for preamble in [line.into_bytes(), version_2(announced)] {
        let mut plain = Stream::plain(ferryd.address());
        plain.write(&preamble);
        let certificate = Certificate::of(&ferryd.config);
        let tls = Stream::tls_behind(ferryd.address(), &certificate, &preamble).unwrap();
        for stream in [plain, tls] {
            let mut client = Client::over(Wire::Stream(stream));
            assert_eq!(client.bind(), announced);
            assert_eq!(client.allocate().ip(), ferryd.config.ip);
            client.refresh(0).unwrap();
        }
    }
    let ended = ferryd.stop();
    let records = ended.stderr.lines().filter(|line| line.contains("ferryd::session"));
    let clients: Vec<bool> = records.map(|line| line.contains("192.0.2.7:40000")).collect();
    assert_eq!(clients, [true; 4], "{}", ended.stderr);
}

#[test]
fn nobody_is_believed_who_is_not_named() {
    let ferryd = Ferryd::start(trusting("192.0.2.0/24"));
    let mut forged = Stream::plain(ferryd.address());
    forged.write(b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n");
    assert_eq!(forged.rest(), b"");
    assert!(Client::tcp(ferryd.address()).bind().ip().is_loopback());
    let ferryd = Ferryd::start(trusting("127.0.0.0/8"));
    let mut silent = Stream::plain(ferryd.address());
    silent.write(&binding_request());
    assert_eq!(silent.rest(), b"");
}
