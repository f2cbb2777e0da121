//! Addresses and ports that tests share with nobody, whatever else runs on this host.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the ephemeral ports, from which the clients take theirs.
const PORTS: std::ops::Range<u32> = 10_000..30_000;

/// The network namespace that ferryd runs in, where `tests/daemon/by-veth` has made one: XDP carries nothing on loopback,
/// where checksums are never finished.
pub(crate) fn namespace() -> Option<PathBuf> {
    std::env::var("FERRY_TEST_NAMESPACE").ok().map(|name| ["/run/netns", &name].iter().collect())
}

/// The interface of ferryd that clients and peers are behind.
pub(crate) fn interface() -> &'static str {
    if namespace().is_some() { "server" } else { "lo" }
}

/// The address of clients and peers.
pub(crate) fn here() -> Ipv4Addr {
    if namespace().is_some() { Ipv4Addr::new(172, 31, 255, 1) } else { Ipv4Addr::LOCALHOST }
}

/// Another address of clients and peers.
pub(crate) fn elsewhere() -> Ipv4Addr {
    if namespace().is_some() { Ipv4Addr::new(172, 31, 255, 3) } else { Ipv4Addr::new(127, 0, 0, 3) }
}

/// Does something on ferryd's host, such as to bind one of its addresses.
pub(crate) fn on_its_host<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let Some(namespace) = namespace() else { return act() };
    let enter = move || {
        enter(&File::open(namespace).unwrap()).unwrap();
        act()
    };
    // The thread has the namespace to itself, and what it opens stays there.
    std::thread::spawn(enter).join().unwrap()
}

/// Has this thread make sockets in a network namespace.
pub(crate) fn enter(namespace: &File) -> std::io::Result<()> {
    // SAFETY: the call touches no memory.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A peer.
pub(crate) fn peer() -> UdpSocket {
    UdpSocket::bind((here(), 0)).unwrap()
}

/// A loopback address of this process that was not given out before: all of 127.0.0.0/8 is this host. The namespace has 254
/// addresses, for one process.
pub(crate) fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let octet = |number: u32| (1 + number % 254) as u8;
    if namespace().is_some() {
        return Ipv4Addr::new(10, 77, 0, octet(number));
    }
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
