//! The host's own addresses and the source addresses of its default routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::ptr;

/// The addresses of all interfaces, loopback included, each once.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let mut list: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: getifaddrs writes a list head that stays valid until freeifaddrs below.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut addresses = Vec::new();
    let mut entry = list;
    // SAFETY: the list is linked by ifa_next and ends in null; nothing frees it while it is walked.
    while let Some(interface) = unsafe { entry.as_ref() } {
        // SAFETY: ifa_addr is null or points to a socket address of the family it names.
        let address = unsafe { interface.ifa_addr.as_ref().and_then(|address| ip_of(address)) };
        if let Some(address) = address.filter(|address| !addresses.contains(address)) {
            addresses.push(address);
        }
        entry = interface.ifa_next;
    }
    // SAFETY: the list came from getifaddrs and no reference into it is left.
    unsafe { libc::freeifaddrs(list) };
    Ok(addresses)
}

/// # Safety
///
/// The reference must be into a whole socket address of the family that it names.
unsafe fn ip_of(address: &libc::sockaddr) -> Option<IpAddr> {
    match i32::from(address.sa_family) {
        libc::AF_INET => {
            // SAFETY: a socket address of AF_INET is a sockaddr_in; read_unaligned asks for no alignment.
            let v4 = unsafe { ptr::from_ref(address).cast::<libc::sockaddr_in>().read_unaligned() };
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr))))
        }
        libc::AF_INET6 => {
            // SAFETY: a socket address of AF_INET6 is a sockaddr_in6; read_unaligned asks for no alignment.
            let v6 = unsafe { ptr::from_ref(address).cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)))
        }
        _ => None,
    }
}

/// The source address of the IPv4 default route. Connecting a datagram socket chooses a route and sends nothing.
pub fn default_route_v4() -> Option<Ipv4Addr> {
    // TEST-NET-2 (RFC 5737): nobody is there, so only the default route leads to it.
    match source_address((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(198, 51, 100, 1), 9).into())? {
        IpAddr::V4(v4) if !v4.is_unspecified() && !v4.is_loopback() => Some(v4),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// The source address of the IPv6 default route.
pub fn default_route_v6() -> Option<Ipv6Addr> {
    // The documentation prefix (RFC 3849).
    let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    match source_address((Ipv6Addr::UNSPECIFIED, 0).into(), (documentation, 9).into())? {
        IpAddr::V6(v6) if !v6.is_unspecified() && !v6.is_loopback() && !v6.is_unicast_link_local() => Some(v6),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Whether an IPv6 socket can be bound on this host.
pub fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

/// Whether sockets can be bound to addresses the host does not have, as VRRP pairs ask of the kernel
/// (`net.ipv4.ip_nonlocal_bind`). Tried rather than read: a hardened unit does not see /proc/sys.
pub fn allows_nonlocal_bind() -> bool {
    // TEST-NET-2 (RFC 5737).
    let foreign = Ipv4Addr::new(198, 51, 100, 254);
    let is_own = own_addresses().is_ok_and(|own| own.contains(&IpAddr::V4(foreign)));
    !is_own && UdpSocket::bind((foreign, 0)).is_ok()
}

fn source_address(bind: std::net::SocketAddr, to: std::net::SocketAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(bind).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_the_own_addresses_once() {
        let addresses = own_addresses().unwrap();
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(addresses.iter().filter(|address| **address == loopback).count(), 1, "{addresses:?}");
    }

    #[test]
    fn the_default_route_leaves_from_an_own_address() {
        let addresses = own_addresses().unwrap();
        for source in [default_route_v4().map(IpAddr::V4), default_route_v6().map(IpAddr::V6)].into_iter().flatten() {
            assert!(addresses.contains(&source), "{source} is not in {addresses:?}");
        }
    }
}
