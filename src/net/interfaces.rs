//! What this host has: addresses, a default route, file descriptors.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ptr;

use super::control::Name;
use crate::address::Family;

/// Returns the addresses of all interfaces, loopback and link-local ones included, sorted and each once.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let mut list = ptr::null_mut();
    // SAFETY: getifaddrs stores a list in `list`, which is freed below.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut addresses = Vec::new();
    let mut next = list;
    // SAFETY: the list ends with null, and its entries live until freeifaddrs.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: a non-null ifa_addr is a whole address of the family that it names.
        addresses.extend(unsafe { Name::read(entry.ifa_addr) }.map(|address| address.ip()));
    }
    // SAFETY: getifaddrs made the list, and nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// Returns the address that datagrams to the public Internet would leave from, or None where there is no route for
/// the family. Nothing is sent.
pub fn default_source(family: Family) -> Option<IpAddr> {
    // The addresses of a.root-servers.net, which stay.
    let (any, public): (IpAddr, IpAddr) = match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(198, 41, 0, 4).into()),
        Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30).into()),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(public, 53)).ok()?;
    let source = socket.local_addr().ok()?.ip();
    (!source.is_unspecified()).then_some(source)
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

/// Whether something keeps the kernel's clock right (adjtimex(2)); `None` where the kernel does not say. Changes nothing.
pub fn clock_is_synchronised() -> Option<bool> {
    // SAFETY: all zeros is a timex that asks for no change, and the kernel fills it within its size.
    let (state, status) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&mut timex), timex.status)
    };
    (state >= 0).then_some(state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0)
}

/// How many file descriptors the process may have: now, and after raising the limit itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimits {
    pub soft: u64,
    pub hard: u64,
}

/// How many descriptors this process has open.
pub fn open_descriptors() -> io::Result<u64> {
    // Less the one of the directory itself.
    Ok(std::fs::read_dir("/proc/self/fd")?.count() as u64 - 1)
}

/// Returns the limits on file descriptors (RLIMIT_NOFILE).
pub fn descriptor_limits() -> io::Result<DescriptorLimits> {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limits` outlives the call and has the layout that getrlimit fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(DescriptorLimits { soft: limits.rlim_cur, hard: limits.rlim_max })
}

/// Raises the soft limit on file descriptors to the hard one and returns it; one descriptor goes to each allocation.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let limits = descriptor_limits()?;
    if limits.soft < limits.hard {
        set_descriptor_limits(DescriptorLimits { soft: limits.hard, hard: limits.hard })?;
    }
    Ok(limits.hard)
}

fn set_descriptor_limits(limits: DescriptorLimits) -> io::Result<()> {
    let limits = libc::rlimit { rlim_cur: limits.soft, rlim_max: limits.hard };
    // SAFETY: `limits` outlives the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limits) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_an_own_address_and_each_can_be_bound() {
        let addresses = own_addresses().unwrap();
        assert!(addresses.contains(&Ipv4Addr::LOCALHOST.into()), "{addresses:?}");
        assert!(addresses.is_sorted_by(|a, b| a < b), "{addresses:?}");
        for ip in addresses {
            let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            assert!(link_local || UdpSocket::bind((ip, 0)).is_ok(), "{ip}");
        }
    }

    #[test]
    fn the_default_source_is_an_own_address_of_its_family() {
        for family in [Family::V4, Family::V6] {
            if let Some(source) = default_source(family) {
                assert_eq!(Family::of(source), family);
                assert!(own_addresses().unwrap().contains(&source), "{source}");
            }
        }
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let DescriptorLimits { hard, .. } = descriptor_limits().unwrap();
        set_descriptor_limits(DescriptorLimits { soft: hard - 1, hard }).unwrap();
        assert_eq!(descriptor_limits().unwrap(), DescriptorLimits { soft: hard - 1, hard });
        assert_eq!(raise_descriptor_limit().unwrap(), hard);
        assert_eq!(descriptor_limits().unwrap(), DescriptorLimits { soft: hard, hard });
    }
}
