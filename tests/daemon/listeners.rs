//! What each listener answers, to whom, and from where.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::certificate::Certificate;
use crate::client::{Client, binding_request};
use crate::ferryd::{Config, Ferryd};
use crate::wire::Stream;

/// A listener of a kind, and what is needed for TLS.
fn accepting(kind: &str) -> impl Fn(&mut Config) + use<'_> {
    move |config| {
        Certificate::configured(config);
        let address = config.address().to_string();
        config.listen(&[(&address, kind)]);
    }
}

fn is_closed_without_a_word(stream: Stream) {
    assert_eq!(stream.rest(), b"");
}

#[test]
fn one_port_serves_udp_tcp_and_tls() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let certificate = Certificate::of(&ferryd.config);
    for mut client in
        [Client::udp(ferryd.address()), Client::tcp(ferryd.address()), Client::tls(ferryd.address(), &certificate)]
    {
        let seen = client.bind();
        assert_eq!(seen.port(), client.wire.local_port());
        assert_eq!(client.allocate().ip(), ferryd.config.ip);
    }
    // In the words of the configuration and of `ferryd status`.
    let log = ferryd.log();
    assert!(log.contains("kind=\"tcp+tls\""), "{log}");
    assert!(log.contains("backend=\"io-uring\"") || log.contains("backend=\"epoll\""), "{log}");
}

#[test]
fn a_tls_listener_answers_nothing_to_plain_stun() {
    let ferryd = Ferryd::start(accepting("tcp tls"));
    Client::tls(ferryd.address(), &Certificate::of(&ferryd.config)).allocate();
    let mut plain = Stream::plain(ferryd.address());
    plain.write(&binding_request());
    is_closed_without_a_word(plain);
}

#[test]
fn a_plain_listener_answers_nothing_to_tls() {
    let ferryd = Ferryd::start(accepting("tcp plain"));
    Client::tcp(ferryd.address()).allocate();
    assert!(Stream::tls(ferryd.address(), &Certificate::of(&ferryd.config)).is_err());
    let mut hello = Stream::plain(ferryd.address());
    hello.write(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00");
    is_closed_without_a_word(hello);
}

#[test]
fn without_a_certificate_both_is_plain() {
    let ferryd = Ferryd::start(|_| {});
    assert!(ferryd.log().contains("TLS is off"), "{}", ferryd.log());
    Client::tcp(ferryd.address()).allocate();
    let mut hello = Stream::plain(ferryd.address());
    hello.write(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00");
    is_closed_without_a_word(hello);
}

#[test]
fn http_and_garbage_are_closed_without_a_word() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let certificate = Certificate::of(&ferryd.config);
    for text in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\xff\xff\xff\xff",
        b"\x16\x16\x16\x16",
        // STUN without the magic cookie, and ChannelData before any STUN message.
        b"\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\x40\x00\x00\x04abcd",
    ] {
        let mut stream = Stream::plain(ferryd.address());
        stream.write(text);
        is_closed_without_a_word(stream);
        let mut stream = Stream::tls(ferryd.address(), &certificate).unwrap();
        stream.write(text);
        is_closed_without_a_word(stream);
    }
    Client::tls(ferryd.address(), &certificate).allocate();
}

#[test]
fn garbage_in_datagrams_is_not_answered() {
    let ferryd = Ferryd::start(|_| {});
    let mut client = Client::udp(ferryd.address());
    let with_trailer = [binding_request(), vec![0; 4]].concat();
    let response = [&[0x01, 0x01], &binding_request()[2..]].concat();
    let indication = [&[0x00, 0x11], &binding_request()[2..]].concat();
    for garbage in [&b""[..], b"\x00", b"hello", &[0xff; 65_507], &with_trailer, &response, &indication] {
        client.wire.send(garbage);
    }
    // The only answer is the one to this.
    client.bind();
    assert_eq!(client.wire.receive(Duration::from_millis(50)), None);
}

#[test]
fn ipv6_is_served_and_relayed() {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        let address = format!("[::1]:{}", config.port);
        config.listen(&[(&address, "udp"), (&address, "tcp")]);
        config.set("relay.addresses", "[\"::1\"]");
    });
    let server = SocketAddr::from((Ipv6Addr::LOCALHOST, ferryd.config.port));
    let certificate = Certificate::of(&ferryd.config);
    for mut client in [Client::udp(server), Client::tcp(server), Client::tls(server, &certificate)] {
        assert_eq!(client.bind().ip(), Ipv6Addr::LOCALHOST);
        // Without REQUESTED-ADDRESS-FAMILY it is IPv4 that is asked for.
        assert_eq!(client.try_allocate(), Err(440));
        let relayed = client.allocate_v6();
        assert_eq!(relayed.ip(), Ipv6Addr::LOCALHOST);
        let peer = UdpSocket::bind("[::1]:0").unwrap();
        crate::relaying::there_and_back(&mut client, relayed, &peer, b"six");
    }
}

#[test]
fn a_wildcard_listener_answers_from_the_address_that_was_asked() {
    let ferryd = Ferryd::start(|config| {
        let address = format!("*:{}", config.port);
        config.listen(&[(&address, "udp"), (&address, "tcp")]);
    });
    let addresses = ["127.0.0.1", "127.0.0.2", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
    for ip in addresses.into_iter().chain([ferryd.config.ip.into()]) {
        let server = SocketAddr::new(ip, ferryd.config.port);
        // A connected socket hears nobody else.
        let mut client = Client::udp(server);
        let relayed = client.allocate();
        let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        crate::relaying::there_and_back(&mut client, relayed, &peer, b"asked");
        client.bind_channel(0x4000, peer.local_addr().unwrap()).unwrap();
        peer.send_to(b"by channel", relayed).unwrap();
        assert_eq!(client.receive(), crate::client::Data::Channel(0x4000, b"by channel".to_vec()));
        Client::tcp(server).allocate();
    }
}

#[test]
fn an_answer_names_its_source_to_a_client_that_listens_to_everybody() {
    let ferryd = Ferryd::start(|config| {
        let address = format!("0.0.0.0:{}", config.port);
        config.listen(&[(&address, "udp")]);
    });
    let asked = SocketAddr::from(([127, 0, 0, 2], ferryd.config.port));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(crate::PATIENCE)).unwrap();
    socket.send_to(&binding_request(), asked).unwrap();
    assert_eq!(socket.recv_from(&mut [0; 100]).unwrap().1, asked);
}
