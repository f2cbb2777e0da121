//! Addresses and control messages in the kernel's layout, and memory that the kernel fills.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ptr::{self, NonNull};

use libc::{c_int, c_uint, cmsghdr, msghdr, socklen_t};

/// An IPv4 or IPv6 socket address as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::net) union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    /// The room for either family.
    pub(in crate::net) const BYTES: socklen_t = size_of::<Self>() as socklen_t;

    /// Room for an address, all zero.
    pub(in crate::net) fn empty() -> Self {
        Self::write(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0)).0
    }

    /// Lays an address out; the second value is its length. The flow label is left out, the scope kept.
    pub(in crate::net) fn write(address: impl Into<SocketAddr>) -> (Self, socklen_t) {
        match address.into() {
            SocketAddr::V4(address) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: in_addr(*address.ip()),
                    sin_zero: [0; 8],
                };
                (Self { v4 }, size_of::<libc::sockaddr_in>() as socklen_t)
            }
            SocketAddr::V6(address) => {
                let v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: in6_addr(*address.ip()),
                    sin6_scope_id: address.scope_id(),
                };
                (Self { v6 }, size_of::<libc::sockaddr_in6>() as socklen_t)
            }
        }
    }

    /// Reads an address of `length` bytes; None if it is of another family or cut off.
    pub(in crate::net) fn parse(&self, length: socklen_t) -> Option<SocketAddr> {
        // Whichever member was written last, the first 16 bytes of it are there.
        if (length as usize) < size_of::<libc::sockaddr_in>() {
            return None;
        }
        // SAFETY: `self` is at least a sockaddr_in; an IPv6 family is only read as such if all of it was written,
        // which the check below establishes.
        unsafe {
            let family = c_int::from(self.v4.sin_family);
            if family == libc::AF_INET6 && (length as usize) < size_of::<libc::sockaddr_in6>() {
                return None;
            }
            Self::read(ptr::from_ref(self).cast())
        }
    }

    /// Reads the address behind a pointer; None if it is of another family.
    ///
    /// # Safety
    /// `address` points to a whole address of the family that it names.
    pub(in crate::net) unsafe fn read(address: *const libc::sockaddr) -> Option<SocketAddr> {
        // SAFETY: every address begins with its family.
        let family = unsafe { (*address).sa_family };
        match c_int::from(family) {
            libc::AF_INET => {
                // SAFETY: the caller says that the whole of it is there.
                let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
                Some(SocketAddrV4::new(ipv4(v4.sin_addr), u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: the caller says that the whole of it is there.
                let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
                let ip = ipv6(v6.sin6_addr);
                Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

fn in_addr(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) }
}

fn in6_addr(ip: Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr { s6_addr: ip.octets() }
}

fn ipv4(ip: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(ip.s_addr.to_ne_bytes())
}

fn ipv6(ip: libc::in6_addr) -> Ipv6Addr {
    Ipv6Addr::from(ip.s6_addr)
}

/// A type that is nothing but numbers, as the payload of a control message.
///
/// # Safety
/// Every bit pattern is a value.
pub(in crate::net) unsafe trait Plain: Copy {}

// SAFETY: integers.
unsafe impl Plain for u8 {}
// SAFETY: integers.
unsafe impl Plain for u16 {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for c_int {}
// SAFETY: a C structure of integers.
unsafe impl Plain for libc::in_pktinfo {}
// SAFETY: a C structure of integers.
unsafe impl Plain for libc::in6_pktinfo {}
// SAFETY: a C structure of integers.
unsafe impl Plain for libc::sock_extended_err {}

/// Room for the control messages of one datagram, aligned for their headers.
///
/// The most that arrives is an IPv6 ICMP error: 16 (header) + 16 (sock_extended_err) + 28 (offender) rounded up to 64,
/// TOS 24 and drop counter 24.
#[repr(C, align(8))]
pub(in crate::net) struct Control([u8; Self::BYTES]);

impl Control {
    pub(in crate::net) const BYTES: usize = 128;

    pub(in crate::net) fn empty() -> Self {
        Self([0; Self::BYTES])
    }

    /// Lays out the control messages of a datagram to send and returns their length: source address (IP_PKTINFO) and
    /// TOS, each only if it is wanted. `scope` is the interface of a link-local IPv6 destination, else 0.
    pub(in crate::net) fn write(&mut self, source: Option<IpAddr>, scope: u32, tos: u8, is_v6: bool) -> usize {
        let mut length = 0;
        match source {
            Some(IpAddr::V4(ip)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr(ip),
                    ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
                };
                length = self.push(length, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some(IpAddr::V6(ip)) => {
                let info = libc::in6_pktinfo { ipi6_addr: in6_addr(ip), ipi6_ifindex: scope as _ };
                length = self.push(length, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
            None => {}
        }
        match (tos, is_v6) {
            (0, _) => length,
            (_, false) => self.push(length, libc::IPPROTO_IP, libc::IP_TOS, c_int::from(tos)),
            (_, true) => self.push(length, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, c_int::from(tos)),
        }
    }

    /// Adds the length of the datagrams of a train (UDP_SEGMENT) behind `length` bytes and returns the new length.
    pub(in crate::net) fn push_segment(&mut self, length: usize, each: u16) -> usize {
        self.push(length, libc::SOL_UDP, libc::UDP_SEGMENT, each)
    }

    /// The length without what [`Self::push_segment`] has added.
    pub(in crate::net) fn without_segment(length: usize) -> usize {
        // SAFETY: arithmetic only.
        length - unsafe { libc::CMSG_SPACE(size_of::<u16>() as c_uint) } as usize
    }

    fn push<T: Plain>(&mut self, offset: usize, level: c_int, kind: c_int, value: T) -> usize {
        // SAFETY: arithmetic only.
        let (length, space) = unsafe {
            (libc::CMSG_LEN(size_of::<T>() as c_uint) as usize, libc::CMSG_SPACE(size_of::<T>() as c_uint) as usize)
        };
        assert!(offset + space <= Self::BYTES, "control messages outgrow their room");
        // SAFETY: `offset` is a sum of CMSG_SPACEs, so the header is aligned, and the assertion keeps header and value
        // inside the buffer.
        unsafe {
            let header = self.0.as_mut_ptr().add(offset).cast::<cmsghdr>();
            (*header).cmsg_len = length as _;
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        offset + space
    }
}

/// Calls `visit` with level, type and payload of each control message.
///
/// # Safety
/// `header.msg_control` points to `header.msg_controllen` bytes that the kernel wrote.
pub(in crate::net) unsafe fn for_each(header: &msghdr, mut visit: impl FnMut(c_int, c_int, &[u8])) {
    // SAFETY: arithmetic only.
    let prefix = unsafe { libc::CMSG_LEN(0) } as usize;
    // SAFETY: the caller vouches for the bytes.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header whose payload lies inside the buffer, as the
        // kernel laid it out.
        unsafe {
            let length = ((*next).cmsg_len as usize).saturating_sub(prefix);
            visit((*next).cmsg_level, (*next).cmsg_type, std::slice::from_raw_parts(libc::CMSG_DATA(next), length));
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
}

/// Reads a payload, None if it is too short.
pub(in crate::net) fn read<T: Plain>(payload: &[u8]) -> Option<T> {
    // SAFETY: the length is checked, and every bit pattern is a value of a plain type.
    (payload.len() >= size_of::<T>()).then(|| unsafe { payload.as_ptr().cast::<T>().read_unaligned() })
}

/// What the control messages of a received datagram say.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::net) struct Received {
    pub(in crate::net) to: Option<IpAddr>,
    pub(in crate::net) tos: u8,
    pub(in crate::net) drops: Option<u32>,
    /// The length of each of the datagrams that were merged, but for the last, which may be shorter.
    pub(in crate::net) each: Option<usize>,
}

impl Received {
    pub(in crate::net) fn take(&mut self, level: c_int, kind: c_int, payload: &[u8]) {
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                self.to = read::<libc::in_pktinfo>(payload).map(|info| ipv4(info.ipi_addr).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                self.to = read::<libc::in6_pktinfo>(payload).map(|info| ipv6(info.ipi6_addr).into());
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => self.tos = read(payload).unwrap_or(0),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                self.tos = read::<c_int>(payload).and_then(|tos| tos.try_into().ok()).unwrap_or(0);
            }
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => self.drops = read(payload),
            (libc::SOL_UDP, libc::UDP_GRO) => {
                self.each = read::<c_int>(payload).and_then(|each| each.try_into().ok()).filter(|each| *each > 0);
            }
            _ => {}
        }
    }
}

/// A heap array of fixed length that is only reached through its raw pointer, so that pointers into it that were
/// handed to the kernel stay valid between borrows and when the owner moves.
pub(in crate::net) struct Fixed<T> {
    base: NonNull<T>,
    length: usize,
}

impl<T> Fixed<T> {
    pub(in crate::net) fn new(items: Vec<T>) -> Self {
        let length = items.len();
        let base = NonNull::from(Box::leak(items.into_boxed_slice())).cast();
        Self { base, length }
    }

    /// The address of the first item.
    pub(in crate::net) fn as_ptr(&self) -> *mut T {
        self.base.as_ptr()
    }

    pub(in crate::net) fn as_slice(&self) -> &[T] {
        // SAFETY: `base` and `length` are of a boxed slice that `self` owns, and `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length) }
    }

    pub(in crate::net) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `base` and `length` are of a boxed slice that `self` owns, and `&mut self` keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.length) }
    }
}

impl<T> Drop for Fixed<T> {
    fn drop(&mut self) {
        let items = ptr::slice_from_raw_parts_mut(self.base.as_ptr(), self.length);
        // SAFETY: it was leaked from a box in `new` and is freed once.
        drop(unsafe { Box::from_raw(items) });
    }
}
