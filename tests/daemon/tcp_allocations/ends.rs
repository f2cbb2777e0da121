//! How connections with peers end, and what ends with them.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ferryd::stun::Method;

use super::{
    accept, allocate, bind, client, connect, converse, listener, read_exactly, rest, start, start_with, write_id,
};
use crate::wait_until;

#[test]
fn each_half_ends_by_itself() {
    let ferryd = start();
    let mut control = client(&ferryd, false);
    allocate(&mut control);
    for tls in [false, true] {
        // The peer ends first and goes on listening.
        let (listener, address) = listener();
        let id = connect(&mut control, address).unwrap();
        let mut peer = accept(&listener);
        let mut data = bind(client(&ferryd, tls), id);
        peer.write_all(b"all").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(data.read_exactly(3), b"all");
        assert_eq!(data.read(), b"");
        data.write(&[7; 100_000]);
        assert_eq!(read_exactly(&peer, 100_000), [7; 100_000]);
        drop(data);
        assert_eq!(rest(&peer), b"");
        // The client ends first and goes on listening.
        let (listener, address) = self::listener();
        let id = connect(&mut control, address).unwrap();
        let mut peer = accept(&listener);
        let mut data = bind(client(&ferryd, tls), id);
        data.write(b"request");
        data.close_half();
        assert_eq!(rest(&peer), b"request");
        peer.write_all(&[9; 100_000]).unwrap();
        assert_eq!(data.read_exactly(100_000), [9; 100_000]);
        drop(peer);
        assert_eq!(data.read(), b"");
        // What has ended on both sides is gone, and the peer may be connected to again.
        wait_until("the end of the connection", || connect(&mut control, address).is_ok());
    }
}

#[test]
fn connections_end_with_the_allocation() {
    // RFC 6062 section 5.5: "If the allocation associated with a data connection expires, the data connection MUST be
    // closed."
    let metrics = SocketAddr::from(([127, 0, 0, 1], crate::place::free_port()));
    let ferryd = start_with(|config| _ = config.text("metrics.address", metrics));
    for (released, tls) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut control = client(&ferryd, tls);
        let relayed = allocate(&mut control);
        let (bound, waiting) = (listener(), listener());
        let id = connect(&mut control, bound.1).unwrap();
        let peer = accept(&bound.0);
        let mut data = bind(client(&ferryd, tls), id);
        converse(&mut data, &peer);
        connect(&mut control, waiting.1).unwrap();
        let unbound = accept(&waiting.0);
        if released {
            assert_eq!(control.refresh(0), Ok(0));
        } else {
            drop(control);
        }
        assert_eq!((rest(&peer), rest(&unbound)), (Vec::new(), Vec::new()));
        assert_eq!(data.rest(), b"");
        wait_until("the listener to close", || TcpStream::connect(relayed).is_err());
    }
    let page = crate::metrics::get(metrics, "/metrics");
    for (series, expected) in [
        ("peer_connections", 0.0),
        ("data_connection_bytes_total{direction=\"to_peer\"}", 280_076.0),
        ("data_connection_bytes_total{direction=\"to_client\"}", 280_076.0),
        ("requests_total{method=\"connect\",result=\"success\"}", 8.0),
        ("requests_total{method=\"connection_bind\",result=\"success\"}", 4.0),
    ] {
        assert_eq!(crate::metrics::value(&page, &format!("ferryd_{series}")), expected, "{series}");
    }
    let log = ferryd.stop().stderr;
    assert_eq!(log.matches("bytes_to_peers=70019").count(), 4, "{log}");
}

#[test]
fn a_data_connection_that_is_reset_ends_the_other() {
    let ferryd = start();
    let mut control = client(&ferryd, false);
    allocate(&mut control);
    for by_peer in [true, false] {
        let (listener, address) = listener();
        let id = connect(&mut control, address).unwrap();
        let peer = accept(&listener);
        let mut data = bind(client(&ferryd, false), id);
        converse(&mut data, &peer);
        // What was not read makes the end a reset.
        if by_peer {
            data.write(b"unread");
            peer.peek(&mut [0; 1]).unwrap();
            drop(peer);
            assert_eq!(data.rest(), b"");
        } else {
            (&peer).write_all(b"unread").unwrap();
            data.peek();
            drop(data);
            assert_eq!(rest(&peer), b"");
        }
        wait_until("the end of the connection", || connect(&mut control, address).is_ok());
    }
}

#[test]
fn a_reset_before_the_bind_ends_the_connection() {
    let ferryd = start();
    let mut control = client(&ferryd, false);
    allocate(&mut control);
    let (listener, address) = listener();
    let id = connect(&mut control, address).unwrap();
    let peer = accept(&listener);
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    // Long before its time is over the peer may be connected to again.
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(code) = connect(&mut control, address) {
        assert_eq!(code, 446);
        assert!(Instant::now() < deadline, "the connection waits for its ConnectionBind");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(client(&ferryd, false).request(Method::ConnectionBind, write_id(id)).code(), Some(400));
}
