//! What the tests of this room share: conditions to wait for.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::poll::{Event, Events, Interest, Poll, Token};
use super::socket::set_option;
use super::udp::RecvBatch;

const PATIENCE: Duration = Duration::from_secs(10);

/// Has what is sent cut into datagrams of `each` bytes, the last of which may be shorter; on loopback they stay together
/// for a socket that merges.
pub(crate) fn send_in_trains(socket: &UdpSocket, each: usize) {
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, each as i32).unwrap();
}

/// Waits until a datagram can be read.
pub(in crate::net) fn wait_for_datagram(socket: &impl AsFd) {
    wait_for(socket, |event| event.readable);
}

/// Waits until the error queue has something.
pub(in crate::net) fn wait_for_error(socket: &impl AsFd) {
    wait_for(socket, |event| event.error);
}

/// Waits until a condition holds that no single socket can tell.
pub(in crate::net) fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "nothing happened in {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Whether a datagram can be read now.
pub(in crate::net) fn has_datagram(socket: &impl AsFd) -> bool {
    let (poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(1));
    poll.add(socket, Token(0), Interest::Readable, false).unwrap();
    poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
    events.iter().any(|event| event.readable)
}

/// A loopback port that nobody else gets and that answers with an ICMP error, as long as its socket lives: a connected
/// socket takes nothing from strangers.
pub(in crate::net) fn closed_port(ip: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    socket.connect(address).unwrap();
    (socket, address)
}

fn wait_for(socket: &impl AsFd, condition: impl Fn(Event) -> bool) {
    let (poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(1));
    poll.add(socket, Token(0), Interest::Readable, true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        poll.wait(&mut events, Some(deadline.saturating_duration_since(Instant::now()))).unwrap();
        if events.iter().any(&condition) {
            return;
        }
        assert!(Instant::now() < deadline, "nothing happened in {PATIENCE:?}");
    }
}

/// Clears a batch, receives once, and returns how many datagrams there are.
pub(in crate::net) fn receive_anew(batch: &mut RecvBatch, socket: &UdpSocket, max: usize) -> usize {
    batch.clear();
    batch.recv(socket, max).unwrap().len()
}
