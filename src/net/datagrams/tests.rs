//! What both back ends promise, told by the same tests.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::*;
use crate::net::error_queue::read_error_queue;
use crate::net::poll::{Interest, Waker};
use crate::net::socket::{UdpOptions, open_relay, open_udp_listeners};
use crate::net::udp::HEADROOM;

const PATIENCE: Duration = Duration::from_secs(10);
const TOKEN: Token = Token(7);

macro_rules! on_both {
    ($($name:ident)*) => {
        mod epoll_backend {
            $(#[test] fn $name() { super::$name(super::EpollDatagrams::new().unwrap()); })*
        }
        mod ring_backend {
            $(#[test] fn $name() {
                if let Some(ring) = super::ring() {
                    super::$name(ring);
                }
            })*
        }
    };
}

mod runs;
mod starts;

on_both! {
    a_datagram_arrives_with_what_is_known_of_it
    a_prefix_is_written_in_place_and_sent_on
    the_longest_datagram_passes
    a_burst_is_kept_in_order
    a_flooded_socket_keeps_no_other_waiting
    a_run_to_one_destination_crosses_as_one_and_arrives_as_it_was
    runs_of_two_sockets_keep_their_sources
    where_trains_are_refused_each_datagram_goes_alone
    a_closed_socket_gives_its_port_back
    sockets_that_close_together_give_their_ports_back_before_what_waits_is_sent
    a_socket_closes_in_the_turn_that_it_came_in
    icmp_errors_are_told_and_end_nothing
    a_send_that_meets_an_old_error_is_not_lost
    other_descriptors_wake_the_wait
    patience_ends_the_wait
    a_rest_collects_what_comes
    a_rest_of_next_to_nothing_does_not_outlast_an_arrival
    a_wildcard_listener_tells_and_keeps_the_address_that_was_asked
}

/// Where the kernel has no such io_uring the daemon uses epoll, and so says the test; CI has one.
fn ring() -> Option<RingDatagrams> {
    match RingDatagrams::new() {
        Ok(ring) => Some(ring),
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("NOT TESTED: io_uring cannot be used here ({error})");
            None
        }
        Err(error) => panic!("io_uring cannot be used here: {error}"),
    }
}

/// Turns until `done` has seen what it wants.
fn turn_until<D: Datagrams>(datagrams: &mut D, mut done: impl FnMut(&mut D, Option<Arrival>) -> bool) {
    let mut events = Events::with_capacity(8);
    let deadline = Instant::now() + PATIENCE;
    loop {
        datagrams.wait(&mut events, Some(Duration::from_millis(100)), None).unwrap();
        while let Some(arrival) = datagrams.next() {
            if done(datagrams, Some(arrival)) {
                return;
            }
        }
        if done(datagrams, None) {
            return;
        }
        assert!(Instant::now() < deadline, "nothing happened in {PATIENCE:?}");
    }
}

fn next_datagram<D: Datagrams>(datagrams: &mut D) -> Datagram {
    let mut found = None;
    turn_until(datagrams, |_, arrival| {
        if let Some(Arrival::Datagram(datagram)) = arrival {
            found = Some(datagram);
        }
        found.is_some()
    });
    found.unwrap()
}

fn relay(ip: &str) -> UdpSocket {
    open_relay(SocketAddr::new(ip.parse().unwrap(), 0), &UdpOptions::LISTENER).unwrap()
}

fn peer(ip: &str) -> UdpSocket {
    let socket = UdpSocket::bind((ip.parse::<IpAddr>().unwrap(), 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    let bytes = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value is an integer of that length.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), bytes) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn to(socket: SocketKey, to: SocketAddr) -> Destination {
    Destination { socket, to, source: None, tos: 0 }
}

fn a_datagram_arrives_with_what_is_known_of_it<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    for ip in ["127.0.0.1", "::1"] {
        let (socket, peer) = (relay(ip), peer(ip));
        let address = socket.local_addr().unwrap();
        let key = datagrams.add(TOKEN, Role::Relay, socket).unwrap();
        socket2::SockRef::from(&peer)
            .set_tos_v4(0xb8)
            .or_else(|_| socket2::SockRef::from(&peer).set_tclass_v6(0xb8))
            .unwrap();
        if ip == "::1" {
            socket2::SockRef::from(&peer).set_tclass_v6(0xb8).unwrap();
        }
        peer.send_to(b"hello", address).unwrap();
        let datagram = next_datagram(&mut datagrams);
        assert_eq!((datagram.token, datagram.from, datagram.len), (TOKEN, peer.local_addr().unwrap(), 5));
        assert_eq!((datagram.tos, datagram.truncated), (0xb8, false));
        assert_eq!(&datagrams.datagram(datagram.slot)[..5], b"hello");
        datagrams.remove(key);
    }
}

fn a_prefix_is_written_in_place_and_sent_on<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let (socket, peer) = (relay("127.0.0.1"), peer("127.0.0.1"));
    let address = socket.local_addr().unwrap();
    let key = datagrams.add(TOKEN, Role::Relay, socket).unwrap();
    peer.send_to(b"body", address).unwrap();
    let datagram = next_datagram(&mut datagrams);
    datagrams.slot_mut(datagram.slot)[HEADROOM - 4..HEADROOM].copy_from_slice(b"head");
    datagrams.send_slot(to(key, datagram.from), datagram.slot, HEADROOM - 4, 8);
    datagrams.send_copy(to(key, datagram.from), b"copy");
    datagrams.flush();
    let mut bytes = [0; 16];
    assert_eq!(peer.recv(&mut bytes).map(|len| bytes[..len].to_vec()).unwrap(), b"headbody");
    assert_eq!(peer.recv(&mut bytes).map(|len| bytes[..len].to_vec()).unwrap(), b"copy");
    assert_eq!(datagrams.sent().sent, 2);
}

fn the_longest_datagram_passes<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let (socket, peer) = (relay("127.0.0.1"), peer("127.0.0.1"));
    let address = socket.local_addr().unwrap();
    let key = datagrams.add(TOKEN, Role::Relay, socket).unwrap();
    let long: Vec<u8> = (0..65_507_u32).map(|index| (index % 251) as u8).collect();
    peer.send_to(&long, address).unwrap();
    let datagram = next_datagram(&mut datagrams);
    assert_eq!((datagram.len, datagram.truncated), (long.len(), false));
    assert!(datagrams.datagram(datagram.slot)[..long.len()] == long);
    datagrams.send_slot(to(key, datagram.from), datagram.slot, HEADROOM, long.len());
    datagrams.flush();
    let mut bytes = vec![0; 65_536];
    let len = peer.recv(&mut bytes).unwrap();
    assert!(bytes[..len] == long);
}

fn a_burst_is_kept_in_order<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let (socket, peer) = (relay("127.0.0.1"), peer("127.0.0.1"));
    let address = socket.local_addr().unwrap();
    let key = datagrams.add(TOKEN, Role::Relay, socket).unwrap();
    let mut expected = 0_u32;
    for round in 0..20 {
        for number in 0..100_u32 {
            peer.send_to(&(round * 100 + number).to_be_bytes(), address).unwrap();
        }
        let end = (round + 1) * 100;
        turn_until(&mut datagrams, |datagrams, arrival| {
            if let Some(Arrival::Datagram(datagram)) = arrival {
                assert_eq!(datagrams.datagram(datagram.slot)[..4], expected.to_be_bytes());
                datagrams.send_slot(to(key, datagram.from), datagram.slot, HEADROOM, 4);
                expected += 1;
            }
            expected == end
        });
        datagrams.flush();
        for number in 0..100_u32 {
            let mut bytes = [0; 8];
            assert_eq!(peer.recv(&mut bytes).unwrap(), 4);
            assert_eq!(bytes[..4], (round * 100 + number).to_be_bytes());
        }
    }
    assert_eq!((datagrams.sent().sent, datagrams.sent().dropped()), (2000, 0));
}

/// What a peer receives next, with how many bytes crossed the stack together.
fn received(peer: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let len = peer.recv(&mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

fn a_flooded_socket_keeps_no_other_waiting<D: Datagrams>(mut datagrams: D) {
    const FLOOD: usize = 200;
    datagrams.start().unwrap();
    let (flooded, other, peer) = (relay("127.0.0.1"), relay("127.0.0.1"), peer("127.0.0.1"));
    // All of it is there before anything is looked at.
    (0..FLOOD).for_each(|_| _ = peer.send_to(b"flood", flooded.local_addr().unwrap()).unwrap());
    peer.send_to(b"call", other.local_addr().unwrap()).unwrap();
    datagrams.add(TOKEN, Role::Relay, flooded).unwrap();
    datagrams.add(Token(8), Role::Relay, other).unwrap();
    let (mut before, mut all) = (None, 0);
    turn_until(&mut datagrams, |_, arrival| {
        if let Some(Arrival::Datagram(datagram)) = arrival {
            before = before.or((datagram.token == Token(8)).then_some(all));
            all += 1;
        }
        all == FLOOD + 1
    });
    let before = before.unwrap();
    assert!(before < FLOOD / 2, "{before} datagrams came before the other socket had its turn");
}

fn a_run_to_one_destination_crosses_as_one_and_arrives_as_it_was<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    for ip in ["127.0.0.1", "::1"] {
        let key = datagrams.add(TOKEN, Role::Relay, relay(ip)).unwrap();
        let (peer, other) = (peer(ip), peer(ip));
        let (to_peer, to_other) = (to(key, peer.local_addr().unwrap()), to(key, other.local_addr().unwrap()));
        let lengths = [500, 500, 500, 7, 500, 0, 500, 500, 501, 501, 1452, 1452, 1453, 1453, 160];
        let message = |number: usize, len: usize| -> Vec<u8> { (0..len).map(|at| (at * 7 + number) as u8).collect() };
        for (number, len) in lengths.into_iter().enumerate() {
            datagrams.send_copy(to_peer, &message(number, len));
        }
        datagrams.send_copy(to_other, b"elsewhere");
        datagrams.send_copy(Destination { tos: 0xb8, ..to_other }, b"otherwise");
        datagrams.flush();
        for (number, len) in lengths.into_iter().enumerate() {
            assert_eq!(received(&peer), message(number, len), "{number}");
        }
        assert_eq!((received(&other), received(&other)), (b"elsewhere".to_vec(), b"otherwise".to_vec()));

        // A socket that takes trains whole shows that they are.
        set_option(&peer, libc::SOL_UDP, libc::UDP_GRO, 1);
        for number in 0..100 {
            datagrams.send_copy(to_peer, &message(number, 160));
        }
        datagrams.flush();
        assert_eq!((received(&peer).len(), received(&peer).len()), (64 * 160, 36 * 160));
        datagrams.remove(key);
    }
    let all = 2 * (15 + 2 + 100);
    assert_eq!((datagrams.sent().sent, datagrams.sent().dropped()), (all, 0));
}

fn runs_of_two_sockets_keep_their_sources<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let sockets = [relay("127.0.0.1"), relay("127.0.0.1")];
    let sources = [sockets[0].local_addr().unwrap(), sockets[1].local_addr().unwrap()];
    let keys = sockets.map(|socket| datagrams.add(TOKEN, Role::Relay, socket).unwrap());
    let peer = peer("127.0.0.1");
    let turns = [0, 0, 1, 1, 0, 1];
    for turn in turns {
        datagrams.send_copy(to(keys[turn], peer.local_addr().unwrap()), &[turn as u8; 100]);
    }
    datagrams.flush();
    for turn in turns {
        let mut bytes = [0; 200];
        assert_eq!(peer.recv_from(&mut bytes).unwrap(), (100, sources[turn]));
        assert_eq!(bytes[0], turn as u8);
    }
}

fn where_trains_are_refused_each_datagram_goes_alone<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let socket = relay("127.0.0.1");
    // The kernel makes no trains of datagrams without checksum: EINVAL.
    set_option(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1);
    let key = datagrams.add(TOKEN, Role::Relay, socket).unwrap();
    let peer = peer("127.0.0.1");
    for round in 0..3_u8 {
        for number in 0..10 {
            datagrams.send_copy(to(key, peer.local_addr().unwrap()), &[round * 10 + number; 300]);
        }
        datagrams.flush();
        for number in 0..10 {
            assert_eq!(received(&peer), [round * 10 + number; 300]);
        }
    }
    assert_eq!((datagrams.sent().sent, datagrams.sent().dropped()), (30, 0));
}

fn a_closed_socket_gives_its_port_back<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let peer = peer("127.0.0.1");
    let mut socket = relay("127.0.0.1");
    let address = socket.local_addr().unwrap();
    for number in 0..50_u64 {
        let key = datagrams.add(Token(number), Role::Relay, socket).unwrap();
        datagrams.send_copy(to(key, peer.local_addr().unwrap()), &number.to_be_bytes());
        datagrams.remove(key);
        turn_until(&mut datagrams, |_, arrival| arrival == Some(Arrival::Closed(Token(number))));
        let mut bytes = [0; 8];
        assert_eq!(peer.recv(&mut bytes).unwrap(), 8);
        assert_eq!(bytes, number.to_be_bytes(), "what was queued before goes out");
        socket = open_relay(address, &UdpOptions::RELAY).unwrap();
    }
}

/// The tokens of sockets that are told to be closed, to the end of the turn.
fn closed<D: Datagrams>(datagrams: &mut D) -> Vec<u64> {
    let arrivals = std::iter::from_fn(|| datagrams.next());
    let mut closed: Vec<_> = arrivals
        .filter_map(|arrival| match arrival {
            Arrival::Closed(Token(number)) => Some(number),
            Arrival::Datagram(_) | Arrival::Errors(_) => None,
        })
        .collect();
    closed.sort_unstable();
    closed
}

fn sockets_that_close_together_give_their_ports_back_before_what_waits_is_sent<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let peer = peer("127.0.0.1");
    peer.set_nonblocking(true).unwrap();
    let answering = datagrams.add(TOKEN, Role::Listener, relay("127.0.0.1")).unwrap();
    let (mut keys, mut addresses) = (Vec::new(), Vec::new());
    for number in 100..140 {
        let socket = relay("127.0.0.1");
        addresses.push(socket.local_addr().unwrap());
        keys.push(datagrams.add(Token(number), Role::Relay, socket).unwrap());
    }
    let mut events = Events::with_capacity(8);
    datagrams.wait(&mut events, Some(Duration::ZERO), None).unwrap();
    assert_eq!(datagrams.next(), None);
    // Some have something that is not read, some have more under way.
    for address in &addresses[..20] {
        peer.send_to(b"late", address).unwrap();
    }
    datagrams.wait(&mut events, Some(PATIENCE), None).unwrap();
    for address in &addresses[10..30] {
        peer.send_to(b"later", address).unwrap();
    }
    datagrams.send_copy(to(answering, peer.local_addr().unwrap()), b"done");
    keys.into_iter().for_each(|key| datagrams.remove(key));
    assert!(datagrams.has_more());
    assert_eq!(closed(&mut datagrams), (100..140).collect::<Vec<_>>());
    for address in addresses {
        open_relay(address, &UdpOptions::RELAY).unwrap();
    }
    let mut bytes = [0; 8];
    assert_eq!(peer.recv(&mut bytes).unwrap_err().kind(), io::ErrorKind::WouldBlock, "nothing was sent yet");
    datagrams.flush();
    assert_eq!(peer.recv(&mut bytes).unwrap(), 4);
    assert_eq!((datagrams.sent().sent, datagrams.sent().dropped()), (1, 0));
}

fn a_socket_closes_in_the_turn_that_it_came_in<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let socket = relay("127.0.0.1");
    let address = socket.local_addr().unwrap();
    let key = datagrams.add(TOKEN, Role::Relay, socket).unwrap();
    datagrams.remove(key);
    assert_eq!(closed(&mut datagrams), [TOKEN.0]);
    open_relay(address, &UdpOptions::RELAY).unwrap();
}

fn icmp_errors_are_told_and_end_nothing<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let (socket, peer) = (relay("127.0.0.1"), peer("127.0.0.1"));
    let address = socket.local_addr().unwrap();
    let closed = self::peer("127.0.0.1").local_addr().unwrap();
    let key = datagrams.add(TOKEN, Role::Relay, socket).unwrap();
    for _ in 0..3 {
        datagrams.send_copy(to(key, closed), b"into the void");
        turn_until(&mut datagrams, |_, arrival| arrival == Some(Arrival::Errors(TOKEN)));
        let mut kinds = Vec::new();
        read_error_queue(datagrams.socket(key).unwrap(), |error| kinds.push((error.kind, error.code))).unwrap();
        assert_eq!(kinds, [(3, 3)]);
        peer.send_to(b"alive", address).unwrap();
        assert_eq!(next_datagram(&mut datagrams).len, 5);
    }
}

fn a_send_that_meets_an_old_error_is_not_lost<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let (socket, peer) = (relay("127.0.0.1"), peer("127.0.0.1"));
    let closed = self::peer("127.0.0.1").local_addr().unwrap();
    let key = datagrams.add(TOKEN, Role::Relay, socket).unwrap();
    // The error of the first is there when the second is sent.
    datagrams.send_copy(to(key, closed), b"void");
    datagrams.flush();
    datagrams.send_copy(to(key, peer.local_addr().unwrap()), b"meant");
    datagrams.flush();
    let mut events = Events::with_capacity(8);
    datagrams.wait(&mut events, Some(Duration::ZERO), None).unwrap();
    let mut bytes = [0; 8];
    assert_eq!(peer.recv(&mut bytes).unwrap(), 5);
}

fn other_descriptors_wake_the_wait<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let waker = Waker::new().unwrap();
    datagrams.poll().add(&waker, TOKEN, Interest::Readable, false).unwrap();
    let mut events = Events::with_capacity(8);
    for _ in 0..5 {
        waker.wake().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !events.iter().any(|event| event.token == TOKEN) {
            datagrams.wait(&mut events, Some(PATIENCE), None).unwrap();
            assert!(Instant::now() < deadline);
        }
        waker.drain().unwrap();
        events.clear();
    }
}

fn patience_ends_the_wait<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let mut events = Events::with_capacity(8);
    let began = Instant::now();
    datagrams.wait(&mut events, Some(Duration::from_millis(20)), None).unwrap();
    // The first wait of a back end may end early for reasons of its own.
    datagrams.wait(&mut events, Some(Duration::from_millis(20)), None).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(20));
    assert!(datagrams.next().is_none());
}

fn a_rest_collects_what_comes<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let (socket, peer) = (relay("127.0.0.1"), peer("127.0.0.1"));
    let address = socket.local_addr().unwrap();
    datagrams.add(TOKEN, Role::Relay, socket).unwrap();
    let mut events = Events::with_capacity(8);
    datagrams.wait(&mut events, Some(Duration::ZERO), None).unwrap();
    for number in 0..10_u8 {
        peer.send_to(&[number], address).unwrap();
    }
    let mut count = 0;
    let deadline = Instant::now() + PATIENCE;
    while count < 10 {
        datagrams.wait(&mut events, Some(PATIENCE), Some(Duration::from_micros(300))).unwrap();
        while let Some(arrival) = datagrams.next() {
            count += usize::from(matches!(arrival, Arrival::Datagram(_)));
        }
        assert!(Instant::now() < deadline);
    }
}

fn a_rest_of_next_to_nothing_does_not_outlast_an_arrival<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let (socket, peer) = (relay("127.0.0.1"), peer("127.0.0.1"));
    let address = socket.local_addr().unwrap();
    datagrams.add(TOKEN, Role::Relay, socket).unwrap();
    let mut events = Events::with_capacity(8);
    datagrams.wait(&mut events, Some(Duration::ZERO), None).unwrap();
    peer.send_to(b"one", address).unwrap();
    let began = Instant::now();
    datagrams.wait(&mut events, Some(PATIENCE), Some(Duration::from_nanos(300))).unwrap();
    assert!(began.elapsed() < PATIENCE, "it waited for more");
}

fn a_wildcard_listener_tells_and_keeps_the_address_that_was_asked<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let options = UdpOptions::default();
    let listener = open_udp_listeners("0.0.0.0:0".parse().unwrap(), 1, &options).unwrap().remove(0);
    let asked = SocketAddr::new("127.0.0.3".parse().unwrap(), listener.local_addr().unwrap().port());
    let key = datagrams.add(TOKEN, Role::Listener, listener).unwrap();
    let peer = peer("127.0.0.1");
    peer.send_to(b"who", asked).unwrap();
    let datagram = next_datagram(&mut datagrams);
    assert_eq!(datagram.to, Some(asked.ip()));
    let destination = Destination { source: datagram.to, ..to(key, datagram.from) };
    datagrams.send_copy(destination, b"me");
    datagrams.flush();
    let mut bytes = [0; 8];
    assert_eq!(peer.recv_from(&mut bytes).unwrap(), (2, asked));
}
