//! What is there before anything is served.

use super::*;

/// The kernel takes nothing before the start, and no more than 512 submissions by one system call.
#[test]
fn more_sockets_than_are_submitted_at_once_are_served_from_the_start() {
    const SOCKETS: usize = 520;
    let Some(mut ring) = ring() else { return };
    let (token, peer) = (|number| Token(number as u64), peer("127.0.0.1"));
    let mut addresses = Vec::new();
    for number in 0..SOCKETS {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        addresses.push(socket.local_addr().unwrap());
        ring.add(token(number), Role::Listener, socket).unwrap();
    }
    ring.start().unwrap();
    for number in [0, SOCKETS - 1] {
        peer.send_to(b"asked", addresses[number]).unwrap();
        assert_eq!(next_datagram(&mut ring).token, token(number));
    }
}
