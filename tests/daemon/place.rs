//! Addresses and ports that tests share with nobody, whatever else runs on this host.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the ephemeral ports, from which the clients take theirs.
const PORTS: std::ops::Range<u32> = 10_000..30_000;

/// A loopback address of this process that was not given out before: all of 127.0.0.0/8 is this host.
pub(crate) fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let octet = |number: u32| (1 + number % 254) as u8;
    Ipv4Addr::new(127, octet(process / 254), octet(process), octet(number))
}

/// A port that is free for UDP and TCP on every address, and was not given out before by this process.
///
/// Another process may still take it first: whoever uses it tries again with another one.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = (std::process::id().wrapping_mul(131) + number) % (PORTS.end - PORTS.start);
        let port = (PORTS.start + offset) as u16;
        if is_free(port) {
            return port;
        }
    }
}

fn is_free(port: u16) -> bool {
    let v4 = (Ipv4Addr::UNSPECIFIED, port);
    let v6 = (Ipv6Addr::UNSPECIFIED, port);
    let free_v4 = UdpSocket::bind(v4).is_ok() && TcpListener::bind(v4).is_ok();
    free_v4 && UdpSocket::bind(v6).is_ok() && TcpListener::bind(v6).is_ok()
}
